"""ELECTRA pretraining in JAX and Flax."""

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from electra_jax.version import __version__ as __version__

if TYPE_CHECKING:
  from electra_jax.finetune.finetuned import FineTunedRun
  from electra_jax.pretrain.trained_run import Run


# Names that are imported on first use: `import electra_jax` imports neither JAX nor scikit-learn.
_LAZY = {
  'finetune': 'electra_jax.finetune',
  'pretrain': 'electra_jax.pretrain',
  'ElectraClassifier': 'electra_jax.estimator:ElectraClassifier',
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a package or a class
  if name not in _LAZY:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  place, _, member = _LAZY[name].partition(':')
  module = importlib.import_module(place)
  return getattr(module, member) if member else module


def load(
  workdir: str | os.PathLike[str],
  step: str | int = 'last',
  store: str | None = None,
  task: str | None = None,
  plugins: Sequence[str | os.PathLike[str]] = (),
) -> 'Run | FineTunedRun':
  """Opens a trained run: its config, model, parameters and tokenizer.

  Args:
    workdir: the run's folder.
    step: of a pretraining run, 'last', 'best' (by config.best_by), or the number of a kept
      checkpoint.
    store: of a pretraining run, the prepared corpus if it has moved since training. Only held-out
      rows are read from it.
    task: of a fine-tuned run, the task to open; None if the run has one task.
    plugins: Python files that register what user code added for the run (--plugins).

  Returns:
    A pretrained run, with `embed`, `detect`, `fill_mask`, `minimal_pairs` and `evaluate`, or a
    fine-tuned run, with `predict` and `score`. Both can be called: with texts, or with examples or
    the name of a file.

  Raises:
    electra_jax.errors.UserError: the folder holds no run, or no such checkpoint.
  """
  from electra_jax import registry
  from electra_jax.finetune.finetuned import is_finetuned, open_finetuned

  registry.load_plugins(plugins)
  if is_finetuned(workdir):
    return open_finetuned(workdir, task)
  from electra_jax.pretrain.trained_run import open_run

  return open_run(workdir, step, store)
