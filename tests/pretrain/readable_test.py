"""Rows as readable text: words joined, columns aligned, no control of the terminal."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
from conftest import CLS, MASK, PAD, SEP, UNK

from electra_jax.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS
from electra_jax.data.tokenizers.wordpiece_tokenizer import WordPieceTokenizer
from electra_jax.pretrain import readable
from electra_jax.pretrain.inspect import RowsRead, row_text


def tokenizer(cls=SentencePieceTokenizer, tokens=()):
  """A tokenizer that has a vocabulary and no files; tokens w5, w6, ... if none are given."""

  class Vocabulary(cls):
    def __init__(self):
      self.tokens = (*SPECIAL_TOKENS, *(tokens or [f'▁w{i}' for i in range(5, 60)]))
      self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = PAD, UNK, CLS, SEP, MASK

    def byte_value(self, token_id):
      token = self.tokens[token_id]
      return int(token[3:5], 16) if token.startswith('<0x') else None

  return Vocabulary()


def handmade(token_ids, **at):
  """A RowsRead of one row [length]; `at` names a field and gives its values by position."""
  n = len(token_ids)
  no, zero = np.zeros(n, bool), np.zeros(n, np.float32)
  fields = {
    'token_ids': np.array(token_ids),
    'masked': no.copy(),
    'hidden': no.copy(),
    'corrupted': np.array(token_ids),
    'replaced': no,
    'p_original': zero.copy(),
    'p_sample': zero.copy(),
    'p_replaced': zero + 0.0625,
    'called': no,
  }
  for name, values in at.items():
    for position, value in values.items():
      fields[name][position] = value
  row = RowsRead(**fields)
  return row._replace(replaced=row.corrupted != row.token_ids, called=row.p_replaced >= 0.5)


def test_a_row_shows_every_kind_of_verdict():
  tokens = tokenizer(
    tokens=['▁The', '▁cell', '▁wall', '▁is', '▁made', 's', '.', '▁of', '▁stone', 'ing']
  )
  the, cell, wall, is_, made, s, dot, of, stone, ing = range(5, 15)
  row = handmade(
    [CLS, the, cell, wall, s, is_, made, dot, SEP, CLS, stone, of, wall, s, SEP, PAD, PAD],
    masked={2: 1, 3: 1, 6: 1, 10: 1, 13: 1},
    hidden={2: 1, 3: 1, 10: 1, 13: 1},
    corrupted={2: stone, 3: the, 13: of},
    p_original={2: 0.25, 3: 0.5, 6: 0.875, 10: 1e-5, 13: 1},
    p_sample={2: 0.125, 3: 0.0625, 6: 0.875, 10: 1e-5, 13: 0},
    p_replaced={2: 0.9375, 3: 0.125, 5: 0.625, 10: 0.75, 13: 0.5, 14: 0.515},
  )
  lines = row_text(row, tokens, 12, 110, False).splitlines()
  assert [' '.join(line.split()) for line in lines] == [
    'row 12 15 tokens, 5 masked, 3 replaced, 2 caught, 1 missed, 3 false alarms',
    '',
    '[CLS] The {cell→stone ✓93%} {wall→The ✗12%}s {is !62%} {made=}. [SEP]',
    '[CLS] {stone= !75%} of wall{s→▁of ✓50%} {[SEP] !51%}',
    '',
    'context original p put there p replaced?',
    'The ___ walls is made. ▁cell 25.0% ▁stone 12.5% 93.7% caught',
    'The cell ___s is made. ▁wall 50.0% ▁The 6.2% 12.5% missed',
    'The cell walls is ___. ▁made* 87.5% ▁made 87.5% 6.2% original',
    '___ of walls ▁stone <0.1% ▁stone <0.1% 75.0% false alarm',
    'stone of wall___ s 100% ▁of <0.1% 50.0% caught',
  ]
  ends = [[match.end() for match in re.finditer('___|%', line)] for line in lines[6:]]
  assert len(ends[0]) == 4 and ends == 5 * ends[:1]  # gaps and numbers are in columns


def test_each_text_has_its_line_and_padding_has_none():
  tokens = tokenizer()

  def shown(ids):
    return [
      line.strip() for line in row_text(handmade(ids), tokens, 0, 110, False).splitlines()[2:]
    ]

  assert shown([CLS, 5, 6, SEP, 7, SEP, PAD, PAD]) == [
    '[CLS] w5 w6 [SEP]',
    'w7 [SEP]',
  ]  # a pair of texts
  assert shown([CLS, 5, SEP, CLS, 6, SEP, PAD]) == ['[CLS] w5 [SEP]', '[CLS] w6 [SEP]']
  assert shown([CLS, 5, 6]) == ['[CLS] w5 w6'] and shown([PAD, PAD]) == []
  assert (
    len(shown([CLS, *[9] * 60, SEP])) > 1
    and ' '.join(shown([CLS, *[9] * 60, SEP])).split().count('w9') == 60
  )


def test_word_pieces_and_punctuation_are_joined():
  tokens = tokenizer(
    WordPieceTokenizer,
    ['the', 'play', '##ing', ',', 'don', "'", 't', '(', 'word', ')', '##ed', '.'],
  )
  row = handmade(
    [CLS, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, SEP, CLS, 6, 7, 8, SEP],
    masked={3: 1, 15: 1, 16: 1},
    hidden={3: 1, 15: 1, 16: 1},
    corrupted={3: 5, 15: 15, 16: 16},
  )
  lines = row_text(row, tokens, 0, 110, False).splitlines()
  assert lines[2].strip() == "[CLS] the play{##ing→the ✗6%}, don't (word). [SEP]"
  assert lines[3].strip() == '[CLS] play{ing→ed ✗6%}{,→. ✗6%} [SEP]'
  assert "the play___, don't (word)." in lines[6] and '##ing' in lines[6]


def test_bytes_are_shown_as_characters():
  tokens = tokenizer(tokens=['▁', '<0xE2>', '<0x82>', '<0xAC>', '▁ok', '<0x1B>', '<0xFF>'])
  euro = [5, 6, 7, 8]

  def shown(row):
    return row_text(row, tokens, 0, 110, False).splitlines()[2].strip()

  assert shown(handmade([CLS, *euro, 9, SEP])) == '[CLS] € ok [SEP]'
  cut = handmade([CLS, *euro, 9, SEP], masked={3: 1}, corrupted={3: 6})
  assert shown(cut) == '[CLS] \\xe2{<0x82>→<0xE2> ✗6%}\\xac ok [SEP]'
  assert shown(handmade([CLS, 9, 10, 11, SEP])) == '[CLS] ok\\x1b\\xff [SEP]'


def test_a_space_precedes_only_the_beginning_of_a_word():
  tokens = tokenizer(tokens=['▁', 'R', '▁to', '▁be▁or'])

  def shown(row):
    return row_text(row, tokens, 0, 110, False).splitlines()[2].strip()

  assert shown(handmade([CLS, 7, 5, 6, 8, SEP])) == '[CLS] to R be or [SEP]'
  both = handmade([CLS, 7, 5, SEP], masked={1: 1, 2: 1}, corrupted={1: 5, 2: 7})
  assert shown(both) == '[CLS] {▁to→▁ ✗6%} {▁→to ✗6%} [SEP]'


@hypothesis.given(st.text())
def test_escaped_text_is_harmless_and_complete(text):
  safe = readable.escaped(text)
  assert not re.search(
    '[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]', safe
  )
  if text.isprintable():
    assert safe == text
  elif set(text) - set(readable.JOINERS + '\\') and '\\' not in text:

    def back(match):
      return match[0].encode().decode('unicode_escape')

    assert re.sub(r'\\(x..|u....|U........|[nrt])', back, safe) == text


@hypothesis.given(st.floats(0, 1, width=32), st.integers(0, 1))
def test_a_percentage_is_rounded_down(p, digits):
  shown = readable.percent(p, digits)
  if shown.startswith('<'):
    assert p < float(shown[1:-1]) / 100 + 1e-9
  else:
    assert -1e-6 <= 100 * p - float(shown[:-1]) <= 10.0**-digits + 1e-6
  assert (shown == '100%') == (p == 1) and len(shown) <= 5
  if p < 0.5:
    assert shown.startswith('<') or float(shown[:-1]) < 50


words = st.lists(st.tuples(st.booleans(), st.text('ab', min_size=0, max_size=12)), max_size=30)


@hypothesis.given(words, st.integers(12, 40))
def test_wrapped_lines_fit_the_width_and_are_complete(atoms, width):
  lines = readable.wrapped([(space, [(text, None)]) for space, text in atoms], width, False)
  assert all(len(line) <= width for line in lines)
  assert ''.join(lines).replace(' ', '') == ''.join(text for _, text in atoms)
  whole = readable.joined(atoms).split()
  if all(len(word) <= width for word in whole):
    assert ' '.join(lines).split() == whole


@hypothesis.given(st.text('ab日é\u0301', max_size=30), st.integers(1, 20), st.sampled_from('<>'))
def test_columns_have_the_given_width(text, width, align):
  out = readable.padded(text, width, align)
  assert readable.cells(out) == width
  if readable.cells(text) <= width and len(text) <= width:
    assert out.strip() == text and (not text or out.startswith(text) or align == '>')
