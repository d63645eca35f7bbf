"""Tokenizer files for `transformers`: the same ids from `AutoTokenizer`, by the `tokenizers` library alone."""

import json

from electra_jax.data.tokenizers import (
  sentencepiece_model,
  sentencepiece_tokenizer,
  wordpiece_tokenizer,
)
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import charsmap

# Of a piece that text never becomes, but that must be in the vocabulary under its name: less than any path of others.
_NEVER = -1e6


def files(tokenizer: Tokenizer, max_length: int | None, token_types: bool) -> dict[str, bytes]:
  """Name and content of the files of a folder that `transformers.AutoTokenizer` and `load_tokenizer` open.

  The ids of `transformers` are [CLS], those of `tokenizer.encode`, [SEP], and of a pair another part and [SEP]. They differ in
  two things.
  - A special token that stands in a text by its name, as in "Paris is [MASK]", is that token there, as people are used to, and
    the text around it is encoded in parts; in a `Tokenizer` it is text, as in `transformers` with `split_special_tokens=True`.
  - A unigram model takes the likeliest of all ways to cut a text. SentencePiece adds the logarithms in float32 over the whole
    text, `tokenizers` in float64 word by word. Where two ways to cut a word are so nearly as likely that float32 does not tell
    them apart at the text's sum so far (rarely, and some thousand tokens into a text; sooner in a run of one letter), either may
    be taken. BPE and WordPiece have no such ties.

  Args:
    tokenizer: of either kind.
    max_length: tokens of the longest row that the model takes, special ones included: where `truncation=True` cuts. None for no
      limit.
    token_types: whether the model has types for the two parts of a pair; if not, no `token_type_ids` are made.

  Raises:
    UserError: a SentencePiece model that these files cannot express, with the reason.
  """
  make = {'wordpiece': _wordpiece, 'sentencepiece': _sentencepiece}[tokenizer.kind]
  pipeline = make(tokenizer)
  _finish(pipeline, tokenizer, token_types)
  roles = _roles(tokenizer)
  settings = (
    json.loads(tokenizer.files.get(wordpiece_tokenizer.SETTINGS_FILE, b'{}'))
    | roles
    | {
      # The class for whatever has a tokenizer.json; BERT's is also read by versions that had no such file.
      'tokenizer_class': 'BertTokenizer'
      if tokenizer.kind == 'wordpiece'
      else 'PreTrainedTokenizerFast',
      'added_tokens_decoder': {
        str(token.pop('id')): token for token in json.loads(pipeline.to_str())['added_tokens']
      },
      'model_input_names': [
        'input_ids',
        *(['token_type_ids'] if token_types else []),
        'attention_mask',
      ],
      'clean_up_tokenization_spaces': False,  # the decoder does what there is to do
      **({'model_max_length': max_length} if max_length else {}),
    }
  )

  def written(description):
    return (json.dumps(description, indent=2, ensure_ascii=False) + '\n').encode()

  return {
    **tokenizer.files,
    wordpiece_tokenizer.ONE_FILE: (pipeline.to_str(pretty=True) + '\n').encode(),
    wordpiece_tokenizer.SETTINGS_FILE: written(settings),
    'special_tokens_map.json': written(roles),
  }


def _roles(tokenizer: Tokenizer) -> dict[str, str]:
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  return {
    f'{name[1:-1].lower()}_token': tokenizer.tokens[i]
    for name, i in zip(SPECIAL_TOKENS, ids, strict=True)
  }


def _finish(pipeline, tokenizer: Tokenizer, token_types: bool) -> None:
  """Special tokens, in the vocabulary as they are, and where they go."""
  from tokenizers import AddedToken, processors

  pipeline.add_special_tokens(
    [AddedToken(tokenizer.tokens[i], normalized=False) for i in tokenizer.special_ids]
  )
  cls, sep, second = (
    tokenizer.tokens[tokenizer.cls_id],
    tokenizer.tokens[tokenizer.sep_id],
    int(token_types),
  )
  pipeline.post_processor = processors.TemplateProcessing(
    single=[f'{cls}:0', '$A:0', f'{sep}:0'],
    pair=[f'{cls}:0', '$A:0', f'{sep}:0', f'$B:{second}', f'{sep}:{second}'],
    special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
  )


def _wordpiece(tokenizer: Tokenizer):
  return wordpiece_tokenizer.pipeline(tokenizer.files)


def _sentencepiece(tokenizer: Tokenizer):
  from tokenizers import Tokenizer as Pipeline
  from tokenizers import decoders, pre_tokenizers

  model = sentencepiece_model.read(tokenizer.files[sentencepiece_tokenizer.FILE])
  _check(model, tokenizer)
  pipeline = Pipeline(
    _unigram(model, tokenizer)
    if model.kind == sentencepiece_model.UNIGRAM
    else _bpe(model, tokenizer)
  )
  pipeline.normalizer = _normalizer(model)
  space = sentencepiece_tokenizer.SPACE
  # No piece goes on from one word to the next, so words may be cut one by one, and are remembered.
  matched = [
    text
    for text, _, kind in model.pieces
    if kind in (sentencepiece_model.NORMAL, sentencepiece_model.USER_DEFINED)
  ]
  if space in matched and all(space not in text[1:] for text in matched):
    pipeline.pre_tokenizer = pre_tokenizers.Split(space, 'merged_with_next')
  first_space = [decoders.Strip(' ', 1, 0)] if model.add_dummy_prefix else []
  pipeline.decoder = decoders.Sequence(
    [decoders.Replace(space, ' '), decoders.ByteFallback(), decoders.Fuse(), *first_space]
  )
  return pipeline


def _texts(model) -> dict[str, float]:
  return {text: score for text, score, kind in model.pieces if kind == sentencepiece_model.NORMAL}


def _spelled(model) -> bool:
  """Whether every character of a piece is one too, so that how many are unknown does not depend on how a text is cut."""
  texts = _texts(model)
  return all(character in texts for text in texts for character in text)


def _check(model, tokenizer: Tokenizer) -> None:
  types = [kind for _, _, kind in model.pieces]
  ordinary = [
    text
    for i, (text, _, kind) in enumerate(model.pieces)
    if kind == sentencepiece_model.USER_DEFINED and i not in tokenizer.special_ids
  ]
  bpe = model.kind == sentencepiece_model.BPE
  reason = None
  if model.kind not in (sentencepiece_model.UNIGRAM, sentencepiece_model.BPE):
    reason = 'it is neither a unigram model nor BPE'
  elif model.space_after_words:
    reason = 'its pieces end with the space of a word (treat_whitespace_as_suffix)'
  elif not model.escape_whitespaces:
    reason = 'it leaves spaces as they are (escape_whitespaces)'
  elif charsmap.normalizers(model.charsmap) is None:
    reason = 'its rules of normalization are not of the usual kind (nfkc, nmt_nfkc, either with _cf, or identity)'
  elif sentencepiece_model.UNUSED in types:
    reason = 'some of its pieces are marked as unused'
  elif bpe and ordinary:
    reason = f'the piece {ordinary[0]!r} is a user-defined symbol of BPE'
  elif bpe and not _spelled(model):
    reason = 'it has pieces with characters that are no pieces'
  else:
    table = charsmap.rules(model.charsmap) if ordinary and model.charsmap else {}
    if changed := [
      text for text in ordinary if ' ' in text or any(character in table for character in text)
    ]:
      reason = f'its user-defined symbol {changed[0]!r} is kept from normalization'
  if reason:
    raise UserError(
      f'the SentencePiece model cannot be written as a tokenizer.json: {reason}; use another tokenizer'
    )


def _unigram(model, tokenizer: Tokenizer):
  from tokenizers import models

  scores = list(_texts(model).values())
  # A lower score would change what unknown characters cost, which matters only where pieces have characters that are none.
  never = _NEVER if _spelled(model) else min(scores)

  def score(text, own, kind):
    if kind == sentencepiece_model.NORMAL:
      return own
    # SentencePiece's own rule, in unigram_model.cc, so that such a symbol wins over what it could be cut into.
    return (
      len(text.encode()) * max(scores) - 0.1 if kind == sentencepiece_model.USER_DEFINED else never
    )

  vocabulary = [(text, score(text, own, kind)) for text, own, kind in model.pieces]
  return models.Unigram(vocabulary, unk_id=tokenizer.unk_id, byte_fallback=model.byte_fallback)


def _bpe(model, tokenizer: Tokenizer):
  """SentencePiece joins whatever two neighbours make a piece, the piece of the highest score first: all such pairs are merges."""
  from tokenizers import models

  scores = _texts(model)
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


def _normalizer(model):
  """As SentencePiece's normalizer.cc: rules, then spaces."""
  from tokenizers import Regex, normalizers

  space, steps = sentencepiece_tokenizer.SPACE, list(charsmap.normalizers(model.charsmap))
  if model.remove_extra_whitespaces:
    steps += [normalizers.Replace(Regex('\\A +'), ''), normalizers.Replace(Regex(' {2,}'), ' ')]
  steps.append(normalizers.Replace(' ', space))
  if model.add_dummy_prefix:
    steps.append(normalizers.Prepend(space))
  if model.remove_extra_whitespaces:
    steps.append(normalizers.Replace(Regex(f'{space}+\\z'), ''))
  return normalizers.Sequence(steps)
