"""The pretraining program: text to a pretrained, evaluated ELECTRA, top to bottom."""

import math
import pathlib
import time

import jax
import jax.numpy as jnp

from electra_jax import config as configs, console
from electra_jax.config import UserError
from electra_jax.console import say
from electra_jax.data.batches import batches, read_batch
from electra_jax.pretrain import build, evaluate as evaluation, metrics, run as runs
from electra_jax.pretrain import step as steps
from electra_jax.pretrain.objectives import electra as objective
from electra_jax.training import checkpoints, memory, mesh as meshes, progress
from electra_jax.training.flops import step_flops
from electra_jax.training.preemption import Notice, PREEMPTED
from electra_jax.training.progress import quantity


def train_figures(sums, schedule, done: int) -> dict[str, float]:
  """The figures of the steps since the last line: those of metrics.figures, and means over steps of loss and norms."""
  count = int(sums['steps'])
  means = {name: float(value) / max(count, 1) for name, value in sums.items() if name == 'loss' or '_norm/' in name}
  figures = means | metrics.figures({name: value for name, value in sums.items() if name not in means and name != 'steps'})
  if not count:        # every step was skipped: there is nothing to say, and no zeros to draw
    figures = dict.fromkeys(figures, math.nan)
  return figures | {'learning_rate': float(schedule(done - 1))}


HEADER_EVERY = 25        # lines of figures


def header(peak_source: str) -> str:
  """What stands over the lines of figures: the generator's loss and accuracy, the discriminator's loss beside the constant predictor's."""
  return (f'\n{"step":>11} {"loss":>7} {"gen loss":>9} {"acc":>5} {"disc loss":>10} {"constant":>9} {"auc":>6} {"ap":>6} {"recall":>7} '
          f'{"tokens/s":>9} {"of peak" if peak_source == "measured" else "MFU":>7} {"left":>7}')


def line(step: str, f, last_columns: str = '') -> str:
  """One line of figures, of training or of held-out rows."""
  return (f'{step:>11} {f["loss"] if "loss" in f else f["total_loss"]:7.2f} {f["generator_loss"]:9.3f} {f["generator_accuracy"]:5.0%} '
          f'{f["discriminator_loss"]:10.4f} {f["constant_loss"]:9.4f} {f["auc"]:6.3f} {f["average_precision"]:6.3f} {f["recall"]:7.3f} '
          f'{last_columns}')


def train(config, workdir: str) -> int:
  """Trains a config in WORKDIR, or goes on where an earlier start of the same command stopped.

  Returns the exit status: 0 when done, PREEMPTED after a SIGTERM (everything saved).

  Raises UserError for a person's mistakes, and when a loss or gradient is not finite.
  """
  workdir = pathlib.Path(workdir)
  configs.check(config)
  build.build_model(config, config.data.vocab_size)        # sizes that cannot be are told before long work
  resolved = runs.claim(workdir, config)
  console.heading(f'{config.name}  ({workdir})')

  #### Devices and mesh ##############################################################################################
  mesh = meshes.make_mesh()
  if config.batch_size % mesh.size:
    raise UserError(f'config.batch_size {config.batch_size} does not divide over {mesh.size} devices; use a multiple of {mesh.size}.')
  rows_per_device = config.batch_size // mesh.size
  if config.micro_batches and rows_per_device % config.micro_batches:
    raise UserError(f'config.micro_batches {config.micro_batches} does not divide the {rows_per_device} rows of a device; '
                    'change it, or config.batch_size.')
  devices = jax.devices()
  say('devices', f'{len(devices)} x {devices[0].device_kind}, mesh ' + ' x '.join(f'{name} {size}' for name, size in mesh.shape.items()))

  #### Data ##########################################################################################################
  prepared = runs.prepare_data(config)
  tokenizer = prepared.tokenizer
  data = runs.data_identity(prepared)
  if resolved and resolved['data'] != data and checkpoints.any_saved(workdir):
    raise UserError(f'the corpus {runs.corpus_name(config)} is not the one that {workdir} was begun with; restore it, or use another --workdir.')
  runs.keep_tokenizer(workdir, tokenizer)
  for rows in (prepared.train, prepared.heldout):      # no step is to wait for a shard from afar
    rows.fetch()
  if prepared.train.rows < config.batch_size:
    raise UserError(f'the corpus makes {prepared.train.rows} rows and config.batch_size is {config.batch_size}; give more text, or at most '
                    f'{prepared.train.rows} rows a batch.')
  tokens_per_step = config.batch_size * config.sequence_length
  epochs = prepared.train.epochs(config.steps * config.batch_size)
  say('this run', f'{config.steps:,} steps of {config.batch_size} x {config.sequence_length} = {quantity(config.steps * tokens_per_step)} tokens, '
      + (f'{epochs[0]:,.1f} epochs of the corpus' if len(epochs) == 1 else 'epochs of each source: '
         + ', '.join(f'{count:,.1f} of {source["location"]}' for count, source in zip(epochs, prepared.facts['sources']))))
  unmaskable = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  unigram_entropy = prepared.train.unigram_entropy(unmaskable)
  say('baseline', f'unigram entropy {unigram_entropy:.2f} nats: what a generator that ignores context scores')

  #### Model, objective, optimizer ###################################################################################
  model = build.build_model(config, tokenizer.size)
  settings = build.build_settings(config, tokenizer)
  optimizer, schedule = build.build_optimizer(config)
  shapes, shardings = steps.state_shardings(model, optimizer, config.sequence_length, mesh)
  parameters = {name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for name, tree in shapes.params.items()}
  say('parameters', f'{quantity(sum(parameters.values()))}: ' + ', '.join(f'{n.replace("_", " ")} {quantity(v)}' for n, v in parameters.items()))
  flops = step_flops(model.generator_config, model.discriminator_config, config.batch_size, config.sequence_length,
                     settings.max_predictions)
  peak, peak_source = progress.peak_flops()
  say('one step', f'{quantity(flops, "FLOP")}' + (f'; at least {flops / peak:.3g} s at {quantity(peak, "FLOP/s")} ({peak_source})' if peak else ''))

  #### The compiled step: as many micro-batches as the memory wants ##################################################
  runs.use_compilation_cache(config)
  batch_shape = {'token_ids': jax.ShapeDtypeStruct((config.batch_size, config.sequence_length), jnp.int32)}

  def train_step(micro_batches):
    return steps.make_train_step(model, objective, settings, optimizer, seed=config.seed, micro_batches=micro_batches,
                                 skip_nonfinite=config.skip_nonfinite)

  def compile_step(micro_batches):
    say('compiling', 'the step' + (f' in {micro_batches} micro-batches' if micro_batches > 1 else ''))
    return steps.jit_train_step(train_step(micro_batches), shardings, mesh).lower(shapes, batch_shape).compile()

  budget = memory.available()
  start = time.perf_counter()
  chosen = resolved.get('micro_batches') or config.micro_batches
  if chosen:
    micro_batches, compiled = chosen, compile_step(chosen)
    needed = memory.of(compiled)
  else:
    row = sum(memory.activation_bytes(c, config.sequence_length) for c in (model.generator_config, model.discriminator_config))
    guess = math.ceil(rows_per_device * row / max(1, budget - 24 * sum(parameters.values())))
    micro_batches, compiled, needed = memory.choose_micro_batches(compile_step, rows_per_device, budget, max(1, guess))
  say('memory', f'{needed / 1e9:.2f} GB a device, {budget / 1e9:.1f} GB free'
      + (f'; {micro_batches} micro-batches of {config.batch_size // micro_batches} rows' if micro_batches > 1 else ''))
  say('compiled', f'in {time.perf_counter() - start:.0f} s, {model.discriminator_config.dtype} products')
  if peak and flops / peak > 60:
    say('long steps', f'a step takes minutes here; ask for less with --config=FILE:batch={max(1, config.batch_size // 32)},seq=128 or a smaller config')

  #### State: restored, or born sharded ##############################################################################
  sum_shapes = compiled.out_info[1]
  zero_sums = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sum_shapes), out_shardings=meshes.replicated(mesh))
  add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
  manager = checkpoints.open_manager(workdir, keep=config.keep)
  first = manager.latest_step() or 0
  if first:
    state, sums = checkpoints.restore(manager, first, shapes, shardings, sum_shapes, meshes.replicated(mesh))
    say('restored', f'step {first:,}, the last checkpoint in {workdir}')
  else:
    state = jax.jit(lambda: steps.init_state(model, optimizer, config.seed, config.sequence_length), out_shardings=shardings)()
    sums = zero_sums()
    say('begins', f'from scratch, seed {config.seed}')
  runs.write_json(workdir / 'resolved.json', {'data': data, 'micro_batches': micro_batches,
                                              'vocab_size': tokenizer.size, 'dtype': str(model.discriminator_config.dtype),
                                              'unigram_entropy': unigram_entropy, 'train_rows': prepared.train.rows,
                                              'parameters': parameters})
  if first >= config.steps:
    say('done', f'all {config.steps:,} steps were made before')
    manager.close()
    return 0

  #### Loop ##########################################################################################################
  writer = progress.Writer(workdir, first)
  eval_step = jax.jit(steps.make_eval_step(model, objective, settings, seed=evaluation.EVAL_SEED))
  eval_batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
  notice = Notice()

  def halt_if_bad(bad_step):
    """Ends the run where a step was not finite: the state is still the one before that step."""
    if bad_step < 0:
      return
    token_ids = read_batch(prepared.train, int(bad_step), config.batch_size, config.seed)
    name = steps.first_nonfinite(model, objective, settings, state.params, token_ids, seed=config.seed, step=int(bad_step),
                                 parts=micro_batches)
    manager.wait_until_finished()
    kept = manager.latest_step()
    raise UserError(f'the step after {int(bad_step):,} is not finite, first of all {name}; '
                    + (f'the checkpoint of step {kept:,} is kept' if kept else 'no checkpoint was made yet')
                    + '; lower config.optimizer.learning_rate, in another --workdir, or go on without such steps: --config.skip_nonfinite=True.')

  input_batches = batches(prepared.train, config.batch_size, config.seed, first, config.steps,
                          rows=meshes.process_rows(mesh, config.batch_size),
                          use_tf={'auto': None, 'tf': True, 'numpy': False}[config.data.reader])
  clock = time.perf_counter
  started, paused, interval_start, interval_first, waited = clock(), 0.0, clock(), first, 0.0
  lines, warned, previous = 0, False, None
  profile_first, profile_last = config.profile_steps
  with console.progress('training', config.steps - first) as live:
    for index in range(first, config.steps):
      if profile_last and index == profile_first:
        jax.profiler.start_trace(str(workdir / 'profile'))
      before = clock()
      token_ids = next(input_batches)
      waited += clock() - before
      state, step_sums = compiled(state, {'token_ids': meshes.global_batch(token_ids, mesh, config.batch_size)})
      sums = add(sums, step_sums)
      # One step stays in flight: the device is never idle and the host knows how far it is.
      if previous is not None:
        jax.block_until_ready(previous)
      previous = step_sums['steps']
      done = index + 1
      live(done - first, f'step {done:,} of {config.steps:,}')
      if profile_last and done == profile_last + 1:
        jax.block_until_ready(previous)
        jax.profiler.stop_trace()
        live.above(f'  profile of steps {profile_first} to {profile_last} in {workdir / "profile"}')

      stop = bool(notice)
      last = done == config.steps
      save = done % config.save_every == 0 or last or stop
      if done == 1 or done % config.log_every == 0 or last:
        host_sums, counters = jax.device_get((sums, {'bad_step': state.bad_step, 'skipped': state.skipped}))
        halt_if_bad(counters['bad_step'])
        sums = zero_sums()
        now = clock()
        rate = (done - interval_first) * tokens_per_step / (now - interval_start)
        writer.seconds += now - interval_start
        figures = train_figures(host_sums, schedule, done) | {
            'skipped': int(counters['skipped']), 'tokens': done * tokens_per_step, 'tokens_per_second': rate,
            'utilisation': rate / tokens_per_step * flops / peak if peak else math.nan, 'input_wait': waited / (now - interval_start),
            'seconds': writer.seconds}
        writer.write('train', done, figures)
        if lines % HEADER_EVERY == 0:
          live.above(header(peak_source))
        lines += 1
        share = f'{figures["utilisation"]:7.0%}' if peak else f'{"":7}'
        left = (now - started - paused) / (done - first) * (config.steps - done)
        live.above(line(f'{done:,}', figures, f'{quantity(rate):>9} {share} {console.seconds(left):>7}'))
        if not warned and done >= max(config.optimizer.warmup_steps, 10 * config.log_every) and metrics.collapsed(figures):
          warned = True
          live.above('  the discriminator answers "original" to every token so far: usual early on; if it stays, try a weaker '
                     'generator (--config.generator.hidden_fraction), a lower rate, or a longer warm-up')
        interval_start, interval_first, waited = clock(), done, 0.0

      figure = None
      if done % config.eval_every == 0 or last:
        before = clock()
        heldout = evaluation.figures_of(evaluation.heldout_sums(
            eval_step, state.params, prepared.heldout, batch_size=eval_batch_size, mesh=mesh, limit=config.eval_rows), settings)
        figure = float(heldout['total_loss'])
        writer.write('heldout', done, heldout | {'tokens': done * tokens_per_step, 'seconds': writer.seconds})
        live.above(line('held out', heldout))
        paused += clock() - before
        interval_start += clock() - before
      if save:
        before = clock()
        # bad_step is checked first: a checkpoint never holds a state past a failure.
        halt_if_bad(jax.device_get(state.bad_step))
        checkpoints.save(manager, done, state, sums, figure)
        interval_start += clock() - before
      if stop and not last:
        manager.wait_until_finished()
        live.above(f'  asked to stop: saved step {done:,}; the same command goes on from there')
        manager.close()
        writer.close()
        return PREEMPTED

  #### End ###########################################################################################################
  manager.wait_until_finished()
  say('checkpoints', f'steps {", ".join(map(str, sorted(manager.all_steps())))} in {workdir / "checkpoints"}; the best by held-out loss is {manager.best_step()}')
  manager.close()
  writer.close()
  say('next', f'python -m electra_jax.main --mode=evaluate --workdir={workdir}')
  say('', f'python -m electra_jax.main --mode=inspect --workdir={workdir}')
  say('', f'python -m electra_jax.main --mode=report --workdir={workdir}')
  return 0
