"""Reads files of torch.save (.bin) without PyTorch and without running their code.

Such a file is a pickle, a program that can call any function. The machine here runs the part of its
language that builds dictionaries of tensors, and refuses everything else.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from electra_jax import file_access, input_limits
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
_MOST_DIMENSIONS = 32
# Bytes of all tensors: so many times the file's, as tensors can share storages.
_MOST_SHARED = 4
_Object = Any  # that a pickle makes, before it is checked
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
  try:
    return _read_zip(path, content) if content.startswith(_ZIP) else _read_legacy(path, content)
  except KeyError as error:
    raise UserError(
      f'{path!r} is damaged: the record {error} is missing; download it again.'
    ) from None
  except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, struct.error) as error:
    raise UserError(
      f'{path!r} is damaged or cut short ({file_access.reason(error)}); download it again.'
    ) from None


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


class _Mark:
  """The object that opcodes such as TUPLE search the stack for."""


class _Global(NamedTuple):
  """The name of a class or function, which is not imported."""

  module: str
  name: str


class _Machine:
  """Runs the opcodes of a pickle that builds a dictionary of tensors; refuses all others.

  pickle.Unpickler is not used, even with its own `find_class`: small pickles make it allocate
  gigabytes (an index of the memo) or compute for years (the hash of a tuple of tuples). Here a key
  is a string or an integer, and no function is called.
  """

  def __init__(self, path: str) -> None:
    self._path = path
    self._stack: list[_Object] = []
    self._memo: dict[int, _Object] = {}

  def run(self, file: BinaryIO) -> _Object:
    """The object of the pickle that begins at the position of a file, which moves to its end."""
    start = file.tell()
    most = input_limits.scaled(input_limits.PICKLE_BYTES)
    for opcode, argument, position in pickletools.genops(file):
      if opcode.name == 'STOP':
        break
      if position is not None and position - start > most:
        what = f'the description of the tensors in {self._path!r}'
        raise input_limits.too_large(what, most)
      if opcode.name in _CONSTANTS:
        self._stack.append(_CONSTANTS[opcode.name])
      elif opcode.name in _LITERALS:
        self._stack.append(argument)
      else:
        step = self._STEPS.get(opcode.name)
        if step is None:
          raise ValueError(f'its opcode {opcode.name} makes no tensors')
        step(self, argument)
    return self._stack.pop()

  def _ignore(self, argument: _Object) -> None:
    """PROTO and FRAME."""

  def _mark(self, argument: _Object) -> None:
    self._stack.append(_Mark)

  def _since_mark(self) -> list[_Object]:
    items = []
    while (item := self._stack.pop()) is not _Mark:
      items.append(item)
    return items[::-1]

  def _put(self, argument: int) -> None:
    self._memo[argument] = self._stack[-1]

  def _memoize(self, argument: _Object) -> None:
    self._memo[len(self._memo)] = self._stack[-1]

  def _get(self, argument: int) -> None:
    self._stack.append(self._memo[argument])

  def _global(self, argument: str) -> None:
    module, _, name = argument.partition(' ')
    self._stack.append(self._known(module, name))

  def _stack_global(self, argument: _Object) -> None:
    name, module = self._stack.pop(), self._stack.pop()
    self._stack.append(self._known(str(module), str(name)))

  def _known(self, module: str, name: str) -> _Object:
    if module == 'torch' and name in _STORAGE_DTYPES:
      return _StorageType(_STORAGE_DTYPES[name])
    if (module, name) in _GLOBALS:
      return _Global(module, name)
    raise UserError(
      f'{self._path!r} asks for {module}.{name}, which is not part of a dictionary of tensors '
      f'and could run code, so it is not opened; {_SAVE_AGAIN}.'
    )

  def _tuple(self, argument: _Object) -> None:
    items = tuple(self._since_mark())
    self._stack.append(items)

  def _tuple_of(self, count: int) -> None:
    items = [self._stack.pop() for _ in range(count)]
    self._stack.append(tuple(items[::-1]))

  def _set_items(self, argument: _Object) -> None:
    items = self._since_mark()
    self._insert(items[::2], items[1::2])

  def _set_item(self, argument: _Object) -> None:
    value, key = self._stack.pop(), self._stack.pop()
    self._insert([key], [value])

  def _insert(self, keys: list[_Object], values: list[_Object]) -> None:
    target = self._stack[-1]
    if type(target) is not dict or not all(type(key) in (str, int) for key in keys):
      raise ValueError('a dictionary has a key that is no name')
    target.update(zip(keys, values, strict=True))

  def _append(self, argument: _Object) -> None:
    self._extend([self._stack.pop()])

  def _appends(self, argument: _Object) -> None:
    self._extend(self._since_mark())

  def _extend(self, items: list[_Object]) -> None:
    if type(self._stack[-1]) is not list:
      raise ValueError('what is appended to is no list')
    self._stack[-1].extend(items)

  def _empty_dict(self, argument: _Object) -> None:
    self._stack.append({})

  def _empty_list(self, argument: _Object) -> None:
    self._stack.append([])

  def _build(self, argument: _Object) -> None:
    """PyTorch stores versions as attributes of the dictionary, which are ignored."""
    self._stack.pop()
    if type(self._stack[-1]) is not dict:
      raise ValueError('an object that is no dictionary has attributes')

  def _persistent(self, argument: _Object) -> None:
    self._stack.append(_storage_of(self._stack.pop()))

  def _reduce(self, argument: _Object) -> None:
    """Builds what PyTorch's functions would return."""
    arguments, function = self._stack.pop(), self._stack.pop()
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
      raise ValueError('what is called is no function')
    self._stack.append(_GLOBALS[function.module, function.name](*arguments))

  _STEPS: ClassVar[dict[str, Callable[['_Machine', _Object], None]]] = {
    'PROTO': _ignore,
    'FRAME': _ignore,
    'MARK': _mark,
    'BINPUT': _put,
    'LONG_BINPUT': _put,
    'MEMOIZE': _memoize,
    'BINGET': _get,
    'LONG_BINGET': _get,
    'GLOBAL': _global,
    'STACK_GLOBAL': _stack_global,
    'TUPLE': _tuple,
    'TUPLE1': lambda machine, _: machine._tuple_of(1),
    'TUPLE2': lambda machine, _: machine._tuple_of(2),
    'TUPLE3': lambda machine, _: machine._tuple_of(3),
    'EMPTY_DICT': _empty_dict,
    'EMPTY_LIST': _empty_list,
    'SETITEM': _set_item,
    'SETITEMS': _set_items,
    'APPEND': _append,
    'APPENDS': _appends,
    'BUILD': _build,
    'BINPERSID': _persistent,
    'REDUCE': _reduce,
  }


# Opcodes that push their argument.
_LITERALS = (
  *('BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT'),
  *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'SHORT_BINSTRING', 'BINSTRING'),
)
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}


def _rebuild_tensor(
  storage: _Object, offset: _Object, shape: _Object, strides: _Object, *options: _Object
) -> _Tensor:
  """torch._utils._rebuild_tensor_v2."""
  if not isinstance(storage, _Storage) or type(shape) is not tuple or type(strides) is not tuple:
    raise ValueError('a tensor has an invalid shape or storage')
  numbers = (offset, *shape, *strides)
  fits = len(shape) == len(strides) <= _MOST_DIMENSIONS
  if not fits or not all(type(x) is int and 0 <= x < 2**63 for x in numbers):
    raise ValueError('a tensor has an invalid shape or storage')
  return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: _Object, *options: _Object) -> _Object:
  """torch._utils._rebuild_parameter."""
  return data


def _ordered_dict(*items: _Object) -> dict[Any, Any]:
  """collections.OrderedDict."""
  if items and items != ([],):
    raise ValueError('a dictionary is made of a list')
  return {}


# Names that a pickle may use, and the functions that replace them.
_GLOBALS: dict[tuple[str, str], Callable[..., _Object]] = {
  ('collections', 'OrderedDict'): _ordered_dict,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
}


def _storage_of(saved: _Object) -> _Storage:
  """The storage that a persistent id refers to."""
  if type(saved) is not tuple or len(saved) < 5:
    raise ValueError('a storage is invalid')
  kind, storage_type, key, _, count, *view = saved
  types = (type(kind), type(storage_type), type(key), type(count))
  if (
    types != (str, _StorageType, str, int) or kind != 'storage' or any(x is not None for x in view)
  ):
    raise ValueError('a storage is invalid')
  return _Storage(key, storage_type.dtype, count)


def _unpickle(path: str, file: BinaryIO) -> _Object:
  """The object of one pickle of an open file."""
  try:
    return _Machine(path).run(file)
  except UserError:
    raise
  # What pickletools raises for damage, and what an opcode does on a stack that lacks its operands.
  except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
    raise UserError(
      f'{path!r} is damaged: its pickle cannot be read ({file_access.reason(error)}); download it '
      'again.'
    ) from None


def _read_zip(path: str, content: bytes) -> dict[str, np.ndarray]:
  archive = zipfile.ZipFile(io.BytesIO(content))
  records = {info.filename.partition('/')[2]: info for info in archive.infolist()}
  # torch.save does not compress; a small compressed file could fill the memory.
  if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
    raise UserError(f'{path!r} is a compressed archive, not of torch.save; {_SAVE_AGAIN}.')
  if 'data.pkl' not in records:
    raise UserError(f'{path!r} has no data.pkl, so it is not of torch.save; {_SAVE_AGAIN}.')
  if 'byteorder' in records and archive.read(records['byteorder']) != b'little':
    raise UserError(f'{path!r} was written by a big-endian machine; {_SAVE_AGAIN}.')
  # Records that overlap could make very much of a small file.
  if sum(info.file_size for info in records.values()) > len(content):
    raise UserError(f'{path!r} is damaged: its records overlap; download it again.')
  loaded = _unpickle(path, io.BytesIO(archive.read(records['data.pkl'])))
  return _to_arrays(path, loaded, lambda key: archive.read(records[f'data/{key}']))


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
  total = stored = 0
  for name, (storage, offset, shape, strides) in _check_tensors(path, loaded).items():
    if storage.key not in contents:
      contents[storage.key] = read_storage(storage.key)
      stored += len(contents[storage.key]) + _MOST_REPEATED
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
    total += size * item
    if total > _MOST_SHARED * stored:
      raise UserError(
        f'{path!r} has tensors that share their numbers too often, of {total:,} bytes and more; '
        f'{_SAVE_AGAIN}.'
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
