"""What an objective is computed with: the fields of config.objective, the tokenizer's ids."""

import dataclasses
from typing import Any

from electra_jax.config.pretraining import ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class Settings(ObjectiveConfig):
  """The fields of config.objective, and what the objective needs to know of the rest of the run.

  `build.build_settings` makes them from a config. They are hashable, so that they can be a static
  argument of `jax.jit`.

  Attributes:
    options: typed options of an objective that user code registered; None for other objectives.
    max_predictions: slots for masked positions in a row.
    frozen: whether the generator is not trained.
    word_starts: one bit per token of the vocabulary, see `masking.packed`; b'' where single tokens
      are masked.
    word_ends: the same for tokens after which a word begins; b'' where there are none.
    logit_bins: config.logit_bins.
    pad_id: id of the padding token.
    cls_id: id of [CLS].
    sep_id: id of [SEP].
    mask_id: id of [MASK].
  """

  options: Any = None
  max_predictions: int = 19
  frozen: bool = False
  word_starts: bytes = b''
  word_ends: bytes = b''
  logit_bins: str = 'nonlinear'
  pad_id: int = 0
  cls_id: int = 2
  sep_id: int = 3
  mask_id: int = 4

  @property
  def special_ids(self) -> list[int]:
    """The ids that are never masked."""
    return [self.pad_id, self.cls_id, self.sep_id, self.mask_id]

  def weight(self, name: str) -> float:
    """A weight by its name: a field of the options, or of config.objective."""
    value: float = getattr(self.options if hasattr(self.options, name) else self, name)
    return value
