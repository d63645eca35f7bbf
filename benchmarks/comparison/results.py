"""Compares what two trees recorded of a cell."""

import dataclasses
import json
import pathlib
import re

import numpy as np

from comparison.matrix import Cell
from comparison.normalize import normalize
from comparison.trees import Tree

ROLES = {'init': 'initialization', 'train': 'training step', 'eval': 'evaluation step'}
# Fields of metrics.jsonl that depend on the clock.
CLOCK = ('seconds', 'tokens_per_second', 'utilisation', 'input_wait')
VALUE = re.compile(r'%\w+')
EQUAL = 'equal'
DIFFERS = 'differs'
FAILED = 'failed'


@dataclasses.dataclass
class Outcome:
  """What the comparison of a cell has shown.

  Attributes:
    programs: role -> 'equal', 'differs' or 'failed'; None for a role without programs.
    steps: of the run's results: 'equal', 'differs', 'failed', or '' where no steps were taken.
    notes: details of differences and failures.
  """

  programs: dict[str, str | None]
  steps: str = ''
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def programs_equal(self) -> bool:
    """Whether all programs are equal."""
    return all(status in (EQUAL, None) for status in self.programs.values())


def read_record(tree: Tree, mode: str, cell: Cell) -> dict:
  """The record.json of a cell."""
  return json.loads((tree.record(mode, cell) / 'record.json').read_text())


def failures(trees: tuple[Tree, Tree], mode: str, cell: Cell) -> list[str]:
  """A note for each tree in which the cell could not be recorded."""
  notes = []
  for tree in trees:
    if error := read_record(tree, mode, cell).get('error'):
      output = tree.record(mode, cell) / 'output.txt'
      lines = output.read_text().strip().splitlines() if output.exists() else []
      notes.append(f'{tree.name}, {mode}: {error} ({lines[-1][:200] if lines else "no output"})')
  return notes


def programs(tree: Tree, cell: Cell, role: str) -> list[str]:
  """The normalized programs of a role; each is also written next to the recorded one."""
  found = []
  for path in sorted(tree.record('lower', cell).glob(f'{role}-*.mlir')):
    text = normalize(path.read_text())
    path.with_suffix('.normalized').write_text(text)
    found.append(text)
  return found


def compare_programs(trees: tuple[Tree, Tree], cell: Cell) -> Outcome:
  """Compares the lowered programs of a cell, role by role."""
  notes = failures(trees, 'lower', cell)
  if notes:
    return Outcome(dict.fromkeys(ROLES, FAILED), notes=notes)
  outcome = Outcome({})
  for role, title in ROLES.items():
    base, head = (programs(tree, cell, role) for tree in trees)
    if not base and not head:
      outcome.programs[role] = None
    elif base == head:
      outcome.programs[role] = EQUAL
    else:
      outcome.programs[role] = DIFFERS
      outcome.notes.append(f'{title}: {first_difference(base, head)}')
  return outcome


def first_difference(base: list[str], head: list[str]) -> str:
  """A sentence on where two lists of programs differ first."""
  if len(base) != len(head):
    return f'{len(base)} programs in base and {len(head)} in head'
  a, b = next((a, b) for a, b in zip(base, head, strict=True) if a != b)
  lines, others = a.splitlines(), b.splitlines()
  for number, (line, other) in enumerate(zip(lines, others, strict=False), 1):
    # An operation more or less renumbers all values of its function.
    if VALUE.sub('%', line) != VALUE.sub('%', other):
      return f'line {number} of {len(lines)} and {len(others)}: `{cut(line)}`, `{cut(other)}`'
  return f'{len(lines)} lines in base and {len(others)} in head, or operands in another order'


def cut(line: str, length: int = 120) -> str:
  """A line of a program, shortened for a table."""
  line = line.strip()
  return line if len(line) <= length else line[:length] + '...'


def compare_steps(trees: tuple[Tree, Tree], cell: Cell, outcome: Outcome) -> None:
  """Compares metrics and checkpoints of a cell bitwise, and notes the result in its outcome."""
  if notes := failures(trees, 'steps', cell):
    outcome.steps = FAILED
    outcome.notes += notes
    return
  folders = [tree.record('steps', cell) for tree in trees]
  differences, additions = [], []
  for compare in (compare_metrics, compare_arrays):
    different, added = compare(*folders)
    differences += different
    additions += added
  outcome.steps = DIFFERS if differences else EQUAL
  outcome.notes += differences + additions


def compare_metrics(base: pathlib.Path, head: pathlib.Path) -> tuple[list[str], list[str]]:
  """Compares the lines of metrics.jsonl without fields of the clock.

  Returns:
    Differences; and additions: fields that only head has, which are none.
  """
  lines, others = (json.loads((folder / 'metrics.json').read_text()) for folder in (base, head))
  if not lines or len(lines) != len(others):
    return [f'{len(lines)} lines of metrics in base and {len(others)} in head'], []
  added: set[str] = set()
  for line, other in zip(lines, others, strict=True):
    added |= other.keys() - line.keys()
    for field in line:
      if field not in CLOCK and (field not in other or other[field] != line[field]):
        values = f'{line[field]!r} and {other.get(field, "missing")!r}'
        return [
          f'metrics differ first at step {line["step"]}, {line["kind"]} {field}: {values}'
        ], []
  return [], [f'metrics only in head: {", ".join(sorted(added))}'] if added else []


def compare_arrays(base: pathlib.Path, head: pathlib.Path) -> tuple[list[str], list[str]]:
  """Compares the arrays of the last checkpoint bitwise.

  Returns:
    Differences and additions, as compare_metrics.
  """
  with np.load(base / 'arrays.npz') as a, np.load(head / 'arrays.npz') as b:
    arrays, others = dict(a), dict(b)
  if not arrays:
    return ['no arrays in the checkpoint of base'], []
  notes = []
  if missing := sorted(arrays.keys() - others.keys()):
    notes.append(f'{len(missing)} arrays only in base, {missing[0]} first')
  shared = sorted(arrays.keys() & others.keys())
  different = [name for name in shared if not same_bits(arrays[name], others[name])]
  if different:
    largest = max(relative(arrays[name], others[name]) for name in different)
    notes.append(
      f'{len(different)} of {len(shared)} arrays differ, {different[0]} first; '
      f'largest relative difference {largest:.2g}'
    )
  added = sorted(others.keys() - arrays.keys())
  return notes, [f'{len(added)} arrays only in head, {added[0]} first'] if added else []


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether two arrays are bitwise equal."""
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def relative(a: np.ndarray, b: np.ndarray) -> float:
  """The largest difference between two arrays, relative to the largest absolute value.

  Returns:
    inf for arrays of different shapes or types.
  """
  if a.shape != b.shape or a.dtype != b.dtype:
    return float('inf')
  a, b = a.astype(np.float64), b.astype(np.float64)
  scale = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))
  return float(np.abs(a - b).max(initial=0) / scale) if scale else 0.0


def table(outcomes: dict[str, Outcome]) -> str:
  """All cells in Markdown: programs and steps, equal or not; differences below."""
  header = ['cell', *ROLES.values(), 'steps']
  rows = [
    [name, *(outcome.programs[role] or '-' for role in ROLES), outcome.steps or '-']
    for name, outcome in outcomes.items()
  ]
  lines = aligned([header, *rows])
  notes = [f'- {name}: {note}' for name, o in outcomes.items() for note in o.notes]
  return '\n'.join(lines + (['', *notes] if notes else []))


def aligned(rows: list[list[str]]) -> list[str]:
  """Rows as a Markdown table with columns of equal width; the first row is the header."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '| ' + ' | '.join(x.ljust(width) for x, width in zip(row, widths, strict=True)) + ' |'
    for row in rows
  ]
  return [lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|', *lines[1:]]


def summary(outcomes: dict[str, Outcome]) -> str:
  """One sentence of counts."""
  equal = sum(o.programs_equal for o in outcomes.values())
  taken = [o.steps for o in outcomes.values() if o.steps]
  text = f'{equal} of {len(outcomes)} cells have equal programs'
  if taken:
    text += (
      f'; steps were taken in {len(taken)}, with bitwise equal results in {taken.count(EQUAL)}'
    )
  return text + '.'


def exit_status(outcomes: dict[str, Outcome]) -> int:
  """0 if all programs are equal, 1 if some differ with bitwise equal results, else 2."""
  status = 0
  for outcome in outcomes.values():
    if outcome.steps in (DIFFERS, FAILED):
      return 2
    if not outcome.programs_equal:
      if outcome.steps != EQUAL:
        return 2
      status = 1
  return status
