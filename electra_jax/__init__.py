"""ELECTRA pretraining in JAX and Flax."""

from electra_jax.version import __version__ as __version__


def load(workdir, step='last', store=None, task=None, plugins=()):
  """A trained run in Python: its config, model, parameters and tokenizer; call it with texts, or a fine-tuned one with a file's name.

  Args:
    workdir: the run's folder.
    step: of a pretraining run: 'last', 'best' (by the held-out figure), or the number of a kept checkpoint.
    store: of a pretraining run: the prepared corpus, where it is elsewhere than at training; only held-out rows come from it.
    task: of a fine-tuned run: which, where it has several.
    plugins: Python files that register what user code added for the run (--plugins).

  Returns: electra_jax.pretrain.pretrained.Run, or electra_jax.finetune.finetuned.FineTunedRun.

  Raises: electra_jax.errors.UserError where the folder holds no run or no such checkpoint.
  """
  from electra_jax import registry
  from electra_jax.finetune.finetuned import is_finetuned, open_finetuned

  registry.load_plugins(plugins)
  if is_finetuned(workdir):
    return open_finetuned(workdir, task)
  from electra_jax.pretrain.pretrained import open_run

  return open_run(workdir, step, store)
