"""Ensembles of trials predict the averages that are made by hand, and by scikit-learn."""

import json

import finetune_files
import micro_run
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import VotingClassifier
from sklearn.preprocessing import LabelEncoder

import electra_jax
from electra_jax.errors import UserError
from electra_jax.finetune.tasks.probabilities import averaged
from electra_jax.finetune.tasks.task import Features

RNG = np.random.default_rng(0)
ROWS, MODELS = 6, 3


def softmax(x):
  shares = np.exp(x - x.max(-1, keepdims=True))
  return shares / shares.sum(-1, keepdims=True)


def features(targets=None, choices=1):
  return Features(
    [np.zeros(4)] * ROWS, targets or {}, np.arange(ROWS) // choices, [None] * ROWS, choices
  )


def normal(*shape):
  return [RNG.standard_normal(shape).astype(np.float32) for _ in range(MODELS)]


def of(name, arrays):
  return [{name: one} for one in arrays]


def test_probabilities_are_averaged():
  logits = normal(ROWS, 3)
  found = averaged('classification', False, features(), of('logits', logits))['logits']
  np.testing.assert_allclose(softmax(found), np.mean([softmax(x) for x in logits], 0), rtol=1e-6)
  found = averaged('multilabel', False, features(), of('logits', logits))['logits']
  means = np.mean([1 / (1 + np.exp(-x)) for x in logits], 0)
  np.testing.assert_allclose(1 / (1 + np.exp(-found)), means, rtol=1e-6)
  values = normal(ROWS)
  found = averaged('regression', False, features(), of('value', values))['value']
  np.testing.assert_allclose(found, np.mean(values, 0), rtol=1e-6)
  found = averaged('regression', True, features(), of('value', values))['value']
  means = np.mean([1 / (1 + np.exp(-x)) for x in values], 0)
  np.testing.assert_allclose(1 / (1 + np.exp(-found)), means, rtol=1e-6)
  rows = [[x[:2], x[2:]] for x in logits]  # two sentences
  found = averaged('tagging', False, features(), of('logits', rows))['logits']
  assert [one.shape for one in found] == [(2, 3), (4, 3)]
  np.testing.assert_allclose(
    softmax(found[1]), np.mean([softmax(x[2:]) for x in logits], 0), rtol=1e-6
  )


def test_choices_that_only_fill_up_an_example_have_no_part():
  values = normal(ROWS)
  rows = features({'choice': np.array([0, 1, 0, 1, 0, -1], np.float32)}, choices=3)
  found = averaged('choice', False, rows, of('value', values))['value']
  np.testing.assert_allclose(
    softmax(found[:3]), np.mean([softmax(x[:3]) for x in values], 0), rtol=1e-6
  )
  np.testing.assert_allclose(
    softmax(found[3:5]), np.mean([softmax(x[3:5]) for x in values], 0), rtol=1e-6
  )


def span_outputs(rng, beam=2, length=6):
  """Beams of two rows, with distinct starts and ends."""
  starts = np.array([rng.permutation(length)[:beam] for _ in range(2)])
  ends = np.array([[rng.permutation(length)[:beam] for _ in range(beam)] for _ in range(2)])
  return {
    'start_index': starts,
    'start_log_probs': np.log(rng.dirichlet(np.ones(beam + 1), 2)[:, :beam]).astype(np.float32),
    'end_index': ends,
    'end_log_probs': np.log(rng.dirichlet(np.ones(beam + 1), (2, beam))[..., :beam]).astype(
      np.float32
    ),
    'impossible': rng.standard_normal(2).astype(np.float32),
  }


def test_the_probability_of_a_span_is_the_mean_over_the_models_that_have_it():
  models = [span_outputs(np.random.default_rng(seed)) for seed in range(4)]
  found = averaged('span', False, features(), models)
  for row in range(2):
    expected = {}
    for one in models:
      for i, start in enumerate(one['start_index'][row]):
        for j, end in enumerate(one['end_index'][row, i]):
          p = np.exp(one['start_log_probs'][row, i] + one['end_log_probs'][row, i, j])
          expected[start, end] = expected.get((start, end), 0) + p / len(models)
    best = sorted(expected.items(), key=lambda pair: -pair[1])[:4]
    spans = zip(found['start_index'][row], found['end_index'][row, :, 0], strict=True)
    assert [tuple(map(int, span)) for span in spans] == [tuple(map(int, span)) for span, _ in best]
    scores = found['start_log_probs'][row] + found['end_log_probs'][row, :, 0]
    np.testing.assert_allclose(np.exp(scores), [p for _, p in best], rtol=1e-5)
  np.testing.assert_allclose(found['impossible'], np.mean([m['impossible'] for m in models], 0))


#### A run ####


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a run with the weights of three trials."""
  folder = tmp_path_factory.mktemp('run')
  data = finetune_files.glue(folder / 'glue', train=40)
  argv = micro_run.finetune_arguments(folder / 'run', data, '--config.keep_trials=all')
  micro_run.run(*argv, '--config.num_trials=3', '--config.epochs=1.0')
  return folder / 'run'


class Trial(ClassifierMixin, BaseEstimator):
  """A trial as a fitted classifier of scikit-learn."""

  def __init__(self, run=None):
    self.run = run
    self.classes_ = np.array(['0', '1'])

  def predict_proba(self, texts):
    return np.array([list(one.probabilities.values()) for one in self.run.predict(list(texts))])


def single_trials(run, tmp_path):
  """Each trial by itself, from copies of the folder that name it as the best."""
  kept, found = run / 'cola' / 'kept.json', []
  before = kept.read_text()
  for trial in json.loads(before)['trials']:
    kept.write_text(json.dumps({'trials': [trial]}))
    found.append(electra_jax.load(run))
  kept.write_text(before)
  return found


def test_an_ensemble_is_a_soft_vote_of_scikit_learn(run, tmp_path):
  texts = [text for text, _ in finetune_files.sentences(8, 9)]
  trials = single_trials(run, tmp_path)
  voting = VotingClassifier([(one.trial, Trial(one)) for one in trials], voting='soft')
  voting.estimators_ = [Trial(one) for one in trials]
  voting.le_ = LabelEncoder().fit(['0', '1'])
  voting.classes_ = voting.le_.classes_
  ensemble = electra_jax.load(run, ensemble=True)
  ours = ensemble.predict(texts)
  probabilities = np.array([list(one.probabilities.values()) for one in ours])
  np.testing.assert_allclose(probabilities, voting.predict_proba(texts), rtol=1e-6)
  assert [one.label for one in ours] == voting.predict(texts).tolist()
  assert ensemble.trial == ', '.join(one.trial for one in trials)
  best = electra_jax.load(run, ensemble=2)
  two = np.mean([Trial(one).predict_proba(texts) for one in trials[:2]], 0)
  np.testing.assert_allclose(
    [list(x.probabilities.values()) for x in best.predict(texts)], two, rtol=1e-6
  )
  with pytest.raises(UserError, match='an ensemble of 3 trials, whose weights are not'):
    ensemble.weights()


def test_ensembles_from_the_command_line(run, tmp_path):
  argv = ('--mode=predict', f'--workdir={run}', '--split=dev', f'--output={tmp_path}')
  out, _ = micro_run.run(*argv, '--ensemble=all')
  data = json.loads((run / 'config.json').read_text())['data']['source']
  score = electra_jax.load(run, ensemble=True).score(f'{data}/CoLA/dev.tsv')
  assert f'matthews {score.metrics["matthews"]:.4f}' in out
  for wrong, expected in (
    ('4', 'the ensemble has 4 trials, and'),
    ('1', 'expected at least 2'),
    ('some', "--ensemble is 'some'; expected all, or a number of trials"),
  ):
    _, err = micro_run.run(*argv, f'--ensemble={wrong}', status=1)
    assert expected in err and err.count('\n') == 1
