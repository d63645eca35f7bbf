"""SentencePiece tokenizers, unigram and BPE."""

import io
import json
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax import file_access
from electra_jax.data.tokenizers import (
  new_words,
  normalization,
  pipeline_files,
  sentencepiece_folders,
  sentencepiece_model,
  sentencepiece_pipeline,
  special_tokens,
  word_marks,
)
from electra_jax.data.tokenizers.pipeline_tokenizer import PipelineTokenizer
from electra_jax.data.tokenizers.sentencepiece_model import SPACE
from electra_jax.data.tokenizers.special_tokens import (
  CLS,
  CLS_ID,
  MASK,
  PAD,
  PAD_ID,
  SEP,
  SEP_ID,
  SPECIAL_TOKENS,
  UNK,
  UNK_ID,
  role_of,
)
from electra_jax.data.tokenizers.tokenization import Pipeline, Tokenizer
from electra_jax.data.tokenizers.tokenizer_settings import (
  Overrides,
  TokenizerSettings,
  UnsupportedSize,
)
from electra_jax.data.tokenizers.training_sample import Sample
from electra_jax.data.tokenizers.wordpiece_files import PIPELINE_FILE, SETTINGS_FILE
from electra_jax.errors import UserError

FILE = 'tokenizer.model'

# In smaller vocabularies, the 256 byte pieces would take much of the space for rare characters.
BYTE_FALLBACK_FROM = 8192
BYTE_PIECES = 256
# A smaller vocabulary has no room for special tokens and single characters.
SMALLEST_VOCABULARY = 128
# Training holds its sentences in memory; SentencePiece samples this many of a larger number.
TRAINING_SENTENCES = 500_000
# Sums are taken per thread, so another number gives slightly different scores. A fixed number gives
# the same model on every machine.
TRAINING_THREADS = 4


class SentencePieceTokenizer(Tokenizer):
  """A tokenizer with a SentencePiece model, trained by unigram or BPE.

  Attributes:
    model: the parsed model file.
  """

  kind = 'sentencepiece'
  notation = '▁ begins a word.'
  unknown_remedy = (
    'byte fallback (config.data.byte_fallback=yes, and config.data.tokenizer=unigram where a model '
    'is given), or byte-level BPE'
  )
  main_files = (FILE, 'spiece.model', 'spm.model', 'sentencepiece.bpe.model')

  def __init__(self, files: Mapping[str, bytes], source: str, options: None = None) -> None:
    """Opens a model.

    Args:
      files: the model under the name `FILE`.
      source: where it comes from, for error messages.
      options: none.

    Raises:
      UserError: it is not a model, or it lacks special tokens.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
      # The library ends the process for some damage, so the fields are checked here first.
      self.model = sentencepiece_model.parse_model(files[FILE])
      processor.load_from_serialized_proto(files[FILE])
    except (RuntimeError, ValueError):
      raise _damaged(source) from None
    every_id = list(range(processor.get_piece_size()))
    tokens = processor.id_to_piece(every_id)
    # The unknown piece has its own type, whatever its name.
    names = [UNK if i == processor.unk_id() else token for i, token in enumerate(tokens)]
    ids = special_tokens.find_special_tokens(names, special_tokens.USUAL_NAMES, repr(source))
    super().__init__(files, tokens, ids, options)
    self._processor = processor
    # Text never becomes a control piece. Where a special token is a piece of another type, its name
    # in a text counts as unknown.
    self._guarded = [i for i in ids.values() if not processor.is_control(i) and i != self.unk_id]
    # Of each piece, int32 [pieces, 3]: bytes of normalized text, and spaces that begin and end it.
    self._shapes = np.array(
      [
        (1, 0, 0) if is_byte else _shape(token)
        for token, is_byte in zip(tokens, processor.is_byte(every_id), strict=True)
      ],
      np.int32,
    )

  @classmethod
  def open_files(
    cls, places: Mapping[str, str], source: str, overrides: Overrides
  ) -> Tokenizer | None:
    """See `Tokenizer.open_files`."""
    place = next((places[name] for name in cls.main_files if name in places), None)
    if place is None:
      return None
    content = file_access.read_bytes(place)
    try:
      pieces = sentencepiece_model.parse_model(content).pieces
      if PIPELINE_FILE in places and not sentencepiece_folders.is_own(pieces):
        return None  # the tokenizer.json has the ids and the normalization of its class
      overrides.require_no_case(source, 'a SentencePiece model')
      content, steps = sentencepiece_folders.read_folder(
        content, places, source, overrides.add_special_tokens
      )
    except ValueError:
      raise _damaged(place) from None
    model = cls({FILE: content}, place)
    if steps == sentencepiece_folders.TextSteps():
      return model
    return _with_steps(model, sentencepiece_folders.normalizers_of(steps), source)

  def encode_short(self, texts: list[str], threads: int | None) -> list[np.ndarray]:
    """See `Tokenizer.encode_short`."""
    if threads == 1:  # SentencePiece would start a pool even for one thread
      rows = [self._processor.encode_as_numpy(text) for text in texts]
    else:
      rows = self._processor.encode_as_numpy(texts, num_threads=threads or _cores())
    return self._guard(rows)

  def encode_short_with_offsets(
    self, texts: list[str], threads: int | None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """See `Tokenizer.encode_short_with_offsets`."""
    if threads == 1:
      encoded = [self._processor.encode_as_offset_mapping(text) for text in texts]
    else:
      encoded = self._processor.encode_as_offset_mapping(texts, num_threads=threads or _cores())
    rows = [np.array(one['ids'], np.int32) for one in encoded]
    spans = []
    for text, one, row in zip(texts, encoded, rows, strict=True):
      shapes = self._shapes[row]
      for i in np.flatnonzero(row == self._processor.unk_id()):  # its text differs each time
        shapes[i] = _shape(one['pieces'][i])
      normalized, places = self._processor.normalize(text, with_offsets=True)
      spans.append(_spans(normalized, places, shapes, len(text)))
    return list(zip(self._guard(rows), spans, strict=True))

  def _guard(self, rows: list[np.ndarray]) -> list[np.ndarray]:
    if not self._guarded:
      return rows
    unknown = np.int32(self.unk_id)
    return [np.where(np.isin(row, self._guarded), unknown, row) for row in rows]

  def decode_ordinary(self, ids: Sequence[int]) -> str:
    """See `Tokenizer.decode_ordinary`."""
    text: str = self._processor.decode(list(ids))
    return text

  def compute_word_starts(self) -> np.ndarray:
    """Whether each piece begins a word, bool [pieces].

    A word begins at a space, at punctuation and symbols (each is a word, as in BERT), and at
    characters of scripts that are written without spaces, where each piece is a word. Marks
    continue the character before them. Of the bytes of a character, the first one decides as far as
    it can. [UNK] continues the word that begins with the space before it.

    Raises:
      UserError: pieces end with the space of their word.
    """
    if self.model.space_after_words:
      raise UserError(
        'the SentencePiece model has the space of a word at its end, so its pieces do not show '
        'where words begin; use another tokenizer, or --config.objective.masking=uniform.'
      )
    spaceless = self.segment is None
    return np.array(
      [_piece_begins_word(text, kind, spaceless) for text, _, kind in self.model.pieces], bool
    )

  def surface(self, token_id: int) -> tuple[bool, str]:
    """See `Tokenizer.surface`."""
    token = self.tokens[token_id]
    return token.startswith(SPACE), token.removeprefix(SPACE).replace(SPACE, ' ')

  def byte_value(self, token_id: int) -> int | None:
    """See `Tokenizer.byte_value`."""
    return int(self.tokens[token_id][3:5], 16) if self._processor.is_byte(token_id) else None

  def encode_inside_word(self, text: str) -> list[int]:
    """Ids of a text as at the beginning of a word, without its space where possible."""
    first, *rest = self.encode(text) or [self.unk_id]
    inside = self.tokens[first].removeprefix(SPACE)
    if not inside:
      return rest
    return [self.ordinary_ids.get(inside, first), *rest]

  def with_words(self, words: Sequence[str]) -> 'SentencePieceTokenizer':
    """See `Tokenizer.with_words`; for unigram models.

    In running text a new word becomes its token. The beginning of a longer word becomes the token,
    too, where the longer word was split at that place before, or nearly could have been. All other
    text is encoded as before. In a BPE vocabulary a word is made by merging tokens pair by pair, so
    a new one would require all tokens on the way, which would change other words.
    """
    pieces = new_words.unigram_pieces(self, self.model, self._processor.normalize, words)
    files = self.files | {FILE: sentencepiece_model.append_pieces(self.files[FILE], pieces)}
    return SentencePieceTokenizer(files, 'with more words')

  def to_pipeline(self) -> Pipeline:
    """See `Tokenizer.to_pipeline`."""
    return sentencepiece_pipeline.make_pipeline(self, self.model)

  @classmethod
  def training_title(cls, settings: TokenizerSettings) -> str:
    """See `Tokenizer.training_title`."""
    return f'SentencePiece {"BPE" if settings.kind == "bpe" else settings.kind}'

  @classmethod
  def relevant_settings(cls, settings: TokenizerSettings) -> list[Any]:
    """See `Tokenizer.relevant_settings`."""
    if settings.normalization == normalization.ORIGINAL:
      return [settings.byte_fallback]
    rule = normalization.identity(settings.normalization)
    return [settings.byte_fallback, rule, *settings.folding]

  @classmethod
  def train(cls, sample: Sample, settings: TokenizerSettings) -> dict[str, bytes]:
    """See `Tokenizer.train`; `settings.kind` is SentencePiece's name of the model type."""
    vocab_size = settings.vocab_size
    if vocab_size < SMALLEST_VOCABULARY:
      raise UserError(
        f'vocab_size is {vocab_size}; expected at least {SMALLEST_VOCABULARY}, for special tokens '
        'and single characters.'
      )
    fallback = settings.byte_fallback
    if fallback is None:
      fallback = vocab_size >= BYTE_FALLBACK_FROM
    if settings.normalization == normalization.ORIGINAL:
      return {FILE: cls._train(sample.lines, settings, fallback, {})}
    # The trainer takes rules only by name or as a file, which takes seconds to compile. It gets
    # normalized text, and its model the rules.
    rules = normalization.compiled(settings.normalization, *settings.folding)
    lines = normalization.normalize_lines(sample.lines, rules) if rules else sample.lines
    model = cls._train(lines, settings, fallback, {'normalization_rule_name': 'identity'})
    return {FILE: sentencepiece_model.with_normalization(model, rules) if rules else model}

  @classmethod
  def _train(
    cls, lines: Iterable[str], settings: TokenizerSettings, fallback: bool, rule: dict[str, Any]
  ) -> bytes:
    """The model file.

    Args:
      lines: to train on.
      settings: see `Tokenizer.train`.
      fallback: whether characters outside the vocabulary become bytes.
      rule: the trainer's argument for a rule of normalization; empty for its own.
    """
    import sentencepiece

    vocab_size = settings.vocab_size
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(settings.seed)
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=settings.kind,
        vocab_size=vocab_size,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=CLS_ID,
        eos_id=SEP_ID,
        pad_piece=PAD,
        unk_piece=UNK,
        bos_piece=CLS,
        eos_piece=SEP,
        control_symbols=[MASK],
        unk_surface=UNK,
        character_coverage=0.9999,
        required_chars=''.join(c for c in string.printable if not c.isspace()),
        byte_fallback=fallback,
        **rule,
        # Candidates in proportion to the vocabulary: much faster than the default of a million, and
        # texts become slightly fewer tokens.
        seed_sentencepiece_size=max(20_000, min(20 * vocab_size, 1_000_000)),
        input_sentence_size=TRAINING_SENTENCES,
        shuffle_input_sentence=True,
        num_threads=TRAINING_THREADS,
        minloglevel=2,
      )
    except RuntimeError as error:
      added = BYTE_PIECES if settings.byte_fallback is None and fallback else 0
      refused = _size_error(str(error), vocab_size, added)
      if refused is None:
        raise
      raise refused from None
    return model.getvalue()


def _damaged(source: str) -> UserError:
  return UserError(
    f'the tokenizer {source!r} is not a SentencePiece model or is damaged; restore it or train '
    'it again (the name of a WordPiece vocabulary must end in .txt).'
  )


def _with_steps(model: SentencePieceTokenizer, steps: Sequence[Any], source: str) -> Tokenizer:
  """A model with other normalizers before its own, which SentencePiece cannot express."""
  from tokenizers import normalizers

  pipeline = model.to_pipeline()
  pipeline.normalizer = normalizers.Sequence([*steps, pipeline.normalizer])
  roles = {
    role_of(token): model.tokens[getattr(model, f'{token[1:-1].lower()}_id')]
    for token in SPECIAL_TOKENS
  }
  files = {
    PIPELINE_FILE: pipeline_files.serialized(pipeline),
    SETTINGS_FILE: (json.dumps(roles, indent=2) + '\n').encode(),
  }
  return PipelineTokenizer(files, source)


def _cores() -> int:
  return min(16, os.cpu_count() or 1)


def _size_error(message: str, vocab_size: int, byte_pieces: int) -> UserError | None:
  """What is wrong with the vocabulary size, from SentencePiece's message; None for other errors."""
  if found := re.search(r'value <= (\d+)', message):
    largest = int(found[1])
    if largest < BYTE_FALLBACK_FROM:  # by default, so small a vocabulary has no byte pieces
      largest -= byte_pieces
    if largest < SMALLEST_VOCABULARY:
      return UserError('the corpus is too small to train a tokenizer on; give more text.')
    return UnsupportedSize(
      f'vocab_size is {vocab_size}, more than this corpus supports; expected at most {largest}.',
      largest,
    )
  if smallest := re.search(r'required_chars\. \d+ vs (\d+)', message):
    least = int(smallest[1]) + 100
    return UnsupportedSize(
      f"vocab_size is {vocab_size}, too few for this corpus's characters; expected {least} or "
      'more.',
      least,
    )
  return None


def _piece_begins_word(text: str, piece_type: int, spaceless: bool) -> bool:
  if piece_type == sentencepiece_model.BYTE_PIECE:
    return word_marks.byte_begins_word(int(text[3:5], 16), spaceless)  # <0x0A>
  return piece_type != sentencepiece_model.UNKNOWN_PIECE and word_marks.begins_word(text, spaceless)


def _shape(piece: str) -> tuple[int, int, int]:
  """Bytes of a piece, and the spaces at its beginning and its end."""
  return (
    len(piece.encode()),
    len(piece) - len(piece.lstrip(SPACE)),
    len(piece) - len(piece.rstrip(SPACE)),
  )


def _spans(normalized: str, places: list[int], shapes: np.ndarray, length: int) -> np.ndarray:
  """Characters of the pieces of a normalized text, int32 [pieces, 2].

  SentencePiece's own offsets include the space before a word, and where several pieces share a
  character (its bytes, the letters of a ligature), they give it to the last of them.

  Args:
    normalized: the normalized text.
    places: for each character of the normalized text, and for its end, the place in the text that
      it was made from.
    shapes: of the pieces, int32 [pieces, 3], see `_shape`.
    length: number of characters of the text.
  """
  origins = np.array(places, np.int32)
  size, leading, trailing = shapes.T
  after = np.cumsum(size)
  is_first_byte = np.frombuffer(normalized.encode(), np.uint8) & 0xC0 != 0x80
  character = np.cumsum(is_first_byte) - 1  # of each byte
  first = character[after - size] + leading
  last = character[after - 1] - trailing
  begin = origins[np.minimum(first, len(normalized))]
  # A piece ends where the next character of the text begins.
  following = np.searchsorted(origins, origins[np.maximum(last, 0)], 'right')
  end = np.append(origins, np.int32(length))[following]
  end = np.where(first <= last, end, begin)
  # A space inside the characters that one character became has that character's span, too.
  return np.stack([begin, np.maximum.accumulate(end)], axis=1)
