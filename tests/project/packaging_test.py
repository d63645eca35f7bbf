"""The metadata of the package, the Makefile, CI and the launch scripts name the same versions."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
PYTHONS = {
  text.rpartition(' ')[2]
  for text in PROJECT['classifiers']
  if re.fullmatch(r'Programming Language :: Python :: 3\.\d+', text)
}


def test_every_place_names_the_same_versions_of_python():
  allowed = SpecifierSet(PROJECT['requires-python'])
  assert {f'3.{minor}' for minor in range(30) if f'3.{minor}.1' in allowed} == PYTHONS
  for path in ('Makefile', 'launch/worker.sh'):
    (accepted,) = re.findall(r'version_info\[:2\] not in \((.*?)\)\)', (ROOT / path).read_text())
    assert {f'3.{minor}' for minor in re.findall(r'\(3, (\d+)', accepted)} == PYTHONS, path
  workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
  assert set(workflow['jobs']['locked']['strategy']['matrix']['python']) == PYTHONS
  for path in ('CONTRIBUTING.md', 'docs/install.md'):
    assert 'Python 3.11, 3.12 or 3.13' in (ROOT / path).read_text(), path


def test_every_extra_allows_the_same_versions_of_jax():
  listed = [*PROJECT['dependencies'], *sum(PROJECT['optional-dependencies'].values(), [])]
  found = {r.specifier for r in map(Requirement, listed) if r.name == 'jax'}
  assert len(found) == 1


@pytest.mark.parametrize('name', ['', '-gcs', '-test'])  # the others have what these extras add
def test_locks_have_versions_that_the_metadata_allow(name):
  text = (ROOT / f'requirements{name}.txt').read_text()
  locked = dict(re.findall(r'^([\w.-]+)==([^\s;]+)', text, re.MULTILINE))
  listed = [*PROJECT['dependencies'], *sum(PROJECT['optional-dependencies'].values(), [])]
  checked = [r for r in map(Requirement, listed) if r.name in locked]
  assert checked
  assert not [r for r in checked if locked[r.name] not in r.specifier]


@pytest.mark.parametrize(
  'path', sorted((ROOT / '.github/ISSUE_TEMPLATE').glob('*.md')), ids=lambda path: path.stem
)
def test_issue_templates_have_their_metadata(path):
  _, metadata, text = path.read_text().split('---\n', 2)
  assert {'name', 'about', 'labels'} <= set(yaml.safe_load(metadata)) and '**' in text


def test_a_release_of_uncommitted_changes_is_refused(tmp_path):
  (tmp_path / '.ci').mkdir()
  shutil.copy(ROOT / '.ci' / 'release', tmp_path / '.ci')
  (tmp_path / 'CITATION.cff').write_text('version: 1\n')
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@example.org']
  for words in (['init', '--quiet'], ['add', '.'], ['commit', '--quiet', '--message=first']):
    subprocess.run([*git, *words], cwd=tmp_path, check=True)
  (tmp_path / 'CITATION.cff').write_text('version: 2\n')
  found = subprocess.run(
    [tmp_path / '.ci' / 'release', sys.executable], capture_output=True, text=True
  )
  assert found.returncode == 1 and not found.stdout
  assert 'changes that are not committed (CITATION.cff)' in found.stderr
  assert [line.partition(' ')[0] for line in found.stderr.splitlines()] == ['The']


def test_test_files_have_names_of_their_own():
  names = [path.name for path in (ROOT / 'tests').rglob('*_test.py')]
  assert sorted(set(names)) == sorted(names)  # pytest imports each as a module without a folder
