"""Masks of whole words and of spans equal a definition in NumPy; they depend on the row's key."""

import dataclasses
import functools

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import CLS, MASK, PAD, SEP, UNK, packed_rows, random_params, tiny_electra

from electra_jax.config import checked_pretraining, default_config
from electra_jax.errors import UserError
from electra_jax.model.randomness import row_keys
from electra_jax.pretrain import build, inspect, masking
from electra_jax.pretrain.objectives.parts import mask_rows
from electra_jax.pretrain.objectives.settings import Settings

BATCH = 8
LENGTH = 40
VOCAB = 20
SLOTS = 8
SPECIAL = (PAD, CLS, SEP, MASK)
STARTS = np.arange(60) % 3 == 0  # two of three tokens continue a word
METHODS = ('words', 'spans')


SETTINGS = Settings(
  masking='words', mask_rate=0.25, max_predictions=SLOTS, word_starts=masking.packed(STARTS)
)


@functools.partial(jax.jit, static_argnames='settings')
def _draw(settings, ids, seed, step, rows):
  keys = masking.stream(row_keys(seed, step, rows), masking.MASKING)
  return masking.choose(settings, ids, ~jnp.isin(ids, jnp.array(SPECIAL)), keys)


def draw(ids, seed, step=0, rows=None, **changes):
  rows = np.arange(len(ids)) if rows is None else rows
  return _draw(dataclasses.replace(SETTINGS, **changes), ids, seed, step, rows)


def words_of(ids):
  """The positions of each word of a row, and the number of its segment between special tokens."""
  words, stretches, stretch, inside = [], [], 0, False
  for position, token in enumerate(ids):
    if token in SPECIAL:
      inside, stretch = False, stretch + 1
      continue
    if STARTS[token] or not inside:
      words.append([])
      stretches.append(stretch)
    words[-1].append(position)
    inside = True
  return words, stretches


def defined(ids, key, settings):
  """The definition for one row, as loops over words: chosen positions, and what is read."""
  p, most = settings.span_p, settings.span_max
  where, what = jax.random.split(key)
  scores, draws = np.asarray(jax.random.uniform(where, (2, len(ids))))
  shown_draws = np.asarray(jax.random.uniform(what, (len(ids),)))
  words, stretches = words_of(ids)
  tokens = sum(map(len, words))
  budget = int(np.round(np.float32(settings.mask_rate) * np.float32(tokens)))
  budget = min(settings.max_predictions, max(1, budget)) if tokens else 0
  shares = np.array([(1 - p) ** k * p for k in range(most)])
  shares = shares / shares.sum()
  order, unit = [], {}  # words as they are drawn, and the word or span that each was drawn with
  for begin in sorted(range(len(words)), key=lambda word: scores[word]):
    span = 1
    if settings.masking == 'spans':
      span += sum(draws[begin] >= np.float32(share) for share in np.cumsum(shares)[:-1])
    for word in range(begin, min(begin + span, len(words))):
      if stretches[word] == stretches[begin] and word not in unit:
        unit[word] = begin
        order.append(word)
  chosen, shown = [], ids.copy()
  for word in order:
    if len(chosen) + len(words[word]) <= budget:
      chosen += words[word]
      if shown_draws[unit[word]] < settings.mask_share:
        shown[words[word]] = MASK
  if not chosen and order:
    chosen = words[order[0]][:budget]
    if shown_draws[unit[order[0]]] < settings.mask_share:
      shown[chosen] = MASK
  return chosen, shown


any_rows = arrays.arrays(
  np.int32,
  (BATCH, LENGTH),
  elements=st.integers(0, VOCAB - 1),
  fill=st.sampled_from((*SPECIAL, UNK, 9, 10)),
)
sensible_rows = st.builds(
  packed_rows,
  st.just(BATCH),
  st.just(LENGTH),
  st.just(VOCAB),
  seed=st.integers(0, 10_000),
  empty_rows=st.integers(0, 2),
)
# One word per row.
long_words = arrays.arrays(
  np.int32, (BATCH, LENGTH), elements=st.sampled_from((7, 8, 10, 11)), fill=st.just(7)
)
rows = st.one_of(any_rows, sensible_rows, long_words)
seeds = st.integers(0, 2**31 - 1)


def of_row(masks, row):
  """The chosen positions of a row."""
  return np.asarray(masks.positions[row])[np.asarray(masks.weights[row]) > 0].tolist()


@hypothesis.settings(max_examples=40)
@hypothesis.given(rows, seeds)
def test_masks_are_those_of_the_definition(ids, seed):
  keys = masking.stream(row_keys(seed, 0, jnp.arange(BATCH)), masking.MASKING)
  for method in METHODS:
    masks = jax.tree.map(np.asarray, draw(ids, seed, masking=method))
    assert set(np.unique(masks.weights)) <= {0, 1} and (np.diff(masks.weights) <= 0).all()
    for row in range(BATCH):
      settings = dataclasses.replace(SETTINGS, masking=method)
      chosen, shown = defined(ids[row], keys[row], settings)
      assert sorted(of_row(masks, row)) == sorted(chosen)
      assert np.array_equal(masks.token_ids[row], shown)


@hypothesis.given(rows, seeds)
def test_words_are_masked_whole_within_the_budget_and_special_tokens_never(ids, seed):
  special = np.isin(ids, SPECIAL)
  for method in METHODS:
    masks = jax.tree.map(np.asarray, draw(ids, seed, masking=method))
    assert np.array_equal(masks.token_ids[special], ids[special])
    for row in range(BATCH):
      chosen, (words, _) = of_row(masks, row), words_of(ids[row])
      tokens = sum(map(len, words))
      budget = min(SLOTS, max(1, round(tokens / 4)))
      assert (
        len(set(chosen)) == len(chosen) <= budget
        and (chosen or not words)
        and not special[row][chosen].any()
      )
      parts = [word for word in words if 0 < len(set(word) & set(chosen)) < len(word)]
      if parts:  # the exception: every word is longer than the budget
        assert min(map(len, words)) > budget == len(chosen) and chosen == parts[0][:budget]
      elif words:  # the rest of the budget is too small for any word
        left = [len(word) for word in words if not set(word) & set(chosen)]
        assert len(chosen) + min(left, default=LENGTH) > budget
      for word in words:  # all of a word is [MASK], or nothing of it
        assert len({masks.token_ids[row, i] == MASK for i in word if i in chosen}) <= 1


# Three segments of words of one to four tokens.
SENTENCE = np.array(
  [
    CLS,
    *[9, 10] * 5,
    *[12] * 10,
    *[15, 11, 13] * 4,
    SEP,
    CLS,
    10,
    *[18] * 9,
    *[9, 7, 8, 10] * 5,
    SEP,
    *[PAD] * 10,
  ],
  np.int32,
)


@pytest.fixture(scope='module')
def many():
  """Masks by method of a row with 62 maskable tokens, drawn 3,000 times."""
  return {
    method: jax.tree.map(
      np.asarray,
      draw(
        np.tile(SENTENCE, (3000, 1)),
        11,
        masking=method,
        mask_rate=0.15,
        max_predictions=masking.max_predictions(0.15, 80),
      ),
    )
    for method in METHODS
  }


@pytest.mark.parametrize('method', METHODS)
def test_the_masked_fraction_is_the_rate(many, method):
  maskable = ~np.isin(SENTENCE, SPECIAL)
  count = many[method].weights.sum(1)
  assert count.max() == 9 == round(0.15 * maskable.sum())
  assert (count == 9).mean() > 0.99  # a word that is short enough is almost always left
  masked = (many[method].token_ids == MASK).sum(1)
  assert abs(masked.mean() / count.mean() - 0.85) < 4 * (masked / count).std() / 3000**0.5


def test_words_of_equal_length_are_equally_likely_at_all_positions(many):
  chosen = np.concatenate([of_row(many['words'], row) for row in range(3000)])
  count = np.bincount(chosen, minlength=len(SENTENCE))
  words, _ = words_of(SENTENCE)
  for size in (1, 2, 3, 4):
    of_size = [word for word in words if len(word) == size]
    assert all(len({count[i] for i in word}) == 1 for word in of_size) and len(of_size) >= 4
    assert scipy.stats.chisquare([count[word[0]] for word in of_size]).pvalue > 1e-4
  assert count[[i for i in range(len(SENTENCE)) if SENTENCE[i] in SPECIAL]].sum() == 0


def test_span_lengths_follow_a_truncated_geometric_distribution():
  """A row's first run of positions is its first span, unless a later span extends it."""
  ids = jnp.full((2000, 200), 9)  # words of one token

  def first(**span):
    masks = draw(ids, 5, masking='spans', mask_rate=0.075, max_predictions=15, **span)
    return first_runs(np.asarray(masks.positions))

  found = first()
  assert 0 < (found > 10).mean() < 0.03  # extended by a later span
  shares = 0.2 * 0.8 ** np.arange(10)
  count = np.bincount(found[found <= 10], minlength=11)[1:]
  assert scipy.stats.chisquare(count, count.sum() * shares / shares.sum()).pvalue > 1e-4
  assert abs(found[found <= 10].mean() - 3.8) < 0.2  # Joshi et al. 2020, section 3.1
  found = first(span_p=0.5, span_max=3)
  count = np.bincount(found[found <= 3], minlength=4)[1:]
  assert scipy.stats.chisquare(count, count.sum() * np.array([4, 2, 1]) / 7).pvalue > 1e-4


def test_spans_of_one_word_are_words():
  ids = packed_rows(BATCH, LENGTH, VOCAB)
  same = [
    draw(ids, 3, masking=method, **span)
    for method, span in (('words', {}), ('spans', {'span_max': 1}))
  ]
  assert all(np.array_equal(*pair) for pair in zip(*same, strict=True))


def first_runs(positions):
  """How many first positions are consecutive, per row; without spans that the row ends."""
  steps = np.pad(np.diff(positions) == 1, ((0, 0), (0, 1)))
  return np.argmin(steps, 1)[positions[:, 0] < 190] + 1


def test_spans_are_contiguous_and_words_are_not(many):
  neighbors = {
    method: np.mean(
      [
        np.diff(sorted(of_row(masks, row))) == 1
        for row in range(500)
        if masks.weights[row].sum() == 9
      ]
    )
    for method, masks in many.items()
  }
  assert neighbors['spans'] > neighbors['words'] + 0.2


def test_no_span_crosses_a_special_token():
  """One word precedes the border; a span that crossed it would include the word after it."""
  row = np.array([CLS, 9, SEP, CLS, *[12] * 35, SEP], np.int32)  # LENGTH
  positions = np.concatenate(
    [draw(np.tile(row, (BATCH, 1)), seed, masking='spans').positions for seed in range(250)]
  )
  behind = positions[positions[:, 0] == 1, 1]
  assert len(behind) > 30 and (behind == 4).mean() < 0.2


@pytest.mark.parametrize('method', METHODS)
def test_masks_depend_only_on_seed_step_and_row(method):
  ids, numbers = packed_rows(BATCH, LENGTH, VOCAB, empty_rows=1), np.arange(BATCH)
  whole = draw(ids, 5, 7, numbers, masking=method)
  others = numbers[::-1].copy()
  others[0] = others[1] = 3  # the other rows of the batch do not matter
  for ours, theirs in zip(draw(ids[others], 5, 7, others, masking=method), whole, strict=True):
    assert np.array_equal(ours, theirs[others])
  for seed, step, rows in ((6, 7, numbers), (5, 8, numbers), (5, 7, numbers + 1)):
    other = draw(ids, seed, step, rows, masking=method)
    assert sum(of_row(other, row) != of_row(whole, row) for row in range(BATCH)) >= 3


@pytest.mark.parametrize('method', METHODS)
def test_rows_on_eight_devices_are_masked_without_communication_and_equally(method):
  mesh = jax.sharding.Mesh(jax.devices(), 'data')
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  ids = packed_rows(BATCH, LENGTH, VOCAB, seed=4, empty_rows=1)
  program = (
    jax.jit(lambda ids: draw(ids, 3, masking=method), in_shardings=split, out_shardings=split)
    .lower(ids)
    .compile()
  )
  text = program.as_text()
  assert not [
    name
    for name in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute')
    if name in text
  ]
  for ours, theirs in zip(
    program(jax.device_put(ids, split)), draw(ids, 3, masking=method), strict=True
  ):
    assert np.array_equal(ours, theirs)


#### From the config to the step ####


@dataclasses.dataclass(frozen=True)
class Words:
  """What settings need of a tokenizer."""

  size: int = 60
  pad_id: int = PAD
  cls_id: int = CLS
  sep_id: int = SEP
  mask_id: int = MASK

  @property
  def word_starts(self):
    return np.arange(60) % 3 == 0

  @property
  def word_ends(self):
    return np.zeros(60, bool)


def settings_of(**fields):
  config = default_config()
  config.sequence_length = 32
  config.objective.update(fields)
  return build.build_settings(checked_pretraining(config), Words())


@pytest.mark.parametrize('method', METHODS)
def test_masks_use_the_config_and_the_word_starts_of_the_tokenizer(method):
  settings = settings_of(masking=method, mask_rate=0.3, span_p=0.5, span_max=4)
  assert (
    hash(settings) == hash(settings_of(masking=method, mask_rate=0.3, span_p=0.5, span_max=4))
    and len(settings.word_starts) == 8
  )
  ids = packed_rows(4, 32, 60, seed=2)
  keys = row_keys(1, 2, jnp.arange(4))
  masks = jax.jit(mask_rows, static_argnums=0)(settings, ids, keys)['masks']
  expected = [
    defined(row, key, settings)
    for row, key in zip(ids, masking.stream(keys, masking.MASKING), strict=True)
  ]
  for row, (chosen, shown) in enumerate(expected):
    assert (
      chosen
      and sorted(of_row(masks, row)) == sorted(chosen)
      and np.array_equal(masks.token_ids[row], shown)
    )


def test_a_word_begins_after_a_token_that_ends_one():
  """As after a line break of byte-level BPE. Without it the row would be a single word."""
  row = np.array([[CLS, 11, 12, 13, 7, 14, 15, SEP]], np.int32)
  changes = {
    'word_starts': masking.packed(np.zeros(VOCAB, bool)),
    'word_ends': masking.packed(np.arange(VOCAB) == 7),
    'mask_rate': 0.4,
  }
  masks = draw(np.tile(row, (BATCH, 1)), 1, **changes)
  chosen = [
    set(positions[weights > 0].tolist())
    for positions, weights in zip(
      np.asarray(masks.positions), np.asarray(masks.weights), strict=True
    )
  ]
  assert chosen == [{5, 6}] * BATCH  # the other word has four tokens, more than 40%


def test_settings_of_uniform_masks_have_no_word_starts():
  assert settings_of().word_starts == b''


@pytest.mark.parametrize(
  'fields, complaint',
  [
    ({'masking': 'word'}, 'masking is .word.; expected uniform, words or spans'),
    ({'span_p': 0.0}, 'span_p is 0.0'),
    ({'span_p': 1.5}, 'span_p is 1.5'),
    ({'span_max': 0}, 'span_max is 0'),
    (
      {'masking': 'words', 'google': True},
      'google masks single tokens, and .*masking is .words.; change one of the two',
    ),
  ],
)
def test_settings_that_contradict_each_other_are_refused(fields, complaint):
  with pytest.raises(UserError, match=complaint):
    settings_of(**fields)


def test_inspected_rows_have_masks_of_whole_words():
  settings = settings_of(masking='words', mask_rate=0.3)
  model = tiny_electra('modern')
  ids = packed_rows(8, 32, 60, seed=3)
  read = jax.jit(inspect.read_rows, static_argnums=(0, 1))(
    settings, model, random_params(model), ids, row_keys(0, 0, jnp.arange(8))
  )
  several = 0
  for row, hidden, masked in zip(
    ids, np.asarray(read.hidden), np.asarray(read.masked), strict=True
  ):
    words, _ = words_of(row)
    assert min(map(len, words)) <= 2  # so no word is masked in part
    for word in words:
      assert len(set(masked[word])) == 1 == len(set(hidden[word]))
      several += hidden[word[0]] and len(word) > 1
  assert several
