"""Runs that continue masked language models of transformers, and fine-tune and export them."""

import json

import foreign_tokenizers
import micro_run
import numpy as np
import pytest
import transformers
from encoder_formats import FORMATS

from electra_jax import export
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.interop import huggingface, own
from electra_jax.interop.weights import same_bits

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


@pytest.mark.parametrize('family', ['roberta', 'deberta-v2', *LONG])
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
  name = huggingface.auto_class(theirs.discriminator)
  getattr(transformers, name).from_pretrained(place).save_pretrained(tmp_path / 'again')
  again = huggingface.read_weights(str(tmp_path / 'again')).params
  assert {'embeddings', 'discriminator'} <= again.keys()
  assert same_bits(again, {name: theirs.params[name] for name in again})
  assert f'{name}' in (place / 'README.md').read_text()
  # The tokenizer gives the ids of the run.
  text = 'ba ko ti rume salo'
  mine, its = load_tokenizer(run / 'tokenizer'), transformers.AutoTokenizer.from_pretrained(place)
  assert its(text)['input_ids'] == [mine.cls_id, *mine.encode(text), mine.sep_id]


@pytest.mark.parametrize('family', ['distilbert', *LONG])
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
