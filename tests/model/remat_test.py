"""The backward pass recomputes what config.model.remat states, with equal gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla_flags
from conftest import packed_rows, random_params, tiny_electra

from electra_jax.model.encoder import packed_inputs

ROWS, LENGTH = 4, 32


@functools.cache
def compiled(remat: str, family: str):
  """Gradients of both towers' outputs, with unrolled layers, and their arguments."""
  model = tiny_electra(family, dropout=0.1, num_layers=3, remat=remat, scan_unroll=3)
  ids, params = packed_rows(ROWS, LENGTH, 60), random_params(model)
  positions = jnp.broadcast_to(jnp.arange(5), (ROWS, 5))

  def loss(params, ids):
    keys = jax.random.split(jax.random.key(0), ROWS)
    inputs = packed_inputs(ids, 0, 2, 3)
    generator = model.apply({'params': params}, inputs, positions, keys, method='generator_logits')
    return (
      jnp.square(generator[..., :60]).mean()
      + model.apply({'params': params}, inputs, keys, method='discriminator_logits').mean()
    )

  step = jax.jit(jax.grad(loss), compiler_options=xla_flags.FUSED).lower(params, ids).compile()
  return step.cost_analysis()['flops'], jax.device_get(step(params, ids))


@pytest.mark.parametrize('family', ['electra', 'modern'])
def test_dots_recomputes_no_product_and_full_recomputes_all(family):
  none, dots, full = (compiled(remat, family)[0] for remat in ('none', 'dots', 'full'))
  again = (full - none) / none
  assert again > 0.15
  assert (
    dots - none
  ) / none < 0.5 * again  # the scores of attention are recomputed, dense layers are not


@pytest.mark.parametrize('family', ['electra', 'modern'])
@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_does_not_change_gradients(remat, family):
  ours, plain = compiled(remat, family)[1], compiled('none', family)[1]
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(
      a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-6), err_msg=jax.tree_util.keystr(path)
    )
