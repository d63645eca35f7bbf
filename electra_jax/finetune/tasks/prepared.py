"""Examples of prepared TFDS datasets as rows of a table."""

import importlib.util
import re

import numpy as np

from electra_jax import file_access
from electra_jax.data.corpus import readers, sources, tfds
from electra_jax.errors import UserError
from electra_jax.finetune.tasks.tables import Row

PREFIX = tfds.PREFIX


def splits(source: str) -> tuple[str, ...]:
  """Names of the splits of a prepared dataset, `tfds:NAME` with options as config.data.source has them. Raises UserError."""
  return tuple(tfds.open_dataset(_parsed(source)).info.splits)


def read(source: str, split: str | None = None) -> list[Row]:
  """All examples of a split, each whole, in the order of the dataset's files; a row's line is its number, from 1.

  Text becomes str, a class label its name, or None where it is -1 (unknown); arrays become lists, nested features dictionaries.

  Args:
    source: `tfds:NAME` with options `;data_dir=FOLDER`, `;download=yes` and `;split=SPLIT`.
    split: of the dataset, in TFDS's slicing syntax; None: the source's, or else train.

  Raises:
    UserError: it is not prepared, cannot be read, or has no such split.
  """
  parsed = _parsed(source)
  split = split or parsed.options['split']
  builder = tfds.open_dataset(parsed)
  name, known = builder.info.full_name, builder.info.splits
  if split not in known and not re.search(r'[\[+]', split):
    raise UserError(
      f'TFDS dataset {name} has no split {split!r}; its splits are {readers.named(known)}'
    )
  in_arrays = builder.info.file_format.value == 'array_record'
  if not in_arrays and importlib.util.find_spec('tensorflow') is None:
    raise UserError(
      f'TFDS dataset {name} is kept as {builder.info.file_format.value}, which needs TensorFlow to be read; '
      'pip install tensorflow, or prepare it as array_record'
    )
  try:
    examples = (_from_arrays if in_arrays else _from_records)(builder, split)
    rows = [
      Row(number, _plain(example, builder.info.features))
      for number, example in enumerate(examples, 1)
    ]
  except Exception as error:  # of many kinds
    raise UserError(
      f'split {split!r} of TFDS dataset {name} cannot be read: {file_access.reason(error)}'
    ) from None
  if not rows:
    raise UserError(
      f'split {split!r} of TFDS dataset {name} holds no example; its splits are {readers.named(known)}'
    )
  return rows


def _parsed(text):
  given = sources.parse_sources(text)
  if len(given) != 1 or given[0].format != 'tfds':
    raise UserError(f'{text!r} is no single TFDS dataset; give one, such as tfds:glue/cola')
  return given[0]


def _from_arrays(builder, split):
  source = builder.as_data_source(split=split)
  return (source[i] for i in range(len(source)))


def _from_records(builder, split):
  import contextlib

  import tensorflow as tf
  import tensorflow_datasets

  with contextlib.suppress(RuntimeError):  # TensorFlow was in use before us and has them already
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  config = tensorflow_datasets.ReadConfig(
    try_autocache=False, interleave_cycle_length=1
  )  # files one after the other
  return tensorflow_datasets.as_numpy(
    builder.as_dataset(split=split, shuffle_files=False, read_config=config)
  )


def _plain(value, feature):
  """A decoded value as Python's own."""
  from tensorflow_datasets import features

  if isinstance(value, dict):
    inner = feature.feature if isinstance(feature, features.Sequence) else feature
    return {name: _plain(part, inner[name]) for name, part in value.items()}
  if isinstance(value, list) or isinstance(value, np.ndarray) and value.ndim:
    inner = getattr(feature, 'feature', feature)
    return [_plain(part, inner) for part in value]
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(feature, features.ClassLabel):
    return feature.names[int(value)] if value >= 0 else None
  return value.item() if isinstance(value, np.generic | np.ndarray) else value
