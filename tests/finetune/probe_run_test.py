"""Probes from the command line, of a run and of a folder of transformers; the page of the docs."""

import json
import pathlib
import re
import shlex

import finetune_files
import micro_run
import numpy as np
import pytest
from foreign_html import foreign, shown

from electra_jax import probe
from electra_jax.cli.command_line import parse_flags
from electra_jax.config import checked_probing
from electra_jax.finetune import probe_run
from electra_jax.main import main

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = '--config=configs/probe/pos.py'


def commands():
  """The commands of docs/probes.md."""
  text = (ROOT / 'docs' / 'probes.md').read_text('utf-8')
  found = re.findall(r'^    python -m electra_jax\.main (--mode=probe .*)$', text, re.MULTILINE)
  return [shlex.split(one) for one in found]


def arguments(workdir, data, *more):
  return [
    '--mode=probe',
    CONFIG,
    f'--workdir={workdir}',
    f'--config.data.source={data}',
    f'--config.compilation_cache={micro_run.programs()}',
    *more,
  ]


@pytest.fixture(scope='module')
def probed(tmp_path_factory):
  """probe.json of the finished run, its folder, and what was printed."""
  folder = tmp_path_factory.mktemp('probes')
  data = finetune_files.tagged(folder / 'data', 'pos')
  command = commands()[0]  # of the page, with other paths
  known = [word for word in command if not word.startswith(('--workdir', '--config.data.source'))]
  assert known == ['--mode=probe', CONFIG] and len(command) == 4
  more = ('--config.train_examples=12', '--config.num_trials=2', f'--output={folder / "out"}')
  out, _ = micro_run.run(*arguments(micro_run.finished()[0], data, *more))
  return json.loads((folder / 'out' / 'probe.json').read_text()), folder / 'out', out


def test_all_layers_the_mix_and_the_baselines_are_reported(probed):
  result, folder, out = probed
  layers = result['layers']
  assert [one['layer'] for one in layers] == [0, 1]
  assert len(result['mix']['weights']) == len(layers)
  assert sum(result['mix']['weights']) == pytest.approx(1)
  for one in [*layers, result['mix']]:
    accuracy, control = one['accuracy'], one['control']
    assert accuracy['low'] <= accuracy['value'] <= accuracy['high'] <= 1
    assert len(accuracy['seeds']) == len(control['seeds']) == 2
    assert one['selectivity']['value'] == pytest.approx(accuracy['value'] - control['value'])
    assert one['metrics']['accuracy'] == pytest.approx(accuracy['value'])
  assert layers[0]['accuracy']['value'] == 1.0  # a word has one tag here
  assert result['baselines']['word type'] == 1.0 > result['baselines']['majority']
  assert result['counts']['train_examples'] == 12 and result['counts']['dev_examples'] == 8
  assert 'mix of all' in out and 'word type (no encoder)' in out
  assert (folder / 'probe.png').stat().st_size > 10_000


def test_the_page_shows_the_table(probed):
  page = (probed[1] / 'probe.html').read_text('utf-8')
  assert foreign(page) == []
  for words in ('selectivity', 'mix of all', '0 (embeddings)', 'train_examples'):
    assert words in shown(page)


def test_a_folder_of_transformers_is_probed_as_the_run_that_it_is_exported_from(probed, tmp_path):
  exported = tmp_path / 'exported'
  micro_run.run('--mode=export', f'--workdir={micro_run.finished()[0]}', f'--output={exported}')
  data = finetune_files.tagged(tmp_path / 'data', 'pos')
  more = (f'--config.init=hf:{exported}/discriminator', '--config.mix=False')
  few = ('--config.train_examples=12', '--config.num_trials=2')
  micro_run.run(*arguments(tmp_path / 'results', data, *more, *few))
  found = json.loads((tmp_path / 'results' / 'probes' / 'pos' / 'probe.json').read_text())
  for ours, theirs in zip(found['layers'], probed[0]['layers'], strict=True):
    assert ours['accuracy']['value'] == pytest.approx(theirs['accuracy']['value'])
    assert ours['control']['value'] == pytest.approx(theirs['control']['value'])
    assert ours['train_loss'] == pytest.approx(theirs['train_loss'], rel=1e-3)


def test_classes_of_texts_are_probed_without_a_control_task(tmp_path):
  data = finetune_files.glue(tmp_path / 'glue', train=40)
  out, _ = micro_run.run(
    *arguments(
      micro_run.finished()[0],
      data,
      '--config.task=cola',
      '--config.num_trials=1',
      '--config.mix=False',
      f'--output={tmp_path / "out"}',
    )
  )
  result = json.loads((tmp_path / 'out' / 'probe.json').read_text())
  assert not result['control'] and 'mix' not in result and 'word type' not in result['baselines']
  assert result['layers'][0]['accuracy']['value'] > 0.9  # a word determines the label
  assert result['metric'] == 'matthews' and 'matthews' in out
  assert 'control' not in probe.layer_table(result).header


@pytest.mark.parametrize(
  'flags, message',
  [
    (('--config.task=squad1',), 'a task of span; probes are for tasks of tags'),
    (('--config.task=pos,ner',), "config.task is 'pos,ner'; expected one task"),
    (('--config.init=nowhere',), 'nowhere'),
  ],
)
def test_mistakes_are_one_sentence_of_probes(flags, message, tmp_path, capsys):
  folder = finetune_files.squad(tmp_path / 'squad', '1.1')
  argv = arguments(micro_run.finished()[0], folder, f'--output={tmp_path / "o"}', *flags)
  if 'nowhere' in message:
    argv += [f'--config.data.source={finetune_files.tagged(tmp_path / "data", "pos")}']
  assert main(['main', *argv]) == 1
  error = capsys.readouterr().err
  assert message in error and 'Traceback' not in error


def test_intervals_resample_texts():
  rng = np.random.default_rng(3)
  groups = np.repeat(np.arange(200), 5)
  right = np.repeat(rng.uniform(size=200) < 0.7, 5).astype(float)  # all words of a text alike
  draws = probe_run._resampled(groups)
  found = probe_run._interval(right, groups, draws)
  width = found['high'] - found['low']
  expected = 2 * 1.96 * np.sqrt(found['value'] * (1 - found['value']) / 200)
  assert width == pytest.approx(expected, rel=0.15)


def test_states_are_standardized_by_training():
  train, dev = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32), np.array([[5.0, 6.0]], np.float32)
  mine, theirs = probe_run.standardized(train, dev)
  assert mine.tolist() == [[-1, 0], [1, 0]] and theirs.tolist() == [[3, 1]]


def test_commands_of_the_page_are_accepted(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert len(commands()) >= 3
  for command in commands():
    checked_probing(parse_flags(['main', *command]).config)
