"""Two processes fine-tune as one does: the same trial, evaluated on all data, written once."""

import json

import finetune_files
import micro_run
import numpy as np
import pytest
from hosts_test import ends, free_port

ONE_TRIAL = ('--config.num_trials=1', '--config.sharding.smallest=0')


@pytest.mark.long
def test_two_processes_fine_tune_as_one_does(tmp_path):
  data = finetune_files.glue(tmp_path / 'glue', train=40)
  address = f'127.0.0.1:{free_port()}'
  pair = [
    micro_run.start(
      *micro_run.finetune_arguments(
        tmp_path / 'pair',
        data,
        *ONE_TRIAL,
        f'--coordinator={address}',
        '--processes=2',
        f'--process={i}',
      ),
      devices=2,
    )
    for i in range(2)
  ]
  ended = ends(pair)
  assert [status for status, _, _ in ended] == [0, 0], ended[0][2][-2000:] + ended[1][2][-2000:]
  micro_run.run(*micro_run.finetune_arguments(tmp_path / 'single', data, *ONE_TRIAL), devices=4)
  records = [
    json.loads((tmp_path / name / 'cola' / 'trial-1' / 'result.json').read_text())
    for name in ('pair', 'single')
  ]
  assert records[0]['steps'] == records[1]['steps'] and records[0]['tokens'] == records[1]['tokens']
  np.testing.assert_allclose(records[0]['train_loss'], records[1]['train_loss'], rtol=1e-3)
  ours, theirs = (
    micro_run.checkpoint(tmp_path / name / 'cola' / 'trial-1', records[0]['steps'])
    for name in ('pair', 'single')
  )
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    if name.startswith('params'):
      np.testing.assert_allclose(
        value, theirs[name], rtol=0, atol=2e-3 * max(np.abs(value).max(), 1e-3), err_msg=name
      )
