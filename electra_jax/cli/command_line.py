"""Parses and checks a command line by the table of modes, and runs its mode.

An absl program whose config is an ml_collections file: fields of the config are flags as well,
such as --config.optimizer.learning_rate=1e-3. Importing this module imports neither JAX nor
TensorFlow, so that a mistake is reported within a second.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from electra_jax import console, input_limits, registry
from electra_jax.cli import help_page
from electra_jax.cli.modes import (
  COMMON_FLAGS,
  CONFIG_EXAMPLES,
  CONFIG_NAMES,
  DEFAULT_MODE,
  FLAGS,
  MODES,
  PATHS,
  Flag,
  Mode,
  modes_with,
)
from electra_jax.cli.parse_errors import explain
from electra_jax.config import config_kind
from electra_jax.config.config_files import config_path
from electra_jax.errors import UserError

PROGRESS = 'ELECTRA_JAX_PROGRESS'  # environment variable


def run_mode(values: flags.FlagValues, arguments: Sequence[str]) -> int:
  """Checks the flags and the config, runs the mode, and returns the exit status.

  Args:
    values: the flags, as `parse_flags` returns them.
    arguments: the command line that they were parsed from, without the program's name.

  Raises:
    UserError: for a mistake in the flags or the config, or one that the mode itself reports.
  """
  mode = MODES[values.mode]
  if values.help:
    print(help_page.help_of(mode if values['mode'].present else None))
    return 0
  console.quiet(values.quiet)
  console.log_every(_progress_interval())
  if values['input_limits'].present:
    input_limits.set_factor(values.input_limits)
  check_flags(values)
  check_config(values)
  if mode.joins:
    from electra_jax.training import devices, hosts

    devices.execute_in_main_thread()
    hosts.join_processes(values.distributed, values.coordinator, values.processes, values.process)
  function = _imported(mode.function)
  with contextlib.nullcontext() if mode.prints_only else console.lasting_output():
    result = function(**_keywords(mode, values, arguments))
  return result if isinstance(result, int) else 0


def _progress_interval() -> float:
  """Seconds between two lines of progress in a log, which the environment may set; 0 for none.

  Raises:
    UserError: it is not a number of seconds.
  """
  text = os.environ.get(PROGRESS, str(console.LOG_EVERY))
  try:
    if (interval := float(text)) >= 0:
      return interval
  except ValueError:
    pass
  raise UserError(
    f'the environment variable {PROGRESS} is {text!r}; expected the seconds between two lines of '
    'progress, or 0 for none.'
  )


def with_mode_flag(argv: Sequence[str]) -> list[str]:
  """The command line with `--mode=MODE` in place of MODE as its first argument.

  Raises:
    UserError: the first argument is not a mode, or --mode is given as well.
  """
  program, *arguments = argv
  if not arguments or arguments[0].startswith('-') or '=' in arguments[0]:
    return list(argv)
  name = arguments.pop(0)
  if name not in MODES:
    raise UserError(f'{name!r} is not a mode; expected one of {", ".join(MODES)}.')
  if any(
    argument.lstrip('-').split('=')[0] == 'mode' for argument in arguments if argument[:1] == '-'
  ):
    raise UserError(f'the mode is given as {name!r} and with --mode; remove one of the two.')
  return [program, f'--mode={name}', *arguments]


#### Parsing ####


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
  """The flags of a command line, with the config of its config file as `config`.

  Files of --plugins are executed first, then the config file.

  Args:
    argv: the program's name and its arguments.

  Raises:
    UserError: for an unknown flag or field, or a value that it cannot have, and for whatever the
      config file raises.
  """
  argv = _with_config_path(argv)
  values = _defined(argv)
  try:
    registry.load_plugins(_plugins_of(argv))
    rest = values(argv)
    # A file that could not be read, or that returns no config, raises here.
    config: Any = values['config']
    if config.present and not hasattr(values.config, 'lock'):
      raise TypeError(f'get_config of {config.config_filename} returns no ConfigDict')
    if values.config:
      _ = values.config.name  # raises where the file sets no name
  except UserError:
    raise
  except Exception as error:
    text = explain(error)
    separator = ' ' if text.endswith('?') else '; '
    raise UserError(
      f'{text}{separator}--help lists the flags and the fields of a config.'
    ) from None
  if rest[1:]:
    raise UserError(
      f'{rest[1]!r} is not a flag; flags begin with --, as in --config=configs/tiny.py.'
    )
  return values


def _with_config_path(argv: Sequence[str]) -> list[str]:
  """The command line with the name of a shipped config replaced by its path."""
  found = list(argv)
  for index, word in enumerate(argv):
    flag, equals, value = word.partition('=')
    if flag.lstrip('-') != 'config' or not flag.startswith('-'):
      continue
    if equals:
      found[index] = f'{flag}={config_path(value)}'
    elif index + 1 < len(argv):
      found[index + 1] = config_path(argv[index + 1])
  return found


def _defined(argv: list[str]) -> flags.FlagValues:
  """All flags of the program, in a set of their own."""
  values = _no_flags()
  flags.DEFINE_enum('mode', DEFAULT_MODE, list(MODES), 'What the program does.', flag_values=values)
  flags.DEFINE_bool('help', False, 'Show this.', flag_values=values, short_name='h')
  for flag in FLAGS.values():
    _define(flag, values)
  config_flags.DEFINE_config_file(
    'config',
    None,
    'The config, with arguments: small:seq=128,batch=64.',
    flag_values=values,
    sys_argv=argv,
  )
  return values


_DEFINE: dict[type, Callable[..., Any]] = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
  list: flags.DEFINE_list,
}


def _no_flags() -> flags.FlagValues:
  """An empty set of flags."""
  return flags.FlagValues()  # type: ignore[no-untyped-call]  # absl does not annotate it


def _define(flag: Flag, values: flags.FlagValues) -> None:
  define: Callable[..., Any] = _DEFINE[flag.kind]
  more: dict[str, Any] = {}
  if flag.choices:
    define = flags.DEFINE_enum
    more['enum_values'] = flag.choices
  elif flag.kind is int:
    more['lower_bound'] = flag.at_least
  define(name=flag.name, default=flag.default, help=flag.help, flag_values=values, **more)


def _plugins_of(argv: list[str]) -> list[str]:
  """The files of --plugins, which are loaded before the other flags are parsed."""
  values = _no_flags()
  values.set_gnu_getopt(True)  # --plugins may follow the value of another flag
  _define(FLAGS['plugins'], values)
  values(argv, known_only=True)
  plugins: list[str] = values.plugins
  return plugins


#### Checks ####


def check_flags(values: flags.FlagValues) -> None:
  """Checks that the flags fit the mode.

  Raises:
    UserError: for a flag that is missing, that has no effect, or that contradicts another.
  """
  mode = MODES[values.mode]
  if mode.config is not None and mode.config_required and values.config is None:
    raise UserError(
      f'no --config was given; --mode={mode.name} requires one, as in '
      f'--config={CONFIG_EXAMPLES[mode.config]}.'
    )
  for name, flag in FLAGS.items():
    if values[name].present and name not in (*COMMON_FLAGS, *mode.all_flags):
      _check_applies(flag, mode)
  if mode.config is None:
    fields = [name for name in values if name.startswith('config.')]
    if fields:
      raise UserError(
        f"--mode={mode.name} uses the config in the run's folder; remove --{fields[0]}."
      )
  required = mode.required
  if mode.workdir and values.config is None:
    required = ('workdir', *required)
  for name in required:
    if not values[name].value:
      raise UserError(
        f'--mode={mode.name} requires --{name}, as in --{name}={FLAGS[name].example}.'
      )
  _check_pairs(mode, values)


def _check_applies(flag: Flag, mode: Mode) -> None:
  """Raises UserError where a flag is none of the mode's, --workdir included."""
  if flag.name != 'workdir':
    modes = [f'--mode={name}' for name in modes_with(flag.name)]
    listed = ' and '.join(filter(None, [', '.join(modes[:-1]), modes[-1]]))
    raise UserError(
      f'--{flag.name} applies to {listed}, and the mode is {mode.name}; remove --{flag.name}.'
    )
  if not mode.workdir:
    raise UserError(
      f'--mode={mode.name} makes no run; name the folder to write with --output, or remove '
      '--workdir.'
    )


def _check_pairs(mode: Mode, values: flags.FlagValues) -> None:
  """Raises UserError where of two flags one is missing, or one too many is given."""
  for first, second in mode.together:
    if bool(values[first].value) != bool(values[second].value):
      raise UserError(
        f'--{first} and --{second} must be given together; add the other, or remove both.'
      )
  for first, second in mode.exclusive:
    if values[first].value and values[second].value:
      raise UserError(f'--{first} and --{second} exclude each other; remove one of the two.')


def check_config(values: flags.FlagValues) -> None:
  """Checks the config of a mode that takes one, before anything slow is imported.

  Raises:
    UserError: the config is for another mode, or its fields are out of range or contradict each
      other.
  """
  mode = MODES[values.mode]
  if values.config is None or mode.config is None:
    return
  given = config_kind(values.config)
  if given is not mode.config:
    raise UserError(
      f'--mode={mode.name} takes {CONFIG_NAMES[mode.config]}, such as '
      f'{CONFIG_EXAMPLES[mode.config]}; the config is {CONFIG_NAMES[given]}.'
    )
  if mode.check:
    _imported(mode.check)(values.config)


#### Running ####


def _imported(target: str) -> Callable[..., Any]:
  """The function of 'module:function'."""
  module, _, function = target.partition(':')
  found: Callable[..., Any] = getattr(importlib.import_module(module), function)
  return found


def _keywords(mode: Mode, values: flags.FlagValues, arguments: Sequence[str]) -> dict[str, Any]:
  """The keyword arguments of a mode's function."""
  given = {flag: _expanded(flag, values[flag].value) for flag in mode.flags}
  if 'arguments' in mode.parameters:
    given['arguments'] = tuple(arguments)
  called = {mode.parameters.get(name, name): value for name, value in given.items()}
  if mode.config is not None:
    called['config'] = values.config
  if mode.workdir:
    workdir = values.workdir or os.path.join('runs', values.config.name)
    called['workdir'] = _expanded('workdir', workdir)
  return called


def _expanded(flag: str, value: object) -> object:
  """The value of a flag; the `~` of a path, which shells leave in --flag=~/folder, is expanded."""
  if flag in PATHS and isinstance(value, str) and value.startswith('~'):
    return os.path.expanduser(value)
  return value
