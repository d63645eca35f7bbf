"""WordPiece vocabularies as BERT has them (Devlin et al. 2019): opening and training them."""

import io
import itertools
import json
import os
import string
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from electra_jax.data.tokenizers import special_tokens
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS
from electra_jax.data.tokenizers.training_sample import Sample
from electra_jax.errors import UserError

FILES = (
  'vocab.txt',
  'tokenizer_config.json',
  'tokenizer.json',
  'special_tokens_map.json',
  'added_tokens.json',
)
FILE, SETTINGS_FILE, ONE_FILE, NAMES_FILE, ADDED_FILE = FILES
# Where settings hold tokens that are found in a text before it is cut into words, by id.
ADDED = 'added_tokens_decoder'

# As in BERT: a longer word is [UNK], and what goes on inside a word begins with this.
LONGEST_WORD = 100
CONTINUATION = '##'
# Share of a corpus's characters that a trained vocabulary spells out; the rarest others are [UNK].
CHARACTER_COVERAGE = 0.9999
# A pair of tokens seen but once is no token.
SMALLEST_COUNT = 2
# A vocabulary with a larger share of tokens with capitals was made for text that keeps them.
CAPITALS_SHARE = 0.02

# `transformers` classes whose vocab.txt is read as BERT's.
_BERT_CLASSES = {
  f'{name}Tokenizer'
  for name in ('Bert', 'ConvBert', 'DistilBert', 'Electra', 'Funnel', 'MobileBert', 'SqueezeBert')
}
# And those of any tokenizer.json, which go by what it says alone.
_ANY_CLASS = {'PreTrainedTokenizer', 'TokenizersBackend'}
# What an added token may have beside its text.
_FLAGS = ('lstrip', 'normalized', 'rstrip', 'single_word', 'special')


def canonical_files(
  files: Mapping[str, bytes], source: str, lowercase: bool | None, strip_accents: bool | None
) -> dict[str, bytes]:
  """The files of a WordPiece tokenizer as `save` writes them, from those of anybody.

  Tokens that were added to the vocabulary with `add_tokens` of `transformers` stay what they are there: found in a text first,
  wherever they stand, and kept whole. The five special tokens are text, as everywhere here.

  Args:
    files: `vocab.txt`, `tokenizer.json` or both, with or without the others of `FILES`, as `transformers` writes them, 3 to 5.
    source: where they are from, for a complaint.
    lowercase, strip_accents: as in `load_tokenizer`.

  Raises:
    UserError: a file is damaged or no WordPiece's; two contradict each other, or saved settings the arguments; nothing says
      whether a vocabulary with capitals is meant for lower-cased text.
  """
  described = {
    name: _json(files[name], f'{name} of {source!r}') for name in FILES[1:] if name in files
  }
  settings = described.get(SETTINGS_FILE, {})
  kind = str(settings.get('tokenizer_class') or 'BertTokenizer').removesuffix('Fast')
  if kind not in _BERT_CLASSES | _ANY_CLASS:
    raise UserError(
      f'the tokenizer {source!r} is a {kind}, which cuts words otherwise; use one of BERT or ELECTRA'
    )
  tokens = _vocabulary(files[FILE], source) if FILE in files else None
  if ONE_FILE in files:
    known, normalizer = _one_file(described[ONE_FILE], source)
    settings = settings | normalizer if kind in _ANY_CLASS else normalizer | settings
    if tokens is None:
      tokens = known
    elif different := [
      i for i, pair in enumerate(itertools.zip_longest(tokens, known)) if pair[0] != pair[1]
    ]:
      raise UserError(
        f'{FILE} and {ONE_FILE} of {source!r} differ from id {different[0]} on; remove the one that is out of date'
      )
  names = _names(settings, described.get(NAMES_FILE, {}))
  added = _added(tokens, names, settings, described, source)
  saved = {
    name: settings[name]
    for name in ('do_lower_case', 'strip_accents')
    if settings.get(name) is not None
  }
  for name, asked in (('lowercase', lowercase), ('strip_accents', strip_accents)):
    was = saved.get('do_lower_case' if name == 'lowercase' else name)
    if was is not None and asked is not None and bool(asked) != bool(was):
      raise UserError(
        f'{name} is {asked}, but the tokenizer {source!r} was saved with {was}; leave it out'
      )
  capitals = sum(any(map(str.isupper, token)) for token in tokens if not token.startswith('['))
  if lowercase is None and 'do_lower_case' not in saved and capitals > CAPITALS_SHARE * len(tokens):
    raise UserError(
      f'{capitals} tokens of the vocabulary {source!r} have capitals, and nothing says that it is a cased one; '
      'set lowercase to no, or to yes to use it uncased, or put a tokenizer_config.json with do_lower_case beside it'
    )
  lowercase = bool(saved.get('do_lower_case', True if lowercase is None else lowercase))
  strip_accents = bool(
    saved.get('strip_accents', lowercase if strip_accents is None else strip_accents)
  )
  chinese_characters = bool(settings.get('tokenize_chinese_chars', True))
  return _files(
    tokens,
    _settings(lowercase, strip_accents, chinese_characters)
    | names
    | ({ADDED: added} if added else {}),
  )


def parts(files: Mapping[str, bytes], source: str) -> dict:
  """What a `Tokenizer` needs of a vocabulary: tokens, ids of special tokens, encoding and decoding.

  Args:
    files: as `canonical_files` gives them.
    source: where they are from, for a complaint.

  Raises:
    UserError: the vocabulary lacks special tokens.
  """
  from tokenizers import decoders

  cut = pipeline(files, source)
  ids = cut.get_vocab()
  tokens = list(_vocabulary(files[FILE], source))
  tokens = (*tokens, *sorted((token for token, i in ids.items() if i >= len(tokens)), key=ids.get))
  settings = json.loads(files[SETTINGS_FILE])
  ids = special_tokens.find_special_tokens(
    tokens, {token: (settings[_role(token)],) for token in SPECIAL_TOKENS}, repr(source)
  )
  decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)

  def encode(texts, threads):
    _set_threads(threads)
    return [
      np.array(encoding.ids, np.int32)
      for encoding in cut.encode_batch_fast(texts, add_special_tokens=False)
    ]

  def encode_with_offsets(texts, threads):
    _set_threads(threads)
    encoded = cut.encode_batch(texts, add_special_tokens=False)
    return [
      (
        np.array(one.ids, np.int32),
        _with_accents(text, np.array(one.offsets, np.int32).reshape(-1, 2)),
      )
      for text, one in zip(texts, encoded, strict=True)
    ]

  return {
    'tokens': tokens,
    **ids,
    'encode_short': encode,
    'encode_short_with_offsets': encode_with_offsets,
    'decode_ordinary': lambda row: decoder.decode([tokens[i] for i in row]),
  }


def word_starts(tokens: Sequence[str]) -> np.ndarray:
  """Whether a token begins a word, bool [tokens]: all but those for the inside of one. Punctuation, Chinese characters and [UNK] are words."""
  return np.array([not token.startswith(CONTINUATION) for token in tokens], bool)


def pipeline(files: Mapping[str, bytes], source: str = 'this tokenizer'):
  """The `tokenizers.Tokenizer` of a vocabulary, which cuts special tokens as any text: [ mask ].

  Args:
    files, source: as of `parts`.

  Raises:
    UserError: added tokens whose ids do not follow the vocabulary's.
  """
  from tokenizers import AddedToken, Tokenizer, decoders, models

  settings = json.loads(files[SETTINGS_FILE])
  vocabulary = {token: i for i, token in enumerate(_vocabulary(files[FILE], source))}
  names, added = [settings[_role(token)] for token in SPECIAL_TOKENS], settings.get(ADDED, {})
  added = {int(i): token for i, token in added.items()}
  vocabulary |= {token['content']: i for i, token in added.items() if token['content'] in names}
  unknown = settings[_role(special_tokens.UNK)]
  made = Tokenizer(
    models.WordPiece(
      vocabulary,
      unk_token=unknown,
      continuing_subword_prefix=CONTINUATION,
      max_input_chars_per_word=LONGEST_WORD,
    )
  )
  made.normalizer, made.pre_tokenizer = _pipeline(settings)
  made.decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)
  for i, token in sorted(added.items()):
    if token['content'] not in names:
      made.add_tokens([AddedToken(**token)])
    if made.token_to_id(token['content']) != i:
      raise UserError(
        f'the token {token["content"]!r} was added to {source!r} as id {i}, which does not follow the ids before; '
        'restore its files as they were saved'
      )
  return made


def train(
  sample: Sample, vocab_size: int, lowercase: bool, strip_accents: bool | None
) -> dict[str, bytes]:
  """Files of a vocabulary that is trained on a sample. The same sample and arguments give the same one anywhere.

  Special tokens come first, then every character by code point, alone and inside a word, then merged pairs, the most
  frequent first.

  Args:
    sample: lines.
    vocab_size: ids in all, special tokens included.
    lowercase, strip_accents: as in `train_tokenizer`.

  Raises:
    UserError: a vocabulary larger than the sample supports, or too small for its characters.
  """
  from tokenizers import Tokenizer, models, trainers

  strip_accents = lowercase if strip_accents is None else strip_accents
  settings = _settings(lowercase, strip_accents, True)
  normalizer, pre_tokenizer = _pipeline(settings)
  characters = _characters(sample.lines, normalizer)

  # Inside a word. Punctuation and Chinese characters never are: each is a word of its own.
  def alone(character):
    return len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f'a{character}'))) > 1

  inside = [character for character in characters if character.isascii() or not alone(character)]
  spelled = [*SPECIAL_TOKENS, *characters, *(CONTINUATION + character for character in inside)]
  if vocab_size < len(spelled):
    raise UserError(
      f"vocab_size is {vocab_size}, too few for this corpus's characters; use {len(spelled) + 100} or more"
    )
  # The trainer numbers what it is not given in the order of a hash table, and equal counts go by number. Given all
  # single characters as special tokens, it has nothing to number so, and any process and thread count agree.
  pipeline = Tokenizer(
    models.WordPiece(unk_token=special_tokens.UNK, continuing_subword_prefix=CONTINUATION)
  )
  pipeline.normalizer, pipeline.pre_tokenizer = normalizer, pre_tokenizer
  _set_threads(None)
  trainer = trainers.WordPieceTrainer(
    vocab_size=vocab_size,
    min_frequency=SMALLEST_COUNT,
    special_tokens=spelled,
    initial_alphabet=characters,
    limit_alphabet=len(characters),
    continuing_subword_prefix=CONTINUATION,
    show_progress=False,
  )
  pipeline.train_from_iterator(sample.lines, trainer)
  ids = pipeline.get_vocab(with_added_tokens=False)
  tokens = sorted(ids, key=ids.get)
  if len(tokens) < vocab_size:
    raise UserError(
      f'vocab_size is {vocab_size}, more than this corpus supports; {len(tokens)} is the largest that would do'
    )
  return _files(tokens, settings)


def _characters(lines: list[str], normalizer) -> list[str]:
  """Printable ASCII and the characters that make up `CHARACTER_COVERAGE` of normalized lines, by code point."""
  import numpy as np

  counts = np.zeros(0x110000, np.int64)
  block = 4096  # lines
  for start in range(0, len(lines), block):
    points = np.frombuffer(''.join(lines[start : start + block]).encode('utf-32-le'), np.uint32)
    counts += np.bincount(points, minlength=len(counts))
  normalized = {}
  for point in np.flatnonzero(counts):
    for character in normalizer.normalize_str(chr(point)):
      normalized[character] = normalized.get(character, 0) + int(counts[point])
  normalized = {
    character: count for character, count in normalized.items() if not character.isspace()
  }
  ascii_printable = (c for c in string.printable if not c.isspace())
  chosen = {normalizer.normalize_str(character) for character in ascii_printable}
  left = CHARACTER_COVERAGE * sum(normalized.values())
  for character in sorted(normalized, key=lambda c: (-normalized[c], c)):
    if left <= 0:
      break
    chosen.add(character)
    left -= normalized[character]
  return sorted(chosen)


def _pipeline(settings: Mapping) -> tuple:
  """BERT's way from text to words: a normalizer and a pre-tokenizer."""
  from tokenizers import normalizers, pre_tokenizers

  normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=settings['tokenize_chinese_chars'],
    strip_accents=settings['strip_accents'],
    lowercase=settings['do_lower_case'],
  )
  return normalizer, pre_tokenizers.BertPreTokenizer()


def _with_accents(text: str, spans: np.ndarray) -> np.ndarray:
  """Spans int32 [tokens, 2], in place: an accent that is a character of its own and was taken off is of the token before it."""
  if text.isascii() or not len(spans):
    return spans
  points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  marks = [
    point
    for point in np.unique(points[points >= 0x300])
    if unicodedata.category(chr(point)) == 'Mn'
  ]
  if marks:
    others = np.append(np.flatnonzero(~np.isin(points, marks)), len(text))
    behind = others[
      np.searchsorted(others, spans[:, 1])
    ]  # the first character at or after the end that is no mark
    spans[:, 1] = np.maximum(spans[:, 1], np.minimum(behind, np.append(spans[1:, 0], len(text))))
  return spans


def _set_threads(threads: int | None) -> None:
  # The library reads this at each call, and offers no other way; with 'false' it starts no pool.
  wanted = 'false' if threads == 1 else 'true'
  if os.environ.get('TOKENIZERS_PARALLELISM') != wanted:
    os.environ['TOKENIZERS_PARALLELISM'] = wanted


def _settings(lowercase: bool, strip_accents: bool, chinese_characters: bool) -> dict:
  return {
    'tokenizer_class': 'BertTokenizer',
    'do_lower_case': lowercase,
    'strip_accents': strip_accents,
    'tokenize_chinese_chars': chinese_characters,
    **{_role(token): token for token in SPECIAL_TOKENS},
  }


def _role(token: str) -> str:
  """What settings call the name of a special token: 'cls_token' for [CLS]."""
  return f'{token[1:-1].lower()}_token'


def _files(tokens: list[str], settings: dict) -> dict[str, bytes]:
  return {
    FILE: ''.join(f'{token}\n' for token in tokens).encode(),
    SETTINGS_FILE: (json.dumps(settings, indent=2) + '\n').encode(),
  }


def _text(token: str | dict) -> str:
  """The text of a token that is written by itself or with its flags."""
  return token['content'] if isinstance(token, dict) else token


def _names(settings: dict, map_file: dict) -> dict[str, str]:
  """Names of the special tokens, by role."""
  said = map_file | settings
  return {_role(token): _text(said.get(_role(token)) or token) for token in SPECIAL_TOKENS}


def _added(
  tokens: list[str], names: dict[str, str], settings: dict, described: dict, source: str
) -> dict[str, dict]:
  """Tokens that are found in a text first, {id: {'content': ..., flags}}, as `transformers` takes them from what is there."""
  ids = {token: i for i, token in enumerate(tokens)}
  said = settings | described.get(NAMES_FILE, {})
  try:
    # Named tokens that have no part in a row here, such as [BOS], are found in a text all the same.
    special = [_text(said[name]) for name in ('bos_token', 'eos_token') if said.get(name)]
    special += [
      _text(token)
      for name in ('additional_special_tokens', 'extra_special_tokens')
      for token in said.get(name) or []
    ]
    if ADDED in settings:
      found = {int(i): token for i, token in settings[ADDED].items()}
    else:
      # Files of version 3: names and ids alone. What text is normalized to is looked for, of special tokens their very name.
      legacy = described.get(ADDED_FILE, {})
      found = {
        i: {'content': text, 'normalized': text not in special, 'special': text in special}
        for text, i in legacy.items()
      }
      found |= {
        token['id']: token for token in described.get(ONE_FILE, {}).get('added_tokens') or []
      }
    known = {token['content'] for token in found.values()}
    for text in dict.fromkeys(special):
      if text not in known and text not in names.values():
        after = max([len(tokens) - 1, *found]) + 1
        found[ids.get(text, after)] = {'content': text, 'special': True, 'normalized': False}
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
      f'the added tokens of {source!r} are damaged: each needs an id and its text; restore the files as they were'
    ) from None


def _vocabulary(content: bytes, source: str) -> list[str]:
  """The lines of a vocab.txt, as `transformers` reads them."""
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'the vocabulary {source!r} is not UTF-8 at byte {error.start}; give a vocab.txt with a token a line'
    ) from None
  tokens = [line.rstrip('\n') for line in io.StringIO(text, newline=None)]
  # Of a token that stands there twice the last counts; the others never come out, and get names that no text has.
  last = {token: i for i, token in enumerate(tokens)}
  return [token if last[token] == i else f'[repeated{i}]' for i, token in enumerate(tokens)]


def _one_file(description: dict, source: str) -> tuple[list[str], dict]:
  """Tokens and settings from a tokenizer.json."""
  parts = {name: description.get(name) or {} for name in ('model', 'normalizer', 'pre_tokenizer')}
  model, normalizer, pre_tokenizer = parts.values()
  found = (
    model.get('type', 'WordPiece'),
    model.get('continuing_subword_prefix'),
    model.get('max_input_chars_per_word', LONGEST_WORD),
    normalizer.get('type'),
    normalizer.get('clean_text', True),
    pre_tokenizer.get('type'),
  )
  expected = ('WordPiece', CONTINUATION, LONGEST_WORD, 'BertNormalizer', True, 'BertPreTokenizer')
  ids = model.get('vocab')
  if (
    found != expected or not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids)))
  ):
    raise UserError(
      f"the {ONE_FILE} of {source!r} is not BERT's WordPiece; give a vocab.txt, or a SentencePiece model"
    )
  return sorted(ids, key=ids.get), {
    'do_lower_case': normalizer.get('lowercase'),
    'strip_accents': normalizer.get('strip_accents'),
    'tokenize_chinese_chars': normalizer.get('handle_chinese_chars', True),
  }


def _json(content: bytes, name: str) -> dict:
  try:
    description = json.loads(content)
  except ValueError:
    description = None
  if not isinstance(description, dict):
    raise UserError(f'{name} is damaged: it is not a JSON object; restore it')
  return description
