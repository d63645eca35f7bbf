"""Files are found, read and written alike by path and by address; errors are one sentence."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tracemalloc

import fsspec
import pytest
import zstandard

from electra_jax import file_access, input_limits, remote_files
from electra_jax.errors import UserError

ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress
SKIPPED = struct.pack('<II', 0x184D2A50, 5) + b'12345'  # a frame that decompressors skip
TEXT = b''.join(b'line %d of some text\n' % i for i in range(20_000))


@pytest.fixture(params=['path', 'address'])
def folder(request, tmp_path):
  if request.param == 'path':
    yield str(tmp_path / 'folder')
    return
  yield 'memory://folder'
  fsspec.filesystem('memory').rm('/folder', recursive=True)


def decompressed(content, name='a.zst'):
  return file_access.decompressed(io.BytesIO(content), name).read()


def test_a_path_and_an_address_work_alike(folder):
  names = ['b.txt', 'a.txt', 'deep/c.txt', 'd.md']
  for name in names:
    file_access.write_bytes(file_access.join(folder, name), name.encode())
  path = file_access.join(folder, 'a.txt')
  assert file_access.exists(path) and not file_access.exists(file_access.join(folder, 'none.txt'))
  assert file_access.is_folder(folder) and not file_access.is_folder(path)
  found = [file_access.absolute(file_access.join(folder, name)) for name in sorted(names)]
  assert list(map(file_access.absolute, file_access.glob(f'{folder}/*.txt'))) == found[:2]
  assert list(map(file_access.absolute, file_access.glob(f'{folder}/**'))) == found
  assert file_access.glob(f'{folder}/*.gz') == []
  assert file_access.read_bytes(path) == b'a.txt' and file_access.facts(path).size == 5
  (facts,) = file_access.find_files(f'{folder}/a*').values()
  assert facts == file_access.facts(path)
  assert file_access.listing(folder) == ['a.txt', 'b.txt', 'd.md', 'deep']
  with file_access.open_binary(path) as file:
    assert file.read(2) == b'a.' and file.tell() == 2
  before = file_access.facts(path).version
  assert before and file_access.facts(path).version == before
  file_access.write_bytes(path, b'other')
  assert file_access.facts(path).version != before and file_access.read_bytes(path) == b'other'
  file_access.remove(path)
  file_access.remove(path)
  file_access.remove(file_access.join(folder, 'deep'))
  assert file_access.listing(folder) == ['b.txt', 'd.md'], 'no partial file remains'


def test_a_file_that_cannot_be_read_is_named(folder):
  file_access.write_bytes(file_access.join(folder, 'a.txt'), b'')
  for read in (file_access.facts, file_access.read_bytes):
    with pytest.raises(UserError, match=r"none.txt' cannot be read: .*\S$"):
      read(file_access.join(folder, 'none.txt'))


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(file_access.Unwritable, match=r"file/a.txt' cannot be written: \S"):
    file_access.write_bytes(tmp_path / 'file/a.txt', b'')


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
  calls, fsync, replace = [], os.fsync, os.replace
  monkeypatch.setattr(
    os, 'fsync', lambda file: calls.append(('fsync', os.fstat(file).st_size)) or fsync(file)
  )
  monkeypatch.setattr(
    os,
    'replace',
    lambda source, target: calls.append(('replace', target)) or replace(source, target),
  )
  path = str(tmp_path / 'folder' / 'a.txt')
  file_access.write_bytes(path, b'content')
  assert calls[:2] == [('fsync', len(b'content')), ('replace', path)]
  assert [call[0] for call in calls[2:]] == ['fsync']  # of the folder
  assert file_access.read_bytes(path) == b'content'


def test_an_unknown_scheme_is_named(monkeypatch):
  with pytest.raises(UserError, match="'nosuch://a' has an unknown scheme"):
    file_access.exists('nosuch://a')

  def missing(address):
    raise ImportError('no module')

  monkeypatch.setattr(fsspec.core, 'url_to_fs', missing)
  with pytest.raises(
    UserError, match="'gs://b/a' needs gcsfs, which is not installed; expected the extra gcs"
  ):
    file_access.exists('gs://b/a')


def test_any_error_of_a_remote_file_system_is_one_sentence(monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError('refused.\nMore of it.')

  monkeypatch.setattr(remote_files, 'FIRST_DELAY', 0.0)
  monkeypatch.setattr(type(fsspec.filesystem('memory')), 'info', fail)
  with pytest.raises(UserError) as caught:
    file_access.facts('memory://folder/a')
  assert str(caught.value) == "'memory://folder/a' cannot be read: refused"


@pytest.mark.parametrize(
  'suffix, pack',
  [
    ('', bytes),
    ('.gz', gzip.compress),
    ('.xz', lzma.compress),
    ('.bz2', bz2.compress),
    ('.zst', ZSTD),
    ('.ZST', ZSTD),
  ],
)
def test_the_suffix_decides_the_compression(suffix, pack):
  assert decompressed(pack(TEXT) + pack(b'more'), f'a.txt{suffix}') == TEXT + b'more'


def test_zstandard_frames_of_all_kinds():
  noise = os.urandom(300_000)
  for content in (noise, TEXT, b'x' * 3_000_000, b'\n'.join([noise, TEXT])):
    assert (
      decompressed(SKIPPED + ZSTD(content) + SKIPPED + ZSTD(content[:7])) == content + content[:7]
    )
  assert decompressed(ZSTD(b'')) == b''
  long = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters(window_log=28)
  ).compressobj()
  assert decompressed(long.compress(TEXT) + long.flush()) == TEXT, 'zstd --long writes such windows'


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[:-1],
    lambda content: content[: len(content) // 2],
    lambda content: content[:3],
    lambda content: b'',
    lambda content: b'no such thing',
    lambda content: content + b'garbage',
    lambda content: content[:-2] + b'zz',
  ],
)
def test_damage_of_zstandard_is_noticed(damage):
  with pytest.raises(file_access.damage()):
    decompressed(damage(ZSTD(TEXT)))


@pytest.mark.parametrize('suffix', ['.zst', '.xz', '.bz2'])
def test_what_expands_further_than_text_is_refused_unless_the_limits_are_raised(
  suffix, monkeypatch
):
  monkeypatch.setattr(input_limits, 'FREE_BYTES', 1_000_000)
  compress = {'.zst': ZSTD, '.xz': lzma.compress, '.bz2': bz2.compress}[suffix]
  content = compress(bytes(8_000_000))
  stream = file_access.decompressed(io.BytesIO(content), f'a{suffix}')
  with pytest.raises(UserError, match=f"'a{suffix}' expands to more than 1,100 times.*--input_lim"):
    stream.read()
  monkeypatch.setenv(input_limits.VARIABLE, '100')
  stream = file_access.decompressed(io.BytesIO(content), f'a{suffix}')
  assert len(stream.read()) == 8_000_000


def test_text_that_compresses_a_thousandfold_is_decompressed_in_parts(monkeypatch):
  monkeypatch.setenv(input_limits.VARIABLE, '100')
  content = ZSTD(bytes(200_000_000))
  tracemalloc.start()
  stream = file_access.decompressed(io.BytesIO(content), 'a.zst')
  total = 0
  while piece := stream.read(1 << 20):
    total += len(piece)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert total == 200_000_000
  assert peak < 30_000_000
