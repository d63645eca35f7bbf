"""Runs of the command line in the process of the tests, with programs that they share.

A run in a process of its own imports for two seconds and traces its programs for three. Runs here
import nothing, and runs of one config share their traced and compiled programs. What a process
leaves behind when it ends, or is killed, is tested with `micro_run.start`.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import signal
import unittest.mock

import jax

from electra_jax import main
from electra_jax.config import flat
from electra_jax.finetune import finetune_step, task_program
from electra_jax.finetune import train as finetune_train
from electra_jax.pretrain import build, pretrain_step
from electra_jax.training import partitioning, step_loop

ROOT = pathlib.Path(__file__).parents[1]
# Fields that no compiled program depends on; the tokenizer and its ids are compared themselves, and
# the constants of schedules are inputs.
UNRELATED = (
  'budget_tokens',
  'compilation_cache',
  'data',
  'eval_every',
  'keep',
  'log_every',
  'name',
  'save_every',
  'steps',
  'trackers',
  'tracking',
)


def _fields(config) -> str:
  """The fields of a config that determine its programs."""
  plain = {name: v for name, v in flat(config).items() if name.split('.')[0] not in UNRELATED}
  return json.dumps(plain, sort_keys=True, default=str)


class _Programs:
  """Functions that make programs, and the programs that they made in this session."""

  def __init__(self):
    self._kept = {}
    self._originals = {
      'program': build.program,
      'compile_step': build.compile_step,
      'jit_eval_step': pretrain_step.jit_eval_step,
      'SumFunctions': step_loop.SumFunctions,
      'jit_predict': finetune_step.jit_predict,
      'jit_evaluate': finetune_step.jit_evaluate,
    }
    self._build_task_program = task_program.build_task_program

  def _once(self, name, key, *args, **kwargs):
    key = name, *key
    if key not in self._kept:
      self._kept[key] = self._originals[name](*args, **kwargs)
    return self._kept[key]

  def program(self, run_config, phase, tokenizer, layout):
    settings = repr(build.build_settings(phase.config, tokenizer))
    configs = _fields(run_config), _fields(phase.config)
    key = *configs, phase.generator_only, tokenizer.size, settings, layout
    made = self._once('program', key, run_config, phase, tokenizer, layout)
    return made._replace(
      config=phase.config,
      rates=build.build_rates(run_config),
      schedules=build.build_schedules(run_config),
    )

  def compile_step(self, p, micro_batches):
    return self._once('compile_step', (id(p.shapes), micro_batches), p, micro_batches)

  def jit_eval_step(self, model, objective, settings, layout, *, seed):
    key = repr(model), objective, repr(settings), layout, seed
    return self._once('jit_eval_step', key, model, objective, settings, layout, seed=seed)

  def sum_functions(self, shapes, mesh):
    key = repr(sorted((name, x.shape, str(x.dtype)) for name, x in shapes.items())), mesh
    return self._once('SumFunctions', key, shapes, mesh)

  def jit_predict(self, model, ids, layout):
    return self._once('jit_predict', (repr(model), ids, layout), model, ids, layout)

  def jit_evaluate(self, model, ids, layout, settings):
    key = repr(model), ids, layout, repr(settings)
    return self._once('jit_evaluate', key, model, ids, layout, settings)

  def build_task_program(self, config, task, initial, layout, *rest):
    p = self._build_task_program(config, task, initial, layout, *rest)
    # What the functions close over; the numbers of schedules are inputs.
    constants = (
      *(repr(p.model), finetune_step.special_ids(initial.tokenizer), layout, repr(p.loss_settings)),
      *(p.step_key, config.micro_batches, config.skip_nonfinite, config.frozen),
    )
    made = p.init_params, p.init_state, p.train_step
    init_params, init_state, step = self._kept.setdefault(('task', *constants), made)
    return dataclasses.replace(
      p,
      init_params=init_params,
      init_state=init_state,
      train_step=step,
      compiled=task_program.Compiled(steps={p.step_key: step}),
    )


@functools.cache
def _programs() -> _Programs:
  return _Programs()


@contextlib.contextmanager
def shared_programs(devices):
  """Some devices, the repository's root as working directory, programs shared, signals restored."""
  programs, layout_of = _programs(), partitioning.make_layout
  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

  def layout(config=None, _=None):
    return layout_of(config, jax.devices()[:devices])

  replaced = (
    (partitioning, 'make_layout', layout),
    (build, 'program', programs.program),
    (build, 'compile_step', programs.compile_step),
    (pretrain_step, 'jit_eval_step', programs.jit_eval_step),
    (step_loop, 'SumFunctions', programs.sum_functions),
    (finetune_step, 'jit_predict', programs.jit_predict),
    (finetune_step, 'jit_evaluate', programs.jit_evaluate),
    (finetune_train, 'build_task_program', programs.build_task_program),
  )
  before = os.getcwd()
  with contextlib.ExitStack() as stack:
    for module, name, value in replaced:
      stack.enter_context(unittest.mock.patch.object(module, name, value))
    os.chdir(ROOT)
    try:
      yield
    finally:
      os.chdir(before)
      for number, handler in handlers.items():
        signal.signal(number, handler)


def run(*argv: str, devices: int = 1) -> tuple[int, str, str]:
  """Runs the command line; returns its exit status, stdout and stderr."""
  out, err = io.StringIO(), io.StringIO()
  with shared_programs(devices):
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      status = main.main(['main', *argv])
  return status, out.getvalue(), err.getvalue()
