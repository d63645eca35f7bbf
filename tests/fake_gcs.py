"""A fake of Google Cloud Storage on loopback: buckets in memory behind the JSON API.

gcsfs, google-cloud-storage and TensorStore use this API. Objects have generations, and appear when
their upload is complete, as in the real one. Requests fail as `Buckets.faults` says. Credentials,
batches, versions and folders are not implemented.
"""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import http.server
import itertools
import json
import re
import threading
import time
import urllib.parse
from typing import NamedTuple


class Object(NamedTuple):
  content: bytes
  generation: int
  updated: str


class Failure(Exception):
  """An error response: HTTP status and message."""


@dataclasses.dataclass
class Fault:
  """A failure of some requests, those of a method for objects whose name matches a pattern.

  Attributes:
    kind: an HTTP status; 'silence' (no answer, as long as the server runs), 'reset' (the connection
      is closed without one), 'cut' (it is closed after half of the content), 'short' (the content
      lacks its end), 'flipped' (a bit of the content is changed; what is written, or what is read).
    names: the pattern.
    method: GET, POST, PUT or DELETE.
    times: number of requests that fail; the others succeed.
    after: number of requests that succeed before.
  """

  kind: int | str
  names: str = '.*'
  method: str = 'GET'
  times: int = 1
  after: int = 0


class Buckets:
  """The content of a server, shared with the test. All access to `objects` is under `lock`.

  Attributes:
    url: of the server.
    objects: (bucket, name) -> Object.
    names: buckets that exist.
    forbidden: buckets whose requests get the status 403.
    hold: a pattern of names; writing such objects waits until `hold` is None or the server ends.
    waiting: names of the objects that wait.
    requests: (method, path) of all requests so far.
    faults: failures to come.
  """

  def __init__(self, *names):
    self.names = set(names)
    self.objects = {}
    self.lock = threading.RLock()
    self.forbidden = set()
    self.hold = None
    self.waiting = set()
    self.requests = []
    self.faults = []
    self.ended = threading.Event()
    self.uploads = {}
    self._count = itertools.count(1)
    self.url = ''

  def environment(self) -> dict[str, str]:
    """Environment variables that direct programs to the server."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks over gRPC what kind of bucket it is
      'GCE_METADATA_ROOT': self.url.removeprefix('http://'),
      'GCE_METADATA_HOST': self.url.removeprefix('http://'),
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'nobody',
      'NO_GCE_CHECK': 'true',
      'GOOGLE_CLOUD_PROJECT': 'nobody',
    }

  def fault(self, method, name) -> int | str | None:
    """The kind of failure of a request, if it is to fail."""
    with self.lock:
      for fault in self.faults:
        if fault.method == method and fault.times and name and re.search(fault.names, name):
          if fault.after:
            fault.after -= 1
            return None
          fault.times -= 1
          return fault.kind
    return None

  def put(self, bucket, name, content: bytes, conditions=None) -> dict:
    if self.hold and re.search(self.hold, name):
      self.waiting.add(name)
      while self.hold:
        time.sleep(0.01)
      raise Failure(503, 'We encountered an internal error.')
    with self.lock:
      if bucket not in self.names:
        raise Failure(404, 'The specified bucket does not exist.')
      self._meet(bucket, name, conditions or {})
      now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
      self.objects[bucket, name] = Object(content, 1_000 + next(self._count), now)
      return self.facts(bucket, name)

  def get(self, bucket, name) -> Object:
    with self.lock:
      if (bucket, name) not in self.objects:
        raise Failure(404, f'No such object: {bucket}/{name}')
      return self.objects[bucket, name]

  def _meet(self, bucket, name, conditions):
    found = self.objects.get((bucket, name))
    generation = found.generation if found else 0
    if 'ifGenerationMatch' in conditions and int(conditions['ifGenerationMatch']) != generation:
      raise Failure(412, 'At least one of the pre-conditions you specified did not hold.')

  def delete(self, bucket, name, conditions=None):
    with self.lock:
      self.get(bucket, name)
      self._meet(bucket, name, conditions or {})
      del self.objects[bucket, name]

  def facts(self, bucket, name) -> dict:
    found = self.get(bucket, name)
    return {
      'kind': 'storage#object',
      'id': f'{bucket}/{name}/{found.generation}',
      'name': name,
      'bucket': bucket,
      'generation': str(found.generation),
      'metageneration': '1',
      'size': str(len(found.content)),
      'contentType': 'application/octet-stream',
      'etag': f'e{found.generation}',
      'storageClass': 'STANDARD',
      'md5Hash': base64.b64encode(hashlib.md5(found.content).digest()).decode(),
      'timeCreated': found.updated,
      'updated': found.updated,
      'mediaLink': f'{self.url}/download/storage/v1/b/{bucket}/o/'
      + urllib.parse.quote(name, safe=''),
    }

  def list(
    self,
    bucket,
    *,
    prefix='',
    delimiter='',
    startOffset='',
    endOffset='',
    maxResults='1000',
    pageToken='',
    **_,
  ) -> dict:
    with self.lock:
      if bucket not in self.names:
        raise Failure(404, 'The specified bucket does not exist.')
      names = sorted(
        name
        for owner, name in self.objects
        if owner == bucket
        and name.startswith(prefix)
        and name >= startOffset
        and (not endOffset or name < endOffset)
      )
      entries = []
      for name in names:
        head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, '', '')
        entries.append(
          (prefix + head + delimiter, None) if found else (name, self.facts(bucket, name))
        )
      entries = sorted(dict(entries).items())
    rest = [entry for entry in entries if entry[0] > pageToken]
    page = rest[: int(maxResults)]
    answer = {
      'kind': 'storage#objects',
      'items': [facts for _, facts in page if facts],
      'prefixes': [name for name, facts in page if not facts],
    }
    return answer | ({'nextPageToken': page[-1][0]} if len(rest) > len(page) else {})

  def files(self, bucket, prefix='') -> dict[str, bytes]:
    """Contents by name, without the prefix."""
    with self.lock:
      return {
        name.removeprefix(prefix): found.content
        for (owner, name), found in self.objects.items()
        if owner == bucket and name.startswith(prefix)
      }


OBJECT = (
  r'/(?P<way>upload/|download/|)storage/v1/b/(?P<bucket>[^/]+)(?P<list>/o)?'
  r'(?:/o/(?P<name>[^/]+)(?:/rewriteTo/b/(?P<to>[^/]+)/o/(?P<target>[^/]+))?)?/?'
)


def _flipped(content: bytes) -> bytes:
  return content[:-1] + bytes([content[-1] ^ 1])


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  buckets: Buckets

  def _serve(self):
    b = self.buckets
    body = self._body()
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    b.requests.append((self.command, url.path))
    try:
      match = re.fullmatch(OBJECT, url.path)
      self.content_fault = None
      self._fail(match, query, body)
      if match and match['bucket'] in b.forbidden:
        raise Failure(
          403,
          'nobody@example.com does not have storage.objects access to the Google Cloud Storage '
          'object.',
        )
      if not match:
        raise Failure(404, 'Not Found')
      parts = {
        name: urllib.parse.unquote(part)
        for name, part in match.groupdict().items()
        if part is not None
      }
      self._answer(*self._do(parts, query, body))
    except Failure as failure:
      status, message = failure.args
      self._answer(
        status,
        {
          'error': {
            'code': status,
            'message': message,
            'errors': [{'message': message, 'domain': 'global'}],
          }
        },
      )

  def _fail(self, match, query, body):
    """Does what a fault asks for, at once or when the content is sent."""
    if not match:
      return
    name = urllib.parse.unquote(match['name'] or query.get('name', ''))
    if match['way'] == 'upload/' and not name:
      found = re.search(rb'"name": *"([^"]*)"', body)
      name = found[1].decode() if found else ''
    if self.command == 'GET' and query.get('alt') != 'media' and match['way'] != 'download/':
      return  # facts of an object
    kind = self.buckets.fault(self.command, name)
    if isinstance(kind, int):
      raise Failure(kind, 'We encountered an internal error.')
    if kind == 'silence':
      self.buckets.ended.wait(60)
    if kind in ('silence', 'reset'):
      self.close_connection = True
      raise ConnectionAbortedError
    self.content_fault = kind

  do_GET = do_POST = do_PUT = do_DELETE = _serve

  def _do(self, parts, query, body):
    """Status, JSON or bytes, and headers of a response."""
    b, bucket, name = self.buckets, parts['bucket'], parts.get('name')
    if self.command == 'GET' and name:
      return self._get(b.get(bucket, name), parts, query)
    if self.command == 'GET' and 'list' in parts:
      return 200, b.list(bucket, **query)
    if self.command == 'GET':
      if bucket not in b.names:
        raise Failure(404, 'The specified bucket does not exist.')
      return 200, {
        'kind': 'storage#bucket',
        'name': bucket,
        'id': bucket,
        'location': 'HERE',
        'storageClass': 'STANDARD',
      }
    if self.command == 'DELETE' and name:
      b.delete(bucket, name, query)
      return 204, b''
    if 'target' in parts:
      facts = b.put(parts['to'], parts['target'], b.get(bucket, name).content)
      return 200, {
        'kind': 'storage#rewriteResponse',
        'done': True,
        'resource': facts,
        'objectSize': facts['size'],
        'totalBytesRewritten': facts['size'],
      }
    if parts['way'] == 'upload/':
      return self._upload(bucket, query, body)
    raise Failure(400, 'Bad Request')

  def _get(self, found, parts, query):
    if query.get('alt') != 'media' and parts['way'] != 'download/':
      return 200, self.buckets.facts(parts['bucket'], parts['name'])
    if query.get('ifGenerationNotMatch') == str(found.generation):
      return 304, b''
    if 'ifGenerationMatch' in query and query['ifGenerationMatch'] != str(found.generation):
      raise Failure(412, 'At least one of the pre-conditions you specified did not hold.')
    size = len(found.content)
    headers = {
      'x-goog-generation': str(found.generation),
      'x-goog-stored-content-length': str(size),
      'ETag': f'"e{found.generation}"',
    }
    if not (requested := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))):
      return 200, found.content, headers
    first, last = requested.groups()
    start = int(first) if first else size - int(last)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size:
      raise Failure(416, 'The requested range cannot be satisfied.')
    return (
      206,
      found.content[start:end],
      headers | {'Content-Range': f'bytes {start}-{end - 1}/{size}'},
    )

  def _upload(self, bucket, query, body):
    b = self.buckets
    flips = self.content_fault == 'flipped'
    if 'upload_id' in query:
      name, received = b.uploads[query['upload_id']]
      received += body
      if self.headers.get('Content-Range', '*/*').endswith('/*'):
        return 308, b'', {'Range': f'bytes=0-{len(received) - 1}'} if received else {}
      return 200, b.put(bucket, name, bytes(received), query)
    if query['uploadType'] == 'resumable':
      key = f'u{len(b.uploads)}'
      b.uploads[key] = query.get('name') or json.loads(body)['name'], bytearray()
      return (
        200,
        {},
        {
          'Location': f'{b.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={key}'
        },
      )
    if query['uploadType'] == 'media':
      return 200, b.put(bucket, query['name'], body, query)
    boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1].strip("'").encode()
    facts, content = (
      re.split(b'\r?\n\r?\n', part, maxsplit=1)[1] for part in body.split(b'--' + boundary)[1:3]
    )
    content = content.removesuffix(b'\n').removesuffix(b'\r')
    content = _flipped(content) if flips else content
    return 200, b.put(bucket, json.loads(facts)['name'], content, query)

  def _body(self):
    if self.headers.get('Transfer-Encoding') != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    body = b''
    while size := int(self.rfile.readline().split(b';')[0], 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def _answer(self, status, content, headers=None):
    kind = 'application/octet-stream' if isinstance(content, bytes) else 'application/json'
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    cut = False
    if self.content_fault and self.command == 'GET' and status in (200, 206) and content:
      cut = self.content_fault == 'cut'
      if self.content_fault == 'short':
        content = content[:-1]
      elif self.content_fault == 'flipped':
        content = _flipped(content)
    self.send_response(status)
    for name, value in {'Content-Type': kind, **(headers or {})}.items():
      self.send_header(name, value)
    if status not in (204, 304):
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(content[: len(content) // 2] if cut else content)
    if cut:
      self.close_connection = True

  def log_message(self, *_):
    pass


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 64

  def handle_error(self, request, client_address):  # a client that was killed
    pass


@contextlib.contextmanager
def serving(*names: str):
  """Yields Buckets of these names, served on loopback."""
  buckets = Buckets(*names)
  server = _Server(('127.0.0.1', 0), type('Handler', (Handler,), {'buckets': buckets}))
  buckets.url = f'http://127.0.0.1:{server.server_port}'
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield buckets
  finally:
    buckets.hold = None
    buckets.ended.set()
    server.shutdown()
    server.server_close()
