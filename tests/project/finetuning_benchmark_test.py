"""benchmarks/finetuning.py: examples, the search of both sides, the table, a small comparison."""

import argparse
import importlib
import json
import pathlib
import shutil
import types

import finetune_files
import micro_run
import pytest

from electra_jax import export
from electra_jax.training import schedules

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'benchmarks/results'


@pytest.fixture
def finetuning(monkeypatch):
  """The module of the benchmark."""
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('finetuning')


@pytest.fixture
def data(tmp_path):
  """A folder with made-up data under the names of the real files."""
  folder = tmp_path / 'data'
  finetune_files.glue(folder / 'glue', train=40, dev=12)
  pos = finetune_files.tagged(tmp_path / 'pos', 'pos')
  ner = finetune_files.tagged(tmp_path / 'ner', 'ner')
  squad = finetune_files.squad(tmp_path / 'squad', '1.1')
  for part in ('train.reconstructed', 'dev', 'test'):
    split = part.split('.')[0]
    name = f'tagging/ud_ewt/en_ewt-ud-{part}.conllu'
    _copied(pos / f'{split}.conllu', folder / name)
    name = f'tagging/uner_ewt/en_ewt-ud-{part.replace("reconstructed", "first-version")}.iob2'
    _copied(ner / f'{split}.conll', folder / name)
    text = (folder / name).read_text().replace('B-Y', 'B-OTH').replace('B-OTH', 'B-O', 1)
    (folder / name).write_text(text)
  for part in ('train', 'dev'):
    _copied(squad / f'{part}-v1.1.json', folder / f'squad/{part}-v1.1.articlesplit.json')
  return folder


def _copied(source, target):
  target.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy(source, target)


def trial(side, rate, seed, dev, test):
  """A line of trials.jsonl."""
  sizes = {'train': 3, 'dev': 2, 'test': 1}
  scores = {'dev': dev, 'test': test, 'examples': sizes}
  return {'task': 'cola', 'side': side, 'rate': rate, 'seed': seed} | scores


def test_each_side_is_reported_with_the_rate_that_it_chose_on_dev(finetuning):
  trials = [
    trial('trainer', 1e-3, 0, 0.2, 0.9),
    trial('trainer', 5e-4, 0, 0.3, 0.4),
    trial('trainer', 5e-4, 1, 0.9, 0.6),
    trial('ours', 1e-3, 0, 0.2, 0.5),
    trial('ours', 1e-3, 1, 0.0, 0.7),
  ]
  row = finetuning.trainer_table(trials).splitlines()[-1]
  cells = '50.0 (40.0, 60.0) | 0.0005 | 60.0 (50.0, 70.0) | 0.001'
  assert row.startswith(f'| CoLA, Matthews | 3 / 2 / 1 | {cells} |')
  assert '| +10.0 (-50.8 to +70.8) |' in row  # 4.3027 times the root of 0.02


def test_examples_of_train_and_dev_are_disjoint_and_the_same_each_time(finetuning, data, tmp_path):
  arguments = argparse.Namespace(data=data, out=tmp_path / 'out', examples=6)
  for name in finetuning.SOURCES:
    paths = finetuning.write_examples(name, arguments)
    before = {split: path.read_text() for split, path in paths.items()}
    paths = finetuning.write_examples(name, arguments)
    assert before == {split: path.read_text() for split, path in paths.items()}
    split = finetuning.SOURCES[name].split
    parts = {part: split(text)[1] for part, text in before.items()}
    assert [len(parts[part]) for part in ('train', 'dev')] == [6, 6]
    if not finetuning.SOURCES[name].files[1]:
      assert not {json.dumps(x) for x in parts['train']} & {json.dumps(x) for x in parts['dev']}


@pytest.mark.long
@pytest.mark.usefixtures('on_one_device')
def test_both_sides_fine_tune_and_repeat_no_trial(finetuning, data, tmp_path, capsys):
  """The peer only where accelerate is installed, which the Trainer requires."""
  export.export(str(micro_run.finished()[0]), str(tmp_path / 'hf'))
  peer = importlib.util.find_spec('accelerate') is not None
  tasks = ['stsb', 'ud', 'squad']
  sides = ['trainer', 'ours'] if peer else ['ours']
  argv = ['trainer', str(tmp_path / 'hf/discriminator'), str(data), str(tmp_path / 'out')]
  argv += ['--tasks', *tasks, '--sides', *sides, '--examples=6', '--epochs=1', '--seeds=1']
  finetuning.main([*argv, f'--json={tmp_path / "results.jsonl"}'])
  lines = (tmp_path / 'results.jsonl').read_text().splitlines()
  done = [json.loads(line) for line in lines[1:]]
  trials = {'trainer': 2, 'ours': 1}  # of two rates; ours has those of its search
  expected = [(x, side) for x in tasks for side in sides for _ in range(trials[side])]
  assert [(t['task'], t['side']) for t in done] == expected
  capsys.readouterr()
  finetuning.main(argv)
  assert '"task"' not in capsys.readouterr().out  # no trial ran again


@pytest.mark.long  # importing the Trainer takes seconds
def test_the_peer_has_our_rate_at_each_step(monkeypatch):
  torch = pytest.importorskip('torch')
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  peer = importlib.import_module('finetuning_trainer')._Trainer
  trainer = object.__new__(peer)  # the constructor requires accelerate
  trainer.lr_scheduler = None
  trainer.args = types.SimpleNamespace(get_warmup_steps=lambda steps: 3)
  trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
  scheduler = trainer.create_scheduler(12)
  expected = schedules.WarmupDecay(5e-4, 3, 12)
  for step in range(12):
    assert scheduler.get_last_lr() == [pytest.approx(float(expected(step)), rel=1e-6)]
    trainer.optimizer.step()
    scheduler.step()


@pytest.mark.parametrize('name', ['finetuning_trainer', 'finetuning_trainer_own_schedule'])
def test_the_tables_of_the_page_are_those_of_the_results(finetuning, name):
  lines = (RESULTS / f'{name}.jsonl').read_text('utf-8').splitlines()
  trials = [json.loads(line) for line in lines[1:]]
  assert finetuning.trainer_table(trials) in (ROOT / 'docs/results.md').read_text('utf-8')
  assert {t['task'] for t in trials} == set(finetuning.SOURCES)
