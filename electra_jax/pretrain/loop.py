"""The loop over the steps of one phase: figures, held-out rows, checkpoints, and stopping when asked."""

import math
import time
from typing import Any, NamedTuple

import jax

from electra_jax import console
from electra_jax.config import Phase
from electra_jax.data.store.row_batches import batches, read_batch
from electra_jax.errors import UserError
from electra_jax.pretrain import build, evaluation, metrics, pretrain_step
from electra_jax.training import checkpoints, hosts, partitioning, run_folder
from electra_jax.training.preemption import Agreement, Notice
from electra_jax.training.progress import quantity
from electra_jax.training.status import Status

HEADER_EVERY = 25  # lines of figures


class Course(NamedTuple):
  """What the loop of a phase needs beside its program."""

  number: int  # of the phase, from 0
  is_last: bool  # no phase follows
  phase: Phase
  prepared: Any  # data.prepare.Prepared
  step: Any  # the compiled step
  micro_batches: int
  step_flops: float
  peak: float  # FLOP/s of all devices, 0 where unknown
  peak_source: str
  tokens_before: int  # of the phases before
  status: Status  # of the run
  look_first: bool  # at the held-out rows before the first step: what the weights that it begins with are worth


def train_figures(objective, sums, changing: dict, done: int) -> dict[str, float]:
  """The figures of the steps since the last line: those of the objective, means over steps of loss and norms, and what changes
  over the run (name -> function of the step: learning rates, scheduled settings) as it was in the last of them."""
  count = int(sums['steps'])
  means = {
    name: float(value) / max(count, 1)
    for name, value in sums.items()
    if name == 'loss' or '_norm/' in name
  }
  figures = means | objective.compute_metrics(
    {name: value for name, value in sums.items() if name not in means and name != 'steps'}
  )
  if not count:  # every step was skipped: there is nothing to say, and no zeros to draw
    figures = dict.fromkeys(figures, math.nan)
  return figures | {name: float(value(done - 1)) for name, value in changing.items()}


def header(objective, f, peak_source: str) -> str:
  """What stands over lines of figures like `f`: the columns of the objective."""
  titles = ' '.join(f'{c.column:>{c.width}}' for name, c in objective.columns.items() if name in f)
  return f'\n{"step":>11} {"loss":>7} {titles} {"tokens/s":>9} {"of peak" if peak_source == "measured" else "MFU":>7} {"left":>7}'


def line(objective, step: str, f, last_columns: str = '') -> str:
  """One line of figures, of training or of held-out rows; a dash for one that is not known."""
  values = ' '.join(
    f'{f[name]:{c.width}{c.format}}' for name, c in objective.columns.items() if name in f
  )
  return f'{step:>11} {f["loss"] if "loss" in f else f["total_loss"]:7.2f} {values} {last_columns}'.replace(
    'nan', '  -'
  )


def run_steps(
  p: build.Program,
  course: Course,
  first: int,
  state,
  sums,
  zero_sums,
  add,
  manager,
  writer,
  notice: Notice,
  workdir,
):
  """Makes the steps of a phase from the state's on.

  Args:
    p, course: the program and what belongs to it.
    first: steps of the run that are done.
    state, sums: after those, and the sums of figures since the last line.
    zero_sums, add: of sums.
    manager, writer: of checkpoints and of figures.
    notice: becomes true when this process is asked to stop.
    workdir: the run's folder, for a profile.

  Returns: state, sums, and whether the run was asked to stop.

  Raises UserError when a loss or gradient is not finite.
  """
  config, phase, mesh, prepared = p.config, course.phase, p.layout.mesh, course.prepared
  tokens_per_step = config.batch_size * config.sequence_length
  eval_step = pretrain_step.jit_eval_step(
    p.model, p.objective, p.settings, p.layout, seed=evaluation.EVAL_SEED
  )
  shards = partitioning.row_shards(mesh)
  eval_batch_size = -(-config.eval_batch_size // shards) * shards
  data_seed = (
    config.seed + 1_000_003 * course.number
  )  # a phase on the same rows sees them in another order
  agreed, constants = Agreement(mesh), partitioning.replicate(p.inputs, mesh)

  def halt_if_bad(bad_step):
    """Ends the run where a step was not finite: the state is still the one before that step."""
    if bad_step < 0:
      return
    token_ids = read_batch(
      prepared.train, int(bad_step) - phase.first, config.batch_size, data_seed
    )
    name = pretrain_step.first_nonfinite(
      p.computation,
      state.params,
      token_ids,
      step=int(bad_step),
      micro_batches=course.micro_batches,
      layout=p.layout,
    )
    writer.keep()
    checkpoints.wait(manager)
    kept = manager.latest_step()
    raise UserError(
      f'the step after {int(bad_step):,} is not finite, first of all {name}; '
      + (f'the checkpoint of step {kept:,} is kept' if kept else 'no checkpoint was made yet')
      + '; lower config.optimizer.learning_rate, in another --workdir, or go on without such steps: --config.skip_nonfinite=True.'
    )

  input_batches = batches(
    prepared.train,
    config.batch_size,
    data_seed,
    first - phase.first,
    config.steps,
    rows=partitioning.process_rows(mesh, config.batch_size),
    use_tf={'auto': None, 'tf': True, 'numpy': False}[config.data.reader],
  )
  clock = time.perf_counter
  started, paused, interval_start, interval_first, waited = clock(), 0.0, clock(), first, 0.0
  lines, warned, previous = 0, False, None

  def look(done, tokens, live):
    """Held-out rows: writes and shows the figures, and returns the one that checkpoints are chosen by."""
    nonlocal lines
    heldout = evaluation.heldout_metrics(
      evaluation.heldout_sums(
        eval_step,
        state.params,
        prepared.heldout,
        batch_size=eval_batch_size,
        mesh=mesh,
        limit=config.eval_rows,
      ),
      p.settings,
    )
    writer.write('heldout', done, heldout | {'tokens': tokens, 'seconds': writer.seconds})
    if not lines:
      lines = 1
      live.above(header(p.objective, heldout, course.peak_source))
    live.above(line(p.objective, 'held out', heldout))
    # While the generator catches up the discriminator's task grows harder: those losses say nothing of which is better.
    return None if phase.generator_only else float(heldout['total_loss'])

  (profile_first, profile_last), profile = config.profile_steps, None
  notice.heed()
  with console.progress('training', phase.last - first) as live:
    if course.look_first:
      look(first, course.tokens_before + (first - phase.first) * tokens_per_step, live)
      started = interval_start = clock()
    for index in range(first, phase.last):
      if profile_last and index == profile_first and hosts.first():
        profile = run_folder.Spool(workdir / 'profile')
        jax.profiler.start_trace(str(profile.path))
      before = clock()
      token_ids = next(input_batches)
      waited += clock() - before
      state, step_sums = course.step(
        state,
        {
          'token_ids': partitioning.global_batch(token_ids, mesh, config.batch_size),
          'schedules': constants,
        },
      )
      sums = add(sums, step_sums)
      # One step stays in flight: the device is never idle and the host knows how far it is.
      if previous is not None:
        jax.block_until_ready(previous)
      previous = step_sums['steps']
      stop = agreed(bool(notice))
      done = index + 1
      tokens = course.tokens_before + (done - phase.first) * tokens_per_step
      live(done - first, f'step {done:,} of {phase.last:,}')
      if profile and (done > profile_last or done == phase.last):
        jax.block_until_ready(previous)
        jax.profiler.stop_trace()
        profile.close()
        profile = None
        live.above(f'  profile of steps {profile_first} to {index} in {workdir / "profile"}')

      last = done == phase.last
      if done == 1 or done % config.log_every == 0 or last:
        host_sums, counters = jax.device_get(
          (sums, {'bad_step': state.bad_step, 'skipped': state.skipped})
        )
        halt_if_bad(counters['bad_step'])
        sums = zero_sums()
        now = clock()
        rate = (done - interval_first) * tokens_per_step / (now - interval_start)
        writer.seconds += now - interval_start
        figures = train_figures(p.objective, host_sums, p.rates | p.schedules, done) | {
          'skipped': int(counters['skipped']),
          'tokens': tokens,
          'tokens_per_second': rate,
          'utilisation': rate / tokens_per_step * course.step_flops / course.peak
          if course.peak
          else math.nan,
          'input_wait': waited / (now - interval_start),
          'seconds': writer.seconds,
        }
        writer.write('train', done, figures)
        course.status.progress(done)
        if lines % HEADER_EVERY == 0:
          live.above(header(p.objective, figures, course.peak_source))
        lines += 1
        share = f'{figures["utilisation"]:7.0%}' if course.peak else f'{"":7}'
        left = (now - started - paused) / (done - first) * (phase.last - done)
        live.above(
          line(
            p.objective,
            f'{done:,}',
            figures,
            f'{quantity(rate):>9} {share} {console.seconds(left):>7}',
          )
        )
        is_late = done >= max(config.optimizer.warmup_steps, 10 * config.log_every)
        if (
          not warned
          and is_late
          and p.objective.trains_discriminator
          and metrics.answers_original(figures)
        ):
          warned = True
          live.above(
            '  the discriminator answers "original" to every token so far: usual early on; if it stays, try a weaker '
            'generator (--config.generator.hidden_fraction), a lower rate, or a longer warm-up'
          )
        interval_start, interval_first, waited = clock(), done, 0.0

      figure = None
      if done % config.eval_every == 0 or last:
        before = clock()
        figure = look(done, tokens, live)
        paused += clock() - before
        interval_start += clock() - before
      if done % config.save_every == 0 or last or stop:
        before = clock()
        # bad_step is checked first: a checkpoint never holds a state past a failure.
        halt_if_bad(jax.device_get(state.bad_step))
        if trouble := writer.keep():
          live.above(f'  {trouble}')
        checkpoints.save(manager, done, state, sums, figure)
        course.status.progress(done, saved=True)
        interval_start += clock() - before
      if stop and not (last and course.is_last):
        checkpoints.wait(manager)
        live.above(f'  asked to stop: saved step {done:,}; the same command goes on from there')
        return state, sums, True
  return state, sums, False
