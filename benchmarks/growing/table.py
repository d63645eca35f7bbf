"""The table of fitted growth in benchmarks/README.md."""

from collections.abc import Sequence
from typing import Any

from growing import fits
from growing.series import SERIES, Quantity, Series

HEADER = '| size | from, to | quantity | first | last | constant | exponent | growth |'
ALIGNMENT = '|---|---|---|---:|---:|---:|---:|---|'
PREFIXES = ((1e9, 'G'), (1e6, 'M'), (1e3, 'k'))


def value(number: float, unit: str) -> str:
  """A number of seconds or bytes, in three digits."""
  if unit == 's':
    return f'{number:.3g} s' if number >= 1 else f'{1e3 * number:.3g} ms'
  factor, prefix = next((f for f in PREFIXES if number >= f[0]), (1, ''))
  return f'{number / factor:.3g} {prefix}{unit}'


def row(series: Series, quantity: Quantity, points: Sequence[dict[str, float]]) -> str:
  """A row of the table.

  Args:
    series: the series.
    quantity: one of its quantities.
    points: its results, with the sizes as 'x'.
  """
  sizes = [one['x'] for one in points]
  values = [one[quantity.key] for one in points]
  law = fits.fit(sizes, values)
  ends = ', '.join(f'{x:,}' if isinstance(x, int) else f'{x:g}' for x in (sizes[0], sizes[-1]))
  cells = [
    series.title,
    f'{ends} {series.unit}'.strip(),
    quantity.title,
    value(values[0], quantity.unit),
    value(values[-1], quantity.unit),
    value(law.constant, quantity.unit) if law.constant and law.factor else '',
    f'{law.exponent:.2f}',
    fits.verdict(law.exponent, quantity.expected),
  ]
  return '| ' + ' | '.join(cells) + ' |'


def markdown(results: dict[str, Any]) -> str:
  """The table, reasons, and where it was measured.

  Args:
    results: content of the results file.
  """
  measured = results['series']
  lines = [HEADER, ALIGNMENT]
  shown = [series for series in SERIES if series.name in measured]
  for series in shown:
    points = measured[series.name]['points']
    lines += [row(series, quantity, points) for quantity in series.quantities]
  titles: dict[str, list[str]] = {}
  for series in shown:
    if series.reason:
      titles.setdefault(series.reason, []).append(series.title)
  reasons = [f'- {", ".join(names)}: {reason}' for reason, names in titles.items()]
  return '\n'.join([*lines, '', *reasons, *_places(measured)])


def _places(measured: dict[str, Any]) -> list[str]:
  """A sentence for each machine, state of it and commit, with the series measured there."""
  places: dict[str, list[str]] = {}
  for series in SERIES:
    if series.name in measured:
      where = measured[series.name]['environment']
      versions = where['versions']
      text = (
        f'{where["processor"]}, {where["cores"]} cores, {measured[series.name]["machine"]}, '
        f'Python {versions["python"]}, jax {versions["jax"]}, commit {where["commit"]}'
      )
      places.setdefault(text, []).append(series.name)
  return [f'- {", ".join(names)}: {text}.' for text, names in places.items()]
