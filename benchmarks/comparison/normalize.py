"""Brings the text of a lowered program into a form that does not depend on names."""

import hashlib
import re

SYMBOL = re.compile(r'@("[^"]*"|[\w.$-]+)')
FUNCTION = re.compile(r'  func\.func (?:public |private )?@("[^"]*"|[\w.$-]+)')
RESULT_NAME = re.compile(r'jax\.(?:result_info|arg_info) = "(?:[^"\\]|\\.)*"')
LOCATION = re.compile(r'\s*loc\((?:[^()"]|"[^"]*"|\([^()]*\))*\)')


def normalize(text: str) -> str:
  """The StableHLO text of a module with canonical function names.

  Names of the module, of functions and of results are replaced, and locations removed. A function
  is identified by its body, so identical functions become one, and functions stand in the order of
  their first call. Constants, types, attributes and the order of operations are kept.

  Args:
    text: a module as printed by `jax.stages.Lowered.as_text()`.

  Returns:
    Two programs have the same result exactly if they differ in nothing but names and locations.
  """
  head, functions, tail = split(text)
  digests: dict[str, str] = {}

  def digest(name: str) -> str:
    if name not in digests:
      digests[name] = name  # a recursive call, which StableHLO does not have, keeps its name
      body = SYMBOL.sub(lambda m: replaced(m, name), functions[name])
      digests[name] = hashlib.sha256(body.encode()).hexdigest()
    return digests[name]

  def replaced(match: re.Match, own: str) -> str:
    name = match[1]
    return match[0] if name not in functions else '@' + ('' if name == own else digest(name))

  numbers: dict[str, int] = {}
  ordered: list[str] = []

  def visit(name: str) -> None:
    if digest(name) in numbers:
      return
    numbers[digest(name)] = len(numbers)
    ordered.append(name)
    for callee in SYMBOL.findall(functions[name]):
      if callee in functions:
        visit(callee)

  def numbered(match: re.Match) -> str:
    name = match[1]
    return f'@f{numbers[digest(name)]}' if name in functions else match[0]

  visit('main')
  bodies = [SYMBOL.sub(numbered, functions[name]) for name in ordered]
  return '\n'.join([*head, *bodies, *tail]) + '\n'


def split(text: str) -> tuple[list[str], dict[str, str], list[str]]:
  """The lines before the functions, the functions by name, and the lines after them.

  Raises:
    ValueError: the text has no function `main`.
  """
  head: list[str] = []
  tail: list[str] = []
  functions: dict[str, str] = {}
  name, body = '', list[str]()
  for line in text.splitlines():
    line = LOCATION.sub('', RESULT_NAME.sub('', line)).replace(' {}', '')
    if line.startswith('#loc'):
      continue
    if match := FUNCTION.match(line):
      name, body = match[1], []
    if name:
      body.append(line.replace('func.func public ', 'func.func ').replace('private ', ''))
      if line == '  }':
        functions[name], name = '\n'.join(body), ''
    elif line.strip():
      line = re.sub(r'^module @("[^"]*"|[\w.$-]+)', 'module', line)
      (tail if functions else head).append(line)
  if 'main' not in functions:
    raise ValueError('the text of the program has no function @main.')
  return head, functions, tail
