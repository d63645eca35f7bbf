"""A fine-tuned run that is complete: classification, two trials, the best one kept."""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.update(name='finetuned', task='cola', init='electra')
  c.data.source = 'glue'
  c.update(num_trials=2, keep_trials='best', select='best', epochs=10.0)
  c.update(batch_size=8, eval_batch_size=8, max_length=32, bucketed=False)
  c.optimizer.update(learning_rate=1e-2, eps=1e-4)
  c.update(log_every=3, save_every=5, eval_every=2.5)
  c.compilation_cache = ''
  return c
