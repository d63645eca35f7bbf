"""Fused attention kernels agree with XLA's attention, and are chosen only where they work."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from electra_jax.errors import UserError
from electra_jax.finetune import task_program
from electra_jax.model import kernels
from electra_jax.model.attention import (
  AttentionSettings,
  attention,
  visible_positions,
)
from electra_jax.model.config import EncoderConfig
from electra_jax.model.dropout import DropoutSettings
from electra_jax.model.encoder import Encoder, Inputs
from electra_jax.model.kernel_choice import Request, choose_attention

LENGTH, HEADS, HEAD_SIZE, REACH = 256, 2, 16, 20
RULES = (('batch', ('data', 'fsdp')), ('heads', 'tensor'), ('embed', 'fsdp'))


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(kernels, 'INTERPRET', True)


def rows(batch, length=LENGTH, heads=HEADS, dtype=jnp.float32):
  """Queries, keys, values, weights of the outputs in a loss, and segment ids.

  Rows have several documents and padding; the first is one document, and the last is empty.
  """
  rng = np.random.default_rng(0)
  arrays = [
    jnp.asarray(rng.standard_normal((batch, length, heads, HEAD_SIZE)), dtype) for _ in range(4)
  ]
  ends = np.arange(batch)[:, None] + np.array([[length // 5, length // 2, length // 4 * 3]])
  index = np.arange(length)[:, None]
  segment_ids = np.where(index[:, 0] < ends[:, 2:], 1 + (index >= ends[:, None, :2]).sum(-1), 0)
  segment_ids[0] = 1  # one document, no padding
  segment_ids[-1] = 0
  return *arrays, jnp.asarray(segment_ids, jnp.int32)


def outputs_and_gradients(function, query, key, value, weights, segment_ids, is_global):
  def loss(query, key, value):
    outputs = function(query, key, value, segment_ids, is_global)
    return (outputs * weights).sum(dtype=jnp.float32), outputs

  gradients, outputs = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)
  return outputs, *gradients


def by(kernel):
  return lambda *arrays: attention(*arrays, AttentionSettings(kernel, REACH))


def cudnn_without_a_gpu(query, key, value, segment_ids, is_global):
  query = query * HEAD_SIZE**-0.5
  return kernels.cudnn(
    query, key, value, visible_positions(segment_ids, is_global, REACH), implementation='xla'
  )


def close(ours, theirs, tolerance=1e-5):
  for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    mine, other = np.asarray(mine, np.float32), np.asarray(other, np.float32)
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize(
  'block, is_global', [(128, None), (128, True), (128, False), (512, None), (512, False)]
)
def test_splash_agrees_on_packed_and_padded_rows(interpreted, monkeypatch, block, is_global):
  """With several blocks, which have a separate kernel for the gradient of queries, and with one."""
  monkeypatch.setattr(kernels, 'LARGEST_BLOCK', block)
  given = *rows(3), is_global
  close(outputs_and_gradients(by('splash'), *given), outputs_and_gradients(by('xla'), *given))


def test_splash_agrees_in_bfloat16(interpreted):
  *arrays, segment_ids = rows(3, length=128, dtype=jnp.bfloat16)
  exact = outputs_and_gradients(
    by('xla'), *(x.astype(jnp.float32) for x in arrays), segment_ids, False
  )
  ours = outputs_and_gradients(by('splash'), *arrays, segment_ids, False)
  assert all(x.dtype == jnp.bfloat16 for x in ours)
  close(ours, exact, tolerance=0.02)


@pytest.mark.parametrize('change', ['segments', 'padding', 'reach'])
def test_the_comparison_detects_ignored_segments_padding_and_reach(interpreted, change):
  *arrays, segment_ids = rows(3, length=128)
  expected = outputs_and_gradients(by('xla'), *arrays, segment_ids, change != 'reach')
  ignored = {
    'segments': jnp.minimum(segment_ids, 1),
    'padding': jnp.maximum(segment_ids, 1),
    'reach': segment_ids,
  }[change]
  ours = outputs_and_gradients(by('splash'), *arrays, ignored, True)
  for mine, other in zip(ours, expected, strict=True):
    with pytest.raises(AssertionError):
      close(mine, other)


@pytest.mark.parametrize('is_global', [None, True, False])
def test_cudnn_with_a_dense_mask_agrees_with_xla(is_global):
  given = *rows(3), is_global
  close(
    outputs_and_gradients(cudnn_without_a_gpu, *given), outputs_and_gradients(by('xla'), *given)
  )


@pytest.mark.parametrize(
  'function, batch, heads, spec',
  [
    pytest.param(by('splash'), 8, 2, (('data', 'fsdp'), None, 'tensor'), id='splash'),
    pytest.param(by('splash'), 8, 1, (('data', 'fsdp'),), id='splash, one head'),
    pytest.param(cudnn_without_a_gpu, 8, 2, (('data', 'fsdp'), None, 'tensor'), id='cudnn'),
    pytest.param(cudnn_without_a_gpu, 3, 2, (None, None, 'tensor'), id='cudnn, three rows'),
  ],
)
def test_each_device_computes_only_its_rows_and_heads(interpreted, function, batch, heads, spec):
  """On a mesh of data 2, fsdp 2, tensor 2; an axis that does not divide is replicated."""
  given = *rows(batch, length=128, heads=heads), False
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    results = outputs_and_gradients(function, *given)
  assert results[0].sharding.is_equivalent_to(
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)), 4
  )
  close(results, outputs_and_gradients(by('xla'), *given))


def encoder(family, kernel, **fields):
  return Encoder(
    EncoderConfig(
      family=family,
      hidden_size=32,
      embedding_size=32,
      num_heads=2,
      intermediate_size=64,
      num_layers=3,
      global_every=2,
      local_window=2 * REACH,
      dropout=0.0,
      attention_dropout=0.0,
      attention=kernel,
      **fields,
    )
  )


@pytest.mark.parametrize('family, remat', [('electra', 'none'), ('modern', 'dots')])
def test_an_encoder_with_splash_agrees_with_xla(interpreted, family, remat):
  """Hidden states and every gradient, with global and local layers in `modern`."""
  embedded, *_, segment_ids = rows(3, length=128)
  embedded = embedded.reshape(3, 128, 32)
  inputs = Inputs(
    segment_ids, segment_ids, jnp.broadcast_to(jnp.arange(128), (3, 128)), segment_ids
  )
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(
    lambda: nn.unbox(encoder(family, 'xla').init(jax.random.key(0), embedded, inputs)['params'])
  )
  params = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes)

  def results(kernel):
    def loss(params):
      hidden = encoder(family, kernel, remat=remat).apply({'params': params}, embedded, inputs)
      return (hidden * jnp.sin(jnp.arange(32.0))).sum(), hidden

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  (ours, hidden), (theirs, expected) = results('splash'), results('xla')
  close(hidden, expected)
  for (path, mine), other in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
  ):
    if path[-2].key == 'key' and path[-1].key == 'bias':  # softmax cancels it: only rounding
      continue
    np.testing.assert_allclose(
      mine, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=jax.tree_util.keystr(path)
    )


#### Lowering and compiling for devices that are not present ####


@pytest.mark.parametrize('family, held', [('electra', 0), ('modern', 1)])
def test_cudnn_lowers_for_a_gpu(monkeypatch, family, held):
  """The mask is a bias, kept for the backward pass once, or once per layer where layers differ."""
  # JAX reads the version of cuDNN, which is not installed.
  monkeypatch.setattr('jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', lambda: 91000)
  model = encoder(family, 'cudnn', dtype=jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((4, 128), jnp.int32)
  embedded = jax.ShapeDtypeStruct((4, 128, 32), jnp.float32)

  def inputs(ids):
    return Inputs(ids, ids, ids, ids)

  params = jax.eval_shape(
    lambda x, ids: nn.unbox(model.init(jax.random.key(0), x, inputs(ids)))['params'], embedded, ids
  )

  def loss(params, x, ids):
    return model.apply({'params': params}, x, inputs(ids)).astype(jnp.float32).sum()

  text = (
    jax.jit(jax.grad(loss))
    .trace(params, embedded, ids)
    .lower(lowering_platforms=('cuda',))
    .as_text()
  )
  assert re.findall(r'__cudnn\$(\w+)', text) == [
    'fmhaScaleBiasSoftmax',
    'fmhaScaleBiasSoftmaxBackward',
  ]
  assert 'tensor<4x1x128x128xbf16>' in text
  assert bool(re.search(r'tensor<3x4x1x128x128x', text)) == held
  assert not re.search(r'tensor<(\d+x)?4x2x128x128x', text), 'the scores of all pairs of positions'


def in_a_child(code, **environment):
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | environment,
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


FOR_A_TPU = """
import json, jax, jax.numpy as jnp, numpy as np, flax.linen as nn
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from electra_jax.model.attention import AttentionSettings, attention
devices = np.array(topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices)

def compiled(kernel, shape, mesh_shape, dtype, is_global):
  used = devices[:np.prod(mesh_shape)].reshape(mesh_shape)
  mesh = Mesh(used, ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  def array(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
  x = array(shape, dtype, ('data', 'fsdp'), None, 'tensor')
  settings = AttentionSettings(kernel, reach=64)
  loss = lambda *arrays: attention(*arrays, settings).astype(jnp.float32).sum()
  segment_ids = array(shape[:2], jnp.int32, ('data', 'fsdp'))
  given = x, x, x, segment_ids, array((), jnp.bool_) if is_global else None
  rules = (('batch', ('data', 'fsdp')), ('heads', 'tensor'))
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*given).compile()
  text = program.as_text()
  kernels = text.count('"tpu_custom_call"')
  return program.memory_analysis().temp_size_in_bytes, kernels, 'all-' in text

print(json.dumps([
    compiled('xla', (64, 512, 12, 64), (1, 1, 1), jnp.bfloat16, False),
    compiled('splash', (64, 512, 12, 64), (1, 1, 1), jnp.bfloat16, False),
    compiled('splash', (8, 1024, 4, 64), (1, 2, 2), jnp.float32, True)]))
"""


@pytest.mark.tpu
@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs libtpu')
def test_splash_compiles_for_a_tpu_and_takes_less_memory():
  xla, splash, local = in_a_child(
    FOR_A_TPU,
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    TPU_ACCELERATOR_TYPE='v5litepod-8',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_WORKER_ID='0',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  scores = 64 * 12 * 512 * 512 * 4
  assert xla[0] > scores > splash[0]
  # Kernels: one forward and one backward; with several blocks two backward; and all of them for
  # global and for local layers.
  assert (xla[1], splash[1], local[1]) == (0, 2, 6)
  assert not splash[2] and not local[2], 'kernels do not communicate'


ON_A_GPU = """
import json, jax, jax.numpy as jnp, numpy as np
from electra_jax.model.attention import AttentionSettings, attention
rng = np.random.default_rng(0)
x = [jnp.asarray(rng.standard_normal((4, 256, 4, 64)), jnp.bfloat16) for _ in range(4)]
ids = [[1] * 256, [1] * 60 + [2] * 100 + [0] * 96, [1] * 200 + [0] * 56, [0] * 256]
ids = jnp.asarray(ids, jnp.int32)
def results(kernel, is_global):
  settings = AttentionSettings(kernel, reach=20)
  function = lambda *arrays: attention(*arrays, ids, is_global, settings)
  def run(*arrays):
    outputs, pullback = jax.vjp(function, *arrays)
    return outputs, *pullback(x[3])
  return [np.asarray(y, np.float32) for y in jax.jit(run)(*x[:3])]
differences = []
for is_global in (None, True, False):
  for ours, theirs in zip(results('cudnn', is_global), results('xla', is_global)):
    differences.append(float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
print(json.dumps(differences))
"""


@pytest.mark.skipif(not shutil.which('nvidia-smi'), reason='needs an NVIDIA GPU')
def test_cudnn_agrees_on_a_gpu():
  assert max(in_a_child(ON_A_GPU, JAX_PLATFORMS='cuda')) < 0.03


#### Choice of the kernel ####


def choose(
  wanted='auto',
  platform='tpu',
  length=512,
  head_size=64,
  attention_dropout=0.0,
  dtype=jnp.bfloat16,
  **more,
):
  request = Request(platform, length, head_size, attention_dropout, dtype, **more)
  return choose_attention(wanted, request)


@pytest.mark.parametrize(
  'given, kernel, why',
  [
    ({}, 'pallas', 'it never stores the scores'),
    ({'dtype': jnp.float32}, 'pallas', 'it never stores the scores'),
    ({'length': 1024}, 'pallas', 'it never stores the scores'),
    ({'length': 2048}, 'splash', 'attention_dropout is 0'),
    ({'head_size': 160}, 'splash', 'attention_dropout is 0'),
    ({'attention_dropout': 0.1}, 'pallas', 'it has attention dropout'),
    ({'attention_dropout': 0.1, 'length': 128}, 'pallas', 'it has attention dropout'),
    ({'length': 328}, 'xla', 'rows of 328 are short; pallas is used from 512 on'),
    (
      {'attention_dropout': 0.1, 'dropout': DropoutSettings('hash')},
      'xla',
      "pallas does not support dropout_generator 'hash' for attention dropout; "
      "set dropout_generator to 'counter' to use it",
    ),
    (
      {'attention_dropout': 0.1, 'dropout': DropoutSettings(scale='dtype')},
      'xla',
      "pallas does not support dropout_scale 'dtype' for attention dropout; "
      "set dropout_scale to 'float32' to use it",
    ),
    (
      {'attention_dropout': 0.1, 'length': 64},
      'xla',
      'rows of 64 are short; pallas is used from 128 on',
    ),
    (
      {'attention_dropout': 0.1, 'length': 2048},
      'xla',
      'pallas takes rows of up to 1024 positions, not 2048; '
      'set a shorter sequence_length to use it',
    ),
    (
      {'attention_dropout': 0.1, 'head_size': 160},
      'xla',
      'pallas takes head sizes up to 128 that are multiples of 8, not 160; '
      'set hidden_size or num_heads to use it',
    ),
    (
      {'length': 600},
      'xla',
      'pallas takes multiples of 128 positions, not 600; '
      'set sequence_length to a multiple of 128 to use it',
    ),
    ({'wanted': 'splash', 'length': 128}, 'splash', 'as configured'),
    ({'wanted': 'xla'}, 'xla', 'as configured'),
    ({'platform': 'cpu'}, 'xla', 'the only one on CPU'),
    ({'platform': 'gpu'}, 'cudnn', 'attention_dropout is 0; segments are a dense mask'),
    (
      {'platform': 'gpu', 'dtype': jnp.float16, 'compute_capability': '9.0'},
      'cudnn',
      'attention_dropout is 0; segments are a dense mask',
    ),
    (
      {'platform': 'gpu', 'attention_dropout': 0.1},
      'xla',
      'cudnn has no attention dropout; set attention_dropout to 0 to use it',
    ),
    (
      {'platform': 'gpu', 'dtype': jnp.float32},
      'xla',
      'cudnn takes bfloat16 and float16, not float32; set dtype to bfloat16 to use it',
    ),
    (
      {'platform': 'gpu', 'head_size': 132},
      'xla',
      'cudnn takes head sizes up to 128 that are multiples of 8, not 132; '
      'set hidden_size or num_heads to use it',
    ),
    (
      {'platform': 'gpu', 'length': 77},
      'xla',
      'cudnn takes even lengths, not 77; set sequence_length to an even number to use it',
    ),
    (
      {'platform': 'gpu', 'compute_capability': '7.5'},
      'xla',
      'cudnn requires a GPU of compute capability 8.0 or more, not 7.5',
    ),
    (
      {'platform': 'gpu', 'compute_capability': 'gfx90a'},
      'xla',
      'cudnn requires a GPU of compute capability 8.0 or more, not gfx90a',
    ),
  ],
)
def test_auto_depends_on_platform_dropout_length_and_dtype_and_gives_the_reason(given, kernel, why):
  assert choose(**given) == (kernel, why)


@pytest.mark.parametrize(
  'given, sentence',
  [
    (
      {'wanted': 'splash', 'attention_dropout': 0.1},
      "attention 'splash' has no attention dropout; "
      'set attention_dropout to 0 or attention to auto.',
    ),
    (
      {'wanted': 'splash', 'platform': 'cpu'},
      "attention 'splash' runs on TPU, not on CPU; set attention to auto.",
    ),
    (
      {'wanted': 'splash', 'length': 100},
      "attention 'splash' takes multiples of 128 positions, not 100; "
      'set sequence_length to a multiple of 128 or attention to auto.',
    ),
    ({'wanted': 'cudnn'}, "attention 'cudnn' runs on GPU, not on TPU; set attention to auto."),
    (
      {'wanted': 'cudnn', 'platform': 'gpu', 'dtype': jnp.float32},
      "attention 'cudnn' takes bfloat16 and float16, not float32; "
      'set dtype to bfloat16 or attention to auto.',
    ),
    (
      {'wanted': 'cudnn', 'platform': 'gpu', 'head_size': 100},
      "attention 'cudnn' takes head sizes up to 128 that are multiples of 8, not 100; "
      'set hidden_size or num_heads or attention to auto.',
    ),
    (
      {'wanted': 'pallas', 'platform': 'cpu'},
      "attention 'pallas' runs on TPU, not on CPU; set attention to auto.",
    ),
    (
      {'wanted': 'pallas', 'attention_dropout': 0.1, 'dropout': DropoutSettings('threefry')},
      "attention 'pallas' does not support dropout_generator 'threefry' for attention dropout; "
      "set dropout_generator to 'counter' or attention to auto.",
    ),
    (
      {'wanted': 'pallas', 'length': 60},
      "attention 'pallas' takes multiples of 8 positions, not 60; "
      'set sequence_length to a multiple of 8 or attention to auto.',
    ),
    ({'wanted': 'flash'}, "attention is 'flash'; expected auto, xla, pallas, splash or cudnn."),
  ],
)
def test_an_unavailable_kernel_is_refused_with_one_sentence(given, sentence):
  with pytest.raises(ValueError) as error:
    choose(**given)
  assert str(error.value) == sentence


@pytest.mark.parametrize('kernel', ['splash', 'cudnn'])
def test_attention_dropout_is_never_ignored(kernel):
  with pytest.raises(ValueError, match='no attention dropout'):
    EncoderConfig(attention=kernel, attention_dropout=0.1)
  with pytest.raises(ValueError, match='no attention dropout'):
    AttentionSettings(kernel, reach=1, dropout_rate=0.1)


def test_pallas_refuses_other_bits_than_those_of_its_counters():
  with pytest.raises(ValueError, match="does not support dropout_generator 'hash'"):
    EncoderConfig(attention='pallas', dropout_generator='hash')
  with pytest.raises(ValueError, match="does not support dropout_scale 'dtype'"):
    AttentionSettings('pallas', 1, dropout_rate=0.1, dropout=DropoutSettings(scale='dtype'))


def test_splash_refuses_a_length_that_is_not_a_multiple_of_128():
  *arrays, _, segment_ids = rows(1, length=100)
  with pytest.raises(ValueError, match='100 positions, .* takes multiples of 128'):
    by('splash')(*arrays, segment_ids, None)


@pytest.mark.parametrize('attention, lengths', [('auto', (16, 100)), ('pallas', (16, 32, 384))])
def test_a_kernel_of_fine_tuning_supports_all_lengths(attention, lengths):
  task_program._check_lengths(attention, lengths)


@pytest.mark.parametrize('attention, lengths', [('splash', (16, 128)), ('pallas', (16, 32, 100))])
def test_a_kernel_of_fine_tuning_that_does_not_is_refused(attention, lengths):
  with pytest.raises(UserError, match=f'{attention}.*takes multiples of .*bucketed=False'):
    task_program._check_lengths(attention, lengths)
