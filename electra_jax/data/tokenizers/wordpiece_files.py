"""Files of WordPiece vocabularies, as `transformers` (versions 3 to 5) and this package write them.

A saved tokenizer is a `vocab.txt` and a `tokenizer_config.json` with all settings.
"""

import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from electra_jax import input_limits, json_reader
from electra_jax.data.tokenizers import special_tokens
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS, role_of
from electra_jax.data.tokenizers.tokenizer_settings import Overrides
from electra_jax.errors import UserError

VOCABULARY_FILE = 'vocab.txt'
SETTINGS_FILE = 'tokenizer_config.json'
PIPELINE_FILE = 'tokenizer.json'
NAMES_FILE = 'special_tokens_map.json'
ADDED_FILE = 'added_tokens.json'
JSON_FILES = (SETTINGS_FILE, PIPELINE_FILE, NAMES_FILE, ADDED_FILE)
# Entries of the settings of a vocabulary that was trained with another rule than BERT's: a name of
# `normalization`, or rules by source; and the casing rule.
RULE = 'normalization'
CASING = 'casing'
# Entry of the settings: id -> token that is matched in a text before it is split into words.
ADDED = 'added_tokens_decoder'

# As in BERT: a longer word is [UNK], and a token inside a word begins with this.
LONGEST_WORD = 100
CONTINUATION = '##'
# A vocabulary with a larger share of tokens with capitals was made for cased text.
CAPITALS_SHARE = 0.02

# Classes of `transformers` whose vocab.txt is BERT's.
_BERT_CLASSES = {
  f'{name}Tokenizer'
  for name in ('Bert', 'ConvBert', 'DistilBert', 'Electra', 'Funnel', 'MobileBert', 'SqueezeBert')
}
# Classes for any tokenizer.json; only this file has their settings.
_ANY_CLASS = {'PreTrainedTokenizer', 'TokenizersBackend'}
# A line with a token and its score or count.
_TOKEN_AND_NUMBER = re.compile(r'\S.*?\s[-+]?\d+(\.\d+)?([eE][-+]?\d+)?', re.DOTALL)
# What may be the name of a special token.
_SPECIAL_NAME = re.compile(r'[\[<{|]+/?(pad|unk|cls|sep|mask|s|bos|eos)[|}>\]]+', re.IGNORECASE)
# Attributes of an added token.
_FLAGS = ('lstrip', 'normalized', 'rstrip', 'single_word', 'special')

Settings = dict[str, Any]

# What is used of the JSON files, where they have it.
_SHAPE: dict[str, Any] = {
  'model?': dict | None,
  'normalizer?': dict | None,
  'pre_tokenizer?': dict | None,
  'tokenizer_class?': str | None,
  ADDED + '?': {str: dict},
  RULE + '?': str | dict,
  CASING + '?': str,
  **{f'{role_of(token)}?': str | dict | None for token in SPECIAL_TOKENS},
}


def canonical_files(
  files: Mapping[str, bytes], source: str, overrides: Overrides
) -> dict[str, bytes]:
  """Returns the files of a WordPiece tokenizer as `save` writes them, from any project's files.

  Tokens that were added to the vocabulary with `add_tokens` of `transformers` keep their meaning:
  they are matched first, anywhere in a text. The five special tokens are text, as in every
  tokenizer here.

  Args:
    files: `vocab.txt`, `tokenizer.json` or both, with or without the other files of `transformers`.
    source: where they come from, for error messages.
    overrides: what the user decides.

  Raises:
    UserError: a file is damaged or is not WordPiece; files contradict each other or the arguments;
      special tokens are missing; or a vocabulary has capitals and neither settings nor arguments
      decide about lower-casing.
  """
  described = {
    name: parse_settings(files[name], f'{name} of {source!r}')
    for name in JSON_FILES
    if name in files
  }
  settings = described.get(SETTINGS_FILE, {})
  class_name = str(settings.get('tokenizer_class') or 'BertTokenizer').removesuffix('Fast')
  if class_name not in _BERT_CLASSES | _ANY_CLASS:
    raise UserError(
      f'the tokenizer {source!r} is a {class_name}, which splits words in another way; expected '
      'one of BERT or ELECTRA.'
    )
  tokens = None
  if VOCABULARY_FILE in files:
    tokens = read_vocabulary(files[VOCABULARY_FILE], source, strip=True)
  if PIPELINE_FILE in files:
    known, normalizer = _read_pipeline(described[PIPELINE_FILE], source, RULE in settings)
    settings = settings | normalizer if class_name in _ANY_CLASS else normalizer | settings
    tokens = known if tokens is None else _same_tokens(tokens, known, source)
  if tokens is None:
    raise UserError(f'the folder {source!r} has neither {VOCABULARY_FILE} nor {PIPELINE_FILE}.')
  names = _special_names(settings, described.get(NAMES_FILE, {}), source)
  added = _added_tokens(tokens, names, described | {SETTINGS_FILE: settings}, source)
  _append_missing(tokens, added, names, source, overrides)
  case = _case_settings(tokens, settings, source, overrides)
  chinese_characters = bool(settings.get('tokenize_chinese_chars', True))
  more = {ADDED: added} if added else {}
  made = make_settings(*case, chinese_characters)
  if RULE in settings:
    made |= own_rule(settings[RULE], str(settings.get(CASING, '')))
  return make_files(tokens, made | names | more)


def is_bert(files: Mapping[str, bytes], source: str) -> bool:
  """Whether a tokenizer.json is BERT's WordPiece with special tokens of the given names.

  Args:
    files: as of `canonical_files`, with a `tokenizer.json`.
    source: where they come from, for error messages.
  """
  described = {
    name: parse_settings(files[name], f'{name} of {source!r}')
    for name in (SETTINGS_FILE, NAMES_FILE, PIPELINE_FILE)
    if name in files
  }
  description = described[PIPELINE_FILE]
  if not _is_bert_pipeline(description, RULE in described.get(SETTINGS_FILE, {})):
    return False
  names = _special_names(described.get(SETTINGS_FILE, {}), described.get(NAMES_FILE, {}), source)
  added = description.get('added_tokens') or []
  # What is damaged is reported by `canonical_files`.
  texts = [token.get('content') for token in added if isinstance(token, dict)]
  known = {*description['model']['vocab'], *(text for text in texts if isinstance(text, str))}
  return known.issuperset(names.values())


def make_settings(lowercase: bool, strip_accents: bool, chinese_characters: bool) -> Settings:
  """The tokenizer_config.json of a vocabulary whose special tokens have the usual names."""
  return {
    'tokenizer_class': 'BertTokenizer',
    'do_lower_case': lowercase,
    'strip_accents': strip_accents,
    'tokenize_chinese_chars': chinese_characters,
    **{role_of(token): token for token in SPECIAL_TOKENS},
  }


def own_rule(rule: str | Mapping[str, str], casing: str) -> Settings:
  """Settings of a vocabulary with another rule of normalization than BERT's.

  Other programs take the rule from the tokenizer.json of an export, not from these.

  Args:
    rule: a name of `normalization`, or rules by source.
    casing: the casing rule.
  """
  return {RULE: rule, CASING: casing, 'tokenizer_class': 'PreTrainedTokenizerFast'}


def make_files(tokens: Sequence[str], settings: Settings) -> dict[str, bytes]:
  """The files of a saved tokenizer."""
  return {
    VOCABULARY_FILE: ''.join(f'{token}\n' for token in tokens).encode(),
    SETTINGS_FILE: (json.dumps(settings, indent=2) + '\n').encode(),
  }


def read_vocabulary(content: bytes, source: str, strip: bool = False) -> list[str]:
  """Returns the tokens of a vocab.txt as `transformers` reads it.

  Args:
    content: of the file.
    source: where it comes from, for error messages.
    strip: whether white space around a token is removed, as the original program does.

  Raises:
    UserError: it is not UTF-8, or it is larger than vocabularies are.
  """
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'the vocabulary {source!r} is not UTF-8 at byte {error.start}; expected a vocab.txt with '
      'one token per line.'
    ) from None
  tokens = [line.rstrip('\n') for line in io.StringIO(text, newline=None)]
  if strip:
    tokens = [token.strip() or token for token in tokens]
    _refuse_scores(tokens, source)
  what = f'the vocabulary {source!r}'
  input_limits.check(len(tokens), input_limits.VOCABULARY_TOKENS, what, 'tokens')
  longest = max(map(len, tokens), default=0)
  input_limits.check(longest, input_limits.TOKEN_CHARACTERS, f'a token of {what}', 'characters')
  # Of a repeated token, the last one counts. The others are never used; they get names that no text
  # has.
  last = {token: i for i, token in enumerate(tokens)}
  return [token if last[token] == i else f'[repeated{i}]' for i, token in enumerate(tokens)]


def _refuse_scores(tokens: Sequence[str], source: str) -> None:
  """Raises UserError where lines of a vocabulary are tokens with numbers."""
  with_number = [i for i, token in enumerate(tokens) if _TOKEN_AND_NUMBER.fullmatch(token)]
  if len(with_number) > len(tokens) // 2:
    first = with_number[0]
    raise UserError(
      f'line {first + 1} of the vocabulary {source!r} is {tokens[first]!r}, a token and a score or '
      'count; expected one token per line (for a .vocab file of SentencePiece, use its .model).'
    )


def _append_missing(
  tokens: list[str],
  added: dict[str, Settings],
  names: Mapping[str, str],
  source: str,
  overrides: Overrides,
) -> None:
  """Appends special tokens that a vocabulary lacks, if `overrides` allows it.

  Args:
    tokens: the vocabulary; changed in place.
    added: id -> token that was added to it; changed in place.
    names: of the special tokens, by role.
    source: for error messages.
    overrides: what the user decides.
  """
  present = {*tokens, *(token['content'] for token in added.values())}
  missing = [name for name in names.values() if name not in present]
  if not missing:
    return
  if not overrides.add_special_tokens:
    others = [token for token in tokens if _SPECIAL_NAME.fullmatch(token)]
    reason = ''
    if others:
      shown = ', '.join(others[:5])
      reason = (
        f'it has {shown}, so name its special tokens in a {SETTINGS_FILE} beside it '
        '("pad_token": ..., "unk_token", "cls_token", "sep_token", "mask_token")'
      )
    raise special_tokens.missing_tokens(repr(source), missing, reason)
  for name in missing:
    new_id = max([len(tokens), *(int(i) + 1 for i in added)])
    if new_id == len(tokens):
      tokens.append(name)
    else:
      added[str(new_id)] = {'content': name, 'special': True, 'normalized': False}
  special_tokens.print_appended(missing)


def _same_tokens(tokens: list[str], known: list[str], source: str) -> list[str]:
  for i, (one, other) in enumerate(itertools.zip_longest(tokens, known)):
    if one != other:
      raise UserError(
        f'{VOCABULARY_FILE} and {PIPELINE_FILE} of {source!r} differ from id {i} on; remove the '
        'outdated one.'
      )
  return tokens


def _case_settings(
  tokens: Sequence[str],
  settings: Settings,
  source: str,
  overrides: Overrides,
) -> tuple[bool, bool]:
  """Whether text is lower-cased and accents are stripped, from settings and arguments."""
  lowercase, strip_accents = overrides.lowercase, overrides.strip_accents
  saved_lowercase = settings.get('do_lower_case')
  saved_accents = settings.get('strip_accents')
  for name, saved, given in (
    ('lowercase', saved_lowercase, lowercase),
    ('strip_accents', saved_accents, strip_accents),
  ):
    if saved is not None and given is not None and bool(given) != bool(saved):
      raise UserError(
        f'{name} is {given}, but the tokenizer {source!r} was saved with {saved}; remove {name}.'
      )
  capitals = sum(any(map(str.isupper, token)) for token in tokens if not token.startswith('['))
  is_cased = capitals > CAPITALS_SHARE * len(tokens)
  if lowercase is None and saved_lowercase is None and is_cased:
    raise UserError(
      f'{capitals} tokens of the vocabulary {source!r} have capitals, and no setting says that it '
      'is cased; set lowercase to no, or to yes to use it uncased, or add a tokenizer_config.json '
      'with do_lower_case.'
    )
  if saved_lowercase is None:
    saved_lowercase = True if lowercase is None else lowercase
  if saved_accents is None:
    saved_accents = saved_lowercase if strip_accents is None else strip_accents
  return bool(saved_lowercase), bool(saved_accents)


def text_of(token: str | Mapping[str, Any]) -> str:
  """The text of a token that is written as a string or with its flags."""
  return token if isinstance(token, str) else str(token['content'])


def _special_names(settings: Settings, map_file: Settings, source: str) -> dict[str, str]:
  """Role -> name of the special tokens."""
  given = map_file | settings
  try:
    return {role_of(token): text_of(given.get(role_of(token)) or token) for token in SPECIAL_TOKENS}
  except KeyError:
    raise UserError(
      f'a special token of {source!r} is damaged, since it has no content; restore the files.'
    ) from None


def _added_tokens(
  tokens: list[str], names: dict[str, str], described: Mapping[str, Settings], source: str
) -> dict[str, Settings]:
  """Tokens that are matched in a text first, as `transformers` finds them in its files.

  Args:
    tokens: the vocabulary.
    names: of the special tokens, by role.
    described: content of the JSON files.
    source: for error messages.

  Returns:
    id -> {'content': text, flag: value, ...}.
  """
  try:
    found = _find_added_tokens(tokens, names, described)
    return {
      str(int(i)): {
        'content': str(token['content']),
        **{flag: bool(token.get(flag, False)) for flag in _FLAGS},
      }
      for i, token in sorted(found.items())
      if token['content'] not in names.values() or i >= len(tokens)
    }
  except (AttributeError, KeyError, TypeError, ValueError):
    raise UserError(
      f'the added tokens of {source!r} are damaged, since each requires an id and a text; restore '
      'the files.'
    ) from None


def _find_added_tokens(
  tokens: list[str], names: dict[str, str], described: Mapping[str, Settings]
) -> dict[int, Settings]:
  settings = described[SETTINGS_FILE]
  given = settings | described.get(NAMES_FILE, {})
  # Named tokens that are not used in rows here, such as [BOS], are matched in a text, too.
  special = [text_of(given[name]) for name in ('bos_token', 'eos_token') if given.get(name)]
  special += [
    text_of(token)
    for name in ('additional_special_tokens', 'extra_special_tokens')
    for token in given.get(name) or []
  ]
  found: dict[int, Settings] = {}
  if ADDED in settings:
    found = {int(i): token for i, token in settings[ADDED].items()}
  else:
    # Version 3 writes names and ids only. Special tokens match their exact name, others match what
    # text is normalized to.
    found = {
      i: {'content': text, 'normalized': text not in special, 'special': text in special}
      for text, i in described.get(ADDED_FILE, {}).items()
    }
    listed = described.get(PIPELINE_FILE, {}).get('added_tokens') or []
    found |= {token['id']: token for token in listed}
  ids = {token: i for i, token in enumerate(tokens)}
  known = {token['content'] for token in found.values()}
  for text in dict.fromkeys(special):
    if text not in known and text not in names.values():
      after = max([len(tokens) - 1, *found]) + 1
      found[ids.get(text, after)] = {'content': text, 'special': True, 'normalized': False}
  return found


def _read_pipeline(
  description: Settings, source: str, has_rule: bool
) -> tuple[list[str], Settings]:
  """Tokens and settings of a tokenizer.json.

  Args:
    description: its content.
    source: for error messages.
    has_rule: whether the settings have a rule of normalization, as whose sequence it was written.

  Raises:
    UserError: it is another tokenizer than BERT's.
  """
  if not _is_bert_pipeline(description, has_rule):
    raise UserError(
      f"the {PIPELINE_FILE} of {source!r} is not BERT's WordPiece; expected a vocab.txt or a "
      'SentencePiece model.'
    )
  ids = description['model']['vocab']
  tokens = sorted(ids, key=ids.__getitem__)
  if has_rule:
    return tokens, {}
  normalizer = description['normalizer']
  return tokens, {
    'do_lower_case': normalizer.get('lowercase'),
    'strip_accents': normalizer.get('strip_accents'),
    'tokenize_chinese_chars': normalizer.get('handle_chinese_chars', True),
  }


def _is_bert_pipeline(description: Settings, has_rule: bool) -> bool:
  """Whether a tokenizer.json splits text as BERT does, with a vocabulary without gaps.

  With a rule of normalization of this package any normalizer is accepted.
  """
  model = description.get('model') or {}
  normalizer = description.get('normalizer') or {}
  pre_tokenizer = description.get('pre_tokenizer') or {}
  found = (
    model.get('type', 'WordPiece'),
    model.get('continuing_subword_prefix'),
    model.get('max_input_chars_per_word', LONGEST_WORD),
    pre_tokenizer.get('type'),
    has_rule or (normalizer.get('type'), normalizer.get('clean_text', True)),
  )
  expected = (
    'WordPiece',
    CONTINUATION,
    LONGEST_WORD,
    'BertPreTokenizer',
    has_rule or ('BertNormalizer', True),
  )
  return found == expected and _are_ids(model.get('vocab'))


def _are_ids(ids: json_reader.Json) -> TypeGuard[dict[str, int]]:
  """Whether a value maps tokens to the numbers from 0 on, each once."""
  if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
    return False
  return set(ids.values()) == set(range(len(ids)))


def parse_settings(content: bytes, name: str) -> Settings:
  """The content of a JSON file of a tokenizer.

  Args:
    content: of the file.
    name: of the file, for error messages.

  Raises:
    UserError: it is damaged.
  """
  try:
    description = json_reader.parse(content, name)
    json_reader.check(description, _SHAPE, name)
  except json_reader.InvalidJson as error:
    raise UserError(f'{name} is damaged ({error.reason}); restore it.') from None
  settings: Settings = description
  return settings
