"""--mode=prepare prints its report; a run from its store equals the run from the text."""

import re
import shutil

import made_run
import micro_run
import pytest

from electra_jax import main
from electra_jax.config import checked_pretraining
from electra_jax.data.prepare.preparation import open_prepared
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.pretrain import run_start, trained_run


def prepare(capsys, *argv):
  """Runs --mode=prepare in this process and returns what it printed."""
  here = [
    argument
    for argument in micro_run.arguments('none')
    if 'workdir' not in argument and 'data.cache' not in argument
  ]
  capsys.readouterr()
  assert main.main(['main', '--mode=prepare', *here, *argv]) == 0
  return capsys.readouterr().out


@pytest.fixture
def from_the_root(monkeypatch):
  monkeypatch.chdir(micro_run.ROOT)


def test_a_run_from_the_store_is_the_run_from_the_text(from_the_root, tmp_path, capsys):
  rows = tmp_path / 'rows'
  screen = prepare(capsys, f'--output={rows}', f'--config.data.cache={tmp_path / "cache"}')
  facts = open_prepared(rows).facts
  train, heldout = (facts[split]['text_tokens'] for split in ('train', 'heldout'))
  assert re.search(rf'tokens of text +\| +{train:,} \| +{heldout:,} ', screen)
  assert f'--config.data.store={rows}' in screen and str(rows / 'report.md') in screen
  assert facts['train']['documents'] + facts['heldout']['documents'] == 120
  # Neither the text nor the cache exists anymore: the store is sufficient.
  shutil.rmtree(tmp_path / 'cache')
  argv = [
    argument
    for argument in micro_run.arguments(tmp_path / 'run', '--config.keep=100')
    if 'data.source' not in argument
  ]
  micro_run.run(*argv, f'--config.data.store={rows}', '--config.data.source=nowhere')
  expected = micro_run.finished()[0]
  assert not micro_run.differing(
    micro_run.checkpoint(tmp_path / 'run', 30), micro_run.checkpoint(expected, 30)
  )
  # The store may be moved; its content is checked.
  shutil.move(rows, tmp_path / 'moved')
  inspect = ('--mode=inspect', f'--workdir={tmp_path / "run"}', '--rows=1')
  micro_run.run(*inspect, f'--store={tmp_path / "moved"}')
  prepare(
    capsys,
    f'--output={tmp_path / "other"}',
    f'--config.data.cache={tmp_path}',
    '--config.data.heldout_fraction=0.3',
  )
  _, err = micro_run.run(*inspect, f'--store={tmp_path / "other"}', status=1)
  assert f"the corpus '{tmp_path / 'other'}' has changed" in err
  assert micro_run.figures(tmp_path / 'run') == micro_run.figures(expected)


def test_a_mixture_trains_evaluates_and_prints_the_epochs_of_each_source(from_the_root, tmp_path):
  documents = micro_run.corpus().read_text().split('\n\n')
  for name, part in (('a', documents[:90]), ('b', documents[90:])):
    (tmp_path / f'{name}.txt').write_text('\n\n'.join(part))
  argv = [
    argument for argument in micro_run.arguments(tmp_path / 'run') if 'data.source' not in argument
  ]
  screen, _ = micro_run.run(
    *argv,
    f'--config.data.source={tmp_path}/a.txt;weight=1, {tmp_path}/b.txt;weight=3',
    f'--config.data.cache={tmp_path}',
    '--config.steps=10',
  )
  prepared = open_prepared(
    next(path for path in (tmp_path / 'rows').iterdir() if not path.name.startswith('.'))
  )
  a, b = prepared.train.stores
  assert prepared.train.shares == (250, 750)
  first = f'{20 / a.rows:.1f} of {tmp_path}/a.txt'
  second = f'{60 / b.rows:.1f} of {tmp_path}/b.txt'
  assert f'epochs of each source: {first}, {second}' in screen
  lines = micro_run.figures(tmp_path / 'run')
  assert [line['step'] for line in lines if line['kind'] == 'heldout'] == [10]
  out, _ = micro_run.run('--mode=evaluate', f'--workdir={tmp_path / "run"}')
  assert 'held-out metric' in out


def test_a_store_that_does_not_fit_the_config_is_refused(from_the_root, tmp_path, capsys):
  rows = tmp_path / 'rows'
  prepare(
    capsys, f'--output={rows}', f'--config.data.cache={tmp_path}', '--config.sequence_length=16'
  )
  config = main.parse_flags(
    ['main', f'--config={micro_run.CONFIG}', f'--config.data.store={rows}']
  ).config
  config = checked_pretraining(config)
  with pytest.raises(UserError, match='has rows of 16 tokens and config.sequence_length is 32'):
    run_start.prepare_data(config)
  config = config.replace({'sequence_length': 16})
  assert run_start.prepare_data(config).train.length == 16


def test_another_store_replaces_that_of_every_phase(from_the_root, tmp_path):
  phases = ({'steps': 10, 'data.store': 'first'}, {'steps': 20, 'data.store': 'second'})
  config = main.parse_flags(
    [
      'main',
      f'--config={micro_run.CONFIG}',
      '--config.data.store=first',
      f'--config.phases={phases}',
    ]
  ).config
  tokenizer = load_tokenizer(made_run.wordpiece(tmp_path / 'vocabulary'))
  for step, kept in ((10, 'first'), (11, 'second')):
    workdir = tmp_path / str(step)
    made_run.make(workdir, config, tokenizer, step)
    assert trained_run.open_run(workdir).config.data.store == kept
    assert trained_run.open_run(workdir, store='elsewhere').config.data.store == 'elsewhere'


def test_a_run_whose_tokenizer_was_replaced_is_refused(from_the_root, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(micro_run.finished()[0], workdir)
  other = prepare(
    capsys,
    f'--output={tmp_path / "other"}',
    f'--config.data.cache={tmp_path}',
    '--config.data.vocab_size=200',
  )
  assert 'sentencepiece tokenizer of 200 tokens' in other
  shutil.rmtree(workdir / 'tokenizer')
  shutil.copytree(tmp_path / 'other' / 'tokenizer', workdir / 'tokenizer')
  capsys.readouterr()
  assert main.main(['main', '--mode=evaluate', f'--workdir={workdir}']) == 1
  sentence = capsys.readouterr().err
  assert sentence.count('\n') == 1 and 'the tokenizer has 200 tokens' in sentence


def test_inspect_shows_rows_of_a_run():
  inspect = ('--mode=inspect', f'--workdir={micro_run.finished()[0]}')
  screen, _ = micro_run.run(*inspect, '--rows=2')
  assert 'masked' in screen
  _, err = micro_run.run(*inspect, '--first=100000', status=1)
  assert err.count('\n') == 1
