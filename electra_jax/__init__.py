"""ELECTRA pretraining in JAX and Flax."""

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from electra_jax.version import __version__ as __version__

if TYPE_CHECKING:
  from electra_jax.data.prepare.preparation import Prepared
  from electra_jax.finetune.finetuned import FineTunedRun
  from electra_jax.pretrain.trained_run import Run


# Names that are imported on first use: `import electra_jax` imports neither JAX nor scikit-learn.
_LAZY = {
  'finetune': 'electra_jax.finetune',
  'pretrain': 'electra_jax.pretrain',
  'ElectraClassifier': 'electra_jax.estimator:ElectraClassifier',
  'score_similarity': 'electra_jax.finetune.similarity:score_similarity',
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
  ensemble: bool | int = False,
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
    ensemble: of a fine-tuned run, True to average the predictions of all trials whose weights are
      kept, or the number of the best ones.

  Returns:
    A pretrained run, with `embed`, `detect`, `fill_mask`, `minimal_pairs` and `evaluate`, or a
    fine-tuned run, with `predict`, `score` and `embed`. Both can be called: with texts, or with
    examples or the name of a file.

  Raises:
    electra_jax.errors.UserError: the folder holds no run, or no such checkpoint.
  """
  from electra_jax import registry
  from electra_jax.finetune.finetuned import is_finetuned, open_finetuned

  registry.load_plugins(plugins)
  if is_finetuned(workdir):
    return open_finetuned(workdir, task, ensemble)
  from electra_jax.pretrain.trained_run import open_run

  return open_run(workdir, step, store)


def prepare(
  texts: Iterable[Any],
  config: Any = 'small',  # noqa: ANN401  # a ConfigDict or a typed config
  *,
  output: str | os.PathLike[str] | None = None,
  field: str = 'text',
  plugins: Sequence[str | os.PathLike[str]] = (),
) -> 'Prepared':
  """Prepares texts for pretraining: the tokenizer and the rows of a config, with those texts.

  The rows are those of a file of JSON lines with the same texts. Texts are read once, one at a time
  in memory, and written to a temporary file in config.data.cache.

  Args:
    texts: an iterable of strings, or of mappings with a string each: a list, a generator, a
      `datasets.Dataset`, also one that is streamed.
    config: of the run: the name of a shipped config, a config file, or a ConfigDict. Its
      `data.source` is replaced by the texts.
    output: folder or address for the prepared corpus; None for config.data.cache.
    field: of mappings.
    plugins: Python files that register what user code added (--plugins).

  Returns:
    The prepared corpus. Its `path` is what config.data.store takes.

  Raises:
    electra_jax.errors.UserError: a text is not one, or the corpus cannot be prepared.
  """
  from electra_jax import registry
  from electra_jax.config.config_files import load_config_file
  from electra_jax.pretrain.run_start import prepare_texts

  registry.load_plugins(plugins)
  if isinstance(config, str | os.PathLike):
    config = load_config_file(os.fspath(config))
  return prepare_texts(texts, config, output, field)
