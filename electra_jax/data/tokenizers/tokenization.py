"""Text to token ids and back: the `Tokenizer` protocol, and opening and training tokenizers.

Each kind of tokenizer is a subclass of `Tokenizer`. The names in config.data.tokenizer, such as
'unigram', and the classes that they train are listed in registry.py.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from electra_jax import checksums, console, file_access, hub, json_reader, registry
from electra_jax.config import declarations
from electra_jax.data.tokenizers import masked_text, segmenters, text_parts, training_sample
from electra_jax.data.tokenizers.special_tokens import (
  OWN_NAMES,
  SPECIAL_TOKENS,
  find_special_tokens,
)
from electra_jax.data.tokenizers.tokenizer_settings import (
  NoOffsets,
  Options,
  Overrides,
  TokenizerSettings,
)
from electra_jax.data.tokenizers.training_sample import Sample
from electra_jax.errors import UserError

__all__ = [
  'SPECIAL_TOKENS',
  'NoOffsets',
  'Pipeline',
  'Sample',
  'Tokenizer',
  'TokenizerSettings',
  'from_files',
  'holds_tokenizer',
  'load_tokenizer',
  'settings_identity',
  'train_tokenizer',
]

# Name, user code and options of a tokenizer that user code registered, beside its files.
REGISTERED_FILE = 'registered_tokenizer.json'
# File that a path names by itself -> the file of a folder that it replaces. Others are models of
# SentencePiece.
_SINGLE_FILES = {'.txt': 'vocab.txt', '.json': 'tokenizer.json'}

# Beginnings of files that exports have beside a tokenizer.
_OTHER_FILES = ('config.json', 'README', 'model.safetensors', 'model.ckpt', 'checkpoint', 'hparams')

# Beginning of the name of a repository of the Hugging Face Hub.
_HUB = 'hf:'

Pipeline: TypeAlias = Any  # a `tokenizers.Tokenizer`; the library is imported where it is used


class Tokenizer(abc.ABC):
  """A vocabulary, and how text is split into its tokens.

  Encoding never gives a special token except [UNK]; callers add [CLS] and [SEP]. A text that
  contains the name of a special token, such as [MASK], is encoded as any text.

  A subclass in user code defines `kind`, `__init__`, `train`, `encode_short` and
  `decode_ordinary`. All other methods have defaults. Its `kind` is the name that it is registered
  under. All that decides the ids must be in `files` and in the options, since a tokenizer is saved,
  sent to other processes and recognized by these.

  Attributes:
    tokens: the text of each id as the vocabulary has it, `[size]`.
    pad_id: id of [PAD]; in the same way `unk_id`, `cls_id`, `sep_id` and `mask_id`.
    files: name -> content of the files that define the tokenizer.
    options: the dataclass of options of a tokenizer that user code registered, otherwise None.
    segment: function that gives the words of a text, of user code, else None.
    origin: 'org/name@commit' of a tokenizer that was opened from the Hugging Face Hub, else ''.
    separators: number of [SEP] between the two texts of a row: 1, or 2 as RoBERTa has them.
  """

  # Part of the fingerprint. For a tokenizer of user code, the name that it is registered under.
  kind: ClassVar[str] = ''
  # User code: raise it when the same files and options begin to give other ids, so that prepared
  # corpora are not reused.
  version: ClassVar[int] = 0
  # How tokens show where words begin, in one sentence for readers of --mode=inspect.
  notation: str = ''
  # Whether tokens show where a text has spaces. WordPiece drops spaces around punctuation.
  keeps_spaces: bool = True
  # What helps where characters become [UNK], as the end of a sentence that begins with "use".
  unknown_remedy: ClassVar[str] = (
    'SentencePiece with byte fallback (config.data.tokenizer=unigram and '
    'config.data.byte_fallback=yes), or byte-level BPE'
  )
  # Names of the files by which a folder is recognized. Kinds of user code need none.
  main_files: ClassVar[tuple[str, ...]] = ()
  # Class of `transformers` for an exported tokenizer; this one opens any tokenizer.json.
  transformers_class: str = 'PreTrainedTokenizerFast'
  # Whether the original ELECTRA program reads the files.
  read_by_original_program: bool = False

  def __init__(
    self,
    files: Mapping[str, bytes],
    tokens: Iterable[str],
    special_ids: Mapping[str, int] | None = None,
    options: Options = None,
  ) -> None:
    """Sets the attributes. A subclass takes (files, source, options), see `from_files`.

    Args:
      files: name -> content.
      tokens: the vocabulary, in the order of its ids.
      special_ids: of `find_special_tokens`; None to find [PAD], [UNK], ... in `tokens`.
      options: the dataclass of options; None for none.

    Raises:
      UserError: the vocabulary lacks special tokens.
    """
    self.files = dict(files)
    self.tokens = tuple(tokens)
    self.options = options
    self.origin = ''
    self.separators = 1
    self.segment = segmenters.find_segmenter(self.files, self.kind)
    source = f'the tokenizer {self.kind!r}'
    ids = special_ids or find_special_tokens(self.tokens, OWN_NAMES, source)
    self.pad_id = ids['pad_id']
    self.unk_id = ids['unk_id']
    self.cls_id = ids['cls_id']
    self.sep_id = ids['sep_id']
    self.mask_id = ids['mask_id']

  #### What a kind of tokenizer defines ####

  @classmethod
  @abc.abstractmethod
  def train(cls, sample: Sample, settings: TokenizerSettings) -> dict[str, bytes]:
    """Trains on a sample and returns the files.

    The same sample and settings must give the same files on any machine.

    Args:
      sample: lines of the corpus.
      settings: with `options` as the dataclass that was registered.

    Raises:
      UserError: for a vocabulary size that the sample does not support.
    """

  @abc.abstractmethod
  def encode_short(self, texts: list[str], threads: int | None) -> list[np.ndarray]:
    """Token ids of texts of at most `LONG_TEXT` characters, int32 `[tokens]` each.

    Args:
      texts: any text.
      threads: number of threads; None for all cores, 1 to start no thread.
    """

  @abc.abstractmethod
  def decode_ordinary(self, ids: Sequence[int]) -> str:
    """The text of token ids, none of them special."""

  def encode_short_with_offsets(
    self, texts: list[str], threads: int | None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """`encode_short` with the characters of each token, int32 `[tokens, 2]`.

    Raises:
      NoOffsets: the kind does not define it.
    """
    del texts, threads
    raise NoOffsets(
      f'the tokenizer {self.kind!r} has no character offsets, which this task requires; choose '
      'another tokenizer.'
    )

  def compute_word_starts(self) -> np.ndarray:
    """See `word_starts`.

    Raises:
      UserError: the kind does not define it.
    """
    raise UserError(
      f'the tokenizer {self.kind!r} does not define where words begin; set '
      '--config.objective.masking=uniform.'
    )

  def surface(self, token_id: int) -> tuple[bool, str]:
    """Whether a space precedes the token, and its text without the vocabulary's marks."""
    return False, self.tokens[token_id]

  def byte_value(self, token_id: int) -> int | None:
    """The byte of UTF-8 that a token stands for; None for tokens of text."""
    del token_id
    return None

  def partial_bytes(self, token_id: int) -> bytes | None:
    """The UTF-8 of a token that is a part of a character; None for tokens of text."""
    value = self.byte_value(token_id)
    return None if value is None else bytes([value])

  def token_bytes(self, token_id: int) -> bytes:
    """The UTF-8 that a token stands for, white space before and after it included.

    Characters that a text loses are found by these, see `character_losses`.
    """
    partial = self.partial_bytes(token_id)
    follows_space, text = self.surface(token_id)
    return b' ' * follows_space + (text.encode('utf-8', 'replace') if partial is None else partial)

  def compute_word_ends(self) -> np.ndarray:
    """See `word_ends`."""
    return np.zeros(self.size, bool)

  def encode_inside_word(self, text: str) -> list[int]:
    """Ids of a text that continues a word."""
    return self.encode(text)

  def encode_around_masks(self, parts: Sequence[str]) -> list[int]:
    """Ids of a text whose parts are separated by [MASK]; see `masked_text`."""
    return masked_text.encode(self, parts)

  def with_words(self, words: Sequence[str]) -> 'Tokenizer':
    """The tokenizer with more words, whose ids follow the present ones in the given order.

    Each word is normalized as the tokenizer normalizes text, and becomes one token. `##ing` means a
    token inside a word, for each kind. Words that are tokens already are skipped.

    Args:
      words: as of `vocabulary.read_words`.

    Raises:
      UserError: the kind does not support it, or a word cannot become a token.
    """
    del words
    raise UserError(
      f'config.data.new_words is not supported for the tokenizer {self.kind!r}; expected a unigram '
      'or WordPiece tokenizer.'
    )

  def with_segmenter(self, name: str) -> 'Tokenizer':
    """The tokenizer with a segmenter, which separates the words of texts before.

    Raises:
      UserError: no segmenter has this name.
    """
    files = self.files | {segmenters.SEGMENTER_FILE: segmenters.segmenter_record(name)}
    made = from_files(self.kind, files, self.kind, _plain_options(self.options))
    made.origin = self.origin
    return made

  def to_pipeline(self) -> Pipeline | None:
    """The same tokenizer as a `tokenizers.Tokenizer`, which `transformers` opens.

    None where the kind has none. A run with such a tokenizer is exported with the tokenizer's own
    files. Special tokens and the template of rows are added by `interop.tokenizer_files`.

    Raises:
      UserError: this tokenizer cannot be expressed, with the reason.
    """
    return None

  @classmethod
  def training_title(cls, settings: TokenizerSettings) -> str:
    """What is being trained, for the console."""
    return settings.kind

  @classmethod
  def relevant_settings(cls, settings: TokenizerSettings) -> list[Any]:
    """The settings that decide what is trained, beside kind and vocabulary size, as JSON has them.

    Trained tokenizers are cached by these.
    """
    return [cls.version, _plain_options(settings.options)]

  @classmethod
  def open_files(
    cls, places: Mapping[str, str], source: str, overrides: Overrides
  ) -> 'Tokenizer | None':
    """Opens a tokenizer from the files in a folder; None where they are not of this kind.

    A kind of user code needs no such method: its folders have a `REGISTERED_FILE`.

    Args:
      places: name -> path of each file in the folder.
      source: the folder, for error messages.
      overrides: what the user decides.

    Raises:
      UserError: see `load_tokenizer`.
    """
    del places, source, overrides
    return None

  #### What all have in common ####

  @property
  def size(self) -> int:
    """The number of ids, special tokens included."""
    return len(self.tokens)

  @property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of the special tokens, ascending."""
    return tuple(sorted((self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)))

  @property
  def fingerprint(self) -> str:
    """A hash of all that decides how text is encoded."""
    digest = hashlib.blake2b(self.kind.encode(), digest_size=16)
    for name, content in sorted(self.files.items()):
      digest.update(name.encode() + b'\0' + hashlib.blake2b(content).digest())
    if self.options is not None or self.version:
      plain = [self.version, _plain_options(self.options)]
      digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()

  @functools.cached_property
  def ordinary_ids(self) -> dict[str, int]:
    """Token -> id of all tokens that are not special."""
    special = set(self.special_ids)
    return {token: i for i, token in enumerate(self.tokens) if i not in special}

  @functools.cached_property
  def token_outputs(self) -> tuple[bytes, ...]:
    """`token_bytes` of each id."""
    return tuple(map(self.token_bytes, range(self.size)))

  @functools.cached_property
  def word_starts(self) -> np.ndarray:
    """Whether each token begins a word, bool `[size]`, read-only.

    A word of a text is a token that begins one and the tokens after it that do not. WordPiece: a
    token without `##` begins a word. SentencePiece: a piece that begins with a space (U+2581), with
    punctuation or a symbol, or with a character of a script that is written without spaces, where
    each piece is a word unless a segmenter separates words.

    Raises:
      UserError: the tokens do not show where words begin.
    """
    starts = self.compute_word_starts()
    starts.setflags(write=False)
    return starts

  @functools.cached_property
  def word_ends(self) -> np.ndarray:
    """Whether a word begins after each token, whatever follows it, bool `[size]`, read-only.

    So it is after a line break of byte-level BPE, and after a token with `</w>`.
    """
    ends = self.compute_word_ends()
    ends.setflags(write=False)
    return ends

  @property
  def long_text_cut(self) -> text_parts.Cut:
    """How a long text is split so that its parts have the ids of the whole text."""
    return text_parts.Cut.DROP_SPACE

  def encode_arrays(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
    """Token ids of each text, int32 `[tokens]`, without [CLS] and [SEP].

    A text longer than `LONG_TEXT` characters is split at white space, which gives the ids of the
    whole text (for a unigram model up to ties that float32 decides); a stretch of that length
    without white space is split anywhere. Lone surrogates, which cannot be encoded, count as
    U+FFFD.

    Args:
      texts: any text.
      threads: None for all cores; 1 for the calling thread only, without a pool, as in worker
        processes. SentencePiece uses any other number as it is, WordPiece uses all cores.
    """
    if self.segment:
      texts = [segmenters.separated(text, self.segment)[0] for text in texts]
    encoded: list[list[np.ndarray]] = [[] for _ in texts]
    for owners, _, parts in text_parts.calls(texts, self.long_text_cut):
      rows = text_parts.without_surrogates(self.encode_short, parts, threads)
      for owner, ids in zip(owners, rows, strict=True):
        encoded[owner].append(ids)
    empty = np.zeros(0, np.int32)
    return [rows[0] if len(rows) == 1 else np.concatenate([*rows, empty]) for rows in encoded]

  def encode_with_offsets(
    self, texts: Sequence[str], threads: int | None = None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids of each text, as of `encode_arrays`, and the characters of each token.

    `text[start:end]` is the part of the text that became the token, before any normalization and
    without white space around it. Where one character became several tokens (its bytes, the letters
    of a ligature), each of them has that character. A token of white space, or of a space that the
    tokenizer added before the text, is empty: start == end. Starts and ends ascend.

    Args:
      texts: as of `encode_arrays`.
      threads: as of `encode_arrays`.

    Returns:
      For each text (ids int32 `[tokens]`, spans int32 `[tokens, 2]` of start and end).

    Raises:
      NoOffsets: the kind of tokenizer has no offsets.
    """
    if self.segment:
      separated = [segmenters.separated(text, self.segment) for text in texts]
      found = self._encode_with_offsets([text for text, _ in separated], threads)
      return [
        (ids, segmenters.original_spans(spans, places))
        for (ids, spans), (_, places) in zip(found, separated, strict=True)
      ]
    return self._encode_with_offsets(texts, threads)

  def _encode_with_offsets(
    self, texts: Sequence[str], threads: int | None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """`encode_with_offsets` of texts whose words are separated."""
    encoded: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in texts]
    for owners, starts, parts in text_parts.calls(texts, self.long_text_cut):
      rows = text_parts.without_surrogates(self.encode_short_with_offsets, parts, threads)
      for owner, start, (ids, spans) in zip(owners, starts, rows, strict=True):
        encoded[owner].append((ids, spans + np.int32(start)))
    return [text_parts.join_rows(rows) for rows in encoded]

  def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
    """`encode_arrays` as lists."""
    return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

  def encode(self, text: str) -> list[int]:
    """Token ids of one text, as of `encode_batch`, in the calling thread."""
    return self.encode_batch([text], threads=1)[0]

  def decode(self, ids: Iterable[int], special_tokens: bool = True) -> str:
    """The text of token ids.

    Args:
      ids: any ids of the vocabulary.
      special_tokens: whether special tokens other than [PAD] are written by their names.
    """
    parts: list[str] = []
    ordinary: list[int] = []
    specials = set(self.special_ids)
    for i in [*map(int, ids), self.pad_id]:
      if i not in specials:
        ordinary.append(i)
        continue
      if ordinary:
        parts.append(self.decode_ordinary(ordinary))
        ordinary = []
      if special_tokens and i != self.pad_id:
        parts.append(self.tokens[i])
    return ' '.join(parts)

  def token(self, token_id: int) -> str:
    """The token of an id as the vocabulary has it."""
    return self.tokens[int(token_id)]

  def saved_files(self) -> dict[str, bytes]:
    """Name -> content of the files that `save` writes."""
    recorded = registry.from_user_code({'tokenizer': [self.kind]})
    if not recorded:
      return dict(self.files)
    record = {
      **recorded[0],
      'options': _plain_options(self.options),
      'files': sorted(self.files),
    }
    return self.files | {REGISTERED_FILE: (json.dumps(record, indent=2) + '\n').encode()}

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes files that `load_tokenizer` opens.

    `transformers` opens them, too, if the tokenizer is a pipeline, or WordPiece with BERT's
    normalization.

    Args:
      folder: a folder, or an address such as gs://bucket/folder.
    """
    files = self.saved_files()
    for name, content in {**files, checksums.SUMS: checksums.sums_of(files)}.items():
      file_access.write_bytes(file_access.join(folder, name), content)

  def __reduce__(self) -> tuple[Any, ...]:
    # By kind and not by class: the module of user code may have another name in another process.
    plain = _plain_options(self.options)
    return from_files, (self.kind, self.files, 'unpickled', plain)


def load_tokenizer(
  path: str | os.PathLike[str],
  lowercase: bool | None = None,
  strip_accents: bool | None = None,
  add_special_tokens: bool = False,
) -> Tokenizer:
  """Opens the tokenizer in a folder, or in one file: a BERT `vocab.txt` or a SentencePiece model.

  A folder is one that `Tokenizer.save` wrote, or another project's: any `tokenizer.json`, a
  SentencePiece model, or a WordPiece `vocab.txt`, with or without the other files of
  `transformers`. Tokens that were added there to a vocabulary are matched anywhere in a text.

  Args:
    path: a folder or file, or an address; or hf:FOLDER, hf:org/name or hf:org/name@revision for
      a repository of the Hugging Face Hub, see `hub.find`.
    lowercase: WordPiece: whether text is lower-cased. None for what was saved, or else yes, as in
      uncased BERT.
    strip_accents: WordPiece: whether accents are stripped. None for what was saved, or else the
      value of `lowercase`.
    add_special_tokens: whether special tokens that are missing are appended to the vocabulary.

  Raises:
    UserError: there is no tokenizer, it is damaged, it lacks special tokens, it was saved with
      other settings, or it is of a kind that user code registered and that is not loaded.
  """
  path = os.fspath(path)
  overrides = Overrides(
    lowercase=lowercase, strip_accents=strip_accents, add_special_tokens=add_special_tokens
  )
  origin = ''
  if path.startswith(_HUB):
    found = hub.find(path.removeprefix(_HUB), hub.tokenizer_files)
    if found.note:
      console.say('tokenizer', found.note)
    origin = hub.pinned(path.removeprefix(_HUB), found.revision) if found.revision else ''
    path = found.path
  if file_access.is_folder(path):
    places = {name: file_access.join(path, name) for name in file_access.listing(path)}
  elif file_access.exists(path):
    suffix = os.path.splitext(path)[1].lower()
    places = {_SINGLE_FILES.get(suffix, 'tokenizer.model'): path}
  else:
    raise UserError(
      f'the tokenizer {path!r} does not exist; expected a folder, a tokenizer.json, a vocab.txt, a '
      'SentencePiece model, hf:org/name of the Hugging Face Hub, or a kind to train: '
      f'{", ".join(registry.TOKENIZERS)}.'
    )
  if checksums.SUMS in places:
    sums = checksums.read_sums(path) or {}
    checksums.check(path, [name for name in sums if not name.startswith(_OTHER_FILES)])
  if REGISTERED_FILE in places:
    overrides.require_no_case(path, 'one of user code')
    return _open_registered(places, path)
  for cls in _classes():
    opened = cls.open_files(places, path, overrides)
    if opened is not None:
      if segmenters.SEGMENTER_FILE in places:
        content = file_access.read_bytes(places[segmenters.SEGMENTER_FILE])
        opened = from_files(opened.kind, opened.files | {segmenters.SEGMENTER_FILE: content}, path)
      opened.origin = origin
      return opened
  raise UserError(
    f'there is no tokenizer in {path!r}; expected a tokenizer.json, a vocab.txt or a SentencePiece '
    'model (tokenizer.model, spiece.model, spm.model).'
  )


def holds_tokenizer(folder: str | os.PathLike[str]) -> bool:
  """Whether a folder has files that `load_tokenizer` opens, without reading them."""
  names = set(file_access.listing(folder))
  known = [REGISTERED_FILE]
  for cls in _classes():
    known += cls.main_files
  return bool(names.intersection(known))


def train_tokenizer(
  texts: Iterable[str], settings: TokenizerSettings, expected_characters: int | None = None
) -> Tokenizer:
  """Trains a tokenizer.

  The same texts and settings give the same tokenizer on any machine and any number of cores. All
  printable ASCII characters are in the vocabulary. Of a corpus with more
  than `settings.characters`, lines chosen by their hash are used.

  Args:
    texts: documents; it is trained on their lines.
    settings: what to train.
    expected_characters: approximate number of characters of the texts, for the progress line.

  Raises:
    UserError: for an unknown kind or option; for a vocabulary that the texts do not support, or
      that is too small for their characters; or where there is no text.
    Exception: what reading the texts raises.
  """
  cls, settings = _resolved(settings)
  options = _plain_options(settings.options)

  def train(sample: Sample) -> Tokenizer:
    if not settings.segmenter:
      return from_files(cls.kind, cls.train(sample, settings), 'just trained', options)
    segment = registry.SEGMENTERS.get(settings.segmenter)
    lines = [segmenters.separated(line, segment)[0] for line in sample.lines]
    lines = [part for line in lines for part in training_sample.short_lines(line)]
    files = cls.train(dataclasses.replace(sample, lines=lines), settings)
    files[segmenters.SEGMENTER_FILE] = segmenters.segmenter_record(settings.segmenter)
    return from_files(cls.kind, files, 'just trained', options)

  return training_sample.train_with_progress(
    train,
    texts,
    title=cls.training_title(settings),
    settings=settings,
    expected_characters=expected_characters,
  )


def settings_identity(settings: TokenizerSettings) -> list[Any]:
  """Values, as JSON has them, that decide with kind and vocabulary size which tokenizer is trained.

  Raises:
    UserError: for an unknown kind or option.
  """
  cls, settings = _resolved(settings)
  relevant = cls.relevant_settings(settings)
  if settings.characters != training_sample.TRAINING_CHARACTERS:
    relevant.append({'characters': settings.characters})
  if settings.segmenter:
    relevant.append(segmenters.segmenter_record(settings.segmenter).decode())
  return relevant


def from_files(
  kind: str,
  files: Mapping[str, bytes],
  source: str = 'unpickled',
  options: Mapping[str, Any] | None = None,
) -> Tokenizer:
  """Opens a tokenizer from `Tokenizer.files`.

  Args:
    kind: `Tokenizer.kind`.
    files: name -> content.
    source: where the files come from, for error messages.
    options: as JSON has them, for a kind of user code; None for none.

  Raises:
    UserError: for an unknown kind, an unknown option, or damaged files.
  """
  for name in registry.TOKENIZERS:
    cls = registry.TOKENIZERS.get(name)
    if cls.kind == kind:
      declared = registry.TOKENIZERS.entry(name).options
      typed = None if declared is None else declarations.from_plain(options or {}, declared)
      opened: Tokenizer = cls(files, source, typed)
      return opened
  raise UserError(f'the tokenizer {source!r} is of the kind {kind!r}, which is not registered.')


def _classes() -> list[type[Tokenizer]]:
  """The classes of registry.TOKENIZERS in their order; 'unigram' and 'bpe' have the same one."""
  return list(dict.fromkeys(registry.TOKENIZERS.get(name) for name in registry.TOKENIZERS))


def _resolved(settings: TokenizerSettings) -> tuple[type[Tokenizer], TokenizerSettings]:
  """The class to train, and the settings with typed options."""
  entry = registry.TOKENIZERS.entry(settings.kind)
  cls: type[Tokenizer] = registry.TOKENIZERS.get(settings.kind)
  if entry.file and cls.kind != settings.kind:
    raise UserError(
      f'the tokenizer {settings.kind!r} of {entry.file} has kind {cls.kind!r}; expected the name '
      'that it is registered under.'
    )
  options = settings.options
  if not isinstance(options, declarations.Config):
    owner = f'the tokenizer {settings.kind!r}'
    options = declarations.typed_options(
      entry.options, options or {}, 'config.data.tokenizer_options', owner
    )
  return cls, dataclasses.replace(settings, options=options)


def _plain_options(options: Options) -> dict[str, Any] | None:
  return None if options is None else declarations.to_plain(options)


def _open_registered(places: Mapping[str, str], source: str) -> Tokenizer:
  """Opens a tokenizer of a kind that user code registered."""
  try:
    shape = {'files': [str], 'name': str, 'file': str, 'options': dict | None}
    record = json_reader.read(places[REGISTERED_FILE], shape)
  except json_reader.InvalidJson as error:
    raise UserError(
      f'the file {places[REGISTERED_FILE]!r} is damaged ({error.reason}); restore it, or prepare '
      'the corpus again.'
    ) from None
  names = record['files']
  owner = {'kind': 'tokenizer', 'name': record['name'], 'file': record['file']}
  options = record['options']
  registry.require_registered([owner], f'the folder {source!r}')
  if missing := [name for name in names if name not in places]:
    raise UserError(f'the tokenizer {source!r} lacks the file {missing[0]}; restore it.')
  files = {name: file_access.read_bytes(places[name]) for name in names}
  return from_files(owner['name'], files, source, options)
