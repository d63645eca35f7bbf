"""Configs: every field is explained once, every file loads and checks, arguments are typed, mistakes are named."""

import ast
import pathlib
import re

import micro_run
import pytest

from electra_jax import config as configs
from electra_jax import main
from electra_jax.errors import UserError
from electra_jax.pretrain import build

FILES = sorted((micro_run.ROOT / 'configs').glob('*.py'))


def parsed(*argv):
  return main.parse(['main', *argv]).config


def test_every_field_is_set_once_with_a_comment():
  source = pathlib.Path(configs.__file__).read_text('utf-8')
  function = next(
    node for node in ast.parse(source).body if getattr(node, 'name', '') == 'default_config'
  )
  fields, groups = [], {'c': ''}
  for node in function.body:
    # `c.model = model = ConfigDict()` begins a group; what is set in it, and in c, are fields.
    if isinstance(node, ast.Assign) and len(node.targets) == 2:
      group, alias = node.targets
      groups[alias.id] = f'{groups[group.value.id]}{group.attr}.'
    if (
      isinstance(node, ast.Assign)
      and len(node.targets) == 1
      and isinstance(node.targets[0], ast.Attribute)
    ):
      owner, name = node.targets[0].value.id, node.targets[0].attr
      fields.append(groups[owner] + name)
      assert re.search(r'\s# \S.+$', source.splitlines()[node.end_lineno - 1]), (
        f'{fields[-1]} has no comment'
      )
  assert sorted(fields) == sorted(configs.flat(configs.default_config()))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_config_file_loads_and_checks(file):
  config = parsed(
    f'--config={file}', *(['--config.init=hf:somewhere'] if file.stem == 'continued' else [])
  )
  configs.check(config)
  build.build_model(config, config.data.vocab_size, platform='tpu')
  assert config.name == file.stem and config.is_locked
  assert config.data.source == 'sample'
  assert len(file.read_text('utf-8').splitlines()) < 60
  docstring = ast.get_docstring(ast.parse(file.read_text('utf-8')))
  assert f'python -m electra_jax.main --config=configs/{file.name}' in docstring


def test_there_are_the_configs_that_were_promised():
  assert {'tiny', 'small', 'base', 'large', 'modern_small', 'modern_base'} <= {
    file.stem for file in FILES
  }


@pytest.mark.parametrize(
  'argument, field, value',
  [
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
  ],
)
def test_arguments_of_the_config_string_are_typed(argument, field, value):
  before, after = (
    configs.flat(parsed(f'--config=configs/small.py{more}')) for more in ('', f':{argument}')
  )
  assert after[field] == value and type(after[field]) is type(before[field])
  assert {name for name in after if after[name] != before[name]} <= {field}


def test_every_argument_is_tested():
  marks = test_arguments_of_the_config_string_are_typed.pytestmark[0].args[1]
  assert {argument.partition('=')[0] for argument, *_ in marks} == set(configs.ARGUMENTS)


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
  configs.check(config)


def test_one_command_line_leaves_nothing_for_the_next():
  assert parsed('--config=configs/tiny.py', '--config.steps=300').steps == 300
  assert parsed('--config=configs/tiny.py').steps != 300


WRONG = [
  ({'steps': 0}, 'config.steps is 0'),
  ({'batch_size': 0}, 'config.batch_size is 0'),
  ({'keep': 0}, 'config.keep is 0'),
  ({'sequence_length': 4}, 'config.sequence_length is 4'),
  (
    {'sequence_length': 1024},
    'config.sequence_length 1024 is longer than config.model.max_positions 512',
  ),
  (
    {'optimizer.warmup_steps': 2_000_000},
    'config.optimizer.warmup_steps 2000000 is not less than config.steps 1000000',
  ),
  ({'optimizer.learning_rate': 0.0}, 'config.optimizer.learning_rate is 0.0'),
  ({'optimizer.b2': 1.0}, 'config.optimizer.b2 is 1.0'),
  ({'objective.mask_rate': 1.5}, 'config.objective.mask_rate is 1.5'),
  ({'objective.temperature': -1.0}, 'config.objective.temperature is -1.0'),
  ({'data.heldout_fraction': 0.0}, 'config.data.heldout_fraction is 0.0'),
  ({'data.reader': 'torch'}, "config.data.reader is 'torch'"),
  ({'sharing': 'some'}, "config.sharing is 'some'"),
  ({'sharing': 'all'}, "config.sharing 'all' makes one tower"),
  ({'dtype': 'float16'}, "config.dtype is 'float16'"),
  ({'micro_batches': -1}, 'config.micro_batches is -1'),
  ({'micro_batches': 3}, 'config.batch_size 128 does not divide into 3 micro-batches'),
  (
    {'save_every': 300, 'eval_every': 200},
    'config.save_every 300 and config.eval_every 200 do not meet',
  ),
  ({'profile_steps': (1, 2, 3)}, 'config.profile_steps is (1, 2, 3)'),
  ({'profile_steps': (5, 3)}, 'config.profile_steps is (5, 3)'),
]


@pytest.mark.parametrize('fields, message', WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_is_named(fields, message):
  config = configs.default_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError) as error:
    configs.check(config)
  assert (
    str(error.value).startswith(message)
    and '\n' not in str(error.value)
    and str(error.value).endswith('.')
  )


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'model.num_heads': 3}, 'hidden_size 256 does not divide into 3 heads'),
    ({'model.family': 'bert'}, "family is 'bert'"),
    ({'model.dropout': 1.0}, 'dropout is 1.0'),
    ({'model.remat': 'some'}, "remat is 'some'"),
    ({'generator.hidden_fraction': 0.0}, 'hidden_size is 0'),
  ],
)
def test_sizes_that_cannot_be_are_named(fields, message):
  config = configs.default_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=message):
    build.build_model(config, 1000)


def test_a_config_survives_its_json():
  config = parsed('--config=configs/base.py', '--config.profile_steps=(3,5)')
  again = configs.from_plain(configs.to_plain(config))
  assert configs.flat(again) == configs.flat(config)
  assert not configs.differences(configs.to_plain(config), configs.to_plain(again))


def test_differences_name_fields_and_pass_over_what_is_free():
  a, b = configs.default_config(), configs.default_config()
  b.update_from_flattened_dict(
    {'keep': 7, 'data.cache': 'elsewhere', 'data.reader': 'numpy', 'profile_steps': (1, 2)}
  )
  assert configs.differences(configs.to_plain(a), configs.to_plain(b)) == []
  b.update_from_flattened_dict({'seed': 1, 'model.dropout': 0.0})
  assert configs.differences(configs.to_plain(a), configs.to_plain(b)) == [
    'model.dropout: 0.1 -> 0.0',
    'seed: 0 -> 1',
  ]


def test_a_run_made_before_fields_were_there_is_still_the_run_of_its_config():
  config = configs.to_plain(parsed('--config=configs/tiny.py'))
  old = {
    name: value for name, value in config.items() if name not in ('mesh', 'sharding', 'phases')
  }
  old['optimizer'] = {
    name: value
    for name, value in config['optimizer'].items()
    if name not in ('name', 'decay_power')
  }
  assert configs.differences(configs.completed(old), config) == []
  assert configs.differences(configs.completed(old | {'seed': 5}), config) == ['seed: 5 -> 0']
  config['optimizer']['name'] = 'lamb'
  assert configs.differences(configs.completed(old), config) == [
    "optimizer.name: 'adamw' -> 'lamb'"
  ]


def test_a_run_made_before_a_field_was_there_still_opens():
  plain = configs.to_plain(configs.default_config())
  del plain['data']['reader'], plain['skip_nonfinite']
  assert configs.flat(configs.from_plain(plain)) == configs.flat(configs.default_config())


PHASES = (
  {'steps': 600_000, 'sequence_length': 64, 'batch_size': 256},
  {'steps': 400_000, 'batch_size': 64, 'optimizer.learning_rate': 1e-4},
)


@pytest.mark.parametrize(
  'phases, message',
  [
    (
      PHASES[:1],
      'config.phases have 600000 steps in all and config.steps is 1000000; make it 600000.',
    ),
    (
      ({'sequence_length': 64},),
      "config.phases: phase 1 is {'sequence_length': 64}; give a dict with its steps",
    ),
    ((*PHASES, {'steps': 0}), "config.phases: phase 3 is {'steps': 0}; give a dict with its steps"),
    ((400, 600), 'config.phases: phase 1 is 400; give a dict with its steps'),
    (
      (PHASES[0], {'steps': 400_000, 'model.hidden_size': 512}),
      "config.phases: phase 2 sets 'model.hidden_size'; a phase may set steps, ",
    ),
    (
      (PHASES[0], {'steps': 400_000, 'batch': 64}),
      "config.phases: phase 2 sets 'batch'; a phase may set steps, sequence_length, batch_size",
    ),
    (
      ({'steps': 600_000, 'batch_size': 64.0}, PHASES[1]),
      'config.phases: batch_size of phase 1 is 64.0; it must be of type int.',
    ),
    (
      (PHASES[0], {'steps': 400_000, 'optimizer.learning_rate': True}),
      'config.phases: optimizer.learning_rate of phase 2 is True; it must be of type float.',
    ),
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
      PHASES,
      'config.batch_size is 128 and each of config.phases sets its own; change it there, and let config.batch_size be that of the first, 256.',
    ),
  ],
  ids=lambda value: value[:60] if isinstance(value, str) else '',
)
def test_phases_that_cannot_be_are_named(phases, message):
  config = configs.default_config()
  config.phases = phases
  with pytest.raises(UserError) as error:
    configs.check(config)
  assert (
    str(error.value).startswith(message)
    and '\n' not in str(error.value)
    and str(error.value).endswith('.')
  )


def test_phases_are_given_on_the_command_line_and_survive_json():
  config = parsed('--config=configs/small.py:batch=256', f'--config.phases={PHASES}')
  configs.check(config)
  again = configs.from_plain(configs.to_plain(config))
  configs.check(again)
  assert again.phases == config.phases == PHASES
  assert [phase.config.sequence_length for phase in configs.phases(again)] == [
    64,
    config.sequence_length,
  ]
  assert not configs.differences(configs.to_plain(config), configs.to_plain(again))
  again.phases = ({**PHASES[0], 'batch_size': 512}, PHASES[1])
  assert configs.differences(configs.to_plain(config), configs.to_plain(again))[0].startswith(
    'phases: '
  )


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
    configs.check(parsed(f'--config=configs/base_lamb.py:{argument}'))
  assert str(error.value).startswith(message)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'optimizer.name': 'adam'}, "config.optimizer.name is 'adam'; it is adamw or lamb."),
    ({'optimizer.decay_power': 0.0}, 'config.optimizer.decay_power is 0.0'),
    ({'sharding.smallest': -1}, 'config.sharding.smallest is -1'),
    ({'mesh.slices': -1}, 'config.mesh.slices is -1'),
    (
      {'model.attention': 'flash'},
      "config.model.attention is 'flash'; it is auto, xla, splash or cudnn.",
    ),
  ],
  ids=str,
)
def test_layouts_and_optimizers_that_cannot_be_are_named(fields, message):
  test_what_cannot_be_is_named(fields, message)
