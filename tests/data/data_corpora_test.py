"""Documents of text files are read whole and in order; what cannot be read is named."""

import bz2
import gzip
import lzma
import os
import pathlib
import pickle
import tracemalloc

import fsspec
import pytest
import zstandard
from corpus_reading import identity, read, refusal

from electra_jax.data.corpus import corpora, corpus_format

TEXT = (
  'First paragraph.\nSecond, with é.\n\n\n \nAnother document.\r\n\n'
  'Third\u2028one\x0cand\x00more.\n'
)
COMPRESSED = [
  ('.gz', gzip.compress),
  ('.xz', lzma.compress),
  ('.bz2', bz2.compress),
  ('.zst', zstandard.ZstdCompressor(write_checksum=True).compress),
]
DOCUMENTS = [
  'First paragraph.\nSecond, with é.',
  'Another document.',
  'Third\u2028one\x0cand\x00more.',
]


@pytest.mark.parametrize('suffix, pack', [('', bytes), *COMPRESSED])
def test_plain_and_compressed_files_give_the_same_documents(tmp_path, suffix, pack):
  path = tmp_path / f'text.txt{suffix}'
  path.write_bytes(pack(TEXT.encode()))
  assert read(path) == (DOCUMENTS, {})
  path.write_bytes(pack(TEXT[:20].encode()) + pack(TEXT[20:].encode()))
  assert read(path) == (DOCUMENTS, {}), 'several streams in a row'


@pytest.mark.parametrize('suffix, pack', [('', bytes), COMPRESSED[0]])
def test_an_address_works_like_a_path(suffix, pack):
  system = fsspec.filesystem('memory')
  for name in ('b', 'a'):
    system.pipe_file(f'/corpus/{name}.txt{suffix}', pack(f'{name}\n\n{TEXT}'.encode()))
  try:
    pattern = f'memory://corpus/*.txt{suffix}'
    assert read(pattern) == (['a', *DOCUMENTS, 'b', *DOCUMENTS], {})
    assert all(group.bytes > 0 for group in corpora.groups(corpora.parse_sources(pattern)))
    assert read(f'memory://corpus/b.txt{suffix}, {pattern}')[0] == [
      'b',
      *DOCUMENTS,
      'a',
      *DOCUMENTS,
    ]
    before = identity(pattern)
    assert identity(pattern) == before
    system.pipe_file(f'/corpus/b.txt{suffix}', pack(b'changed'))
    assert identity(pattern) != before
    assert "'memory://corpus/none.txt' does not exist" in refusal('memory://corpus/none.txt')
    assert "'memory://corpus/*.md' matches no file" in refusal('memory://corpus/*.md')
    assert read('memory://corpus') == read(f'memory://corpus/*.txt{suffix}')
    if suffix:
      system.pipe_file('/corpus/cut.txt.gz', pack(TEXT.encode())[:-9])
      assert "'memory://corpus/cut.txt.gz' is damaged or cut short" in refusal(
        'memory://corpus/cut.txt.gz'
      )
  finally:
    system.rm('/corpus', recursive=True)


def test_document_formats(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(TEXT.encode())
  assert read(path, 'line') == (
    ['First paragraph.', 'Second, with é.', *DOCUMENTS[1:]],
    {'blank_documents': 4},
  )
  (whole,), counts = read(path, 'file')
  assert whole.split() == TEXT.split() and 'Second, with é.\n\n' in whole and not counts
  assert read(f'{path};format=line', 'file') == read(path, 'line')
  assert "'blank_line', 'line', 'file'" in refusal(path, 'lines')


def test_a_file_may_lack_a_last_newline_or_any_text(tmp_path):
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'blank.txt').write_text('\n \n\t\u2003\n')
  (tmp_path / 'end.txt').write_text('one\n\ntwo')
  assert read(f'{tmp_path}/*.txt') == (['one', 'two'], {})
  assert read(f'{tmp_path}/*.txt', 'line') == (['one', 'two'], {'blank_documents': 4})
  assert read(f'{tmp_path}/*.txt', 'file') == (['one\n\ntwo'], {'blank_documents': 2})
  assert read(tmp_path / 'empty.txt') == ([], {})


def test_each_file_comes_once_from_overlapping_sources(tmp_path):
  for name in ('b.txt', 'a.txt', 'c.md'):
    (tmp_path / name).write_text(f'document {name}')
  (tmp_path / 'link.txt').symlink_to(tmp_path / 'a.txt')
  assert read(f'{tmp_path}/*.txt')[0] == ['document a.txt', 'document b.txt']
  several, _ = read(f' {tmp_path}/c.md, {tmp_path}/*.txt , {tmp_path}/./c.md,')
  assert several == ['document c.md', 'document a.txt', 'document b.txt'], (
    'in the order of the sources'
  )
  for again in (
    f'{tmp_path}/*;weight=2',
    f'{tmp_path}/c.md;weight=1',
    f'{tmp_path}/c.md;format=line;weight=2',
  ):
    sentence = refusal(f'{tmp_path}/c.md;weight=1, {again}')
    assert "c.md' is in two sources" in sentence and 'weights' in sentence
  (tmp_path / 'd.jsonl').write_text('{"text": "the text", "title": "its title"}')
  assert read(f'{tmp_path}/d.jsonl;weight=1, {tmp_path}/d.jsonl;field=title;weight=1')[0] == [
    'the text',
    'its title',
  ]
  assert read(f'{tmp_path}/b.txt;weight=1, {tmp_path}/a.txt;weight=2')[0] == [
    'document b.txt',
    'document a.txt',
  ]


def test_documents_are_read_from_paths_and_lists(tmp_path):
  path = tmp_path / 'odd, name;.txt'
  path.write_text('odd')
  (tmp_path / 'a.txt').write_text('a')
  assert list(corpora.read_documents(path)) == ['odd']
  assert list(
    corpora.read_documents([path, f'{tmp_path}/a.txt', *corpora.parse_sources(f'{tmp_path}/a.txt')])
  ) == ['odd', 'a']
  assert next(corpora.read_documents('sample')) == read('sample')[0][0]


def test_a_byte_order_mark_is_not_text(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(b'\xef\xbb\xbfHello\n')
  assert read(path)[0] == ['Hello']


@pytest.mark.parametrize(
  'name, before, after', [('long.txt', b'', b'\nnext'), ('long.jsonl', b'{"text": "', b'"}\n')]
)
def test_a_line_of_fifty_megabytes_is_in_memory_a_few_times(tmp_path, name, before, after):
  path = tmp_path / name
  path.write_bytes(before + b'x' * 50_000_000 + after)
  tracemalloc.start()
  (length,) = [len(document) for document in corpora.read_documents(path)]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert length - 50_000_000 == (5 if name == 'long.txt' else 0)
  assert peak < 4 * 50_000_000


@pytest.mark.parametrize('suffix, pack', [COMPRESSED[0], COMPRESSED[3]])
def test_memory_stays_flat(tmp_path, suffix, pack):
  path = tmp_path / f'text.txt{suffix}'
  path.write_bytes(pack((('word ' * 400 + '\n\n') * 10_000).encode()))
  tracemalloc.start()
  number = sum(1 for _ in corpora.read_documents(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert number == 10_000
  assert peak < 8_000_000, 'the text is 20 MB'


def test_groups_are_filled_in_order_by_names_and_sizes(tmp_path, monkeypatch):
  monkeypatch.setattr(corpus_format, 'GROUP_BYTES', 100)
  for name, size in {
    'a': 40,
    'b': 50,
    'c': 30,
    'd': 10,
    'e': 250,
    'f': 99,
    'g': 100,
    'h': 0,
    'i': 5,
  }.items():
    (tmp_path / f'{name}.txt').write_bytes(b'x' * size)
  (tmp_path / 'z.md').write_bytes(b'y')
  sources = corpora.parse_sources(f'{tmp_path}/*.txt, {tmp_path}/z.md')
  found = corpora.groups(sources)
  names = [''.join(pathlib.Path(path).stem for path in group.files) for group in found]
  assert names == ['abc', 'd', 'e', 'f', 'g', 'hi', 'z']
  assert [group.bytes for group in found] == [120, 10, 250, 99, 100, 5, 1]
  assert [group.source_index for group in found] == [0] * 6 + [1]
  assert found[-1].source == sources[1]
  assert corpora.groups(sources) == found == pickle.loads(pickle.dumps(found))


@pytest.mark.parametrize('suffix, pack', [('', bytes), *COMPRESSED])
def test_advance_counts_the_bytes_of_the_files(tmp_path, suffix, pack):
  for i in range(3):
    (tmp_path / f'{i}.txt{suffix}').write_bytes(pack(TEXT.encode() * 300))
  (group,) = corpora.groups(corpora.parse_sources(f'{tmp_path}/*'))
  read_bytes = []
  list(corpora.documents(group, advance=read_bytes.append))
  assert sum(read_bytes) == group.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_missing_files_are_named(tmp_path):
  assert f"{tmp_path}/none.txt' does not exist" in refusal(f'{tmp_path}/none.txt')
  assert f"{tmp_path}/*.txt' matches no file" in refusal(f'{tmp_path}/*.txt')
  assert f"{tmp_path}' holds no file with content" in refusal(tmp_path)
  assert 'source is empty' in refusal('') and 'source is empty' in refusal(' , ')
  os.mkfifo(tmp_path / 'pipe')
  assert "pipe' is not a file that can be read twice" in refusal(tmp_path / 'pipe')
  assert "'nosuch://a/b' has an unknown scheme" in refusal('nosuch://a/b')


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path):
  path = tmp_path / 'latin.txt'
  path.write_bytes('one\ntwo café\n'.encode('latin-1'))
  sentence = refusal(path)
  assert 'latin.txt' in sentence and '0xe9 on line 2, byte 11 of the text' in sentence
  path.write_bytes(b'\xef\xbb\xbfone\n\xff')
  assert '0xff on line 2, byte 7 of the text' in refusal(path)
  assert "invalid_utf8 is 'ignore'; expected one of refuse, replace" in refusal(
    path, invalid_utf8='ignore'
  )


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path):
  path = tmp_path / 'mixed.txt'
  path.write_bytes(b'one \xe9\n\xff\xfe two\n\nfine \xef\xbf\xbd\n\ncut \xe2\x82\n\n\xc3')
  texts, counts = read(path, invalid_utf8='replace')
  assert texts == ['one \ufffd\n\ufffd\ufffd two', 'fine \ufffd', 'cut \ufffd', '\ufffd']
  assert counts == {'replaced_bytes': 6, 'documents_with_replacements': 3}


@pytest.mark.parametrize('suffix, pack', COMPRESSED)
def test_a_damaged_file_is_named(tmp_path, suffix, pack):
  content = pack(''.join(f'Some text to compress, line {i}.\n' for i in range(5000)).encode())
  flipped = content[:-5] + bytes([content[-5] ^ 0xFF]) + content[-4:]
  broken = {
    'cut': content[: len(content) // 2],
    'shorter': content[:-1],
    'foreign': b'no such thing',
    'empty': b'',
    'flipped': flipped,
  }
  for name, damaged in broken.items():
    path = tmp_path / f'{name}.txt{suffix}'
    path.write_bytes(damaged)
    sentence = refusal(path)
    assert path.name in sentence and 'damaged or cut short' in sentence


@pytest.mark.parametrize('suffix, pack', COMPRESSED)
def test_compressed_files_are_read_whatever_their_names(tmp_path, suffix, pack):
  path = tmp_path / 'text.txt'
  path.write_bytes(pack(TEXT.encode()))
  assert read(path) == (DOCUMENTS, {}), suffix
  assert read(f'{path};format=blank_line') == (DOCUMENTS, {})


def test_only_its_text_decides_whether_a_document_is_held_out():
  texts = [f'document {i}' for i in range(4000)]
  held = {text for text in texts if corpora.is_held_out(text, 0.1)}
  assert 300 < len(held) < 500
  assert held == {text for text in reversed(texts) if corpora.is_held_out(text, 0.1)}
  assert held <= {text for text in texts if corpora.is_held_out(text, 0.2)}
  assert not any(corpora.is_held_out(text, 0.0) for text in texts)
  assert all(corpora.is_held_out(text, 1.0) for text in texts)
  found = [i for i in range(100) if corpora.is_held_out(f'document {i}', 0.05)]
  assert found == [40, 70], 'the split must not change between versions'


def test_the_identity_changes_with_the_content_and_how_it_is_read(tmp_path):
  path, other = tmp_path / 'text.txt', tmp_path / 'other.txt'
  path.write_text('one')
  other.write_text('two')

  before = identity(path)
  assert identity(f'{tmp_path}/./text.txt') == before == identity(f'{path};weight=3'), (
    'the same text'
  )
  several = [
    identity(path, 'line'),
    identity('sample'),
    identity(f'{path},{other}'),
    identity(f'{other},{path}'),
    identity(f'{path};format=jsonl'),
    identity(f'{path};format=jsonl;field=body'),
  ]
  assert len({before, *several}) == 7
  path.write_text('six')
  os.utime(path, ns=(1, 1))
  assert identity(path) != before


def test_the_bundled_sample_is_as_documented():
  documents = list(corpora.read_documents('sample'))
  text = '\n\n'.join(documents)
  assert len(text.encode()) >= 4_000_000
  assert corpora.SAMPLE_PATH.stat().st_size <= 2_500_000
  assert len(documents) >= 150 and len(set(documents)) == len(documents)
  assert (
    5 <= sum(corpora.is_held_out(document, 0.05) for document in documents) <= len(documents) // 5
  )
  assert not set(text) & set('\0\t\r\u200b_'), 'clean text'
  attribution = pathlib.Path(corpora.SAMPLE_PATH).with_name('ATTRIBUTION.md').read_text('utf-8')
  assert 'CC BY 4.0' in attribution and f'{len(documents)} documents' in attribution
