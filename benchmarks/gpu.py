"""Checks and speeds on one GPU, beside PyTorch, in eight minutes.

  python benchmarks/gpu.py --json=gpu.json
  python benchmarks/gpu.py --parts=golden,attention,masks,resume --minutes=3
  python benchmarks/gpu.py --tiny          # tiny sizes, as on a machine without a GPU

Requires the package's core without TensorFlow and ml_collections, and for the peer torch and
transformers. It reads nothing from a network.

Each part runs in processes of its own with a limit: what fails, lacks memory or takes too long is a
line of the table. The JSON file is written after each part. A part that no time is left for is
reported as not run. The exit status is 1 if a part failed, and 0 otherwise; a speed below its
target is no failure.
"""

import argparse
import concurrent.futures
import datetime
import math
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from environment import environment
from gpu_parts import checks, report, speeds
from gpu_parts.report import FAILED, NOT_RUN, OK, Outcome
from gpu_parts.session import PartError, Session

PROBE = 'device'
PROBE_SECONDS = 60.0
NAMED = ('python', 'jax', 'torch', 'transformers')  # versions above the table


class Part(NamedTuple):
  """A part.

  Attributes:
    run: `(session, deadline) -> result, errors, rows`.
    least: seconds without which it is not started.
    limit: seconds that it may take.
    together: whether it runs beside its neighbors, since it measures no time.
  """

  run: Callable[[Session, float], checks.Found]
  least: float
  limit: float
  together: bool = False


def group_part(name: str) -> Part:
  """The part that measures a group of speeds.GROUPS."""

  def run(session: Session, deadline: float) -> checks.Found:
    return speeds.measure(session, deadline, name)

  return Part(run, least=60, limit=200)


# In the order in which they run, which is that of their worth.
PARTS = {
  'golden': Part(checks.golden, least=20, limit=120, together=True),
  'attention': Part(checks.attention, least=20, limit=120, together=True),
  'masks': Part(checks.masks, least=20, limit=120, together=True),
  'resume': Part(checks.resume, least=40, limit=180, together=True),
  'base-512': group_part('base-512'),
  'small-128': group_part('small-128'),
  'start': Part(speeds.first_step, least=40, limit=120),
  'base-128': group_part('base-128'),
  'small-512': group_part('small-512'),
  'largest': Part(speeds.largest, least=60, limit=180),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line's arguments."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--json', metavar='FILE', help='a file for the results')
  parser.add_argument('--minutes', type=float, default=8.0, help='for all parts; default: 8')
  parser.add_argument(
    '--parts', default=','.join(PARTS), help='names separated by commas; default: %(default)s'
  )
  parser.add_argument('--tiny', action='store_true', help='tiny sizes, as on a CPU')
  parser.add_argument(
    '--unroll',
    type=int,
    default=0,
    help='layers in one iteration of our loop over layers; 0: as the program chooses',
  )
  flags = parser.parse_args(argv)
  flags.parts = [name.strip() for name in flags.parts.split(',') if name.strip()]
  for name in flags.parts:
    if name not in PARTS:
      parser.error(f'--parts has {name!r}; expected some of {", ".join(PARTS)}.')
  return flags


def run_part(session: Session, name: str) -> Outcome:
  """Runs a part; whatever happens in it is its outcome."""
  part, start = PARTS[name], time.monotonic()
  # How long a CPU takes for tiny sizes depends on what else it does.
  least, limit = (0.0, math.inf) if session.tiny else (part.least, part.limit)
  if session.left < least:
    left = f'{max(session.left, 0):.0f} s are left, and it takes at least {least:.0f} s'
    return Outcome(NOT_RUN, errors={name: left})
  try:
    result, errors, rows = part.run(session, session.until(limit))
  except PartError as error:
    result, errors, rows = {}, {name: str(error)}, []
  state = FAILED if errors else OK
  return Outcome(state, time.monotonic() - start, errors, result, rows)


def stages(names: Sequence[str]) -> Iterator[list[str]]:
  """The parts in the order of PARTS; those that may run together in one list."""
  stage: list[str] = []
  for name in (name for name in PARTS if name in names):
    if stage and not (PARTS[name].together and PARTS[stage[-1]].together):
      yield stage
      stage = []
    stage.append(name)
  if stage:
    yield stage


def run(session: Session, names: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
  """Runs the probe and the parts; yields each outcome when it is there."""
  outcome = probe(session)
  yield PROBE, outcome
  if outcome.state == FAILED:
    return
  for stage in stages(names):
    with concurrent.futures.ThreadPoolExecutor(len(stage)) as pool:
      started = {pool.submit(run_part, session, name): name for name in stage}
      try:
        for done in concurrent.futures.as_completed(started):
          yield started[done], done.result()
      except BaseException:
        session.close()  # so that the threads end
        raise


def probe(session: Session) -> Outcome:
  """Finds the device; without a GPU all sizes are tiny."""
  start = time.monotonic()
  try:
    session.device = session.once('probe', {}, session.until(PROBE_SECONDS))
  except PartError as error:
    return Outcome(FAILED, time.monotonic() - start, {PROBE: str(error)})
  session.tiny = session.tiny or session.device['platform'] != 'gpu'
  return Outcome(OK, time.monotonic() - start, result=session.device)


def heading(session: Session, record: dict[str, object]) -> str:
  """The device, the versions, and what numbers of tiny sizes are worth."""
  here = record['environment']
  versions = ', '.join(
    f'{name} {here["versions"][name]}' for name in NAMED if name in here['versions']
  )
  device = session.device.get('kind', 'no device')
  text = f'{device}; {versions}; commit {here["commit"]}'
  if session.tiny:
    text += '\nTiny sizes: only whether everything works is to be read from this, no speed.'
  return text


def main(argv: Sequence[str] | None = None) -> int:
  """Runs all parts, and prints the table."""
  flags = parse(argv)
  start = time.monotonic()
  record: dict[str, object] = {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'arguments': vars(flags),
    'environment': environment(),
  }
  outcomes: dict[str, Outcome] = {}
  with tempfile.TemporaryDirectory(prefix='electra_jax_gpu_') as folder:
    deadline = start + 60 * flags.minutes
    session = Session(pathlib.Path(folder), deadline, flags.tiny, flags.unroll)
    for name, outcome in run(session, flags.parts):
      outcomes[name] = outcome
      print(f'{name}: {outcome.state}, {outcome.seconds:.0f} s', file=sys.stderr, flush=True)
      record |= {'tiny': session.tiny, 'seconds': time.monotonic() - start}
      if flags.json:
        report.write(flags.json, record, outcomes)
  in_order = {name: outcomes[name] for name in (PROBE, *PARTS) if name in outcomes}
  print(f'{heading(session, record)}\n\n{report.table(in_order)}')
  return int(any(outcome.state == FAILED for outcome in outcomes.values()))


if __name__ == '__main__':
  # As Ctrl-C does: blocks end, and with them the processes of the parts.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  sys.exit(main())
