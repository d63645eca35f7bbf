"""Runs that are too long for the devices or the corpus are reported before they begin."""

import dataclasses

import micro_run
import pytest

from electra_jax.config import checked_pretraining
from electra_jax.config.config_files import load_config_file
from electra_jax.pretrain import guidance
from electra_jax.pretrain.guidance import Expectation

DAY = 86400.0
FITTING = Expectation(flops=1e15, peak=1e12, utilization=0.5, passes=3.0, tokens=1e9)


def printed(expected, capsys, name='small'):
  guidance.print_expectation(expected, checked_pretraining(load_config_file(name)))
  return capsys.readouterr().out


def test_the_duration_is_that_of_the_flops_at_the_assumed_utilization():
  assert FITTING.seconds == 2000.0
  assert dataclasses.replace(FITTING, peak=0.0).seconds == 0.0


def test_a_run_that_fits_is_announced_without_a_warning(capsys):
  out = printed(FITTING, capsys)
  assert 'about 33m20s of training at an assumed 50% of the peak' in out and 'warning' not in out
  assert printed(dataclasses.replace(FITTING, peak=0.0), capsys) == ''


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'flops': 0.5e12 * 31 * DAY}, 'takes about 31 days on these devices'),
    ({'flops': 0.5e12 * 51 * 365.25 * DAY}, 'takes about 51 years on these devices'),
    ({'passes': 41.0}, 'repeats the corpus 41 times'),
  ],
)
def test_a_run_that_is_too_long_is_warned_of_with_what_fits(changes, reason, capsys):
  expected = dataclasses.replace(FITTING, **changes)
  out = printed(expected, capsys)
  assert reason in out
  # What it advises does fit.
  epochs = float(out.split('--config.budget_epochs=')[1].split()[0])
  shorter = dataclasses.replace(
    expected, passes=epochs, flops=expected.flops * epochs / expected.passes
  )
  assert not shorter.is_too_long and not shorter.repeats_too_often
  assert epochs > 0.9 * min(40, expected.passes * guidance.LONG_RUN / expected.seconds)


def test_the_largest_shipped_config_that_fits_is_named():
  sizes = {n: guidance.config_flops(c) for n, c in guidance.shipped_pretraining_configs().items()}
  assert (
    'continued' not in sizes and sizes['tiny'] < sizes['small'] < sizes['base'] < sizes['large']
  )
  endless = dataclasses.replace(FITTING, peak=1e21, tokens=1e13)
  assert guidance.largest_that_fits(endless) == max(sizes, key=sizes.get)
  # In 30 days 0.9 of what small takes.
  slow = dataclasses.replace(endless, peak=2 * sizes['small'] / guidance.LONG_RUN * 0.9)
  assert sizes[guidance.largest_that_fits(slow)] < sizes['small']
  assert guidance.largest_that_fits(dataclasses.replace(endless, tokens=10)) is None


def test_flops_of_a_config_are_those_of_its_phases():
  c = checked_pretraining(load_config_file('tiny'))
  whole = guidance.config_flops(c)
  halves = c.replace({'phases': ({'steps': c.steps // 2}, {'steps': c.steps - c.steps // 2})})
  assert guidance.config_flops(halves) == pytest.approx(whole)
  assert guidance.config_tokens(c) == c.steps * c.batch_size * c.sequence_length


def test_a_run_prints_what_it_takes_before_it_compiles(tmp_path):
  out = micro_run.finished()[1]
  assert out.index('  expected     about ') < out.index('  compiling ')
  text, _ = micro_run.run(
    *micro_run.arguments(tmp_path / 'run', '--config.budget_epochs=0.1', '--config.save_every=100')
  )
  assert '0.1 epochs: 4 steps' in text  # 365 rows in batches of 8
