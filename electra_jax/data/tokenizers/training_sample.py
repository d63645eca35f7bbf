"""The text that a tokenizer is trained on: short lines, of a large corpus a part chosen by hash, and the progress."""

import dataclasses
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator

from electra_jax import console
from electra_jax.errors import UserError

# Characters, held in memory. Of more, lines are chosen by their hash until no more are left.
TRAINING_CHARACTERS = 200_000_000
# SentencePiece skips sentences longer than 4192 bytes without a word, so paragraphs are parted before they reach it.
LINE_BYTES = 4000
# Below this there is no room for special tokens and single characters.
SMALLEST_VOCABULARY = 128

# NUL ends a string in SentencePiece; a lone surrogate is not text.
_NOT_TEXT = re.compile('[\0\ud800-\udfff]')


@dataclasses.dataclass
class Sample:
  """Lines to learn from.

  Attributes:
    lines: none of them blank or longer than `LINE_BYTES` in UTF-8, in the order of the corpus.
    characters: in those lines.
    characters_read: in all lines of the corpus.
    lines_read: in the corpus, those not chosen included.
  """

  lines: list[str] = dataclasses.field(default_factory=list)
  characters: int = 0
  characters_read: int = 0
  lines_read: int = 0


def train(
  learn: Callable[[Sample], dict[str, bytes]],
  texts: Iterable[str],
  kind: str,
  vocab_size: int,
  seed: int,
  expected_characters: int | None,
) -> dict[str, bytes]:
  """Reads texts, then learns from them, and says how far it is.

  Args:
    learn: a sample to a tokenizer's files; runs in a thread of its own.
    texts: documents.
    kind: what is trained, one of `tokenizers.KINDS`.
    vocab_size: asked for.
    seed: of the choice of lines.
    expected_characters: about as many as the texts have, None where nobody knows.

  Raises:
    UserError: there is no text; or what reading the texts or learning from them raises.
  """
  name = 'WordPiece' if kind == 'wordpiece' else f'SentencePiece {"BPE" if kind == "bpe" else kind}'
  console.say('tokenizer', f'training {name}, {vocab_size:,} tokens')
  start = time.monotonic()
  with console.progress('tokenizer', total=expected_characters) as update:

    def read(sample):
      return update(
        sample.characters_read, f'{sample.characters_read / 1e6:,.1f} million characters read'
      )

    sample = take_sample(texts, seed, read)
  if not sample.lines:
    raise UserError('the corpus is too small to train a tokenizer on; give more text')
  lines, millions = (
    f'{sample.lines_read:,} lines',
    f'{sample.characters_read / 1e6:,.1f} million characters',
  )
  if sample.characters < sample.characters_read:
    millions = f'{sample.characters / 1e6:,.1f} million of {millions}'

  results, failures = [], []

  def run():
    try:
      results.append(learn(sample))
    except BaseException as error:  # handed to the calling thread
      failures.append(error)

  worker = threading.Thread(target=run, daemon=True)
  worker.start()
  with console.progress('tokenizer') as update:
    while worker.is_alive():
      worker.join(0.1)
      update(0, f'learning from {millions}')
  if failures:
    raise failures[0]
  console.say(
    'tokenizer',
    f'learned {vocab_size:,} tokens from {lines}, {millions}, in {console.seconds(time.monotonic() - start)}',
  )
  return results[0]


def take_sample(
  texts: Iterable[str], seed: int = 0, progress: Callable[[Sample], None] = lambda sample: None
) -> Sample:
  """The lines of texts; where they have more than `TRAINING_CHARACTERS`, those whose hash is small enough.

  A line's hash and no place decides, so the same lines are chosen in any order of the corpus, in one reading: whenever
  there are too many, the bound is halved and lines above it go. Copies of a line stay or go together.

  Args:
    texts: documents.
    seed: of the hash.
    progress: is called with the sample as it grows.
  """
  sample = Sample()
  bound = 1 << 32
  for text in texts:
    for line in text.split('\n'):
      for part in short_lines(_NOT_TEXT.sub(' ', line)):
        sample.lines_read += 1
        sample.characters_read += len(part)
        if bound == 1 << 32 or _hash(part, seed) < bound:
          sample.lines.append(part)
          sample.characters += len(part)
    while sample.characters > TRAINING_CHARACTERS:
      bound //= 2
      kept = [line for line in sample.lines if _hash(line, seed) < bound]
      if not kept:  # a few lines, again and again
        break
      sample.lines, sample.characters = kept, sum(map(len, kept))
    progress(sample)
  return sample


def short_lines(line: str) -> Iterator[str]:
  """Parts of a line of at most `LINE_BYTES` in UTF-8, cut at spaces where there are some; none of a blank one."""
  limit = LINE_BYTES // 4  # characters; one takes four bytes at most
  start = 0
  while len(line) - start > limit:
    cut = line.rfind(' ', start + 1, start + limit)
    cut = cut if cut > 0 else start + limit
    yield line[start:cut]
    start = cut
  if line[start:].strip():
    yield line[start:]


def _hash(line: str, seed: int) -> int:
  return zlib.crc32(line.encode(), seed)
