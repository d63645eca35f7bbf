"""The labeled sentences of examples/questions.py: balanced, apart, and read by fine-tuning."""

import collections
import importlib.util

import micro_run
import pytest


@pytest.fixture(scope='module')
def example():
  path = micro_run.ROOT / 'examples' / 'questions.py'
  spec = importlib.util.spec_from_file_location('questions', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_a_question_is_kept_where_a_statement_has_as_many_words(example):
  text = (
    'Who has seen the old miller today? The ferry left before the rain. It was the ferryman’s '
    'boat, Anna said. Is that the last boat? "No!" the baker answered.'
  )
  assert sorted(example.labeled_sentences(text)) == [
    ('it was the ferryman’s boat anna said', 'statement'),
    ('who has seen the old miller today', 'question'),
  ]


def test_files_are_balanced_apart_and_the_same_each_time(example, tmp_path, monkeypatch, capsys):
  contents = []
  for name in ('first', 'second'):
    monkeypatch.setattr('sys.argv', ['questions.py', f'--output={tmp_path / name}', '--dev=100'])
    example.main()
    contents.append([(tmp_path / name / f'{part}.tsv').read_text() for part in ('train', 'dev')])
  assert contents[0] == contents[1]
  train, dev = ([tuple(line.split('\t')) for line in part.splitlines()[1:]] for part in contents[0])
  assert len(dev) == 100 and len(train) > 3_000
  lengths = collections.defaultdict(list)
  for sentence, label in train + dev:
    lengths[label].append(len(sentence.split()))
  assert sorted(lengths['question']) == sorted(lengths['statement'])
  assert len({sentence for sentence, _ in train + dev}) == len(train + dev)
  assert f'{len(train):,} sentences' in capsys.readouterr().out
