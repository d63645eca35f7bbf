"""What a start imports, which programs it keeps, and that quick compilation changes no number."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.training import devices, partitioning

ROOT = pathlib.Path(__file__).parents[2]
SLOW_TO_IMPORT = ('matplotlib', 'pandas', 'sklearn', 'tensorflow', 'torch', 'transformers')


def test_the_programs_import_nothing_that_is_slow_and_not_needed():
  names = 'pretrain.train', 'pretrain.evaluation', 'finetune.train', 'finetune.predict'
  code = ''.join(f'import electra_jax.{name}\n' for name in names)
  code += f'import sys\nsys.exit(str(sorted(set({SLOW_TO_IMPORT}) & set(sys.modules))))'
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.stderr.strip() == '[]'


def test_the_programs_read_last_are_kept_within_the_bound(tmp_path):
  oldest, read, newest = (f'jit_{x}-{"0f" * 32}-cache' for x in ('oldest', 'read', 'newest'))
  for number, name in enumerate((oldest, read, newest, 'my-cache')):
    (tmp_path / name).write_bytes(bytes(100))
    os.utime(tmp_path / name, (number, number))
  os.utime(tmp_path / read, (10, 1))
  devices.remove_oldest(tmp_path, 200)
  assert {x.name for x in tmp_path.iterdir()} == {read, newest, 'my-cache'}
  devices.remove_oldest(tmp_path, 199)
  assert {x.name for x in tmp_path.iterdir()} == {read, 'my-cache'}
  devices.remove_oldest(tmp_path / 'missing', 0)


def test_the_level_of_llvm_is_that_of_xla_flags_where_they_have_one(monkeypatch):
  mesh = partitioning.make_layout(devices=jax.devices()[:1]).mesh
  monkeypatch.setattr(devices, 'XLA_FLAGS', '')
  assert devices.compiler_options(mesh) == {'xla_backend_optimization_level': 1}
  monkeypatch.setattr(devices, 'XLA_FLAGS', '--xla_backend_optimization_level=0')
  assert devices.compiler_options(mesh) == {}


def test_the_level_of_llvm_changes_no_number():
  def function(key):
    x = jax.random.normal(key, (64, 96))
    y = jax.nn.gelu(x @ x.T) + jax.nn.softmax(x @ x.T)
    return x, y / jnp.linalg.norm(y, axis=1, keepdims=True)

  found = [
    jax.jit(function, compiler_options={'xla_backend_optimization_level': level})(jax.random.key(1))
    for level in (1, 3)
  ]
  for quick, full in zip(*found, strict=True):
    np.testing.assert_array_equal(quick, full)
