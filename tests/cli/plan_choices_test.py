"""The table of shipped configs for a corpus, a device and a time."""

import gzip
import json

import micro_run
import pytest

from electra_jax import plan_choices
from electra_jax.config import PretrainingConfig
from electra_jax.pretrain import guidance

H100_FLOPS = 989e12 * 0.35  # at the assumed utilization


def config_of(source):
  return PretrainingConfig().replace({'data.source': str(source), 'name': 'mine'})


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  """What is printed and written for a corpus on two H100s, with a limit of 10 hours."""
  folder = tmp_path_factory.mktemp('plan')
  out, err = micro_run.run(
    '--mode=plan',
    '--config=small',
    f'--config.data.source={micro_run.corpus()}',
    '--device=nvidia h100',
    '--device_count=2',
    '--hours=10',
    '--price=3',
    f'--output={folder}',
  )
  assert not err
  return out, json.loads((folder / 'plan-choices.json').read_text())


def test_every_shipped_config_is_listed_from_the_shortest_run_to_the_longest(table):
  out, result = table
  rows = result['configs']
  assert {row['config'] for row in rows} == set(guidance.shipped_pretraining_configs())
  assert [row['hours'] for row in rows] == sorted(row['hours'] for row in rows)
  assert all(f' {row["config"]} ' in out for row in rows)
  assert 'assumed 35%' in out and '2 x NVIDIA H100' in out


def test_hours_passes_and_cost_follow_from_flops_tokens_and_price(table):
  _, result = table
  by_name = {row['config']: row for row in result['configs']}
  small = guidance.shipped_pretraining_configs()['small']
  row = by_name['small']
  assert row['hours'] == pytest.approx(guidance.config_flops(small) / (2 * H100_FLOPS) / 3600)
  assert row['dollars'] == pytest.approx(row['hours'] * 2 * 3)
  assert row['tokens'] == 1_000_000 * 128 * 128
  assert row['passes'] == pytest.approx(row['tokens'] / result['corpus_tokens'])
  for row in result['configs']:
    assert row['fits'] == (row['hours'] <= 10 and row['passes'] <= guidance.MANY_PASSES)


def test_parameters_and_state_are_those_of_both_towers(table):
  _, result = table
  by_name = {row['config']: row for row in result['configs']}
  # Clark et al. (2020): 14 M without the generator, which adds its layers of a quarter the width.
  assert 14e6 < by_name['small']['parameters'] < 18e6
  assert by_name['large']['memory'] > 16 * by_name['large']['parameters'] > 16 * 335e6


def test_a_compressed_corpus_is_as_large_as_its_text(tmp_path, monkeypatch):
  text = ''.join(f'{word} document of some words\n\n' for word in range(4000))
  (tmp_path / 'a.txt').write_text(text)
  with gzip.open(tmp_path / 'b.txt.gz', 'wt') as file:
    file.write(text)
  plain, _ = plan_choices.corpus_tokens(config_of(tmp_path / 'a.txt'))
  exact = sum(map(len, text.split('\n\n'))) / plan_choices.CHARACTERS_PER_TOKEN
  assert plain == pytest.approx(exact, rel=0.01)
  compressed, _ = plan_choices.corpus_tokens(config_of(tmp_path / 'b.txt.gz'))
  assert compressed == pytest.approx(exact, rel=0.01)
  monkeypatch.setattr(plan_choices, 'SAMPLE_CHARACTERS', 30_000)  # a third of it is read
  sampled, how = plan_choices.corpus_tokens(config_of(tmp_path / 'a.txt'))
  assert sampled == pytest.approx(exact, rel=0.25) and 'estimated from 30' in how


def test_the_local_devices_are_measured_and_others_are_named_by_their_beginning():
  local = plan_choices.device_of('local', None, None)
  assert local.flops > 1e9 and local.source == 'measured' and local.count == 8
  assert plan_choices.device_of('local', 2, 0.5).flops < local.flops
  v5 = plan_choices.device_of('TPU v5', 4, None)  # an exact name, and the beginning of others
  assert v5.flops == 4 * 459e12 and v5.utilization == guidance.UTILIZATION['tpu']
