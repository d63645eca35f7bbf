"""Near-duplicate documents are found by their runs of words; the first one is kept."""

import random

import numpy as np
import pytest

from electra_jax.data.corpus import duplicates

WORDS = [f'word{i}' for i in range(2000)]


def document(seed, length=400):
  return random.Random(seed).choices(WORDS, k=length)


def changed(words, share, seed=0):
  """The words with a share of them replaced."""
  rng = random.Random(seed)
  return [rng.choice(WORDS) if rng.random() < share else word for word in words]


def jaccard(a, b):
  a, b = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a, b))
  return len(a & b) / len(a | b)


def gone(texts, threshold=0.8):
  return duplicates.near_duplicates([duplicates.signature(text) for text in texts], threshold)


def test_signatures_estimate_the_jaccard_similarity():
  errors = []
  for seed in range(30):
    a = document(seed, 300 + 50 * seed)
    b = changed(a, 0.002 * seed, seed)
    estimate = np.mean(duplicates.signature(' '.join(a)) == duplicates.signature(' '.join(b)))
    errors.append(estimate - jaccard(a, b))
  assert (
    np.abs(errors).max() < 0.15 and np.abs(np.mean(errors)) < 0.03
  )  # the deviation of 128 entries is at most 0.044


def test_case_punctuation_and_spacing_do_not_count():
  a, b = 'The cat sat on the mat, quietly. It slept!', 'the cat  sat on\nthe mat quietly; it slept'
  assert np.array_equal(duplicates.signature(a), duplicates.signature(b))
  assert not np.array_equal(
    duplicates.signature(a), duplicates.signature('the mat sat on the cat quietly it slept')
  )


def test_the_first_of_each_family_is_kept():
  families = [document(seed) for seed in range(20)]
  texts, owner = [], []
  for copy in range(3):
    for i, words in enumerate(families):
      texts.append(' '.join(changed(words, 0.01 * copy, seed=100 * copy + i)))
      owner.append(i)
  similar = [jaccard(families[owner[n]], texts[n].split()) for n in range(len(texts))]
  found = gone(texts)
  assert not set(found) & set(range(20)), 'originals are kept'
  for n in range(20, 60):
    if similar[n] > 0.93:
      assert n in found
    if similar[n] < 0.67:
      assert n not in found
  assert found == sorted(found) and len(found) > 20


@pytest.mark.parametrize('threshold', [0.02, 0.5, 0.99, 0.999, 1.0])
def test_any_threshold_works(threshold):
  a, b = document(1), document(2)
  assert gone([' '.join(words) for words in (a, b, a, b)], threshold) == [2, 3]


def test_a_dropped_document_is_similar_to_a_kept_one():
  # A chain whose neighbors are alike and whose ends are not. Once the middle is dropped, the end is
  # unlike every kept document.
  a = document(1, 2000)
  b = changed(a, 0.02, 1)
  c = changed(b, 0.02, 2)
  d = changed(c, 0.02, 3)
  texts = [' '.join(words) for words in (a, b, c, d)]
  signatures = [duplicates.signature(text) for text in texts]

  def alike(i, j):
    return np.mean(signatures[i] == signatures[j]) >= 0.75

  assert alike(0, 1) and not alike(0, 3)
  found = duplicates.near_duplicates(signatures, 0.75)
  kept = set(range(4)) - set(found)
  assert 1 in found and all(any(alike(i, j) for j in kept if j < i) for i in found)
  assert all(not alike(i, j) for i in kept for j in kept if j < i)


@pytest.mark.parametrize('text', ['', ' ', '!!!', 'one', 'two words', '\x00', '\ud800'])
def test_short_and_unusual_documents_have_signatures(text):
  signature = duplicates.signature(text)
  assert signature.shape == (duplicates.PERMUTATIONS,) and signature.dtype == np.uint32
  assert gone([text, 'a quite different text of several words', text]) == [2]


def test_scripts_without_spaces_are_compared_by_character():
  a = (
    '吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。'
    '何でも薄暗いじめじめした所で泣いていた事だけは記憶している。'
  )
  assert gone([a, a.replace('猫', '犬') * 1, a[::-1]], 0.7) == [1]


def test_signatures_do_not_change_between_versions():
  assert (
    duplicates.signature('The quick brown fox jumps over the lazy dog').tolist()[:4] == SIGNATURE
  )


SIGNATURE = [222797347, 1001240143, 243773083, 85853507]
