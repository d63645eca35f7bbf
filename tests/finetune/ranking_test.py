"""Ranking passages for queries: columns, metrics as in scikit-learn, ranks, errors."""

import numpy as np
import pytest
import sklearn.metrics
from finetune_files import described, opened, restored

from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import losses, task_metrics
from electra_jax.finetune.losses import LossSettings

ROWS = 'query,passage,relevance\nq,a,0\nq,b,2\nq,c,1\nr,a,1\nr,b,0\ns,c,0\n'


def open_rows(tmp_path, content=ROWS, **fields):
  (tmp_path / 'a.csv').write_text(content)
  return opened('ranking', train=tmp_path / 'a.csv', dev=tmp_path / 'a.csv', **fields)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join([*SPECIAL_TOKENS, *'abcqrs']))
  return load_tokenizer(path, lowercase=True)


def test_metrics_are_means_over_queries_with_a_relevant_passage(tmp_path, tokenizer):
  task = open_rows(tmp_path)
  assert task.notes == ("columns: text 'query', pair 'passage', label 'relevance'",)
  assert (task.head, task.highest, task.logistic, task.paired) == ('regression', 2.0, True, True)
  dev = task.examples('dev')
  features, _ = task.features(dev, tokenizer, 16)
  assert features.targets['value'].tolist() == [0, 1, 0.5, 0.5, 0, 0]
  scores = np.array([3.0, 2.0, 1.0, 1.0, 2.0, 0.0])
  metrics = task.score('dev', dev, features, {'value': scores})
  q, r = 2 / np.log2(3) + 1 / np.log2(4), 1 / np.log2(3)
  expected = {
    'ndcg_at_10': (q / (2 + 1 / np.log2(3)) + r) / 2,
    'mrr': 1 / 2,
    'map': ((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2,
  }
  assert metrics == pytest.approx(expected)
  predicted = restored(task).predictions(dev, features, {'value': scores})
  assert [row['rank'] for row in predicted] == [1, 2, 3, 2, 1, 1]
  assert predicted[5]['score'] == 0.5 and predicted[0]['pair'] == 'a'
  assert described(task)['highest'] == 2 and task.constant()['mrr'] == 0.5


@pytest.mark.parametrize('seed', range(5))
def test_ndcg_equals_that_of_scikit_learn(seed):
  rng = np.random.default_rng(seed)
  gold = rng.integers(0, 4, 25) * (rng.random(25) < 0.5)
  scores = rng.integers(0, 12, 25) / 12  # with equal ones
  gold[0] = 1
  for most in (3, 10, 30):
    assert task_metrics.ndcg(gold, scores, most) == pytest.approx(
      sklearn.metrics.ndcg_score(gold[None], scores[None], k=most)
    )


def test_the_loss_is_binary_cross_entropy_of_log_odds():
  batch = {
    'value': np.array([0.0, 1.0, 0.5, np.nan], np.float32),
    'weights': np.ones(4, np.float32),
  }
  logits = np.array([1.0, -2.0, 0.5, 3.0], np.float32)
  settings = LossSettings(logistic=True)
  total, count, _ = losses.head_loss('regression', {'value': logits}, batch, settings)
  p = 1 / (1 + np.exp(-logits[:3].astype(np.float64)))
  y = batch['value'][:3]
  assert count == 3
  np.testing.assert_allclose(total, -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(), rtol=1e-6)


def test_relevance_may_be_true_or_false(tmp_path):
  task = open_rows(tmp_path, 'query,passage,relevance\nq,a,True\nq,b,false\n')
  assert [example.target for example in task.examples('dev')] == [1, 0] and task.highest == 1


@pytest.mark.parametrize(
  'content, message',
  [
    (ROWS + 's,b,-1\n', 'line 8 .* the relevance -1; expected 0 or more'),
    ('query,passage,relevance\nq,a,1\n', 'the relevance 1 in all rows'),
    ('query,passage,relevance\nq,a,\n', 'line 2 .* has no label'),
    ('query,passages,relevance\nq,a,1\n', "has no column 'passage' .did you mean 'passages'"),
  ],
)
def test_errors_name_their_place(tmp_path, content, message):
  with pytest.raises(UserError, match=message):
    open_rows(tmp_path, content)
