"""Reads files of torch.save (.bin) without PyTorch and without running their code.

Such a file is a pickle, which can call any function. The unpickler here builds tensors and
dictionaries only and refuses everything else.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from electra_jax import file_access
from electra_jax.errors import UserError

_STORAGE_DTYPES = {
  'DoubleStorage': np.dtype(np.float64),
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(jnp.bfloat16),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(np.bool_),
}
_ZIP = b'PK'
# The beginning of files of torch.save before version 1.6.
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# Elements of a tensor that is larger than its storage, as torch.Tensor.expand makes it
# (position_ids are such tensors).
_MOST_REPEATED = 1 << 20
_Object = Any  # that a pickle makes, before it is checked
_Sizes = tuple[int, ...]
_SAVE_AGAIN = 'save the model again with safetensors'


def is_torch_file(content: bytes) -> bool:
  """Whether a file's content begins as torch.save writes it."""
  return content.startswith((_ZIP, _LEGACY))


def read_torch(path: str, content: bytes) -> dict[str, np.ndarray]:
  """Reads the tensors of a file of torch.save.

  Args:
    path: of the file, for messages.
    content: of the file.

  Returns:
    Arrays by name, which do not share memory.

  Raises:
    UserError: the file is damaged, is not a dictionary of tensors, or asks for code to run.
  """
  return _read_zip(path, content) if content.startswith(_ZIP) else _read_legacy(path, content)


class _Storage(NamedTuple):
  """A block of memory that tensors are views of."""

  key: str
  dtype: np.dtype[Any]
  length: int  # in elements


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in elements


class _StorageType(NamedTuple):
  dtype: np.dtype[Any]


# The classes below have no attributes that a pickle could set.


class _Dict(dict[Any, Any]):
  """Replaces OrderedDict. PyTorch stores versions in its attributes, which are ignored."""

  __slots__ = ()

  def __setstate__(self, state: object) -> None:
    pass


class _RebuildTensor:
  __slots__ = ()

  def __call__(
    self, storage: object, offset: int, shape: _Sizes, strides: _Sizes, *options: object
  ) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if (
      not isinstance(storage, _Storage)
      or len(shape) != len(strides)
      or not all(type(x) is int and x >= 0 for x in numbers)
    ):
      raise pickle.UnpicklingError('a tensor has an invalid shape or storage')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
  __slots__ = ()

  def __call__(self, data: object, *options: object) -> object:
    return data


class _Unpickler(pickle.Unpickler):
  """Builds dictionaries and tensors only."""

  _GLOBALS: dict[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): _Dict,
    ('torch._utils', '_rebuild_tensor_v2'): _RebuildTensor(),
    ('torch._utils', '_rebuild_parameter'): _RebuildParameter(),
  }

  def __init__(self, file: BinaryIO, path: str) -> None:
    super().__init__(file)
    self._path = path

  def find_class(self, module: str, name: str) -> _Object:
    """Returns what a name stands for; refuses all but a few."""
    if module == 'torch' and name in _STORAGE_DTYPES:
      return _StorageType(_STORAGE_DTYPES[name])
    if (module, name) not in self._GLOBALS:
      raise UserError(
        f'{self._path!r} asks for {module}.{name}, which is not part of a dictionary of tensors '
        f'and could run code, so it is not opened; {_SAVE_AGAIN}.'
      )
    return self._GLOBALS[module, name]

  def persistent_load(self, saved: _Object) -> _Storage:
    """Returns the reference to a storage."""
    kind, storage_type, key, _, count, *view = saved
    types = (type(kind), type(storage_type), type(key), type(count))
    if types != (str, _StorageType, str, int) or kind != 'storage' or any(view):
      raise pickle.UnpicklingError('a storage is invalid')
    return _Storage(key, storage_type.dtype, count)


def _unpickle(path: str, file: BinaryIO) -> _Object:
  """Reads one pickle of an open file."""
  try:
    return _Unpickler(file, path).load()
  except UserError:
    raise
  except Exception as error:  # a damaged pickle can raise any exception
    raise UserError(
      f'{path!r} is damaged: its pickle cannot be read ({file_access.reason(error)}); download it '
      'again.'
    ) from None


def _read_zip(path: str, content: bytes) -> dict[str, np.ndarray]:
  try:
    archive = zipfile.ZipFile(io.BytesIO(content))
    records = {info.filename.partition('/')[2]: info for info in archive.infolist()}
    # torch.save does not compress; a small compressed file could fill the memory.
    if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
      raise UserError(f'{path!r} is a compressed archive, not of torch.save; {_SAVE_AGAIN}.')
    if 'data.pkl' not in records:
      raise UserError(f'{path!r} has no data.pkl, so it is not of torch.save; {_SAVE_AGAIN}.')
    if 'byteorder' in records and archive.read(records['byteorder']) != b'little':
      raise UserError(f'{path!r} was written by a big-endian machine; {_SAVE_AGAIN}.')
    loaded = _unpickle(path, io.BytesIO(archive.read(records['data.pkl'])))
    return _to_arrays(path, loaded, lambda key: archive.read(records[f'data/{key}']))
  except KeyError as error:
    raise UserError(
      f'{path!r} is damaged: the record {error} is missing; download it again.'
    ) from None
  except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
    raise UserError(
      f'{path!r} is damaged or cut short ({file_access.reason(error)}); download it again.'
    ) from None


def _read_legacy(path: str, content: bytes) -> dict[str, np.ndarray]:
  """Reads the older format.

  It has five pickles (mark, version, machine, object, keys of the storages), followed by the
  storages, each after its count of elements.
  """
  file = io.BytesIO(content)
  _, _, machine, loaded, keys = (_unpickle(path, file) for _ in range(5))
  if not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise UserError(f'{path!r} was written by a big-endian machine; {_SAVE_AGAIN}.')
  storages = [tensor.storage for tensor in _check_tensors(path, loaded).values()]
  dtypes = {storage.key: storage.dtype for storage in storages}
  contents = {}
  for key in keys if isinstance(keys, list) else []:
    if not isinstance(key, str) or key not in dtypes:
      raise UserError(f'{path!r} is damaged: no tensor has the storage {key!r}; download it again.')
    size = int.from_bytes(file.read(8), 'little') * dtypes[key].itemsize
    contents[key] = file.read(min(size, len(content)))
  return _to_arrays(path, loaded, lambda key: contents.get(key, b''))


def _check_tensors(path: str, loaded: _Object) -> dict[str, _Tensor]:
  """Checks that an unpickled object is a dictionary of tensors by name."""
  if not isinstance(loaded, dict):
    raise UserError(
      f'{path!r} is not a dictionary of tensors by name; save the state_dict of the model.'
    )
  for name, tensor in loaded.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise UserError(
        f'{path!r} has {name!r}, which is not a tensor; save only the state_dict of the model.'
      )
  return loaded


def _to_arrays(
  path: str, loaded: _Object, read_storage: Callable[[str], bytes]
) -> dict[str, np.ndarray]:
  """Copies the tensors of an unpickled dictionary out of their storages.

  Args:
    path: of the file, for messages.
    loaded: the unpickled object.
    read_storage: key to the bytes of a storage.
  """
  contents: dict[str, bytes] = {}
  arrays = {}
  for name, (storage, offset, shape, strides) in _check_tensors(path, loaded).items():
    if storage.key not in contents:
      contents[storage.key] = read_storage(storage.key)
    content = contents[storage.key]
    item = storage.dtype.itemsize
    count = len(content) // item
    size = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    needed = max(storage.length, 1 + last if size else 0)
    if needed > count:
      raise UserError(
        f'{path!r} is damaged or cut short: {name} needs {needed:,} numbers of {count:,}; download '
        'it again.'
      )
    if size > max(count, _MOST_REPEATED):
      raise UserError(
        f'{path!r} repeats {count:,} numbers to make {name}, of {size:,}; {_SAVE_AGAIN}.'
      )
    view: np.ndarray = np.ndarray(
      shape,
      storage.dtype,
      buffer=content,
      offset=offset * item if size else 0,
      strides=[stride * item for stride in strides],
    )
    arrays[name] = np.array(view, order='C')
  return arrays
