"""The settings of a prepared corpus."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from electra_jax import registry
from electra_jax.data.corpus.readers import INVALID_UTF8
from electra_jax.data.prepare import packing
from electra_jax.data.tokenizers import normalization
from electra_jax.data.tokenizers.tokenizer_settings import TokenizerSettings
from electra_jax.data.tokenizers.training_sample import TRAINING_CHARACTERS
from electra_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CorpusRecipe:
  """All settings that decide the rows of a prepared corpus, or whether it is made.

  Attributes:
    row_length: tokens per row.

  The other attributes are fields of config.data, which describes them. For `lowercase`,
  `strip_accents` and `byte_fallback` None is 'auto'.
  """

  source: str
  row_length: int
  document_format: str = 'blank_line'
  heldout_fraction: float = 0.05
  invalid_utf8: str = 'refuse'
  near_duplicates: float = 0.0
  row_format: str = 'packed'
  seed: int = 0
  tokenizer: str = 'unigram'
  vocab_size: int = 30522
  lowercase: bool | None = None
  strip_accents: bool | None = None
  byte_fallback: bool | None = None
  normalization: str = normalization.ORIGINAL
  casing: str = 'unicode'
  tokenizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer_characters: int = TRAINING_CHARACTERS
  add_special_tokens: bool = False
  segmenter: str = ''
  allow_loss: bool = False

  @property
  def tokenizer_settings(self) -> TokenizerSettings:
    """How the tokenizer is trained."""
    return TokenizerSettings(
      kind=self.tokenizer,
      vocab_size=self.vocab_size,
      lowercase=self.lowercase,
      strip_accents=self.strip_accents,
      byte_fallback=self.byte_fallback,
      characters=self.tokenizer_characters,
      segmenter=self.segmenter,
      normalization=self.normalization,
      casing=self.casing,
      options=self.tokenizer_options,
    )

  def check(self) -> None:
    """Checks the values.

    Raises:
      UserError: a value is outside of its range.
    """
    if not 0 <= self.heldout_fraction < 1:
      raise UserError(
        f'heldout_fraction is {self.heldout_fraction}; expected at least 0 and below 1.'
      )
    if not 0 <= self.near_duplicates <= 1:
      raise UserError(
        f'near_duplicates is {self.near_duplicates}; expected the similarity from which a document '
        'is dropped, at most 1, or 0 to keep all.'
      )
    if self.row_format not in packing.ROW_FORMATS:
      raise UserError(
        f'row_format is {self.row_format!r}; expected {" or ".join(packing.ROW_FORMATS)}.'
      )
    if self.invalid_utf8 not in INVALID_UTF8:
      raise UserError(
        f'invalid_utf8 is {self.invalid_utf8!r}; expected {" or ".join(INVALID_UTF8)}.'
      )
    packing.check_row_length(self.row_length)
    if self.segmenter:
      registry.SEGMENTERS.entry(self.segmenter)
    normalization.check_rule(self.normalization)
    rules = {'normalization': ('auto', normalization.ORIGINAL), 'casing': ('unicode',)}
    for name, usual in rules.items():
      value = getattr(self, name)
      if self.tokenizer not in registry.TOKENIZERS and value not in usual:
        raise UserError(
          f'config.data.{name} is {value!r}, but the tokenizer {self.tokenizer!r} has its own '
          f'rule; expected {usual[0]}, or a kind to train: {", ".join(registry.TOKENIZERS)}.'
        )
    if self.tokenizer_options and self.tokenizer not in registry.TOKENIZERS:
      raise UserError(
        f'config.data.tokenizer_options is set, but config.data.tokenizer is {self.tokenizer!r}; '
        f'expected a kind to train: {", ".join(registry.TOKENIZERS)}.'
      )

  def plain(self) -> dict[str, Any]:
    """The settings that decide the rows, as JSON values.

    Those that version 0.1.0 did not have are only included where they differ.
    """
    values = dataclasses.asdict(self)
    del values['allow_loss']
    newer = {
      'tokenizer_options': {},
      'normalization': normalization.ORIGINAL,
      'casing': 'unicode',
      'tokenizer_characters': TRAINING_CHARACTERS,
      'add_special_tokens': False,
      'segmenter': '',
    }
    return {
      name: value for name, value in values.items() if name not in newer or newer[name] != value
    }
