"""Tables per class, confusion and calibration equal those of scikit-learn and seqeval."""

import json
import pathlib

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from electra_jax.finetune import class_metrics
from electra_jax.finetune.tasks import probabilities, tagging_reports

RNG = np.random.default_rng(0)
LABELS = ('a', 'b', 'c', 'd')
AVERAGES = {'macro average': 'macro avg', 'weighted average': 'weighted avg'}


def compare(table, theirs, total):
  """The rows of a table and a report of scikit-learn or seqeval as a dict."""
  for name, *values, support in table.rows:
    one = theirs.get(AVERAGES.get(name, name))
    if name == total:
      one = theirs['micro avg'] if 'micro avg' in theirs else None
      if one is None:
        assert values == pytest.approx([theirs['accuracy']] * 3)
        continue
    if one is None:  # a class that does not occur
      assert values == [None] * 3 and support == 0
      continue
    assert values == pytest.approx([one['precision'], one['recall'], one['f1-score']])
    assert support == one['support']


@pytest.mark.parametrize('classes', [2, 3])
def test_the_table_and_the_matrix_are_those_of_scikit_learn(classes):
  gold, predicted = RNG.integers(0, classes, 200), RNG.integers(0, classes, 200)
  predicted[gold == 0] = 1  # a class without a right prediction
  confusion = class_metrics.confusion_counts(gold, predicted, len(LABELS))
  assert (
    confusion == sklearn.metrics.confusion_matrix(gold, predicted, labels=range(len(LABELS)))
  ).all()
  counts = class_metrics.counts_of_confusion(confusion)
  table = class_metrics.class_table(LABELS, counts, total='accuracy')
  names = np.array(LABELS)
  theirs = sklearn.metrics.classification_report(
    names[gold], names[predicted], output_dict=True, zero_division=0
  )
  compare(table, theirs, 'accuracy')


def test_the_pairs_that_are_confused_most_come_first():
  confusion = np.array([[5, 2, 0, 0], [0, 5, 9, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
  matrix, table = class_metrics.confusion_blocks(LABELS, confusion)
  assert matrix.counts[1] == (0, 5, 9, 0)
  assert table.rows == (('b', 'c', 9, 9 / 14), ('a', 'b', 2, 2 / 7), ('d', 'a', 1, 1.0))


def test_calibration_is_that_of_scikit_learn():
  stated = np.append(RNG.uniform(0.25, 1, 500), [0.3, 0.5, 1.0, 0.0])  # also edges of bins
  right = RNG.uniform(size=len(stated)) < stated**2
  block = class_metrics.calibration(stated, right, losses=class_metrics.negative_log(stated))
  true, mean = sklearn.calibration.calibration_curve(right, stated, n_bins=class_metrics.BINS)
  assert np.array([one[3] for one in block.bins]) == pytest.approx(true)
  assert np.array([one[2] for one in block.bins]) == pytest.approx(mean)
  weights = np.array([one[4] for one in block.bins]) / len(stated)
  assert block.expected_error == pytest.approx(weights @ abs(true - mean))
  assert dict(block.values)['right'] == pytest.approx(right.mean())


def test_probabilities_are_those_of_the_logits():
  logits = RNG.normal(size=(50, 3)) * 3
  shares = probabilities.softmax(logits)
  gold = RNG.integers(0, 3, 50)
  ours = class_metrics.negative_log(shares[np.arange(50), gold]).mean()
  assert ours == pytest.approx(sklearn.metrics.log_loss(gold, shares, labels=range(3)))
  odds = np.array([-30.0, -1.0, 0.0, 30.0])
  assert probabilities.sigmoid(odds) == pytest.approx([0, 1 / (1 + np.e), 0.5, 1])
  assert probabilities.log_odds(probabilities.sigmoid(odds[1:3])) == pytest.approx(odds[1:3])


def tagged(gold, predicted, number=0):
  probabilities = np.linspace(0.5, 0.9, len(gold))
  tokens = [f'w{i}' for i in range(len(gold))]
  return tagging_reports.TaggedSentence(f's{number}', tokens, gold, predicted, probabilities)


CASES = json.loads((pathlib.Path(__file__).parents[1] / 'golden/seqeval.json').read_text())


def test_entities_are_counted_as_seqeval_does():
  reported = [case for case in CASES if 'report' in case]
  assert len(reported) > 100
  for case in reported:
    pairs = zip(case['gold'], case['predicted'], strict=True)
    sentences = [tagged(*pair, i) for i, pair in enumerate(pairs)]
    table, kinds, matrix, *_ = tagging_reports.entity_report(sentences, ('LOC', 'unseen'))
    compare(table, case['report'], 'micro average')
    counts = dict(row[:2] for row in kinds.rows)
    micro = case['report']['micro avg']
    assert counts['right'] == pytest.approx(micro['recall'] * micro['support'])
    predicted = sum(counts[k] for k in counts if k != 'missed')
    assert counts['right'] == pytest.approx(micro['precision'] * predicted)
    assert np.array(matrix.counts)[:-1].sum() == micro['support']


def test_each_wrong_entity_is_of_one_kind_and_marked():
  gold = ['B-X', 'I-X', 'O', 'B-Y', 'O', 'B-X', 'O', 'B-Y', 'I-Y', 'O']
  predicted = ['B-X', 'O', 'O', 'B-X', 'O', 'O', 'B-Y', 'B-X', 'I-X', 'I-X']
  blocks = tagging_reports.entity_report([tagged(gold, predicted)], ('X', 'Y'))
  counts = dict(row[:2] for row in blocks[1].rows)
  assert counts == {
    'right': 0,
    'type': 1,
    'boundary': 1,
    'type and boundary': 1,
    'spurious': 1,
    'missed': 1,
  }
  (error,) = blocks[-1].errors
  assert dict(error.facts)['wrong entities'] == 8
  marked = [(part.text, part.mark, part.label) for part in error.texts[0][1] if part.mark]
  assert ('w5', 'missed', 'X') in marked and ('w6', 'wrong', 'Y') in marked
  assert ''.join(part.text for part in error.texts[0][1]) == ' '.join(f'w{i}' for i in range(10))
