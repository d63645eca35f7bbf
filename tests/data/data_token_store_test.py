"""A token store returns the written rows; one that is damaged or of another kind is refused."""

import contextlib
import json
import os
import pickle
import shutil
import threading

import numpy as np
import pytest

from electra_jax.data.store import background_check, token_manifest, token_shards, token_store
from electra_jax.errors import UserError


@pytest.fixture
def small_shards(monkeypatch):
  """Shards of 4 rows of 16 ids of two bytes."""
  monkeypatch.setattr(token_manifest, 'SHARD_BYTES', 4 * 16 * 2 + 5)


def _rows(count=10, length=16, vocab_size=1000):
  return np.random.default_rng(0).integers(1, vocab_size, (count, length))


def _write(path, rows, vocab_size=1000, blocks=None, **facts):
  kind = {'length': rows.shape[1], 'vocab_size': vocab_size, 'pad_id': 0}
  return token_store.write_store(
    path, blocks or [rows], **kind, tokenizer_fingerprint='fingerprint', facts=facts
  )


def _counted_reads(monkeypatch):
  """A list to which the size of every read is added."""
  sizes = []
  pread = os.pread
  monkeypatch.setattr(
    os, 'pread', lambda file, size, offset: sizes.append(size) or pread(file, size, offset)
  )
  return sizes


def test_written_rows_are_read(tmp_path):
  rows = _rows()
  rows[3, 10:] = 0
  _write(tmp_path / 'store', rows, source='here')
  store = token_store.open_store(tmp_path / 'store')
  assert (store.rows, store.length, store.pad_id, store.tokens, store.vocab_size) == (
    10,
    16,
    0,
    154,
    1000,
  )
  assert store.tokenizer_fingerprint == 'fingerprint' and store.manifest['source'] == 'here'
  batch = store.read(np.array([7, 0, 7]))
  assert batch.dtype == np.int32 and np.array_equal(batch, rows[[7, 0, 7]])
  assert store.read(np.array([], int)).shape == (0, 16)
  assert [path.name for path in tmp_path.iterdir()] == ['store']
  for outside in (-1, 10):
    with pytest.raises(IndexError, match='are 0..9'):
      store.read(np.array([3, outside]))


@pytest.mark.parametrize('sizes', [[10], [1] * 10, [3, 0, 4, 1, 2], [8, 2]])
def test_all_shards_but_the_last_are_full_for_any_blocks(tmp_path, small_shards, sizes):
  rows = _rows()
  store = _write(tmp_path / 'store', rows, blocks=np.split(rows, np.cumsum(sizes)[:-1]))
  assert [shard['rows'] for shard in store.manifest['shards']] == [4, 4, 2]
  assert sorted(os.listdir(store.folder)) == [
    'manifest.json',
    *(f'rows-0000{i}.bin' for i in range(3)),
    'verified.json',
  ]
  assert (store.folder / 'rows-00001.bin').read_bytes() == rows[4:8].astype('<u2').tobytes()
  for indices in (
    np.arange(10),
    np.arange(10)[::-1],
    [9, 0, 1, 2, 3, 4, 5, 5, 3, 4],
    [4],
    [3, 4],
    [7, 9],
  ):
    assert np.array_equal(store.read(np.array(indices)), rows[indices])


def test_shards_are_at_most_256_megabytes():
  for length, vocab_size in ((128, 30_522), (512, 30_522), (127, 2**17), (7, 100)):
    row_bytes = length * (2 if vocab_size <= 2**16 else 4)
    assert (
      256e6 - row_bytes < token_manifest.rows_per_shard(length, vocab_size) * row_bytes <= 256e6
    )


def test_consecutive_rows_are_read_with_one_call(tmp_path, small_shards, monkeypatch):
  store = _write(tmp_path / 'store', _rows())
  sizes = _counted_reads(monkeypatch)
  store.read(np.array([0, 1, 2, 3, 4, 5, 9, 8]))
  assert sizes == [4 * 32, 2 * 32, 32, 32]


def test_shards_written_in_any_order_form_the_same_store(tmp_path, small_shards):
  rows = _rows()
  whole = _write(tmp_path / 'whole', rows)
  kind = {'length': 16, 'vocab_size': 1000, 'pad_id': 0}
  parts = tmp_path / 'parts'
  shards = {}
  for i in (2, 0, 1, 2):  # one of them again, as a pipeline may
    shards[i] = token_shards.write_shard(parts, i, [rows[4 * i : 4 * i + 4]], **kind)
  with pytest.raises(UserError, match='has no manifest.json'):
    token_store.open_store(parts)
  for missing, complaint in ((1, 'shard 1 is called'), (0, 'shard 0 is called')):
    with pytest.raises(ValueError, match=complaint):
      some = [shards[i] for i in range(3) if i != missing]
      token_manifest.write_manifest(
        parts, some, **kind, tokenizer_fingerprint='fingerprint', facts={}
      )
  every = [shards[i] for i in range(3)]
  token_manifest.write_manifest(parts, every, **kind, tokenizer_fingerprint='fingerprint', facts={})
  made = token_store.open_store(parts)
  assert made.manifest == whole.manifest and made.identity == whole.identity
  assert np.array_equal(made.read(np.arange(10)), rows)
  with pytest.raises(ValueError, match='more than 4 rows for shard 0'):
    token_shards.write_shard(parts, 0, [rows[:5]], **kind)
  with pytest.raises(ValueError, match=r'shape \(2, 15\); expected \(n, 16\)'):
    token_shards.write_shard(parts, 0, [rows[:2, :15]], **kind)
  assert np.array_equal(token_store.open_store(parts).read(np.arange(10)), rows), (
    'a shard that fails changes no file'
  )
  assert not list(parts.glob('*.partial'))


def test_facts_do_not_replace_keys_of_the_manifest(tmp_path):
  with pytest.raises(ValueError, match="'tokens' is a key of the manifest"):
    _write(tmp_path / 'store', _rows(), tokens=3)


def test_the_identity_depends_on_the_rows_only(tmp_path):
  rows = _rows()
  one, same = _write(tmp_path / 'one', rows, note='a'), _write(tmp_path / 'same', rows, note='b')
  reshaped = _write(tmp_path / 'reshaped', rows.reshape(5, 32))
  other = _write(tmp_path / 'other', rows[::-1])
  assert one.identity == same.identity
  assert len({one.identity, reshaped.identity, other.identity}) == 3


@pytest.mark.parametrize('vocab_size, dtype', [(65_536, '<u2'), (65_537, '<u4')])
def test_ids_take_two_bytes_if_they_fit(tmp_path, vocab_size, dtype):
  rows = np.full((3, 8), vocab_size - 1)
  store = _write(tmp_path / 'store', rows, vocab_size)
  assert store.manifest['dtype'] == dtype
  assert np.array_equal(store.read(np.arange(3)), rows)


def test_an_empty_store_opens(tmp_path):
  store = _write(tmp_path / 'store', np.zeros((0, 8), int))
  assert store.rows == 0 and store.manifest['shards'] == []


def test_a_store_whose_writing_fails_does_not_exist(tmp_path):
  def blocks():
    yield _rows()
    raise UserError('the corpus broke')

  with pytest.raises(UserError, match='the corpus broke'):
    _write(tmp_path / 'store', _rows(), blocks=blocks())
  assert list(tmp_path.iterdir()) == []


def test_a_shard_is_on_the_disk_before_it_gets_its_name(tmp_path, small_shards, monkeypatch):
  calls, fsync, replace = [], os.fsync, os.replace
  monkeypatch.setattr(os, 'fsync', lambda file: calls.append(os.fstat(file).st_size) or fsync(file))
  monkeypatch.setattr(
    os,
    'replace',
    lambda source, target: calls.append(os.path.basename(target)) or replace(source, target),
  )
  _write(tmp_path / 'store', _rows(6))
  assert calls[:4] == [4 * 16 * 2, 'rows-00000.bin', 2 * 16 * 2, 'rows-00001.bin']
  assert calls[5] == 'manifest.json', 'last, because it marks the store as complete'


def test_ids_outside_the_vocabulary_are_not_written(tmp_path):
  for bad in (1000, -1):
    rows = _rows()
    rows[5, 5] = bad
    with pytest.raises(ValueError, match='expected 0..999'):
      _write(tmp_path / 'store', rows)
  assert list(tmp_path.iterdir()) == []


def test_an_existing_store_is_not_overwritten(tmp_path):
  _write(tmp_path / 'store', _rows())
  with pytest.raises(UserError, match="store' exists already"):
    _write(tmp_path / 'store', _rows(5))
  assert token_store.open_store(tmp_path / 'store').rows == 10


def _refused(path):
  with pytest.raises(UserError) as caught:
    token_store.open_store(path)
  assert str(path) in str(caught.value) and 'prepare the corpus again' in str(caught.value)
  return str(caught.value)


def test_a_damaged_store_is_refused(tmp_path, small_shards):
  path = tmp_path / 'store'
  _write(path, _rows())
  shard = path / 'rows-00001.bin'
  content = bytearray(shard.read_bytes())
  shard.write_bytes(content[:-1])
  assert 'rows-00001.bin has 127 bytes, not 128' in _refused(path)
  content[100] ^= 1
  shard.write_bytes(content)
  assert 'checksum of rows-00001.bin is wrong' in _refused(path)
  shard.unlink()
  assert 'rows-00001.bin is missing' in _refused(path)
  content[100] ^= 1
  shard.write_bytes(content)
  assert token_store.open_store(path).rows == 10


def test_a_wrong_manifest_is_refused(tmp_path, small_shards):
  path = tmp_path / 'store'
  assert 'has no manifest.json' in _refused(path)
  _write(path, _rows())
  manifest = json.loads((path / 'manifest.json').read_text())
  shards = manifest['shards']

  def with_shard(i, **facts):
    return json.dumps(
      manifest | {'shards': [s | facts if j == i else s for j, s in enumerate(shards)]}
    )

  for content, complaint in [
    (json.dumps(manifest | {'format_version': 1}), 'has format version 1; expected 2'),
    (json.dumps(manifest | {'format_version': 99}), 'has format version 99; expected 2'),
    (json.dumps(manifest | {'format': 'another'}), 'is not a token store'),
    (json.dumps([1, 2]), 'is not a token store'),
    (json.dumps({k: v for k, v in manifest.items() if k != 'rows'}), "lacks 'rows'"),
    (json.dumps(manifest | {'shards': shards[:-1]}), 'its rows are not those of its shards'),
    (
      json.dumps(manifest | {'shards': shards[:1] + shards[2:]}),
      "shard 1 is called 'rows-00002.bin'",
    ),
    (json.dumps(manifest | {'shards': [{}]}), "shard 0 lacks 'blake2b'"),
    (json.dumps(manifest | {'shards': 5}), 'damaged manifest'),
    (
      json.dumps(manifest | {'rows_per_shard': 5}),
      'shard 0 of 3 has 4 rows where a full one has 5',
    ),
    (json.dumps(manifest | {'dtype': '<f4'}), "ids of type '<f4'"),
    (json.dumps(manifest | {'blake2b': '0'}), 'its checksum is not that of its shards'),
    (with_shard(1, file='../../secret'), "shard 1 is called '../../secret'"),
    (with_shard(0, blake2b='0'), 'its checksum is not that of its shards'),
    (with_shard(2, rows=3), 'shard 2 has 64 bytes for 3 rows'),
    ('{', 'damaged manifest'),
    ('', 'damaged manifest'),
  ]:
    (path / 'manifest.json').write_text(content)
    assert complaint in _refused(path)
  (path / 'manifest.json').write_bytes(b'\xff\xfe')
  assert 'damaged manifest' in _refused(path)


def test_checked_shards_are_read_again_only_after_a_change(tmp_path, small_shards, monkeypatch):
  path = tmp_path / 'store'
  _write(path, _rows())
  hashed = []
  digest = token_manifest.file_digest
  monkeypatch.setattr(
    token_manifest, 'file_digest', lambda file: hashed.append(file.name) or digest(file)
  )

  def opening():
    hashed.clear()
    token_store.open_store(path)
    return sorted(hashed)

  every = [f'rows-0000{i}.bin' for i in range(3)]
  assert opening() == []
  os.utime(path / every[1], ns=(1, 1))
  assert opening() == [every[1]]
  assert opening() == []
  shutil.copytree(path, tmp_path / 'other', copy_function=shutil.copy)  # a copy has other times
  path = tmp_path / 'other'
  assert opening() == every
  assert opening() == []
  (path / 'verified.json').write_text('[')
  assert opening() == every
  monkeypatch.setattr(token_manifest.file_access, 'write_bytes', _unwritable)
  (path / 'verified.json').unlink()
  assert opening() == every and opening() == every


def _unwritable(path, content):
  raise UserError(f'{path!r} cannot be written: Read-only file system')


def test_an_unwritable_place_is_named(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(UserError, match='cannot be written'):
    _write(tmp_path / 'file' / 'store', _rows())


def test_a_store_that_disappears_while_it_is_read_is_named(tmp_path, small_shards):
  store = _write(tmp_path / 'store', _rows())
  store.read(np.array([0]))
  os.truncate(store.folder / 'rows-00000.bin', 40)
  with pytest.raises(UserError, match="store' was cut short while it was read"):
    store.read(np.array([0, 1]))
  shutil.rmtree(store.folder)
  with pytest.raises(
    UserError, match="store' cannot be read anymore .rows-00001.bin: No such file"
  ):
    store.read(np.array([5]))


def test_threads_share_open_files_which_are_closed_with_the_store(tmp_path, small_shards):
  rows = _rows()
  _write(tmp_path / 'store', rows)

  def open_files():
    links = []
    for name in os.listdir('/proc/self/fd'):
      with contextlib.suppress(OSError):
        links.append(os.readlink(f'/proc/self/fd/{name}'))
    return sorted(os.path.basename(link) for link in links if link.startswith(str(tmp_path)))

  if not os.path.isdir('/proc/self/fd'):
    pytest.skip('no /proc/self/fd here')
  store = token_store.open_store(tmp_path / 'store')
  assert open_files() == []
  store.read(np.array([5]))
  assert open_files() == ['rows-00001.bin']
  wrong = []

  def read():
    for _ in range(50):
      if not np.array_equal(store.read(np.arange(10)), rows):
        wrong.append(True)

  threads = [threading.Thread(target=read) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong and open_files() == [f'rows-0000{i}.bin' for i in range(3)]
  again = pickle.loads(pickle.dumps(store))
  assert np.array_equal(again.read(np.arange(10)), rows) and again.manifest == store.manifest
  store = again = None
  assert open_files() == []


def test_unigram_entropy_leaves_out_some_tokens(tmp_path):
  # Of each row's tokens that count, half are 5, a quarter 6 and a quarter 7.
  row = [2, 5, 5, 5, 5, 6, 6, 7, 7, 0]
  store = _write(tmp_path / 'store', np.tile(row, (9000, 1)))

  def entropy(*shares):
    return -sum(share * np.log(share) for share in shares)

  assert np.isclose(store.unigram_entropy(left_out=(0, 2)), entropy(0.5, 0.25, 0.25), rtol=1e-12)
  assert np.isclose(store.unigram_entropy(), entropy(0.1, 0.4, 0.2, 0.2, 0.1), rtol=1e-12)
  assert store.unigram_entropy(left_out=(0, 2, 6, 7)) == 0


def test_unigram_entropy_of_a_large_store_is_estimated_from_spaced_rows(tmp_path, monkeypatch):
  # The first half is all 5, the second all 6: a sample from one end would give 0.
  store = _write(tmp_path / 'store', np.repeat([5, 6], 500)[:, None] * np.ones((1, 10), int))
  sizes = _counted_reads(monkeypatch)
  assert np.isclose(store.unigram_entropy(most_tokens=100), np.log(2), rtol=1e-12)
  assert sizes == [20] * 10


def test_a_large_store_opens_at_once_and_is_checked_while_it_is_read(
  tmp_path, small_shards, monkeypatch
):
  monkeypatch.setattr(token_manifest, 'WAIT_BYTES', 0)
  path = tmp_path / 'store'
  _write(path, _rows())
  (path / token_manifest.VERIFIED_FILE).unlink(missing_ok=True)
  store = token_store.open_store(path)
  assert store.check is not None
  store.check.wait()
  assert np.array_equal(store.read(np.arange(store.rows)), _rows())
  assert token_store.open_store(path).check is None, 'what is right is recorded'
  shard = path / 'rows-00001.bin'
  content = shard.read_bytes()
  shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  damaged = token_store.open_store(path)
  with pytest.raises(UserError, match=r'the checksum of rows-00001\.bin is wrong'):
    damaged.check.wait()
  with pytest.raises(UserError, match='checksum'):
    damaged.read(np.arange(1))


def test_opening_reads_no_shard_of_a_large_store(tmp_path, monkeypatch):
  """Sparse shards of several GB, whose checksums are those of zeros."""
  monkeypatch.setattr(token_manifest, 'WAIT_BYTES', 0)
  monkeypatch.setattr(background_check.BackgroundCheck, '_run', lambda self: None)
  length, shards = 128, 40
  full = token_manifest.rows_per_shard(length, 1000)
  path = tmp_path / 'store'
  path.mkdir()
  entries = []
  for index in range(shards):
    with open(path / f'rows-{index:05d}.bin', 'wb') as file:
      file.truncate(full * length * 2)
    entries.append(
      {
        'file': f'rows-{index:05d}.bin',
        'rows': full,
        'bytes': full * length * 2,
        'blake2b': '0' * 32,
        'tokens': 0,
      }
    )
  token_manifest.write_manifest(
    path,
    entries,
    length=length,
    vocab_size=1000,
    pad_id=0,
    tokenizer_fingerprint='sparse',
    facts={},
  )
  monkeypatch.setattr(token_manifest, 'file_digest', None)
  store = token_store.open_store(path)
  assert store.rows == shards * full and not store.read(np.array([0, store.rows - 1])).any()
