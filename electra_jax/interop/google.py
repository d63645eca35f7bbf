"""Checkpoints of the original TensorFlow program (google-research/electra), both ways.

Its variables have our shapes: kernels are (in, out), and layers are variables of their own where ours are stacked. Names are
those of its model/modeling.py and run_pretraining.py: the discriminator under `electra`, the generator under `generator`, shared
embeddings under `electra/embeddings`, tables of the generator's own (untied_generator_embeddings) under `generator/embeddings`,
the heads under `discriminator_predictions` and `generator_predictions`; Adam's moments (model/optimization.py) under each
variable's name.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile

import jax
import numpy as np

from electra_jax import console, file_access
from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights, checked, expected_shapes
from electra_jax.model.config import EncoderConfig

STATE, SETTINGS, VOCABULARY = 'checkpoint', 'hparams.json', 'vocab.txt'
HEAD_SIZE = 64  # of all published sizes, and of every generator

_SCOPES = {
  'embeddings': 'electra/embeddings',
  'discriminator': 'electra',
  'discriminator_head': 'discriminator_predictions',
  'generator_embeddings': 'generator/embeddings',
  'generator': 'generator',
  'generator_head': 'generator_predictions',
}
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
_NORM = {'scale': 'LayerNorm/gamma', 'bias': 'LayerNorm/beta'}
_SLOTS = {'mu': 'adam_m', 'nu': 'adam_v'}
_FINE_TUNED = 'task_specific/'
_QUERY, _MLP = (
  'encoder/layer_0/attention/self/query/kernel',
  'encoder/layer_0/intermediate/dense/kernel',
)
_LFS = b'version https://git-lfs'


def read(address: str, moments: bool = True) -> Weights:
  """One tower or both of a checkpoint, with Adam's moments and the step where they are there.

  Sizes are those of the variables, which do not tell the number of heads: it is the option, what `hparams.json` beside the
  checkpoint says, or hidden / 64 as in all published sizes. A generator has max(1, hidden // 64), as in the original's
  get_generator_config. A masked language model of the original (electra_objective=False) is a generator alone.

  Args:
    address: a checkpoint's prefix (.../model.ckpt-1000000), one of its files, or a folder with a `checkpoint` file or with one
      checkpoint; after it options: `;heads=4`.
    moments: False leaves them unread.

  Raises UserError that names the variable or file: no checkpoint, several of them, another program's, a variable that is missing,
    of another shape or unknown, some of Adam's moments missing, a damaged file; or that says to give the number of heads.
  """
  path, heads = _options(address)
  prefix = _prefix(path)
  with _reader(prefix) as reader:
    shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    slots = {
      name
      for name in shapes
      if name.endswith(tuple(_SLOTS.values())) and name.rpartition('/')[0] in shapes
    }
    fine_tuned = any(name.startswith(_FINE_TUNED) for name in shapes)
    own = {
      name: shape
      for name, shape in shapes.items()
      if name not in slots and name != 'global_step' and not name.startswith(_FINE_TUNED)
    }
    weights, scopes = _towers(prefix, own, heads)
    headless = not any(name.startswith(scopes['discriminator_head'] + '/') for name in own)
    wanted = {
      top: tree
      for top, tree in expected_shapes(weights).items()
      if not (headless and top == 'discriminator_head')
    }
    _fits(prefix, wanted, scopes, own)

    params, read_moments, step, notes = _tree(reader, prefix, wanted, scopes), None, None, ()
    if fine_tuned:
      notes += (
        f'left out of {prefix}: the head that it was fine-tuned with ({_FINE_TUNED}...), step and optimizer of that',
      )
    else:
      step = int(_tensor(reader, prefix, 'global_step')) if 'global_step' in shapes else None
      if slots and moments:
        _all_slots(prefix, wanted, scopes, shapes)
        read_moments = {
          name: _tree(reader, prefix, wanted, scopes, '/' + slot) for name, slot in _SLOTS.items()
        }
  if headless and weights.discriminator:
    notes += (
      f'{prefix} has no {scopes["discriminator_head"]}: the head that tells replaced tokens is not in it',
    )
  vocabulary = file_access.join(_folder(prefix), VOCABULARY)
  return checked(
    dataclasses.replace(
      weights,
      params=params,
      moments=read_moments,
      step=step,
      notes=notes,
      tokenizer=vocabulary if file_access.exists(vocabulary) else None,
    ),
    ('discriminator_head',),
  )


def write(weights: Weights, prefix: str) -> dict:
  """A checkpoint that the original program restores, its folder's `checkpoint` file, and `hparams.json`, the settings for that.

  Without Adam's moments the original begins fine-tuning from it, but does not go on with its pretraining.

  Args:
    weights: of the electra family, without a fine-tuned head. The tables of a generator alone become `electra/embeddings`.
    prefix: path or address; the files are PREFIX.index and PREFIX.data-00000-of-00001.

  Returns: the settings of hparams.json, for the original's --hparams; none for a generator alone.

  Raises UserError with the reason where the original has no such model, and where it cannot be written.
  """
  _expressible(weights)
  prefix = file_access.normal(prefix)
  scopes = (
    _SCOPES if weights.discriminator else _SCOPES | {'generator_embeddings': 'electra/embeddings'}
  )
  variables = _variables(weights.params, scopes)
  whole = (
    weights.moments and weights.moments['mu'].keys() == weights.params.keys()
  )  # a generator that was frozen has none
  for ours, slot in _SLOTS.items() if whole else ():
    variables |= {
      f'{name}/{slot}': value for name, value in _variables(weights.moments[ours], scopes).items()
    }
  if weights.step is not None:
    variables['global_step'] = np.asarray(weights.step, np.int64)
  settings = _settings(weights) if weights.discriminator else {}

  _save(variables, prefix)
  folder, name = _folder(prefix), os.path.basename(prefix)
  if settings:
    file_access.write_bytes(
      file_access.join(folder, SETTINGS), (json.dumps(settings, indent=2) + '\n').encode()
    )
  state = (
    f'model_checkpoint_path: {json.dumps(name)}\nall_model_checkpoint_paths: {json.dumps(name)}\n'
  )
  file_access.write_bytes(file_access.join(folder, STATE), state.encode())
  return settings


# ---- names


def _name(path, scopes):
  """The variable of one of our parameters; {} stands for the layer where ours are stacked."""
  top, *rest = path
  if top.endswith('embeddings'):
    inside = _NORM[rest[1]] if rest[0] == 'norm' else _TABLES[rest[0]]
  elif top.endswith('head'):
    inside = {
      ('bias',): 'output_bias',
      ('norm', 'scale'): _NORM['scale'],
      ('norm', 'bias'): _NORM['bias'],
    }.get(tuple(rest), '/'.join(rest).replace('prediction', 'dense_1'))
  elif rest[0] == 'layers':
    leaf = _NORM[rest[2]].rpartition('/')[2] if rest[1].endswith('norm') else rest[2]
    inside = f'encoder/layer_{{}}/{_LAYER[rest[1]]}/{leaf}'
  else:
    inside = '/'.join(rest)  # embeddings_project
  return f'{scopes[top]}/{inside}'


def _names(path, shape, scopes):
  """The variables of a leaf of our tree, one a layer where it is stacked, and whether it is."""
  name = _name([entry.key for entry in path], scopes)
  return ([name.format(i) for i in range(shape[0])], True) if '{}' in name else ([name], False)


def _expected(wanted, scopes):
  """Shapes by variable."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
    names, stacked = _names(path, leaf.shape, scopes)
    found |= {name: tuple(leaf.shape[1:] if stacked else leaf.shape) for name in names}
  return found


def _variables(tree, scopes):
  """Arrays by variable."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    names, stacked = _names(path, leaf.shape, scopes)
    found |= zip(names, leaf, strict=True) if stacked else {names[0]: leaf}
  return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def _tree(reader, prefix, wanted, scopes, slot=''):
  """Our tree of a checkpoint's variables, or of one of Adam's two slots of each."""

  def get(path, leaf):
    names, stacked = _names(path, leaf.shape, scopes)
    values = [_tensor(reader, prefix, name + slot) for name in names]
    for name, value in zip(names, values, strict=True):
      if not jax.numpy.issubdtype(value.dtype, np.floating):
        raise UserError(
          f'{prefix} holds {name + slot} as {value.dtype}, and weights are floating-point numbers.'
        )
    values = [value.astype(np.float32, copy=False) for value in values]
    return np.stack(values) if stacked else values[0]

  return jax.tree_util.tree_map_with_path(get, wanted)


# ---- what a checkpoint holds


def _towers(prefix, shapes, heads):
  """Weights without parameters, of the sizes that the shapes have, and the scope of each part of our tree."""

  def has(scope):
    return any(name.startswith(scope + '/') for name in shapes)

  for name in sorted(shapes):
    if name.startswith(('generator_ltr/', 'generator_rtl/', 'cloze_predictions/')):
      raise UserError(
        f'{prefix} is of Electric: it has {name}, and its two-tower cloze generator has no place here.'
      )
  if not has('electra/embeddings') and not has('generator/embeddings'):
    other = f' and has {min(shapes)}' if shapes else ''
    raise UserError(
      f'{prefix} is no checkpoint of the original program: it lacks electra/embeddings/word_embeddings{other}.'
    )
  scopes, discriminator, generator, sharing = dict(_SCOPES), None, None, 'embeddings'
  masked_lm = (
    has('generator_predictions')
    and not has('discriminator_predictions')
    and not has('generator/encoder')
  )
  if has('electra/encoder') and not masked_lm:
    discriminator = _sizes(prefix, shapes, 'electra', 'electra/embeddings', heads)
  if has('generator/encoder') or masked_lm:
    scopes['generator'] = 'electra' if masked_lm else 'generator'
    if has('generator/embeddings') or not discriminator:
      sharing = 'none'
      scopes['generator_embeddings'] = (
        'generator/embeddings' if has('generator/embeddings') else 'electra/embeddings'
      )
    embeddings = scopes['generator_embeddings' if sharing == 'none' else 'embeddings']
    generator = _sizes(
      prefix, shapes, scopes['generator'], embeddings, None if discriminator else heads
    )
  elif has('generator_predictions'):
    generator, sharing = discriminator, 'all'
  if not (discriminator or generator):
    raise UserError(f'{prefix} holds embeddings and no layers: it lacks electra/{_QUERY}.')
  return Weights(
    source=prefix, discriminator=discriminator, generator=generator, sharing=sharing, params={}
  ), scopes


def _sizes(prefix, shapes, scope, embeddings, heads):
  """The config of the tower under a scope."""

  def size(name):
    if len(shapes.get(name, ())) != 2:
      raise UserError(f'{prefix} lacks the variable {name}, or has it in no shape that fits.')
    return shapes[name]

  vocab, embedding = size(f'{embeddings}/word_embeddings')
  hidden = size(f'{scope}/{_QUERY}')[0]
  layers = [re.match(rf'{scope}/encoder/layer_(\d+)/', name) for name in shapes]
  if not heads and scope == 'electra':
    heads = _told_heads(prefix)
    if not heads and hidden % HEAD_SIZE:
      raise UserError(
        f'{prefix} has layers of width {hidden}, no multiple of {HEAD_SIZE}, and a checkpoint does not tell the '
        f'number of heads; add it, as in tf:{prefix};heads=4.'
      )
  heads = heads or max(1, hidden // HEAD_SIZE)
  if hidden % heads:
    raise UserError(
      f'{prefix} has layers of width {hidden} under {scope}, which do not divide into {heads} heads; give the '
      'number that it was trained with.'
    )
  try:
    return EncoderConfig(
      family='electra',
      vocab_size=vocab,
      hidden_size=hidden,
      embedding_size=embedding,
      num_heads=heads,
      num_layers=1 + max(int(match[1]) for match in layers if match),
      intermediate_size=size(f'{scope}/{_MLP}')[1],
      max_positions=size(f'{embeddings}/position_embeddings')[0],
      layer_norm_eps=1e-12,
      vocab_multiple=1,
      type_vocab_size=size(f'{embeddings}/token_type_embeddings')[0],
    )
  except ValueError as error:
    raise UserError(f'{prefix}, {scope}: {error}') from None


def _told_heads(prefix):
  """What hparams.json beside the checkpoint says of the number of heads, if anything."""
  place = file_access.join(_folder(prefix), SETTINGS)
  try:
    told = (
      json.loads(file_access.read_bytes(place))['model_hparam_overrides']['num_attention_heads']
      if file_access.exists(place)
      else None
    )
  except (ValueError, KeyError, TypeError):
    return None
  return told if type(told) is int and told > 0 else None


def _fits(prefix, wanted, scopes, shapes):
  """Complains of variables that are missing, of another shape, or unknown."""
  expected = _expected(wanted, scopes)

  def times(shape):
    return ' x '.join(map(str, shape)) or 'a scalar'

  wrong = [f'{name} is missing' for name in expected if name not in shapes]
  wrong += [
    f'{name} is {times(shapes[name])} and not {times(shape)}'
    for name, shape in expected.items()
    if shapes.get(name, shape) != shape
  ]
  wrong += [
    f'{name} is no variable of the original program'
    for name in sorted(shapes)
    if name not in expected
  ]
  if wrong:
    more = f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''
    raise UserError(
      f'{prefix} does not hold a model of the original program: {"; ".join(wrong[:4])}{more}.'
    )


def _all_slots(prefix, wanted, scopes, shapes):
  expected = _expected(wanted, scopes)
  for slot in _SLOTS.values():
    for name, shape in expected.items():
      if shapes.get(f'{name}/{slot}') != shape:
        what = 'has another shape than its variable' if f'{name}/{slot}' in shapes else 'is missing'
        raise UserError(
          f'{prefix} has moments of Adam, but {name}/{slot} {what}; take a checkpoint with all of them or none.'
        )


# ---- files


def _options(address):
  """Path and number of heads of `PATH;heads=4`."""
  path, *options = address.split(';')
  heads = None
  for option in options:
    name, _, value = option.partition('=')
    if name != 'heads' or not value.isdecimal() or int(value) < 1:
      raise UserError(
        f'{option!r} is no option of a TensorFlow checkpoint; there is one, heads, as in tf:{path};heads=4.'
      )
    heads = int(value)
  return file_access.normal(path), heads


def _folder(prefix):
  return prefix.rpartition('/')[0] or ('/' if prefix.startswith('/') else '.')


def _prefix(path):
  """The checkpoint that a path names: its prefix, one of its files, or its folder."""
  if os.path.basename(path) == STATE and not file_access.is_folder(path):
    path = _folder(path)
  if file_access.is_folder(path):
    return _only(path)
  prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
  if file_access.exists(prefix + '.index') or file_access.exists(
    prefix
  ):  # the older format is one file of that name
    return prefix
  raise UserError(
    f'{path!r} is no TensorFlow checkpoint: {prefix}.index is not there; give the prefix of one, such as '
    'model.ckpt-1000000, or its folder.'
  )


def _only(folder):
  there = [
    name.removesuffix('.index') for name in file_access.listing(folder) if name.endswith('.index')
  ]
  if file_access.exists(file_access.join(folder, STATE)):
    told = re.search(
      rb'^model_checkpoint_path: "(.*)"',
      file_access.read_bytes(file_access.join(folder, STATE)),
      re.MULTILINE,
    )
    name = (
      os.path.basename(told[1].decode('utf-8', 'replace')) if told else ''
    )  # folders move, their state files do not
    if name in there or name and file_access.exists(file_access.join(folder, name)):
      return file_access.join(folder, name)
  if len(there) == 1:
    return file_access.join(folder, there[0])
  if there:
    raise UserError(
      f'{folder!r} holds several checkpoints, and no {STATE} file names one of them: {", ".join(there)}; '
      'name one.'
    )
  raise UserError(
    f'{folder!r} holds no TensorFlow checkpoint, whose files end in .index and .data-00000-of-00001.'
  )


def _tensorflow():
  console.quiet_libraries()
  try:
    import tensorflow as tf
  except ImportError:
    raise UserError(
      'TensorFlow checkpoints need TensorFlow, which is not installed; pip install tensorflow-cpu.'
    ) from None
  with contextlib.suppress(RuntimeError):  # it was in use before us
    tf.config.set_visible_devices([], 'GPU')  # the accelerator's memory is JAX's
  return tf


@contextlib.contextmanager
def _reader(prefix):
  """TensorFlow's reader of a checkpoint; of one at an address, of a copy of its files here."""
  tf = _tensorflow()
  name = os.path.basename(prefix)
  parts = [
    part
    for part in file_access.listing(_folder(prefix))
    if re.fullmatch(re.escape(name) + r'(\.index|\.data-.*)?', part)
  ]
  if parts == [f'{name}.index']:
    raise UserError(
      f'{prefix}.data-00000-of-00001 is missing, and the index alone holds no numbers; fetch that file, too.'
    )
  with tempfile.TemporaryDirectory() as copies:
    for part in parts:
      with file_access.open_binary(file_access.join(_folder(prefix), part)) as file:
        if file.read(len(_LFS)) == _LFS:
          raise UserError(
            f'{file_access.join(_folder(prefix), part)!r} is a Git LFS pointer and not the file itself, which was not '
            'fetched; run git lfs pull there.'
          )
        if file_access.is_remote(prefix):
          file.seek(0)
          with open(os.path.join(copies, part), 'wb') as copy:
            shutil.copyfileobj(file, copy)
    with _damage(prefix, 'cannot be read'):
      reader = tf.train.load_checkpoint(
        os.path.join(copies, name) if file_access.is_remote(prefix) else prefix
      )
    yield reader


def _tensor(reader, prefix, name):
  with _damage(prefix, f'is cut short or damaged at {name}'):
    return reader.get_tensor(name)


@contextlib.contextmanager
def _damage(prefix, what):
  import tensorflow as tf

  try:
    yield
  except (
    tf.errors.OpError,
    ValueError,
    RuntimeError,
    IndexError,
  ) as error:  # an early end of the data is an IndexError
    raise UserError(
      f'{prefix} {what} ({file_access.reason(error)}); fetch its files again.'
    ) from None


def _save(variables, prefix):
  tf = _tensorflow()
  folder, name = _folder(prefix), os.path.basename(prefix)
  try:
    if not file_access.is_remote(prefix):
      os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=None if file_access.is_remote(prefix) else folder
    ) as fresh:
      with tf.device('CPU:0'):
        tf.raw_ops.SaveV2(
          prefix=os.path.join(fresh, name),
          tensor_names=list(variables),
          shape_and_slices=[''] * len(variables),
          tensors=list(variables.values()),
        )
      for part in sorted(os.listdir(fresh)):  # the index last: it makes a checkpoint of them
        place = file_access.join(folder, part)
        file_access.upload(os.path.join(fresh, part), place) if file_access.is_remote(
          place
        ) else os.replace(os.path.join(fresh, part), place)
  except (OSError, tf.errors.OpError) as error:
    raise file_access.Unwritable(
      f'{prefix!r} cannot be written: {file_access.reason(error)}'
    ) from None


# ---- what the original can hold


def _expressible(weights):
  """Complains of what the original program cannot hold."""
  d, g = weights.discriminator, weights.generator

  def need(condition, reason):
    if not condition:
      raise UserError(
        f'{weights.source} cannot be a checkpoint of the original TensorFlow program: {reason}.'
      )

  for tower in filter(None, (d, g)):
    need(
      tower.family == 'electra',
      f'that has published ELECTRA alone, and this is of the {tower.family} family',
    )
    need(
      tower.layer_norm_eps == 1e-12,
      f'its LayerNorm has an epsilon of 1e-12, and this has {tower.layer_norm_eps:g}',
    )
  need(
    weights.head is None,
    'a fine-tuned head has no name there that others would look for; export the pretrained run',
  )
  if not g or weights.sharing == 'all':
    return
  need(
    g.num_heads == max(1, g.hidden_size // HEAD_SIZE),
    f'its generators of width {g.hidden_size} have {max(1, g.hidden_size // HEAD_SIZE)} heads, and this has {g.num_heads}',
  )
  need(
    g.intermediate_size == 4 * g.hidden_size,
    f'its generators have a feed-forward of 4 times their width, and this has {g.intermediate_size} for {g.hidden_size}',
  )
  if d and weights.sharing == 'none':
    need(
      g.embedding_size == g.hidden_size,
      'there a generator with embeddings of its own has them as wide as its layers, and '
      f'this has {g.embedding_size} for {g.hidden_size}',
    )
    for field in ('vocab_size', 'max_positions', 'type_vocab_size'):
      need(
        getattr(d, field) == getattr(g, field),
        f'its towers have one {field}, and these have {getattr(d, field)} and {getattr(g, field)}',
      )


def _settings(weights):
  """The original's hyperparameters for these sizes (configure_pretraining.py; util/training_utils.py)."""
  d, g = weights.discriminator, weights.generator
  settings = {
    'vocab_size': d.vocab_size,
    'embedding_size': d.embedding_size,
    'model_hparam_overrides': {
      'hidden_size': d.hidden_size,
      'num_hidden_layers': d.num_layers,
      'num_attention_heads': d.num_heads,
      'intermediate_size': d.intermediate_size,
      'max_position_embeddings': d.max_positions,
      'type_vocab_size': d.type_vocab_size,
    },
  }
  if g:
    settings |= {
      'untied_generator': weights.sharing != 'all',
      'untied_generator_embeddings': weights.sharing == 'none',
      'generator_hidden_size': g.hidden_size / d.hidden_size,
      'generator_layers': g.num_layers / d.num_layers,
    }
  return settings
