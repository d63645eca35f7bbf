"""Offsets: the characters of the original text that each token stands for."""

import time
import unicodedata

import hypothesis
import made_tokenizers
import numpy as np
import pytest
from hypothesis import strategies

from electra_jax.data.tokenizers import text_parts

# White space for all tokenizers.
WHITE = ' \t\n\r\u3000\u00a0\u2003\u2028'
HOSTILE = (
  'naïve café, e\u0301te\u0301 Ω Å ﬁne oﬃce ½ cup ①② Ａｂｃ　ｄ ｶﾞｷﾞ 가나 \u1100\u1161 İstanbul '
  'ẞ 日本語 لا فلسفة ﷺ x\u0651 😀 👩\u200d👩\u200d👧 🇫🇷 👍🏽 a\u200bb c\u00add \ufeffe \0f\0 '
  "\x01g \x85 \u2581h \ufffd U.S. $1,000.50 don't\t \n\r\n   end  "
)


@pytest.fixture(scope='module')
def texts():
  return made_tokenizers.documents()


@pytest.fixture(scope='module')
def trained(texts):
  def train(kind, **options):
    return made_tokenizers.train(texts, kind=kind, vocab_size=800, **options)

  return {
    'unigram': train('unigram'),
    'unigram, bytes': train('unigram', byte_fallback=True),
    'bpe': train('bpe'),
    'bpe, bytes': train('bpe', byte_fallback=True),
    'wordpiece': train('wordpiece'),
    'wordpiece, cased': train('wordpiece', lowercase=False),
  }


@pytest.fixture(
  params=['unigram', 'unigram, bytes', 'bpe', 'bpe, bytes', 'wordpiece', 'wordpiece, cased']
)
def tokenizer(request, trained):
  return trained[request.param]


def slices(tokenizer, text):
  """(token, its characters) of each token that has characters."""
  ids, spans = tokenizer.encode_with_offsets([text], threads=1)[0]
  return [
    (tokenizer.token(i), text[start:end])
    for i, (start, end) in zip(ids, spans, strict=True)
    if start < end
  ]


def simple(text):
  """A text without the differences between both normalizations."""
  text = unicodedata.normalize('NFKD', text.replace('\ufffd', '')).casefold()
  return ''.join(
    c for c in unicodedata.normalize('NFKD', text) if unicodedata.category(c)[0] not in 'MCZ'
  )


def check(tokenizer, text):
  ((ids, spans),) = tokenizer.encode_with_offsets([text], threads=1)
  assert ids.dtype == spans.dtype == np.int32 and spans.shape == (len(ids), 2)
  np.testing.assert_array_equal(ids, tokenizer.encode_arrays([text], threads=1)[0])
  start, end = spans.T
  assert (0 <= start).all() and (start <= end).all() and (end <= len(text)).all()
  assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all()
  covered = np.zeros(len(text), bool)
  for i, (first, last) in zip(ids.tolist(), spans.tolist(), strict=True):
    part, token = text[first:last], tokenizer.token(i)
    assert not set(part) & set(WHITE), (token, part)
    covered[first:last] = True
    piece = token.strip('\u2581') if tokenizer.kind == 'sentencepiece' else token.removeprefix('##')
    if i == tokenizer.unk_id or token.startswith('<0x'):
      assert part, token
    else:
      assert simple(piece) in simple(part) and (bool(part) if piece else part in ('', 'ﷺ')), (
        token,
        part,
      )
  assert all(covered[i] for i, c in enumerate(text) if c.isascii() and c.isprintable() and c != ' ')


def test_spans_of_unusual_text_fit_their_tokens(tokenizer):
  check(tokenizer, HOSTILE)
  for word in HOSTILE.split(' '):
    check(tokenizer, word)
    check(tokenizer, f' {word} ')


def test_spans_of_any_text_are_ordered_and_fit_their_tokens(tokenizer):
  @hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
  @hypothesis.given(
    strategies.one_of(
      strategies.text(max_size=30),
      strategies.text(alphabet=HOSTILE, max_size=40),
      strategies.text(alphabet='aeitﬁ½ \u0301\u0308\u1100\u1161', max_size=20),
    )
  )
  def holds(text):
    check(tokenizer, text)

  holds()


def test_a_word_is_the_slice_of_its_tokens(trained):
  for tokenizer in trained.values():
    for text in (
      'Once  in Zürich\u00a0met 😀😀 the cafe\u0301. Ｎo　more',
      'the\tman\n\n\n of the hour',
    ):
      ids, spans = tokenizer.encode_with_offsets([text])[0]
      for word in text.split():
        first = text.index(word)
        tokens = np.flatnonzero((spans[:, 0] < first + len(word)) & (spans[:, 1] > first))
        assert text[spans[tokens[0], 0] : spans[tokens[-1], 1]] == word


def test_each_byte_has_the_span_of_its_character(trained):
  for kind in ('unigram, bytes', 'bpe, bytes'):
    assert slices(trained[kind], '😀e\u0301')[:4] == [
      ('<0xF0>', '😀'),
      ('<0x9F>', '😀'),
      ('<0x98>', '😀'),
      ('<0x80>', '😀'),
    ]
    assert slices(trained[kind], '😀e\u0301')[4:] == [('<0xC3>', 'e\u0301'), ('<0xA9>', 'e\u0301')]


def test_each_letter_of_a_ligature_has_its_span(trained):
  assert all(part == 'ﬃ' for kind in ('unigram', 'bpe') for _, part in slices(trained[kind], 'ﬃ'))
  assert [part for _, part in slices(trained['unigram'], 'a ﬃ')] == [
    'a',
    *['ﬃ'] * len(slices(trained['unigram'], 'ﬃ')),
  ]


def test_a_stripped_accent_is_in_the_span_of_its_letter(trained):
  assert [part for _, part in slices(trained['wordpiece'], 'ne\u0301\u0302e\u0301 e\u0301')][
    -1
  ] == 'e\u0301'
  assert (
    ''.join(part for _, part in slices(trained['wordpiece'], 'ne\u0301\u0302e\u0301'))
    == 'ne\u0301\u0302e\u0301'
  )


def test_lone_surrogates_do_not_move_spans(tokenizer):
  ids, spans = tokenizer.encode_with_offsets(['ab \ud800 ab', 'cd'])[0]
  np.testing.assert_array_equal(ids, tokenizer.encode('ab \ud800 ab'))
  assert (spans[-1, 1], spans[0, 0]) == (7, 0)


def test_spans_do_not_depend_on_threads_or_batch(tokenizer, texts):
  batch = [*texts[:20], '', HOSTILE]
  alone = [tokenizer.encode_with_offsets([text], threads=1)[0] for text in batch]
  for threads in (None, 1, 2):
    for one, other in zip(alone, tokenizer.encode_with_offsets(batch, threads), strict=True):
      np.testing.assert_array_equal(one[0], other[0])
      np.testing.assert_array_equal(one[1], other[1])
  assert tokenizer.encode_with_offsets([]) == []
  assert [array.shape for array in tokenizer.encode_with_offsets([''])[0]] == [(0,), (0, 2)]


@pytest.mark.parametrize('kind', ['bpe', 'wordpiece'])
def test_splitting_a_long_text_moves_no_span(trained, kind, texts, monkeypatch):
  text = '\n\n'.join(texts)[:30_000] + HOSTILE * 5
  whole = trained[kind].encode_with_offsets(['before', text, ''])
  monkeypatch.setattr(text_parts, 'LONG_TEXT', 3000)
  monkeypatch.setattr(text_parts, 'CALL_CHARACTERS', 10_000)
  for one, other in zip(
    whole, trained[kind].encode_with_offsets(['before', text, '']), strict=True
  ):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_spans_of_a_quarter_million_characters(tokenizer):
  text = 'The old man 😀 had  listed. ' * 9260
  assert len(text) > 250_000
  ids, spans = tokenizer.encode_with_offsets([text], threads=1)[0]
  np.testing.assert_array_equal(ids, tokenizer.encode_arrays([text], threads=1)[0])
  assert (np.diff(spans[:, 0]) >= 0).all() and spans[-1, 1] == len(text) - 1
  words = {text[start:end] for start, end in spans.tolist()}
  assert not any(set(word) & set(WHITE) for word in words) and len(words) < 60


def test_ten_thousand_contexts_take_seconds(trained, texts):
  contexts = [text for text in texts if 100 < len(text) < 3000]
  contexts = (contexts * (2000 // len(contexts) + 1))[:2000]
  for tokenizer in (trained['unigram'], trained['wordpiece']):
    start = time.perf_counter()
    tokenizer.encode_with_offsets(contexts, threads=1)
    # A fifth of the contexts; about a second on an idle machine.
    assert time.perf_counter() - start < 20
