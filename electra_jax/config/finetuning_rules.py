"""Rules across the fields of a fine-tuning config, one function each; see rules.py."""

from electra_jax import registry
from electra_jax.config import declarations
from electra_jax.config.declarations import one_of, require, typed_options
from electra_jax.config.finetuning import SEARCHED, FinetuningConfig


def starts_from_something(c: FinetuningConfig) -> None:
  """config.init names weights, or config.like an encoder for fresh ones."""
  require(
    c.init,
    'config.init is empty; expected the folder of a pretrained run (--config.init=runs/small), '
    'hf:FOLDER, tf:CHECKPOINT, or none for fresh weights.',
  )
  require(
    c.init != 'none' or c.like,
    "config.init is 'none' and config.like is empty; name the run whose encoder sizes and "
    'tokenizer are taken (--config.like=runs/small).',
  )
  require(c.init == 'none' or not c.like, "config.like requires config.init='none'; remove it.")
  require(
    c.init_step == 'last' or not registry.is_foreign(c.init),
    f'config.init_step chooses a checkpoint of a run, and config.init is {c.init!r}; remove it.',
  )


def tasks_are_named(c: FinetuningConfig) -> None:
  """There is at least one task, each named once."""
  require(c.tasks, 'config.task is empty; name one, as in --config.task=cola.')
  require(len(set(c.tasks)) == len(c.tasks), f'config.task {c.task!r} names a task twice.')


def task_options_have_a_task(c: FinetuningConfig) -> None:
  """Each of config.task_options is an option of one of the tasks."""
  entries = [registry.TASKS.entry(name) for name in c.tasks if name in registry.TASKS]
  kinds = [entry.options for entry in entries if entry.options]
  for name, value in c.task_options.items():
    of_tasks = [kind for kind in kinds if name in declarations.fields_of(kind)]
    known = dict.fromkeys(option for kind in kinds for option in declarations.fields_of(kind))
    require(
      of_tasks,
      f'config.task_options.{name} is not an option of config.task {c.task!r}; expected '
      f'{one_of(known) if known else "none"}.',
    )
    for kind in of_tasks:
      typed_options(kind, {name: value}, 'config.task_options', c.task)


def seeds_are_unsigned(c: FinetuningConfig) -> None:
  """Seeds of all trials are 32-bit unsigned integers."""
  require(
    0 <= c.seed and c.seed + c.num_trials <= 2**32,
    f'config.seed is {c.seed}; the seeds of all trials must be between 0 and 2**32.',
  )


def trial_micro_batches_divide(c: FinetuningConfig) -> None:
  """The rows of a step divide into the micro-batches."""
  require(
    c.batch_size % c.micro_batches == 0,
    f'config.batch_size {c.batch_size} does not divide into {c.micro_batches} micro-batches.',
  )


def selection_has_evaluations(c: FinetuningConfig) -> None:
  """Patience and the best checkpoint need evaluations during a trial."""
  require(
    c.eval_every or not c.patience,
    'config.patience counts evaluations on dev, and config.eval_every is 0; set one of the two.',
  )
  require(
    c.eval_every or c.select == 'last',
    "config.select 'best' requires evaluations on dev, and config.eval_every is 0; set it to 1.0.",
  )


def frozen_encoder_has_no_rates(c: FinetuningConfig) -> None:
  """A frozen encoder has no learning rates of its layers."""
  require(
    not c.frozen or not c.optimizer.layer_decay and not c.optimizer.published_depths,
    'config.optimizer.layer_decay and published_depths have no effect where config.frozen keeps '
    'the encoder unchanged; remove them.',
  )


def search_has_settings(c: FinetuningConfig) -> None:
  """Each value of config.search is one of its field, once; halving has enough settings."""
  names = {target: name for name, target in SEARCHED.items()}
  known = declarations.fields_of(FinetuningConfig)
  for field, values in c.search.varied.items():
    for value in values:
      typed = declarations.typed_value(known[field], value)
      require(
        known[field].declaration.accepts(typed),
        f'config.search.{names[field]} has {value!r}; expected values of config.{field}: '
        f'{known[field].declaration.expectation()}.',
      )
    require(
      len(set(values)) == len(values),
      f'config.search.{names[field]} is {values!r}; expected each value once.',
    )
  count, halving = len(c.settings), c.search.halving
  require(
    not halving or count >= halving,
    f'config.search.halving is {halving}, and config.search has {count or "no"} settings; expected '
    f'at least {halving}: add values, or remove it.',
  )
  for setting in c.settings:
    check_finetuning(c.with_setting(setting))


FINETUNING = (
  starts_from_something,
  tasks_are_named,
  task_options_have_a_task,
  seeds_are_unsigned,
  trial_micro_batches_divide,
  selection_has_evaluations,
  frozen_encoder_has_no_rates,
  search_has_settings,
)


def check_finetuning(c: FinetuningConfig) -> None:
  """Applies the rules of fine-tuning. Raises UserError for the first that does not hold."""
  for rule in FINETUNING:
    rule(c)
