"""Heads for fine-tuning compute what their definitions state, on the pretrained encoder."""

import dataclasses
import functools
import math

import conftest
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.finetune import losses
from electra_jax.model import heads
from electra_jax.model.encoder import packed_inputs
from electra_jax.training import optimizers, partitioning

LENGTH, LABELS, BEAM = 12, 4, 5
LENGTHS = (
  12,
  9,
  5,
  12,
  7,
  8,
  10,
  6,
)  # one shape for all tests of whole models: compiling is what they spend their time on
BATCH = len(LENGTHS)
# Multi-label classification has the head of classification.
KINDS = [kind for kind in heads.KINDS if kind != 'multilabel']
READERS = pytest.mark.parametrize('kind', KINDS)


def rows(length=LENGTH, lengths=LENGTHS, seed=0):
  """Token ids of [CLS] question [SEP] context [SEP] and padding."""
  rng = np.random.default_rng(seed)
  ids = np.full((len(lengths), length), conftest.PAD, np.int32)
  for row, size in zip(ids, lengths, strict=True):
    row[:size] = rng.integers(conftest.MASK + 1, 60, size)
    row[0], row[2], row[size - 1] = conftest.CLS, conftest.SEP, conftest.SEP
  return ids


def inputs_of(ids):
  return packed_inputs(jnp.asarray(ids), conftest.PAD, conftest.CLS, conftest.SEP)


def targets_of(ids):
  """Targets of all heads; answers are in the context or at [CLS]."""
  real, place = ids != conftest.PAD, np.arange(ids.shape[1])
  last = real.sum(1) - 1
  n = len(ids)
  return {
    'label': np.arange(n, dtype=np.int32) % LABELS,
    'value': np.linspace(0, 1, n).astype(np.float32),
    'tags': np.where(real & (place % 2 == 1), place % LABELS, -1).astype(np.int32),
    'start': np.where(np.arange(n) % 2, 0, 3).astype(np.int32),
    'end': np.where(np.arange(n) % 2, 0, last - 1).astype(np.int32),
    'impossible': (np.arange(n) % 2).astype(np.float32),
    'allowed': ((place[None] == 0) | ((place[None] > 2) & (place[None] < last[:, None]))).astype(
      np.int32
    ),
    'weights': np.ones(n, np.float32),
  }


def model_of(
  kind, family='electra', beam=BEAM, dropout=0.0, style='published', head_dropout=None, **fields
):
  config = conftest.tiny_electra(family, dropout=dropout, **fields).discriminator_config
  return heads.FineTuned(config, kind, labels=LABELS, beam=beam, style=style, dropout=head_dropout)


@functools.cache
def drawn(kind, family='electra'):
  """Parameters drawn by NumPy, which needs no compilation."""
  rng = np.random.default_rng(1)

  def draw(path, shape):
    noise = rng.standard_normal(shape.shape).astype(np.float32)
    name = path[-1].key
    return (
      1 + 0.2 * noise
      if name == 'scale'
      else 0.2 * noise
      if name == 'bias'
      else noise * shape.shape[-1 if noise.ndim < 2 else -2] ** -0.5
    )

  shapes = nn.unbox(jax.eval_shape(lambda: heads.init_finetuned(model_of(kind, family), 0)))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def named(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@functools.cache
def compiled(kind, family='electra', dtype=jnp.float32):
  """(params, ids, targets, keys) -> outputs of training, with dropout, and of prediction."""
  model = model_of(kind, family, dtype=dtype)

  def both(params, ids, targets, keys):
    inputs, variables = inputs_of(ids), {'params': params}
    return (
      model.apply(variables, inputs, targets, keys, method='training'),
      model.apply(variables, inputs, targets, method='predict'),
    )

  return jax.jit(both)


def row_keys():
  return jax.random.split(jax.random.key(1), BATCH)


def run(kind, ids, keys, dtype=jnp.float32):
  return jax.tree.map(
    np.asarray, compiled(kind, dtype=dtype)(drawn(kind), ids, targets_of(ids), keys)
  )


@pytest.mark.parametrize('kind, family', [('span', 'electra'), ('classification', 'modern')])
def test_every_parameter_is_trained_and_the_loss_falls(kind, family):
  model, params, ids = model_of(kind, family, dropout=0.1), drawn(kind, family), rows()
  targets = targets_of(ids)

  @jax.jit
  def step(params, keys):
    def mean(params):
      outputs = model.apply({'params': params}, inputs_of(ids), targets, keys, method='training')
      total, count, sums = losses.head_loss(kind, outputs, targets)
      return total / count, sums

    (value, sums), grads = jax.value_and_grad(mean, has_aux=True)(params)
    rate = 0.1 / jnp.maximum(1, jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads))))
    return value, sums, grads, jax.tree.map(lambda p, g: p - rate * g, params, grads)

  keys = jax.random.split(jax.random.key(0), len(ids))
  first, sums, grads, params = step(params, keys)
  dead = {name for name, grad in named(grads).items() if not np.abs(grad).max() > 0}
  # The bias of keys shifts all scores of a query equally, and those of starts and ends shift all
  # positions: softmax cancels them.
  assert dead <= {'discriminator/layers/key/bias', 'head/start/bias', 'head/end/bias'}
  for _ in range(25):
    last, sums, _, params = step(params, keys)
  assert np.isfinite(first) and last < 0.8 * first
  assert all(np.isfinite(value) for value in sums.values())


def test_parameters_and_hidden_states_equal_those_of_pretraining():
  ids, keys = rows(), jax.random.split(jax.random.key(3), len(LENGTHS))
  electra = conftest.tiny_electra(dropout=0.1)
  pretrained = conftest.random_params(electra)
  theirs = jax.jit(
    lambda params: electra.apply({'params': params}, inputs_of(ids), keys, method='hidden_states')
  )(pretrained)
  params = drawn('tagging') | {name: pretrained[name] for name in ('embeddings', 'discriminator')}
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, drawn('tagging'))
  model = model_of('tagging', dropout=0.1)
  ours = jax.jit(
    lambda params: model.apply({'params': params}, inputs_of(ids), keys, method='hidden_states')
  )(params)
  np.testing.assert_array_equal(ours, theirs)


@READERS
def test_heads_are_initialized_as_in_tensorflow(kind):
  leaves = named(nn.unbox(jax.jit(lambda: heads.init_finetuned(model_of(kind), 1)['head'])()))
  shapes = {
    'classification': {'dense': (32, LABELS)},
    'regression': {'dense': (32, 1)},
    'tagging': {'dense': (32, LABELS)},
    'span': {
      'start': (32, 1),
      'end_hidden': (64, 512),
      'end': (512, 1),
      'impossible_hidden': (64, 512),
      'impossible': (512, 1),
    },
  }[kind]
  kernels = {
    name.removesuffix('/kernel'): leaf.shape
    for name, leaf in leaves.items()
    if name.endswith('kernel')
  }
  assert kernels == shapes
  assert len(leaves) == 2 * len(shapes)
  for name, leaf in leaves.items():
    assert leaf.dtype == np.float32
    if name.endswith('bias'):
      assert not leaf.any()
    else:  # uniform up to sqrt(6 / (in + out)), with a standard deviation of 1 / sqrt(3) of that
      limit = (6 / sum(leaf.shape)) ** 0.5
      assert 0.75 * limit < np.abs(leaf).max() <= limit
      assert 0.4 < leaf.std() / limit < 0.75


def draw(seed=0, batch=BATCH, length=LENGTH, size=8):
  """Hidden states, allowed positions ([CLS] and some others), and starts."""
  rng = np.random.default_rng(seed)
  allowed = (rng.random((batch, length)) < 0.6).astype(np.int32)
  allowed[:, 0] = 1
  start = np.array([rng.choice(np.flatnonzero(row)) for row in allowed], np.int32)
  return rng.standard_normal((batch, length, size)).astype(np.float32), allowed, start


def span_head(beam=BEAM, size=8, dtype=jnp.float32):
  head = heads.SpanHead(
    dataclasses.replace(model_of('span').config, hidden_size=size, num_heads=2, dtype=dtype), beam
  )
  hidden, allowed, start = draw(size=size)
  shapes = nn.unbox(
    jax.eval_shape(lambda: head.init(jax.random.key(0), hidden, allowed, start, method='training'))
  )['params']
  rng = np.random.default_rng(5)

  def draw_like(s):
    return (rng.standard_normal(s.shape) * (s.shape[0] if len(s.shape) > 1 else 4) ** -0.5).astype(
      np.float32
    )

  return head, jax.tree.map(draw_like, shapes)


def gelu(x):
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / 2**0.5))


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def span_in_numpy(params, hidden, allowed):
  """The head in float64, with the concatenated states of each pair of a start and a token.

  Returns logits of starts, of ends [batch, start, end], and of no answer.
  """
  p = jax.tree.map(lambda x: x.astype(np.float64), params)

  def dense(x, name):
    return x @ p[name]['kernel'] + p[name]['bias']

  hidden, length = hidden.astype(np.float64), hidden.shape[1]
  starts = np.where(allowed, dense(hidden, 'start')[..., 0], heads.LOWEST)
  pairs = np.concatenate(
    [np.repeat(hidden[:, :, None], length, 2), np.repeat(hidden[:, None], length, 1)], -1
  )
  ends = np.where(
    allowed[:, None], dense(gelu(dense(pairs, 'end_hidden')), 'end')[..., 0], heads.LOWEST
  )
  expected = (np.exp(log_softmax(starts))[..., None] * hidden).sum(1)
  both = np.concatenate([hidden[:, 0], expected], -1)
  return starts, ends, dense(gelu(dense(both, 'impossible_hidden')), 'impossible')[..., 0]


def test_the_span_head_equals_the_layer_over_pairs_of_states():
  head, params = span_head()
  hidden, allowed, start = draw()
  ours = jax.jit(
    lambda params: head.apply({'params': params}, hidden, allowed, start, method='training')
  )(params)
  starts, ends, impossible = span_in_numpy(params, hidden, allowed)
  for a, b in zip(ours, (starts, ends[np.arange(BATCH), start], impossible), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  # Another start gives other ends.
  assert np.abs(ends[0, start[0]] - ends[0, (start[0] + 1) % LENGTH])[allowed[0] > 0].max() > 1e-2


@pytest.mark.parametrize('beam', [1, 4, 20])
def test_beam_search_agrees_with_a_search_over_all_pairs(beam):
  head, params = span_head(beam)
  hidden, allowed, _ = draw(seed=7)
  allowed[1] = [1] + [0] * (LENGTH - 1)  # a window where only [CLS] is allowed
  found = jax.jit(
    lambda params: head.apply({'params': params}, hidden, allowed, method='beam_search')
  )(params)
  found = jax.tree.map(np.asarray, found)
  assert {name: (x.dtype.name, x.shape) for name, x in found.items()} == {
    'start_log_probs': ('float32', (BATCH, beam)),
    'start_index': ('int32', (BATCH, beam)),
    'impossible': ('float32', (BATCH,)),
    'end_log_probs': ('float32', (BATCH, beam, beam)),
    'end_index': ('int32', (BATCH, beam, beam)),
  }
  starts, ends, impossible = span_in_numpy(params, hidden, allowed)
  np.testing.assert_allclose(found['impossible'], impossible, rtol=1e-5, atol=1e-5)
  starts, ends = log_softmax(starts), log_softmax(ends)

  def check(log_probs, index, row, expected):
    best = sorted(np.flatnonzero(allowed[row]), key=lambda i: -expected[i])[:beam]
    assert list(index[: len(best)]) == best
    np.testing.assert_allclose(log_probs[: len(best)], expected[best], rtol=1e-4, atol=1e-5)
    assert not index[len(best) :].any() and (log_probs[len(best) :] < heads.LOWEST / 2).all()
    assert np.isfinite(log_probs).all() and np.isfinite(log_probs + log_probs).all()
    return len(best)

  for row in range(BATCH):
    count = check(found['start_log_probs'][row], found['start_index'][row], row, starts[row])
    for i in range(count):
      check(
        found['end_log_probs'][row, i],
        found['end_index'][row, i],
        row,
        ends[row, found['start_index'][row, i]],
      )


@pytest.mark.parametrize('beam, most', [(4, 30), (4, 2), (20, 3)])
def test_the_best_spans_of_independent_logits_agree_with_a_search_over_all_pairs(beam, most):
  rng = np.random.default_rng(beam)
  start, end = (3 * rng.standard_normal((BATCH, LENGTH)).astype(np.float32) for _ in range(2))
  allowed = draw(seed=7)[1]
  allowed[1] = [1] + [0] * (LENGTH - 1)  # a window where only [CLS] is allowed
  found = jax.tree.map(
    np.asarray, jax.jit(heads.best_spans, static_argnums=(3, 4))(start, end, allowed, beam, most)
  )
  assert {name: (x.dtype.name, x.shape) for name, x in found.items()} == {
    'start_log_probs': ('float32', (BATCH, beam)),
    'start_index': ('int32', (BATCH, beam)),
    'impossible': ('float32', (BATCH,)),
    'end_log_probs': ('float32', (BATCH, beam, beam)),
    'end_index': ('int32', (BATCH, beam, beam)),
  }
  for row in range(BATCH):
    places = [i for i in np.flatnonzero(allowed[row]) if i]
    spans = {
      (i, j): start[row, i] + end[row, j] for i in places for j in places if i <= j < i + most
    }
    assert all(np.isfinite(x[row]).all() for x in found.values())
    if not spans:
      assert (
        found['impossible'][row] > 1e8
        and (found['start_log_probs'][row] < heads.LOWEST / 2).all()
        and not found['start_index'][row].any()
      )
      continue
    best_of = {}
    for (i, _), score in spans.items():
      best_of[i] = max(best_of.get(i, -np.inf), score)
    starts = sorted(best_of, key=lambda i: -best_of[i])[:beam]
    assert list(found['start_index'][row][: len(starts)]) == starts
    assert (found['start_log_probs'][row][len(starts) :] < heads.LOWEST / 2).all()
    of_starts, of_ends = (
      log_softmax(np.where(allowed[row], x[row].astype(np.float64), heads.LOWEST))
      for x in (start, end)
    )
    np.testing.assert_allclose(
      found['start_log_probs'][row][: len(starts)], of_starts[starts], rtol=1e-5, atol=1e-5
    )
    for n, i in enumerate(starts):
      ends = sorted((j for a, j in spans if a == i), key=lambda j: -end[row, j])[:beam]
      assert list(found['end_index'][row, n][: len(ends)]) == ends
      np.testing.assert_allclose(
        found['end_log_probs'][row, n][: len(ends)], of_ends[ends], rtol=1e-5, atol=1e-5
      )
      assert (found['end_log_probs'][row, n][len(ends) :] < heads.LOWEST / 2).all()
    np.testing.assert_allclose(
      found['impossible'][row],
      start[row, 0] + end[row, 0] - max(spans.values()),
      rtol=1e-5,
      atol=1e-5,
    )


def test_layerwise_rates_and_decay_cover_the_heads_of_transformers():
  model = model_of('tagging', 'modern', style='transformers')
  shapes = nn.unbox(jax.eval_shape(lambda: heads.init_finetuned(model, 0)))
  rates = named(optimizers.layerwise_rates(shapes, 2, 0.5, False)['head'])
  assert rates == {'dense/bias': 1, 'dense/kernel': 1, 'hidden/kernel': 1, 'norm/scale': 1}
  decayed = {
    '/'.join(k.key for k in path): optimizers.is_decayed(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes['head'])
  }
  assert decayed == {
    'dense/bias': False,
    'dense/kernel': True,
    'hidden/kernel': True,
    'norm/scale': False,
  }


def sizes(jaxpr):
  """Number of elements of every array in a jaxpr, loops included."""
  for equation in jaxpr.eqns:
    yield from (np.prod(v.aval.shape, dtype=int) for v in equation.outvars)
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      if hasattr(inner, 'jaxpr') or hasattr(inner, 'eqns'):
        yield from sizes(getattr(inner, 'jaxpr', inner))


def test_no_array_has_a_hidden_layer_per_pair():
  head, params = span_head(beam=10)
  hidden, allowed, _ = draw()
  made = jax.make_jaxpr(lambda p: head.apply({'params': p}, hidden, allowed, method='beam_search'))(
    params
  )
  assert max(sizes(made.jaxpr)) == BATCH * LENGTH * heads.SPAN_SIZE


@pytest.mark.parametrize('pooling', heads.POOLINGS)
def test_classification_and_tagging_agree_with_numpy(pooling):
  hidden = draw(size=32)[0]
  segments = np.arange(LENGTH)[None] < np.array(LENGTHS)[:, None]
  params = {
    'dense': {
      'kernel': np.random.default_rng(1).standard_normal((32, LABELS)).astype(np.float32),
      'bias': np.arange(4.0),
    }
  }
  config = model_of('tagging').config
  classify = jax.jit(
    lambda segments: heads.ClassificationHead(config, LABELS, pooling=pooling).apply(
      {'params': params}, hidden, segments
    )
  )
  classes = classify(segments.astype(np.int32))
  pooled = (
    hidden[:, 0]
    if pooling == 'cls'
    else np.stack([row[:size].mean(0) for row, size in zip(hidden, LENGTHS, strict=True)])
  )
  np.testing.assert_allclose(
    classes, pooled @ params['dense']['kernel'] + np.arange(4), rtol=1e-5, atol=1e-5
  )
  tags = jax.jit(
    lambda hidden: heads.TaggingHead(config, LABELS).apply({'params': params}, hidden)
  )(hidden)
  np.testing.assert_allclose(
    tags, hidden @ params['dense']['kernel'] + np.arange(4), rtol=1e-5, atol=1e-5
  )
  # An empty row, which pads a batch, does not divide by 0.
  empty = classify(np.zeros_like(segments, np.int32))
  assert np.isfinite(empty).all()


HEADS = [
  (kind, style, family)
  for kind in KINDS
  for style, family in (
    ('published', 'electra'),
    ('transformers', 'electra'),
    ('transformers', 'modern'),
  )
]
all_heads = pytest.mark.parametrize('kind, style, family', HEADS, ids=map(' '.join, HEADS))


def head_alone(kind, style, family, rate=0.0, pooling='cls'):
  """(hidden, segments, allowed, keys) -> outputs by name, of a head without an encoder."""
  config = model_of(kind, family).config
  hidden, allowed, start = draw(size=config.hidden_size)
  if style == 'transformers':
    head = heads.TransformersHead(
      config, kind, {'regression': 1, 'span': 2}.get(kind, LABELS), rate, pooling
    )

    def call(m, hidden, segments, allowed, keys):
      return {'logits': m(hidden, segments, keys)}
  elif kind == 'span':
    head = heads.SpanHead(config, BEAM)

    def call(m, hidden, segments, allowed, keys):
      return dict(
        zip(
          ('start_logits', 'end_logits', 'impossible'),
          m.training(
            hidden,
            allowed,
            start if len(hidden) == BATCH else np.pad(start, (0, len(hidden) - BATCH)),
          ),
          strict=True,
        )
      ) | m.beam_search(hidden, allowed)
  elif kind == 'tagging':
    head = heads.TaggingHead(config, LABELS, rate)

    def call(m, hidden, segments, allowed, keys):
      return {'logits': m(hidden, keys)}
  else:
    head = heads.ClassificationHead(config, 1 if kind == 'regression' else LABELS, rate, pooling)

    def call(m, hidden, segments, allowed, keys):
      return {'logits': m(hidden, segments, keys)}

  shapes = nn.unbox(
    jax.eval_shape(
      lambda: head.init(jax.random.key(0), hidden, allowed, allowed, None, method=call)
    )
  )
  rng = np.random.default_rng(5)
  variables = jax.tree.map(
    lambda s: (
      rng.standard_normal(s.shape) * (s.shape[0] if len(s.shape) > 1 else 4) ** -0.5
    ).astype(np.float32),
    shapes,
  )
  applied = jax.jit(lambda *inputs: head.apply(variables, *inputs, method=call))
  return lambda *inputs: jax.tree.map(np.asarray, applied(*inputs))


@all_heads
def test_the_content_of_padding_and_empty_rows_has_no_effect(kind, style, family):
  hidden, allowed, _ = draw(size=32)
  segments = (np.arange(LENGTH) < np.array(LENGTHS)[:, None]).astype(np.int32)
  allowed = allowed * segments

  def pad(x, value):
    return np.pad(x, ((0, 2), (0, 4)) + ((0, 0),) * (x.ndim - 2), constant_values=value)

  pooling = (
    'mean' if kind == 'classification' and (style, family) != ('transformers', 'electra') else 'cls'
  )
  head = head_alone(kind, style, family, pooling=pooling)
  short, long = (
    head(hidden, segments, allowed, None),
    head(pad(hidden, 3.0), pad(segments, 0), pad(allowed, 0), None),
  )
  for name, ours in short.items():
    assert np.isfinite(long[name]).all()
    of_tokens = (
      name in ('start_logits', 'end_logits') or kind in ('tagging', 'span') and name == 'logits'
    )
    np.testing.assert_allclose(
      long[name][:BATCH, :LENGTH] if of_tokens else long[name][:BATCH],
      ours,
      rtol=1e-4,
      atol=1e-5,
      err_msg=name,
    )


def test_the_content_of_padding_has_no_effect_on_a_whole_model():
  ids, keys = rows(), row_keys()
  padded, more = (
    np.pad(ids, ((0, 2), (0, 4)), constant_values=conftest.PAD),
    jax.random.split(jax.random.key(2), BATCH + 2),
  )
  for method, short, long in zip(
    ('training', 'predict'), run('span', ids, keys), run('span', padded, more), strict=True
  ):
    for name, ours in short.items():
      of_tokens = method == 'training' and name.endswith('_logits')
      np.testing.assert_allclose(
        long[name][:BATCH, :LENGTH] if of_tokens else long[name][:BATCH],
        ours,
        rtol=1e-4,
        atol=1e-5,
        err_msg=name,
      )


@READERS
def test_dropout_depends_only_on_the_key_of_the_row(kind):
  ids, keys = rows(), row_keys()  # the dropout of the encoder is 0
  turned = np.roll(np.arange(BATCH), 2)  # an even number: targets differ in odd and even rows
  (one, computed), (other, _) = run(kind, ids, keys), run(kind, ids[turned], keys[turned])
  for name in one:
    np.testing.assert_allclose(other[name], one[name][turned], rtol=1e-4, atol=1e-5)
  # As published, classification and regression have dropout before the last layer, and the others
  # none; predictions never have dropout.
  if kind == 'span':
    largest = log_softmax(one['start_logits']).max(-1)
    differs = np.abs(largest - computed['start_log_probs'][:, 0]).max() > 1e-3
  else:
    differs = any(np.abs(computed[name] - one[name]).max() > 1e-3 for name in one)
  assert differs == (kind in ('classification', 'regression'))
  again = run(kind, ids, keys[::-1])[1]
  for name in computed:
    np.testing.assert_allclose(computed[name], again[name], rtol=1e-5, atol=1e-6)


@all_heads
def test_each_head_has_the_dropout_rate_of_its_style(kind, style, family):
  hidden, allowed, _ = draw(size=32)
  rate = heads.default_dropout(kind, style, family)
  expected = {
    'published electra': kind in ('classification', 'regression'),
    'transformers electra': kind != 'span',
    'transformers modern': False,
  }
  assert rate == 0.1 * expected[f'{style} {family}']
  if (kind, style) == ('span', 'published'):
    return  # it has no dropout
  head = head_alone(kind, style, family, 0.3)
  keys, none = row_keys(), head(hidden, allowed, allowed, None)
  one, other = (head(hidden, allowed, allowed, k)['logits'] for k in (keys, keys[::-1]))
  assert np.abs(one - none['logits']).max() > 1e-2 and np.abs(one - other).max() > 1e-2


def test_the_classifier_of_electra_has_dropout_before_both_layers():
  hidden = np.ones((2000, 1, 32), np.float32)
  head = heads.TransformersHead(model_of('classification').config, 'classification', 32, 0.25)
  hot = {'kernel': 10 * np.eye(32, dtype=np.float32), 'bias': np.zeros(32, np.float32)}
  keys = jax.random.split(jax.random.key(1), len(hidden))
  out = jax.jit(
    lambda keys: head.apply(
      {'params': {'hidden': hot, 'dense': hot}}, hidden, np.ones((2000, 1), np.int32), keys
    )
  )(keys)
  assert abs((np.asarray(out) == 0).mean() - (1 - 0.75**2)) < 0.01
  assert set(np.unique(np.asarray(out).round(3))) == {0, np.float32(100 / 0.75**2).round(3)}


def test_the_configured_dropout_rate_is_used():
  hidden = np.ones((2, 500, 32), np.float32)
  params = {'dense': {'kernel': np.eye(32, dtype=np.float32), 'bias': np.zeros(32, np.float32)}}
  keys = jax.random.split(jax.random.key(1), 2)
  out = np.asarray(
    jax.jit(
      lambda keys: heads.TaggingHead(model_of('tagging').config, 32, 0.25).apply(
        {'params': params}, hidden, keys
      )
    )(keys)
  )
  assert set(np.unique(out.round(5))) == {0, np.float32(1 / 0.75).round(5)}
  assert abs((out == 0).mean() - 0.25) < 0.01


@pytest.mark.parametrize('kind', ['classification', 'span'])
def test_bfloat16_is_close_to_float32(kind):
  for exact, ours in zip(
    run(kind, rows(), row_keys()), run(kind, rows(), row_keys(), jnp.bfloat16), strict=True
  ):
    assert {name: (x.dtype, x.shape) for name, x in ours.items()} == {
      name: (x.dtype, x.shape) for name, x in exact.items()
    }
    for name in ours:
      if 'index' not in name:
        near = exact[name] > heads.LOWEST / 2
        np.testing.assert_allclose(ours[name][near], exact[name][near], atol=0.1)
    assert not all(np.array_equal(ours[name], exact[name]) for name in ours)


def test_heads_agree_on_a_mesh_of_all_axes():
  config = conftest.PretrainingConfig().replace(
    {'mesh.fsdp': 2, 'mesh.tensor': 2, 'sharding.smallest': 0}
  )
  layout = partitioning.make_layout(config)
  ids, keys = rows(), row_keys()
  targets = targets_of(ids)
  model, params = model_of('span'), drawn('span')
  shardings = partitioning.parameter_shardings(
    jax.eval_shape(lambda: heads.init_finetuned(model, 0)), layout
  )
  assert any(axis for axis in shardings['head']['end_hidden']['kernel'].spec)

  both = compiled('span').__wrapped__
  by_rows = partitioning.batch_sharding(layout.mesh)
  ours = jax.jit(
    partitioning.within(layout, both), in_shardings=(shardings, by_rows, by_rows, by_rows)
  )(params, ids, targets, keys)
  alone = compiled('span')(params, ids, targets, keys)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(alone), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_unknown_kinds_styles_and_poolings_are_refused_by_name():
  for wrong, message in (
    ({'kind': 'tags'}, "kind is 'tags'; expected classification"),
    ({'kind': 'span', 'style': 'old'}, "style is 'old'; expected published or transformers"),
    ({'kind': 'classification', 'pooling': 'max'}, "pooling is 'max'; expected cls or mean"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(
        lambda wrong=wrong: heads.init_finetuned(
          heads.FineTuned(model_of('span').config, **wrong), 0
        )
      )


loss = jax.jit(losses.head_loss, static_argnums=(0, 3))


def outputs_and_batch(seed=0, n=6):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  outputs = {
    'classification': {'logits': normal(n, LABELS)},
    'regression': {'value': normal(n)},
    'tagging': {'logits': normal(n, LENGTH, LABELS)},
    'span': {
      'start_logits': normal(n, LENGTH),
      'end_logits': normal(n, LENGTH),
      'impossible': normal(n),
    },
  }
  batch = {
    'label': rng.integers(0, LABELS, n),
    'value': rng.random(n).astype(np.float32),
    'tags': rng.integers(-1, LABELS, (n, LENGTH)),
    'start': rng.integers(0, LENGTH, n),
    'end': rng.integers(0, LENGTH, n),
    'impossible': rng.integers(0, 2, n).astype(np.float32),
    'weights': np.array([1, 1, 1, 0, 1, 0], np.float32),
  }
  return outputs, batch


def test_losses_agree_with_numpy():
  outputs, batch = outputs_and_batch()
  w = batch['weights']

  def nll(logits, labels):
    return -np.take_along_axis(log_softmax(logits.astype(np.float64)), labels[..., None], -1)[
      ..., 0
    ]

  span = outputs['span']
  probability = 1 / (1 + np.exp(-span['impossible'].astype(np.float64)))
  sides = (nll(span['start_logits'], batch['start']) + nll(span['end_logits'], batch['end'])) / 2
  answer = -np.log(np.where(batch['impossible'] > 0, probability, 1 - probability))
  tagged = (batch['tags'] >= 0) * w[:, None]
  expected = {
    'classification': (
      (nll(outputs['classification']['logits'], batch['label']) * w).sum(),
      w.sum(),
    ),
    'regression': (((outputs['regression']['value'] - batch['value']) ** 2 * w).sum(), w.sum()),
    'tagging': (
      (nll(outputs['tagging']['logits'], batch['tags'].clip(0)) * tagged).sum(),
      tagged.sum(),
    ),
    'span': (((sides + 0.5 * answer) * w).sum(), w.sum()),
  }
  for kind, (total, count) in expected.items():
    ours, n, sums = loss(kind, outputs[kind], batch)
    np.testing.assert_allclose(ours, total, rtol=1e-5)
    assert n == count == losses.loss_denominator(kind, batch) == sums['count']
    assert ours == sums['loss']
  without = loss('span', outputs['span'], batch, losses.LossSettings(0.0))[0]
  np.testing.assert_allclose(without, (sides * w).sum(), rtol=1e-5)
  right = (outputs['classification']['logits'].argmax(-1) == batch['label']) * w
  assert loss('classification', outputs['classification'], batch)[2]['correct'] == right.sum()


@READERS
def test_rows_without_a_target_and_padding_rows_have_no_weight(kind):
  outputs, batch = outputs_and_batch()
  batch['label'][0], batch['value'][0], batch['tags'][0] = -1, np.nan, -1

  def mean(outputs, batch):
    total, count, sums = losses.head_loss(kind, outputs, batch)
    return total / count, sums

  (value, sums), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(outputs[kind], batch)
  assert np.isfinite(value) and all(np.isfinite(x) for x in sums.values())
  left_out = [3, 5] + ([0] if kind != 'span' else [])
  for grad in jax.tree.leaves(grads):
    assert (
      np.isfinite(grad).all()
      and not np.asarray(grad)[left_out].any()
      and np.asarray(grad)[[1, 2, 4]].any()
    )

  # The sums of a batch are those of its parts.
  def part(rows):
    return loss(kind, *jax.tree.map(lambda x: x[rows], (outputs[kind], batch)))[2]

  halves = part(slice(0, 3)), part(slice(3, 6))
  for name, whole in sums.items():
    np.testing.assert_allclose(halves[0][name] + halves[1][name], whole, rtol=1e-5, err_msg=name)
