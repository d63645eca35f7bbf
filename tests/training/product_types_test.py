"""What config.dtype=auto stands for: by the device or processor, and by the record of a run."""

import json
import shutil

import micro_run
import numpy as np
import pytest
from conftest import micro_config

from electra_jax.errors import UserError
from electra_jax.pretrain import run_start
from electra_jax.pretrain.train import train
from electra_jax.training import product_types
from electra_jax.training.product_types import (
  ON_CPUS,
  ProductType,
  choose_dtype,
  choose_training_dtype,
  compute_dtype,
)


@pytest.fixture
def processor(tmp_path, monkeypatch):
  """Replaces the features of the processor, as Linux lists them."""
  monkeypatch.delenv(ON_CPUS, raising=False)

  def of(flags):
    path = tmp_path / 'cpuinfo'
    path.write_text(f'processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: other\n')
    monkeypatch.setattr(product_types, 'CPUINFO', path)

  return of


@pytest.mark.parametrize(
  ('flags', 'name', 'expected'),
  [
    ('fma avx512_bf16 avx2', 'auto', ('bfloat16', 'auto, on a CPU with avx512_bf16')),
    ('fma amx_bf16 avx2', 'auto', ('bfloat16', 'auto, on a CPU with amx_bf16')),
    ('fma avx512_bf16 avx2', 'float32', ('float32', 'as configured')),
    ('fma avx2', 'auto', ('float32', 'auto, on CPU')),
    ('fma avx2', 'bfloat16', ('bfloat16', 'as configured')),
    ('avx512_bf16_like', 'auto', ('float32', 'auto, on CPU')),
  ],
)
def test_auto_follows_a_table_of_features_in_pretraining(flags, name, expected, processor):
  processor(flags)
  assert choose_training_dtype(name, 'cpu') == expected


def test_other_programs_and_devices_do_not_depend_on_the_processor(processor):
  processor('avx512_bf16')
  assert choose_dtype('auto', 'cpu') == ('float32', 'auto, on CPU')
  assert (compute_dtype('auto', 'cpu'), compute_dtype('auto', 'tpu')) == ('float32', 'bfloat16')
  processor('avx2')
  assert choose_training_dtype('auto', 'gpu') == ('bfloat16', 'auto, on GPU')


def test_other_systems_have_no_list_of_features(tmp_path, monkeypatch):
  monkeypatch.setattr(product_types, 'CPUINFO', tmp_path / 'missing')
  assert product_types.processor_features() == frozenset()


def test_an_environment_variable_replaces_the_processor(processor, monkeypatch):
  processor('avx512_bf16')
  monkeypatch.setenv(ON_CPUS, 'float32')
  assert choose_training_dtype('auto', 'cpu') == ('float32', f'auto, by {ON_CPUS}')
  assert choose_training_dtype('auto', 'tpu') == ('bfloat16', 'auto, on TPU')
  assert choose_training_dtype('bfloat16', 'cpu').dtype == 'bfloat16'
  monkeypatch.setenv(ON_CPUS, 'float16')
  with pytest.raises(UserError, match="is 'float16'; expected float32 or bfloat16."):
    choose_training_dtype('auto', 'cpu')


def test_a_wrong_value_of_the_variable_is_reported_before_data_is_prepared(monkeypatch, tmp_path):
  monkeypatch.setenv(ON_CPUS, 'float16')
  monkeypatch.setattr(run_start, 'prepare_data', lambda *_: pytest.fail('data was prepared'))
  with pytest.raises(UserError, match="is 'float16'"):
    train(micro_config(), tmp_path)


@pytest.mark.parametrize('choose', [choose_dtype, choose_training_dtype])
def test_the_record_of_a_run_decides_over_its_devices_but_not_over_its_config(choose, processor):
  processor('avx2')
  recorded = ProductType('bfloat16', 'auto, as at the first start')
  assert choose('auto', 'cpu', 'bfloat16') == recorded
  assert choose('float32', 'cpu', 'bfloat16') == ('float32', 'as configured')


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
  dtype = 'bfloat16' if saved else 'float32'
  reason = 'as at the first start' if saved else f'by {ON_CPUS}'
  assert f'products     {dtype} (auto, {reason})' in out
  assert json.loads((folder / 'resolved.json').read_text())['dtype'] == dtype
  equal = losses_after(folder, saved) == losses_after(whole, saved)
  assert not equal.any() if saved else equal.all()
