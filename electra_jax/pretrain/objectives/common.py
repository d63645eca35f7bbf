"""What the objectives share: their settings, masks, what the generator makes of them, and the work of a step."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from electra_jax.model.encoder import packed_inputs
from electra_jax.pretrain import masking, metrics, replacement
from electra_jax.pretrain.objectives import named
from electra_jax.training import flops


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of an objective: rates and weights as in Clark et al. 2020, table 6, and the ids of the special tokens."""

  name: str = 'electra'
  mask_rate: float = 0.15
  mask_share: float = 0.85
  max_predictions: int = 19
  temperature: float = 1.0
  disallow_correct: bool = False
  generator_weight: float = 1.0
  discriminator_weight: float = 50.0
  prediction_weight: float = 1.0
  google: bool = False
  frozen: bool = False  # the generator does not learn
  masking: str = 'uniform'  # one of masking.METHODS
  span_p: float = 0.2
  span_max: int = 10
  word_starts: bytes = b''  # a bit a token, see masking.packed; of masking by words and spans
  pad_id: int = 0
  cls_id: int = 2
  sep_id: int = 3
  mask_id: int = 4


class Proposal(NamedTuple):
  """What the generator says of a batch, and puts at the masked positions. No gradient passes through tokens and labels."""

  loss: jax.Array  # scalar: the batch's share of the generator's loss
  sums: dict  # metrics.generator_sums
  original: jax.Array  # int32 [batch, predictions]: the tokens at the masked positions
  corrupted: jax.Array  # int32 [batch, length]: what the main tower reads
  labels: jax.Array  # float32 [batch, length], 1 where a token was replaced


def examples(settings: Settings, token_ids, keys):
  """Rows of token ids [batch, length] and their keys -> what the towers read, a dict of arrays with `batch` first."""
  inputs = packed_inputs(token_ids, settings.pad_id, settings.cls_id, settings.sep_id)
  token_ids = inputs.token_ids
  special = [settings.pad_id, settings.cls_id, settings.sep_id, settings.mask_id]
  maskable = ~jnp.isin(token_ids, jnp.array(special))
  masks = masking.choose(
    token_ids,
    maskable,
    masking.stream(keys, masking.MASKING),
    rate=settings.mask_rate,
    slots=settings.max_predictions,
    mask_id=settings.mask_id,
    mask_share=settings.mask_share,
    google=settings.google,
    pad_id=settings.pad_id,
    method=settings.masking,
    word_starts=masking.unpacked(settings.word_starts),
    span_p=settings.span_p,
    span_max=settings.span_max,
  )
  return {'inputs': inputs, 'masks': masks, 'keys': keys}


def counts(settings: Settings, batch):
  """What the losses divide by, over the whole global batch: masks and non-padding tokens, at least 1 each."""
  tokens = real(settings, batch).sum(dtype=jnp.int32)
  return {
    'masked': jnp.maximum(batch['masks'].weights.sum(), 1.0),
    'tokens': jnp.maximum(tokens, 1),
  }


def real(settings: Settings, batch):
  """bool [batch, length]: False at padding."""
  return batch['inputs'].token_ids != settings.pad_id


def chosen(batch):
  """bool [batch, length]: the positions that were chosen for masking, those that kept their token included."""
  masks = batch['masks']
  nowhere = jnp.zeros(batch['inputs'].token_ids.shape, jnp.int32)
  return masking.write(nowhere, masks.positions, jnp.ones_like(masks.positions), masks.weights) > 0


def dropout_keys(batch, train: bool):
  """Keys of dropout, or None where there is none."""
  return masking.stream(batch['keys'], masking.DROPOUT) if train else None


def predict_masked(model, params, batch, counts, *, train: bool):
  """Masked language modelling by the generator (in mlm the only tower): cross-entropy at the masked positions.

  Returns: the batch's share of the loss, logits [batch, predictions, vocab], the tokens there, and metrics.generator_sums.
  """
  inputs, masks = batch['inputs'], batch['masks']
  original = jnp.take_along_axis(inputs.token_ids, masks.positions, axis=1)
  logits = model.apply(
    {'params': params},
    inputs._replace(token_ids=masks.token_ids),
    masks.positions,
    dropout_keys(batch, train),
    method='generator_logits',
  )  # [batch, predictions, vocab]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, original) * masks.weights
  return (
    losses.sum() / counts['masked'],
    logits,
    original,
    metrics.generator_sums(logits, original, masks.weights, losses),
  )


def propose(
  settings: Settings, model, params, batch, counts, *, train: bool, samples=None
) -> Proposal:
  """The generator's loss, and samples from it in the place of the masks (Clark et al. 2020, section 3.1).

  Args: as of electra.loss.
  """
  masks = batch['masks']
  loss, logits, original, sums = predict_masked(model, params, batch, counts, train=train)
  if samples is None:
    samples = replacement.sample(
      logits,
      masking.stream(batch['keys'], masking.GUMBEL),
      temperature=settings.temperature,
      disallow=original if settings.disallow_correct else None,
    )
  corrupted, labels = replacement.corrupt(batch['inputs'].token_ids, masks, samples)
  sums['sampled_correct'] = ((samples == original) * masks.weights.astype(jnp.int32)).sum()
  return Proposal(loss, sums, original, corrupted, labels)


def judge(model, params, batch, proposal: Proposal, where, bins: int, *, train: bool):
  """The discriminator's verdicts on the corrupted tokens: the sum of its losses over `where`, and metrics.verdict_sums.

  where: bool [batch, length], the tokens that count.
  """
  verdicts = model.apply(
    {'params': params},
    batch['inputs']._replace(token_ids=proposal.corrupted),
    dropout_keys(batch, train),
    method='discriminator_logits',
  )
  losses = verdict_losses(verdicts, proposal.labels, where)
  return losses.sum(), metrics.verdict_sums(verdicts, proposal.labels, where, losses, bins)


def verdict_losses(verdicts, labels, where):
  """Binary cross-entropy of verdicts, log-odds that a token was replaced; all [batch, length], zero where `where` is false."""
  return optax.sigmoid_binary_cross_entropy(verdicts, labels) * where


def generator_alone(settings: Settings, model, params, batch, counts, *, train: bool):
  """The loss where the generator learns alone; the sums have the form of the whole objective's, zero where it has no part."""
  proposal = named(settings.name).propose(settings, model, params, batch, counts, train=train)

  def whole():
    return named(settings.name).loss(settings, model, params, batch, counts, train=train)[1]

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(whole))
  return settings.generator_weight * proposal.loss, jax.lax.stop_gradient(zeros | proposal.sums)


def total(settings: Settings, figures: dict):
  """The loss that is minimised, of the figures of metrics.figures."""
  return sum(
    getattr(settings, weight) * figures[loss]
    for loss, weight in named(settings.name).LOSSES.items()
  )


def parts(settings: Settings, model, length: int, alone: bool = False) -> list[flops.Part]:
  """What a step computes on a row of `length` tokens: its towers and their heads. `alone`: the generator learns alone."""
  g, d, heads = model.generator_config, model.discriminator_config, model.heads
  slots = settings.max_predictions
  generator = (
    [flops.Part(g, flops.generator_head_flops(g, slots), learns=not settings.frozen)]
    if 'generator_head' in heads
    else []
  )
  if model.two_tower:  # every position is predicted, and those of the noise once more to draw from
    generator = [
      flops.Part(g, flops.cloze_head_flops(g, length), drawn=flops.cloze_head_flops(g, slots)),
      flops.Part(g, 0),
    ]
  if alone or settings.name == 'mlm':
    return generator
  predicted = length if settings.name == 'all_tokens_mlm' else slots
  main = flops.discriminator_head_flops(d, length) if 'discriminator_head' in heads else 0
  main += flops.generator_head_flops(d, predicted) if 'predictor_head' in heads else 0
  return [*generator, flops.Part(d, main)]


def step_flops(
  settings: Settings, model, batch: int, length: int, convention: str = 'model', alone: bool = False
) -> int:
  """Floating point operations of one training step of `batch` rows, see training/flops.step_flops."""
  return flops.step_flops(parts(settings, model, length, alone), batch, length, convention)
