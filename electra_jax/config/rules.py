"""Rules across the fields of a pretraining config, one function each.

Ranges of single fields are with their declarations.

A rule takes the typed config and raises UserError, in one sentence, where fields contradict each
other. Nothing here imports JAX or reads a file, so that a mistake is reported within a second.
"""

import importlib.util
import itertools
import math
from collections.abc import Mapping
from typing import Any

from electra_jax import registry
from electra_jax.config import declarations
from electra_jax.config.declarations import Value, names_with, require, typed_options
from electra_jax.config.families import FAMILIES
from electra_jax.config.phases import KNOWN, phases_of
from electra_jax.config.pretraining import BUDGETS, PretrainingConfig
from electra_jax.errors import UserError

PHASE_FIELDS = names_with(PretrainingConfig, 'per_phase')
# 'steps' is listed first: each phase must set it.
PHASE_FIELDS = ('steps', *(name for name in PHASE_FIELDS if name != 'steps'))
SCHEDULE_FORMS = (
  "('linear', from, to), ('exponential', from, to, decay as a share of the run), or "
  "('points', (step, value), ...) with ascending steps"
)


def has_budget(c: PretrainingConfig) -> bool:
  """Whether a budget determines config.steps."""
  return any(getattr(c, name) for name in BUDGETS)


#### Pretraining: rules that do not depend on the initial weights ####


def micro_batches_divide(c: PretrainingConfig) -> None:
  """The rows of a step divide into the micro-batches."""
  require(
    not c.micro_batches or c.batch_size % c.micro_batches == 0,
    f'config.batch_size {c.batch_size} does not divide into {c.micro_batches} micro-batches; '
    'change one of the two.',
  )


def one_budget(c: PretrainingConfig) -> None:
  """At most one budget is given, and nothing else that determines the steps."""
  named = [name for name in BUDGETS if getattr(c, name)]
  require(
    len(named) <= 1,
    f'config.{" and config.".join(named)} are both set; expected one budget, or none.',
  )
  for name in named:
    require(
      not c.phases,
      f'config.{name} determines the steps and config.phases set their own; remove one of the two.',
    )
    require(
      c.continued.optimizer != 'resumed',
      f"config.{name} starts a new schedule, and config.continued.optimizer 'resumed' continues "
      'an old one; remove one of the two.',
    )


def warmup_ends(c: PretrainingConfig) -> None:
  """The warm-up ends before the run does."""
  steps, warmup = c.steps, c.optimizer.warmup_steps
  if has_budget(c) or c.phases or c.optimizer.warmup_fraction:
    return
  require(
    0 <= warmup < steps,
    f'config.optimizer.warmup_steps {warmup} is not less than config.steps {steps}; shorten the '
    f'warm-up (--config.optimizer.warmup_steps={steps // 10}) or train longer.',
  )


def counts_fit(c: PretrainingConfig) -> None:
  """The counts of tokens between two log lines fit into 32 bits."""
  steps = min(c.log_every, c.steps)
  tokens = steps * c.batch_size * c.sequence_length
  if tokens >= 2**31:
    raise UserError(
      f'config.log_every is {c.log_every}, which makes {tokens:,} tokens between two log lines; '
      f'expected fewer than {2**31:,}, as with --config.log_every='
      f'{max(1, (2**31 - 1) // (c.batch_size * c.sequence_length))}.'
    )


def evaluation_meets_saving(c: PretrainingConfig) -> None:
  """Each checkpoint is evaluated, or each evaluation has a checkpoint."""
  require(
    c.save_every % c.eval_every == 0 or c.eval_every % c.save_every == 0,
    f'config.save_every {c.save_every} and config.eval_every {c.eval_every} do not meet; make one '
    'a multiple of the other.',
  )


def profile_is_a_range(c: PretrainingConfig) -> None:
  """config.profile_steps is a first and a last step."""
  steps = c.profile_steps
  require(
    len(steps) == 2 and all(map(_is_number, steps)) and 0 <= steps[0] <= steps[1],
    f'config.profile_steps is {steps}; expected its first and last step, as (10,12).',
  )


def reader_is_installed(c: PretrainingConfig) -> None:
  """TensorFlow is installed where config.data.reader requires it."""
  require(
    c.data.reader != 'tf' or importlib.util.find_spec('tensorflow') is not None,
    "config.data.reader is 'tf' and TensorFlow is not installed; expected the extra tfds, or "
    'numpy, which gives the same batches.',
  )


def one_kind_of_weights(c: PretrainingConfig) -> None:
  """Weights of sources are positive numbers, from one place."""
  weights, temperature = c.data.weights, c.data.mixture_temperature
  require(
    all(_is_number(weight) and 0 < weight < math.inf for weight in weights),
    f'config.data.weights is {weights}; expected a number above 0 for each source, as (2,1).',
  )
  require(
    not weights or not temperature,
    f'config.data.weights is {weights} and config.data.mixture_temperature is {temperature:g}; '
    'expected one of the two.',
  )
  require(
    not temperature or temperature >= 0.1,
    f'config.data.mixture_temperature is {temperature:g}; expected at least 0.1, or 0 for none.',
  )


def original_masking(c: PretrainingConfig) -> None:
  """The original program masks single tokens."""
  require(
    not c.objective.google or c.objective.masking == 'uniform',
    f'config.objective.google masks single tokens, and config.objective.masking is '
    f'{c.objective.masking!r}; change one of the two.',
  )


def one_tower_objective(c: PretrainingConfig) -> None:
  """Masked language modeling has no generator."""
  require(
    c.objective.name != 'mlm' or not (c.generator.uniform or c.generator.alone_steps),
    "config.objective.name 'mlm' has no generator; remove config.generator.uniform and "
    'config.generator.alone_steps.',
  )


def electric_noise(c: PretrainingConfig) -> None:
  """Electric's noise is its own generator's distribution."""
  if c.objective.name != 'electric':
    return
  require(
    (c.objective.temperature, c.objective.disallow_correct) == (1.0, False),
    "config.objective.name 'electric' requires config.objective.temperature 1.0 and "
    'config.objective.disallow_correct False, since its loss uses the probability of the noise.',
  )
  require(
    not c.generator.uniform,
    "config.objective.name 'electric' has a generator of two towers; remove "
    'config.generator.uniform.',
  )


def uniform_generator_is_not_trained(c: PretrainingConfig) -> None:
  """A uniform generator has no parameters, and no temperature."""
  if not c.generator.uniform:
    return
  require(
    not c.generator.alone_steps,
    'config.generator.uniform has no parameters to train in config.generator.alone_steps; remove '
    'one of the two.',
  )
  require(
    c.objective.temperature == 1 and not c.objective.schedules.temperature,
    'config.generator.uniform is the same at any temperature; remove '
    'config.objective.temperature and its schedule.',
  )


def schedules_are_well_formed(c: PretrainingConfig) -> None:
  """Each of config.objective.schedules has a known form, and values that its setting may have."""
  for name in ('temperature', 'mask_rate', 'discriminator_weight'):
    form, path = getattr(c.objective.schedules, name), f'config.objective.schedules.{name}'
    if form:
      declared, values = KNOWN[f'objective.{name}'].declaration, _schedule_values(form)
      require(values is not None, f'{path} is {form!r}; expected {SCHEDULE_FORMS}.')
      require(
        all(map(declared.accepts, values or ())),
        f'{path} is {form!r}; expected values {declared.expectation()}.',
      )


def schedules_have_an_effect(c: PretrainingConfig) -> None:
  """A schedule's setting is used by the objective, and set nowhere else."""
  unused = {
    'temperature': ('mlm', 'electric'),
    'discriminator_weight': ('mlm', 'replace_mlm', 'all_tokens_mlm'),
  }
  for name in ('temperature', 'mask_rate', 'discriminator_weight'):
    if not getattr(c.objective.schedules, name):
      continue
    path = f'config.objective.schedules.{name}'
    require(
      name != 'mask_rate' or not any('objective.mask_rate' in phase for phase in c.phases),
      f'config.phases set objective.mask_rate and so does {path}; remove one of the two.',
    )
    require(
      c.objective.name not in unused.get(name, ()),
      f'{path} has no effect where config.objective.name is {c.objective.name!r}; remove it.',
    )


def continued_needs_init(c: PretrainingConfig) -> None:
  """Fields of config.continued have no effect without config.init."""
  if c.init:
    return
  for name in (*(n for n in KNOWN if n.startswith('continued.')), 'data.new_words'):
    require(
      declarations.flat(c)[name] == KNOWN[name].default,
      f'config.{name} requires config.init, which is empty; set --config.init, or remove it.',
    )
  require(
    c.data.tokenizer != 'init' or c.generator.init,
    "config.data.tokenizer is 'init' and config.init is empty; set --config.init, or name a "
    'tokenizer.',
  )


def init_has_a_tokenizer(c: PretrainingConfig) -> None:
  """Initial weights fix the vocabulary, so no tokenizer is trained beside them."""
  trains = not c.data.store and c.data.tokenizer in registry.TOKENIZERS
  for name, init in (('init', c.init), ('generator.init', c.generator.init)):
    require(
      not init or not trains,
      f'config.data.tokenizer {c.data.tokenizer!r} trains another vocabulary than that of '
      f'config.{name}; set --config.data.tokenizer=init, or name a tokenizer that has its tokens.',
    )


def new_words_have_embeddings(c: PretrainingConfig) -> None:
  """New words extend the tokenizer of config.init, and need initial embeddings."""
  if not c.init or not c.data.new_words:
    return
  require(
    c.data.tokenizer == 'init',
    'config.data.new_words extends the tokenizer of config.init; set --config.data.tokenizer=init.',
  )
  require(
    c.continued.new_tokens != 'refuse',
    'config.data.new_words adds tokens without embeddings in config.init; set '
    '--config.continued.new_tokens=mean or pieces.',
  )


def special_tokens_have_a_tokenizer(c: PretrainingConfig) -> None:
  """Special tokens are appended to a tokenizer that the config names."""
  named = c.data.tokenizer
  require(
    not c.data.add_special_tokens or named != 'init' and named not in registry.TOKENIZERS,
    'config.data.add_special_tokens appends tokens to an existing tokenizer, and '
    f'config.data.tokenizer is {named!r}; expected a file, a folder or hf:org/name there.',
  )


def continued_fits_init(c: PretrainingConfig) -> None:
  """What config.continued chooses exists in weights of that kind."""
  made = c.continued.generator
  require(
    made in ('', 'scratch', 'narrowed') or made.startswith('hf:'),
    f'config.continued.generator is {made!r}; expected hf:FOLDER, scratch, narrowed, or empty for '
    'that of config.init.',
  )
  require(
    c.continued.step == 'last' or not registry.is_foreign(c.init),
    'config.continued.step chooses a checkpoint of a run, and config.init is '
    f'{c.init!r}; remove it.',
  )
  require(
    c.continued.optimizer != 'resumed' or not c.generator.alone_steps,
    "config.continued.optimizer 'resumed' continues in the middle of the schedule, and "
    'config.generator.alone_steps starts it; remove one of the two.',
  )


def options_have_a_spec(c: PretrainingConfig) -> None:
  """Options are those of the objective, the optimizer and the tokenizer that the config names."""
  for specs, name, given, path in (
    (registry.OBJECTIVES, c.objective.name, c.objective.options, 'config.objective.options'),
    (registry.OPTIMIZERS, c.optimizer.name, c.optimizer.options, 'config.optimizer.options'),
    (
      registry.TOKENIZERS,
      c.data.tokenizer,
      c.data.tokenizer_options,
      'config.data.tokenizer_options',
    ),
  ):
    kind = specs.entry(name).options if name in specs else None
    typed_options(kind, given, path, f'the {specs.kind} {name!r}')


def one_source_of_the_generator(c: PretrainingConfig) -> None:
  """The generator's initial weights are named in one place."""
  require(
    not c.generator.init or not c.init,
    'config.generator.init is the generator of a fresh discriminator, and config.init names an '
    'existing one; name its generator with --config.continued.generator=hf:FOLDER.',
  )


def phases_are_well_formed(c: PretrainingConfig) -> None:
  """Each of config.phases is a dict of its steps and of fields that a phase may set."""
  for number, phase in enumerate(c.phases, 1):
    steps = phase.get('steps') if isinstance(phase, Mapping) else None
    require(
      isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1,
      f'config.phases: phase {number} is {phase!r}; expected a dict with its steps, as '
      "{'steps': 1000, 'sequence_length': 128}.",
    )
    for name, value in phase.items():
      require(
        name in PHASE_FIELDS,
        f'config.phases: phase {number} sets {name!r}; a phase may set {", ".join(PHASE_FIELDS)}.',
      )
      try:
        declarations.typed_value(KNOWN[name], value)
      except UserError:
        noun = declarations.NOUNS[KNOWN[name].kind]
        raise UserError(
          f'config.phases: {name} of phase {number} is {value!r}; expected {noun}.'
        ) from None


def phases_make_the_run(c: PretrainingConfig) -> None:
  """Phases add up to config.steps, and no field beside them is without effect."""
  if not c.phases:
    return
  require(
    not c.optimizer.warmup_fraction or not any('optimizer.warmup_steps' in p for p in c.phases),
    'config.optimizer.warmup_fraction replaces the optimizer.warmup_steps that config.phases set; '
    'remove one of the two.',
  )
  total = sum(phase['steps'] for phase in c.phases)
  require(
    total == c.steps,
    f'config.phases have {total} steps in all and config.steps is {c.steps}; make it {total}.',
  )
  values = declarations.flat(c)
  for name in PHASE_FIELDS[1:]:
    given = [phase.get(name) for phase in c.phases]
    require(
      None in given or values[name] == given[0],
      f'config.{name} is {values[name]!r} and each of config.phases sets its own; change it '
      f'there, and let config.{name} be that of the first, {given[0]!r}.',
    )


def generator_steps_are_a_part(c: PretrainingConfig) -> None:
  """Steps of the generator only are fewer than those of the first phase."""
  alone = c.generator.alone_steps
  if not alone:
    return
  steps = c.phases[0]['steps'] if c.phases else c.steps
  require(
    0 < alone and (alone < steps or has_budget(c)),
    f'config.generator.alone_steps is {alone}; expected above 0 and below the {steps} steps'
    + (' of the first of config.phases.' if c.phases else '.'),
  )


#### Pretraining: rules about sizes, which config.init determines where it is given ####


def heads_divide(c: PretrainingConfig) -> None:
  """The width divides into the attention heads."""
  m = c.model
  require(
    m.hidden_size % m.num_heads == 0,
    f'config.model.hidden_size {m.hidden_size} does not divide into {m.num_heads} heads; make it '
    'a multiple of config.model.num_heads.',
  )


def rows_fit_positions(c: PretrainingConfig) -> None:
  """Rows are not longer than the position table, in families that have one."""
  length, positions = c.sequence_length, c.model.max_positions
  require(
    not FAMILIES[c.model.family].has_position_table or length <= positions,
    f'config.sequence_length {length} is longer than config.model.max_positions {positions}; '
    'raise the latter or shorten the rows.',
  )


def segments_have_types(c: PretrainingConfig) -> None:
  """Rows of two segments need two token types."""
  types = c.model.type_vocab_size
  has_types = FAMILIES[c.model.family].has_token_types
  require(
    c.data.row_format != 'segment_pair' or not has_types or types >= 2,
    "config.data.row_format 'segment_pair' requires two token types; config.model.type_vocab_size "
    f'is {types}.',
  )


def own_embedding_size(c: PretrainingConfig) -> None:
  """The embeddings of the generator have another width only where they are separate."""
  size = c.generator.embedding_size
  require(
    c.sharing == 'none' or size in (0, c.model.embedding_size) or c.objective.name == 'mlm',
    f'config.generator.embedding_size {size} requires separate embeddings; config.sharing is '
    f'{c.sharing!r}.',
  )


def one_tower_has_one_size(c: PretrainingConfig) -> None:
  """Towers that share everything have the same sizes."""
  fractions = (c.generator.hidden_fraction, c.generator.layers_fraction)
  require(
    c.sharing != 'all' or c.objective.name == 'mlm' or fractions == (1.0, 1.0),
    "config.sharing 'all' makes one tower of both; set config.generator.hidden_fraction and "
    'layers_fraction to 1.0.',
  )


def electric_has_two_towers(c: PretrainingConfig) -> None:
  """Electric's generator is a pair of towers, which the discriminator cannot be."""
  require(
    c.objective.name != 'electric' or c.sharing != 'all',
    "config.objective.name 'electric' has a generator of two towers; set --config.sharing to "
    'embeddings or none.',
  )


def generator_only_has_a_generator(c: PretrainingConfig) -> None:
  """Steps of the generator only require a separate generator."""
  require(
    not c.generator.alone_steps or c.sharing != 'all',
    "config.generator.alone_steps requires a separate generator; config.sharing 'all' makes one "
    'tower of both.',
  )


def generator_rate_has_a_generator(c: PretrainingConfig) -> None:
  """The generator's learning rate requires a separate generator with trainable parameters."""
  why = _no_generator(c)
  if not why and c.sharing == 'all':
    why = "config.sharing 'all' makes one tower of both"
  if not why and c.generator.frozen:
    why = 'config.generator.frozen keeps its parameters unchanged'
  require(
    not c.optimizer.generator_learning_rate or not why,
    'config.optimizer.generator_learning_rate requires a separate generator with trainable '
    f'parameters, and {why}; remove it.',
  )


def generator_weights_have_a_place(c: PretrainingConfig) -> None:
  """Initial or frozen generator weights require a single tower with separate embeddings."""
  why = _no_generator(c)
  if not why and c.objective.name == 'electric':
    why = 'the generator of electric has two'
  separate = c.sharing in ('none', 'disentangled')
  for name in ('init', 'frozen'):
    if not getattr(c.generator, name):
      continue
    require(
      not why, f'config.generator.{name} requires a generator of one tower, and {why}; remove it.'
    )
    require(
      separate or not c.init,
      f'config.generator.{name} requires a generator with separate embeddings, and that of '
      'config.init shares them; name another with --config.continued.generator=hf:FOLDER.',
    )
    require(
      separate,
      f'config.generator.{name} requires a generator with separate embeddings, and config.sharing '
      f'is {c.sharing!r}; set --config.sharing=none or disentangled.',
    )


def frozen_generator_has_weights(c: PretrainingConfig) -> None:
  """A frozen generator has initial weights, and no steps that train only the generator."""
  if not c.generator.frozen:
    return
  given = c.generator.init or (c.init and c.continued.generator not in ('scratch', 'narrowed'))
  require(
    given,
    'config.generator.frozen keeps initial weights unchanged, and there are none; name them with '
    '--config.generator.init=hf:FOLDER.',
  )
  require(
    not c.generator.alone_steps,
    'config.generator.frozen leaves no parameters to train in config.generator.alone_steps; remove '
    'one of the two.',
  )


PRETRAINING = (
  micro_batches_divide,
  phases_are_well_formed,
  one_budget,
  continued_needs_init,
  init_has_a_tokenizer,
  new_words_have_embeddings,
  special_tokens_have_a_tokenizer,
  continued_fits_init,
  generator_steps_are_a_part,
  options_have_a_spec,
  phases_make_the_run,
  warmup_ends,
  one_kind_of_weights,
  original_masking,
  reader_is_installed,
  one_tower_objective,
  electric_noise,
  schedules_are_well_formed,
  schedules_have_an_effect,
  uniform_generator_is_not_trained,
  one_source_of_the_generator,
  evaluation_meets_saving,
  counts_fit,
  profile_is_a_range,
)
SIZES = (
  heads_divide,
  rows_fit_positions,
  segments_have_types,
  electric_has_two_towers,
  generator_only_has_a_generator,
  generator_rate_has_a_generator,
  generator_weights_have_a_place,
  frozen_generator_has_weights,
  own_embedding_size,
  one_tower_has_one_size,
)


def check_pretraining(c: PretrainingConfig, sizes_known: bool) -> None:
  """Applies the rules to a config, and to each of its phases.

  Args:
    c: the config, the ranges of its fields checked.
    sizes_known: whether the sizes are final: False before the weights of config.init were read.

  Raises:
    UserError: for the first rule that does not hold.
  """
  rules = (*PRETRAINING, *(SIZES if sizes_known else ()))
  for rule in rules:
    rule(c)
  if not c.phases and (not c.generator.alone_steps or has_budget(c)):
    return
  for number, phase in enumerate(phases_of(c), 1):
    try:
      declarations.check_ranges(phase.config)
      for rule in rules:
        rule(phase.config)
    except UserError as error:
      raise UserError(f'in phase {number}, {error}') from None


def _no_generator(c: PretrainingConfig) -> str:
  """Why a config has no separate generator, as a clause; '' where it has one."""
  if c.objective.name == 'mlm':
    return f'config.objective.name {c.objective.name!r} has one tower'
  return 'config.generator.uniform leaves no generator' if c.generator.uniform else ''


def _is_number(value: Value) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: Value) -> bool:
  return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))


def _schedule_values(form: tuple[Any, ...]) -> list[float] | None:
  """The values that a schedule takes at its ends or points; None for a form that is not known."""
  kind, *rest = form
  if kind == 'points':
    ordered = (
      rest
      and all(map(_is_point, rest))
      and rest[0][0] >= 0
      and all(a[0] < b[0] for a, b in itertools.pairwise(rest))
    )
    return [value for _, value in rest] if ordered else None
  if not all(map(_is_number, rest)):
    return None
  if kind == 'linear' and len(rest) == 2:
    return list(rest)
  return rest[:2] if kind == 'exponential' and len(rest) == 3 and rest[2] > 0 else None
