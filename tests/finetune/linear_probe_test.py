"""Probes end at the optimum of scikit-learn; the mix and control tasks are those of the papers."""

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression

from electra_jax.finetune import linear_probe, probe_data

RNG = np.random.default_rng(0)


def data(rows=400, width=12, classes=4, layers=1):
  labels = RNG.integers(0, classes, rows)
  centers = RNG.normal(size=(layers, classes, width))
  return [RNG.normal(size=(rows, width)) + centers[i][labels] for i in range(layers)], labels


@pytest.mark.parametrize('penalty', [0.1, 10.0])
def test_the_optimum_is_that_of_scikit_learn(penalty):
  states, labels = data()
  found = linear_probe.fit(states, labels, 4, penalty, 2000, tolerance=1e-15)
  theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(states[0], labels)
  assert found.converged
  assert found.kernel.T == pytest.approx(theirs.coef_, abs=2e-4)
  ours, expected = found.logits(states), theirs.decision_function(states[0])
  center = lambda x: x - x.mean(-1, keepdims=True)  # noqa: E731
  assert center(ours) == pytest.approx(center(expected), abs=2e-3)
  losses = -theirs.predict_log_proba(states[0])[np.arange(len(labels)), labels]
  assert found.loss == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize('chunk', [8192, 37])
def test_the_gradient_of_the_mix_is_that_of_the_loss(chunk, monkeypatch):
  monkeypatch.setattr(linear_probe, 'CHUNK', chunk)
  states, labels = data(rows=90, width=5, classes=3, layers=3)
  problem = linear_probe._Problem(states, labels, 3, 0.7)
  x = RNG.normal(size=len(problem.start()))
  loss, gradient = problem.loss_and_gradient(x)
  expected = scipy.optimize.approx_fprime(x, lambda y: problem.loss_and_gradient(y)[0], 1e-7)
  assert gradient == pytest.approx(expected, abs=1e-5)
  kernel, bias, mix, scale = problem.parts(x)
  weights = np.exp(mix) / np.exp(mix).sum()
  logits = scale * sum(w * h @ kernel for w, h in zip(weights, states, strict=True)) + bias
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  losses = -np.log(shares[np.arange(90), labels])
  assert loss == pytest.approx((losses.sum() + 0.35 * np.square(kernel).sum()) / 90)


def test_the_mix_prefers_the_layer_that_knows_the_labels():
  (known,), labels = data(rows=300)
  states = [RNG.normal(size=known.shape), known, RNG.normal(size=known.shape)]
  found = linear_probe.fit(states, labels, 4, 1.0, 200)
  assert found.layers.argmax() == 1 and found.layers[1] > 0.8
  assert found.layers.sum() == pytest.approx(1)
  alone = linear_probe.fit([known], labels, 4, 1.0, 200)
  assert alone.layers == [1.0] and alone.scale == 1.0
  assert (found.logits(states).argmax(-1) == labels).mean() > 0.8


def examples(words, labels):
  index = np.arange(len(words))
  return probe_data.ProbeExamples(index, index, np.array(labels), words, index)


def test_a_control_task_has_one_label_per_word_by_the_frequency_of_the_labels():
  words = [f'w{i}' for i in range(2000)]
  labels = [0] * 1500 + [1] * 500
  train, dev = examples(words, labels), examples(['w3', 'w3', 'w7', 'new'], [0, 1, 0, 1])
  mine, theirs = probe_data.control_labels(train, dev, 3, seed=5)
  assert theirs[0] == theirs[1] == mine[3] and theirs[2] == mine[7]
  assert 0.2 < (mine == 1).mean() < 0.3 and not (mine == 2).any()
  assert (probe_data.control_labels(train, dev, 3, seed=5)[0] == mine).all()
  assert (probe_data.control_labels(train, dev, 3, seed=6)[0] != mine).any()


def test_baselines_are_the_most_frequent_labels():
  train = examples(['a', 'a', 'a', 'b', 'c', 'd'], [1, 1, 2, 0, 2, 2])
  dev = examples(['a', 'b', 'new'], [1, 0, 2])
  found = probe_data.baseline_answers(train, dev)
  assert found['majority'].tolist() == [2, 2, 2] and found['word type'].tolist() == [1, 0, 2]
  assert list(probe_data.baseline_answers(train._replace(words=()), dev)) == ['majority']
