"""A run's folder, on this machine or in a bucket (gs://): its paths, files that are written whole, files that grow."""

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
import uuid

from etils import epath

from electra_jax.errors import UserError

UPLOAD_EVERY = 30.0  # seconds between two uploads of files that grow, at least
UPLOAD_SHARE = 0.05  # and of the time that uploads may take of a run's, at most


def is_remote(path: str | os.PathLike) -> bool:
  """Whether it is an address, scheme://..., and not a path of this machine."""
  return '://' in os.fspath(path)


def folder(workdir: str | os.PathLike) -> epath.Path:
  """The path of a run's folder. Its files are reached through it and nothing else.

  Raises UserError where it is an address of another kind than gs://, or gcsfs is not installed.
  """
  address = os.fspath(workdir)
  if re.match('gs:/(?!/)', address):  # what pathlib makes of gs://
    raise UserError(
      f'--workdir {address!r} lacks a slash; give the address as text, gs://bucket/run.'
    )
  if is_remote(address):
    if not re.match('gs://[^/]', address):
      raise UserError(
        f'--workdir {address!r} is no place for a run; give a folder, or an address such as gs://bucket/run.'
      )
    _set_up_gcs(address)
  return epath.Path(address)


def _set_up_gcs(address):
  if importlib.util.find_spec('gcsfs') is None:
    raise UserError(f'--workdir {address!r} needs gcsfs, which is not installed; pip install gcsfs')
  import fsspec

  os.environ.setdefault(
    'EPATH_USE_TF', 'false'
  )  # else epath would load TensorFlow to reach a bucket
  # TensorStore writes beside gcsfs, and other processes do: listings that are kept would be of the past.
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)
  logger = logging.getLogger('gcsfs')
  if logger.level == logging.NOTSET:  # it would log what it raises too, with a traceback
    logger.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def reaching(path: str | os.PathLike, verb: str = 'read'):
  """Whatever goes wrong on the way to a bucket becomes a UserError; errors of this machine's files stay as they are."""
  try:
    yield
  except Exception as error:  # of any kind: gcsfs, google.auth and aiohttp each have their own
    if isinstance(error, UserError) or not is_remote(path):
      raise
    raise UserError(
      f'{os.fspath(path)} cannot be {verb} ({_reason(error)}); check the address, the network, and that this '
      'account may read, write and delete in the bucket (gcloud auth application-default login).'
    ) from None


def _reason(error):
  text = ' '.join(re.sub(r'^Forbidden: \S+', '', str(error)).split()).rstrip('.')[:160]
  if isinstance(error, FileNotFoundError):
    return 'there is no such bucket or object'
  return text or type(error).__name__


def check_writable(path: epath.Path) -> None:
  """Makes the folder where it is missing, and writes and removes a file in it. Raises UserError where that fails."""
  if is_remote(path):
    with reaching(path, 'written'):
      probe = path / f'.probe-{uuid.uuid4().hex}'
      probe.write_bytes(b'')
      probe.unlink()
      from google.cloud import storage

      storage.Client().get_bucket(
        path.parts[2]
      )  # Orbax asks this, which takes the right storage.buckets.get
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.probe-{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f'--workdir {path} cannot be written ({error.strerror}); name a folder that can.'
    ) from None


def exists(path: epath.Path) -> bool:
  """Raises UserError where its bucket cannot be reached."""
  with reaching(path):
    return path.exists()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file whole or not at all. Raises UserError where its bucket cannot be written, else OSError."""
  path = epath.Path(path)
  if is_remote(path):  # an object appears when its upload is complete
    with reaching(path, 'written'):
      path.write_bytes(content)
    return
  temporary = path.with_suffix('.tmp')
  temporary.write_bytes(content)
  os.replace(temporary, path)


def write_json(path: str | os.PathLike, value) -> None:
  """Writes a JSON file whole or not at all."""
  write_bytes(path, (json.dumps(value, indent=2) + '\n').encode())


def read_json(path: str | os.PathLike) -> dict:
  """A JSON object from a file of a run. Raises UserError where it is damaged, or its bucket cannot be reached."""
  try:
    with reaching(path):
      value = json.loads(epath.Path(path).read_bytes())
  except (OSError, ValueError):
    value = None
  if not isinstance(value, dict):
    raise UserError(
      f'{os.fspath(path)} is damaged; restore it, or begin again in another --workdir.'
    )
  return value


class Spool:
  """Files of a folder that grow while they are written, by one process.

  On this machine they are written in place. A bucket takes whole objects and appends to none: there `path` is a temporary
  folder, and files that changed are copied to the bucket, one upload at a time.

  Attributes:
    path: the folder to write in, of this machine.
  """

  def __init__(self, final: epath.Path):
    self.final = final
    self.remote = is_remote(final)
    self.path = pathlib.Path(tempfile.mkdtemp(prefix='electra_jax_') if self.remote else final)
    self._sent = {}  # size and time of change of each file as it is in the bucket
    self._thread = None
    self._next = time.monotonic() + UPLOAD_EVERY
    self._failure = None

  def soon(self) -> None:
    """Begins an upload in the background where it is time for one."""
    if (
      self.remote
      and time.monotonic() >= self._next
      and not (self._thread and self._thread.is_alive())
    ):
      self._begin()

  def now(self, name: str) -> str | None:
    """Waits until one file is in the bucket, and leaves the others to the background. Returns what went wrong, if anything."""
    if self.remote:
      self._wait()
      self._upload([name])
      self._begin()
      return self._failure
    return None

  def close(self) -> None:
    """Uploads what is left. Raises UserError where that fails: the files are kept on this machine then."""
    if not self.remote or not self.path.exists():
      return
    self._wait()
    self._upload()
    if self._failure:
      raise UserError(f'{self._failure} What was to go there is in {self.path}.')
    shutil.rmtree(self.path, ignore_errors=True)

  def _begin(self):
    self._thread = threading.Thread(target=self._upload, daemon=True)
    self._thread.start()

  def _wait(self):
    if self._thread:
      self._thread.join()

  def _upload(self, names=None):
    start = time.monotonic()
    try:
      for file in (
        sorted(self.path.rglob('*')) if names is None else [self.path / name for name in names]
      ):
        if not file.is_file():
          continue
        stat = file.stat()
        version = (
          stat.st_size,
          stat.st_mtime_ns,
        )  # taken before the content: what is added meanwhile is sent next time
        if self._sent.get(file) != version:
          write_bytes(self.final / file.relative_to(self.path).as_posix(), file.read_bytes())
          self._sent[file] = version
      self._failure = None
    except UserError as error:
      self._failure = str(error)
    taken = time.monotonic() - start
    self._next = time.monotonic() + max(UPLOAD_EVERY, taken / UPLOAD_SHARE)
