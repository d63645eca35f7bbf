"""What a person sees: the first screen, the lines of figures, the end; and where things are."""

import re
import shutil

import micro_run
import pytest

from electra_jax import main
from electra_jax.pretrain import train as training
from electra_jax.training.progress import read_metrics


@pytest.fixture(scope='module')
def screen():
  """Lines of the finished run's output, under their labels where they have one."""
  return micro_run.finished()[1]


def labelled(screen, label):
  return ' '.join(line[15:] for line in screen.splitlines() if line.startswith(f'  {label:<12} '))


def test_the_first_screen_tells_what_will_be_done(screen):
  assert f'micro  ({micro_run.finished()[0]})' in screen
  assert labelled(screen, 'devices').startswith('1 x cpu, mesh data 1 x fsdp 1 x tensor 1')
  assert '112 documents' in labelled(screen, 'training') and '365 rows of 32' in labelled(
    screen, 'training'
  )
  assert '8 documents' in labelled(screen, 'held out')
  assert (
    labelled(screen, 'this run') == '30 steps of 8 x 32 = 7.68 k tokens, 0.7 epochs of the corpus'
  )
  assert re.search(r'unigram entropy \d\.\d\d nats', labelled(screen, 'baseline'))
  parameters = labelled(screen, 'parameters')
  assert all(
    part in parameters
    for part in ('embeddings', 'generator', 'generator head', 'discriminator', 'discriminator head')
  )
  assert re.search(r'[\d.]+ MFLOP; at least [\d.e-]+ s at', labelled(screen, 'one step'))
  assert re.search(r'[\d.]+ GB per device, [\d.]+ GB free', labelled(screen, 'memory'))
  assert 'float32 products' in labelled(screen, 'compiled')
  assert labelled(screen, 'begins') == 'from scratch, seed 0'


def test_parameters_are_counted_by_part(screen):
  arrays = micro_run.checkpoint(micro_run.finished()[0], 30)
  total = sum(array.size for name, array in arrays.items() if name.startswith('params/'))
  assert labelled(screen, 'parameters').startswith(f'{total / 1e3:.3g} k: ')


def test_lines_of_figures_come_when_they_should(screen):
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
      for figure in ('gradient_norm', 'parameter_norm', 'update_norm'):
        for tower in ('embeddings', 'generator', 'discriminator', 'all'):
          assert line[f'{figure}/{tower}'] > 0 or (figure, line['step']) == (
            'update_norm',
            1,
          )  # the first step's rate is 0
      assert f'{line["generator_loss"]:.3f}' in screen
  assert [line['seconds'] for line in lines] == sorted(line['seconds'] for line in lines)
  assert screen.count('held out') == 4  # the corpus's line, and three evaluations


def test_learning_shows(screen):
  lines = [line for line in read_metrics(micro_run.finished()[0]) if line['kind'] == 'heldout']
  assert lines[-1]['total_loss'] < lines[0]['total_loss']


def test_the_end_says_where_things_are_and_what_comes_next(screen):
  workdir = micro_run.finished()[0]
  assert f'in {workdir / "checkpoints"}' in labelled(
    screen, 'checkpoints'
  ) and '25, 30' in labelled(screen, 'checkpoints')
  assert f'python -m electra_jax.main --mode=evaluate --workdir={workdir}' in labelled(
    screen, 'next'
  )
  for name in ('config.json', 'resolved.json', 'metrics.jsonl', 'tokenizer/tokenizer.model'):
    assert (workdir / name).is_file()
  assert list((workdir / 'tensorboard').glob('events*'))


def test_a_finished_run_is_not_run_again(tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(micro_run.finished()[0], workdir)
  before = (workdir / 'metrics.jsonl').read_bytes()
  out, err = micro_run.run(*micro_run.arguments(workdir, '--config.keep=100'))
  assert 'all 30 steps were made before' in labelled(out, 'done') and not err
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_tf_data_gives_the_same_run_and_a_profile_changes_nothing(tmp_path):
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
def test_without_a_workdir_it_is_named_after_the_config(argv, workdir, monkeypatch):
  monkeypatch.chdir(micro_run.ROOT)
  called = []
  monkeypatch.setattr(training, 'train', lambda config, workdir: called.append(workdir) or 0)
  assert main.main(['main', f'--config={micro_run.CONFIG}', *argv]) == 0
  assert called == [workdir]


def test_the_exit_status_is_training_s(monkeypatch):
  monkeypatch.chdir(micro_run.ROOT)
  monkeypatch.setattr(training, 'train', lambda config, workdir: 42)
  assert main.main(['main', f'--config={micro_run.CONFIG}']) == 42


def test_an_interrupt_leaves_no_traceback(monkeypatch, capsys):
  def interrupted(config, workdir):
    raise KeyboardInterrupt

  monkeypatch.chdir(micro_run.ROOT)
  monkeypatch.setattr(training, 'train', interrupted)
  assert main.main(['main', f'--config={micro_run.CONFIG}']) == main.INTERRUPTED == 130
  assert capsys.readouterr().err.startswith('electra_jax: interrupted')


def test_help_lists_the_flags(capsys):
  assert main.main(['main', '--help']) == 0
  out = capsys.readouterr().out
  assert all(f'--{flag}' in out for flag in ('config', 'mode', 'workdir', 'step', 'rows'))
