"""Multi-label classification: how tables have the labels, metrics, the threshold, predictions."""

import numpy as np
import pytest
import sklearn.metrics
from finetune_files import described, opened, restored

from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import task_metrics

LISTS = (
  '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n{"text": "c", "label": ["y"]}\n'
)
TARGETS = [(0, 1), (), (1,)]


def open_file(tmp_path, content, name='train.jsonl', **fields):
  path = tmp_path / name
  path.write_text(content)
  return opened('multilabel', train=path, dev=path, **fields)


@pytest.mark.parametrize(
  'name, content, fields, labels',
  [
    ('a.jsonl', LISTS, {}, 'xy'),
    ('a.jsonl', LISTS.replace('"x"', '0').replace('"y"', '1'), {'label_names': 'x,y'}, 'xy'),
    ('a.csv', 'text,label\na,x|y\nb,\nc,y\n', {}, 'xy'),
    ('a.csv', """text,label\na,"['x', 'y']"\nb,[]\nc,['y']\n""", {}, 'xy'),
    ('a.csv', """text,label\na,"['x'\n 'y']"\nb,[]\nc,['y']\n""", {}, 'xy'),  # as NumPy prints them
    ('a.csv', 'text,label\na,"[x, y]"\nb,[]\nc,[y]\n', {}, 'xy'),
    ('a.csv', 'text,label\na,[1 1]\nb,[0 0]\nc,[0 1]\n', {'label_names': 'x,y'}, 'xy'),
    ('a.csv', 'text,label\na,[1. 1.]\nb,[0. 0.]\nc,[0. 1.]\n', {}, '01'),
    ('a.jsonl', LISTS.replace('"x"', '0').replace('"y"', '1.0'), {}, '01'),
    ('a.jsonl', LISTS.replace('"x"', '" x"').replace('"y"', '"y "'), {}, 'xy'),
    ('a.csv', 'text,label\na,"[1, 1]"\nb,"[0, 0]"\nc,"[0, 1]"\n', {'label_names': 'x,y'}, 'xy'),
    (
      'a.jsonl',
      '{"text": "a", "label": {"x": 1, "y": 1}}\n{"text": "b", "label": {"x": 0, "y": 0}}\n'
      '{"text": "c", "label": {"x": false, "y": true}}\n',
      {},
      'xy',
    ),
    ('a.csv', 'text,label\na,"x, y"\nb,\nc,y\n', {}, 'xy'),
    ('a.csv', 'text,label\na,x;y\nb,\nc,y\n', {'label_separator': ';'}, 'xy'),
    ('a.csv', 'text,x,y\na,1,1\nb,0,0.0\nc,false,TRUE\n', {'label': 'x,y'}, 'xy'),
    (
      'a.jsonl',
      '{"text": "a", "x": 1, "y": true}\n{"text": "b", "x": 0, "y": 0}\n'
      '{"text": "c", "x": 0.0, "y": 1.0}\n',
      {'label': 'x, y'},
      'xy',
    ),
    (
      'a.jsonl',
      '{"text": "a", "label": [1, 1]}\n{"text": "b", "label": [0, 0]}\n'
      '{"text": "c", "label": [0, 1]}\n',
      {},
      '01',
    ),
    (
      'a.jsonl',
      '{"sentence": "a", "labels": [1.0, 1.0]}\n{"sentence": "b", "labels": [0.0, 0.0]}\n'
      '{"sentence": "c", "labels": [0.0, 1.0]}\n',
      {'label_names': 'x,y'},
      'xy',
    ),
  ],
)
def test_labels_of_all_forms_are_the_same(tmp_path, name, content, fields, labels):
  task = open_file(tmp_path, content, name, **fields)
  assert task.labels == tuple(labels) and (task.head, task.metric) == (
    'multilabel',
    'best_micro_f1',
  )
  for one in (task, restored(task)):
    assert [example.target for example in one.read(str(tmp_path / name))] == TARGETS
  assert [example.target for example in task.examples('dev')] == TARGETS


def test_lists_of_0_and_1_have_one_per_label_also_where_each_text_has_one_label(tmp_path):
  rows = ['{"text": "a", "label": [0, 1]}', '{"text": "b", "label": [1, 0]}']
  task = open_file(tmp_path, '\n'.join(rows))
  assert [example.target for example in task.examples('dev')] == [(1,), (0,)]


@pytest.mark.parametrize('value', ['null', 'NaN', 'Infinity', '"nan"', '["x", null]', '["x", NaN]'])
def test_missing_labels_are_refused(tmp_path, value):
  with pytest.raises(UserError, match='line 4 .* (has no label|labels of which one is missing)'):
    open_file(tmp_path, LISTS + f'{{"text": "d", "label": {value}}}\n')


@pytest.mark.parametrize(
  'content, fields, message',
  [
    ('text,x,y\na,1,2\n', {'label': 'x,y'}, "line 2 .* '2' in its column 'y'; expected 0 or 1"),
    ('text,x,y\na,1,\n', {'label': 'x,y'}, "line 2 .* has no label: its column 'y' is empty"),
    ('text,x\na,1\n', {'label': 'x,z'}, "has no column 'z'"),
    ('text,label\na,x\n', {}, 'has 1 label; expected at least two'),
    ('text,label\na,x||y\n', {}, "has an empty label in 'x||y'".replace('|', '[|]')),
  ],
)
def test_errors_name_the_line(tmp_path, content, fields, message):
  with pytest.raises(UserError, match=message):
    open_file(tmp_path, content, 'a.csv', **fields)


def test_several_labels_in_classification_name_the_task(tmp_path):
  (tmp_path / 'a.jsonl').write_text(LISTS)
  with pytest.raises(UserError, match="a list in its column 'label'.* set config.task=multilabel"):
    opened('classification', train=tmp_path / 'a.jsonl')


def test_a_label_that_training_lacks_is_an_error(tmp_path):
  (tmp_path / 'dev.jsonl').write_text('{"text": "a", "label": ["z"]}\n')
  (tmp_path / 'train.jsonl').write_text(LISTS)
  task = opened('multilabel', train=tmp_path / 'train.jsonl', dev=tmp_path / 'dev.jsonl')
  with pytest.raises(UserError, match="line 1 .*dev.jsonl' has the label 'z'; expected one of"):
    task.examples('dev')


def test_unknown_labels_of_a_scored_file_are_counted_one_by_one(tmp_path):
  task = open_file(tmp_path, LISTS)
  (tmp_path / 'new.jsonl').write_text(LISTS + '{"text": "a", "label": ["x", "z", "v"]}\n')
  examples, unknown = task.read_labeled(str(tmp_path / 'new.jsonl'))
  assert [example.target for example in examples] == [*TARGETS, None]
  assert unknown == {'z': 1, 'v': 1}


def random_scores(seed, examples=60, labels=5):
  rng = np.random.default_rng(seed)
  gold = rng.random((examples, labels)) < 0.3
  gold[0] = True
  scores = np.round(np.clip(0.3 * gold + rng.random(gold.shape) * 0.7, 0, 1), 2)  # with ties
  return gold, scores


@pytest.mark.parametrize('seed', range(3))
def test_metrics_equal_those_of_scikit_learn(seed):
  gold, scores = random_scores(seed)
  predicted = scores >= 0.5
  micro, macro = task_metrics.multilabel_f1(gold, predicted)
  assert micro == pytest.approx(sklearn.metrics.f1_score(gold, predicted, average='micro'))
  assert macro == pytest.approx(
    sklearn.metrics.f1_score(gold, predicted, average='macro', zero_division=0)
  )
  assert task_metrics.mean_average_precision(gold, scores) == pytest.approx(
    sklearn.metrics.average_precision_score(gold, scores, average='macro')
  )


@pytest.mark.parametrize('seed', range(3))
def test_no_threshold_is_better_than_the_best_one(seed):
  gold, scores = random_scores(seed)
  best, threshold = task_metrics.best_f1_threshold(gold, scores)
  assert best == pytest.approx(task_metrics.multilabel_f1(gold, scores >= threshold)[0])
  tried = [task_metrics.multilabel_f1(gold, scores >= x)[0] for x in np.linspace(0, 1, 101)]
  assert best >= max(tried) - 1e-12


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join([*SPECIAL_TOKENS, 'a', 'b', 'c']))
  return load_tokenizer(path, lowercase=True)


def test_scores_thresholds_and_predictions(tmp_path, tokenizer):
  task = open_file(tmp_path, LISTS)
  examples = task.examples('dev')
  features, _ = task.features(examples, tokenizer, 16)
  assert features.targets['labels'].tolist() == [[1, 1], [0, 0], [0, 1]]
  assert task.labeled('dev', features)
  probabilities = np.array([[0.4, 0.9], [0.1, 0.2], [0.3, 0.4]])
  outputs = {'logits': np.log(probabilities / (1 - probabilities))}
  metrics = task.score('dev', examples, features, outputs)
  assert metrics == pytest.approx(
    {
      'best_micro_f1': 1.0,
      'best_threshold': 0.35,
      'micro_f1': 0.5,
      'macro_f1': (0 + 2 / 3) / 2,
      'subset_accuracy': 1 / 3,
      'map': 1.0,
    }
  )
  tuned = task.tuned(metrics)
  assert tuned.score('dev', examples, features, outputs)['subset_accuracy'] == 1
  assert described(tuned)['threshold'] == pytest.approx(0.35)
  predicted = restored(tuned).predictions(examples, features, outputs)
  assert [row['labels'] for row in predicted] == [['x', 'y'], [], ['y']]
  assert predicted[0]['probabilities'] == pytest.approx({'x': 0.4, 'y': 0.9})


def test_unlabeled_examples_have_no_targets(tmp_path, tokenizer):
  task = open_file(tmp_path, LISTS)
  (tmp_path / 'new.txt').write_text('a b\nc\n')
  features, _ = task.features(task.read(str(tmp_path / 'new.txt')), tokenizer, 16)
  assert np.isnan(features.targets['labels']).all() and not task.labeled('test', features)


def test_the_constant_answer_has_the_frequencies_of_training(tmp_path):
  metrics = open_file(tmp_path, LISTS).constant()
  assert metrics['map'] == pytest.approx((1 / 3 + 2 / 3) / 2)
  assert metrics['best_threshold'] == pytest.approx(0.5)  # between 1/3 and 2/3
