"""SentencePiece models as pipelines of the `tokenizers` library, which `transformers` opens.

A unigram model takes the most likely split of a text. SentencePiece adds logarithms in float32 over
the whole text, `tokenizers` in float64 word by word. Where two splits of a word are so similar that
float32 cannot distinguish them at the text's sum so far (rarely, and some thousand tokens into a
text; sooner in a run of one letter), either may be taken. BPE has no such ties.
"""

from typing import Any, TypeAlias

from electra_jax.data.tokenizers import charsmap
from electra_jax.data.tokenizers.sentencepiece_model import (
  BPE_MODEL,
  NORMAL_PIECE,
  SPACE,
  UNIGRAM_MODEL,
  UNUSED_PIECE,
  USER_DEFINED_PIECE,
  SentencePieceModel,
)
from electra_jax.data.tokenizers.tokenization import Pipeline, Tokenizer
from electra_jax.errors import UserError

PipelineModel: TypeAlias = Any  # of the `tokenizers` library

# Score of a piece that text never becomes, but that must be in the vocabulary under its name: less
# than any path of other pieces.
_NEVER = -1e6


def make_pipeline(tokenizer: Tokenizer, model: SentencePieceModel) -> Pipeline:
  """Returns the `tokenizers.Tokenizer` of a SentencePiece tokenizer.

  Args:
    tokenizer: the tokenizer.
    model: its model.

  Raises:
    UserError: the library cannot express the model, with the reason.
  """
  import tokenizers
  from tokenizers import decoders, pre_tokenizers

  if reason := _obstacle(tokenizer, model):
    raise UserError(
      f'the SentencePiece model cannot be written as a tokenizer.json: {reason}; use another '
      'tokenizer.'
    )
  make = _unigram if model.model_type == UNIGRAM_MODEL else _bpe
  pipeline = tokenizers.Tokenizer(make(tokenizer, model))
  pipeline.normalizer = _normalizer(model)
  # If no piece crosses a space, words can be split one by one, and the library caches them.
  matched = [text for text, _, kind in model.pieces if kind in (NORMAL_PIECE, USER_DEFINED_PIECE)]
  if SPACE in matched and all(SPACE not in text[1:] for text in matched):
    pipeline.pre_tokenizer = pre_tokenizers.Split(SPACE, 'merged_with_next')
  first_space = [decoders.Strip(' ', 1, 0)] if model.add_dummy_prefix else []
  pipeline.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *first_space]
  )
  return pipeline


def _obstacle(tokenizer: Tokenizer, model: SentencePieceModel) -> str | None:
  """Why the library cannot express a model; None where it can."""
  symbols = [
    text
    for i, (text, _, kind) in enumerate(model.pieces)
    if kind == USER_DEFINED_PIECE and i not in tokenizer.special_ids
  ]
  is_bpe = model.model_type == BPE_MODEL
  if model.model_type not in (UNIGRAM_MODEL, BPE_MODEL):
    return 'it is neither a unigram model nor BPE'
  if model.space_after_words:
    return 'its pieces end with the space of a word (treat_whitespace_as_suffix)'
  if not model.escape_whitespaces:
    return 'it keeps spaces as they are (escape_whitespaces)'
  if charsmap.make_normalizers(model.charsmap) is None:
    return (
      'its rules of normalization are not of the usual kind (nfkc, nmt_nfkc, either with _cf, or '
      'identity)'
    )
  if any(kind == UNUSED_PIECE for _, _, kind in model.pieces):
    return 'some of its pieces are marked as unused'
  if is_bpe and symbols:
    return f'the piece {symbols[0]!r} is a user-defined symbol of BPE'
  if is_bpe and not model.has_all_characters:
    return 'it has pieces with characters that are not pieces'
  rules = charsmap.parse_rules(model.charsmap) if symbols and model.charsmap else {}
  for text in symbols:
    if ' ' in text or any(character in rules for character in text):
      return f'its user-defined symbol {text!r} is kept from normalization'
  return None


def _unigram(tokenizer: Tokenizer, model: SentencePieceModel) -> PipelineModel:
  from tokenizers import models

  scores = list(model.scores.values())
  # A lower score would change the cost of unknown characters, which matters where a piece has
  # characters that are not pieces.
  never = _NEVER if model.has_all_characters else min(scores)
  highest = max(scores)

  def score(text: str, own: float, kind: int) -> float:
    if kind == NORMAL_PIECE:
      return own
    # SentencePiece's rule in unigram_model.cc, by which such a symbol wins over its parts.
    return len(text.encode()) * highest - 0.1 if kind == USER_DEFINED_PIECE else never

  vocabulary = [(text, score(text, own, kind)) for text, own, kind in model.pieces]
  return models.Unigram(vocabulary, unk_id=tokenizer.unk_id, byte_fallback=model.byte_fallback)


def _bpe(tokenizer: Tokenizer, model: SentencePieceModel) -> PipelineModel:
  """A BPE model with all pairs that make a piece as merges.

  SentencePiece merges any two neighbors that make a piece, the piece of the highest score first.
  """
  from tokenizers import models

  scores = model.scores
  pairs = [
    (-scores[text], -cut, text[:cut], text[cut:])
    for text in scores
    for cut in range(1, len(text))
    if text[:cut] in scores and text[cut:] in scores
  ]
  merges = [(left, right) for _, _, left, right in sorted(pairs)]
  ids = {text: i for i, (text, _, _) in enumerate(model.pieces)}
  unknown = tokenizer.tokens[tokenizer.unk_id]
  return models.BPE(
    ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback
  )


def _normalizer(model: SentencePieceModel) -> charsmap.Normalizer:
  """SentencePiece's normalizer.cc: first the rules, then spaces."""
  from tokenizers import Regex, normalizers

  steps = list(charsmap.make_normalizers(model.charsmap) or ())
  if model.remove_extra_whitespaces:
    steps += [normalizers.Replace(Regex('\\A +'), ''), normalizers.Replace(Regex(' {2,}'), ' ')]
  steps.append(normalizers.Replace(' ', SPACE))
  if model.add_dummy_prefix:
    steps.append(normalizers.Prepend(SPACE))
  if model.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(f'{SPACE}+\\z'), ''))
  return normalizers.Sequence(steps)
