"""What a pretraining objective defines."""

import abc
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from electra_jax.model.electra import Electra
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives import parts
from electra_jax.pretrain.objectives.parts import Batch, LossContext, Params, Proposal, Sums
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import flops
from electra_jax.training.checkpoints import HELDOUT_LOSS, REFERENCE_AP, Criterion


class Objective(abc.ABC):
  """A pretraining objective. Instances have no state; user code subclasses this.

  Only `losses`, `heads` and `loss` are required. docs/extending.md has an example.

  Attributes:
    losses: the metrics that make up the total loss -> the name of each one's weight, a field of
      config.objective or of the objective's options.
    heads: of model.electra.Electra: 'generator_head' predicts masked tokens from the generator,
      'discriminator_head' judges every token, 'predictor_head' predicts tokens from the main tower.
    description: what a model card states after "pretrained by"; '' for the objective's name.
    one_tower: whether there is no generator beside the main tower, which then takes its place. In
      all objectives the tower to fine-tune is the parameters `embeddings` and `discriminator`.
    two_tower_generator: whether the generator is two towers, one for the left and one for the right
      context, and reads rows as they are in place of [MASK] (`Electra.two_tower`).
  """

  losses: ClassVar[Mapping[str, str]]
  heads: ClassVar[tuple[str, ...]]
  description: ClassVar[str] = ''
  one_tower: ClassVar[bool] = False
  two_tower_generator: ClassVar[bool] = False

  @abc.abstractmethod
  def loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """The loss of a batch.

    Args:
      params: parameters of context.model; gradients are taken with respect to them.
      context: the masked rows, and what else the loss depends on.

    Returns:
      The batch's share of the global loss, a scalar; and sums over the batch, without gradient,
      that metrics are computed from. Sums are taken with `context.summing`, by which evaluation
      keeps groups of rows apart.
    """

  #### What may be overridden ####

  def examples(self, settings: Settings, token_ids: jax.Array, keys: jax.Array) -> Batch:
    """Rows as the objective reads them, by default masked; see parts.mask_rows."""
    return parts.mask_rows(settings, token_ids, keys)

  def counts(self, settings: Settings, batch: Batch) -> dict[str, jax.Array]:
    """What losses are divided by: counts over the global batch, see parts.count_tokens."""
    return parts.count_tokens(settings, batch)

  def propose(self, params: Params, context: LossContext) -> Proposal:
    """The generator's loss and samples. Steps that train only the generator minimize this loss."""
    return parts.propose(params, context)

  def verdicts(self, params: Params, context: LossContext) -> tuple[Proposal, jax.Array | None]:
    """`propose`, and the log-odds that each token of its corrupted rows was replaced.

    Returns:
      The proposal; float32 [batch, length], or None without a discriminator head.
    """
    proposal = self.propose(params, context)
    if not self.has_discriminator:
      return proposal, None
    return proposal, parts.verdict_logits(params, context, proposal.corrupted)

  def reference_verdicts(
    self, params: Params, context: LossContext, token_ids: jax.Array, noise: jax.Array
  ) -> jax.Array:
    """The log-odds that tokens of the reference corruption were replaced; see reference.py.

    Only called with a discriminator head.

    Args:
      params: of the model.
      context: the held-out rows.
      token_ids: int32 [batch, length], the corrupted rows.
      noise: float32 [batch, length], the log-odds of a replacement if every token were equally
        likely in its context: log p(token) + log(rate / (1 - rate)).
    """
    del noise
    return parts.verdict_logits(params, context, token_ids)

  @property
  def best_by(self) -> Criterion:
    """How the best checkpoint of a run is chosen.

    By the average precision on the reference corruption where there is a discriminator, since the
    losses depend on the generator's samples; otherwise by the held-out loss, whose masks are fixed.
    """
    return REFERENCE_AP if self.has_discriminator else HELDOUT_LOSS

  def compute_metrics(self, sums: metrics.HostSums) -> dict[str, metrics.Value]:
    """Training and evaluation metrics from sums that were added up, see metrics.compute."""
    return metrics.compute(sums)

  @property
  def displayed(self) -> Mapping[str, metrics.Metric]:
    """The metrics in logs and reports, in order; those that were not computed are left out."""
    return metrics.METRICS

  def predicted_positions(self, settings: Settings, length: int) -> int:
    """Positions of a row at which the main tower predicts tokens, with a 'predictor_head'."""
    del length
    return settings.max_predictions

  def generator_flops(self, settings: Settings, model: Electra, length: int) -> list[flops.Part]:
    """What a step computes in the generator on a row of `length` tokens."""
    if 'generator_head' not in model.heads:
      return []
    g = model.generator_config
    head = flops.generator_head_flops(g, settings.max_predictions)
    return [flops.Part(g, head, trained=not settings.frozen)]

  def main_tower_flops(self, settings: Settings, model: Electra, length: int) -> list[flops.Part]:
    """What a step computes in the main tower on a row of `length` tokens."""
    if self.one_tower:
      return []
    d, heads = model.discriminator_config, 0
    if 'discriminator_head' in model.heads:
      heads += flops.discriminator_head_flops(d, length)
    if 'predictor_head' in model.heads:
      heads += flops.generator_head_flops(d, self.predicted_positions(settings, length))
    return [flops.Part(d, heads)]

  #### What follows from these ####

  @property
  def has_discriminator(self) -> bool:
    """Whether a head judges which tokens were replaced."""
    return 'discriminator_head' in self.heads

  @property
  def trains_discriminator(self) -> bool:
    """Whether a loss is of those verdicts; otherwise they are a by-product."""
    return 'discriminator_loss' in self.losses

  @property
  def columns(self) -> dict[str, metrics.Column]:
    """The columns of the training log, by metric."""
    return {name: metric.column for name, metric in self.displayed.items() if metric.column}

  @property
  def main_tower(self) -> str:
    """What reports call the tower to fine-tune."""
    return 'encoder' if self.one_tower else 'discriminator'

  def total_loss(self, settings: Settings, values: Mapping[str, metrics.Value]) -> metrics.Value:
    """The loss that is minimized, from the metrics in `losses`."""
    return sum(settings.weight(weight) * values[loss] for loss, weight in self.losses.items())

  def generator_only_loss(self, params: Params, context: LossContext) -> tuple[jax.Array, Sums]:
    """The loss of steps that train only the generator; arguments and result as of `loss`.

    The sums have the names and shapes of the whole objective's, and are 0 where the generator has
    no part in them.
    """
    proposal = self.propose(params, context)
    shapes = jax.eval_shape(lambda: self.loss(params, context)[1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    loss = context.settings.generator_weight * proposal.loss
    return loss, jax.lax.stop_gradient(zeros | proposal.sums)

  def step_flops(
    self,
    settings: Settings,
    model: Electra,
    shape: tuple[int, int],
    convention: str = 'model',
    generator_only: bool = False,
  ) -> int:
    """Floating point operations of a training step, see training/flops.py.

    Args:
      settings: of the objective.
      model: its model.
      shape: rows of the global batch, and tokens of a row.
      convention: 'model' or 'paper'.
      generator_only: whether the step trains only the generator.
    """
    rows, length = shape
    found = self.generator_flops(settings, model, length)
    if not generator_only:
      found += self.main_tower_flops(settings, model, length)
    return flops.step_flops(found, rows, length, convention)
