"""Fine-tuning configs: every field is explained and checked, the shipped files are what they say, rates go by size."""

import importlib.util
import pathlib
import re

import pytest

from electra_jax import config as configs
from electra_jax.errors import UserError
from electra_jax.finetune import config as finetune_config
from electra_jax.finetune.tasks import FAMILIES, GLUE

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'configs' / 'finetune').glob('*.py'))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_shipped_file_is_fine_and_says_its_command(path):
  module = load(path)
  c = module.get_config()
  assert c.name == path.stem and all(name in FAMILIES for name in finetune_config.tasks(c))
  with pytest.raises(UserError, match='config.init is empty'):
    finetune_config.check(c)
  c.init = 'runs/small'
  finetune_config.check(c)
  assert (
    f'--mode=finetune --config=configs/finetune/{path.stem}.py --config.init=' in module.__doc__
  )


def test_glue_is_all_of_it():
  assert set(
    finetune_config.tasks(load(ROOT / 'configs' / 'finetune' / 'glue.py').get_config())
  ) == set(GLUE)


def test_every_field_is_explained():
  source = (ROOT / 'electra_jax' / 'finetune' / 'config.py').read_text()
  body = source[source.index('def default_config') : source.index('def tasks')]
  unexplained = [
    line
    for line in body.splitlines()
    if re.match(r'  \w+(\.\w+)+ = ', line) and '#' not in line and 'ConfigDict' not in line
  ]
  allowed = (
    'data.dev',
    'data.test',
    'optimizer.b1',
    'optimizer.b2',
    'optimizer.eps',
  )  # their names say it
  assert [line for line in unexplained if not line.strip().startswith(allowed)] == []


@pytest.mark.parametrize(
  'field, value, said',
  [
    ('seed', -1, 'config.seed is -1'),
    ('num_trials', 0, 'config.num_trials is 0'),
    ('task', 'cola,cola', 'names a task twice'),
    ('task', '', 'config.task is empty'),
    ('max_length', 5, 'at least 8'),
    ('select', 'first', 'last or best'),
    ('keep_trials', 'some', 'best, all or none'),
    ('epochs', -1.0, 'must not be negative'),
    ('optimizer.warmup', 1.5, 'share of the steps'),
    ('optimizer.layer_decay', 2.0, 'config.optimizer.layer_decay'),
    ('optimizer.clip', -1.0, 'config.optimizer.clip'),
    ('head.dropout', 1.0, 'config.head.dropout'),
    ('model.dropout', 1.0, 'config.model.dropout'),
    ('dtype', 'half', 'config.dtype'),
    ('micro_batches', 5, 'does not divide'),
    ('data.repair_tags', 'maybe', 'refuse or repair'),
    ('like', 'runs/x', "belongs to config.init='none'"),
  ],
)
def test_what_cannot_be_is_told_by_its_field(field, value, said):
  c = finetune_config.default_config()
  c.init = 'runs/small'
  *groups, name = field.split('.')
  (c[groups[0]] if groups else c)[name] = value
  with pytest.raises(UserError, match=re.escape(said)):
    finetune_config.check(c)


def test_a_field_that_is_none_is_told_with_the_nearest():
  c = finetune_config.default_config()
  with c.unlocked():
    c.batchsize = 3
  with pytest.raises(UserError, match='did you mean config.batch_size'):
    finetune_config.check(c)
  assert configs.flat(finetune_config.default_config())['mesh.data'] == -1


def test_rates_are_the_published_ones_by_size():
  c = finetune_config.default_config()
  assert [finetune_config.rates(c, width) for width in (128, 256, 768, 1024)] == [
    (3e-4, 0.8),
    (3e-4, 0.8),
    (1e-4, 0.8),
    (5e-5, 0.9),
  ]
  c.optimizer.learning_rate, c.optimizer.layer_decay = 2e-4, 1.0
  assert finetune_config.rates(c, 1024) == (2e-4, 1.0)
