"""Rules of normalization of trained tokenizers: what happens to a text before it is split.

A rule has a name, or is a file of rules for characters. It is written into the files of the
tokenizer: a SentencePiece model has it as its table of rules, WordPiece as a sequence of
normalizers of the `tokenizers` library. Tokenizers that are given keep the rule that they have.

- auto: Unicode's composed forms (NFKC in SentencePiece, NFC in WordPiece). White space is
  simplified, control characters and marks of direction are removed. Zero-width joiners and
  non-joiners and all combining marks are kept.
- original: as in version 0.1.0: SentencePiece's nmt_nfkc, and BERT's normalizer in WordPiece.
- none: none, except that SentencePiece merges spaces.
- nfc, nfkc: the forms of Unicode (UAX #15), nothing else.
- nmt_nfkc: SentencePiece's usual rule.
"""

import functools
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from electra_jax import file_access
from electra_jax.data.tokenizers import charsmap, sentencepiece_model
from electra_jax.errors import UserError

ORIGINAL = 'original'  # the rule of version 0.1.0
NAMES = ('auto', ORIGINAL, 'none', 'nfc', 'nfkc', 'nmt_nfkc')
TURKISH = 'turkish'  # a casing rule

# Accents are stripped from letters of these scripts only; elsewhere combining marks are vowels.
ACCENTED_SCRIPTS = ('LATIN', 'GREEK', 'CYRILLIC')
_JOINERS = '\u200c\u200d'
# Marks of direction and the byte order mark, which have no width. In nmt_nfkc they become spaces.
_INVISIBLE = '\u061c\u200e\u200f\ufeff'
# What auto removes before WordPiece: control characters that are not white space, soft hyphens, and
# characters without width other than joiners. U+200B separates words in Thai and Khmer.
_REMOVED = (
  '[\\u0000-\\u0008\\u000E-\\u001F\\u007F-\\u0084\\u0086-\\u009F\\u00AD\\u061C'
  '\\u200E\\u200F\\u202A-\\u202E\\u2060-\\u2064\\u2066-\\u206F\\uFEFF]'
)
_SEPARATOR = '\u200b'

Normalizer: TypeAlias = Any  # of the library `tokenizers` or `sentencepiece`
Table: TypeAlias = dict[str, str]


def check_rule(rule: str) -> None:
  """Checks the value of config.data.normalization.

  Raises:
    UserError: it is neither a name nor a file of rules.
  """
  if rule not in NAMES:
    read_rules(rule)


def identity(rule: str) -> str:
  """What identifies a rule: its name, or a hash of the rules in its file."""
  if rule in NAMES:
    return rule
  content = repr(sorted(read_rules(rule).items()))
  return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def read_rules(path: str) -> Table:
  """Reads a file of rules: per line the characters of a source and of its target, tab-separated.

  Characters are code points in hexadecimal, separated by spaces, as in rule files of SentencePiece:
  `49 307<TAB>69`. An empty target removes the source. Text after `#` is a comment.

  Raises:
    UserError: there is no such file, or a line is not of this form.
  """
  if not file_access.exists(path):
    raise UserError(
      f'config.data.normalization is {path!r}; expected {", ".join(NAMES)}, or a file of rules.'
    )
  found: Table = {}
  text = file_access.read_bytes(path).decode('utf-8', 'replace')
  for number, line in enumerate(text.splitlines(), 1):
    line = line.partition('#')[0].rstrip()
    if not line:
      continue
    source, _, target = line.partition('\t')
    try:
      key, value = (''.join(chr(int(p, 16)) for p in part.split()) for part in (source, target))
      if not key:
        raise ValueError
      (key + value).encode()
    except (ValueError, OverflowError):
      raise UserError(
        f'line {number} of the rule file {path!r} is {line!r}; expected code points in '
        'hexadecimal, a tab and code points, such as 130, a tab and 69.'
      ) from None
    found[key] = value
  return found


#### Letters ####


def folding(
  lowercase: bool | None, strip_accents: bool | None, casing: str
) -> tuple[bool, bool, str]:
  """The same with defaults: Turkish casing lower-cases, other casing changes nothing."""
  return casing == TURKISH if lowercase is None else lowercase, bool(strip_accents), casing


def fold(text: str, lowercase: bool, strip_accents: bool, casing: str) -> str:
  """A text in lower case or without accents, as asked for."""
  if strip_accents:
    text = without_accents(text)
  if not lowercase:
    return text
  if casing == TURKISH:
    text = text.replace('I\u0307', 'i').replace('\u0130', 'i').replace('I', '\u0131')
  return text.lower()


def without_accents(text: str) -> str:
  """A text without the combining marks of Latin, Greek and Cyrillic letters, composed (NFC)."""
  kept = []
  is_accented = False
  for character in unicodedata.normalize('NFD', text):
    if unicodedata.category(character) != 'Mn':
      is_accented = unicodedata.name(character, '').startswith(ACCENTED_SCRIPTS)
    elif is_accented:
      continue
    kept.append(character)
  return unicodedata.normalize('NFC', ''.join(kept))


#### SentencePiece ####


def compiled(rule: str, lowercase: bool, strip_accents: bool, casing: str) -> bytes:
  """The compiled rules of a SentencePiece model; empty for none.

  Args:
    rule: a name other than 'original', or a file.
    lowercase: whether letters are lower-cased.
    strip_accents: whether accents are stripped.
    casing: 'unicode' or 'turkish'.
  """
  if rule == 'auto' and not (lowercase or strip_accents):  # usual, and needs no table
    return _auto_charsmap()
  rules = dict(_TABLES[rule]()) if rule in NAMES else read_rules(rule)
  if lowercase or strip_accents:
    change = functools.partial(
      fold, lowercase=lowercase, strip_accents=strip_accents, casing=casing
    )
    rules = {source: change(target) for source, target in rules.items()}
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x20000))):
      if character not in rules and (changed := change(character)) != character:
        rules[character] = changed
  return compile_rules(rules)


def compile_rules(rules: Mapping[str, str]) -> bytes:
  """Compiles rules, source -> target, as a SentencePiece model holds them; empty for none."""
  import sentencepiece

  if not rules:
    return b''
  sentencepiece.set_min_log_level(2)  # it logs the number of rules
  return _charsmap(sentencepiece.SentencePieceNormalizer(norm_map=sorted(rules.items())))


def normalize_lines(lines: Iterable[str], charsmap: bytes) -> Iterator[str]:
  """Lines as compiled rules make them; spaces are not changed otherwise."""
  import sentencepiece

  normalizer = sentencepiece.SentencePieceNormalizer(
    normalizer_spec=sentencepiece_model.normalizer_spec(charsmap),
    add_dummy_prefix=False,
    escape_whitespaces=False,
    remove_extra_whitespaces=False,
  )
  return map(normalizer.normalize, lines)


def _charsmap(normalizer: Normalizer) -> bytes:
  return sentencepiece_model.parse_model(normalizer.serialized_model_proto()).charsmap


def _named_charsmap(name: str) -> bytes:
  import sentencepiece

  return _charsmap(sentencepiece.SentencePieceNormalizer(rule_name=name))


def _named(name: str) -> Table:
  """The rules that SentencePiece has under a name."""
  return charsmap.parse_rules(_named_charsmap(name))


def _auto_charsmap() -> bytes:
  changes = dict.fromkeys(_JOINERS) | dict.fromkeys(_INVISIBLE, '\x01')  # which is removed
  return charsmap.edited(_named_charsmap('nmt_nfkc'), changes)


def _auto() -> Table:
  return charsmap.parse_rules(_auto_charsmap())


def _nfc() -> Table:
  composed = ((source, unicodedata.normalize('NFC', source)) for source in _named('nfkc'))
  return {source: target for source, target in composed if source != target}


_TABLES: dict[str, Callable[[], Table]] = {
  'auto': _auto,
  'none': dict,
  'nfc': _nfc,
  'nfkc': functools.partial(_named, 'nfkc'),
  'nmt_nfkc': functools.partial(_named, 'nmt_nfkc'),
}


#### WordPiece ####


def normalizers(settings: Mapping[str, Any]) -> Iterator[Normalizer]:
  """The normalizers of a WordPiece vocabulary that was trained with a rule other than 'original'.

  Args:
    settings: of its tokenizer_config.json: `normalization` (a name, or rules by source), `casing`,
      `do_lower_case`, `strip_accents` and `tokenize_chinese_chars`.

  Raises:
    UserError: rules of a file have sources of several characters.
  """
  from tokenizers.normalizers import BertNormalizer

  rule = settings['normalization']
  yield from _UNICODE[rule]() if isinstance(rule, str) else _of_table(rule)
  yield BertNormalizer(
    clean_text=False,
    handle_chinese_chars=settings['tokenize_chinese_chars'],
    strip_accents=False,
    lowercase=False,
  )
  yield from _folding_steps(
    settings['do_lower_case'], settings['strip_accents'], settings['casing']
  )


#### Byte-level BPE ####


def byte_level_normalizers(
  rule: str, lowercase: bool, strip_accents: bool, casing: str
) -> list[Normalizer]:
  """The normalizers of byte-level BPE; 'auto' and 'original' are none.

  Raises:
    UserError: rules of a file have sources of several characters.
  """
  if rule in ('auto', ORIGINAL):
    steps = []
  else:
    steps = list(_UNICODE[rule]() if rule in NAMES else _of_table(read_rules(rule)))
  return [*steps, *_folding_steps(lowercase, strip_accents, casing)]


def _folding_steps(lowercase: bool, strip_accents: bool, casing: str) -> Iterator[Normalizer]:
  from tokenizers import Regex
  from tokenizers.normalizers import NFC, NFD, Lowercase, Replace

  if strip_accents:
    yield NFD()
    scripts = ''.join(f'\\p{{{script.capitalize()}}}' for script in ACCENTED_SCRIPTS)
    yield Replace(Regex(f'[{scripts}]\\K\\p{{Mn}}+'), '')
    yield NFC()
  if lowercase:
    if casing == TURKISH:
      yield Replace('I\u0307', 'i')
      yield Replace('\u0130', 'i')
      yield Replace('I', '\u0131')
    yield Lowercase()


def _of_table(rules: Table) -> list[Normalizer]:
  found = charsmap.make_normalizers(compile_rules(rules))
  if found is None:
    raise UserError(
      'the rules of config.data.normalization have sources of several characters, which WordPiece '
      'does not support; expected rules of single characters, or config.data.tokenizer=unigram.'
    )
  return found


def _auto_steps() -> list[Normalizer]:
  from tokenizers import Regex
  from tokenizers.normalizers import NFC, Replace

  return [Replace(Regex(_REMOVED), ''), Replace(_SEPARATOR, ' '), NFC()]


def _library_steps(*names: str) -> list[Normalizer]:
  from tokenizers import normalizers as library

  return [getattr(library, name)() for name in names]


_UNICODE: dict[str, Callable[[], list[Normalizer]]] = {
  'auto': _auto_steps,
  'none': list,
  'nfc': functools.partial(_library_steps, 'NFC'),
  'nfkc': functools.partial(_library_steps, 'NFKC'),
  'nmt_nfkc': functools.partial(_library_steps, 'Nmt', 'NFKC'),
}
