"""What was wrong with a command line or a config file, in one sentence.

Whatever a config file raises comes out of parsing the flags, beside the complaints of absl and
ml_collections about the flags themselves.
"""

import re
import traceback

from absl import flags

# Texts of Python, absl and ml_collections -> plain words.
_PLAIN = {
  'invalid literal for int() with base 10: ': 'not an integer: ',
  'could not convert string to float: ': 'not a number: ',
  "('Non-boolean argument to boolean flag', ": 'neither true nor false: (',
  "module 'config_config'": 'the file',
}


def explain(error: Exception) -> str:
  """What an error of parsing means, as a sentence without its full stop."""
  text = str(error).replace('\\n', '\n').replace('\\', '').strip()
  lines = _lines_of_config(error, text)
  if field := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text):
    return f'the config has no field {field[2]!r}; did you mean {field[1]!r}?'
  is_name = re.fullmatch(r'\W*\w+\W*', text)
  if isinstance(error, (AttributeError, KeyError)) and is_name and not lines:
    return f'the config has no field {text.strip(chr(34) + chr(39))!r}'
  if isinstance(error, OSError):
    reason = re.split(r'Errno \d+\] |failure to load: ', text)[-1].rstrip(']')
    return f'the config file cannot be read: {reason}'
  text = ' '.join((text.splitlines() or [''])[-1 if 'Traceback' in text else 0 :])
  for technical, plain in _PLAIN.items():
    text = text.replace(technical, plain)
  if isinstance(error, flags.Error) and not lines:
    return ' '.join(text.split()).rstrip('.')
  kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}: '
  place = f'line {lines[-1]}: ' if lines else ''
  return f'the config does not work ({place}{kind}{text})'


def _lines_of_config(error: Exception, text: str) -> list[int]:
  """Numbers of the lines of get_config that raised an error, the innermost last."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.name == 'get_config' and frame.lineno]
  # ml_collections prints some tracebacks into the message.
  return lines + [int(number) for number in re.findall(r'line (\d+), in get_config', text)]
