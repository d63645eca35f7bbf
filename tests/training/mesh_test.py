"""Meshes and layouts of configs: sizes, slices, what is split, and sharded initialization."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from conftest import adamw, tiny_electra
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from electra_jax import main
from electra_jax.config import PretrainingConfig, checked_pretraining, default_config, phases_of
from electra_jax.errors import UserError
from electra_jax.pretrain import build, pretrain_step
from electra_jax.training import partitioning

MICRO = 'tests/configs/micro.py'


def layout_of(devices=None, **fields) -> partitioning.Layout:
  """The layout of the default config with changed fields of its groups mesh and sharding."""
  config = PretrainingConfig()
  for name, value in fields.items():
    group = 'mesh' if hasattr(config.mesh, name) else 'sharding'
    config = config.replace({f'{group}.{name}': value})
  return partitioning.make_layout(config, devices)


def program_of(config, vocab_size=300, devices=None) -> build.Program:
  """The program of a ConfigDict with one phase."""
  c = checked_pretraining(config)
  (phase,) = phases_of(c)
  layout = partitioning.make_layout(c, devices)
  return build.program(c, phase, build.any_tokenizer(vocab_size), layout)


def sentence_of(error) -> str:
  """The text of a UserError, which must be one sentence."""
  sentence = str(error.value)
  assert '\n' not in sentence and sentence.endswith(('.', '?'))
  return sentence


#### Sizes and slices ####


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ({}, (8, 1, 1)),
    ({'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
    ({'data': 2, 'fsdp': -1, 'tensor': 2}, (2, 2, 2)),
    ({'data': 1, 'tensor': -1}, (1, 1, 8)),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, (2, 2, 2)),
    ({'data': -1, 'fsdp': 8}, (1, 8, 1)),
  ],
  ids=str,
)
def test_minus_one_takes_what_the_other_axes_leave(sizes, shape):
  mesh = layout_of(**sizes).mesh
  assert tuple(mesh.shape.items()) == tuple(zip(('data', 'fsdp', 'tensor'), shape, strict=True))
  assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
  'sizes, start, remedy',
  [
    ({'data': 0}, 'config.mesh.data is 0;', '-1'),
    ({'fsdp': -2}, 'config.mesh.fsdp is -2;', '-1'),
    ({'tensor': 0}, 'config.mesh.tensor is 0;', '-1'),
    ({'fsdp': -1}, 'config.mesh.data and config.mesh.fsdp are both -1;', 'only one'),
    (
      {'tensor': 3},
      'config.mesh asks for fsdp 1 x tensor 3 = 3 devices or a multiple and there are 8;',
      '-1',
    ),
    (
      {'data': 4, 'tensor': 4},
      'config.mesh asks for data 4 x fsdp 1 x tensor 4 = 16 devices and there are 8;',
      '-1',
    ),
    (
      {'data': 2},
      'config.mesh asks for data 2 x fsdp 1 x tensor 1 = 2 devices and there are 8;',
      '-1',
    ),
    ({'slices': 3}, 'config.mesh.slices 3 does not divide 8 devices;', 'change it'),
    (
      {'slices': 2, 'data': 1, 'fsdp': -1},
      'the data axis of 1 does not span 2 slices evenly;',
      'config.mesh.data a multiple of 2',
    ),
  ],
  ids=str,
)
def test_impossible_sizes_are_named_in_one_sentence(sizes, start, remedy):
  with pytest.raises(UserError) as error:
    layout_of(**sizes)
  assert sentence_of(error).startswith(start) and remedy in sentence_of(error)


@dataclasses.dataclass(frozen=True)
class Device:
  """The attributes of a device that a mesh reads."""

  id: int
  slice_index: int | None
  coords: tuple[int, int, int]
  platform: str = 'cpu'
  device_kind: str = 'TPU v5 lite'
  process_index: int = 0
  core_on_chip: int = 0
  client = None


def devices_of(slices: int, platform: str):
  """Slices of eight devices as 2 x 4, in an order in which slices alternate."""
  return [
    Device(i * slices + s, s, (i % 2, i // 2, 0), platform) for i in range(8) for s in range(slices)
  ]


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize(
  'slices, sizes, shape',
  [
    (2, {}, (16, 1, 1)),
    (2, {'tensor': 2}, (8, 1, 2)),
    (4, {'fsdp': 8}, (4, 8, 1)),
    (2, {'fsdp': 2, 'tensor': 4, 'slices': 2}, (2, 2, 4)),
  ],
  ids=str,
)
def test_data_spans_slices_and_the_other_axes_stay_within_one(platform, slices, sizes, shape):
  mesh = partitioning.make_mesh(devices_of(slices, platform), **sizes)
  assert mesh.devices.shape == shape
  numbers = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  for number, group in enumerate(
    np.split(numbers, slices, axis=0)
  ):  # consecutive indices of data, with all of the other axes
    assert (group == number).all()
  assert len({device.id for device in mesh.devices.flat}) == 8 * slices


def test_devices_without_slice_numbers_are_grouped_in_order():
  mesh = layout_of(slices=2, tensor=2).mesh
  assert np.vectorize(lambda device: device.id)(mesh.devices).reshape(2, 4).tolist() == [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
  ]


def test_slices_that_contradict_the_devices_are_named():
  with pytest.raises(UserError) as error:
    partitioning.make_mesh(devices_of(2, 'cpu'), slices=4)
  assert sentence_of(error).startswith('config.mesh.slices is 4 and the devices are of 2 slices;')
  with pytest.raises(UserError) as error:
    partitioning.make_mesh(devices_of(4, 'cpu'), data=2, fsdp=-1)
  assert sentence_of(error).startswith('the data axis of 2 does not span 4 slices evenly;')


#### Rules ####


@pytest.mark.parametrize(
  'fields, sentence',
  [
    (
      {'vocab': 'tensors'},
      "config.sharding.vocab is 'tensors'; parameters are split over fsdp, tensor, both",
    ),
    (
      {'mlp': 'data'},
      "config.sharding.mlp is 'data'; parameters are split over fsdp, tensor, both",
    ),
    ({'embed': 'fsdp,data'}, "config.sharding.embed is 'data'; parameters"),
    ({'heads': 'fsdp,tensor,tensor'}, "config.sharding.heads names 'tensor' twice"),
    ({'optimizer': 'tensor'}, "config.sharding.optimizer is 'tensor'; expected 'data'"),
  ],
  ids=str,
)
def test_names_other_than_mesh_axes_are_refused(fields, sentence):
  with pytest.raises(UserError) as error:
    layout_of(**fields)
  assert sentence_of(error).startswith(sentence)


def test_names_other_than_logical_axes_are_refused():
  with pytest.raises(UserError, match=r"no field 'vocabb'; did you mean 'vocab'\?"):
    main.parse_flags(['main', f'--config={MICRO}', '--config.sharding.vocabb=fsdp'])
  config = default_config()
  config.sharding.kv = 'tensor'
  with pytest.raises(UserError) as error:
    checked_pretraining(config)
  assert sentence_of(error).startswith('config.sharding.kv is not a field')


def test_every_logical_axis_of_the_models_has_a_rule():
  rules = dict(layout_of().rules)
  for family in ('electra', 'modern'):
    boxed = jax.eval_shape(
      lambda family=family: pretrain_step.init_params(tiny_electra(family), 0, 8)
    )
    names = {
      name
      for x in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, 'names'))
      for name in x.names
    }
    assert names <= rules.keys() and {'vocab', 'heads', 'mlp', 'embed', 'layers'} <= names


@pytest.mark.parametrize(
  'given, word',
  [
    ('fsdp', P('fsdp', None)),
    ('', P(None, 'fsdp')),
    ('fsdp,tensor', P(('fsdp', 'tensor'), None)),
    ('tensor', P('tensor', 'fsdp')),
  ],
)
def test_the_command_line_changes_how_an_axis_is_split(given, word):
  config = main.parse_flags(
    [
      'main',
      f'--config={MICRO}',
      f'--config.sharding.vocab={given}',
      '--config.sharding.smallest=0',
      '--config.mesh.fsdp=2',
      '--config.mesh.tensor=2',
      '--config.model.num_heads=4',
    ]
  ).config
  program = program_of(config)
  assert program.shardings.params['embeddings']['word'].spec == word


#### What is split over what ####

# Without the axis of layers; kernels of both families.
SPLIT = {
  'embeddings/word': P('tensor', 'fsdp'),
  'query/kernel': P('fsdp', 'tensor'),
  'key/kernel': P('fsdp', 'tensor'),
  'value/kernel': P('fsdp', 'tensor'),
  'attention_output/kernel': P('tensor', 'fsdp'),
  'mlp_in/kernel': P('fsdp', 'tensor'),
  'mlp_output/kernel': P('tensor', 'fsdp'),
  'embeddings_project/kernel': P('fsdp', None),
  'discriminator_head/dense/kernel': P('fsdp', None),
}
OF_A_FAMILY = {
  'electra': {
    'embeddings/position': P(None, 'fsdp'),
    'query/bias': P('tensor'),
    'mlp_in/bias': P('tensor'),
    'mlp_norm/scale': P(None),
  },
  'modern': {'mlp_gate/kernel': P('fsdp', 'tensor'), 'next_norm/scale': P(None)},
}


def laid_out(model, layout):
  """Name -> (shape, sharding, the moments' sharding)."""
  shapes, shardings = pretrain_step.state_shardings(model, adamw(lambda step: 1e-3), 8, layout)
  moments = partitioning.moment_shardings(shapes.params, shardings.params, layout)
  trees = zip(
    jax.tree_util.tree_leaves_with_path(shapes.params),
    jax.tree.leaves(shardings.params),
    jax.tree.leaves(moments),
    strict=True,
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (x.shape, s, m)
    for (path, x), s, m in trees
  }


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_vocabulary_heads_and_feed_forward_are_split_over_tensor_and_widths_over_fsdp(family):
  found = laid_out(tiny_electra(family), layout_of(fsdp=2, tensor=2, smallest=0))
  for end, spec in (SPLIT | OF_A_FAMILY[family]).items():
    names = [name for name in found if name.endswith(end)]
    assert names, end
    for name in names:
      assert found[name][1].spec == (P(None, *spec) if '/layers/' in name else spec), name


def test_by_default_parameters_are_whole_and_small_tensors_are_never_split():
  assert all(
    s.is_fully_replicated for _, s, _ in laid_out(tiny_electra(), layout_of(smallest=0)).values()
  )
  found = laid_out(tiny_electra(), layout_of(fsdp=2, tensor=2, smallest=1024))
  assert (
    found['embeddings/word'][0] == (64, 16) and not found['embeddings/word'][1].is_fully_replicated
  )
  small = [(s, m) for shape, s, m in found.values() if math.prod(shape) < 1024]
  assert len(small) > 20 and all(s.is_fully_replicated and m.is_fully_replicated for s, m in small)


def test_an_axis_that_does_not_divide_is_not_split():
  found = laid_out(
    tiny_electra(embedding_size=18, intermediate_size=36), layout_of(fsdp=4, tensor=2, smallest=0)
  )
  shape, sharding, _ = found['embeddings/word']
  assert shape == (64, 18) and sharding.spec == P('tensor', None)
  assert laid_out(tiny_electra(), layout_of(tensor=8, smallest=0))[
    'discriminator/layers/mlp_in/kernel'
  ][1].spec == P(None, None, 'tensor')


def test_each_device_holds_a_part_of_each_large_moment_of_the_base_model():
  config = main.parse_flags(['main', '--config=configs/base.py']).config
  program = program_of(config, 30522)
  shapes, shardings = program.shapes.params, program.shardings.params
  moments = partitioning.moment_shardings(shapes, shardings, program.layout)
  large = 0
  for x, s, m in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(shardings), jax.tree.leaves(moments), strict=True
  ):
    assert s.is_fully_replicated
    if math.prod(x.shape) >= 65_536:
      large += 1
      assert [entry for entry in m.spec if entry] == ['data'] and math.prod(
        m.shard_shape(x.shape)
      ) * 8 == math.prod(x.shape)
      part = m.shard_shape(x.shape)
      assert part[-1] % 128 == 0 and part[-2] % 8 == 0, (x.shape, part)  # whole tiles
    else:
      assert m.is_fully_replicated
  assert large > 10
  # Small tensors, which are not split, take almost no memory.
  assert (
    partitioning.bytes_per_device(shapes, moments)
    < 1.02 * partitioning.bytes_per_device(shapes, shardings) / 8
  )
  assert (
    jax.tree.leaves(program.shardings.opt_state).count(jax.tree.leaves(moments)[0]) >= 2
  )  # and the state has these shardings


@pytest.mark.parametrize(
  'shape, spec, sizes, expected',
  [
    ((64, 8), P(None, None), {}, P('data', None)),  # rows in eights
    ((8, 1024), P(None, None), {}, P(None, 'data')),  # columns in 128s, as rows would fill no tile
    ((64, 1024), P(None, None), {}, P('data', None)),  # equally many tiles: the first
    ((64, 4096), P(None, None), {}, P(None, 'data')),  # the one with more tiles
    ((16, 64, 256), P(None, None, None), {}, P('data', None, None)),
    ((12, 64, 256), P(None, None, None), {}, P(None, 'data', None)),
    ((1024,), P(None), {}, P('data')),
    ((8, 9), P(None, None), {}, P('data', None)),  # no tile is filled: split anyway
    ((7, 9), P(None, None), {}, P(None, None)),  # no axis divides: as the parameter
    (
      (512, 64),
      P('tensor', None),
      {'tensor': 2},
      P('tensor', 'data'),
    ),  # an axis that is not split comes first
    ((512, 63), P('tensor', None), {'tensor': 2}, P(('data', 'tensor'), None)),
    ((512, 64), P('tensor', 'fsdp'), {'tensor': 2, 'fsdp': 2}, P(('data', 'tensor'), 'fsdp')),
    ((512, 64), P(None, 'fsdp'), {'fsdp': 8}, P(None, 'fsdp')),  # data 1
  ],
  ids=str,
)
def test_moments_are_split_once_over_data_along_the_axis_that_fills_tiles(
  shape, spec, sizes, expected
):
  layout = layout_of(smallest=0, **sizes)
  shapes, of_parameter = jax.ShapeDtypeStruct(shape, np.float32), NamedSharding(layout.mesh, spec)
  assert partitioning.moment_shardings(shapes, of_parameter, layout).spec == expected
  assert (
    partitioning.moment_shardings(shapes, of_parameter, layout._replace(optimizer=None)).spec
    == spec
  )
  assert (
    partitioning.moment_shardings(
      shapes, of_parameter, layout._replace(smallest=math.prod(shape) + 1)
    ).spec
    == spec
  )


#### The table of sizes ####

LAYOUTS = [{}, {'fsdp': 2, 'tensor': 2}, {'fsdp': 8}, {'optimizer': ''}]


def places(sharding) -> set:
  """(axis of the tensor, mesh axis, its size) of all that split it."""
  return {
    (i, name, str(sharding.mesh.shape[name]))
    for i, entry in enumerate(sharding.spec)
    for name in ((entry,) if isinstance(entry, str) else entry or ())
    if sharding.mesh.shape[name] > 1
  }


@pytest.mark.parametrize('sizes', LAYOUTS, ids=str)
def test_the_table_agrees_with_the_arrays_on_each_device(sizes):
  model = tiny_electra(vocab_size=8192, embedding_size=64)
  layout = layout_of(smallest=1000, **sizes)
  shapes, shardings = pretrain_step.state_shardings(model, adamw(lambda step: 1e-3), 8, layout)
  shapes, shardings = shapes.params, shardings.params
  moments = partitioning.moment_shardings(shapes, shardings, layout)

  def zeros(shardings):
    return jax.tree.map(
      lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s), shapes, shardings
    )

  held = {}
  for name, tree in (('parameters', zeros(shardings)), ('moments', zeros(moments))):
    bytes_of = {
      device: sum(
        shard.data.nbytes
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
        if shard.device == device
      )
      for device in jax.devices()
    }
    assert len(set(bytes_of.values())) == 1  # all devices hold the same amount
    held[name] = bytes_of[jax.devices()[0]]
  assert partitioning.bytes_per_device(shapes, shardings) == held['parameters']
  assert partitioning.bytes_per_device(shapes, moments) == held['moments']

  lines = partitioning.sharding_table(shapes, shardings, layout)

  def numbers(line):
    return [float(x) for x in re.findall(r'\d+\.\d', line)]

  assert lines[-1].startswith('each device holds')
  np.testing.assert_allclose(
    numbers(lines[-1]), [held['parameters'] / 1e6, 2 * held['moments'] / 1e6], atol=0.051
  )
  rows = {line.split()[0]: line for line in lines[1:-2]}
  for name, (shape, s, m) in laid_out(model, layout).items():
    line = rows.get(name.replace('/layers', ''))
    assert (line is None) == (math.prod(shape) < 1000), name
    if line:
      assert 'x'.join(map(str, shape)) in line
      shown_places = {
        (int(axis), *place.split())
        for axis, places in re.findall(r'axis (\d) by ((?:[a-z]+ \d ?)+)', line)
        for place in re.findall(r'[a-z]+ \d', places)
      }
      assert shown_places == places(s) | places(m), line
      assert line.count('whole') == s.is_fully_replicated + m.is_fully_replicated
  assert re.match(r'\d+ small ones', lines[-2])
  assert int(lines[-2].split()[0]) == sum(
    math.prod(x.shape) < 1000 for x in jax.tree.leaves(shapes)
  )


def test_on_one_device_there_is_no_table():
  layout = layout_of(jax.devices()[:1])
  shapes, shardings = pretrain_step.state_shardings(
    tiny_electra(), adamw(lambda step: 1e-3), 8, layout
  )
  assert partitioning.sharding_table(shapes.params, shardings.params, layout) == []


#### Initialization ####


def program_on(devices, **fields) -> build.Program:
  config = main.parse_flags(
    ['main', f'--config={MICRO}', '--config.sharding.smallest=0', '--config.model.num_heads=4']
  ).config
  config.mesh.update(fields)
  return program_of(config, devices=jax.devices()[:devices])


def initialized(program):
  """The first state of training, and the compiled program that makes it."""
  made = (
    jax.jit(
      lambda: pretrain_step.init_state(program.model, program.optimizer, 0, 32),
      out_shardings=program.shardings,
    )
    .lower()
    .compile()
  )
  return made(), made


def test_state_is_initialized_in_place_and_bitwise_equal_to_that_of_one_device():
  one, _ = initialized(program_on(1))
  assert all(np.ptp(x) > 0 for x in jax.tree.leaves(one.params) if x.ndim > 2)  # not zeros
  for sizes in ({}, {'fsdp': 2, 'tensor': 2}):
    program = program_on(8, **sizes)
    state, made = initialized(program)
    parts = 0
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(program.shardings), strict=True):
      assert x.sharding.is_equivalent_to(sharding, x.ndim)
      assert {shard.data.shape for shard in x.addressable_shards} == {sharding.shard_shape(x.shape)}
      parts += sharding.shard_shape(x.shape) != x.shape
    assert parts > 20
    # No larger array exists in between.
    pointers = 8 * len(jax.tree.leaves(state))
    held = partitioning.bytes_per_device(program.shapes, program.shardings)
    assert made.memory_analysis().output_size_in_bytes <= held + pointers
    assert not re.search(r' all-gather(-start)?\(', made.as_text())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(one))


#### Sizes that do not divide ####


@pytest.mark.parametrize(
  'devices, fields, sentence',
  [
    (
      8,
      {'batch_size': 12},
      'config.batch_size 12 does not divide over 8 devices; use a multiple of 8.',
    ),
    (
      8,
      {'batch_size': 12, 'mesh.fsdp': 4, 'mesh.tensor': 2, 'micro_batches': 2},
      'config.micro_batches 2 does not divide the 3 rows of a device;',
    ),
    (8, {'mesh.tensor': 4}, "config.mesh.tensor 4 does not divide the generator's 1 heads;"),
  ],
  ids=str,
)
def test_batches_and_heads_that_do_not_divide_are_named(devices, fields, sentence):
  config = main.parse_flags(['main', f'--config={MICRO}']).config
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError) as error:
    program_of(config, devices=jax.devices()[:devices])
  assert sentence_of(error).startswith(sentence)


def test_heads_that_do_not_divide_can_be_left_whole():
  config = main.parse_flags(
    [
      'main',
      f'--config={MICRO}',
      '--config.mesh.tensor=4',
      '--config.sharding.heads=',
      '--config.sharding.smallest=0',
    ]
  ).config
  program = program_of(config)
  layers = program.shardings.params['discriminator']['layers']
  assert layers['query']['kernel'].is_fully_replicated
  assert 'tensor' in layers['mlp_in']['kernel'].spec
