"""Exports of small random runs by family and tokenizer, and what this package computes for them."""

import dataclasses
import functools
import pathlib

import foreign_tokenizers
import in_process
import made_run
import made_tokenizers
import numpy as np
from conftest import micro_config

import electra_jax
from electra_jax import export
from electra_jax.data.tokenizers.tokenization import load_tokenizer

TEXTS = ['The chef ate the meal, and said nothing of it.', 'an old house', 'Who cooked (and why)?']
OTHERS = ['the meal', 'nothing of it']  # rows of another number and length
MASKED = ['The chef MASK the meal', 'He said nothing MASK.']
PAIRS = [('Who ate?', 'the chef ate'), ('a', 'b')]
TRICKY = [*foreign_tokenizers.TEXTS, ' a', 'a ', 'a.b', 'ab12', "it's", 'A\u0301', '\u2581']
LENGTH = 64  # positions of the encoders, and of the longest rows
# Fields of config.model where they are not those of all families.
FIELDS = {
  'electra': {'layer_norm_eps': 1e-12, 'embedding_size': 24},
  'modern': {'global_every': 2, 'local_window': 8},
  'bert': {'layer_norm_eps': 1e-12},
  'distilbert': {'layer_norm_eps': 1e-12},
  'albert': {'layer_norm_eps': 1e-12, 'embedding_size': 12},
  'deberta-v2': {'layer_norm_eps': 1e-7, 'position_buckets': 16},
}
# Families whose generator may be narrower than their discriminator in transformers.
NARROW = ('electra', 'albert')


@dataclasses.dataclass(frozen=True)
class Case:
  """What is exported.

  Attributes:
    family: of the encoder.
    kind: of the tokenizer.
    form: of foreign_tokenizers, for a tokenizer that another project trained; '' for our own.
    onnx: whether the encoder is exported to ONNX, which takes many seconds.
  """

  family: str
  kind: str
  form: str = ''
  onnx: bool = False

  @property
  def name(self) -> str:
    return f'{self.family}-{self.kind}'


CASES = {
  case.name: case
  for case in (
    Case('electra', 'wordpiece', onnx=True),
    Case('electra', 'unigram'),
    Case('electra', 'bpe'),
    Case('electra', 'byte_level_bpe'),
    Case('modern', 'wordpiece'),
    Case('modern', 'unigram', onnx=True),
    Case('modern', 'bpe'),
    Case('modern', 'byte_level_bpe', 'modernbert'),
    Case('bert', 'wordpiece', 'bert', onnx=True),
    Case('bert', 'unigram'),
    Case('bert', 'byte_level_bpe'),
    Case('roberta', 'wordpiece'),
    Case('roberta', 'unigram'),
    Case('roberta', 'byte_level_bpe', 'roberta', onnx=True),
    Case('xlm-roberta', 'unigram', 'xlm_roberta', onnx=True),
    Case('deberta-v2', 'unigram', 'deberta_v3', onnx=True),
    Case('distilbert', 'wordpiece', 'bert', onnx=True),
    Case('albert', 'unigram', 'albert', onnx=True),
  )
}


@functools.cache
def own_tokenizer(kind):
  """A tokenizer that is trained here."""
  return made_tokenizers.train(foreign_tokenizers.lines(), kind=kind, vocab_size=1200)


def run_config(family):
  """The config of a run of a family."""
  config = micro_config(f'model.family={family}', 'dtype=float32')
  config.model.update(num_layers=2, max_positions=LENGTH, **FIELDS.get(family, {}))
  config.sequence_length = LENGTH
  if family not in NARROW:
    config.sharing, config.generator.hidden_fraction = 'all', 1.0
  return config


@dataclasses.dataclass(frozen=True)
class Exported:
  """An export, and what this package computes for the texts of a request.

  Attributes:
    folder: with the folders of both towers.
    ours: name of an answer -> the expected value.
    lengths: tokens of each of TEXTS.
  """

  folder: pathlib.Path
  ours: dict
  lengths: list[int]


@functools.cache
def exported(case: Case, folder: pathlib.Path) -> Exported:
  """Makes a run inside a folder and exports it."""
  with in_process.shared_programs(devices=1):  # programs for one device compile faster
    return _exported(case, folder / case.name)


def _exported(case: Case, place: pathlib.Path) -> Exported:
  if case.form:
    tokenizer = load_tokenizer(foreign_tokenizers.write(case.form, place / 'tokenizer'))
  else:
    tokenizer = own_tokenizer(case.kind)
  made_run.make(place / 'run', run_config(case.family), tokenizer)
  export.export(str(place / 'run'), str(place / 'out'))
  run = electra_jax.load(place / 'run')
  reading = run(TEXTS)
  lengths = [len(tokens) for tokens in reading.tokens]
  ours = {
    'ids': [framed(run.tokenizer, text) for text in TRICKY],
    'pairs': [framed(run.tokenizer, *pair) for pair in PAIRS],
    'texts': [framed(run.tokenizer, text) for text in TEXTS],
    'max_length': LENGTH,
    'hidden': cut(reading.hidden_states, lengths),
    'verdicts': cut(reading.replaced, lengths),
    'embeddings': run.embed(TEXTS, pooling='mean'),
    'filled': filled(run),
  }
  return Exported(place / 'out', ours, lengths)


def cut(values, lengths) -> np.ndarray:
  """Values of the tokens of all texts, without padding: `[tokens, ...]`."""
  rows = [np.asarray(row)[:length] for row, length in zip(values, lengths, strict=True)]
  return np.concatenate(rows).astype(np.float64)


def framed(tokenizer, text, *pair) -> list[int]:
  """The ids of a row of one text or of two."""
  row = [tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]
  for second in pair:
    row += [tokenizer.sep_id] * (tokenizer.separators - 1)
    row += [*tokenizer.encode(second), tokenizer.sep_id]
  return row


def filled(run) -> list:
  """(id, probability) of the likeliest words at the mask of each of MASKED."""
  mask = run.tokenizer.tokens[run.tokenizer.mask_id]
  found = run.fill_mask([text.replace('MASK', mask) for text in MASKED], top=3)
  return [[(one.token_id, one.probability) for one in candidates] for (candidates,) in found]
