"""Runs preparation's pieces on this machine's cores; data/prepare/beam_pipeline.py runs the same ones on a cluster."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable

from electra_jax import console
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks
from electra_jax.errors import UserError

# One thread reads text about as fast as so many processes make rows of it.
PROCESSES_A_READER = 4
# Less text than this is made in this process: starting others takes longer.
SMALL_BYTES = 8_000_000


class WorkerDied(UserError):
  """A worker ended without a word; what it and the others finished is good."""


def each_block(
  job: blocks.Job,
  groups: list[corpora.Group],
  stage: Callable,
  finished: Callable[[str], bool],
  processes: int,
  label: str,
) -> None:
  """Calls `stage(job, block)` for each block of the groups that is not finished, in worker processes.

  Args:
    stage: blocks.sign or blocks.make_rows.
    finished: whether the block of a name is.
    processes: with 1 this process does it, with the tokenizer library's threads.
    label: of the progress line.

  Raises:
    UserError: what reading raises.
    WorkerDied: as it says.
  """
  done = tokens = skipped = 0
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(_processes(processes)) if processes > 1 else None
    update = stack.enter_context(console.progress(label, sum(group.bytes for group in groups)))

    def finish(facts, size):
      nonlocal done, tokens
      done += size
      tokens += sum(split['text_tokens'] for split in facts.values())
      update(done, f'{tokens / 1e6:,.1f} million tokens' if tokens else f'{done / 1e6:,.0f} MB')

    todo = []
    for index, group in enumerate(groups):
      facts = blocks.group_facts(job, index)
      if facts and all(
        finished(blocks.block_name(index, number)) for number in range(facts['blocks'])
      ):
        finish({}, group.bytes)
        skipped += facts['blocks']
      else:
        todo.append((index, group))
    pending = {}
    for block, size in _read_side_by_side(job, todo, max(1, processes // PROCESSES_A_READER)):
      if block is None:
        finish({}, size)
      elif finished(block.name):
        finish({}, size)
        skipped += 1
      elif pool is None:
        finish(stage(job.of(block.name), block, None), size)
      else:
        pending[pool.submit(stage, job.of(block.name), block)] = size
        while len(pending) >= 2 * processes:  # no more text in memory than keeps the workers busy
          _some_finished(pending, finish)
    while pending:
      _some_finished(pending, finish)
  if skipped:
    console.say(label, f'{skipped:,} blocks were finished before')


def _read_side_by_side(job, groups, readers):
  """Yields (block, bytes) of all groups, and (None, bytes) at the end of each; so many are read at the same time.

  Threads do: decompressing, the slowest part, holds no lock of the interpreter.
  """
  if readers == 1 or len(groups) <= 1:
    for index, group in groups:
      yield from _read(job, index, group)
    return
  todo, ready, stopped = collections.deque(groups), queue.Queue(readers), threading.Event()

  def work():
    try:
      while not stopped.is_set():
        try:
          index, group = todo.popleft()
        except IndexError:
          break
        for item in _read(job, index, group):
          ready.put(item)
          if stopped.is_set():
            return
      ready.put(None)
    except BaseException as error:  # handed to who reads the blocks
      ready.put(error)

  threads = [threading.Thread(target=work, daemon=True) for _ in range(min(readers, len(groups)))]
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
    while any(thread.is_alive() for thread in threads):  # one may be waiting for room
      with contextlib.suppress(queue.Empty):
        ready.get(timeout=0.05)


def _read(job, index, group):
  """Yields (block, bytes of the group read for it), and at the end (None, what is left of its bytes)."""
  read = taken = 0

  def advance(count):
    nonlocal read
    read += count

  for block in blocks.read_blocks(job, index, group, advance):
    size, taken = read - taken, read
    yield block, size
  yield None, group.bytes - taken


def each(function: Callable, items: Iterable, threads: int = 4) -> None:
  """Calls `function` for each item, in threads: for work that waits for disks."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(function, items))


def _some_finished(pending, finish):
  """Waits until at least one block is finished, and takes those that are from `pending`, a size by future."""
  finished, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
  for future in finished:
    size = pending.pop(future)
    finish(future.result(), size)


@contextlib.contextmanager
def _processes(number):
  # Not forked: threads of JAX and TensorFlow may run here already.
  pool = concurrent.futures.ProcessPoolExecutor(
    number, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker
  )
  try:
    yield pool
  except concurrent.futures.process.BrokenProcessPool:
    raise WorkerDied(
      'a worker process of the preparation died, most likely for want of memory; the same command goes on from there, '
      'with fewer workers say (--config.data.workers=1)'
    ) from None
  except Exception:  # nothing is written any more when this is told
    pool.shutdown(cancel_futures=True)
    raise
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    raise
  pool.shutdown()


def _start_worker():
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  """A parent that is killed says nothing; its workers would wait for ever."""
  multiprocessing.parent_process().join()
  os._exit(1)


def processes_for(groups: list[corpora.Group], wanted: int = 0) -> int:
  """How many processes to use where `wanted` are (0: one a core): one for little text."""
  if sum(group.bytes for group in groups) < SMALL_BYTES:
    return 1
  return wanted or cores()


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
