"""Sources are weighted by numbers or a temperature, per phase, without new rows."""

import made_tokenizers
import numpy as np
import pytest

from electra_jax.config import checked_pretraining, phases_of
from electra_jax.config.pretraining import default_config
from electra_jax.data.prepare import preparation
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store.mixture import Mixing, Mixture
from electra_jax.data.store.row_batches import read_batch
from electra_jax.errors import UserError
from electra_jax.pretrain import run_start

SIZES = {'a': 300, 'b': 30}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mixing')
  rng = np.random.default_rng(0)
  words = np.array('the quick brown fox jumps over a lazy dog'.split())
  texts = {
    name: [' '.join(rng.choice(words, 40)) + f' {name}{i}' for i in range(number)]
    for name, number in SIZES.items()
  }
  for name, documents in texts.items():
    (folder / f'{name}.txt').write_text('\n\n'.join(documents))
  made_tokenizers.train(sum(texts.values(), []), kind='wordpiece', vocab_size=150).save(
    folder / 'tokenizer'
  )
  return folder


def config(folder, source='{0}/a.txt, {0}/b.txt', phases=(), **fields):
  c = default_config()
  c.data.update(
    source=source.format(folder), tokenizer=str(folder / 'tokenizer'), cache=str(folder / 'cache')
  )
  c.data.update(**fields)
  c.update(sequence_length=32, batch_size=8, steps=200, phases=phases)
  c.optimizer.warmup_steps = 1
  return checked_pretraining(c)


def prepared(folder, *args, **kwargs):
  return run_start.prepare_data(config(folder, *args, **kwargs))


@pytest.mark.parametrize(
  'temperature, expected',
  [(1.0, [0.9, 0.1]), (2.0, [0.75, 0.25]), (1e6, [0.5, 0.5]), (1 / 2, [81 / 82, 1 / 82])],
)
def test_a_temperature_follows_its_formula(temperature, expected):
  weights = np.array(Mixing(temperature=temperature).of_sources((9_000_000, 1_000_000), 'x'))
  assert weights / weights.sum() == pytest.approx(expected, rel=1e-5)


def test_a_temperature_of_one_weights_sources_by_their_tokens(folder):
  made = prepared(folder, mixture_temperature=1.0)
  tokens = [source['text_tokens'] for source in made.facts['sources']]
  assert made.train.weights == pytest.approx(np.array(tokens) / sum(tokens))


def test_weights_replace_those_of_the_source_without_new_rows(folder):
  source = '{0}/a.txt;weight=1, {0}/b.txt;weight=1'
  first = prepared(folder, source)
  other = prepared(folder, source, weights=(3, 1))
  assert other.path == first.path and other.train.weights == (0.75, 0.25)
  assert [s.identity for s in other.train.stores] == [s.identity for s in first.train.stores]
  assert prepared(folder, source, mixture_temperature=1e9).train.weights == pytest.approx(
    (0.5, 0.5)
  )
  assert prepared(folder, weights=(1, 1)).path == first.path, 'weights in one place or the other'
  opened = prepared(folder, '', store=first.path, weights=(9, 1))
  assert opened.train.weights == (0.9, 0.1)


def test_each_phase_has_its_weights_and_reads_by_them(folder):
  phases = (
    {'steps': 100, 'data.weights': (1, 1)},
    {'steps': 100, 'data.weights': (9, 1)},
  )
  run = config(folder, phases=phases, weights=(1, 1))
  found = [run_start.prepare_data(phase.config) for phase in phases_of(run)]
  identities = {run_start.data_identity(p) for p in found}
  assert len(identities) == 2 and len({p.path for p in found}) == 1
  for made, share in zip(found, (0.5, 0.1), strict=True):
    b = set(map(bytes, made.train.stores[1].read(np.arange(made.train.stores[1].rows))))
    rows = np.concatenate([read_batch(made.train, step, 10, seed=3) for step in range(100)])
    assert sum(bytes(row) in b for row in rows) == 1000 * share
    assert np.array_equal(read_batch(made.train, 7, 10, seed=3), rows[70:80])
    assert [source.weight for source in made.heldout_sources] == [1 - share, share]
    line = run_start.describe_phase(phases_of(run)[0], made)
    assert f'({share:.1%} of the rows)' in line


def test_wrong_weights_are_named(folder):
  for fields, expected in (
    ({'weights': (1, 0)}, 'config.data.weights is (1, 0); expected a number above 0'),
    ({'weights': ('a',)}, 'expected a number above 0 for each source'),
    ({'weights': (1, 2), 'mixture_temperature': 2.0}, 'expected one of the two'),
    ({'mixture_temperature': 0.01}, 'expected at least 0.1'),
    ({'weights': (1, 2, 3)}, 'has 3 weights and the corpus'),
  ):
    with pytest.raises(UserError) as caught:
      prepared(folder, **fields)
    assert expected in str(caught.value)


def test_sources_that_are_stored_together_cannot_be_weighted(folder):
  together = preparation.prepare_corpus(
    CorpusRecipe(
      f'{folder}/a.txt, {folder}/b.txt', row_length=32, tokenizer=str(folder / 'tokenizer')
    ),
    cache=folder / 'cache',
  )
  assert not isinstance(together.train, Mixture)
  with pytest.raises(UserError, match='stored together and cannot be weighted'):
    prepared(folder, '', store=together.path, weights=(1, 1))
