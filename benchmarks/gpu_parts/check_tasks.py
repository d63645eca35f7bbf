"""Tasks of gpu.py that check numerics: golden tensors, attention, masks; and the probe."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable, Mapping

import golden_tensors
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.model import counter, kernels, randomness
from electra_jax.model.attention import AttentionSettings, attention, visible_positions
from electra_jax.model.dropout import DropoutSettings, dropout, fold_in
from electra_jax.model.kernel_choice import KERNELS
from electra_jax.pretrain import masking
from electra_jax.pretrain.objectives.parts import mask_rows
from electra_jax.pretrain.objectives.settings import Settings
from gpu_parts.worker import Answer

Arrays = Mapping[str, np.ndarray]
VOCABULARY = 1000  # of the rows that are masked


def probe(answer: Answer) -> None:
  """The device that JAX uses: kind, memory, driver."""
  device = jax.devices()[0]
  query = 'name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit'
  command = ['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader']
  found = shutil.which('nvidia-smi') and subprocess.run(command, capture_output=True, text=True)
  answer(
    platform=device.platform,
    kind=device.device_kind,
    count=len(jax.devices()),
    memory=(device.memory_stats() or {}).get('bytes_limit'),
    driver=getattr(device.client, 'platform_version', ''),
    nvidia_smi=found.stdout.strip() if found else None,
  )


#### Golden tensors ####


def golden(answer: Answer, files: list[str]) -> None:
  """Largest errors of losses, logits and gradients against the original program's, by precision."""
  found = {}
  for precision in ('float32', 'tensorfloat32'):
    worst = {}
    for which in files:
      file = np.load(golden_tensors.GOLDEN / f'{which}.npz')
      model = golden_tensors.towers(file, precision=precision)
      result = golden_tensors.run(file, model, golden_tensors.load(file, model))
      errors = golden_tensors.errors(file, result)
      name = max(errors, key=errors.__getitem__)
      worst[which] = {'error': float(errors[name]), 'tensor': name, 'tensors': len(errors)}
    found[precision] = worst
  answer(errors=found, tolerance=golden_tensors.TOLERANCE)


#### Attention ####


def attention_inputs(length: int) -> tuple[list[jax.Array], jax.Array]:
  """Query, key, value and weights of the outputs; segments of packed, padded and empty rows."""
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.standard_normal((4, length, 4, 64)), jnp.bfloat16) for _ in range(4)]
  at = np.arange(length)
  segments = [
    np.ones(length),
    np.select([at < length // 4, at < length * 5 // 8], [1, 2], 0),
    at < length * 3 // 4,
    np.zeros(length),
  ]
  return arrays, jnp.asarray(np.stack(segments), jnp.int32)


def by_kernel(kernel: str, reach: int) -> Callable[..., jax.Array]:
  """Attention with a kernel; without a GPU cuDNN's wrapper with XLA's implementation."""
  wanted = KERNELS[kernel].platform
  if wanted in ('', jax.default_backend()):
    return lambda *arrays: attention(*arrays, AttentionSettings(kernel, reach))

  def wrapped(query, key, value, segment_ids, is_global):
    visible = visible_positions(segment_ids, is_global, reach)
    query = query * query.shape[-1] ** -0.5
    return kernels.cudnn(query, key, value, visible, implementation='xla')

  return wrapped


def outputs_and_gradients(
  kernel: str, arrays: list[jax.Array], segment_ids: jax.Array, is_global: bool | None
) -> tuple[list[np.ndarray], str]:
  """Outputs and the gradients of query, key and value, and the compiled program."""

  def compute(query, key, value, weights):
    function = by_kernel(kernel, reach=20)
    outputs, pullback = jax.vjp(lambda *x: function(*x, segment_ids, is_global), query, key, value)
    return outputs, *pullback(weights)

  compiled = jax.jit(compute).lower(*arrays).compile()
  return [np.asarray(x, np.float32) for x in compiled(*arrays)], compiled.as_text()


def attention_check(length: int) -> dict[str, object]:
  """Errors of kernels in bfloat16 against XLA's attention in float32, relative by norm."""
  arrays, segment_ids = attention_inputs(length)
  exact = [x.astype(jnp.float32) for x in arrays]
  found: dict[str, object] = {}
  for kernel in ('xla', 'cudnn'):
    errors = {}
    for window, is_global in (('whole rows', None), ('window', False)):
      expected, _ = outputs_and_gradients('xla', exact, segment_ids, is_global)
      ours, program = outputs_and_gradients(kernel, arrays, segment_ids, is_global)
      for name, mine, other in zip(
        ('outputs', 'query', 'key', 'value'), ours, expected, strict=True
      ):
        difference = float(np.linalg.norm(mine - other) / np.linalg.norm(other))
        errors[f'{window}, {name}'] = difference if np.isfinite(mine).all() else float('inf')
    found[kernel] = {'errors': errors, 'calls_cudnn': '__cudnn$' in program}
  return found


def attention_kernels(answer: Answer, lengths: list[int]) -> None:
  """Answers `attention_check` of some lengths."""
  answer(lengths={str(length): attention_check(length) for length in lengths})


#### Masks ####


def dropout_masks(rows: int, length: int, heads: int, keys: jax.Array) -> dict[str, jax.Array]:
  """What dropout leaves of ones, for activations and attention probabilities."""
  shapes = {'activations': (length, heads * 64), 'probabilities': (heads, length, length)}
  return {
    f'dropout {generator}, {name}': dropout(
      jnp.ones((rows, *shape)), 0.1, fold_in(keys, 3), site, DropoutSettings(generator)
    )
    for generator in ('counter', 'hash', 'threefry')
    for site, (name, shape) in enumerate(shapes.items())
  }


def pretraining_masks(token_ids: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
  """Positions, weights and tokens that the generator reads, by unit of masking."""
  rng = np.random.default_rng(1)
  settings = Settings(
    max_predictions=masking.max_predictions(0.15, token_ids.shape[1]),
    word_starts=masking.packed(rng.random(VOCABULARY) < 0.6),
  )
  found = {}
  for unit in ('uniform', 'words', 'spans'):
    masks = mask_rows(dataclasses.replace(settings, masking=unit), token_ids, keys)['masks']
    found |= {f'masking {unit}, {name}': x for name, x in masks._asdict().items()}
  return found


def random_numbers(token_ids: jax.Array, heads: int) -> dict[str, jax.Array]:
  """All masks and bits of a step, from its seed on."""
  rows, length = token_ids.shape
  keys = randomness.row_keys(7, jnp.int32(1234), jnp.arange(rows))
  return {
    'row keys': jax.vmap(jax.random.key_data)(keys),
    'threefry bits': randomness.threefry_bits(keys, (length, heads)),
    'counter row keys': counter.row_keys(keys, 2),
    **dropout_masks(rows, length, heads, masking.stream(keys, masking.DROPOUT)),
    **pretraining_masks(token_ids, keys),
  }


def on_the_cpu(token_ids: np.ndarray, heads: int) -> Arrays:
  """`random_numbers` computed on the CPU.

  Without a GPU one operation is computed after the other, without a compiler's fusions, so that
  the comparison has a reference there, too.
  """
  by_operation = jax.disable_jit(jax.default_backend() == 'cpu')
  with jax.default_device(jax.devices('cpu')[0]), by_operation:
    numbers = jax.jit(random_numbers, static_argnums=1)(token_ids, heads)
    return jax.tree.map(np.asarray, numbers)


def different(ours: Arrays, theirs: Arrays) -> list[str]:
  """Names of arrays that are not bitwise equal."""
  assert ours.keys() == theirs.keys()
  return [
    name
    for name, x in ours.items()
    if (x.dtype, x.shape, x.tobytes())
    != (theirs[name].dtype, theirs[name].shape, theirs[name].tobytes())
  ]


def masks(answer: Answer, rows: int, length: int, heads: int, seed_of_reference: int = 0) -> None:
  """Compares the masks of the device with those of the CPU, bit for bit.

  `seed_of_reference` other than 0 compares with masks of other rows, for a test of the comparison.
  """
  token_ids, other = (
    np.random.default_rng(seed).integers(5, VOCABULARY, (rows, length), dtype=np.int32)
    for seed in (0, seed_of_reference)
  )
  for ids in (token_ids, other):
    ids[:, 0], ids[:, -1] = 2, 3
    ids[0, length // 2 :] = 0  # padding
  numbers = jax.jit(random_numbers, static_argnums=1)(token_ids, heads)
  ours = jax.tree.map(np.asarray, numbers)
  theirs = on_the_cpu(other, heads)
  answer(
    arrays=len(ours),
    elements=sum(x.size for x in ours.values()),
    kept={name: float((x > 0).mean()) for name, x in ours.items() if name.startswith('dropout')},
    different=different(ours, theirs),
  )
