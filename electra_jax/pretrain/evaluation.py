"""A checkpoint on held-out rows: figures with bootstrap intervals, a table and evaluation.json."""

import time

import jax
import numpy as np

from electra_jax.console import say
from electra_jax.data.store.row_batches import heldout_batches, heldout_rows
from electra_jax.pretrain import metrics, objectives
from electra_jax.pretrain.objectives.common import total
from electra_jax.training import hosts, partitioning, run_folder

EVAL_SEED = 7919  # masks and samples of held-out rows are the same for every run and checkpoint
RESAMPLES = 1_000
NAMES = {
  'generator_loss': 'generator loss',
  'generator_accuracy': 'generator accuracy',
  'sampled_accuracy': 'sampled accuracy',
  'prediction_loss': "the main tower's prediction loss",
  'prediction_accuracy': "the main tower's prediction accuracy",
  'discriminator_loss': 'discriminator loss',
  'constant_loss': "constant predictor's loss",
  'gain': 'gain over the constant predictor',
  'discriminator_accuracy': 'discriminator accuracy',
  'auc': 'area under the ROC curve',
  'average_precision': 'average precision',
  'average_precision_gain': 'gain over chance (replaced rate)',
  'precision': 'precision',
  'recall': 'recall',
  'replaced_rate': 'replaced rate',
  'total_loss': 'total loss',
}


def heldout_sums(eval_step, params, store, *, batch_size: int, mesh, limit: int | None = None):
  """Sums of each batch of held-out rows: a dict of arrays with one entry a batch.

  Args:
    eval_step: jitted pretrain.step.make_eval_step.
    params: the parameters.
    store: held-out rows.
    batch_size: rows a batch, a multiple of the number of devices.
    mesh: where to compute.
    limit: most rows, or None for all; fewer than all are taken at even distances. A row is masked by its number in the
      store, so whatever the limit it is masked the same.
  """
  mine, total = partitioning.process_rows(mesh, batch_size), []
  numbers = heldout_rows(store.rows, batch_size, limit).astype(np.int32)
  for token_ids, rows in zip(
    heldout_batches(store, batch_size, mine, limit), numbers[:, mine], strict=True
  ):
    local = (partitioning.global_batch(x, mesh, batch_size) for x in (token_ids, rows))
    total.append(eval_step(params, *local))
  return jax.tree.map(lambda *x: np.stack(x), *jax.device_get(total))


def figures_of(sums, settings) -> dict:
  """metrics.figures of sums added over their first axis, and the total loss and gains made of them."""
  f = metrics.figures(jax.tree.map(lambda x: np.asarray(x, np.float64).sum(0), sums))
  return _with_gains(f, settings)


def _with_gains(f, settings):
  gains = (
    {
      'gain': f['constant_loss'] - f['discriminator_loss'],
      'average_precision_gain': f['average_precision'] - f['replaced_rate'],
    }
    if 'auc' in f
    else {}
  )
  return f | {'total_loss': total(settings, f)} | gains


def intervals(sums, settings, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
  """95% percentile bootstrap intervals (Efron 1979) of every figure, resampling batches of consecutive rows."""
  blocks = len(sums['masked'])
  draws = (
    np.random.default_rng(0)
    .multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    .astype(np.float64)
  )
  resampled = {
    name: np.tensordot(draws, np.asarray(value, np.float64), 1) for name, value in sums.items()
  }
  f = _with_gains(metrics.figures(resampled), settings)
  return {
    name: tuple(float(x) for x in np.nanpercentile(values, [2.5, 97.5]))
    if np.isfinite(values).any()
    else (float('nan'),) * 2
    for name, values in f.items()
  }


def evaluate(run, *, rows: int | None = None, batch_size: int = 16) -> dict:
  """A trained run on its held-out rows: prints a table and writes WORKDIR/evaluation.json, which is returned.

  Args:
    run: electra_jax.Run, opened on any number of devices.
    rows: most rows, or None for all.
    batch_size: rows a step; a step is also the unit that the bootstrap resamples.
  """
  from electra_jax.pretrain.pretrain_step import jit_eval_step

  batch_size = -(-batch_size // run.mesh.size) * run.mesh.size
  eval_step = jit_eval_step(
    run.model, objectives.named(run.settings.name), run.settings, run.layout, seed=EVAL_SEED
  )
  start = time.perf_counter()
  sums = heldout_sums(
    eval_step, run.params, run.heldout, batch_size=batch_size, mesh=run.mesh, limit=rows
  )
  seconds = time.perf_counter() - start
  figures, spread = figures_of(sums, run.settings), intervals(sums, run.settings)
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
  result = facts | {
    'figures': {
      name: {'value': float(figures[name]), 'low': spread[name][0], 'high': spread[name][1]}
      for name in NAMES
      if name in figures
    }
  }
  print(table(result))
  path = run_folder.folder(run.workdir) / 'evaluation.json'
  hosts.from_first(lambda: run_folder.write_json(path, result))
  say('written', str(path))
  return result


def table(result: dict) -> str:
  """The figures of evaluation.json as aligned text."""
  lines = [f'\n  {"held-out figure":34}{"value":>9}   95% interval']
  for name, f in result['figures'].items():
    title = NAMES[name]
    lines.append(f'  {title:34}{f["value"]:9.4f}   {f["low"]:.4f} to {f["high"]:.4f}')
  return '\n'.join(lines) + '\n'
