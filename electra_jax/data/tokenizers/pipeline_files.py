"""Files of pipelines of the `tokenizers` library, as any project writes them.

A saved tokenizer is a `tokenizer.json`, byte for byte as it was found unless tokens had to be
added, and a `tokenizer_config.json` with the roles of the special tokens.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from electra_jax import input_limits, json_reader
from electra_jax.data.tokenizers import special_tokens, word_marks
from electra_jax.data.tokenizers.special_tokens import (
  CLS,
  SEP,
  SPECIAL_TOKENS,
  UNK,
  USUAL_NAMES,
  missing_tokens,
  role_of,
)
from electra_jax.data.tokenizers.wordpiece_files import (
  ADDED,
  ADDED_FILE,
  NAMES_FILE,
  PIPELINE_FILE,
  SETTINGS_FILE,
  parse_settings,
  text_of,
)
from electra_jax.errors import UserError

Pipeline: TypeAlias = Any  # a `tokenizers.Tokenizer`
Settings = dict[str, Any]

JSON_FILES = (SETTINGS_FILE, NAMES_FILE, ADDED_FILE)
# Roles of the two tokens that other projects put around a text.
_OTHER_ROLES = {CLS: 'bos_token', SEP: 'eos_token'}
# Roles in the order in which `transformers` adds tokens that a vocabulary lacks.
_ROLES = ('bos_token', 'eos_token', *map(role_of, (UNK, SEP, '[PAD]', CLS, '[MASK]')))
# A name is the first of these roles that claims it: a padding token that is the separator, too, is
# the separator.
_CLAIMING_ORDER = (CLS, SEP, '[MASK]', UNK, '[PAD]')
# A text that every pipeline encodes.
_PROBE = 'the cat, é 日 😀 1.'
_EXTRA = ('additional_special_tokens', 'extra_special_tokens')
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


def canonical_files(
  files: Mapping[str, bytes], source: str, add_special_tokens: bool
) -> dict[str, bytes]:
  """Returns the files of a pipeline as `save` writes them.

  Tokens that `transformers` would add to the pipeline from the files beside it are added here, too,
  with the same ids.

  Args:
    files: `tokenizer.json`, with or without the other files of `transformers`.
    source: where they come from, for error messages.
    add_special_tokens: whether special tokens that are missing are appended to the vocabulary.

  Raises:
    UserError: a file is damaged, or special tokens are missing.
  """
  pipeline = open_pipeline(files[PIPELINE_FILE], source)
  described = {
    name: parse_settings(files[name], f'{name} of {source!r}')
    for name in JSON_FILES
    if name in files
  }
  settings = described.get(NAMES_FILE, {}) | described.get(SETTINGS_FILE, {})
  before = pipeline.get_vocab_size()
  _add_described_tokens(pipeline, settings, described.get(ADDED_FILE, {}), source)
  description = json_reader.parse(pipeline.to_str(), PIPELINE_FILE)
  names = _find_names(pipeline.get_vocab(), settings, description)
  missing = [token for token in SPECIAL_TOKENS if token not in names]
  if missing and not add_special_tokens:
    raise missing_tokens(repr(source), missing)
  if missing:
    added = special_tokens.names_for_missing(missing, pipeline.get_vocab())
    _append(pipeline, list(added.values()))
    names |= added
    special_tokens.print_appended(added.values())
  unchanged = pipeline.get_vocab_size() == before
  kept = {
    name: settings[name] for name in ('bos_token', 'eos_token', *_EXTRA) if settings.get(name)
  }
  kept |= {role_of(token): names[token] for token in SPECIAL_TOKENS}
  return {
    PIPELINE_FILE: files[PIPELINE_FILE] if unchanged else serialized(pipeline),
    SETTINGS_FILE: (json.dumps(kept, indent=2) + '\n').encode(),
  }


def open_pipeline(content: bytes, source: str) -> Pipeline:
  """The `tokenizers.Tokenizer` of a tokenizer.json.

  Raises:
    UserError: the library cannot open it, with its reason.
  """
  import tokenizers

  what = f'the {PIPELINE_FILE} of {source!r}'
  json_reader.parse(content, what)
  try:
    pipeline = tokenizers.Tokenizer.from_str(content.decode('utf-8-sig'))
  except Exception as error:  # the library raises nothing more special
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{what} cannot be opened by tokenizers {tokenizers.__version__} ({reason}); restore it, or '
      'install the version that wrote it.'
    ) from None
  input_limits.check(pipeline.get_vocab_size(), input_limits.VOCABULARY_TOKENS, what, 'tokens')
  return pipeline


def serialized(pipeline: Pipeline) -> bytes:
  """The tokenizer.json of a pipeline."""
  text: str = pipeline.to_str(pretty=True)
  return f'{text}\n'.encode()


def runtime_pipeline(description: Settings, source: str) -> Pipeline:
  """The `tokenizers.Tokenizer` of a result of `runtime_description`.

  Raises:
    UserError: it fails for text.
  """
  import tokenizers

  pipeline = tokenizers.Tokenizer.from_str(json.dumps(description))
  pipeline.encode_special_tokens = True
  try:
    pipeline.encode(_PROBE, add_special_tokens=False)
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # a panic of the library is no Exception
    raise UserError(
      f'the {PIPELINE_FILE} of {source!r} fails for text ({" ".join(str(error).split())}); restore '
      'it.'
    ) from None
  return pipeline


def separators(content: bytes, sep: str) -> int:
  """The number of [SEP] between the two texts of a pair, by the template of a tokenizer.json.

  Args:
    content: of the file.
    sep: name of [SEP].

  Returns:
    1 or 2; 1 where the file has no template with both texts.
  """
  post = json_reader.parse(content, PIPELINE_FILE).get('post_processor') or {}
  for part in post.get('processors') or [post]:
    if part.get('type') == 'RobertaProcessing':
      return 2
    if part.get('type') == 'TemplateProcessing':
      names = [next(iter(piece.values()))['id'] for piece in part.get('pair') or []]
      if 'A' in names and 'B' in names:
        between = names[names.index('A') + 1 : names.index('B')]
        return min(2, max(1, between.count(sep)))
  return 1


def runtime_description(pipeline: Pipeline, role_ids: Mapping[str, int]) -> Settings:
  """A tokenizer.json that never gives one of the special tokens for its name.

  Other tokens that were added to the vocabulary are matched in a text. No token is added to a text.

  Args:
    pipeline: a `tokenizers.Tokenizer`, as its file has it.
    role_ids: name -> id of the special tokens, of which `unk_id` is one.
  """
  description: Settings = json_reader.parse(pipeline.to_str(), PIPELINE_FILE)
  special = set(role_ids.values())
  model = dict(description['model'])
  added = []
  for token in description.get('added_tokens') or []:
    added.append(token | {'special': token['id'] in special})
  if 'dropout' in model:
    model['dropout'] = None
  if model.get('type') == 'Unigram':
    if model.get('unk_id') is None:
      model['unk_id'] = role_ids['unk_id']
    # A unigram model matches its pieces anywhere, also those of special tokens. These get names
    # that no text has.
    pieces = model['vocab']
    renamed = {i for i in special if i < len(pieces) and i != model['unk_id']}
    model['vocab'] = [
      [f'\ufdd0{i}', score] if i in renamed else [text, score]
      for i, (text, score) in enumerate(pieces)
    ]
    added = [token for token in added if token['id'] not in renamed]
  return {
    **description,
    'added_tokens': added,
    'model': model,
    'truncation': None,
    'padding': None,
    'post_processor': None,
  }


def masking_description(description: Settings, content: bytes, mask: tuple[int, str]) -> Settings:
  """A result of `runtime_description` that also gives [MASK] for its name.

  Args:
    description: of the same tokenizer.
    content: of its tokenizer.json.
    mask: id and name of [MASK].
  """
  mask_id, name = mask
  file = json_reader.parse(content, PIPELINE_FILE)
  # As an export adds it, where the file does not have it among its added tokens.
  token = {'id': mask_id, 'content': name, **dict.fromkeys(_FLAGS, False)}
  for given in file.get('added_tokens') or []:
    token |= given if given['id'] == mask_id else {}
  model = dict(description['model'])
  if model.get('type') == 'Unigram' and mask_id < len(model['vocab']):  # it was renamed
    pieces = list(model['vocab'])
    pieces[mask_id] = [name, pieces[mask_id][1]]
    model['vocab'] = pieces
  added = {one['id']: one for one in description['added_tokens']}
  added[mask_id] = token | {'special': False}  # a special token would be text
  return description | {'model': model, 'added_tokens': [added[i] for i in sorted(added)]}


def _find_names(
  vocabulary: Mapping[str, int], settings: Settings, description: Settings
) -> dict[str, str]:
  """Special token -> its name in a vocabulary, for those that it has.

  The settings decide, then the names that are usual, then the place in the template of rows.
  """
  around = _template_names(description.get('post_processor'))
  found: dict[str, str] = {}
  for token in _CLAIMING_ORDER:
    given = [settings.get(role_of(token))]
    others = [settings.get(_OTHER_ROLES[token])] if token in _OTHER_ROLES else []
    candidates = [*given, *USUAL_NAMES[token], *others, *around.get(token, ())]
    if token == UNK:
      candidates.append(description['model'].get('unk_token'))
    names = [text_of(name) for name in candidates if name]
    name = next((n for n in names if n in vocabulary and n not in found.values()), None)
    if name is not None:
      found[token] = name
  return found


def _template_names(post_processor: Settings | None) -> dict[str, list[str]]:
  """Names that a template of rows has before and after the text."""
  found: dict[str, list[str]] = {CLS: [], SEP: []}
  for step in word_marks.components(post_processor):
    if step['type'] in ('BertProcessing', 'RobertaProcessing'):
      found[CLS].append(step['cls'][0])
      found[SEP].append(step['sep'][0])
    elif step['type'] == 'TemplateProcessing':
      names = [part.get('SpecialToken', {}).get('id') for part in step['single']]
      if names and names[0]:
        found[CLS].append(names[0])
      if len(names) > 1 and names[-1]:
        found[SEP].append(names[-1])
  return found


def _add_described_tokens(
  pipeline: Pipeline, settings: Settings, added: Settings, source: str
) -> None:
  """Adds the tokens of the files beside a tokenizer.json, as `transformers` does."""
  from tokenizers import AddedToken

  present = pipeline.get_vocab()
  try:
    listed = {int(i): token for i, token in settings.get(ADDED, {}).items()}
    listed |= {int(i): {'content': text} for text, i in added.items() if int(i) not in listed}
    for i, token in sorted(listed.items()):
      text = token['content']
      if text in present:
        continue
      flags = {flag: bool(token[flag]) for flag in _FLAGS if flag in token}
      pipeline.add_tokens([AddedToken(text, **flags)])
      if pipeline.token_to_id(text) != i:
        raise UserError(
          f'the token {text!r} was added to {source!r} as id {i}, which does not follow the ids '
          'before it; restore the files.'
        )
    given = [settings.get(role) for role in _ROLES]
    given += [token for name in _EXTRA for token in _listed(settings.get(name))]
    present = pipeline.get_vocab()
    texts = [text_of(token) for token in given if token]
  except (AttributeError, KeyError, TypeError, ValueError):
    raise UserError(
      f'the added tokens of {source!r} are damaged, since each requires an id and a text; restore '
      'the files.'
    ) from None
  _append(pipeline, [text for text in dict.fromkeys(texts) if text not in present])


def _listed(tokens: json_reader.Json) -> list[json_reader.Json]:
  """Extra tokens as a list: `transformers` 5 also writes an object of names and tokens."""
  return list(tokens.values()) if isinstance(tokens, dict) else list(tokens or [])


def _append(pipeline: Pipeline, names: list[str]) -> None:
  from tokenizers import AddedToken

  pipeline.add_special_tokens([AddedToken(name, normalized=False) for name in names])
