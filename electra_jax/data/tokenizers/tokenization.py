"""Text to token ids and back: one interface over SentencePiece and WordPiece; loading and training them."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from electra_jax import file_access
from electra_jax.data.tokenizers import (
  sentencepiece_tokenizer,
  training_sample,
  wordpiece_tokenizer,
)
from electra_jax.data.tokenizers.special_tokens import CLS, MASK, PAD, SEP, SPECIAL_TOKENS, UNK
from electra_jax.errors import UserError

__all__ = [
  'CLS',
  'MASK',
  'PAD',
  'SEP',
  'SPECIAL_TOKENS',
  'UNK',
  'Tokenizer',
  'load_tokenizer',
  'train_tokenizer',
]

KINDS = ('unigram', 'bpe', 'wordpiece')

# Characters. A longer text is encoded in parts, so that what a library holds beside the ids stays small.
LONG_TEXT = 100_000
# Characters that a library gets at once: `tokenizers` keeps some hundred bytes a token until a call is over.
CALL_CHARACTERS = 1_000_000
# Places to part a long text: white space for every kind of tokenizer.
_CUTS = ' \n\t\r\u3000'
_SURROGATES = re.compile('[\ud800-\udfff]')


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A vocabulary and how text is cut into it. Special tokens but [UNK] never come out of encoding; callers add them.

  Attributes:
    kind: the family, `'sentencepiece'` or `'wordpiece'`.
    tokens: the text of each id, `[size]`, as the vocabulary writes it.
    pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens, wherever the vocabulary has them.
    files: name and content of the files that `save` writes.
    encode_short: texts of at most `LONG_TEXT` characters and a number of threads, to ids, int32 `[tokens]` each.
    encode_short_with_offsets: the same with the characters of each token, int32 `[tokens, 2]`, as pairs.
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
  encode_short: Callable[[list[str], int | None], list[np.ndarray]]
  encode_short_with_offsets: Callable[[list[str], int | None], list[tuple[np.ndarray, np.ndarray]]]
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

  @functools.cached_property
  def word_starts(self) -> np.ndarray:
    """Whether each token begins a word, bool `[size]`, read-only: a word of a text is such a token and those after it that are none.

    WordPiece: a token without `##`. SentencePiece: a piece that begins with a space (U+2581), with punctuation or a symbol, or with a
    character of a script that is written without spaces, where each piece is a word.

    Raises:
      UserError: the tokens do not tell, since each ends with the space of its word.
    """
    if self.kind == 'wordpiece':
      starts = wordpiece_tokenizer.word_starts(self.tokens)
    else:
      starts = sentencepiece_tokenizer.word_starts(self.files)
    starts.setflags(write=False)
    return starts

  def encode_arrays(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
    """Ids of each text, int32 `[tokens]`, without [CLS] and [SEP]. Literal `[MASK]` and the like in a text are text.

    A text longer than `LONG_TEXT` characters is parted at white space, so its ids are those of the whole (of a unigram
    model up to ties that float32 decides); where so long a stretch has none, it is parted anywhere. Lone surrogates,
    which no encoding of text can hold, count as U+FFFD.

    Args:
      texts: any text at all.
      threads: None for all cores; 1 for the calling thread alone, no pool started, as a worker process wants it.
        SentencePiece takes other numbers as they are, WordPiece takes them for all cores.
    """
    encoded = [[] for _ in texts]
    for owners, _, parts in _calls(texts):
      for owner, ids in zip(owners, _encode(self.encode_short, parts, threads), strict=True):
        encoded[owner].append(ids)
    return [
      parts[0] if len(parts) == 1 else np.concatenate([*parts, np.zeros(0, np.int32)])
      for parts in encoded
    ]

  def encode_with_offsets(
    self, texts: Sequence[str], threads: int | None = None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids of each text, as of `encode_arrays`, and the characters that each token stands for.

    `text[start:end]` is what a token was made of, before any normalization, without white space around it. Tokens that one
    character became (its bytes, the letters of a ligature) have that character each. A token of white space alone, or of a
    space that the tokenizer put before the text, has none: start == end. Starts ascend, and ends.

    Args:
      texts, threads: as of `encode_arrays`.

    Returns:
      For each text (ids int32 `[tokens]`, spans int32 `[tokens, 2]`: first character and the one after the last).
    """
    encoded = [[] for _ in texts]
    for owners, starts, parts in _calls(texts):
      for owner, start, (ids, spans) in zip(
        owners, starts, _encode(self.encode_short_with_offsets, parts, threads), strict=True
      ):
        encoded[owner].append((ids, spans + np.int32(start)))
    nothing = (np.zeros(0, np.int32), np.zeros((0, 2), np.int32))
    return [
      parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, nothing, strict=True)))
      for parts in encoded
    ]

  def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
    """`encode_arrays` as lists."""
    return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

  def encode(self, text: str) -> list[int]:
    """Ids of one text, as of `encode_batch`, in the calling thread."""
    return self.encode_batch([text], threads=1)[0]

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

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the tokenizer's files into a folder or address, which `load_tokenizer` and `transformers` read."""
    for name, content in self.files.items():
      file_access.write_bytes(file_access.join(folder, name), content)

  def __reduce__(self):
    return from_files, (self.kind, self.files)


def load_tokenizer(
  path: str | os.PathLike, lowercase: bool | None = None, strip_accents: bool | None = None
) -> Tokenizer:
  """The tokenizer in a folder, or of one file: a BERT `vocab.txt`, or a SentencePiece model. Addresses will do.

  A folder is one that `Tokenizer.save` wrote, or another's: a SentencePiece model, or WordPiece's `vocab.txt` or
  `tokenizer.json`, with or without what else `transformers` writes. Tokens that were added there to a WordPiece
  vocabulary are found in a text wherever they stand.

  Args:
    path: of the folder or file.
    lowercase: WordPiece: whether text is lower-cased. None for what was saved, or else yes, as in uncased BERT.
    strip_accents: WordPiece: whether accents are taken off. None for what was saved, or else as `lowercase`.

  Raises:
    UserError: there is none, it is damaged, it lacks special tokens, or what was saved contradicts the arguments.
  """
  path = os.fspath(path)
  if file_access.is_folder(path):
    names = (*sentencepiece_tokenizer.FILES, *wordpiece_tokenizer.FILES)
    found = {
      name: place for name in names if file_access.exists(place := file_access.join(path, name))
    }
  elif file_access.exists(path):
    suffix = os.path.splitext(path)[1].lower()
    found = {{'.txt': 'vocab.txt', '.json': 'tokenizer.json'}.get(suffix, 'tokenizer.model'): path}
  else:
    raise UserError(
      f'no tokenizer at {path!r}: nothing is there; name a folder, a vocab.txt or a SentencePiece model, '
      f'or a kind to train: {", ".join(KINDS)}'
    )
  for name in sentencepiece_tokenizer.FILES:
    if name not in found:
      continue
    if lowercase is not None or strip_accents is not None:
      raise UserError(
        f'the tokenizer {path!r} is a SentencePiece model, which holds its own normalization; leave out '
        'lowercase and strip_accents'
      )
    content = {sentencepiece_tokenizer.FILE: file_access.read_bytes(found[name])}
    return from_files('sentencepiece', content, found[name])
  if not {'vocab.txt', 'tokenizer.json'} & set(found):
    raise UserError(
      f'no tokenizer in {path!r}: neither tokenizer.model nor vocab.txt is there; name a folder that holds one'
    )
  content = {name: file_access.read_bytes(place) for name, place in found.items()}
  return from_files(
    'wordpiece', wordpiece_tokenizer.canonical_files(content, path, lowercase, strip_accents), path
  )


def train_tokenizer(
  texts: Iterable[str],
  *,
  kind: str = 'unigram',
  vocab_size: int,
  lowercase: bool | None = None,
  strip_accents: bool | None = None,
  byte_fallback: bool | None = None,
  seed: int = 0,
  expected_characters: int | None = None,
) -> Tokenizer:
  """Trains a tokenizer. The same texts and arguments give the same one, on any machine and any number of cores.

  All printable ASCII is in the vocabulary, so no English text meets [UNK] for a bracket. Of a corpus larger than
  `training_sample.TRAINING_CHARACTERS` a part is learned from, its lines chosen by their hash.

  Args:
    texts: documents; their lines are what it learns from.
    kind: `'unigram'` (Kudo 2018) or `'bpe'` (Sennrich et al. 2016), both by SentencePiece, or `'wordpiece'`, pairs
      merged by their number as in BPE, text normalized and applied as in BERT.
    vocab_size: ids in all, special tokens included.
    lowercase: WordPiece: whether text is lower-cased; None for yes.
    strip_accents: WordPiece: whether accents are taken off; None for as `lowercase`.
    byte_fallback: SentencePiece: whether characters outside the vocabulary become bytes rather than [UNK]; None for
      yes in vocabularies so large that 256 more tokens cost little.
    seed: of the choice of lines in a large corpus.
    expected_characters: about as many as the texts have, for the progress line alone.

  Raises:
    UserError: a kind that is none; a vocabulary larger than the texts support, or too small for their characters; no
      text; or what reading the texts raises.
  """
  if kind not in KINDS:
    raise UserError(f'the tokenizer kind {kind!r} is not known; use one of {", ".join(KINDS)}')
  if kind == 'wordpiece':

    def train(sample):
      return wordpiece_tokenizer.train(sample, vocab_size, lowercase is not False, strip_accents)
  else:

    def train(sample):
      return sentencepiece_tokenizer.train(sample, kind, vocab_size, byte_fallback, seed)

  trained = training_sample.train(train, texts, kind, vocab_size, seed, expected_characters)
  return from_files(
    'wordpiece' if kind == 'wordpiece' else 'sentencepiece', trained, 'just trained'
  )


def from_files(kind: str, content: dict[str, bytes], source: str = 'unpickled') -> Tokenizer:
  """The tokenizer of a kind whose `files` are these; `source` says in a complaint where they are from."""
  parts = {'sentencepiece': sentencepiece_tokenizer.parts, 'wordpiece': wordpiece_tokenizer.parts}[
    kind
  ]
  return Tokenizer(kind=kind, files=content, **parts(content, source))


def _encode(encode: Callable, texts: list[str], threads: int | None) -> list:
  try:
    return encode(texts, threads)
  except (TypeError, RuntimeError, UnicodeError):  # what the libraries make of a lone surrogate
    clean = [_SURROGATES.sub('\ufffd', text) for text in texts]
    if clean == texts:
      raise
    return encode(clean, threads)


def _calls(texts: Sequence[str]) -> Iterator[tuple[Sequence[int], Sequence[int], list[str]]]:
  """What goes to the library at once: whose parts, where they start, and the parts, at most `LONG_TEXT` characters each."""
  if sum(map(len, texts)) <= LONG_TEXT:  # the usual case, at no cost
    if texts:
      yield range(len(texts)), [0] * len(texts), list(texts)
    return
  owners, starts, parts, characters = [], [], [], 0
  for owner, text in enumerate(texts):
    for start, part in _parts(text):
      owners.append(owner)
      starts.append(start)
      parts.append(part)
      characters += len(part)
      if characters >= CALL_CHARACTERS:
        yield owners, starts, parts
        owners, starts, parts, characters = [], [], [], 0
  if parts:
    yield owners, starts, parts


def _parts(text: str) -> Iterator[tuple[int, str]]:
  """A text in parts of at most `LONG_TEXT` characters with their starts; the white space where it is parted is left out."""
  start = 0
  while len(text) - start > LONG_TEXT:
    end = start + LONG_TEXT
    cut = max(text.rfind(white, start + 1, end) for white in _CUTS)
    yield start, text[start : cut if cut > 0 else end]
    start = cut + 1 if cut > 0 else end
  yield start, text[start:]
