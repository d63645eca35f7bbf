"""Written models open in transformers and compute what our model computes."""

import dataclasses
import json
import logging

import hf_files
import jax
import numpy as np
import pytest
import transformers
from hf_files import applied, assert_close, assert_same_outputs

from electra_jax.errors import UserError
from electra_jax.interop import huggingface, tensor_files
from electra_jax.interop.weights import Head, Weights, expected_shapes, same_bits
from electra_jax.model.config import EncoderConfig
from electra_jax.model.heads import ROW_KINDS

IDS = {
  'pad_id': hf_files.PAD,
  'unk_id': 1,
  'cls_id': hf_files.CLS,
  'sep_id': hf_files.SEP,
  'mask_id': 4,
}
ELECTRA = EncoderConfig(
  vocab_size=hf_files.VOCAB,
  hidden_size=16,
  embedding_size=12,
  num_layers=3,
  num_heads=2,
  intermediate_size=40,
  max_positions=33,
  type_vocab_size=2,
  vocab_multiple=1,
  dropout=0.2,
  attention_dropout=0.3,
)
MODERN = dataclasses.replace(
  ELECTRA,
  family='modern',
  embedding_size=16,
  layer_norm_eps=1e-5,
  num_layers=4,
  intermediate_size=24,
  max_positions=64,
  global_every=3,
  local_window=8,
  global_rope_theta=500.0,
  local_rope_theta=50.0,
)


def random(shapes, seed=0):
  """Returns arrays so large that all affect the output."""
  rng = np.random.default_rng(seed)

  def fresh(path, x):
    return (
      rng.standard_normal(x.shape) * (x.shape[-2] ** -0.5 if path[-1].key == 'kernel' else 0.3)
      + (path[-1].key == 'scale')
    ).astype(np.float32)

  return jax.tree_util.tree_map_with_path(fresh, shapes)


def towers(discriminator, sharing='embeddings', **fields) -> Weights:
  weights = Weights(
    'a run', discriminator, dataclasses.replace(discriminator, **fields), sharing, {}
  )
  return dataclasses.replace(weights, params=random(expected_shapes(weights)))


def fine_tuned(
  config, kind, style='transformers', labels=('no', 'yes', 'maybe'), pooling='cls'
) -> Weights:
  labels = labels if kind in ('classification', 'multilabel', 'tagging') else ()
  weights = Weights('a run', config, None, 'embeddings', {}, Head(kind, style, labels, pooling, {}))
  params = random(expected_shapes(weights))
  return dataclasses.replace(
    weights, head=dataclasses.replace(weights.head, params=params.pop('head')), params=params
  )


def config_of(files):
  return json.loads(files['config.json'])


#### Outputs in PyTorch ####


@pytest.mark.parametrize(
  'config, sharing, fields',
  [
    (
      ELECTRA,
      'embeddings',
      {'hidden_size': 8, 'num_heads': 1, 'intermediate_size': 20, 'num_layers': 2},
    ),
    (ELECTRA, 'all', {}),
    (ELECTRA, 'none', {'embedding_size': 8, 'hidden_size': 8, 'num_heads': 1}),
    (MODERN, 'embeddings', {'num_layers': 2}),
    pytest.param(
      MODERN,
      'none',
      {'hidden_size': 8, 'embedding_size': 8, 'global_every': 1},
      marks=pytest.mark.long,
    ),
  ],
  ids=['electra', 'electra, all shared', 'electra, none shared', 'modern', 'modern, none shared'],
)
def test_both_towers_give_the_same_outputs_in_transformers(config, sharing, fields, tmp_path):
  weights, rows = towers(config, sharing, **fields), hf_files.rows()
  real = rows[2]
  found = {
    tower: huggingface.model_files(weights, tower, special_ids=IDS)
    for tower in ('discriminator', 'generator')
  }
  ours = {tower: applied(weights, f'{tower}_logits', rows) for tower in found}
  for tower, files in found.items():
    theirs = hf_files.outputs(
      hf_files.opened(files, tmp_path / tower, tower, config.family), *rows
    )[0]
    assert_close(np.asarray(ours[tower])[real], theirs.reshape(ours[tower].shape)[real], tower)
  again = huggingface.read_weights(str(tmp_path))
  assert same_bits(again.params, weights.params)
  assert (again.discriminator, again.generator, again.sharing) == (
    weights.discriminator,
    weights.generator,
    sharing,
  )


@pytest.mark.parametrize('config', [ELECTRA, MODERN], ids=['electra', 'modern'])
def test_the_encoder_opens_without_its_head(config, tmp_path):
  weights, rows = towers(config), hf_files.rows()
  hf_files.write(huggingface.model_files(weights, 'discriminator', special_ids=IDS), tmp_path)
  made = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation='eager').eval()
  assert_close(
    np.asarray(applied(weights, 'hidden_states', rows))[rows[2]],
    hf_files.outputs(made, *rows)[0][rows[2]],
  )


@pytest.mark.parametrize(
  'config, kind, pooling',
  [
    *[
      (config, kind, 'cls')
      for config in (ELECTRA, MODERN)
      for kind in ('classification', 'tagging', 'span')
    ],
    (ELECTRA, 'regression', 'cls'),
    (ELECTRA, 'multilabel', 'cls'),
    (ELECTRA, 'choice', 'cls'),
    (MODERN, 'choice', 'mean'),
    (MODERN, 'regression', 'mean'),
  ],
)
def test_fine_tuned_models_give_the_same_outputs_in_transformers(config, kind, pooling, tmp_path):
  weights = fine_tuned(config, kind, pooling=pooling)
  files = huggingface.model_files(weights, 'finetuned', special_ids=IDS)
  theirs = 'classification' if kind in ROW_KINDS and kind != 'choice' else kind
  made = hf_files.opened(files, tmp_path, theirs, config.family)
  assert_same_outputs(weights, made)
  if kind == 'multilabel':
    assert made.config.problem_type == 'multi_label_classification'
  if weights.head.labels:
    assert made.config.id2label == dict(enumerate(weights.head.labels))
    assert made.config.label2id == {name: i for i, name in enumerate(weights.head.labels)}
  again = huggingface.read_weights(str(tmp_path))
  assert same_bits((again.params, again.head.params), (weights.params, weights.head.params))
  assert again.discriminator == weights.discriminator and dataclasses.replace(
    again.head, params={}
  ) == dataclasses.replace(weights.head, params={})


@pytest.mark.parametrize('kind, labels', [('classification', 8), ('regression', 0), ('tagging', 3)])
def test_published_heads_of_electra_give_the_same_logits_in_transformers(kind, labels, tmp_path):
  weights = fine_tuned(ELECTRA, kind, 'published', tuple(f'label {i}' for i in range(labels)))
  files = huggingface.model_files(weights, 'finetuned', special_ids=IDS)
  assert_same_outputs(
    weights, hf_files.opened(files, tmp_path, 'classification' if kind == 'regression' else kind)
  )


def test_a_discriminator_without_its_head_is_written_as_an_encoder(tmp_path):
  weights = towers(ELECTRA)
  del weights.params['discriminator_head']
  hf_files.opened(
    huggingface.model_files(weights, 'discriminator', special_ids=IDS), tmp_path, 'encoder'
  )


def test_opening_gives_no_warnings(tmp_path, caplog, recwarn):
  logger = logging.getLogger('transformers')
  logger.addHandler(caplog.handler)  # the logger does not propagate
  try:
    for config in (ELECTRA, MODERN):
      for tower in ('discriminator', 'generator'):
        kind = 'encoder' if (config, tower) == (MODERN, 'discriminator') else tower
        hf_files.opened(
          huggingface.model_files(towers(config), tower, special_ids=IDS),
          tmp_path / config.family / tower,
          kind,
          config.family,
        )
      hf_files.opened(
        huggingface.model_files(fine_tuned(config, 'tagging'), 'finetuned'),
        tmp_path / config.family / 'tagging',
        'tagging',
        config.family,
      )
  finally:
    logger.removeHandler(caplog.handler)
  assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
  assert not [
    str(warning.message) for warning in recwarn if 'transformers' in str(warning.filename)
  ]


#### Round trips ####


@pytest.mark.parametrize('family', ['electra', 'modern'])
@pytest.mark.parametrize('kind', hf_files.KINDS)
def test_tensors_survive_reading_and_writing_with_name_and_bits(family, kind, tmp_path):
  made = hf_files.model(family, kind)
  path = hf_files.saved(made, tmp_path / 'theirs')
  weights = huggingface.read_weights(path)
  tower = 'finetuned' if weights.head else 'generator' if weights.generator else 'discriminator'
  files = huggingface.model_files(weights, tower, special_ids=IDS)
  before, after = (
    tensor_files.read_tensors(path),
    tensor_files.read_tensors(hf_files.write(files, tmp_path / 'ours')),
  )
  if (family, kind) == (
    'modern',
    'discriminator',
  ):  # of a token classifier, which older exports are
    head = tensor_files.read_tensors(str(tmp_path / 'ours' / huggingface.HEAD))
    after = {f'model.{name}': value for name, value in after.items()} | head
  assert before.keys() == after.keys()
  assert all(
    before[name].dtype == after[name].dtype and before[name].tobytes() == after[name].tobytes()
    for name in before
  )
  again = huggingface.read_weights(str(tmp_path / 'ours'))
  assert again.discriminator == weights.discriminator and again.generator == weights.generator
  # The configs are equal, except for who wrote them and for placeholder names.
  theirs = made.config.to_dict()
  ours = type(made.config).from_pretrained(tmp_path / 'ours').to_dict()
  differ = {name for name in theirs if theirs[name] != ours.get(name)} - {
    'transformers_version',
    'dtype',
    '_name_or_path',
  }
  classes = {'architectures', 'id2label', 'label2id'}
  assert differ <= (classes if (family, kind) == ('modern', 'discriminator') else {'problem_type'})


#### Config.json ####


def test_the_config_has_the_fields_of_releases_before_5():
  config = config_of(huggingface.model_files(towers(MODERN), 'discriminator', special_ids=IDS))
  assert (
    config['global_attn_every_n_layers'],
    config['global_rope_theta'],
    config['local_rope_theta'],
  ) == (3, 500.0, 50.0)
  assert config['layer_types'] == [
    'full_attention',
    'sliding_attention',
    'sliding_attention',
    'full_attention',
  ]
  assert config['architectures'] == ['ModernBertModel'] and 'id2label' not in config
  assert config['electra_jax'] == {'tower': 'discriminator', 'head': huggingface.HEAD}
  assert config['torch_dtype'] == config['dtype'] == 'float32'


def test_special_ids_are_those_of_the_tokenizer_or_none():
  names = ('pad_token_id', 'cls_token_id', 'bos_token_id', 'sep_token_id', 'eos_token_id')
  config = config_of(huggingface.model_files(towers(MODERN), 'generator', special_ids=IDS))
  assert [config[name] for name in names] == [0, 2, 2, 3, 3]
  config = config_of(huggingface.model_files(towers(MODERN), 'generator'))
  assert [config[name] for name in names] == [None] * 5
  assert (
    config_of(huggingface.model_files(towers(ELECTRA), 'generator', special_ids=IDS))[
      'pad_token_id'
    ]
    == 0
  )


def test_extra_fields_replace_others():
  config = config_of(
    huggingface.model_files(
      towers(ELECTRA), 'generator', extra={'pad_token_id': 5, 'what': {'is': 'this'}}
    )
  )
  assert (config['pad_token_id'], config['what']) == (5, {'is': 'this'})


def test_equal_weights_give_equal_bytes():
  assert huggingface.model_files(towers(ELECTRA), 'generator') == huggingface.model_files(
    towers(ELECTRA), 'generator'
  )


#### Models that transformers does not have ####


@pytest.mark.parametrize(
  'weights, tower, message',
  [
    (
      lambda: towers(dataclasses.replace(MODERN, embedding_size=8)),
      'discriminator',
      'no such projection',
    ),
    (lambda: towers(MODERN, hidden_size=8, num_heads=1), 'generator', 'projected to a width of 8'),
    (
      lambda: fine_tuned(MODERN, 'tagging', 'published'),
      'finetuned',
      'config.head.style=transformers',
    ),
    (
      lambda: fine_tuned(MODERN, 'classification', 'published'),
      'finetuned',
      'config.head.style=transformers',
    ),
    (
      lambda: fine_tuned(ELECTRA, 'span', 'published'),
      'finetuned',
      'config.head.style=transformers',
    ),
    (
      lambda: fine_tuned(ELECTRA, 'classification', 'published', pooling='mean'),
      'finetuned',
      'its pooling is mean; expected cls',
    ),
    (
      lambda: fine_tuned(ELECTRA, 'classification', pooling='mean'),
      'finetuned',
      'its pooling is mean; expected cls',
    ),
    (
      lambda: fine_tuned(ELECTRA, 'classification', 'published', tuple('abcdefghi')),
      'finetuned',
      'config.head.style=transformers',
    ),
    (
      lambda: towers(ELECTRA, max_positions=20),
      'generator',
      'embeddings/position is 33 x 12 and not 20 x 12',
    ),
    (
      lambda: towers(ELECTRA, type_vocab_size=5),
      'generator',
      'embeddings/type is 2 x 12 and not 5 x 12',
    ),
    (
      lambda: dataclasses.replace(towers(ELECTRA), generator=None),
      'generator',
      'no generator model',
    ),
    (lambda: towers(ELECTRA), 'finetuned', 'no finetuned model'),
  ],
)
def test_unsupported_models_are_refused_with_the_reason(weights, tower, message):
  with pytest.raises(UserError) as error:
    huggingface.model_files(weights(), tower)
  assert (
    message in str(error.value) and str(error.value).endswith('.') and 'a run' in str(error.value)
  ), str(error.value)


def test_a_generator_without_a_head_is_refused():
  weights = towers(ELECTRA)
  del weights.params['generator_head']
  with pytest.raises(UserError, match='has no head'):
    huggingface.model_files(weights, 'generator')
