"""Which file has the tags of which split, by its name."""

import re

from electra_jax import file_access
from electra_jax.config.finetuning import TaskDataConfig
from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import tables

# Parts of file names and the split they mean; the first that occurs is used. The files of
# CoNLL-2003 are eng.train, eng.testa (for development) and eng.testb.
_SPLIT_OF_NAME = (
  ('testa', 'dev'),
  ('testb', 'test'),
  ('train', 'train'),
  ('dev', 'dev'),
  ('valid', 'dev'),
  ('test', 'test'),
)
_OTHER_FILES = re.compile(r'\.|license|readme|.*\.(md|pdf|py|sh|log|stats\.xml)$', re.IGNORECASE)


def split_paths(data: TaskDataConfig) -> dict[str, str]:
  """The file of each split: as named, else the file in data.source whose name implies the split.

  Raises:
    UserError: data.source is no folder, or has no file, or several ones, for a split.
  """
  given = {split: path for split in tables.SPLITS if (path := getattr(data, split))}
  if not data.source:
    return given
  if folders := tables.saved_folders(data.source):
    return {split: path for split, path in (folders | given).items() if path}
  if data.source.startswith('tfds:') or not file_access.is_folder(data.source):
    raise UserError(
      f'data.source is {data.source!r}; expected a folder of files with tags, or set data.train, '
      'data.dev and data.test'
    )
  found = _files_by_split(data.source)
  for split in tables.SPLITS:
    if split not in given and len(found[split]) > 1:
      raise UserError(
        f'the folder {data.source!r} has several files for {split}: {named(found[split])}; set '
        f'data.{split} to one of them'
      )
  if not given and not any(found.values()):
    raise UserError(
      f'the folder {data.source!r} has no file with train, dev or test in its name; set data.train '
      'and data.dev'
    )
  return {
    split: given.get(split) or file_access.join(data.source, found[split][0])
    for split in tables.SPLITS
    if split in given or found[split]
  }


def _files_by_split(folder: str) -> dict[str, list[str]]:
  """Names of the files in a folder, by the split that their names imply."""
  found: dict[str, list[str]] = {split: [] for split in tables.SPLITS}
  for name in file_access.listing(folder):
    split = next((split for mark, split in _SPLIT_OF_NAME if mark in name.lower()), None)
    if split is None or _OTHER_FILES.match(name):
      continue
    if not file_access.is_folder(file_access.join(folder, name)):
      found[split].append(name)
  # A folder of Universal Dependencies also has each split as plain text.
  for split, names in found.items():
    treebanks = [name for name in names if tables.format_from_name(name) == 'conllu']
    found[split] = treebanks or names
  return found
