"""Words that are added to a vocabulary, as tokens."""

from collections.abc import Callable, Sequence

from electra_jax.data.tokenizers.sentencepiece_model import (
  NORMAL_PIECE,
  SPACE,
  UNIGRAM_MODEL,
  SentencePieceModel,
)
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS
from electra_jax.data.tokenizers.tokenization import Pipeline, Tokenizer
from electra_jax.data.tokenizers.wordpiece_files import CONTINUATION, LONGEST_WORD
from electra_jax.errors import UserError

# How much likelier, in nats, a new unigram piece is than the pieces that its text was split into:
# enough to win in the float32 sums of a long text, too little to win anywhere else.
MARGIN = 0.1


def wordpiece_tokens(tokenizer: Tokenizer, pipeline: Pipeline, words: Sequence[str]) -> list[str]:
  """Returns the tokens of words that a WordPiece vocabulary does not have yet, in their order.

  Args:
    tokenizer: the WordPiece tokenizer.
    pipeline: its `tokenizers.Tokenizer`.
    words: as of `Tokenizer.with_words`.

  Raises:
    UserError: see `Tokenizer.with_words`; or the vocabulary has tokens that `transformers` added.
  """
  added = [token.content for token in pipeline.get_added_tokens_decoder().values()]
  if any(token not in _special_names(tokenizer) for token in added):
    raise UserError(
      'the vocabulary has tokens that were added with transformers, whose ids follow all others; '
      'more words would change these ids, so use a tokenizer without added tokens.'
    )
  known = set(tokenizer.tokens)
  tokens: list[str] = []
  for word in words:
    token = _wordpiece_token(tokenizer, pipeline, word)
    if token not in known:
      known.add(token)
      tokens.append(token)
  return tokens


def _wordpiece_token(tokenizer: Tokenizer, pipeline: Pipeline, word: str) -> str:
  text, inside = _checked_word(word, tokenizer)
  # A letter before the text shows whether it can continue a word. Punctuation cannot.
  normalized = pipeline.normalizer.normalize_str('a' + text if inside else text)
  parts = [part for part, _ in pipeline.pre_tokenizer.pre_tokenize_str(normalized)]
  if len(parts) != 1 or inside and len(parts[0]) < 2:
    raise _not_one_word(word, parts[1:] if inside else parts)
  token: str = CONTINUATION + parts[0][1:] if inside else parts[0]
  if len(token) > LONGEST_WORD:
    raise UserError(
      f'the word {word!r} cannot be added, since a word of more than {LONGEST_WORD} characters is '
      'always [UNK]; remove it.'
    )
  return token


def unigram_pieces(
  tokenizer: Tokenizer,
  model: SentencePieceModel,
  normalize: Callable[[str], str],
  words: Sequence[str],
) -> list[tuple[str, float]]:
  """Returns (text, score) of the pieces of words that a unigram model does not have yet.

  The score of a new piece is that of the pieces that its text was split into, plus `MARGIN`.

  Args:
    tokenizer: the SentencePiece tokenizer.
    model: its model.
    normalize: its normalization of texts.
    words: as of `Tokenizer.with_words`.

  Raises:
    UserError: see `Tokenizer.with_words`; or the model is not unigram.
  """
  if model.model_type != UNIGRAM_MODEL:
    raise UserError(
      'config.data.new_words is not supported for a BPE vocabulary, since a word would require '
      'every token on the way to it, and these would change how other words are split; use a '
      'unigram or WordPiece tokenizer.'
    )
  if model.space_after_words or not model.escape_whitespaces:
    raise UserError(
      'the words of the SentencePiece model do not begin with a space, so more words cannot be '
      'added; use another tokenizer.'
    )
  scores = model.scores
  other = {text for text, _, kind in model.pieces if kind != NORMAL_PIECE}
  lowest = min(scores.values())
  added: dict[str, float] = {}
  for word in words:
    text, inside = _checked_word(word, tokenizer)
    text = normalize(text).removeprefix(SPACE)
    if not text or SPACE in text:
      raise _not_one_word(word, text.split(SPACE) if text else [])
    piece = text if inside else SPACE + text
    if piece in other:
      raise UserError(
        f'the word {word!r} cannot be added, since {piece!r} is a special piece of the vocabulary; '
        'remove it.'
      )
    missing = [c for c in text if c not in scores and c not in added]
    if missing and len(piece) > 1:
      raise UserError(
        f'the word {word!r} cannot be added, since the vocabulary has no piece for {missing[0]!r}; '
        f'remove it, or add {CONTINUATION}{missing[0]} before it.'
      )
    if piece not in scores:
      added[piece] = 0.0
  has_all_characters = model.has_all_characters
  # Short pieces first: of several new pieces that begin a word, the longest must win.
  for piece in sorted(added, key=len):
    score = _best_score(piece, scores) + MARGIN
    # A new lowest score would change the cost of unknown characters, which matters where a piece
    # has characters that are not pieces.
    added[piece] = scores[piece] = score if has_all_characters else max(score, lowest)
  return list(added.items())


def _best_score(text: str, scores: dict[str, float]) -> float:
  """The greatest sum of scores of pieces that make up a text; an unknown character has the least.

  Args:
    text: any text.
    scores: of the pieces.
  """
  lowest = min(scores.values())
  best = [0.0]
  for end in range(1, len(text) + 1):
    sums = [
      best[start] + scores[text[start:end]] for start in range(end) if text[start:end] in scores
    ]
    best.append(max(sums, default=best[end - 1] + lowest))
  return best[-1]


def _special_names(tokenizer: Tokenizer) -> set[str]:
  return {*SPECIAL_TOKENS, *(tokenizer.tokens[i] for i in tokenizer.special_ids)}


def _checked_word(word: str, tokenizer: Tokenizer) -> tuple[str, bool]:
  """The text of a word, and whether `##` marks it as the inside of a word."""
  inside = word.startswith(CONTINUATION) and len(word) > len(CONTINUATION)
  text = word.removeprefix(CONTINUATION) if inside else word
  if text in _special_names(tokenizer):
    raise UserError(
      f'the word {word!r} cannot be added, since it is the name of a special token; remove it.'
    )
  return text, inside


def _not_one_word(word: str, parts: Sequence[str]) -> UserError:
  if len(parts) > 1:
    reason = f'it is {len(parts)} words for the tokenizer, {" ".join(parts)!r}'
  elif parts:
    reason = f'{parts[0]!r} is never inside a word'
  else:
    reason = 'normalization removes all of it'
  return UserError(
    f'the word {word!r} cannot be added, since {reason}; remove it, or write one word per line.'
  )
