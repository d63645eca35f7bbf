"""A task of user code: a rating of each text, such as 1 to 5 stars, where close ratings count."""

import dataclasses
import pathlib

import numpy as np

from electra_jax import registry
from electra_jax.config.declarations import Config, field
from electra_jax.finetune.config import default_config
from electra_jax.finetune.tasks.text import TableTask

DATA = pathlib.Path(__file__).parent / 'ratings'


@dataclasses.dataclass(frozen=True)
class RatingOptions(Config):
  """Options, as config.task_options."""

  highest: int = field(5, 'Ratings are 1 to this number.', at_least=2)


class RatingTask(TableTask):
  """Regression whose predictions are rounded to ratings; trials are compared by Cohen's kappa."""

  head = 'regression'
  metric = 'kappa'

  def value_range(self):
    return 1.0, float(self.options.highest)

  def parse_target(self, word):
    if not word.isdigit() or not 1 <= int(word) <= self.options.highest:
      raise ValueError(f'the rating {word!r}; expected 1 to {self.options.highest}')
    return int(word)

  def answers(self, outputs):
    return np.clip(np.rint(super().answers(outputs)), self.low, self.high)

  def measure(self, split, gold, predicted):
    """Accuracy, and kappa with quadratic weights (Cohen 1968)."""
    observed = np.mean((gold - predicted) ** 2)
    expected = np.mean((gold[:, None] - predicted[None, :]) ** 2)
    kappa = 1 - observed / expected if expected else 0.0
    return {'kappa': float(kappa), 'accuracy': float(np.mean(gold == predicted))}


registry.TASKS.register('rating', RatingTask, help='a rating of each text', options=RatingOptions)


def get_config():
  c = default_config()
  c.name, c.task = 'rating', 'rating'
  c.task_options = {'highest': 3}
  c.data.train, c.data.dev = str(DATA / 'train.tsv'), str(DATA / 'dev.tsv')
  c.data.label = 'stars'
  c.head.style = 'transformers'  # so that it can be exported for transformers
  c.batch_size, c.eval_batch_size, c.max_length, c.bucketed = 8, 8, 32, False
  c.epochs, c.eval_every, c.num_trials = 20.0, 5.0, 2
  c.optimizer.learning_rate = 3e-3
  return c
