"""SentencePiece models in folders of `transformers`, whose classes change ids and text.

Such a folder has a model and the name of a class, in `tokenizer_config.json` or by the model type
in `config.json`. What the class does with the model is done to the model here, so that the file
that is saved needs no class: its pieces are in the order of the ids, and added tokens are pieces.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from electra_jax import file_access
from electra_jax.data.tokenizers import sentencepiece_model, special_tokens
from electra_jax.data.tokenizers.sentencepiece_model import (
  CONTROL_PIECE,
  UNKNOWN_PIECE,
  USER_DEFINED_PIECE,
)
from electra_jax.data.tokenizers.special_tokens import MASK, SPECIAL_TOKENS, USUAL_NAMES
from electra_jax.data.tokenizers.wordpiece_files import (
  ADDED,
  ADDED_FILE,
  SETTINGS_FILE,
  parse_settings,
  text_of,
)
from electra_jax.errors import UserError

CONFIG_FILE = 'config.json'
# Ids of XLM-RoBERTa begin with these pieces; those of the model follow from its fourth piece on.
_XLM_ROBERTA = ('<s>', '<pad>', '</s>', '<unk>')
_XLM_ROBERTA_FROM = 3

Piece = tuple[str, float, int]


@dataclasses.dataclass(frozen=True)
class FolderClass:
  """What a class of `transformers` does with a SentencePiece model.

  Attributes:
    xlm_roberta_ids: whether ids are those of fairseq.
    appended: special tokens that follow the pieces of the model.
    extra_ids: how many tokens <extra_id_0> follow them, the last one first.
    quotes: whether quotes of LaTeX, `` and '', become ".
    keep_accents: default of the setting `keep_accents`.
    lowercase: default of the setting `do_lower_case`.
  """

  xlm_roberta_ids: bool = False
  appended: tuple[str, ...] = ()
  extra_ids: int = 0
  quotes: bool = False
  keep_accents: bool = True
  lowercase: bool = False


_CLASSES = {
  'AlbertTokenizer': FolderClass(quotes=True, keep_accents=False, lowercase=True),
  'XLNetTokenizer': FolderClass(quotes=True, keep_accents=False),
  'XLMRobertaTokenizer': FolderClass(xlm_roberta_ids=True, appended=('<mask>',)),
  'DebertaV2Tokenizer': FolderClass(appended=(MASK,)),
  'T5Tokenizer': FolderClass(extra_ids=100),
}
# `model_type` in config.json -> class, where no other file names it.
_CLASS_OF_MODEL = {
  'albert': 'AlbertTokenizer',
  'xlnet': 'XLNetTokenizer',
  'xlm-roberta': 'XLMRobertaTokenizer',
  'deberta-v2': 'DebertaV2Tokenizer',
  't5': 'T5Tokenizer',
}


@dataclasses.dataclass(frozen=True)
class TextSteps:
  """What is done to a text before the model's own normalization.

  Attributes:
    quotes: quotes of LaTeX become ".
    strip_accents: accents are stripped.
    lowercase: text is lower-cased.
  """

  quotes: bool = False
  strip_accents: bool = False
  lowercase: bool = False


def read_folder(
  content: bytes, places: Mapping[str, str], source: str, add_special_tokens: bool
) -> tuple[bytes, TextSteps]:
  """Returns the model with the ids of its folder, and what is done to a text before.

  Args:
    content: the model file.
    places: name -> path of the files beside it.
    source: the folder, for error messages.
    add_special_tokens: whether special tokens that are missing are appended.

  Raises:
    ValueError: the model is damaged.
    UserError: another file is damaged, or an added token has no place.
  """
  model = sentencepiece_model.parse_model(content)
  described = {
    name: parse_settings(file_access.read_bytes(places[name]), f'{name} of {source!r}')
    for name in (SETTINGS_FILE, ADDED_FILE, CONFIG_FILE)
    if name in places
  }
  settings = described.get(SETTINGS_FILE, {})
  kind = _folder_class(settings, described.get(CONFIG_FILE, {}))
  pieces = list(model.pieces)
  if kind.xlm_roberta_ids and [text for text, _, _ in pieces[:4]] != list(_XLM_ROBERTA):
    types = (CONTROL_PIECE, CONTROL_PIECE, CONTROL_PIECE, UNKNOWN_PIECE)
    first = [(name, 0.0, number) for name, number in zip(_XLM_ROBERTA, types, strict=True)]
    pieces = first + pieces[_XLM_ROBERTA_FROM:]
  _append_described(pieces, settings, described.get(ADDED_FILE, {}), kind, source)
  if add_special_tokens:
    _append_missing(pieces)
  if pieces != list(model.pieces):
    content = sentencepiece_model.with_pieces(content, pieces)
  return content, TextSteps(
    quotes=kind.quotes,
    strip_accents=not settings.get('keep_accents', kind.keep_accents),
    lowercase=bool(settings.get('do_lower_case', kind.lowercase)),
  )


def normalizers_of(steps: TextSteps) -> list[Any]:
  """The normalizers of the `tokenizers` library that do what is done to a text before."""
  from tokenizers import normalizers

  made: list[Any] = []
  if steps.quotes:
    made += [normalizers.Replace('``', '"'), normalizers.Replace("''", '"')]
  if steps.strip_accents:
    made += [normalizers.NFKD(), normalizers.StripAccents()]
  if steps.lowercase:
    made.append(normalizers.Lowercase())
  return made


def _folder_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> FolderClass:
  name = settings.get('tokenizer_class') or config.get('tokenizer_class')
  name = name or _CLASS_OF_MODEL.get(str(config.get('model_type')), '')
  return _CLASSES.get(str(name).removesuffix('Fast'), FolderClass())


def _append_described(
  pieces: list[Piece],
  settings: Mapping[str, Any],
  added: Mapping[str, Any],
  kind: FolderClass,
  source: str,
) -> None:
  """Appends the tokens that a folder adds to its model, in the order of their ids."""
  known = {text for text, _, _ in pieces}
  tokens = {int(i): (text, False) for text, i in added.items()}
  for i, token in settings.get(ADDED, {}).items():
    tokens[int(i)] = text_of(token), bool(token.get('special'))
  for name in kind.appended:
    if name not in known and all(text != name for text, _ in tokens.values()):
      tokens[max([len(pieces) - 1, *tokens]) + 1] = name, True
  count = int(settings.get('extra_ids', kind.extra_ids)) if kind.extra_ids else 0
  for number in range(count - 1, -1, -1):
    if all(text != f'<extra_id_{number}>' for text, _ in tokens.values()):
      tokens[max([len(pieces) - 1, *tokens]) + 1] = f'<extra_id_{number}>', True
  special = {name for names in USUAL_NAMES.values() for name in names}
  for i, (text, is_special) in sorted(tokens.items()):
    if text in known:
      continue
    if i != len(pieces):
      raise UserError(
        f'the token {text!r} was added to {source!r} as id {i}, which does not follow the ids '
        'before it; restore the files.'
      )
    control = is_special or text in special
    pieces.append((text, 0.0, CONTROL_PIECE if control else USER_DEFINED_PIECE))


def _append_missing(pieces: list[Piece]) -> None:
  names = {text for text, _, _ in pieces}
  unknown = any(kind == UNKNOWN_PIECE for _, _, kind in pieces)
  missing = [
    token
    for token in SPECIAL_TOKENS
    if not names.intersection(USUAL_NAMES[token]) and not (token == special_tokens.UNK and unknown)
  ]
  if missing:
    added = special_tokens.names_for_missing(missing, names)
    pieces += [(name, 0.0, CONTROL_PIECE) for name in added.values()]
    special_tokens.print_appended(added.values())


def is_own(pieces: Sequence[Piece]) -> bool:
  """Whether a model has the special tokens of a model that this package trains."""
  return {text for text, _, _ in pieces}.issuperset(SPECIAL_TOKENS)
