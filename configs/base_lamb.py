"""ELECTRA-Base with LAMB in two phases, by NVIDIA's recipe: 99.7 billion tokens in 10,933 steps.

  python -m electra_jax.main --config=configs/base_lamb.py --config.data.source='corpus/*.txt.gz'

Meant for a v5e-256 slice: 264 rows of 128 tokens per chip and step, then 108 rows of 512. Both
batches (67,584 = 2^11 x 33 and 27,648 = 2^10 x 27) are divisible by every power of two up to 1,024
devices, and by three times those. NVIDIA's run on BooksCorpus and Wikipedia took 30.5 hours on 8
A100 of 40 GB and 1.13 hours on 384, in mixed precision, and reached 85.0 exact match and 91.0 F1 on
SQuAD 1.1 (their README); the paper's Base has 84.5 and 90.8. Source of the numbers:
scripts/run_pretraining.sh and optimization.py in NVIDIA/DeepLearningExamples,
TensorFlow2/LanguageModeling/ELECTRA.

Each phase has its own warm-up and decay; the moments continue. Their step count continues as well.
NVIDIA's starts again at 0 and corrects the bias of moments that have none, which changes the first
steps of the second phase, while its learning rate is still small.
"""

import ml_collections

from electra_jax.config import default_config, with_arguments


def get_config(arguments: str = '') -> ml_collections.ConfigDict:
  """The config; `arguments` are those after the colon of --config=FILE:name=value,...."""
  c = default_config()
  c.name = 'base_lamb'
  c.phases = (
    {
      'steps': 10_000,
      'sequence_length': 128,
      'batch_size': 67_584,
      'optimizer.learning_rate': 6e-3,
      'optimizer.warmup_steps': 2_000,
    },
    {
      'steps': 933,
      'sequence_length': 512,
      'batch_size': 27_648,
      'optimizer.learning_rate': 4e-3,
      'optimizer.warmup_steps': 200,
    },
  )
  # Rows of the first phase, steps of both.
  c.sequence_length = 128
  c.batch_size = 67_584
  c.steps = 10_933
  c.model.update(hidden_size=768, embedding_size=768, num_heads=12, intermediate_size=3072)
  c.generator.hidden_fraction = 1 / 3
  c.optimizer.name = 'lamb'
  c.optimizer.update(
    learning_rate=6e-3, warmup_steps=2_000, b1=0.878, b2=0.974, bias_correction=True
  )
  c.optimizer.decay_power = 0.5
  c.optimizer.decay_after_warmup = True
  c.log_every = 10
  c.eval_every = 500
  c.save_every = 500
  return with_arguments(c, arguments)
