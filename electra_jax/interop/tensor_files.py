"""Reads and writes files of tensors by name: safetensors, and reads PyTorch's .bin files.

PyTorch is not needed. See torch_files.py for .bin files.
"""

import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from electra_jax import file_access, input_limits, json_reader
from electra_jax.errors import UserError
from electra_jax.interop import torch_files

# Files that a folder is searched for, in this order.
NAMES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
# Weights in unsupported formats, to be named in the message if there are no others.
_OTHER_NAMES = (
  'tf_model.h5',
  'flax_model.msgpack',
  'model.onnx',
  'adapter_model.safetensors',
  'pytorch_model.pt',
)
# safetensors.numpy does not read bfloat16 as such.
_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(jnp.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U64': np.dtype(np.uint64),
  'U32': np.dtype(np.uint32),
  'U16': np.dtype(np.uint16),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
_LFS_POINTER = b'version https://git-lfs'


def read_tensors(folder_or_file: str) -> dict[str, np.ndarray]:
  """Reads the tensors of a folder or file of `transformers`.

  Args:
    folder_or_file: path or address of a folder with one of NAMES, or of such a file.

  Returns:
    Arrays by name, which may be read-only. Floating-point numbers are converted to float32; other
    types are kept.

  Raises:
    UserError: there are no weights, or a file is damaged, cut short, a Git LFS pointer, a missing
      shard, or a .bin file that would run code. The message has the file, and the tensor if the
      mistake is in one tensor.
  """
  path = file_access.normal(folder_or_file)
  if file_access.is_folder(path):
    path = _find_weights(path)
  elif not file_access.exists(path):
    raise UserError(
      f'{path!r} does not exist; expected a folder with one of {", ".join(NAMES)}, or such a file.'
    )
  return _read_shards(path) if path.endswith('.json') else _read_file(path)


def to_safetensors(tensors: dict[str, np.ndarray]) -> bytes:
  """Returns a safetensors file; equal tensors give equal bytes, in any order."""
  from safetensors.numpy import save

  # np.ascontiguousarray would make vectors of scalars.
  arrays = {name: np.asarray(tensors[name], order='C') for name in sorted(tensors)}
  return save(arrays, metadata={'format': 'pt'})


def _find_weights(folder: str) -> str:
  for name in NAMES:
    path = file_access.join(folder, name)
    if file_access.exists(path):
      return path
  others = [name for name in _OTHER_NAMES if file_access.exists(file_access.join(folder, name))]
  hint = f'; {others[0]} is not supported, save the model with safetensors' if others else ''
  raise UserError(f'{folder!r} has no weights; expected one of {", ".join(NAMES)}{hint}.')


def _read_shards(path: str) -> dict[str, np.ndarray]:
  content = _read_bytes(path)
  try:
    index = json_reader.parse(content, repr(path))
    json_reader.check(index, {'weight_map': {str: str}}, repr(path))
  except json_reader.InvalidJson as error:
    raise UserError(
      f'{path!r} is damaged ({error.reason}); expected JSON with a weight_map from tensors to file '
      'names.'
    ) from None
  shard_of: dict[str, str] = index['weight_map']
  if not shard_of:
    raise UserError(f'{path!r} lists no tensors; download it again.')
  tensors: dict[str, np.ndarray] = {}
  for shard in sorted(set(shard_of.values())):
    if not _is_plain_name(shard) or shard.endswith('.json'):
      raise UserError(f'{path!r} names the shard {shard!r}; expected a file in the same folder.')
    place = file_access.join(os.path.dirname(path) or '.', shard)
    if not file_access.exists(place):
      raise UserError(f'{path!r} names the shard {shard}, which is missing; download that file.')
    found = _read_file(place)
    missing = [name for name, file in shard_of.items() if file == shard and name not in found]
    if missing:
      raise UserError(
        f'{place!r} has no tensor {missing[0]}, which the index places there; download the index '
        'and the shards again.'
      )
    # Tensors that the index does not list are kept, so that unknown ones are reported.
    tensors |= {name: value for name, value in found.items() if shard_of.get(name, shard) == shard}
  return tensors


def _is_plain_name(name: str) -> bool:
  """Whether a name is that of a file in the same folder, on any system."""
  return name not in ('', '.', '..') and not any(c in name for c in '/\\:\0')


def _read_bytes(path: str) -> bytes:
  content = file_access.read_bytes(path)
  if content.startswith(_LFS_POINTER):
    raise UserError(
      f'{path!r} is a Git LFS pointer, not the file itself; run git lfs pull in its folder.'
    )
  return content


def _read_file(path: str) -> dict[str, np.ndarray]:
  content = _read_bytes(path)
  if torch_files.is_torch_file(content):
    tensors = torch_files.read_torch(path, content)
  elif path.endswith('.safetensors'):
    tensors = _read_safetensors(path, content)
  else:
    raise UserError(
      f'{path!r} is not a file of torch.save; download it again, or save the model with '
      'safetensors.'
    )
  return {
    name: value.astype(np.float32, copy=False)
    if jnp.issubdtype(value.dtype, jnp.floating)
    else value
    for name, value in tensors.items()
  }


def _read_safetensors(path: str, content: bytes) -> dict[str, np.ndarray]:
  import safetensors

  claimed = int.from_bytes(content[:8], 'little')
  if claimed <= len(content):  # otherwise the file is cut short
    what = f'the header of {path!r}'
    input_limits.check(claimed, input_limits.HEADER_BYTES, what)
  try:
    deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
    parts = deserialize(content)
  except safetensors.SafetensorError as error:
    reason = file_access.reason(error).removeprefix('Error while deserializing: ')
    raise UserError(
      f'{path!r} is damaged or cut short: it has {len(content):,} bytes, and safetensors reports '
      f'{reason}; download it again.'
    ) from None
  tensors = {}
  for name, part in parts:
    dtype = _DTYPES.get(part['dtype'])
    if dtype is None:
      raise UserError(
        f'{path!r} has {name} as {part["dtype"]}, which is not supported; save the model in '
        'float32.'
      )
    tensors[name] = np.frombuffer(part['data'], dtype).reshape(part['shape'])
  return tensors
