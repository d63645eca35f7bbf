"""The text that a tokenizer is trained on: short lines, sampled from a large corpus by hash."""

import dataclasses
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from electra_jax import console
from electra_jax.errors import UserError

# Default of the most characters of a sample, which is held in memory.
TRAINING_CHARACTERS = 200_000_000
# SentencePiece silently skips sentences longer than 4192 bytes, so longer lines are split.
LINE_BYTES = 4000

# NUL ends a string in SentencePiece; a lone surrogate cannot be encoded.
_NOT_TEXT = re.compile('[\0\ud800-\udfff]')


class SampleSettings(Protocol):
  """What decides a sample, and what is trained, for the console."""

  @property
  def vocab_size(self) -> int:
    """Requested number of ids."""

  @property
  def seed(self) -> int:
    """Seed of the choice of lines."""

  @property
  def characters(self) -> int:
    """Most characters of the sample."""


class HasSize(Protocol):
  """A trained tokenizer, for the console."""

  @property
  def size(self) -> int:
    """The number of ids."""


T = TypeVar('T', bound=HasSize)


@dataclasses.dataclass
class Sample:
  """Lines to train on.

  Attributes:
    lines: in the order of the corpus; none is blank or longer than `LINE_BYTES` in UTF-8.
    characters: number of characters in `lines`.
    characters_read: number of characters in all lines of the corpus.
    lines_read: number of lines of the corpus, including those that were not chosen.
  """

  lines: list[str] = dataclasses.field(default_factory=list)
  characters: int = 0
  characters_read: int = 0
  lines_read: int = 0


def train_with_progress(
  train: Callable[[Sample], T],
  texts: Iterable[str],
  *,
  title: str,
  settings: SampleSettings,
  expected_characters: int | None,
) -> T:
  """Takes a sample of texts and trains on it, with a progress line on the console.

  Args:
    train: trains a tokenizer on a sample; runs in a thread.
    texts: documents.
    title: kind of the tokenizer, for the console.
    settings: of the training.
    expected_characters: approximate number of characters of the texts; None where unknown.

  Returns:
    What `train` returns.

  Raises:
    UserError: there is no text.
    Exception: what reading the texts, or `train`, raises.
  """
  console.say('tokenizer', f'training {title}, {settings.vocab_size:,} tokens')
  start = time.monotonic()
  with console.progress('tokenizer', expected_characters, 'characters') as update:

    def report(sample: Sample) -> None:
      millions = f'{sample.characters_read / 1e6:,.1f} million characters read'
      update(sample.characters_read, millions)

    sample = take_sample(texts, settings.seed, report, settings.characters)
  if not sample.lines:
    raise UserError('the corpus is too small to train a tokenizer on; give more text.')
  lines = f'{sample.lines_read:,} lines'
  millions = f'{sample.characters_read / 1e6:,.1f} million characters'
  if sample.characters < sample.characters_read:
    millions = f'{sample.characters / 1e6:,.1f} million of {millions}'
  result = _train_in_thread(train, sample, f'learning from {millions}')
  seconds = console.seconds(time.monotonic() - start)
  console.say('tokenizer', f'learned {result.size:,} tokens from {lines}, {millions}, in {seconds}')
  return result


def _train_in_thread(train: Callable[[Sample], T], sample: Sample, message: str) -> T:
  results: list[T] = []
  failures: list[BaseException] = []

  def run() -> None:
    try:
      results.append(train(sample))
    except BaseException as error:  # raised again in the calling thread
      failures.append(error)

  worker = threading.Thread(target=run, daemon=True)
  worker.start()
  with console.phase('tokenizer', message):
    while worker.is_alive():
      worker.join(0.1)  # so that Ctrl-C is answered
  if failures:
    raise failures[0]
  return results[0]


def _ignore(sample: Sample) -> None:
  del sample


def take_sample(
  texts: Iterable[str],
  seed: int = 0,
  progress: Callable[[Sample], None] = _ignore,
  characters: int | None = None,
) -> Sample:
  """Returns the lines of texts, or of more than `characters` those with a small hash.

  The hash of its text decides whether a line is chosen, so that one pass chooses the same lines in
  any order of the corpus. Whenever the sample is too large, the bound of the hash is halved and
  lines above it are dropped. Copies of a line are kept or dropped together.

  Args:
    texts: documents.
    seed: seed of the hash.
    progress: called with the growing sample after each document.
    characters: most characters of the sample; None for `TRAINING_CHARACTERS`.
  """
  most = TRAINING_CHARACTERS if characters is None else characters
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
    while sample.characters > most:
      bound //= 2
      kept = [line for line in sample.lines if _hash(line, seed) < bound]
      if not kept:  # few distinct lines, repeated many times
        break
      sample.lines = kept
      sample.characters = sum(map(len, kept))
    progress(sample)
  return sample


def short_lines(line: str) -> Iterator[str]:
  """Yields a line in parts of at most `LINE_BYTES` bytes of UTF-8, split at spaces where possible.

  A blank line yields nothing.
  """
  limit = LINE_BYTES // 4  # characters; one takes at most four bytes
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
