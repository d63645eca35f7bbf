"""The result of one job of a sweep: a line of JSON, and which job a line is the result of."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax import file_access, json_reader
from electra_jax.config import Config, FinetuningConfig, PretrainingConfig, names_with, to_plain
from electra_jax.errors import UserError
from electra_jax.sweep.resolve import SweepJob
from electra_jax.training import run_folder

# A result, as a line of JSON has it: run, seed, fields, data, tasks, held-out metrics and so on.
Result: TypeAlias = dict[str, Any]
# What a result must contain to be that of a job; see `expected_result`.
Expected: TypeAlias = dict[str, Any]

# Results of a sweep, in its folder. A job that runs by itself writes a file in `results`.
RESULTS_FILE = 'results.jsonl'
_SHAPE = {
  'run': str,
  'seed': int,
  'digest': str,
  'fields': dict,
  'tasks': {str: {'fields': dict}},
  'heldout': dict | None,
  'flops': object,
}
# Fields that do not change the metrics of a run. The data is identified by its rows.
_IGNORED = (*names_with(PretrainingConfig, 'resumable'), 'name', 'seed', 'data.')
_IGNORED_IN_TASKS = (
  *(name for name in names_with(FinetuningConfig, 'resumable') if name != 'num_trials'),
  'name',
  'init',
  'init_step',
  'like',
  'data.source',
  'data.train',
  'data.dev',
  'data.test',
)


def expected_result(
  job: SweepJob, data: str, data_of_tasks: Mapping[str, int], rows: int
) -> Expected:
  """What a result must contain to be that of a job, besides its run and seed.

  Args:
    job: the job.
    data: identity of the rows.
    data_of_tasks: checksum of each task's examples.
    rows: number of held-out rows, at most; 0 for all.

  Returns:
    Fields that differ from the defaults, and the identity of the data, of the job and its tasks.
  """
  tasks = {
    name: {
      'task': c.task,
      'fields': _changed_fields(c, _IGNORED_IN_TASKS),
      'data': data_of_tasks[name],
    }
    for name, c in job.tasks.items()
  }
  fields = _changed_fields(job.config, _IGNORED)
  return {'fields': fields, 'data': data, 'rows': rows, 'tasks': tasks}


def _changed_fields(config: Config, ignored: Sequence[str]) -> dict[str, Any]:
  """Name with dots -> value of the fields that are not the defaults, except those ignored.

  A name in `ignored` that ends with a dot stands for a group of fields.
  """
  usual = _DEFAULTS[type(config)]

  def is_ignored(field: str) -> bool:
    return any(field == n or n.endswith('.') and field.startswith(n) for n in ignored)

  return {
    field: value
    for field, value in _flat_json(config).items()
    if value != usual.get(field) and not is_ignored(field)
  }


def _flat_json(config: Config) -> dict[str, Any]:
  """Name with dots -> value, as JSON has it."""
  return dict(_leaves(to_plain(config), ''))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


_DEFAULTS: dict[type[Config], dict[str, Any]] = {
  kind: _flat_json(kind()) for kind in (PretrainingConfig, FinetuningConfig)
}


def short_digest(value: object) -> str:
  """12 hexadecimal digits that identify a value as JSON has it."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read_results(path: str | os.PathLike[str]) -> list[Result]:
  """The results in a file of JSON lines. An incomplete last line is skipped.

  Raises:
    UserError: the file cannot be read or is damaged.
  """
  try:
    content = file_access.read_bytes(str(path)).decode()
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or type(error).__name__
    raise UserError(
      f'{path} cannot be read as results ({reason}); expected a file of JSON lines.'
    ) from None
  results = []
  texts = content.splitlines()
  for number, text in enumerate(texts, 1):
    result = _parsed(text)
    if result is not None:
      results.append(result)
    elif number < len(texts) or content.endswith('\n'):
      raise UserError(
        f'line {number} of {path} is not the result of a run; restore the file, or remove it from '
        '--results and config.known.'
      )
  return results


def _parsed(text: str) -> Result | None:
  """The result in a line; None where it is damaged."""
  try:
    result: Result = json_reader.parse(text, 'the line', rules=json_reader.OWN)
    json_reader.check(result, _SHAPE, 'the line')
  except json_reader.InvalidJson:
    return None
  return result


def append_result(path: str | os.PathLike[str], result: Result) -> None:
  """Adds a line to a file of results. The file is complete at any moment, also in a bucket.

  Raises:
    UserError: the file cannot be written.
  """
  file = run_folder.folder(path)
  before = file.read_bytes() if file_access.exists(file) else b''
  if before and not before.endswith(b'\n'):  # an editor may have removed it
    before += b'\n'
  file_access.write_bytes(file, before + (json.dumps(result) + '\n').encode())


def result_differences(expected: Expected, result: Result) -> list[str]:
  """Where a result is not the expected one, as 'field: its value -> the expected value'."""
  found = _field_differences(result['fields'], expected['fields'], PretrainingConfig)
  found += [
    f'{name}: {result.get(name)!r} -> {expected[name]!r}'
    for name in ('data', 'rows')
    if result.get(name) != expected[name]
  ]
  for task in sorted({*result['tasks'], *expected['tasks']}):
    theirs, ours = result['tasks'].get(task), expected['tasks'].get(task)
    if theirs is None or ours is None:
      found.append(f'{task}: {"missing" if theirs is None else "not in the sweep"}')
      continue
    fields = _field_differences(theirs['fields'], ours['fields'], FinetuningConfig)
    found += [f'{task} {difference}' for difference in fields]
    found += [
      f'{task} {name}: {theirs.get(name)!r} -> {ours[name]!r}'
      for name in ('task', 'data')
      if theirs.get(name) != ours[name]
    ]
  return found


def _field_differences(
  theirs: Mapping[str, Any], ours: Mapping[str, Any], kind: type[Config]
) -> list[str]:
  """Fields that differ, of two results that contain only fields that are not the defaults."""
  usual = _DEFAULTS[kind]
  pairs = {
    name: (theirs.get(name, usual.get(name)), ours.get(name, usual.get(name)))
    for name in sorted({*theirs, *ours})
  }
  return [f'{name}: {a!r} -> {b!r}' for name, (a, b) in pairs.items() if a != b]
