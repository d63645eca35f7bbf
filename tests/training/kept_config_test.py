"""A run that is resumed keeps the meaning that it was started with."""

import json

import pytest
from etils import epath

from electra_jax.config import PretrainingConfig, to_plain
from electra_jax.training import checkpoints
from electra_jax.training.kept_config import CONFIG, as_started, changed_fields

NEWER = ('best_by', 'best_phases', 'logit_bins')


@pytest.fixture
def folder(tmp_path):
  """The folder of a run of version 0.1.0."""
  plain = to_plain(PretrainingConfig())
  for name in NEWER:
    del plain[name]
  (tmp_path / CONFIG).write_text(json.dumps(plain))
  return epath.Path(tmp_path)


def test_fields_newer_than_the_run_mean_what_the_program_did_before(folder):
  assert changed_fields(folder, PretrainingConfig())  # as the command line has it
  resumed = as_started(folder, PretrainingConfig())
  assert [getattr(resumed, name) for name in NEWER] == ['total_loss', 'all', 'uniform']
  assert checkpoints.run_criterion(resumed) == checkpoints.HELDOUT_LOSS
  assert not changed_fields(folder, resumed)


def test_the_meaning_is_kept_over_several_starts(folder):
  for _ in range(3):
    resumed = as_started(folder, PretrainingConfig())
    assert not changed_fields(folder, resumed) and resumed.best_by == 'total_loss'
    (folder / CONFIG).write_text(json.dumps(to_plain(resumed)))


def test_a_new_run_has_the_defaults(tmp_path):
  config = PretrainingConfig()
  assert as_started(epath.Path(tmp_path), config) == config
  (tmp_path / CONFIG).write_text(json.dumps(to_plain(config)))
  assert as_started(epath.Path(tmp_path), config) == config
  assert checkpoints.run_criterion(config) == checkpoints.REFERENCE_AP


def test_a_metric_of_an_older_version_that_is_not_finite_ranks_last():
  for criterion, worst in ((checkpoints.HELDOUT_LOSS, 1e30), (checkpoints.REFERENCE_AP, -1e30)):
    values = [criterion.value({criterion.metric: x}) for x in (float('nan'), worst)]
    best = min if criterion.mode == 'min' else max
    assert best(values) == worst and criterion.value({}) == values[0]
