"""Fine-tuning configs: the shipped files, and the published rates."""

import importlib.util
import pathlib
import re

import pytest

from electra_jax.config import FinetuningConfig, checked_finetuning, flat, freeze
from electra_jax.errors import UserError
from electra_jax.finetune import config as finetune_config
from electra_jax.finetune import resolve
from electra_jax.registry import TASKS

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'configs' / 'finetune').glob('*.py'))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_shipped_file_is_checked_and_documents_its_command(path):
  module = load(path)
  c = module.get_config()
  with pytest.raises(UserError, match='config.init is empty'):
    checked_finetuning(c)
  c.init = 'runs/small'
  typed = checked_finetuning(c)
  assert c.name == path.stem and typed.tasks and all(name in TASKS for name in typed.tasks)
  command = re.sub(r'\\\s+', '', module.__doc__)
  assert f'--mode=finetune --config=configs/finetune/{path.stem}.py --config.init=' in command


def test_glue_has_all_of_its_tasks():
  config = load(ROOT / 'configs' / 'finetune' / 'glue.py').get_config()
  tasks = {name for name in TASKS if TASKS.get(name).fixed_labels}
  assert set(freeze(FinetuningConfig, config).tasks) == tasks


def test_tasks_are_separated_by_commas():
  assert FinetuningConfig().replace({'task': 'cola, sst2,,rte '}).tasks == ('cola', 'sst2', 'rte')


@pytest.mark.parametrize(
  'name, value, message',
  [
    ('seed', -1, 'config.seed is -1'),
    ('num_trials', 0, 'config.num_trials is 0; expected at least 1'),
    ('task', 'cola,cola', 'names a task twice'),
    ('task', '', 'config.task is empty'),
    ('max_length', 5, 'expected at least 8, or 0'),
    ('select', 'first', 'expected last or best'),
    ('keep_trials', 'some', 'expected best, all or none'),
    ('epochs', -1.0, 'config.epochs is -1.0; expected at least 0'),
    ('optimizer.warmup', 1.5, 'expected at least 0 and below 1'),
    ('optimizer.layer_decay', 2.0, 'config.optimizer.layer_decay'),
    ('optimizer.clip', -1.0, 'config.optimizer.clip'),
    ('head.dropout', 1.0, 'config.head.dropout'),
    ('model.dropout', 1.0, 'config.model.dropout'),
    ('dtype', 'half', 'config.dtype'),
    ('micro_batches', 5, 'does not divide'),
    ('data.repair_tags', 'maybe', 'expected refuse or repair'),
    ('like', 'runs/x', "config.like requires config.init='none'"),
  ],
)
def test_wrong_values_are_refused_by_the_name_of_their_field(name, value, message):
  c = finetune_config.default_config()
  c.init = 'runs/small'
  c.update_from_flattened_dict({name: value})
  with pytest.raises(UserError) as error:
    checked_finetuning(c)
  assert message in str(error.value)


def test_an_unknown_field_is_refused_with_the_nearest():
  c = finetune_config.default_config()
  with c.unlocked():
    c.batchsize = 3
  with pytest.raises(UserError, match='did you mean config.batch_size'):
    checked_finetuning(c)
  assert flat(finetune_config.default_config())['mesh.data'] == -1


def test_rates_are_the_published_ones_by_width():
  c = FinetuningConfig()
  assert [resolve.learning_rates(c, width) for width in (128, 256, 768, 1024)] == [
    (3e-4, 0.8),
    (3e-4, 0.8),
    (1e-4, 0.8),
    (5e-5, 0.9),
  ]
  c = c.replace({'optimizer.learning_rate': 2e-4, 'optimizer.layer_decay': 1.0})
  assert resolve.learning_rates(c, 1024) == (2e-4, 1.0)


def test_a_frozen_encoder_has_one_rate():
  assert resolve.learning_rates(FinetuningConfig().replace({'frozen': True}), 128) == (1e-2, 1.0)
