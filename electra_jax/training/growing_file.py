"""A file that grows by whole pieces."""

import os


class GrowingFile:
  """A file that grows by whole pieces: a write that fails leaves no part of a piece behind."""

  def __init__(self, path: str) -> None:
    """Takes the path; the file is opened by the first piece."""
    self.path = path
    self._descriptor: int | None = None
    self._torn: int | None = None  # size to cut the file to, where that failed before

  def append(self, piece: bytes) -> None:
    """Appends a piece.

    Raises:
      OSError: it cannot be written; the file is as before, if it can be cut.
    """
    if self._descriptor is None:
      flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
      self._descriptor = os.open(self.path, flags, 0o644)
    if self._torn is not None:
      os.ftruncate(self._descriptor, self._torn)
      self._torn = None
    size = os.fstat(self._descriptor).st_size
    rest = memoryview(piece)
    try:
      while rest:
        rest = rest[os.write(self._descriptor, rest) :]
    except OSError:
      self._torn = size
      os.ftruncate(self._descriptor, size)
      self._torn = None
      raise

  def sync(self) -> None:
    """Waits until the file is on the disk."""
    if self._descriptor is not None:
      os.fsync(self._descriptor)

  def close(self) -> None:
    """Closes the file."""
    if self._descriptor is not None:
      os.close(self._descriptor)
      self._descriptor = None
