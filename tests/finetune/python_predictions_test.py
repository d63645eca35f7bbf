"""Typed predictions of data in memory, and scores of labeled data, of a run of version 0.1.0."""

import json
import pathlib
import tarfile

import in_process
import numpy as np
import pytest
import sklearn.metrics

import electra_jax
from electra_jax.errors import UserError
from electra_jax.finetune import predictions, records
from electra_jax.finetune.tasks.task import Features
from electra_jax.main import main

VERSIONS = pathlib.Path(__file__).parents[1] / 'versions' / '0.1.0.tar.xz'
TEXTS = ['bako dufa', 'timeru salo nipe rume', 'pegi']
NAMES = ('text', '', 'label')


class Frame:
  """The part of a data frame of pandas that is used."""

  columns = ('text', 'label')

  def __init__(self, rows):
    self._rows = rows

  def to_dict(self, kind):
    assert kind == 'records'
    return self._rows


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('old')
  with tarfile.open(VERSIONS) as archive:
    archive.extractall(folder, filter='data')
  with in_process.shared_programs(devices=1):
    yield electra_jax.load(folder / 'finetuned')


@pytest.fixture(scope='module')
def dev(run):
  return pathlib.Path(run.workdir).parent / 'glue' / 'CoLA' / 'dev.tsv'


def test_lists_mappings_and_frames_give_the_same_predictions_in_order(run):
  found = run.predict(TEXTS)
  as_dicts = [{'text': text} for text in TEXTS]
  assert found == run.predict(as_dicts) == run.predict(Frame(as_dicts))
  assert found == run.predict(iter(TEXTS)) == run.predict(np.array(TEXTS))
  assert found == run.predict({'text': TEXTS}) == run.predict({'text': np.array(TEXTS)})
  assert [run.predict(text)[0].label for text in TEXTS] == [one.label for one in found]
  assert run.predict([]) == []
  old = run([records.texts_as_examples(run.task, [text])[0] for text in TEXTS])
  assert [one.probabilities for one in found] == [row['probabilities'] for row in old]


def test_single_texts_and_many_have_equal_probabilities(run):
  rng = np.random.default_rng(0)
  texts = [' '.join(rng.choice(['bako', 'dufa', 'salo'], n)) for n in rng.integers(1, 8, 40)]
  many = [one.probability for one in run.predict(texts)]
  np.testing.assert_allclose(
    [run.predict([text])[0].probability for text in texts[:5]], many[:5], rtol=1e-5
  )


def test_scores_are_those_of_the_labeled_examples(run, dev):
  score = run.score(dev)
  examples = run.task.read(str(dev))
  predicted = [one.label for one in run.predict([example.first for example in examples])]
  gold = [run.task.labels[example.target] for example in examples]
  expected = sklearn.metrics.matthews_corrcoef(gold, predicted)
  np.testing.assert_allclose(score.metrics['matthews'], expected)
  assert (score.examples, score.labeled, score.unknown) == (24, 24, {})
  rows = [{'text': example.first, 'label': example.target} for example in examples]
  rows += [{'text': 'bako', 'label': 'weird'}, {'text': 'bako', 'label': None}]
  more = run.score(Frame(rows))
  assert more.metrics == score.metrics
  assert (more.examples, more.labeled, more.unknown) == (26, 24, {'weird': 1})
  with pytest.raises(UserError, match="has no label to compare with .'weird' are others"):
    run.score([{'text': 'bako', 'label': 'weird'}])


def test_a_labeled_file_is_scored_by_predict_and_others_are_not(run, tmp_path, capsys):
  path, out = tmp_path / 'new.jsonl', tmp_path / 'out.jsonl'
  rows = [{'sentence': 'bako dufa', 'label': '1'}, {'sentence': 'salo', 'label': 'odd'}]
  path.write_text('\n'.join(map(json.dumps, rows)))
  argv = ['main', '--mode=predict', f'--workdir={run.workdir}', f'--input={path}']
  assert main([*argv, f'--output={out}']) == 0
  printed = capsys.readouterr().out
  assert "labels that the run does not have, which are not scored: 'odd' (1)" in printed
  assert '1 of 2 examples have labels: matthews' in printed
  assert len(out.read_text().splitlines()) == 2
  assert main(argv) == 0
  captured = capsys.readouterr()
  assert len(captured.out.splitlines()) == 2 and '1 of 2 examples' in captured.err
  path.write_text(json.dumps({'sentence': 'bako'}))
  assert main(argv) == 0
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  'data, message',
  [
    (7, 'the data is 7; expected a text'),
    ([7], 'record 1 is 7; expected a text or a mapping'),
    (['a', {'tex': 'b'}], "record 2 has no column 'sentence'; its columns are 'tex'"),
    ([('a', 'b')], "record 1 has a list in its column 'sentence'; expected text"),
    (
      {'text': ['a', 'b'], 'label': [1]},
      r"the lengths \{'text': 2, 'label': 1\}; expected a single",
    ),
  ],
)
def test_mistakes_are_one_sentence_that_names_the_record(run, data, message):
  with pytest.raises(UserError, match=message):
    run.predict(data)


def test_items_become_records_with_the_columns_of_the_task():
  pair = ('premise', 'hypothesis', 'label')
  expected = {'premise': 'a', 'hypothesis': 'b'}
  assert records.as_records([('a', 'b')], pair) == [expected]
  assert records.as_records([{'text': 'a', 'text_pair': 'b'}], pair) == [expected]
  assert records.as_records([{'premise': 'a', 'text': 'c', 'hypothesis': 'b'}], pair) == [
    expected | {'text': 'c'}
  ]
  assert records.as_records([['a', 'b', 'c']], NAMES) == [{'text': ['a', 'b', 'c']}]
  values = {'text': 'a', 'label': np.int64(3), 'x': np.array([1.5]), 'y': float('nan')}
  assert records.as_records([values], NAMES) == [{'text': 'a', 'label': 3, 'x': [1.5], 'y': None}]
  with pytest.raises(UserError, match='record 2 is a single text; expected a pair'):
    records.as_records([('a', 'b'), 'a'], pair)


def test_a_mapping_of_lists_is_a_table_unless_it_is_one_sentence():
  rows = [{'text': 'a', 'label': 1}, {'text': 'b', 'label': 0}]
  assert records.as_items({'text': ['a', 'b'], 'label': np.array([1, 0])}) == rows
  one = {'text': 'a', 'label': ['x', 'y']}
  assert records.as_items(one) == [one]
  words = {'tokens': ['a', 'b'], 'tags': ['B', 'O']}
  assert records.as_items(words, words=True) == [words]
  sentences = {'tokens': [['a', 'b'], ['c']], 'tags': [['B', 'O'], ['O']]}
  found = records.as_items(sentences, words=True)
  assert found == [words, {'tokens': ['c'], 'tags': ['O']}]


def test_half_of_a_surrogate_pair_is_predicted(run, tmp_path):
  path, out = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  path.write_text('{"sentence": "bako\\ud83d dufa"}\n')
  assert (
    main(
      ['main', '--mode=predict', f'--workdir={run.workdir}', f'--input={path}', f'--output={out}']
    )
    == 0
  )
  found = json.loads(out.read_text('utf-8'))
  assert found['text'] == 'bako\ufffd dufa'
  (one,) = run.predict([{'text': 'bako\ud83d dufa'}])
  np.testing.assert_allclose(one.probability, found['probability'], rtol=1e-6)
  assert run.predict(['bako\ud83d dufa']) == [one]


def test_columns_of_the_same_name_are_refused(monkeypatch):
  monkeypatch.setattr(Frame, 'columns', ('text', 'text'))
  with pytest.raises(UserError, match="the data has two columns named 'text'; rename one"):
    records.as_items(Frame([{'text': 'a'}]))


def test_words_and_entities_have_their_characters():
  prediction = {
    'tokens': ['Ada', 'met', 'Ada', 'King'],
    'tags': ['B-PER', 'O', 'B-PER', 'I-PER'],
    'probabilities': [0.9, 0.8, 0.5, 0.7],
    'entities': [
      {'type': 'PER', 'start': 0, 'end': 1, 'text': 'Ada'},
      {'type': 'PER', 'start': 2, 'end': 4, 'text': 'Ada King'},
    ],
  }
  text = 'Ada  met Ada\tKing.'
  found = predictions.typed_prediction(prediction, text)
  assert [(word.start, word.end) for word in found.words] == [(0, 3), (5, 8), (9, 12), (13, 17)]
  first, second = found.entities
  assert (first.start, first.end, first.words) == (0, 3, (0, 1))
  assert second.text == text[9:17] == 'Ada\tKing' and second.probability == pytest.approx(0.6)
  of_words = predictions.typed_prediction(prediction)
  assert of_words.entities[1].text == 'Ada King' and of_words.words[0].start is None
  by_characters = prediction | {
    'entities': [{'label': 'PER', 'start': 9, 'end': 17, 'text': 'Ada\tKing'}]
  }
  assert predictions.typed_prediction(by_characters, text).entities == (second,)


@pytest.mark.parametrize(
  'targets, expected',
  [
    ({'label': np.array([1, 1, -1])}, 1),
    ({'value': np.array([np.nan, 0.5, 0.5])}, 2),
    ({'labels': np.array([[0, 1], [0, 1], [np.nan, np.nan]])}, 1),
    ({'tags': [np.array([-1]), np.array([-1]), np.array([-1, 2])]}, 1),
  ],
)
def test_labeled_texts_of_several_rows_count_once(targets, expected):
  rows = [np.zeros(1, np.int32)] * 3
  features = Features(rows, targets, np.array([0, 0, 1]), [None] * 3)
  assert predictions.count_labeled(None, [None] * 2, features) == expected


def test_predictions_of_each_kind_have_their_type_and_others_stay_mappings():
  answer = {'text': 'a', 'start': 3, 'end': 4, 'probability': 1.0}
  row = {'answer': '', 'start': None, 'end': None, 'probability': None, 'n_best': [answer]}
  found = predictions.typed_prediction(row | {'null_odds': 2.0})
  assert found == predictions.AnswerPrediction(
    '', None, None, None, (predictions.AnswerSpan('a', 3, 4, 1.0),), 2.0
  )
  assert predictions.typed_prediction({'value': 2.5}) == predictions.ValuePrediction(2.5)
  labels = {'labels': ['a'], 'probabilities': {'a': 0.7, 'b': 0.1}}
  assert predictions.typed_prediction(labels) == predictions.LabelsPrediction(
    ('a',), {'a': 0.7, 'b': 0.1}
  )
  assert predictions.typed_prediction({'stars': 3}) == {'stars': 3}
