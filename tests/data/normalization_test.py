"""Rules of normalization of trained tokenizers: what they keep, how they are saved and exported."""

import unicodedata

import hypothesis
import made_tokenizers
import pytest
from hypothesis import strategies

from electra_jax.data.tokenizers import (
  character_losses,
  charsmap,
  normalization,
  tokenization,
)
from electra_jax.errors import UserError
from electra_jax.interop import tokenizer_files

PERSIAN = 'می\u200cخواهم کتاب\u200cها را بخوانم، نمی\u200cشود'
SINHALA = 'ශ්\u200dරී ලංකාව'
HINDI = 'हिन्दी में पढ़ना और लिखना'
THAI = 'ที่นี่มีผู้คน'
TURKISH = 'IŞIK ışık İZMİR izmir DİYARBAKIR diyarbakır ÖĞÜN öğün'
ACCENTS = 'Café naïve Ὀδυσσεύς ёлка Йод'
SCRIPTS = [PERSIAN, SINHALA, HINDI, THAI]


@pytest.fixture(scope='module')
def train():
  trained = {}

  def get(kind, **settings):
    key = (kind, *settings.items())
    if key not in trained:
      texts = [*made_tokenizers.documents()[:25], *(f'{t} ' * 40 for t in [*SCRIPTS, ACCENTS])]
      texts += [f'{TURKISH} {ACCENTS.lower()} e o u '] * 40
      trained[key] = made_tokenizers.train(texts, kind=kind, vocab_size=600, **settings)
    return trained[key]

  return get


KINDS = pytest.mark.parametrize('kind', ['unigram', 'wordpiece'])


@KINDS
def test_by_default_joiners_and_vowel_signs_are_kept(train, kind):
  losses = character_losses.count(train(kind, normalization='auto'), SCRIPTS)
  assert losses.lost == losses.white_space == losses.changed == 0
  original = character_losses.count(train(kind), SCRIPTS)
  assert original.lost + original.white_space >= 3  # what version 0.1.0 lost, now counted


@KINDS
def test_turkish_casing_pairs_dotless_and_dotted_letters(train, kind):
  tokenizer = train(kind, normalization='auto', casing='turkish')
  ids = [tokenizer.encode(word) for word in TURKISH.split()]
  assert ids[0::2] == ids[1::2]
  assert tokenizer.encode('ISI') == tokenizer.encode('ısı') != tokenizer.encode('isi')
  losses = character_losses.count(tokenizer, [TURKISH])
  assert losses.lost == losses.changed == 0 < losses.case_folded


@KINDS
def test_accents_are_stripped_from_latin_greek_and_cyrillic_letters_only(train, kind):
  tokenizer = train(kind, normalization='auto', lowercase=True, strip_accents=True)
  plain = 'cafe naive οδυσσευς елка иод'
  assert tokenizer.decode(tokenizer.encode(ACCENTS)).replace('σ ', 'ς ') == plain
  assert tokenizer.decode(tokenizer.encode(unicodedata.normalize('NFD', ACCENTS))) == plain
  assert character_losses.count(tokenizer, SCRIPTS).lost == 0


@KINDS
def test_a_trained_rule_is_saved_and_opened(train, kind, tmp_path):
  tokenizer = train(kind, normalization='auto', casing='turkish')
  tokenizer.save(tmp_path)
  opened = tokenization.load_tokenizer(tmp_path)
  assert opened.fingerprint == tokenizer.fingerprint
  for text in [*SCRIPTS, TURKISH, ACCENTS]:
    assert opened.encode(text) == tokenizer.encode(text)


@KINDS
def test_transformers_applies_the_rule_of_an_export(train, kind, tmp_path):
  import transformers

  tokenizer = train(kind, normalization='auto', casing='turkish')
  for name, content in tokenizer_files.files(tokenizer, 128, True).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  odd = 'a\u00adb\u200ec \u0007 e\u0301 \u3000 ½ ﬁ \u200b x'
  for text in [*SCRIPTS, TURKISH, ACCENTS, odd, unicodedata.normalize('NFD', TURKISH)]:
    assert theirs(text, add_special_tokens=False)['input_ids'] == tokenizer.encode(text), text
  assert tokenization.load_tokenizer(tmp_path).encode(TURKISH) == tokenizer.encode(TURKISH)


def test_the_original_program_does_not_read_another_rule(train):
  assert train('wordpiece').read_by_original_program
  assert not train('wordpiece', normalization='auto').read_by_original_program


@KINDS
def test_a_file_of_rules_is_the_whole_rule(train, kind, tmp_path):
  path = tmp_path / 'rules.tsv'
  path.write_text('# quotes\n201C\t22\n201D\t22\nAD\t\n')
  tokenizer = train(kind, normalization=str(path))
  assert tokenizer.encode('\u201cthe\u201d') == tokenizer.encode('"the"')
  assert tokenizer.encode('t\u00adhe') == tokenizer.encode('the')
  losses = character_losses.count(tokenizer, ['\u201cthe\u201d t\u00adhe'])
  assert losses.examples == {'removed': {'\u00ad': 1}, 'changed': {'“→"': 1, '”→"': 1}}
  path.unlink()  # the tokenizer holds the rules
  opened = tokenization.from_files(tokenizer.kind, tokenizer.files)
  assert opened.encode('\u201cthe\u201d') == tokenizer.encode('"the"')


def test_a_rule_of_several_characters_is_for_sentencepiece(train, tmp_path):
  path = tmp_path / 'rules.tsv'
  path.write_text('2E 2E 2E\t2026\n')
  tokenizer = train('unigram', normalization=str(path))
  losses = character_losses.count(tokenizer, ['the... the.'])
  assert losses.characters - losses.kept == 3
  with pytest.raises(UserError, match='rules of single characters, or .*tokenizer=unigram'):
    train('wordpiece', normalization=str(path))


@pytest.mark.parametrize('line', ['x\t22', '110000\t22', '\t22', 'D800\t22'])
def test_a_wrong_rule_is_named(tmp_path, line):
  path = tmp_path / 'rules.tsv'
  path.write_text(f'201C\t22\n{line}\n')
  with pytest.raises(UserError, match='line 2 of the rule file .* expected code points in hex'):
    normalization.check_rule(str(path))


def test_an_unknown_rule_is_refused_with_the_known_ones():
  with pytest.raises(UserError, match="normalization is 'nfkd'; expected auto, original, none"):
    normalization.check_rule('nfkd')


def test_the_rule_is_part_of_the_identity_of_a_trained_tokenizer(tmp_path):
  def identity(kind, **settings):
    settings = tokenization.TokenizerSettings(kind=kind, vocab_size=300, **settings)
    return tokenization.settings_identity(settings)

  # Tokenizers of version 0.1.0 keep theirs.
  assert identity('unigram') == [None] and identity('wordpiece') == [None, None]
  path = tmp_path / 'rules'
  path.write_text('AD\t\n')
  other = tmp_path / 'other'
  other.write_text('AD\t2D\n')
  for kind in ('unigram', 'wordpiece'):
    rules = [{'normalization': rule} for rule in (*normalization.NAMES, str(path), str(other))]
    rules += [{'normalization': 'auto', 'casing': 'turkish'}]
    identities = [str(identity(kind, **settings)) for settings in rules]
    assert len(set(identities)) == len(identities)


def test_the_default_rule_differs_from_nmt_nfkc_in_characters_without_width_only():
  default = normalization._auto()
  usual = normalization._named('nmt_nfkc')
  changed = {s: t for s, t in usual.items() if default.get(s) != t}
  assert set(default) <= set(usual)
  assert set(changed) == {'\u200c', '\u200e', '\u200f', '\u061c', '\ufeff'}
  assert '\u200c' not in default and default['\u200e'] == ''


def test_nfc_is_that_of_unicode():
  rules = normalization.compile_rules(normalization._nfc())
  base = strategies.sampled_from('aeiouyAEO\u1100\u1161\u11a8αωиЕकड')
  marks = strategies.text(strategies.sampled_from('\u0301\u0308\u0306\u0323\u093c'), max_size=1)

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(strategies.lists(strategies.tuples(base, marks), max_size=8))
  def check(pairs):
    text = ''.join(letter + mark for letter, mark in pairs)
    (found,) = normalization.normalize_lines([text], rules)
    assert found == unicodedata.normalize('NFC', text)

  check()


def test_an_edit_of_compiled_rules_changes_no_other_rule():
  rules = {'a': 'x', 'b': 'x', 'c': 'x', 'cd': 'y', 'é': 'e', '\u200c': ' ', '\t': ' '}
  compiled = normalization.compile_rules(rules)
  edited = charsmap.edited(compiled, {'a': None, 'é': 'b', 'z': None})
  assert charsmap.parse_rules(edited) == {k: v for k, v in rules.items() if k != 'a'} | {'é': 'x'}


def test_byte_level_bpe_has_rules_of_its_own():
  def trained(**settings):
    texts = [*made_tokenizers.documents()[:4], 'IŞIK ışık é ½ ΣΑΣ']
    return made_tokenizers.train(texts, kind='byte_level_bpe', vocab_size=400, **settings)

  text = 'IŞIK e\u0301 ½\n x\u200cy'
  kept = trained(normalization='auto')
  assert kept.decode(kept.encode(text)) == text
  assert kept.fingerprint == trained().fingerprint  # as 'original'
  nfkc = trained(normalization='nfkc')
  assert nfkc.decode(nfkc.encode(text)) == 'IŞIK é 1⁄2\n x\u200cy'
  turkish = trained(casing='turkish', strip_accents=True)
  assert turkish.decode(turkish.encode(text)) == 'ısık e ½\n x\u200cy'
