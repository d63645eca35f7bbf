"""--mode=verify: reads all files of a run, a prepared corpus or an export, and reports damage."""

import dataclasses
import re
from collections.abc import Sequence

from electra_jax import checksums, console, file_access, json_reader
from electra_jax.data.store import token_manifest
from electra_jax.errors import UserError
from electra_jax.training import checkpoint_files, progress

# JSON files that programs read, besides those that have a checksum.
JSON_FILES = (
  'config.json',
  'resolved.json',
  'versions.json',
  'plugins.json',
  'status.json',
  'evaluation.json',
  'timeline.json',
  'blimp.json',
  'similarity.json',
  'encoder.json',
  'task.json',
  'kept.json',
  'data.json',
  'result.json',
  'results.json',
  'facts.json',
)
_CHECKPOINT = re.compile(r'(|.*/)checkpoints/[0-9]+')
_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class CheckedPart:
  """A part of a folder that is checked as a whole.

  Attributes:
    place: the part, relative to the folder.
    what: its kind.
    files: number of its files that were read.
    damage: what is wrong; nothing if it is whole.
    note: what could not be checked.
  """

  place: str
  what: str
  files: int
  damage: tuple[str, ...] = ()
  note: str = ''

  @property
  def verdict(self) -> str:
    """The result, in a few words."""
    if not self.damage:
      return self.note or 'whole'
    more = len(self.damage) - _MOST_NAMED
    named = '; '.join(self.damage[:_MOST_NAMED])
    return f'DAMAGED: {named}' + (f'; and {more} more' if more > 0 else '')


def verify(workdir: str, store: str | None = None) -> None:
  """Reads everything in a folder, whatever was checked before, and prints a table.

  Args:
    workdir: folder or address of a run of pretraining or fine-tuning, of several runs, of a
      prepared corpus or of an export.
    store: a prepared corpus to check as well.

  Raises:
    UserError: something is damaged, or the folder has no files to check.
  """
  parts = []
  for folder in filter(None, (workdir, store)):
    found = check_folder(file_access.normal(folder))
    if not found:
      raise UserError(
        f'{folder!r} has nothing to verify; expected the folder of a run, a prepared corpus, or an '
        'export.'
      )
    parts += found
  print('\n' + _table(parts) + '\n')
  damaged = [part for part in parts if part.damage]
  if damaged:
    raise UserError(
      f'{len(damaged)} of {len(parts)} parts are damaged, first {damaged[0].place!r}; restore it '
      'from a copy.'
    )
  console.say(
    'verified', f'{sum(part.files for part in parts):,} files, none is damaged', always=True
  )


def check_folder(root: str) -> list[CheckedPart]:
  """Checks all parts of a folder.

  Args:
    root: a folder or address.

  Raises:
    UserError: it cannot be read.
  """
  names = file_access.files_below(root)
  folders = sorted({name.rpartition('/')[0] for name in names} | _above(names))
  parts: list[CheckedPart] = []
  with console.progress('verifying', len(folders)) as line:
    for done, folder in enumerate(folders, 1):
      present = {name.rpartition('/')[2] for name in names if name.rpartition('/')[0] == folder}
      line(done - 1, folder or root)
      parts += _check_parts(root, folder, present)
  return parts


def _above(names: Sequence[str]) -> set[str]:
  """All folders above files."""
  found = set()
  for name in names:
    while '/' in name:
      name = name.rpartition('/')[0]
      found.add(name)
  return found


def _check_parts(root: str, folder: str, present: set[str]) -> list[CheckedPart]:
  """Checks what is directly in a folder, and what its checksums cover."""
  place = file_access.join(root, folder) if folder else root
  here = folder or '.'
  is_checkpoint = bool(_CHECKPOINT.fullmatch(folder))
  parts = []
  if checksums.SUMS in present:
    parts.append(_check_sums(place, here, 'checkpoint' if is_checkpoint else 'files'))
  elif is_checkpoint:
    parts.append(_check_unsummed(place, here))
  if token_manifest.MANIFEST_FILE in present:
    parts.append(_check_store(place, here))
  if progress.METRICS in present:
    parts.append(_check_metrics(place, here))
  if plain := sorted(present.intersection(JSON_FILES)):
    damage = (_json_damage(file_access.join(place, name), name) for name in plain)
    parts.append(CheckedPart(here, 'JSON', len(plain), tuple(filter(None, damage))))
  return parts


def _check_sums(place: str, here: str, what: str) -> CheckedPart:
  """Files that have checksums."""
  try:
    sums = checksums.read_sums(place) or {}
  except file_access.Unreachable:
    raise
  except UserError:
    return CheckedPart(here, what, 1, (f'{checksums.SUMS} is damaged',))
  damage = checksums.find_damage(place, sums)
  return CheckedPart(
    here, what, len(sums), tuple(f'{name} {text}' for name, text in damage.items())
  )


def _check_unsummed(place: str, here: str) -> CheckedPart:
  """A checkpoint of version 0.1.0. Only whether all arrays are there can be checked."""
  try:
    missing = checkpoint_files.missing_arrays(place)
  except Exception as error:  # of any kind: TensorStore reads through several libraries
    missing = [file_access.reason_text(str(error))]
  damage = tuple(f'{name} is missing' for name in missing)
  return CheckedPart(
    here, 'checkpoint', len(file_access.files_below(place)), damage, 'no checksums'
  )


def _check_store(place: str, here: str) -> CheckedPart:
  """A token store. All shards are read, also those that were found right before."""
  try:
    shards = token_manifest.read_manifest(place)['shards']
  except file_access.Unreachable:
    raise
  except UserError as error:
    return CheckedPart(here, 'token store', 1, (str(error),))
  return CheckedPart(
    here, 'token store', 1 + len(shards), tuple(token_manifest.shard_damage(place, shards))
  )


def _check_metrics(place: str, here: str) -> CheckedPart:
  content = file_access.read_bytes(file_access.join(place, progress.METRICS))
  _, damaged = progress.parse_metrics(content)
  damage = tuple(f'line {number} of {progress.METRICS}' for number in damaged)
  return CheckedPart(here, 'metrics', 1, damage)


def _json_damage(path: str, name: str) -> str:
  try:
    json_reader.read(path, rules=json_reader.OWN)
  except file_access.Unreachable:
    raise
  except UserError:
    return f'{name} is not JSON'
  return ''


def _table(parts: Sequence[CheckedPart]) -> str:
  """The parts as aligned text, one per line."""
  rows = [('part', 'kind', 'files', 'result')]
  rows += [(part.place, part.what, f'{part.files:,}', part.verdict) for part in parts]
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  return '\n'.join(
    f'  {place:<{widths[0]}}  {what:<{widths[1]}}  {files:>{widths[2]}}  {verdict}'
    for place, what, files, verdict in rows
  )
