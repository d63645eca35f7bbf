"""A headless Chromium that opens a file, driven through the pipe of the DevTools protocol."""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import NamedTuple

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
_FLAGS = (
  '--headless',
  '--no-sandbox',  # as root
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--remote-debugging-pipe',
)


def find_browser():
  """The browser's program: that of ELECTRA_JAX_BROWSER, or one on the path; None without one."""
  return os.environ.get('ELECTRA_JAX_BROWSER') or next(filter(None, map(shutil.which, NAMES)), None)


class Opened(NamedTuple):
  """What a browser has seen of a page: messages, and requests for anything but the file itself.

  Requests that the page's policy forbids are messages.
  """

  messages: list[str]
  requests: list[str]
  overflow: int  # pixels by which the page is wider than the window
  result: object  # of the script


class Browser:
  """A running browser. Answers and events are JSON objects that end with a zero byte."""

  def __init__(self, program, folder):
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()
    # The protocol uses file descriptors 3 and 4.
    command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    self._process = subprocess.Popen(
      ['bash', '-c', command, program, *_FLAGS, f'--user-data-dir={folder}', 'about:blank'],
      pass_fds=(to_browser, from_browser),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._rest = b''
    self._last = 0
    self.events = []
    target = self.call('Target.createTarget', {'url': 'about:blank'}, session=False)
    attached = self.call(
      'Target.attachToTarget', {'targetId': target['targetId'], 'flatten': True}, session=False
    )
    self.session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def close(self):
    """Ends the browser."""
    with contextlib.suppress(OSError):
      self._send({'id': 0, 'method': 'Browser.close'})
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._write)
    os.close(self._read)

  def call(self, method, parameters=None, session=True):
    """The result of a method of the protocol."""
    self._last += 1
    message = {'id': self._last, 'method': method, 'params': parameters or {}}
    self._send(message | ({'sessionId': self.session} if session else {}))
    while True:
      answer = self._receive()
      if answer.get('id') == self._last:
        assert 'error' not in answer, answer
        return answer['result']

  def wait_for(self, event):
    """Waits until an event has come."""
    while not any(one['method'] == event for one in self.events):
      self._receive()

  def open(self, path, width=1280, dark=False, script='null', picture=None):
    """Opens a file in a window of this width, in light or dark, and runs a script in it.

    Args:
      path: of the file.
      width: of the window; below 600 it is that of a phone.
      dark: whether the user prefers dark pages.
      script: a JavaScript expression; its value is the result.
      picture: where to write a PNG of the whole page; None for none.
    """
    media = [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]
    self.call('Emulation.setEmulatedMedia', {'features': media})
    window = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
    self.call('Emulation.setDeviceMetricsOverride', window)
    self.events.clear()
    address = pathlib.Path(path).as_uri()
    self.call('Page.navigate', {'url': address})
    self.wait_for('Page.loadEventFired')
    result = self._value(script)
    overflow = self._value('document.documentElement.scrollWidth - window.innerWidth')
    overflow = max(overflow, self._value('window.innerWidth') - width)
    if picture:
      options = {'captureBeyondViewport': True}
      image = self.call('Page.captureScreenshot', options)['data']
      pathlib.Path(picture).write_bytes(base64.b64decode(image))
    messages, requests = [], {}
    for event in self.events:
      parameters = event['params']
      if event['method'] == 'Log.entryAdded':
        messages.append(parameters['entry']['text'])
      elif event['method'] in ('Runtime.consoleAPICalled', 'Runtime.exceptionThrown'):
        messages.append(json.dumps(parameters))
      elif event['method'] == 'Network.requestWillBeSent':
        url = parameters['request']['url']
        if url != address and not url.startswith('data:'):
          requests[parameters['requestId']] = url
      elif parameters.get('blockedReason') == 'csp':  # of Network.loadingFailed
        requests.pop(parameters['requestId'], None)
    return Opened(messages, list(requests.values()), overflow, result)

  def _value(self, expression):
    answer = self.call('Runtime.evaluate', {'expression': expression, 'returnByValue': True})
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def _send(self, message):
    os.write(self._write, json.dumps(message).encode() + b'\0')

  def _receive(self, timeout=60.0):
    """The next message; events are kept."""
    end = time.monotonic() + timeout
    while b'\0' not in self._rest:
      ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
      assert ready, 'the browser does not answer'
      more = os.read(self._read, 1 << 16)
      assert more, 'the browser has ended'
      self._rest += more
    text, _, self._rest = self._rest.partition(b'\0')
    message = json.loads(text)
    if 'method' in message:
      self.events.append(message)
    return message
