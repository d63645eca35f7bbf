"""Characters that a tokenizer loses: every character of a text has one fate, for any tokenizer."""

import pathlib
import sys

import hypothesis
import made_tokenizers
import pytest
from hypothesis import strategies

from electra_jax import registry
from electra_jax.data.tokenizers import character_losses
from electra_jax.data.tokenizers.character_losses import CharacterLosses

EXAMPLE = pathlib.Path(__file__).parents[1] / 'extending' / 'tokenizer.py'
KINDS = {
  'unigram': {'kind': 'unigram'},
  'unigram, bytes': {'kind': 'unigram', 'byte_fallback': True},
  'bpe': {'kind': 'bpe'},
  'bpe, bytes': {'kind': 'bpe', 'byte_fallback': True},
  'wordpiece': {'kind': 'wordpiece', 'lowercase': True, 'strip_accents': True},
  'wordpiece, cased': {'kind': 'wordpiece', 'lowercase': False},
  'user code without offsets': {'kind': 'characters', 'options': {'lowercase': False}},
}
# Words, and the fates of their characters by kind: (fate, number) of those that are not kept.
ANY = tuple(KINDS)
BYTES = ('unigram, bytes', 'bpe, bytes')
NO_BYTES = ('unigram', 'bpe', 'user code without offsets')
WORDPIECE = ('wordpiece', 'wordpiece, cased')
FRAGMENTS = [
  ('the', ANY, {}),
  ('(old)', ANY, {}),
  ('The', ('wordpiece',), {'case_folded': 1}),
  ('The', ('wordpiece, cased', *BYTES, *NO_BYTES), {}),
  # A word over the limit of WordPiece becomes one [UNK].
  ('e' * 150, WORDPIECE, {'unknown': 150}),
  ('e' * 150, (*BYTES, *NO_BYTES), {}),
  ('บ้าน', (*WORDPIECE, *NO_BYTES), {'unknown': 4}),
  ('บ้าน', BYTES, {}),
  ('caf\u00e9', ('wordpiece',), {'changed': 1}),
  ('cafe\u0301', ('wordpiece',), {'removed': 1}),
  ('cafe\u0301', BYTES, {'changed': 2}),
  ('o\ufb03ce', BYTES, {'changed': 1}),
  ('a\u0007b', WORDPIECE, {'removed': 1}),
]


@pytest.fixture(scope='module')
def trained():
  registry.load_plugins([EXAMPLE])
  documents = made_tokenizers.documents()
  yield {
    name: made_tokenizers.train(documents, vocab_size=700, **settings)
    for name, settings in KINDS.items()
  }
  del registry.TOKENIZERS._entries['characters']
  for name, module in list(sys.modules.items()):
    if getattr(module, '__file__', None) == str(EXAMPLE):
      del sys.modules[name]


@pytest.mark.parametrize('kind', KINDS)
def test_counts_of_a_text_are_those_of_its_words(trained, kind):
  known = [(word, fates) for word, kinds, fates in FRAGMENTS if kind in kinds]

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(strategies.lists(strategies.sampled_from(known), min_size=1, max_size=12))
  def check(words):
    text = ' '.join(word for word, _ in words)
    losses = character_losses.count(trained[kind], [text])
    expected = dict.fromkeys(character_losses.FATES, 0)
    for _, fates in words:
      for fate, number in fates.items():
        expected[fate] += number
    assert {fate: getattr(losses, fate) for fate in expected} == expected, text
    assert losses.characters == len(text)

  check()


@pytest.mark.parametrize('kind', KINDS)
def test_every_character_has_one_fate(trained, kind):
  tokenizer = trained[kind]
  alphabet = strategies.one_of(
    strategies.characters(),
    strategies.sampled_from('aeT \t\n\u3000\u200c\u200d\u0301é\u00ad\u2028\u0000ﬁ½İıกी한😀'),
  )

  @hypothesis.settings(max_examples=150, deadline=None)
  @hypothesis.given(
    strategies.lists(strategies.text(alphabet, max_size=30), max_size=3),
    strategies.integers(0, 40),
  )
  def check(texts, limit):
    losses = character_losses.count(tokenizer, texts)
    assert losses.characters == sum(map(len, texts))
    assert losses.truncated == 0 and losses.kept >= 0
    unknown = sum(ids.count(tokenizer.unk_id) for ids in tokenizer.encode_batch(texts))
    assert bool(losses.unknown) == bool(unknown)
    for fate in character_losses.FATES[:-1]:
      assert sum(losses.examples.get(fate, {}).values()) == getattr(losses, fate)
    # Truncated characters have no other fate.
    cut = character_losses.count(tokenizer, texts, [limit] * len(texts))
    longest = max(map(len, tokenizer.encode_batch(texts)), default=0)
    assert bool(cut.truncated) <= (longest > limit)
    assert cut.kept >= 0 and cut.lost <= losses.lost and cut.characters == losses.characters
    # Counts of texts add up.
    total = CharacterLosses()
    for text in texts:
      total.add(character_losses.count(tokenizer, [text]))
    assert total == losses == CharacterLosses.from_plain(losses.plain())

  check()


def test_white_space_is_counted_by_what_it_became(trained):
  losses = character_losses.count(trained['unigram'], ['two  words\nand\tmore ', '\u3000of'])
  assert losses.white_space == 5 and losses.kept == losses.characters - 5
  assert losses.examples['white_space'] == {
    '\n→ ': 1,
    '\t→ ': 1,
    ' →': 2,
    '\u3000→ ': 1,
  }


@pytest.mark.parametrize('kind', [kind for kind in KINDS if 'user' not in kind])
def test_characters_after_the_last_used_token_are_truncated(trained, kind):
  tokenizer = trained[kind]
  text = 'the old man and the sea'
  tokens = len(tokenizer.encode('the old man'))
  losses = character_losses.count(tokenizer, [text, 'the'], [tokens, 100])
  assert losses.truncated == len(' and the sea') and losses.kept == len('the old manthe')
  assert losses.truncated_share == 12 / 26
  assert character_losses.count(tokenizer, [text], [0]).truncated == len(text)


def test_examples_show_the_character_and_what_it_became(trained):
  losses = character_losses.count(trained['wordpiece'], ['Été, İ และ \ufffd'])
  assert losses.examples['changed'] == {'É→e': 1, 'é→e': 1}
  assert losses.examples['case_folded'] == {'İ→i': 1}
  assert losses.most_frequent('unknown', 2) == [('ล', 1), ('ะ', 1)]
  assert losses.examples['removed'] == {'\ufffd': 1}


def test_the_characters_of_decomposed_text_are_not_lost(trained):
  # é as one character and as two is the same text for a tokenizer that composes.
  losses = character_losses.count(trained['unigram, bytes'], ['e\u0301 e\u0301'])
  assert (losses.lost, losses.changed) == (0, 4)
  assert losses.examples['changed'] == {'e→é': 2, '\u0301→é': 2}
