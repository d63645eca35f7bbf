"""Compares the working tree with another commit of the project, on the same machine.

  python benchmarks/compare.py BASE                  # programs; 20 steps where they differ
  python benchmarks/compare.py BASE --steps-of=all   # 20 steps of every cell
  python benchmarks/compare.py 641b850 --older --compilation=unfused    # with version 0.1.0
  python benchmarks/compare.py BASE --cells='mesh-*,phases' --steps-of=none
  python benchmarks/compare.py BASE --times --output=benchmarks/results/compare.md

BASE is a commit, or a folder that holds a tree of the project. Exit status: 0 if all programs are
equal; 1 if programs differ and 20 steps of each such cell give bitwise equal metrics and
checkpoints; 2 if results differ or a cell could not be compared.
"""

import argparse
import contextlib
import fnmatch
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

from comparison import matrix, results, times, trees
from comparison.matrix import Cell
from comparison.results import Outcome
from comparison.trees import ROOT, Tree


def parse(argv: list[str] | None) -> argparse.Namespace:
  """The command line's arguments."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('base', metavar='BASE', help='a commit, or a folder with a tree')
  parser.add_argument('--head', default=str(ROOT), help='the other tree; default: this one')
  parser.add_argument('--cells', default='*', help='names or patterns, separated by commas')
  parser.add_argument(
    '--steps-of',
    choices=('differing', 'all', 'none'),
    default='differing',
    help='cells that take 20 steps in both trees',
  )
  parser.add_argument(
    '--compilation',
    choices=trees.COMPILATIONS,
    default='quick',
    help='of the steps: quick (a third of the time), unfused (each operation by itself) or full',
  )
  parser.add_argument(
    '--older',
    action='store_true',
    help='in this tree, give fields newer than version 0.1.0 the values that its runs have',
  )
  parser.add_argument(
    '--times', action='store_true', help='measure configs/tiny.py and configs/small.py instead'
  )
  parser.add_argument('--rounds', type=int, default=5, help='with --times: rounds of both trees')
  parser.add_argument('--list', action='store_true', help='print the names of the cells, and exit')
  parser.add_argument('--output', help='a Markdown file for the table')
  parser.add_argument('--keep', help='a new folder for configs, programs and runs; default: none')
  return parser.parse_args(argv)


def select(patterns: str) -> list[Cell]:
  """The cells whose names match one of several patterns.

  Raises:
    ValueError: a pattern matches no cell.
  """
  cells = matrix.cells()
  wanted = [pattern.strip() for pattern in patterns.split(',')]
  for pattern in wanted:
    if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
      raise ValueError(
        f'--cells has {pattern!r}, which matches no cell; --list prints their names.'
      )
  return [
    cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in wanted)
  ]


def compare_cells(
  both: tuple[Tree, Tree],
  selected: list[Cell],
  steps_of: str,
  inputs: pathlib.Path,
  compilation: str = 'quick',
) -> dict[str, Outcome]:
  """Compares the selected cells of two trees.

  Args:
    both: base and head.
    selected: the cells.
    steps_of: 'differing', 'all' or 'none': cells that take steps. Runs that others start from
      always do.
    inputs: folder for the corpus and the labeled data.
    compilation: of trees.COMPILATIONS, for the steps.
  """
  trees.write_samples(inputs)
  needed = {name for cell in selected for name in cell.needs}
  first = [cell for cell in matrix.cells() if cell.name in needed]
  cells = first + [cell for cell in selected if cell.name not in needed]
  trees.record(both, 'steps', first, inputs, report, compilation)
  trees.record(both, 'lower', cells, inputs, report)
  outcomes = {cell.name: results.compare_programs(both, cell) for cell in cells}
  taking = {
    'all': cells,
    'differing': first + [cell for cell in cells if not outcomes[cell.name].programs_equal],
    'none': first,
  }[steps_of]
  taking = [cell for cell in cells if cell in taking]
  others = [cell for cell in taking if cell not in first]
  trees.record(both, 'steps', others, inputs, report, compilation)
  for cell in taking:
    results.compare_steps(both, cell, outcomes[cell.name])
  return outcomes


def report(text: str) -> None:
  """Prints a line of progress."""
  print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def work_folder(keep: str | None) -> Iterator[pathlib.Path]:
  """A folder for everything that is written: the one to keep, or a temporary one."""
  if keep:
    kept = pathlib.Path(keep).resolve()
    kept.mkdir(parents=True)
    yield kept
    return
  with tempfile.TemporaryDirectory(prefix='electra_jax_compare_') as temporary:
    yield pathlib.Path(temporary)


def main(argv: list[str] | None = None) -> int:
  """Runs the command line. Returns the exit status."""
  options = parse(argv)
  if options.list:
    print('\n'.join(cell.name for cell in matrix.cells()))
    return 0
  start = time.monotonic()
  try:
    selected = select(options.cells)
    with work_folder(options.keep) as work, trees.checkout(options.base, work / 'tree') as path:
      head = pathlib.Path(options.head).resolve()
      both = (
        Tree('base', path, work / 'base'),
        Tree('head', head, work / 'head', older=options.older),
      )
      for tree in both:
        tree.work.mkdir(parents=True)
      if options.times:
        text, status = times.compare(both, options.rounds, report), 0
      else:
        (work / 'inputs').mkdir()
        outcomes = compare_cells(
          both, selected, options.steps_of, work / 'inputs', options.compilation
        )
        text, status = results.table(outcomes), results.exit_status(outcomes)
        text = f'{results.summary(outcomes)}\n\n{text}'
  except (ValueError, OSError, RuntimeError) as error:
    print(f'compare.py: {error}', file=sys.stderr)
    return 2
  print(text)
  if options.output:
    path = pathlib.Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'# Comparison with {options.base}\n\n{text}\n', 'utf-8')
  report(f'compared in {time.monotonic() - start:.0f} s')
  return status


if __name__ == '__main__':
  sys.exit(main())
