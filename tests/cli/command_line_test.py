"""The command line: its table of modes, help, plugins, and what a training run prints."""

import importlib
import inspect
import re
import shutil
import typing

import micro_run
import pytest

from electra_jax import main, registry
from electra_jax.cli import help_page
from electra_jax.cli.command_line import parse_flags
from electra_jax.cli.modes import COMMON_FLAGS, FLAGS, MODES, PROCESS_FLAGS, modes_with
from electra_jax.pretrain import train as training
from electra_jax.training import plugins
from electra_jax.training.progress import read_metrics
from electra_jax.training.trackers.tracker import Tracker

#### The table of modes ####


@pytest.mark.parametrize('mode', MODES.values(), ids=lambda mode: mode.name)
def test_a_mode_names_a_function_that_takes_its_flags(mode):
  module, _, name = mode.function.partition(':')
  parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
  given = {mode.parameters.get(flag, flag) for flag in mode.flags}
  given |= {'workdir'} if mode.workdir else set()
  given |= {'config'} if mode.config else set()
  given |= {mode.parameters['arguments']} if 'arguments' in mode.parameters else set()
  parameters = dict(parameters)
  for parameter in list(parameters.values()):
    if parameter.kind is parameter.VAR_KEYWORD:  # its annotation lists names, all of them optional
      del parameters[parameter.name]
      (names,) = typing.get_args(parameter.annotation)
      optional = inspect.Parameter('optional', parameter.KEYWORD_ONLY, default=None)
      parameters |= dict.fromkeys(names.__annotations__, optional)
  assert given <= set(parameters)
  required = {n for n, p in parameters.items() if p.default is p.empty}
  assert required <= given
  assert set(mode.parameters) <= {*mode.flags, 'arguments'}


@pytest.mark.parametrize('mode', MODES.values(), ids=lambda mode: mode.name)
def test_flags_of_a_mode_are_declared(mode):
  pairs = {flag for pair in (*mode.together, *mode.exclusive) for flag in pair}
  assert set(mode.all_flags) <= set(FLAGS) and pairs <= set(mode.flags)
  assert set(mode.required) <= {*mode.flags, 'workdir'}
  assert all(FLAGS[name].example for name in mode.required)


@pytest.mark.parametrize('flag', FLAGS.values(), ids=lambda flag: flag.name)
def test_a_flag_applies_to_a_mode_and_has_help(flag):
  assert modes_with(flag.name)
  assert flag.help.endswith('.') and flag.help == ' '.join(flag.help.split())
  value = parse_flags(['main'])[flag.name].value
  assert value == flag.default


def test_help_lists_modes_and_flags(capsys):
  assert main.main(['main', '--help']) == 0
  page = capsys.readouterr().out
  assert all(f'  --{flag}\n' in page for flag in ('config', *FLAGS))
  assert all(f'  {name:<10} {mode.help}' in page for name, mode in MODES.items())
  assert '--config.optimizer.learning_rate' in page


@pytest.mark.parametrize('mode', MODES.values(), ids=lambda mode: mode.name)
def test_help_of_a_mode_lists_its_flags_only(mode):
  page = help_page.help_of(mode)
  listed = {name for name in re.findall(r'^  --(\w+)$', page, re.MULTILINE) if name in FLAGS}
  expected = {*mode.all_flags, *COMMON_FLAGS} | ({'workdir'} if mode.workdir else set())
  assert listed == expected
  assert mode.help in page and f'electra-jax {mode.name}' in page
  assert ('  --config.' in page) == (mode.config is not None)
  assert max(map(len, page.splitlines())) <= 120


def test_help_of_a_mode_is_printed_in_both_spellings(capsys):
  for argv in (['plan', '--help'], ['--mode=plan', '--help']):
    assert main.main(['main', *argv]) == 0
    page = capsys.readouterr().out
    assert '--topology' in page and '--pairs' not in page


def test_the_flags_of_several_processes_apply_to_modes_that_join_them():
  joined = {name for name, mode in MODES.items() if mode.joins}
  assert joined == {'train', 'evaluate', 'finetune', 'timeline'}
  assert all(set(modes_with(flag)) == joined for flag in PROCESS_FLAGS)


#### Plugins ####


@pytest.fixture
def plugin(tmp_path, monkeypatch):
  """A file of user code that registers an objective, and options of it."""
  monkeypatch.setattr(registry.OBJECTIVES, '_entries', dict(registry.OBJECTIVES._entries))
  path = tmp_path / 'mine.py'
  path.write_text(
    """
import dataclasses
from electra_jax import registry
from electra_jax.config import default_config, with_arguments
from electra_jax.config.declarations import Config, field

@dataclasses.dataclass(frozen=True)
class Options(Config):
  gamma: float = field(2.0, 'An exponent.', at_least=0)

registry.OBJECTIVES.register('mine', 'nowhere:OBJECTIVE', help='Mine.', options=Options)

def get_config(arguments=''):
  c = default_config()
  c.name = 'mine'
  c.objective.name = 'mine'
  c.objective.options.gamma = 1.0
  return with_arguments(c, arguments)
"""
  )
  return path


def parsed(*argv):
  return parse_flags(['main', *map(str, argv)]).config


def test_a_config_file_registers_names_that_its_fields_take(plugin, monkeypatch, capsys):
  given = []
  monkeypatch.setattr(
    training, 'train', lambda config, workdir, take_over: given.append(config) or 0
  )
  for _ in range(2):  # a process may parse twice
    argv = ['main', f'--config={plugin}', '--config.objective.options.gamma=3.0']
    assert main.main(argv) == 0
  assert given[0].objective.options.gamma == 3.0
  assert registry.OBJECTIVES.entry('mine').file == str(plugin)
  assert registry.plugin_files() == (str(plugin),)
  argv = ['main', f'--config={plugin}', '--config.objective.options.gamma=-1.0']
  assert main.main(argv) == 1
  message = capsys.readouterr().err
  assert 'config.objective.options.gamma is -1.0; expected at least 0.' in message


def test_plugins_are_loaded_before_the_config_file(plugin, tmp_path):
  other = tmp_path / 'run.py'
  other.write_text(
    'from electra_jax import registry\n'
    'from electra_jax.config import default_config\n\n'
    'def get_config():\n'
    '  c = default_config()\n'
    '  c.objective.name = registry.OBJECTIVES.entry("mine").name\n'
    '  return c\n'
  )
  # The flag may follow the config, whose file is given as a word of its own.
  config = parsed('--config', other, '--config.steps=3', f'--plugins={plugin}')
  assert (config.objective.name, config.steps) == ('mine', 3)


def test_a_plugin_that_is_also_the_config_file_is_accepted(plugin):
  assert parsed(f'--plugins={plugin}', f'--config={plugin}').name == 'mine'


def test_a_name_that_is_in_use_is_refused(plugin, tmp_path, capsys):
  source = plugin.read_text()
  (tmp_path / 'again.py').write_text(source)
  argv = [f'--plugins={plugin},{tmp_path / "again.py"}', '--config=configs/tiny.py']
  assert main.main(['main', *argv]) == 1
  assert f"the objective 'mine' of {tmp_path / 'again.py'}" in capsys.readouterr().err
  (tmp_path / 'electra.py').write_text(source.replace("'mine'", "'electra'"))
  assert main.main(['main', f'--plugins={tmp_path / "electra.py"}']) == 1
  assert 'is already registered by electra_jax' in capsys.readouterr().err


def test_a_plugin_that_fails_is_reported(tmp_path, capsys):
  (tmp_path / 'broken.py').write_text('1 / 0\n')
  assert main.main(['main', f'--plugins={tmp_path / "broken.py"}']) == 1
  message = capsys.readouterr().err
  assert 'broken.py cannot be loaded (ZeroDivisionError: division by zero).' in message


def test_a_run_records_what_user_code_registered(plugin, tmp_path):
  registry.load_plugins([plugin])
  workdir = tmp_path / 'run'
  workdir.mkdir()
  plugins.record(workdir, {'objective': ['mine'], 'optimizer': ['adamw'], 'tokenizer': ['x.txt']})
  plugins.require_recorded(workdir)
  registry.OBJECTIVES._entries.pop('mine')
  with pytest.raises(registry.UserError, match=f'set --plugins={plugin} '):
    plugins.require_recorded(workdir)
  # The folder of a run that uses no user code has no such file.
  plugins.record(workdir, {'objective': ['electra']})
  assert not list(workdir.iterdir())
  plugins.require_recorded(workdir)


#### A training run ####


@pytest.fixture(scope='module')
def screen():
  """The output of the finished run."""
  return micro_run.finished()[1]


def labeled(screen, label):
  """The lines with a label, joined."""
  return ' '.join(line[15:] for line in screen.splitlines() if line.startswith(f'  {label:<12} '))


def test_the_first_screen_describes_the_run(screen):
  assert f'micro  ({micro_run.finished()[0]})' in screen
  assert labeled(screen, 'devices').startswith('1 x cpu, mesh data 1 x fsdp 1 x tensor 1')
  assert '112 documents' in labeled(screen, 'training') and '365 rows of 32' in labeled(
    screen, 'training'
  )
  assert '8 documents' in labeled(screen, 'held out')
  assert (
    labeled(screen, 'this run') == '30 steps of 8 x 32 = 7.68 k tokens, 0.7 epochs of the corpus'
  )
  assert re.search(r'unigram entropy \d\.\d\d nats', labeled(screen, 'baseline'))
  parameters = labeled(screen, 'parameters')
  assert all(
    part in parameters
    for part in ('embeddings', 'generator', 'generator head', 'discriminator', 'discriminator head')
  )
  assert re.search(r'[\d.]+ MFLOP; at least [\d.e-]+ s at', labeled(screen, 'one step'))
  assert re.search(r'[\d.]+ GB per device, [\d.]+ GB free', labeled(screen, 'memory'))
  assert 'float32 products' in labeled(screen, 'compiled')
  assert labeled(screen, 'begins') == 'from scratch, seed 0'


def test_parameters_are_counted_by_part(screen):
  arrays = micro_run.checkpoint(micro_run.finished()[0], 30)
  total = sum(array.size for name, array in arrays.items() if name.startswith('params/'))
  assert labeled(screen, 'parameters').startswith(f'{total / 1e3:.3g} k: ')


def test_metrics_are_logged_at_their_intervals(screen):
  lines = read_metrics(micro_run.finished()[0])
  assert [line['step'] for line in lines if line['kind'] == 'train'] == [1, *range(3, 31, 3)]
  assert [line['step'] for line in lines if line['kind'] == 'heldout'] == [10, 20, 30]
  for line in lines:
    for name in (
      'generator_loss',
      'generator_accuracy',
      'sampled_accuracy',
      'discriminator_loss',
      'constant_loss',
      'auc',
      'average_precision',
      'precision',
      'recall',
      'replaced_rate',
      'tokens',
      'seconds',
    ):
      assert line[name] is not None and line[name] >= 0, name
    if line['kind'] == 'train':
      assert (
        line['tokens_per_second'] > 0
        and line['tokens'] == line['step'] * 8 * 32
        and 0 <= line['input_wait'] < 1
      )
      for metric in ('gradient_norm', 'parameter_norm', 'update_norm'):
        for tower in ('embeddings', 'generator', 'discriminator', 'all'):
          assert line[f'{metric}/{tower}'] > 0 or (metric, line['step']) == (
            'update_norm',
            1,
          )  # the learning rate of the first step is 0
      assert f'{line["generator_loss"]:.3f}' in screen
  assert [line['seconds'] for line in lines] == sorted(line['seconds'] for line in lines)
  assert screen.count('held out') == 4  # the corpus, and three evaluations


def test_the_loss_decreases(screen):
  lines = [line for line in read_metrics(micro_run.finished()[0]) if line['kind'] == 'heldout']
  assert lines[-1]['total_loss'] < lines[0]['total_loss']


def test_the_end_names_the_files_and_the_next_commands(screen):
  workdir = micro_run.finished()[0]
  assert f'in {workdir / "checkpoints"}' in labeled(screen, 'checkpoints') and '25, 30' in labeled(
    screen, 'checkpoints'
  )
  assert f'python -m electra_jax.main --mode=evaluate --workdir={workdir}' in labeled(
    screen, 'next'
  )
  for name in ('config.json', 'resolved.json', 'metrics.jsonl', 'tokenizer/tokenizer.model'):
    assert (workdir / name).is_file()
  assert list((workdir / 'tensorboard').glob('events*'))


def test_a_finished_run_is_not_repeated(tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(micro_run.finished()[0], workdir)
  before = (workdir / 'metrics.jsonl').read_bytes()
  out, err = micro_run.run(*micro_run.arguments(workdir, '--config.keep=100'))
  assert 'all 30 steps were made before' in labeled(out, 'done') and not err
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_a_resumed_run_continues_that_of_its_tracker(tmp_path, monkeypatch):
  opened, lines, outcomes = [], [], []

  class Recorder(Tracker):
    def __init__(self, run):
      self.id = run.id
      opened.append(run)

    def add(self, line):
      lines.append((line.kind, line.step))

    def close(self, outcome):
      outcomes.append(outcome)

  monkeypatch.setattr(registry.TRACKERS, '_entries', dict(registry.TRACKERS._entries))
  registry.TRACKERS.register('recorder', Recorder)
  workdir = tmp_path / 'run'
  shutil.copytree(micro_run.finished()[0], workdir)
  for step in micro_run.checkpoint_steps(workdir):
    if step > 20:
      shutil.rmtree(workdir / 'checkpoints' / str(step))
  (workdir / 'trackers.json').write_text('{"recorder": "id 7"}')
  micro_run.run(*micro_run.arguments(workdir, '--config.keep=100', '--config.trackers=recorder'))
  (run,) = opened
  assert (run.id, run.step, run.tracking.name, outcomes) == ('id 7', 20, 'micro', ['finished'])
  logged = [(line['kind'], line['step']) for line in micro_run.figures(workdir)]
  assert lines == [(kind, step) for kind, step in logged if step > 20]


@pytest.mark.long
def test_tf_data_and_a_profile_do_not_change_the_run(tmp_path):
  pytest.importorskip('tensorflow')
  workdir = tmp_path / 'tf'
  out, err = micro_run.run(
    *micro_run.arguments(workdir, '--config.data.reader=tf', '--config.profile_steps=(4,5)')
  )
  assert f'profile of steps 4 to 5 in {workdir / "profile"}' in out and not err
  assert list((workdir / 'profile').rglob('*.xplane.pb'))
  assert micro_run.figures(workdir) == micro_run.figures(micro_run.finished()[0])
  assert (
    micro_run.differing(
      micro_run.checkpoint(workdir, 30), micro_run.checkpoint(micro_run.finished()[0], 30)
    )
    == []
  )


@pytest.mark.parametrize(
  'argv, workdir',
  [
    ([], 'runs/micro'),
    (['--config.name=mine'], 'runs/mine'),
    (['--workdir=elsewhere'], 'elsewhere'),
    (['--workdir', 'elsewhere'], 'elsewhere'),
  ],
)
def test_the_default_workdir_is_named_after_the_config(argv, workdir, monkeypatch):
  monkeypatch.chdir(micro_run.ROOT)
  called = []
  monkeypatch.setattr(
    training, 'train', lambda config, workdir, take_over: called.append(workdir) or 0
  )
  assert main.main(['main', f'--config={micro_run.CONFIG}', *argv]) == 0
  assert called == [workdir]


def test_the_exit_status_is_that_of_training(monkeypatch):
  monkeypatch.chdir(micro_run.ROOT)
  monkeypatch.setattr(training, 'train', lambda config, workdir, take_over: 42)
  assert main.main(['main', f'--config={micro_run.CONFIG}']) == 42


def test_an_interrupt_leaves_no_traceback(monkeypatch, capsys):
  def interrupted(config, workdir, take_over):
    raise KeyboardInterrupt

  monkeypatch.chdir(micro_run.ROOT)
  monkeypatch.setattr(training, 'train', interrupted)
  assert main.main(['main', f'--config={micro_run.CONFIG}']) == main.INTERRUPTED == 130
  assert capsys.readouterr().err.startswith('electra_jax: interrupted')
