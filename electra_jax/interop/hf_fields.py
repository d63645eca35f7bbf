"""The fields of a config.json of `transformers`, read with care."""

import dataclasses
import math

from electra_jax.errors import UserError
from electra_jax.model.config import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Fields:
  """The fields by name, and the file's name for sentences. A field that is null, or is not there, has its default."""

  file: str
  values: dict

  def get(self, name: str, default=None):
    value = self.values.get(name)
    return default if value is None else value

  def integer(self, name: str, default: int) -> int:
    value = self.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
      raise UserError(f'{self.file}: {name} is {value!r} and not a whole number.')
    return value

  def number(self, name: str, default: float) -> float:
    value = self.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
      raise UserError(f'{self.file}: {name} is {value!r} and not a number.')
    return float(value)

  def group(self, name: str) -> 'Fields':
    """The fields inside a field."""
    value = self.get(name, {})
    if not isinstance(value, dict):
      raise UserError(f'{self.file}: {name} is {value!r} and not a group of fields.')
    return Fields(f'{self.file}: {name}', value)

  def need(self, name: str, *can: object):
    """The field, which is one of `can`, the first where it is not there. Raises UserError that names it."""
    value = self.get(name, can[0])
    if value not in can or isinstance(value, bool) != isinstance(can[0], bool):
      self.refuse(name, value, ' or '.join(map(repr, can)))
    return value

  def refuse(self, name: str, value, can: str):
    raise UserError(
      f'{self.file}: {name} is {value!r}, which this program does not have: it has {can}.'
    )

  def encoder(self, **fields) -> EncoderConfig:
    """EncoderConfig without rows that pad the vocabulary. Raises UserError for fields that contradict each other."""
    try:
      return EncoderConfig(vocab_multiple=1, **fields)
    except ValueError as error:
      raise UserError(f'{self.file}: {error}') from None
