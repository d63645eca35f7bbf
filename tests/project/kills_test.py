"""Programs that are killed while they write leave nothing that blocks the next start."""

import json
import os
import pathlib
import random
import time

import micro_run
import pytest

from electra_jax import checksums, export, file_access, folder_lock
from electra_jax.folder_lock import LOCK_FILE, FolderLock


class Killed(BaseException):
  """Ends an export at a place."""


FILES = {
  'discriminator/model.safetensors': b'weights',
  'discriminator/config.json': b'{}',
  'generator/model.safetensors': b'more weights',
  'generator/config.json': b'{"a": 1}',
}

TOWERS = ('discriminator', 'generator')


def content(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize('where', ['os.fsync', 'os.replace', 'os.link'])
def test_an_export_killed_at_any_file_is_repeated(tmp_path, where):
  """SIGKILL leaves temporary files and the lock; here neither is removed either."""
  output = str(tmp_path / 'out')
  name = where.removeprefix('os.')
  original = getattr(os, name)
  for number in range(1, 6):
    calls = []

    def fail(*arguments, calls=calls, number=number):
      calls.append(arguments)
      if len(calls) == number:
        raise Killed
      return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(os, name, fail)
      patch.setattr(os, 'unlink', lambda *_: None)
      patch.setattr(FolderLock, 'release', lambda self: self._released.set())
      patch.setattr(folder_lock, 'state_of', lambda *_: 'gone')
      try:
        with export._locked(output, False) as lock:
          export._write(output, FILES, lock)
      except Killed:
        pass
    assert file_access.listing(output)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(folder_lock, 'state_of', lambda *_: 'gone')  # the process was killed
      with export._locked(output, False) as lock:
        export._write(output, FILES, lock)
    found = {k: v for k, v in content(output).items() if not k.endswith(checksums.SUMS)}
    assert found == FILES and all(
      file_access.exists(f'{output}/{k}/{checksums.SUMS}') for k in TOWERS
    )


def killed_at_random(argv, kills, seconds, seed):
  """Starts a command and kills it, several times, after up to so many seconds."""
  chance = random.Random(seed)
  for _ in range(kills):
    process = micro_run.start(*argv)
    time.sleep(chance.uniform(0.0, seconds))
    process.kill()
    process.communicate()


SWEEP = """
from electra_jax.sweep.config import default_config

def get_config():
  c = default_config()
  c.base, c.rows, c.seeds = 'tests/configs/micro.py', 16, (0,)
  c.runs = (('small', {}), ('warm', {'objective.temperature': 2.0}))
  c.fields = FIELDS
  return c
"""


@pytest.mark.faults
def test_a_sweep_that_is_killed_at_random_has_the_results_of_one_that_is_not(tmp_path):
  fields = {
    'data.source': str(micro_run.corpus()),
    'data.cache': str(micro_run.shared() / 'cache'),
    'data.reader': 'numpy',
    'compilation_cache': str(micro_run.programs()),
    'steps': 12,
  }
  config = tmp_path / 'sweep.py'
  config.write_text(SWEEP.replace('FIELDS', repr(tuple(fields.items()))))

  def argv(folder):
    return ['--mode=sweep', f'--config={config}', f'--workdir={tmp_path / folder}']

  def results(folder):
    lines = (tmp_path / folder / 'results.jsonl').read_text().splitlines()
    return {r['run']: (r['heldout'], r['flops']) for r in map(json.loads, lines)}

  start = time.monotonic()
  micro_run.run_process(*argv('whole'))
  killed_at_random(argv('killed'), 6, time.monotonic() - start, seed=1)
  micro_run.run_process(*argv('killed'))
  assert results('killed') == results('whole') and set(results('whole')) == {'small', 'warm'}


@pytest.mark.faults
@pytest.mark.parametrize('mode', ['export', 'prepare'])
def test_random_kills_block_no_later_start(tmp_path, mode):
  def argv(output):
    if mode == 'export':
      return ['--mode=export', f'--workdir={micro_run.finished()[0]}', f'--output={output}']
    source = f'--config.data.source={micro_run.corpus()}'
    cache = f'--config.data.cache={tmp_path / output.name}-cache'
    return ['--mode=prepare', f'--config={micro_run.CONFIG}', source, cache, f'--output={output}']

  argv(tmp_path / 'whole')  # what it starts from is made before the clock starts
  start = time.monotonic()
  micro_run.run(*argv(tmp_path / 'whole'))
  seconds = time.monotonic() - start
  killed_at_random(argv(tmp_path / 'killed'), 6, seconds, seed=0)
  micro_run.run(*argv(tmp_path / 'killed'))
  left_out = ('README.md', 'report.md', 'verified.json')  # with times in them
  whole, killed = (
    {k: v for k, v in content(tmp_path / name).items() if k.split('/')[-1] not in left_out}
    for name in ('whole', 'killed')
  )
  assert killed == whole and not any(LOCK_FILE in name for name in killed)
