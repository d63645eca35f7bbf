"""Converts between tensors of `transformers` and a tower's tree of parameters."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from electra_jax.errors import UserError
from electra_jax.interop.hf_architecture import Architecture, Part
from electra_jax.interop.weights import PyTree, format_shape, join_mistakes
from electra_jax.model.config import EncoderConfig

_LISTED_MISTAKES = 5  # in one error message


class TensorFile:
  """The parameters of a file.

  Attributes:
    architecture: of the file.
    tensors: arrays by their current names, without the prefix and without buffers.
    source: the file or folder, for messages.
  """

  def __init__(
    self, tensors: Mapping[str, np.ndarray], architecture: Architecture, source: str
  ) -> None:
    """Names tensors as the current release of `transformers` does.

    Args:
      tensors: arrays by their names in the file.
      architecture: of the file.
      source: the file or folder, for messages.

    Raises:
      UserError: two tensors have the same name.
    """
    self.architecture = architecture
    self.source = source
    self.tensors: dict[str, np.ndarray] = {}
    self._names: dict[str, str] = {}  # in the file
    for name, value in tensors.items():
      short = architecture.short_name(name)
      if short.endswith(architecture.buffers):
        continue
      if short in self.tensors:
        raise UserError(
          f'{source} has one tensor under two names: {self._names[short]} and {name}.'
        )
      self.tensors[short] = value
      self._names[short] = name

  def name(self, short: str, kind: str) -> str:
    """Returns the name that a tensor has, or would have, in the file."""
    return self._names.get(short) or self.architecture.full_name(short, kind)

  def to_params(self, kind: str, config: EncoderConfig, shapes: PyTree) -> dict[str, Any]:
    """Returns a tower's parameters as float32 arrays.

    Args:
      kind: of the model; see Architecture.
      config: of the encoder.
      shapes: tree of the expected parameters, {'embeddings', 'encoder', 'head'}.

    Raises:
      UserError: tensors are missing, unknown, misshapen, not finite, or not of floating-point
        numbers. The message has their names in the file.
    """
    if kind == 'generator':
      self._remove_copies()
    flat_shapes = _flatten(shapes)
    table = self.architecture.tensors(config, kind)
    wrong = []
    for name, parts in table.items():
      mistake = _mistake(self.tensors.get(name), _their_shape(parts, flat_shapes))
      if mistake:
        wrong.append(f'{self.name(name, kind)} {mistake}')
    wrong += [f'{self.name(name, kind)} is unknown' for name in self.tensors if name not in table]
    if wrong:
      raise UserError(
        f'{self.source} does not fit its config.json, as {self.architecture.classes[kind]}: '
        f'{join_mistakes(wrong, _LISTED_MISTAKES)}.'
      )
    leaves: dict[str, dict[int | None, np.ndarray]] = collections.defaultdict(dict)
    for name, parts in table.items():
      value = np.asarray(self.tensors[name], np.float32)
      start = 0
      for path, layer in parts:
        if path.endswith('kernel'):
          end = start + flat_shapes[path].shape[-1]
          leaves[path][layer] = value[start:end].T
          start = end
        else:
          leaves[path][layer] = value
    return _unflatten({path: _stacked(layers) for path, layers in leaves.items()})

  def _remove_copies(self) -> None:
    """Removes the tensors that repeat another one, which must have the same bits."""
    for copy, name in self.architecture.copies.items():
      value = self.tensors.pop(copy, None)
      if value is None:
        continue
      original = self.tensors.setdefault(name, value)
      if original.shape != value.shape or original.tobytes() != value.tobytes():
        raise UserError(
          f'{self.source}: {self.name(copy, "generator")} differs from '
          f'{self.name(name, "generator")}; expected a copy of it, bit for bit.'
        )


def from_params(
  params: dict[str, Any], architecture: Architecture, kind: str, config: EncoderConfig
) -> dict[str, np.ndarray]:
  """Returns the tensors of a tower's parameters; the inverse of TensorFile.to_params.

  Args:
    params: {'embeddings', 'encoder', 'head'}.
    architecture: to write.
    kind: of the model; see Architecture.
    config: of the encoder.
  """
  leaves = _flatten(params)
  found = {}
  for name, parts in architecture.tensors(config, kind).items():
    values = [
      np.asarray(leaves[path] if layer is None else leaves[path][layer], np.float32)
      for path, layer in parts
    ]
    if parts[0][0].endswith('kernel'):
      values = [value.T for value in values]
    full_name = architecture.full_name(name, kind)
    found[full_name] = np.concatenate(values) if len(values) > 1 else values[0]
  return found


def shape_mistakes(params: PyTree, shapes: PyTree) -> list[str]:
  """Describes where a tree of parameters differs from the expected shapes."""
  found = {path: format_shape(leaf.shape) for path, leaf in _flatten(params).items()}
  expected = {path: format_shape(leaf.shape) for path, leaf in _flatten(shapes).items()}
  return [
    f'{path} is {found.get(path, "missing")} and not {expected.get(path, "missing")}'
    for path in expected | found
    if found.get(path) != expected.get(path)
  ]


def _mistake(value: np.ndarray | None, shape: tuple[int, ...]) -> str:
  """Describes what is wrong with a tensor; '' for nothing."""
  if value is None:
    return 'is missing'
  if value.shape != shape:
    return f'is {format_shape(value.shape)} and not {format_shape(shape)}'
  if value.dtype.kind != 'f':
    return f'is of {value.dtype} and not of floating-point numbers'
  return '' if np.isfinite(value).all() else 'holds numbers that are not finite'


def _their_shape(parts: tuple[Part, ...], shapes: dict[str, Any]) -> tuple[int, ...]:
  """Returns the shape of the tensor that some parts make up."""
  inner: list[tuple[int, ...]] = [
    shapes[path].shape if layer is None else shapes[path].shape[1:] for path, layer in parts
  ]
  if not parts[0][0].endswith('kernel'):
    return inner[0]
  return (sum(outputs for _, outputs in inner), inner[0][0])


def _stacked(layers: dict[int | None, np.ndarray]) -> np.ndarray:
  if None in layers:
    return np.array(layers[None], order='C')
  return np.stack([layers[i] for i in range(len(layers))])


def _flatten(tree: PyTree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _unflatten(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *above, last = path.split('/')
    node = tree
    for name in above:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree
