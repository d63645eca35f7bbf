"""The content of a file decides how it is read; what is no corpus is refused or skipped by name."""

import csv
import gzip
import io
import json
import pathlib
import pickle
import sqlite3
import tarfile
import zipfile

import fsspec
import fsspec.implementations.dirfs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_reading import read, refusal

from electra_jax import input_limits
from electra_jax.data.corpus import corpora, file_kinds

TEXTS = ['First, "quoted" text.', 'Second\ntext, of two lines.', 'Third: é 漢字.']
LINES = ''.join(json.dumps({'text': text}) + '\n' for text in TEXTS).encode()


def table(**columns):
  return pa.table({name: pa.array(values) for name, values in columns.items()})


def parquet_bytes(texts=TEXTS, column='text'):
  buffer = io.BytesIO()
  pq.write_table(table(**{column: texts}), buffer)
  return buffer.getvalue()


def arrow_bytes(texts=TEXTS, column='text', stream=True, rows=2):
  sink = io.BytesIO()
  content = table(id=list(range(len(texts))), **{column: texts})
  writer = pa.ipc.new_stream if stream else pa.ipc.new_file
  with writer(sink, content.schema) as out:
    out.write_table(content, max_chunksize=rows)
  return sink.getvalue()


def csv_bytes(delimiter=',', header=('id', 'text')):
  out = io.StringIO()
  writer = csv.writer(out, delimiter=delimiter)
  writer.writerow(header)
  writer.writerows([i, text] for i, text in enumerate(TEXTS))
  return out.getvalue().encode()


def sqlite_bytes(folder):
  path = folder / 'made.db'
  with sqlite3.connect(path) as database:
    database.execute('create table a (b text)')
  content = path.read_bytes()
  path.unlink()
  return content


def npy_bytes():
  out = io.BytesIO()
  np.save(out, np.arange(10))
  return out.getvalue()


def npz_bytes():
  out = io.BytesIO()
  np.savez(out, a=np.arange(10))
  return out.getvalue()


def notes(source):
  return corpora.notes(corpora.parse_sources(str(source)))


CONTENTS = {
  'JSON lines': LINES,
  'gzip': gzip.compress(LINES),
  'Parquet': parquet_bytes(),
  'Arrow stream': arrow_bytes(),
  'Arrow file': arrow_bytes(stream=False),
}


@pytest.mark.parametrize('name', ['a.txt', 'a.data', 'a', 'a.jsonl', 'a.json', 'a.csv'])
@pytest.mark.parametrize('content', CONTENTS.values(), ids=CONTENTS)
def test_the_content_decides_whatever_the_name(tmp_path, content, name):
  path = tmp_path / name
  path.write_bytes(content)
  if name == 'a.csv' and content in (CONTENTS['JSON lines'], CONTENTS['gzip']):
    return  # text, which is read as its name says
  assert read(path)[0] == TEXTS


def test_prose_that_begins_as_data_does_is_text(tmp_path):
  for number, text in enumerate(
    ('{curly} prose', 'ORCs and elves', 'ID3 is a tag', '{"a": 1} is JSON\nand this is not', '[1]')
  ):
    path = tmp_path / f'{number}.txt'
    path.write_text(text)
    assert read(path)[0] == [text]


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
def test_delimiters_quotes_and_line_breaks_of_csv(tmp_path, delimiter):
  path = tmp_path / 'a.csv'
  path.write_bytes(b'\xef\xbb\xbf' + csv_bytes(delimiter))
  assert read(path)[0] == TEXTS
  (tmp_path / 'a.csv.gz').write_bytes(gzip.compress(path.read_bytes().replace(b'\n', b'\r\n')))
  assert read(tmp_path / 'a.csv.gz')[0] == TEXTS
  (tmp_path / 'a.tsv').write_bytes(csv_bytes('\t'))
  assert read(tmp_path / 'a.tsv')[0] == TEXTS


def test_options_of_csv(tmp_path):
  path = tmp_path / 'a.tsv'
  path.write_text('1\tsays "hi\n2\tb, c\n')
  assert read(f'{path};header=no;quotes=no;field=2')[0] == ['says "hi', 'b, c']
  path = tmp_path / 'a.data'
  path.write_text('id;text\n1;a, b\n')
  assert read(f'{path};format=csv')[0] == ['a, b']
  assert 'has 2 fields, and the first has 1' in refusal(f'{path};format=csv;delimiter=comma')
  path.write_text('one\n')
  assert read(f'{path};format=csv;header=no') == (['one'], {})


@pytest.mark.parametrize(
  'content, expected',
  [
    ('id,text\n1,a\n2\n', 'record that ends on line 3 of'),
    ('id,text\n1,a,b\n', 'has 3 fields, and the first has 2; repair it, or set ;quotes=no'),
    ('id,text\n1,"open\n', 'is not valid CSV (unexpected end of data)'),
    ('id,text\n1,"a"b\n', 'is not valid CSV'),
    ('id,title,by\n1,a,b\n', "has no column 'text'; its columns are 'id', 'title', 'by'"),
  ],
)
def test_wrong_csv_is_named(tmp_path, content, expected):
  (tmp_path / 'a.csv').write_text(content)
  assert expected in refusal(tmp_path / 'a.csv')


@pytest.mark.parametrize(
  'name, content',
  [
    ('a.parquet', parquet_bytes(column='content')),
    ('a.arrow', arrow_bytes(column='content')),
    ('a.jsonl', LINES.replace(b'"text"', b'"content"')),
    ('a.csv', csv_bytes(header=('id', 'content'))),
  ],
)
def test_the_column_of_texts_is_detected_and_printed(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  assert read(path)[0] == TEXTS
  assert notes(path) == [('column', f"'content' of {path}")]
  assert read(f'{path};field=content')[0] == TEXTS
  assert notes(f'{path};field=content') == []
  assert "'text'" in refusal(f'{path};field=text') and 'content' in refusal(f'{path};field=text')


def test_the_only_column_of_text_is_read_and_one_of_several_is_not(tmp_path):
  path = tmp_path / 'a.parquet'
  path.write_bytes(parquet_bytes(column='poem'))
  assert read(path)[0] == TEXTS
  pq.write_table(table(poem=TEXTS, poet=TEXTS), path)
  assert "its columns are 'poem', 'poet'; name one with ;field=NAME" in refusal(path)


BINARY = {
  'a PDF document': b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n',
  'a PNG image': b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR',
  'a JPEG image': b'\xff\xd8\xff\xe0\0\x10JFIF',
  'a pickle of Python': pickle.dumps(['text']),
  'a NumPy array (.npy)': npy_bytes(),
  'NumPy arrays (.npz)': npz_bytes(),
  'an ELF program or library': b'\x7fELF\x02\x01\x01' + bytes(9),
  'an HDF5 file': b'\x89HDF\r\n\x1a\n' + bytes(8),
  'a 7z archive': b'7z\xbc\xaf\x27\x1c\0\x04',
  'an ORC file': b'ORC\x11\0\0\x0a',
  'an Avro file': b'Obj\x01\x04\x16avro.schema',
  'UTF-16 text': 'Text, and more.'.encode('utf-16'),
  'UTF-16LE text': 'Text, and more of it.é'.encode('utf-16-le') + '漢'.encode('utf-16-le'),
  'UTF-32 text': 'Text'.encode('utf-32'),
  'binary data of an unknown type': np.random.default_rng(0).bytes(4096),
}


@pytest.mark.parametrize('kind', BINARY)
def test_other_files_are_refused_with_their_type(tmp_path, kind):
  path = tmp_path / 'a.txt'
  path.write_bytes(BINARY[kind])
  sentence = refusal(path, invalid_utf8='replace')
  assert f"'{path}' is {kind}" in sentence
  assert ('iconv' if kind.startswith('UTF') else 'not text; expected text, JSON lines') in sentence
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(BINARY[kind]))
  assert kind in refusal(tmp_path / 'b.jsonl.gz')


def test_an_sqlite_database_and_office_documents_are_named(tmp_path):
  (tmp_path / 'a.txt').write_bytes(sqlite_bytes(tmp_path))
  assert 'is an SQLite database' in refusal(tmp_path / 'a.txt')
  with zipfile.ZipFile(tmp_path / 'a.docx', 'w') as archive:
    archive.writestr('[Content_Types].xml', '<Types/>')
  assert 'is a document of Microsoft Office' in refusal(tmp_path / 'a.docx')


@pytest.mark.parametrize(
  'text, encoding',
  [
    ('これは日本語の文章です。漢字とかな。', 'SHIFT_JIS'),
    ('これは日本語の文章です。漢字とかな。', 'EUC-JP'),
    ('这是一个中文句子，有几个汉字。', 'GB18030'),
  ],
)
def test_the_likely_encoding_is_named(tmp_path, text, encoding):
  path = tmp_path / 'a.txt'
  path.write_bytes(text.encode(encoding))
  assert f'probably {encoding}' in refusal(path)
  assert file_kinds.encoding_of('café'.encode('latin-1')) == ''
  (tmp_path / 'b.txt').write_bytes('café'.encode('latin-1'))
  assert read(tmp_path / 'b.txt', invalid_utf8='replace')[1]['replaced_bytes'] == 1


#### Folders ####


def mixed_folder(folder):
  (folder / 'deep' / 'er').mkdir(parents=True)
  (folder / '.hidden.txt').write_text('hidden')
  (folder / 'a.jsonl').write_bytes(LINES)
  (folder / 'deep' / 'b.parquet').write_bytes(parquet_bytes(['parquet']))
  (folder / 'deep' / 'er' / 'c.txt').write_text('prose')
  (folder / 'deep' / 'photo.png').write_bytes(BINARY['a PNG image'])
  (folder / 'paper.pdf').write_bytes(BINARY['a PDF document'])
  (folder / 'README.md').write_text('about')
  (folder / 'empty').write_text('')
  return folder


def test_a_folder_is_read_and_what_is_skipped_is_counted_and_named(tmp_path):
  folder = mixed_folder(tmp_path)
  assert read(folder)[0] == [*TEXTS, 'parquet', 'prose']
  found = {
    text.split(', ', 1)[-1].split(': ')[0]: text
    for label, text in notes(folder)
    if label == 'skipped'
  }
  assert set(found) == {'a PNG image', 'a PDF document', 'a text about the data'}
  assert 'deep/photo.png' in found['a PNG image']
  (counted,) = corpora.skipped_files(corpora.parse_sources(str(folder)))
  assert counted == dict.fromkeys(found, 1)


def test_a_folder_without_a_corpus_is_refused(tmp_path):
  (tmp_path / 'paper.pdf').write_bytes(BINARY['a PDF document'])
  assert 'holds no corpus: 1 times a PDF document' in refusal(tmp_path)


def test_a_folder_at_an_address_is_read(tmp_path):
  mixed_folder(tmp_path)
  system = fsspec.filesystem('memory')
  system.put(f'{tmp_path}/', '/mixed/', recursive=True)
  try:
    assert read('memory://mixed')[0] == [*TEXTS, 'parquet', 'prose']
  finally:
    system.rm('/mixed', recursive=True)


def test_a_dataset_of_the_hub_is_read_through_its_file_system(tmp_path, monkeypatch):
  """The file system of huggingface_hub is replaced by a folder: no request is made."""

  class Hub(fsspec.implementations.dirfs.DirFileSystem):
    protocol = 'hf'

    def __init__(self, **_):
      super().__init__(str(tmp_path), fsspec.filesystem('file'))

    @classmethod
    def _strip_protocol(cls, path):
      return path.removeprefix('hf://').rstrip('/')

  def missing(*_):
    raise ImportError

  place = tmp_path / 'datasets' / 'org' / 'name@v1' / 'data'
  place.mkdir(parents=True)
  (place / 'train-0.parquet').write_bytes(parquet_bytes())
  (place.parent / 'README.md').write_text('# about')
  before = fsspec.get_filesystem_class('hf')
  fsspec.register_implementation('hf', Hub, clobber=True)
  try:
    for source in ('hf://datasets/org/name@v1/data/train-*.parquet', 'hf://datasets/org/name@v1'):
      assert read(source)[0] == TEXTS
    monkeypatch.setattr(fsspec.core, 'url_to_fs', missing)
    sentence = refusal('hf://datasets/org/name@v1')
    assert 'needs huggingface_hub, which is not installed; pip install huggingface_hub' in sentence
  finally:
    fsspec.register_implementation('hf', before, clobber=True)


#### Folders of datasets.save_to_disk ####

MADE = pathlib.Path(__file__).with_name('made_by_datasets')


def saved(folder, shards, indices=None, state=None):
  folder.mkdir(parents=True)
  names = [f'data-{i:05d}-of-{len(shards):05d}.arrow' for i in range(len(shards))]
  for name, texts in zip(names, shards, strict=True):
    (folder / name).write_bytes(arrow_bytes(texts))
  content = {'_data_files': [{'filename': name} for name in names]} | (state or {})
  if indices is not None:
    sink = io.BytesIO()
    rows = pa.table({'indices': pa.array(indices, pa.uint64())})
    with pa.ipc.new_stream(sink, rows.schema) as out:
      out.write_table(rows)
    (folder / 'indices.arrow').write_bytes(sink.getvalue())
    content['_indices_data_files'] = [{'filename': 'indices.arrow'}]
  (folder / 'state.json').write_text(json.dumps(content))
  (folder / 'dataset_info.json').write_text('{}')
  return folder


def test_shards_are_read_in_the_order_of_the_state(tmp_path):
  shards = [['a', 'b', None], ['c'], ['d', ' ']]
  assert read(saved(tmp_path / 'set', shards)) == (['a', 'b', 'c', 'd'], {'blank_documents': 2})
  assert "has no column 'body'" in refusal(f'{tmp_path}/set;field=body')
  assert 'has no splits; leave out ;split=train' in refusal(f'{tmp_path}/set;split=train')


def test_rows_that_were_selected_are_read_in_their_order(tmp_path):
  folder = saved(tmp_path / 'set', [['a', 'b'], ['c'], ['d', 'e']], indices=[4, 0, 2, 2])
  assert read(folder)[0] == ['e', 'a', 'c', 'c']
  folder = saved(tmp_path / 'bad', [['a']], indices=[1])
  assert 'selects row 1 of 1' in refusal(folder)


def test_splits_of_a_dataset_dict(tmp_path):
  saved(tmp_path / 'dict' / 'train', [['a']])
  saved(tmp_path / 'dict' / 'test', [['b']])
  (tmp_path / 'dict' / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')
  assert read(tmp_path / 'dict')[0] == ['a']
  assert read(f'{tmp_path}/dict;split=test')[0] == ['b']
  assert read(f'{tmp_path}/dict;split=test+train')[0] == ['b', 'a']
  assert "has the splits 'train', 'test'" in refusal(f'{tmp_path}/dict;split=dev')
  assert 'dict train' in corpora.groups(corpora.parse_sources(f'{tmp_path}/dict'))[
    0
  ].source.spec.describe(corpora.groups(corpora.parse_sources(f'{tmp_path}/dict'))[0].source)


def test_a_state_that_names_a_file_elsewhere_is_refused(tmp_path):
  state = {'_data_files': [{'filename': '../secret.arrow'}]}
  assert 'expected files inside of its folder' in refusal(
    saved(tmp_path / 'a', [['a']], state=state)
  )


def test_a_dataset_that_lists_nothing_is_refused(tmp_path):
  assert 'lists no data files; save the dataset again' in refusal(saved(tmp_path / 'a', []))
  (tmp_path / 'a' / 'dataset_dict.json').write_text('{"splits": []}')
  assert 'lists no splits; save the dataset again' in refusal(tmp_path / 'a')
  (tmp_path / 'a' / 'dataset_dict.json').write_text('{"splits": ["../b"]}')
  assert 'expected files inside of its folder' in refusal(tmp_path / 'a')


def test_what_the_datasets_library_wrote_is_read():
  """Made by datasets 5.2.0: three shards of shuffled rows, and a dictionary of two splits."""
  expected = json.loads((MADE / 'expected.json').read_text())
  assert read(MADE / 'shuffled')[0] == expected['shuffled']
  assert read(f'{MADE}/dict;split=train')[0] == expected['train']
  assert read(f'{MADE}/dict;split=test')[0] == expected['test']


#### Archives ####


def zipped(path, members, **kwargs):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, **kwargs) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return path


def tarred(path, members, mode='w', kind=tarfile.REGTYPE):
  with tarfile.open(path, mode) as archive:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content) if kind == tarfile.REGTYPE else 0
      info.type = kind
      archive.addfile(info, io.BytesIO(content))
  return path


MEMBERS = [
  ('z/last.txt', b'One.\n\nTwo.'),
  ('z/.hidden', b'hidden'),
  ('README', b'about'),
  ('a.jsonl', LINES),
  ('b.csv.gz', gzip.compress(csv_bytes(header=('id', 'content')))),
  ('c.parquet', parquet_bytes(['parquet'], 'body')),
  ('d.arrow', arrow_bytes(['arrow', None])),
  ('photo.png', b'\x89PNG\r\n\x1a\n\0\0'),
]


@pytest.mark.parametrize('name', ['a.zip', 'a.tar', 'a.tar.gz', 'a.tgz', 'a.tar.xz', 'a.data'])
def test_members_of_archives_are_read_in_their_order(tmp_path, name):
  if 'zip' in name:
    path = zipped(tmp_path / name, MEMBERS)
  else:
    modes = {'.gz': 'w:gz', '.tgz': 'w:gz', '.xz': 'w:xz'}
    path = tarred(tmp_path / name, MEMBERS, modes.get(pathlib.Path(name).suffix, 'w'))
  texts, counts = read(path)
  assert texts == ['One.', 'Two.', *TEXTS, *TEXTS, 'parquet', 'arrow']
  assert counts['skipped: a PNG image'] == counts['skipped: a text about the data'] == 1
  assert read(f'{path};documents=file')[0][0] == 'One.\n\nTwo.'
  assert 'has no column' in refusal(f'{path};field=content') or 'no field' in refusal(
    f'{path};field=content'
  )


@pytest.mark.parametrize('name', ['../a.txt', '/a.txt', 'a/../../b.txt', 'C:/a.txt', '..\\a.txt'])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
  for path in (
    zipped(tmp_path / 'a.zip', [(name, b'text')]),
    tarred(tmp_path / 'a.tar', [(name, b'text')]),
  ):
    assert 'has a name that leads out of the archive' in refusal(path)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path, kind):
  assert 'is a link or a device' in refusal(tarred(tmp_path / 'a.tar', [('a', b'')], kind=kind))
  info = zipfile.ZipInfo('link')
  info.external_attr = 0o120777 << 16
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    archive.writestr(info, '/etc/passwd')
  assert 'is a link or a device' in refusal(tmp_path / 'a.zip')


def test_a_compression_that_python_does_not_read_is_named_and_not_called_damage(tmp_path):
  path = zipped(tmp_path / 'a.zip', [('a.txt', b'text')])
  content = bytearray(path.read_bytes())
  # The method, two bytes, in the header of the member and in the directory; 97 is WavPack.
  for header, place in ((b'PK\x03\x04', 8), (b'PK\x01\x02', 10)):
    start = content.index(header) + place
    content[start : start + 2] = (97).to_bytes(2, 'little')
  path.write_bytes(content)
  sentence = refusal(path)
  assert 'deflate, bzip2 or LZMA' in sentence and 'damaged' not in sentence


def test_archives_may_not_expand_without_end(tmp_path, monkeypatch):
  monkeypatch.setattr(input_limits, 'FREE_BYTES', 1 << 16)
  monkeypatch.setattr(input_limits, 'EXPANSION', 20)
  long = b'a\n' * 1_000_000
  for path in (
    zipped(tmp_path / 'a.zip', [('a.txt', long)]),
    tarred(tmp_path / 'a.tar.gz', [('a.txt', long)], 'w:gz'),
  ):
    assert 'expands to more than 20 times' in refusal(path)


def test_damaged_archives_are_named(tmp_path):
  path = zipped(tmp_path / 'a.zip', MEMBERS)
  path.write_bytes(path.read_bytes()[:-30])
  assert "a.zip' is damaged or cut short" in refusal(path)
  path = tarred(tmp_path / 'a.tar', MEMBERS)
  path.write_bytes(path.read_bytes()[:2000])
  assert 'damaged or cut short' in refusal(path)
  assert 'is a zip archive in an archive' not in str(
    read(zipped(tmp_path / 'b.zip', [('inner.zip', path.read_bytes()), ('a.txt', b'a')]))
  )


@pytest.mark.parametrize('stream', [True, False])
def test_a_damaged_arrow_file_is_named(tmp_path, stream):
  path = tmp_path / 'a.arrow'
  content = arrow_bytes([f'text {i}' for i in range(300)], stream=stream, rows=100)
  for number, damaged in enumerate(
    (
      content[: len(content) // 2],
      content[:9],
      content[:40] + bytes(200) + content[240:],
      content[:-2000] + b'\xff' * 2000,
      b'no such thing' * 9,
    )
  ):
    path.write_bytes(damaged)
    try:
      texts, _ = read(path)
    except Exception as error:
      assert "a.arrow' is not an Arrow file, damaged or cut short" in str(error), number
    else:  # what is behind the last batch is not read
      assert texts[:100] == [f'text {i}' for i in range(100)]
