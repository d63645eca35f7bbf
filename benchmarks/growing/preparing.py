"""Preparation of text: processor seconds, seconds on the clock and memory of all processes."""

import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence

import preparation as peers

SAMPLE = 'sample'
WORDS = 200  # of a document that is compared with others


def _most() -> int:
  """The most resident bytes of this process or of one that it started."""
  who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  return max(resource.getrusage(one).ru_maxrss for one in who) * 1024


def measure(point: dict[str, float]) -> dict[str, float]:
  """Prepares the bundled corpus, repeated, with a WordPiece tokenizer that exists.

  Args:
    point: 'megabytes' of text and 'processes', each with a core; 'busy', the number of cores in
      use, of which those that remain prepare the same text for themselves.

  Returns:
    `processor` seconds of all processes, `clock` seconds, and `memory`, the most resident bytes of
    one process.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    peers.make_tokenizer(folder / 'tokenizer', 'wordpiece')
    peers.make_corpus(folder / 'text.jsonl', point['megabytes'])
    processes, busy = int(point['processes']), int(point.get('busy', 0))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:processes])
    with _others(cores[processes:busy], folder):
      clock, start = time.perf_counter(), peers.processor_seconds()
      peers.ours(folder / 'text.jsonl', folder / 'tokenizer', folder, processes)
      clock, processor = time.perf_counter() - clock, peers.processor_seconds() - start
    return {
      'processor': processor,
      'clock': clock,
      'memory': _most(),
    }


@contextlib.contextmanager
def _others(cores: Sequence[int], folder: pathlib.Path) -> Iterator[None]:
  """Prepares the same text again and again on other cores, with one process on each."""
  running = [
    multiprocessing.get_context('spawn').Process(
      target=_prepare_forever, args=(core, folder, folder / f'core-{core}'), daemon=True
    )
    for core in cores
  ]
  for process in running:
    process.start()
  try:
    while not all((folder / f'core-{core}').exists() for core in cores):
      time.sleep(0.05)
    yield
  finally:
    for process in running:
      process.kill()
      process.join()


def _prepare_forever(core: int, inputs: pathlib.Path, out: pathlib.Path) -> None:
  os.sched_setaffinity(0, [core])
  out.mkdir()
  while True:
    with tempfile.TemporaryDirectory(dir=out) as name:
      peers.ours(inputs / 'text.jsonl', inputs / 'tokenizer', pathlib.Path(name), 1)


def compare(point: dict[str, float]) -> dict[str, float]:
  """Prepares documents of random words, comparing each with all before.

  Args:
    point: 'documents', and 'repeated', the share of them that repeats another.

  Returns:
    See `measure`.
  """
  from electra_jax.data.corpus import corpora
  from electra_jax.data.prepare import preparation
  from electra_jax.data.prepare.recipe import CorpusRecipe

  rng = random.Random(0)
  words = sorted(set(' '.join(corpora.read_documents(SAMPLE)).split()))
  count = int(point['documents'])
  fresh = count - int(count * point.get('repeated', 0))
  texts = [' '.join(rng.choices(words, k=WORDS)) for _ in range(fresh)]
  texts += [f'{rng.choice(texts[:fresh])} {i}' for i in range(count - fresh)]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    peers.make_tokenizer(folder / 'tokenizer', 'wordpiece')
    lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts)
    (folder / 'text.jsonl').write_text(lines, encoding='utf-8')
    recipe = CorpusRecipe(
      str(folder / 'text.jsonl'),
      row_length=peers.LENGTH,
      tokenizer=str(folder / 'tokenizer'),
      near_duplicates=0.8,
    )
    clock, start = time.perf_counter(), peers.processor_seconds()
    with contextlib.redirect_stdout(io.StringIO()):
      preparation.prepare_corpus(recipe, cache=folder, output=folder / 'rows', processes=1)
    return {
      'processor': peers.processor_seconds() - start,
      'clock': time.perf_counter() - clock,
      'memory': _most(),
    }


def reopen(point: dict[str, int]) -> dict[str, float]:
  """Finds a corpus of many files again that is prepared, as each start does.

  Args:
    point: 'files'.

  Returns:
    `processor` seconds.
  """
  from electra_jax.data.prepare import preparation
  from electra_jax.data.prepare.recipe import CorpusRecipe

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    peers.make_tokenizer(folder / 'tokenizer', 'wordpiece')
    (folder / 'text').mkdir()
    for number in range(point['files']):
      text = f'document number {number} of a folder of files\n'
      (folder / 'text' / f'{number:06d}.txt').write_text(text, encoding='utf-8')
    recipe = CorpusRecipe(
      str(folder / 'text'),
      row_length=peers.LENGTH,
      tokenizer=str(folder / 'tokenizer'),
      allow_loss=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
      preparation.prepare_corpus(recipe, cache=folder / 'cache', processes=1)
      from electra_jax.data.corpus import detection

      detection._looked_into.cache_clear()  # a start is another process
      start = time.process_time()
      preparation.prepare_corpus(recipe, cache=folder / 'cache', processes=1)
      return {'processor': time.process_time() - start}
