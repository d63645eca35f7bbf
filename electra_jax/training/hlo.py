"""Counts collectives, memory traffic and matrix products in the text of a compiled program (HLO).

The body of a loop counts as often as the loop runs it.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from electra_jax import json_reader

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Instructions that move no data: names for existing values, calls, and transfers to hosts.
FREE = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'replica-id',
  'opt-barrier',
  'optimization-barrier',
  'send',
  'recv',
  'add-dependency',
)
_ARRAY = re.compile(r'\b(pred|bf16|[fsuc]\d+(?:e\dm\d\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?')
# Splash kernels have JSON in a string of theirs.
_METADATA = re.compile(r'kernel_metadata=(\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\})')
_SLICING = ('dynamic-slice', 'slice', 'gather')


class Instruction(NamedTuple):
  """One line of a computation.

  Attributes:
    name: of the instruction.
    root: whether its result is the computation's.
    shape: text of the result's shape.
    opcode: such as 'fusion'.
    arguments: text between the parentheses.
    rest: text after them: attributes.
  """

  name: str
  root: bool
  shape: str
  opcode: str
  arguments: str
  rest: str

  @property
  def operands(self) -> list[str]:
    """Names of the operands."""
    found = re.findall(r'%([\w.\-]+)', self.arguments)
    if found:
      return found
    parts = re.sub(r'/\*.*?\*/', '', self.arguments).split(',')
    return [part.split()[-1] for part in parts if part.strip()]

  def attribute(self, name: str) -> str:
    """Returns the text of an attribute; '' if it is missing."""
    match = re.search(rf'\b{name}=(\{{[^{{}}]*\}}|[^,\s]+)', self.rest)
    return match[1] if match else ''


Computation = dict[str, Instruction]  # by name, in order
Computations = dict[str, Computation]


class Collective(NamedTuple):
  """One collective.

  Attributes:
    kind: one of COLLECTIVES.
    over: 'ICI' for one inside a slice, 'DCN' for one between slices.
    group: number of chips that take part; for DCN, of slices.
    payload: bytes of the whole: what is reduced, or what each chip has in the end.
    times: how often it runs per step.
    looped: whether it is in a loop.
    shape: text of the result's shape.
    origin: the operation of the traced program.
  """

  kind: str
  over: str
  group: int
  payload: int
  times: float
  looped: bool
  shape: str
  origin: str

  @property
  def sent(self) -> float:
    """Bytes that each chip sends per step, by the ring algorithm, which sends the least."""
    share = (self.group - 1) / self.group
    if self.kind == 'collective-permute':
      share = 1.0
    elif self.kind == 'all-reduce':
      share = 2 * (self.group - 1) / self.group
    return self.times * share * self.payload


#### Shapes ####


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], str]]:
  """Returns (type, dimensions, layout) of the arrays in the text of a shape."""
  return [
    (kind, tuple(map(int, filter(None, dimensions.split(',')))), layout)
    for kind, dimensions, layout in _ARRAY.findall(shape)
  ]


@functools.lru_cache(1 << 16)
def shape_bytes(shape: str, hbm: bool = False) -> int:
  """Returns the bytes of all arrays in the text of a shape.

  Args:
    shape: the text.
    hbm: whether to count only arrays in a chip's main memory. Others have S(1) or the like in
      their layout.
  """
  total = 0
  for kind, dimensions, layout in arrays(shape):
    if hbm and re.search(r'S\([1-9]', layout):
      continue
    bits = re.match(r'\D+(\d+)', kind)
    total += math.prod(dimensions) * (int(bits[1]) if bits else 8) // 8
  return total


def largest_array(text: str) -> int:
  """Returns the elements of the largest array on a chip, including temporaries of fusions."""
  return max(math.prod(dimensions) for _, dimensions, _ in arrays(text))


def _tuple_elements(shape: str) -> list[str]:
  """Returns the elements of a tuple's shape; another shape as the only element."""
  if not shape.startswith('('):
    return [shape]
  parts = []
  depth = 0
  start = 1
  for i, character in enumerate(shape[1:-1], 1):
    depth += (character in '({[') - (character in ')}]')
    if character == ',' and depth == 0:
      parts.append(shape[start:i])
      start = i + 1
  return [*parts, shape[start:-1]]


#### Parsing ####


def _closing(text: str, start: int) -> int:
  """Returns the position where the bracket that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in '({[') - (text[i] in ')}]')
    if depth == 0:
      return i
  return len(text)


def parse_program(text: str) -> tuple[Computations, str]:
  """Parses a program.

  Returns:
    The computations by name, and the name of the entry computation.
  """
  computations: Computations = {}
  entry = ''
  inside: Computation | None = None
  # The description of a kernel has several lines.
  text = _METADATA.sub(lambda match: match[0].replace('\n', ''), text)
  for line in text.splitlines():
    if not line.startswith(' '):
      match = re.match(r'(ENTRY )?%?([\w.\-]+)[ {].*\{$|(ENTRY )?%?([\w.\-]+) \{$', line)
      if match and not line.startswith('HloModule'):
        name = match[2] or match[4]
        inside = computations[name] = {}
        entry = name if match[1] or match[3] else entry
      continue
    instruction = _parse_instruction(line) if inside is not None else None
    if inside is not None and instruction:
      inside[instruction.name] = instruction
  return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
  match = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
  if not match:
    return None
  start = match.end()
  end = _closing(line, start) + 1 if line[start] == '(' else line.index(' ', start)
  call = re.match(r'\s*([\w\-]+)\(', line[end:])
  assert call, line
  opening = end + call.end() - 1
  closing = _closing(line, opening)
  return Instruction(
    name=match[2],
    root=bool(match[1]),
    shape=line[start:end],
    opcode=call[1],
    arguments=line[opening + 1 : closing],
    rest=line[closing + 1 :],
  )


#### Control flow ####


class Execution(NamedTuple):
  """How a computation is run.

  Attributes:
    times: how often per step.
    looped: whether in a loop.
    fused: whether as a part of one instruction.
  """

  times: float
  looped: bool
  fused: bool


def _called(instruction: Instruction) -> list[str]:
  """Returns the computations that an instruction runs, without the scalar ones of reductions."""
  if instruction.opcode.endswith(('-done', '-update')):
    return []  # these repeat the names of the instruction that started the work
  keys = [
    'calls',
    'body',
    'condition',
    'branch_computations',
    'true_computation',
    'false_computation',
  ]
  if instruction.opcode in ('call', 'async-start'):
    keys.append('to_apply')
  return [name for key in keys for name in re.findall(r'[\w.\-]+', instruction.attribute(key))]


def trip_count(instruction: Instruction, computations: Computations) -> int:
  """Returns how often a loop runs.

  The compiler may note it. Otherwise it is the constant that the condition compares with, or 1
  without a constant.
  """
  if known := re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', instruction.rest):
    return int(known[1])
  condition = computations.get(instruction.attribute('condition').lstrip('%'), {})
  called = [computations.get(name, {}) for i in condition.values() for name in _called(i)]
  limits = [
    int(i.arguments)
    for computation in (condition, *called)
    for i in computation.values()
    if i.opcode == 'constant' and re.match(r'[su](32|64)\[\]', i.shape) and i.arguments.isdigit()
  ]
  return max(limits, default=1)


def executions(computations: Computations, entry: str) -> dict[str, Execution]:
  """Returns how each computation that is run is run.

  Each branch of a conditional counts as an equal share of its runs.
  """
  found: dict[str, Execution] = {}

  def visit(name: str, times: float, looped: bool, fused: bool) -> None:
    before = found.get(name, Execution(0, False, fused))
    found[name] = Execution(before.times + times, before.looped or looped, fused)
    for i in computations[name].values():
      called = [n for n in _called(i) if n in computations]
      trips = trip_count(i, computations) if i.opcode == 'while' else 1
      branches = len(called) if i.opcode == 'conditional' else 1
      is_fused = fused or i.opcode == 'fusion' or i.opcode.startswith('async')
      for n in called:
        visit(n, times * trips / branches, looped or trips > 1, is_fused)

  visit(entry, 1, False, False)
  return found


#### Collectives ####


def group_size(instruction: Instruction, devices: int) -> int:
  """Returns how many devices take part in a collective together.

  Args:
    instruction: a collective, with any notation of replica_groups.
    devices: of the program, if the instruction has no groups.
  """
  rest = instruction.rest
  if pairs := re.search(r'source_target_pairs=(\{\{.*?\}\})', rest):
    return len(set(re.findall(r'\d+', pairs[1])))
  # mesh['a'=4,'b'=2] {'a'}; with devices in another order and a part of an axis:
  # mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(1)2}
  if axes := re.search(
    r"replica_groups=@?\w*\[([^\]]*)\](?:,\s*device_ids=[^{]*)?\s*\{('[^}]*)\}", rest
  ):
    sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", axes[1]))
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
    return math.prod(int(part or sizes[name]) for name, part in parts)
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest):
    return int(iota[2])
  if groups := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(groups[1].split(','))
  return devices


def collectives(text: str, slices: int = 1) -> list[Collective]:
  """Returns the collectives of a compiled program in which more than one chip takes part.

  Each counts once in every form: -start and -done, variadic, in fusions, or split into parts that
  run beside other work. A reduction of which each chip keeps a part (an all-reduce and a slice in
  one fusion) is a reduce-scatter.

  Args:
    text: of the program.
    slices: number of slices.
  """
  computations, entry = parse_program(text)
  partitions = re.search(r'num_partitions=(\d+)', text)
  devices = int(partitions[1]) if partitions else 1
  found: list[Collective] = []
  seen: set[tuple[str, str]] = set()
  for name, run in executions(computations, entry).items():
    inside = computations[name]
    for i in inside.values():
      if i.opcode.removesuffix('-start') in COLLECTIVES:
        # The start, the end and the work meanwhile have copies of a chained collective.
        chain = re.search(r'chain_id="([^"]*)"', i.rest)
        part = (i.attribute('channel_id'), chain[1] if chain else '')
        if run.fused and chain and part in seen:
          continue
        seen.add(part)
        found.append(_collective_of(i, name, inside, run, devices))
      elif i.opcode == 'send':
        found += _transfer_of(i, inside, run, slices)
  return [c for c in found if c.group > 1]


def _collective_of(
  instruction: Instruction, name: str, inside: Computation, run: Execution, devices: int
) -> Collective:
  """Returns a collective inside a slice, in the computation `name`."""
  kind = instruction.opcode.removesuffix('-start')
  group = group_size(instruction, devices)
  if kind == 'all-reduce' and run.fused:
    root = next(i for i in inside.values() if i.root)
    if root.opcode == 'dynamic-slice' or 'all-reduce-scatter' in name:
      kind = 'reduce-scatter'
  payload = sum(shape_bytes(inside[n].shape) for n in instruction.operands if n in inside)
  if kind == 'all-gather':
    payload *= group
  return Collective(
    kind, 'ICI', group, payload, run.times, run.looped, instruction.shape, _origin(instruction)
  )


def _transfer_of(
  instruction: Instruction, inside: Computation, run: Execution, slices: int
) -> list[Collective]:
  """Returns the collective between slices that a send is part of, or nothing."""
  transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
  if not transfer:
    return []
  kind = transfer[1].lower().replace('_', '-')
  kind = 'collective-permute' if kind == 'one-to-one' else kind
  shape = inside[instruction.operands[0]].shape
  payload = shape_bytes(shape) * (slices if kind == 'all-gather' else 1)
  origin = _origin(instruction)
  return [Collective(kind, 'DCN', slices, payload, run.times, run.looped, shape, origin)]


def _origin(instruction: Instruction) -> str:
  match = re.search(r'op_name="([^"]*)"', instruction.rest)
  return match[1] if match else ''


#### Memory traffic ####


class _Touched(NamedTuple):
  """What an instruction reads and writes, where this is less than its operands and results.

  Attributes:
    reads: bytes by the operand's position.
    writes: bytes of each result that is a larger array updated in place; None for others.
  """

  reads: dict[int, float]
  writes: list[int | None]


class _Fusions:
  """What fused computations touch. Fusions inside fusions are included."""

  def __init__(self, computations: Computations) -> None:
    self._computations = computations
    self._known: dict[str, _Touched] = {}

  def touched(self, name: str) -> _Touched:
    """Returns what a fused computation touches."""
    if name not in self._known:
      self._known[name] = self._compute(name)
    return self._known[name]

  def _compute(self, name: str) -> _Touched:
    inside = self._computations[name]
    aliases: dict[str, str] = {}  # of bitcasts, to what they are casts of
    uses: dict[str, list[tuple[int, Instruction]]] = collections.defaultdict(list)
    for i in inside.values():
      if i.opcode in ('bitcast', 'reshape') and i.operands:
        aliases[i.name] = aliases.get(i.operands[0], i.operands[0])
        continue
      for place, operand in enumerate(i.operands):
        uses[aliases.get(operand, operand)].append((place, i))
    reads = {
      int(i.arguments): sum(self._read(place, user) for place, user in uses[i.name])
      for i in inside.values()
      if i.opcode == 'parameter'
    }
    root = next(i for i in inside.values() if i.root)
    results = root.operands if root.opcode == 'tuple' else [root.name]
    return _Touched(
      {place: size for place, size in reads.items() if size < math.inf},
      [self._written(inside.get(aliases.get(result, result)), inside) for result in results],
    )

  def _read(self, place: int, user: Instruction) -> float:
    """Returns the bytes that a use reads of an operand; infinity for all."""
    if user.opcode == 'fusion':
      return self.touched(_called(user)[0]).reads.get(place, math.inf)
    if user.opcode == 'dynamic-update-slice' and place == 0:
      return 0
    return shape_bytes(user.shape) if user.opcode in _SLICING and place == 0 else math.inf

  def _written(self, result: Instruction | None, inside: Computation) -> int | None:
    """Returns the bytes that are written of a result that is updated in place."""
    if result is None:
      return None
    if result.opcode == 'dynamic-update-slice':
      return shape_bytes(inside[result.operands[1]].shape)
    if result.opcode == 'fusion':
      return self.touched(_called(result)[0]).writes[0]
    return None


class Traffic(NamedTuple):
  """What an instruction moves between a chip's main memory and its cores.

  Attributes:
    bytes: that it reads and writes each time.
    times: how often it runs per step.
    opcode: such as 'fusion'.
    shape: text of the result's shape.
    origin: the operation of the traced program.
  """

  bytes: float
  times: float
  opcode: str
  shape: str
  origin: str

  @property
  def per_step(self) -> float:
    """Bytes per step."""
    return self.bytes * self.times


def memory_traffic(text: str) -> list[Traffic]:
  """Returns what a program reads from and writes to a chip's main memory, the most first.

  Each instruction reads its operands and writes its result once, except for arrays in faster
  memory. Slices and updates in place count as what they touch. Padding of tiles, and what the
  runtime moves, are not included, nor are kernels that describe themselves.
  """
  computations, entry = parse_program(text)
  fusions = _Fusions(computations)
  found = []
  for name, run in executions(computations, entry).items():
    if run.fused:
      continue
    inside = computations[name]
    for i in _moving_instructions(inside):
      shapes = [inside[n].shape for n in i.operands if n in inside]
      moved = _started_traffic(i, shapes) if i.opcode.endswith('-start') else None
      moved = _traffic(i, shapes, fusions) if moved is None else moved
      found.append(Traffic(moved, run.times, i.opcode, i.shape, _origin(i)))
  return sorted(found, key=lambda traffic: -traffic.per_step)


def _moving_instructions(computation: Computation) -> Iterator[Instruction]:
  """Yields the instructions that move data."""
  for i in computation.values():
    is_free = i.opcode in FREE or i.opcode.endswith(('-done', '-update'))
    if is_free or _described(i):
      continue
    if not re.search('"(AllocateBuffer|ConcatBitcast)"', i.rest):
      yield i


def _started_traffic(instruction: Instruction, shapes: list[str]) -> float:
  """Returns the traffic of asynchronous work.

  Its shape is (result, operand, ...) for copies and (operands, result, ...) for others.

  Args:
    instruction: the start.
    shapes: of its operands.
  """
  results = _tuple_elements(instruction.shape)
  is_first = instruction.opcode == 'copy-start' or len(results) == 1
  moved = results[0 if is_first else 1]
  from_hbm = bool(shapes and shape_bytes(shapes[0], True))
  return shape_bytes(moved) * from_hbm + shape_bytes(moved, True)


def _traffic(instruction: Instruction, shapes: list[str], fusions: _Fusions) -> float:
  """Returns the traffic of one instruction.

  Args:
    instruction: any but the start of asynchronous work.
    shapes: of its operands.
    fusions: of the program.
  """
  results = _tuple_elements(instruction.shape)
  touched = _Touched({}, [None] * len(results))
  if instruction.opcode == 'fusion':
    touched = fusions.touched(_called(instruction)[0])
  elif instruction.opcode in _SLICING:
    touched = _Touched({0: shape_bytes(instruction.shape)}, touched.writes)
  elif instruction.opcode == 'dynamic-update-slice':
    touched = _Touched({0: 0}, [shape_bytes(shapes[1])])
  elif instruction.opcode == 'scatter':
    touched = _Touched({0: shape_bytes(shapes[2])}, [shape_bytes(shapes[2])])
  reads = sum(
    min(shape_bytes(shape, True), touched.reads.get(place, math.inf))
    for place, shape in enumerate(shapes)
  )
  writes = sum(
    shape_bytes(shape, True) if size is None else min(shape_bytes(shape, True), size)
    # A scatter of several operands has one entry in `writes`.
    for shape, size in zip(results, touched.writes, strict=False)
  )
  return reads + writes


#### Kernels ####


class KernelCall(NamedTuple):
  """A call of a kernel that describes itself.

  Attributes:
    metadata: its description.
    times: how often it runs per step.
  """

  metadata: dict[str, str]
  times: float


def _described(instruction: Instruction) -> dict[str, str]:
  """The description of a kernel; empty for other instructions."""
  match = _METADATA.search(instruction.rest)
  if instruction.opcode != 'custom-call' or not match:
    return {}
  found: dict[str, str] = json_reader.parse(match[1], 'the description of a kernel')
  return found if 'direction' in found else {}


def kernel_calls(text: str) -> list[KernelCall]:
  """Returns the calls of kernels that describe themselves, which `memory_traffic` leaves out."""
  computations, entry = parse_program(text)
  found = (
    KernelCall(_described(i), run.times)
    for name, run in executions(computations, entry).items()
    for i in computations[name].values()
  )
  return [call for call in found if call.metadata]


#### FLOPs ####


def product_flops(text: str) -> float:
  """Returns the FLOPs of the matrix products of a program that is not yet optimized."""
  computations, entry = parse_program(text)
  total = 0.0
  for name, run in executions(computations, entry).items():
    inside = computations[name]
    for i in inside.values():
      if i.opcode == 'dot':
        ((_, left, _),) = arrays(inside[i.operands[0]].shape)
        axes = re.findall(r'\d+', i.attribute('lhs_contracting_dims'))
        contracted = math.prod(left[int(axis)] for axis in axes)
        total += run.times * 2 * math.prod(arrays(i.shape)[0][1]) * contracted
  return total
