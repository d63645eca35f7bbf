"""Documents from TensorFlow Datasets, prepared before; nothing touches the network unless a source asks for it.

A source here is a `sources.Source` of format 'tfds'. What a dataset holds is read from its files alone, without
TensorFlow and without the dataset's code. Records in TFRecord files need TensorFlow, those in ArrayRecord files do not.
"""

import contextlib
import difflib
import functools
import importlib.util
import operator
import os
import re
from collections.abc import Iterator
from typing import Any

from electra_jax import console, file_access
from electra_jax.data.corpus import readers
from electra_jax.errors import UserError

PREFIX = 'tfds:'

_INFO = 'dataset_info.json'
_READ_AHEAD = 16  # examples decoded at a time
_ADVANCE_EXAMPLES = 256
_VERSION = re.compile(r'[/:](?=[0-9*]+\.[0-9*]+\.[0-9*]+$)')  # what stands before it
_NAME = re.compile(r'(\w+:)?\w+(/[\w\-.]+)?(:[0-9*.]+)?')

Slice = tuple[str, int, int]  # of a dataset: split, first example, the one after the last


def open_dataset(source: Any):
  """The builder of a dataset, prepared first where it is not and the source asks for that.

  Raises:
    UserError: it is not prepared, cannot be read, or there is no such dataset.
  """
  if importlib.util.find_spec('tensorflow_datasets') is None:
    raise UserError(
      f'{source.location!r} needs TensorFlow Datasets, which is not installed; pip install '
      'tensorflow-datasets'
    )
  console.quiet_libraries()  # TensorFlow is loaded for addresses and for TFRecord files
  import tensorflow_datasets as tfds
  from etils import epath
  from tensorflow_datasets.core import read_only_builder, registered

  name = source.location.removeprefix(PREFIX)
  if is_folder(name):
    folder = epath.Path(name).expanduser()
    with _told(name):
      is_there = (folder / _INFO).exists()
    if not is_there:
      raise UserError(
        f'{name!r} holds no prepared TFDS dataset; give the folder of a version, the one with {_INFO} in '
        'it'
      )
    with _told(name):
      return tfds.builder_from_directory(folder)
  name = _VERSION.sub(':', name)
  if not _NAME.fullmatch(name):
    raise UserError(
      f'{name!r} is no TFDS dataset; give a name such as tfds:wikipedia/20230601.en, or the folder of a '
      'prepared version'
    )
  data_dir = os.path.expanduser(source.data_dir) if source.data_dir else None
  looked = data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join('~', 'tensorflow_datasets')
  found = None
  if ':' not in _VERSION.split(name)[0]:  # namespaces are looked up on the network
    with _told(name), contextlib.suppress(registered.DatasetNotFoundError):
      found = read_only_builder.builder_from_files(name, data_dir=data_dir)
  if found:
    return found
  if not source.download:
    raise UserError(_not_found(name, looked))
  console.say('corpus', f'TFDS downloads and prepares {name} in {looked}')
  with _told(name, 'prepared'):
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    return tfds.builder_from_directory(builder.data_dir)


def is_folder(name: str) -> bool:
  """Whether it is the folder or address of a prepared dataset, and not the name of one."""
  return (
    file_access.is_remote(name)
    or name.startswith(('/', './', '../', '~'))
    or os.path.exists(os.path.join(name, _INFO))
  )


def slices(source: Any, builder) -> list[Slice]:
  """The examples that the source's split selects, in order. Raises UserError for an unknown split or field, or none."""
  import tensorflow_datasets as tfds

  _record_key(source, builder)
  known = readers.named(builder.info.splits)
  try:
    parts = tfds.core.ReadInstruction.from_spec(source.split).to_absolute(builder.info.splits)
  except Exception as error:  # of many kinds
    raise UserError(
      f'TFDS dataset {builder.info.full_name} has no split {source.split!r} ({file_access.reason(error)}); its '
      f'splits are {known}, or slices of them such as train[:50%]'
    ) from None
  found = []
  for part in parts:
    examples = builder.info.splits[part.splitname].num_examples
    first, last = part.from_ or 0, examples if part.to is None else min(part.to, examples)
    if first < last:
      found.append((part.splitname, first, last))
  if not found:
    raise UserError(
      f'split {source.split!r} of TFDS dataset {builder.info.full_name} selects no example; its splits '
      f'are {known}'
    )
  return found


def slice_bytes(builder, part: Slice) -> int:
  """About the bytes on disk of some examples."""
  split = builder.info.splits[part[0]]
  return int(split.num_bytes) * (part[2] - part[1]) // split.num_examples


def identity(source: Any, builder) -> str:
  """What changes when the dataset does: its name with the version, what is selected, and its splits' sizes by file."""
  parts = slices(source, builder)
  facts = [
    (name, list(builder.info.splits[name].shard_lengths), int(builder.info.splits[name].num_bytes))
    for name in sorted({part[0] for part in parts})
  ]
  return repr((builder.info.full_name, source.field, parts, facts))


def read_examples(
  source: Any,
  start: int,
  stop: int,
  invalid_utf8: str,
  advance: readers.Advance,
  size: int,
  counts: readers.Counts,
) -> Iterator[str]:
  """Documents: one field of the examples `start` to `stop - 1` of what the source selects, in the order of the files.

  Args:
    size: bytes that `advance` is to count in all.
  """
  builder = open_dataset(source)
  key = _record_key(source, builder)
  name = builder.info.full_name
  records = _array_records if builder.info.file_format.value == 'array_record' else _tf_records
  position = number = told = 0  # in what is selected; documents read; bytes told
  for split, first, last in slices(source, builder):
    begin, end = max(first, first + start - position), min(last, first + stop - position)
    position += last - first
    if begin >= end:
      continue
    with _told(name):
      for example, value in enumerate(records(builder, key, split, begin, end), begin):
        where = f'example {example} of split {split!r} of TFDS dataset {name} is not UTF-8'
        text, bad = readers.decode(value, invalid_utf8, lambda _, where=where: where)
        readers.count(counts, 'replaced_bytes', bad)
        number += 1
        del value
        yield from readers.document(text, bad, counts)
        done = size * number // (stop - start)
        if advance and done > told and (number % _ADVANCE_EXAMPLES == 0 or number == stop - start):
          advance(done - told)
          told = done
  if number != stop - start:
    raise UserError(
      f'TFDS dataset {name} is cut short: {stop - start - number} examples fewer than it says; '
      'prepare it again'
    )


def _record_key(source, builder):
  """The key of the wanted text in a record. Raises UserError where the dataset has no such text."""
  import numpy as np
  import tensorflow_datasets as tfds

  def texts(features, names=()):
    if isinstance(features, tfds.features.FeaturesDict):
      for name, feature in features.items():
        yield from texts(feature, (*names, name))
    elif names and features.shape == () and features.np_dtype in (np.object_, np.str_, np.bytes_):
      yield names

  found = {'.'.join(names): '/'.join(names) for names in texts(builder.info.features)}
  if source.field not in found:
    raise UserError(
      f'TFDS dataset {builder.info.full_name} has no text called {source.field!r}; its texts are '
      f'{readers.named(sorted(found))}; name one with ;field=NAME'
    )
  return found[source.field]


def _array_records(builder, key, split, first, last):
  """One field of records, as bytes, without TensorFlow."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.decode import DeserializeMethod
  from tensorflow_datasets.proto import tf_example_pb2

  instruction = tfds.core.ReadInstruction(split, from_=first, to=last, unit='abs')
  records = builder.as_data_source(
    split=instruction, deserialize_method=DeserializeMethod.RAW_BYTES
  )
  for i in range(len(records)):
    record = records[i]
    if not record:  # so a file reads that was cut between two blocks
      raise ValueError(f'example {first + i} of split {split!r} is missing')
    values = tf_example_pb2.Example.FromString(record).features.feature[key].bytes_list.value
    yield values[0] if values else b''


def _tf_records(builder, key, split, first, last):
  """One field of records, as bytes, in the order of the files, read by tf.data."""
  if importlib.util.find_spec('tensorflow') is None:
    raise UserError(
      f'TFDS dataset {builder.info.full_name} is kept as {builder.info.file_format.value}, which needs '
      'TensorFlow to be read; pip install tensorflow, or prepare it as array_record'
    )
  import tensorflow as tf
  import tensorflow_datasets as tfds

  with contextlib.suppress(RuntimeError):  # TensorFlow was in use before us and has them already
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  names = key.split('/')
  wanted, feature = {}, builder.info.features
  inner = wanted
  for name in (
    names
  ):  # only dictionaries can be decoded in part, not what is made of them, as translations are
    feature = feature[name]
    inner[name] = {} if type(feature) is tfds.features.FeaturesDict else True
    inner = inner[name]
    if inner is True:
      break
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1  # readers run beside each other
  config = tfds.ReadConfig(
    options=options,
    try_autocache=False,
    skip_prefetch=True,
    interleave_cycle_length=1,
    num_parallel_calls_for_interleave_files=1,
    num_parallel_calls_for_decode=1,
  )
  with _quiet():
    dataset = builder.as_dataset(
      split=tfds.core.ReadInstruction(split, from_=first, to=last, unit='abs'),
      shuffle_files=False,
      read_config=config,
      decoders=tfds.decode.PartialDecoding(wanted),
    )
    dataset = dataset.map(lambda example: functools.reduce(operator.getitem, names, example)).batch(
      _READ_AHEAD
    )
  for values in dataset.as_numpy_iterator():
    yield from values


def _not_found(name, looked):
  """Why a dataset by that name was not found, in a sentence."""
  import tensorflow_datasets as tfds
  from etils import epath
  from tensorflow_datasets.core import registered

  say = (
    f'TFDS dataset {name!r} is not prepared in {looked!r}; add ;data_dir=FOLDER where it is, or ;download=yes to '
    'download and prepare it there'
  )
  if ':' in _VERSION.split(name)[0]:
    return say
  family, *config = _VERSION.split(name)[0].split('/')
  folder = epath.Path(looked).expanduser() / family
  with contextlib.suppress(Exception):
    if there := sorted(
      path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.')
    ):
      return (
        f'TFDS dataset {name!r} is not prepared in {looked!r}; what is there of {family!r} is '
        f'{readers.named(there)}'
      )
  try:
    known = registered.imported_builder_cls(family).builder_configs
  except registered.DatasetNotFoundError:
    near = difflib.get_close_matches(family, tfds.list_builders(with_community_datasets=False), n=1)
    return (
      f'TFDS knows no dataset {family!r}'
      + (f' (did you mean {near[0]!r}?)' if near else '')
      + f', and none is prepared in {looked!r}; add ;data_dir=FOLDER where it is'
    )
  except Exception:  # its code does not load; it may be prepared elsewhere all the same
    return say
  if config and known and config[0] not in known:
    near = difflib.get_close_matches(config[0], known, n=3, cutoff=0)
    return f'TFDS dataset {family!r} has no config {config[0]!r}; it has {len(known)}, such as {readers.named(near)}'
  return say


@contextlib.contextmanager
def _quiet():
  """TFDS warns of its own ways; nobody here can mend them."""
  from absl import logging

  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(before)


@contextlib.contextmanager
def _told(name, done='read'):
  """What TFDS and TensorFlow raise, of many kinds, in a sentence."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f'TFDS dataset {name!r} cannot be {done}: {file_access.reason(error)}'
    ) from None
