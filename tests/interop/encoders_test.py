"""Masked language models of transformers: what they compute, and the way in and out."""

import functools
import json

import encoder_formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoder_formats import CLS, FORMATS, PAD, SEP, VOCAB, detection_state, towers
from hf_files import assert_close
from safetensors.numpy import save_file

from electra_jax.interop import hf_tensors, huggingface
from electra_jax.interop.weights import same_bits
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs, packed_inputs

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
  head_state = head.state_dict()
  for name, value in head_state.items():
    head_state[name] = grad_of_head[name]
  return logits, verdicts, nll, gradients, head_state


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
