"""The folder of a run, local or in a bucket (gs://): its path, its JSON files, files that grow.

Paths in a run's folder are `epath.Path`s, which Orbax takes too. Files are read and written
through `file_access`.
"""

import glob
import importlib.util
import json
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from electra_jax import console, file_access, json_reader
from electra_jax.errors import UserError, missing_package

Json = Any  # a value of JSON

UPLOAD_EVERY = 30.0  # least seconds between two uploads of files that grow
UPLOAD_SHARE = 0.05  # largest share of a run's time that these uploads take


class LocalPath(epath.gpath.PosixGPath):  # type: ignore[misc]  # etils has no annotations
  """A local path whose own characters are never read as a pattern.

  `epath` joins the path and the pattern of `glob`, so that a folder named `[1]` matches nothing and
  `*` matches other folders. Orbax finds the parts of a checkpoint in this way.
  """

  def glob(self, pattern: str) -> Iterator['LocalPath']:
    """Yields the paths that match a pattern relative to this path."""
    for name in glob.glob(pattern, root_dir=os.fspath(self)):
      yield self / name


def folder(workdir: str | os.PathLike[str], flag: str = '--workdir') -> epath.Path:
  """The path of a run's folder.

  Args:
    workdir: its path or address.
    flag: what names it, for messages.

  Raises:
    UserError: an address is not of the kind gs://, or gcsfs is not installed; or the path has
      characters that files of a run cannot have.
  """
  address = os.fspath(workdir)
  if re.match('gs:/(?!/)', address):  # pathlib makes this of gs://
    raise UserError(f'{flag} {address!r} lacks a slash; give the address as text, gs://bucket/run.')
  if file_access.is_remote(address):
    if not re.match('gs://[^/]', address):
      raise UserError(
        f'{flag} {address!r} cannot hold a run; expected a folder, or an address such as '
        'gs://bucket/run.'
      )
    if importlib.util.find_spec('gcsfs') is None:
      raise missing_package(f'{flag} {address!r}', 'gcsfs', 'gcs')
    # Otherwise epath would import TensorFlow to reach a bucket.
    os.environ.setdefault('EPATH_USE_TF', 'false')
    file_access.set_up_google_storage()
    return epath.Path(address)
  file_access.check_name(address, flag)
  return LocalPath(address)


def check_writable(path: epath.Path, flag: str = '--workdir') -> None:
  """Creates a run's folder if it is missing, and writes and removes a file in it.

  Args:
    path: the folder.
    flag: what names it, for messages.

  Raises:
    UserError: that fails.
  """
  if file_access.is_remote(path):
    with file_access.reaching(path, 'written'):
      probe = path / f'.probe-{uuid.uuid4().hex}'
      probe.write_bytes(b'')
      probe.unlink()
      from google.cloud.storage import Client

      # Orbax does this too. It needs the right storage.buckets.get.
      Client().get_bucket(path.parts[2])
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.probe-{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f'{flag} {path} cannot be written ({error.strerror}); expected a folder that can.'
    ) from None


def write_json(path: str | os.PathLike[str], value: Json) -> None:
  """Writes a JSON file whole or not at all.

  Raises:
    file_access.Unwritable: it cannot be written.
  """
  file_access.write_bytes(path, json_content(value))


def read_json(
  path: str | os.PathLike[str], shape: json_reader.Shape = None
) -> json_reader.Document:
  """A JSON object from a file of a run. Looking up a key that it lacks raises UserError.

  Args:
    path: of the file.
    shape: what the object must be, as json_reader has it; None for any object.

  Raises:
    UserError: the file is missing or damaged, or its bucket cannot be reached.
  """
  path = os.fspath(path)
  reason = ''
  try:
    value = json_reader.read(path, shape or {}, rules=json_reader.OWN)
    return json_reader.Document(value, path)
  except file_access.Unreachable:
    raise
  except json_reader.InvalidJson as error:
    reason = f' ({error.reason})'
  except UserError:
    pass
  raise UserError(f'{path} is damaged{reason}; restore it, or start again in another --workdir.')


def read_json_if_any(
  path: str | os.PathLike[str], shape: json_reader.Shape = None
) -> json_reader.Document | None:
  """As `read_json`; None where the file is missing.

  Args:
    path: of the file.
    shape: as of `read_json`.

  Raises:
    UserError: the file is damaged, or its bucket cannot be reached.
  """
  return read_json(path, shape) if file_access.exists(path) else None


class Results:
  """Where a program writes what it found about a run: its folder, or another one.

  Results are printed, too. Where a run's folder cannot be written, as on read-only media, a warning
  is enough. A folder that was asked for must be writable, which is checked before the work.
  """

  def __init__(self, workdir: str | os.PathLike[str], output: str | None = None) -> None:
    """Checks the folder.

    Args:
      workdir: the run's folder.
      output: another folder to write to; None for the run's.

    Raises:
      UserError: `output` cannot be written.
    """
    self.folder = folder(workdir)
    self._asked_for = output is not None
    if output is not None:
      self.folder = folder(file_access.normal(output), '--output')
      check_writable(self.folder, '--output')

  def write(self, files: Mapping[str, bytes]) -> str:
    """Writes files.

    Args:
      files: name -> content.

    Returns:
      Where they are, for the console; '' if the run's folder cannot be written.

    Raises:
      UserError: a folder that was asked for cannot be written.
    """
    try:
      for name, content in files.items():
        file_access.write_bytes(self.folder / name, content)
    except file_access.Unwritable as error:
      if self._asked_for:
        raise
      reason = str(error).rstrip('.')
      console.warn(f'{reason}; the results are only printed; --output names another folder.')
      return ''
    return ', '.join(str(self.folder / name) for name in files)


def json_content(value: Json) -> bytes:
  """A value as the content of a JSON file."""
  return (json.dumps(value, indent=2) + '\n').encode()


class Spool:
  """Files of a folder that grow while one process writes them.

  Local files are written in place. An object of a bucket cannot be appended to. For a bucket `path`
  is therefore a temporary folder, and files that changed are uploaded whole, one upload at a time.

  Attributes:
    path: the local folder to write in.
  """

  def __init__(self, final: epath.Path) -> None:
    """Creates the temporary folder if `final`, the folder of the files, is in a bucket."""
    self.final = final
    self.remote = file_access.is_remote(final)
    self.path = pathlib.Path(tempfile.mkdtemp(prefix='electra_jax_') if self.remote else final)
    # Size and time of change of each file as it was uploaded.
    self._sent: dict[pathlib.Path, tuple[int, int]] = {}
    self._thread: threading.Thread | None = None
    self._next = time.monotonic() + UPLOAD_EVERY
    self._failure: str | None = None

  def soon(self) -> None:
    """Starts an upload in the background if one is due."""
    running = self._thread is not None and self._thread.is_alive()
    if self.remote and time.monotonic() >= self._next and not running:
      self._start()

  def now(self, name: str) -> str | None:
    """Uploads one file, waits for it, and uploads the others in the background.

    Returns:
      The error of the upload; None if it succeeded.
    """
    if not self.remote:
      return None
    self._wait()
    self._upload([name])
    self._start()
    return self._failure

  def close(self) -> None:
    """Uploads what has changed and removes the temporary folder.

    Raises:
      UserError: an upload fails; the temporary folder is then kept.
    """
    if not self.remote or not self.path.exists():
      return
    self._wait()
    self._upload()
    if self._failure:
      raise UserError(f'{self._failure} The files that were not uploaded are in {self.path}.')
    shutil.rmtree(self.path, ignore_errors=True)

  def _start(self) -> None:
    self._thread = threading.Thread(target=self._upload, daemon=True)
    self._thread.start()

  def _wait(self) -> None:
    if self._thread:
      self._thread.join()

  def _upload(self, names: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    files = sorted(self.path.rglob('*')) if names is None else [self.path / name for name in names]
    try:
      for file in files:
        if not file.is_file():
          continue
        # Taken before the content is read: what is added meanwhile is uploaded the next time.
        stat = file.stat()
        version = (stat.st_size, stat.st_mtime_ns)
        if self._sent.get(file) != version:
          target = self.final / file.relative_to(self.path).as_posix()
          file_access.write_bytes(target, file.read_bytes())
          self._sent[file] = version
      self._failure = None
    except UserError as error:
      self._failure = str(error)
    seconds = time.monotonic() - start
    self._next = time.monotonic() + max(UPLOAD_EVERY, seconds / UPLOAD_SHARE)
