"""Tensors by name, out of and into the files in which PyTorch's models travel: safetensors and `.bin`, whole or in shards.

Needs no PyTorch. A `.bin` file is a pickle, which can run any program; read here is one that builds tensors and dictionaries and
nothing else.
"""

import io
import json
import math
import os
import pickle
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from electra_jax import file_access
from electra_jax.errors import UserError

# What a folder is searched for, best first.
NAMES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
# Weights of other formats, to be named where they are all that there is.
_OTHER_NAMES = (
  'tf_model.h5',
  'flax_model.msgpack',
  'model.onnx',
  'adapter_model.safetensors',
  'pytorch_model.pt',
)

_BFLOAT16 = np.dtype(jnp.bfloat16)
_SAFETENSORS_TYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': _BFLOAT16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
_STORAGE_TYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': _BFLOAT16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
_LFS = b'version https://git-lfs'
_LEGACY = pickle.dumps(
  0x1950A86A20F9469CFC6C, protocol=2
)  # what files of torch.save before 1.6 begin with
_MOST_REPEATED = (
  1 << 20
)  # numbers in a tensor that is larger than its storage, as of torch.Tensor.expand: position_ids are


def read(folder_or_file: str) -> dict[str, np.ndarray]:
  """The tensors of a folder or file as `transformers` writes it, by name.

  Args:
    folder_or_file: path or address of a folder with one of NAMES, or of such a file.

  Returns: arrays that may be read-only. Floating-point numbers of every width become float32; integers and booleans stay.

  Raises UserError that names the file, and the tensor where it is one tensor's fault: nothing there, a file that is cut short or
    damaged, a Git LFS pointer, a missing shard, a `.bin` that would run a program.
  """
  path = file_access.normal(folder_or_file)
  if file_access.is_folder(path):
    path = _in_folder(path)
  elif not file_access.exists(path):
    raise UserError(
      f'{path!r} is not there; give a folder with one of {", ".join(NAMES)}, or such a file.'
    )
  return _read_shards(path) if path.endswith('.json') else _read_file(path)


def to_bytes(tensors: dict[str, np.ndarray]) -> bytes:
  """A safetensors file of the tensors: the same for the same tensors, whatever their order. `transformers` opens it."""
  from safetensors.numpy import save

  # ascontiguousarray would make vectors of scalars.
  return save(
    {name: np.asarray(tensors[name], order='C') for name in sorted(tensors)},
    metadata={'format': 'pt'},
  )


def _in_folder(folder):
  for name in NAMES:
    if file_access.exists(file_access.join(folder, name)):
      return file_access.join(folder, name)
  others = [name for name in _OTHER_NAMES if file_access.exists(file_access.join(folder, name))]
  there = (
    f'; {others[0]} cannot be read here, save the model again with safetensors' if others else ''
  )
  raise UserError(f'{folder!r} holds no weights: none of {", ".join(NAMES)} is in it{there}.')


def _read_shards(path):
  content = _whole(path)
  try:
    shard_of = dict(json.loads(content)['weight_map'])
    if not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
      raise ValueError
  except (ValueError, KeyError, TypeError):
    raise UserError(
      f'{path!r} is damaged: a shard index is JSON with a weight_map of file names by tensor.'
    ) from None
  tensors = {}
  for shard in sorted(set(shard_of.values())):
    if os.path.basename(shard) != shard or shard.endswith('.json'):
      raise UserError(f'{path!r} names the shard {shard!r}; shards are files beside it.')
    place = file_access.join(os.path.dirname(path) or '.', shard)
    if not file_access.exists(place):
      raise UserError(
        f'{path!r} names the shard {shard}, which is not beside it; fetch that file, too.'
      )
    found = _read_file(place)
    missing = [name for name, file in shard_of.items() if file == shard and name not in found]
    if missing:
      raise UserError(
        f'{place!r} lacks the tensor {missing[0]}, which the index places there; fetch index and shards again.'
      )
    # A tensor that no index names is read all the same, so that it is not lost without a word.
    tensors |= {name: value for name, value in found.items() if shard_of.get(name, shard) == shard}
  return tensors


def _whole(path):
  content = file_access.read_bytes(path)
  if content.startswith(_LFS):
    raise UserError(
      f'{path!r} is a Git LFS pointer and not the file itself, which was not fetched; run git lfs pull there.'
    )
  return content


def _read_file(path):
  content = _whole(path)
  if content.startswith(b'PK'):
    tensors = _unpickled_zip(path, content)
  elif content.startswith(_LEGACY):
    tensors = _unpickled_legacy(path, content)
  elif path.endswith('.safetensors'):
    tensors = _safetensors(path, content)
  else:
    raise UserError(
      f'{path!r} is no file of torch.save, of neither its zip format nor the older one; where it is whole, save '
      'the model again with safetensors.'
    )
  return {
    name: value.astype(np.float32, copy=False)
    if jnp.issubdtype(value.dtype, jnp.floating)
    else value
    for name, value in tensors.items()
  }


# ---- safetensors


def _safetensors(path, content):
  import safetensors

  try:
    parts = safetensors.deserialize(content)
  except safetensors.SafetensorError as error:
    raise UserError(f'{path!r} {_what_is_wrong(content, error)}; fetch it again.') from None
  tensors = {}
  for name, part in parts:
    if part['dtype'] not in _SAFETENSORS_TYPES:
      raise UserError(
        f'{path!r} holds {name} as {part["dtype"]}, which is not read here; save the model again in float32.'
      )
    tensors[name] = np.frombuffer(part['data'], _SAFETENSORS_TYPES[part['dtype']]).reshape(
      part['shape']
    )
  return tensors


def _what_is_wrong(content, error):
  """Words for a file that the library does not take: its header tells how long it should be."""
  size = int.from_bytes(content[:8], 'little')
  if len(content) < 8:
    return f'is cut short: it has {len(content)} bytes'
  if size > 100_000_000:  # the most that the library takes
    return 'is no safetensors file: it does not begin with the length of a header'
  if 8 + size > len(content):
    return f'is cut short: its header takes {8 + size:,} bytes, and it has {len(content):,}'
  try:
    entries = json.loads(content[8 : 8 + size])
    ends = [
      (part['data_offsets'][1], name) for name, part in entries.items() if name != '__metadata__'
    ]
    end, last = max(ends, default=(0, ''))
    if 8 + size + end > len(content):
      return f'is cut short: the tensor {last} ends at byte {8 + size + end:,}, and it has {len(content):,}'
    if 8 + size + end < len(content):
      return f'has {len(content) - 8 - size - end:,} bytes after its last tensor, {last}'
  except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
    pass
  return f'has a damaged header ({file_access.reason(error).removeprefix("Error while deserializing: ")})'


# ---- torch.save


class _Storage(NamedTuple):
  """A piece of memory that tensors are views of."""

  key: str
  dtype: np.dtype
  count: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in numbers, not bytes


class _Dict(dict):
  """In place of OrderedDict, whose attributes (PyTorch keeps versions there) a pickle may set."""

  __slots__ = ()

  def __setstate__(self, state):
    pass


class _StorageType(NamedTuple):
  dtype: np.dtype


class _RebuildTensor:
  __slots__ = ()

  def __call__(
    self, storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None
  ):
    numbers = (offset, *shape, *strides)
    if (
      not isinstance(storage, _Storage)
      or len(shape) != len(strides)
      or not all(type(x) is int and x >= 0 for x in numbers)
    ):
      raise pickle.UnpicklingError('a tensor that is none')
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
  __slots__ = ()

  def __call__(self, data, requires_grad=False, hooks=None):
    return data


class _Unpickler(pickle.Unpickler):
  """Knows dictionaries and tensors. All that it makes is of the classes above, which hold no code and keep no attributes."""

  _GLOBALS = {
    ('collections', 'OrderedDict'): _Dict,
    ('torch._utils', '_rebuild_tensor_v2'): _RebuildTensor(),
    ('torch._utils', '_rebuild_parameter'): _RebuildParameter(),
  }

  def __init__(self, file, path):
    super().__init__(file)
    self._path = path

  def find_class(self, module, name):
    if module == 'torch' and name in _STORAGE_TYPES:
      return _StorageType(np.dtype(_STORAGE_TYPES[name]))
    if (module, name) not in self._GLOBALS:
      raise UserError(
        f'{self._path!r} asks for {module}.{name}, which weights do not need and which may run any program, so '
        'it is not opened; save the model again with safetensors.'
      )
    return self._GLOBALS[module, name]

  def persistent_load(self, saved):
    kind, storage_type, key, _, count, *view = saved
    types = (type(kind), type(storage_type), type(key), type(count))
    if types != (str, _StorageType, str, int) or kind != 'storage' or any(view):
      raise pickle.UnpicklingError('a storage that is none')
    return _Storage(key, storage_type.dtype, count)


def _load(path, file):
  """One pickle of an open file."""
  try:
    return _Unpickler(file, path).load()
  except UserError:
    raise
  except Exception as error:  # a damaged pickle raises what it likes
    raise UserError(
      f'{path!r} is damaged: its pickle cannot be read ({file_access.reason(error)}); fetch it again.'
    ) from None


def _unpickled_zip(path, content):
  try:
    archive = zipfile.ZipFile(io.BytesIO(content))
    records = {info.filename.partition('/')[2]: info for info in archive.infolist()}
    if any(
      info.compress_type != zipfile.ZIP_STORED for info in records.values()
    ):  # torch.save does not, and a bomb would
      raise UserError(
        f'{path!r} is a compressed archive, and no file of torch.save; save the model again with safetensors.'
      )
    if 'data.pkl' not in records:
      raise UserError(
        f'{path!r} is an archive without data.pkl, no file of torch.save; save the model again with safetensors.'
      )

    def record(name):
      return archive.read(records[name])

    if 'byteorder' in records and record('byteorder') != b'little':
      raise UserError(
        f'{path!r} was written by a big-endian machine; save the model again with safetensors.'
      )
    loaded = _checked(path, _load(path, io.BytesIO(record('data.pkl'))))
    return _tensors(path, loaded, lambda storage: record(f'data/{storage.key}'))
  except KeyError as error:
    raise UserError(f'{path!r} is damaged: it lacks the record {error}; fetch it again.') from None
  except (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
  ) as error:
    raise UserError(
      f'{path!r} is damaged or cut short ({file_access.reason(error)}); fetch it again.'
    ) from None


def _unpickled_legacy(path, content):
  """Four pickles (mark, version, machine, the object), a fifth with the storages' keys, then these, each after its count."""
  file = io.BytesIO(content)
  _, _, machine, loaded, keys = (_load(path, file) for _ in range(5))
  if not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise UserError(
      f'{path!r} was written by a big-endian machine; save the model again with safetensors.'
    )
  types = {tensor.storage.key: tensor.storage.dtype for tensor in _checked(path, loaded).values()}
  storages = {}
  for key in keys if isinstance(keys, list) else []:
    if not isinstance(key, str) or key not in types:
      raise UserError(f'{path!r} is damaged: no tensor is in its storage {key!r}; fetch it again.')
    size = int.from_bytes(file.read(8), 'little') * types[key].itemsize
    storages[key] = file.read(min(size, len(content)))
  return _tensors(path, loaded, lambda storage: storages.get(storage.key, b''))


def _checked(path, loaded):
  """The same, once it is a dictionary of tensors by name."""
  if not isinstance(loaded, dict):
    raise UserError(
      f'{path!r} holds no dictionary of tensors by name; save the state_dict of the model.'
    )
  for name, tensor in loaded.items():
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
      raise UserError(
        f'{path!r} holds {name!r}, which is no tensor; save the state_dict of the model alone.'
      )
  return loaded


def _tensors(path, loaded, content_of):
  """Arrays of an unpickled dictionary; content_of gives a storage's bytes. Those that share a storage get memory of their own."""
  contents, tensors = {}, {}
  for name, (storage, offset, shape, strides) in loaded.items():
    if storage.key not in contents:
      contents[storage.key] = content_of(storage)
    size, item = math.prod(shape), storage.dtype.itemsize
    there = len(contents[storage.key]) // item
    needed = max(
      storage.count,
      1 + offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
      if size
      else 0,
    )
    if needed > there:
      raise UserError(
        f'{path!r} is damaged or cut short: {name} needs {needed:,} numbers of {there:,}; fetch it again.'
      )
    if size > max(there, _MOST_REPEATED):
      raise UserError(
        f'{path!r} repeats {there:,} numbers into {name}, of {size:,}; save the model again with safetensors.'
      )
    flat = np.frombuffer(contents[storage.key], storage.dtype, there)[offset:]
    view = np.lib.stride_tricks.as_strided(
      flat, shape, [stride * item for stride in strides], writeable=False
    )
    tensors[name] = np.array(view, order='C')
  return tensors
