"""A seed gives the initial weights that it gave in version 0.1.0."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from electra_jax.config import PretrainingConfig
from electra_jax.pretrain.build import build_model
from electra_jax.pretrain.pretrain_step import init_params

FIELDS = {
  'model.hidden_size': 8,
  'model.embedding_size': 6,
  'model.num_layers': 2,
  'model.num_heads': 2,
  'model.intermediate_size': 12,
  'model.max_positions': 16,
  'generator.hidden_fraction': 0.5,
  'sequence_length': 8,
}
# The first two values and the sum of absolute values, as commit 641b850 computes them for seed 3.
EXPECTED = {
  'discriminator/layers/query': (-0.03104633, -0.00806347, 1.8310041),
  'discriminator/layers/mlp_output': (0.00830488, -0.01441099, 2.8173923),
  'discriminator/embeddings_project': (0.64808, -0.17414196, 15.003624),
  'discriminator_head/prediction': (-0.8020229, 0.23291613, 2.5411248),
  'generator/layers/value': (-0.00796717, -0.00486566, 0.3144915),
  'generator_head/dense': (-0.01566703, 0.01322534, 0.3022747),
}


@pytest.fixture(scope='module')
def params():
  model = build_model(PretrainingConfig().replace(FIELDS), 32)
  return jax.jit(lambda: nn.unbox(init_params(model, 3, 8)))()


@pytest.mark.parametrize('name', EXPECTED)
def test_a_seed_has_the_initial_weights_of_version_0_1_0(params, name):
  found = params
  for part in name.split('/'):
    found = found[part]
  kernel = np.asarray(found['kernel'])
  values = (*kernel.reshape(-1)[:2], np.abs(kernel).sum())
  np.testing.assert_allclose(values, EXPECTED[name], rtol=2e-5)
