"""Every one-line break of the package in tests/breaks/breaks.py makes the test fail that it names.

The list is compared with the source in every run. With `--breaks` each change is made in a copy of
the package, and the named test runs there:

    pytest tests/project/breaks_test.py --breaks -n 2
"""

import ast
import collections
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing
import xml.etree.ElementTree as ElementTree

import pytest
from breaks.breaks import BREAKS, PARTS

ROOT = pathlib.Path(__file__).parents[2]
COPIED = ('electra_jax', 'tests', 'configs', 'pyproject.toml')
FAILED = 1  # pytest's exit status where tests ran and some failed
# What a change raises that is no program, whatever the test checks.
NO_PROGRAM = re.compile(
  r'\b(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError)\b'
)


def pytest_generate_tests(metafunc):
  """One test for each break and each part of the list, or a single one that is skipped."""
  asked = metafunc.config.getoption('--breaks')
  if 'change' in metafunc.fixturenames:
    changes = BREAKS if asked else []
    metafunc.parametrize('change', changes, ids=[change.name for change in changes])
  if 'part' in metafunc.fixturenames:
    metafunc.parametrize('part', PARTS if asked else [])


@pytest.fixture(scope='session')
def copy(tmp_path_factory):
  """A copy of the package and its tests, in which files are changed and restored."""
  root = tmp_path_factory.mktemp('copy')
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
    else:
      shutil.copy(ROOT / name, root / name)
  yield root
  shutil.rmtree(root)


class Outcome(typing.NamedTuple):
  """What pytest reports of some tests.

  Attributes:
    status: its exit status.
    passed, skipped: numbers of tests.
    failures: name and message of each test that failed, or whose fixtures did.
    output: the last lines of what it printed.
  """

  status: int
  passed: int
  skipped: int
  failures: list[tuple[str, str]]
  output: str


def run(root: pathlib.Path, nodes: list[str], *options: str) -> Outcome:
  """Runs tests of a copy in a process of their own."""
  report = root / 'report.xml'
  report.unlink(missing_ok=True)
  environment = {name: x for name, x in os.environ.items() if not name.startswith('PYTEST_')}
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'no:cacheprovider'),
      *('-o', 'addopts=--strict-markers', f'--junitxml={report}'),
      *options,
      *(f'tests/{node}' for node in nodes),
    ],
    cwd=root,
    # Of a file that changes twice in a second, bytecode could be that of the first change.
    env=environment | {'PYTHONPATH': str(root), 'PYTHONDONTWRITEBYTECODE': '1'},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors='replace',
  )
  passed, skipped, failures = 0, 0, []
  for case in ElementTree.parse(report).iter('testcase') if report.exists() else ():
    wrong = [part for part in case if part.tag in ('failure', 'error')]
    failures += [(case.get('name'), part.get('message', '')) for part in wrong]
    skipped += case.find('skipped') is not None
    passed += not wrong and case.find('skipped') is None
  return Outcome(done.returncode, passed, skipped, failures, done.stdout[-4000:])


def write_source(path: pathlib.Path, text: str) -> None:
  """Writes a module and removes its compiled form, which may look as new: times are in seconds."""
  path.write_text(text, 'utf-8')
  pathlib.Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def function_of(node: str) -> str:
  """The name of the test function of a node."""
  return node.partition('::')[2].partition('[')[0]


def test_there_are_breaks_in_every_part_of_the_package():
  assert len(BREAKS) >= 40
  assert len({change.name for change in BREAKS}) == len(BREAKS)
  parts = collections.Counter(pathlib.Path(change.file).parts[1] for change in BREAKS)
  for part in ('model', 'pretrain', 'training', 'data', 'finetune', 'interop'):
    assert parts[part] >= 4, part
  assert parts['sweep']


def test_a_break_changes_one_line_of_the_present_source():
  for change in BREAKS:
    source = (ROOT / change.file).read_text('utf-8')
    assert source.count(change.original) == 1, f'{change.file}: {change.original!r}'
    assert '\n' not in change.original + change.broken, change.name
    broken = ast.parse(source.replace(change.original, change.broken), change.file)
    assert ast.dump(broken) != ast.dump(ast.parse(source)), change.name


def test_the_tests_that_are_named_exist():
  functions = {}
  for file in {change.test.partition('::')[0] for change in BREAKS}:
    tree = ast.parse((ROOT / 'tests' / file).read_text('utf-8'))
    functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
  for change in BREAKS:
    assert function_of(change.test) in functions[change.test.partition('::')[0]], change.test


def test_the_named_tests_pass_without_a_change(copy, part):
  nodes = list(dict.fromkeys(change.test for change in PARTS[part]))
  found = run(copy, nodes)
  assert found.status == 0 and found.passed >= len(nodes), found.output
  assert not found.skipped, 'a test that is skipped notices nothing'


def test_a_break_is_noticed(copy, change):
  path = copy / change.file
  source = path.read_text('utf-8')
  write_source(path, source.replace(change.original, change.broken))
  try:
    found = run(copy, [change.test], '--maxfail=1', '--hypothesis-profile=first_failure')
  finally:
    write_source(path, source)
  assert found.status == FAILED, found.output
  assert found.failures
  for name, message in found.failures:
    assert name.partition('[')[0] == function_of(change.test), found.output
    assert not NO_PROGRAM.search(message), found.output
