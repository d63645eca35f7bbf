"""A generator with initial weights: it starts with them, and a frozen one never changes."""

import dataclasses
import shutil

import conftest
import jax
import jax.numpy as jnp
import made_run
import micro_run
import numpy as np
import optax
import pytest
from conftest import micro_config

from electra_jax import export, main
from electra_jax.config import checked_pretraining, phases_of
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import own
from electra_jax.interop.weights import same_bits, tower_params
from electra_jax.pretrain import build, pretrain_step, run_start
from electra_jax.pretrain.continued.initial_state import initial_state
from electra_jax.pretrain.continued.tokens import tokenizer_path
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.training import partitioning
from electra_jax.training.update_step import UpdateOptions

GENERATOR = {'generator', 'generator_head', 'generator_embeddings'}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """Folder of runs with random weights.

  `mlm` has one tower of 16, `electra` towers of 32 and 16 that share embeddings of 32, and `hf` is
  its export.
  """
  folder = tmp_path_factory.mktemp('sources')
  tokenizer = load_tokenizer(made_run.wordpiece(folder / 'vocabulary'))
  made_run.make(
    folder / 'mlm',
    micro_config(
      'objective.name=mlm', 'model.hidden_size=16', 'model.embedding_size=16', 'model.num_heads=1'
    ),
    tokenizer,
  )
  made_run.make(
    folder / 'electra',
    micro_config(
      'model.family=electra',
      'model.layer_norm_eps=1e-12',
      'model.num_layers=2',
      'generator.layers_fraction=0.5',
    ),
    tokenizer,
  )
  export.export(str(folder / 'electra'), str(folder / 'hf'))
  return folder


MLM = ('model.embedding_size=16', 'sharing=disentangled', 'data.tokenizer=init')
ELECTRA = (
  'model.family=electra',
  'model.layer_norm_eps=1e-12',
  'model.hidden_size=64',
  'model.num_layers=3',
  'sharing=none',
  'data.tokenizer=init',
)


@pytest.mark.parametrize(
  'init, fields, tower',
  [
    ('mlm', MLM, (0.5, 1.0, 0)),
    ('electra', ELECTRA, (0.25, 1 / 3, 0)),
    ('hf:hf', ELECTRA, (0.25, 1 / 3, 0)),
    ('hf:hf/generator', ELECTRA, (0.25, 1 / 3, 0)),
  ],
)
def test_a_generator_and_its_sizes_are_read_from_runs_and_folders(init, fields, tower, sources):
  kind, colon, name = init.rpartition(':')
  config = micro_config(f'generator.init={kind}{colon}{sources / name}', *fields)
  run = resolve_run(config)
  config, source = run.config, run.source
  g = config.generator
  assert (g.hidden_fraction, g.layers_fraction, g.embedding_size) == pytest.approx(
    tower
  ) and config.data.vocab_size == source.tokenizer.size
  start = initial_state(config, source, source.tokenizer)
  folder = sources / ('mlm' if init == 'mlm' else 'electra')
  theirs = tower_params(own.read_weights(folder), 'generator')
  assert start.params.keys() == GENERATOR and start.step == 0 and start.moments is None
  for name, part in (
    ('generator_embeddings', 'embeddings'),
    ('generator', 'encoder'),
    ('generator_head', 'head'),
  ):
    assert same_bits(start.params[name], theirs[part]), name
  model = build.build_model(config, source.tokenizer.size)
  shapes = jax.eval_shape(
    lambda: pretrain_step.init_state(model, build.build_optimizer(config)[0], 0, 32)
  ).params
  for name in GENERATOR:  # the run has these parameters, with a padded vocabulary
    jax.tree.map(
      lambda x, shape, name=name: pytest.fail(name) if x.shape[1:] != shape.shape[1:] else None,
      start.params[name],
      shapes[name],
    )
  assert run.tokenizer == source.weights.tokenizer
  assert 'trained further; the discriminator is new' in start.notes[-1]


def frozen_program(frozen=True, *fields):
  config = micro_config(
    'sharing=none',
    *(
      ('generator.init=somewhere', 'generator.frozen=True', 'data.tokenizer=init') if frozen else ()
    ),
    *fields,
  )
  return program_of(config, partitioning.make_layout(devices=jax.devices()[:1]))


def program_of(config, layout):
  config = checked_pretraining(config)
  return build.program(config, phases_of(config)[0], build.any_tokenizer(300), layout)


def test_a_frozen_generator_is_bitwise_constant_without_dropout_moments_or_decay():
  p = frozen_program(True, 'optimizer.weight_decay=0.5')
  assert (
    p.model.generator_config.dropout == p.model.generator_config.attention_dropout == 0
    and p.model.discriminator_config.dropout > 0
  )
  params = conftest.random_params(p.model)
  state = pretrain_step.fresh_state(p.optimizer, jax.tree.map(jnp.asarray, params))._replace(
    step=jnp.int32(3)
  )
  state = state._replace(
    opt_state=jax.tree.map(
      lambda x: x._replace(count=jnp.int32(3)) if hasattr(x, 'count') else x,
      state.opt_state,
      is_leaf=lambda x: isinstance(x, (optax.ScaleByAdamState, optax.ScaleByScheduleState)),
    )
  )
  adam = next(
    x
    for x in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(x, optax.ScaleByAdamState)
  )
  assert adam.mu.keys() == adam.nu.keys() == params.keys() - GENERATOR
  after, sums = jax.device_get(
    build.compile_step(p, 1)(
      jax.device_put(state, p.shardings),
      {'token_ids': conftest.packed_rows(8, 32, 300), 'schedules': p.inputs},
    )
  )
  for name in params:
    assert same_bits(params[name], after.params[name]) == (name in GENERATOR), name
  assert (
    sums['gradient_norm/generator'] == sums['update_norm/generator'] == 0
    and sums['generator_loss'] > 0
    and sums['update_norm/discriminator'] > 0
  )


def test_a_frozen_generator_has_no_backward_pass_in_program_and_flops():
  def counted(p):
    step = pretrain_step.make_train_step(
      dataclasses.replace(p.computation, seed=0), p.optimizer, UpdateOptions(trained=p.trained)
    )
    lowered = jax.jit(step).lower(p.shapes, {'token_ids': jax.ShapeDtypeStruct((8, 32), jnp.int32)})
    return lowered.cost_analysis()['flops'], p.step_flops(), p.step_flops('paper')

  sizes = (
    'generator.hidden_fraction=1.0',
    'model.hidden_size=128',
    'model.embedding_size=64',
    'model.intermediate_size=512',
    'model.dropout=0.0',
    'model.attention_dropout=0.0',
  )
  (compiler, ours, paper), (frozen_compiler, frozen, frozen_paper) = (
    counted(frozen_program(False, *sizes)),
    counted(frozen_program(True, *sizes)),
  )
  assert frozen < 0.72 * ours and frozen_paper < 0.82 * paper
  assert (compiler - frozen_compiler) == pytest.approx(ours - frozen, rel=0.1)


def test_moments_of_a_frozen_run_are_sharded():
  config = checked_pretraining(
    micro_config(
      'sharing=none',
      'generator.init=somewhere',
      'generator.frozen=True',
      'data.tokenizer=init',
      'sharding.smallest=0',
    )
  )
  p = program_of(config, partitioning.make_layout(config))
  assert jax.tree.structure(p.shapes.opt_state) == jax.tree.structure(p.shardings.opt_state)
  adam = next(
    x
    for x in jax.tree.leaves(
      p.shardings.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(x, optax.ScaleByAdamState)
  )
  assert (
    adam.mu.keys() == p.shapes.params.keys() - GENERATOR
    and 'data' in adam.mu['embeddings']['word'].spec
  )


def test_a_run_keeps_its_frozen_generator_and_resumes_without_the_source(sources, tmp_path):
  """With a falling temperature, as in Fast-ELECTRA."""
  shutil.copytree(sources / 'mlm', tmp_path / 'source')
  workdir, theirs = tmp_path / 'run', tower_params(own.read_weights(sources / 'mlm'), 'generator')
  argv = micro_run.arguments(
    workdir,
    *(f'--config.{field}' for field in MLM),
    f'--config.generator.init={tmp_path / "source"}',
    '--config.generator.frozen=True',
    '--config.steps=4',
    '--config.eval_every=2',
    '--config.save_every=4',
    '--config.log_every=2',
    "--config.objective.schedules.temperature=('exponential',2.0,1.0,0.1)",
  )
  out, _ = micro_run.run(*argv)
  assert f'from scratch, seed 0, its generator from {tmp_path / "source"}' in out
  assert '1 layers of 16, frozen; the discriminator is new' in out and out.index(
    'held out '
  ) < out.index('\n          1 ')
  whole, lines = micro_run.checkpoint(workdir, 4), micro_run.figures(workdir)
  for name, tree in (
    ('generator_embeddings', theirs['embeddings']),
    ('generator', theirs['encoder']),
    ('generator_head', theirs['head']),
  ):
    for path, value in jax.tree_util.tree_leaves_with_path(tree):
      found = whole[f'params/{name}/{jax.tree_util.keystr(path, simple=True, separator="/")}']
      assert np.array_equal(found[: len(value)], value), path
  assert not any(name.startswith('opt_state/') and '/generator' in name for name in whole)
  train, held = ([line for line in lines if line['kind'] == kind] for kind in ('train', 'heldout'))
  for line in train:
    assert line['temperature'] == pytest.approx(1 + np.exp(-(line['step'] - 1) / 0.4), rel=1e-5)
  assert [line['step'] for line in held] == [0, 2, 4] and not any(
    'temperature' in line for line in held
  )
  assert (
    len({line['generator_loss'] for line in held}) == 1
    and len({line['discriminator_loss'] for line in held}) == 3
  )

  # The same command resumes without the source.
  shutil.rmtree(tmp_path / 'source')
  run = resolve_run(main.parse_flags(['main', *argv]).config, workdir)
  assert (
    run.source is None
    and load_tokenizer(run.tokenizer).tokens == load_tokenizer(workdir / 'tokenizer').tokens
  )
  run_start.claim_workdir(workdir, run.config)  # it refuses another config
  weights = own.read_weights(workdir)
  assert (
    weights.moments['mu'].keys() == weights.params.keys() - GENERATOR and weights.sharing == 'none'
  )


@pytest.mark.parametrize(
  'fields, sentence',
  [
    (
      ('generator.frozen=True', 'sharing=none'),
      'and there are none; name them with --config.generator.init=hf:FOLDER',
    ),
    (
      ('generator.init=hf:x', 'data.tokenizer=init'),
      "config.sharing is 'embeddings'; set --config.sharing=none or disentangled",
    ),
    (
      ('generator.init=hf:x', 'sharing=none'),
      "config.data.tokenizer 'unigram' trains another vocabulary",
    ),
    (
      ('generator.init=hf:x', 'init=hf:y', 'sharing=none', 'data.tokenizer=init'),
      'config.continued.generator=hf:FOLDER',
    ),
    (
      ('generator.init=hf:x', 'sharing=none', 'objective.name=mlm', 'data.tokenizer=init'),
      "config.objective.name 'mlm' has one tower",
    ),
    (
      (
        'generator.init=hf:x',
        'sharing=none',
        'generator.frozen=True',
        'generator.alone_steps=3',
        'data.tokenizer=init',
      ),
      'config.generator.frozen leaves no parameters to train in config.generator.alone_steps',
    ),
    (
      (
        'generator.init=hf:x',
        'sharing=none',
        'generator.frozen=True',
        'optimizer.generator_learning_rate=1e-3',
        'data.tokenizer=init',
      ),
      'and config.generator.frozen keeps its parameters unchanged',
    ),
  ],
)
def test_invalid_configs_are_refused(fields, sentence):
  with pytest.raises(UserError) as error:
    checked_pretraining(micro_config(*fields))
  assert sentence in str(error.value)


def test_weights_that_do_not_fit_are_refused(sources, tmp_path):
  def resolved(init, *fields):
    return resolve_run(micro_config(f'generator.init={init}', *fields))

  with pytest.raises(UserError, match='holds no generator; name a masked language model'):
    resolved(f'hf:{sources / "hf" / "discriminator"}', *ELECTRA)
  with pytest.raises(
    UserError,
    match='differ in family, layer_norm_eps.* set --config.model.family=electra '
    '--config.model.layer_norm_eps=1e-12',
  ):
    resolved(sources / 'electra', 'sharing=none', 'data.tokenizer=init')
  with pytest.raises(UserError, match='has embeddings of 16 and config.model.embedding_size is 32'):
    resolved(sources / 'mlm', *MLM[1:])
  run = resolved(sources / 'mlm', *MLM)
  words = made_run.wordpiece(tmp_path / 'vocabulary')
  text = (tmp_path / 'vocabulary' / 'vocab.txt').read_text()
  (tmp_path / 'vocabulary' / 'vocab.txt').write_text(text.replace('\nchef\n', '\ncook\n'))
  config, source = run.config.replace({'data.tokenizer': words}), run.source
  with pytest.raises(
    UserError,
    match="has another vocabulary than the rows: token .* is 'chef' there and 'cook' here",
  ):
    tokenizer_path(config, source)
  with pytest.raises(UserError, match='has another vocabulary than the rows'):
    initial_state(config, source, load_tokenizer(words))


def test_objectives_of_one_and_two_towers_continue_from_each_other(sources):
  def initialized(init, *fields):
    run = resolve_run(micro_config(f'init={sources / init}', 'data.tokenizer=init', *fields))
    start = initial_state(run.config, run.source, run.source.tokenizer)
    return run.config, start.params.keys(), '; '.join(start.notes)

  _, params, notes = initialized('electra', 'objective.name=mlm')
  assert (
    params == {'embeddings', 'discriminator', 'discriminator_head'}
    and 'the generator of' in notes
    and 'is not used' in notes
  )
  assert 'the head that predicts masked tokens is new' in notes
  config, params, notes = initialized('mlm')
  assert (
    config.sharing == 'all'
    and params == {'embeddings', 'discriminator', 'generator_head'}
    and "the discriminator's head is new" in notes
  )
  _, params, _ = initialized('mlm', 'objective.name=mlm')
  assert params == {'embeddings', 'discriminator', 'generator_head'}
  config, params, notes = initialized(
    'mlm',
    'continued.generator=narrowed',
    'generator.layers_fraction=1.0',
    'generator.hidden_fraction=1.0',
  )
  assert (
    config.sharing == 'embeddings'
    and 'generator' in params
    and 'cut out of the discriminator' in notes
  )
  with pytest.raises(
    UserError,
    match="config.continued.generator is 'scratch', and the run has no generator of one tower",
  ):
    initialized('electra', 'objective.name=mlm', 'continued.generator=scratch')
