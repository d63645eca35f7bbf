"""A run keeps the dtype that 'auto' stood for when it was started, wherever it resumes."""

import json
import shutil

import micro_run
import numpy as np
import pytest

from electra_jax.training.encoders import ProductType, choose_dtype, compute_dtype


@pytest.mark.parametrize(
  'name, recorded, expected',
  [
    ('auto', None, ProductType('float32', 'auto, on CPU')),
    ('auto', 'bfloat16', ProductType('bfloat16', 'auto, as at the first start')),
    ('float32', 'bfloat16', ProductType('float32', 'as configured')),
  ],
)
def test_what_a_run_recorded_decides_over_its_devices_but_not_over_its_config(
  name, recorded, expected
):
  assert choose_dtype(name, 'cpu', recorded) == expected
  assert compute_dtype('auto', 'tpu') == 'bfloat16'


def losses_after(folder, last):
  """The losses that a run logged after a step."""
  lines = micro_run.figures(folder)
  return np.array([x['loss'] for x in lines if x['kind'] == 'train' and x['step'] > last])


@pytest.mark.parametrize('saved', [25, 0])
def test_a_run_that_was_saved_resumes_with_the_dtype_of_its_first_start(saved, tmp_path):
  whole, _ = micro_run.finished()
  folder = tmp_path / 'run'
  shutil.copytree(whole, folder)
  for step in micro_run.checkpoint_steps(folder):
    if step > saved:
      shutil.rmtree(folder / 'checkpoints' / str(step))
  # As a TPU would have recorded it.
  resolved = json.loads((folder / 'resolved.json').read_text()) | {'dtype': 'bfloat16'}
  (folder / 'resolved.json').write_text(json.dumps(resolved))
  out, _ = micro_run.run(*micro_run.arguments(folder))
  dtype, reason = ('bfloat16', 'as at the first start') if saved else ('float32', 'on CPU')
  assert f'products     {dtype} (auto, {reason})' in out
  assert json.loads((folder / 'resolved.json').read_text())['dtype'] == dtype
  equal = losses_after(folder, saved) == losses_after(whole, saved)
  assert not equal.any() if saved else equal.all()
