"""Metrics of a run that was never trained: lines of metrics.jsonl, and evaluation.json."""

TOKENS_PER_STEP = 128 * 128
TOWERS = ('all', 'discriminator', 'embeddings', 'generator')
RESOLVED = {
  'vocab_size': 2000,
  'micro_batches': 2,
  'dtype': 'float32',
  'unigram_entropy': 6.25,
  'train_rows': 6400,
  'parameters': {'embeddings': 1_000_000, 'discriminator': 234_567},
}


def line(kind, step, **changed):
  """A line of metrics.jsonl whose metrics all differ and change with the step."""
  f = {
    'generator_loss': 7 - step / 100,
    'generator_accuracy': step / 1000,
    'sampled_accuracy': step / 2000,
    'discriminator_loss': 0.4 - step / 2000,
    'constant_loss': 0.42 - step / 8000,
    'discriminator_accuracy': 0.87,
    'auc': 0.5 + step / 1000,
    'average_precision': 0.14 + step / 1500,
    'precision': 0.3 + step / 1000,
    'recall': step / 700,
    'replaced_rate': 0.14 - step / 9000,
  }
  if kind == 'train':
    f |= {f'gradient_norm/{tower}': (i + 1) / step for i, tower in enumerate(TOWERS)} | {
      'loss': 50.0,
      'learning_rate': 5e-4 / step,
      'tokens_per_second': 1234.5,
      'utilisation': 0.4,
      'input_wait': 0.01,
    }
  else:
    f = {name: value + 0.001 for name, value in f.items()} | {
      'total_loss': 26.0,
      'gain': 0.011,
      'average_precision_gain': 0.05,
    }
  return {
    'kind': kind,
    'step': step,
    **f,
    'tokens': step * TOKENS_PER_STEP,
    'seconds': 2.0 * step,
    **changed,
  }


def evaluation(step):
  figures = {
    name: value for name, value in line('heldout', step).items() if isinstance(value, float)
  }
  return {
    'step': step,
    'rows': 77,
    'tokens': 9000,
    'masked': 1300,
    'figures': {
      name: {'value': value, 'low': value - 0.02, 'high': value + 0.03}
      for name, value in figures.items()
    },
  }


LINES = [
  line('train', 1),
  *(line(kind, step) for step in (50, 100, 150) for kind in ('train', 'heldout')),
  line('train', 160),
]
