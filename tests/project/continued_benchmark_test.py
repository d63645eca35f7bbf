"""benchmarks/continued.py: the table, and a comparison of the objectives at micro size."""

import importlib
import json
import lzma
import pathlib

import finetune_files
import micro_run
import pytest
import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'benchmarks/results/continued_objectives.jsonl'


@pytest.fixture
def continued(monkeypatch):
  """The module of the benchmark."""
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('continued')


def result(run, seed, score, loss):
  """A line of a sweep's results."""
  return {
    'run': run,
    'seed': seed,
    'tokens': 5e5,
    'flops': 2e12,
    'heldout': {'generator_loss': {'value': loss}},
    'tasks': {'pos': {'values': [score]}},
  }


def test_differences_between_the_objectives_are_those_of_equal_seeds(continued):
  results = [
    result('bert-mlm', 0, 0.5, 4.0),
    result('bert-mlm', 1, 0.6, 5.0),
    result('bert-rtd', 0, 0.7, 6.0),
    result('bert-rtd', 1, 0.8, 6.0),
  ]
  mlm, rtd, gap = continued.objectives_table(results, ['bert']).splitlines()[2:]
  assert mlm.startswith('| bert, source + MLM | 0.50 M | 2.00 T | 4.500 (4.000, 5.000) |')
  assert rtd.endswith('| 75.0 (70.0, 80.0) |')
  assert gap.endswith('| 20.0 (20.0, 20.0) |')


def test_three_seeds_have_an_interval_by_students_t(continued):
  assert continued.interval([1.0, 2.0, 3.0], 2) == '2.00 (-0.48 to 4.48)'  # 4.3027 / sqrt(3)


def test_the_domain_text_is_the_beginnings_of_all_novels(continued, tmp_path, monkeypatch):
  folder = tmp_path / 'pretrain'
  folder.mkdir()
  text = 'one two\nthree\n\nfour five\nsix\n'
  (folder / 'fiction_pd.txt.xz').write_bytes(lzma.compress(text.encode()))
  monkeypatch.setattr(continued, 'CHARACTERS_PER_BOOK', 8)
  arguments = continued.parse_arguments(['objectives', str(tmp_path), str(tmp_path)])
  assert continued.domain_text(arguments).read_text() == 'one two\nfour five\n'


@pytest.mark.long
@pytest.mark.usefixtures('on_one_device')
def test_a_source_is_pretrained_exported_and_continued(continued, tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', xla_flags.QUICK)  # of the processes that it starts
  data = tmp_path / 'data'
  (data / 'pretrain').mkdir(parents=True)
  text = lzma.compress(micro_run.corpus().read_bytes())
  for name in ('openstax_ccby', 'wiki_cc_by_sa', 'fiction_pd'):
    (data / 'pretrain' / f'{name}.txt.xz').write_bytes(text)
  finetune_files.tagged(data / 'tagging/ud_ewt', 'pos')
  argv = ['objectives', str(data), str(tmp_path / 'out'), f'--base={micro_run.CONFIG}']
  argv += [
    '--shapes=modern',
    '--tasks=pos_frozen',
    '--source-flops=2e9',
    '--flops=2e9',
    '--alone-steps=2',
    '--seeds=1',
  ]
  continued.main([*argv, '--examples=8', '--rows=24', f'--json={tmp_path / "results.jsonl"}'])
  lines = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
  assert lines[0]['settings']['flops'] == '2000000000.0'
  mlm, rtd = (next(r for r in lines if r.get('run') == f'modern-{n}') for n in ('mlm', 'rtd'))
  assert 1.5e9 < rtd['flops'] <= mlm['flops'] * 1.2 <= 2.4e9
  assert 'gain' in rtd['heldout'] and set(rtd['tasks']) == {'pos_frozen'}


def test_the_table_of_the_page_is_that_of_the_results(continued):
  results = [json.loads(line) for line in RESULTS.read_text('utf-8').splitlines()[1:]]
  table = continued.objectives_table(results, list(continued.SHAPES))
  assert table in (ROOT / 'docs/continued.md').read_text('utf-8')
