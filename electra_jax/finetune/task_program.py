"""From a fine-tuning config, a task and an encoder to the program of its trials."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import numpy as np
import optax

from electra_jax.config import FinetuningConfig, ModelConfig
from electra_jax.config.families import FAMILIES
from electra_jax.errors import UserError
from electra_jax.finetune import batches, dev_loss, finetune_step
from electra_jax.finetune.finetune_step import PredictionSizes, Predictor, make_predictor
from electra_jax.finetune.initial import Initial, best_criterion, with_choices
from electra_jax.finetune.losses import LossSettings
from electra_jax.finetune.resolve import learning_rates
from electra_jax.finetune.tasks.task import Features, Task
from electra_jax.model.heads import ROW_KINDS, FineTuned, init_finetuned
from electra_jax.model.kernel_choice import KERNELS
from electra_jax.training import devices, optimizers, partitioning, schedules, step_loop
from electra_jax.training.checkpoints import Criterion
from electra_jax.training.encoders import attention_kernel, encoder_config
from electra_jax.training.schedules import WarmupDecay
from electra_jax.training.update_step import (
  BatchLoss,
  TrainState,
  UpdateOptions,
  fresh_state,
  layout_of_state,
)

PyTree = Any


TrainStep: TypeAlias = Callable[
  [TrainState, dict[str, Any]], tuple[TrainState, dict[str, jax.Array]]
]


@dataclasses.dataclass
class Compiled:
  """What trials have built so far; the settings of a search share it.

  Attributes:
    lengths: rows and length of batches that steps were compiled for, and the key of the step.
    steps: training steps by the numbers that are constants in them.
    sums: functions of the sums that a step returns; None before the first trial.
  """

  lengths: set[Any] = dataclasses.field(default_factory=set)
  steps: dict[Any, TrainStep] = dataclasses.field(default_factory=dict)
  sums: 'step_loop.SumFunctions | None' = None


@dataclasses.dataclass(frozen=True)
class TaskProgram:
  """What all trials of a task share. The functions are jitted.

  Attributes:
    config: the run's config.
    task: the task.
    initial: encoder and tokenizer that trials start from.
    layout: the mesh.
    model: encoder and head.
    max_length: most tokens of a row.
    lengths: lengths that batches are padded to.
    train: rows to train on.
    steps: steps of a trial.
    steps_per_epoch: steps of an epoch.
    schedule: schedule of the learning rate.
    learning_rate: peak of the learning rate.
    layer_decay: layer-wise decay of the learning rate.
    shapes: shapes of the state.
    shardings: shardings of the state.
    init_params: `seed -> parameters`.
    init_state: `parameters -> state` before the first step; the parameters are donated.
    batch_loss: the loss.
    train_step: `(state, batch) -> (state, sums)`.
    loss_settings: settings of the losses.
    predictor: computes outputs for rows, as `finetune_step.jit_evaluate` does.
    attention: attention kernel, and why it is used.
    constant: metrics on dev of the best constant answer.
    step_key: of the step in `compiled.steps`.
    compiled: what was compiled so far.
  """

  config: FinetuningConfig
  task: Task
  initial: Initial
  layout: partitioning.Layout
  model: FineTuned
  max_length: int
  lengths: tuple[int, ...]
  train: Features
  steps: int
  steps_per_epoch: int
  schedule: WarmupDecay
  learning_rate: float
  layer_decay: float
  shapes: TrainState
  shardings: TrainState
  init_params: Callable[[np.uint32], PyTree]
  init_state: Callable[[PyTree], TrainState]
  batch_loss: BatchLoss
  train_step: TrainStep
  loss_settings: LossSettings
  predictor: Predictor
  attention: tuple[str, str]
  constant: dict[str, float]
  step_key: Any
  compiled: Compiled

  @property
  def inputs(self) -> dict[str, Any]:
    """Constants of the learning rate's schedule, the `schedules` of a batch."""
    return schedules.constants({'learning_rate': self.schedule})

  @property
  def best_by(self) -> Criterion:
    """How the best evaluation on dev is chosen."""
    return best_criterion(self.config.best_by, self.task.metric)

  @property
  def batch_rows(self) -> int:
    """Rows of a training batch."""
    return self.config.batch_size * self.train.choices

  def assemble(self, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """The batch of some training rows, in NumPy, with the seed of a trial."""
    batch = batches.assemble(
      self.train, rows, self.batch_rows, self.lengths, self.initial.tokenizer.pad_id
    )
    return {**batch, 'seed': np.uint32(seed)}

  def sum_functions(self) -> 'step_loop.SumFunctions':
    """Functions of the sums that a step returns."""
    if self.compiled.sums is None:
      self.compiled.sums = step_loop.SumFunctions(self._sum_shapes(), self.layout.mesh)
    return self.compiled.sums

  def _sum_shapes(self) -> PyTree:
    no_rows = batches.assemble(
      self.train,
      np.arange(0),
      self.batch_rows,
      self.lengths[:1],
      self.initial.tokenizer.pad_id,
    )
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in no_rows.items()}
    shapes['seed'] = jax.ShapeDtypeStruct((), np.uint32)
    return jax.eval_shape(self.train_step, self.shapes, shapes)[1]

  def first_state(self, seed: int) -> TrainState:
    """State of a trial before its first step: the pretrained encoder, and a new head.

    Args:
      seed: seed of the parameters that are not pretrained.
    """
    params = self.init_params(np.uint32(seed))
    if self.initial.weights is not None:
      params = {
        **params,
        **self.initial.restore(_encoder(self.shapes.params), _encoder(self.shardings.params)),
      }
    return self.init_state(params)


def _encoder(tree: dict[str, PyTree]) -> dict[str, PyTree]:
  return {name: tree[name] for name in ('embeddings', 'discriminator')}


#### The model ####


def build_task_model(
  config: FinetuningConfig, task: Task, initial: Initial, max_length: int
) -> tuple[FineTuned, tuple[str, str]]:
  """The encoder with the head of a task.

  Args:
    config: the run's config.
    task: the task.
    initial: encoder and tokenizer.
    max_length: most tokens of a row.

  Returns:
    The model; its attention kernel and why that is used.

  Raises:
    UserError: rows would be longer than the positions of the encoder, or fields contradict each
      other or the task.
  """
  fields = with_choices(initial.model, config)
  if config.frozen:  # the encoder is probed as it is used
    fields = fields.replace({'dropout': 0.0, 'attention_dropout': 0.0})
  _check_encoder(fields, task, max_length)
  _check_head(config, fields, task)
  # Rows come in several lengths: the kernel must support all of them.
  lengths = batches.buckets(max_length, config.bucketed)
  shortest = lengths[0]
  _check_lengths(fields.attention, lengths)
  encoder = encoder_config(
    fields, initial.tokenizer.size, shortest, config.dtype, precision=config.precision
  )
  head = config.head
  model = FineTuned(
    encoder,
    task.head,
    labels=max(1, len(task.labels)),
    dropout=None if head.dropout < 0 else head.dropout,
    pooling=head.pooling,
    beam=head.beam,
    style=head.style,
    max_answer=task.max_answer,
  )
  return model, attention_kernel(fields, shortest, config.dtype, jax.default_backend())


def _check_lengths(attention: str, lengths: Sequence[int]) -> None:
  """Checks that the attention kernel of a config supports the lengths of a task's rows.

  Raises:
    UserError: it does not.
  """
  if attention not in KERNELS:  # auto
    return
  for length in lengths:
    if obstacle := KERNELS[attention].lengths(length):
      raise UserError(
        f'config.model.attention is {attention!r}, which {obstacle.reason}; set '
        '--config.bucketed=False and such a --config.max_length.'
      )


def _check_encoder(fields: ModelConfig, task: Task, max_length: int) -> None:
  """Checks that the rows of a task fit the positions and token types of the encoder."""
  family = FAMILIES[fields.family]
  if family.has_position_table and max_length > fields.max_positions:
    raise UserError(
      f'{task.name} has rows of {max_length} tokens and the encoder {fields.max_positions} '
      f'positions; set --config.max_length={fields.max_positions}.'
    )
  if family.has_token_types and fields.type_vocab_size < 2 and task.paired:
    raise UserError(
      f'{task.name} has two texts per row, which need two token types, and the encoder has '
      f'{fields.type_vocab_size}; name another encoder, or a task of single texts.'
    )


def _check_head(config: FinetuningConfig, fields: ModelConfig, task: Task) -> None:
  """Checks that the fields of config.head apply to the task."""
  head, family = config.head, FAMILIES[fields.family]
  if head.pooling != 'cls' and task.head not in ROW_KINDS:
    raise UserError(
      f'config.head.pooling is {head.pooling!r} and {task.name} is a task of {task.head}; pooling '
      'applies to classification, multi-label classification and regression, leave it out.'
    )
  for field, value in (
    ('label_smoothing', head.label_smoothing),
    ('class_weights', head.class_weights),
  ):
    if value and task.head != 'classification':
      raise UserError(
        f'config.head.{field} is {value!r} and {task.name} is a task of {task.head}; it applies to '
        'classification, leave it out.'
      )
  if head.style == 'transformers' and head.pooling not in family.transformers_poolings:
    raise UserError(
      f'config.head.pooling is {head.pooling!r}, which transformers does not have for this '
      'encoder; leave it out, or set --config.head.style=published.'
    )
  span_dropout = head.style == 'transformers' and family.transformers_span_dropout
  if head.dropout >= 0 and task.head == 'span' and not span_dropout:
    raise UserError(
      f'config.head.dropout is {head.dropout} and the head of {task.name}, a task of spans, has no '
      'dropout; leave it out.'
    )


def loss_settings(config: FinetuningConfig, task: Task, train: Features) -> LossSettings:
  """The settings of the loss, with the weights of the task's labels.

  Args:
    config: the run's config.
    task: the task.
    train: its training rows.

  Raises:
    UserError: config.head.class_weights does not fit the labels of the task.
  """
  head = config.head
  weights: tuple[float, ...] = ()
  if head.class_weights:
    counts = np.bincount(train.targets['label'], minlength=len(task.labels))
    weights = class_weights(head.class_weights, task.labels, counts)
  settings = LossSettings(
    impossible_weight=head.impossible_weight,
    label_smoothing=head.label_smoothing,
    class_weights=weights,
    logistic=task.logistic,
    choices=train.choices,
  )
  if head.loss_denominator == 'batch':
    return settings
  average = dev_loss.row_average(task.head, train, settings)
  return dataclasses.replace(settings, row_average=average)


def class_weights(text: str, labels: Sequence[str], counts: np.ndarray) -> tuple[float, ...]:
  """The weight of each label.

  Args:
    text: 'balanced' for the number of rows, divided by the number of labels and by the number of
      rows of the label (as in scikit-learn); or weights such as 'no=1,yes=2.5', where other labels
      have 1.
    labels: of the task.
    counts: training rows of each label.

  Raises:
    UserError: `text` is neither, names another label, or a label has no rows.
  """
  if text == 'balanced':
    if not counts.all():
      missing = labels[int(np.argmin(counts))]
      raise UserError(
        f"config.head.class_weights is 'balanced', and the label {missing!r} has no training "
        'examples; give weights, as in no=1,yes=2.5.'
      )
    return tuple((counts.sum() / (len(labels) * counts)).tolist())
  found = dict.fromkeys(labels, 1.0)
  for part in text.split(','):
    name, _, value = part.rpartition('=')
    try:
      weight = float(value)
    except ValueError:
      weight = -1.0
    if name.strip() not in found or not (weight > 0 and math.isfinite(weight)):
      raise UserError(
        f'config.head.class_weights has {part.strip()!r}; expected balanced, or weights above 0 of '
        f'the labels {", ".join(labels)}, as in {labels[0]}=2.5.'
      )
    found[name.strip()] = weight
  return tuple(found.values())


#### The program ####


def build_task_program(
  config: FinetuningConfig,
  task: Task,
  initial: Initial,
  layout: partitioning.Layout,
  train: Features,
  max_length: int,
) -> TaskProgram:
  """Builds what the trials of a task share.

  Args:
    config: the run's config.
    task: the task.
    initial: encoder and tokenizer that trials start from.
    layout: the mesh.
    train: rows to train on.
    max_length: most tokens of a row.

  Raises:
    UserError: rows do not divide over the mesh, or what `build_task_model` raises.
  """
  _check_batch(config, layout, train.choices)
  model, attention = build_task_model(config, task, initial, max_length)
  course = _course(config, task, train, model.config.hidden_size)
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  optimizer = _optimizer(config, course, boxed, model.config.num_layers)
  shapes, shardings = layout_of_state(boxed, optimizer, layout)
  ids = finetune_step.special_ids(initial.tokenizer)
  settings = loss_settings(config, task, train)
  batch_loss = finetune_step.finetuning_loss(model, ids, settings)
  step = _train_step(config, batch_loss, optimizer, layout, shapes, shardings)
  key = _step_key(config, course)
  lengths = batches.buckets(max_length, config.bucketed)
  # Without memory of earlier evaluations, so that a resumed run evaluates in the same batches.
  sizes = PredictionSizes(max_length, config.eval_batch_size, config.bucketed, remember=False)
  return TaskProgram(
    config=config,
    task=task,
    initial=initial,
    layout=layout,
    model=model,
    max_length=max_length,
    lengths=lengths,
    train=train,
    **course._asdict(),
    shapes=shapes,
    shardings=shardings,
    init_params=jax.jit(
      lambda seed: nn.unbox(init_finetuned(model, seed)),
      out_shardings=shardings.params,
      compiler_options=devices.compiler_options(layout.mesh),
    ),
    init_state=jax.jit(
      lambda params: fresh_state(optimizer, params), out_shardings=shardings, donate_argnums=0
    ),
    batch_loss=batch_loss,
    train_step=step,
    step_key=key,
    compiled=Compiled(steps={key: step}),
    loss_settings=settings,
    predictor=make_predictor(model, initial.tokenizer, layout, sizes, settings),
    attention=attention,
    constant=task.constant(),
  )


def with_setting(p: TaskProgram, config: FinetuningConfig) -> TaskProgram:
  """The program of another setting of a search.

  Learning rates, numbers of steps and seeds are inputs of the compiled step, so that settings that
  differ only in these share it. Another batch size compiles it again, and so do other constants of
  the optimizer. Everything else is shared.

  Args:
    p: program of a setting.
    config: of the other setting.

  Raises:
    UserError: rows do not divide over the mesh.
  """
  _check_batch(config, p.layout, p.train.choices)
  course = _course(config, p.task, p.train, p.model.config.hidden_size)
  key = _step_key(config, course)
  if key not in p.compiled.steps:
    boxed = jax.eval_shape(lambda: init_finetuned(p.model, 0))
    optimizer = _optimizer(config, course, boxed, p.model.config.num_layers)
    p.compiled.steps[key] = _train_step(
      config, p.batch_loss, optimizer, p.layout, p.shapes, p.shardings
    )
  return dataclasses.replace(
    p, config=config, train_step=p.compiled.steps[key], step_key=key, **course._asdict()
  )


class _Course(NamedTuple):
  """The fields of `TaskProgram` that follow from epochs, batch size and rates."""

  steps: int
  steps_per_epoch: int
  schedule: WarmupDecay
  learning_rate: float
  layer_decay: float


def _course(config: FinetuningConfig, task: Task, train: Features, hidden_size: int) -> _Course:
  per_epoch = batches.steps_per_epoch(len(train) // train.choices, config.batch_size)
  steps = max(1, round((config.epochs or task.recipe.epochs) * per_epoch))
  rate, decay = learning_rates(config, hidden_size)
  schedule = WarmupDecay(rate, int(config.optimizer.warmup * steps), steps)
  return _Course(steps, per_epoch, schedule, rate, decay)


def _step_key(config: FinetuningConfig, course: _Course) -> tuple[Any, ...]:
  """What is a constant in the compiled step: all of the optimizer but the schedule's numbers."""
  constants = config.optimizer.replace({'learning_rate': 0.0, 'warmup': 0.0})
  return constants, course.layer_decay, course.schedule.warmup_steps > 0


def _train_step(
  config: FinetuningConfig,
  batch_loss: BatchLoss,
  optimizer: optax.GradientTransformation,
  layout: partitioning.Layout,
  shapes: TrainState,
  shardings: TrainState,
) -> TrainStep:
  options = UpdateOptions(
    micro_batches=config.micro_batches,
    skip_nonfinite=config.skip_nonfinite,
    layout=layout,
    moments=partitioning.moment_shardings(shapes.params, shardings.params, layout),
    trained=('head',) if config.frozen else None,
  )
  return finetune_step.jit_finetune_step(batch_loss, optimizer, shardings, layout, options)


def _check_batch(config: FinetuningConfig, layout: partitioning.Layout, choices: int) -> None:
  """Checks that a batch divides over the devices and the micro-batches."""
  if choices > 1 and config.micro_batches > 1:
    raise UserError(
      f'config.micro_batches is {config.micro_batches}, and the choices of an example must be in '
      'one part; set --config.micro_batches=1 and a smaller --config.batch_size.'
    )
  shards = partitioning.row_shards(layout.mesh)
  divisor = shards * config.micro_batches
  if config.batch_size % divisor:
    parts = f' and {config.micro_batches} micro-batches' if config.micro_batches > 1 else ''
    raise UserError(
      f'config.batch_size {config.batch_size} does not divide over {shards} devices{parts}; use a '
      f'multiple of {divisor}.'
    )


def _optimizer(
  config: FinetuningConfig, course: _Course, boxed: PyTree, layers: int
) -> optax.GradientTransformation:
  """AdamW, with learning rates that decay layer by layer from the head downwards."""
  layer_rates = optimizers.layerwise_rates(
    nn.unbox(boxed), layers, course.layer_decay, config.optimizer.published_depths
  )
  return optimizers.adamw(
    optimizers.OptimizerSettings(
      {'learning_rate': course.schedule}, config.optimizer, layer_rates=layer_rates
    )
  )
