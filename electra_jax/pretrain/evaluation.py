"""Evaluation on held-out rows: metrics with bootstrap intervals, a table and evaluation.json."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from electra_jax import registry
from electra_jax.console import say
from electra_jax.data.store.row_batches import heldout_batches, heldout_rows
from electra_jax.pretrain import metrics
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.pretrain.objectives.parts import Params
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.pretrain_step import EvalStep, jit_eval_step
from electra_jax.training import hosts, partitioning, run_folder

if TYPE_CHECKING:
  from electra_jax.pretrain.trained_run import Run

Store: TypeAlias = Any  # of rows: TokenStore, Mixture

EVAL_SEED = 7919  # masks and samples of held-out rows are the same for every run and checkpoint
RESAMPLES = 1_000


def heldout_sums(
  eval_step: EvalStep,
  params: Params,
  store: Store,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  limit: int | None = None,
) -> dict[str, np.ndarray]:
  """Sums of each batch of held-out rows, arrays [batches, ...].

  Args:
    eval_step: of pretrain_step.jit_eval_step.
    params: the parameters.
    store: held-out rows.
    batch_size: rows per batch, a multiple of the number of devices.
    mesh: where to compute.
    limit: most rows, or None for all; fewer than all are taken at even distances. The masks of a
      row depend on its number in the store, so they do not depend on the limit.
  """
  mine, found = partitioning.process_rows(mesh, batch_size), []
  numbers = heldout_rows(store.rows, batch_size, limit).astype(np.int32)
  for token_ids, rows in zip(
    heldout_batches(store, batch_size, mine, limit), numbers[:, mine], strict=True
  ):
    local = (partitioning.global_batch(x, mesh, batch_size) for x in (token_ids, rows))
    found.append(eval_step(params, *local))
  sums: dict[str, np.ndarray] = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(found))
  return sums


def heldout_metrics(sums: metrics.HostSums, settings: Settings) -> dict[str, metrics.Value]:
  """Metrics of all batches together, with the total loss and gains.

  Args:
    sums: of heldout_sums.
    settings: of the objective.
  """
  whole = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(0), dict(sums))
  return _with_total(whole, settings)


def _with_total(sums: metrics.HostSums, settings: Settings) -> dict[str, metrics.Value]:
  objective: Objective = registry.OBJECTIVES.get(settings.name)
  values = objective.compute_metrics(sums)
  return metrics.with_gains(values | {'total_loss': objective.total_loss(settings, values)})


def intervals(
  sums: metrics.HostSums, settings: Settings, resamples: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
  """95% percentile bootstrap intervals (Efron 1979) of every metric.

  Args:
    sums: of heldout_sums; batches of consecutive rows are resampled.
    settings: of the objective.
    resamples: how many.

  Returns:
    The two ends of each metric's interval, nan where it is undefined.
  """
  blocks = len(sums['masked'])
  draws = (
    np.random.default_rng(0)
    .multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    .astype(np.float64)
  )
  resampled = {
    name: np.tensordot(draws, np.asarray(value, np.float64), 1) for name, value in sums.items()
  }
  return {name: _percentiles(values) for name, values in _with_total(resampled, settings).items()}


def _percentiles(values: np.ndarray) -> tuple[float, float]:
  if not np.isfinite(values).any():
    return float('nan'), float('nan')
  low, high = np.nanpercentile(values, [2.5, 97.5])
  return float(low), float(high)


def with_intervals(sums: metrics.HostSums, settings: Settings) -> dict[str, dict[str, float]]:
  """The objective's metrics as evaluation.json has them: 'value', 'low' and 'high' of each."""
  objective: Objective = registry.OBJECTIVES.get(settings.name)
  values, spread = heldout_metrics(sums, settings), intervals(sums, settings)
  return {
    name: {'value': float(values[name]), 'low': spread[name][0], 'high': spread[name][1]}
    for name in objective.displayed
    if name in values
  }


def evaluate(
  run: 'Run', *, rows: int | None = None, batch_size: int = 16, output: str | None = None
) -> dict[str, Any]:
  """Evaluates a trained run on its held-out rows, and prints a table.

  Args:
    run: an opened run, on any number of devices.
    rows: most rows, or None for all.
    batch_size: rows per batch; a batch is also the unit that the bootstrap resamples.
    output: folder for evaluation.json; None for the run's.

  Returns:
    What it writes to evaluation.json.

  Raises:
    UserError: `output` cannot be written.
  """
  results = run_folder.Results(run.workdir, output)
  objective: Objective = registry.OBJECTIVES.get(run.settings.name)
  batch_size = -(-batch_size // run.mesh.size) * run.mesh.size
  eval_step = jit_eval_step(run.model, objective, run.settings, run.layout, seed=EVAL_SEED)
  start = time.perf_counter()
  sums = heldout_sums(
    eval_step, run.params, run.heldout, batch_size=batch_size, mesh=run.mesh, limit=rows
  )
  seconds = time.perf_counter() - start
  tokens = int(sums['tokens'].sum())
  facts = {
    'step': run.step,
    'rows': min(run.heldout.rows, rows or run.heldout.rows),
    'tokens': tokens,
    'masked': int(sums['masked'].sum()),
  }
  say(
    'evaluated',
    f'step {run.step:,} on {facts["rows"]:,} held-out rows, {tokens:,} tokens, in {seconds:.0f} s',
  )
  result = facts | {'figures': with_intervals(sums, run.settings)}
  # Written first: whoever reads what is printed may stop to read.
  files = {'evaluation.json': run_folder.json_content(result)}
  written = hosts.from_first(lambda: results.write(files))
  print(metrics_table(result, objective.displayed))
  if written:
    say('written', written)
  return result


def metrics_table(result: Mapping[str, Any], displayed: Mapping[str, metrics.Metric]) -> str:
  """The metrics of evaluation.json as aligned text, with their titles."""
  lines = [f'\n  {"held-out metric":34}{"value":>9}   95% interval']
  for name, f in result['figures'].items():
    title = displayed[name].title
    lines.append(f'  {title:34}{f["value"]:9.4f}   {f["low"]:.4f} to {f["high"]:.4f}')
  return '\n'.join(lines) + '\n'
