"""Tokenizers with a tokenizer.json of any kind, run by the `tokenizers` library."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from electra_jax import file_access, json_reader
from electra_jax.data.tokenizers import (
  byte_level_training,
  normalization,
  pipeline_files,
  spans,
  special_tokens,
  text_parts,
  word_marks,
)
from electra_jax.data.tokenizers.special_tokens import SPECIAL_TOKENS, role_of
from electra_jax.data.tokenizers.tokenization import Pipeline, Tokenizer
from electra_jax.data.tokenizers.tokenizer_settings import Overrides, TokenizerSettings
from electra_jax.data.tokenizers.training_sample import Sample
from electra_jax.data.tokenizers.wordpiece_files import PIPELINE_FILE, SETTINGS_FILE

# Texts by which a tokenizer shows how a long text may be split at a space.
_PROBE = ('the cat', 'the', 'cat', ' cat')


class PipelineTokenizer(Tokenizer):
  """A tokenizer with any normalizer, pre-tokenizer and model of the `tokenizers` library.

  Its ids are those of `transformers` with the same file. Names of the five special tokens in a text
  are text; other tokens that were added to the vocabulary are matched.
  """

  kind = 'pipeline'
  main_files = (PIPELINE_FILE,)

  def __init__(self, files: Mapping[str, bytes], source: str, options: None = None) -> None:
    """Opens a pipeline.

    Args:
      files: as of `pipeline_files.canonical_files`.
      source: where they come from, for error messages.
      options: none.

    Raises:
      UserError: the file is damaged, or it lacks special tokens.
    """
    pipeline = pipeline_files.open_pipeline(files[PIPELINE_FILE], source)
    ids = pipeline.get_vocab()
    texts = {i: token for token, i in ids.items()}
    # Ids that no token has get names that no text has.
    tokens = [texts.get(i, f'[unused id {i}]') for i in range(max(ids.values(), default=-1) + 1)]
    settings = json_reader.parse(files[SETTINGS_FILE], f'{SETTINGS_FILE} of {source!r}')
    names = {token: (settings[role_of(token)],) for token in SPECIAL_TOKENS}
    special_ids = special_tokens.find_special_tokens(tokens, names, repr(source))
    super().__init__(files, tokens, special_ids, options)
    sep = self.tokens[self.sep_id]
    self.separators = pipeline_files.separators(files[PIPELINE_FILE], sep)
    self._description = pipeline_files.runtime_description(pipeline, special_ids)
    self._pipeline = pipeline_files.runtime_pipeline(self._description, source)
    self._marks = word_marks.find_marks(self._description)
    self._marks.spaceless = self.segment is None
    self._added = {
      i for i, token in self._pipeline.get_added_tokens_decoder().items() if i in texts
    }
    self.notation = self._marks.notation
    self.keeps_spaces = self._marks.keeps_spaces
    # Text is never encoded as one of these, whatever the model returns.
    self._replaced = np.arange(len(tokens), dtype=np.int32)
    self._replaced[[i for i in self.special_ids if i != self.unk_id]] = self.unk_id

  @classmethod
  def open_files(
    cls, places: Mapping[str, str], source: str, overrides: Overrides
  ) -> Tokenizer | None:
    """See `Tokenizer.open_files`."""
    if PIPELINE_FILE not in places:
      return None
    overrides.require_no_case(source, f'a {PIPELINE_FILE}')
    names = (PIPELINE_FILE, *pipeline_files.JSON_FILES)
    found = {name: file_access.read_bytes(places[name]) for name in names if name in places}
    files = pipeline_files.canonical_files(found, source, overrides.add_special_tokens)
    return cls(files, source)

  @property
  def fingerprint(self) -> str:
    """See `Tokenizer.fingerprint`; the same for files that differ in their layout only."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.blake2b(self.kind.encode(), digest_size=16)
    others = {name: content for name, content in self.files.items() if name not in _OWN_FILES}
    for name, content in sorted(others.items()):
      digest.update(name.encode() + b'\0' + hashlib.blake2b(content).digest())
    encoding = {name: value for name, value in self._description.items() if name in _ENCODING}
    ids = [self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id]
    digest.update(json.dumps([encoding, ids], sort_keys=True).encode())
    return digest.hexdigest()

  def encode_short(self, texts: list[str], threads: int | None) -> list[np.ndarray]:
    """See `Tokenizer.encode_short`."""
    text_parts.set_threads(threads)
    encoded = self._pipeline.encode_batch_fast(texts, add_special_tokens=False)
    return [self._replaced[np.array(one.ids, np.int32)] for one in encoded]

  def encode_short_with_offsets(
    self, texts: list[str], threads: int | None
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """See `Tokenizer.encode_short_with_offsets`."""
    text_parts.set_threads(threads)
    encoded = self._pipeline.encode_batch(texts, add_special_tokens=False)
    found = []
    for text, one in zip(texts, encoded, strict=True):
      places = np.array(one.offsets, np.int32).reshape(-1, 2)
      places = spans.with_accents(text, spans.without_white_space(text, places))
      found.append((self._replaced[np.array(one.ids, np.int32)], places))
    return found

  def decode_ordinary(self, ids: Sequence[int]) -> str:
    """See `Tokenizer.decode_ordinary`."""
    text: str = self._pipeline.decode(list(ids), skip_special_tokens=False)
    return text

  @functools.cached_property
  def long_text_cut(self) -> text_parts.Cut:
    """See `Tokenizer.long_text_cut`."""
    whole, first, second, with_space = map(self._probe, _PROBE)
    if whole == first + second:
      return text_parts.Cut.DROP_SPACE
    return text_parts.Cut.KEEP_SPACE if whole == first + with_space else text_parts.Cut.NONE

  def _probe(self, text: str) -> list[int]:
    ids: list[int] = self._pipeline.encode(text, add_special_tokens=False).ids
    return ids

  def compute_word_starts(self) -> np.ndarray:
    """Whether each token begins a word, bool [tokens], see `word_marks`.

    Tokens that were added to the vocabulary begin words, and so does [UNK] of a word.
    """
    begins = [self._marks.begins(token) for token in self.tokens]
    for i in self._added:
      begins[i] = True
    begins[self.unk_id] = isinstance(self._marks, word_marks.PrefixMarks)
    return np.array(begins, bool)

  def compute_word_ends(self) -> np.ndarray:
    """See `Tokenizer.word_ends`."""
    return np.array([self._marks.ends(token) for token in self.tokens], bool)

  def surface(self, token_id: int) -> tuple[bool, str]:
    """See `Tokenizer.surface`."""
    token = self.tokens[token_id]
    return (False, token) if token_id in self._added else self._marks.surface(token)

  def byte_value(self, token_id: int) -> int | None:
    """See `Tokenizer.byte_value`."""
    if not self._description['model'].get('byte_fallback'):
      return None
    return word_marks.byte_of(self.tokens[token_id])

  def partial_bytes(self, token_id: int) -> bytes | None:
    """See `Tokenizer.partial_bytes`."""
    if not isinstance(self._marks, word_marks.ByteMarks) or token_id in self._added:
      return super().partial_bytes(token_id)
    content = self._marks.content(self.tokens[token_id])
    try:
      content.decode()
    except UnicodeDecodeError:
      return content
    return None

  def encode_inside_word(self, text: str) -> list[int]:
    """Ids of a text as at the beginning of a word, without the mark of its first token."""
    first, *rest = self.encode(text) or [self.unk_id]
    begins, inside = self.surface(first)
    if not begins or not isinstance(self._marks, word_marks.SpaceMarks):
      return [first, *rest]
    return [self.ordinary_ids.get(inside, first), *rest] if inside else rest

  def encode_around_masks(self, parts: Sequence[str]) -> list[int]:
    """See `Tokenizer.encode_around_masks`: as `transformers` does with the same file."""
    text = self.tokens[self.mask_id].join(parts)
    ids = self._masking_pipeline.encode(text, add_special_tokens=False).ids
    return [i if i == self.mask_id else int(self._replaced[i]) for i in ids]

  @functools.cached_property
  def _masking_pipeline(self) -> Pipeline:
    content = self.files[PIPELINE_FILE]
    mask = self.mask_id, self.tokens[self.mask_id]
    description = pipeline_files.masking_description(self._description, content, mask)
    return pipeline_files.runtime_pipeline(description, self.kind)

  def to_pipeline(self) -> Pipeline:
    """See `Tokenizer.to_pipeline`: the file as it is."""
    return pipeline_files.open_pipeline(self.files[PIPELINE_FILE], self.kind)

  @classmethod
  def training_title(cls, settings: TokenizerSettings) -> str:
    """See `Tokenizer.training_title`."""
    return 'byte-level BPE'

  @classmethod
  def relevant_settings(cls, settings: TokenizerSettings) -> list[Any]:
    """See `Tokenizer.relevant_settings`."""
    identity = normalization.identity(settings.normalization)
    return [*settings.folding, 'auto' if identity == normalization.ORIGINAL else identity]

  @classmethod
  def train(cls, sample: Sample, settings: TokenizerSettings) -> dict[str, bytes]:
    """See `Tokenizer.train`."""
    normalizers = normalization.byte_level_normalizers(settings.normalization, *settings.folding)
    pipeline = byte_level_training.train_byte_level(sample.lines, settings.vocab_size, normalizers)
    roles = {role_of(token): token for token in SPECIAL_TOKENS}
    return {
      PIPELINE_FILE: pipeline_files.serialized(pipeline),
      SETTINGS_FILE: (json.dumps(roles, indent=2) + '\n').encode(),
    }


_OWN_FILES = (PIPELINE_FILE, SETTINGS_FILE)
_ENCODING = ('normalizer', 'pre_tokenizer', 'model', 'added_tokens')
