"""One trial of a task: its steps, its looks at the dev set, and going on where it was stopped."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import console
from electra_jax.errors import UserError
from electra_jax.finetune import batches, finetune_step, task_program
from electra_jax.finetune.tasks.task import Features
from electra_jax.training import checkpoints, hosts, partitioning, progress, run_folder
from electra_jax.training.preemption import Agreement
from electra_jax.training.progress import quantity
from electra_jax.training.status import Status

RESULT = 'result.json'
HEADER_EVERY = 20
NOT_FIGURES = (
  'kind',
  'step',
  'epoch',
  'tokens',
  'seconds',
)  # of a line of metrics.jsonl about a look at dev


class Split(NamedTuple):
  """A part of a task's data, ready for the model."""

  examples: Any
  features: Features


def eval_batch_size(config, mesh) -> int:
  """config.eval_batch_size, made to divide over the mesh."""
  shards = partitioning.row_shards(mesh)
  return -(-config.eval_batch_size // shards) * shards


def outputs_of(p: task_program.Program, params, features: Features, progress_of=None):
  """What the model says of features."""
  return finetune_step.run_model(
    p.predict,
    params,
    features,
    batch_size=eval_batch_size(p.config, p.layout.mesh),
    lengths=p.lengths,
    pad_id=p.initial.tokenizer.pad_id,
    mesh=p.layout.mesh,
    progress=progress_of,
  )


def score(p: task_program.Program, params, name: str, split: Split) -> dict[str, float]:
  """The figures of a part of the data."""
  return p.task.score(name, split.examples, split.features, outputs_of(p, params, split.features))


def sum_shapes(p: task_program.Program):
  """Shapes of the sums that a step returns."""
  batch = batches.assemble(
    p.train, np.arange(0), p.config.batch_size, p.lengths[:1], p.initial.tokenizer.pad_id
  )
  shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
  return jax.eval_shape(
    p.train_step, p.shapes, shapes | {'seed': jax.ShapeDtypeStruct((), np.uint32)}
  )[1]


def run_trial(
  p: task_program.Program, trial: int, folder, splits: dict[str, Split], notice, status: Status
) -> tuple[dict | None, Any]:
  """Trains and scores a trial in FOLDER, or goes on with it.

  Args:
    p: the program of its task.
    trial: its number, from 1.
    folder: WORKDIR/<task>/trial-<trial>.
    splits: the parts that are scored at the end; 'dev' is looked at on the way.
    notice: becomes true when this process is asked to stop.
    status: the status file of the run.

  Returns: its record, also in FOLDER/result.json, and its parameters; or None where it was asked to stop, all saved.

  Raises UserError when a loss or gradient is not finite.
  """
  config, mesh, metric = p.config, p.layout.mesh, p.task.metric
  seed, whole = config.seed + trial - 1, partitioning.replicated(mesh)
  constants = partitioning.replicate(p.inputs, mesh)
  best = {'metric': metric, 'mode': 'max'}
  shapes_of_sums = sum_shapes(p)
  zero_sums = jax.jit(
    lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes_of_sums), out_shardings=whole
  )
  add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
  manager = checkpoints.open_manager(folder, **best)
  first = hosts.from_first(lambda: manager.latest_step() or 0)
  status.begin_trial(folder, p.task.name, trial, first, p.steps)
  if first:
    state, sums = checkpoints.restore(manager, first, p.shapes, p.shardings, shapes_of_sums, whole)
    console.say('restored', f'trial {trial}, step {first:,}, the last checkpoint in {folder}')
  else:
    state, sums = task_program.first_state(p, seed), zero_sums()
  writer = progress.Writer(folder, first) if hosts.first() else progress.NoWriter()
  curve = hosts.from_first(
    lambda: [
      line
      for line in progress.read_metrics(folder)
      if line['kind'] == 'dev' and line['step'] <= first
    ]
  )

  epochs, agreed = (
    batches.Epochs(p.train, config.batch_size, seed, config.bucketed),
    Agreement(mesh),
  )
  tokens = sum(len(p.train.token_ids[row]) for step in range(first) for row in epochs.rows(step))
  every = max(1, round(config.eval_every * p.steps_per_epoch)) if config.eval_every else p.steps
  over, previous, lines = _out_of_patience(curve, metric, config.patience), None, 0
  interval_tokens = 0
  clock = time.perf_counter
  interval_start = started = clock()
  notice.heed()
  with console.progress(f'trial {trial}', p.steps - first) as live:
    for index in range(first, p.steps):
      if over:
        break
      rows = epochs.rows(index)
      batch = batches.assemble(
        p.train, rows, config.batch_size, p.lengths, p.initial.tokenizer.pad_id
      )
      if (length := batch['token_ids'].shape[1]) not in p.compiled:
        p.compiled.add(length)
        live.above(f'  {"compiling":12} the step for rows of {length}')
      inputs = finetune_step.on_mesh(batch | {'seed': np.uint32(seed)}, mesh) | {
        'schedules': constants
      }
      state, step_sums = p.train_step(state, inputs)
      sums = add(sums, step_sums)
      if previous is not None:  # one step stays in flight
        jax.block_until_ready(previous)
      previous = step_sums['steps']
      stop, done = agreed(bool(notice)), index + 1
      count = sum(len(p.train.token_ids[row]) for row in rows)
      tokens, interval_tokens = tokens + count, interval_tokens + count
      last = done == p.steps
      live(done - first, f'step {done:,} of {p.steps:,}')

      if done % config.log_every == 0 or last:
        host_sums, bad, skipped = jax.device_get((sums, state.bad_step, state.skipped))
        _halt_if_bad(bad, p, trial, state, epochs, seed)
        sums, now = zero_sums(), clock()
        writer.seconds += now - interval_start
        figures = train_figures(host_sums) | {
          'epoch': done / p.steps_per_epoch,
          'learning_rate': float(p.schedule(done - 1)),
          'skipped': int(skipped),
          'tokens': tokens,
          'tokens_per_second': interval_tokens / (now - interval_start),
          'seconds': writer.seconds,
        }
        writer.write('train', done, figures)
        status.progress(done)
        left = (now - started) / (done - first) * (p.steps - done)
        if live.terminal or lines % HEADER_EVERY == 0 or last:
          live.above(
            f'  {"":12} step {done:,} of {p.steps:,}  loss {figures["loss"]:.4f}'
            + (f'  correct {figures["correct"]:.1%}' if 'correct' in figures else '')
            + f'  {quantity(figures["tokens_per_second"])} tokens/s'
            + ('' if last else f'  {console.seconds(left)} left')
          )
        lines, interval_tokens, interval_start = lines + 1, 0, now

      figure = None
      if done % every == 0 or last:
        before = clock()
        dev = score(p, state.params, 'dev', splits['dev'])
        figure = float(dev[metric])
        writer.write(
          'dev',
          done,
          dev | {'epoch': done / p.steps_per_epoch, 'tokens': tokens, 'seconds': writer.seconds},
        )
        curve.append({'kind': 'dev', 'step': done, 'epoch': done / p.steps_per_epoch, **dev})
        over = _out_of_patience(curve, metric, config.patience)
        interval_start += clock() - before
      if figure is not None or stop or done % config.save_every == 0:
        before = clock()
        _halt_if_bad(jax.device_get(state.bad_step), p, trial, state, epochs, seed)
        writer.keep()
        # nan is no figure to compare by, but the look was taken.
        checkpoints.save(
          manager,
          done,
          state,
          sums,
          None if figure is None else figure if math.isfinite(figure) else -math.inf,
          metric,
        )
        status.progress(done, saved=True)
        interval_start += clock() - before
      if stop and not last:
        checkpoints.wait(manager)
        live.above(
          f'  asked to stop: saved step {done:,} of trial {trial}; the same command goes on from there'
        )
        manager.close()
        writer.close()
        return None, None

  checkpoints.wait(manager)
  manager.close()
  params, at = state.params, int(jax.device_get(state.step))
  if config.select == 'best':
    params, at = checkpoints.restore_params(
      folder, 'best', p.shapes.params, p.shardings.params, **best
    )
  last_look = curve[-1]['step'] == at and {
    name: math.nan if value is None else value
    for name, value in curve[-1].items()
    if name not in NOT_FIGURES
  }
  figures = {
    name: last_look if name == 'dev' and last_look else score(p, params, name, split)
    for name, split in splits.items()
  }
  record = {
    'task': p.task.name,
    'trial': trial,
    'seed': seed,
    'metric': metric,
    'figures': figures,
    'selected_step': at,
    'best': _best(curve, metric),
    'curve': [
      {name: line[name] for name in line if name not in ('kind', 'tokens', 'seconds')}
      for line in curve
    ],
    'train_loss': _last_loss(folder),
    'constant': p.constant,
    'steps': int(jax.device_get(state.step)),
    'tokens': tokens,
    'seconds': writer.seconds,
  }
  writer.close()
  hosts.from_first(lambda: run_folder.write_json(folder / RESULT, plain(record)))
  return record, params


def train_figures(sums) -> dict[str, float]:
  """Figures of the steps whose sums were added up: the loss, what was right, the norm of the gradient."""
  s = {name: float(value) for name, value in sums.items()}
  count, taken = max(s['count'], 1), max(s['steps'], 1)
  return {
    'loss': s['total'] / count,
    'gradient_norm': s['gradient_norm/all'] / taken,
    'update_norm': s['update_norm/all'] / taken,
  } | {name: value / count for name, value in s.items() if name.endswith(('correct', '_loss'))}


def plain(value):
  """A record as JSON has it; what is not finite is null."""
  if isinstance(value, dict):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, (np.floating, float)):
    return float(value) if math.isfinite(value) else None
  return int(value) if isinstance(value, np.integer) else value


def _halt_if_bad(bad_step, p, trial, state, epochs, seed):
  if bad_step < 0:
    return
  from electra_jax.training.update_step import first_nonfinite

  prepare, loss = finetune_step.parts(
    p.model, finetune_step.special_ids(p.initial.tokenizer), p.config.head.impossible_weight
  )
  batch = batches.assemble(
    p.train, epochs.rows(int(bad_step)), p.config.batch_size, p.lengths, p.initial.tokenizer.pad_id
  )
  name = first_nonfinite(
    prepare,
    loss,
    state.params,
    int(bad_step),
    finetune_step.on_mesh(batch | {'seed': np.uint32(seed)}, p.layout.mesh),
    p.layout,
  )
  raise UserError(
    f'trial {trial} of {p.task.name}: the step after {int(bad_step):,} is not finite, first of all {name}; lower '
    '--config.optimizer.learning_rate, in another --workdir, or go on without such steps: --config.skip_nonfinite=True.'
  )


def _best(curve, metric):
  looks = [line for line in curve if line[metric] is not None and math.isfinite(line[metric])]
  best = max(looks, key=lambda line: line[metric], default=None)
  return (
    None if best is None else {'epoch': best['epoch'], 'step': best['step'], 'value': best[metric]}
  )


def _out_of_patience(curve, metric, patience) -> bool:
  """Whether the last `patience` looks were none better than one before."""
  best = _best(curve, metric)
  return bool(patience and best and sum(line['step'] > best['step'] for line in curve) >= patience)


def _last_loss(folder):
  return hosts.from_first(
    lambda: next(
      (line['loss'] for line in reversed(progress.read_metrics(folder)) if line['kind'] == 'train'),
      None,
    )
  )
