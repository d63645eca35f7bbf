"""A local server with the part of the Hub's interface that an upload uses."""

import base64
import http.server
import json
import re
import threading


class Hub:
  """Repositories in memory.

  Attributes:
    address: for HF_ENDPOINT.
    repositories: name -> {'private': bool, 'files': {name: content}}.
    requests: (method, path, body) of all requests.
    tokens: those that are accepted, and whether they may write.
  """

  def __init__(self):
    self.repositories, self.requests, self._objects = {}, [], {}
    self.tokens = {'hf_writer': True, 'hf_reader': False}
    hub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def log_message(self, *_):
        pass

      def _serve(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        hub.requests.append((self.command, self.path, body))
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        status, answer = hub.answer(self.command, self.path.split('?')[0], body, token)
        content = b'' if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        if status == 404:
          self.send_header('X-Error-Code', 'RepoNotFound')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command != 'HEAD':
          self.wfile.write(content)

      do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.address = f'http://127.0.0.1:{self._server.server_port}'
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()

  def answer(self, method, path, body, token):
    """Returns status and JSON of an answer."""
    if path.startswith('/objects/'):  # addresses of large files carry their own permission
      self._objects[path.rsplit('/', 1)[1]] = body
      return 200, None
    if token not in self.tokens:
      return 401, {'error': 'Invalid credentials in Authorization header'}
    if path == '/api/whoami-v2':
      return 200, {'type': 'user', 'name': 'org', 'auth': {}, 'orgs': []}
    if method == 'POST' and not self.tokens[token]:
      return 403, {'error': 'You do not have the required permissions'}
    if path == '/api/validate-yaml':
      return 200, {'errors': [], 'warnings': []}
    if path == '/api/repos/create':
      return self._create(json.loads(body))
    name = re.search(r'/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git|/|$)', path)[1]
    if name not in self.repositories:
      return 404, {'error': 'Repository not found'}
    return self._of_repository(name, path, body)

  def _create(self, asked):
    name = f'{asked.get("organization") or "org"}/{asked["name"]}'
    if name in self.repositories:
      return 409, {'error': 'You already created this model repo', 'url': f'{self.address}/{name}'}
    self.repositories[name] = {
      'private': asked.get('private') or asked.get('visibility') == 'private',
      'files': {},
    }
    return 200, {'url': f'{self.address}/{name}', 'name': name}

  def _of_repository(self, name, path, body):
    repository = self.repositories[name]
    if '/preupload/' in path:
      files = json.loads(body)['files']
      kinds = [
        {
          'path': file['path'],
          'uploadMode': 'lfs' if file['path'].endswith('.safetensors') else 'regular',
          'shouldIgnore': False,
        }
        for file in files
      ]
      return 200, {'files': kinds}
    if path.endswith('/info/lfs/objects/batch'):
      asked = json.loads(body)['objects']
      objects = [
        o | {'actions': {'upload': {'href': f'{self.address}/objects/{o["oid"]}'}}} for o in asked
      ]
      return 200, {'transfer': 'basic', 'objects': objects}
    if '/commit/' in path:
      return self._commit(name, body)
    if '/tree/' in path:
      return 200, [
        {'type': 'file', 'path': file, 'size': len(content), 'oid': '0' * 40}
        for file, content in repository['files'].items()
      ]
    siblings = [{'rfilename': file} for file in repository['files']]
    return 200, {
      'id': name,
      'private': repository['private'],
      'sha': '1' * 40,
      'siblings': siblings,
      'tags': [],
    }

  def _commit(self, name, body):
    files = self.repositories[name]['files']
    for line in map(json.loads, body.splitlines()):
      value = line['value']
      if line['key'] == 'file':
        files[value['path']] = base64.b64decode(value['content'])
      elif line['key'] == 'lfsFile':
        files[value['path']] = self._objects[value['oid']]
      elif line['key'] == 'deletedFile':
        files.pop(value['path'])
    url = f'{self.address}/{name}/commit/{"1" * 40}'
    return 200, {'success': True, 'commitUrl': url, 'commitOid': '1' * 40}
