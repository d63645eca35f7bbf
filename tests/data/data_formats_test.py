"""Documents of JSON lines and Parquet are one field of each record; errors name the place."""

import gzip
import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_reading import read, refusal
from hypothesis import given
from hypothesis import strategies as st

from electra_jax.data.corpus import corpora, parquet_footer

TEXTS = [
  'plain',
  'two\nparagraphs\n\nand a gap',
  '',
  'tab\tNUL\x00quote"\\',
  None,
  ' \n ',
  'é 漢字 🙂 \u2028',
]
KEPT = [text for text in TEXTS if text and text.strip()]


def jsonl(path, *lines):
  path.write_bytes(
    b'\n'.join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
  )
  return path


def parquet(path, columns, **kwargs):
  pq.write_table(pa.table(columns), path, **kwargs)
  return path


@pytest.mark.parametrize('ascii_only', [True, False])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\n\n'])
def test_json_lines(tmp_path, ascii_only, end):
  path = tmp_path / 'text.jsonl'
  lines = [
    json.dumps({'n': 1, 'text': text, 'body': {'inner': f'{i}'}}, ensure_ascii=ascii_only)
    for i, text in enumerate(TEXTS)
  ]
  path.write_bytes(b'\xef\xbb\xbf' + end.join(lines).encode())
  assert read(path) == (KEPT, {'blank_documents': 3})
  assert read(f'{path};field=body.inner') == (list('0123456'), {})
  path.with_suffix('.jsonl.gz').write_bytes(gzip.compress(path.read_bytes()))
  assert read(f'{path}.gz') == (KEPT, {'blank_documents': 3})


def test_json_strings_may_hold_control_characters(tmp_path):
  path = jsonl(tmp_path / 'a.jsonl', b'{"text": "a\x00b\tc"}', {'a.b': 'dotted', 'text': 'x'})
  assert read(path)[0] == ['a\0b\tc', 'x']
  path = jsonl(
    tmp_path / 'a.jsonl', {'a.b': 'dotted', 'a': {'b': 'nested'}}, {'a': {'b': 'nested'}}
  )
  assert read(f'{path};field=a.b')[0] == ['dotted', 'nested']


@pytest.mark.parametrize(
  'line, expected',
  [
    (b'{"text": "cut', "line 2 of the corpus file '{path}' is not valid JSON (Unterminated string"),
    (b'plain text', 'is not valid JSON'),
    (b'{"text": "a"} {"text": "b"}', 'is not valid JSON (Extra data'),
    (b'[' * 100_000, 'is not valid JSON'),
    (['text'], "line 2 of the corpus file '{path}' is a list, not a JSON object"),
    ('text', 'is a string, not a JSON'),
    (None, 'is null, not a JSON object'),
    (True, 'is a truth value'),
    (3.5, 'is a number'),
    (
      {'body': 'x', 'title': 'y'},
      "has no field 'text'; its fields are 'body', 'title'; name one with ;field=NAME",
    ),
    ({}, "has no field 'text'; its fields are none"),
    (
      {'text': 3},
      "line 2 of the corpus file '{path}' has a number in its field 'text', not a string",
    ),
    ({'text': ['a']}, "has a list in its field 'text'"),
    ({'text': {'a': 'b'}}, 'has an object'),
    (b'{"text": "caf\xe9"}', 'is not UTF-8 (byte 0xe9 on line 2, byte 30 of the text)'),
    (
      b'{"text": "\\ud83d and no more"}',
      "line 2 of the corpus file '{path}' has half a surrogate pair",
    ),
  ],
)
def test_a_wrong_json_line_is_named(tmp_path, line, expected):
  path = jsonl(tmp_path / 'text.jsonl', {'text': 'fine'}, line)
  assert expected.format(path=path) in refusal(path)


def test_wrong_characters_in_json_are_replaced_and_counted(tmp_path):
  path = jsonl(
    tmp_path / 'text.jsonl',
    b'{"text": "caf\xe9 \xff"}',
    b'{"text": "\\ud83d \\ud83d\\ude42"}',
    {'text': 'fine'},
  )
  assert read(path, invalid_utf8='replace') == (
    ['caf\ufffd \ufffd', '\ufffd 🙂', 'fine'],
    {'replaced_bytes': 3, 'documents_with_replacements': 2},
  )


@pytest.mark.parametrize(
  'kind',
  [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.dictionary(pa.int32(), pa.string()),
  ],
  ids=str,
)
def test_parquet(tmp_path, kind):
  column = (
    pa.array(TEXTS * 100, pa.string()).cast(kind)
    if kind != pa.string_view()
    else pa.array(TEXTS * 100, kind)
  )
  path = parquet(
    tmp_path / 'text.parquet', {'n': list(range(700)), 'text': column}, row_group_size=130
  )
  assert read(path) == (KEPT * 100, {'blank_documents': 300})


def test_parquet_at_an_address_and_in_structures(tmp_path):
  documents = [{'body': 'a', 'n': 1}, None, {'body': None, 'n': 2}]
  path = parquet(tmp_path / 'text.parquet', {'doc': documents, 'x.y': ['1', '2', '3']})
  assert read(f'{path};field=doc.body') == (['a'], {'blank_documents': 2})
  assert read(f'{path};field=x.y')[0] == ['1', '2', '3']
  system = fsspec.filesystem('memory')
  system.pipe_file('/parquet/a.parquet', path.read_bytes())
  try:
    assert read('memory://parquet/*.parquet;field=x.y')[0] == ['1', '2', '3']
    system.pipe_file('/parquet/a.parquet', path.read_bytes()[:-20])
    assert 'is not a Parquet file, damaged or cut short' in refusal(
      'memory://parquet/*.parquet;field=x.y'
    )
  finally:
    system.rm('/parquet', recursive=True)


def test_only_a_part_of_the_chosen_column_is_in_memory(tmp_path):
  texts = [f'{i:07}' * 300 for i in range(10_000)]
  path = parquet(
    tmp_path / 'big.parquet',
    {'text': texts, 'other': texts},
    compression='none',
    use_dictionary=False,
  )
  assert path.stat().st_size > 40_000_000
  del texts
  pool = pa.default_memory_pool()
  before, peak, number = pool.bytes_allocated(), 0, 0
  for _ in corpora.read_documents(path):
    number += 1
    peak = max(peak, pool.bytes_allocated() - before)
  assert number == 10_000 and peak < 12_000_000


@pytest.mark.parametrize(
  'options',
  [
    {'row_group_size': 300},
    {'use_dictionary': False, 'column_encoding': {'text': 'DELTA_BYTE_ARRAY', 's.x': 'PLAIN'}},
    {'compression': 'zstd', 'write_statistics': False, 'write_page_index': True},
  ],
)
def test_the_footer_of_a_parquet_file_says_what_pyarrow_says(options):
  file = io.BytesIO()
  columns = {'text': ['a' * i for i in range(1000)], 's': [{'x': str(i)} for i in range(1000)]}
  pq.write_table(pa.table(columns), file, **options)
  metadata = pq.ParquetFile(file).metadata
  groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
  expected = [
    [
      (
        column.path_in_schema,
        column.total_uncompressed_size,
        column.dictionary_page_offset if column.has_dictionary_page else None,
        'DELTA_BYTE_ARRAY' in column.encodings,
      )
      for column in map(group.column, range(group.num_columns))
    ]
    for group in groups
  ]
  assert [list(map(tuple, g)) for g in parquet_footer.column_chunks(file)] == expected


@given(st.data())
def test_a_damaged_footer_is_a_value_error(data):
  """pyarrow itself ends the process for some of them."""
  file = io.BytesIO()
  pq.write_table(pa.table({'text': ['a text', 'another'] * 30}), file, compression='zstd')
  content = bytearray(file.getvalue())
  for _ in range(data.draw(st.integers(1, 3))):
    place = data.draw(st.integers(len(content) // 2, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
  try:
    found = parquet_footer.column_chunks(io.BytesIO(content))
  except ValueError as error:
    assert 'footer' in str(error)
  else:
    assert all(isinstance(chunk.expanded, int) for group in found for chunk in group)


def test_a_parquet_file_may_have_no_rows(tmp_path):
  assert read(parquet(tmp_path / 'none.parquet', {'text': pa.array([], pa.string())})) == ([], {})


def test_errors_in_parquet_are_named(tmp_path):
  path = parquet(tmp_path / 'a.parquet', {'title': ['x'], 'by': ['z'], 'n': [1], 'parts': [['y']]})
  assert (
    f"{path}' has no column 'text'; its columns are 'title', 'by', 'n', 'parts'; name one with ;"
    in refusal(path)
  )
  assert "the column 'n' of" in refusal(f'{path};field=n') and "of text are 'title'" in refusal(
    f'{path};field=n'
  )
  assert 'holds list<' in refusal(f'{path};field=parts')
  path = parquet(tmp_path / 'a.parquet', {'text': pa.array([b'fine', b'caf\xe9'], pa.binary())})
  assert 'row 2 of the corpus file' in refusal(path) and 'is not UTF-8' in refusal(path)
  assert read(path, invalid_utf8='replace') == (
    ['fine', 'caf\ufffd'],
    {'replaced_bytes': 1, 'documents_with_replacements': 1},
  )


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[: len(content) // 2],
    lambda content: content[:-1],
    lambda content: b'no such thing' * 9,
    lambda content: b'',
    lambda content: content[:200] + bytes(200) + content[400:],
  ],
)
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
  path = parquet(
    tmp_path / 'a.parquet', {'text': [f'text {i}' for i in range(500)]}, write_page_checksum=True
  )
  path.write_bytes(damage(path.read_bytes()))
  assert "a.parquet' is not a Parquet file, damaged or cut short" in refusal(path)
