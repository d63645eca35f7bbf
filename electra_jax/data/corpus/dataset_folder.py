"""Folders that `save_to_disk` of the datasets library writes: Arrow files and their order.

A folder of one data set has state.json, which lists its files. Version 1 of the library may add a
file of row numbers, where rows were selected or shuffled. A folder of several splits has
dataset_dict.json, and a folder for each split.
"""

import bisect
import itertools
import posixpath
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from electra_jax import file_access, json_reader
from electra_jax.data.corpus import arrow_columns
from electra_jax.data.corpus.arrow_format import ARROW, ROWS
from electra_jax.data.corpus.corpus_format import (
  Contents,
  CorpusSource,
  FieldFormat,
  Group,
)
from electra_jax.data.corpus.readers import DocumentReader, named
from electra_jax.errors import UserError

STATE = 'state.json'
SPLITS = 'dataset_dict.json'

_INDICES = ('_indices_data_files', '_indices_files')  # names in versions 1.2 and earlier ones
_USUAL = 'train'
_REMEDY = 'save the dataset again'

Arrow = Any  # objects of pyarrow, which has no annotations


class DatasetFolderFormat(FieldFormat):
  """A folder of `datasets.save_to_disk`; `;split=NAME`, or names with plus signs between."""

  title = 'a folder of datasets.save_to_disk'
  options = {'field': 'text', 'split': ''}
  selectable = False

  def owns_folder(self, names: Set[str]) -> bool:
    """See the base class."""
    return STATE in names or SPLITS in names

  def folder_source(self, source: CorpusSource, name: str) -> CorpusSource:
    """See the base class. Options hold the splits and the column that are read."""
    found = super().folder_source(source, name)
    options = {**found.options, 'split': '+'.join(_splits(found))}
    if 'field' not in source.given:
      first = saved_files(_folders(found.location, options['split'])[0]).data[0]
      options['field'] = ARROW.detected_field(first, options, DocumentReader()) or options['field']
    return CorpusSource(
      found.location, name, options, found.weight, found.heldout, given=found.given
    )

  def owns(self, location: str) -> bool:
    """See the base class."""
    return False

  def describe(self, source: CorpusSource) -> str:
    """See the base class."""
    return ' '.join(filter(None, (source.location, source.options.get('split', ''))))

  def contents(self, source: CorpusSource) -> Contents:
    """The files of the selected splits in their order, with those of row numbers."""
    return {
      path: file_access.facts(path)
      for folder in _folders(source.location, source.options['split'])
      for path in itertools.chain(*saved_files(folder))
    }

  def groups(self, index: int, source: CorpusSource, contents: Contents) -> list[Group]:
    """See the base class. Rows that are selected by their numbers are one group per split."""
    groups = []
    for folder in _folders(source.location, source.options['split']):
      listed, indices = saved_files(folder)
      files = [path for path in listed if path in contents]
      if not indices:
        groups += super().groups(index, source, {path: contents[path] for path in files})
      elif files:
        size = sum(contents[path].size for path in files)
        groups.append(Group(index, source, (*files, *indices), stop=len(files), bytes=size))
    return groups

  def documents(self, group: Group, reader: DocumentReader) -> Iterator[str]:
    """See the base class."""
    if not group.stop:
      for path in group.files:
        for text in ARROW.read(path, group.source.options, reader):
          yield from reader.document(text)
      return
    files, indices = group.files[: group.stop], group.files[group.stop :]
    for text in _selected(files, indices, group.source.options['field'], reader):
      yield from reader.document(text)
    reader.advance(group.bytes)


DATASET_FOLDER = DatasetFolderFormat()


#### What a folder lists ####


class SavedFiles(NamedTuple):
  """Files of a data set, in their order.

  Attributes:
    data: Arrow files with the columns.
    indices: Arrow files with the numbers of the selected rows; none where all are selected.
  """

  data: list[str]
  indices: list[str]


def is_saved_dataset(folder: str) -> bool:
  """Whether a folder has one data set."""
  return file_access.is_folder(folder) and file_access.exists(file_access.join(folder, STATE))


def saved_splits(folder: str) -> tuple[str, ...]:
  """Names of the splits of a folder that has several; () for other folders and files.

  Raises:
    UserError: dataset_dict.json is damaged, lists nothing, or names a folder elsewhere.
  """
  path = file_access.join(folder, SPLITS)
  if not (file_access.is_folder(folder) and file_access.exists(path)):
    return ()
  names: list[str] = json_reader.read(path, {'splits': [str]}, _REMEDY)['splits']
  if not names:
    raise UserError(f'the file {path!r} lists no splits; {_REMEDY}')
  for name in names:
    _check_inside(name, path)
  return tuple(names)


def saved_files(folder: str) -> SavedFiles:
  """The files that state.json lists, which may be missing.

  Raises:
    UserError: it is damaged, lists no data files, or names a file outside of the folder.
  """
  path = file_access.join(folder, STATE)
  state = json_reader.read(path, {'_data_files': [{'filename': str}]}, _REMEDY)
  data = _listed(state, '_data_files')
  if not data:
    raise UserError(f'the file {path!r} lists no data files; {_REMEDY}')
  indices = next((found for key in _INDICES if (found := _listed(state, key))), [])
  for name in (*data, *indices):
    _check_inside(name, path)
  return SavedFiles(
    [file_access.join(folder, name) for name in data],
    [file_access.join(folder, name) for name in indices],
  )


def _listed(state: Mapping[str, Any], key: str) -> list[str]:
  entries = state.get(key)
  entries = entries if isinstance(entries, list) else []
  return [str(entry.get('filename', '')) for entry in entries if isinstance(entry, Mapping)]


def _check_inside(name: str, path: str) -> None:
  parts = name.split('/')
  if posixpath.isabs(name) or not {'', '.', '..'}.isdisjoint(parts) or '\\' in name:
    raise UserError(f'the file {path!r} lists {name!r}; expected files inside of its folder')


#### Selected splits ####


def _splits(source: CorpusSource) -> list[str]:
  """Names of the selected splits; none where the folder is one data set.

  Raises:
    UserError: a split is unknown, or none is selected of several.
  """
  given = source.options['split']
  known = saved_splits(source.location)
  if not known:
    if given:
      raise UserError(f'the data set {source.location!r} has no splits; leave out ;split={given}')
    return []
  chosen = given.split('+') if given else [_USUAL] if _USUAL in known else [*known]
  if not set(chosen) <= set(known) or (not given and len(chosen) != 1):
    raise UserError(
      f'the data set {source.location!r} has the splits {named(known)}; expected some of them, as '
      f';split={"+".join(known[:2]) or _USUAL}'
    )
  return list(chosen)


def _folders(location: str, splits: str) -> list[str]:
  location = file_access.normal(location)
  return [file_access.join(location, name) for name in splits.split('+')] if splits else [location]


#### Rows by their numbers ####


def _selected(
  files: Sequence[str], indices: Sequence[str], field: str, reader: DocumentReader
) -> Iterator[str]:
  """The texts of some rows, in the order of their numbers.

  Local files are mapped into memory, which the system reads and drops as it needs.
  """
  import pyarrow as pa

  batches = [batch for path in files for batch in _mapped(path)]
  ends: list[int] = []
  for batch in batches:
    ends.append((ends[-1] if ends else 0) + batch.num_rows)
  names = arrow_columns.column_path(batches[0].schema, field, files[0]) if batches else ()
  columns = [batch.column(batch.schema.get_field_index(names[0])) for batch in batches]
  for path in indices:
    for batch in _mapped(path):
      numbers = batch.column(0).cast(pa.int64()).to_pylist()
      for start in range(0, len(numbers), ROWS):
        for number in numbers[start : start + ROWS]:
          if number is None or not 0 <= number < (ends[-1] if ends else 0):
            raise UserError(
              f'the corpus file {path!r} selects row {number} of {ends[-1] if ends else 0:,}; '
              'replace the data set'
            )
          place = bisect.bisect_right(ends, number)
          inside = number - (ends[place - 1] if place else 0)
          (value,) = arrow_columns.texts_of(columns[place].slice(inside, 1), names[1:])
          where = f'row {number} of the data set of {files[0]!r} is not UTF-8'
          yield '' if value is None else reader.decode(value, where)


def _mapped(path: str) -> list[Arrow]:
  """The batches of an Arrow file, mapped if it is local."""
  import pyarrow as pa

  with arrow_columns.naming_damage(path, 'an Arrow file'):
    if file_access.is_remote(path):
      source = pa.py_buffer(file_access.read_bytes(path))
    else:
      source = pa.memory_map(path)
    try:
      file = pa.ipc.open_file(source)
      return [file.get_batch(i) for i in range(file.num_record_batches)]
    except pa.ArrowInvalid:
      if hasattr(source, 'seek'):
        source.seek(0)
      return list(pa.ipc.open_stream(source))
