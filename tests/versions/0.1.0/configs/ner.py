"""A fine-tuned run that was stopped in its second trial: tagging."""

from electra_jax.finetune.config import default_config


def get_config():
  c = default_config()
  c.update(name='finetuned_stopped', task='ner', init='modern')
  c.data.source = 'ner'
  c.update(num_trials=2, keep_trials='best', epochs=8.0)
  c.update(batch_size=8, eval_batch_size=8, max_length=32, bucketed=False)
  c.optimizer.update(learning_rate=3e-3, eps=1e-4)
  c.update(log_every=3, save_every=2, eval_every=2.0)
  c.compilation_cache = ''
  return c
