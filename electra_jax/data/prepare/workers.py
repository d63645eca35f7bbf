"""Runs the stages of a preparation on the cores of this machine.

data/prepare/beam_pipeline.py runs the same stages on a cluster.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from electra_jax import console
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks
from electra_jax.errors import UserError

# One thread reads text about as fast as so many processes make rows of it.
PROCESSES_PER_READER = 4
# Less text than this is processed in this process, because starting others takes longer.
SMALL_BYTES = 8_000_000

NumberedGroup = tuple[int, corpora.Group]
# A block and the bytes that were read for it; None and the rest of a group's bytes at its end.
ReadBlock = tuple[blocks.Block | None, int]


class WorkerDied(UserError):
  """A worker process ended without an error. Blocks that are finished are good."""


@dataclasses.dataclass(frozen=True)
class BlockWork:
  """A stage to run for each block that has not finished it.

  Attributes:
    stage: `blocks.sign` or `blocks.make_rows`.
    finished: whether the block of a name has finished the stage.
    label: of the progress line.
  """

  stage: blocks.Stage
  finished: Callable[[str], bool]
  label: str


def each_block(
  job: blocks.PreparationJob, groups: Sequence[corpora.Group], work: BlockWork, processes: int
) -> None:
  """Runs a stage for each block of the groups that has not finished it, in worker processes.

  Args:
    job: the job.
    groups: all groups of the corpus.
    work: the stage.
    processes: with 1 this process does the work, with the threads of the tokenizer's library.

  Raises:
    UserError: see `corpora.documents`.
    WorkerDied: a worker process was killed.
  """
  skipped = 0
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(_processes(processes)) if processes > 1 else None
    total = sum(group.bytes for group in groups)
    progress = _Progress(stack.enter_context(console.progress(work.label, total, 'B')))
    todo: list[NumberedGroup] = []
    for index, group in enumerate(groups):
      number = _finished_blocks(job, index, work)
      if number is None:
        todo.append((index, group))
      else:
        progress.skip(group.bytes)
        skipped += number
    pending: dict[Future[blocks.Facts], int] = {}
    for block, size in _read_in_parallel(job, todo, max(1, processes // PROCESSES_PER_READER)):
      if block is None:
        progress.add({}, size)
      elif work.finished(block.name):
        progress.skip(size)
        skipped += 1
      elif pool is None:
        progress.add(blocks.run_stage(work.stage, job.for_block(block.name), block, None), size)
      else:
        arguments = (work.stage, job.for_block(block.name), block)
        pending[pool.submit(blocks.run_stage, *arguments)] = size
        while len(pending) >= 2 * processes:  # more text in memory would not keep workers busier
          _wait_for_some(pending, progress)
    while pending:
      _wait_for_some(pending, progress)
  if skipped:
    console.say(work.label, f'{skipped:,} blocks were finished before')


def _finished_blocks(job: blocks.PreparationJob, index: int, work: BlockWork) -> int | None:
  """The number of a group's blocks; None if one of them has not finished the stage."""
  facts = blocks.group_facts(job, index)
  if facts is None:
    return None
  names = [blocks.block_name(index, number) for number in range(facts['blocks'])]
  return len(names) if all(map(work.finished, names)) else None


class _Progress:
  """Bytes and tokens so far, on a progress line."""

  def __init__(self, line: console.Progress) -> None:
    self._line = line
    self._bytes = 0
    self._tokens = 0
    self.add({}, 0)

  def skip(self, size: int) -> None:
    """Adds bytes whose blocks were finished before."""
    self._line.skip(size)
    self.add({}, size)

  def add(self, facts: blocks.Facts, size: int) -> None:
    """Adds a block that was read from `size` bytes."""
    self._bytes += size
    self._tokens += sum(split['text_tokens'] for split in facts.values())
    tokens = f'{self._tokens / 1e6:,.1f} million tokens'
    self._line(self._bytes, tokens if self._tokens else f'{self._bytes / 1e6:,.0f} MB')


def _wait_for_some(pending: dict[Future[blocks.Facts], int], progress: _Progress) -> None:
  """Waits until at least one block is finished, and moves finished ones to the progress."""
  finished, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
  for future in finished:
    size = pending.pop(future)
    progress.add(future.result(), size)


#### Reading ####


def _read_in_parallel(
  job: blocks.PreparationJob, groups: Sequence[NumberedGroup], readers: int
) -> Iterator[ReadBlock]:
  """Yields the blocks of all groups, of which `readers` are read at a time.

  Threads read: decompression, the slowest part, does not hold the interpreter's lock.
  """
  if readers == 1 or len(groups) <= 1:
    for index, group in groups:
      yield from _read_group(job, index, group)
    return
  todo = collections.deque(groups)
  ready: queue.Queue[ReadBlock | BaseException | None] = queue.Queue(readers)
  stopped = threading.Event()

  def read() -> None:
    try:
      while not stopped.is_set():
        try:
          index, group = todo.popleft()
        except IndexError:
          break
        for item in _read_group(job, index, group):
          ready.put(item)
          if stopped.is_set():
            return
      ready.put(None)
    except BaseException as error:  # raised in the thread that consumes the blocks
      ready.put(error)

  threads = [threading.Thread(target=read, daemon=True) for _ in range(min(readers, len(groups)))]
  for thread in threads:
    thread.start()
  try:
    ended = 0
    while ended < len(threads):
      item = ready.get()
      if isinstance(item, BaseException):
        raise item
      if item is None:
        ended += 1
      else:
        yield item
  finally:
    stopped.set()
    while any(thread.is_alive() for thread in threads):  # a thread may wait for room in the queue
      with contextlib.suppress(queue.Empty):
        ready.get(timeout=0.05)


def _read_group(
  job: blocks.PreparationJob, index: int, group: corpora.Group
) -> Iterator[ReadBlock]:
  """Yields the blocks of a group."""
  read = 0
  reported = 0

  def advance(count: int) -> None:
    nonlocal read
    read += count

  for block in blocks.read_blocks(job, index, group, advance):
    size = read - reported
    reported = read
    yield block, size
  yield None, group.bytes - reported


def each(function: Callable[[Any], object], items: Iterable[Any], threads: int = 4) -> None:
  """Calls `function` for each item in threads, for work that waits for disks."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(function, items))


#### Processes ####


def processes_for(groups: Sequence[corpora.Group], requested: int = 0) -> int:
  """The number of processes to use: 1 for little text.

  Args:
    groups: the corpus.
    requested: processes; 0 for one per core.
  """
  if sum(group.bytes for group in groups) < SMALL_BYTES:
    return 1
  return requested or cores()


def cores() -> int:
  """The number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextlib.contextmanager
def _processes(number: int) -> Iterator[ProcessPoolExecutor]:
  """Worker processes. They are not forked, because JAX and TensorFlow may have threads here."""
  pool = ProcessPoolExecutor(
    number, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker
  )
  try:
    yield pool
  except concurrent.futures.process.BrokenProcessPool:
    raise WorkerDied(
      'a worker process of the preparation died, probably from lack of memory; the same command '
      'continues from there, for example with fewer workers (--config.data.workers=1)'
    ) from None
  except Exception:  # no worker writes anymore when the error is reported
    pool.shutdown(cancel_futures=True)
    raise
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    raise
  pool.shutdown()


def _start_worker() -> None:
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C does
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this process with its parent. Without it the workers of a killed parent wait forever."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)
