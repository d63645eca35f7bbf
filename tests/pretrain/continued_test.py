"""Runs that are initialized from weights start with exactly these, and report what is new."""

import dataclasses
import json
import pathlib
import shutil
import signal

import hosts_test
import jax
import jax.numpy as jnp
import micro_run
import numpy as np
import optax
import pytest
from conftest import micro_config

from electra_jax import export, main
from electra_jax.config import PretrainingConfig, checked_pretraining, freeze, phases_of
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import narrowed, origins, own
from electra_jax.interop.weights import (
  Head,
  Weights,
  expected_shapes,
  same_bits,
  trim_vocabulary,
)
from electra_jax.model.config import EncoderConfig, generator_config
from electra_jax.pretrain import build, pretrain_step
from electra_jax.pretrain.continued.initial_state import initial_state, place_initial
from electra_jax.pretrain.continued.sizes import SIZES
from electra_jax.pretrain.continued.source import InitialWeights
from electra_jax.pretrain.continued.tokens import tokenizer_path
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.training import partitioning

ELECTRA = ('--config.model.family=electra', '--config.model.max_positions=40')
STEPS = 8
FROM_HERE = ('init=hf:here', 'data.tokenizer=init', 'sequence_length=16')


def steps_and_lines():
  return (
    f'--config.steps={STEPS}',
    '--config.eval_every=4',
    '--config.save_every=4',
    '--config.log_every=2',
    '--config.data.reader=numpy',
  )  # which starts faster


def arguments(workdir, *more):
  return micro_run.arguments(workdir, *steps_and_lines(), *more)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A run of the electra family, and its export for transformers."""
  folder = tmp_path_factory.mktemp('continued')
  micro_run.run(*arguments(folder / 'run', *ELECTRA))
  export.export(str(folder / 'run'), str(folder / 'hf'))
  return folder


def from_source(source, *more, init=None):
  return (
    f'--config.init={init or "hf:" + str(source / "hf")}',
    '--config.data.tokenizer=init',
    *more,
  )


@pytest.fixture(scope='module')
def whole(source):
  """A run that was initialized from the export and never stopped, and its output."""
  return source / 'whole', micro_run.run(
    *arguments(source / 'whole', *from_source(source), '--config.keep=100')
  )[0]


def heldout(workdir):
  return [line for line in micro_run.figures(workdir) if line['kind'] == 'heldout']


#### Runs ####


def test_a_run_starts_at_the_loss_of_its_source(source, whole):
  workdir, out = whole
  before, (at_once, *_) = heldout(source / 'run')[-1], heldout(workdir)
  assert at_once['step'] == 0 and before['step'] == STEPS
  for name in ('total_loss', 'generator_loss', 'discriminator_loss', 'auc'):
    assert at_once[name] == pytest.approx(before[name], rel=1e-6)
  assert (
    f'begins       from hf:{source / "hf"}' in out
    and 'the optimizer has new moments and a new schedule with a warm-up of 2 steps' in out
  )
  assert out.index('held out ') < out.index('\n          1 ')
  assert (
    json.loads((workdir / 'config.json').read_text())['model']['family'] == 'electra'
  )  # the sizes are those of the source


@pytest.mark.faults
def test_two_processes_of_two_devices_start_and_train_equally(source, whole, tmp_path):
  argv = (*from_source(source), '--config.mesh.fsdp=2', '--config.save_every=4')
  (first, second), outputs = (
    hosts_test.start_pair(tmp_path / 'pair', *steps_and_lines(), *argv, devices=2),
    [],
  )
  for process in (first, second):
    outputs.append(process.communicate(timeout=600))
    assert process.returncode == 0, outputs[-1][1][-3000:]
  assert 'fsdp 2' in outputs[0][0] and 'of 2 processes' in outputs[0][0]
  for here, there in zip(heldout(tmp_path / 'pair'), heldout(whole[0]), strict=True):
    assert here['total_loss'] == pytest.approx(there['total_loss'], rel=1e-4)


@pytest.mark.long
def test_a_killed_run_resumes_bitwise_without_its_source(source, whole, tmp_path):
  folder, workdir = tmp_path / 'hf', tmp_path / 'killed'
  shutil.copytree(source / 'hf', folder)
  argv = arguments(workdir, *from_source(source, init=f'hf:{folder}'), '--config.keep=100')
  process = micro_run.start(*argv)
  micro_run.wait_for(lambda: (workdir / 'checkpoints' / '4').exists(), process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  shutil.rmtree(folder)
  out, _ = micro_run.run(*argv)
  assert 'restored     step' in out
  assert (
    micro_run.differing(micro_run.checkpoint(workdir, STEPS), micro_run.checkpoint(whole[0], STEPS))
    == []
  )
  assert micro_run.figures(workdir) == micro_run.figures(whole[0])
  # The run can be opened without the source too.
  assert main.main(['main', '--mode=evaluate', f'--workdir={workdir}']) == 0


@pytest.mark.long
def test_a_missing_generator_is_cut_out_and_trained_alone_first(source, tmp_path, capsys):
  shutil.copytree(source / 'hf' / 'discriminator', tmp_path / 'discriminator')
  init = f'hf:{tmp_path / "discriminator"}'
  capsys.readouterr()
  argv = arguments(tmp_path / 'run', *from_source(source, init=init))
  assert main.main(['main', *argv]) == 1
  err = capsys.readouterr().err
  assert (
    'has no generator; name one with --config.continued.generator=hf:FOLDER, or create one: '
    'scratch or narrowed'
    in err
    and err.count('\n') == 1
  )
  out, _ = micro_run.run(
    *arguments(
      tmp_path / 'run',
      *from_source(source, init=init),
      '--config.continued.generator=narrowed',
      '--config.generator.alone_steps=4',
      '--config.eval_every=2',
      '--config.keep=100',
    )
  )
  assert (
    'the generator is cut out of the discriminator, 1 layers of 16; '
    'the first 4 steps train only the generator' in out
  )
  assert 'phase 1 of 2: 4 steps of 8 x 32, only the generator is trained' in out
  first, last, source_params = (
    micro_run.checkpoint(tmp_path / 'run', 4),
    micro_run.checkpoint(tmp_path / 'run', STEPS),
    own.read_weights(source / 'run').params,
  )
  name, before = (
    'params/discriminator/layers/mlp_in/kernel',
    source_params['discriminator']['layers']['mlp_in']['kernel'],
  )
  assert np.array_equal(first[name], before) and not np.array_equal(last[name], before)
  lines = [line for line in micro_run.figures(tmp_path / 'run') if line['kind'] == 'train']
  generator_only = [line for line in lines if line['step'] <= 4]
  assert generator_only and all(
    line['discriminator_loss'] is None or np.isnan(line['discriminator_loss'])
    for line in generator_only
  )
  assert all(line['discriminator_loss'] > 0 for line in lines if line['step'] > 4)


#### Steps of only the generator ####


@pytest.mark.parametrize(
  'init, sharing',
  [('', 'embeddings'), pytest.param('hf:somewhere', 'none', marks=pytest.mark.long)],
)
def test_steps_of_only_the_generator_leave_all_else_bitwise_unchanged(init, sharing):
  config = micro_config(f'sharing={sharing}', 'optimizer.weight_decay=0.5')
  config.init, config.generator.alone_steps = init, 4
  config = freeze(PretrainingConfig, config)
  alone, both = phases_of(config)
  assert alone.generator_only and not both.generator_only and (alone.last, both.last) == (4, 30)
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  p = build.program(config, alone, build.any_tokenizer(300), layout)
  state = jax.jit(lambda: pretrain_step.init_state(p.model, p.optimizer, 0, 32))()

  def noise(tree):
    return jax.tree.map(lambda x: np.asarray(x) + np.float32(1e-3), tree)

  def is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)

  state = state._replace(
    step=jnp.asarray(2),
    opt_state=jax.tree.map(
      lambda x: (
        x._replace(mu=noise(x.mu), nu=noise(x.nu))
        if is_adam(x)
        else x._replace(count=jnp.asarray(2))
        if hasattr(x, 'count')
        else x
      ),
      state.opt_state,
      is_leaf=lambda x: is_adam(x) or isinstance(x, optax.ScaleByScheduleState),
    ),
  )
  before = jax.device_get(state)
  token_ids = np.random.default_rng(0).integers(5, 300, (8, 32), dtype=np.int32)
  batch = {'token_ids': token_ids, 'schedules': p.inputs}
  after, sums = jax.device_get(build.compile_step(p, 1)(state, batch))
  learns = (
    {'generator', 'generator_head'}
    | ({'generator_embeddings'} if sharing == 'none' else set())
    | (set() if init else {'embeddings'})
  )

  def moments(s):
    return {
      f'{name} {top}': tree
      for x in jax.tree.leaves(s.opt_state, is_leaf=is_adam)
      if is_adam(x)
      for name in ('mu', 'nu')
      for top, tree in getattr(x, name).items()
    }

  for top in before.params:
    assert same_bits(before.params[top], after.params[top]) != (top in learns), top
    for name in ('mu', 'nu'):
      assert same_bits(moments(before)[f'{name} {top}'], moments(after)[f'{name} {top}']) != (
        top in learns
      ), (name, top)
  assert sums['generator_loss'] > 0 and sums['discriminator_loss'] == 0 and not sums['scores'].any()


def test_the_schedule_starts_again_when_the_discriminator_is_trained():
  config = micro_config()
  config.generator.alone_steps = 10
  config = checked_pretraining(config)
  _, schedule = build.build_optimizer(config)
  assert [phase.config.steps for phase in phases_of(config)] == [10, 20]
  assert schedule(0) == schedule(10) == 0 and float(schedule(1)) > 0 and float(schedule(11)) > 0


#### New parameters ####


def weights_of(
  family='electra', hidden=32, embedding=16, layers=4, heads=4, generator=True, **fields
):
  d = EncoderConfig(
    family=family,
    vocab_size=50,
    hidden_size=hidden,
    embedding_size=embedding,
    num_layers=layers,
    num_heads=heads,
    intermediate_size=64,
    max_positions=20,
    position_buckets=8,
    vocab_multiple=1,
    **fields,
  )
  w = Weights(
    'here',
    d,
    generator_config(d, 0.5, 0.5) if generator else None,
    'embeddings' if generator else 'none',
    {},
  )
  rng = np.random.default_rng(0)
  return dataclasses.replace(
    w,
    params=jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), expected_shapes(w)),
  )


@pytest.mark.parametrize(
  'family, embedding',
  [('electra', 16), ('electra', 32), ('modern', 32), ('deberta-v2', 32), ('albert', 16)],
)
def test_a_generator_of_the_same_size_is_the_discriminator(family, embedding):
  w = weights_of(family, embedding=embedding, generator=False)
  found = narrowed.narrowed_generator(w, dataclasses.replace(w.discriminator))
  assert same_bits(found['generator'], w.params['discriminator'])


@pytest.mark.parametrize('family, embedding', [('electra', 24), ('electra', 32), ('modern', 32)])
def test_a_narrowed_generator_has_units_heads_and_layers_at_even_distances(family, embedding):
  w = weights_of(family, embedding=embedding, generator=False)
  g = generator_config(w.discriminator, 0.5, 0.5)
  found = narrowed.with_generator(w, g, 'embeddings')
  shapes = expected_shapes(found)
  assert jax.tree.map(np.shape, found.params['generator']) == jax.tree.map(
    np.shape, shapes['generator']
  )
  theirs, ours = w.params['discriminator']['layers'], found.params['generator']['layers']
  units, layers, heads = (
    [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31],
    [0, 3],
    [*range(8), *range(24, 32)],
  )
  np.testing.assert_array_equal(
    ours['query']['kernel'],
    theirs['query']['kernel'][layers][:, units][:, :, heads] * np.float32(2**0.5),
  )
  np.testing.assert_array_equal(
    ours['attention_output']['kernel'],
    theirs['attention_output']['kernel'][layers][:, heads][:, :, units] * np.float32(2**0.5),
  )
  np.testing.assert_array_equal(
    ours['mlp_norm']['scale'], theirs['mlp_norm']['scale'][layers][:, units]
  )
  project = found.params['generator']['embeddings_project']['kernel']
  if embedding == 24:
    np.testing.assert_array_equal(
      project, w.params['discriminator']['embeddings_project']['kernel'][:, units]
    )
  else:  # the projection selects the units that are kept, and the head maps them back
    x = np.arange(32, dtype=np.float32)
    np.testing.assert_array_equal(x @ project, x[units])
    assert jax.tree.map(np.shape, found.params['generator_head']) == jax.tree.map(
      np.shape, shapes['generator_head']
    )
    np.testing.assert_array_equal(found.params['generator_head']['dense']['kernel'], project.T)


@pytest.mark.parametrize('family, embedding', [('deberta-v2', 32), ('albert', 16), ('bert', 32)])
def test_tables_and_the_head_of_a_masked_language_model_are_narrowed_too(family, embedding):
  w = weights_of(family, embedding=embedding, generator=False)
  rng = np.random.default_rng(1)
  head = {
    'dense': {'kernel': rng.normal(size=(32, embedding)).astype(np.float32)}
    | {'bias': np.ones(embedding, np.float32)},
    'norm': {'scale': np.ones(embedding, np.float32), 'bias': np.ones(embedding, np.float32)},
    'bias': np.ones(50, np.float32),
  }
  w = dataclasses.replace(w, params=w.params | {'generator_head': head})
  found = narrowed.with_generator(w, generator_config(w.discriminator, 0.5, 0.5), 'embeddings')
  shapes = expected_shapes(found)
  for name in ('generator', 'generator_head'):
    assert jax.tree.map(np.shape, found.params[name]) == jax.tree.map(np.shape, shapes[name])
  units = np.linspace(0, 31, 16).round().astype(int)
  np.testing.assert_array_equal(
    found.params['generator_head']['dense']['kernel'],
    head['dense']['kernel'][units] * np.float32(2**0.5),
  )
  theirs, ours = w.params['discriminator'], found.params['generator']
  if family == 'deberta-v2':
    np.testing.assert_array_equal(ours['distances'], theirs['distances'][:, units])
  if family == 'albert':
    np.testing.assert_array_equal(
      ours['shared_layer']['mlp_norm']['scale'], theirs['shared_layer']['mlp_norm']['scale'][units]
    )


def test_a_masked_language_model_is_the_main_tower_where_a_family_is_pretrained_so(monkeypatch):
  d = weights_of('bert', embedding=32, generator=False)
  lm = dataclasses.replace(d, discriminator=None, generator=d.discriminator, sharing='none')
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), expected_shapes(lm))
  lm = dataclasses.replace(lm, params=params)
  monkeypatch.setattr(origins, 'open_source', lambda *_: lm)

  def opened(*changes):
    return resolve_run(micro_config(*FROM_HERE, *changes)).source.weights

  monkeypatch.setattr('electra_jax.pretrain.resolve.tokenizer_path', lambda *_: None)
  found = opened('objective.name=mlm')
  assert found.sharing == 'all' and found.params.keys() == {
    'embeddings',
    'discriminator',
    'generator_head',
  }
  assert same_bits(found.params['discriminator'], lm.params['generator'])
  # Its head serves a generator that is cut out of it, and no other.
  narrow = opened('continued.generator=narrowed', 'generator.hidden_fraction=0.5')
  scratch = opened('continued.generator=scratch')
  assert narrow.params.keys() == found.params.keys()
  assert scratch.params.keys() == {'embeddings', 'discriminator'}
  assert narrow.generator is None and narrow.discriminator.family == 'bert'
  with pytest.raises(UserError, match='has no generator; name one'):
    opened()


def test_the_head_of_a_fine_tuned_model_is_left_out_with_a_note(monkeypatch):
  w = weights_of('bert', embedding=32, generator=False)
  head = Head('classification', 'transformers', ('a', 'b'), 'cls', {})
  monkeypatch.setattr(origins, 'open_source', lambda *_: dataclasses.replace(w, head=head))
  monkeypatch.setattr('electra_jax.pretrain.resolve.tokenizer_path', lambda *_: None)
  found = resolve_run(micro_config(*FROM_HERE, 'objective.name=mlm'))
  weights = found.source.weights
  assert weights.head is None and 'the head of here for classification is not used' in weights.notes


def test_the_commit_of_a_repository_is_used_again_by_later_starts(monkeypatch, tmp_path):
  w = dataclasses.replace(weights_of('bert', embedding=32, generator=False), revision='abc123')
  asked = []
  monkeypatch.setattr(origins, 'open_source', lambda source, *_: asked.append(source) or w)
  monkeypatch.setattr('electra_jax.pretrain.resolve.tokenizer_path', lambda *_: None)
  config = micro_config(*FROM_HERE[1:], 'init=hf:org/name', 'objective.name=mlm')
  run = resolve_run(config, tmp_path)
  assert dict(run.revisions) == {'hf:org/name': 'abc123'}
  (tmp_path / 'resolved.json').write_text(json.dumps({'revisions': dict(run.revisions)}))
  resolve_run(config, tmp_path)
  assert asked == ['hf:org/name', 'hf:org/name@abc123']


def test_heads_of_another_size_are_refused():
  w = weights_of(generator=False)
  with pytest.raises(UserError, match='whole heads are kept'):
    narrowed.narrowed_generator(
      w, dataclasses.replace(w.discriminator, hidden_size=12, num_heads=3)
    )


def vocabulary(tmp_path, name, words):
  tmp_path.joinpath(name).mkdir()
  path = tmp_path / name / 'vocab.txt'
  path.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]) + '\n')
  return str(path.parent)


WORDS = [
  *'abcdefghijklmnopqrstuvwxyz',
  *(f'##{c}' for c in 'abcdefghijklmnopqrs'),
]  # 45 and 5 special tokens


@pytest.fixture
def case(tmp_path):
  """A function from changes to a config, its initial weights and the tokenizer of the rows."""

  def make(new_words=(), family='electra', **fields):
    w = dataclasses.replace(
      weights_of(family, embedding=16 if family == 'electra' else 32),
      tokenizer=vocabulary(tmp_path, 'old', WORDS),
      step=5,
    )
    w = dataclasses.replace(
      w, moments={name: jax.tree.map(np.abs, w.params) for name in ('mu', 'nu')}
    )
    config = micro_config()
    config.init, config.data.tokenizer = 'hf:here', 'init'
    for name in SIZES:
      config.model[name] = getattr(w.discriminator, name)
    config.generator.update(hidden_fraction=0.5, layers_fraction=0.5)
    config.sharing = 'embeddings'
    for name, value in fields.items():
      (config.model if name == 'max_positions' else config.continued)[name] = value
    tokenizer = load_tokenizer(vocabulary(tmp_path, 'new', [*WORDS, *new_words]))
    return config, w, tokenizer

  return make


def begin(config, w, tokenizer):
  config = freeze(PretrainingConfig, config)
  return initial_state(config, InitialWeights(*origins.with_tokenizer(w, 'here')), tokenizer)


def test_the_same_vocabulary_keeps_every_bit(case):
  config, w, tokenizer = case()
  start = begin(config, w, tokenizer)
  assert same_bits(start.params, w.params) and start.moments is None and start.step == 0


def test_new_tokens_are_initialized_with_the_mean_of_all_or_of_their_pieces(case):
  config, w, tokenizer = case(['cab'], new_tokens='pieces')
  start = begin(config, w, tokenizer)
  old, ids = w.params['embeddings']['word'], [7, 5 + 26, 5 + 27]  # c, ##a, ##b
  np.testing.assert_array_equal(start.params['embeddings']['word'][:50], old)
  np.testing.assert_allclose(start.params['embeddings']['word'][50], old[ids].mean(0), rtol=1e-6)
  np.testing.assert_allclose(
    start.params['generator_head']['bias'][50],
    w.params['generator_head']['bias'][ids].mean(),
    rtol=1e-6,
  )
  config.continued.new_tokens = 'mean'
  start = begin(config, w, tokenizer)
  np.testing.assert_allclose(
    start.params['embeddings']['word'][50], old.mean(0), rtol=1e-5, atol=1e-7
  )
  config.continued.new_tokens = 'refuse'
  with pytest.raises(
    UserError,
    match="1 tokens of the tokenizer are not among those of here \\('cab' is the first\\)",
  ):
    begin(config, w, tokenizer)


def test_kept_moments_follow_their_rows_and_new_rows_have_zeros(case):
  config, w, tokenizer = case(['cab'], new_tokens='mean', optimizer='kept')
  start = begin(config, w, tokenizer)
  for name in ('mu', 'nu'):
    rows = start.moments[name]['embeddings']['word']
    np.testing.assert_array_equal(rows[:50], w.moments[name]['embeddings']['word'])
    assert not rows[50].any()
  assert (start.updates, start.step) == (5, 0)


def test_rows_that_pad_a_vocabulary_are_removed_and_another_vocabulary_is_refused(case):
  config, w, tokenizer = case()

  def wide(tree):
    return jax.tree_util.tree_map_with_path(
      lambda path, x: (
        np.concatenate([x, x[:6]])
        if path[-1].key == 'word' or [k.key for k in path] == ['generator_head', 'bias']
        else x
      ),
      tree,
    )

  padded = dataclasses.replace(
    w,
    params=wide(w.params),
    **{
      t: dataclasses.replace(getattr(w, t), vocab_size=56) for t in ('discriminator', 'generator')
    },
  )
  start = begin(config, padded, tokenizer)
  assert (
    same_bits(start.params, w.params)
    and '6 rows that pad the vocabulary of 50 tokens are left out' in start.notes
  )
  small = dataclasses.replace(
    w,
    **{
      t: dataclasses.replace(getattr(w, t), vocab_size=40) for t in ('discriminator', 'generator')
    },
  )
  with pytest.raises(
    UserError,
    match='here has embeddings of 40 tokens and a tokenizer of 50',
  ):
    begin(config, small, tokenizer)


@pytest.mark.parametrize('how', ['interpolated', 'repeated'])
def test_longer_rows_get_positions(case, how):
  config, w, tokenizer = case(max_positions=39, positions=how)
  table, old = (
    begin(config, w, tokenizer).params['embeddings']['position'],
    w.params['embeddings']['position'],
  )
  assert table.shape == (39, 16) and table.dtype == np.float32
  if how == 'repeated':
    np.testing.assert_array_equal(table, np.concatenate([old, old[:19]]))
  else:
    np.testing.assert_array_equal(table[::2], old)
    np.testing.assert_allclose(table[1::2], (old[1:] + old[:-1]) / 2, rtol=1e-5, atol=1e-6)


def test_the_initial_state_has_the_weights_moments_and_step_of_the_source(case):
  config, w, tokenizer = case()
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  typed = freeze(PretrainingConfig, config)
  p = build.program(typed, phases_of(typed)[0], tokenizer, layout)
  fresh = jax.jit(
    lambda: pretrain_step.init_state(p.model, p.optimizer, 0, 32), out_shardings=p.shardings
  )()

  def cut(tree):
    return trim_vocabulary(tree, 50)

  def only(state, kind):
    return next(
      x
      for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, kind))
      if isinstance(x, kind)
    )

  for how, counts in (('fresh', (0, 0, 0)), ('kept', (5, 0, 0)), ('resumed', (5, 5, 5))):
    config.continued.optimizer = how
    state = jax.device_get(place_initial(begin(config, w, tokenizer), fresh, p.shardings))
    padded = p.model.discriminator_config.padded_vocab_size
    assert (
      state.params['embeddings']['word'].shape == (padded, 16)
      and not state.params['embeddings']['word'][50:].any()
    )
    assert same_bits(cut(state.params), w.params)
    adam, schedule = only(state, optax.ScaleByAdamState), only(state, optax.ScaleByScheduleState)
    if how == 'fresh':
      assert not any(x.any() for x in jax.tree.leaves((adam.mu, adam.nu)))
    else:
      assert same_bits(cut(adam.mu), w.moments['mu']) and same_bits(cut(adam.nu), w.moments['nu'])
    assert (int(adam.count), int(schedule.count), int(state.step)) == counts


def test_what_the_weights_lack_is_reported_before_the_corpus_is_read(case, monkeypatch):
  config, w, tokenizer = case()
  for changes, weights, said in (
    (
      {'optimizer': 'kept'},
      dataclasses.replace(w, moments=None),
      "no optimizer's state; set --config.continued.optimizer=fresh",
    ),
    (
      {'optimizer': 'resumed'},
      dataclasses.replace(w, step=30),
      'is at step 30 and config.steps, the number of all steps together, is 30',
    ),
    (
      {'generator': 'narrowed'},
      dataclasses.replace(w, discriminator=dataclasses.replace(w.discriminator, num_heads=8)),
      'whole heads are kept',
    ),
    ({}, dataclasses.replace(w, generator=None), 'has no generator; name one'),
    (
      {},
      dataclasses.replace(w, discriminator=None),
      'is a generator; config.init names the discriminator',
    ),
    (
      {},
      dataclasses.replace(w, generator=dataclasses.replace(w.generator, max_positions=19)),
      'max_positions is 19 in the generator and 20',
    ),
  ):
    monkeypatch.setattr(origins, 'open_source', lambda *_, weights=weights: weights)
    asked = micro_config(
      *FROM_HERE,
      'generator.hidden_fraction=0.25',
      *(f'continued.{name}={value}' for name, value in changes.items()),
    )
    if 'generator' in changes:
      asked.generator.hidden_fraction = 3 / 32
    with pytest.raises(UserError, match=said):
      resolve_run(asked)
  # A vocabulary that does not fit is reported then too.
  asked.data.tokenizer = w.tokenizer.replace('old', 'new')
  source = InitialWeights(w, load_tokenizer(w.tokenizer))
  asked = checked_pretraining(asked)
  assert tokenizer_path(asked, source) is None
  pathlib.Path(asked.data.tokenizer, 'vocab.txt').open('a').write('cab\n')
  with pytest.raises(UserError, match='1 tokens of the tokenizer are not among those of here'):
    tokenizer_path(asked, source)


def test_another_generator_replaces_the_one_of_the_source(case, monkeypatch, tmp_path):
  _, w, _ = case()
  other = dataclasses.replace(weights_of(), source='there', tokenizer=w.tokenizer)
  rng = np.random.default_rng(1)
  params = {
    name: jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), other.params[name])
    for name in ('generator', 'generator_head')
  }
  generator_only = dataclasses.replace(
    other,
    discriminator=None,
    sharing='none',
    params=params | {'generator_embeddings': w.params['embeddings']},
  )
  monkeypatch.setattr(
    origins, 'open_source', lambda text, *_: generator_only if text == 'hf:there' else w
  )
  asked = micro_config(*FROM_HERE, 'continued.optimizer=kept', 'continued.generator=hf:there')
  run = resolve_run(asked)
  config, source = run.config, run.source
  assert config.sharing == 'embeddings' and same_bits(
    source.weights.params['generator'], params['generator']
  )
  assert set(source.weights.moments['mu']) == {
    'embeddings',
    'discriminator',
    'discriminator_head',
  }  # those of the new generator are zeros
  start = initial_state(config, source, source.tokenizer)
  assert 'the generator of here is not used, by config.continued.generator' in start.notes


def test_a_generator_with_narrower_embeddings_is_continued(case, monkeypatch):
  _, w, _ = case()
  narrow = dataclasses.replace(w.generator, embedding_size=8)
  untied = dataclasses.replace(w, generator=narrow, sharing='none', params={})
  rng = np.random.default_rng(2)
  untied = dataclasses.replace(
    untied,
    params=jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), expected_shapes(untied)
    ),
  )
  monkeypatch.setattr(origins, 'open_source', lambda *_: untied)
  asked = micro_config(*FROM_HERE)
  run = resolve_run(asked)
  config, source = run.config, run.source
  assert (config.sharing, config.generator.embedding_size) == ('none', 8)
  assert same_bits(initial_state(config, source, source.tokenizer).params, untied.params)
  assert build.build_model(config, 50).generator_config.embedding_size == narrow.embedding_size


#### Configs ####


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'data.tokenizer': 'init'}, "config.data.tokenizer is 'init' and config.init is empty"),
    ({'continued.optimizer': 'kept'}, 'config.continued.optimizer requires config.init'),
    ({'data.new_words': 'words.txt'}, 'config.data.new_words requires config.init'),
    ({'init': 'hf:x'}, "config.data.tokenizer 'unigram' trains another vocabulary"),
    (
      {'init': 'hf:x', 'data.tokenizer': 'init', 'continued.optimizer': 'old'},
      'config.continued.optimizer is .old.; expected fresh, kept or resumed',
    ),
    (
      {'init': 'hf:x', 'data.tokenizer': 'init', 'continued.generator': 'large'},
      'config.continued.generator is .large.',
    ),
    (
      {'init': 'hf:x', 'data.tokenizer': 'init', 'data.new_words': 'w'},
      'without embeddings in config.init; set --config.continued.new_tokens=mean or pieces',
    ),
    (
      {
        'init': 'hf:x',
        'data.tokenizer': 'init',
        'continued.optimizer': 'resumed',
        'generator.alone_steps': 5,
      },
      "'resumed' continues in the middle",
    ),
    (
      {'generator.alone_steps': 30},
      'config.generator.alone_steps is 30; expected above 0 and below the 30 steps',
    ),
    ({'generator.alone_steps': 28}, 'warmup_steps 2 is not less than config.steps 2'),
    (
      {'generator.alone_steps': 5, 'sharing': 'all', 'generator.hidden_fraction': 1.0},
      "config.sharing 'all' makes one tower of both",
    ),
  ],
)
def test_invalid_configs_are_reported_before_weights_are_read(fields, said):
  config = micro_config(*(f'{name}={value}' for name, value in fields.items()))
  with pytest.raises(UserError, match=said):
    checked_pretraining(config)


def test_an_invalid_source_is_reported_in_one_sentence(tmp_path, capsys):
  for init, said in (
    ('hf:' + str(tmp_path), 'has no config.json'),
    (str(tmp_path), 'is not a run'),
    ('tf:' + str(tmp_path), str(tmp_path)),
    ('hf:', 'has no path'),
  ):
    assert (
      main.main(
        [
          'main',
          '--config=tests/configs/micro.py',
          f'--config.init={init}',
          '--config.data.tokenizer=init',
          f'--workdir={tmp_path / "w"}',
        ]
      )
      == 1
    )
    err = capsys.readouterr().err
    assert said in err and err.count('\n') == 1 and err.startswith('electra_jax: '), err
