"""Masked language models of transformers: what they compute, and the way in and out."""

import functools
import json
import pathlib

import encoder_formats
import hf_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoder_formats import CLS, FORMATS, PAD, SEP, VOCAB, detection_state, towers
from hf_files import assert_close
from safetensors.numpy import load_file, save_file

from electra_jax.errors import UserError
from electra_jax.interop import hf_tensors, huggingface, origins
from electra_jax.interop.hf_config import ConfigFields
from electra_jax.interop.weights import Weights, expected_shapes, same_bits
from electra_jax.model.config import EncoderConfig
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs, packed_inputs
from electra_jax.model.heads import TransformersHead
from electra_jax.model.relative import bucket_rows

POSITIONS = np.array([[1, 3, 19], [12, 2, 5], [1, 3, 2]])
IDS = {'pad_id': PAD, 'cls_id': CLS, 'sep_id': SEP}
# One module computes both; the tests of files cover their names.
SAME = {'xlm-roberta': 'roberta', 'camembert': 'roberta'}
COMPUTED = [family for family in FORMATS if family not in SAME]


def architecture(family):
  return next(known for known in huggingface.ARCHITECTURES if known.family == family)


@functools.cache
def opened(family, folder):
  """Both kinds of files of a format as one tower with both heads: (config, params)."""
  lm, head = towers(family)
  lm.save_pretrained(folder / 'lm')
  weights = huggingface.read_weights(str(folder / 'lm'))
  # The encoder and the head of the discriminator, in one file.
  base = lm.base_model_prefix
  tensors = {name: x for name, x in lm.state_dict().items() if name.startswith(f'{base}.')}
  tensors |= detection_state(family, head)
  lm.save_pretrained(folder / 'rtd')
  save_file({name: x.numpy() for name, x in tensors.items()}, folder / 'rtd' / 'model.safetensors')
  file = folder / 'rtd' / 'config.json'
  fields = json.loads(file.read_text())
  name = architecture(family).classes['discriminator']
  file.write_text(json.dumps(fields | {'architectures': [name], 'id2label': {'0': 'REPLACED'}}))
  detector = huggingface.read_weights(str(folder / 'rtd'))
  assert same_bits(weights.params['generator'], detector.params['discriminator'])
  assert same_bits(weights.params['generator_embeddings'], detector.params['embeddings'])
  return weights.generator, {
    **detector.params,
    'generator_head': weights.params['generator_head'],
  }


@functools.partial(jax.jit, static_argnums=0)
def ours(model, params, inputs, targets, is_fake):
  """Logits, verdicts, the sum of both losses and its gradients; one program per format."""

  def loss(params):
    def towers(m):
      hidden = m.hidden_states(inputs)
      return m.generator_head(hidden, m.embeddings.word), m.verdicts(hidden, inputs.positions)

    logits, verdicts = model.apply({'params': params}, method=towers)
    at = jnp.take_along_axis(logits, jnp.asarray(POSITIONS)[..., None], 1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(at), targets[..., None], -1)[..., 0]
    real = inputs.segment_ids > 0
    entropy = jnp.where(real, jax.nn.softplus(verdicts) - is_fake * verdicts, 0)
    return nll.mean() + entropy.sum() / real.sum(), (logits, verdicts, nll)

  (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  return (*found, gradients)


def model_of(config):
  return Electra(config, config, sharing='all')


def theirs(family, ids, types, real, targets, is_fake):
  """The same of PyTorch, and gradients by the names of tensors."""
  lm, head = towers(family)
  for module in (lm, head):
    module.zero_grad()
  inputs = FORMATS[family].inputs(ids, real, types)
  logits = lm(**inputs).logits
  hidden = getattr(lm, lm.base_model_prefix)(**inputs).last_hidden_state
  verdicts = head(hidden)[..., 0]
  at = logits[torch.arange(3)[:, None], torch.tensor(POSITIONS)]
  nll = torch.nn.functional.cross_entropy(
    at.flatten(0, 1), torch.tensor(targets).flatten(), reduction='none'
  ).reshape(targets.shape)
  entropy = torch.nn.functional.binary_cross_entropy_with_logits(
    verdicts[torch.tensor(real)], torch.tensor(is_fake[real]).float()
  )
  (nll.mean() + entropy).backward()
  gradients = {name: x.grad for name, x in lm.named_parameters()}
  grad_of_head = {name: x.grad for name, x in head.named_parameters()}
  return logits, verdicts, nll, gradients, grad_of_head


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('formats')


def case(family, folder):
  place = folder / family
  place.mkdir(exist_ok=True)
  return opened(family, place)


@pytest.mark.parametrize('family', COMPUTED)
def test_likelihoods_verdicts_and_all_gradients_equal_pytorch(family, folder, monkeypatch):
  config, params = case(family, folder)
  ids, types, real = encoder_formats.rows()
  targets, is_fake = np.take_along_axis(ids % 7 + 5, POSITIONS, 1), ids % 3 == 0
  places = np.tile(np.arange(20), (3, 1))
  inputs = Inputs(*(jnp.asarray(x, jnp.int32) for x in (ids, real, places, types)))
  logits, verdicts, nll, gradients = ours(
    model_of(config), params, inputs, jnp.asarray(targets), jnp.asarray(is_fake, jnp.float32)
  )
  expected = theirs(family, ids, types, real, targets, is_fake)
  assert_close(np.asarray(logits)[real], expected[0].detach()[torch.tensor(real)], 'logits')
  assert_close(np.asarray(verdicts)[real], expected[1].detach()[torch.tensor(real)], 'verdicts')
  assert_close(nll, expected[2].detach(), 'negative log-likelihoods')

  of = architecture(family)
  tower = {'embeddings': gradients['embeddings'], 'encoder': gradients['discriminator']}
  lm = hf_tensors.from_params(
    {**tower, 'head': gradients['generator_head']}, of, 'generator', config
  )
  of.finish(lm, IDS)
  rtd = hf_tensors.from_params(
    {**tower, 'head': gradients['discriminator_head']}, of, 'discriminator', config
  )
  lm_expected, head_expected = expected[3], expected[4]
  assert lm.keys() == lm_expected.keys()
  for name, value in lm_expected.items():
    assert_close(lm[name], np.zeros(lm[name].shape) if value is None else value, name)
  monkeypatch.setattr(torch.nn.Module, 'state_dict', lambda self: head_expected)
  for name, value in detection_state(family, towers(family)[1]).items():
    assert_close(rtd[name], value, name)


def packed_rows():
  """Rows of several documents, one of them a pair: ids `[3, 20]`, and (row, start, end) of each."""
  rng = np.random.default_rng(5)
  rows, documents = np.full((3, 20), PAD), []
  for row, lengths in enumerate([(9, 11), (5, 4, 8), (14, 3)]):
    start = 0
    for n in lengths:
      document = rng.integers(5, VOCAB, n)
      document[0], document[-1] = CLS, SEP
      rows[row, start : start + n] = document
      documents.append((row, start, start + n))
      start += n
  rows[0, 13] = SEP
  return rows, documents


@pytest.mark.parametrize('family', COMPUTED)
def test_packed_documents_are_computed_as_alone(family, folder):
  config, params = case(family, folder)
  ids, documents = packed_rows()
  inputs = packed_inputs(jnp.asarray(ids), PAD, CLS, SEP)
  zeros = jnp.zeros((3, 3), jnp.int32)
  logits, verdicts, _, _ = ours(
    model_of(config), params, inputs, zeros, jnp.zeros(ids.shape, jnp.float32)
  )
  lm, head = towers(family)
  for row, start, end in documents:
    document = ids[row : row + 1, start:end]
    types = (np.cumsum(document == SEP, 1) - (document == SEP) > 0).astype(np.int64)
    alone = FORMATS[family].inputs(document, np.ones(document.shape, bool), types)
    with torch.no_grad():
      hidden = getattr(lm, lm.base_model_prefix)(**alone).last_hidden_state
      expected, verdict = lm(**alone).logits[0], head(hidden)[0, :, 0]
    assert_close(logits[row, start:end], expected, f'logits of {start}:{end} in row {row}')
    assert_close(verdicts[row, start:end], verdict, f'verdicts of {start}:{end} in row {row}')


@pytest.mark.parametrize('buckets, longest', [(256, 512), (32, 128), (6, 12), (7, 40), (2, 3)])
def test_distances_have_the_buckets_of_transformers(buckets, longest):
  from transformers.models.deberta_v2 import modeling_deberta_v2 as theirs

  length = min(2 * longest, 600)
  distances = torch.arange(length - 1, -length, -1)
  expected = theirs.make_log_bucket_position(distances, buckets, longest).long() + buckets
  expected = expected.clamp(0, 2 * buckets - 1).numpy()
  np.testing.assert_array_equal(bucket_rows(length, buckets, longest), expected)


#### Files ####

HEADS = {
  'encoder': 'Model',
  'generator': 'ForMaskedLM',
  'discriminator': 'ForTokenClassification',
  'classification': 'ForSequenceClassification',
  'choice': 'ForMultipleChoice',
  'tagging': 'ForTokenClassification',
  'span': 'ForQuestionAnswering',
}


def made(family, kind, **fields):
  labels = {'discriminator': 1, 'classification': 3, 'tagging': 5}.get(kind, 2)
  return FORMATS[family].model(HEADS[kind], num_labels=labels, **fields)


def outputs(model, family):
  ids, types, real = encoder_formats.rows()
  inputs = FORMATS[family].inputs(ids, real, types)
  if 'MultipleChoice' in type(model).__name__:  # one choice per row
    inputs = {name: value[:, None] for name, value in inputs.items()}
  with torch.no_grad():
    found = model(**inputs)
  names = ('logits', 'start_logits', 'end_logits', 'last_hidden_state')
  return [found[name].numpy() for name in names if name in found]


def written(weights, kind, folder):
  """Writes a kind of model for transformers, and returns its folder."""
  tower = 'finetuned' if weights.head else 'generator' if kind == 'generator' else 'discriminator'
  folder.mkdir()
  for name, content in huggingface.model_files(weights, tower, special_ids=IDS).items():
    (folder / name).write_bytes(content)
  return str(folder)


def parts(weights):
  return weights.params | ({'head': weights.head.params} if weights.head else {})


@pytest.mark.parametrize('kind', HEADS)
@pytest.mark.parametrize('family', FORMATS)
def test_models_survive_the_way_in_and_out_bit_for_bit(family, kind, tmp_path):
  if (family, kind) == ('deberta-v2', 'discriminator'):
    pytest.skip('transformers has no class for it: the next test')
  model = made(family, kind)
  model.save_pretrained(tmp_path / 'theirs')
  weights = huggingface.read_weights(str(tmp_path / 'theirs'))
  place = written(weights, kind, tmp_path / 'ours')
  assert same_bits(parts(huggingface.read_weights(place)), parts(weights))
  if kind == 'discriminator':  # which older exports are; today's have the head in another file
    again = hf_files.detector(place)
  else:
    again = type(model).from_pretrained(place, attn_implementation='eager')
  for expected, found in zip(outputs(model, family), outputs(again, family), strict=True):
    real = encoder_formats.rows()[2]
    keep = real if found.shape[:2] == real.shape else slice(None)
    assert_close(expected[keep], found[keep])  # rounding depends on where an array lies
  again.save_pretrained(tmp_path / 'again')
  assert same_bits(parts(huggingface.read_weights(str(tmp_path / 'again'))), parts(weights))


@pytest.mark.parametrize('family', ['roberta', 'xlm-roberta', 'camembert', 'albert'])
def test_a_generator_repeats_the_bias_that_older_releases_read_twice(family, tmp_path):
  """Before release 5, what is missing is initialized to zero, and what it is tied to with it."""
  made(family, 'generator').save_pretrained(tmp_path / 'theirs')
  weights = huggingface.read_weights(str(tmp_path / 'theirs'))
  tensors = load_file(
    pathlib.Path(written(weights, 'generator', tmp_path / 'ours')) / huggingface.TENSORS
  )
  ((copy, name),) = (item for item in architecture(family).copies.items() if 'bias' in item[0])
  assert np.any(tensors[name])
  np.testing.assert_array_equal(tensors[copy], tensors[name])


# New parameters of each class; BERT's pooler is one, which no masked language model has.
NEW = ('classifier.', 'pooler.', 'qa_outputs.', 'head.', 'pre_classifier.')
BESIDE = [family for family in FORMATS if family != 'deberta-v2']


@pytest.mark.parametrize('family', BESIDE)
def test_every_class_starts_from_an_exported_discriminator_with_a_new_head_only(family, tmp_path):
  made(family, 'discriminator').save_pretrained(tmp_path / 'theirs')
  weights = huggingface.read_weights(str(tmp_path / 'theirs'))
  place = written(weights, 'discriminator', tmp_path / 'ours')
  head = load_file(tmp_path / 'ours' / huggingface.HEAD)
  for task in (
    'SequenceClassification',
    'TokenClassification',
    'QuestionAnswering',
    'MultipleChoice',
  ):
    if task == 'QuestionAnswering':
      labels, options = 2, {}
    else:
      labels, options = (1, {}) if task == 'MultipleChoice' else (3, {'num_labels': 3})
    model, loaded = getattr(transformers, f'AutoModelFor{task}').from_pretrained(
      place, output_loading_info=True, **options
    )
    short = {name.removeprefix(f'{model.base_model_prefix}.') for name in loaded['missing_keys']}
    assert short and all(name.startswith(NEW) for name in short), short
    assert not any(loaded[name] for name in ('unexpected_keys', 'mismatched_keys', 'error_msgs'))
    state = model.state_dict()
    assert labels in {len(state[name]) for name in loaded['missing_keys']}
    for name in state.keys() & head.keys():
      assert not np.array_equal(state[name].numpy(), head[name]) or name == 'head.norm.weight', name
  bare, loaded = transformers.AutoModel.from_pretrained(place, output_loading_info=True)
  assert not loaded['unexpected_keys'] and all('pooler' in name for name in loaded['missing_keys'])
  assert bare.config.num_labels == 2  # the default


@pytest.mark.parametrize('family', ['modern', 'roberta'])
def test_a_head_that_is_not_beside_its_encoder_any_more_is_named(family, tmp_path):
  made(family, 'discriminator').save_pretrained(tmp_path / 'theirs')
  weights = huggingface.read_weights(str(tmp_path / 'theirs'))
  place = written(weights, 'discriminator', tmp_path / 'ours')
  transformers.AutoModel.from_pretrained(place).save_pretrained(tmp_path / 'again')
  again = huggingface.read_weights(str(tmp_path / 'again'))
  assert 'discriminator_head' not in again.params
  assert any(f'no head (the file {huggingface.HEAD} is missing)' in note for note in again.notes)
  content = (tmp_path / 'ours' / huggingface.HEAD).read_bytes()
  (tmp_path / 'again' / huggingface.HEAD).write_bytes(content)
  assert same_bits(huggingface.read_weights(str(tmp_path / 'again')).params, weights.params)
  # A head beside a model that has one of its own is not read, and another one is refused.
  made(family, 'classification').save_pretrained(tmp_path / 'again')
  assert 'discriminator_head' not in huggingface.read_weights(str(tmp_path / 'again')).params
  save_file({'dense.weight': np.zeros((1, 24), np.float32)}, tmp_path / 'ours' / huggingface.HEAD)
  with pytest.raises(UserError, match='classifier.weight is missing.*dense.weight is unknown'):
    huggingface.read_weights(place)


def test_the_encoder_of_a_deberta_discriminator_survives_and_the_file_keeps_the_head(tmp_path):
  _, params = case('deberta-v2', tmp_path)
  weights = huggingface.read_weights(str(tmp_path / 'deberta-v2' / 'rtd'))
  place = written(weights, 'discriminator', tmp_path / 'ours')
  assert same_bits(
    huggingface.read_weights(place).params,
    {name: x for name, x in params.items() if name != 'generator_head'},
  )
  transformers.AutoModel.from_pretrained(place).save_pretrained(tmp_path / 'again')
  again = huggingface.read_weights(str(tmp_path / 'again'))
  assert again.params.keys() == {'embeddings', 'discriminator'}
  assert same_bits(again.params, {name: weights.params[name] for name in again.params})


@pytest.mark.parametrize('kind', ['classification', 'choice', 'tagging', 'span'])
@pytest.mark.parametrize('family', COMPUTED)
def test_heads_of_fine_tuned_models_give_the_logits_of_pytorch(family, kind, tmp_path):
  model = made(family, kind)
  model.save_pretrained(tmp_path)
  weights = huggingface.read_weights(str(tmp_path))
  ids, types, real = encoder_formats.rows()
  inputs = FORMATS[family].inputs(ids, real, types)
  with torch.no_grad():
    hidden = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state.numpy()
  labels = {'classification': 3, 'choice': 1, 'tagging': 5, 'span': 2}[kind]
  head = TransformersHead(weights.discriminator, kind, labels, 0.0, weights.head.pooling)
  found = np.asarray(head.apply({'params': weights.head.params}, hidden, jnp.asarray(real)))
  expected = outputs(model, family)
  if kind == 'span':
    found, expected = np.moveaxis(found, -1, 0), np.stack(expected)
  else:
    expected = expected[0]
  assert_close(found, expected)


@pytest.mark.parametrize('family', ['bert', 'deberta-v2'])
def test_older_files_with_more_heads_are_read_without_them(family, tmp_path):
  lm, _ = towers(family)
  lm.save_pretrained(tmp_path)
  before = huggingface.read_weights(str(tmp_path))
  tensors = load_file(tmp_path / 'model.safetensors')
  word = tensors[f'{lm.base_model_prefix}.embeddings.word_embeddings.weight']
  size = word.shape[1]
  if family == 'bert':
    tensors |= {
      'bert.pooler.dense.weight': np.ones((size, size), np.float32),
      'bert.pooler.dense.bias': np.ones(size, np.float32),
      'cls.seq_relationship.weight': np.ones((2, size), np.float32),
      'cls.seq_relationship.bias': np.ones(2, np.float32),
      'cls.predictions.decoder.weight': word,
      'cls.predictions.decoder.bias': tensors['cls.predictions.bias'],
    }
    tensors = {
      name.replace('LayerNorm.weight', 'LayerNorm.gamma'): x for name, x in tensors.items()
    }
  else:  # the published generator and its table of positions
    tensors = {
      name.replace('cls.predictions.transform', 'lm_predictions.lm_head').replace(
        'cls.predictions', 'lm_predictions.lm_head'
      ): x
      for name, x in tensors.items()
    }
    tensors['deberta.embeddings.position_embeddings.weight'] = np.ones((12, size), np.float32)
    tensors['deberta.embeddings.word_embeddings._weight'] = np.ones((VOCAB, size), np.float32)
  save_file(tensors, tmp_path / 'model.safetensors')
  found = huggingface.read_weights(str(tmp_path))
  assert same_bits(found.params, before.params)
  assert any('which is not used' in note for note in found.notes)


def test_spare_rows_of_a_vocabulary_are_left_out_and_many_are_refused():
  weights = Weights('here', None, EncoderConfig(vocab_size=128_100, vocab_multiple=1), 'none', {})
  assert origins.without_padding_rows(weights, 128_001, 'init').vocab_size == 128_001
  with pytest.raises(UserError, match='has embeddings of 128,100 tokens and a tokenizer of 120,0'):
    origins.without_padding_rows(weights, 120_001, 'init')
  with pytest.raises(UserError, match='put the tokenizer there'):
    origins.without_padding_rows(weights, 128_101, 'init')


@pytest.mark.parametrize('how', ['shards', 'bin'])
def test_shards_and_pickled_files_give_the_same_weights(how, tmp_path):
  lm, _ = towers('roberta')
  lm.save_pretrained(tmp_path / 'one')
  expected = huggingface.read_weights(str(tmp_path / 'one')).params
  if how == 'shards':
    lm.save_pretrained(tmp_path / 'two', max_shard_size='8KB')
    assert len(list((tmp_path / 'two').glob('*.safetensors'))) > 1
  else:
    lm.config.save_pretrained(tmp_path / 'two')
    torch.save(lm.state_dict(), tmp_path / 'two' / 'pytorch_model.bin')
  assert same_bits(huggingface.read_weights(str(tmp_path / 'two')).params, expected)


@pytest.mark.parametrize(
  'family, fields, words',
  [
    ('bert', {'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
    ('bert', {'hidden_act': 'relu'}, "hidden_act is 'relu'"),
    ('bert', {'tie_word_embeddings': False}, 'tie_word_embeddings is False'),
    ('roberta', {'hidden_act': 'gelu_new'}, "hidden_act is 'gelu_new'"),
    ('deberta-v2', {'conv_kernel_size': 3}, 'conv_kernel_size is 3'),
    ('deberta-v2', {'pos_att_type': 'c2p'}, "pos_att_type is 'c2p'"),
    ('deberta-v2', {'position_biased_input': True}, 'position_biased_input is True'),
    ('albert', {'num_hidden_groups': 2}, 'num_hidden_groups is 2'),
    ('albert', {'embedding_size': 24}, 'embedding_size is 24'),
    ('bert', {'model_type': 'bart', 'architectures': ['BartModel']}, "is 'bart'.*one of electra, "),
  ],
)
def test_what_is_not_supported_is_named_with_what_is(family, fields, words, tmp_path):
  FORMATS[family].model('ForMaskedLM').save_pretrained(tmp_path)
  file = pathlib.Path(tmp_path) / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  with pytest.raises(UserError, match=f'{words}'):
    huggingface.read_weights(str(tmp_path))


# Fields of the config.json of published models, where they are not the defaults of transformers.
PUBLISHED = {
  'bert': {},
  'roberta': {'vocab_size': 50265, 'max_position_embeddings': 514, 'type_vocab_size': 1},
  'xlm-roberta': {'vocab_size': 250002, 'max_position_embeddings': 514, 'type_vocab_size': 1},
  'camembert': {'vocab_size': 32005, 'max_position_embeddings': 514, 'type_vocab_size': 1},
  'deberta-v2': FORMATS['deberta-v2'].fields
  | {
    'vocab_size': 128100,
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'max_position_embeddings': 512,
    'position_buckets': 256,
  },
  'distilbert': {},
  'albert': {'hidden_size': 768, 'num_attention_heads': 12, 'intermediate_size': 3072},
  'modern': {},
}


@pytest.mark.parametrize('family', PUBLISHED)
def test_published_sizes_have_as_many_parameters_as_in_transformers(family):
  made = getattr(transformers, f'{FORMATS[family].name}Config')(**PUBLISHED[family])
  config = architecture(family).read_config(ConfigFields('here', made.to_dict()))
  shapes = expected_shapes(Weights('here', None, config, 'none', {}))
  with torch.device('meta'):
    theirs = transformers.AutoModelForMaskedLM.from_config(made)
  unused = 2 * 768 if family in ('roberta', *SAME) else 0  # rows of positions
  count = sum(x.numel() for x in theirs.parameters())
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count - unused
