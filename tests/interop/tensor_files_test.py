"""Tensor files are read in every format, without PyTorch and without running code of pickles."""

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
from electra_jax.interop import tensor_files

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


def assert_same(found, state):
  """Checks that arrays equal a state_dict bit for bit, floating-point tensors in float32."""
  assert found.keys() == state.keys()
  for name, tensor in state.items():
    expected = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    assert found[name].dtype == expected.dtype, name
    assert (
      found[name].shape == expected.shape
      and found[name].tobytes() == np.asarray(expected, order='C').tobytes()
    ), name


def refusal(path, *words):
  """Checks that reading raises UserError with all words, in one line; returns the message."""
  with pytest.raises(UserError) as raised:
    tensor_files.read_tensors(str(path))
  message = str(raised.value)
  for word in words:
    assert word in message, message
  assert '\n' not in message
  return message


def save(folder, state, name='pytorch_model.bin', **options):
  torch.save(state, folder / name, **options)
  return folder / name


def file_of_pickle(folder, content, records=()):
  """Writes an archive like that of torch.save around a pickle."""
  path = folder / 'pytorch_model.bin'
  with zipfile.ZipFile(path, 'w') as archive:
    for name, value in [('data.pkl', content), *records]:
      archive.writestr(f'archive/{name}', value)
  return path


#### Reading ####


def test_folders_of_transformers_are_read_whole_and_sharded(model, tmp_path):
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
    assert_same(tensor_files.read_tensors(str(tmp_path / place)), model.state_dict())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@FORMATS
def test_bin_files_are_read_in_every_precision(model, tmp_path, dtype, options):
  state = collections.OrderedDict(
    (name, tensor.to(dtype)) for name, tensor in model.state_dict().items()
  )
  state['embeddings.position_ids'] = torch.arange(20).expand((1, -1))
  state._metadata = model.state_dict()._metadata
  save(tmp_path, state, **options)
  assert_same(tensor_files.read_tensors(str(tmp_path)), state)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_are_read_in_every_precision(tmp_path, dtype):
  state = {
    'weight': torch.randn(3, 5).to(dtype),
    'scalar': torch.tensor(2.5, dtype=dtype),
    'ids': torch.arange(6),
    'on': torch.tensor([True, False]),
  }
  (tmp_path / 'model.safetensors').write_bytes(safetensors.torch.save(state))
  assert_same(tensor_files.read_tensors(str(tmp_path)), state)


@FORMATS
def test_bin_tensors_may_be_views_of_shared_storages(tmp_path, options):
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
  save(tmp_path, state, **options)
  found = tensor_files.read_tensors(str(tmp_path))
  assert_same(found, state)
  found['tied'][0, 0] = 7  # arrays do not share memory
  assert found['table'][0, 0] != 7


def test_bin_shards_are_read_and_better_formats_are_preferred(model, tmp_path):
  state = model.state_dict()
  halves = {
    'pytorch_model-00001-of-00002.bin': list(state)[::2],
    'pytorch_model-00002-of-00002.bin': list(state)[1::2],
  }
  for name, part in halves.items():
    save(tmp_path, {key: state[key] for key in part}, name)
  index = {
    'metadata': {},
    'weight_map': {key: name for name, part in halves.items() for key in part},
  }
  (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
  assert_same(tensor_files.read_tensors(str(tmp_path)), state)

  # .bin is preferred to an index of .bin, safetensors to both.
  for i, name in enumerate(reversed(tensor_files.NAMES[::2])):
    better = {'x': torch.full((2,), float(i))}
    if name.endswith('.bin'):
      save(tmp_path, better)
    else:
      (tmp_path / name).write_bytes(safetensors.torch.save(better))
    assert_same(tensor_files.read_tensors(str(tmp_path)), better)


def test_remote_folders_are_read(model, tmp_path):
  import fsspec

  model.save_pretrained(tmp_path, max_shard_size='8kB')
  memory = fsspec.filesystem('memory')
  memory.put(str(tmp_path) + '/', '/tensors_test/', recursive=True)
  assert_same(tensor_files.read_tensors('memory://tensors_test'), model.state_dict())


def test_reading_and_writing_do_not_require_torch(model, tmp_path):
  model.save_pretrained(tmp_path / 'safe')
  (tmp_path / 'bin').mkdir()
  save(tmp_path / 'bin', {name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
  code = (
    'import sys\nsys.modules["torch"] = sys.modules["transformers"] = None\n'
    'from electra_jax.interop import tensor_files\n'
    f'a = tensor_files.read_tensors({str(tmp_path / "safe")!r})\n'
    f'b = tensor_files.read_tensors({str(tmp_path / "bin")!r})\n'
    'assert len(tensor_files.to_safetensors(a)) > 1000 and a.keys() == b.keys()'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr


#### Writing ####


def test_written_bytes_do_not_depend_on_order_and_torch_reads_them(model):
  state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
  state['scalar'], state['turned'] = np.float32(3), np.arange(6, dtype=np.int64).reshape(2, 3).T
  content = tensor_files.to_safetensors(state)
  assert content == tensor_files.to_safetensors(dict(reversed(state.items())))
  assert_same(
    {name: tensor.numpy() for name, tensor in safetensors.torch.load(content).items()},
    {name: torch.from_numpy(np.array(value)) for name, value in state.items()},
  )
  header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
  assert header['__metadata__'] == {'format': 'pt'}


#### Refused files ####


class Run:
  """Is pickled as a call of a function."""

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
def test_pickles_do_not_run_code(tmp_path, function, options):
  mark = tmp_path / 'ran'
  argument = f'open({str(mark)!r}, "w")' if function is eval else f'touch {mark}'
  path = save(tmp_path, {'weight': torch.ones(2), 'trap': Run(function, argument)}, **options)
  refusal(path, str(path), '.', 'save the model again with safetensors')
  assert not mark.exists()


def test_message_names_the_refused_global(tmp_path):
  assert 'posix.system' in refusal(
    file_of_pickle(tmp_path, pickle.dumps({'weight': Run(os.system, 'true')}, protocol=2))
  )
  assert 'torch.nn.modules.linear.Linear' in refusal(save(tmp_path, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
  'content',
  [
    # Each sets an attribute of something that stands in for a class or function.
    b'ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\0\0\0__defaults__Nsb.',
    b'ccollections\nOrderedDict\n}X\x05\0\0\0itemsNsb.',
    b'ctorch\nFloatStorage\n}X\x05\0\0\0dtypeNsb.',
  ],
)
def test_pickles_do_not_change_the_reader(tmp_path, content):
  assert 'attributes' in refusal(file_of_pickle(tmp_path, content))


@pytest.mark.parametrize(
  'content, expected',
  [
    (b'Nr\xff\xff\xff\x7f2.', 'DUP'),  # LONG_BINPUT: an index of the memo of 2**31
    # A key whose hash takes 2**20 steps, or with more levels years: tuples of the one before twice.
    (b'})' + b''.join(b'q%ch%c\x86' % (i, i) for i in range(20)) + b'Ns.', 'no name'),
    (b'\x96' + b'\xff' * 7 + b'\x7f' + b'.', 'expected'),  # BYTEARRAY8 of 2**63 bytes
    (b'(' * 100_000 + b'.', 'state_dict'),
  ],
  ids=['memo', 'hash', 'bytes', 'marks'],
)
def test_small_pickles_that_ask_for_very_much_are_refused_at_once(tmp_path, content, expected):
  assert expected in refusal(file_of_pickle(tmp_path, content))


def test_records_and_tensors_may_not_multiply_the_file(tmp_path):
  path = save(tmp_path, {f'w{i}': tensor for i, tensor in enumerate([torch.ones(1 << 19)] * 40)})
  assert 'share their numbers too often' in refusal(path)


def altered(folder, state, change):
  """Saves a state_dict and changes its pickle."""
  content = io.BytesIO()
  torch.save(state, content)
  with zipfile.ZipFile(content) as archive:
    records = {info.filename.partition('/')[2]: archive.read(info) for info in archive.infolist()}
  changed = change(records['data.pkl'])
  assert changed != records['data.pkl']
  return file_of_pickle(
    folder, changed, [(name, value) for name, value in records.items() if name != 'data.pkl']
  )


def test_tensors_larger_than_their_storage_are_refused(tmp_path):
  state = {'weight': torch.arange(12.0).reshape(3, 4)}
  shape = b'K\x03K\x04\x86'  # the pickle of (3, 4)
  refusal(
    altered(tmp_path, state, lambda p: p.replace(shape, b'K\x03K\x05\x86')), 'weight', '13 numbers'
  )
  refusal(altered(tmp_path, state, lambda p: p.replace(shape, b'K\x03M\xff\xff\x86')), 'weight')
  state = {'weight': torch.ones(1).expand(3, 4)}
  refusal(
    altered(tmp_path, state, lambda p: p.replace(shape, b'J\xff\xff\xff\x00J\xff\xff\xff\x00\x86')),
    'weight',
    'repeats',
  )
  refusal(
    altered(tmp_path, state, lambda p: p.replace(shape, b'J\xff\xff\xff\xffK\x04\x86')), 'pickle'
  )  # -1


def test_other_objects_than_dictionaries_of_tensors_are_refused(tmp_path):
  refusal(save(tmp_path, torch.ones(2)), 'state_dict')
  refusal(save(tmp_path, torch.ones(2), **LEGACY), 'state_dict')
  refusal(save(tmp_path, {'model': {'weight': torch.ones(2)}, 'step': 3}), "'model'")
  refusal(save(tmp_path, {'weight': torch.ones(2), 'epoch': 3}, **LEGACY), "'epoch'")
  refusal(
    save(tmp_path, {'weight': torch.ones(2, dtype=torch.complex64)}), 'torch.ComplexFloatStorage'
  )


@FORMATS
def test_damaged_bin_files_are_refused(tmp_path, options):
  path = save(tmp_path, {'first': torch.ones(300), 'second': torch.ones(300)}, **options)
  content = path.read_bytes()
  for length in (0, 1, 5, 30, 200, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:length])
    refusal(path, str(path))
  if options:
    path.write_bytes(content[:-1])
    refusal(path, 'cut short', '300 numbers of 299')
  else:  # one byte of a tensor is changed
    middle = content.index(np.ones(300, np.float32).tobytes()) + 600
    path.write_bytes(content[:middle] + b'\x01' + content[middle + 1 :])
    refusal(path, 'CRC')


def test_other_archives_and_big_endian_files_are_refused(tmp_path):
  path = tmp_path / 'pytorch_model.bin'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme.txt', 'hello')
  refusal(path, 'data.pkl')
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', b'}.')
  refusal(path, 'compressed')
  refusal(file_of_pickle(tmp_path, b'}.', [('byteorder', b'big')]), 'big-endian')
  content = io.BytesIO()
  torch.save({'weight': torch.ones(3)}, content)
  with zipfile.ZipFile(content) as archive:
    refusal(file_of_pickle(tmp_path, archive.read('archive/data.pkl')), 'data/0')
  path.write_bytes(b'#!/bin/sh\n')
  refusal(path, 'torch.save')


def test_damaged_safetensors_are_refused(tmp_path):
  path = tmp_path / 'model.safetensors'
  content = safetensors.numpy.save(
    {'first': np.ones(30, np.float32), 'last': np.ones((5, 4), np.float16)}
  )
  header = 8 + int.from_bytes(content[:8], 'little')

  for damaged in (
    b'',
    content[:5],
    content[:20],
    content[:header],
    content[:-100],
    content[:-1],
    content + b'xy',
    content[:8] + b'x' * (header - 8) + content[header:],
    content.replace(b'[30]', b'[31]'),
    content.replace(b'"F32"', b'"F00"'),
    b'{"this": "is something else", "of": "some length"}',
  ):
    path.write_bytes(damaged)
    refusal(tmp_path, str(path), f'damaged or cut short: it has {len(damaged)} bytes')


def test_unsupported_types_of_safetensors_are_refused(tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(
    safetensors.torch.save({'weight': torch.ones(4).to(torch.float8_e4m3fn)})
  )
  refusal(tmp_path, 'weight', 'F8_E4M3')


def test_shard_indices_that_do_not_fit_are_refused(model, tmp_path):
  model.save_pretrained(tmp_path, max_shard_size='8kB')
  index = tmp_path / 'model.safetensors.index.json'
  right = json.loads(index.read_text())
  shards = sorted(set(right['weight_map'].values()))

  def refused(index_content, *words):
    index.write_text(json.dumps(index_content))
    refusal(tmp_path, *words)

  refused(
    right | {'weight_map': right['weight_map'] | {'electra.extra': shards[1]}},
    'electra.extra',
    shards[1],
  )
  refused(
    right | {'weight_map': right['weight_map'] | {'electra.extra': 'model-00009.safetensors'}},
    'model-00009.safetensors',
  )
  refused(
    right | {'weight_map': right['weight_map'] | {'electra.extra': '../model.safetensors'}},
    '../model.safetensors',
  )
  refused({'metadata': {}}, 'weight_map')
  refused([1], 'weight_map')
  refused({'weight_map': {'x': 3}}, 'weight_map')
  index.write_text('{"weight_map"')
  refusal(tmp_path, 'weight_map')
  index.write_text(json.dumps(right))
  (tmp_path / shards[0]).unlink()
  refusal(tmp_path, shards[0], 'download')


@pytest.mark.parametrize('name', tensor_files.NAMES)
def test_message_names_git_lfs_pointers(tmp_path, name):
  (tmp_path / name).write_text(
    'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 54\n'
  )
  refusal(tmp_path, name, 'Git LFS pointer', 'git lfs pull')


def test_missing_weights_are_reported(tmp_path):
  refusal(tmp_path, 'model.safetensors', 'pytorch_model.bin')
  refusal(tmp_path / 'missing', 'does not exist')
  (tmp_path / 'tf_model.h5').write_bytes(b'x')
  refusal(tmp_path, 'tf_model.h5')
