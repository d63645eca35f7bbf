"""Training of byte-level BPE (Radford et al. 2019), which has no unknown characters.

Text is split into words by the regular expression of GPT-2, and a space begins the word after it.
The bytes of a word are merged, the most frequent pair first. By default no normalization is
applied, so that every text is decoded as it was.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from electra_jax.data.tokenizers import text_parts
from electra_jax.data.tokenizers.special_tokens import MASK, SPECIAL_TOKENS
from electra_jax.data.tokenizers.tokenizer_settings import UnsupportedSize

Pipeline: TypeAlias = Any  # a `tokenizers.Tokenizer`

# A pair of tokens must occur this often to become a token.
SMALLEST_COUNT = 2
BYTES = 256


def train_byte_level(
  lines: Sequence[str], vocab_size: int, normalizers: Sequence[Any] = ()
) -> Pipeline:
  """Trains a pipeline; the same lines give the same one for any number of threads.

  The library orders pairs of the same count by the numbers of their tokens. The bytes are numbered
  by the characters that stand for them, so that all numbers follow from the lines.

  Args:
    lines: the text.
    vocab_size: number of ids: the special tokens, 256 bytes, then merged pairs.
    normalizers: of the library, applied first.

  Raises:
    UnsupportedSize: for a vocabulary size that the lines do not support.
  """
  import tokenizers
  from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
  from tokenizers import normalizers as library

  smallest = len(SPECIAL_TOKENS) + BYTES
  if vocab_size < smallest:
    raise UnsupportedSize(
      f'vocab_size is {vocab_size}; expected at least {smallest}, for special tokens and bytes.',
      smallest,
    )
  pipeline = tokenizers.Tokenizer(models.BPE())
  if normalizers:
    pipeline.normalizer = library.Sequence(list(normalizers))
  # A space before the first word would be added after special tokens, too.
  pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  pipeline.decoder = decoders.ByteLevel()
  pipeline.post_processor = processors.ByteLevel(trim_offsets=True)
  text_parts.set_threads(None)
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=SMALLEST_COUNT,
    # The space before a masked word is a part of it.
    special_tokens=[AddedToken(name, lstrip=name == MASK) for name in SPECIAL_TOKENS],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  pipeline.train_from_iterator(lines, trainer)
  size = pipeline.get_vocab_size()
  if size < vocab_size:
    raise UnsupportedSize(
      f'vocab_size is {vocab_size}, more than this corpus supports; expected at most {size}.', size
    )
  return pipeline
