"""Opens a fine-tuned run for prediction: its task without data, and its best trial's weights."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from electra_jax import file_access
from electra_jax.config import FinetuningConfig, ModelConfig, from_plain
from electra_jax.data.tokenizers.loss_report import OneWarning
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import (
  finetune_step,
  initial,
  records,
  report_blocks,
  task_losses,
  task_program,
)
from electra_jax.finetune.predictions import Prediction, Score, count_labeled, typed_prediction
from electra_jax.finetune.resolve import resolve_saved_finetuning
from electra_jax.finetune.run_files import RESULT, chosen_setting
from electra_jax.finetune.tasks import restore_task
from electra_jax.finetune.tasks.probabilities import averaged
from electra_jax.finetune.tasks.task import Features, Outputs, Task
from electra_jax.interop.weights import Head, Weights, trim_vocabulary
from electra_jax.model.electra import Electra
from electra_jax.model.heads import FineTuned, init_finetuned
from electra_jax.text_functions import TextFunctions
from electra_jax.training import checkpoints, devices, partitioning, run_folder
from electra_jax.training.run_folder import read_json

PyTree: TypeAlias = Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FineTunedRun:
  """A fine-tuned model with its task.

  `predict` takes texts and returns typed predictions, `score` compares them with labels, `embed`
  returns vectors of texts. Calling it takes examples of the task, or a file, and returns
  predictions as `--mode=predict` writes them.

  Attributes:
    workdir: of the run.
    trial: name of the trial's folder.
    step: of the checkpoint.
    config: of the run.
    task: without its data.
    tokenizer: of the run.
    model: the encoder with the task's head.
    params: the model's parameters, on the devices.
    layout: the mesh and how parameters are sharded.
    max_length: tokens per row at most.
    imported: whether another program trained the model.
    others: of an ensemble, the parameters of its other trials; () for a single trial.
  """

  workdir: str
  trial: str
  step: int
  config: FinetuningConfig
  task: Task
  tokenizer: Tokenizer
  model: FineTuned
  params: PyTree
  layout: partitioning.Layout
  max_length: int
  imported: bool = False
  others: tuple[PyTree, ...] = ()

  @functools.cached_property
  def _warn_once(self) -> OneWarning:
    return OneWarning()

  @functools.cached_property
  def _predictor(self) -> finetune_step.Predictor:
    # XLA reads the weights of stacked layers faster in a loop than it copies them for each layer,
    # and compiles the loop in a fraction of the time.
    in_loop = dataclasses.replace(self.model.config, scan_unroll=1)
    sizes = finetune_step.PredictionSizes(self.max_length, self.config.eval_batch_size)
    model = self.model.clone(config=in_loop)
    return finetune_step.make_predictor(model, self.tokenizer, self.layout, sizes)

  def outputs(self, features: Features, progress: Callable[[int], None] | None = None) -> Outputs:
    """The model's outputs for rows; of an ensemble see `tasks.probabilities.averaged`.

    Args:
      features: the rows.
      progress: called with the number of rows done.
    """
    found = self._predictor.outputs(self.params, features, progress)
    if not self.others:
      return found
    more = [self._predictor.outputs(params, features) for params in self.others]
    return averaged(self.task.head, self.task.logistic, features, [found, *more])

  def features(self, examples: Sequence[Any]) -> tuple[Features, dict[str, int]]:
    """The rows of examples, and counts of what was truncated or skipped."""
    return self.task.features(examples, self.tokenizer, self.max_length)

  def _require_one_model(self) -> None:
    if self.others:
      raise UserError(
        f'the run is an ensemble of {1 + len(self.others)} trials, whose weights are not those of '
        'one model; open a single trial (ensemble=False).'
      )

  @functools.cached_property
  def _text_functions(self) -> TextFunctions:
    # This kernel supports all devices and lengths.
    config = dataclasses.replace(self.model.config, attention='xla')
    encoder = Electra(config, config, heads=())
    return TextFunctions(encoder, self.params, self.tokenizer, self.layout, self.max_length)

  def embed(self, texts: str | Sequence[str], pooling: str = 'mean') -> np.ndarray:
    """A vector per text, of the last hidden states of the fine-tuned encoder, without its head.

    Args:
      texts: one text, or several. Each is read by itself and never truncated.
      pooling: 'mean' over the tokens of a text, [CLS] and [SEP] included, or 'cls', the state of
        [CLS].

    Returns:
      float32 `[texts, hidden]`.

    Raises:
      UserError: a text is longer than the positions of the encoder, the pooling is unknown, or the
        run is an ensemble.
    """
    self._require_one_model()
    return self._text_functions.embed(self._text_functions.checked(texts), pooling)

  def weights(self) -> Weights:
    """The encoder and the head in host memory, float32, for export.

    The outputs of a regression head are in the unit of the task's data, not scaled to [0, 1].

    Raises:
      UserError: the run is an ensemble.
    """
    self._require_one_model()
    params = trim_vocabulary(self.params, self.tokenizer.size)
    head = params.pop('head')
    if self.task.head == 'regression':
      head = _in_unit(head, self.task.low, self.task.high)
    encoder = dataclasses.replace(
      self.model.config,
      vocab_size=self.tokenizer.size,
      vocab_multiple=1,
      attention='xla',
      scan_unroll=1,
      dtype=jnp.float32,
    )
    labels = tuple(self.task.labels)
    return Weights(
      self.workdir,
      encoder,
      None,
      'embeddings',
      params,
      Head(self.task.head, self.model.style, labels, self.model.pooling, head),
      step=self.step,
      tokenizer=str(run_folder.folder(self.workdir) / 'tokenizer'),
    )

  def __call__(self, examples: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Returns one prediction per example, as `--mode=predict` writes it; see the task.

    The first time that the tokenizer loses 1% of the characters, or 10% are truncated, a Python
    warning states which.

    Args:
      examples: of the task, or the path of a file of them. For texts see `predict`.
    """
    if isinstance(examples, str):
      examples = self.task.read(examples)
    features, _ = self.features(examples)
    if self._warn_once.due():
      losses = task_losses.count_losses(self.task, examples, features, self.tokenizer)
      self._warn_once(task_losses.model_loss_warnings(losses, 'these examples'))
    return self.task.predictions(examples, features, self.outputs(features))

  def predict(self, data: records.Data) -> list[Prediction]:
    """Returns one typed prediction per text, pair, question or sentence, in their order.

    Args:
      data: a list, any other iterable, a data frame of pandas or polars, or a mapping with a list
        per column. Its items are, by task: texts: strings; pairs: tuples of two strings; questions:
        tuples (question, context); tags: strings, or lists of words. Each may also be a mapping
        with the task's columns, or with usual names: text and text_pair, question and context,
        tokens. A single string or mapping counts as a list of one.

    Returns:
      By the task: `LabelPrediction`, `LabelsPrediction`, `ValuePrediction`, `ChoicePrediction`,
      `RankPrediction`, `TagPrediction` or `AnswerPrediction`.

    Raises:
      UserError: an item is not what the task reads.
    """
    items = records.as_items(data, words=self.task.head == 'tagging')
    if not items:
      return []
    examples = records.texts_as_examples(self.task, items)
    texts: list[str | None] = [None] * len(items)
    if examples is None:
      names = records.field_names(self.task)
      rows = records.as_records(items, names)
      texts = [text if isinstance(text := row.get(names[0]), str) else None for row in rows]
      with records.as_file(rows) as path:
        examples = list(self.task.read_labeled(path)[0])
    found = self(examples)
    return [typed_prediction(*pair) for pair in zip(found, texts, strict=True)]

  def score(self, data: str | os.PathLike[str] | records.Data) -> Score:
    """Scores labeled data with the task's metrics.

    Args:
      data: the path of a file in any format that the task reads, or data as of `predict` whose
        items have labels: mappings with the task's columns (or text, label and so on).

    Raises:
      UserError: the data cannot be read, or no example has a label that the task has.
    """
    if isinstance(data, str | os.PathLike):
      source = os.fspath(data)
      examples, unknown = self.task.read_labeled(source)
    else:
      source = 'the data'
      items = records.as_items(data, words=self.task.head == 'tagging')
      rows = records.as_records(items, records.field_names(self.task))
      with records.as_file(rows) as path:
        examples, unknown = self.task.read_labeled(path)
    features, _ = self.features(examples)
    score = self.score_of(examples, features, self.outputs(features), unknown)
    if score is None:
      unknown_labels = f' ({", ".join(map(repr, unknown))} are others)' if unknown else ''
      raise UserError(
        f'{source} has no label to compare with{unknown_labels}; expected labels that '
        f'{self.task.name} has, or use predict.'
      )
    return score

  def score_of(
    self,
    examples: Sequence[Any],
    features: Features,
    outputs: Outputs,
    unknown: Mapping[str, int],
  ) -> Score | None:
    """The score of predicted examples; None if none has a label.

    Args:
      examples: of the task.
      features: their rows.
      outputs: of the model for these rows.
      unknown: labels that the task does not have, with the number of examples.
    """
    labeled = count_labeled(self.task, examples, features)
    if not labeled:
      return None
    metrics = self.task.score('dev', examples, features, outputs)
    blocks = report_blocks.report_blocks(self.task, examples, features, outputs)
    report = report_blocks.Report(labeled, metrics, blocks)
    return Score(metrics, len(examples), labeled, dict(unknown), report)


def _in_unit(head: PyTree, low: float, high: float) -> PyTree:
  """The head of regression with outputs that are not scaled to [0, 1]."""
  if (low, high) == (0.0, 1.0):
    return head
  width = np.float32(high - low)
  kernel = head['dense']['kernel'] * width
  bias = head['dense']['bias'] * width + np.float32(low)
  return {**head, 'dense': {'kernel': kernel, 'bias': bias}}


def is_finetuned(workdir: str | os.PathLike[str]) -> bool:
  """Whether a folder holds a fine-tuned run.

  Raises:
    UserError: its bucket cannot be reached.
  """
  folder = run_folder.folder(workdir)
  with file_access.reaching(folder):  # its error names the run, not this file
    return bool((folder / initial.ENCODER).exists())


def tasks_of(workdir: str | os.PathLike[str]) -> list[str]:
  """Names of the tasks whose weights a fine-tuned run keeps.

  Raises:
    UserError: the folder is not a fine-tuned run.
  """
  folder = run_folder.folder(workdir)
  if not is_finetuned(folder):
    raise UserError(
      f'{folder} is not a fine-tuned run: it has no {initial.ENCODER}; set --workdir to one.'
    )
  with file_access.reaching(folder):
    return sorted(
      path.parent.name
      for path in folder.glob(f'*/{initial.KEPT}')
      if initial.kept_trials(path.parent)
    )


def open_finetuned(
  workdir: str | os.PathLike[str], task: str | None = None, ensemble: bool | int = False
) -> FineTunedRun:
  """Opens the best trial of a task on all devices, or an ensemble of trials.

  Args:
    workdir: of the fine-tuned run.
    task: its name; None where the run has a single task.
    ensemble: whether to average the predictions of all trials whose weights are kept, or the number
      of the best ones.

  Raises:
    UserError: there is no such run or task, or its weights were not kept.
  """
  folder = run_folder.folder(workdir)
  task = _chosen_task(str(folder), tasks_of(workdir), task)
  config = resolve_saved_finetuning(folder).config
  config = config.with_setting(chosen_setting(folder / task))
  description = read_json(folder / task / initial.TASK, {'max_length': int})
  restored = restore_task(description)
  encoder = read_json(folder / initial.ENCODER, initial.ENCODER_SHAPE)
  tokenizer = load_tokenizer(folder / 'tokenizer')
  devices.use_compilation_cache(config.compilation_cache)
  pretrained = from_plain(encoder['model'], ModelConfig)
  start = initial.Initial(pretrained, tokenizer, encoder['origin'], None)
  model, _ = task_program.build_task_model(config, restored, start, description['max_length'])
  layout = partitioning.make_layout()
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  trials = _chosen_trials(folder / task, ensemble)
  shapes, shardings = nn.unbox(boxed), partitioning.parameter_shardings(boxed, layout)
  best_by = initial.best_criterion(config.best_by, restored.metric)
  opened = [
    checkpoints.restore_params(folder / task / trial, config.select, shapes, shardings, best_by)
    for trial in trials
  ]
  if len(trials) > 1:
    restored = restored.tuned(_mean_metrics(folder / task, trials))
  (params, step), *others = opened
  return FineTunedRun(
    workdir=str(folder),
    trial=', '.join(trials),
    step=step,
    config=config,
    task=restored,
    tokenizer=tokenizer,
    model=model,
    params=params,
    layout=layout,
    max_length=description['max_length'],
    imported=bool(encoder['origin'].get('imported')),
    others=tuple(params for params, _ in others),
  )


def _chosen_trials(folder: epath.Path, ensemble: bool | int) -> list[str]:
  """The folders of the trials to open, the best first."""
  if ensemble is False:
    return [initial.best_trial(folder)]
  kept = initial.kept_trials(folder)
  wanted = max(2, len(kept)) if ensemble is True else ensemble
  if not 2 <= wanted <= len(kept):
    raise UserError(
      f'the ensemble has {wanted} trials, and {folder} has the weights of {len(kept)}; expected at '
      f'least 2 and at most the latter: train with --config.keep_trials=all and '
      '--config.num_trials=5.'
    )
  return [f'trial-{number}' for number in kept[:wanted]]


def _mean_metrics(folder: epath.Path, trials: Sequence[str]) -> dict[str, float]:
  """Means of the metrics on dev over trials, which have thresholds that tasks are tuned by."""
  found = [read_json(folder / trial / RESULT)['figures']['dev'] for trial in trials]
  values = {name: [one[name] for one in found if one.get(name) is not None] for name in found[0]}
  return {name: float(np.mean(x)) for name, x in values.items() if x}


def _chosen_task(folder: str, names: Sequence[str], task: str | None) -> str:
  """The name of the task to open, of those whose weights are kept."""
  if not names:
    raise UserError(
      f'{folder} has no weights: no trial is complete, or config.keep_trials was none; run '
      '--mode=finetune there first.'
    )
  if task is None and len(names) > 1:
    raise UserError(f'{folder} was fine-tuned on {", ".join(names)}; set --task to one of them.')
  if task is not None and task not in names:
    raise UserError(f'{folder} has no weights of {task!r}; it has those of {", ".join(names)}.')
  return names[0] if task is None else task
