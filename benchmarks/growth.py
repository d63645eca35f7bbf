"""How time, memory, communication and files grow with the size of the work.

  python benchmarks/growth.py measure                    # all series, into --json
  python benchmarks/growth.py measure batch length       # some; the others are kept in the file
  python benchmarks/growth.py measure --idle             # nothing else runs on this machine
  python benchmarks/growth.py table                      # the table of benchmarks/README.md
  python benchmarks/growth.py --list

Each point runs in its own process. Times are processor seconds unless the table states the clock.
An exponent is that of the law constant + factor * size ** exponent with the least relative error
(growing/fits.py); the constant is 0 unless it matters. --cache=FOLDER keeps compiled programs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import page_tables
from environment import ROOT, environment
from growing import table
from growing.series import PARTS, SERIES, Point, Series

RESULTS = ROOT / 'benchmarks/results/growth.json'
TABLE = 'growth'  # in the page
PAGE = ROOT / 'benchmarks/README.md'
Found = dict[str, float]  # what was measured at a point, by quantity
IDLE, SHARED = 'with nothing else running', 'beside other programs'


def in_a_process(part: str, points: Point | list[Point], cache: str) -> Found | list[Found]:
  """What a part measures, in its own process.

  Args:
    part: a key of PARTS.
    points: of the part's function.
    cache: a folder of compiled programs; '' for none.

  Raises:
    RuntimeError: the process failed.
  """
  command = [sys.executable, __file__, '--point', part, json.dumps(points)]
  env = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  if PARTS[part].flags:
    env['XLA_FLAGS'] = PARTS[part].flags
  if cache:
    env |= {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f'{part} of {points} failed:\n{done.stderr[-3000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def measured(series: Series, cache: str, known: dict[str, Any]) -> list[dict[str, Any]]:
  """The results of a series, each with its size as 'x'.

  Args:
    series: the series.
    cache: see `in_a_process`.
    known: results of points of other series, to which those of this one are added.
  """
  part, points = PARTS[series.part], series.points()
  if part.together:
    found = in_a_process(series.part, points, cache)
  else:
    found = []
    for point in points:
      key = json.dumps([series.part, part.base | point], sort_keys=True)
      if key not in known:
        known[key] = in_a_process(series.part, point, cache)
      found.append(known[key])
      print(f'  {series.name} {point[series.key]:,}: {found[-1]}', flush=True)
  return [{'x': point[series.key], **one} for point, one in zip(points, found, strict=True)]


def measure(names: Sequence[str], path: pathlib.Path, machine: str, cache: str = '') -> None:
  """Measures series and adds them to a file, each as soon as it is complete.

  Args:
    names: of the series; none for all.
    path: of the results.
    machine: what else ran there.
    cache: see `in_a_process`.
  """
  known: dict[str, Any] = {}
  for series in SERIES:
    if names and series.name not in names:
      continue
    points = measured(series, cache, known)
    results = json.loads(path.read_text('utf-8')) if path.exists() else {'series': {}}
    results['series'][series.name] = {
      'machine': machine,
      'environment': environment(),
      'points': points,
    }
    path.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    for quantity in series.quantities:
      print(table.row(series, quantity, points), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('command', nargs='?', choices=('measure', 'table'))
  parser.add_argument('series', nargs='*', help='names of series; none for all')
  parser.add_argument('--json', type=pathlib.Path, default=RESULTS, help='the results')
  parser.add_argument('--page', type=pathlib.Path, default=PAGE, help='that has the table')
  parser.add_argument('--idle', action='store_true', help='record that nothing else runs')
  parser.add_argument('--cache', default='', help='a folder that keeps compiled programs')
  parser.add_argument('--list', action='store_true', help='print the series')
  parser.add_argument('--point', nargs=2, help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.point:
    part, points = options.point
    print(json.dumps(PARTS[part].load()(json.loads(points))))
    return
  if unknown := set(options.series) - {series.name for series in SERIES}:
    parser.error(f'no series {min(unknown)!r}; --list names them')
  if options.list:
    print('\n'.join(f'{series.name:24}{series.title}' for series in SERIES))
  if options.command == 'measure':
    measure(options.series, options.json, IDLE if options.idle else SHARED, options.cache)
  elif options.command == 'table':
    results = json.loads(options.json.read_text('utf-8'))
    page_tables.replace(options.page, TABLE, table.markdown(results))


if __name__ == '__main__':
  main()
