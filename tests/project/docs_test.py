"""Pages name existing files, fields, modes and links; docs/design.md names every module."""

import collections
import importlib
import json
import pathlib
import re
import shlex

import pytest

from electra_jax.cli.command_line import check_config, parse_flags, with_mode_flag
from electra_jax.config import (
  FinetuningConfig,
  PretrainingConfig,
  ProbingConfig,
  UserError,
  checked_config,
  checked_pretraining,
)
from electra_jax.config.declarations import fields_of

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARKS = ROOT / 'benchmarks/README.md'
PAGES = [*sorted((ROOT / 'docs').rglob('*.md')), BENCHMARKS]


def commands(text):
  """The indented lines that start the program, as lists of words as a shell makes them."""
  lines = re.findall(
    r'^    (?:\w+=\S+ )*(?:python -m electra_jax\.main|electra-jax)(.*)$',
    re.sub(r'\\\n\s*', '', text),
    re.MULTILINE,
  )
  return [shlex.split(one) for one in lines]


def fields_named(text):
  """Fields written as `config.x.y` or in a flag --config.x.y=..., without names of files."""
  found = re.findall(r'`(?:--)?config\.([a-z_0-9.]+?)(?:=[^`]*)?`', text)
  found += [
    word.partition('=')[0].removeprefix('--config.')
    for one in commands(text)
    for word in one
    if word.startswith('--config.')
  ]
  return sorted({name for name in found if name not in ('json', 'py')})


def broken_links(text, folder):
  links = [
    link.partition('#')[0] for link in re.findall(r'\]\(([^)]+)\)', text) if '://' not in link
  ]
  return [link for link in links if not (folder / link).exists()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_fields_and_commands(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  text = page.read_text('utf-8')
  assert not broken_links(text, page.parent)
  known = fields_of(PretrainingConfig) | fields_of(FinetuningConfig) | fields_of(ProbingConfig)
  named = [re.sub(r'(options)\..*', r'\1', name) for name in fields_named(text)]
  assert not [name for name in named if name not in known]
  for words in commands(text):
    values = parse_flags(with_mode_flag(['main', *words]))
    if values.config is not None:
      if values.mode == 'timeline':  # says itself what to begin with
        values.config.init = values.workdir
        checked_config(values.config)
      check_config(values)


def test_the_examples_of_user_code_are_those_that_are_run():
  text = (ROOT / 'docs/extending.md').read_text('utf-8')
  for path in (ROOT / 'tests/extending').glob('*.py'):
    assert f'```python\n{path.read_text("utf-8").rstrip()}\n```' in text, path.name


def test_there_are_pages_commands_and_fields_to_check():
  text = ''.join(page.read_text('utf-8') for page in PAGES)
  assert len(PAGES) >= 3 and len(commands(text)) >= 6 and len(fields_named(text)) >= 10


def test_what_is_wrong_is_noticed(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert broken_links('[a](nowhere.md)', ROOT) and not broken_links(
    '[a](LICENSE) [b](https://example.org)', ROOT
  )
  assert fields_named('`config.stepz` and `--config.keep=3` in `config.json`') == ['keep', 'stepz']
  assert commands('    electra-jax train --quiet\n') == [['train', '--quiet']]
  (words,) = commands('    A=1 python -m electra_jax.main --config=configs/tiny.py:steps=20\n')
  with pytest.raises(UserError, match='warmup_steps'):
    checked_pretraining(parse_flags(['main', *words]).config)


def test_the_walk_through_the_modules_names_each_module_once():
  text = (ROOT / 'docs' / 'design.md').read_text('utf-8')
  walk = text[text.index('## A walk through the modules') : text.index('## Layers')]
  named = collections.Counter(name.split('/')[-1] for name in re.findall(r'[\w/]+\.py', walk))
  paths = (ROOT / 'electra_jax').rglob('*.py')
  assert named == collections.Counter(path.name for path in paths if path.stem != '__init__')


def test_the_table_of_languages_is_that_of_the_results(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  languages = importlib.import_module('languages')
  rows = json.loads((ROOT / 'benchmarks/results/languages.json').read_text('utf-8'))
  assert languages.markdown(rows) in (ROOT / 'docs/languages.md').read_text('utf-8')
  assert len(rows) >= 25 and len({row['script'] for row in rows}) >= 15


def test_the_page_of_benchmarks_names_all_files_of_raw_numbers():
  text = BENCHMARKS.read_text('utf-8')
  names = [path.name for path in (ROOT / 'benchmarks/results').iterdir()]
  assert names and not [name for name in names if f'`{name}`' not in text]


def test_the_page_of_benchmarks_has_the_ratios_of_the_training_steps():
  lines = BENCHMARKS.read_text('utf-8').splitlines()
  paths = sorted((ROOT / 'benchmarks/results').glob('cpu_*core*.json'))
  found = {path.name: json.loads(path.read_text('utf-8')) for path in paths}
  steps = {name: result for name, result in found.items() if 'speed_over_peer' in result}
  assert len(steps) >= 10
  for name, result in steps.items():
    key = 'speed_by_processor_time_over_peer' if 'one_core' in name else 'speed_over_peer'
    ratio = '{median:.2f} ({low:.2f} to {high:.2f})'.format(**result[key])
    assert [line for line in lines if f'results/{name})' in line and ratio in line], name
