"""Files of TensorFlow checkpoints: which one a path names, reading and writing their variables."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from electra_jax import console, file_access
from electra_jax.errors import UserError, missing_package

STATE = 'checkpoint'  # the file that names a folder's last checkpoint
_LFS_POINTER = b'version https://git-lfs'
_TensorFlow = Any  # the module, which is imported on first use
_Reader = Any  # what tf.train.load_checkpoint returns


def folder_of(prefix: str) -> str:
  """Returns the folder of a path or address."""
  return prefix.rpartition('/')[0] or ('/' if prefix.startswith('/') else '.')


def checkpoint_files(name: str) -> tuple[str, str]:
  """Returns the names of the files of a checkpoint that `save_variables` writes."""
  return f'{name}.index', f'{name}.data-00000-of-00001'


def find_prefix(path: str) -> str:
  """Returns the prefix of the checkpoint that a path names.

  Args:
    path: the prefix, one of the checkpoint's files, or the folder with the checkpoint.

  Raises:
    UserError: there is no checkpoint, or there are several and no file that names one.
  """
  if os.path.basename(path) == STATE and not file_access.is_folder(path):
    path = folder_of(path)
  if file_access.is_folder(path):
    return _find_in_folder(path)
  prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
  # The format before TensorFlow 1.0 is one file with the name of the prefix.
  if file_access.exists(prefix + '.index') or file_access.exists(prefix):
    return prefix
  raise UserError(
    f'{path!r} is no TensorFlow checkpoint: {prefix}.index does not exist; expected a prefix such '
    'as model.ckpt-1000000, or its folder.'
  )


def _find_in_folder(folder: str) -> str:
  found = [
    name.removesuffix('.index') for name in file_access.listing(folder) if name.endswith('.index')
  ]
  state = file_access.join(folder, STATE)
  if file_access.exists(state):
    content = file_access.read_bytes(state)
    match = re.search(rb'^model_checkpoint_path: "(.*)"', content, re.MULTILINE)
    # The state file keeps the old path of a folder that was moved, so only the name counts.
    name = os.path.basename(match[1].decode('utf-8', 'replace')) if match else ''
    if name in found or (name and file_access.exists(file_access.join(folder, name))):
      return file_access.join(folder, name)
  if len(found) == 1:
    return file_access.join(folder, found[0])
  if found:
    raise UserError(
      f'{folder!r} has several checkpoints and no {STATE} file that names one; expected one of '
      f'{", ".join(found)}.'
    )
  raise UserError(
    f'{folder!r} has no TensorFlow checkpoint; expected files that end in .index and '
    '.data-00000-of-00001.'
  )


class VariableReader:
  """Reads variables of an open checkpoint.

  Attributes:
    prefix: of the checkpoint, for messages.
    shapes: of all variables, by name.
  """

  def __init__(self, reader: _Reader, prefix: str) -> None:
    """Wraps TensorFlow's reader."""
    self.prefix = prefix
    self.shapes: dict[str, tuple[int, ...]] = {
      name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()
    }
    self._reader = reader

  def read(self, name: str) -> np.ndarray:
    """Returns a variable.

    Raises:
      UserError: the file is damaged.
    """
    with _damage_is_a_user_error(self.prefix, f'is cut short or damaged at {name}'):
      value: np.ndarray = self._reader.get_tensor(name)
      return value


@contextlib.contextmanager
def open_checkpoint(prefix: str) -> Iterator[VariableReader]:
  """Opens a checkpoint. The files of a remote one are copied to this machine meanwhile.

  Raises:
    UserError: TensorFlow is not installed, or files are missing, damaged or Git LFS pointers.
  """
  tf = _tensorflow()
  name = os.path.basename(prefix)
  folder = folder_of(prefix)
  pattern = re.escape(name) + r'(\.index|\.data-.*)?'
  parts = [part for part in file_access.listing(folder) if re.fullmatch(pattern, part)]
  if parts == [f'{name}.index']:
    raise UserError(
      f'{prefix}.data-00000-of-00001 is missing, which holds the numbers; download that file.'
    )
  with tempfile.TemporaryDirectory() as copies:
    for part in parts:
      path = file_access.join(folder, part)
      with file_access.open_binary(path) as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
          raise UserError(
            f'{path!r} is a Git LFS pointer, not the file itself; run git lfs pull in its folder.'
          )
        if file_access.is_remote(prefix):
          file.seek(0)
          with open(os.path.join(copies, part), 'wb') as copy:
            shutil.copyfileobj(file, copy)
    local = os.path.join(copies, name) if file_access.is_remote(prefix) else prefix
    with _damage_is_a_user_error(prefix, 'cannot be read'):
      reader = VariableReader(tf.train.load_checkpoint(local), prefix)
    yield reader


def save_variables(variables: Mapping[str, np.ndarray], prefix: str) -> None:
  """Writes a checkpoint, its index last, without the folder's state file.

  Raises:
    UserError: TensorFlow is not installed, or the files cannot be written.
  """
  tf = _tensorflow()
  folder = folder_of(prefix)
  remote = file_access.is_remote(prefix)
  try:
    if not remote:
      os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=None if remote else folder) as fresh:
      with tf.device('CPU:0'):
        tf.raw_ops.SaveV2(
          prefix=os.path.join(fresh, os.path.basename(prefix)),
          tensor_names=list(variables),
          shape_and_slices=[''] * len(variables),
          tensors=list(variables.values()),
        )
      for part in sorted(os.listdir(fresh)):  # 'data' is before 'index'
        source = os.path.join(fresh, part)
        target = file_access.join(folder, part)
        if remote:
          file_access.upload(source, target)
        else:
          os.replace(source, target)
  except (OSError, tf.errors.OpError) as error:
    raise file_access.Unwritable(
      f'{prefix!r} cannot be written: {file_access.reason(error)}'
    ) from None


def write_state(prefix: str) -> None:
  """Writes the file that names the last checkpoint of a folder."""
  name = json.dumps(os.path.basename(prefix))
  state = f'model_checkpoint_path: {name}\nall_model_checkpoint_paths: {name}\n'
  file_access.write_bytes(file_access.join(folder_of(prefix), STATE), state.encode())


def _tensorflow() -> _TensorFlow:
  console.quiet_libraries()
  try:
    import tensorflow as tf
  except ImportError:
    raise missing_package('a TensorFlow checkpoint', 'TensorFlow', 'tfds') from None
  with contextlib.suppress(RuntimeError):  # TensorFlow was in use before
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  return tf


@contextlib.contextmanager
def _damage_is_a_user_error(prefix: str, what: str) -> Iterator[None]:
  import tensorflow as tf

  try:
    yield
  # TensorFlow raises an IndexError at an early end of the data.
  except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
    raise UserError(
      f'{prefix} {what} ({file_access.reason(error)}); download its files again.'
    ) from None
