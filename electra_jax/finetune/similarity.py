"""Sentence embeddings compared with given similarities of pairs, as in semantic textual similarity.

The measures are those of EmbeddingSimilarityEvaluator of sentence-transformers: the correlation of
the given similarities with the cosine and the dot product of both embeddings, and with the negative
of their Euclidean and their Manhattan distance. Spearman's correlation with the cosine is the usual
one (Reimers et al. 2016).
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np

from electra_jax import console
from electra_jax.data.tokenizers import character_losses
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import records, task_losses, task_metrics
from electra_jax.finetune.run_files import json_values
from electra_jax.finetune.tasks import tables
from electra_jax.finetune.tasks.text_task import (
  Example,
  TextColumns,
  TextTask,
  examples_of_rows,
)
from electra_jax.model.heads import POOLINGS
from electra_jax.training import hosts, run_folder

FILE = 'similarity.json'
# Usual names of the columns: GLUE and sentence-transformers, SICK, question pairs and others.
_COLUMNS = TextColumns(
  ('sentence1', 'sentence_A', 'text1', 'text_a', 'question1', 'premise', 'text'),
  ('sentence2', 'sentence_B', 'text2', 'text_b', 'question2', 'hypothesis', 'text_pair', 'pair'),
  ('score', 'similarity', 'similarity_score', 'relatedness_score', 'label', 'value'),
)
Measures: TypeAlias = dict[str, np.ndarray]


class Correlation(NamedTuple):
  """Correlations of a measure with the given similarities, -1 to 1.

  Attributes:
    spearman: of the ranks.
    pearson: of the values. Either is nan where the measure is the same for all pairs.
  """

  spearman: float
  pearson: float


@dataclasses.dataclass(frozen=True)
class SimilarityScore:
  """How well embeddings of sentences agree with given similarities.

  Attributes:
    pairs: number of pairs.
    correlations: by pooling ('cls', 'mean') and measure ('cosine', 'dot', 'euclidean',
      'manhattan'); distances are negated, so that higher is better throughout.
  """

  pairs: int
  correlations: dict[str, dict[str, Correlation]]

  def records(self) -> list[dict[str, Any]]:
    """A dict for each pooling and measure."""
    return [
      {'pooling': pooling, 'measure': measure, **found._asdict()}
      for pooling, by_measure in self.correlations.items()
      for measure, found in by_measure.items()
    ]


class Embedder(Protocol):
  """What embeds sentences: a pretrained or a fine-tuned run, or an object with such a method."""

  def embed(self, texts: Sequence[str], pooling: str, /) -> np.ndarray:
    """A vector per text, float `[texts, hidden]`."""


class EmbeddingRun(Embedder, Protocol):
  """A run that embeds sentences, see trained_run.Run and finetuned.FineTunedRun."""

  @property
  def workdir(self) -> str:
    """The run's folder."""

  @property
  def step(self) -> int:
    """Step of the checkpoint."""

  @property
  def tokenizer(self) -> Tokenizer:
    """The run's tokenizer."""


def score_similarity(
  run: Embedder,
  data: str | os.PathLike[str] | records.Data,
  pooling: str | None = None,
) -> SimilarityScore:
  """Compares embeddings of sentences with given similarities.

  Args:
    run: a pretrained or a fine-tuned run.
    data: the path of a table (TSV, CSV, JSON lines, JSON, Parquet, Arrow) with the columns
      sentence1, sentence2 and score, or other usual names; or the same in memory: a data frame, a
      list of mappings, or of tuples (sentence, sentence, similarity). Similarities are numbers of
      any unit, higher for more similar.
    pooling: of the embeddings, see `Run.embed`; None for each.

  Raises:
    UserError: a column, a text or a similarity is missing, a similarity is no finite number, all
      are equal, or there are fewer than two pairs.
  """
  return _score(run, read_rated_pairs(data), POOLINGS if pooling is None else (pooling,))


def _score(run: Embedder, pairs: Sequence[Example], poolings: Sequence[str]) -> SimilarityScore:
  # Each sentence is embedded once, so that equal ones have equal embeddings.
  texts = _texts(pairs)
  number = {text: i for i, text in enumerate(texts)}
  first = np.array([number[pair.first] for pair in pairs])
  second = np.array([number[pair.second or ''] for pair in pairs])
  gold = np.array([pair.target for pair in pairs], np.float64)
  found: dict[str, dict[str, Correlation]] = {}
  for pooling in poolings:
    vectors = np.asarray(run.embed(texts, pooling), np.float64)
    found[pooling] = {
      name: Correlation(task_metrics.spearman(gold, values), task_metrics.pearson(gold, values))
      for name, values in measures(vectors[first], vectors[second]).items()
    }
  return SimilarityScore(len(pairs), found)


def measures(first: np.ndarray, second: np.ndarray) -> Measures:
  """Measures of similarity of pairs of vectors, each float64 `[pairs]`, higher for more similar.

  Args:
    first: float64 `[pairs, hidden]`.
    second: float64 `[pairs, hidden]`.

  Returns:
    `cosine`, 0 where a vector is 0, `dot`, and the negative distances `euclidean` and `manhattan`.
  """
  dot = (first * second).sum(-1)
  norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
  return {
    'cosine': dot / np.maximum(norms, np.finfo(np.float64).tiny),
    'dot': dot,
    'euclidean': -np.linalg.norm(first - second, axis=-1),
    'manhattan': -np.abs(first - second).sum(-1),
  }


def _texts(pairs: Sequence[Example]) -> list[str]:
  """All different sentences of pairs."""
  return list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second or '')))


#### Pairs ####


class _PairTask(TextTask):
  """Reads the rows of tables as pairs with a number."""

  head: ClassVar[str] = 'regression'
  configured_columns: ClassVar[bool] = False

  def parse_target(self, word: str) -> float:
    """See `TextTask.parse_target`."""
    try:
      value = float(word)
    except ValueError:
      value = np.nan
    if not np.isfinite(value):
      raise ValueError(f'the similarity {word!r}; expected a number')
    return value


def read_rated_pairs(data: str | os.PathLike[str] | records.Data) -> list[Example]:
  """Pairs of sentences with their similarities.

  Args:
    data: see `score_similarity`.

  Raises:
    UserError: see `score_similarity`.
  """
  if isinstance(data, str | os.PathLike):
    path = os.fspath(data)
    return _pairs_of_table(path, tables.shown(path))
  names = (_COLUMNS.first[0], _COLUMNS.second[0], _COLUMNS.target[0])
  items = [
    dict(zip(names, item, strict=True))
    if isinstance(item, list | tuple) and len(item) == 3
    else item
    for item in records.as_items(data)
  ]
  with records.as_file(records.as_records(items, names)) as path:
    return _pairs_of_table(path, 'the data')


def _pairs_of_table(path: str, what: str) -> list[Example]:
  task = _PairTask(name='similarity', columns=_COLUMNS)
  pairs = examples_of_rows(task, tables.read_table(path), path, required=True)
  if len(pairs) < 2:
    raise UserError(f'{what} has one pair; expected at least two, whose order can be compared.')
  if len({pair.target for pair in pairs}) == 1:
    raise UserError(
      f'{what} has the similarity {pairs[0].target:g} for all {len(pairs):,} pairs; expected '
      'different ones.'
    )
  return pairs


#### The mode ####


def report_similarity(
  run: EmbeddingRun, source: str, output: str | None = None, allow_loss: bool = False
) -> SimilarityScore:
  """Scores a run on a table of pairs; prints a table and writes WORKDIR/similarity.json.

  Args:
    run: a pretrained or a fine-tuned run.
    source: the table, '-' for standard input.
    output: folder for the file; None for the run's.
    allow_loss: whether the tokenizer may lose 20% or more of the characters.

  Raises:
    UserError: see `score_similarity`, or the tokenizer loses much of the text.
  """
  results = run_folder.Results(run.workdir, output)
  pairs = read_rated_pairs(source)
  texts = _texts(pairs)
  losses = character_losses.count(run.tokenizer, texts)
  if not allow_loss:
    task_losses.check_model_losses(losses, 'the sentences', '--allow_loss')
  for warning in task_losses.model_loss_warnings(losses, 'the sentences'):
    console.warn(f'warning: {warning}')
  console.say('pairs', f'{len(pairs):,} of {len(texts):,} different sentences')
  with console.phase('embedding', 'the sentences'), warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # of the same lost characters
    score = _score(run, pairs, POOLINGS)
  content = {
    'step': run.step,
    'source': source,
    'pairs': score.pairs,
    'correlations': {
      pooling: {measure: found._asdict() for measure, found in by_measure.items()}
      for pooling, by_measure in score.correlations.items()
    },
  }
  files = {FILE: run_folder.json_content(json_values(content))}
  written = hosts.from_first(functools.partial(results.write, files))
  console.line(similarity_table(score), always=True)
  if written:
    console.say('written', written, always=True)
  return score


def similarity_table(score: SimilarityScore) -> str:
  """A score as aligned text, x 100.

  Args:
    score: of a run.
  """
  lines = [
    f'\n  correlation with the similarities of {score.pairs:,} pairs, x 100',
    f'  {"pooling":10}{"measure":12}{"Spearman":>10}{"Pearson":>10}',
  ]
  lines += [
    f'  {one["pooling"]:10}{one["measure"]:12}{100 * one["spearman"]:10.2f}'
    f'{100 * one["pearson"]:10.2f}'
    for one in score.records()
  ]
  return '\n'.join(lines) + '\n'
