"""The list of all config fields, for `--help` and docs/reference/config.md.

`python -m electra_jax.config.reference` prints the page; `make docs` writes it.
"""

import textwrap

from electra_jax.config.declarations import Config, Declaration, Field, fields_of, groups_of
from electra_jax.config.finetuning import FinetuningConfig
from electra_jax.config.pretraining import PretrainingConfig
from electra_jax.config.probing import ProbingConfig
from electra_jax.config.sweeps import SweepConfig

PROGRAMS: tuple[tuple[type[Config], str, str], ...] = (
  (PretrainingConfig, 'Pretraining', 'configs/small.py; modes train, prepare, plan'),
  (FinetuningConfig, 'Fine-tuning', 'configs/finetune/cola.py; modes finetune, import, timeline'),
  (ProbingConfig, 'Probes', 'configs/probe/pos.py; mode probe'),
  (SweepConfig, 'Sweeps', 'configs/sweeps/objectives.py; mode sweep'),
)
INTRODUCTION = """\
# Config fields

Every field of a config, with its default. This page is generated from the declarations in
[electra_jax/config](../../electra_jax/config); `make docs` writes it.

Set a field on the command line with `--config.NAME=VALUE`, as in
`--config.optimizer.learning_rate=3e-4`, or in a config file:
`c.optimizer.learning_rate = 3e-4`.
Fields with a short name can follow the config file after a colon:
`--config=configs/small.py:seq=128,batch=64`. Fields marked *resumable* may differ when a run is
resumed with the same command. Fields marked *per phase* may be set by the phases of
`config.phases`.
"""


def _notes(entry: Field) -> str:
  """Choices or range, short name and marks of a field, for the reference page."""
  d = entry.declaration
  parts = [d.expectation()] if d.expectation() else []
  parts += [f'short name `{d.argument}`'] if d.argument else []
  parts += ['*per phase*'] if d.per_phase else []
  parts += ['*resumable*'] if d.resumable else []
  return '; '.join(parts)


def reference_page() -> str:
  """docs/reference/config.md."""
  text = [INTRODUCTION]
  for kind, title, files in PROGRAMS:
    text.append(f'## {title}\n\nConfig files such as {files}.\n')
    groups: dict[str, Declaration | None] = {'': None, **groups_of(kind)}
    for name, declared in groups.items():
      entries = [e for e in fields_of(kind).values() if e.name.rpartition('.')[0] == name]
      if declared:
        text.append(f'### config.{name}\n\n{declared.help}\n')
      text.append('| field | default | meaning | values |\n|---|---|---|---|')
      text += [_row(entry) for entry in entries]
      text.append('')
  return '\n'.join(text)


def _row(entry: Field) -> str:
  cells = (f'`{entry.name}`', f'`{entry.default!r}`', entry.declaration.help, _notes(entry))
  return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def fields_help(kind: type[Config], width: int = 100) -> str:
  """The fields of one program's config, as `--help` lists them."""
  lines = []
  for entry in fields_of(kind).values():
    expectation = entry.declaration.expectation()
    text = f'{entry.declaration.help} (default: {entry.default!r}' + (
      f'; {expectation})' if expectation else ')'
    )
    lines.append(f'  --config.{entry.name}')
    lines += textwrap.wrap(text, width, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return '\n'.join(lines)


if __name__ == '__main__':
  print(reference_page(), end='')
