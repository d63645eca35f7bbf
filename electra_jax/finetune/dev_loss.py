"""The loss of training over all rows of a set at once: its mean, and what it is divided by."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from electra_jax.finetune import losses
from electra_jax.finetune.losses import LossSettings
from electra_jax.finetune.tasks.task import Features, Outputs

# Targets of the span head that its loss needs beside the outputs of a prediction.
SPAN_TARGETS = ('start', 'end', 'impossible')


def evaluation_loss(
  head: str, features: Features, outputs: Outputs, settings: LossSettings
) -> float:
  """The mean loss of rows; nan where none has a target.

  Args:
    head: of model.heads.KINDS.
    features: the rows, with their targets.
    outputs: of the model for these rows; for span with the `loss` of each row.
    settings: of the losses.
  """
  if not len(features):
    return math.nan
  if 'loss' in outputs:
    return float(np.mean(outputs['loss'], dtype=np.float64))
  batch, given = _as_batch(features), outputs
  if 'tags' in batch:
    given = {'logits': np.concatenate(outputs['logits'])[None]}
  settings = dataclasses.replace(settings, choices=features.choices)
  total, count = jax.device_get(_head_loss(head, given, batch, settings))
  return float(total) / float(count) if count else math.nan


def row_average(head: str, features: Features, settings: LossSettings) -> float:
  """`losses.loss_denominator` of all rows, divided by their number; 0 without rows.

  Args:
    head: of model.heads.KINDS.
    features: the rows, with their targets.
    settings: of the losses.
  """
  if not len(features):
    return 0.0
  return float(losses.loss_denominator(head, _as_batch(features), settings)) / len(features)


def _as_batch(features: Features) -> dict[str, Any]:
  """All rows as a batch of their targets; where these are tags, one row of all tokens."""
  targets, rows = dict(features.targets), len(features)
  if 'tags' in targets:
    targets, rows = {'tags': np.concatenate(targets['tags'])[None]}, 1
  return targets | {'weights': np.ones(rows, np.float32)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _head_loss(
  head: str, outputs: Outputs, batch: dict[str, Any], settings: LossSettings
) -> tuple[jax.Array, jax.Array]:
  total, denominator, _ = losses.head_loss(head, outputs, batch, settings)
  return total, denominator
