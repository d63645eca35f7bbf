"""Does one task of gpu.py: `python -m gpu_parts.worker TASK SETTINGS`, SETTINGS as JSON.

Answers are lines of JSON on the standard output. Whatever else is printed goes to the standard
error.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable

# Task -> the module that has it, as a function of the same name.
TASKS = {
  'probe': 'check_tasks',
  'golden': 'check_tasks',
  'attention_kernels': 'check_tasks',
  'masks': 'check_tasks',
  'prepare': 'resume_tasks',
  'train': 'resume_tasks',
  'difference': 'resume_tasks',
  'contend': 'speed_tasks',
  'largest': 'speed_tasks',
}
Answer = Callable[..., None]  # takes the fields of a message


def main() -> int:
  """Runs the task of the command line; returns the exit status."""
  task, settings = sys.argv[1], json.loads(sys.argv[2])
  channel = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def answer(**message: object) -> None:
    print(json.dumps(message), file=channel, flush=True)

  try:
    module = importlib.import_module(f'gpu_parts.{TASKS[task]}')
    getattr(module, task)(answer, **settings)
  except Exception as error:  # of any kind: it becomes a line of the table
    traceback.print_exc()
    answer(error=f'{type(error).__name__}: {error}')
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
