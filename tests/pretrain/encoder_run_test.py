"""Runs that continue masked language models of transformers, and fine-tune and export them."""

import json

import finetune_files
import flax.linen as nn
import foreign_tokenizers
import hf_files
import jax
import micro_run
import numpy as np
import pytest
import transformers
from encoder_formats import FORMATS

from electra_jax import export
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.finetune.finetuned import open_finetuned
from electra_jax.interop import huggingface, own
from electra_jax.interop.weights import same_bits
from electra_jax.model.config import EncoderConfig
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.training import optimizers, partitioning

# The tokenizer of each format.
FORMS = {
  'bert': 'bert',
  'distilbert': 'bert',
  'modern': 'modernbert',
  'roberta': 'roberta',
  'xlm-roberta': 'xlm_roberta',
  'camembert': 'xlm_roberta',
  'deberta-v2': 'deberta_v3',
  'albert': 'albert',
}
LONG = [pytest.param(family, marks=pytest.mark.clients) for family in FORMS]


def also(family):
  return pytest.param(family, marks=pytest.mark.long)


RUN = (
  '--config=tests/configs/micro.py',
  '--config.data.tokenizer=init',
  '--config.steps=2',
  '--config.optimizer.warmup_steps=1',
  '--config.log_every=1',
  '--config.save_every=2',
  '--config.eval_every=2',
)


def write_source(family, folder, head='ForMaskedLM'):
  """A folder with a masked language model and its tokenizer."""
  foreign_tokenizers.write(FORMS[family], folder)
  tokenizer = load_tokenizer(folder)
  ids = {
    'pad_token_id': tokenizer.pad_id,
    'bos_token_id': tokenizer.cls_id,
    'eos_token_id': tokenizer.sep_id,
  }
  if family == 'modern':
    ids |= {'cls_token_id': tokenizer.cls_id, 'sep_token_id': tokenizer.sep_id}
  model = FORMATS[family].model(head, vocab_size=-(-tokenizer.size // 64) * 64, **ids)
  model.save_pretrained(folder)
  return str(folder)


def trained(family, folder, *more):
  """A run of two steps that is initialized from such a folder: its folder and its output."""
  source = write_source(family, folder / 'source')
  place = folder / 'run'
  out, _ = micro_run.run(*micro_run.arguments(place, *RUN[1:], f'--config.init=hf:{source}', *more))
  return place, out


@pytest.mark.parametrize('family', [also('roberta'), also('deberta-v2'), *LONG])
def test_replaced_token_detection_continues_an_encoder_that_others_open(family, tmp_path):
  run, out = trained(
    family,
    tmp_path,
    '--config.continued.generator=narrowed',
    '--config.generator.hidden_fraction=0.34',
  )
  assert 'cut out of the discriminator' in out
  config = json.loads((run / 'config.json').read_text())
  assert config['model']['family'] == family
  export.export(str(run), str(tmp_path / 'out'))
  place = tmp_path / 'out' / 'discriminator'
  ours = own.read_weights(run, moments=False).params
  theirs = huggingface.read_weights(str(place))
  for name in ('embeddings', 'discriminator', 'discriminator_head'):
    assert same_bits(theirs.params[name], ours[name]), name
  # Through transformers, and in again.
  name, is_beside = huggingface.detection_class(theirs.discriminator)
  model = hf_files.detector(place) if is_beside else transformers.AutoModel.from_pretrained(place)
  model.save_pretrained(tmp_path / 'again')
  again = huggingface.read_weights(str(tmp_path / 'again')).params
  assert ('discriminator_head' in again) == is_beside
  assert same_bits(again, {name: theirs.params[name] for name in again})
  card = (place / 'README.md').read_text()
  assert name in card and ('.logits' in card) == is_beside == (huggingface.HEAD in card)
  assert 'base_model' not in card  # it is a folder
  # The tokenizer gives the ids of the run.
  text = 'ba ko ti rume salo'
  mine, its = load_tokenizer(run / 'tokenizer'), transformers.AutoTokenizer.from_pretrained(place)
  assert its(text)['input_ids'] == [mine.cls_id, *mine.encode(text), mine.sep_id]


@pytest.mark.parametrize('family', [also('distilbert'), *LONG])
def test_masked_language_modeling_continues_with_the_head_of_the_model(family, tmp_path):
  run, out = trained(family, tmp_path, '--config.objective.name=mlm')
  start = [line for line in micro_run.figures(run) if line['kind'] == 'heldout'][0]
  assert start['step'] == 0 and np.isfinite(start['generator_loss'])
  assert 'the head that predicts masked tokens is new' not in out
  export.export(str(run), str(tmp_path / 'out'))
  ours = own.read_weights(run, moments=False).params
  model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / 'out' / 'generator')
  model.save_pretrained(tmp_path / 'again')
  again = huggingface.read_weights(str(tmp_path / 'again')).params
  for theirs, name in (
    ('generator_embeddings', 'embeddings'),
    ('generator', 'discriminator'),
    ('generator_head', 'generator_head'),
  ):
    assert same_bits(again[theirs], ours[name]), name


@pytest.mark.parametrize('family', [also('albert'), *LONG])
def test_fine_tuning_starts_from_an_encoder_and_others_open_the_result(family, tmp_path):
  source = write_source(family, tmp_path / 'source', 'Model')
  micro_run.run(
    '--mode=finetune',
    f'--config={micro_run.FINETUNE_CONFIG}',
    f'--config.init=hf:{source}',
    f'--config.data.source={finetune_files.glue(tmp_path / "glue")}',
    f'--workdir={tmp_path / "run"}',
    f'--config.compilation_cache={micro_run.programs()}',
    '--config.head.style=transformers',
    '--config.epochs=1',
    '--config.num_trials=1',
  )
  export.export(str(tmp_path / 'run'), str(tmp_path / 'out'))
  ours = open_finetuned(tmp_path / 'run').weights()
  theirs = huggingface.read_weights(str(tmp_path / 'out'))
  assert same_bits(theirs.head.params, ours.head.params)
  assert same_bits(theirs.params, ours.params)
  model, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not loaded['missing_keys'] and not loaded['unexpected_keys']
  model.save_pretrained(tmp_path / 'again')
  again = huggingface.read_weights(str(tmp_path / 'again'))
  assert same_bits(again.params, theirs.params) and same_bits(again.head.params, theirs.head.params)


@pytest.mark.parametrize('family', FORMS)
def test_every_parameter_has_a_learning_rate_and_a_sharding(family):
  """Also those that only some families have: tables of distances, layers that are shared."""
  sizes = {'hidden_size': 24, 'num_heads': 3, 'intermediate_size': 40, 'num_layers': 2}
  config = EncoderConfig(family=family, embedding_size=12, vocab_size=61, **sizes)
  model = FineTuned(config, 'classification', labels=2, style='transformers')
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  shapes = nn.unbox(boxed)
  partitioning.parameter_shardings(boxed, partitioning.make_layout())
  rates = optimizers.layerwise_rates(shapes, config.num_layers, 0.5, published=False)
  assert jax.tree.structure(rates) == jax.tree.structure(shapes)
  for rate, shape in zip(jax.tree.leaves(rates), jax.tree.leaves(shapes), strict=True):
    assert np.broadcast_shapes(rate.shape, shape.shape) == shape.shape
  encoder = rates['discriminator']
  if family == 'albert':
    assert encoder['shared_layer']['query']['kernel'] == 0.5  # as the last layer
  if family == 'deberta-v2':
    assert encoder['distances'] == encoder['embeddings_project']['kernel'] == 0.125
