"""SentencePiece models as pipelines of the `tokenizers` library, which `transformers` opens.

A unigram model takes the most likely split of a text. SentencePiece adds logarithms in float32 over
the whole text, `tokenizers` in float64 word by word. Where two splits of a word are so similar that
float32 cannot distinguish them at the text's sum so far (rarely, and some thousand tokens into a
text; sooner in a run of one letter), either may be taken. BPE has no such ties.
"""

from typing import Any, TypeAlias

from electra_jax.data.tokenizers import charsmap, portable_charsmap
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
PreTokenizer: TypeAlias = Any

# Ends of a text in regular expressions, as the library and JavaScript write them.
_BEGIN = r'(?<![\s\S])'
_END = r'(?![\s\S])'
# Inserted temporarily before a text that does not begin with a space: noncharacters, which no text
# has.
_NO_SPACE = '\U0001fffe\U0004fffe'
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
  from tokenizers import decoders

  if reason := _obstacle(tokenizer, model):
    raise UserError(
      f'the SentencePiece model cannot be written as a tokenizer.json: {reason}; use another '
      'tokenizer.'
    )
  make = _unigram if model.model_type == UNIGRAM_MODEL else _bpe
  pipeline = tokenizers.Tokenizer(make(tokenizer, model))
  pipeline.normalizer = _normalizer(model)
  pipeline.pre_tokenizer = _pre_tokenizer(model)
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
  if _rules(model) is None:
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


def _splits_at_spaces(model: SentencePieceModel) -> bool:
  """Whether no piece crosses a space, so that words can be split one by one."""
  matched = [text for text, _, kind in model.pieces if kind in (NORMAL_PIECE, USER_DEFINED_PIECE)]
  return SPACE in matched and all(SPACE not in text[1:] for text in matched)


def _rules(model: SentencePieceModel) -> list[charsmap.Normalizer] | None:
  """The rules of normalization, where possible in a form that JavaScript has, too.

  That form hides the beginning of a text that begins with characters that are removed, unless
  `_NO_SPACE` is inserted there.
  """
  found = None
  if _splits_at_spaces(model):
    found = portable_charsmap.make_normalizers(model.charsmap)
  return charsmap.make_normalizers(model.charsmap) if found is None else found


def _normalizer(model: SentencePieceModel) -> charsmap.Normalizer:
  """SentencePiece's normalizer.cc: first the rules, then spaces.

  The part of a text after a special token is normalized by itself. Only the pre-tokenizer knows
  which part is the first, so the space before a text is added there.
  """
  from tokenizers import Regex, normalizers

  steps = list(_rules(model) or ())
  doubled = SPACE
  if model.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(f'[ {SPACE}]+{_END}'), ''))
    steps.append(normalizers.Replace(Regex(' {2,}'), ' '))
    if not model.add_dummy_prefix:
      steps.append(normalizers.Replace(Regex(f'{_BEGIN} +'), ''))
  else:
    doubled += ' '
  if model.add_dummy_prefix:
    # The pre-tokenizer adds no space before one.
    steps.append(normalizers.Replace(Regex(f'{_BEGIN}(?=[{doubled}])'), ' '))
  if _splits_at_spaces(model):
    steps.append(normalizers.Replace(Regex(f'{_BEGIN}(?=[^ ])'), _NO_SPACE))
  return normalizers.Sequence(steps)


def _pre_tokenizer(model: SentencePieceModel) -> PreTokenizer:
  """Puts U+2581 before each word that a space precedes, and before the first word of a text.

  No space is added after a special token, as in "[MASK].". Where words are split, their spaces are
  removed before U+2581 is inserted, so that they do not count as characters of a token.
  """
  from tokenizers import Regex, pre_tokenizers

  if not _splits_at_spaces(model):
    scheme = 'first' if model.add_dummy_prefix else 'never'
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
  first_space = pre_tokenizers.Metaspace(replacement=' ', prepend_scheme='first', split=False)
  return pre_tokenizers.Sequence(
    [
      *([first_space] if model.add_dummy_prefix else []),
      pre_tokenizers.Split(Regex(f' (?:{_NO_SPACE})?(?=[^ {SPACE}])'), 'removed'),
      pre_tokenizers.Metaspace(prepend_scheme='always'),
      pre_tokenizers.Split(Regex(SPACE + _NO_SPACE), 'removed'),
    ]
  )
