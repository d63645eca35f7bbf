"""Tokenizer files for `transformers`, whose `AutoTokenizer` gives the same ids."""

import json
from typing import Any

from electra_jax import console, json_reader
from electra_jax.data.tokenizers import pipeline_files, word_marks
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS, role_of
from electra_jax.data.tokenizers.tokenization import Pipeline, Tokenizer
from electra_jax.data.tokenizers.wordpiece_files import PIPELINE_FILE, SETTINGS_FILE


def files(tokenizer: Tokenizer, max_length: int | None, token_types: bool) -> dict[str, bytes]:
  """Returns the files of a folder that `transformers.AutoTokenizer` and `load_tokenizer` open.

  `transformers` gives [CLS], the ids of `tokenizer.encode` and [SEP], and for a pair the ids of the
  second text and [SEP]. Its ids differ in two cases. The name of a special token in a text, as in
  "Paris is [MASK]", is that token, and the text around it is encoded in parts; in a `Tokenizer` it
  is text, as in `transformers` with `split_special_tokens=True`. Ties of a unigram model may be
  decided differently; see `sentencepiece_pipeline`.

  Args:
    tokenizer: of any kind. One without a pipeline, as user code may register, gives its own files,
      which `transformers` does not open.
    max_length: tokens of the longest row that the model takes, special ones included, for
      `truncation=True`; None for no limit.
    token_types: whether the model has types for the two texts of a pair; if not, `transformers`
      makes no `token_type_ids`.

  Returns:
    Name -> content.

  Raises:
    UserError: a SentencePiece model that these files cannot express, with the reason.
  """
  if tokenizer.segment:
    console.say(
      'tokenizer',
      'transformers does not run the segmenter: put spaces between the words of its input.',
    )
  pipeline = tokenizer.to_pipeline()
  if pipeline is None:
    console.say(
      'tokenizer',
      f'transformers cannot open the tokenizer {tokenizer.kind!r}; its own files are written.',
      always=True,
    )
    return tokenizer.saved_files()
  content = _pipeline_file(pipeline, tokenizer, token_types)
  roles = _roles(tokenizer)
  added = json_reader.parse(pipeline.to_str(), PIPELINE_FILE)['added_tokens']
  inputs = ['input_ids', *(['token_type_ids'] if token_types else []), 'attention_mask']
  settings = {
    **json_reader.parse(tokenizer.files.get(SETTINGS_FILE, b'{}'), SETTINGS_FILE),
    **roles,
    'tokenizer_class': tokenizer.transformers_class,
    'added_tokens_decoder': {str(token.pop('id')): token for token in added},
    'model_input_names': inputs,
    'clean_up_tokenization_spaces': False,  # the decoder does it
    **({'model_max_length': max_length} if max_length else {}),
  }
  return {
    **tokenizer.saved_files(),
    PIPELINE_FILE: content,
    SETTINGS_FILE: _json(settings),
    'special_tokens_map.json': _json(roles),
  }


def _json(description: dict[str, Any]) -> bytes:
  return (json.dumps(description, indent=2, ensure_ascii=False) + '\n').encode()


def _roles(tokenizer: Tokenizer) -> dict[str, str]:
  """Role -> name of the special tokens."""
  ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  return {role_of(token): tokenizer.tokens[i] for token, i in zip(SPECIAL_TOKENS, ids, strict=True)}


def _pipeline_file(pipeline: Pipeline, tokenizer: Tokenizer, token_types: bool) -> bytes:
  """The tokenizer.json of a pipeline with special tokens and rows as this package has them.

  Without a change, it is the file that the tokenizer was read from.
  """
  from tokenizers import AddedToken

  before = pipeline.to_str()
  added = {token.content for token in pipeline.get_added_tokens_decoder().values() if token.special}
  names = [tokenizer.tokens[i] for i in tokenizer.special_ids]
  pipeline.add_special_tokens(
    [AddedToken(name, normalized=False) for name in names if name not in added]
  )
  if not _has_rows(pipeline, tokenizer, token_types):
    _set_rows(pipeline, tokenizer, token_types)
  if pipeline.to_str() == before and PIPELINE_FILE in tokenizer.files:
    return tokenizer.files[PIPELINE_FILE]
  return pipeline_files.serialized(pipeline)


def _has_rows(pipeline: Pipeline, tokenizer: Tokenizer, token_types: bool) -> bool:
  """Whether a pipeline makes rows as this package does, and offsets without spaces."""
  text = 'a b'
  one, pair = pipeline.encode(text), pipeline.encode(text, text)
  inside = pipeline.encode(text, add_special_tokens=False)
  first = [tokenizer.cls_id, *inside.ids, tokenizer.sep_id]
  second = [*inside.ids, tokenizer.sep_id]
  between = [tokenizer.sep_id] * (tokenizer.separators - 1)
  types = [0] * len(first) + [int(token_types)] * len(between + second)
  return (
    one.ids == first
    and pair.ids == first + between + second
    and (not token_types or pair.type_ids == types)
    and (not _is_byte_level(pipeline) or inside.offsets[-1][0] == text.index('b'))
  )


def _is_byte_level(pipeline: Pipeline) -> bool:
  description = json_reader.parse(pipeline.to_str(), PIPELINE_FILE)
  return isinstance(word_marks.find_marks(description), word_marks.ByteMarks)


def _set_rows(pipeline: Pipeline, tokenizer: Tokenizer, token_types: bool) -> None:
  """Sets where special tokens are in a row, and for byte-level BPE that offsets have no spaces."""
  from tokenizers import processors

  cls = tokenizer.tokens[tokenizer.cls_id]
  sep = tokenizer.tokens[tokenizer.sep_id]
  second = int(token_types)
  rows: Any = processors.TemplateProcessing(
    single=[f'{cls}:0', '$A:0', f'{sep}:0'],
    pair=[
      *(f'{cls}:0', '$A:0', f'{sep}:0'),
      *[f'{sep}:{second}'] * (tokenizer.separators - 1),
      *(f'$B:{second}', f'{sep}:{second}'),
    ],
    special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
  )
  if _is_byte_level(pipeline):
    trimmed = processors.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
    rows = processors.Sequence([trimmed, rows])
  pipeline.post_processor = rows
