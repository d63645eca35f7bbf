"""Fields of a config.json of `transformers`: types, supported values, the class, labels."""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from electra_jax import input_limits, json_reader
from electra_jax.errors import UserError
from electra_jax.model.config import EncoderConfig

Json = Any


@dataclasses.dataclass(frozen=True)
class ConfigFields:
  """Fields by name. A field that is null or missing has its default.

  Attributes:
    file: the file's name, for messages.
    values: the fields.
  """

  file: str
  values: dict[str, Any]

  def get(self, name: str, default: Json = None) -> Json:
    """Returns a field of any type."""
    value = self.values.get(name)
    return default if value is None else value

  def integer(self, name: str, default: int) -> int:
    """Returns a field that must be an integer."""
    value = self.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
      raise UserError(f'{self.file}: {name} is {value!r}; expected an integer.')
    return value

  def number(self, name: str, default: float) -> float:
    """Returns a field that must be a finite number."""
    value = self.get(name, default)
    if isinstance(value, int | float) and not isinstance(value, bool):
      with contextlib.suppress(OverflowError):  # of an integer of hundreds of digits
        if math.isfinite(float(value)):
          return float(value)
    raise UserError(f'{self.file}: {name} is {value!r}; expected a number.')

  def group(self, name: str) -> 'ConfigFields':
    """Returns the fields inside a field."""
    value = self.get(name, {})
    if not isinstance(value, dict):
      raise UserError(f'{self.file}: {name} is {value!r}; expected a group of fields.')
    return ConfigFields(f'{self.file}: {name}', value)

  def require(self, name: str, *supported: Json) -> Json:
    """Returns a field that must have one of some values; the first is the default."""
    value = self.get(name, supported[0])
    if value not in supported or isinstance(value, bool) != isinstance(supported[0], bool):
      self.refuse(name, value, ' or '.join(map(repr, supported)))
    return value

  def refuse(self, name: str, value: Json, supported: str) -> NoReturn:
    """Raises UserError for a value that is not supported."""
    raise UserError(
      f'{self.file}: {name} is {value!r}, which is not supported; expected {supported}.'
    )

  def encoder(self, **fields: Json) -> EncoderConfig:
    """Returns an EncoderConfig without padding rows of the vocabulary.

    Raises:
      UserError: fields contradict each other.
    """
    try:
      return EncoderConfig(vocab_multiple=1, **fields)
    except ValueError as error:
      raise UserError(f'{self.file}: {error}') from None


def read_fields(file: str) -> ConfigFields:
  """Reads a config.json.

  Raises:
    UserError: the file is not a JSON object.
  """
  try:
    values = json_reader.read(file)
  except json_reader.InvalidJson as error:
    raise UserError(f'{file} is not JSON, or is cut short: {error.reason}.') from None
  if not isinstance(values, dict):
    raise UserError(f'{file} has no fields; expected a config.json of transformers.')
  return ConfigFields(file, values)


def architecture_class(fields: ConfigFields) -> str | None:
  """Returns the PyTorch class in the field `architectures`; None if the field is missing."""
  found = fields.get('architectures', [])
  if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
    raise UserError(f'{fields.file}: architectures is {found!r}; expected a list of names.')
  return found[0].removeprefix('TF').removeprefix('Flax') if found else None


def labels_by_id(fields: ConfigFields) -> list[str]:
  """Returns the names of the labels by id; LABEL_0 and so on if the config has none."""
  given = fields.group('id2label').values
  if not given:
    count = fields.integer('num_labels', fields.integer('_num_labels', 2))
    input_limits.check(count, input_limits.VOCABULARY_TOKENS, fields.file, 'labels')
    return [f'LABEL_{i}' for i in range(count)]
  if set(given) != {str(i) for i in range(len(given))}:
    raise UserError(
      f'{fields.file}: the ids in id2label are {", ".join(given)}; expected 0 to {len(given) - 1}.'
    )
  names = [str(given[str(i)]) for i in range(len(given))]
  counts = collections.Counter(names)
  if repeated := [name for name in names if counts[name] > 1]:
    raise UserError(f'{fields.file}: two labels in id2label have the name {repeated[0]!r}.')
  return names


def head_of_config(fields: ConfigFields, kind: str) -> tuple[str, tuple[str, ...]]:
  """Returns the kind and the labels of a fine-tuned head, as in `weights.Head`.

  Args:
    fields: the config.
    kind: 'classification', 'choice', 'tagging' or 'span'.

  Raises:
    UserError: the labels do not fit the kind, or the kind of problem is not supported.
  """
  if kind == 'choice':
    return kind, ()
  names = labels_by_id(fields)
  if kind == 'tagging':
    return kind, tuple(names)
  if kind == 'span':
    if len(names) != 2:
      raise UserError(
        f'{fields.file} has {len(names)} labels; expected two for a model of spans, the start and '
        'the end.'
      )
    return kind, ()
  default = 'regression' if len(names) == 1 else 'single_label_classification'
  problem = fields.get('problem_type', default)
  if problem == 'regression' and len(names) == 1:
    return 'regression', ()
  if problem == 'multi_label_classification' and len(names) > 1:
    return 'multilabel', tuple(names)
  if problem != 'single_label_classification' or len(names) == 1:
    raise UserError(
      f'{fields.file}: problem_type is {problem!r} with {len(names)} labels, which is not '
      'supported; expected single_label_classification or multi_label_classification with several '
      'labels, or regression with one.'
    )
  return kind, tuple(names)


def fields_of_head(kind: str, labels: Sequence[str]) -> dict[str, Any]:
  """Returns the config fields of a fine-tuned head; the inverse of `head_of_config`."""
  if kind in ('span', 'choice'):
    return {}
  names = labels or ('LABEL_0',)
  fields: dict[str, Any] = {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }
  if kind == 'regression':
    fields['problem_type'] = 'regression'
  elif kind == 'multilabel':
    fields['problem_type'] = 'multi_label_classification'
  elif kind != 'tagging':
    fields['problem_type'] = 'single_label_classification'
  return fields
