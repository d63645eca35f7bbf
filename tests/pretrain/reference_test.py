"""The reference corruption is the same for every run, and at chance without context."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from conftest import CLS, MASK, PAD, SEP, packed_rows

from electra_jax import registry
from electra_jax.pretrain import metrics, reference
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.training.checkpoints import HELDOUT_LOSS, REFERENCE_AP

SPECIAL = (PAD, CLS, SEP, MASK)
VOCAB = 50
ROWS = 3000


def zipf_rows():
  """Rows of [CLS] text [SEP] whose tokens follow Zipf's law, as text does: int32 [ROWS, 32]."""
  rng = np.random.default_rng(0)
  p = 1 / np.arange(1, VOCAB - 4)
  rows = np.full((ROWS, 32), PAD, np.int32)
  rows[:, :30] = 5 + rng.choice(VOCAB - 5, (ROWS, 30), p=p / p.sum())
  rows[:, 0], rows[:, 29] = CLS, SEP
  return rows


def store_of(rows):
  frequencies = np.bincount(rows.reshape(-1), minlength=VOCAB) / len(rows)
  return types.SimpleNamespace(token_frequencies=lambda most: frequencies.copy())


@pytest.fixture(scope='module')
def corrupted():
  rows = zipf_rows()
  found = reference.reference_of(store_of(rows), SPECIAL)
  return found, rows, found.corrupt(rows, np.arange(ROWS))


def test_a_row_is_corrupted_alike_in_any_batch(corrupted):
  found, rows, shown = corrupted
  chosen = np.array([2, 999, 17])
  np.testing.assert_array_equal(found.corrupt(rows[chosen], chosen), shown[chosen])
  assert (found.corrupt(rows[:3], np.arange(3) + 1) != shown[:3]).any()
  other = reference.Reference(found.probabilities, SPECIAL, seed=1)
  assert (other.corrupt(rows[:3], np.arange(3)) != shown[:3]).any()


def test_15_percent_of_the_tokens_that_are_not_special_are_replaced(corrupted):
  _, rows, shown = corrupted
  assert ((shown != rows).sum(1) == round(0.15 * 28)).all()
  assert not (shown != rows)[np.isin(rows, SPECIAL)].any()
  assert not np.isin(shown[shown != rows], SPECIAL).any()


def test_displayed_tokens_follow_the_unigram_distribution_at_replaced_positions(corrupted):
  found, rows, shown = corrupted
  replaced = np.bincount(shown[shown != rows], minlength=VOCAB)
  expected = found.probabilities * replaced.sum()
  frequent = expected > 20
  assert frequent.sum() > 30 and found.probabilities.max() > 0.2  # rejection would be visible
  deviation = (replaced - expected)[frequent] / np.sqrt(expected[frequent])
  assert np.abs(deviation).max() < 4 and np.abs(deviation).mean() < 1.2


def test_a_classifier_without_context_is_at_chance(corrupted):
  found, rows, shown = corrupted
  where, labels = ~np.isin(rows, SPECIAL), (shown != rows).astype(np.float32)
  # The best one that can be fitted to these very rows: the fraction of replaced among each token.
  count = np.bincount(shown[where], minlength=VOCAB)
  rate = np.bincount(shown[where], labels[where], minlength=VOCAB) / np.maximum(count, 1)
  assert sklearn.metrics.roc_auc_score(labels[where], rate[shown[where]]) < 0.53
  # That by unigram probability, as it is reported.
  ranks = found.ranks(metrics.NONLINEAR.number)[shown]
  sums = metrics.reference_sums(
    jnp.zeros(shown.shape), jnp.asarray(ranks), labels, where, metrics.Summing()
  )
  values = metrics.reference_metrics({name: np.asarray(x) for name, x in sums.items()})
  scores = -found.probabilities[shown[where]]
  assert values['reference_unigram_auc'] == pytest.approx(
    sklearn.metrics.roc_auc_score(labels[where], scores), abs=1e-6
  )
  assert values['reference_unigram_ap'] == pytest.approx(
    sklearn.metrics.average_precision_score(labels[where], scores), abs=1e-6
  )
  assert values['reference_unigram_auc'] == pytest.approx(0.5, abs=0.01)
  assert values['reference_unigram_ap'] == pytest.approx(values['reference_rate'], abs=0.01)
  # One that is right everywhere is perfect.
  verdicts = jnp.asarray(20 * labels - 10)
  sums = metrics.reference_sums(verdicts, jnp.asarray(ranks), labels, where, metrics.Summing())
  values = metrics.reference_metrics({name: np.asarray(x) for name, x in sums.items()})
  assert values['reference_ap'] == values['reference_auc'] == 1
  assert values['reference_gain'] == pytest.approx(
    metrics.binary_entropy(values['reference_rate']), abs=1e-3
  )


@pytest.mark.parametrize('tokens', [[5], [], [5, 6]])
def test_rows_with_few_or_no_tokens_are_corrupted_where_possible(tokens):
  rows = np.array([[CLS, *tokens, *tokens, SEP, *[PAD] * 8][:8]] * 4, np.int32)
  found = reference.reference_of(store_of(rows), SPECIAL)
  shown = found.corrupt(rows, np.arange(4))
  assert (shown != rows).any() == (len(tokens) == 2)
  assert not np.isin(shown[shown != rows], SPECIAL).any()


def test_the_original_is_never_drawn():
  rng = np.random.default_rng(0)
  rows = packed_rows(200, 32, VOCAB)
  for _ in range(3):
    p = rng.dirichlet(np.full(VOCAB, 0.1))
    p[list(SPECIAL)] = 0
    found = reference.Reference(p / p.sum(), SPECIAL)
    shown = found.corrupt(rows, np.arange(200))
    counts = (shown != rows).sum(1)
    usable = (~np.isin(rows, SPECIAL)).sum(1)
    np.testing.assert_array_equal(
      counts, np.minimum(usable, np.maximum(1, np.round(0.15 * usable)))
    )


@pytest.mark.parametrize('original, expected', [(6, 7), (7, 6)])
def test_where_rounding_leaves_no_other_token_the_most_probable_one_is_shown(original, expected):
  p = np.zeros(10)
  p[6], p[7] = 1.0, 1e-17  # the sum of both is 1 in float64
  rows = np.full((5, 8), original, np.int32)
  shown = reference.Reference(p, SPECIAL).corrupt(rows, np.arange(5))
  assert set(shown[shown != rows]) == {expected} and (shown != rows).sum() == 5


@pytest.mark.parametrize(
  'name, expected',
  [
    ('electra', REFERENCE_AP),
    ('electra_15', REFERENCE_AP),
    ('electric', REFERENCE_AP),
    ('all_tokens_mlm', REFERENCE_AP),
    ('mlm', HELDOUT_LOSS),
    ('replace_mlm', HELDOUT_LOSS),
  ],
)
def test_the_criterion_of_an_objective(name, expected):
  assert registry.OBJECTIVES.get(name).best_by == expected


def test_electric_adds_the_noise_to_its_energies(monkeypatch):
  from electra_jax.pretrain.objectives import parts

  monkeypatch.setattr(parts, 'verdict_logits', lambda params, context, ids: jnp.ones(ids.shape))
  ids, noise = jnp.zeros((2, 3), jnp.int32), jnp.full((2, 3), 0.5)
  context = types.SimpleNamespace(settings=Settings())
  for name, value in (('electra', 1.0), ('electric', 1.5)):
    found = registry.OBJECTIVES.get(name).reference_verdicts({}, context, ids, noise)
    assert (found == value).all()
