"""Documents come out of every kind of file whole and in order, and what cannot be read is named in one sentence."""

import bz2
import gzip
import lzma
import pathlib
import tracemalloc

import pytest

from electra_jax.config import UserError
from electra_jax.data import corpora

TEXT = 'First paragraph.\nSecond, with é.\n\n\n \nAnother document.\r\n\nThird\u2028one\x0cand\x00more.\n'
COMPRESSED = [('.gz', gzip.compress), ('.xz', lzma.compress), ('.bz2', bz2.compress)]
DOCUMENTS = ['First paragraph.\nSecond, with é.', 'Another document.', 'Third\u2028one\x0cand\x00more.']


def _read(source, **kwargs):
  return list(corpora.documents(source, **kwargs))


def _message(source, **kwargs):
  with pytest.raises(UserError) as caught:
    _read(source, **kwargs)
  message = str(caught.value)
  assert '\n' not in message
  return message


@pytest.mark.parametrize('suffix, pack', [('', bytes), *COMPRESSED])
def test_plain_and_compressed_files_give_the_same_documents(tmp_path, suffix, pack):
  path = tmp_path / f'text.txt{suffix}'
  path.write_bytes(pack(TEXT.encode()))
  assert _read(path) == DOCUMENTS
  assert _read([str(path)]) == DOCUMENTS


def test_document_formats(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(TEXT.encode())
  assert _read(path, document_format='line') == ['First paragraph.', 'Second, with é.', *DOCUMENTS[1:]]
  (whole,) = _read(path, document_format='file')
  assert whole.split() == TEXT.split() and 'Second, with é.\n\n' in whole
  assert "'blank_line', 'line', 'file'" in _message(path, document_format='lines')


def test_a_glob_a_list_and_an_overlap_give_each_file_once_in_sorted_order(tmp_path):
  for name in ('b.txt', 'a.txt', 'c.md'):
    (tmp_path / name).write_text(f'document {name}')
  assert _read(f'{tmp_path}/*.txt') == ['document a.txt', 'document b.txt']
  several = _read([f'{tmp_path}/*.txt', tmp_path / 'c.md', tmp_path / 'a.txt'])
  assert several == ['document a.txt', 'document b.txt', 'document c.md']


def test_a_byte_order_mark_is_no_text(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(b'\xef\xbb\xbfHello\n')
  assert _read(path) == ['Hello']


def test_a_line_of_five_megabytes_is_one_paragraph(tmp_path):
  path = tmp_path / 'long.txt'
  path.write_text('x' * 5_000_000 + '\nnext')
  assert [len(document) for document in _read(path)] == [5_000_005]


def test_memory_stays_flat(tmp_path):
  path = tmp_path / 'text.txt.gz'
  path.write_bytes(gzip.compress((('word ' * 400 + '\n\n') * 10_000).encode(), 1))
  tracemalloc.start()
  count = sum(1 for _ in corpora.documents(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert count == 10_000
  assert peak < 3_000_000, 'the text is 20 MB'


def test_advance_counts_the_bytes_of_the_files(tmp_path):
  for i in range(3):
    (tmp_path / f'{i}.txt.gz').write_bytes(gzip.compress(TEXT.encode()))
  read = []
  _read(f'{tmp_path}/*.gz', advance=read.append)
  assert sum(read) == corpora.corpus_bytes(f'{tmp_path}/*.gz') > 0


def test_what_is_missing_is_named(tmp_path):
  assert f"{tmp_path}/none.txt' does not exist" in _message(f'{tmp_path}/none.txt')
  assert f"{tmp_path}/*.txt' matches no file" in _message(f'{tmp_path}/*.txt')
  assert f"{tmp_path}' is a folder" in _message(tmp_path)
  assert 'source is empty' in _message([])


def test_an_empty_corpus_is_named(tmp_path):
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'blank.txt').write_text('\n \n\t\n')
  assert 'empty.txt' in _message(tmp_path / 'empty.txt')
  assert 'the corpus is empty' in _message(f'{tmp_path}/*.txt')


def test_what_is_not_utf8_is_named_with_its_place(tmp_path):
  path = tmp_path / 'latin.txt'
  path.write_bytes('one\ntwo café\n'.encode('latin-1'))
  message = _message(path)
  assert 'latin.txt' in message and '0xe9 on line 2, byte 11 of the text' in message


@pytest.mark.parametrize('suffix, pack', COMPRESSED)
def test_a_damaged_file_is_named(tmp_path, suffix, pack):
  content = pack(('Some text to compress, which is long enough.\n' * 500).encode())
  flipped = content[:-5] + bytes([content[-5] ^ 0xFF]) + content[-4:]
  for name, broken in (('cut', content[: len(content) // 2]), ('foreign', b'no such thing'), ('flipped', flipped)):
    path = tmp_path / f'{name}.txt{suffix}'
    path.write_bytes(broken)
    message = _message(path)
    assert path.name in message and 'damaged or cut short' in message


def test_the_held_out_split_goes_by_text_alone():
  texts = [f'document {i}' for i in range(4000)]
  held = {text for text in texts if corpora.is_held_out(text, 0.1)}
  assert 300 < len(held) < 500
  assert held == {text for text in reversed(texts) if corpora.is_held_out(text, 0.1)}
  assert held <= {text for text in texts if corpora.is_held_out(text, 0.2)}
  assert not any(corpora.is_held_out(text, 0.0) for text in texts)
  assert all(corpora.is_held_out(text, 1.0) for text in texts)
  assert not corpora.is_held_out('document 0', 0.05), 'the split must never change between versions'
  assert corpora.is_held_out('document 40', 0.05), 'the split must never change between versions'


def test_the_identity_follows_the_content(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text('one')
  before = corpora.corpus_identity(path)
  assert corpora.corpus_identity([path]) == before
  path.write_text('other')
  assert corpora.corpus_identity(path) != before != corpora.corpus_identity('sample')


def test_the_bundled_sample_is_what_the_readme_promises():
  documents = _read('sample')
  text = '\n\n'.join(documents)
  assert len(text.encode()) >= 4_000_000
  assert corpora.SAMPLE_PATH.stat().st_size <= 2_500_000
  assert len(documents) >= 150 and len(set(documents)) == len(documents)
  assert 5 <= sum(corpora.is_held_out(document, 0.05) for document in documents) <= len(documents) // 5
  assert not set(text) & set('\0\t\r\u200b_'), 'clean text'
  attribution = pathlib.Path(corpora.SAMPLE_PATH).with_name('ATTRIBUTION.md').read_text('utf-8')
  assert 'CC BY 4.0' in attribution and f'{len(documents)} documents' in attribution
