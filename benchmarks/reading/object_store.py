"""A slow object store: a server of the files of a folder with latency and limited bandwidth.

  python benchmarks/reading/object_store.py FOLDER LATENCY STREAM TOTAL

Each answer begins after LATENCY seconds. A connection gets STREAM bytes per second, and all of them
together TOTAL. It answers GET, with ranges, and HEAD. It prints its port.
"""

import contextlib
import dataclasses
import http.server
import pathlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

PIECE = 1 << 18  # bytes that are sent at a time


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a client gets.

  Attributes:
    latency: seconds until an answer begins.
    stream: bytes per second of one connection.
    total: bytes per second of all connections.
  """

  latency: float
  stream: float
  total: float


# Of a virtual machine beside a bucket in its region, by the guides of the large providers: tens of
# milliseconds to the first byte, and some tens of MB/s per connection.
TYPICAL = Limits(0.03, 50e6, 200e6)


class _Link:
  """The link that all connections share: when the next piece may be sent."""

  def __init__(self, rate: float) -> None:
    self._rate = rate
    self._free = 0.0
    self._lock = threading.Lock()

  def take(self, count: int) -> float:
    """When `count` more bytes have passed, of time.monotonic."""
    with self._lock:
      self._free = max(self._free, time.monotonic()) + count / self._rate
      return self._free


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  folder: pathlib.Path
  limits: Limits
  link: _Link

  def do_GET(self) -> None:
    self._answer(body=True)

  def do_HEAD(self) -> None:
    self._answer(body=False)

  def _answer(self, body: bool) -> None:
    time.sleep(self.limits.latency)
    path = self.folder / self.path.lstrip('/')
    if not path.is_file():
      self.send_response(404)
      self.send_header('Content-Length', '0')
      self.end_headers()
      return
    size = path.stat().st_size
    wanted = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
    first = int(wanted[1]) if wanted else 0
    last = min(int(wanted[2]), size - 1) if wanted and wanted[2] else size - 1
    self.send_response(206 if wanted else 200)
    if wanted:
      self.send_header('Content-Range', f'bytes {first}-{last}/{size}')
    self.send_header('Accept-Ranges', 'bytes')
    self.send_header('ETag', f'"{path.stat().st_mtime_ns}"')
    self.send_header('Content-Length', str(last - first + 1))
    self.end_headers()
    if body:
      self._send(path, first, last + 1)

  def _send(self, path: pathlib.Path, first: int, end: int) -> None:
    start = time.monotonic()
    with open(path, 'rb') as file:
      file.seek(first)
      for place in range(first, end, PIECE):
        piece = file.read(min(PIECE, end - place))
        sent = place + len(piece) - first
        due = max(self.link.take(len(piece)), start + sent / self.limits.stream)
        time.sleep(max(0.0, due - time.monotonic()))
        self.wfile.write(piece)

  def log_message(self, format: str, *args: object) -> None:
    """Prints nothing."""


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 256

  def handle_error(self, request: object, client_address: object) -> None:
    """A client that ended closes its connections."""


def serve(folder: pathlib.Path, limits: Limits) -> None:
  """Serves a folder until the process ends; prints the port."""
  content = {'folder': folder, 'limits': limits, 'link': _Link(limits.total)}
  server = _Server(('127.0.0.1', 0), type('Handler', (_Handler,), content))
  print(server.server_port, flush=True)
  server.serve_forever()


@contextlib.contextmanager
def serving(folder: pathlib.Path, limits: Limits) -> Iterator[str]:
  """Yields the address of a server of a folder, in a process of its own."""
  values = map(str, dataclasses.astuple(limits))
  command = [sys.executable, __file__, str(folder), *values]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
      assert server.stdout is not None
      yield f'http://127.0.0.1:{server.stdout.readline().strip()}'
    finally:
      server.kill()


if __name__ == '__main__':
  serve(pathlib.Path(sys.argv[1]), Limits(*map(float, sys.argv[2:])))
