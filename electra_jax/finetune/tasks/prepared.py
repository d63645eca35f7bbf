"""Examples of prepared TFDS datasets, as rows of a table."""

import contextlib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from electra_jax import file_access
from electra_jax.data.corpus import readers, sources, tfds
from electra_jax.data.corpus.corpus_format import CorpusSource
from electra_jax.errors import UserError, missing_package
from electra_jax.finetune.tasks.tables import Row

PREFIX = tfds.PREFIX

Builder: TypeAlias = Any  # TFDS is imported only where it is used
Value: TypeAlias = Any  # of an example
Feature: TypeAlias = Any  # of TFDS: the type of a value


def prepared_splits(source: str) -> tuple[str, ...]:
  """Names of the splits of a prepared dataset.

  Args:
    source: `tfds:NAME` with options, as in config.data.source.

  Raises:
    UserError: the dataset is not prepared.
  """
  return tuple(tfds.open_dataset(_parsed(source)).info.splits)


def read_prepared(source: str, split: str | None = None) -> list[Row]:
  """All examples of a split, in the order of the dataset's files.

  The line of a row is the example's number, counted from 1. Text becomes str, a class label its
  name, or None where it is -1 (unknown); arrays become lists, nested features dictionaries.

  Args:
    source: `tfds:NAME` with options `;data_dir=FOLDER`, `;download=yes` and `;split=SPLIT`.
    split: in TFDS's slicing syntax; None: the split of `source`, or else train.

  Raises:
    UserError: the dataset is not prepared, cannot be read, or has no such split.
  """
  parsed = _parsed(source)
  split = split or parsed.options['split']
  builder = tfds.open_dataset(parsed)
  name, known = builder.info.full_name, builder.info.splits
  if split not in known and not re.search(r'[\[+]', split):
    raise UserError(
      f'TFDS dataset {name} has no split {split!r}; its splits are {readers.named(known)}'
    )
  file_format = builder.info.file_format.value
  in_arrays = file_format == 'array_record'
  if not in_arrays and importlib.util.find_spec('tensorflow') is None:
    what = f'TFDS dataset {name}, which is stored as {file_format} and not as array_record,'
    raise missing_package(what, 'TensorFlow', 'tfds')
  try:
    examples = (_from_arrays if in_arrays else _from_records)(builder, split)
    rows = [
      Row(number, _python_value(example, builder.info.features))
      for number, example in enumerate(examples, 1)
    ]
  except Exception as error:  # TFDS raises exceptions of many types
    raise UserError(
      f'split {split!r} of TFDS dataset {name} cannot be read: {file_access.reason(error)}'
    ) from None
  if not rows:
    raise UserError(
      f'split {split!r} of TFDS dataset {name} has no examples; its splits are '
      f'{readers.named(known)}'
    )
  return rows


def _parsed(text: str) -> CorpusSource:
  given = sources.parse_sources(text)
  if len(given) != 1 or given[0].format != 'tfds':
    raise UserError(f'{text!r} is not a single TFDS dataset; expected one, such as tfds:glue/cola')
  return given[0]


def _from_arrays(builder: Builder, split: str) -> Iterable[Any]:
  source = builder.as_data_source(split=split)
  return (source[i] for i in range(len(source)))


def _from_records(builder: Builder, split: str) -> Iterable[Any]:
  import tensorflow as tf
  import tensorflow_datasets

  with contextlib.suppress(RuntimeError):  # raised where TensorFlow has initialized its devices
    tf.config.set_visible_devices([], 'GPU')  # JAX uses the accelerator's memory
  # Files are read one after the other.
  config = tensorflow_datasets.ReadConfig(try_autocache=False, interleave_cycle_length=1)
  dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=config)
  examples: Iterable[Any] = tensorflow_datasets.as_numpy(dataset)
  return examples


def _python_value(value: Value, feature: Feature) -> Value:
  """A decoded value as a Python object."""
  from tensorflow_datasets import features

  if isinstance(value, dict):
    inner = feature.feature if isinstance(feature, features.Sequence) else feature
    return {name: _python_value(part, inner[name]) for name, part in value.items()}
  if isinstance(value, list) or isinstance(value, np.ndarray) and value.ndim:
    inner = getattr(feature, 'feature', feature)
    return [_python_value(part, inner) for part in value]
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(feature, features.ClassLabel):
    return feature.names[int(value)] if value >= 0 else None
  return value.item() if isinstance(value, np.generic | np.ndarray) else value
