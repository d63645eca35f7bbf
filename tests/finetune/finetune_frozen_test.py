"""A frozen encoder is not changed, needs no backward pass, and its head is a probe.

The probe is compared with scikit-learn's logistic regression.
"""

import json

import finetune_files
import flax.linen as nn
import jax
import made_run
import micro_run
import numpy as np
import pytest
from conftest import adamw
from sklearn.linear_model import LogisticRegression

from electra_jax.config import FinetuningConfig, checked_finetuning, default_config
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import batches, finetune_step, initial, losses, resolve
from electra_jax.finetune import config as finetune_config
from electra_jax.finetune.finetuned import open_finetuned
from electra_jax.finetune.train import run_finetuning
from electra_jax.model.config import EncoderConfig
from electra_jax.model.encoder import packed_inputs
from electra_jax.model.heads import FineTuned, init_finetuned, pooled
from electra_jax.training import checkpoints, partitioning
from electra_jax.training.encoders import encoder_config
from electra_jax.training.update_step import UpdateOptions, fresh_state, layout_of_state

ROWS, LENGTH = 8, 16


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Programs for one device compile in half the time; other tests use meshes."""
  make = partitioning.make_layout
  monkeypatch.setattr(
    partitioning, 'make_layout', lambda config=None, devices=None: make(config, jax.devices()[:1])
  )


def batch_of(kind):
  rng = np.random.default_rng(1)
  ids = rng.integers(5, 60, (ROWS, LENGTH)).astype(np.int32)
  ids[:, 0], ids[:, -1] = 2, 3
  rows = {
    'label': rng.integers(0, 2, ROWS).astype(np.int32),
    'value': rng.random(ROWS).astype(np.float32),
    'start': rng.integers(1, LENGTH, ROWS).astype(np.int32),
    'end': rng.integers(1, LENGTH, ROWS).astype(np.int32),
    'impossible': rng.integers(0, 2, ROWS).astype(np.float32),
    'allowed': np.ones((ROWS, LENGTH), np.int32),
    'tags': rng.integers(0, 3, (ROWS, LENGTH)).astype(np.int32),
  }
  names = {
    'classification': ('label',),
    'regression': ('value',),
    'tagging': ('tags',),
    'span': ('start', 'end', 'impossible', 'allowed'),
  }[kind]
  return {'token_ids': ids, 'weights': np.ones(ROWS, np.float32), 'seed': np.uint32(0)} | {
    name: rows[name] for name in names
  }


def made_step(kind, frozen, layers=1):
  """The jitted step, the state before it, and the model."""
  config = EncoderConfig(
    family='modern',
    vocab_size=60,
    vocab_multiple=64,
    hidden_size=64,
    embedding_size=64,
    num_layers=layers,
    num_heads=2,
    intermediate_size=128,
    dropout=0.0,
    attention_dropout=0.0,
    scan_unroll=layers,
  )
  model, layout = FineTuned(config, kind, labels=3, dropout=0.0), partitioning.make_layout()
  optimizer = adamw(lambda step: 1e-3)
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  shapes, shardings = layout_of_state(boxed, optimizer, layout)
  options = UpdateOptions(
    layout=layout,
    moments=partitioning.moment_shardings(shapes.params, shardings.params, layout),
    trained=('head',) if frozen else None,
  )
  batch_loss = finetune_step.finetuning_loss(
    model, finetune_step.SpecialIds(0, 2, 3), losses.DEFAULTS
  )
  step = finetune_step.jit_finetune_step(batch_loss, optimizer, shardings, layout, options)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(np.float32) * x.shape[-1] ** -0.5, shapes.params
  )
  return step, lambda: jax.device_put(fresh_state(optimizer, params), shardings), model


@pytest.mark.parametrize('kind', ['classification', 'regression', 'tagging', 'span'])
def test_the_head_is_trained_and_the_encoder_is_bitwise_unchanged(kind):
  step, fresh, _ = made_step(kind, frozen=True)
  before = jax.device_get(fresh())
  state, batch, losses = fresh(), batch_of(kind), []
  for _ in range(3):
    state, sums = step(state, batch)
    losses.append(float(sums['total']))
  after = jax.device_get(state)
  assert after.step == 3 and losses[-1] < losses[0]
  for name in ('embeddings', 'discriminator'):
    assert (
      micro_run.differing(
        *(
          {
            jax.tree_util.keystr(path): value
            for path, value in jax.tree_util.tree_leaves_with_path(one.params[name])
          }
          for one in (before, after)
        )
      )
      == []
    )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), before.params['head'], after.params['head']
  )
  assert min(jax.tree.leaves(moved)) > 0
  assert float(sums['update_norm/all']) == pytest.approx(float(sums['update_norm/head']))


def test_there_is_no_backward_pass_through_the_encoder():
  counted = {}
  for frozen in (True, False):
    step, fresh, model = made_step('classification', frozen, layers=3)
    # Counted before compilation: parameters without a gradient have no backward pass in the trace.
    counted[frozen] = step.lower(fresh(), batch_of('classification')).cost_analysis()['flops']
  forward = jax.jit(
    lambda params, batch: model.apply(
      {'params': params}, packed_inputs(batch['token_ids'], 0, 2, 3), batch, method='predict'
    )
  )
  of_forward = forward.lower(fresh().params, batch_of('classification')).cost_analysis()['flops']
  # The rest of the frozen step is Adam and norms of all parameters, noticeable in a small model.
  assert counted[True] < 1.6 * of_forward and counted[False] > 2.5 * of_forward


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """A run of random weights, and data whose labels can be predicted from the text."""
  folder = tmp_path_factory.mktemp('frozen')
  config = default_config()
  config.model.update(
    family='modern',
    hidden_size=64,
    embedding_size=64,
    num_layers=1,
    num_heads=2,
    intermediate_size=64,
    vocab_multiple=8,
  )
  tokenizer = load_tokenizer(made_run.wordpiece(folder / 'vocabulary'))
  made_run.make(folder / 'pretrained', config, tokenizer)
  return folder / 'pretrained', finetune_files.glue(folder / 'glue', train=64, dev=60)


def probe_config(pretrained, **fields):
  c = finetune_config.default_config()
  c.update(task='sst2', init=str(pretrained[0]), frozen=True, compilation_cache='')
  c.update(batch_size=16, eval_batch_size=64, max_length=32, bucketed=False)
  c.update(epochs=30.0, eval_every=0.0)
  c.data.source = str(pretrained[1])
  c.head.update(pooling='mean', dropout=0.0)
  c.update(fields)
  return c


def test_a_probe_is_as_accurate_as_logistic_regression_on_the_same_states(
  pretrained, tmp_path, capsys
):
  assert run_finetuning(probe_config(pretrained), str(tmp_path / 'run')) == 0
  assert (
    '130 parameters of the head, on a frozen encoder, learning rate 0.01' in capsys.readouterr().out
  )
  run = open_finetuned(tmp_path / 'run')
  saved = checkpoints.read_arrays(pretrained[0], 7, 'params')
  for name in ('embeddings', 'discriminator'):
    assert all(
      map(
        np.array_equal,
        jax.tree.leaves(saved[name]),
        jax.tree.leaves(jax.device_get(run.params[name])),
      )
    )

  states, labels = {}, {}
  read = jax.jit(
    lambda params, inputs: run.model.apply({'params': params}, inputs, method='hidden_states')
  )
  for split in ('train', 'dev'):
    features, _ = run.features(finetune_files.opened('sst2', source=pretrained[1]).examples(split))
    labels[split] = np.asarray(features.targets['label'])
    batch = batches.assemble(features, np.arange(len(features)), 64, (32,), 0)
    inputs = packed_inputs(batch['token_ids'], 0, 2, 3)
    hidden = read(run.params, inputs)[: len(features)]
    states[split] = np.asarray(pooled(hidden, inputs.segment_ids[: len(features)], 'mean'))
  theirs = (
    LogisticRegression(C=100, max_iter=2000)
    .fit(states['train'], labels['train'])
    .score(states['dev'], labels['dev'])
  )
  ours = json.loads((tmp_path / 'run' / 'sst2' / 'trial-1' / 'result.json').read_text())
  majority = ours['constant']['accuracy']
  assert theirs > majority + 0.1 and abs(ours['figures']['dev']['accuracy'] - theirs) < 0.1


@pytest.mark.parametrize(
  'objective, sharing',
  [
    ('mlm', 'embeddings'),
    ('replace_mlm', 'embeddings'),
    ('electra', 'disentangled'),
    ('electra', 'all'),
  ],
)
def test_fine_tuning_starts_from_runs_of_every_objective(objective, sharing, tmp_path):
  config = default_config()
  config.objective.name, config.sharing = objective, sharing
  config.generator.update(hidden_fraction=1.0)
  config.model.update(
    family='modern',
    hidden_size=32,
    embedding_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    vocab_multiple=8,
  )
  made_run.make(
    tmp_path / 'run', config, load_tokenizer(made_run.wordpiece(tmp_path / 'vocabulary'))
  )
  saved = checkpoints.read_arrays(tmp_path / 'run', 7, 'params')
  start = initial.open_initial(FinetuningConfig().replace({'init': str(tmp_path / 'run')}))
  words = (
    saved['embeddings']['word']
    if sharing != 'disentangled'
    else saved['generator_embeddings']['word'] + saved['embeddings_difference']['word']
  )
  kernel = saved['discriminator']['layers']['query']['kernel']
  model = FineTuned(
    encoder_config(start.model, start.tokenizer.size, 16, 'float32'), 'classification'
  )
  shapes = nn.unbox(jax.eval_shape(lambda: init_finetuned(model, 0)))
  shapes = {name: shapes[name] for name in ('embeddings', 'discriminator')}
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  restored = start.restore(shapes, jax.tree.map(lambda _: one, shapes))
  real = start.tokenizer.size
  assert np.array_equal(restored['embeddings']['word'][:real], words[:real])
  assert np.array_equal(restored['discriminator']['layers']['query']['kernel'], kernel)


def test_settings_without_effect_on_a_frozen_encoder_are_errors(pretrained):
  for fields in ({'optimizer': {'layer_decay': 0.8}}, {'optimizer': {'published_depths': True}}):
    with pytest.raises(
      UserError, match='have no effect where config.frozen keeps the encoder unchanged'
    ):
      checked_finetuning(probe_config(pretrained, **fields))
  c = probe_config(pretrained)
  assert resolve.learning_rates(checked_finetuning(c), 128) == (resolve.FROZEN_RATE, 1.0)
  c.optimizer.learning_rate = 0.1
  assert resolve.learning_rates(checked_finetuning(c), 128) == (0.1, 1.0)
