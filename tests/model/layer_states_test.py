"""The states of every layer are the hidden states of transformers."""

import dataclasses

import encoder_formats
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_formats import FORMATS, Format
from hf_files import assert_close

from electra_jax.interop import huggingface
from electra_jax.interop.weights import as_encoder
from electra_jax.model.encoder import Inputs
from electra_jax.model.heads import FineTuned

ELECTRA = Format(
  'electra',
  'Electra',
  FORMATS['bert'].fields | {'embedding_size': 16, 'hidden_act': 'gelu'},
  types=True,
)


LONG = ('bert', 'deberta-v2', 'albert', 'roberta')


@pytest.mark.parametrize(
  'family',
  ['electra', 'modern', *(pytest.param(name, marks=pytest.mark.long) for name in LONG)],
)
def test_states_of_every_layer_are_those_of_transformers(family, tmp_path):
  model = (FORMATS | {'electra': ELECTRA})[family].model('Model')
  model.save_pretrained(tmp_path)
  weights = as_encoder(huggingface.read_weights(str(tmp_path)))
  ids, _, real = encoder_formats.rows()
  format = FORMATS.get(family, ELECTRA)
  theirs = model(**format.inputs(ids, real), output_hidden_states=True).hidden_states
  positions = np.where(real, np.arange(ids.shape[1]), 0)
  inputs = Inputs(*(jnp.asarray(x, jnp.int32) for x in (ids, real, positions, 0 * ids)))
  config = dataclasses.replace(weights.discriminator, attention='xla')
  ours = FineTuned(config, 'tagging', labels=2)
  params = {'params': weights.params}
  states = np.asarray(ours.apply(params, inputs, method='layer_states'))
  assert len(states) == len(theirs) == config.num_layers + 1
  for layer, expected in zip(states, theirs, strict=True):
    assert_close(layer[real], expected.detach().numpy()[real])
  last = ours.apply(params, inputs, method='hidden_states')
  assert np.array_equal(states[-1], np.asarray(last))
