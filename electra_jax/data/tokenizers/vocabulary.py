"""A vocabulary that goes on from another: more words, which ids are carried over, and the pieces that new tokens were."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from electra_jax import file_access
from electra_jax.data.tokenizers import (
  sentencepiece_model,
  sentencepiece_tokenizer,
  wordpiece_tokenizer,
)
from electra_jax.data.tokenizers.special_tokens import CLS, MASK, PAD, SEP, UNK
from electra_jax.data.tokenizers.tokenization import Tokenizer, from_files
from electra_jax.errors import UserError

# How much likelier, in nats, a new unigram piece is than what its text was cut into: enough to win in the float32 sums of a
# long text, too little to win anywhere else.
MARGIN = 0.1
# With less of it known, a vocabulary is another one rather than one that has grown.
KNOWN_SHARE = 0.5


def read_words(path: str | os.PathLike) -> list[str]:
  """The words of a UTF-8 file, a line each, in its order. Space around them and blank lines are left out.

  Raises:
    UserError: there is no such file, it is not UTF-8, or it holds no word.
  """
  path = os.fspath(path)
  if not file_access.exists(path):
    raise UserError(
      f'no list of words at {path!r}: nothing is there; name a text file with a word a line'
    )
  try:
    text = file_access.read_bytes(path).decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'the list of words {path!r} is not UTF-8 at byte {error.start}; save it as UTF-8, a word a line'
    ) from None
  words = [word for line in text.splitlines() if (word := line.strip())]
  if not words:
    raise UserError(f'the list of words {path!r} is empty; give a word a line')
  return words


def extended(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
  """The tokenizer with more words, whose ids follow those that are there, in the order given.

  Each word is normalized as the tokenizer normalizes text and becomes one token; `##ing` means a token inside of a word, for
  either kind. Words that are tokens already are left out: `new.size - tokenizer.size` were added. In running text a new word is
  its new token, and so is the beginning of a longer word where the vocabulary has nothing longer (WordPiece), or where the longer
  word was cut at that very place before or nearly as well could have been (unigram); all else is encoded as before. A unigram
  piece gets the score of what its text was cut into and `MARGIN`.

  Args:
    tokenizer: WordPiece, or SentencePiece's unigram. In a BPE vocabulary a word is made by joining tokens two by two, so a new
      one would need all those on the way, which other words would be cut with, too.
    words: as of `read_words`.

  Raises:
    UserError: BPE; a vocabulary with tokens that `transformers` added; or words that are empty, special tokens, more than one
      word to the tokenizer, or have characters that the vocabulary lacks.
  """
  return {'wordpiece': _more_wordpieces, 'sentencepiece': _more_unigram_pieces}[tokenizer.kind](
    tokenizer, words
  )


def carried_over(old: Tokenizer, new: Tokenizer) -> tuple[np.ndarray, list[int]]:
  """Where the tokens of a new vocabulary are in an old one.

  Tokens are the same by their text, special tokens by their role whatever their names.

  Returns:
    The old id of each new one, int32 `[new.size]`, -1 where it has none; and the new ids that have none.

  Raises:
    UserError: fewer than `KNOWN_SHARE` of the new tokens are known.
  """
  ids = {token: i for i, token in enumerate(old.tokens) if i not in old.special_ids}
  found = np.array([ids.get(token, -1) for token in new.tokens], np.int32)
  for role in ('pad_id', 'unk_id', 'cls_id', 'sep_id', 'mask_id'):
    found[getattr(new, role)] = getattr(old, role)
  known = int((found >= 0).sum())
  if known < KNOWN_SHARE * new.size:
    raise UserError(
      f'only {known} of {new.size} tokens of the tokenizer are known to that which the weights were trained with: '
      'it is another vocabulary; use the tokenizer of the weights, or that one with more words'
    )
  return found, np.flatnonzero(found < 0).tolist()


def pieces_of(old: Tokenizer, new: Tokenizer, new_ids: Sequence[int]) -> list[np.ndarray]:
  """What the text of each new token was before: the ids of an old vocabulary that it is cut into, int32 `[pieces]`.

  A token at the start of a word is cut as such a one, a token inside of a word as what is inside where that can be.
  Unknown characters are left out; [UNK] stands where nothing else does.
  """
  ids = {token: i for i, token in enumerate(old.tokens) if i not in old.special_ids}
  found = []
  for text, starts in (_plain(new, i) for i in new_ids):
    if starts:
      pieces = old.encode(text)
    elif old.kind == 'wordpiece':
      pieces = _longest_first(text, ids) or old.encode(text)
    else:
      pieces = _without_space(text, old, ids)
    pieces = [i for i in pieces if i != old.unk_id] or [old.unk_id]
    found.append(np.array(pieces, np.int32))
  return found


def _plain(tokenizer: Tokenizer, token_id: int) -> tuple[str, bool]:
  """The text that a token stands for, and whether it starts a word."""
  token = tokenizer.tokens[token_id]
  if tokenizer.kind == 'wordpiece':
    starts = not token.startswith(wordpiece_tokenizer.CONTINUATION)
    return token.removeprefix(wordpiece_tokenizer.CONTINUATION), starts
  starts = token.startswith(sentencepiece_tokenizer.SPACE)
  return token.replace(sentencepiece_tokenizer.SPACE, ' ').strip(), starts


def _longest_first(text: str, ids: dict[str, int]) -> list[int]:
  """WordPiece's way through the inside of a word; nothing where it does not get to the end."""
  found, start = [], 0
  while start < len(text):
    end = next(
      (
        end
        for end in range(len(text), start, -1)
        if wordpiece_tokenizer.CONTINUATION + text[start:end] in ids
      ),
      None,
    )
    if end is None:
      return []
    found.append(ids[wordpiece_tokenizer.CONTINUATION + text[start:end]])
    start = end
  return found


def _without_space(text: str, old: Tokenizer, ids: dict[str, int]) -> list[int]:
  """SentencePiece's way through the inside of a word: as through a word, but without the space before it where that can be."""
  first, *rest = old.encode(text) or [old.unk_id]
  inside = old.tokens[first].removeprefix(sentencepiece_tokenizer.SPACE)
  if not inside:
    return rest
  return [ids.get(inside, first), *rest]


def _more_wordpieces(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
  mark, file = wordpiece_tokenizer.CONTINUATION, wordpiece_tokenizer.FILE
  pipeline = wordpiece_tokenizer.pipeline(tokenizer.files)
  if any(token not in _specials(tokenizer) for token in _added_texts(pipeline)):
    raise UserError(
      'the vocabulary has tokens that were added to it with transformers, whose ids come after its own; more words '
      'would move them: use a tokenizer without them'
    )

  def cut(text):
    return [
      word
      for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(
        pipeline.normalizer.normalize_str(text)
      )
    ]

  known, tokens = set(tokenizer.tokens), []
  for word in words:
    inner = word.startswith(mark) and len(word) > len(mark)
    _refuse_special(word.removeprefix(mark) if inner else word, tokenizer)
    # What follows a letter is inside of a word, unless it is one of its own, as punctuation is.
    parts = cut(('a' if inner else '') + word.removeprefix(mark if inner else ''))
    if len(parts) != 1 or inner and len(parts[0]) < 2:
      _refuse(word, parts[inner:] if inner else parts)
    token = mark + parts[0][1:] if inner else parts[0]
    if len(token) > wordpiece_tokenizer.LONGEST_WORD:
      longest = wordpiece_tokenizer.LONGEST_WORD
      raise UserError(
        f'the word {word!r} cannot be added: one longer than {longest} characters is always [UNK]'
      )
    if token not in known:
      known.add(token)
      tokens.append(token)
  more = ''.join(f'{token}\n' for token in tokens).encode()
  return from_files(tokenizer.kind, tokenizer.files | {file: tokenizer.files[file] + more})


def _more_unigram_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
  import sentencepiece

  file, space, mark = (
    sentencepiece_tokenizer.FILE,
    sentencepiece_tokenizer.SPACE,
    wordpiece_tokenizer.CONTINUATION,
  )
  model = sentencepiece_model.read(tokenizer.files[file])
  if model.kind != sentencepiece_model.UNIGRAM:
    raise UserError(
      'a BPE vocabulary cannot be given more words: a word would need every token on the way to it, and other '
      'words would be cut with those; use a unigram or WordPiece tokenizer'
    )
  if model.space_after_words or not model.escape_whitespaces:
    raise UserError(
      'the SentencePiece model does not begin its words with a space, so it cannot be given more; use another one'
    )
  processor = sentencepiece.SentencePieceProcessor()
  processor.load_from_serialized_proto(tokenizer.files[file])
  scores = {text: score for text, score, kind in model.pieces if kind == sentencepiece_model.NORMAL}
  other = {text for text, _, kind in model.pieces if kind != sentencepiece_model.NORMAL}
  spelled = all(character in scores for text in scores for character in text)
  lowest, tokens = min(scores.values()), {}
  for word in words:
    inner = word.startswith(mark) and len(word) > len(mark)
    _refuse_special(word.removeprefix(mark) if inner else word, tokenizer)
    text = processor.normalize(word.removeprefix(mark if inner else '')).removeprefix(space)
    if not text or space in text:
      _refuse(word, text.split(space) if text else [])
    token = text if inner else space + text
    if token in other:
      raise UserError(
        f'the word {word!r} cannot be added: {token!r} is a special piece of the vocabulary; leave it out'
      )
    missing = [
      character for character in text if character not in scores and character not in tokens
    ]
    if missing and len(token) > 1:
      raise UserError(
        f'the word {word!r} cannot be added: the vocabulary has no piece for {missing[0]!r}; leave it out, or have '
        f'{mark}{missing[0]} before it'
      )
    if token not in scores:
      tokens[token] = None
  # Shorter ones first: of several new pieces that begin a word, the longest is to win.
  for token in sorted(tokens, key=len):
    score = _likeliest(token, scores) + MARGIN
    # A lower score than any would change what unknown characters cost; it matters where pieces have characters that are none.
    tokens[token] = scores[token] = score if spelled else max(score, lowest)
  return from_files(
    tokenizer.kind,
    {file: sentencepiece_model.appended(tokenizer.files[file], list(tokens.items()))},
  )


def _likeliest(text: str, scores: dict[str, float]) -> float:
  """The greatest sum of scores of pieces that make up a text; for a character that is none, the least score."""
  best = [0.0]
  for end in range(1, len(text) + 1):
    best.append(
      max(
        [
          best[start] + scores[text[start:end]] for start in range(end) if text[start:end] in scores
        ],
        default=best[end - 1] + min(scores.values()),
      )
    )
  return best[-1]


def _added_texts(pipeline) -> Iterable[str]:
  return [token.content for token in pipeline.get_added_tokens_decoder().values()]


def _specials(tokenizer: Tokenizer) -> set[str]:
  return {PAD, UNK, CLS, SEP, MASK} | {tokenizer.tokens[i] for i in tokenizer.special_ids}


def _refuse_special(word: str, tokenizer: Tokenizer) -> None:
  if word in _specials(tokenizer):
    raise UserError(
      f'the word {word!r} cannot be added: it is the name of a special token; leave it out'
    )


def _refuse(word: str, parts: Sequence[str]) -> None:
  reason = (
    f'to the tokenizer it is {len(parts)} words, {" ".join(parts)!r}'
    if len(parts) > 1
    else (
      f'{parts[0]!r} is never inside of a word'
      if parts
      else 'nothing is left of it when it is normalized'
    )
  )
  raise UserError(
    f'the word {word!r} cannot be added: {reason}; leave it out, or give its words a line each'
  )
