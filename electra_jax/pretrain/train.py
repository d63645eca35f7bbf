"""The pretraining program: text to a pretrained, evaluated ELECTRA, top to bottom. The steps themselves are in loop.py."""

import dataclasses
import functools
import json
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import console
from electra_jax.config import has_budget, to_plain
from electra_jax.console import say
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.pretrain import budgets, build, pretrain_step, pretrained
from electra_jax.pretrain.continued import source
from electra_jax.pretrain.continued.initial_state import initial_state, place_initial
from electra_jax.pretrain.loop import Course, run_steps
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.training import (
  checkpoints,
  hosts,
  memory,
  partitioning,
  progress,
  run_folder,
)
from electra_jax.training.encoders import attention_kernel
from electra_jax.training.preemption import Notice
from electra_jax.training.progress import quantity
from electra_jax.training.status import Status

DATA_WAIT = 24 * 3600  # seconds that a process waits for the others to have their data


def train(config, workdir: str, notice: Notice | None = None) -> int:
  """Trains a config in WORKDIR, or goes on where an earlier start of the same command stopped.

  Every process of a run calls this; the first one writes what is written once. `notice`: becomes true when this process is asked to
  stop; None for one of its own.

  Returns the exit status: 0 when done, PREEMPTED when asked to stop (everything saved).

  Raises UserError for a person's mistakes, and when a loss or gradient is not finite; Preempted when asked to stop before there was
  anything to save.
  """
  with Status('train') as status:
    notice = Notice() if notice is None else notice
    return status.end(_train(config, workdir, notice, status))


def _train(config: Any, workdir: str, notice: Notice, status: Status) -> int:
  """Does the work of `train`; `status` is the status file of the run."""
  run = resolve_run(config, workdir)
  workdir, digest = run.workdir, str(source.weights_digest(run.source))
  hosts.same_everywhere('the config', json.dumps(to_plain(run.config), sort_keys=True))
  hosts.same_everywhere('the weights of config.init', digest)
  resolved = hosts.from_first(lambda: pretrained.claim(workdir, run.config))
  status.claim(workdir, run.phases[-1].last)
  hosts.check_shared(workdir)
  console.heading(f'{run.config.name}  ({workdir})')

  #### Devices and mesh ##############################################################################################
  layout = partitioning.make_layout(run.config)
  mesh, devices = layout.mesh, jax.devices()
  for phase in run.phases:
    build.check_batch(phase.config, mesh)
  say(
    'devices',
    f'{len(devices)} x {devices[0].device_kind}'
    + (f' of {jax.process_count()} processes' if jax.process_count() > 1 else '')
    + ', mesh '
    + ' x '.join(f'{name} {size}' for name, size in mesh.shape.items()),
  )

  #### Data ##########################################################################################################
  prepared = [pretrained.prepare_data(phase.config, run.tokenizer) for phase in run.phases]
  hosts.wait_for_all('the data', DATA_WAIT)
  tokenizer, data = prepared[0].tokenizer, '+'.join(pretrained.data_identity(p) for p in prepared)
  hosts.same_everywhere('the data', data)
  if any(p.tokenizer.fingerprint != tokenizer.fingerprint for p in prepared):
    raise UserError(
      'the stores of config.phases were not made with the same tokenizer; prepare them with that of the first.'
    )
  if (
    resolved
    and resolved['data'] != data
    and hosts.from_first(lambda: checkpoints.any_saved(workdir))
  ):
    raise UserError(
      f'the corpus {pretrained.corpus_name(run.config)} is not the one that {workdir} was begun with; restore it, or use another --workdir.'
    )
  hosts.from_first(lambda: pretrained.keep_tokenizer(workdir, tokenizer))
  pretrained.use_compilation_cache(run.config)
  run = budgets.resolve_budget(run, tokenizer, layout, resolved, say)
  config, phases = run.config, run.phases
  if has_budget(config):
    hosts.from_first(lambda: run_folder.write_json(workdir / 'config.json', to_plain(config)))
  for phase, rows in zip(phases, prepared, strict=True):
    for store in (rows.train, rows.heldout):  # no step is to wait for a shard from afar
      store.fetch()
    if rows.train.rows < phase.config.batch_size:
      raise UserError(
        f'the corpus makes {rows.train.rows} rows and config.batch_size is {phase.config.batch_size}; give more text, or at '
        f'most {rows.train.rows} rows a batch.'
      )
    say(
      'this run' if len(phases) == 1 else f'steps {phase.first:,}+',
      pretrained.describe_phase(phase, rows),
    )
  unmaskable = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  unigram_entropy = prepared[0].train.unigram_entropy(unmaskable)
  say(
    'baseline',
    f'unigram entropy {unigram_entropy:.2f} nats: what a generator that ignores context scores',
  )

  initial = run.source and initial_state(config, run.source, tokenizer)
  run = dataclasses.replace(run, source=None)  # frees the weights

  #### Model, objective, optimizer ###################################################################################
  programs = [build.program(config, phase, tokenizer, layout) for phase in phases]
  p = programs[0]
  parameters = {
    name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    for name, tree in p.shapes.params.items()
  }
  say(
    'parameters',
    f'{quantity(sum(parameters.values()))}: '
    + ', '.join(f'{n.replace("_", " ")} {quantity(v)}' for n, v in parameters.items()),
  )
  for text in partitioning.describe(p.shapes.params, p.shardings.params, layout):
    say('', text)
  kernel, why = attention_kernel(
    config.model, config.sequence_length, config.dtype, devices[0].platform
  )
  say(
    'attention',
    f'{kernel} ({why})'
    + (
      "; xla in the generator's towers, which see one side"
      if p.model.two_tower and kernel != 'xla'
      else ''
    ),
  )
  flops = [q.step_flops() for q in programs]
  peak, peak_source = progress.peak_flops()

  #### State: restored, or born sharded ##############################################################################
  manager = checkpoints.open_manager(workdir, keep=config.keep)
  saved = hosts.from_first(lambda: manager.latest_step() or 0)
  first = saved or (initial.step if initial else 0)
  status.change(step=first, steps=phases[-1].last, restored_step=saved)
  whole = partitioning.replicated(mesh)
  add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
  state = sums = writer = None
  shape = dict(mesh.shape)
  micro_batches = [0] * len(phases)
  if (
    resolved.get('mesh', shape) == shape
  ):  # on other devices the rows that one has may not fit as they did
    micro_batches = np.atleast_1d(
      resolved.get('micro_batches', micro_batches)
    ).tolist()  # a number alone in older runs
  stopped = False

  for number, (phase, q, rows) in enumerate(zip(phases, programs, prepared, strict=True)):
    if first >= phase.last:
      continue

    #### The compiled step: as many micro-batches as the memory wants ################################################
    if len(phases) > 1:
      console.heading(
        f'phase {number + 1} of {len(phases)}: {phase.config.steps:,} steps of {phase.config.batch_size:,} x {phase.config.sequence_length}'
        + (', the generator alone' if phase.generator_only else '')
      )
    say(
      'one step',
      f'{quantity(flops[number], "FLOP")}'
      + (
        f'; at least {flops[number] / peak:.3g} s at {quantity(peak, "FLOP/s")} ({peak_source})'
        if peak
        else ''
      ),
    )
    start = time.perf_counter()
    free = min(hosts.gather(memory.available()))
    # What an earlier start chose adds up the gradients in the same order.
    rows_per_device = build.check_batch(phase.config, mesh)
    chosen = (
      micro_batches[number]
      if micro_batches[number] and rows_per_device % micro_batches[number] == 0
      else phase.config.micro_batches
    )
    micro_batches[number], compiled, needed = build.compile_to_fit(q, free, chosen, say)
    say(
      'memory',
      f'{needed / 1e9:.2f} GB a device, {free / 1e9:.1f} GB free'
      + (
        f'; {micro_batches[number]} micro-batches of {phase.config.batch_size // micro_batches[number]} rows'
        if micro_batches[number] > 1
        else ''
      ),
    )
    say(
      'compiled',
      f'in {time.perf_counter() - start:.0f} s, {q.model.discriminator_config.dtype} products',
    )
    if peak and flops[number] / peak > 60:
      say(
        'long steps',
        f'a step takes minutes here; ask for less with --config=FILE:batch={max(1, phase.config.batch_size // 32)},seq=128 or a smaller config',
      )

    if state is None:
      # What the step sums up is the same in every phase.
      sum_shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), compiled.out_info[1]
      )
      zero_sums = jax.jit(
        lambda sum_shapes=sum_shapes: jax.tree.map(
          lambda x: jnp.zeros(x.shape, x.dtype), sum_shapes
        ),
        out_shardings=whole,
      )
      if saved:
        state, sums = checkpoints.restore(manager, first, p.shapes, p.shardings, sum_shapes, whole)
        say('restored', f'step {first:,}, the last checkpoint in {workdir}')
      else:
        state = jax.jit(
          lambda: pretrain_step.init_state(
            p.model, p.optimizer, config.seed, config.sequence_length
          ),
          out_shardings=p.shardings,
        )()
        sums = zero_sums()
        if initial:
          state = place_initial(initial, state, p.shardings)
          for text in initial.notes:
            say('init', text)
          # The devices have them now.
          initial = dataclasses.replace(initial, params=None, moments=None)
        other = (
          f', its generator from {config.continued.generator}'
          if config.continued.generator.startswith('hf:')
          else ''
        )
        scratch = f'from scratch, seed {config.seed}' + (
          f', its generator from {config.generator.init}' if config.generator.init else ''
        )
        say('begins', f'from {config.init}{other}' if config.init else scratch)
      writer = progress.Writer(workdir, saved and first) if hosts.first() else progress.NoWriter()
    resolved = {
      'data': data,
      **({'steps': config.steps} if has_budget(config) else {}),
      'mesh': shape,
      'micro_batches': micro_batches,
      'vocab_size': tokenizer.size,
      'dtype': str(p.model.discriminator_config.dtype),
      'unigram_entropy': unigram_entropy,
      'train_rows': prepared[0].train.rows,
      'parameters': parameters,
    }
    hosts.from_first(functools.partial(run_folder.write_json, workdir / 'resolved.json', resolved))
    before = sum(
      earlier.config.steps * earlier.config.batch_size * earlier.config.sequence_length
      for earlier in phases[:number]
    )
    course = Course(
      number,
      phase is phases[-1],
      phase,
      rows,
      compiled,
      micro_batches[number],
      flops[number],
      peak,
      peak_source,
      before,
      look_first=initial is not None and not saved and first == initial.step,
      status=status,
    )
    status.change(state='running')
    state, sums, stopped = run_steps(
      q, course, first, state, sums, zero_sums, add, manager, writer, notice, workdir
    )
    if stopped:
      break
    first = phase.last

  #### End ###########################################################################################################
  if state is None:
    say('done', f'all {config.steps:,} steps were made before')
    manager.close()
    return 0
  checkpoints.wait(manager)
  if not stopped:
    say(
      'checkpoints',
      f'steps {", ".join(map(str, sorted(manager.all_steps())))} in {workdir / "checkpoints"}; '
      f'the best by held-out loss is {manager.best_step()}',
    )
  manager.close()
  writer.close()
  if stopped:
    return PREEMPTED
  for mode in ('evaluate', 'inspect', 'report'):
    say(
      'next' if mode == 'evaluate' else '',
      f'python -m electra_jax.main --mode={mode} --workdir={workdir}',
    )
  return 0
