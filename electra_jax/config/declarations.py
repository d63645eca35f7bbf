"""How config fields are declared: each field once, in a frozen dataclass.

A declaration holds the default, the type (the annotation), one line of help, the choices or the
range, and further attributes. The ml_collections ConfigDict of a config file, the checks, `--help`,
the "did you mean" messages and docs/reference/config.md are derived from it:

    @dataclasses.dataclass(frozen=True)
    class TaskConfig(Config):
      batch_size: int = field(32, 'Rows per step, over all devices.', at_least=1)

Users edit a ConfigDict. `freeze` turns it into the dataclass, which all code below the command line
takes.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import typing
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from electra_jax.errors import UserError

UNSET: Any = object()
ConfigDict: TypeAlias = Any  # ml_collections has no annotations
AnyConfig: TypeAlias = Any  # a ConfigDict, or a typed Config
Value: TypeAlias = Any  # of a field
NOUNS = {
  int: 'an integer',
  float: 'a number',
  str: 'a string',
  bool: 'True or False',
  tuple: 'a tuple',
  dict: 'a dict of options',
}
C = TypeVar('C', bound='Config')


@dataclasses.dataclass(frozen=True)
class Declaration:
  """The attributes of a field besides its name, type and default.

  Attributes:
    help: one line for `--help` and the reference page.
    choices: all values of the field: names, or a list of registry.py.
    at_least, above, at_most, below: the range of a number.
    also: values outside of the range with a special meaning, such as 0 for "automatic".
    resumable: whether the field may differ when a run is resumed.
    per_phase: whether a phase of config.phases may set the field.
    one_line: whether control characters, such as line breaks, are refused in a string.
    argument: short name after the colon of `--config=FILE:name=value`; '' for none.
    files: 'read' or 'written' where the value names files or folders, by path, pattern or address;
      a field of files to read also takes names, such as 'sample'.
    before: the value that configs written before the field existed imply, for fields newer than
      version 0.1.0 whose default is not what the program did before.
  """

  help: str
  choices: Collection[str] = ()
  at_least: float = -math.inf
  above: float = -math.inf
  at_most: float = math.inf
  below: float = math.inf
  also: tuple[Any, ...] = ()
  resumable: bool = False
  per_phase: bool = False
  one_line: bool = False
  argument: str = ''
  files: str = ''
  before: Any = UNSET

  def expectation(self) -> str:
    """The values that are accepted, in words; '' where the type is the only condition."""
    if self.choices:
      return one_of(self.choices)
    if self.one_line:
      return 'no control characters'
    parts = [f'above {self.above:g}'] if self.above != -math.inf else []
    parts += [f'at least {self.at_least:g}'] if self.at_least != -math.inf else []
    parts += [f'below {self.below:g}'] if self.below != math.inf else []
    parts += [f'at most {self.at_most:g}'] if self.at_most != math.inf else []
    words = ' and '.join(parts)
    return words + (f', or {one_of(self.also)}' if words and self.also else '')

  def accepts(self, value: Value) -> bool:
    """Whether a value of the right type is one of the choices and inside the range."""
    if value in self.also:
      return True
    if self.choices:
      return all(v in self.choices for v in (value if isinstance(value, tuple) else (value,)))
    if isinstance(value, str):
      return not (self.one_line and has_control_characters(value))
    if isinstance(value, tuple | dict):
      return True
    return bool(self.above < value < self.below and self.at_least <= value <= self.at_most)


def has_control_characters(text: str) -> bool:
  """Whether a text has line breaks or other characters that control a terminal or a script."""
  return any(unicodedata.category(character) in ('Cc', 'Zl', 'Zp') for character in text)


def one_of(values: Collection[Any]) -> str:
  """'a, b or c' of at least one value; the empty string is written as ''."""
  words = [str(value) if value != '' else "''" for value in values]
  return ' or '.join(filter(None, [', '.join(words[:-1]), words[-1]]))


def field(default: Value, help: str, **declaration: Value) -> Value:
  """A field of a config: its default, one line of help, and attributes of `Declaration`."""
  return dataclasses.field(
    default=default, metadata={'declaration': Declaration(help, **declaration)}
  )


def options(help: str, **declaration: Value) -> Value:
  """A field of the options of a registered spec: a dict, empty by default; see `typed_options`."""
  return dataclasses.field(
    default_factory=dict, metadata={'declaration': Declaration(help, **declaration)}
  )


def group(kind: type['Config'], help: str, **declaration: Value) -> Value:
  """A group of fields: a config inside a config. Its attributes apply to all of its fields."""
  return dataclasses.field(
    default_factory=kind, metadata={'declaration': Declaration(help, **declaration)}
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """Base of all declared configs."""

  def replace(self: C, changes: Mapping[str, Any]) -> C:
    """A copy with fields changed, named with dots: `c.replace({'model.dropout': 0.0})`.

    Raises:
      UserError: for a name that is not a field.
    """
    direct: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    names = {f.name for f in dataclasses.fields(self)}
    for name, value in changes.items():
      first, dot, rest = name.partition('.')
      if first not in names:
        raise UserError(unknown_field(name, type(self)))
      if dot:
        inside.setdefault(first, {})[rest] = value
      else:
        direct[first] = value
    for name, values in inside.items():
      direct[name] = direct.get(name, getattr(self, name)).replace(values)
    return dataclasses.replace(self, **direct)


@dataclasses.dataclass(frozen=True)
class Field:
  """A field of a config: name with dots, type, default and declaration."""

  name: str
  kind: type
  default: Any
  declaration: Declaration


_FIELDS: dict[type[Config], dict[str, Field]] = {}


def is_group(kind: Value) -> bool:
  """Whether a field's type is a group of fields."""
  return isinstance(kind, type) and issubclass(kind, Config)


def fields_of(kind: type[Config]) -> dict[str, Field]:
  """All fields of a config by their names with dots, in their order, groups expanded."""
  if kind not in _FIELDS:
    _FIELDS[kind] = _collect(kind, '')
  return _FIELDS[kind]


def _collect(kind: type[Config], prefix: str) -> dict[str, Field]:
  found: dict[str, Field] = {}
  types = typing.get_type_hints(kind)
  for f in dataclasses.fields(kind):
    declared: Declaration = f.metadata['declaration']
    if is_group(types[f.name]):
      inner = _collect(types[f.name], f'{prefix}{f.name}.')
      if declared.resumable:
        inner = {
          name: dataclasses.replace(
            entry, declaration=dataclasses.replace(entry.declaration, resumable=True)
          )
          for name, entry in inner.items()
        }
      found |= inner
    else:
      name = prefix + f.name
      kind_of_value = typing.get_origin(types[f.name]) or types[f.name]
      found[name] = Field(name, kind_of_value, _default(f), declared)
  return found


def _default(f: 'dataclasses.Field[Any]') -> Value:
  return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def groups_of(kind: type[Config], prefix: str = '') -> dict[str, Declaration]:
  """The groups of a config by name with dots, in their order."""
  found: dict[str, Declaration] = {}
  types = typing.get_type_hints(kind)
  for f in dataclasses.fields(kind):
    if is_group(types[f.name]):
      found[prefix + f.name] = f.metadata['declaration']
      found |= groups_of(types[f.name], f'{prefix}{f.name}.')
  return found


def flat(config: AnyConfig, kind: type[Config] | None = None) -> dict[str, Any]:
  """Field -> value, groups expanded: 'model.hidden_size' and so on.

  Args:
    config: a typed config, or a ConfigDict.
    kind: class of the typed config of a ConfigDict. It determines which ConfigDicts are values:
      those of the fields declared by `options`.
  """
  declared = type(config) if isinstance(config, Config) else kind
  known = fields_of(declared) if declared else {}
  return _flat(config, '', {name for name, entry in known.items() if entry.kind is dict})


def _flat(config: AnyConfig, prefix: str, option_fields: Collection[str]) -> dict[str, Any]:
  if isinstance(config, Config):
    items = [(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)]
  else:
    items = list(config.items())
  values: dict[str, Any] = {}
  for name, value in items:
    path = prefix + name
    is_value = path in option_fields
    if isinstance(value, Config) or _is_config_dict(value) and not is_value:
      values |= _flat(value, path + '.', option_fields)
    else:
      values[path] = value
  return values


def _is_config_dict(value: Value) -> bool:
  """Whether a value is an ml_collections ConfigDict, without importing ml_collections."""
  return hasattr(value, 'items') and hasattr(value, 'is_locked')


def config_dict(kind: type[Config]) -> ConfigDict:
  """An ml_collections ConfigDict of the defaults, which config files edit."""
  import ml_collections

  c = ml_collections.ConfigDict()
  types = typing.get_type_hints(kind)
  for f in dataclasses.fields(kind):
    c[f.name] = config_dict(types[f.name]) if is_group(types[f.name]) else _default(f)
  return c


def unknown_field(name: str, kind: type[Config]) -> str:
  """The sentence for a name that is not a field."""
  near = difflib.get_close_matches(name, fields_of(kind), n=1)
  help_ = (
    f'did you mean config.{near[0]}?' if near else 'docs/reference/config.md lists all of them.'
  )
  return f'config.{name} is not a field; {help_}'


def freeze(kind: type[C], config: AnyConfig) -> C:
  """Returns the typed config of a ConfigDict, types and ranges of its fields checked.

  A config that is typed already is checked, too.

  Raises:
    UserError: for a field that is unknown, missing, of another type or out of its range.
  """
  if config is None or not isinstance(config, Config) and not _is_config_dict(config):
    raise UserError(
      f'the config is {config!r}; expected the ConfigDict that default_config() returns.'
    )
  known = fields_of(kind)
  values = flat(config, kind)
  for name in values:
    if name not in known:
      raise UserError(unknown_field(name, kind))
  for name in known:
    if name not in values:
      raise UserError(f'the config lacks the field {name!r}; start from default_config().')
  frozen = kind().replace({name: typed_value(known[name], value) for name, value in values.items()})
  check_ranges(frozen)
  return frozen


def typed_value(entry: Field, value: Value) -> Value:
  """A value with its field's type: tuples for lists, floats for integers.

  Raises:
    UserError: for a value of another type.
  """
  if entry.kind is tuple and isinstance(value, list | tuple):
    plain = _plain_tuple(value)
    return _split_names(plain) if entry.declaration.choices else plain
  if entry.kind is dict and (isinstance(value, dict) or _is_config_dict(value)):
    return _plain_tuple(value)
  if entry.kind is float and isinstance(value, int) and not isinstance(value, bool):
    with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
      return float(value)
  if not isinstance(value, entry.kind) or isinstance(value, bool) != (entry.kind is bool):
    raise UserError(
      f'config.{entry.name} is {value!r}; expected {NOUNS[entry.kind]}, such as {entry.default!r}.'
    )
  return value


def _plain_tuple(value: Value) -> Value:
  """Lists as tuples and ConfigDicts as dicts, at any depth."""
  if isinstance(value, list | tuple):
    return tuple(_plain_tuple(item) for item in value)
  if isinstance(value, Mapping) or _is_config_dict(value):
    return {name: _plain_tuple(item) for name, item in value.items()}
  return value


def _split_names(values: tuple[Any, ...]) -> tuple[Any, ...]:
  """Names that a command line separates by commas, each by itself."""
  parts = (v.split(',') if isinstance(v, str) else (v,) for v in values)
  return tuple(v.strip() if isinstance(v, str) else v for items in parts for v in items)


def check_ranges(config: Config) -> None:
  """Raises UserError for the first field whose value is none of its choices or out of its range."""
  values = flat(config)
  for name, entry in fields_of(type(config)).items():
    if not entry.declaration.accepts(values[name]):
      wrong = repr(values[name])
      raise UserError(f'config.{name} is {wrong}; expected {entry.declaration.expectation()}.')


def names_with(kind: type[Config], attribute: str) -> tuple[str, ...]:
  """Names of the fields whose declaration has an attribute set, such as 'resumable'."""
  return tuple(n for n, entry in fields_of(kind).items() if getattr(entry.declaration, attribute))


def typed_options(
  kind: type[C] | None, given: Mapping[str, Any], path: str, owner: str
) -> C | None:
  """The options of a registered spec as its dataclass.

  Args:
    kind: the spec's dataclass of options; None for a spec without options.
    given: of the config.
    path: the config field that holds them, for messages, such as 'config.objective.options'.
    owner: the spec, for messages, such as "the objective 'electra'".

  Raises:
    UserError: for an option that the spec does not have, or a value of another type or out of its
      range.
  """
  known = {} if kind is None else fields_of(kind)
  for name in given:
    if name not in known:
      expected = one_of(known) if known else 'none'
      raise UserError(f'{path}.{name} is not an option of {owner}; expected {expected}.')
  if kind is None:
    return None
  for name, value in given.items():
    entry = known[name]
    accepted = isinstance(value, entry.kind) or entry.kind is float and isinstance(value, int)
    if not accepted or isinstance(value, bool) != (entry.kind is bool):
      raise UserError(f'{path}.{name} is {value!r}; expected {NOUNS[entry.kind]}.')
    if not entry.declaration.accepts(value):
      raise UserError(f'{path}.{name} is {value!r}; expected {entry.declaration.expectation()}.')
  return kind().replace({name: typed_value(known[name], value) for name, value in given.items()})


def require(condition: object, message: str) -> None:
  """Raises UserError with the message unless the condition holds."""
  if not condition:
    raise UserError(message)


#### Config files' arguments: --config=FILE:name=value,... ####


def with_arguments(config: ConfigDict, arguments: str | None, kind: type[Config]) -> ConfigDict:
  """The ConfigDict with `name=value,...` of the config string applied.

  Raises:
    UserError: for an unknown name, or a value of another type.
  """
  short = {e.declaration.argument: e for e in fields_of(kind).values() if e.declaration.argument}
  for part in filter(None, (arguments or '').split(',')):
    name, equals, text = part.partition('=')
    if not equals or name not in short:
      near = difflib.get_close_matches(name, short, n=1)
      known = (
        f'did you mean {near[0]}=...?'
        if near
        else f'expected {one_of([f"{n}=..." for n in short])}.'
      )
      raise UserError(f'--config takes no argument {part!r}; {known}')
    *groups, last = short[name].name.split('.')
    target = config
    for inner in groups:
      target = target[inner]
    number = short[name].kind
    try:
      target[last] = number(text)
    except ValueError:
      raise UserError(f'--config argument {name}={text!r} is not {NOUNS[number]}.') from None
  return config


#### JSON ####


def to_plain(config: AnyConfig) -> dict[str, Any]:
  """A config or ConfigDict as JSON has it: dicts, and lists for tuples."""
  if isinstance(config, Config):
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain
  from_dict: dict[str, Any] = json.loads(config.to_json())
  return from_dict


def completed(plain: Mapping[str, Any], kind: type[Config]) -> dict[str, Any]:
  """A config as JSON has it, with a value for each field that did not exist when it was written.

  That value is the field's `before`, or its default where `before` is not declared.
  """
  known: dict[str, Any] = {}
  types = typing.get_type_hints(kind)
  for f in dataclasses.fields(kind):
    if is_group(types[f.name]):
      given = plain.get(f.name, {})
      known[f.name] = completed(given, types[f.name]) if isinstance(given, Mapping) else given
    else:
      before = f.metadata['declaration'].before
      known[f.name] = plain.get(f.name, _default(f) if before is UNSET else before)
  rest = {name: value for name, value in plain.items() if name not in known}
  normalized: dict[str, Any] = json.loads(json.dumps(known | rest))
  return normalized


def from_plain(plain: Mapping[str, Any], kind: type[C]) -> C:
  """Returns the typed config of a config.json, its missing fields `completed`.

  Raises:
    UserError: where it holds something that is not a field, or a value of another type.
  """
  return kind().replace(_values_of(completed(plain, kind), kind))


def _values_of(plain: Mapping[str, Any], kind: type[Config], prefix: str = '') -> dict[str, Any]:
  known = fields_of(kind)
  values: dict[str, Any] = {}
  for name, value in plain.items():
    path = prefix + name
    if path in known:
      values[path] = typed_value(known[path], value)
    elif isinstance(value, Mapping) and any(n.startswith(path + '.') for n in known):
      values |= _values_of(value, kind, path + '.')
    else:
      raise UserError(unknown_field(path, kind))
  return values


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str] = (), prefix: str = ''
) -> list[str]:
  """Fields that differ between two configs as JSON has them, as 'field: old -> new'.

  Args:
    old: a config, of `to_plain` or `completed`.
    new: another one.
    free: fields that may differ.
    prefix: of names, for groups.
  """
  lines = []
  for name in sorted({*old, *new}):
    path = prefix + name
    a, b = old.get(name), new.get(name)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      lines += differences(a, b, free, path + '.')
    elif a != b and path not in free:
      lines.append(f'{path}: {a!r} -> {b!r}')
  return lines
