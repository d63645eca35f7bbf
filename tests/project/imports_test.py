"""Imports go one way only, and nothing but the functions that use it imports TensorFlow."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / 'electra_jax'
# A layer may import itself and layers of lower rank. `__init__` has load(workdir).
RANKS = {
  'allocator': 0,
  'console': 0,
  'errors': 0,
  'input_limits': 0.5,  # below files, which are below JSON
  'file_access': 1,
  'json_reader': 1.5,
  'folder_lock': 2,
  'hub': 2.5,
  'remote_files': 0,
  'checksums': 2,
  'version': 0,
  'callable_package': 0,
  'registry': 1,
  'config': 2,
  'model': 3,
  'data': 4,
  'training': 4,
  'interop': 5,
  'text_functions': 5,
  'pretrain': 6,
  'finetune': 6,
  '__init__': 7,
  'model_card': 8,
  'pages': 7,
  'plan_report': 7,
  'plan_choices': 7,
  'plan': 8,
  'report': 8,
  'finetuned_report': 7.5,
  'probe': 8,
  'timeline': 8,
  'verify': 8,
  'python_api': 8,
  'estimator': 8.5,
  'sweep': 9,
  'export': 9,
  'hub_upload': 8,
  'cli': 10,
  'main': 11,
}
# (part, what it may not import although its rank is lower)
FORBIDDEN = {('config', 'console'), ('model', 'console'), ('data', 'model')}
# What only some runs need, and takes long to load or may be missing: imported where it is used.
LAZY = (
  'tensorflow',
  'tensorflow_datasets',
  'apache_beam',
  'pyarrow',
  'fsspec',
  'zstandard',
  'datasketch',
  'sentencepiece',
  'tokenizers',
  'safetensors',
  'wandb',
  'mlflow',
)
FILES = sorted(PACKAGE.rglob('*.py'))


def part_of(file):
  return file.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(source):
  """(full name, stands in a function) of every import; `from a import b` gives a.b."""

  def visit(node, inside):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.Import):
        yield from ((name.name, inside) for name in child.names)
      elif isinstance(child, ast.ImportFrom):
        assert child.level == 0, f'line {child.lineno}: import by the full name'
        yield from ((f'{child.module}.{name.name}', inside) for name in child.names)
      else:
        yield from visit(
          child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        )

  return list(visit(ast.parse(source), False))


def offences(part, source):
  """What a file of `part` imports and may not."""
  found = []
  for name, inside in imported(source):
    top, *rest = name.split('.')
    if top in LAZY and not inside:
      found.append(f'{name} outside of a function')
    if top == 'electra_jax':
      other = rest[0] if rest and rest[0] in RANKS else '__init__'
      if other != part and RANKS[other] >= RANKS[part] or (part, other) in FORBIDDEN:
        found.append(f'{name} from {part}')
  return found


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
  assert part_of(file) in RANKS, 'a new part of the package: give it a rank'
  assert not offences(part_of(file), file.read_text('utf-8'))


@pytest.mark.parametrize(
  'part, source',
  [
    ('config', 'from electra_jax.model import config'),
    ('config', 'from electra_jax import console'),
    ('model', 'from electra_jax.training import flops'),
    ('model', 'import electra_jax'),
    ('data', 'def f():\n  from electra_jax.model import config'),
    ('data', 'from electra_jax.training import partitioning'),
    ('training', 'from electra_jax.pretrain.pretrain_step import TrainState'),
    ('pretrain', 'import electra_jax.main'),
    ('data', 'import tensorflow as tf'),
    ('data', 'import apache_beam as beam'),
    ('data', 'if True:\n  from tensorflow_datasets import load'),
  ],
)
def test_an_import_the_wrong_way_is_noticed(part, source):
  assert offences(part, source)


def test_what_is_lazy_is_not_loaded_by_importing():
  parts = [file.relative_to(PACKAGE.parent).with_suffix('').parts for file in FILES]
  modules = ['.'.join(part).removesuffix('.__init__') for part in parts]
  code = (
    'import importlib, sys\n'
    + ''.join(f'importlib.import_module({name!r})\n' for name in modules)
    + (
      'there = {name.split(".")[0] for name in sys.modules}\n'
      f'sys.exit(", ".join(there & set({LAZY!r}) - {{"fsspec", "zstandard"}}) or 0)'
    )
  )  # Orbax takes these two
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=PACKAGE.parent,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_the_step_and_the_benchmarks_need_no_ml_collections():
  code = (
    'import sys\nfrom electra_jax.pretrain import pretrain_step\n'
    'from electra_jax.training import flops, optimizers, partitioning\n'
    'partitioning.make_layout()\n'
    'sys.exit("ml_collections" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=PACKAGE.parent,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_figures_are_written_without_torch_which_works_afterwards(tmp_path):
  code = (
    'import importlib.util, sys\nfrom electra_jax.training.metrics_writer import MetricsWriter\n'
    'writer = MetricsWriter(sys.argv[1], 0)\n'
    'assert "torch" not in sys.modules\n'
    'if importlib.util.find_spec("torch"):\n  import torch\n  torch.ones(1)\n'
    'writer.write("train", 1, {"loss": 2.0})\nwriter.close()'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path],
    cwd=PACKAGE.parent,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert (
    list((tmp_path / 'tensorboard').glob('events*'))
    and '2.0' in (tmp_path / 'metrics.jsonl').read_text()
  )
