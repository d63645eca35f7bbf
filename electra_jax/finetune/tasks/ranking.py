"""Pairs of a query and a passage, ranked by relevance: the task `ranking`, a cross-encoder."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.errors import UserError
from electra_jax.finetune import task_metrics
from electra_jax.finetune.report_blocks import Blocks
from electra_jax.finetune.tasks import tables, text_reports
from electra_jax.finetune.tasks.probabilities import sigmoid
from electra_jax.finetune.tasks.task import Features, Outputs, SplitKey, plain_text
from electra_jax.finetune.tasks.text import TableTask, detected_columns
from electra_jax.finetune.tasks.text_task import Example, TextColumns, examples_of_rows

_QUERIES = ('query', 'question', 'sentence1')
_PASSAGES = ('passage', 'document', 'answer', 'sentence2')
_RELEVANCES = ('relevance', 'relevant')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking(TableTask):
  """The relevance of the second text of a pair, the passage, for the first, the query.

  The head has one output, the log-odds that the passage is relevant, trained by binary
  cross-entropy; graded relevance is divided by the highest grade. Metrics are means over the
  queries that have a relevant passage; pairs with the same first text are of one query.

  Attributes:
    highest: the highest grade of the training data.
  """

  head: ClassVar[str] = 'regression'
  metric: ClassVar[str] = 'ndcg_at_10'
  logistic: ClassVar[bool] = True
  described: ClassVar[tuple[str, ...]] = (*TableTask.described, 'highest')

  highest: float = 1.0

  @classmethod
  def columns_of(cls, data: TaskDataConfig, present: Collection[str]) -> tuple[TextColumns, str]:
    """See the base class. Usual names are query, passage and relevance."""
    defaults = TaskDataConfig()
    given = {'text': data.text, 'pair': data.pair, 'label': data.label}
    for field, names in (('text', _QUERIES), ('pair', _PASSAGES), ('label', _RELEVANCES)):
      if given[field] == getattr(defaults, field) and given[field] not in present:
        found = next((name for name in names if name in present), names[0])
        given[field] = given[field] if field == 'label' and found not in present else found
    return detected_columns(data.replace(given), present)

  def fitted(self, rows: list[tables.Row], path: str) -> Self:
    """The task with the highest grade of the training data."""
    values = [example.target for example in examples_of_rows(self, rows, path, required=True)]
    for row, value in zip(rows, values, strict=True):
      if value < 0:
        raise UserError(
          f'{tables.place(path, row.line)} has the relevance {value:g}; expected 0 or more'
        )
    if len(set(values)) < 2:
      raise UserError(
        f'{tables.shown(path)} has the relevance {values[0]:g} in all rows; expected relevant and '
        'other passages'
      )
    return dataclasses.replace(self, highest=float(max(values)))

  def parse_target(self, word: str) -> int | float:
    """See the base class. A passage may also be relevant (true) or not (false)."""
    decisions = {'true': 1.0, 'false': 0.0}
    return decisions[word.lower()] if word.lower() in decisions else super().parse_target(word)

  def split_key(self, example: Example) -> SplitKey:
    """The key of a training example: the passages of a query are a group."""
    return SplitKey(plain_text(example.first))

  def targets_of(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """`value` of the examples, between 0 and 1; see `task.Features`."""
    values = np.array([example.target for example in examples], np.float64) / self.highest
    return {'value': values.astype(np.float32)}

  def score(
    self, split: str, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> dict[str, float]:
    """`ndcg_at_10`, `mrr` (of the first relevant passage) and `map` (mean average precision)."""
    return self._metrics(examples, np.asarray(self.pooled(features, outputs)['value']))

  def _metrics(self, examples: Sequence[Example], scores: np.ndarray) -> dict[str, float]:
    found: list[tuple[float, float, float]] = []
    for members in _queries(examples).values():
      known = [i for i in members if not np.isnan(examples[i].target)]
      gold, given = np.array([examples[i].target for i in known]), scores[known]
      if (gold > 0).any():
        found.append(
          (
            task_metrics.ndcg(gold, given, 10),
            task_metrics.reciprocal_rank(gold > 0, given),
            task_metrics.average_precision(gold > 0, given),
          )
        )
    means = np.mean(found, axis=0) if found else np.full(3, np.nan)
    return dict(zip(('ndcg_at_10', 'mrr', 'map'), map(float, means), strict=True))

  def report(self, examples: Sequence[Example], features: Features, outputs: Outputs) -> Blocks:
    """See `report_blocks.HasReport`."""
    scores = np.asarray(self.pooled(features, outputs)['value'], np.float64)
    return text_reports.ranking_report(list(_queries(examples).items()), examples, scores)

  def constant(self) -> dict[str, float]:
    """Metrics on dev where all passages have the same score."""
    dev = self.examples('dev')
    return self._metrics(dev, np.zeros(len(dev)))

  def predictions(
    self, examples: Sequence[Example], features: Features, outputs: Outputs
  ) -> list[dict[str, Any]]:
    """The pair, its `score` between 0 and 1, and its `rank` among the passages of its query."""
    logits = np.asarray(self.pooled(features, outputs)['value'], np.float64)
    ranks = np.zeros(len(examples), np.int64)
    for members in _queries(examples).values():
      order = np.argsort(-logits[members], kind='stable')
      ranks[np.array(members)[order]] = np.arange(1, len(members) + 1)
    scores = sigmoid(logits)
    return [
      self.shown_example(i, example) | {'score': float(scores[i]), 'rank': int(ranks[i])}
      for i, example in enumerate(examples)
    ]


RANKING = Ranking


def _queries(examples: Sequence[Example]) -> dict[str, list[int]]:
  """Indices of the examples of each query, by its text."""
  found: dict[str, list[int]] = {}
  for i, example in enumerate(examples):
    found.setdefault(example.first, []).append(i)
  return found
