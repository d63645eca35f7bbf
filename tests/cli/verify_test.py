"""--mode=verify reads every file of a folder, whatever was checked before."""

import os
import shutil

import micro_run
import pytest

from electra_jax import file_access, main, verify
from electra_jax.training import checkpoint_files


def prepared():
  """The folder of the rows of the finished run."""
  places = (micro_run.shared() / 'cache' / 'rows').rglob('manifest.json')
  return next(path.parents[1] for path in places)


def flip(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 4
  path.write_bytes(content)


def test_a_run_and_its_corpus_are_whole(capsys):
  workdir, _ = micro_run.finished()
  store = prepared()
  assert main.main(['main', '--mode=verify', f'--workdir={workdir}', f'--store={store}']) == 0
  out = capsys.readouterr().out
  assert out.count('checkpoint ') == 6 and out.count('token store') == 2
  assert 'none is damaged' in out and 'DAMAGED' not in out


def test_each_kind_of_damage_is_in_the_table(tmp_path, capsys):
  workdir = shutil.copytree(micro_run.finished()[0], tmp_path / 'run')
  flip(workdir / 'tokenizer' / 'tokenizer.model', 5_000)
  (workdir / 'metrics.jsonl').write_bytes(b'\0' + (workdir / 'metrics.jsonl').read_bytes())
  (workdir / 'resolved.json').write_text('{')
  largest = max(checkpoint_path(workdir, 30), key=lambda path: path.stat().st_size)
  flip(largest, 77)
  (workdir / 'checkpoints' / '25' / '_CHECKPOINT_METADATA').unlink()
  assert main.main(['main', '--mode=verify', f'--workdir={workdir}']) == 1
  out, err = capsys.readouterr()
  rows = {line.split()[0]: line for line in out.splitlines() if 'DAMAGED' in line}
  assert set(rows) == {'.', 'tokenizer', 'checkpoints/25', 'checkpoints/30'}
  assert 'tokenizer.model differs from its checksum' in rows['tokenizer']
  assert '_CHECKPOINT_METADATA is missing' in rows['checkpoints/25']
  name = largest.relative_to(workdir / 'checkpoints' / '30').as_posix()
  assert f'{name} differs from its checksum' in rows['checkpoints/30']
  assert 'line 1 of metrics.jsonl' in out and 'resolved.json is not JSON' in out
  assert err.count('\n') == 1 and '5 of' in err


def checkpoint_path(workdir, step):
  folder = workdir / 'checkpoints' / str(step)
  return [folder / name for name in file_access.files_below(folder)]


def test_rot_in_a_token_store_is_seen_though_size_and_time_are_the_same(tmp_path):
  micro_run.finished()
  copy = shutil.copytree(prepared(), tmp_path / 'store')
  shard = next(copy.rglob('rows-00000.bin'))
  before = shard.stat()
  flip(shard, 40)
  os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
  damaged = [part for part in verify.check_folder(str(copy)) if part.damage]
  assert [part.damage for part in damaged] == [('rows-00000.bin differs from its checksum',)]


def test_a_checkpoint_of_an_older_version_is_checked_for_missing_arrays(tmp_path):
  workdir = shutil.copytree(micro_run.finished()[0], tmp_path / 'run')
  folder = workdir / 'checkpoints' / '30'
  (folder / 'SHA256SUMS').unlink()
  assert not checkpoint_files.missing_arrays(folder)
  shutil.rmtree(folder / 'opt_state' / 'd')
  (part,) = (p for p in verify.check_folder(str(workdir)) if p.place == 'checkpoints/30')
  assert part.damage and part.verdict.startswith('DAMAGED')


@pytest.mark.parametrize('place', ['nothing', '.'])
def test_a_folder_with_nothing_to_verify_is_refused(tmp_path, capsys, place):
  (tmp_path / 'text.txt').touch()
  assert main.main(['main', '--mode=verify', f'--workdir={tmp_path / place}']) == 1
  assert 'has nothing to verify; expected the folder of a run' in capsys.readouterr().err
