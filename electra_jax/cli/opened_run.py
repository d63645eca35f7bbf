"""Modes that open a run: evaluate, inspect, blimp and similarity."""

import electra_jax
from electra_jax.errors import UserError
from electra_jax.finetune import similarity
from electra_jax.finetune.finetuned import is_finetuned, open_finetuned
from electra_jax.pretrain import evaluation, inspect, minimal_pairs
from electra_jax.pretrain.trained_run import Run
from electra_jax.training.devices import use_compilation_cache

INSPECTED_ROWS = 4


def evaluate_run(
  workdir: str,
  step: str,
  rows: int | None,
  store: str | None,
  output: str | None = None,
  source: str | None = None,
) -> None:
  """Evaluates a checkpoint on held-out rows or `source`, see `pretrain.evaluation.evaluate`."""
  run = _opened('evaluate', workdir, step, store)
  evaluation.evaluate(run, rows=rows, output=output, source=source)


def inspect_run(workdir: str, step: str, rows: int | None, first: int, store: str | None) -> None:
  """Shows held-out rows as text, see `pretrain.inspect.inspect`."""
  run = _opened('inspect', workdir, step, store)
  inspect.inspect(run, rows=rows or INSPECTED_ROWS, first=first)


def score_minimal_pairs(
  workdir: str, step: str, pairs: str, limit: int | None, output: str | None = None
) -> None:
  """Scores minimal pairs, see `pretrain.minimal_pairs.blimp`."""
  minimal_pairs.blimp(_opened('blimp', workdir, step), pairs, output, limit=limit)


def score_similarity(
  workdir: str,
  step: str,
  task: str | None,
  source: str,
  output: str | None = None,
  allow_loss: bool = False,
) -> None:
  """Scores embeddings of sentences, see `finetune.similarity.report_similarity`.

  Raises:
    UserError: --step is given for a fine-tuned run, or --task for a pretrained one.
  """
  if not is_finetuned(workdir):
    if task is not None:
      raise UserError(
        f'--task is {task!r} and {workdir} is a pretrained run, which has no tasks; remove it.'
      )
    run = _opened('similarity', workdir, step)
    similarity.report_similarity(run, source, output, allow_loss)
    return
  if step != 'last':
    raise UserError(
      f'--step is {step} and {workdir} is a fine-tuned run, which is opened at the step that '
      'config.select chose; remove it.'
    )
  similarity.report_similarity(open_finetuned(workdir, task), source, output, allow_loss)


def _opened(mode: str, workdir: str, step: str, store: str | None = None) -> Run:
  """Opens a pretrained run, its compilation cache set up.

  Raises:
    UserError: the folder holds no run, or a fine-tuned one.
  """
  if is_finetuned(workdir):
    raise UserError(
      f'--mode={mode} requires a pretrained run and {workdir} is a fine-tuned one; '
      '--mode=predict scores it, with --split=dev or --input=FILE.'
    )
  run = electra_jax.load(workdir, step, store)
  assert isinstance(run, Run)  # not a fine-tuned run
  use_compilation_cache(run.config.compilation_cache)
  return run
