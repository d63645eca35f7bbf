"""The examples of docs/extending.md, as written: user code works without a change of the package.

Each file of tests/extending is a config file that registers something. It prepares a corpus with
two worker processes, trains inside a sweep, resumes, evaluates, exports and loads. Where its code
is not loaded, opening the run fails with a sentence that names --plugins.
"""

import importlib.util
import json
import pathlib
import shutil
import sys

import micro_run
import numpy as np
import pytest

import electra_jax
from electra_jax import main, registry
from electra_jax.config import FinetuningConfig, config_kind
from electra_jax.data.prepare import workers
from electra_jax.errors import UserError
from electra_jax.sweep import runner

FILES = sorted((pathlib.Path(__file__).parent / 'extending').glob('*.py'))
TEXTS = ['ba ko ti.', 'The Old man.']
LAST_STEP = 6
QUICK = ('objective', 'task')  # in make test; the others in make test-long


def is_task(path):
  """Whether an example is a fine-tuning config."""
  return 'finetune.config' in path.read_text()


def example(wanted):
  """Marks a test that runs for each example that is a task, or that is not one."""
  cases = [
    pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.long)
    for path in FILES
    if is_task(path) == wanted
  ]
  return pytest.mark.parametrize('path', cases)


def forget_user_code():
  """Removes what user code registered, as in a new process."""
  for specs in registry.LISTS.values():
    specs._entries = {name: entry for name, entry in specs._entries.items() if not entry.file}
  for name in [name for name in sys.modules if name.startswith('electra_jax_plugin_')]:
    del sys.modules[name]


@pytest.fixture(autouse=True)
def here(monkeypatch, on_one_device):
  # Worker processes are used however little text there is.
  monkeypatch.setattr(workers, 'SMALL_BYTES', 0)
  monkeypatch.setenv('PYTHONPATH', str(micro_run.ROOT))
  yield
  forget_user_code()


def config_of(path):
  """The config of an example; what it registers is forgotten."""
  spec = importlib.util.spec_from_file_location('example', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  forget_user_code()
  return module.get_config()


def run(mode, *flags, status=0):
  assert main.main(['electra-jax', mode, *map(str, flags)]) == status


def fields_of_micro_run(path):
  """Fields that keep the run of an example short and its files in the session's folder."""
  fields = {
    'data.cache': str(micro_run.shared() / 'cache'),
    'data.reader': 'numpy',
    'compilation_cache': str(micro_run.programs()),
    'steps': LAST_STEP,
    'save_every': 2,
    'eval_every': 2,
  }
  if config_of(path).data.source == 'sample':
    fields['data.source'] = str(micro_run.corpus())
  return fields


def write_sweep(folder, base, fields, tasks=()):
  """Writes the config file of a sweep of one run."""
  source = f"""
from electra_jax.sweep.config import default_config

def get_config():
  c = default_config()
  c.base = {str(base)!r}
  c.fields = {tuple(fields.items())!r}
  c.runs = (('example', {{}}),)
  c.finetune = {tuple(tasks)!r}
  return c
"""
  (folder / 'sweep.py').write_text(source)
  return f'--config={folder / "sweep.py"}'


@example(False)
def test_a_pretraining_example_works_in_all_modes(path, tmp_path, monkeypatch, capsys):
  fields = fields_of_micro_run(path)
  store, sweep = tmp_path / 'store', tmp_path / 'sweep'

  given = [f'--config.{name}={value}' for name, value in fields.items() if name.startswith('data.')]
  # user_format_test.py shows in make test that workers load user code.
  processes = 1 if path.stem in QUICK else 2
  given.append(f'--config.data.workers={processes}')
  run('prepare', f'--config={path}', *given, f'--output={store}')
  forget_user_code()

  train = runner.train

  def train_and_keep_checkpoints(config, place, notice, take_over):
    return train(config.replace({'keep': 9}), place, notice, take_over)

  monkeypatch.setattr(runner, 'train', train_and_keep_checkpoints)
  config = write_sweep(tmp_path, path, fields | {'data.store': str(store)})
  run('sweep', config, f'--workdir={sweep}')
  (workdir,) = sweep.glob('runs/*')
  recorded = json.loads((workdir / 'plugins.json').read_text())['plugins']
  assert {entry['file'] for entry in recorded} == {str(path)}
  finished = micro_run.checkpoint(workdir, LAST_STEP)
  forget_user_code()

  shutil.rmtree(workdir / 'checkpoints' / str(LAST_STEP))
  (sweep / 'results.jsonl').unlink()
  capsys.readouterr()
  run('sweep', config, f'--workdir={sweep}')
  assert f'step {LAST_STEP - 2}, the last checkpoint' in capsys.readouterr().out
  assert not micro_run.differing(finished, micro_run.checkpoint(workdir, LAST_STEP))
  forget_user_code()

  check_needs_plugin(workdir, path, 'evaluate', capsys)
  run('evaluate', f'--workdir={workdir}', f'--plugins={path}')
  run('export', f'--workdir={workdir}', f'--output={tmp_path / "exported"}')
  assert list((tmp_path / 'exported').rglob('model.safetensors'))
  forget_user_code()
  reading = electra_jax.load(workdir, plugins=[path])(TEXTS)
  assert len(reading.tokens) == len(TEXTS) and np.isfinite(reading.hidden_states).all()


def check_needs_plugin(workdir, path, mode, capsys):
  """Checks that a run is not opened where the code of an example is not loaded."""
  with pytest.raises(UserError, match=f'set --plugins={path} .in Python, load'):
    electra_jax.load(workdir)
  capsys.readouterr()
  run(mode, f'--workdir={workdir}', *(['--input=-'] if mode == 'predict' else []), status=1)
  message = capsys.readouterr().err
  assert f'--plugins={path}' in message and message.count('\n') == 1


@example(True)
def test_a_task_works_in_all_modes(path, tmp_path, capsys):
  pretrained, workdir = micro_run.finished()[0], tmp_path / 'run'
  flags = [
    f'--config={path}',
    f'--workdir={workdir}',
    f'--config.init={pretrained}',
    '--config.num_trials=1',
    '--config.epochs=4.0',
    '--config.eval_every=2.0',
    f'--config.compilation_cache={micro_run.programs()}',
  ]
  run('finetune', *flags)
  (result,) = workdir.glob('*/trial-1/result.json')
  before = result.read_text()
  forget_user_code()

  result.unlink()
  run('finetune', *flags)
  metrics = [json.loads(text)['figures'] for text in (before, result.read_text())]
  assert metrics[0] == metrics[1]
  forget_user_code()

  check_needs_plugin(workdir, path, 'predict', capsys)
  c = config_of(path)
  output = tmp_path / 'predictions.jsonl'
  reopened = [f'--workdir={workdir}', f'--plugins={path}']
  run('predict', *reopened, f'--input={c.data.dev}', f'--output={output}')
  assert len(output.read_text().splitlines()) > 1
  run('export', *reopened, f'--output={tmp_path / "exported"}')
  assert list((tmp_path / 'exported').rglob('model.safetensors'))
  forget_user_code()
  assert electra_jax.load(workdir, plugins=[path]).task.name == c.task


@pytest.mark.long
@example(True)
def test_a_task_works_inside_a_sweep(path, tmp_path, monkeypatch):
  train = runner.train

  def trained_before(config, place, notice, take_over):
    """Training that finds the finished run."""
    shutil.copytree(micro_run.finished()[0], place)
    file = pathlib.Path(place, 'config.json')
    file.write_text(file.read_text().replace('"micro"', json.dumps(config.name)))
    return train(config, place, notice, take_over)

  monkeypatch.setattr(runner, 'train', trained_before)
  argv = micro_run.arguments('unused')
  given = [word.removeprefix('--config.').split('=', 1) for word in argv if '--config.' in word]
  tasks = [('task', str(path), {'num_trials': 1, 'compilation_cache': str(micro_run.programs())})]
  config = write_sweep(tmp_path, micro_run.CONFIG, dict(given), tasks)
  run('sweep', config, f'--workdir={tmp_path / "sweep"}', '--config.rows=16')
  (line,) = (tmp_path / 'sweep' / 'results.jsonl').read_text().splitlines()
  assert len(json.loads(line)['tasks']['task']['values']) == 1


def test_every_example_is_a_config_file():
  kinds = {path.stem: config_kind(config_of(path)) for path in FILES}
  assert kinds and all(
    (kind is FinetuningConfig) == is_task(path)
    for path, kind in zip(FILES, kinds.values(), strict=True)
  )
