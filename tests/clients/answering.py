"""What the clients of Python share: a request is read, each export is opened, answers are printed.

The scripts of this folder run in environments of their own, without this project.
"""

import json
import logging
import sys


class Heard(logging.Handler):
  """Keeps what a library logs from a level on."""

  def __init__(self, library, level=logging.WARNING):
    super().__init__(level)
    self.messages = []
    logging.getLogger(library).addHandler(self)

  def emit(self, record):
    self.messages.append(record.getMessage())


def answer(outputs, versions, library=None):
  """Answers the request of the standard input.

  Args:
    outputs: (folder of an export, request) -> what is printed for it.
    versions: of the client, in words.
    library: whose warnings are part of the answers.
  """
  request, heard, answers = json.load(sys.stdin), Heard(library), {}
  for name, folder in request['exports'].items():
    heard.messages = []
    try:
      answers[name] = outputs(folder, request) | {'warnings': heard.messages}
    except Exception as error:
      answers[name] = {'error': f'{type(error).__name__}: {error}'[:2000]}
  print(json.dumps({'versions': versions, 'answers': answers}))
