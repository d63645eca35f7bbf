"""Tensors are read from each file that PyTorch's models travel in, without PyTorch and without running what a pickle asks for."""

import collections
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from electra_jax.errors import UserError
from electra_jax.interop import tensors

LEGACY = {'_use_new_zipfile_serialization': False}
FORMATS = pytest.mark.parametrize('options', [{}, LEGACY], ids=['zip', 'legacy'])


@pytest.fixture(scope='module')
def model():
  torch.manual_seed(0)
  return transformers.ElectraForPreTraining(
    transformers.ElectraConfig(
      vocab_size=99,
      embedding_size=8,
      hidden_size=16,
      num_hidden_layers=3,
      num_attention_heads=2,
      intermediate_size=32,
      max_position_embeddings=20,
    )
  )


def same(found, state):
  """Whether arrays are the tensors of a state_dict, in float32 where they are floating, bit for bit."""
  assert found.keys() == state.keys()
  for name, tensor in state.items():
    expected = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    assert found[name].dtype == expected.dtype, name
    assert (
      found[name].shape == expected.shape
      and found[name].tobytes() == np.asarray(expected, order='C').tobytes()
    ), name


def refused(path, *words):
  with pytest.raises(UserError) as told:
    tensors.read(str(path))
  for word in words:
    assert word in str(told.value), str(told.value)
  assert str(told.value).count('\n') == 0
  return str(told.value)


def saved(folder, state, name='pytorch_model.bin', **options):
  torch.save(state, folder / name, **options)
  return folder / name


def of_pickle(folder, content, records=()):
  """A file like torch.save's around a pickle of one's own."""
  path = folder / 'pytorch_model.bin'
  with zipfile.ZipFile(path, 'w') as archive:
    for name, value in [('data.pkl', content), *records]:
      archive.writestr(f'archive/{name}', value)
  return path


# ---- what is read


def test_a_folder_of_transformers_single_and_sharded(model, tmp_path):
  model.save_pretrained(tmp_path / 'single')
  model.save_pretrained(tmp_path / 'sharded', max_shard_size='8kB')
  assert (tmp_path / 'single' / 'model.safetensors').exists() and (
    tmp_path / 'sharded' / 'model.safetensors.index.json'
  ).exists()
  assert len(list((tmp_path / 'sharded').glob('model-*.safetensors'))) > 2
  for place in (
    'single',
    'sharded',
    'single/model.safetensors',
    'sharded/model.safetensors.index.json',
  ):
    same(tensors.read(str(tmp_path / place)), model.state_dict())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@FORMATS
def test_bin_files_in_every_precision(model, tmp_path, dtype, options):
  state = collections.OrderedDict(
    (name, tensor.to(dtype)) for name, tensor in model.state_dict().items()
  )
  state['embeddings.position_ids'] = torch.arange(20).expand((1, -1))
  state._metadata = model.state_dict()._metadata
  saved(tmp_path, state, **options)
  same(tensors.read(str(tmp_path)), state)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_in_every_precision(tmp_path, dtype):
  state = {
    'weight': torch.randn(3, 5).to(dtype),
    'scalar': torch.tensor(2.5, dtype=dtype),
    'ids': torch.arange(6),
    'on': torch.tensor([True, False]),
  }
  (tmp_path / 'model.safetensors').write_bytes(safetensors.torch.save(state))
  same(tensors.read(str(tmp_path)), state)


@FORMATS
def test_bin_files_with_shared_storages_views_offsets_and_strides(tmp_path, options):
  table = torch.randn(7, 4)
  state = {
    'table': table,
    'tied': table,
    'transposed': table.t(),
    'rows': table[2:5],
    'column': table[:, 3],
    'every_other': table[::2, 1:3],
    'scalar': table[3, 2],
    'empty': table[:0],
    'repeated': torch.ones(1).expand(6, 2),
    'parameter': torch.nn.Parameter(table[1:]),
    'permuted': torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
  }
  saved(tmp_path, state, **options)
  found = tensors.read(str(tmp_path))
  same(found, state)
  found['tied'][0, 0] = 7  # each has memory of its own
  assert found['table'][0, 0] != 7


def test_bin_files_in_shards_and_in_order_of_preference(model, tmp_path):
  state = model.state_dict()
  halves = {
    'pytorch_model-00001-of-00002.bin': list(state)[::2],
    'pytorch_model-00002-of-00002.bin': list(state)[1::2],
  }
  for name, part in halves.items():
    saved(tmp_path, {key: state[key] for key in part}, name)
  index = {
    'metadata': {},
    'weight_map': {key: name for name, part in halves.items() for key in part},
  }
  (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
  same(tensors.read(str(tmp_path)), state)

  for i, name in enumerate(
    reversed(tensors.NAMES[::2])
  ):  # .bin goes before an index of .bin, safetensors before both
    better = {'x': torch.full((2,), float(i))}
    if name.endswith('.bin'):
      saved(tmp_path, better)
    else:
      (tmp_path / name).write_bytes(safetensors.torch.save(better))
    same(tensors.read(str(tmp_path)), better)


def test_an_address_is_read_as_a_path_is(model, tmp_path):
  import fsspec

  model.save_pretrained(tmp_path, max_shard_size='8kB')
  memory = fsspec.filesystem('memory')
  memory.put(str(tmp_path) + '/', '/tensors_test/', recursive=True)
  same(tensors.read('memory://tensors_test'), model.state_dict())


def test_nothing_of_it_needs_torch(model, tmp_path):
  model.save_pretrained(tmp_path / 'safe')
  (tmp_path / 'bin').mkdir()
  saved(tmp_path / 'bin', {name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
  code = (
    'import sys\nsys.modules["torch"] = sys.modules["transformers"] = None\nfrom electra_jax.interop import tensors\n'
    f'a, b = tensors.read({str(tmp_path / "safe")!r}), tensors.read({str(tmp_path / "bin")!r})\n'
    'assert len(tensors.to_bytes(a)) > 1000 and a.keys() == b.keys()'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr


# ---- what is written


def test_what_is_written_is_the_same_whatever_the_order_and_torch_opens_it(model):
  state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
  state['scalar'], state['turned'] = np.float32(3), np.arange(6, dtype=np.int64).reshape(2, 3).T
  content = tensors.to_bytes(state)
  assert content == tensors.to_bytes(dict(reversed(state.items())))
  same(
    {name: tensor.numpy() for name, tensor in safetensors.torch.load(content).items()},
    {name: torch.from_numpy(np.array(value)) for name, value in state.items()},
  )
  header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
  assert header['__metadata__'] == {'format': 'pt'}


# ---- what is refused


class Run:
  """Pickles as a call."""

  def __init__(self, function, *arguments):
    self.called = function, arguments

  def __reduce__(self):
    return self.called


@pytest.mark.parametrize('options', [{}, LEGACY], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
  'function',
  [os.system, subprocess.Popen, eval, pickle.loads, getattr, torch.load],
  ids=lambda function: function.__name__,
)
def test_a_pickle_runs_no_program(tmp_path, function, options):
  mark = tmp_path / 'ran'
  argument = f'open({str(mark)!r}, "w")' if function is eval else f'touch {mark}'
  path = saved(tmp_path, {'weight': torch.ones(2), 'trap': Run(function, argument)}, **options)
  refused(path, str(path), '.', 'save the model again with safetensors')
  assert not mark.exists()


def test_the_refused_global_is_named(tmp_path):
  assert 'posix.system' in refused(
    of_pickle(tmp_path, pickle.dumps({'weight': Run(os.system, 'true')}, protocol=2))
  )
  assert 'torch.nn.modules.linear.Linear' in refused(saved(tmp_path, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
  'content',
  [
    b'(d0ctorch._utils\n_rebuild_tensor_v2\n}(S"__defaults__"\nNu\x86b.',  # attributes of what rebuilds tensors
    b'ccollections\nOrderedDict\nN}S"items"\nNs\x86b.',  # and of the class of dictionaries
    b'ctorch\nFloatStorage\nN}S"dtype"\nNs\x86b.',
  ],
)
def test_a_pickle_changes_nothing_here(tmp_path, content):
  before = [
    dict(vars(thing)) for thing in (tensors._Dict, tensors._RebuildTensor, tensors._StorageType)
  ]
  refused(of_pickle(tmp_path, content))
  assert [
    dict(vars(thing)) for thing in (tensors._Dict, tensors._RebuildTensor, tensors._StorageType)
  ] == before


def altered(folder, state, change):
  """A saved state_dict with its pickle changed, as nobody's torch.save would write it."""
  content = io.BytesIO()
  torch.save(state, content)
  with zipfile.ZipFile(content) as archive:
    records = {info.filename.partition('/')[2]: archive.read(info) for info in archive.infolist()}
  changed = change(records['data.pkl'])
  assert changed != records['data.pkl']
  return of_pickle(
    folder, changed, [(name, value) for name, value in records.items() if name != 'data.pkl']
  )


def test_tensors_larger_than_their_storage_are_refused(tmp_path):
  state = {'weight': torch.arange(12.0).reshape(3, 4)}
  shape = b'K\x03K\x04\x86'  # the pickle of (3, 4)
  refused(
    altered(tmp_path, state, lambda p: p.replace(shape, b'K\x03K\x05\x86')), 'weight', '13 numbers'
  )
  refused(altered(tmp_path, state, lambda p: p.replace(shape, b'K\x03M\xff\xff\x86')), 'weight')
  state = {'weight': torch.ones(1).expand(3, 4)}
  refused(
    altered(tmp_path, state, lambda p: p.replace(shape, b'J\xff\xff\xff\x00J\xff\xff\xff\x00\x86')),
    'weight',
    'repeats',
  )
  refused(
    altered(tmp_path, state, lambda p: p.replace(shape, b'J\xff\xff\xff\xffK\x04\x86')), 'pickle'
  )  # -1


def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path):
  refused(saved(tmp_path, torch.ones(2)), 'state_dict')
  refused(saved(tmp_path, torch.ones(2), **LEGACY), 'state_dict')
  refused(saved(tmp_path, {'model': {'weight': torch.ones(2)}, 'step': 3}), "'model'")
  refused(saved(tmp_path, {'weight': torch.ones(2), 'epoch': 3}, **LEGACY), "'epoch'")
  refused(
    saved(tmp_path, {'weight': torch.ones(2, dtype=torch.complex64)}), 'torch.ComplexFloatStorage'
  )


@FORMATS
def test_cut_short_and_damaged_bin_files(tmp_path, options):
  path = saved(tmp_path, {'first': torch.ones(300), 'second': torch.ones(300)}, **options)
  content = path.read_bytes()
  for length in (0, 1, 5, 30, 200, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    refused(path, str(path))
  if options:
    path.write_bytes(content[:-1])
    refused(path, 'cut short', '300 numbers of 299')
  else:  # a bit of a tensor turned
    middle = content.index(np.ones(300, np.float32).tobytes()) + 600
    path.write_bytes(content[:middle] + b'\x01' + content[middle + 1 :])
    refused(path, 'CRC')


def test_other_archives_and_other_machines(tmp_path):
  path = tmp_path / 'pytorch_model.bin'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme.txt', 'hello')
  refused(path, 'data.pkl')
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', b'}.')
  refused(path, 'compressed')
  refused(of_pickle(tmp_path, b'}.', [('byteorder', b'big')]), 'big-endian')
  content = io.BytesIO()
  torch.save({'weight': torch.ones(3)}, content)
  with zipfile.ZipFile(content) as archive:
    refused(of_pickle(tmp_path, archive.read('archive/data.pkl')), 'data/0')
  path.write_bytes(b'#!/bin/sh\n')
  refused(path, 'torch.save')


def test_cut_short_and_damaged_safetensors(tmp_path):
  path = tmp_path / 'model.safetensors'
  content = safetensors.numpy.save(
    {'first': np.ones(30, np.float32), 'last': np.ones((5, 4), np.float16)}
  )
  header = 8 + int.from_bytes(content[:8], 'little')

  def told(changed, *words):
    path.write_bytes(changed)
    refused(tmp_path, str(path), *words)

  told(b'', 'cut short')
  told(content[:5], '5 bytes')
  told(content[:20], 'header', f'{header:,}')
  for cut in (1, 100, len(content) - header):
    told(
      content[:-cut], 'cut short: the tensor last ends at', f'{len(content):,}'
    )  # the library puts larger types first
  told(content + b'xy', '2 bytes after')
  told(content[:8] + b'x' * (header - 8) + content[header:], 'damaged header')
  told(content.replace(b'[30]', b'[31]'), 'damaged header')
  told(content.replace(b'"F32"', b'"F00"'), 'damaged header')
  told(b'{"this": "is something else", "of": "some length"}', 'no safetensors file')


def test_safetensors_of_a_type_that_is_not_read(tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(
    safetensors.torch.save({'weight': torch.ones(4).to(torch.float8_e4m3fn)})
  )
  refused(tmp_path, 'weight', 'F8_E4M3')


def test_indices_that_do_not_fit_their_shards(model, tmp_path):
  model.save_pretrained(tmp_path, max_shard_size='8kB')
  index = tmp_path / 'model.safetensors.index.json'
  right = json.loads(index.read_text())
  shards = sorted(set(right['weight_map'].values()))

  def told(index_content, *words):
    index.write_text(json.dumps(index_content))
    refused(tmp_path, *words)

  told(
    right | {'weight_map': right['weight_map'] | {'electra.extra': shards[1]}},
    'electra.extra',
    shards[1],
  )
  told(
    right | {'weight_map': right['weight_map'] | {'electra.extra': 'model-00009.safetensors'}},
    'model-00009.safetensors',
  )
  told(
    right | {'weight_map': right['weight_map'] | {'electra.extra': '../model.safetensors'}},
    '../model.safetensors',
  )
  told({'metadata': {}}, 'weight_map')
  told([1], 'weight_map')
  told({'weight_map': {'x': 3}}, 'weight_map')
  index.write_text('{"weight_map"')
  refused(tmp_path, 'weight_map')
  index.write_text(json.dumps(right))
  (tmp_path / shards[0]).unlink()
  refused(tmp_path, shards[0], 'fetch')


@pytest.mark.parametrize('name', tensors.NAMES)
def test_a_git_lfs_pointer_is_told_as_one(tmp_path, name):
  (tmp_path / name).write_text(
    'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 54\n'
  )
  refused(tmp_path, name, 'Git LFS', 'not fetched')


def test_nothing_there(tmp_path):
  refused(tmp_path, 'model.safetensors', 'pytorch_model.bin')
  refused(tmp_path / 'missing', 'is not there')
  (tmp_path / 'tf_model.h5').write_bytes(b'x')
  refused(tmp_path, 'tf_model.h5')
