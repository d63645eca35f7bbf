"""Evaluation on held-out rows: metrics with bootstrap intervals, a table and evaluation.json."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from electra_jax import console, registry
from electra_jax.console import say
from electra_jax.data.prepare.preparation import HeldoutSource
from electra_jax.data.store.document_starts import RowGroups, group_rows
from electra_jax.data.store.row_batches import heldout_batches, heldout_rows
from electra_jax.data.store.token_store import Store
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import Params
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.pretrain_step import EvalStep, jit_eval_step
from electra_jax.pretrain.reference import RATE, Reference, reference_of
from electra_jax.training import hosts, partitioning, run_folder

if TYPE_CHECKING:
  from electra_jax.pretrain.trained_run import Run

EVAL_SEED = 7919  # masks and samples of held-out rows are the same for every run and checkpoint
RESAMPLES = 1_000
_IN_FLIGHT = 2  # batches that are computed before the sums of the first are read

Figures: TypeAlias = dict[str, dict[str, float]]  # 'value', 'low' and 'high' of each metric


@dataclasses.dataclass(frozen=True, eq=False)
class Heldout:
  """What a run is evaluated on.

  Attributes:
    store: the held-out rows.
    groups: of the rows that are evaluated, see document_starts.py; sums are by group.
    reference: how rows are corrupted for the reference metrics; None without a discriminator.
    sources: of a mixture, in the order of the rows; empty for one source.
    limit: most rows, or None for all; fewer than all are taken at even distances.
  """

  store: Store
  groups: RowGroups
  reference: Reference | None = None
  sources: tuple[HeldoutSource, ...] = ()
  limit: int | None = None

  @property
  def rows(self) -> int:
    """The number of rows that are evaluated."""
    return len(self.groups.of_row)

  def shares(self) -> np.ndarray:
    """What each group counts where sources count as in training, float64 [groups].

    Training reads a source by its weight, whatever its size is. The mean over rows is 1.
    """
    rows = np.bincount(self.groups.source_of[self.groups.of_row], minlength=len(self.sources))
    weights = np.array([source.weight for source in self.sources]) * (rows > 0)
    shares: np.ndarray = weights / weights.sum() * self.rows / np.maximum(rows, 1)
    of_groups: np.ndarray = shares[self.groups.source_of]
    return of_groups


def heldout(
  store: Store,
  settings: Settings,
  *,
  limit: int | None = None,
  sources: Sequence[HeldoutSource] = (),
  by_documents: bool = True,
) -> Heldout:
  """What a run with these held-out rows is evaluated on.

  Args:
    store: the held-out rows.
    settings: of the objective.
    limit: see `Heldout`.
    sources: see `Heldout`.
    by_documents: whether sums are by groups of documents, for intervals, or only by source.
  """
  objective: Objective = registry.OBJECTIVES.get(settings.name)
  numbers = heldout_rows(store.rows, 1, limit)[:, 0]
  rows = [source.rows for source in sources]
  groups = group_rows(
    numbers, store.length, store.document_starts() if by_documents else None, rows
  )
  if not by_documents:
    source_of_row = groups.source_of[groups.of_row]
    present, of_row = np.unique(source_of_row, return_inverse=True)
    groups = RowGroups(of_row, present, 'sources')
  reference = None
  if objective.has_discriminator:
    reference = reference_of(store, settings.special_ids)
  return Heldout(store, groups, reference, tuple(sources), limit)


def heldout_sums(
  eval_step: EvalStep,
  params: Params,
  evaluated: Heldout,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
  """Sums of each group of held-out rows, int64 or float64 [groups, ...].

  Args:
    eval_step: of pretrain_step.jit_eval_step.
    params: the parameters.
    evaluated: the rows. The masks of a row depend on its number in the store, so they do not depend
      on the limit.
    batch_size: rows per batch, a multiple of the number of devices.
    mesh: where to compute.
    progress: called with the number of rows whose sums have arrived.
  """
  store, reference = evaluated.store, evaluated.reference
  mine = partitioning.process_rows(mesh, batch_size)
  numbers = heldout_rows(store.rows, batch_size, evaluated.limit).astype(np.int32)
  # Rows that fill the last batch count in its last group, where they add nothing.
  of_row = np.pad(evaluated.groups.of_row, (0, numbers.size - evaluated.rows), 'edge')
  places = [np.unique(x, return_inverse=True) for x in of_row.reshape(numbers.shape)]
  slots = np.arange(max(len(groups) for groups, _ in places), dtype=np.int32)
  tables = {}
  if reference is not None:
    bins = metrics.NONLINEAR.number
    tables = {'ranks': reference.ranks(bins), 'noise': reference.noise_log_odds()}
  whole = partitioning.replicate({'slots': slots, **tables}, mesh)
  totals: dict[str, np.ndarray] = {}
  pending: collections.deque[tuple[np.ndarray, Any]] = collections.deque()
  collected = itertools.count(1)

  def collect() -> None:
    groups, sums = pending.popleft()
    for name, value in jax.device_get(sums).items():
      kind = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
      if name not in totals:
        totals[name] = np.zeros((evaluated.groups.count, *value.shape[1:]), kind)
      totals[name][groups] += value[: len(groups)]
    if progress:
      progress(min(evaluated.rows, next(collected) * batch_size))

  for rows, token_ids, (groups, inverse) in zip(
    numbers[:, mine],
    heldout_batches(store, batch_size, mine, evaluated.limit),
    places,
    strict=True,
  ):
    local = {'token_ids': token_ids, 'rows': rows, 'groups': inverse[mine].astype(np.int32)}
    if reference is not None:
      local['shown'] = reference.corrupt(token_ids, rows)
    batch = {name: partitioning.global_batch(x, mesh, batch_size) for name, x in local.items()} | {
      'slots': whole['slots']
    }
    if reference is not None:
      shown = batch.pop('shown')
      batch['reference'] = {
        'token_ids': shown,
        'ranks': whole['ranks'],
        'noise': whole['noise'],
      }
    pending.append((groups, eval_step(params, batch)))
    if len(pending) > _IN_FLIGHT:
      collect()
  while pending:
    collect()
  return totals


#### Metrics ####


def heldout_metrics(sums: metrics.HostSums, settings: Settings) -> dict[str, metrics.Value]:
  """Metrics of all groups together, with the total loss, gains and the reference metrics.

  Args:
    sums: of heldout_sums.
    settings: of the objective.
  """
  return _of_sums(jax.tree.map(lambda x: np.asarray(x, np.float64).sum(0), dict(sums)), settings)


def weighted_metrics(
  sums: metrics.HostSums, evaluated: Heldout, settings: Settings
) -> dict[str, metrics.Value]:
  """Metrics of a mixture with the weights of its sources, and those of each source.

  Args:
    sums: of heldout_sums.
    evaluated: the rows.
    settings: of the objective.

  Returns:
    Metrics by 'weighted/NAME' and 'source-00/NAME'; none for one source.
  """
  found: dict[str, metrics.Value] = {}
  for part, weights in _parts_of_mixture(evaluated).items():
    values = _of_sums(_weighted(sums, weights), settings)
    found |= {f'{part}/{name}': value for name, value in values.items()}
  return found


def _parts_of_mixture(evaluated: Heldout) -> dict[str, np.ndarray]:
  """'weighted' and 'source-00' and so on -> what each group counts, float64 [groups]."""
  if not evaluated.sources:
    return {}
  of_source = {
    f'source-{number:02d}': (evaluated.groups.source_of == number).astype(np.float64)
    for number in np.unique(evaluated.groups.source_of)  # a source may have no held-out row
  }
  return {'weighted': evaluated.shares()} | of_source


def _weighted(sums: metrics.HostSums, weights: np.ndarray) -> dict[str, np.ndarray]:
  """Sums [..., ...] of groups that count by weights [..., groups]."""
  return {
    name: np.tensordot(weights, np.asarray(value, np.float64), 1) for name, value in sums.items()
  }


def _of_sums(sums: metrics.HostSums, settings: Settings) -> dict[str, metrics.Value]:
  objective: Objective = registry.OBJECTIVES.get(settings.name)
  values = objective.compute_metrics(sums)
  values = metrics.with_gains(values | {'total_loss': objective.total_loss(settings, values)})
  return values | metrics.reference_metrics(sums)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
  if not np.isfinite(values).any():
    return float('nan'), float('nan')
  low, high = np.nanpercentile(values, [2.5, 97.5])
  return float(low), float(high)


def intervals(
  sums: metrics.HostSums,
  settings: Settings,
  weights: np.ndarray | None = None,
  source_of: np.ndarray | None = None,
  resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
  """95% percentile bootstrap intervals (Efron 1979) of every metric.

  Args:
    sums: of heldout_sums; groups are resampled, those of each source among themselves.
    settings: of the objective.
    weights: what each group counts, [groups]; None for 1.
    source_of: the source of each group, [groups]; None for one source.
    resamples: how many.

  Returns:
    The two ends of each metric's interval, nan where it is undefined.
  """
  count = len(sums['tokens'])
  rng, draws = np.random.default_rng(0), np.zeros((resamples, count))
  source_of = np.zeros(count, int) if source_of is None else source_of
  for source in np.unique(source_of):
    mine = np.flatnonzero(source_of == source)
    draws[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=resamples)
  if weights is not None:
    draws *= weights
  values = _of_sums(_weighted(sums, draws), settings)
  return {name: _percentiles(value) for name, value in values.items()}


def with_intervals(
  sums: metrics.HostSums,
  evaluated: Heldout,
  settings: Settings,
  weights: np.ndarray | None = None,
) -> Figures:
  """The objective's metrics as evaluation.json has them: 'value', 'low' and 'high' of each.

  Args:
    sums: of heldout_sums.
    evaluated: the rows.
    settings: of the objective.
    weights: what each group counts, [groups]; None for 1.
  """
  objective: Objective = registry.OBJECTIVES.get(settings.name)
  ones = np.ones(evaluated.groups.count) if weights is None else weights
  values = _of_sums(_weighted(sums, ones), settings)
  spread = intervals(sums, settings, weights, evaluated.groups.source_of)
  return {
    name: {'value': float(values[name]), 'low': spread[name][0], 'high': spread[name][1]}
    for name in objective.displayed
    if name in values
  }


#### The program ####


def evaluate(
  run: 'Run',
  *,
  rows: int | None = None,
  batch_size: int = 16,
  output: str | None = None,
  source: str | None = None,
) -> dict[str, Any]:
  """Evaluates a trained run on its held-out rows or another corpus, and prints a table.

  Args:
    run: an opened run, on any number of devices.
    rows: most rows, evenly spaced, or None for all.
    batch_size: rows per batch. It does not change the result.
    output: folder for evaluation.json; None for the run's.
    source: another corpus, see other_corpus.open_corpus; None for the run's held-out rows. Its
      results are in a file of their own, evaluation-NAME.json.

  Returns:
    What it writes to the file.

  Raises:
    UserError: `output` cannot be written, or the corpus cannot be read.
  """
  results = run_folder.Results(run.workdir, output)
  objective: Objective = registry.OBJECTIVES.get(run.settings.name)
  batch_size = -(-batch_size // run.mesh.size) * run.mesh.size
  eval_step = jit_eval_step(run.model, objective, run.settings, run.layout, seed=EVAL_SEED)
  corpus = run.evaluation_corpus(source)
  evaluated = heldout(corpus.store, run.settings, limit=rows, sources=corpus.sources)
  start = time.perf_counter()
  with console.progress('evaluating', evaluated.rows, 'rows', before='compiling') as live:
    sums = heldout_sums(
      eval_step, run.params, evaluated, batch_size=batch_size, mesh=run.mesh, progress=live
    )
  seconds = time.perf_counter() - start
  result = _facts(run.step, evaluated, sums) | {
    'figures': with_intervals(sums, evaluated, run.settings)
  }
  if evaluated.sources:
    result |= _of_mixture(sums, evaluated, run.settings)
  if corpus.name is not None:
    result['corpus'] = corpus.name
  what = 'held-out rows' if corpus.name is None else f'rows of {corpus.name}'
  say(
    'evaluated',
    f'step {run.step:,} on {result["rows"]:,} {what}, {result["tokens"]:,} tokens, in '
    f'{seconds:.0f} s',
    always=True,
  )
  # Written first: whoever reads what is printed may stop to read.
  files = {corpus.result_file: run_folder.json_content(result)}
  written = hosts.from_first(lambda: results.write(files))
  console.line(metrics_table(result, objective.displayed), always=True)
  if written:
    say('written', written, always=True)
  return result


def _facts(step: int, evaluated: Heldout, sums: metrics.HostSums) -> dict[str, Any]:
  """What evaluation.json states besides metrics."""
  found: dict[str, Any] = {
    'step': step,
    'rows': evaluated.rows,
    'tokens': int(sums['tokens'].sum()),
    'masked': int(sums['masked'].sum()),
    'resampled': {'groups': evaluated.groups.count, 'unit': evaluated.groups.unit},
  }
  if evaluated.reference is not None:
    found['reference'] = {
      'seed': evaluated.reference.seed,
      'rate': RATE,
      'replaced': int(sums['reference_scores'][:, 1].sum()),
    }
  return found


def _of_mixture(sums: metrics.HostSums, evaluated: Heldout, settings: Settings) -> dict[str, Any]:
  """'weighted': metrics with the weights of the sources; 'sources': those of each."""
  parts = _parts_of_mixture(evaluated)
  return {
    'weighted': with_intervals(sums, evaluated, settings, parts['weighted']),
    'sources': [
      {
        **source._asdict(),
        'figures': with_intervals(sums, evaluated, settings, parts[f'source-{number:02d}']),
      }
      for number, source in enumerate(evaluated.sources)
      if f'source-{number:02d}' in parts
    ],
  }


def metrics_table(result: Mapping[str, Any], displayed: Mapping[str, metrics.Metric]) -> str:
  """The metrics of evaluation.json as aligned text, with their titles.

  Those of a mixture are followed by the weighted ones and those of each source.
  """
  groups = result['resampled']
  more = (
    [result['weighted'], *(s['figures'] for s in result['sources'])] if 'sources' in result else []
  )
  titles = ['weighted', *(f'source {number}' for number in range(len(more) - 1))] if more else []
  header = f'\n  {"held-out metric":38}{"value":>9}   {"95% interval":20}'
  lines = [header + ''.join(f'{title:>10}' for title in titles)]
  for name, f in result['figures'].items():
    interval = f'{f["low"]:.4f} to {f["high"]:.4f}'
    others = ''.join(f'{other[name]["value"]:10.4f}' for other in more)
    lines.append(f'  {displayed[name].title:38}{f["value"]:9.4f}   {interval:20}{others}'.rstrip())
  lines.append(f'\n  Intervals resample {groups["unit"]}, in {groups["groups"]} groups.')
  lines += [
    f'  source {number}: {source["location"]}, weight {source["weight"]:.3g}, '
    f'{source["rows"]:,} rows'
    for number, source in enumerate(result.get('sources', ()))
  ]
  return '\n'.join(lines) + '\n'
