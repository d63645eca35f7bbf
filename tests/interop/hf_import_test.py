"""Models of transformers are read, and compute what PyTorch computes; other folders are refused."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys

import hf_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_files import applied, assert_close, assert_same_outputs, our_inputs
from safetensors.numpy import save_file

from electra_jax.errors import UserError
from electra_jax.interop import hf_electra, hf_modernbert, hf_tensors, huggingface
from electra_jax.interop.weights import same_bits, tower_params
from electra_jax.model.electra import Electra

# Positions of the masked tokens in hf_files.rows.
POSITIONS = np.array([[1, 3, 19], [12, 2, 5], [1, 3, 2]])


#### Outputs and gradients ####


def their_results(made, kind, rows):
  """Returns logits, loss and gradients by name of a PyTorch tower.

  Tokens at POSITIONS are masked; every third token counts as replaced.
  """
  ids, types, real = rows
  inputs = {'input_ids': torch.tensor(ids), 'attention_mask': torch.tensor(real).long()}
  if made.config.model_type == 'electra':
    inputs['token_type_ids'] = torch.tensor(types)
  logits = made(**inputs).logits
  if kind == 'generator':
    logits = logits[torch.arange(len(ids))[:, None], torch.tensor(POSITIONS)]
    loss = torch.nn.functional.cross_entropy(
      logits.flatten(0, 1), torch.tensor(targets(rows)).flatten()
    )
  else:
    logits = logits.reshape(ids.shape)[torch.tensor(real)]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
      logits, torch.tensor(targets(rows, False)[real]).float()
    )
  loss.backward()
  return (
    logits.detach().numpy(),
    loss.item(),
    {name: value.grad.numpy() for name, value in made.named_parameters()},
  )


def targets(rows, generator=True):
  return np.take_along_axis(rows[0] % 7 + 5, POSITIONS, 1) if generator else rows[0] % 3 == 0


def our_results(weights, kind, rows):
  inputs, config = our_inputs(*rows), weights.generator or weights.discriminator
  model = Electra(config, config, sharing=weights.sharing)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    if kind == 'generator':
      logits = model.apply(
        {'params': params}, inputs, jnp.asarray(POSITIONS), method='generator_logits'
      )
      chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.asarray(targets(rows))[..., None], -1
      )
      return -chosen.mean(), logits
    logits = model.apply({'params': params}, inputs, method='discriminator_logits')[rows[2]]
    is_fake = jnp.asarray(targets(rows, False)[rows[2]], jnp.float32)
    return jnp.mean(jax.nn.softplus(logits) - is_fake * logits), logits

  (loss, logits), gradients = run(weights.params)
  module = hf_electra if config.family == 'electra' else hf_modernbert
  tree = tower_params(
    type(weights)(weights.source, None, None, weights.sharing, jax.device_get(gradients)), kind
  )
  return logits, loss, hf_tensors.from_params(tree, module.ARCHITECTURE, kind, config)


SMALL = {
  'vocab_size': 30522,
  'embedding_size': 128,
  'hidden_size': 256,
  'num_hidden_layers': 12,
  'num_attention_heads': 4,
  'intermediate_size': 1024,
  'max_position_embeddings': 512,
  'type_vocab_size': 2,
}
BASE = SMALL | {
  'embedding_size': 768,
  'hidden_size': 768,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
}
SMALL_GENERATOR = SMALL | {'hidden_size': 64, 'num_attention_heads': 1, 'intermediate_size': 256}
BASE_GENERATOR = BASE | {'hidden_size': 256, 'num_attention_heads': 4, 'intermediate_size': 1024}


@pytest.mark.parametrize(
  'family, kind, fields',
  [
    ('electra', 'discriminator', SMALL),
    ('electra', 'generator', SMALL_GENERATOR),
    pytest.param('electra', 'discriminator', BASE, marks=pytest.mark.clients),
    pytest.param('electra', 'generator', BASE_GENERATOR, marks=pytest.mark.clients),
    ('electra', 'generator', {'num_attention_heads': 1, 'intermediate_size': 33}),
    ('modern', 'generator', {}),
    (
      'modern',
      'discriminator',
      {
        'global_attn_every_n_layers': 3,
        'num_hidden_layers': 5,
        'hidden_size': 24,
        'local_attention': 6,
      },
    ),
  ],
  ids=[
    'small',
    "small's generator",
    'base',
    "base's generator",
    'odd sizes, one head',
    'every second global',
    'every third global',
  ],
)
def test_logits_loss_and_gradients_equal_pytorch_in_both_directions(family, kind, fields, tmp_path):
  made = hf_files.model(family, kind, **fields)
  weights = huggingface.read_weights(hf_files.saved(made, tmp_path / 'in'))
  rows = hf_files.rows()
  theirs, ours = their_results(made, kind, rows), our_results(weights, kind, rows)
  assert_close(ours[0], theirs[0], 'logits')
  assert_close(ours[1], theirs[1], 'loss')
  assert ours[2].keys() == theirs[2].keys()
  for name, gradient in theirs[2].items():
    # The generator's embeddings and decoder are one parameter. The gradient of a key's bias, which
    # adds the same to all scores, is rounding.
    assert_close(ours[2][name], gradient, name)
  (logits,) = hf_files.outputs(
    hf_files.opened(huggingface.model_files(weights, kind), tmp_path / 'out', kind, family), *rows
  )
  there = (
    np.take_along_axis(logits, POSITIONS[..., None], 1)
    if kind == 'generator'
    else logits.reshape(rows[2].shape)[rows[2]]
  )
  assert_close(there, ours[0], 'logits of the written model')
  shutil.rmtree(tmp_path)  # up to a gigabyte


@pytest.mark.parametrize(
  'family, kind, fields',
  [
    ('electra', 'encoder', {}),
    ('electra', 'classification', {}),
    ('electra', 'tagging', {}),
    ('modern', 'encoder', {}),
    ('modern', 'classification', {'num_labels': 1, 'classifier_pooling': 'mean'}),
    ('modern', 'span', {}),
  ],
)
def test_heads_give_the_logits_of_pytorch(family, kind, fields, tmp_path):
  made = hf_files.model(family, kind, **fields)
  weights = huggingface.read_weights(hf_files.saved(made, tmp_path))
  assert (weights.head is None) == (kind == 'encoder')
  assert_same_outputs(weights, made)


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_a_change_of_any_tensor_changes_the_outputs(family, tmp_path):
  made, rows = hf_files.model(family), hf_files.rows()
  path = hf_files.saved(made, tmp_path)
  weights, expected = (
    huggingface.read_weights(path),
    hf_files.outputs(made, *rows)[0].reshape(rows[2].shape)[rows[2]],
  )

  def run(weights):
    return applied(weights, 'discriminator_logits', rows)[rows[2]]

  assert_close(run(weights), expected)
  kept = hf_files.state(made)
  for name, value in kept.items():
    if name.endswith('key.bias'):
      continue  # it adds the same to every score of a query, which softmax ignores
    changed = value + 0.05 * np.random.default_rng(0).standard_normal(value.shape, np.float32)
    save_file(kept | {name: changed}, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(AssertionError):
      assert_close(run(huggingface.read_weights(path)), expected)
      pytest.fail(f'a change of {name} was not detected', pytrace=False)


#### File formats and older releases ####


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_all_file_formats_give_the_same_weights(family, tmp_path):
  made = hf_files.model(family, 'generator')
  whole = huggingface.read_weights(hf_files.saved(made, tmp_path / 'whole'))
  sharded = hf_files.saved(made, tmp_path / 'sharded', max_shard_size='4KB')
  assert len(list(pathlib.Path(sharded).glob('model-*.safetensors'))) > 2
  for path in (sharded, hf_files.rewritten(made, tmp_path / 'bin')):
    assert same_bits(huggingface.read_weights(path).params, whole.params), path


def without_prefix(tensors):
  return {
    name.removeprefix('electra.').removeprefix('model.'): value for name, value in tensors.items()
  }


def gamma_and_beta(tensors):
  return {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): value
    for name, value in tensors.items()
  }


def with_buffers(tensors):
  return tensors | {
    'electra.embeddings.position_ids': torch.arange(33)[None],
    'electra.embeddings.token_type_ids': torch.zeros(1, 33, dtype=torch.long),
  }


def with_copies(tensors):
  word = tensors['electra.embeddings.word_embeddings.weight']
  return tensors | {
    'generator_lm_head.weight': word,
    'generator_predictions.bias': tensors['generator_lm_head.bias'],
  }


def bias_elsewhere(tensors):
  bias = tensors['generator_lm_head.bias']
  return {name: value for name, value in tensors.items() if 'lm_head' not in name} | {
    'generator_predictions.bias': bias
  }


@pytest.mark.parametrize(
  'older',
  [without_prefix, gamma_and_beta, with_buffers, with_copies, bias_elsewhere],
  ids=lambda older: older.__name__,
)
def test_tensor_names_of_older_releases_are_read(older, tmp_path):
  made = hf_files.model('electra', 'generator')
  now = huggingface.read_weights(hf_files.saved(made, tmp_path / 'now'))
  then = huggingface.read_weights(
    hf_files.rewritten(made, tmp_path / 'then', older(made.state_dict()))
  )
  assert same_bits(now.params, then.params)


@pytest.mark.parametrize('kind', hf_files.KINDS)
def test_without_a_class_the_tensors_decide_the_kind(kind, tmp_path):
  made = hf_files.model('electra', kind)
  path = hf_files.saved(made, tmp_path)
  named = huggingface.read_weights(path)
  hf_files.change_config(path, remove=('architectures', 'transformers_version'))
  unnamed = huggingface.read_weights(path)
  assert same_bits(unnamed.params, named.params)
  assert (unnamed.head and unnamed.head.kind) == (named.head and named.head.kind)
  assert (unnamed.discriminator, unnamed.generator) == (named.discriminator, named.generator)


def test_without_model_type_the_class_decides_the_architecture(tmp_path):
  path = hf_files.saved(hf_files.model(), tmp_path)
  hf_files.change_config(path, remove=('model_type',), architectures=['TFElectraForPreTraining'])
  assert huggingface.read_weights(path).discriminator.hidden_size == 16


@pytest.mark.parametrize('every', [1, 3])  # the models above have 2
def test_modernbert_config_fields_of_older_releases_are_read(every, tmp_path):
  made = hf_files.model(
    'modern',
    'generator',
    global_attn_every_n_layers=every,
    rope_parameters={
      'full_attention': {'rope_type': 'default', 'rope_theta': 500.0},
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
    },
  )
  path = hf_files.saved(made, tmp_path)
  now = huggingface.read_weights(path)
  assert (
    now.generator.global_every,
    now.generator.global_rope_theta,
    now.generator.local_rope_theta,
  ) == (every, 500, 50)
  hf_files.change_config(
    path,
    remove=('layer_types', 'rope_parameters', 'global_attn_every_n_layers'),
    global_rope_theta=500.0,
    local_rope_theta=50.0,
    global_attn_every_n_layers=every,
    position_embedding_type='absolute',
  )
  then = huggingface.read_weights(path)
  assert then.generator == now.generator
  assert_same_outputs(then, made)
  hf_files.change_config(path, local_rope_theta=None)  # null was the global value
  assert huggingface.read_weights(path).generator.local_rope_theta == 500


def test_a_missing_vocabulary_bias_of_modernbert_is_zero(tmp_path):
  made = hf_files.model('modern', 'generator', decoder_bias=False)
  weights = huggingface.read_weights(hf_files.saved(made, tmp_path))
  assert (
    not weights.params['generator_head']['bias'].any() and 'initialized to zero' in weights.notes[0]
  )
  assert_same_outputs(weights, made)


#### Contents of a folder ####


def test_labels_are_in_the_order_of_their_ids(tmp_path):
  labels = {10 - i: name for i, name in enumerate('ONMLKJIHGFE')}
  made = hf_files.model('electra', 'tagging', num_labels=11, id2label=labels)
  head = huggingface.read_weights(hf_files.saved(made, tmp_path)).head
  assert (head.kind, head.style, head.labels) == ('tagging', 'transformers', tuple('EFGHIJKLMNO'))


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_labels_without_names_are_numbered_as_in_transformers(family, tmp_path):
  head = huggingface.read_weights(
    hf_files.saved(hf_files.model(family, 'classification', num_labels=2), tmp_path)
  ).head
  assert (head.kind, head.labels) == ('classification', ('LABEL_0', 'LABEL_1'))


def test_a_modernbert_tagger_with_one_label_is_a_discriminator_unless_marked(tmp_path):
  path = hf_files.saved(hf_files.model('modern', 'discriminator'), tmp_path)
  assert huggingface.read_weights(path).head is None
  hf_files.change_config(path, electra_jax={'tower': 'finetuned'})
  assert huggingface.read_weights(path).head.kind == 'tagging'


def test_the_mark_is_ignored_in_a_model_with_several_labels(tmp_path):
  path = hf_files.saved(hf_files.model('modern', 'tagging'), tmp_path)
  hf_files.change_config(path, electra_jax={'tower': 'discriminator'})
  assert len(huggingface.read_weights(path).head.labels) == 5


def both(tmp_path, shared, **fields):
  discriminator = hf_files.model()
  generator = hf_files.model(
    'electra', 'generator', seed=1, **{'hidden_size': 8, 'num_attention_heads': 1} | fields
  )
  if shared:
    generator.electra.embeddings.load_state_dict(discriminator.electra.embeddings.state_dict())
  hf_files.saved(discriminator, tmp_path / 'discriminator')
  hf_files.saved(generator, tmp_path / 'generator')
  return str(tmp_path), discriminator, generator


@pytest.mark.parametrize('shared', [True, False])
def test_two_folders_inside_are_both_towers(shared, tmp_path):
  path, discriminator, generator = both(tmp_path, shared)
  weights = huggingface.read_weights(path)
  assert (weights.source, weights.sharing) == (path, 'embeddings' if shared else 'none')
  assert bool(weights.notes) == (not shared)
  rows = hf_files.rows()
  verdicts, guesses = (
    applied(weights, 'discriminator_logits', rows),
    applied(weights, 'generator_logits', rows),
  )
  assert_close(verdicts[rows[2]], hf_files.outputs(discriminator, *rows)[0][rows[2]])
  assert_close(guesses[rows[2]], hf_files.outputs(generator, *rows)[0][rows[2]])


def test_one_folder_inside_is_one_tower(tmp_path):
  path, *_ = both(tmp_path, True)
  shutil.rmtree(tmp_path / 'generator')
  assert huggingface.read_weights(path).generator is None


def test_a_tokenizer_is_found_in_the_folder_or_above_it(tmp_path):
  path, *_ = both(tmp_path, True)
  assert huggingface.read_weights(path).tokenizer is None
  (tmp_path / 'vocab.txt').write_text('[PAD]\n')
  assert huggingface.read_weights(path).tokenizer == path
  (tmp_path / 'discriminator' / 'tokenizer.json').write_text('{}')
  assert huggingface.read_weights(path).tokenizer == f'{path}/discriminator'


#### Without PyTorch ####


def test_reading_and_writing_do_not_require_torch_or_transformers(tmp_path):
  path = hf_files.saved(hf_files.model('electra', 'generator'), tmp_path / 'safetensors')
  other = hf_files.rewritten(hf_files.model('modern', 'tagging'), tmp_path / 'bin')
  libraries = ('torch', 'transformers', 'tokenizers', 'sentencepiece', 'tensorflow')
  libraries += ('huggingface_hub',)
  program = f"""
import sys
for name in {libraries!r}:
  sys.modules[name] = None
from electra_jax.interop import huggingface
for path, tower in (({path!r}, 'generator'), ({other!r}, 'finetuned')):
  files = huggingface.model_files(huggingface.read_weights(path), tower)
  assert sorted(files) == ['config.json', 'model.safetensors']
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


#### Refused folders ####


def refusal(path, *words):
  """Checks that reading raises UserError, in one sentence with the path and all words."""
  with pytest.raises(UserError) as error:
    huggingface.read_weights(str(path))
  text = str(error.value)
  assert text.endswith('.') and '\n' not in text and str(path) in text, text
  for word in words:
    assert word in text, text


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return {
    family: hf_files.saved(hf_files.model(family, 'generator'), tmp_path_factory.mktemp(family))
    for family in ('electra', 'modern')
  }


def changed(folders, tmp_path, family='electra', **fields):
  shutil.copytree(folders[family], tmp_path, dirs_exist_ok=True)
  hf_files.change_config(tmp_path, **fields)
  return tmp_path


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('model_type', 'bart', "model_type is 'bart'"),
    ('model_type', 'gpt2', "model_type is 'gpt2'"),
    ('hidden_act', 'relu', "'gelu'"),
    ('hidden_act', 'gelu_new', 'gelu_new'),
    ('position_embedding_type', 'relative_key', 'relative_key'),
    ('is_decoder', True, 'True'),
    ('add_cross_attention', True, 'True'),
    ('hidden_size', 'wide', "'wide'"),
    ('hidden_size', 15, 'hidden_size 15 does not divide into 2 heads'),
    ('layer_norm_eps', None, None),
    ('layer_norm_eps', 'small', "'small'"),
    ('num_hidden_layers', 0, 'num_layers is 0; expected at least 1'),
    ('architectures', 'ElectraForMaskedLM', 'expected a list'),
    ('architectures', ['ElectraForMultipleChoice'], 'has the class ElectraForMultipleChoice'),
    ('architectures', ['ElectraForPreTraining'], 'those of ElectraForMaskedLM'),
  ],
)
def test_unsupported_electra_configs_are_refused_with_field_and_value(
  field, value, message, folders, tmp_path
):
  path = changed(folders, tmp_path, **{field: value})
  if message is None:
    huggingface.read_weights(str(path))  # null is a missing field
  else:
    refusal(
      path,
      message,
      *(
        () if isinstance(value, list) or 'at least' in message or 'divide' in message else (field,)
      ),
    )


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('norm_bias', True, 'True'),
    ('attention_bias', True, 'True'),
    ('mlp_bias', True, 'True'),
    ('classifier_bias', True, 'True'),
    ('hidden_activation', 'silu', "'silu'"),
    ('classifier_activation', 'relu', "'relu'"),
    ('layer_types', ['sliding_attention'] * 4, 'full_attention'),
    ('layer_types', ['full_attention'] * 3, 'each of the 4 layers'),
    (
      'layer_types',
      ['full_attention', 'full_attention', 'sliding_attention', 'full_attention'],
      'in every n-th layer',
    ),
    ('rope_parameters', {'full_attention': {'rope_type': 'yarn', 'rope_theta': 1e4}}, "'yarn'"),
    ('rope_parameters', {'sliding_attention': {'rope_theta': 'x'}}, "'x'"),
    ('rope_parameters', 7, '7'),
    ('rope_scaling', {'type': 'linear', 'factor': 2.0}, "'linear'"),
    ('num_attention_heads', 16, 'even head size'),
  ],
)
def test_unsupported_modernbert_configs_are_refused_with_field_and_value(
  field, value, message, folders, tmp_path
):
  refusal(
    changed(folders, tmp_path, 'modern', **{field: value}),
    field if 'head size' not in message else 'config.json',
    message,
  )


def test_a_modernbert_head_without_a_class_is_refused(tmp_path):
  path = hf_files.saved(hf_files.model('modern', 'classification'), tmp_path)
  hf_files.change_config(path, remove=('architectures',))
  refusal(path, 'architectures', 'ModernBertForSequenceClassification')


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'problem_type': 'ranking'}, ('problem_type', 'multi_label_classification')),
    ({'problem_type': 'regression'}, ('problem_type', '3 labels')),
    ({'id2label': {'1': 'a', '2': 'b', '3': 'c'}}, ('id2label', '1, 2, 3')),
    ({'id2label': {'0': 'a', '1': 'b', '2': 'a'}}, ('id2label', "'a'")),
    ({'id2label': {'0': 'a', '1': 'b'}}, ('classifier.out_proj.weight is 3 x 16 and not 2 x 16',)),
  ],
)
def test_contradictory_labels_are_refused(fields, words, tmp_path):
  path = hf_files.saved(hf_files.model('electra', 'classification'), tmp_path)
  hf_files.change_config(path, **fields)
  refusal(path, *words)


def test_a_span_model_with_three_labels_is_refused(tmp_path):
  refusal(hf_files.saved(hf_files.model('electra', 'span', num_labels=3), tmp_path), '3 labels')


KEY = 'electra.encoder.layer.1.attention.self.key.weight'


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda t: t.pop(KEY), (f'{KEY} is missing',)),
    (lambda t: t.update({KEY: t[KEY][:, :5]}), (f'{KEY} is 16 x 5 and not 16 x 16',)),
    (
      lambda t: t.update({KEY: t[KEY] * float('nan')}),
      (f'{KEY} holds numbers that are not finite',),
    ),
    (lambda t: t.update({KEY: t[KEY].long()}), (f'{KEY} is of int64',)),
    (
      lambda t: t.update({'electra.encoder.layer.3.output.dense.bias': torch.zeros(16)}),
      ('electra.encoder.layer.3.output.dense.bias is unknown',),
    ),
    (lambda t: t.update({'encoder.layer.1.attention.self.key.weight': t[KEY]}), ('two names', KEY)),
    (
      lambda t: t.update(
        {
          'electra.embeddings.word_embeddings.weight': t[
            'electra.embeddings.word_embeddings.weight'
          ][:80],
          'generator_lm_head.weight': t['generator_lm_head.weight'][:80],
        }
      ),
      ('electra.embeddings.word_embeddings.weight is 80 x 12 and not 91 x 12',),
    ),
    (
      lambda t: t.update({'generator_lm_head.weight': t['generator_lm_head.weight'] + 1e-6}),
      ('generator_lm_head.weight differs',),
    ),
    (
      lambda t: t.update({'generator_predictions.bias': t['generator_lm_head.bias'] + 1}),
      ('generator_predictions.bias differs',),
    ),
    (
      lambda t: [t.pop(name) for name in list(t) if 'layer.2' in name],
      ('layer.2', 'is missing', 'and 11 more'),
    ),
  ],
  ids=[
    'missing',
    'misshapen',
    'not finite',
    'whole numbers',
    'too many',
    'twice',
    'another vocabulary',
    'untied',
    'two biases',
    'a layer too few',
  ],
)
def test_tensors_that_do_not_fit_are_named_as_in_the_file(change, words, tmp_path):
  made = hf_files.model('electra', 'generator')
  tensors = dict(made.state_dict())
  change(tensors)
  refusal(hf_files.rewritten(made, tmp_path, tensors), *words)


def test_modernbert_tensors_that_do_not_fit_are_named(tmp_path):
  made = hf_files.model('modern', 'generator')
  tensors = dict(made.state_dict())
  tensors.pop('model.layers.2.attn.Wqkv.weight')
  tensors['model.layers.0.mlp.Wi.weight'] = torch.zeros(24, 16)
  tensors['model.layers.0.attn_norm.weight'] = torch.ones(16)
  refusal(
    hf_files.rewritten(made, tmp_path, tensors),
    'model.layers.2.attn.Wqkv.weight is missing',
    'model.layers.0.mlp.Wi.weight is 24 x 16 and not 48 x 16',
    'model.layers.0.attn_norm.weight is unknown',
  )
  tensors = dict(made.state_dict()) | {'decoder.weight': torch.zeros(91, 16)}
  refusal(
    hf_files.rewritten(made, tmp_path, tensors),
    'decoder.weight differs from model.embeddings.tok_embeddings.weight',
  )


def test_folders_without_a_model_are_refused(tmp_path):
  refusal(tmp_path, 'has no config.json')
  refusal(tmp_path / 'google', 'is not a folder')
  (tmp_path / 'config.json').write_text('{"model_type": "elec')
  refusal(tmp_path, 'not JSON')
  (tmp_path / 'config.json').write_text('[]')
  refusal(tmp_path, 'no fields')
  (tmp_path / 'config.json').write_text('{}')
  refusal(tmp_path, 'model_type is missing')
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'electra'}))
  refusal(tmp_path)


def test_towers_that_do_not_match_are_refused(tmp_path):
  path, *_ = both(tmp_path / 'sizes', False, vocab_size=92)
  refusal(path, '91', '92')
  path, *_ = both(tmp_path / 'swapped', False)
  shutil.copytree(f'{path}/discriminator', f'{path}/generator', dirs_exist_ok=True)
  refusal(path, 'is a discriminator; expected a generator')
