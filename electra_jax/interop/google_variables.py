"""Variables of the original TensorFlow program (google-research/electra) and our parameters.

Shapes are the same, kernels are [in, out] in both. Each layer has its own variables, where our
parameters are stacked. Names are those of its model/modeling.py and run_pretraining.py, those of
Adam's moments of model/optimization.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from electra_jax.errors import UserError
from electra_jax.interop.google_files import VariableReader
from electra_jax.interop.weights import KeyPath, PyTree, format_shape, join_mistakes

# Variable scope of each top level of our tree. The generator has its own tables only with
# untied_generator_embeddings.
SCOPES = {
  'embeddings': 'electra/embeddings',
  'discriminator': 'electra',
  'discriminator_head': 'discriminator_predictions',
  'generator_embeddings': 'generator/embeddings',
  'generator': 'generator',
  'generator_head': 'generator_predictions',
}
# Adam's moments follow the name of their variable.
SLOTS = {'mu': 'adam_m', 'nu': 'adam_v'}
_TABLES = {
  'word': 'word_embeddings',
  'position': 'position_embeddings',
  'type': 'token_type_embeddings',
}
_LAYER = {
  'query': 'attention/self/query',
  'key': 'attention/self/key',
  'value': 'attention/self/value',
  'attention_output': 'attention/output/dense',
  'attention_norm': 'attention/output/LayerNorm',
  'mlp_in': 'intermediate/dense',
  'mlp_output': 'output/dense',
  'mlp_norm': 'output/LayerNorm',
}
_NORM = {'scale': 'gamma', 'bias': 'beta'}
_Leaf = np.ndarray | jax.ShapeDtypeStruct
_LISTED_MISTAKES = 4  # in one error message


@dataclasses.dataclass(frozen=True)
class VariableTable:
  """The variables of a tree of parameters.

  Attributes:
    shapes: our tree of the shapes.
    scopes: variable scope by top level of the tree, as in SCOPES.
  """

  shapes: PyTree
  scopes: dict[str, str]

  def variable_shapes(self) -> dict[str, tuple[int, ...]]:
    """Returns the expected shapes by variable."""
    found: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.shapes):
      names, stacked = _names(path, leaf, self.scopes)
      found |= dict.fromkeys(names, tuple(leaf.shape[1:] if stacked else leaf.shape))
    return found

  def read(self, reader: VariableReader, slot: str = '') -> dict[str, Any]:
    """Returns the parameters of a checkpoint as float32 arrays.

    Args:
      reader: of the checkpoint.
      slot: one of Adam's slots, to read moments.

    Raises:
      UserError: a variable is damaged or not of floating-point numbers.
    """
    suffix = f'/{slot}' if slot else ''

    def read(path: KeyPath, leaf: _Leaf) -> np.ndarray:
      names, stacked = _names(path, leaf, self.scopes)
      values = [reader.read(name + suffix) for name in names]
      for name, value in zip(names, values, strict=True):
        if not jax.numpy.issubdtype(value.dtype, np.floating):
          raise UserError(
            f'{reader.prefix} has {name + suffix} as {value.dtype}; expected floating-point '
            'numbers.'
          )
      values = [value.astype(np.float32, copy=False) for value in values]
      return np.stack(values) if stacked else values[0]

    tree: dict[str, Any] = jax.tree_util.tree_map_with_path(read, self.shapes)
    return tree

  def check(self, prefix: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks a checkpoint's variables.

    Args:
      prefix: of the checkpoint, for the message.
      shapes: of its variables, without moments.

    Raises:
      UserError: variables are missing, unknown or of another shape.
    """
    expected = self.variable_shapes()
    wrong = [f'{name} is missing' for name in expected if name not in shapes]
    wrong += [
      f'{name} is {format_shape(shapes[name])} and not {format_shape(shape)}'
      for name, shape in expected.items()
      if shapes.get(name, shape) != shape
    ]
    wrong += [f'{name} is unknown' for name in sorted(shapes) if name not in expected]
    if wrong:
      raise UserError(
        f'{prefix} is not a model of the original program: '
        f'{join_mistakes(wrong, _LISTED_MISTAKES)}.'
      )

  def check_moments(self, prefix: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks that every variable has both of Adam's moments.

    Args:
      prefix: of the checkpoint, for the message.
      shapes: of all its variables.

    Raises:
      UserError: one is missing or of another shape.
    """
    expected = self.variable_shapes()
    for slot in SLOTS.values():
      for variable, shape in expected.items():
        name = f'{variable}/{slot}'
        if shapes.get(name) != shape:
          what = 'has another shape than its variable' if name in shapes else 'is missing'
          raise UserError(
            f'{prefix} has moments of Adam, but {name} {what}; expected a checkpoint with all of '
            'them or none.'
          )


def to_variables(tree: PyTree, scopes: dict[str, str]) -> dict[str, np.ndarray]:
  """Returns float32 arrays by variable.

  Args:
    tree: of our parameters.
    scopes: variable scope by top level of the tree.
  """
  found: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    names, stacked = _names(path, leaf, scopes)
    found |= zip(names, leaf, strict=True) if stacked else {names[0]: leaf}
  return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def is_slot(name: str, names: dict[str, Any]) -> bool:
  """Whether a variable is a moment of Adam of one of the variables."""
  variable, _, slot = name.rpartition('/')
  return slot in SLOTS.values() and variable in names


def _names(path: KeyPath, leaf: _Leaf, scopes: dict[str, str]) -> tuple[list[str], bool]:
  """Returns the variables of one of our parameters, and whether it is stacked over layers."""
  top, *rest = (entry.key for entry in path)
  name = f'{scopes[top]}/{_inner_name(top, rest)}'
  if '{layer}' not in name:
    return [name], False
  return [name.format(layer=layer) for layer in range(leaf.shape[0])], True


def _inner_name(top: str, rest: Sequence[str]) -> str:
  """Returns the name inside of its scope; {layer} stands for the layer."""
  if top.endswith('embeddings'):
    return f'LayerNorm/{_NORM[rest[1]]}' if rest[0] == 'norm' else _TABLES[rest[0]]
  if top.endswith('head'):
    if rest[0] == 'bias':
      return 'output_bias'
    if rest[0] == 'norm':
      return f'LayerNorm/{_NORM[rest[1]]}'
    return '/'.join(rest).replace('prediction', 'dense_1')
  if rest[0] == 'layers':
    _, module, leaf = rest
    leaf = _NORM[leaf] if module.endswith('norm') else leaf
    return f'encoder/layer_{{layer}}/{_LAYER[module]}/{leaf}'
  return '/'.join(rest)  # embeddings_project
