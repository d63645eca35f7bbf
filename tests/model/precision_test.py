"""Products of float32 arrays are float32 in all lowered programs, gradients included."""

import re

import conftest
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import micro_config

from electra_jax.config import checked_pretraining, phases_of
from electra_jax.finetune import finetune_step, losses
from electra_jax.model import kernels
from electra_jax.model.attention import AttentionSettings, attention
from electra_jax.model.config import EncoderConfig
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.model.products import ProductSettings
from electra_jax.pretrain import build
from electra_jax.training import partitioning
from electra_jax.training.product_types import choose_dtype, describe_products

ONE_LAYER = ('model.num_layers=1', 'model.scan_unroll=1')
DOT = re.compile(r'stablehlo\.dot_general.*?precision = \[(\w+), (\w+)\].*?: \(tensor<([^>]*)>')


def precisions(text: str) -> dict[str, set[str]]:
  """The precisions of the products in a lowered program by the type of their arrays.

  The sum over rows for the vocabulary's bias (model/electra.py), an exact product of one row, is
  left out; a step has one at most.
  """
  found: dict[str, set[str]] = {}
  sums = 0
  for first, second, shape in DOT.findall(text):
    assert first == second
    if first == 'HIGHEST' and re.fullmatch(r'1x\d+xf32', shape) and not sums:
      sums = 1
    else:
      found.setdefault(shape.split('x')[-1], set()).add(first)
  assert len(DOT.findall(text)) == text.count('stablehlo.dot_general')
  return found


def pretraining_step(*fields: str) -> str:
  config = checked_pretraining(micro_config(*fields))
  layout = partitioning.make_layout(devices=jax.devices()[:1])
  p = build.program(config, phases_of(config)[0], build.any_tokenizer(300), layout)
  return build.lower_step(p, 1).as_text()


@pytest.mark.parametrize(
  'fields',
  [
    (),
    ('model.family=modern', 'objective.name=electric'),
    ('model.family=deberta-v2', 'model.position_buckets=8'),
  ],
)
def test_every_product_of_a_float32_step_is_float32(fields):
  assert precisions(pretraining_step('dtype=float32', *ONE_LAYER, *fields)) == {'f32': {'HIGHEST'}}


def test_faster_products_are_chosen_by_a_field():
  fields = (*ONE_LAYER, 'dtype=float32', 'objective.name=mlm')
  assert precisions(pretraining_step(*fields, 'precision=tensorfloat32')) == {'f32': {'HIGH'}}
  assert precisions(pretraining_step(*fields, 'precision=bfloat16')) == {'f32': {'DEFAULT'}}


def test_products_of_bfloat16_arrays_take_one_pass_and_the_others_are_float32():
  found = precisions(pretraining_step('dtype=bfloat16', *ONE_LAYER))
  assert found['bf16'] == {'DEFAULT'} and 'HIGHEST' in found['f32']


@pytest.mark.parametrize(
  'kind, style', [('classification', 'published'), ('span', 'published'), ('span', 'transformers')]
)
def test_every_product_of_fine_tuning_and_prediction_is_float32(kind, style):
  sizes = {'hidden_size': 16, 'embedding_size': 8, 'num_heads': 2, 'intermediate_size': 16}
  config = EncoderConfig(num_layers=1, vocab_size=60, **sizes)
  model = FineTuned(config, kind, labels=3, style=style)
  params = nn.unbox(jax.eval_shape(lambda: init_finetuned(model, 0)))
  ids = finetune_step.SpecialIds(0, 2, 3)
  batch = {'token_ids': np.zeros((2, 16), np.int32), 'weights': np.ones(2, np.float32)}
  batch |= {'label': np.zeros(2, np.int32), 'seed': np.uint32(0)}
  batch |= {name: np.zeros(2, np.int32) for name in ('start', 'end')}
  batch |= {'impossible': np.zeros(2, np.float32), 'allowed': np.ones((2, 16), np.int32)}
  of = finetune_step.finetuning_loss(model, ids, losses.DEFAULTS)

  def loss(params, batch):
    return of.loss(params, *of.prepare(0, batch))[0]

  predict = finetune_step.jit_predict(
    model, ids, partitioning.make_layout(devices=jax.devices()[:1])
  )
  rows = {name: x for name, x in batch.items() if name in ('token_ids', 'allowed')}
  for lowered in (jax.jit(jax.grad(loss)).lower(params, batch), predict.lower(params, rows)):
    assert precisions(lowered.as_text()) == {'f32': {'HIGHEST'}}


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_the_splash_kernel_follows_forward_and_backward(monkeypatch, precision):
  monkeypatch.setattr(kernels, 'INTERPRET', True)
  arrays = [jax.ShapeDtypeStruct((1, 128, 1, 8), jnp.float32)] * 3
  segment_ids = jnp.ones((1, 128), jnp.int32)

  def loss(*qkv):
    settings = AttentionSettings('splash', 0, products=ProductSettings(precision))
    return attention(*qkv, segment_ids, None, settings).sum()

  text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).as_text()
  found = precisions(text)
  assert len(DOT.findall(text)) >= 5
  assert found == {'f32': {'HIGHEST' if precision == 'float32' else 'DEFAULT'}}


@pytest.mark.parametrize(
  'dtype, precision, platform, said',
  [
    ('auto', 'float32', 'cpu', 'float32 (auto, on CPU), those of float32 arrays in float32'),
    ('float32', 'float32', 'tpu', 'float32 (as configured), those of float32 arrays in float32'),
    ('auto', 'float32', 'gpu', 'bfloat16 (auto, on GPU), those of float32 arrays in float32'),
    ('float32', 'bfloat16', 'tpu', 'in a single bfloat16 pass (config.precision bfloat16)'),
    ('float32', 'tensorfloat32', 'tpu', 'in three bfloat16 passes (config.precision tensor'),
    ('float32', 'bfloat16', 'gpu', 'in TF32 (config.precision bfloat16)'),
  ],
)
def test_the_arithmetic_is_named_at_the_start(dtype, precision, platform, said):
  assert said in describe_products(choose_dtype(dtype, platform), precision, platform)


def test_the_precision_of_a_config_reaches_both_towers():
  model = build.build_model(checked_pretraining(micro_config('precision=bfloat16')), 300)
  assert model.generator_config.precision == model.discriminator_config.precision == 'bfloat16'
  assert conftest.tiny_electra().discriminator_config.precision == 'float32'
