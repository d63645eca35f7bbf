"""The files of a checkpoint: complete and with checksums before it counts, and checked when read.

Orbax writes a checkpoint under a temporary name and gives it its final one when all processes have
written their parts. Just before that, the first process reads everything back: it compares the
arrays that were found with those that were to be saved, and records the checksum of each file.
"""

import asyncio
import collections
import math
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from electra_jax import checksums, file_access, json_reader
from electra_jax.errors import UserError

# Orbax writes it after the checksums; only whether it exists counts.
_COMMITTED = 'commit_success.txt'
_METADATA = '_CHECKPOINT_METADATA'
_TREE = '_METADATA'  # names of the arrays of an item, as Orbax records them
_ARRAY = '.zarray'  # shape of an array, and of the chunks that it is stored in
# Files that Orbax reads when it opens a folder of checkpoints, before an item is chosen.
_SMALL = (_METADATA, 'metrics/')

PathLike = str | os.PathLike[str]


#### Saving ####


class _Checked:
  """Orbax's temporary path of a checkpoint, completed with checksums before it is committed.

  The attributes are those of Orbax 0.12.8, which has no hook at this place. Items of a checkpoint,
  such as its parameters, have temporary paths too; they are not concerned.
  """

  _checkpoint_metadata_store: Any
  _tmp_path: epath.Path
  _final_path: epath.Path

  async def finalize(self) -> None:
    """Completes and commits the checkpoint; called in the first process."""
    if not self._final_path.name.isdigit():
      await super().finalize()  # type: ignore[misc]  # of the other base class
      return
    store = self._checkpoint_metadata_store
    if store:  # as Orbax does; its record of the time has a checksum too
      await asyncio.to_thread(_record_time, store, self._tmp_path)
      self._checkpoint_metadata_store = None
    await asyncio.to_thread(complete, self._tmp_path)
    await super().finalize()  # type: ignore[misc]  # of the other base class
    if not file_access.is_remote(self._final_path):
      await asyncio.to_thread(file_access.sync_folder, self._final_path.parent)


# Orbax has no annotations, so that mypy knows nothing of the base classes.
class CheckedRename(_Checked, ocp.path.atomicity.AtomicRenameTemporaryPath):  # type: ignore[misc]
  """A checkpoint of a local folder: it is renamed when it is complete."""


class CheckedCommit(_Checked, ocp.path.atomicity.CommitFileTemporaryPath):  # type: ignore[misc]
  """A checkpoint in a bucket: it has a file more when it is complete."""


def _record_time(store: Any, folder: epath.Path) -> None:  # noqa: ANN401  not annotated
  store.wait_until_finished()
  store.update(file_path=folder / _METADATA, commit_timestamp_nsecs=time.time_ns())
  store.wait_until_finished()


def complete(folder: PathLike) -> None:
  """Checks that all arrays of a checkpoint are stored, syncs it, and writes its checksums.

  Args:
    folder: of the checkpoint, under its temporary name.

  Raises:
    UserError: an array is missing, or a file cannot be read or written.
  """
  if missing := missing_arrays(folder):
    raise UserError(
      f'{os.fspath(folder)!r} was written without {", ".join(missing[:3])}; expected all arrays.'
    )
  names = [name for name in file_access.files_below(folder) if not name.endswith(_COMMITTED)]
  if not file_access.is_remote(folder):
    _sync(folder, names)
  sums = checksums.digests(folder, names)
  file_access.write_bytes(file_access.join(folder, checksums.SUMS), checksums.sums_content(sums))


def missing_arrays(folder: PathLike) -> list[str]:
  """Names of arrays that a checkpoint should have, and of which a part is not stored.

  Args:
    folder: of the checkpoint.
  """
  items = (name.rpartition('/') for name in file_access.files_below(folder))
  return [
    f'{item}/{name}'
    for item, _, file in items
    if file == _TREE
    for name in _missing_in_item(file_access.join(folder, item))
  ]


def _missing_in_item(item: str) -> list[str]:
  """Names of the arrays of an item of which a part is not stored."""
  import tensorstore

  tree = json_reader.read(file_access.join(item, _TREE), rules=json_reader.OWN)['tree_metadata']
  expected = [
    '.'.join(str(part['key']) for part in leaf['key_metadata'])
    for leaf in tree.values()
    if not leaf['value_metadata'].get('skip_deserialize')
  ]
  store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': _kvstore(item)}).result()
  parts = collections.Counter(key.decode().rpartition('/')[0] for key in store.list().result())
  reads = {name: store.read(f'{name}/{_ARRAY}') for name in expected if parts[name]}
  described = {
    name: json_reader.parse(read.result().value or 'null', name, rules=json_reader.OWN)
    for name, read in reads.items()
  }
  return [
    name
    for name in expected
    if not described.get(name) or parts[name] != 1 + _chunks(described[name])
  ]


def _chunks(array: Mapping[str, Any]) -> int:
  """The number of chunks that Zarr stores an array in; all are written, also those of zeros."""
  pairs = zip(array['shape'], array['chunks'], strict=True)
  return math.prod(-(-size // chunk) for size, chunk in pairs)


def _kvstore(item: str) -> dict[str, str]:
  """TensorStore's specification of a folder or address."""
  if file_access.is_remote(item):
    bucket, _, path = item.partition('://')[2].partition('/')
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{path}/'}
  return {'driver': 'file', 'path': f'{item}/'}


def _sync(folder: PathLike, names: Collection[str]) -> None:
  """Flushes the files and folders of a checkpoint to the disk."""
  folders = {'', *(name.rpartition('/')[0] for name in names)}
  for name in names:
    descriptor = os.open(file_access.join(folder, name), os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
  for name in sorted(folders):
    file_access.sync_folder(file_access.join(folder, name) if name else folder)


#### Reading ####


def check_opened(directory: PathLike) -> None:
  """Checks the few files that are read of each checkpoint when a folder of them is opened.

  Args:
    directory: WORKDIR/checkpoints.

  Raises:
    UserError: one is damaged.
  """
  for step in steps_of(directory):
    folder = file_access.join(directory, str(step))
    sums = _sums(folder, directory, step)
    small = [name for name in sums if name.startswith(_SMALL)]
    _raise_damage(directory, step, checksums.find_damage(folder, sums, small))


def check_items(directory: PathLike, step: int, items: Sequence[str], shared: bool = False) -> None:
  """Checks the files of some items of a checkpoint. A checkpoint of 0.1.0 has no checksums.

  Args:
    directory: WORKDIR/checkpoints.
    step: step of the checkpoint.
    items: names of the items.
    shared: whether all processes of the run call this; each then reads its part of the files.

  Raises:
    UserError: a file is damaged or missing; it is named, and the newest checkpoint that is whole.
  """
  folder = file_access.join(directory, str(step))
  sums = _sums(folder, directory, step)
  prefixes = tuple(f'{item}/' for item in items)
  names = sorted(name for name in sums if name.startswith(prefixes))
  if shared:
    names = names[jax.process_index() :: jax.process_count()]
  _raise_damage(directory, step, checksums.find_damage(folder, sums, names))


def _sums(folder: str, directory: PathLike, step: int) -> Mapping[str, str]:
  """The checksums of a checkpoint; empty for one without."""
  try:
    return checksums.read_sums(folder) or {}
  except file_access.Unreachable:
    raise
  except UserError:
    _raise_damage(directory, step, {checksums.SUMS: 'is damaged'})
    raise


def _raise_damage(directory: PathLike, step: int, damage: Mapping[str, str]) -> None:
  if not damage:
    return
  name, text = next(iter(damage.items()))
  others = f' and {len(damage) - 1} more files are damaged' if len(damage) > 1 else ''
  folder = file_access.join(directory, str(step))
  raise UserError(
    f'the checkpoint {folder} is damaged: {name} {text}{others}; {remedy(directory, step)}'
  )


def remedy(directory: PathLike, step: int) -> str:
  """What to do about a damaged checkpoint: the end of a sentence.

  Args:
    directory: WORKDIR/checkpoints.
    step: step of the damaged checkpoint.
  """
  whole = newest_whole(directory, step)
  if whole is None:
    return (
      'no other checkpoint is whole; restore the file from a copy, or start again in another '
      '--workdir.'
    )
  return (
    f'the checkpoint of step {whole:,} is whole: to use it, move the folder {step} out of '
    f'{os.fspath(directory)}.'
  )


def newest_whole(directory: PathLike, step: int) -> int | None:
  """The newest checkpoint, other than `step`, without damage; None if there is none.

  Older ones are preferred, as a resumed run continues after them.
  """
  others = [other for other in steps_of(directory) if other != step]
  older = [other for other in others if other < step]
  newer = [other for other in others if other > step]
  for other in [*reversed(older), *newer]:
    if not damage_of(directory, other):
      return other
  return None


def damage_of(directory: PathLike, step: int) -> dict[str, str]:
  """Reads a whole checkpoint. For each damaged file, what is wrong with it."""
  folder = file_access.join(directory, str(step))
  try:
    sums = checksums.read_sums(folder)
  except file_access.Unreachable:
    raise
  except UserError:
    return {checksums.SUMS: 'is damaged'}
  return checksums.find_damage(folder, sums) if sums else {}


def steps_of(directory: PathLike) -> list[int]:
  """Steps of the complete checkpoints of a folder, ascending."""
  names = (name for name in file_access.listing(directory) if re.fullmatch('[0-9]+', name))
  if file_access.is_remote(directory):
    committed = file_access.exists
    names = (name for name in names if committed(file_access.join(directory, name, _COMMITTED)))
  return sorted(map(int, names))
