"""Text to token ids and back: one interface, and SentencePiece unigram models behind it."""

import dataclasses
import hashlib
import io
import os
import pathlib
import re
import string
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from electra_jax.config import UserError
from electra_jax import console

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(len(SPECIAL_TOKENS))

SENTENCEPIECE_FILE = 'tokenizer.model'

# Below this, the 256 byte pieces would take a good part of the vocabulary for characters that hardly occur.
BYTE_FALLBACK_FROM = 8192
# Unigram training holds its sentences in memory; more than this many are sampled down to it.
TRAINING_SENTENCES = 500_000
# SentencePiece skips longer sentences without a word, so paragraphs are parted before they reach it.
TRAINING_SENTENCE_BYTES = 4000
SMALLEST_VOCABULARY = 128
# Sums are taken thread by thread, so another number would give slightly different scores; fixed, every machine agrees.
TRAINING_THREADS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A vocabulary and how text is cut into it. Special tokens never come out of encoding; callers add them.

  Attributes:
    kind: the family, `'sentencepiece'`.
    tokens: the text of each id, `[size]`, as the vocabulary writes it.
    pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
    files: name and content of the files that `save` writes.
    encode_batch: texts to lists of ids.
    decode_ordinary: ids, none of them special, to text.
  """

  kind: str
  tokens: tuple[str, ...]
  pad_id: int
  unk_id: int
  cls_id: int
  sep_id: int
  mask_id: int
  files: dict[str, bytes]
  encode_batch: Callable[[Sequence[str]], list[list[int]]]
  decode_ordinary: Callable[[Sequence[int]], str]

  @property
  def size(self) -> int:
    """The number of ids, special tokens included and no padding rows."""
    return len(self.tokens)

  @property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of the special tokens, ascending."""
    return tuple(sorted((self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)))

  @property
  def fingerprint(self) -> str:
    """A hash of all that decides how text is encoded."""
    digest = hashlib.blake2b(self.kind.encode(), digest_size=16)
    for name, content in sorted(self.files.items()):
      digest.update(name.encode() + b'\0' + hashlib.blake2b(content).digest())
    return digest.hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without [CLS] and [SEP]. Literal `[MASK]` and the like in the text are text."""
    return self.encode_batch([text])[0]

  def decode(self, ids: Iterable[int], special_tokens: bool = True) -> str:
    """Readable text of ids; special tokens other than [PAD] are written out, or left out."""
    parts, ordinary = [], []
    specials = {self.cls_id, self.sep_id, self.mask_id, self.unk_id, self.pad_id}
    for i in [*map(int, ids), self.pad_id]:
      if i not in specials:
        ordinary.append(i)
        continue
      if ordinary:
        parts.append(self.decode_ordinary(ordinary))
        ordinary = []
      if special_tokens and i != self.pad_id:
        parts.append(self.tokens[i])
    return ' '.join(parts)

  def token(self, token_id: int) -> str:
    """The token of an id as the vocabulary writes it."""
    return self.tokens[int(token_id)]

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes the tokenizer's files into a folder, which `load_tokenizer` reads."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (folder / name).write_bytes(content)

  def __reduce__(self):
    return _FROM_FILES[self.kind], (self.files,)


def load_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
  """The tokenizer that a folder holds.

  Raises:
    UserError: there is none, it is damaged, or its special tokens are not this project's.
  """
  path = pathlib.Path(folder) / SENTENCEPIECE_FILE
  if not path.is_file():
    raise UserError(f'no tokenizer in {str(folder)!r}: {SENTENCEPIECE_FILE} is not there; name a folder that holds one')
  return _sentencepiece_tokenizer({SENTENCEPIECE_FILE: path.read_bytes()}, str(path))


def train_sentencepiece(texts: Iterable[str], vocab_size: int, seed: int = 0) -> Tokenizer:
  """Trains a SentencePiece unigram model (Kudo 2018). The same texts and arguments give the same model anywhere.

  All printable ASCII is in the vocabulary, so no English text meets [UNK] for a bracket. Rare characters become [UNK]
  in small vocabularies and bytes in large ones (`BYTE_FALLBACK_FROM`), where 256 more pieces cost little.

  Args:
    texts: documents; their lines are the sentences it learns from.
    vocab_size: ids in all, special tokens included.
    seed: of the sampling, where there are more than `TRAINING_SENTENCES` lines.

  Raises:
    UserError: a vocabulary larger than the texts support, or too small for their characters; no text.
  """
  if vocab_size < SMALLEST_VOCABULARY:
    raise UserError(
      f'vocab_size is {vocab_size}; special tokens and single characters need {SMALLEST_VOCABULARY} at least'
    )
  read = {'sentences': 0, 'characters': 0}
  model = io.BytesIO()
  failure = []

  def train():
    import sentencepiece

    try:
      sentencepiece.set_random_generator_seed(seed)
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_sentences(texts, read, failure),
        model_writer=model,
        model_type='unigram',
        vocab_size=vocab_size,
        pad_id=PAD_ID, unk_id=UNK_ID, bos_id=CLS_ID, eos_id=SEP_ID,
        pad_piece=PAD, unk_piece=UNK, bos_piece=CLS, eos_piece=SEP, control_symbols=[MASK],
        unk_surface=UNK,
        character_coverage=0.9999,
        required_chars=''.join(c for c in string.printable if not c.isspace()),
        byte_fallback=vocab_size >= BYTE_FALLBACK_FROM,
        # Candidates in proportion to the vocabulary: far quicker than the default million, and slightly shorter codes.
        seed_sentencepiece_size=max(20_000, min(20 * vocab_size, 1_000_000)),
        input_sentence_size=TRAINING_SENTENCES, shuffle_input_sentence=True,
        num_threads=TRAINING_THREADS,
        minloglevel=2,
      )  # fmt: skip
    except Exception as error:  # handed to the calling thread
      failure.append(error)

  console.say('tokenizer', f'training SentencePiece, {vocab_size:,} tokens')
  start = time.monotonic()
  worker = threading.Thread(target=train, daemon=True)
  worker.start()
  with console.progress('tokenizer') as update:
    while worker.is_alive():
      worker.join(0.1)
      update(0, f"training on {read['characters'] / 1e6:,.1f} million characters")
  if failure:
    raise _training_error(failure[0], vocab_size) from None
  tokenizer = _sentencepiece_tokenizer({SENTENCEPIECE_FILE: model.getvalue()}, 'the trained model')
  sampled = '' if read['sentences'] <= TRAINING_SENTENCES else f', {TRAINING_SENTENCES:,} of them sampled'
  console.say(
    'tokenizer',
    f"learned {tokenizer.size:,} tokens from {read['sentences']:,} lines{sampled}, "
    f"{read['characters'] / 1e6:,.1f} million characters, in {console.seconds(time.monotonic() - start)}",
  )
  return tokenizer


def _sentences(texts: Iterable[str], read: dict, failure: list) -> Iterator[str]:
  try:
    for text in texts:
      for line in text.split('\n'):
        for sentence in _short(line.replace('\0', ' ')):
          read['sentences'] += 1
          read['characters'] += len(sentence)
          yield sentence
  except Exception as error:  # SentencePiece would turn it into a message of its own
    failure.append(error)


def _short(line: str) -> Iterator[str]:
  """Parts of a line of at most `TRAINING_SENTENCE_BYTES` in UTF-8, cut at white space where there is some."""
  limit = TRAINING_SENTENCE_BYTES // 4  # characters; one takes four bytes at most
  start = 0
  while len(line) - start > limit:
    cut = line.rfind(' ', start + 1, start + limit)
    cut = cut if cut > 0 else start + limit
    yield line[start:cut]
    start = cut
  if line[start:].strip():
    yield line[start:]


def _training_error(error: Exception, vocab_size: int) -> Exception:
  message = str(error)
  if isinstance(error, UserError):
    return error
  if found := re.search(r'value <= (\d+)', message):
    largest = int(found[1])
    if vocab_size >= BYTE_FALLBACK_FROM > largest:  # so small a vocabulary would have no byte pieces
      largest -= 256
    if largest < SMALLEST_VOCABULARY:
      return UserError('the corpus is too small to train a tokenizer on; give more text')
    return UserError(
      f'vocab_size is {vocab_size}, more than this corpus supports; {largest} is the largest that would do'
    )
  if smallest := re.search(r'required_chars\. \d+ vs (\d+)', message):
    least = int(smallest[1]) + 100
    return UserError(f"vocab_size is {vocab_size}, too few for this corpus's characters; use {least} or more")
  return error


def _sentencepiece_tokenizer(files: dict[str, bytes], name: str) -> Tokenizer:
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor()
  try:
    processor.load_from_serialized_proto(files[SENTENCEPIECE_FILE])
  except RuntimeError:
    raise UserError(f'the tokenizer {name!r} is not a SentencePiece model or is damaged; train it again') from None
  tokens = tuple(processor.id_to_piece(list(range(processor.get_piece_size()))))
  if tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
    raise UserError(f"the tokenizer {name!r} does not begin with {' '.join(SPECIAL_TOKENS)}; use one trained here")
  threads = min(16, os.cpu_count() or 1)
  return Tokenizer(
    kind='sentencepiece',
    tokens=tokens,
    pad_id=PAD_ID,
    unk_id=UNK_ID,
    cls_id=CLS_ID,
    sep_id=SEP_ID,
    mask_id=MASK_ID,
    files=files,
    encode_batch=lambda texts: processor.encode(list(texts), num_threads=threads) if texts else [],
    decode_ordinary=lambda ids: processor.decode(list(ids)),
  )


def _sentencepiece_from_files(files: dict[str, bytes]) -> Tokenizer:
  return _sentencepiece_tokenizer(files, 'the tokenizer')


_FROM_FILES = {'sentencepiece': _sentencepiece_from_files}
