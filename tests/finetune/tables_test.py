"""Tables of examples are read completely; errors name the file and the line."""

import gzip
import io
import lzma
import sys
import types

import pytest

from electra_jax.errors import UserError
from electra_jax.finetune.tasks import tables


@pytest.fixture
def table(tmp_path):
  def write(content, name='t.tsv'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)

  return write


@pytest.fixture
def standard_input(monkeypatch):
  return lambda text: monkeypatch.setattr(
    sys, 'stdin', types.SimpleNamespace(buffer=io.BytesIO(text.encode()))
  )


def values(*arguments, **options):
  return [(row.line, *row.values.values()) for row in tables.read_table(*arguments, **options)]


def message(*arguments, **options):
  with pytest.raises(UserError) as caught:
    tables.read_table(*arguments, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_tsv_has_no_quotes_and_one_row_per_line(table):
  path = table('text\tlabel\nhe said "no\t1\r\n\n"so"\x0b and\u2028so\t0')
  assert values(path) == [(2, 'he said "no', '1'), (4, '"so"\x0b and\u2028so', '0')]
  assert values(table('a\tb\nc\td\n'), columns=('x', 'y'), header=False) == [
    (1, 'a', 'b'),
    (2, 'c', 'd'),
  ]


def test_a_byte_order_mark_is_ignored(table):
  assert tables.read_table(table(b'\xef\xbb\xbftext\tlabel\na\tb\n'))[0].values == {
    'text': 'a',
    'label': 'b',
  }


@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_csv_has_quotes_with_line_ends_and_any_common_separator(table, separator):
  path = table(
    f'text{separator}label\r\n"a {separator} ""b""\r\nc"{separator}1\r\nd{separator}0\r\n', 't.csv'
  )
  assert values(path) == [(2, f'a {separator} "b"\r\nc', '1'), (4, 'd', '0')]


def test_a_long_text_is_read_from_csv(table):
  assert values(table(f'text,label\n{"x" * 500_000},1\n', 't.csv')) == [(2, 'x' * 500_000, '1')]


def test_json_keeps_its_types_and_lines(table):
  lines = table('{"text": "a", "label": 1}\n\n{"text": "b", "label": [true, null]}\n', 't.jsonl')
  assert values(lines) == [(1, 'a', 1), (3, 'b', [True, None])]
  document = table(
    ' [\n {"text": "a", "label": 1},\n\n {"text": "b",\n  "label": 2.5} ]\n', 't.json'
  )
  assert values(document) == [(2, 'a', 1), (4, 'b', 2.5)]


def test_half_of_a_surrogate_pair_becomes_a_character_that_files_can_hold(table):
  lines = '{"text": "a\\ud83d b \\ud83d\\ude00", "label": {"\\udc00": ["\\uD800"]}}'
  expected = [(1, 'a\ufffd b \U0001f600', {'\ufffd': ['\ufffd']})]
  assert values(table(lines + '\n', 't.jsonl')) == expected
  assert values(table(f'[{lines}]', 't.json')) == expected


@pytest.mark.parametrize('suffix, compress', [('.gz', gzip.compress), ('.xz', lzma.compress)])
def test_compressed_tables_are_read(table, suffix, compress):
  content = b'text\tlabel\na\t1\n'
  assert values(table(compress(content), f't.tsv{suffix}')) == [(2, 'a', '1')]
  assert 'cannot be read' in message(table(compress(content)[:-6], f'short.tsv{suffix}'))
  assert 'cannot be read' in message(table(content, f'other.tsv{suffix}'))


@pytest.mark.parametrize('text', ['text\tlabel\na\t1\n', '{"text": "a", "label": "1"}\n'])
def test_standard_input_is_tsv_or_json_lines(standard_input, text):
  standard_input(text)
  assert [row.values for row in tables.read_table('-')] == [{'text': 'a', 'label': '1'}]
  standard_input('')
  assert message('-') == 'standard input is empty; expected a header and rows'


def test_a_table_at_an_address_is_read():
  import fsspec

  with fsspec.open('memory://tables/t.tsv', 'wb') as file:
    file.write(b'text\tlabel\na\t1\n')
  assert values('memory://tables/t.tsv') == [(2, 'a', '1')]
  assert 'memory://tables/no.tsv' in message('memory://tables/no.tsv')


def test_malformed_lines_are_skipped_only_if_they_are_counted(table):
  path = table('a\tb\n1\t2\n3\n4\t5\t6\n7\t8\n')
  broken = []
  assert values(path, broken=broken) == [(2, '1', '2'), (5, '7', '8')] and broken == [3, 4]
  assert f'line 3 of the file {path!r} has 1 fields; expected 2 as in the header' in message(path)


def test_only_the_kept_columns_are_in_rows(table):
  rows = tables.parse_table('a\tb\tc\n1\t2\t3\n', 'x', 'tsv', keep=('c', 'a', 'z'))
  assert rows == [tables.Row(2, {'a': '1', 'c': '3'})]


@pytest.mark.parametrize(
  'content, name, expected',
  [
    ('', 't.tsv', 'is empty; expected a header and rows'),
    ('text\tlabel\n', 't.tsv', 'has no rows; expected at least one below its header'),
    ('\n', 't.jsonl', 'has no rows'),
    ('[]', 't.json', 'has no rows'),
    ('text\ttext\na\tb\n', 't.tsv', "has two columns named 'text'; rename one"),
    (
      'texts\tlabel\na\tb\n',
      't.tsv',
      "has no column 'text' (did you mean 'texts'?); its columns are 'texts', 'label'",
    ),
    ('"text"\t"label"\n"a"\t"b"\n', 't.tsv', 'set data.format=csv to read fields in quotes'),
    (
      'text\tlabel\na\n',
      't.tsv',
      'line 2 of the file {path!r} has 1 fields; expected 2 as in the header',
    ),
    (
      'text\tlabel\na\tb\tc\n',
      't.tsv',
      'line 2 of the file {path!r} has 3 fields; expected 2 as in the header',
    ),
    (
      b'text\tlabel\nfine\t1\ncaf\xe9\t1\n',
      't.tsv',
      'line 3 of the file {path!r} is not UTF-8 (byte 0xe9); convert the file',
    ),
    (
      'text\tlabel\n'.encode('utf-16'),
      't.tsv',
      'line 1 of the file {path!r} is not UTF-8 (byte 0xff)',
    ),
    (
      'text\tlabel\na\tb\n'.encode('utf-16-be'),
      't.tsv',
      'line 1 of the file {path!r} contains a zero byte',
    ),
    ('text,label\n"a,b\n', 't.csv', 'line 2 of the file {path!r} is not valid CSV'),
    ('text,label\na,b\n"c"d,e\n', 't.csv', 'line 3 of the file {path!r} is not valid CSV'),
    ('{"text": "a"}\n{"text": \n', 't.jsonl', 'line 2 of the file {path!r} is not valid JSON'),
    ('{"text": "a"}\n["text"]\n', 't.jsonl', 'line 2 of the file {path!r} is not a JSON object'),
    (
      '{"text": "a"}\n{"txt": "a"}\n',
      't.jsonl',
      "line 2 of the file {path!r} has no column 'text' (did you mean 'txt'?)",
    ),
    (
      '{"text": "a"}',
      't.json',
      'is not a JSON list of objects; set data.format=jsonl if each line is an object',
    ),
    ('"text"', 't.json', 'is not a JSON list of objects'),
    (
      '[{"text": "a"},\n{"text": ]',
      't.json',
      'line 2 of the file {path!r} is not valid JSON',
    ),
    (
      '[{"text": "a"}\n',
      't.json',
      'line 1 of the file {path!r} starts an object after which the list has neither a comma',
    ),
    (
      '[{"text": "a"}\n{"text": "b"}]',
      't.json',
      'line 1 of the file {path!r} starts an object after which',
    ),
    ('[{"text": "a"}, 7]', 't.json', 'is not a JSON object'),
    (
      'text\tlabel\na\tb\n',
      't.dat',
      'cannot be inferred from its name; set data.format to one of tsv, csv, jsonl, json',
    ),
    ('text\tlabel\na\tb\n', 't.parquet', 'is not a Parquet file'),
  ],
)
def test_errors_name_the_file_and_the_line(table, content, name, expected):
  path = table(content, name)
  found = message(path, columns=('text',))
  assert expected.format(path=path) in found and repr(path) in found


def test_a_missing_file_is_an_error(tmp_path):
  assert "no.tsv' cannot be read: No such file or directory" in message(str(tmp_path / 'no.tsv'))
  assert 'cannot be read: Is a directory' in message(str(tmp_path))


def test_values_as_text(table):
  rows = tables.read_table(table('{"a": 1, "b": true, "c": 2.5, "d": null, "e": [1]}\n', 't.jsonl'))
  assert [tables.text_value('f', rows[0], name) for name in 'abc'] == ['1', 'true', '2.5']
  for name, kind in (('d', 'null'), ('e', 'a list')):
    with pytest.raises(
      UserError, match=f"line 1 of the file 'f' has {kind} in its column '{name}'"
    ):
      tables.text_value('f', rows[0], name)


def test_lines_are_those_of_an_editor(table):
  assert tables.read_lines(table('a\r\n\nb\u2028c\x0c\nd')) == ['a', '', 'b\u2028c\x0c', 'd']
  assert tables.read_lines(table('a\n')) == ['a'] and tables.read_lines(table('')) == []
