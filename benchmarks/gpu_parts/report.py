"""The table and the JSON file of gpu.py."""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

OK = 'ok'
FAILED = 'failed'
NOT_RUN = 'not run'
HEADINGS = ('part', 'what', 'electra_jax', 'peer', 'ratio (range)', 'target', 'met')


class Row(NamedTuple):
  """A line of the table; '' for what it does not have.

  Attributes:
    part: the part that it is of.
    what: what was checked or measured.
    ours: the result of electra_jax.
    peer: that of transformers with PyTorch.
    ratio: ours over the peer's, better when it is larger.
    target: what is aimed at.
    met: whether it is; None without a target.
  """

  part: str
  what: str
  ours: str = ''
  peer: str = ''
  ratio: str = ''
  target: str = ''
  met: bool | None = None


@dataclasses.dataclass
class Outcome:
  """What a part came to.

  Attributes:
    state: OK, FAILED or NOT_RUN.
    seconds: that it took.
    errors: what failed -> why; for a part that was not run, why not.
    result: numbers, as JSON can hold them.
    rows: of the table.
  """

  state: str
  seconds: float = 0.0
  errors: dict[str, str] = dataclasses.field(default_factory=dict)
  result: dict[str, object] = dataclasses.field(default_factory=dict)
  rows: list[Row] = dataclasses.field(default_factory=list)


def summary(values: Sequence[float]) -> dict[str, float]:
  """Median and range."""
  return {'median': statistics.median(values), 'low': min(values), 'high': max(values)}


def ranged(values: Mapping[str, float], form: str) -> str:
  """A median with its range."""
  median, low, high = (format(values[name], form) for name in ('median', 'low', 'high'))
  return median if low == high else f'{median} ({low} to {high})'


def table(outcomes: Mapping[str, Outcome]) -> str:
  """All rows as Markdown; parts that failed or were not run have rows that show why."""
  rows: list[tuple[str, ...]] = [HEADINGS, ('---',) * len(HEADINGS)]
  for name, outcome in outcomes.items():
    for row in outcome.rows:
      met = '' if row.met is None else 'yes' if row.met else '**no**'
      rows.append((*row[:-1], met))
    for what, why in outcome.errors.items():
      state = f'**{FAILED}**' if outcome.state == FAILED else outcome.state
      rows.append((name, what, f'{state}: {why}', *[''] * 4))
  return '\n'.join('| ' + ' | '.join(cell.replace('|', '/') for cell in row) + ' |' for row in rows)


def write(path: str, record: Mapping[str, object], outcomes: Mapping[str, Outcome]) -> None:
  """Replaces the JSON file."""
  parts = {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}
  for name, outcome in outcomes.items():
    parts[name]['rows'] = [row._asdict() for row in outcome.rows]
  new = pathlib.Path(f'{path}.new')
  new.write_text(json.dumps({**record, 'parts': parts}, indent=1) + '\n', encoding='utf-8')
  os.replace(new, path)
