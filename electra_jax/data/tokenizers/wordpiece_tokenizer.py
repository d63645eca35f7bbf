"""WordPiece tokenizers as BERT has them (Devlin et al. 2019)."""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax import file_access, json_reader
from electra_jax.data.tokenizers import (
  new_words,
  normalization,
  spans,
  special_tokens,
  text_parts,
  word_cache,
  wordpiece_files,
)
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS, UNK, role_of
from electra_jax.data.tokenizers.tokenization import Pipeline, Tokenizer
from electra_jax.data.tokenizers.tokenizer_settings import (
  Overrides,
  TokenizerSettings,
  UnsupportedSize,
)
from electra_jax.data.tokenizers.training_sample import Sample
from electra_jax.data.tokenizers.wordpiece_files import (
  ADDED,
  CONTINUATION,
  LONGEST_WORD,
  SETTINGS_FILE,
  VOCABULARY_FILE,
)
from electra_jax.errors import UserError

# Share of a corpus's characters that are tokens of a trained vocabulary; rarer ones are [UNK].
CHARACTER_COVERAGE = 0.9999
# A pair of tokens must occur this often to become a token.
SMALLEST_COUNT = 2


class WordPieceTokenizer(Tokenizer):
  """A tokenizer with a WordPiece vocabulary, whose ids are those of BERT's tokenizer."""

  kind = 'wordpiece'
  notation = '## continues a word.'
  keeps_spaces = False
  main_files = (VOCABULARY_FILE, wordpiece_files.PIPELINE_FILE)
  transformers_class = 'BertTokenizer'  # also known to versions without tokenizer.json
  read_by_original_program = True

  def __init__(self, files: Mapping[str, bytes], source: str, options: None = None) -> None:
    """Opens a vocabulary.

    Args:
      files: as of `wordpiece_files.canonical_files`.
      source: where they come from, for error messages.
      options: none.

    Raises:
      UserError: the vocabulary lacks special tokens.
    """
    from tokenizers import decoders

    self._pipeline = _open_pipeline(files, source)
    ids = self._pipeline.get_vocab()
    tokens = wordpiece_files.read_vocabulary(files[VOCABULARY_FILE], source)
    added = [token for token, i in ids.items() if i >= len(tokens)]
    tokens += sorted(added, key=ids.__getitem__)
    settings = json_reader.parse(files[SETTINGS_FILE], f'{SETTINGS_FILE} of {source!r}')
    names = {token: (settings[role_of(token)],) for token in SPECIAL_TOKENS}
    special_ids = special_tokens.find_special_tokens(tokens, names, repr(source))
    super().__init__(files, tokens, special_ids, options)
    self._decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)
    if wordpiece_files.RULE in settings:
      self.transformers_class = Tokenizer.transformers_class
      self.read_by_original_program = False
    # A token that was added, and a user's rule of normalization, may contain a space.
    word_by_word = not added and not isinstance(settings.get(wordpiece_files.RULE), dict)
    self._words = word_cache.WordCache(self._encode) if word_by_word else None

  @classmethod
  def open_files(
    cls, places: Mapping[str, str], source: str, overrides: Overrides
  ) -> Tokenizer | None:
    """See `Tokenizer.open_files`."""
    if not any(name in places for name in cls.main_files):
      return None
    names = (VOCABULARY_FILE, *wordpiece_files.JSON_FILES)
    found = {name: file_access.read_bytes(places[name]) for name in names if name in places}
    if wordpiece_files.PIPELINE_FILE in found and not wordpiece_files.is_bert(found, source):
      return None
    files = wordpiece_files.canonical_files(found, source, overrides)
    return cls(files, source)

  def encode_short(self, texts: list[str], threads: int | None) -> list[np.ndarray]:
    """See `Tokenizer.encode_short`."""
    text_parts.set_threads(threads)
    if self._words is not None and sum(map(len, texts)) >= word_cache.LEAST_CHARACTERS:
      return self._words.encode(texts)
    return [np.array(ids, np.int32) for ids in self._encode(texts)]

  def _encode(self, texts: list[str]) -> list[list[int]]:
    encoded = self._pipeline.encode_batch_fast(texts, add_special_tokens=False)
    return [one.ids for one in encoded]

  def encode_short_with_offsets(
    self, texts: list[str], threads: int | None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """See `Tokenizer.encode_short_with_offsets`."""
    text_parts.set_threads(threads)
    encoded = self._pipeline.encode_batch(texts, add_special_tokens=False)
    found = []
    for text, one in zip(texts, encoded, strict=True):
      places = np.array(one.offsets, np.int32).reshape(-1, 2)
      found.append((np.array(one.ids, np.int32), spans.with_accents(text, places)))
    return found

  def decode_ordinary(self, ids: Sequence[int]) -> str:
    """See `Tokenizer.decode_ordinary`."""
    text: str = self._decoder.decode([self.tokens[i] for i in ids])
    return text

  def compute_word_starts(self) -> np.ndarray:
    """Whether each token begins a word, bool [tokens]: all tokens without `##`.

    Punctuation, Chinese characters and [UNK] are words.
    """
    return np.array([not token.startswith(CONTINUATION) for token in self.tokens], bool)

  def surface(self, token_id: int) -> tuple[bool, str]:
    """See `Tokenizer.surface`."""
    token = self.tokens[token_id]
    return not token.startswith(CONTINUATION), token.removeprefix(CONTINUATION)

  def encode_inside_word(self, text: str) -> list[int]:
    """Ids of a text as the inside of a word, the longest token first.

    Where that does not reach the end of the text, its ids as a word.
    """
    ids = self.ordinary_ids
    found = []
    start = 0
    while start < len(text):
      ends = range(len(text), start, -1)
      end = next((end for end in ends if CONTINUATION + text[start:end] in ids), None)
      if end is None:
        return self.encode(text)
      found.append(ids[CONTINUATION + text[start:end]])
      start = end
    return found or self.encode(text)

  def with_words(self, words: Sequence[str]) -> 'WordPieceTokenizer':
    """See `Tokenizer.with_words`.

    In running text a new word becomes its token, and so does the beginning of a longer word where
    the vocabulary has no longer token. All other text is encoded as before.
    """
    tokens = new_words.wordpiece_tokens(self, self._pipeline, words)
    more = ''.join(f'{token}\n' for token in tokens).encode()
    files = self.files | {VOCABULARY_FILE: self.files[VOCABULARY_FILE] + more}
    return WordPieceTokenizer(files, 'with more words')

  def to_pipeline(self) -> Pipeline:
    """See `Tokenizer.to_pipeline`."""
    return _open_pipeline(self.files, self.kind)

  @classmethod
  def training_title(cls, settings: TokenizerSettings) -> str:
    """See `Tokenizer.training_title`."""
    return 'WordPiece'

  @classmethod
  def relevant_settings(cls, settings: TokenizerSettings) -> list[Any]:
    """See `Tokenizer.relevant_settings`."""
    identity = [settings.lowercase, settings.strip_accents]
    if settings.normalization == normalization.ORIGINAL:
      return identity
    return [*identity, normalization.identity(settings.normalization), settings.casing]

  @classmethod
  def train(cls, sample: Sample, settings: TokenizerSettings) -> dict[str, bytes]:
    """See `Tokenizer.train`.

    Special tokens come first, then all characters by code point, first as words and then as insides
    of words, then merged pairs, the most frequent first.
    """
    import tokenizers
    from tokenizers import models, trainers

    vocab_size = settings.vocab_size
    saved = _settings_to_save(settings)
    normalizer, pre_tokenizer = _word_splitter(saved)
    characters = _characters(sample.lines, normalizer.normalize_str, wordpiece_files.RULE in saved)

    # Punctuation and Chinese characters are never inside a word: each is a word.
    def is_word(character: str) -> bool:
      normalized = normalizer.normalize_str(f'a{character}')
      return len(pre_tokenizer.pre_tokenize_str(normalized)) > 1

    inside = [c for c in characters if c.isascii() or not is_word(c)]
    single = [*SPECIAL_TOKENS, *characters, *(CONTINUATION + character for character in inside)]
    if vocab_size < len(single):
      least = len(single) + 100
      raise UnsupportedSize(
        f"vocab_size is {vocab_size}, too few for this corpus's characters; expected {least} or "
        'more.',
        least,
      )
    # The trainer numbers tokens that it is not given in the order of a hash table, and equal counts
    # are ordered by number. With all single characters given as special tokens, no number depends
    # on that order, and the result is the same in any process and for any number of threads.
    model = models.WordPiece(unk_token=UNK, continuing_subword_prefix=CONTINUATION)
    pipeline = tokenizers.Tokenizer(model)
    pipeline.normalizer = normalizer
    pipeline.pre_tokenizer = pre_tokenizer
    text_parts.set_threads(None)
    trainer = trainers.WordPieceTrainer(
      vocab_size=vocab_size,
      min_frequency=SMALLEST_COUNT,
      special_tokens=single,
      initial_alphabet=characters,
      limit_alphabet=len(characters),
      continuing_subword_prefix=CONTINUATION,
      show_progress=False,
    )
    pipeline.train_from_iterator(sample.lines, trainer)
    ids = pipeline.get_vocab(with_added_tokens=False)
    tokens = sorted(ids, key=ids.__getitem__)
    if len(tokens) < vocab_size:
      raise UnsupportedSize(
        f'vocab_size is {vocab_size}, more than this corpus supports; expected at most '
        f'{len(tokens)}.',
        len(tokens),
      )
    return wordpiece_files.make_files(tokens, saved)


def _settings_to_save(settings: TokenizerSettings) -> dict[str, Any]:
  """The tokenizer_config.json of a vocabulary to be trained."""
  lowercase = settings.lowercase is not False
  strip_accents = settings.strip_accents
  # With a segmenter, Chinese characters are parts of words.
  chinese_characters = not settings.segmenter
  if settings.normalization == normalization.ORIGINAL:
    strip_accents = lowercase if strip_accents is None else strip_accents
    return wordpiece_files.make_settings(lowercase, strip_accents, chinese_characters)
  rule = settings.normalization
  own = wordpiece_files.own_rule(
    rule if rule in normalization.NAMES else normalization.read_rules(rule), settings.casing
  )
  return wordpiece_files.make_settings(lowercase, bool(strip_accents), chinese_characters) | own


def _open_pipeline(files: Mapping[str, bytes], source: str) -> Pipeline:
  """The `tokenizers.Tokenizer` of a vocabulary, which splits names of special tokens as any text.

  Raises:
    UserError: ids of added tokens do not follow those of the vocabulary.
  """
  import tokenizers
  from tokenizers import AddedToken, decoders, models

  settings = json_reader.parse(files[SETTINGS_FILE], f'{SETTINGS_FILE} of {source!r}')
  tokens = wordpiece_files.read_vocabulary(files[VOCABULARY_FILE], source)
  ids = {token: i for i, token in enumerate(tokens)}
  names = [settings[role_of(token)] for token in SPECIAL_TOKENS]
  added = {int(i): token for i, token in settings.get(ADDED, {}).items()}
  ids |= {token['content']: i for i, token in added.items() if token['content'] in names}
  model = models.WordPiece(
    ids,
    unk_token=settings[role_of(UNK)],
    continuing_subword_prefix=CONTINUATION,
    max_input_chars_per_word=LONGEST_WORD,
  )
  pipeline = tokenizers.Tokenizer(model)
  pipeline.normalizer, pipeline.pre_tokenizer = _word_splitter(settings)
  pipeline.decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)
  for i, token in sorted(added.items()):
    if token['content'] not in names:
      pipeline.add_tokens([AddedToken(**token)])
    if pipeline.token_to_id(token['content']) != i:
      raise UserError(
        f'the token {token["content"]!r} was added to {source!r} as id {i}, which does not follow '
        'the ids before it; restore the files.'
      )
  return pipeline


def _characters(
  lines: list[str], normalize: Callable[[str], str], composes: bool = False
) -> list[str]:
  """The characters that become tokens, by code point.

  Printable ASCII, and the most frequent characters that make up `CHARACTER_COVERAGE` of the
  normalized lines.

  Args:
    lines: the sample.
    normalize: the normalization of a text.
    composes: whether it joins characters, so that single ones do not show its result.
  """
  counts = np.zeros(0x110000, np.int64)
  block = 4096  # lines
  for start in range(0, len(lines), block):
    text = '\n'.join(lines[start : start + block])
    points = np.frombuffer((normalize(text) if composes else text).encode('utf-32-le'), np.uint32)
    counts += np.bincount(points, minlength=len(counts))
  normalized: dict[str, int] = {}
  for point in np.flatnonzero(counts):
    for character in normalize(chr(point)):
      if not character.isspace():
        normalized[character] = normalized.get(character, 0) + int(counts[point])
  chosen = {normalize(character) for character in string.printable if not character.isspace()}
  remaining = CHARACTER_COVERAGE * sum(normalized.values())
  for character in sorted(normalized, key=lambda c: (-normalized[c], c)):
    if remaining <= 0:
      break
    chosen.add(character)
    remaining -= normalized[character]
  return sorted(chosen)


def _word_splitter(settings: Mapping[str, Any]) -> tuple[Any, Any]:
  """BERT's normalizer, and its pre-tokenizer, which splits a text into words."""
  from tokenizers import normalizers, pre_tokenizers

  splitter = pre_tokenizers.BertPreTokenizer()
  if wordpiece_files.RULE in settings:
    return normalizers.Sequence(list(normalization.normalizers(settings))), splitter
  normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=settings['tokenize_chinese_chars'],
    strip_accents=settings['strip_accents'],
    lowercase=settings['do_lower_case'],
  )
  return normalizer, splitter
