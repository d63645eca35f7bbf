"""What a user decides about a tokenizer, to open or to train it, and what may not be supported."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from electra_jax.config import declarations
from electra_jax.data.tokenizers import normalization, training_sample
from electra_jax.errors import UserError

Options: TypeAlias = declarations.Config | Mapping[str, Any] | None


class NoOffsets(UserError):
  """A kind of tokenizer does not define which characters its tokens are made from."""


class UnsupportedSize(UserError):
  """A text does not support a vocabulary size.

  Attributes:
    supported: a size that it may support.
  """

  def __init__(self, message: str, supported: int) -> None:
    """Sets the attributes."""
    super().__init__(message)
    self.supported = supported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overrides:
  """What a user decides about an existing tokenizer.

  Attributes:
    lowercase: WordPiece: whether text is lower-cased. None for what was saved, or else yes, as in
      uncased BERT.
    strip_accents: WordPiece: whether accents are stripped. None for what was saved, or else the
      value of `lowercase`.
    add_special_tokens: whether special tokens that are missing are appended to the vocabulary.
  """

  lowercase: bool | None = None
  strip_accents: bool | None = None
  add_special_tokens: bool = False

  def require_no_case(self, source: str, what: str) -> None:
    """Raises UserError if a setting of WordPiece is given."""
    if self.lowercase is not None or self.strip_accents is not None:
      raise UserError(
        f'the tokenizer {source!r} is {what}, which has its own normalization; remove lowercase '
        'and strip_accents.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
  """How to train a tokenizer.

  Attributes:
    kind: a name of `registry.TOKENIZERS`: 'unigram' (Kudo 2018) or 'bpe' (Sennrich et al. 2016),
      both by SentencePiece; 'wordpiece', which merges the most frequent pairs as BPE does, and
      normalizes and splits text as BERT; 'byte_level_bpe' (Radford et al. 2019); or one that user
      code registered.
    vocab_size: number of ids, special tokens included.
    lowercase: whether text is lower-cased; None for yes in WordPiece, and no in SentencePiece,
      where the rule 'original' does not support it.
    strip_accents: whether accents are stripped from Latin, Greek and Cyrillic letters; None for no.
      With the rule 'original' only in WordPiece, from all letters, and None for the value of
      `lowercase`.
    normalization: the rule of normalization, see `normalization`.
    casing: 'unicode', or 'turkish' for the rules of Turkish and Azeri, which also set `lowercase`
      where it is None.
    byte_fallback: SentencePiece: whether characters outside the vocabulary become bytes instead of
      [UNK]; None for yes in vocabularies of at least 8,192 tokens, where the 256 bytes cost little.
    seed: seed of the choice of lines in a large corpus.
    characters: most characters of the lines that are chosen.
    segmenter: a name of `registry.SEGMENTERS`, or '' for none.
    options: of a tokenizer that user code registered: a mapping, or its dataclass of options.
      `Tokenizer.train` gets the dataclass.
  """

  kind: str = 'unigram'
  vocab_size: int
  lowercase: bool | None = None
  strip_accents: bool | None = None
  byte_fallback: bool | None = None
  normalization: str = normalization.ORIGINAL
  casing: str = 'unicode'
  seed: int = 0
  characters: int = training_sample.TRAINING_CHARACTERS
  segmenter: str = ''
  options: Options = None

  @property
  def folding(self) -> tuple[bool, bool, str]:
    """Arguments of `normalization.fold`; not of WordPiece, and not of the rule 'original'."""
    return normalization.folding(self.lowercase, self.strip_accents, self.casing)
