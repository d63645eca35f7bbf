"""Times the jitted training step against the same step in transformers + PyTorch.

  python benchmarks/train_step.py               # small, batch 32, length 128, float32, CPU
  python benchmarks/train_step.py --size=mini   # the encoder of configs/mini.py beside ModernBERT
  taskset -c 0 python benchmarks/train_step.py  # one core of a shared CPU: read the processor time
  python benchmarks/train_step.py --size=base --batch=128 --dtype=bfloat16 --compile

The last one is for a GPU. Rounds of the two alternate in one process, each after a
matrix product that measures the speed of the machine at that moment, so that other load affects
both. Requires neither TensorFlow nor ml_collections; PyTorch and transformers only for the peer.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

# Both frameworks share one GPU here; by default JAX would reserve most of its memory.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import allocator
from electra_jax.config.pretraining import ModelConfig, OptimizerConfig
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.model.electra import Electra
from electra_jax.pretrain import masking, pretrain_step
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import devices, optimizers, partitioning
from electra_jax.training.encoders import encoder_config

if TYPE_CHECKING:
  import torch


@dataclasses.dataclass(frozen=True)
class Size:
  """Two towers, or one that serves as both.

  Attributes:
    model: the discriminator, without dropout.
    vocab_size: tokens.
    fraction: of the discriminator's width that the generator has; None for one tower.
    dropout: of activations and of attention probabilities.
  """

  model: ModelConfig
  vocab_size: int
  fraction: float | None
  dropout: float


def _published(hidden: int, embedding: int, intermediate: int, heads: int) -> ModelConfig:
  return ModelConfig(
    hidden_size=hidden,
    embedding_size=embedding,
    intermediate_size=intermediate,
    num_heads=heads,
    num_layers=12,
  )


# Those of configs/small.py, base.py and mini.py, which gpu.py could not read: config files need
# ml_collections, and machines with GPUs may lack it.
SIZES = {
  'small': Size(_published(256, 128, 1024, 4), 30_522, 1 / 4, 0.1),
  'base': Size(_published(768, 768, 3072, 12), 30_522, 1 / 3, 0.1),
  'mini': Size(
    ModelConfig(
      family='modern',
      hidden_size=128,
      embedding_size=128,
      num_layers=6,
      num_heads=4,
      intermediate_size=256,
      layer_norm_eps=1e-5,
      global_every=1,
    ),
    8_192,
    None,
    0.0,
  ),
}
LEARNING_RATE = 5e-4
B1 = 0.9
B2 = 0.999
EPS = 1e-6
WEIGHT_DECAY = 0.01
CLIP = 1.0
MASK_RATE = 0.15
MASK_SHARE = 0.85
DISCRIMINATOR_WEIGHT = 50.0
CLS_ID = 2
SEP_ID = 3
MASK_ID = 4
FIRST_WORD = 5
Run = Callable[[int], None]  # makes a number of steps and waits for them


def towers(size: Size, flags: argparse.Namespace) -> tuple[EncoderConfig, EncoderConfig]:
  """Generator and discriminator. Only XLA's attention has dropout of its probabilities."""
  dropout = size.dropout if flags.dropout is None else flags.dropout
  model = dataclasses.replace(
    size.model,
    max_positions=max(size.model.max_positions, flags.length),
    dropout=dropout,
    attention_dropout=dropout if flags.attention == 'xla' else 0.0,
    attention=flags.attention,
    scan_unroll=flags.unroll,
  )
  discriminator = encoder_config(model, size.vocab_size, flags.length, flags.dtype)
  if size.fraction is None:
    return discriminator, discriminator
  return generator_config(discriminator, size.fraction, 1.0), discriminator


def random_rows(config: EncoderConfig, batch: int, length: int) -> np.ndarray:
  """Token ids [batch, length] as packing makes them: [CLS] words [SEP]."""
  ids = np.random.default_rng(0).integers(
    FIRST_WORD, config.vocab_size, (batch, length), dtype=np.int32
  )
  ids[:, 0], ids[:, -1] = CLS_ID, SEP_ID
  return ids


def model_of(generator: EncoderConfig, discriminator: EncoderConfig) -> Electra:
  """Both towers, which share their embeddings, or all their layers where they are the same."""
  sharing = 'all' if generator is discriminator else 'embeddings'
  return Electra(generator, discriminator, sharing)


def ours(generator: EncoderConfig, discriminator: EncoderConfig, rows: np.ndarray) -> Run:
  """Training steps of electra_jax."""
  batch, length = rows.shape
  model = model_of(generator, discriminator)
  settings = Settings(
    mask_rate=MASK_RATE,
    mask_share=MASK_SHARE,
    discriminator_weight=DISCRIMINATOR_WEIGHT,
    max_predictions=masking.max_predictions(MASK_RATE, length),
  )
  config = OptimizerConfig(
    b1=B1, b2=B2, eps=EPS, weight_decay=WEIGHT_DECAY, clip=CLIP, bias_correction=True
  )
  rates = {'learning_rate': lambda step: LEARNING_RATE}
  optimizer = optimizers.adamw(optimizers.OptimizerSettings(rates, config))
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  _, shardings = pretrain_step.state_shardings(model, optimizer, length, layout)
  train_step = pretrain_step.jit_train_step(
    pretrain_step.make_train_step(
      pretrain_step.Computation(model, OBJECTIVE, settings, seed=0), optimizer
    ),
    shardings,
    layout,
  )
  state = jax.jit(
    lambda: pretrain_step.init_state(model, optimizer, 0, length), out_shardings=shardings
  )()
  data = jax.device_put(
    {'token_ids': rows}, {'token_ids': partitioning.batch_sharding(layout.mesh)}
  )

  def run(n):
    nonlocal state
    for _ in range(n):
      state, sums = train_step(state, data)
    if not np.isfinite(jax.block_until_ready(sums)['loss']):
      sys.exit('The loss of our step is not finite.')

  return run


class PeerModel(NamedTuple):
  """Both towers in PyTorch.

  Attributes:
    modules: those that have the parameters.
    masked_logits: `(ids, positions) -> logits` of the tokens at positions `[batch, predictions]`.
    verdicts: `ids -> log-odds` that each was replaced.
  """

  modules: tuple[Any, ...]
  masked_logits: Callable[['torch.Tensor', 'torch.Tensor'], 'torch.Tensor']
  verdicts: Callable[['torch.Tensor'], 'torch.Tensor']


def at_positions(hidden: 'torch.Tensor', positions: 'torch.Tensor') -> 'torch.Tensor':
  """The states `[batch, predictions, hidden]` at some positions."""
  return hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))


def electra_peer(generator: EncoderConfig, discriminator: EncoderConfig, device: str) -> PeerModel:
  """ElectraForMaskedLM and ElectraForPreTraining of transformers, with the same embeddings."""
  import transformers

  def build(kind, c):
    config = transformers.ElectraConfig(
      vocab_size=c.vocab_size,
      embedding_size=c.embedding_size,
      hidden_size=c.hidden_size,
      num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads,
      intermediate_size=c.intermediate_size,
      max_position_embeddings=c.max_positions,
      hidden_dropout_prob=c.dropout,
      attention_probs_dropout_prob=c.attention_dropout,
      attn_implementation='sdpa',
    )
    return kind(config).to(device).train()

  verdict_tower = build(transformers.ElectraForPreTraining, discriminator)
  proposal_tower = build(transformers.ElectraForMaskedLM, generator)
  proposal_tower.electra.embeddings = verdict_tower.electra.embeddings
  proposal_tower.generator_lm_head.weight = verdict_tower.electra.embeddings.word_embeddings.weight

  def masked_logits(ids, positions):
    # No row has padding. torch.compile would make a dense mask of a mask of ones.
    hidden = proposal_tower.electra(ids)[0]
    hidden = proposal_tower.generator_predictions(at_positions(hidden, positions))
    return proposal_tower.generator_lm_head(hidden)

  def verdicts(ids):
    hidden = verdict_tower.electra(ids)[0]
    return verdict_tower.discriminator_predictions(hidden)

  return PeerModel((verdict_tower, proposal_tower), masked_logits, verdicts)


def modern_peer(_: EncoderConfig, c: EncoderConfig, device: str) -> PeerModel:
  """ModernBertForMaskedLM, and the head of ModernBertForTokenClassification on the same encoder."""
  import torch
  import transformers

  config = transformers.ModernBertConfig(
    vocab_size=c.vocab_size,
    hidden_size=c.hidden_size,
    intermediate_size=c.intermediate_size,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    max_position_embeddings=c.max_positions,
    layer_types=['full_attention'] * c.num_layers,
    pad_token_id=0,
    cls_token_id=CLS_ID,
    bos_token_id=CLS_ID,
    sep_token_id=SEP_ID,
    eos_token_id=SEP_ID,
    embedding_dropout=c.dropout,
    mlp_dropout=c.dropout,
    attention_dropout=c.attention_dropout,
    num_labels=1,
    attn_implementation='sdpa',
  )
  lm = transformers.ModernBertForMaskedLM(config).to(device).train()
  tagger = transformers.ModernBertForTokenClassification(config).to(device).train()
  tagger.model = lm.model

  def masked_logits(ids, positions):
    hidden = lm.model(ids, attention_mask=torch.ones_like(ids))[0]
    return lm.decoder(lm.head(at_positions(hidden, positions)))

  def verdicts(ids):
    return tagger(ids, attention_mask=torch.ones_like(ids)).logits[..., 0]

  return PeerModel((tagger, lm), masked_logits, verdicts)


PEERS = {'electra': electra_peer, 'modern': modern_peer}


def peer(
  generator: EncoderConfig, discriminator: EncoderConfig, rows: np.ndarray, compiled: bool
) -> Run:
  """The same steps with models of transformers.

  `compiled`: compile the forward pass with torch.compile.
  """
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = PEERS[discriminator.family](generator, discriminator, device)
  parameters = list(dict.fromkeys(p for module in model.modules for p in module.parameters()))
  decayed = [p for p in parameters if p.ndim > 1]
  kept = [p for p in parameters if p.ndim <= 1]
  optimizer = torch.optim.AdamW(
    [{'params': decayed}, {'params': kept, 'weight_decay': 0.0}],
    lr=LEARNING_RATE,
    betas=(B1, B2),
    eps=EPS,
    weight_decay=WEIGHT_DECAY,
    fused=True,
  )
  ids = torch.from_numpy(rows).long().to(device)
  maskable = ids >= FIRST_WORD
  predictions = masking.max_predictions(MASK_RATE, ids.shape[1])

  def losses(ids):
    scores = torch.where(maskable, torch.rand(ids.shape, device=device), -1.0)
    positions = scores.topk(predictions, dim=1).indices  # [batch, predictions]
    original = ids.gather(1, positions)
    shown = torch.where(torch.rand(positions.shape, device=device) < MASK_SHARE, MASK_ID, original)
    logits = model.masked_logits(ids.scatter(1, positions, shown), positions).float()
    generator_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), original.flatten())
    with torch.no_grad():
      samples = (logits - torch.empty_like(logits).exponential_().log()).argmax(
        -1
      )  # -log of Exp(1) is Gumbel
      corrupted = ids.scatter(1, positions, samples)
      labels = (corrupted != ids).float()
    verdicts = model.verdicts(corrupted).float()
    verdict_loss = torch.nn.functional.binary_cross_entropy_with_logits(verdicts, labels)
    return generator_loss + DISCRIMINATOR_WEIGHT * verdict_loss

  if compiled:
    losses = torch.compile(losses)

  def run(n):
    for _ in range(n):
      with torch.autocast(device, torch.bfloat16, enabled=discriminator.dtype == jnp.bfloat16):
        loss = losses(ids)
      loss.backward()
      torch.nn.utils.clip_grad_norm_(parameters, CLIP)
      optimizer.step()
      optimizer.zero_grad()
    if not np.isfinite(loss.item()):  # also waits for the device
      sys.exit('The loss of the peer is not finite.')

  return run


def matrix_product_rate(dtype: jnp.dtype) -> Callable[[], float]:
  """Compiles a large square matrix product; the function measures its FLOP/s."""
  n = 2048 if jax.default_backend() == 'cpu' else 8192
  a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), dtype)
  multiply = jax.jit(lambda x: x @ x)
  jax.block_until_ready(multiply(a))

  def measure():
    start = time.perf_counter()
    for _ in range(3):
      result = multiply(a)
    jax.block_until_ready(result)
    return 3 * 2 * n**3 / (time.perf_counter() - start)

  return measure


def timed(run: Run, n: int) -> tuple[float, float]:
  """Seconds per step over n steps: elapsed, and processor time of all cores."""
  start, used = time.perf_counter(), time.process_time()
  run(n)
  return (time.perf_counter() - start) / n, (time.process_time() - used) / n


def summary(values: list[float]) -> dict[str, float]:
  """Median and range."""
  return {'median': statistics.median(values), 'low': min(values), 'high': max(values)}


def machine() -> str:
  """Name of the device; of a CPU also the number of cores."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return device.device_kind
  names = (
    [
      line.split(':')[1].strip()
      for line in open('/proc/cpuinfo', encoding='utf-8')
      if line.startswith('model name')
    ]
    if os.path.exists('/proc/cpuinfo')
    else [platform.processor()]
  )
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return f'{names[0]}, {cores} core{"s" * (cores != 1)}'


def main() -> None:
  """Measures both and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--size', choices=list(SIZES), default='small')
  parser.add_argument('--batch', type=int, default=32, help='rows')
  parser.add_argument('--length', type=int, default=128, help='tokens in a row')
  parser.add_argument(
    '--dtype', choices=['float32', 'bfloat16'], help='default: float32 on a CPU, bfloat16 elsewhere'
  )
  parser.add_argument(
    '--dropout',
    type=float,
    help='of activations and of attention probabilities; default: 0.1, of mini 0',
  )
  parser.add_argument(
    '--attention',
    choices=['xla', 'cudnn'],
    default='xla',
    help='kernel; with cudnn attention has no dropout, here and in the peer',
  )
  parser.add_argument(
    '--unroll', type=int, default=0, help='layers in one iteration of our scan; 0: as the program'
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--steps', type=int, help='in a round; default: as many as fill about two seconds'
  )
  parser.add_argument('--peer', action=argparse.BooleanOptionalAction, default=True)
  parser.add_argument(
    '--compile', action='store_true', help='torch.compile the forward pass of the peer'
  )
  parser.add_argument('--json', metavar='FILE', help='a file for the results')
  flags = parser.parse_args()

  devices.execute_in_main_thread()
  if jax.default_backend() == 'cpu':  # as the program does, for both sides
    allocator.keep_freed_memory()
  flags.dtype = flags.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
  dtype = jnp.dtype(flags.dtype)
  generator, discriminator = towers(SIZES[flags.size], flags)
  rows = random_rows(discriminator, flags.batch, flags.length)
  settings = Settings(max_predictions=masking.max_predictions(MASK_RATE, flags.length))
  work = OBJECTIVE.step_flops(
    settings, model_of(generator, discriminator), (flags.batch, flags.length)
  )
  versions = f'jax {jax.__version__}'
  runs = {f'electra_jax, {flags.attention} attention': ours(generator, discriminator, rows)}
  if flags.peer:
    import torch
    import transformers

    versions += f', torch {torch.__version__}, transformers {transformers.__version__}'
    runs['transformers + PyTorch'] = peer(generator, discriminator, rows, flags.compile)
  print(
    f'{machine()}; {versions}\n{flags.size}, batch {flags.batch}, length {flags.length}, {dtype}, '
    f'dropout {discriminator.dropout:g}, of attention {discriminator.attention_dropout:g}: '
    f'{work / 1e9:,.1f} GFLOP per step',
    flush=True,
  )

  product = matrix_product_rate(dtype)
  counts = {}
  for name, run in runs.items():
    first = timed(run, 1)[0]
    counts[name] = flags.steps or max(1, round(2 / timed(run, 2)[0]))
    print(f'{name}: first step {first:.1f} s, {counts[name]} steps a round', flush=True)

  seconds: dict[str, list[float]] = {name: [] for name in runs}
  processor: dict[str, list[float]] = {name: [] for name in runs}
  products = []
  for index in range(flags.rounds):
    for name in list(runs) if index % 2 == 0 else reversed(runs):
      products.append(product())
      for column, value in zip((seconds, processor), timed(runs[name], counts[name]), strict=True):
        column[name].append(value)

  peak = statistics.median(products)
  tokens = flags.batch * flags.length
  results = {
    name: {
      'tokens_per_second': summary([tokens / s for s in values]),
      'flops_per_second': summary([work / s for s in values]),
      'processor_seconds_per_step': summary(processor[name]),
      'share_of_matrix_product_rate': work / statistics.median(values) / peak,
    }
    for name, values in seconds.items()
  }
  print(
    f'\nMatrix product: {peak / 1e9:,.0f} GFLOP/s '
    f'({min(products) / 1e9:,.0f} to {max(products) / 1e9:,.0f})\n'
  )
  print(
    '| step | tokens/s, median of rounds (range) | model GFLOP/s '
    '| share of the matrix-product rate | processor seconds per step |\n|---|---|---|---|---|'
  )
  for name, result in results.items():
    t = result['tokens_per_second']
    print(
      f'| {name} | {t["median"]:,.0f} ({t["low"]:,.0f} to {t["high"]:,.0f}) | '
      f'{result["flops_per_second"]["median"] / 1e9:,.1f} | '
      f'{result["share_of_matrix_product_rate"]:.0%} | '
      f'{result["processor_seconds_per_step"]["median"]:.2f} |'
    )
  record = {
    'machine': machine(),
    'versions': versions,
    'size': flags.size,
    'batch': flags.batch,
    'length': flags.length,
    'dtype': str(dtype),
    'dropout': discriminator.dropout,
    'attention': flags.attention,
    'attention_dropout': discriminator.attention_dropout,
    'unroll': discriminator.scan_unroll,
    'compile': flags.compile,
    'flops_per_step': work,
    'matrix_product_flops_per_second': summary(products),
    'results': results,
  }
  print()
  if flags.peer:
    for what, table in (('speed', seconds), ('speed by processor time', processor)):
      ratios = record[f'{what.replace(" ", "_")}_over_peer'] = summary(
        [b / a for a, b in zip(*table.values(), strict=True)]
      )
      print(
        f"Our {what} over the peer's, round by round: {ratios['median']:.2f} "
        f'({ratios["low"]:.2f} to {ratios["high"]:.2f})'
      )
  if flags.json:
    pathlib.Path(flags.json).write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
