"""What the pages of pretraining runs and of fine-tuned runs have in common."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from electra_jax.pages.html_page import (
  Cell,
  Html,
  contents,
  fields,
  isolated,
  joined_html,
  picture,
  tag,
)

Figure: TypeAlias = Any  # of matplotlib, which is imported when a picture is drawn

PANEL = (4.6, 2.9)  # inches: readable at the width of a phone
_STATES = {
  'preparing': 'note',
  'running': 'note',
  'stopped': 'note',
  'finished': 'good',
  'failed': 'problem',
}


def run_header(name: str, lead: Cell, titles: Mapping[str, str], status: Mapping[str, Any]) -> Html:
  """The head of a page: the run's state and name, a sentence about it, and links to the sections.

  Args:
    name: of the run.
    lead: the sentence, without its full stop.
    titles: of the sections, by identifier.
    status: of status.json; empty where there is none.
  """
  state = status.get('state')
  chip = tag('span', state, class_=f'state {_STATES.get(state, "note")}') if state else Html()
  sentence = tag('p', lead, '.', class_='lead')
  return tag('header', chip, tag('h1', isolated(name)), sentence, contents(titles))


def figures(shown: Iterable[tuple[str, str, Figure, str]]) -> Html:
  """Pictures beside each other, as many as there is room for.

  Args:
    shown: of each the title, a sentence below it, the figure, and what it shows in words.
  """
  made = [
    tag('figure', tag('figcaption', tag('h3', title), text), picture(figure, description))
    for title, text, figure, description in shown
  ]
  return tag('div', *made, class_='figures')


def environment_rows(
  workdir: str, status: Mapping[str, Any], versions: Mapping[str, Any]
) -> list[tuple[str, Cell]]:
  """Names and values of where and with what a run was computed; what is not known is left out.

  Args:
    workdir: the run's folder.
    status: of status.json; empty where there is none.
    versions: of versions.json; empty where there is none.
  """
  rows: list[tuple[str, Cell]] = [
    ('folder', tag('code', isolated(workdir))),
    ('state', status.get('state', '')),
    ('exit reason', status.get('exit_reason') or ''),
    ('host', status.get('host', '')),
    ('started', status.get('started', '')),
    ('status written', status.get('updated', '')),
  ]
  for name, title in (('started_with', 'started with'), ('last_run_with', 'last run with')):
    found = versions.get(name) or {}
    rows.append((title, ', '.join(f'{package} {version}' for package, version in found.items())))
  rows.append(('format of the folder', versions.get('format', '')))
  return [row for row in rows if str(row[1])]


def config_tables(config: Mapping[str, Any], usual: Mapping[str, Any]) -> Html:
  """The fields of a config that differ from the defaults, and folded all of them.

  Args:
    config: as config.json has it.
    usual: the defaults, in the same form.
  """
  values, defaults = _flat(config), _flat(usual)
  changed = {name: value for name, value in values.items() if value != defaults.get(name)}
  return joined_html(
    [
      tag('p', f'{len(changed)} fields differ from the defaults:', class_='notes'),
      _config_table(changed),
      tag('details', tag('summary', f'All {len(values)} fields'), _config_table(values)),
    ]
  )


def _config_table(values: Mapping[str, Any]) -> Html:
  rows = [
    (name, tag('code', json.dumps(value, ensure_ascii=False))) for name, value in values.items()
  ]
  return fields(rows)


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Name with dots -> value."""
  found: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping) and value:
      found |= _flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found
