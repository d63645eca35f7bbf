"""A task of user code is opened, scored, restored and defined for a model of another program."""

import pathlib

import numpy as np
import pytest
import sklearn.metrics
from finetune_files import described

from electra_jax import registry
from electra_jax.config import checked_finetuning
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import define_task, open_task, restore_task

FILE = pathlib.Path(__file__).parents[1] / 'extending' / 'task.py'


@pytest.fixture
def config(monkeypatch):
  """The typed config of the example, whose task is registered during the test."""
  monkeypatch.setattr(registry.TASKS, '_entries', dict(registry.TASKS._entries))
  namespace = {'__file__': str(FILE), '__name__': 'example'}
  exec(compile(FILE.read_text(), str(FILE), 'exec'), namespace)
  c = namespace['get_config']()
  c.init = 'runs/small'
  return checked_finetuning(c)


def test_the_example_reads_scores_and_predicts(config):
  task = open_task('rating', config)
  train, dev = task.examples('train'), task.examples('dev')
  assert (len(train), len(dev), task.low, task.high) == (24, 12, 1.0, 3.0)
  gold = [example.target for example in dev]
  values = np.clip(np.array(gold) + np.random.default_rng(0).normal(size=12), 1, 3)
  outputs = {'value': (values - 1) / 2}
  predicted = [one['value'] for one in task.predictions(dev, None, outputs)]
  assert set(predicted) <= {1.0, 2.0, 3.0}
  kappa = sklearn.metrics.cohen_kappa_score(gold, np.array(predicted, int), weights='quadratic')
  assert task.score('dev', dev, None, outputs)['kappa'] == pytest.approx(kappa)
  assert task.constant()['kappa'] == pytest.approx(0)


def test_the_example_is_restored_with_its_options(config):
  again = restore_task(described(open_task('rating', config)))
  assert (again.options.highest, again.high, again.metric) == (3, 3.0, 'kappa')


def test_the_example_is_defined_for_a_model_of_another_program(config):
  task = define_task('rating', config, ())
  assert (task.low, task.high, task.splits) == (1.0, 3.0, ('train', 'dev'))


def test_errors_of_the_example_name_their_place(config, tmp_path):
  (tmp_path / 'train.tsv').write_text('text\tstars\na\t1\nb\t7\n')
  wrong = config.replace({'data.train': str(tmp_path / 'train.tsv')})
  with pytest.raises(UserError, match="line 3 of .* has the rating '7'; expected 1 to 3"):
    open_task('rating', wrong)


def test_options_belong_to_the_task_that_declares_them(config):
  with pytest.raises(UserError, match='config.task_options.lowest is not an option of the task'):
    open_task('rating', config.replace({'task_options': {'lowest': 1}}))
  with pytest.raises(UserError, match='config.task_options.highest is 1; expected at least 2'):
    open_task('rating', config.replace({'task_options': {'highest': 1}}))
  both = config.replace({'task': 'rating,classification'})
  assert open_task('rating', both).options.highest == 3
  assert open_task('classification', both).options is None


def test_a_task_that_is_not_registered_is_an_error(config):
  with pytest.raises(UserError, match="config.task is 'ratings', .* did you mean 'rating'"):
    open_task('ratings', config)
