"""Eight CPU devices in this process; models, rows and steps that several tests use."""

import gc
import os
import shutil
import signal
import tempfile

# Nearly all objects that are made before the first test live until the end, so that collections
# before it would find nothing to free.
gc.disable()

# Child processes import a third faster with bytecode, even where it is switched off for this one.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)

# Tests that are started in the background by a shell without job control would ignore Ctrl-C, and
# so would their child processes.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

import xla_flags

# XLA reads both when JAX starts. Child processes are to run as a user's do, so the flags go again.
_flags = os.environ.get('XLA_FLAGS')
os.environ['JAX_PLATFORMS'] = 'cpu'
# Where a test has a compilation cache, short programs do not enter it: a look-up costs as much.
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count=8 {xla_flags.QUICK}'

import jax

from electra_jax.training import devices

assert len(jax.devices()) == 8 and devices.XLA_FLAGS
os.environ.pop('XLA_FLAGS') if _flags is None else os.environ.update(XLA_FLAGS=_flags)

import datetime
import functools
import json
import pathlib
import subprocess
import time
import types

import flax.linen as nn
import headless
import hypothesis
import in_process
import numpy as np
import pytest

from electra_jax import console, main
from electra_jax.cli import command_line
from electra_jax.config import PretrainingConfig
from electra_jax.config.pretraining import OptimizerConfig
from electra_jax.model.config import EncoderConfig
from electra_jax.model.electra import Electra
from electra_jax.pretrain import pretrain_step
from electra_jax.pretrain.objectives.electra import OBJECTIVE
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training import optimizers, partitioning, product_types
from electra_jax.training.update_step import UpdateOptions

hypothesis.settings.register_profile(
  'tests', deadline=None, derandomize=True
)  # the same examples each time
hypothesis.settings.register_profile(
  'first_failure',
  hypothesis.settings.get_profile('tests'),
  phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile('tests')

# No test depends on the processor, also not in the programs that it starts.
os.environ.setdefault(product_types.ON_CPUS, 'float32')
# What a test reads from stderr does not depend on how long its programs take.
os.environ[command_line.PROGRESS] = '0'
console.log_every(0)

# The slowest files, slowest first, so that none of them is the last one of a worker.
LONGEST = (
  'tpu_compile',
  'hosts',
  'resume_is_bitwise',
  'phases',
  'extending',
  'sharding_invariance',
  'versions',
  'continued',
  'finetune_run',
  'imported_finetuned',
  'command_line',
  'finetune_tasks',
  'cloud_workdir',
  'export',
  'hf_import',
  'hf_export',
  'nonfinite',
  'finetune_hosts',
  'heads',
)

PAD, UNK, CLS, SEP, MASK = range(5)  # the ids that objectives/electra.py takes unless told
MICRO = 'tests/configs/micro.py'
STEP_ROWS, STEP_LENGTH, STEP_VOCAB = 16, 32, 500  # of compiled_step
SHARED = 'ELECTRA_JAX_TESTS'  # the variable that names the folder shared by a session's processes
STARTED = pytest.StashKey[float]()  # when the session started, in seconds


def pytest_addoption(parser):
  parser.addoption(
    '--breaks', action='store_true', help='run the tests of breaks/breaks.py on each broken copy'
  )
  parser.addoption('--record', metavar='FILE', help='write counts and duration to FILE as JSON')


def pytest_configure(config):
  """Makes the folder that the processes of this session share, and removes it at the end."""
  config.stash[STARTED] = time.monotonic()
  if hasattr(config, 'workerinput'):  # a worker: the session that started it made the folder
    return
  before, folder = os.environ.get(SHARED), tempfile.mkdtemp(prefix='electra_jax_tests_')
  os.environ[SHARED] = folder

  def remove():
    shutil.rmtree(folder, ignore_errors=True)
    os.environ.pop(SHARED) if before is None else os.environ.update({SHARED: before})

  config.add_cleanup(remove)


def pytest_collection_modifyitems(items):
  rank = {f'{name}_test': place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish():
  """Starts garbage collection, without what is loaded: a full one would visit all of it."""
  gc.freeze()
  gc.set_threshold(20_000, 20, 20)
  gc.enable()


def pytest_terminal_summary(terminalreporter, config):
  """Writes the file of --record: what ran, at which commit, how it ended, and how long it took."""
  if not config.option.record or hasattr(config, 'workerinput'):
    return

  def git(*command):
    done = subprocess.run(['git', *command], capture_output=True, text=True, cwd=config.rootpath)
    return done.stdout.strip()

  outcomes = ('passed', 'failed', 'error', 'skipped')
  record = {
    'commit': git('rev-parse', 'HEAD'),
    'modified': bool(git('status', '--porcelain', '--untracked-files=no')),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'selection': config.option.markexpr,
    **{name: len(terminalreporter.getreports(name)) for name in outcomes},
    'seconds': round(time.monotonic() - config.stash[STARTED]),
  }
  path = pathlib.Path(config.option.record)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(_record_text(record, _measured(terminalreporter.getreports('passed'))))


def _measured(reports) -> list:
  """What tests that passed have recorded as the property `measured`."""
  properties = [item for report in reports for item in report.user_properties]
  return sorted((value for name, value in properties if name == 'measured'), key=str)


def _record_text(record, measured) -> str:
  """A record as JSON, with each measurement in one line."""
  text = json.dumps(record, indent=1)
  if measured:
    lines = ',\n  '.join(map(json.dumps, measured))
    text = f'{text[:-2]},\n "measured": [\n  {lines}\n ]\n}}'
  return text + '\n'


@pytest.fixture
def handlers():
  """Restores the handlers of signals after a test."""
  kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in kept.items():
    signal.signal(number, handler)


@pytest.fixture
def on_one_device():
  """One device, and shared programs, for runs that a test starts in its process.

  Programs for one device compile in half the time.
  """
  with in_process.shared_programs(devices=1):
    yield


def packed_rows(
  batch: int, length: int, vocab_size: int, seed: int = 0, empty_rows: int = 0
) -> np.ndarray:
  """Random rows of [CLS] text [SEP] pieces and padding; the last `empty_rows` are empty.

  Returns: int32 [batch, length].
  """
  rng = np.random.default_rng(seed)
  rows = np.full((batch, length), PAD, np.int32)
  for row in rows[: batch - empty_rows]:
    used = 0
    while length - used > 6 and (used == 0 or rng.random() < 0.8):
      piece = rng.integers(4, length - used + 1)
      row[used : used + piece] = rng.integers(MASK + 1, vocab_size, piece)
      row[used], row[used + piece - 1] = CLS, SEP
      used += piece
  return rows


def tiny_electra(
  family: str = 'electra', *, dropout: float = 0.0, sharing: str = 'embeddings', **fields
) -> Electra:
  """A model of a few thousand parameters. `fields` are EncoderConfig's, for both towers."""
  common = {
    'family': family,
    'vocab_size': 60,
    'vocab_multiple': 64,
    'embedding_size': 16,
    'max_positions': 64,
    'local_window': 8,
    'layer_norm_eps': 1e-12 if family == 'electra' else 1e-5,
    'dropout': dropout,
    'attention_dropout': dropout,
  }
  common |= fields
  discriminator = EncoderConfig(
    **{'hidden_size': 32, 'num_layers': 2, 'num_heads': 2, 'intermediate_size': 64} | common
  )
  generator = EncoderConfig(
    **{'hidden_size': 16, 'num_layers': 2, 'num_heads': 1, 'intermediate_size': 32} | common
  )
  return Electra(discriminator if sharing == 'all' else generator, discriminator, sharing=sharing)


def random_params(model, seed: int = 0):
  """Parameters drawn by NumPy, without a compilation, large enough that each one matters."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    name = path[-1].key
    noise = rng.standard_normal(shape.shape).astype(np.float32)
    if name == 'scale':
      return 1 + 0.2 * noise
    if name == 'bias':
      return 0.2 * noise
    return noise * shape.shape[-1 if name in ('word', 'position', 'type') else -2] ** -0.5

  shapes = nn.unbox(jax.eval_shape(lambda: pretrain_step.init_params(model, 0, 8)))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def micro_config(*fields):
  """The ConfigDict of tests/configs/micro.py; `fields` are assignments such as 'sharing=none'."""
  argv = ['main', f'--config={MICRO}', *(f'--config.{field}' for field in fields)]
  return main.parse_flags(argv).config


def optimizer_settings(schedule, generator_schedule=None, layer_rates=None, **fields):
  """Settings of an optimizer; `fields` are those of config.optimizer, as published by default."""
  rates = {'learning_rate': schedule}
  if generator_schedule is not None:
    rates['generator_learning_rate'] = generator_schedule
  config = OptimizerConfig(**fields)
  return optimizers.OptimizerSettings(rates, config, layer_rates=layer_rates)


def adamw(schedule, **fields):
  """The published optimizer."""
  return optimizers.adamw(optimizer_settings(schedule, **fields))


def compiled_step(
  family: str,
  devices: int,
  micro_batches: int,
  fsdp: int = 1,
  tensor: int = 1,
  optimizer: str = 'data',
  **fields,
):
  """The train step with dropout, compiled once per number of devices, for STEP_ROWS rows.

  `fields` are EncoderConfig's, for both towers.
  """
  return _compiled_step(family, devices, micro_batches, fsdp, tensor, optimizer, **fields)


@functools.cache
def _compiled_step(family, devices, micro_batches, fsdp, tensor, optimizer, **fields):
  model = tiny_electra(family, dropout=0.1, vocab_size=STEP_VOCAB, num_heads=2, **fields)
  sizes = {'mesh.fsdp': fsdp, 'mesh.tensor': tensor, 'sharding.optimizer': optimizer}
  config = PretrainingConfig().replace(
    sizes | {'sharding.smallest': 0}
  )  # so that each tensor that divides is split
  layout = partitioning.make_layout(config, jax.devices()[:devices])
  # With an epsilon of 1e-6 Adam's first updates are signs, and the sign of a gradient that consists
  # of rounding errors is random.
  adam = adamw(lambda step: 1e-2, eps=1e-2)
  shapes, shardings = pretrain_step.state_shardings(model, adam, STEP_LENGTH, layout)
  moments = partitioning.moment_shardings(shapes.params, shardings.params, layout)
  train_step = pretrain_step.make_train_step(
    pretrain_step.Computation(model, OBJECTIVE, Settings(max_predictions=5), seed=3),
    adam,
    UpdateOptions(micro_batches, layout=layout, moments=moments),
  )
  batch = {'token_ids': jax.ShapeDtypeStruct((STEP_ROWS, STEP_LENGTH), np.int32)}
  compiled = (
    pretrain_step.jit_train_step(train_step, shardings, layout).lower(shapes, batch).compile()
  )
  return types.SimpleNamespace(
    compiled=compiled,
    model=model,
    optimizer=adam,
    shapes=shapes,
    shardings=shardings,
    moments=moments,
  )


@functools.cache
def train_steps(
  family: str,
  devices: int,
  micro_batches: int,
  steps: int = 3,
  fsdp: int = 1,
  tensor: int = 1,
  optimizer: str = 'data',
  **fields,
):
  """Some steps of compiled_step: the states before and after, and the sums of each, in NumPy."""
  made = compiled_step(family, devices, micro_batches, fsdp, tensor, optimizer, **fields)
  # In one program: without jit, JAX compiles one for each shape of a parameter.
  fresh = jax.jit(lambda params: pretrain_step.fresh_state(made.optimizer, params))
  before = jax.tree.map(np.asarray, fresh(random_params(made.model)))
  state = jax.device_put(before, made.shardings)
  every = []
  for i in range(steps):
    state, sums = made.compiled(
      state, {'token_ids': packed_rows(STEP_ROWS, STEP_LENGTH, STEP_VOCAB, seed=i, empty_rows=1)}
    )
    every.append(jax.device_get(sums))
  return before, jax.device_get(state), every


def same_training(ours, theirs):
  """Compares two results of train_steps: counts are equal, other values to float32 rounding."""
  (before, state, every), (_, expected, expected_every) = ours, theirs
  for sums, expected_sums in zip(every, expected_every, strict=True):
    assert sums.keys() == expected_sums.keys()
    for name, value in sums.items():
      if name == 'scores':  # rounding may carry a logit over the edge of its bin, and no further
        assert value.sum() == expected_sums[name].sum()
        assert np.abs(np.cumsum(value.astype(int) - expected_sums[name], -1)).max() <= 1
      elif value.dtype == np.int32:
        assert value == expected_sums[name], name
      else:
        np.testing.assert_allclose(value, expected_sums[name], rtol=1e-5, err_msg=name)
  assert state.step == expected.step == len(every) and state.skipped == expected.skipped == 0
  moved = 0.0
  for (path, value), old, want in zip(
    jax.tree_util.tree_leaves_with_path(state.params),
    jax.tree.leaves(before.params),
    jax.tree.leaves(expected.params),
    strict=True,
  ):
    moved = max(moved, np.abs(want - old).max())
    np.testing.assert_allclose(
      value, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=jax.tree_util.keystr(path)
    )
  assert moved > 1e-3  # there was an update to compare


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
  """A headless Chromium; tests of pages are skipped where there is none."""
  program = headless.find_browser()
  if program is None:
    pytest.skip('no Chromium on this machine')
  running = headless.Browser(program, tmp_path_factory.mktemp('browser'))
  yield running
  running.close()
