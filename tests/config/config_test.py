"""Configs: declared fields, ranges, rules, command lines, JSON, phases and the reference page."""

import ast
import dataclasses
import subprocess
import sys
import traceback

import micro_run
import pytest

from electra_jax import main
from electra_jax.config import (
  FinetuningConfig,
  PretrainingConfig,
  SweepConfig,
  checked_config,
  checked_finetuning,
  checked_pretraining,
  checked_sweep,
  completed,
  config_kind,
  default_config,
  differences,
  finetuning,
  finetuning_rules,
  flat,
  freeze,
  from_plain,
  names_with,
  phases_of,
  reference,
  rules,
  sweep_rules,
  sweeps,
  to_plain,
  with_arguments,
)
from electra_jax.config.declarations import Config, field, fields_of, group, groups_of
from electra_jax.errors import UserError
from electra_jax.pretrain import build

FILES = sorted((micro_run.ROOT / 'configs').glob('*.py'))
DEFAULTS = {
  PretrainingConfig: default_config,
  FinetuningConfig: finetuning.default_config,
  SweepConfig: sweeps.default_config,
}
KINDS = pytest.mark.parametrize('kind', DEFAULTS, ids=lambda kind: kind.__name__)
ENTRIES = [(kind, entry) for kind in DEFAULTS for entry in fields_of(kind).values()]
EVERY_FIELD = pytest.mark.parametrize(
  'kind, entry',
  ENTRIES,
  ids=[f'{kind.__name__}.{entry.name}' for kind, entry in ENTRIES],
)


def parsed(*argv):
  return main.parse_flags(['main', *argv]).config


def check_message(error, start):
  """Asserts that a UserError is one sentence with this beginning."""
  message = str(error.value)
  assert message.startswith(start) and '\n' not in message and message.endswith(('.', '?')), message


def another(value):
  """A value of the same type that is not equal."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, tuple):
    return (*value, 1)
  if isinstance(value, dict):
    return value | {'x': 1}
  return value + ('x' if isinstance(value, str) else 1)


#### Declarations ####


@EVERY_FIELD
def test_help_is_one_short_sentence(kind, entry):
  text = entry.declaration.help
  assert text.endswith('.') and len(text) <= 120 and text == ' '.join(text.split())


@KINDS
def test_help_of_groups_is_one_short_sentence(kind):
  for declared in groups_of(kind).values():
    assert declared.help.endswith('.') and len(declared.help) <= 120


@EVERY_FIELD
def test_defaults_have_their_type_and_are_in_range(kind, entry):
  assert type(entry.default) is entry.kind
  assert entry.declaration.accepts(entry.default)


@KINDS
def test_the_config_dict_of_the_defaults_freezes_to_the_defaults(kind):
  config = DEFAULTS[kind]()
  assert freeze(kind, config) == kind()
  assert flat(config, kind).keys() == fields_of(kind).keys()
  assert flat(freeze(kind, config)) == flat(kind())
  assert config_kind(config) is kind


@EVERY_FIELD
def test_values_out_of_range_are_refused(kind, entry):
  d, wrong = entry.declaration, []
  several = entry.kind is tuple
  if d.choices:
    wrong.append(('neither',) if several else 'neither')
  for limit, beyond in ((d.at_least, -1), (d.above, 0), (d.at_most, 1), (d.below, 0)):
    if abs(limit) != float('inf'):
      wrong.append(entry.kind(limit + beyond))
  if d.one_line:
    wrong.append('two\nlines')
  assert bool(wrong) == bool(d.expectation())
  for value in (value for value in wrong if value not in d.also):
    with pytest.raises(UserError) as error:
      freeze(kind, kind().replace({entry.name: value}))
    check_message(error, f'config.{entry.name} is {value!r}; expected ')
  for value in (*d.choices, *d.also):
    freeze(kind, kind().replace({entry.name: (value,) if several else value}))


@pytest.mark.parametrize(
  'kind, name, value, message',
  [
    (PretrainingConfig, 'steps', 0, 'config.steps is 0; expected at least 1.'),
    (
      PretrainingConfig,
      'optimizer.b2',
      1.0,
      'config.optimizer.b2 is 1.0; expected at least 0 and below 1.',
    ),
    (
      PretrainingConfig,
      'objective.span_p',
      0.0,
      'config.objective.span_p is 0.0; expected above 0 and at most 1.',
    ),
    (
      PretrainingConfig,
      'dtype',
      'half',
      "config.dtype is 'half'; expected auto, float32 or bfloat16.",
    ),
    (FinetuningConfig, 'max_length', 5, 'config.max_length is 5; expected at least 8, or 0.'),
  ],
)
def test_the_message_of_a_range_names_what_is_accepted(kind, name, value, message):
  with pytest.raises(UserError) as error:
    freeze(kind, kind().replace({name: value}))
  assert str(error.value) == message


@EVERY_FIELD
def test_values_of_another_type_are_refused(kind, entry):
  wrong = [None] + [value for value in ('text', 1.5, (1,), {}) if type(value) is not entry.kind]
  wrong += [] if entry.kind is bool else [True]
  for value in wrong:
    with pytest.raises(UserError) as error:
      freeze(kind, kind().replace({entry.name: value}))
    check_message(error, f'config.{entry.name} is {value!r}; expected ')


def test_numbers_and_lists_get_the_type_of_their_field():
  changed = PretrainingConfig().replace(
    {
      'model.dropout': 0,
      'profile_steps': [3, 5],
      'objective.schedules.temperature': ['points', [0, 2.0], [30, 1.0]],
    }
  )
  c = freeze(PretrainingConfig, changed)
  assert type(c.model.dropout) is float and c.profile_steps == (3, 5)
  assert c.objective.schedules.temperature == ('points', (0, 2.0), (30, 1.0))


@KINDS
def test_names_that_are_not_fields_are_refused_with_the_nearest(kind):
  config = DEFAULTS[kind]()
  config.nmae = 'x'
  with pytest.raises(UserError, match=r'^config.nmae is not a field; did you mean config.name\?$'):
    freeze(kind, config)
  with pytest.raises(UserError, match='^config.nmae is not a field; did you mean config.name'):
    kind().replace({'nmae': 'x'})
  with pytest.raises(UserError, match='did you mean config.name'):
    from_plain({'nmae': 'x'}, kind)


@KINDS
def test_a_missing_field_and_what_is_no_config_are_refused(kind):
  config = DEFAULTS[kind]()
  del config.name
  with pytest.raises(UserError, match="lacks the field 'name'"):
    freeze(kind, config)
  for value in (None, 3, {'name': 'x'}):
    with pytest.raises(UserError, match='expected the ConfigDict'):
      freeze(kind, value)


def test_a_typed_config_cannot_be_changed_in_place():
  c = PretrainingConfig()
  with pytest.raises(dataclasses.FrozenInstanceError):
    c.model.dropout = 0.0
  assert c.replace({'model.dropout': 0.0, 'steps': 3}).model.dropout == 0.0
  assert c == PretrainingConfig()


#### Marks of declarations ####


def test_short_names_are_distinct():
  shorts = [fields_of(PretrainingConfig)[n].declaration.argument for n in names('argument')]
  assert shorts and len(set(shorts)) == len(shorts)
  for kind in (FinetuningConfig, SweepConfig):
    assert not names_with(kind, 'argument') + names_with(kind, 'per_phase')


def names(attribute):
  return names_with(PretrainingConfig, attribute)


ARGUMENTS = [
  ('seq=64', 'sequence_length', 64),
  ('batch=16', 'batch_size', 16),
  ('steps=300', 'steps', 300),
  ('lr=1e-3', 'optimizer.learning_rate', 1e-3),
  ('warmup=3', 'optimizer.warmup_steps', 3),
  ('vocab=500', 'data.vocab_size', 500),
  ('source=a.txt', 'data.source', 'a.txt'),
  ('seed=7', 'seed', 7),
  ('dtype=bfloat16', 'dtype', 'bfloat16'),
  ('sharing=none', 'sharing', 'none'),
  ('objective=mlm', 'objective.name', 'mlm'),
]


@pytest.mark.parametrize('argument, name, value', ARGUMENTS)
def test_arguments_of_the_config_string_are_typed(argument, name, value):
  before, after = (
    flat(parsed(f'--config=configs/small.py{more}'), PretrainingConfig)
    for more in ('', f':{argument}')
  )
  assert after[name] == value and type(after[name]) is type(before[name])
  assert {other for other in after if after[other] != before[other]} <= {name}


def test_every_argument_is_tested():
  assert {name: argument.partition('=')[0] for argument, name, _ in ARGUMENTS} == {
    name: fields_of(PretrainingConfig)[name].declaration.argument for name in names('argument')
  }


@pytest.mark.parametrize(
  'argument, message',
  [
    ('step=3', "--config takes no argument 'step=3'; did you mean steps=...?"),
    ('zzz=3', "--config takes no argument 'zzz=3'; expected seed=..., "),
    ('steps', "--config takes no argument 'steps'; "),
    ('steps=many', "--config argument steps='many' is not an integer."),
    ('lr=fast', "--config argument lr='fast' is not a number."),
  ],
)
def test_wrong_arguments_are_refused(argument, message):
  with pytest.raises(UserError) as error:
    with_arguments(default_config(), argument)
  check_message(error, message)


@pytest.mark.parametrize('name', [name for name in fields_of(PretrainingConfig) if name != 'steps'])
def test_a_phase_may_set_the_fields_marked_so(name):
  default = fields_of(PretrainingConfig)[name].default
  value = another(default)
  c = PretrainingConfig().replace({'phases': ({'steps': 400_000}, {'steps': 600_000, name: value})})
  if name not in names('per_phase'):
    with pytest.raises(UserError) as error:
      rules.phases_are_well_formed(c)
    check_message(error, f'config.phases: phase 2 sets {name!r}; a phase may set steps, ')
    return
  rules.phases_are_well_formed(c)
  first, second = (flat(phase.config) for phase in phases_of(c))
  assert (first[name], second[name]) == (default, value)
  assert {n for n in first if first[n] != second[n]} == {name, 'steps'}


@pytest.mark.parametrize('kind', [PretrainingConfig, FinetuningConfig])
def test_only_fields_marked_so_may_differ_when_a_run_is_resumed(kind):
  free = names_with(kind, 'resumable')
  plain, refused = to_plain(kind()), []
  for name, entry in fields_of(kind).items():
    changed = to_plain(kind().replace({name: another(entry.default)}))
    lines = differences(plain, changed, free)
    refused += [name] if lines else []
    option = '.x' if entry.kind is dict else ''
    assert all(line.startswith(f'{name}{option}: ') for line in lines) and len(lines) <= 1
    assert len(differences(plain, changed)) == 1
  assert set(refused) == set(fields_of(kind)) - set(free)
  assert {'seed', 'batch_size', 'model.dropout'} <= set(refused)
  # A mark of a group holds for all of its fields.
  assert {name for name in fields_of(kind) if name.startswith(('mesh.', 'sharding.'))} < set(free)


@dataclasses.dataclass(frozen=True)
class Inner(Config):
  old: int = field(3, 'A field of the first version.')
  added: str = field('new', 'A field of a later version.', before='old')


@dataclasses.dataclass(frozen=True)
class Outer(Config):
  inner: Inner = group(Inner, 'A group.')
  rate: float = field(2.0, 'A field of a later version.', before=0.0)
  points: tuple = field((1,), 'A field of a later version.', before=())
  plain: bool = field(True, 'A field of a later version that changes nothing.')


def test_a_missing_field_gets_the_value_that_older_configs_imply():
  old = {'inner': {'old': 5}}
  implied = Outer().replace({'inner.old': 5, 'inner.added': 'old', 'rate': 0.0, 'points': ()})
  assert completed(old, Outer) == to_plain(implied)
  assert from_plain(old, Outer) == implied
  assert from_plain({}, Outer) == implied.replace({'inner.old': 3})


def test_a_given_field_is_kept_whatever_older_configs_imply():
  assert from_plain(to_plain(Outer()), Outer) == Outer()
  assert completed(to_plain(Outer()), Outer) == to_plain(Outer())
  # What is not a field stays, for `differences` to name.
  assert completed({'unknown': 1}, Outer)['unknown'] == 1


#### Rules across fields ####

PHASES = (
  {'steps': 600_000, 'sequence_length': 64, 'batch_size': 256},
  {'steps': 400_000, 'batch_size': 64, 'optimizer.learning_rate': 1e-4},
)
CONTINUED = {'init': 'hf:x', 'data.tokenizer': 'init'}
WITH_GENERATOR = {'generator.init': 'hf:x', 'data.tokenizer': 'init'}
ONE_SIZE = {'generator.hidden_fraction': 1.0, 'generator.layers_fraction': 1.0}

# Rule, changes of the default config, beginning of the message.
PRETRAINING = [
  (
    'counts_fit',
    {'log_every': 2**17},
    'config.log_every is 131072, which makes 2,147,483,648 tokens between two log lines; expected',
  ),
  (
    'micro_batches_divide',
    {'micro_batches': 3},
    'config.batch_size 128 does not divide into 3 micro-batches',
  ),
  (
    'phases_are_well_formed',
    {'phases': ({'sequence_length': 64},)},
    "config.phases: phase 1 is {'sequence_length': 64}; expected a dict with its steps",
  ),
  (
    'phases_are_well_formed',
    {'phases': (*PHASES, {'steps': 0})},
    "config.phases: phase 3 is {'steps': 0}; expected a dict with its steps",
  ),
  (
    'phases_are_well_formed',
    {'phases': ({'steps': True},)},
    "config.phases: phase 1 is {'steps': True}; expected a dict with its steps",
  ),
  (
    'phases_are_well_formed',
    {'phases': (400, 600)},
    'config.phases: phase 1 is 400; expected a dict with its steps',
  ),
  (
    'phases_are_well_formed',
    {'phases': (PHASES[0], {'steps': 400_000, 'model.hidden_size': 512})},
    "config.phases: phase 2 sets 'model.hidden_size'; a phase may set steps, ",
  ),
  (
    'phases_are_well_formed',
    {'phases': (PHASES[0], {'steps': 400_000, 'batch': 64})},
    "config.phases: phase 2 sets 'batch'; a phase may set steps, data.store, data.weights, ",
  ),
  (
    'phases_are_well_formed',
    {'phases': ({'steps': 600_000, 'batch_size': 64.0}, PHASES[1])},
    'config.phases: batch_size of phase 1 is 64.0; expected an integer.',
  ),
  (
    'phases_are_well_formed',
    {'phases': (PHASES[0], {'steps': 400_000, 'optimizer.learning_rate': True})},
    'config.phases: optimizer.learning_rate of phase 2 is True; expected a number.',
  ),
  (
    'one_budget',
    {'budget_flops': 1e15, 'budget_tokens': 1e9},
    'config.budget_flops and config.budget_tokens are both set',
  ),
  (
    'one_budget',
    {'budget_tokens': 1e9, 'phases': PHASES},
    'config.budget_tokens determines the steps and config.phases set their own',
  ),
  (
    'one_budget',
    {'budget_minutes': 5.0, 'continued.optimizer': 'resumed', **CONTINUED},
    "config.budget_minutes starts a new schedule, and config.continued.optimizer 'resumed'",
  ),
  (
    'continued_needs_init',
    {'continued.optimizer': 'kept'},
    'config.continued.optimizer requires config.init, which is empty',
  ),
  ('continued_needs_init', {'data.new_words': 'w'}, 'config.data.new_words requires config.init'),
  (
    'continued_needs_init',
    {'data.tokenizer': 'init'},
    "config.data.tokenizer is 'init' and config.init is empty",
  ),
  (
    'init_has_a_tokenizer',
    {'init': 'hf:x'},
    "config.data.tokenizer 'unigram' trains another vocabulary than that of config.init",
  ),
  (
    'init_has_a_tokenizer',
    {'generator.init': 'hf:x', 'sharing': 'none'},
    "config.data.tokenizer 'unigram' trains another vocabulary than that of config.generator.init",
  ),
  (
    'new_words_have_embeddings',
    {'init': 'hf:x', 'data.tokenizer': 'vocab.txt', 'data.new_words': 'w'},
    'config.data.new_words extends the tokenizer of config.init',
  ),
  (
    'new_words_have_embeddings',
    {'data.new_words': 'w', **CONTINUED},
    'config.data.new_words adds tokens without embeddings in config.init',
  ),
  (
    'special_tokens_have_a_tokenizer',
    {'data.add_special_tokens': True},
    'config.data.add_special_tokens appends tokens to an existing tokenizer',
  ),
  (
    'continued_fits_init',
    {'continued.generator': 'large', **CONTINUED},
    "config.continued.generator is 'large'; expected hf:FOLDER, scratch, narrowed, or empty",
  ),
  (
    'continued_fits_init',
    {'continued.step': '300', **CONTINUED},
    "config.continued.step chooses a checkpoint of a run, and config.init is 'hf:x'",
  ),
  (
    'continued_fits_init',
    {'continued.optimizer': 'resumed', 'generator.alone_steps': 5, **CONTINUED},
    "config.continued.optimizer 'resumed' continues in the middle of the schedule",
  ),
  (
    'generator_steps_are_a_part',
    {'generator.alone_steps': 1_000_000},
    'config.generator.alone_steps is 1000000; expected above 0 and below the 1000000',
  ),
  (
    'generator_steps_are_a_part',
    {'generator.alone_steps': -1},
    'config.generator.alone_steps is -1; expected above 0',
  ),
  (
    'generator_steps_are_a_part',
    {'generator.alone_steps': 600_000, 'batch_size': 256, 'phases': PHASES},
    'config.generator.alone_steps is 600000; expected above 0 and below the 600000 steps '
    'of the first of config.phases.',
  ),
  (
    'phases_make_the_run',
    {'phases': PHASES[:1]},
    'config.phases have 600000 steps in all and config.steps is 1000000; make it 600000.',
  ),
  (
    'phases_make_the_run',
    {'phases': PHASES},
    'config.batch_size is 128 and each of config.phases sets its own; change it there, and let '
    'config.batch_size be that of the first, 256.',
  ),
  (
    'phases_make_the_run',
    {
      'optimizer.warmup_fraction': 0.1,
      'phases': ({'steps': 400_000, 'optimizer.warmup_steps': 5}, {'steps': 600_000}),
    },
    'config.optimizer.warmup_fraction replaces the optimizer.warmup_steps that config.phases set',
  ),
  (
    'warmup_ends',
    {'optimizer.warmup_steps': 2_000_000},
    'config.optimizer.warmup_steps 2000000 is not less than config.steps 1000000',
  ),
  (
    'warmup_ends',
    {'optimizer.warmup_steps': -1},
    'config.optimizer.warmup_steps -1 is not less than config.steps',
  ),
  (
    'one_kind_of_weights',
    {'data.weights': (1, 0)},
    'config.data.weights is (1, 0); expected a number above 0 for each source, as (2,1)',
  ),
  (
    'one_kind_of_weights',
    {'data.weights': (1, 2), 'data.mixture_temperature': 2.0},
    'config.data.weights is (1, 2) and config.data.mixture_temperature is 2; expected one',
  ),
  (
    'one_kind_of_weights',
    {'data.mixture_temperature': 0.01},
    'config.data.mixture_temperature is 0.01; expected at least 0.1, or 0 for none',
  ),
  (
    'original_masking',
    {'objective.google': True, 'objective.masking': 'words'},
    "config.objective.google masks single tokens, and config.objective.masking is 'words'",
  ),
  (
    'reader_is_installed',
    {'data.reader': 'tf'},
    "config.data.reader is 'tf' and TensorFlow is not installed",
  ),
  (
    'one_tower_objective',
    {'objective.name': 'mlm', 'generator.uniform': True},
    "config.objective.name 'mlm' has no generator",
  ),
  (
    'one_tower_objective',
    {'objective.name': 'mlm', 'generator.alone_steps': 10},
    "config.objective.name 'mlm' has no generator",
  ),
  (
    'electric_noise',
    {'objective.name': 'electric', 'objective.temperature': 0.5},
    "config.objective.name 'electric' requires config.objective.temperature 1.0",
  ),
  (
    'electric_noise',
    {'objective.name': 'electric', 'objective.disallow_correct': True},
    "config.objective.name 'electric' requires config.objective.temperature 1.0",
  ),
  (
    'electric_noise',
    {'objective.name': 'electric', 'generator.uniform': True},
    "config.objective.name 'electric' has a generator of two towers",
  ),
  (
    'schedules_are_well_formed',
    {'objective.schedules.temperature': ('cosine', 2.0, 1.0)},
    "config.objective.schedules.temperature is ('cosine', 2.0, 1.0); expected ('linear', from, to)",
  ),
  (
    'schedules_are_well_formed',
    {'objective.schedules.mask_rate': ('linear', 0.0, 0.3)},
    "config.objective.schedules.mask_rate is ('linear', 0.0, 0.3); expected values above 0 and",
  ),
  (
    'schedules_are_well_formed',
    {'objective.schedules.discriminator_weight': ('points', (0, 1.0), (5, -1.0))},
    "config.objective.schedules.discriminator_weight is ('points', (0, 1.0), (5, -1.0)); expected "
    'values at least 0',
  ),
  (
    'schedules_have_an_effect',
    {'objective.schedules.temperature': ('linear', 2.0, 1.0), 'objective.name': 'electric'},
    'config.objective.schedules.temperature has no effect where config.objective.name is '
    "'electric'",
  ),
  (
    'schedules_have_an_effect',
    {
      'objective.schedules.mask_rate': ('linear', 0.2, 0.3),
      'phases': ({'steps': 400_000, 'objective.mask_rate': 0.2}, {'steps': 600_000}),
    },
    'config.phases set objective.mask_rate and so does config.objective.schedules.mask_rate',
  ),
  (
    'uniform_generator_is_not_trained',
    {'generator.uniform': True, 'generator.alone_steps': 10},
    'config.generator.uniform has no parameters to train in config.generator.alone_steps',
  ),
  (
    'uniform_generator_is_not_trained',
    {'generator.uniform': True, 'objective.temperature': 0.0},
    'config.generator.uniform is the same at any temperature',
  ),
  (
    'options_have_a_spec',
    {'objective.options': {'gamma': 2.0}},
    "config.objective.options.gamma is not an option of the objective 'electra'; expected none.",
  ),
  (
    'options_have_a_spec',
    {'optimizer.options': {'beta': 2.0}},
    "config.optimizer.options.beta is not an option of the optimizer 'adamw'; expected none.",
  ),
  (
    'options_have_a_spec',
    {'data.tokenizer_options': {'cased': True}, 'data.tokenizer': 'vocab.txt'},
    "config.data.tokenizer_options.cased is not an option of the tokenizer 'vocab.txt'; expected "
    'none.',
  ),
  (
    'one_source_of_the_generator',
    {'generator.init': 'hf:y', 'sharing': 'none', **CONTINUED},
    'config.generator.init is the generator of a fresh discriminator, and config.init names an',
  ),
  (
    'evaluation_meets_saving',
    {'save_every': 300, 'eval_every': 200},
    'config.save_every 300 and config.eval_every 200 do not meet',
  ),
  (
    'profile_is_a_range',
    {'profile_steps': (1, 2, 3)},
    'config.profile_steps is (1, 2, 3); expected its first and last step',
  ),
  ('profile_is_a_range', {'profile_steps': (5, 3)}, 'config.profile_steps is (5, 3)'),
  ('profile_is_a_range', {'profile_steps': ('a', 'b')}, "config.profile_steps is ('a', 'b')"),
]
SIZES = [
  (
    'heads_divide',
    {'model.num_heads': 3},
    'config.model.hidden_size 256 does not divide into 3 heads',
  ),
  (
    'rows_fit_positions',
    {'sequence_length': 1024},
    'config.sequence_length 1024 is longer than config.model.max_positions 512',
  ),
  (
    'segments_have_types',
    {'data.row_format': 'segment_pair', 'model.type_vocab_size': 1},
    "config.data.row_format 'segment_pair' requires two token types",
  ),
  (
    'electric_has_two_towers',
    {'objective.name': 'electric', 'sharing': 'all', **ONE_SIZE},
    "config.objective.name 'electric' has a generator of two towers",
  ),
  (
    'generator_only_has_a_generator',
    {'generator.alone_steps': 10, 'sharing': 'all', **ONE_SIZE},
    'config.generator.alone_steps requires a separate generator',
  ),
  (
    'generator_rate_has_a_generator',
    {'optimizer.generator_learning_rate': 1e-3, 'objective.name': 'mlm'},
    'config.optimizer.generator_learning_rate requires a separate generator with trainable '
    "parameters, and config.objective.name 'mlm' has one tower",
  ),
  (
    'generator_rate_has_a_generator',
    {'optimizer.generator_learning_rate': 1e-3, 'sharing': 'all', **ONE_SIZE},
    'config.optimizer.generator_learning_rate requires a separate generator with trainable '
    "parameters, and config.sharing 'all' makes one tower of both",
  ),
  (
    'generator_rate_has_a_generator',
    {
      'optimizer.generator_learning_rate': 1e-3,
      'sharing': 'none',
      'generator.frozen': True,
      **WITH_GENERATOR,
    },
    'config.optimizer.generator_learning_rate requires a separate generator with trainable '
    'parameters, and config.generator.frozen keeps its parameters unchanged',
  ),
  (
    'generator_weights_have_a_place',
    {'objective.name': 'mlm', **WITH_GENERATOR},
    'config.generator.init requires a generator of one tower, and config.objective.name',
  ),
  (
    'generator_weights_have_a_place',
    {'objective.name': 'electric', 'sharing': 'none', **WITH_GENERATOR},
    'config.generator.init requires a generator of one tower, and the generator of electric',
  ),
  (
    'generator_weights_have_a_place',
    WITH_GENERATOR,
    'config.generator.init requires a generator with separate embeddings, and config.sharing',
  ),
  (
    'generator_weights_have_a_place',
    {'generator.frozen': True, **CONTINUED},
    'config.generator.frozen requires a generator with separate embeddings, and that of',
  ),
  (
    'frozen_generator_has_weights',
    {'generator.frozen': True, 'sharing': 'none'},
    'config.generator.frozen keeps initial weights unchanged, and there are none',
  ),
  (
    'frozen_generator_has_weights',
    {
      'generator.frozen': True,
      'sharing': 'none',
      'generator.alone_steps': 20_000,
      **WITH_GENERATOR,
    },
    'config.generator.frozen leaves no parameters to train in config.generator.alone_steps',
  ),
  (
    'own_embedding_size',
    {'generator.embedding_size': 64},
    'config.generator.embedding_size 64 requires separate embeddings',
  ),
  (
    'one_tower_has_one_size',
    {'sharing': 'all'},
    "config.sharing 'all' makes one tower of both; set config.generator.hidden_fraction and",
  ),
]
FINETUNING = [
  ('starts_from_something', {'init': ''}, 'config.init is empty'),
  (
    'starts_from_something',
    {'init': 'none'},
    "config.init is 'none' and config.like is empty",
  ),
  ('starts_from_something', {'like': 'runs/x'}, "config.like requires config.init='none'"),
  (
    'starts_from_something',
    {'init': 'hf:x', 'init_step': '300'},
    "config.init_step chooses a checkpoint of a run, and config.init is 'hf:x'",
  ),
  ('tasks_are_named', {'task': ''}, 'config.task is empty'),
  ('tasks_are_named', {'task': ' , '}, 'config.task is empty'),
  ('tasks_are_named', {'task': 'cola, cola'}, "config.task 'cola, cola' names a task twice."),
  (
    'task_options_have_a_task',
    {'task': 'cola,sst2', 'task_options': {'levels': 3}},
    "config.task_options.levels is not an option of config.task 'cola,sst2'; expected none.",
  ),
  ('seeds_are_unsigned', {'seed': -1}, 'config.seed is -1; the seeds of all trials must be'),
  (
    'seeds_are_unsigned',
    {'seed': 2**32 - 1, 'num_trials': 2},
    f'config.seed is {2**32 - 1}; the seeds of all trials must be',
  ),
  (
    'trial_micro_batches_divide',
    {'micro_batches': 5},
    'config.batch_size 32 does not divide into 5 micro-batches.',
  ),
  (
    'selection_has_evaluations',
    {'eval_every': 0.0, 'patience': 2},
    'config.patience counts evaluations on dev, and config.eval_every is 0',
  ),
  (
    'selection_has_evaluations',
    {'eval_every': 0.0, 'select': 'best'},
    "config.select 'best' requires evaluations on dev",
  ),
  (
    'search_has_settings',
    {'search.learning_rate': (1e-4, -1.0)},
    'config.search.learning_rate has -1.0; expected values of config.optimizer.learning_rate',
  ),
  (
    'search_has_settings',
    {'search.batch_size': (8, 8)},
    'config.search.batch_size is (8, 8); expected each value once',
  ),
  (
    'search_has_settings',
    {'search.halving': 2},
    'config.search.halving is 2, and config.search has no settings; expected at least 2',
  ),
  (
    'frozen_encoder_has_no_rates',
    {'frozen': True, 'optimizer.layer_decay': 0.8},
    'config.optimizer.layer_decay and published_depths have no effect where config.frozen',
  ),
  (
    'frozen_encoder_has_no_rates',
    {'frozen': True, 'optimizer.published_depths': True},
    'config.optimizer.layer_decay and published_depths have no effect where config.frozen',
  ),
]
SWEEP = [
  ('sweep_has_runs', {'base': ''}, 'config.base is empty'),
  ('sweep_has_runs', {'runs': ()}, 'config.runs is empty'),
  ('seeds_are_distinct', {'seeds': (0, 0)}, 'config.seeds is (0, 0); expected each number once'),
  ('seeds_are_distinct', {'seeds': ()}, 'config.seeds is (); expected each number once'),
  ('seeds_are_distinct', {'seeds': (-1,)}, 'config.seeds is (-1,); expected each number once'),
  ('seeds_are_distinct', {'seeds': (True,)}, 'config.seeds is (True,); expected each number once'),
  (
    'entries_are_well_formed',
    {'runs': ('a',)},
    "config.runs holds 'a'; expected its name and a dict of fields.",
  ),
  (
    'entries_are_well_formed',
    {'runs': (('a b', {}),)},
    "config.runs: 'a b' cannot be a name; use letters",
  ),
  (
    'entries_are_well_formed',
    {'runs': (('a', {}), ('a', {'steps': 9}))},
    "config.runs has 'a' twice; expected one each.",
  ),
  (
    'entries_are_well_formed',
    {'finetune': (('cola', {}),)},
    "config.finetune holds ('cola', {}); expected its name, a config file and a dict of fields.",
  ),
  (
    'changes_are_pairs',
    {'fields': ('steps', 3)},
    "config.fields holds 'steps'; expected pairs of a field and its value",
  ),
]


def check_pretraining(fields):
  config = default_config()
  config.update_from_flattened_dict(fields)
  return checked_pretraining(config, sizes_known=True)


def check_finetuning(fields):
  return checked_finetuning(FinetuningConfig().replace({'init': 'runs/small'} | fields))


def check_sweep(fields):
  given = {'base': 'configs/mini.py', 'runs': (('mlm', {'objective.name': 'mlm'}),)}
  return checked_sweep(SweepConfig().replace(given | fields))


CASES = [
  *((check_pretraining, *case) for case in PRETRAINING + SIZES),
  *((check_finetuning, *case) for case in FINETUNING),
  *((check_sweep, *case) for case in SWEEP),
]


@pytest.mark.parametrize(
  'check, rule, fields, message', CASES, ids=[f'{case[1]}-{case[3][:60]}' for case in CASES]
)
def test_fields_that_contradict_each_other_are_refused(check, rule, fields, message, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)  # as where it is not installed
  check({})
  with pytest.raises(UserError) as error:
    check(fields)
  check_message(error, message)
  # The rule itself raised it, through the function that raises for all rules.
  raised = [frame.name for frame in traceback.extract_tb(error.tb)]
  assert rule in raised[-2:], raised


@pytest.mark.parametrize(
  'cases, those',
  [
    (PRETRAINING, rules.PRETRAINING),
    (SIZES, rules.SIZES),
    (FINETUNING, finetuning_rules.FINETUNING),
    (SWEEP, sweep_rules.SWEEP),
  ],
)
def test_every_rule_has_a_case_that_violates_it(cases, those):
  assert {rule for rule, *_ in cases} == {rule.__name__ for rule in those}
  assert len(set(those)) == len(those)


@pytest.mark.parametrize(
  'phases, message',
  [
    (
      ({'steps': 600_000}, {'steps': 400_000, 'sequence_length': 1024}),
      'in phase 2, config.sequence_length 1024 is longer than config.model.max_positions 512',
    ),
    (
      ({'steps': 5_000}, {'steps': 995_000}),
      'in phase 1, config.optimizer.warmup_steps 10000 is not less than config.steps 5000',
    ),
    (
      (PHASES[0], {'steps': 400_000, 'micro_batches': 3}),
      'in phase 2, config.batch_size 128 does not divide into 3 micro-batches',
    ),
    (
      (PHASES[0], {'steps': 400_000, 'optimizer.learning_rate': 0}),
      'in phase 2, config.optimizer.learning_rate is 0.0; expected above 0.',
    ),
  ],
)
def test_ranges_and_rules_hold_in_each_phase(phases, message):
  with pytest.raises(UserError) as error:
    check_pretraining({'phases': phases})
  check_message(error, message)


def test_steps_of_the_generator_only_are_checked_as_a_phase():
  with pytest.raises(UserError) as error:
    check_pretraining({'generator.alone_steps': 995_000})
  check_message(
    error, 'in phase 2, config.optimizer.warmup_steps 10000 is not less than config.steps 5000'
  )
  check_pretraining({'generator.alone_steps': 1_000})


def test_sizes_are_checked_once_they_are_known():
  c = PretrainingConfig().replace({'model.num_heads': 3} | CONTINUED)
  assert checked_pretraining(c) == c
  with pytest.raises(UserError, match='does not divide into 3 heads'):
    checked_pretraining(c, sizes_known=True)
  with pytest.raises(UserError, match='does not divide into 3 heads'):
    checked_pretraining(PretrainingConfig().replace({'model.num_heads': 3}))


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'model.num_heads': 3}, 'hidden_size 256 does not divide into 3 heads'),
    ({'model.family': 'gpt2'}, "family is 'gpt2'"),
    ({'model.dropout': 1.0}, 'dropout is 1.0'),
    ({'model.remat': 'some'}, "remat is 'some'"),
    ({'generator.hidden_fraction': 0.0}, 'hidden_size is 0'),
  ],
)
def test_the_model_refuses_impossible_sizes_itself(fields, message):
  with pytest.raises(UserError, match=message):
    build.build_model(PretrainingConfig().replace(fields), 1000)


@pytest.mark.parametrize('kind', DEFAULTS)
def test_a_config_is_checked_by_its_kind(kind):
  config = DEFAULTS[kind]()
  wrong = {PretrainingConfig: {'steps': 0}, FinetuningConfig: {}, SweepConfig: {}}[kind]
  config.update(wrong)
  message = {
    PretrainingConfig: 'config.steps is 0',
    FinetuningConfig: 'config.init is empty',
    SweepConfig: 'config.base is empty',
  }[kind]
  with pytest.raises(UserError, match=message):
    checked_config(config)


#### Config files and command lines ####


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_config_file_loads_and_checks(file):
  config = parsed(
    f'--config={file}', *(['--config.init=hf:somewhere'] if file.stem == 'continued' else [])
  )
  typed = checked_pretraining(config)
  build.build_model(typed, typed.data.vocab_size, platform='tpu')
  assert config.name == file.stem and config.is_locked
  assert config.data.source == 'sample'
  assert len(file.read_text('utf-8').splitlines()) < 60
  docstring = ast.get_docstring(ast.parse(file.read_text('utf-8')))
  assert f'python -m electra_jax.main --config=configs/{file.name}' in docstring


def test_the_published_sizes_have_config_files():
  assert {'tiny', 'small', 'base', 'large', 'modern_small', 'modern_base'} <= {
    file.stem for file in FILES
  }


def test_arguments_and_fields_together():
  config = parsed(
    '--config=configs/base.py:seq=128,batch=64',
    '--config.model.dropout=0',
    '--config.optimizer.learning_rate',
    '1e-3',
    '--config.skip_nonfinite',
    '--config.profile_steps=(3,5)',
    '--config.name=mine',
  )
  assert (
    config.sequence_length,
    config.batch_size,
    config.model.dropout,
    config.optimizer.learning_rate,
  ) == (128, 64, 0.0, 1e-3)
  assert (config.skip_nonfinite, config.profile_steps, config.name) == (True, (3, 5), 'mine')
  assert isinstance(config.model.dropout, float)
  checked_pretraining(config)


def test_one_command_line_leaves_nothing_for_the_next():
  assert parsed('--config=configs/tiny.py', '--config.steps=300').steps == 300
  assert parsed('--config=configs/tiny.py').steps != 300


@pytest.mark.parametrize(
  'argument, message',
  [
    ('steps=10', 'config.phases have 10933 steps in all and config.steps is 10; make it 10933.'),
    ('batch=64', 'config.batch_size is 64 and each of config.phases sets its own; change it there'),
    (
      'seq=512',
      'config.sequence_length is 512 and each of config.phases sets its own; change it there',
    ),
  ],
)
def test_arguments_that_phases_leave_without_effect_are_refused(argument, message):
  with pytest.raises(UserError) as error:
    checked_pretraining(parsed(f'--config=configs/base_lamb.py:{argument}'))
  check_message(error, message)


OBJECTIVES = '--config=configs/sweeps/objectives.py:texts'


@pytest.mark.parametrize(
  'argv, status, text',
  [
    (['--config=configs/tiny.py', '--config.steps=0'], 1, 'config.steps is 0; expected at least 1'),
    (
      ['--mode=plan', '--topology=v5e-4', '--config=configs/tiny.py', '--config.micro_batches=5'],
      1,
      'config.batch_size 32 does not divide into 5 micro-batches',
    ),
    (
      ['--config=configs/tiny.py', '--config.stepz=3'],
      1,
      "the config has no field 'stepz'; did you mean 'steps'?",
    ),
    (
      ['--mode=finetune', '--config=configs/finetune/cola.py', '--config.num_trials=0'],
      1,
      'config.num_trials is 0; expected at least 1',
    ),
    (['--mode=finetune', '--config=configs/finetune/cola.py'], 1, 'config.init is empty'),
    (['--mode=sweep', OBJECTIVES, '--config.seeds=(0,0)'], 1, 'config.seeds is (0, 0)'),
    (
      ['--mode=sweep', OBJECTIVES, "--config.fields=(('stepz',3),)"],
      1,
      "config.fields sets 'stepz', which is not a field; did you mean 'steps'?",
    ),
    (
      ['--mode=sweep', OBJECTIVES, "--config.fields=(('batch_size',0),)"],
      1,
      'config.batch_size is 0; expected at least 1',
    ),
    (['--mode=sweep', '--config=configs/tiny.py'], 1, '--mode=sweep takes a sweep config, such as'),
    (['--help'], 0, '--config.optimizer.learning_rate'),
    (['--help', '--mode=finetune'], 0, '--config.optimizer.layer_decay'),
    (['--help', '--mode=sweep'], 0, '--config.seeds'),
  ],
  ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_a_wrong_config_is_reported_before_slow_imports(argv, status, text):
  program = (
    'import sys\n'
    'from electra_jax import main\n'
    f'status = main.main({["main", *argv]!r})\n'
    'slow = {"jax", "jaxlib", "flax", "orbax", "tensorflow", "torch"} & set(sys.modules)\n'
    'sys.exit(f"imported {slow}" if slow else 10 + status)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=micro_run.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 10 + status, done.stderr
  if status:
    assert text in done.stderr and done.stderr.count('\n') == 1 and not done.stdout
  else:
    assert text in done.stdout and not done.stderr


#### The reference page and --help ####


def test_the_reference_page_is_that_of_the_declarations():
  page = (micro_run.ROOT / 'docs' / 'reference' / 'config.md').read_text('utf-8')
  assert page == reference.reference_page(), (
    'write it with: python -m electra_jax.config.reference > docs/reference/config.md'
  )


@EVERY_FIELD
def test_the_page_and_help_have_every_field(kind, entry):
  (row,) = [
    line for line in section_of(kind).splitlines() if line.startswith(f'| `{entry.name}` |')
  ]
  d = entry.declaration
  assert f'| `{entry.default!r}` | {d.help} |' in row.replace('\\|', '|')
  for mark, given in (('*per phase*', d.per_phase), ('*resumable*', d.resumable)):
    assert (mark in row) == given
  assert d.expectation() in row and (not d.argument or f'short name `{d.argument}`' in row)
  lines = reference.fields_help(kind).splitlines()
  assert f'  --config.{entry.name}' in lines and max(map(len, lines)) <= 100


def section_of(kind):
  """The part of the reference page about one program."""
  title = next(title for found, title, _ in reference.PROGRAMS if found is kind)
  _, _, rest = reference.reference_page().partition(f'\n## {title}\n')
  return rest.partition('\n## ')[0]


#### JSON ####


def test_a_config_survives_its_json():
  config = parsed('--config=configs/base.py', '--config.profile_steps=(3,5)')
  typed = checked_pretraining(config)
  again = from_plain(to_plain(config), PretrainingConfig)
  assert again == typed and to_plain(typed) == to_plain(config)
  assert not differences(to_plain(config), to_plain(again))


@EVERY_FIELD
def test_every_field_survives_json(kind, entry):
  c = kind().replace({entry.name: another(entry.default)})
  assert from_plain(to_plain(c), kind) == c


def test_differences_name_the_fields_that_are_not_free():
  free = names('resumable')
  a, b = default_config(), default_config()
  b.update_from_flattened_dict(
    {'keep': 7, 'data.cache': 'elsewhere', 'data.reader': 'numpy', 'profile_steps': (1, 2)}
  )
  assert differences(to_plain(a), to_plain(b), free) == []
  b.update_from_flattened_dict({'seed': 1, 'model.dropout': 0.0})
  assert differences(to_plain(a), to_plain(b), free) == [
    'model.dropout: 0.1 -> 0.0',
    'seed: 0 -> 1',
  ]


def test_a_run_of_an_older_version_has_the_config_that_it_was_started_with():
  config = to_plain(parsed('--config=configs/tiny.py'))
  old = {
    name: value for name, value in config.items() if name not in ('mesh', 'sharding', 'phases')
  }
  old['optimizer'] = {
    name: value
    for name, value in config['optimizer'].items()
    if name not in ('name', 'decay_power')
  }

  def changed(older):
    return differences(completed(older, PretrainingConfig), config)

  assert changed(old) == []
  assert changed(old | {'seed': 5}) == ['seed: 5 -> 0']
  config['optimizer']['name'] = 'lamb'
  assert changed(old) == ["optimizer.name: 'adamw' -> 'lamb'"]


def test_a_run_with_missing_fields_still_opens():
  plain = to_plain(default_config())
  del plain['data']['reader'], plain['skip_nonfinite']
  assert from_plain(plain, PretrainingConfig) == PretrainingConfig()


#### Phases ####


def test_phases_are_given_on_the_command_line_and_survive_json():
  config = parsed('--config=configs/small.py:batch=256', f'--config.phases={PHASES}')
  c = checked_pretraining(config)
  again = from_plain(to_plain(config), PretrainingConfig)
  assert again == c and again.phases == config.phases == PHASES
  checked_pretraining(again)
  assert [phase.config.sequence_length for phase in phases_of(again)] == [
    64,
    config.sequence_length,
  ]
  assert not differences(to_plain(config), to_plain(again))
  changed = again.replace({'phases': ({**PHASES[0], 'batch_size': 512}, PHASES[1])})
  (line,) = differences(to_plain(config), to_plain(changed))
  assert line.startswith('phases: ')
