"""Checks the files that describe a prepared TFDS dataset, before TFDS reads them.

TFDS imports the module of any class that features.json names, and opens any path that the templates
of dataset_info.json name. A dataset from elsewhere could run code or read other files so.
"""

import re
from collections.abc import Iterator
from typing import Any

from electra_jax import json_reader
from electra_jax.errors import UserError

INFO = 'dataset_info.json'
FEATURES = 'features.json'

Folder = Any  # etils.epath.Path, which TFDS reads files with

_REMEDY = 'prepare it again'
# The modules of TFDS's own feature classes.
_OWN_CLASS = re.compile(r'tensorflow_datasets(\.core)?\.features(\.\w+)+')
# Keys of features.json: the name of a class, in three spellings, and strings that are JSON.
_CLASS_KEYS = ('type', 'python_class_name', 'pythonClassName')
_JSON_KEYS = ('json', 'content')
_INFO_SHAPE = {
  'name?': str,
  'fileFormat?': str,
  'file_format?': str,
  'splits?': [{'name?': str, 'filepathTemplate?': str, 'filepath_template?': str}],
}


def check_metadata(folder: Folder, name: str) -> None:
  """Checks the files of a dataset.

  Args:
    folder: of a version of the dataset.
    name: of the dataset, for messages.

  Raises:
    UserError: a file is not JSON, names a class that is not TFDS's own, or a path that leads out of
      the folder.
  """
  info = _read(folder / INFO, name, _INFO_SHAPE)
  splits = info.get('splits', [])
  names = [info.get(key, '') for key in ('name', 'fileFormat', 'file_format')]
  names += [split.get('name', '') for split in splits]
  if wrong := [text for text in names if re.search(r'[/\\\0]', text)]:
    raise UserError(
      f'TFDS dataset {name!r} has the name {wrong[0]!r} in its {INFO}; expected a name without '
      'slashes.'
    )
  for split in splits:
    template = split.get('filepathTemplate') or split.get('filepath_template') or ''
    if template.startswith('/') or '://' in template or '..' in re.split(r'[/\\]', template):
      raise UserError(
        f'TFDS dataset {name!r} has files at {template!r} by its {INFO}; expected files in its own '
        'folder.'
      )
  if not (folder / FEATURES).exists():
    return  # which TFDS reports
  for class_name in _classes(_read(folder / FEATURES, name, {}), name):
    if not _OWN_CLASS.fullmatch(class_name):
      raise UserError(
        f'TFDS dataset {name!r} asks for the class {class_name!r} in its {FEATURES}, which could '
        "run code, so it is not opened; expected TFDS's own feature classes."
      )


def _read(path: Folder, name: str, shape: json_reader.Shape) -> dict[str, Any]:
  where = f'TFDS dataset {name!r} cannot be read: its {path.name}'
  value: dict[str, Any] = json_reader.parse(path.read_bytes(), where, _REMEDY)
  json_reader.check(value, shape, where, _REMEDY)
  return value


def _classes(value: json_reader.Json, name: str) -> Iterator[str]:
  """The names of classes at any depth, those in strings that are JSON included."""
  waiting = [value]
  while waiting:
    item = waiting.pop()
    if isinstance(item, list):
      waiting += item
    elif isinstance(item, dict):
      for key, inner in item.items():
        if not isinstance(inner, str):
          waiting.append(inner)
        elif key in _JSON_KEYS:
          where = f'TFDS dataset {name!r} cannot be read: {key!r} in its {FEATURES}'
          waiting.append(json_reader.parse(inner, where, _REMEDY))
        elif key in _CLASS_KEYS:
          yield inner
