"""benchmarks/growth.py and the tables of benchmarks/input.py: fits, and tables equal to results."""

import importlib
import json
import pathlib
import urllib.error
import urllib.request

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'benchmarks/README.md'
SIZES = (4, 8, 16, 32, 64)


@pytest.fixture
def load(monkeypatch):
  """Imports a module of benchmarks/."""
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module


@pytest.mark.parametrize('exponent', [-1, 0.5, 1, 1.6, 2, 3])
@pytest.mark.parametrize('noise', [0, 0.02])
def test_the_exponent_of_a_power_is_found(load, exponent, noise):
  factors = 1 + noise * np.array([1, -1, 1, -1, 1])
  values = 3e-4 * np.power(SIZES, exponent, dtype=float) * factors
  law = load('growing.fits').fit(SIZES, values)
  assert law.exponent == pytest.approx(exponent, abs=0.05) and law.constant == 0


@pytest.mark.parametrize('exponent', [0.5, 1, 2])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_the_exponent_beside_a_constant_is_found(load, exponent, share):
  constant = share / (1 - share) * 4**exponent
  values = constant + np.power(SIZES, exponent, dtype=float)
  law = load('growing.fits').fit(SIZES, values)
  assert law.exponent == pytest.approx(exponent, abs=0.02)
  assert law.constant == pytest.approx(constant, rel=0.05)
  assert law(64) == pytest.approx(values[-1], rel=0.01)


def test_what_does_not_grow_is_constant(load):
  fits = load('growing.fits')
  assert fits.fit(SIZES, [5, 5.2, 5.1, 4.9, 5.3]).exponent == 0
  with pytest.raises(ValueError, match='expected ascending'):
    fits.fit((1, 1), (2, 3))


def test_growth_beyond_what_is_expected_is_marked(load):
  verdict = load('growing.fits').verdict
  assert [verdict(p, 2) for p in (0, 0.5, 1, 1.5, 2)] == [
    *('constant', 'below linear', 'linear', 'between linear and quadratic', 'quadratic')
  ]
  assert verdict(1, 1) == 'linear'
  for exponent, expected in ((0.3, 0), (1.3, 1), (2.2, 2)):
    assert 'above what is expected' in verdict(exponent, expected)


def test_the_tables_of_the_page_are_those_of_the_results(load, tmp_path):
  results = ROOT / 'benchmarks/results'
  content = json.loads((results / 'growth.json').read_text('utf-8'))
  assert content['series'].keys() == {series.name for series in load('growing.series').SERIES}
  tables = {
    'growth': load('growing.table').markdown(content),
    'input beside': load('reading.beside').markdown(
      json.loads((results / 'input_beside.json').read_text('utf-8'))
    ),
  }
  copy = tmp_path / 'page.md'
  copy.write_text(PAGE.read_text('utf-8'), 'utf-8')
  for name, table in tables.items():
    load('page_tables').replace(copy, name, table)
  assert copy.read_text('utf-8') == PAGE.read_text('utf-8')
  assert 'above what is expected' not in tables['growth']
  with pytest.raises(ValueError, match='does not have one table'):
    load('page_tables').replace(copy, 'another', '')


def test_the_needs_of_all_planned_configs_are_read_from_the_plans(load):
  found = load('reading.needs').planned((ROOT / 'docs/tpu.md').read_text('utf-8'))
  by_name = {(need.config, need.hardware): need for need in found}
  assert len(found) == len(by_name) == 8
  small = by_name['small', 'v5e-4']
  assert small.hosts == 1 and 1e6 < small.tokens < 1e7
  assert by_name['base', 'v5e-16'].hosts == 4


def test_the_slow_store_serves_ranges_with_its_latency(load, tmp_path):
  store = load('reading.object_store')
  (tmp_path / 'file').write_bytes(bytes(range(100)))
  with store.serving(tmp_path, store.Limits(0.01, 1e9, 1e9)) as address:
    asked = urllib.request.Request(f'{address}/file', headers={'Range': 'bytes=10-19'})
    with urllib.request.urlopen(asked) as answer:
      assert (answer.status, answer.read()) == (206, bytes(range(10, 20)))
    with pytest.raises(urllib.error.HTTPError, match='404'):
      urllib.request.urlopen(f'{address}/nothing')
  link = store._Link(1000)
  assert link.take(500) + 0.49 < link.take(500)
