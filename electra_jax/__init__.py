"""ELECTRA pretraining in JAX and Flax."""


def load(workdir, step='last', store=None):
  """A trained run in Python: its config, model, parameters and tokenizer; call it with texts.

  Args:
    workdir: the run's folder.
    step: 'last', 'best' (by the held-out figure), or the number of a kept checkpoint.
    store: the prepared corpus, where it is elsewhere than at training; only held-out rows come from it.

  Returns: electra_jax.pretrain.run.Run.

  Raises: electra_jax.config.UserError where the folder holds no run or no such checkpoint.
  """
  from electra_jax.pretrain.run import open_run
  return open_run(workdir, step, store)
