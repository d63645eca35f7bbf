"""The text of --help: of all modes, or of one."""

import textwrap
from collections.abc import Iterable

from electra_jax.cli.modes import (
  COMMON_FLAGS,
  CONFIG_EXAMPLES,
  CONFIG_NAMES,
  DEFAULT_MODE,
  FLAGS,
  MODES,
  Flag,
  Mode,
  modes_with,
)
from electra_jax.config import reference

WIDTH = 100


def help_of(mode: Mode | None = None) -> str:
  """The help text: usage, flags and config fields.

  Args:
    mode: the mode whose flags and fields are listed; None for the list of modes, the flags of all
      of them and the fields of the default mode.
  """
  chosen = mode or MODES[DEFAULT_MODE]
  parts = [_usage(mode)]
  if mode is None:
    rows = (f'  {name:<10} {entry.help}' for name, entry in MODES.items())
    parts.append('Modes (MODE --help lists the flags of one):\n\n' + '\n'.join(rows))
    names: Iterable[str] = FLAGS
  else:
    names = [*(['workdir'] if mode.workdir else []), *COMMON_FLAGS, *mode.all_flags]
  parts.append('Flags:\n\n' + _config_flag(mode) + '\n'.join(_flag(FLAGS[n], mode) for n in names))
  if chosen.config is not None:
    parts.append(
      f'Fields of {CONFIG_NAMES[chosen.config]}, such as {CONFIG_EXAMPLES[chosen.config]}:\n\n'
      + reference.fields_help(chosen.config)
    )
  return '\n\n'.join(parts)


def _usage(mode: Mode | None) -> str:
  if mode is None:
    form = 'MODE [--config=FILE] [--workdir=DIR] [--FLAG=VALUE ...] [--config.FIELD=VALUE ...]'
    text = 'ELECTRA pretraining in JAX and Flax.'
  else:
    given = [f'--{name}={FLAGS[name].example}' for name in mode.required]
    if mode.config is not None and mode.config_required:
      given.insert(0, f'--config={CONFIG_EXAMPLES[mode.config]}')
    if mode.config is None and mode.workdir:
      given.insert(0, '--workdir=DIR')
    form = ' '.join([mode.name, *given, '[--FLAG=VALUE ...]'])
    text = mode.help
  return f'{text}\n\nUsage: electra-jax {form}\n   or: python -m electra_jax.main --mode={form}'


def _config_flag(mode: Mode | None) -> str:
  if mode is not None and mode.config is None:
    return ''
  text = (
    'A config file or the name of a shipped config, with arguments after a colon: mine.py, '
    'small:seq=128,batch=64. Its fields are flags as well: --config.FIELD=VALUE.'
  )
  return _entry('config', text) + '\n'


def _flag(flag: Flag, mode: Mode | None) -> str:
  notes = []
  if flag.choices:
    notes.append(f'one of {", ".join(flag.choices)}')
  if flag.default not in (None, []):
    notes.append(f'default: {flag.default}')
  if mode is not None and flag.name in mode.required:
    notes.append('required')
  modes = modes_with(flag.name)
  if mode is None and len(modes) < len(MODES):
    notes.append(f'modes: {", ".join(modes)}')
  return _entry(flag.name, flag.help + (f' ({"; ".join(notes)})' if notes else ''))


def _entry(name: str, text: str) -> str:
  wrapped = textwrap.wrap(text, WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return '\n'.join([f'  --{name}', *wrapped])
