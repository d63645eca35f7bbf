"""Tokens of held-out rows have the color of their probability and the mark of their verdict."""

import re

from conftest import CLS, PAD, SEP
from foreign_html import foreign
from readable_test import handmade, tokenizer

from electra_jax.pages.colored_rows import row_html
from electra_jax.pages.html_page import page

WORDS = ['▁The', '▁cell', '▁<b>', '▁is', 's', '▁stone', '▁\u202eevil']


def made_row():
  """The html of a row with every kind of verdict."""
  the, cell, bold, is_, s, stone, evil = range(5, 12)
  row = handmade(
    [CLS, the, cell, bold, is_, s, SEP, PAD],
    masked={2: True, 3: True, 5: True},
    corrupted={2: stone, 3: evil},
    p_replaced={1: 0.0, 2: 0.84375, 3: 0.12, 4: 0.64, 5: 0.31},
  )
  return row_html(row, tokenizer(tokens=WORDS), 7)


def element(text, word):
  """Attributes and content of the innermost marked token that contains a word."""
  tokens = re.findall(r'<(bdi|span) class="(token[^"]*)" title="([^"]*)">(.*?)</\1>', text)
  return next(one[1:] for one in tokens if word in one[3])


def test_each_verdict_has_its_mark_color_and_probability():
  text = made_row()
  assert element(text, 'stone') == (
    'token marked caught p8',
    'caught, probability of &quot;replaced&quot; 84.3%',
    '<del>cell</del><ins>stone</ins><small>84%</small>',
  )
  assert element(text, 'evil')[0] == 'token marked missed p1'
  assert element(text, '>is<')[0] == 'token marked alarm p6'
  assert element(text, '>s<')[0] == 'token marked kept p3'
  assert '<span class="token" title="original' in text  # no color at 0
  assert '7 tokens, 2 replaced: 1 caught, 1 missed; 1 false alarm<' in text
  assert '[PAD]' not in text


def test_text_is_shown_as_it_is():
  text = made_row()
  assert '<del>&lt;b&gt;</del><ins>\\u202eevil</ins>' in text
  assert foreign(page('x', text)) == []
