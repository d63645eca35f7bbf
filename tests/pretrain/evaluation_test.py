"""Held-out sums and intervals depend on the rows only; mixtures count by their weights."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.data.prepare.preparation import HeldoutSource
from electra_jax.data.store.document_starts import RowGroups, group_rows
from electra_jax.errors import UserError
from electra_jax.pretrain import evaluation, pretrain_step
from electra_jax.pretrain.evaluation import Heldout, heldout_sums
from electra_jax.pretrain.objectives.mlm import MaskedLanguageModeling
from electra_jax.pretrain.objectives.settings import Settings
from electra_jax.pretrain.reference import Reference
from electra_jax.training import partitioning

LENGTH, ROWS = 8, 37
MLM = Settings(name='mlm')


def made_store():
  rows = np.random.default_rng(0).integers(5, 30, (ROWS, LENGTH)).astype(np.int32)
  return types.SimpleNamespace(
    rows=ROWS, length=LENGTH, pad_id=0, read=lambda numbers: rows[numbers], content=rows
  )


def simple_step(params, batch):
  """Sums of the tokens, of the numbers of rows, and of the replaced tokens, by group."""
  groups = len(batch['slots'])

  def total(x):
    return jnp.zeros(groups, x.dtype).at[batch['groups']].add(x.reshape(len(x), -1).sum(1))

  real = batch['token_ids'] > 0
  shown = batch['reference']['token_ids']
  ranks = batch['reference']['ranks'][shown]
  return {
    'tokens': total(batch['token_ids']),
    'numbers': total(jnp.where(real.any(1), batch['rows'], 0)),
    'losses': total(jnp.sqrt(batch['token_ids'].astype(jnp.float32))),
    'shown': total(ranks * (shown != batch['token_ids'])),
  }


@pytest.mark.parametrize('limit', [None, 11])
def test_sums_of_groups_do_not_depend_on_batches_or_devices(limit):
  store = made_store()
  p = np.full(30, 1 / 25)
  p[:5] = 0
  numbers = np.arange(ROWS) if limit is None else np.arange(limit) * ROWS // limit
  groups = group_rows(numbers, LENGTH, np.array([0, 30, 77, 80, 200]))
  assert groups.count > 2
  evaluated = Heldout(store, groups, Reference(p, range(5)), limit=limit)
  found = []
  for devices, batch_size in ((1, 3), (1, 16), (8, 8)):
    mesh = partitioning.make_mesh(jax.devices()[:devices])
    step = jax.jit(simple_step, out_shardings=partitioning.replicated(mesh))
    found.append(heldout_sums(step, {}, evaluated, batch_size=batch_size, mesh=mesh))
  for name in ('tokens', 'numbers', 'shown'):
    assert found[0][name].dtype == np.int64
    for other in found[1:]:
      np.testing.assert_array_equal(other[name], found[0][name])
  expected = np.zeros(groups.count, int)
  np.add.at(expected, groups.of_row, store.content[numbers].sum(1))
  np.testing.assert_array_equal(found[0]['tokens'], expected)
  assert found[0]['numbers'].sum() == numbers.sum() and found[0]['shown'].all()
  assert found[0]['losses'].dtype == np.float64


def test_counts_over_batches_exceed_32_bits():
  store = made_store()
  evaluated = Heldout(store, group_rows(np.arange(ROWS), LENGTH, None))
  mesh = partitioning.make_mesh(jax.devices()[:1])
  large = jnp.full(1, 2**31 - 1, jnp.int32)

  def step(params, batch):
    return {'scores': jnp.zeros(len(batch['slots']), jnp.int32).at[:1].add(large)}

  sums = heldout_sums(step, {}, evaluated, batch_size=4, mesh=mesh)
  assert sums['scores'].sum() == 10 * (2**31 - 1)


def sums_of(losses, masked=100):
  """Sums of masked language modeling for groups with these mean losses."""
  losses = np.asarray(losses, np.float64)
  count = np.full(len(losses), masked)
  return {
    'generator_loss': losses * masked,
    'generator_correct': count // 2,
    'masked': count,
    'tokens': count,
  }


def test_intervals_have_the_width_of_the_variation_between_documents():
  # Documents of 80 rows; rows of a document have almost equal losses.
  rng = np.random.default_rng(1)
  rows = np.repeat(rng.standard_normal(40), 80) + 0.1 * rng.standard_normal(3200) + 5

  def width(starts):
    groups = group_rows(np.arange(3200), LENGTH, starts)
    losses = np.bincount(groups.of_row, rows) / np.bincount(groups.of_row)
    low, high = evaluation.intervals(sums_of(losses), MLM)['generator_loss']
    return high - low

  expected = 2 * 1.96 * rows.reshape(40, 80).mean(1).std(ddof=1) / 40**0.5
  assert width(np.arange(40) * 80 * LENGTH) == pytest.approx(expected, rel=0.1)
  assert width(None) < 0.6 * expected  # blocks of 16 rows


def mixture(rows=(3, 1), weights=(0.25, 0.75), repeat=1):
  sources = tuple(
    HeldoutSource(f'{name}.txt', weight, n * repeat)
    for name, weight, n in zip('ab', weights, rows, strict=True)
  )
  source_of = np.repeat([0, 1], np.array(rows) * repeat)
  groups = RowGroups(np.arange(len(source_of)), source_of, 'documents')
  return Heldout(made_store(), groups, sources=sources)


def test_a_mixture_is_weighted_as_in_training_and_shown_by_source():
  evaluated = mixture()
  sums = sums_of([2.0, 3.0, 4.0, 9.0])
  assert evaluation.heldout_metrics(sums, MLM)['generator_loss'] == pytest.approx(4.5)
  found = evaluation.weighted_metrics(sums, evaluated, MLM)
  assert found['weighted/generator_loss'] == pytest.approx(0.25 * 3 + 0.75 * 9)
  assert found['weighted/total_loss'] == found['weighted/generator_loss']
  assert found['source-00/generator_loss'] == 3 and found['source-01/generator_loss'] == 9
  alone = Heldout(made_store(), evaluated.groups)
  assert evaluation.weighted_metrics(sums, alone, MLM) == {}


def test_a_source_without_held_out_rows_is_left_out():
  evaluated = mixture(rows=(4, 0))
  found = evaluation.weighted_metrics(sums_of([2.0, 3.0, 4.0, 9.0]), evaluated, MLM)
  assert found['weighted/generator_loss'] == found['source-00/generator_loss'] == 4.5
  assert not any(name.startswith('source-01') for name in found)


def test_documents_are_resampled_within_their_source():
  evaluated = mixture(repeat=30)
  sums = sums_of(np.repeat([2.0, 9.0], [90, 30]))  # no variation within a source
  figures = evaluation.with_intervals(sums, evaluated, MLM, evaluated.shares())
  assert figures['generator_loss'] == pytest.approx(
    {'value': 7.25, 'low': 7.25, 'high': 7.25}, rel=1e-9
  )


def test_the_table_names_groups_sources_and_weighted_values():
  evaluated, sums = mixture(), sums_of([2.0, 3.0, 4.0, 9.0])
  result = {'resampled': {'groups': 4, 'unit': 'documents'}} | {
    'figures': evaluation.with_intervals(sums, evaluated, MLM),
    **evaluation._of_mixture(sums, evaluated, MLM),
  }
  table = evaluation.metrics_table(result, MaskedLanguageModeling().displayed)
  header, line = table.splitlines()[1:3]
  assert header.split()[-5:] == ['weighted', 'source', '0', 'source', '1']
  assert line.split()[:3] == ['generator', 'loss', '4.5000']
  assert line.split()[-3:] == ['7.5000', '3.0000', '9.0000']
  assert 'resample documents, in 4 groups' in table and 'source 1: b.txt, weight 0.75' in table


def test_an_objective_whose_sums_ignore_groups_is_refused():
  context = types.SimpleNamespace(groups=jnp.zeros(4, jnp.int32), num_groups=2)
  pretrain_step._check_groups({'a': jnp.zeros((2, 3))}, context)
  with pytest.raises(UserError, match=r"'b' of the objective has shape \(\).*summing.total"):
    pretrain_step._check_groups({'b': jnp.zeros(())}, context)
