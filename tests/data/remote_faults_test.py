"""Stores that fail for a while cost time only; of those that go on failing, one sentence tells."""

import hashlib
import io
import os
import types

import fake_gcs
import fsspec
import numpy as np
import pytest
from fake_gcs import Fault

from electra_jax import file_access, remote_files
from electra_jax.data.store import token_store
from electra_jax.errors import UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
ADDRESS = 'failing://bucket/file'


class Failing(fsspec.AbstractFileSystem):
  """A store with one file that fails as `script` says: an item for each read of its bytes."""

  protocol = 'failing'
  cachable = False
  script = []
  content = CONTENT
  version = 1

  def info(self, path, **_):
    digest = hashlib.md5(self.content).digest()
    return {
      'name': path,
      'size': len(self.content),
      'type': 'file',
      'md5Hash': remote_files.base64.b64encode(digest).decode(),
      'generation': self.version,
    }

  def _next(self):
    fault = self.script.pop(0) if self.script else None
    if isinstance(fault, Exception):
      raise fault
    return fault

  def cat_file(self, path, **_):
    return changed(self.content, self._next())

  def pipe_file(self, path, value, **_):
    Failing.content = changed(value, self._next())

  def _open(self, path, mode='rb', **_):
    return Stream(self)


class Stream(io.BytesIO):
  def __init__(self, system):
    super().__init__(system.content)
    self.system = system

  def read(self, amount=-1):
    fault = self.system._next()
    if callable(fault):
      fault()
      raise ConnectionResetError('connection reset by peer')
    return changed(super().read(amount), fault)


def changed(content, fault):
  if fault == 'short':
    return content[:-1]
  if fault == 'empty':
    return b''
  return content[:-1] + bytes([content[-1] ^ 1]) if fault == 'flipped' else content


class Refused(Exception):
  """As clients of stores raise it."""

  def __init__(self, code):
    super().__init__(f'the store answers {code}')
    self.code = code


fsspec.register_implementation('failing', Failing, clobber=True)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
  """The pauses between attempts, which take no time here."""
  found = []
  monkeypatch.setattr(remote_files.time, 'sleep', found.append)
  Failing.script, Failing.content, Failing.version = [], CONTENT, 1
  return found


PASSING = [TimeoutError('timed out'), Refused(503), Refused(429), Refused(401), OSError('broken')]


@pytest.mark.parametrize(
  'fault', [*PASSING, 'short', 'flipped', 'empty'], ids=lambda fault: str(fault)
)
def test_a_read_succeeds_after_failures_that_pass(fault, pauses):
  Failing.script = [fault] * 3
  assert file_access.read_bytes(ADDRESS) == CONTENT
  assert len(pauses) == 3
  for number, pause in enumerate(pauses):
    full = remote_files.FIRST_DELAY * 2**number
    assert full / 2 <= pause <= full


@pytest.mark.parametrize('fault', [*PASSING, 'short', 'flipped'], ids=lambda fault: str(fault))
def test_a_store_that_goes_on_failing_is_one_sentence_after_a_limited_time(fault, pauses):
  for use in (
    lambda: file_access.read_bytes(ADDRESS),
    lambda: file_access.write_bytes(ADDRESS, CONTENT[1:]),
  ):
    pauses.clear()
    Failing.script, Failing.content = [fault] * 100, CONTENT
    with pytest.raises(UserError, match=f"^'{ADDRESS}' cannot be (read|written): .") as caught:
      use()
    assert '\n' not in str(caught.value)
    assert len(pauses) == remote_files.ATTEMPTS - 1 and sum(pauses) < 10


@pytest.mark.parametrize(
  'fault',
  [FileNotFoundError(2, 'No such file'), PermissionError('denied'), Refused(403), Refused(404)],
  ids=str,
)
def test_what_will_not_pass_is_not_tried_again(fault, pauses):
  Failing.script = [fault] * 2
  with pytest.raises(file_access.Unreachable):
    file_access.read_bytes(ADDRESS)
  assert pauses == [] and len(Failing.script) == 1


def test_no_attempt_starts_after_the_time_is_over(pauses, monkeypatch):
  now = [0.0]

  def fail():
    now[0] += 70.0
    raise TimeoutError

  monkeypatch.setattr(remote_files.time, 'monotonic', lambda: now[0])
  with pytest.raises(TimeoutError):
    remote_files.retried(fail, ADDRESS)
  assert now[0] == 210.0


@pytest.mark.parametrize('fault', [TimeoutError('timed out'), 'empty', Refused(500)], ids=str)
def test_a_long_read_continues_where_it_failed(fault):
  Failing.script = [None, fault, None, fault, fault]
  with file_access.open_binary(ADDRESS) as file:
    assert b''.join(iter(lambda: file.read(50_000), b'')) == CONTENT
  with file_access.open_binary(ADDRESS) as file:
    assert file.seek(-10, io.SEEK_END) == len(CONTENT) - 10 and file.read() == CONTENT[-10:]
    assert file.seek(5) == 5 and file.read(3) == CONTENT[5:8]


def test_a_long_read_of_wrong_bytes_does_not_reach_its_end():
  Failing.script = [None, 'flipped']
  with file_access.open_binary(ADDRESS) as file:
    got = []
    with pytest.raises(remote_files.Damaged, match='do not have the checksum that the store'):
      got.extend(iter(lambda: file.read(50_000), b''))
  assert sum(map(len, got)) < len(CONTENT)


def test_a_file_that_changes_while_it_is_read_is_not_mixed(pauses):
  def replace():
    Failing.version, Failing.content = 2, CONTENT[::-1]

  Failing.script = [None, replace]
  with file_access.open_binary(ADDRESS) as file:
    with pytest.raises(remote_files.Changed, match='changed while it was read'):
      file.read()
  assert len(pauses) == 1


@pytest.mark.parametrize('fault', [*PASSING, 'short', 'flipped'], ids=lambda fault: str(fault))
def test_a_write_is_compared_with_what_the_store_has_then(fault, tmp_path):
  Failing.script = [fault] * 2
  file_access.write_bytes(ADDRESS, CONTENT[1:])
  assert Failing.content == CONTENT[1:]


def test_stored_compressed_objects_are_not_compared():
  info = {'size': 10, 'md5Hash': 'AAAA', 'contentEncoding': 'gzip'}
  expected = remote_files.Expected(info)
  assert expected.size is None and not expected.has_checksum
  plain = remote_files.Expected(info | {'contentEncoding': ''})
  with pytest.raises(remote_files.Damaged, match='^3 bytes of 10 arrived'):
    plain.check(3, None)


#### Google Cloud Storage ####


@pytest.fixture(scope='module')
def server():
  gcsfs = pytest.importorskip('gcsfs', reason='needs gcsfs, of the gcs extra')
  import aiohttp

  async def sleep(seconds):
    pass

  with fake_gcs.serving('bucket') as buckets, pytest.MonkeyPatch.context() as patch:
    for name, value in buckets.environment().items():
      patch.setenv(name, value)
    patch.setattr(gcsfs.retry, 'asyncio', types.SimpleNamespace(sleep=sleep))
    timeout = aiohttp.ClientTimeout(sock_read=0.2)
    settings = {'gcs': {'use_listings_cache': False, 'requests_timeout': timeout}}
    patch.setattr(fsspec.config, 'conf', settings)
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield buckets
  gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def bucket(server):
  server.objects.clear()
  server.faults.clear()
  server.put('bucket', 'file', CONTENT)
  return server


GOOGLE = 'gs://bucket/file'
KINDS = [503, 401, 429, 'silence', 'reset', 'cut', 'short', 'flipped']


@pytest.mark.parametrize('kind', KINDS)
def test_a_bucket_that_fails_for_a_while_is_read_and_written(bucket, kind):
  bucket.faults.append(Fault(kind, times=2))
  assert file_access.read_bytes(GOOGLE) == CONTENT
  bucket.faults[:] = [Fault(kind, times=1, after=1)]
  with file_access.open_binary(GOOGLE) as file:
    first = file.read(10)
    if kind in ('short', 'flipped'):  # what was given out cannot be read again
      with pytest.raises(remote_files.Damaged):
        file.read()
    else:
      assert first + file.read() == CONTENT
  if kind not in ('cut', 'short'):  # of what is read
    bucket.faults[:] = [Fault(kind, method='POST', times=1)]
    file_access.write_bytes(GOOGLE, CONTENT[:100])
    assert bucket.files('bucket')['file'] == CONTENT[:100]


@pytest.mark.parametrize('kind', [503, 401, 403, 'flipped'])
def test_a_bucket_that_goes_on_failing_is_one_sentence(bucket, kind):
  for method in ('GET', 'POST'):
    bucket.faults[:] = [Fault(kind, method=method, times=10_000)]
    before = len(bucket.requests)
    with pytest.raises(UserError, match=f'^{GOOGLE!r} cannot be .*login') as caught:
      if method == 'GET':
        file_access.read_bytes(GOOGLE)
      else:
        file_access.write_bytes(GOOGLE, CONTENT)
    assert '\n' not in str(caught.value)
    assert len(bucket.requests) - before < 60


def test_a_store_in_a_failing_bucket_is_fetched_whole(bucket, tmp_path, monkeypatch):
  rows = np.random.default_rng(0).integers(1, 1000, (10, 16))
  shape = {'length': 16, 'vocab_size': 1000, 'pad_id': 0, 'tokenizer_fingerprint': 't'}
  token_store.write_store('gs://bucket/store', [rows], **shape, facts={})
  bucket.faults += [Fault(kind, r'store/rows') for kind in ('reset', 'flipped', 503)]
  store = token_store.open_store('gs://bucket/store', tmp_path / 'cache')
  store.folder.mkdir(parents=True)
  left = store.folder / 'rows-00000.bin.01234567.partial'
  left.write_bytes(b'of a process that was killed')
  store.fetch()
  assert np.array_equal(store.read(np.arange(10)), rows)
  assert sorted(os.listdir(store.folder)) == ['rows-00000.bin', 'rows-00000.bin.lock']
