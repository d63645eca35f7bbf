"""SentencePiece models, unigram and BPE: opening and training them."""

import io
import os
import re
import string
import unicodedata

import numpy as np

from electra_jax.data.tokenizers import sentencepiece_model, special_tokens
from electra_jax.data.tokenizers.special_tokens import (
  CLS,
  CLS_ID,
  MASK,
  PAD,
  PAD_ID,
  SEP,
  SEP_ID,
  UNK,
  UNK_ID,
)
from electra_jax.data.tokenizers.training_sample import SMALLEST_VOCABULARY, Sample
from electra_jax.errors import UserError

FILE = 'tokenizer.model'
# Names under which models are found in a folder, our own first.
FILES = (FILE, 'spiece.model', 'sentencepiece.bpe.model')

# Below this, the 256 byte pieces would take a good part of the vocabulary for characters that hardly occur.
BYTE_FALLBACK_FROM = 8192
BYTE_PIECES = 256
# What stands for white space in a piece.
SPACE = '\u2581'
# Scripts that are written without spaces, as first and last character: South East Asian and Tibetan ones, Chinese, Japanese.
SPACELESS = (
  (0x0E00, 0x109F),
  (0x1780, 0x17FF),
  (0x1950, 0x1AAF),
  (0x2E80, 0x9FFF),
  (0xF900, 0xFAFF),
  (0xFF66, 0xFF9F),
  (0x1B000, 0x1B16F),
  (0x20000, 0x3FFFF),
)
# First bytes in UTF-8 of characters of which nearly all begin words: punctuation and symbols, Chinese and Japanese, emoji.
WORD_BYTES = (*range(0xE2, 0xEA), *range(0xF0, 0xF5))
# Training holds its sentences in memory; more than this many are sampled down to it.
TRAINING_SENTENCES = 500_000
# Sums are taken thread by thread, so another number would give slightly different scores; fixed, every machine agrees.
TRAINING_THREADS = 4


def parts(files: dict[str, bytes], source: str) -> dict:
  """What a `Tokenizer` needs of a model: tokens, ids of special tokens, encoding and decoding.

  Args:
    files: the model under the name `FILE`.
    source: where it is from, for a complaint.

  Raises:
    UserError: it is no model, or lacks special tokens.
  """
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.load_from_serialized_proto(files[FILE])
  except RuntimeError:
    raise UserError(
      f'the tokenizer {source!r} is not a SentencePiece model or is damaged; restore it or train it again '
      '(a WordPiece vocabulary has a name that ends in .txt)'
    ) from None
  tokens = tuple(processor.id_to_piece(list(range(processor.get_piece_size()))))
  # The unknown piece has a type of its own, whatever its name.
  named = [UNK if i == processor.unk_id() else token for i, token in enumerate(tokens)]
  ids = special_tokens.find_special_tokens(named, special_tokens.USUAL_NAMES, repr(source))
  # Text never becomes a control piece; where a special token is another kind of piece, its literal counts as unknown.
  guarded = [i for i in ids.values() if not processor.is_control(i) and i != ids['unk_id']]
  cores = min(16, os.cpu_count() or 1)

  def guard(rows):
    return (
      [np.where(np.isin(row, guarded), np.int32(ids['unk_id']), row) for row in rows]
      if guarded
      else rows
    )

  def encode(texts, threads):
    if threads == 1:  # even one thread would be a pool to SentencePiece
      encoded = list(map(processor.encode_as_numpy, texts))
    else:
      encoded = processor.encode_as_numpy(texts, num_threads=threads or cores)
    return guard(encoded)

  # Of each piece: bytes of the normalized text that it is, and how many spaces begin and end it.
  shapes = np.array(
    [
      (1, 0, 0) if byte else _shape(token)
      for token, byte in zip(tokens, processor.is_byte(list(range(len(tokens)))), strict=True)
    ],
    np.int32,
  )

  def encode_with_offsets(texts, threads):
    if threads == 1:
      encoded = list(map(processor.encode_as_offset_mapping, texts))
    else:
      encoded = processor.encode_as_offset_mapping(texts, num_threads=threads or cores)
    rows = [np.array(one['ids'], np.int32) for one in encoded]
    spans = []
    for text, one, row in zip(texts, encoded, rows, strict=True):
      shape = shapes[row]
      for i in np.flatnonzero(row == processor.unk_id()):  # what it stands for differs
        shape[i] = _shape(one['pieces'][i])
      spans.append(_spans(*processor.normalize(text, with_offsets=True), shape, len(text)))
    return list(zip(guard(rows), spans, strict=True))

  return {
    'tokens': tokens,
    **ids,
    'encode_short': encode,
    'encode_short_with_offsets': encode_with_offsets,
    'decode_ordinary': lambda row: processor.decode(list(row)),
  }


def word_starts(files: dict[str, bytes]) -> np.ndarray:
  """Whether a piece begins a word, bool [pieces]; see `Tokenizer.word_starts`.

  A word begins at a space, at punctuation and symbols (a word each, as in BERT), and at characters of scripts that are
  written without spaces, so that of a sentence in these each piece is a word. Marks go on with what they stand on. Of
  the bytes of a character the first one tells, as far as it can. [UNK] goes on with the word that is begun by the space
  before it.

  Args:
    files: as of `parts`.

  Raises:
    UserError: pieces end with the space of their word, so that a piece alone does not tell.
  """
  model = sentencepiece_model.read(files[FILE])
  if model.space_after_words:
    raise UserError(
      'the SentencePiece model puts the space of a word at its end, so its pieces do not tell where words begin; use '
      "another tokenizer, or config.objective.masking 'uniform'"
    )

  def begins(text, kind):
    if kind == sentencepiece_model.BYTE:
      byte = int(text[3:5], 16)  # <0x0A>
      return byte in WORD_BYTES or byte < 128 and _begins_word(chr(byte))
    return kind != sentencepiece_model.UNKNOWN and _begins_word(text[:1])

  return np.array([begins(text, kind) for text, _, kind in model.pieces], bool)


def _begins_word(character: str) -> bool:
  if not character or (category := unicodedata.category(character)[0]) == 'M':
    return False
  # U+2581 is a symbol to Unicode, too.
  return (
    category in 'PS'
    or character.isspace()
    or any(first <= ord(character) <= last for first, last in SPACELESS)
  )


def _shape(piece: str) -> tuple[int, int, int]:
  return (
    len(piece.encode()),
    len(piece) - len(piece.lstrip(SPACE)),
    len(piece) - len(piece.rstrip(SPACE)),
  )


def _spans(normalized: str, places: list[int], shapes: np.ndarray, length: int) -> np.ndarray:
  """Characters of pieces, int32 [pieces, 2], that make up a normalized text.

  SentencePiece's own offsets count the space before a word to the word, and where several pieces share a character (its bytes,
  the letters of a ligature), they give it to the last of them.

  Args:
    places: of each character of the normalized text, and of its end, where in the text is what it was made of.
    shapes: int32 [pieces, 3], their bytes in the normalized text, and spaces at the beginning and the end.
    length: of the text.
  """
  places = np.array(places, np.int32)
  size, leading, trailing = shapes.T
  after = np.cumsum(size)
  character = (
    np.cumsum(np.frombuffer(normalized.encode(), np.uint8) & 0xC0 != 0x80) - 1
  )  # of each byte
  first, last = character[after - size] + leading, character[after - 1] - trailing
  begin = places[np.minimum(first, len(normalized))]
  # The end is where what comes next begins.
  end = np.append(places, np.int32(length))[
    np.searchsorted(places, places[np.maximum(last, 0)], 'right')
  ]
  end = np.where(first <= last, end, begin)
  # A space inside of what one character became is that character's too.
  return np.stack([begin, np.maximum.accumulate(end)], axis=1)


def train(
  sample: Sample, kind: str, vocab_size: int, byte_fallback: bool | None, seed: int
) -> dict[str, bytes]:
  """Files of a model that is trained on a sample. The same sample and arguments give the same model anywhere.

  Args:
    sample: lines; SentencePiece chooses `TRAINING_SENTENCES` of more.
    kind: `'unigram'` or `'bpe'`.
    vocab_size: ids in all, special tokens included.
    byte_fallback: None for yes from `BYTE_FALLBACK_FROM` tokens on.
    seed: of that choice.

  Raises:
    UserError: a vocabulary larger than the sample supports, or too small for its characters; no text.
  """
  import sentencepiece

  if vocab_size < SMALLEST_VOCABULARY:
    raise UserError(
      f'vocab_size is {vocab_size}; special tokens and single characters need {SMALLEST_VOCABULARY} at least'
    )
  fallback = vocab_size >= BYTE_FALLBACK_FROM if byte_fallback is None else byte_fallback
  model = io.BytesIO()
  sentencepiece.set_random_generator_seed(seed)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sample.lines),
      model_writer=model,
      model_type=kind,
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
      # Candidates in proportion to the vocabulary: far quicker than the default million, and slightly shorter codes.
      seed_sentencepiece_size=max(20_000, min(20 * vocab_size, 1_000_000)),
      input_sentence_size=TRAINING_SENTENCES,
      shuffle_input_sentence=True,
      num_threads=TRAINING_THREADS,
      minloglevel=2,
    )
  except RuntimeError as error:
    dropped = BYTE_PIECES if byte_fallback is None and fallback else 0
    if complaint := _complaint(str(error), vocab_size, dropped):
      raise UserError(complaint) from None
    raise
  return {FILE: model.getvalue()}


def _complaint(message: str, vocab_size: int, byte_pieces: int) -> str | None:
  """What is wrong with the vocabulary's size, from SentencePiece's message; None where it is about something else."""
  if found := re.search(r'value <= (\d+)', message):
    largest = int(found[1])
    if largest < BYTE_FALLBACK_FROM:  # so small a vocabulary would have no byte pieces unasked
      largest -= byte_pieces
    if largest < SMALLEST_VOCABULARY:
      return 'the corpus is too small to train a tokenizer on; give more text'
    return f'vocab_size is {vocab_size}, more than this corpus supports; {largest} is the largest that would do'
  if smallest := re.search(r'required_chars\. \d+ vs (\d+)', message):
    least = int(smallest[1]) + 100
    return f"vocab_size is {vocab_size}, too few for this corpus's characters; use {least} or more"
  return None
