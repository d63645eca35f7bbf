"""JSON is read in one place, which refuses in one sentence what would harm later."""

import ast
import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax import input_limits, json_reader
from electra_jax.errors import UserError

PACKAGE = pathlib.Path(json_reader.__file__).parent

VALUES = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(st.characters(exclude_categories=['Cs'])),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
  max_leaves=20,
)


def refusal(content, **more):
  with pytest.raises(json_reader.InvalidJson) as caught:
    json_reader.parse(content, "the file 'x'", **more)
  sentence = str(caught.value)
  assert sentence.startswith("the file 'x' is not valid JSON (") and '\n' not in sentence
  assert sentence.endswith('; restore it') and isinstance(caught.value, UserError)
  return sentence


def test_nothing_else_parses_json():
  found = set()
  for file in PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text('utf-8'))):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == 'json' and node.attr in ('load', 'loads', 'JSONDecoder'):
          found.add(file.relative_to(PACKAGE).as_posix())
  # The config's own values, written and read at once to make lists of tuples.
  assert found == {'json_reader.py', 'config/declarations.py'}


@settings(max_examples=25, deadline=None)
@given(VALUES, st.booleans())
def test_what_python_writes_is_read(value, ascii_only):
  text = json.dumps(value, ensure_ascii=ascii_only)
  for rules in (json_reader.STRICT, json_reader.TEXTS, json_reader.OWN):
    assert json_reader.parse(text, 'x', rules=rules) == value
    assert json_reader.parse(b'\xef\xbb\xbf' + text.encode(), 'x', rules=rules) == value


@pytest.mark.parametrize(
  'content, expected',
  [
    (b'', 'Expecting value: line 1 column 1'),
    (b'{"a": 1,\n "b": }', 'line 2 column 7'),
    (b'{} {}', 'Extra data: line 1 column 4'),
    (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
    (b'[NaN]', 'NaN is not a finite number'),
    (b'[-Infinity]', '-Infinity is not a finite number'),
    (b'[1e999]', '1e999 is not a finite number'),
    (b'[' + b'9' * 5000 + b']', '5000 digits'),
    (b'"a\nb"', 'Invalid control character'),
    (b'{"a":\n"caf\xe9"}', 'it is not UTF-8: byte 0xe9 at line 2 column 5'),
    ('{"a": 1}'.encode('utf-16'), 'it is UTF-16'),
    ('{"a": 1}'.encode('utf-16-le'), 'UTF-16'),
    ('{"a": 1}'.encode('utf-32'), 'it is UTF-32'),
    (b'["\\ud800"]', 'half a surrogate pair at line 1 column 3'),
    (b'["\\ude00 \\\\ud800"]', 'half a surrogate pair'),
    (b'["\\ud83d\\ud83d\\ude00"]', 'half a surrogate pair'),
    (b'[' * 100_000, 'nested more than 100 levels'),
    (b'[' * 101 + b']' * 101, 'nested more than 100 levels'),
    (b'{"a":' * 101 + b'1' + b'}' * 101, 'nested more than 100 levels'),
    (b'[[],' * 101 + b'1' + b']' * 101, 'nested more than 100 levels'),
  ],
)
def test_what_is_refused_is_named(content, expected):
  assert expected in refusal(content)


def test_what_only_looks_like_it_is_accepted():
  for value in (
    '[' * 1000,
    'a "quoted [[[" \\',
    '\\ud800',
    '\U0001f600',
    [[]] * 1000,
    {str(i): {'a': []} for i in range(500)},
  ):
    assert json_reader.parse(json.dumps(value), 'x') == value
  deep = '[' * 100 + ']' * 100
  assert json.dumps(json_reader.parse(deep, 'x')) == deep


def test_texts_may_have_control_characters_and_surrogates_and_own_files_numbers_of_python():
  assert json_reader.parse('"a\nb\\ud800"', 'x', rules=json_reader.TEXTS) == 'a\nb\ud800'
  assert str(json_reader.parse('[NaN, Infinity]', 'x', rules=json_reader.OWN)) == '[nan, inf]'
  refusal('[NaN]', rules=json_reader.TEXTS)
  refusal('["a\nb"]', rules=json_reader.OWN)


def test_size_is_limited_before_anything_is_parsed(tmp_path, monkeypatch):
  monkeypatch.setattr(input_limits, 'JSON_BYTES', 1000)
  (tmp_path / 'a.json').write_text(json.dumps('a' * 1500))
  with pytest.raises(UserError, match=r'more than 1,000; raise the limits with --input_limits'):
    json_reader.read(tmp_path / 'a.json')
  monkeypatch.setenv(input_limits.VARIABLE, '2')
  assert json_reader.read(tmp_path / 'a.json') == 'a' * 1500


@pytest.mark.parametrize(
  'value, shape, expected',
  [
    ([], {}, 'it is a list, not an object'),
    ({'a': 1}, {'b': int}, 'it has no b'),
    ({'a': True}, {'a': int}, 'a is a truth value, not an integer'),
    ({'a': 1.5}, {'a': int | None}, 'a is a number, not an integer or null'),
    ({'a': {'b': [1, 'x']}}, {'a': {'b': [int]}}, 'a.b[1] is a string, not an integer'),
    ({'a': {'x': 1}}, {'a': {str: str}}, 'a.x is a number, not a string'),
  ],
)
def test_another_shape_is_named(tmp_path, value, shape, expected):
  (tmp_path / 'a.json').write_text(json.dumps(value))
  with pytest.raises(json_reader.InvalidJson) as caught:
    json_reader.read(tmp_path / 'a.json', shape)
  assert f'({expected})' in str(caught.value) and 'a.json' in str(caught.value)


def test_the_expected_shape_is_accepted_and_other_keys_are_kept():
  value = {'a': 1, 'b': 2, 'c': [None, 'x'], 'more': {}}
  shape = {'a': float, 'b': int, 'c': [str | None], 'd?': str}
  json_reader.check(value, shape, 'x')
  document = json_reader.Document(value, '/run/config.json')
  assert document == value and document.get('e') is None
  with pytest.raises(UserError, match="/run/config.json has no field 'e'; restore it."):
    _ = document['e']
