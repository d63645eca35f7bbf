"""Documents from TensorFlow Datasets that are prepared on a disk or in a bucket.

What a dataset holds is read from its files, without the dataset's code. Nothing uses the network
unless a source asks for it with `;download=yes`. Records in TFRecord files require TensorFlow;
those in ArrayRecord files do not.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import operator
import os
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from electra_jax import console, file_access
from electra_jax.data.corpus.corpus_format import (
  Claims,
  CorpusFormat,
  CorpusSource,
  Group,
  unknown_option,
)
from electra_jax.data.corpus.dataset_metadata import INFO, Folder, check_metadata
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError, missing_package

PREFIX = 'tfds:'

# A group, which is what one reader reads, has so many examples.
GROUP_EXAMPLES = 200_000

_FEATURES = 'features.json'
_READ_AHEAD = 16  # examples decoded at a time
_ADVANCE_EXAMPLES = 256
_VERSION = re.compile(r'[/:](?=[0-9*]+\.[0-9*]+\.[0-9*]+$)')  # the separator before a version
_NAME = re.compile(r'(\w+:)?\w+(/[\w\-.]+)?(:[0-9*.]+)?')

Features = Any  # of tensorflow_datasets
Builder = Any  # tensorflow_datasets.core.DatasetBuilder; imported where it is used
Slice = tuple[str, int, int]  # of a dataset: split, first example, the one after the last


class TfdsFormat(CorpusFormat):
  """A TensorFlow Datasets dataset, `tfds:NAME` or `tfds:FOLDER`.

  Documents are the texts of one feature; dots in its name lead into nested features.
  """

  title = 'a TFDS dataset'
  options = {'field': 'text', 'split': 'train', 'data_dir': '', 'download': 'no'}
  selectable = False
  detectable = False

  def owns(self, location: str) -> bool:
    """See the base class."""
    return location.startswith(PREFIX)

  def owns_folder(self, names: Set[str]) -> bool:
    """See the base class."""
    return INFO in names and _FEATURES in names

  def folder_source(self, source: CorpusSource, name: str) -> CorpusSource:
    """See the base class."""
    located = dataclasses.replace(source, location=f'{PREFIX}{source.location}')
    return super().folder_source(located, name)

  def parse_options(self, location: str, given: Mapping[str, str]) -> dict[str, str]:
    """See the base class."""
    if is_dataset_folder(location.removeprefix(PREFIX)):
      for name in ('data_dir', 'download'):
        if name in given:
          raise unknown_option(location, 'the folder of a TFDS dataset', name)
    options = super().parse_options(location, given)
    if options['download'] not in ('yes', 'no'):
      raise UserError(
        f'the corpus source {location!r} has download={options["download"]}; expected yes or no.'
      )
    return options

  def describe(self, source: CorpusSource) -> str:
    """See the base class."""
    return f'{source.location} {source.options["split"]}'

  def contents(self, source: CorpusSource) -> tuple[Builder, list[Slice]]:
    """The builder of a dataset and the slices that the source's split selects."""
    builder = open_dataset(source)
    return builder, _slices(source, builder)

  def unclaimed(
    self,
    index: int,
    source: CorpusSource,
    contents: tuple[Builder, list[Slice]],
    claims: Claims,
  ) -> tuple[Builder, list[Slice]]:
    """All contents.

    Raises:
      UserError: an example was claimed before.
    """
    builder, slices = contents
    for split, first, last in slices:
      key = (builder.info.full_name, source.options['field'], split)
      claimed = claims.setdefault(key, [])
      if any(first < end and start < last for start, end in claimed):
        raise UserError(
          f'examples of split {split!r} of {source.location!r} are named twice; choose splits that '
          'do not overlap'
        )
      claimed.append((first, last))
    return contents

  def groups(
    self, index: int, source: CorpusSource, contents: tuple[Builder, list[Slice]]
  ) -> list[Group]:
    """Groups of `GROUP_EXAMPLES` examples of what the split selects."""
    builder, slices = contents
    total = sum(last - first for _, first, last in slices)
    size = sum(_slice_bytes(builder, part) for part in slices)
    groups = []
    for start in range(0, total, GROUP_EXAMPLES):
      stop = min(start + GROUP_EXAMPLES, total)
      stored = size * stop // total - size * start // total
      groups.append(Group(index, source, (), start, stop, stored))
    return groups

  def identity(
    self, source: CorpusSource, contents: tuple[Builder, list[Slice]]
  ) -> tuple[str, str]:
    """What changes with the dataset: its name with the version, the selection, sizes of splits."""
    builder, slices = contents
    facts = [
      (
        name,
        list(builder.info.splits[name].shard_lengths),
        int(builder.info.splits[name].num_bytes),
      )
      for name in sorted({part[0] for part in slices})
    ]
    return '', repr((builder.info.full_name, source.options['field'], slices, facts))

  def documents(self, group: Group, reader: DocumentReader) -> Iterator[str]:
    """See the base class. The examples are read in the order of the files."""
    builder = open_dataset(group.source)
    key = _record_key(group.source, builder)
    name = builder.info.full_name
    records = _array_records if builder.info.file_format.value == 'array_record' else _tf_records
    total = group.stop - group.start
    position = 0  # in the selection
    number = 0  # documents read
    reported = 0  # bytes
    for split, first, last in _slices(group.source, builder):
      start = max(first, first + group.start - position)
      stop = min(last, first + group.stop - position)
      position += last - first
      if start >= stop:
        continue
      with _sentence(name):
        for example, value in enumerate(records(builder, key, split, start, stop), start):
          where = f'example {example} of split {split!r} of TFDS dataset {name} is not UTF-8'
          text = reader.decode(value, where)
          number += 1
          del value  # it may be large
          yield from reader.document(text)
          if number % _ADVANCE_EXAMPLES == 0 or number == total:
            read = group.bytes * number // total
            reader.advance(read - reported)
            reported = read
    if number != total:
      raise UserError(
        f'TFDS dataset {name} is cut short: it lacks {total - number} examples; prepare it again'
      )


TFDS = TfdsFormat()


def is_dataset_folder(name: str) -> bool:
  """Whether `name` is the folder or address of a prepared dataset, and not a dataset's name."""
  return (
    file_access.is_remote(name)
    or name.startswith(('/', './', '../', '~'))
    or os.path.exists(os.path.join(name, INFO))
  )


def open_dataset(source: CorpusSource) -> Builder:
  """The builder of a dataset, prepared first if it is not and the source asks for that.

  Raises:
    UserError: it is not prepared, cannot be read, or does not exist.
  """
  if importlib.util.find_spec('tensorflow_datasets') is None:
    raise missing_package(repr(source.location), 'TensorFlow Datasets', 'tfds')
  console.quiet_libraries()  # TensorFlow is imported for addresses and for TFRecord files
  import tensorflow_datasets as tfds
  from etils import epath
  from tensorflow_datasets.core import read_only_builder, registered
  from tensorflow_datasets.core.utils import error_utils

  name = source.location.removeprefix(PREFIX)
  if is_dataset_folder(name):
    return _open_folder(name)
  name = _VERSION.sub(':', name)
  if not _NAME.fullmatch(name):
    raise UserError(
      f'{name!r} is not the name of a TFDS dataset; expected one such as '
      'tfds:wikipedia/20230601.en, or the folder of a prepared version'
    )
  given = source.options['data_dir']
  data_dir = os.path.expanduser(given) if given else None
  place = data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join('~', 'tensorflow_datasets')
  found = None
  if ':' not in _VERSION.split(name)[0]:  # TFDS looks up namespaces on the network
    with _sentence(name), contextlib.suppress(registered.DatasetNotFoundError):
      # The first half of TFDS's builder_from_files, to check the folder before it is read.
      with error_utils.record_error_context():
        found = read_only_builder._find_builder_dir(name, data_dir=data_dir)
  if found:
    return _builder_at(found, name)
  if source.options['download'] != 'yes':
    raise UserError(_not_found(name, place))
  console.say('corpus', f'TFDS downloads and prepares {name} in {place}')
  with _sentence(name, 'prepared'):
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
  return _builder_at(epath.Path(builder.data_dir), name)


def _open_folder(name: str) -> Builder:
  """The builder of a dataset in the folder of a version."""
  from etils import epath

  folder = epath.Path(name).expanduser()
  with _sentence(name):
    is_there = (folder / INFO).exists()
  if not is_there:
    raise UserError(
      f'{name!r} holds no prepared TFDS dataset; expected the folder of a version, which holds '
      f'{INFO}'
    )
  return _builder_at(folder, name)


def _builder_at(folder: Folder, name: str) -> Builder:
  """The builder of a dataset, whose description is checked first."""
  import tensorflow_datasets as tfds

  with _sentence(name):
    check_metadata(folder, name)
    return tfds.builder_from_directory(folder)


def _slices(source: CorpusSource, builder: Builder) -> list[Slice]:
  """The examples that the source's split selects, in order.

  Raises:
    UserError: the split or the field is unknown, or the selection is empty.
  """
  import tensorflow_datasets as tfds

  _record_key(source, builder)
  split = source.options['split']
  known = named(builder.info.splits)
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
  except Exception as error:  # TFDS raises many kinds
    raise UserError(
      f'TFDS dataset {builder.info.full_name} has no split {split!r} '
      f'({file_access.reason(error)}); its splits are {known}, or slices of them such as '
      'train[:50%]'
    ) from None
  found = []
  for part in parts:
    examples = builder.info.splits[part.splitname].num_examples
    first = part.from_ or 0
    last = examples if part.to is None else min(part.to, examples)
    if first < last:
      found.append((part.splitname, first, last))
  if not found:
    raise UserError(
      f'split {split!r} of TFDS dataset {builder.info.full_name} selects no example; its splits '
      f'are {known}'
    )
  return found


def _slice_bytes(builder: Builder, part: Slice) -> int:
  """An estimate of the stored bytes of some examples."""
  split = builder.info.splits[part[0]]
  return int(split.num_bytes) * (part[2] - part[1]) // int(split.num_examples)


def _record_key(source: CorpusSource, builder: Builder) -> str:
  """The key of the source's field in a record.

  Raises:
    UserError: the dataset has no text of that name.
  """
  import numpy as np
  import tensorflow_datasets as tfds

  def texts(features: Features, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(features, tfds.features.FeaturesDict):
      for name, feature in features.items():
        yield from texts(feature, (*names, name))
    elif names and features.shape == () and features.np_dtype in (np.object_, np.str_, np.bytes_):
      yield names

  found = {'.'.join(names): '/'.join(names) for names in texts(builder.info.features)}
  field = source.options['field']
  if field not in found:
    raise UserError(
      f'TFDS dataset {builder.info.full_name} has no text called {field!r}; its texts are '
      f'{named(sorted(found))}; name one with ;field=NAME'
    )
  return found[field]


def _array_records(
  builder: Builder, key: str, split: str, first: int, last: int
) -> Iterator[bytes]:
  """One field of ArrayRecord records, read without TensorFlow."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.decode import DeserializeMethod
  from tensorflow_datasets.proto import tf_example_pb2

  instruction = tfds.core.ReadInstruction(split, from_=first, to=last, unit='abs')
  records = builder.as_data_source(
    split=instruction, deserialize_method=DeserializeMethod.RAW_BYTES
  )
  for i in range(len(records)):
    record = records[i]
    if not record:  # a file that was cut between two blocks reads like this
      raise ValueError(f'example {first + i} of split {split!r} is missing')
    values = tf_example_pb2.Example.FromString(record).features.feature[key].bytes_list.value
    yield values[0] if values else b''


def _tf_records(builder: Builder, key: str, split: str, first: int, last: int) -> Iterator[bytes]:
  """One field of TFRecord records, in the order of the files, read by tf.data."""
  if importlib.util.find_spec('tensorflow') is None:
    info = builder.info
    what = f'TFDS dataset {info.full_name}, which is stored as {info.file_format.value},'
    raise missing_package(what, 'TensorFlow', 'tfds')
  import tensorflow as tf
  import tensorflow_datasets as tfds

  with contextlib.suppress(RuntimeError):  # TensorFlow is initialized and has taken them already
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1  # several readers run at a time
  config = tfds.ReadConfig(
    options=options,
    try_autocache=False,
    skip_prefetch=True,
    interleave_cycle_length=1,
    num_parallel_calls_for_interleave_files=1,
    num_parallel_calls_for_decode=1,
  )
  names = key.split('/')
  with console.without_library_warnings():
    dataset = builder.as_dataset(
      split=tfds.core.ReadInstruction(split, from_=first, to=last, unit='abs'),
      shuffle_files=False,
      read_config=config,
      decoders=tfds.decode.PartialDecoding(_features_to_decode(builder, names)),
    )
    dataset = dataset.map(lambda example: functools.reduce(operator.getitem, names, example))
    dataset = dataset.batch(_READ_AHEAD)
  for values in dataset.as_numpy_iterator():
    yield from values


def _features_to_decode(builder: Builder, names: list[str]) -> dict[str, Any]:
  """Nested names of the features to decode, for `PartialDecoding`.

  Only dictionaries can be decoded in part. Features that are made of them, such as translations,
  are decoded whole.
  """
  import tensorflow_datasets as tfds

  features: dict[str, Any] = {}
  inner = features
  feature = builder.info.features
  for name in names:
    feature = feature[name]
    if type(feature) is not tfds.features.FeaturesDict:
      inner[name] = True
      break
    inner[name] = {}
    inner = inner[name]
  return features


def _not_found(name: str, place: str) -> str:
  """A sentence on why a dataset was not found by its name in a folder."""
  import tensorflow_datasets as tfds
  from etils import epath
  from tensorflow_datasets.core import registered

  sentence = (
    f'TFDS dataset {name!r} is not prepared in {place!r}; add ;data_dir=FOLDER where it is, or '
    ';download=yes to download and prepare it there'
  )
  if ':' in _VERSION.split(name)[0]:
    return sentence
  family, *config = _VERSION.split(name)[0].split('/')
  folder = epath.Path(place).expanduser() / family
  with contextlib.suppress(Exception):
    if there := sorted(
      path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.')
    ):
      return (
        f'TFDS dataset {name!r} is not prepared in {place!r}, which holds of {family!r} only '
        f'{named(there)}'
      )
  try:
    known = registered.imported_builder_cls(family).builder_configs
  except registered.DatasetNotFoundError:
    near = difflib.get_close_matches(family, tfds.list_builders(with_community_datasets=False), n=1)
    guess = f' (did you mean {near[0]!r}?)' if near else ''
    return (
      f'TFDS knows no dataset {family!r}{guess}, and none is prepared in {place!r}; add '
      ';data_dir=FOLDER where it is'
    )
  except Exception:  # its code cannot be imported; it may be prepared elsewhere
    return sentence
  if config and known and config[0] not in known:
    near = difflib.get_close_matches(config[0], known, n=3, cutoff=0)
    return (
      f'TFDS dataset {family!r} has no config {config[0]!r}; it has {len(known)}, such as '
      f'{named(near)}'
    )
  return sentence


@contextlib.contextmanager
def _sentence(name: str, participle: str = 'read') -> Iterator[None]:
  """Raises what TFDS and TensorFlow raise, of many kinds, as a UserError of one sentence."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f'TFDS dataset {name!r} cannot be {participle}: {file_access.reason(error)}'
    ) from None
