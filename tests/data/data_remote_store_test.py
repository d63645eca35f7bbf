"""Each host fetches the shards of a store at an address once, when needed, and checks them."""

import collections
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from electra_jax.data.store import row_batches, shard_cache, token_manifest, token_store
from electra_jax.errors import UserError

ADDRESS = 'standin://bucket/store'
ROWS = np.random.default_rng(0).integers(1, 1000, (10, 16))
SHARDS = [f'rows-0000{i}.bin' for i in range(3)]


class Standin(fsspec.AbstractFileSystem):
  """A remote file system that is a folder, and records each file that is opened for reading.

  The folder and the record are in STANDIN_ROOT and STANDIN_LOG, so that all processes share them.
  """

  protocol = 'standin'
  cachable = False
  faults = collections.Counter()  # file -> how many more times it arrives damaged

  def _path(self, path):
    return pathlib.Path(os.environ['STANDIN_ROOT'], self._strip_protocol(path))

  def info(self, path, **_):
    local = self._path(path)
    return {
      'name': self._strip_protocol(path),
      'size': local.stat().st_size,
      'type': 'directory' if local.is_dir() else 'file',
    }

  def ls(self, path, detail=True, **_):
    found = [
      self.info(f'{self._strip_protocol(path)}/{name}')
      for name in sorted(os.listdir(self._path(path)))
    ]
    return found if detail else [facts['name'] for facts in found]

  def makedirs(self, path, exist_ok=False):
    self._path(path).mkdir(parents=True, exist_ok=exist_ok)

  def _open(self, path, mode='rb', **_):
    local = self._path(path)
    if mode != 'rb':
      local.parent.mkdir(parents=True, exist_ok=True)
      return open(local, mode)
    content = local.read_bytes()
    with open(os.environ['STANDIN_LOG'], 'a') as log:  # a short append is atomic
      log.write(f'{local.name}\n')
    if self.faults[local.name]:
      self.faults[local.name] -= 1
      content = content[:-1] + bytes([content[-1] ^ 1])
    return io.BytesIO(content)


fsspec.register_implementation('standin', Standin, clobber=True)


@pytest.fixture
def address(tmp_path, monkeypatch):
  """A store of three shards at an address; the record is cleared after it is written."""
  monkeypatch.setattr(token_manifest, 'SHARD_BYTES', 4 * 16 * 2)
  monkeypatch.setenv('STANDIN_ROOT', str(tmp_path / 'remote'))
  monkeypatch.setenv('STANDIN_LOG', str(tmp_path / 'log'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  Standin.faults.clear()
  _write(ADDRESS, ROWS)
  _fetched()
  return ADDRESS


def _write(path, rows):
  kind = {'length': 16, 'vocab_size': 1000, 'pad_id': 0, 'tokenizer_fingerprint': ''}
  return token_store.write_store(path, [rows[:3], rows[3:]], **kind, facts={})


def _fetched(log=None):
  """Shards fetched since the last call."""
  log = pathlib.Path(log or os.environ['STANDIN_LOG'])
  names = log.read_text().split() if log.exists() else []
  log.write_text('')
  return sorted(name for name in names if name.startswith('rows-'))


def test_a_store_is_written_to_an_address_and_read_from_it(address, tmp_path):
  assert sorted(os.listdir(tmp_path / 'remote/bucket/store')) == ['manifest.json', *SHARDS]
  here = _write(tmp_path / 'here', ROWS)
  store = token_store.open_store(address, tmp_path / 'cache')
  assert store.identity == here.identity and store.manifest == here.manifest
  assert np.array_equal(store.read(np.arange(10)), ROWS)
  with pytest.raises(UserError, match='standin://bucket/store. exists already'):
    _write(address, ROWS)
  assert not list(pathlib.Path(tmp_path, 'remote').rglob('*.partial'))


def test_another_file_system_works(tmp_path):
  store = _write('memory://bucket/store', ROWS)
  again = token_store.open_store('memory://bucket/store', tmp_path / 'cache')
  assert (
    np.array_equal(again.read(np.array([9, 0])), ROWS[[9, 0]]) and again.identity == store.identity
  )
  assert os.listdir(tmp_path / 'cache') == [store.identity]
  fsspec.filesystem('memory').rm('/bucket', recursive=True)


def test_shards_are_fetched_once_when_they_are_first_read(address, tmp_path):
  cache = tmp_path / 'cache'
  store = token_store.open_store(address, cache)
  assert _fetched() == [] and not cache.exists(), 'opening fetches no rows'
  store.read(np.array([5]))
  assert _fetched() == SHARDS[1:2]
  store.read(np.array([4, 7]))
  token_store.open_store(address, cache).read(np.array([4]))
  assert _fetched() == []
  store.fetch()
  assert _fetched() == [SHARDS[0], SHARDS[2]]
  store.fetch()
  assert np.array_equal(token_store.open_store(address, cache).read(np.arange(10)), ROWS)
  assert _fetched() == []
  assert not list(cache.rglob('*.partial'))


def test_the_default_cache_is_the_users(address, tmp_path):
  store = token_store.open_store(address)
  store.fetch()
  assert (tmp_path / 'xdg/electra_jax/shards' / store.identity / SHARDS[0]).is_file()


def test_a_held_out_store_that_is_never_read_fetches_nothing(address, tmp_path):
  _write('standin://bucket/heldout', ROWS[::-1])
  _fetched()
  train, heldout = (
    token_store.open_store(f'standin://bucket/{name}', tmp_path / 'cache')
    for name in ('store', 'heldout')
  )
  train.fetch()
  assert len(list(row_batches.batches(train, 4, 0, 0, 5, use_tf=False))) == 5 and heldout.rows == 10
  assert _fetched() == SHARDS and os.listdir(tmp_path / 'cache') == [train.identity]


def test_a_mixture_fetches_its_stores(address, tmp_path):
  _write('standin://bucket/other', ROWS[:4])
  stores = tuple(
    token_store.open_store(f'standin://bucket/{name}', tmp_path / 'cache')
    for name in ('store', 'other')
  )
  _fetched()
  row_batches.Mixture(stores, (1, 1)).fetch()
  assert _fetched() == sorted([*SHARDS, SHARDS[0]])


def test_a_shard_that_arrives_damaged_is_fetched_again_and_then_refused(address, tmp_path):
  cache = tmp_path / 'cache'
  store = token_store.open_store(address, cache)
  Standin.faults[SHARDS[1]] = 1
  assert np.array_equal(store.read(np.arange(10)), ROWS)
  assert _fetched() == [SHARDS[0], SHARDS[1], SHARDS[1], SHARDS[2]]
  for fetch in (lambda store: store.fetch(), lambda store: store.read(np.array([5]))):
    (cache / store.identity / SHARDS[1]).unlink()
    Standin.faults[SHARDS[1]] = 2
    with pytest.raises(
      UserError, match=f"'{ADDRESS}/{SHARDS[1]}' is damaged.*prepare the corpus again"
    ):
      fetch(token_store.open_store(address, cache))
    assert not (cache / store.identity / SHARDS[1]).exists() and not list(cache.rglob('*.partial'))
    fetch(token_store.open_store(address, cache))


def test_a_shard_of_the_wrong_size_or_a_missing_one_is_refused(address, tmp_path):
  store = token_store.open_store(address, tmp_path / 'cache')
  remote = tmp_path / 'remote/bucket/store' / SHARDS[2]
  remote.write_bytes(remote.read_bytes()[:-7])
  with pytest.raises(
    UserError, match=f"'{ADDRESS}/{SHARDS[2]}' is damaged: 57 bytes of 64 arrived"
  ):
    store.read(np.array([9]))
  remote.unlink()
  with pytest.raises(
    UserError, match=f"'{ADDRESS}/{SHARDS[2]}' cannot be read: No such file.*; check that it exists"
  ):
    store.read(np.array([9]))
  assert np.array_equal(store.read(np.array([0])), ROWS[:1])


def test_a_shard_cut_short_in_the_cache_is_fetched_again(address, tmp_path):
  store = token_store.open_store(address, tmp_path / 'cache')
  store.fetch()
  os.truncate(store.folder / SHARDS[0], 100)
  _fetched()
  assert np.array_equal(
    token_store.open_store(address, tmp_path / 'cache').read(np.arange(10)), ROWS
  )
  assert _fetched() == SHARDS[:1]


def test_an_unwritable_cache_is_named(address, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  store = token_store.open_store(address, tmp_path / 'file')
  with pytest.raises(
    UserError, match="the cache '.*file/.*' cannot be written: .*; name another folder"
  ):
    store.fetch()


def test_an_address_without_a_store_is_named(address, tmp_path):
  with pytest.raises(
    UserError, match="no token store at 'standin://bucket/nothing': it has no manifest.json"
  ):
    token_store.open_store('standin://bucket/nothing')
  (tmp_path / 'remote/bucket/store/manifest.json').write_text('{')
  with pytest.raises(UserError, match=f"token store '{ADDRESS}' has a damaged manifest"):
    token_store.open_store(address)


def test_each_host_fetches_each_shard_once_with_any_number_of_processes(address, tmp_path):
  hosts = ('here', 'there')
  go = tmp_path / 'go'
  processes = []
  for host in hosts:
    environment = os.environ | {
      'PYTHONPATH': os.getcwd(),
      'STANDIN_LOG': str(tmp_path / f'log of {host}'),
    }
    command = [sys.executable, __file__, str(tmp_path / host), str(go)]
    processes += [
      subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
      for _ in range(2)
    ]
  for process in processes:
    assert process.stdout.readline() == 'ready\n'
  go.touch()
  expected = hashlib.sha256(ROWS.astype(np.int32)).hexdigest()
  assert [process.communicate()[0].split()[-1] for process in processes] == [expected] * 4
  for host in hosts:
    assert _fetched(tmp_path / f'log of {host}') == SHARDS


def _child(cache, go):
  """One process of a host: reads all rows after `go` exists, and prints their hash."""
  fetch = shard_cache._download
  shard_cache._download = lambda *args: (
    time.sleep(0.1),
    fetch(*args),
  )  # so that the other processes arrive meanwhile
  store = token_store.open_store(ADDRESS, cache)
  print('ready', flush=True)
  while not os.path.exists(go):
    time.sleep(0.01)
  print(hashlib.sha256(store.read(np.arange(10))).hexdigest())


if __name__ == '__main__':
  _child(*sys.argv[1:])
