"""Between tensors of `transformers` by name and our tree {'embeddings', 'encoder', 'head'}, by a table as in hf_electra.py."""

import collections

import jax
import numpy as np

from electra_jax.errors import UserError

_ENCODER = (
  'embeddings.',
  'embeddings_project.',
  'encoder.',
  'layers.',
  'final_norm.',
)  # what has the prefix beside a head


def to_ours(found: dict, names: dict, form, kind: str, config, shapes: dict, source: str) -> dict:
  """Our tree of float32 arrays.

  Args:
    found: tensors by their names of today, without the prefix.
    names: the names that the file has for them.
    form: hf_electra or hf_modernbert.
    kind: of its CLASSES.
    config: EncoderConfig.
    shapes: our tree of what has a shape.
    source: for sentences.

  Raises UserError that names, in their names, what is missing, has no place, misfits, or is no number.
  """
  found, shapes, table = dict(found), _flat(shapes), form.tensors(config, kind)

  def own_name(name):
    return names.get(name) or _full(name, form, kind)

  for copy, name in form.COPIES.items() if kind == 'generator' else ():
    value = found.pop(copy, None)
    if value is not None and name not in found:
      found[name] = value
    elif value is not None and not (
      value.shape == found[name].shape and value.tobytes() == found[name].tobytes()
    ):
      raise UserError(
        f'{source}: {own_name(copy)} is not {own_name(name)}, bit for bit, but a tensor of its own, which the '
        'generator does not have.'
      )
  wrong = []
  for name, parts in table.items():
    value, want = found.get(name), _their_shape(parts, shapes)
    if value is None:
      wrong.append(f'{own_name(name)} is missing')
    elif value.shape != want:
      wrong.append(f'{own_name(name)} is {_times(value.shape)} and not {_times(want)}')
    elif value.dtype.kind != 'f':
      wrong.append(f'{own_name(name)} is of {value.dtype} and not of floating-point numbers')
    elif not np.isfinite(value).all():
      wrong.append(f'{own_name(name)} holds numbers that are not finite')
  wrong += [f'{own_name(name)} has no place' for name in found if name not in table]
  if wrong:
    raise UserError(
      f'{source} does not fit its config.json, as {form.CLASSES[kind]}: '
      + '; '.join(wrong[:5])
      + (f'; and {len(wrong) - 5} more' if len(wrong) > 5 else '')
      + '.'
    )
  leaves = collections.defaultdict(dict)
  for name, parts in table.items():
    value, start = np.asarray(found[name], np.float32), 0
    for path, layer in parts:
      if path.endswith('kernel'):
        end = start + shapes[path].shape[-1]
        leaves[path][layer], start = value[start:end].T, end
      else:
        leaves[path][layer] = value
  tree = {}
  for path, layers in leaves.items():
    *above, last = path.split('/')
    node = tree
    for name in above:
      node = node.setdefault(name, {})
    node[last] = (
      np.array(layers[None], order='C')
      if None in layers
      else np.stack([layers[i] for i in range(len(layers))])
    )
  return tree


def to_theirs(tree: dict, form, kind: str, config) -> dict[str, np.ndarray]:
  """The other way: tensors under the names that the class of `kind` gives them."""
  leaves, found = _flat(tree), {}
  for name, parts in form.tensors(config, kind).items():
    values = [
      np.asarray(leaves[path] if layer is None else leaves[path][layer], np.float32)
      for path, layer in parts
    ]
    if parts[0][0].endswith('kernel'):
      values = [value.T for value in values]
    found[_full(name, form, kind)] = np.concatenate(values) if len(values) > 1 else values[0]
  return found


def misfits(tree: dict, shapes: dict) -> list[str]:
  """What of our tree differs from the shapes, in words."""
  there, wanted = _flat(tree), _flat(shapes)

  def told(leaves, path):
    return _times(leaves[path].shape) if path in leaves else 'missing'

  return [
    f'{path} is {told(there, path)} and not {told(wanted, path)}'
    for path in wanted | there
    if told(there, path) != told(wanted, path)
  ]


def _flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _full(name, form, kind):
  return form.PREFIX + name if kind != 'encoder' and name.startswith(_ENCODER) else name


def _their_shape(parts, shapes):
  inner = [shapes[path].shape if layer is None else shapes[path].shape[1:] for path, layer in parts]
  return (sum(out for _, out in inner), inner[0][0]) if parts[0][0].endswith('kernel') else inner[0]


def _times(shape):
  return ' x '.join(map(str, shape)) or 'a scalar'
