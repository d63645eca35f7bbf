"""The reader of JSON: files, lines and strings, checked before they are used.

What it refuses besides malformed JSON: documents that are too large or too deeply nested, keys that
occur twice in an object, numbers that are not finite, encodings other than UTF-8, and characters
that are half a surrogate pair. A mistake is one sentence that names the file.
"""

import dataclasses
import functools
import json
import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from electra_jax import file_access, input_limits
from electra_jax.errors import UserError

Json = Any  # a value of JSON
# What a value must be. A type or a union of types; `[shape]` for a list; `{str: shape}` for an
# object with any keys; `{'key': shape, 'other?': shape}` for an object with these, of which those
# that end with a question mark may be missing. A float may be written as an integer.
Shape = Any

RESTORE = 'restore it'

_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_OTHER_ENCODINGS = {
  b'\xff\xfe\0\0': 'UTF-32',
  b'\0\0\xfe\xff': 'UTF-32',
  b'\xff\xfe': 'UTF-16',
  b'\xfe\xff': 'UTF-16',
}
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]{}')
_AS_LISTS = bytes.maketrans(b'{}', b'[]')
_MAYBE_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|.)', re.DOTALL)
_LITERAL_SURROGATE = re.compile('[\ud800-\udfff]')
_SHOWN = 60  # characters of a wrong value in a message
_KINDS: dict[type, str] = {
  bool: 'a truth value',
  int: 'a number',
  float: 'a number',
  str: 'a string',
  list: 'a list',
  dict: 'an object',
  types.NoneType: 'null',
}


@dataclasses.dataclass(frozen=True)
class Rules:
  """What is accepted beyond strict JSON.

  Attributes:
    control_characters: characters below space in a string.
    lone_surrogates: half of a surrogate pair; the caller handles them.
    not_finite: NaN and Infinity, which Python writes.
  """

  control_characters: bool = False
  lone_surrogates: bool = False
  not_finite: bool = False


STRICT = Rules()
# Texts of a corpus or task. Control characters are text; readers handle surrogates.
TEXTS = Rules(control_characters=True, lone_surrogates=True)
# Files that this program wrote. Metrics of no examples are NaN.
OWN = Rules(lone_surrogates=True, not_finite=True)


class InvalidJson(UserError, ValueError):
  """Content is not JSON, or not of the expected shape.

  Attributes:
    reason: what is wrong, in a few words.
    line: of the mistake, counted from 1; 1 where it is not known.
  """

  def __init__(self, where: str, reason: str, remedy: str, line: int = 1) -> None:
    super().__init__(f'{where} is not valid JSON ({reason}); {remedy}')
    self.reason = reason
    self.line = line


class Document(dict[str, Any]):
  """An object of a file. A missing key is a UserError that names the file.

  Attributes:
    file: the file.
  """

  __slots__ = ('file',)

  def __init__(self, values: Mapping[str, Any], file: str) -> None:
    super().__init__(values)
    self.file = file

  def __missing__(self, key: str) -> NoReturn:
    raise UserError(f'{self.file} has no field {key!r}; {RESTORE}.')


def parse(content: bytes | str, where: str, remedy: str = RESTORE, rules: Rules = STRICT) -> Json:
  """The value of a JSON document.

  Args:
    content: the document; bytes are UTF-8, with or without a byte order mark.
    where: what it is, as the beginning of a sentence, such as "line 3 of the file 'x'".
    remedy: the end of that sentence.
    rules: what is accepted.

  Raises:
    InvalidJson: it is not JSON, or something that is refused.
  """

  def refuse(reason: str, line: int = 1) -> NoReturn:
    raise InvalidJson(where, reason, remedy, line) from None

  most = input_limits.scaled(input_limits.JSON_BYTES)
  if len(content) > most:
    refuse(f'it has {len(content):,} bytes, more than {most:,}; {input_limits.REMEDY}')
  try:
    text = content if isinstance(content, str) else _decoded(content, rules)
    _check_depth(text)
    if not rules.lone_surrogates:
      _check_surrogates(text)
    return _decoder(rules).decode(text)
  except json.JSONDecodeError as error:
    refuse(str(error), error.lineno)
  except _Refused as error:
    refuse(str(error), error.line)
  except RecursionError:
    refuse('it is nested too deeply')
  except ValueError as error:  # an integer of thousands of digits
    refuse(str(error).split(';')[0])


def parse_next(text: str, start: int, where: str, remedy: str, rules: Rules) -> tuple[Json, int]:
  """The JSON value that begins at a character of a text, and the index after it.

  Raises:
    InvalidJson: as in `parse`.
  """
  try:
    value, end = _decoder(rules).raw_decode(text, start)
    _check_depth(text[start:end])
    return value, end
  except RecursionError:
    reason = 'it is nested too deeply'
  except ValueError as error:
    reason = file_access.reason(error)
  raise InvalidJson(where, reason, remedy)


def read(
  path: str | os.PathLike[str],
  shape: Shape = None,
  remedy: str = RESTORE,
  rules: Rules = STRICT,
) -> Json:
  """The value of a JSON file.

  Args:
    path: a path or an address.
    shape: what the value must be; None for anything.
    remedy: the end of the sentence about a mistake.
    rules: what is accepted.

  Raises:
    InvalidJson: it is not JSON, or not of the shape.
    UserError: it cannot be read.
  """
  path = os.fspath(path)
  most = input_limits.scaled(input_limits.JSON_BYTES)
  value = parse(file_access.read_bytes(path, most + 1), repr(path), remedy, rules)
  if shape is not None:
    check(value, shape, repr(path), remedy)
  return value


def check(value: Json, shape: Shape, where: str, remedy: str = RESTORE) -> None:
  """Checks the types in a value.

  Args:
    value: of JSON.
    shape: what it must be.
    where: as in `parse`.
    remedy: as in `parse`.

  Raises:
    InvalidJson: something has another type, or a key is missing.
  """
  complaint = _complaint(value, shape, '')
  if complaint:
    raise InvalidJson(where, complaint, remedy)


def kind_of(value: Json) -> str:
  """The type of a value, as messages name it."""
  return next((name for kind, name in _KINDS.items() if isinstance(value, kind)), 'a value')


#### Encoding, depth, surrogates ####


class _Refused(ValueError):
  """The document has something that is JSON and is refused."""

  def __init__(self, reason: str, line: int = 1) -> None:
    super().__init__(reason)
    self.line = line


def _decoded(content: bytes, rules: Rules) -> str:
  for mark, name in _OTHER_ENCODINGS.items():
    if content.startswith(mark):
      raise _Refused(f'it is {name}, and JSON is UTF-8')
  if b'\0' in content[:4]:
    raise _Refused('it begins with zero bytes as UTF-16 has them, and JSON is UTF-8')
  start = len(_BYTE_ORDER_MARK) if content.startswith(_BYTE_ORDER_MARK) else 0
  try:
    return content[start:].decode(errors='surrogatepass' if rules.lone_surrogates else 'strict')
  except UnicodeDecodeError as error:
    at = error.start + start
    line = content.count(b'\n', 0, at) + 1
    column = at - content.rfind(b'\n', 0, at)
    raise _Refused(
      f'it is not UTF-8: byte 0x{content[at]:02x} at line {line} column {column}', line
    ) from None


def _check_depth(text: str) -> None:
  """Raises _Refused where lists and objects are nested more deeply than JSON_DEPTH.

  Nearly all documents of a corpus have fewer brackets than that. In others the innermost pairs are
  removed until none are left, which takes a pass of C code per level.
  """
  most = input_limits.JSON_DEPTH
  if text.count('[') + text.count('{') <= most:
    return
  content = _STRINGS.sub(b'', text.encode('utf-8', 'surrogatepass'))
  brackets = content.translate(_AS_LISTS, _NO_BRACKETS)
  for _ in range(most):
    if b'[' * (most + 1) in brackets:
      break
    shorter = brackets.replace(b'[]', b'')
    if len(shorter) == len(brackets):
      return  # the rest is unbalanced, which the parser reports
    brackets = shorter
  if brackets.count(b'['):
    raise _Refused(f'it is nested more than {most} levels deep')


def _check_surrogates(text: str) -> None:
  """Raises _Refused for half of a surrogate pair, written as such or as an escape."""
  found = _LITERAL_SURROGATE.search(text)
  position = found.start() if found else _lone_escape(text)
  if position is not None:
    line = text.count('\n', 0, position) + 1
    column = position - text.rfind('\n', 0, position)
    raise _Refused(f'half a surrogate pair at line {line} column {column} is no character', line)


def _lone_escape(text: str) -> int | None:
  """The index of an escape that is half a surrogate pair; None if there is none."""
  if not _MAYBE_SURROGATE.search(text):
    return None
  high = -1  # index after an escape that begins a pair
  for match in _ESCAPE.finditer(text):
    code = int(match[1], 16) if match[1] else 0
    pairs = high == match.start()
    if 0xDC00 <= code < 0xE000:
      if not pairs:
        return match.start()
      high = -1
      continue
    if high >= 0:
      return high - 6
    high = match.end() if 0xD800 <= code < 0xDC00 else -1
  return high - 6 if high >= 0 else None


#### Parsing ####


@functools.cache
def _decoder(rules: Rules) -> json.JSONDecoder:
  more: dict[str, Any] = {}
  if not rules.not_finite:
    more = {'parse_constant': _refuse_number, 'parse_float': _finite}
  return json.JSONDecoder(strict=not rules.control_characters, object_pairs_hook=_object, **more)


def _object(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
  values = dict(pairs)
  if len(values) != len(pairs):
    seen: set[str] = set()
    for name, _ in pairs:
      if name in seen:
        raise _Refused(f'the key {_short(name)} occurs twice in an object')
      seen.add(name)
  return values


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    _refuse_number(text)
  return value


def _refuse_number(text: str) -> NoReturn:
  raise _Refused(f'{_short(text, quoted=False)} is not a finite number')


def _short(text: str, quoted: bool = True) -> str:
  shown = text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'
  return repr(shown) if quoted else shown


#### Shapes ####


def _complaint(value: Json, shape: Shape, path: str) -> str:
  """What of a value does not have a shape, in a few words; '' if it has."""
  if isinstance(shape, list):
    if not isinstance(value, list):
      return _another(path, value, 'a list')
    items = ((f'{path}[{i}]', item, shape[0]) for i, item in enumerate(value))
  elif isinstance(shape, dict):
    if not isinstance(value, dict):
      return _another(path, value, 'an object')
    if str in shape:
      items = ((_member(path, name), item, shape[str]) for name, item in value.items())
    else:
      required = [name for name in shape if not name.endswith('?')]
      if missing := [name for name in required if name not in value]:
        return f'it has no {_member(path, missing[0])}'
      names = {name.removesuffix('?'): name for name in shape}
      items = (
        (_member(path, name), value[name], shape[full])
        for name, full in names.items()
        if name in value
      )
  else:
    return '' if _has_type(value, shape) else _another(path, value, _named(shape))
  return next(filter(None, (_complaint(item, inner, at) for at, item, inner in items)), '')


def _member(path: str, name: str) -> str:
  shown = name if len(name) <= _SHOWN else f'{name[:_SHOWN]}...'
  return f'{path}.{shown}' if path else shown


def _another(path: str, value: Json, expected: str) -> str:
  return f'{path or "it"} is {kind_of(value)}, not {expected}'


def _types_of(shape: Shape) -> tuple[type, ...]:
  return shape.__args__ if isinstance(shape, types.UnionType) else (shape,)


def _has_type(value: Json, shape: Shape) -> bool:
  kinds = _types_of(shape)
  if object in kinds:
    return True
  if isinstance(value, bool):
    return bool in kinds
  if float in kinds and isinstance(value, int):
    return True
  return isinstance(value, kinds)


def _named(shape: Shape) -> str:
  names = _KINDS | {int: 'an integer'}
  return ' or '.join(names.get(kind, kind.__name__) for kind in _types_of(shape))
