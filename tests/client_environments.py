"""Environments of the programs that open exports, and how tests ask these programs.

Each is made on first use by pip or npm in a cache folder outside of the repository, and used again
as long as its requirements are the same. Where it cannot be made, tests are skipped and say why.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import transformers

SCRIPTS = pathlib.Path(__file__).parent / 'clients'
PLACE = 'ELECTRA_JAX_CLIENTS'  # the variable that names the cache folder
MADE = 'made'  # the file that a complete environment has
SETTINGS = {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false', 'OMP_NUM_THREADS': '1'}


def _run(*command: str, folder: pathlib.Path) -> None:
  subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=3000)


def by_pip(folder: pathlib.Path, requirements: tuple[str, ...]) -> None:
  """Makes a virtual environment; PIP_FLAGS has more flags for pip, as in the Makefile."""
  _run(sys.executable, '-m', 'venv', '.', folder=folder)
  flags = shlex.split(os.environ.get('PIP_FLAGS', ''))
  _run('bin/python', '-m', 'pip', 'install', '--quiet', *flags, *requirements, folder=folder)


def by_npm(folder: pathlib.Path, requirements: tuple[str, ...]) -> None:
  """Installs packages of JavaScript without the downloads of their own that some try."""
  (folder / 'package.json').write_text('{"private": true}\n')
  npm = ('npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts')
  _run(*npm, *requirements, folder=folder)


@dataclasses.dataclass(frozen=True)
class Environment:
  """Where clients run.

  Attributes:
    name: of its folder.
    requirements: names and versions of packages; none for the environment of the tests.
    make: installs them into an empty folder.
    command: that runs a client, with `{folder}` and `{script}`.
  """

  name: str
  requirements: tuple[str, ...]
  make: Callable[[pathlib.Path, tuple[str, ...]], None] = by_pip
  command: tuple[str, ...] = ('{folder}/bin/python', '{script}')

  @property
  def folder(self) -> pathlib.Path:
    """A folder for these requirements and this Python."""
    place = os.environ.get(PLACE) or '~/.cache/electra_jax/clients'
    content = json.dumps([sys.version, *self.requirements])
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    return pathlib.Path(place).expanduser() / f'{self.name}-{key}'

  def missing(self) -> str:
    """Makes the environment, unless it is there; returns why it cannot be made, or ''."""
    return _missing(self) if self.requirements else ''

  def ask(self, script: str, request: dict) -> dict:
    """Runs a script of tests/clients with a request as its input; returns what it answers."""
    if reason := self.missing():
      pytest.skip(f'the environment {self.name!r} cannot be made: {reason}')
    names = {'folder': self.folder, 'script': SCRIPTS / script}
    done = subprocess.run(
      [part.format(**names) for part in self.command],
      input=json.dumps(request),
      capture_output=True,
      text=True,
      timeout=3000,
      env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | SETTINGS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@functools.cache
def _missing(environment: Environment) -> str:
  """See `Environment.missing`; once per process, because a failure can take minutes."""
  folder = environment.folder
  with _locked(folder):
    if (folder / MADE).exists():
      return ''
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
      environment.make(folder, environment.requirements)
    except (OSError, subprocess.SubprocessError) as error:
      shutil.rmtree(folder, ignore_errors=True)
      return _reason(error)
    (folder / MADE).write_text('\n'.join(environment.requirements) + '\n')
    return ''


@contextlib.contextmanager
def _locked(folder: pathlib.Path):
  """Holds the lock of an environment, which several processes may ask for."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with open(f'{folder}.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _reason(error: Exception) -> str:
  """The first error that an installation printed, or what prevented it."""
  printed = (getattr(error, 'stderr', None) or '').strip().splitlines()
  errors = [line for line in printed if 'error' in line.lower()]
  return (errors or printed or [str(error)])[0]


@functools.cache
def environments() -> dict[str, Environment]:
  """Name -> environment. Clients that take the same torch and transformers share one."""
  torch_ = f'torch=={torch.__version__.partition("+")[0]}'
  made = (
    Environment('tests', (), command=(sys.executable, '{script}')),
    Environment(
      'peers',
      (
        *(torch_, f'transformers=={transformers.__version__}'),
        *('sentence-transformers==6.2.0', 'peft==0.21.2'),
        *('onnx==1.23.2', 'onnxscript==0.7.2', 'onnxruntime==1.32.0'),
      ),
    ),
    Environment(
      'transformers-4',
      (torch_, 'transformers==4.48.3', 'spacy==3.8.18', 'spacy-transformers==1.4.0'),
    ),
    Environment(
      'javascript', ('@huggingface/transformers@4.3.2',), by_npm, ('node', '{script}', '{folder}')
    ),
  )
  return {one.name: one for one in made}
