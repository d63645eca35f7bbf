"""What a compiled program does, read from its text: collectives, memory traffic, products. Loops count as often as they run."""

import collections
import functools
import math
import re
from typing import NamedTuple

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# What moves no data itself: names for what is there, calls, and transfers to hosts.
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


class Instruction(NamedTuple):
  name: str
  root: bool
  shape: str
  opcode: str
  arguments: str  # as they stand between the brackets
  rest: str  # attributes

  @property
  def operands(self) -> list[str]:
    """Names of the operands."""
    found = re.findall(r'%([\w.\-]+)', self.arguments)
    return found or [
      part.split()[-1]
      for part in re.sub(r'/\*.*?\*/', '', self.arguments).split(',')
      if part.strip()
    ]

  def attribute(self, name: str) -> str:
    match = re.search(rf'\b{name}=(\{{[^{{}}]*\}}|[^,\s]+)', self.rest)
    return match[1] if match else ''


class Collective(NamedTuple):
  """One collective of the text."""

  kind: str  # of COLLECTIVES
  over: str  # 'ICI', inside a slice, or 'DCN', between slices
  group: int  # chips (of DCN: slices) that take part
  payload: int  # bytes of the whole: what is summed, or what each has in the end
  times: float  # a step
  looped: bool  # stands in a loop
  shape: str  # of its result
  origin: str  # the operation of the program it comes from

  @property
  def sent(self) -> float:
    """Bytes that each chip sends in a step, at least: what a ring takes."""
    share = {'collective-permute': 1, 'all-reduce': 2 * (self.group - 1) / self.group}.get(
      self.kind, (self.group - 1) / self.group
    )
    return self.times * share * self.payload


def arrays(shape: str) -> list[tuple[str, tuple, str]]:
  """(type, dimensions, layout) of the arrays in a shape's text."""
  return [
    (kind, tuple(map(int, filter(None, dimensions.split(',')))), layout)
    for kind, dimensions, layout in _ARRAY.findall(shape)
  ]


@functools.lru_cache(1 << 16)
def size(shape: str, hbm: bool = False) -> int:
  """Bytes of all arrays in a shape's text; with `hbm` of those in a chip's main memory alone, which are without an S(1) or the like."""
  total = 0
  for kind, dimensions, layout in arrays(shape):
    if not (hbm and re.search(r'S\([1-9]', layout)):
      total += (
        math.prod(dimensions) * (8 if kind == 'pred' else int(re.match(r'\D+(\d+)', kind)[1])) // 8
      )
  return total


def largest_array(text: str) -> int:
  """Elements of the largest array on a chip, temporaries within fusions included."""
  return max(math.prod(dimensions) for _, dimensions, _ in arrays(text))


def _closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] in '({[') - (text[i] in ')}]')
    if depth == 0:
      return i
  return len(text)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Computations by name, each its instructions by name in their order; and the name of the one that is run."""
  computations, entry, inside = {}, '', None
  for line in text.splitlines():
    if not line.startswith(' '):
      match = re.match(r'(ENTRY )?%?([\w.\-]+)[ {].*\{$|(ENTRY )?%?([\w.\-]+) \{$', line)
      if match and not line.startswith('HloModule'):
        name = match[2] or match[4]
        inside = computations[name] = {}
        entry = name if match[1] or match[3] else entry
      continue
    match = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
    if not match or inside is None:
      continue
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == '(' else line.index(' ', start)
    call = re.match(r'\s*([\w\-]+)\(', line[end:])
    opening = end + call.end() - 1
    closing = _closing(line, opening)
    inside[match[2]] = Instruction(
      match[2],
      bool(match[1]),
      line[start:end],
      call[1],
      line[opening + 1 : closing],
      line[closing + 1 :],
    )
  return computations, entry


def _called(instruction) -> list[str]:
  """Names of the computations that an instruction runs; what reductions apply to two numbers is not one."""
  if instruction.opcode.endswith(
    ('-done', '-update')
  ):  # these name again what their first part runs
    return []
  keys = (
    'calls',
    'body',
    'condition',
    'branch_computations',
    'true_computation',
    'false_computation',
  )
  keys += ('to_apply',) if instruction.opcode in ('call', 'async-start') else ()
  return [name for key in keys for name in re.findall(r'[\w.\-]+', instruction.attribute(key))]


def trip_count(instruction, computations) -> int:
  """How often a loop runs: as the compiler notes it, or the limit that its condition compares with; 1 where neither says."""
  if known := re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', instruction.rest):
    return int(known[1])
  condition = computations.get(instruction.attribute('condition').lstrip('%'), {})
  where = [condition] + [
    computations.get(name, {}) for i in condition.values() for name in _called(i)
  ]
  return max(
    (
      int(i.arguments)
      for found in where
      for i in found.values()
      if i.opcode == 'constant' and re.match(r'[su](32|64)\[\]', i.shape) and i.arguments.isdigit()
    ),
    default=1,
  )


class Execution(NamedTuple):
  times: float  # a step
  looped: bool  # in a loop
  fused: bool  # as part of one instruction


def executions(computations, entry) -> dict[str, Execution]:
  """How each computation that is run is run. The branches of a conditional share its runs evenly."""
  found = {}

  def visit(name, times, looped, fused):
    before = found.get(name, Execution(0, False, fused))
    found[name] = Execution(before.times + times, before.looped or looped, fused)
    for i in computations[name].values():
      called = [n for n in _called(i) if n in computations]
      trips = trip_count(i, computations) if i.opcode == 'while' else 1
      for n in called:
        visit(
          n,
          times * trips / (len(called) if i.opcode == 'conditional' else 1),
          looped or trips > 1,
          fused or i.opcode == 'fusion' or i.opcode.startswith('async'),
        )

  visit(entry, 1, False, False)
  return found


def group_size(instruction, devices: int) -> int:
  """Devices that take part in a collective together, from any of the ways to write replica_groups."""
  rest = instruction.rest
  if pairs := re.search(r'source_target_pairs=(\{\{.*?\}\})', rest):
    return len(set(re.findall(r'\d+', pairs[1])))
  # mesh['a'=4,'b'=2] {'a'}, devices in another order and a part of an axis: mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a':(1)2}
  if axes := re.search(
    r"replica_groups=@?\w*\[([^\]]*)\](?:,\s*device_ids=[^{]*)?\s*\{('[^}]*)\}", rest
  ):
    sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", axes[1]))
    return math.prod(
      int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
    )
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest):
    return int(iota[2])
  if groups := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(groups[1].split(','))
  return devices


def collectives(text: str, slices: int = 1) -> list[Collective]:
  """The collectives of a compiled program in which more than one chip takes part.

  All forms count once: -start and -done, variadic, in fusions, split in parts that run beside other work. A sum of which each
  chip keeps a part alone (XLA writes an all-reduce and a slice in one fusion) is a reduce-scatter.
  """
  computations, entry = parse(text)
  devices = int(match[1]) if (match := re.search(r'num_partitions=(\d+)', text)) else 1
  found, seen = [], set()
  for name, run in executions(computations, entry).items():
    inside = computations[name]
    root = next((i for i in inside.values() if i.root), None)
    for i in inside.values():
      kind = i.opcode.removesuffix('-start')
      origin = match[1] if (match := re.search(r'op_name="([^"]*)"', i.rest)) else ''
      operands = sum(size(inside[n].shape) for n in i.operands if n in inside)
      if kind in COLLECTIVES:
        chain = re.search(
          r'chain_id="([^"]*)"', i.rest
        )  # its start, its end and what runs meanwhile all repeat it
        part = (i.attribute('channel_id'), chain and chain[1])
        if run.fused and chain and part in seen:
          continue
        seen.add(part)
        group = group_size(i, devices)
        if (
          kind == 'all-reduce'
          and run.fused
          and (root.opcode == 'dynamic-slice' or 'all-reduce-scatter' in name)
        ):
          kind = 'reduce-scatter'
        payload = operands * (group if kind == 'all-gather' else 1)
        found.append(
          Collective(kind, 'ICI', group, payload, run.times, run.looped, i.shape, origin)
        )
      elif i.opcode == 'send' and (
        transfer := re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)
      ):
        kind = {'ONE_TO_ONE': 'collective-permute'}.get(
          transfer[1], transfer[1].lower().replace('_', '-')
        )
        payload = size(inside[i.operands[0]].shape) * (slices if kind == 'all-gather' else 1)
        found.append(
          Collective(
            kind, 'DCN', slices, payload, run.times, run.looped, inside[i.operands[0]].shape, origin
          )
        )
  return [c for c in found if c.group > 1]


def _touched(name: str, computations, known: dict) -> tuple[dict[int, int], list[int | None]]:
  """Of a fused computation: bytes that it reads of each parameter of which it takes slices alone, and, for each of its results,
  bytes that it writes where that is a larger array changed in place, else None. Fusions in fusions are looked into."""
  if name in known:
    return known[name]
  inside, same, uses = computations[name], {}, collections.defaultdict(list)
  for i in inside.values():
    if (
      i.opcode in ('bitcast', 'reshape') and i.operands
    ):  # another name for what it is a bitcast of
      same[i.name] = same.get(i.operands[0], i.operands[0])
      continue
    for place, operand in enumerate(i.operands):
      uses[same.get(operand, operand)].append((place, i))

  def read(place, user) -> float:
    if user.opcode == 'fusion':
      return _touched(_called(user)[0], computations, known)[0].get(place, math.inf)
    if user.opcode == 'dynamic-update-slice' and place == 0:
      return 0
    return (
      size(user.shape)
      if user.opcode in ('dynamic-slice', 'slice', 'gather') and place == 0
      else math.inf
    )

  def written(of) -> int | None:
    i = inside.get(same.get(of, of))
    if i is None or i.opcode not in ('dynamic-update-slice', 'fusion'):
      return None
    return (
      size(inside[i.operands[1]].shape)
      if i.opcode == 'dynamic-update-slice'
      else _touched(_called(i)[0], computations, known)[1][0]
    )

  reads = {
    int(i.arguments): sum(read(*use) for use in uses[i.name])
    for i in inside.values()
    if i.opcode == 'parameter'
  }
  root = next(i for i in inside.values() if i.root)
  known[name] = (
    {place: value for place, value in reads.items() if value < math.inf},
    [written(name) for name in (root.operands if root.opcode == 'tuple' else [root.name])],
  )
  return known[name]


def hbm_traffic(text: str) -> float:
  """Bytes that a program reads from and writes to a chip's main memory, what stays in faster memory left out.

  Each instruction reads its operands and writes its result once; slices and updates in place count as what they touch. Paddings of
  tiles, and what the runtime moves, are not in it.
  """
  computations, entry = parse(text)
  total, known = 0.0, {}
  for name, run in executions(computations, entry).items():
    inside = computations[name]
    for i in inside.values() if not run.fused else ():
      if (
        i.opcode in FREE
        or i.opcode.endswith(('-done', '-update'))
        or re.search('"(AllocateBuffer|ConcatBitcast)"', i.rest)
      ):
        continue
      shapes = [inside[n].shape for n in i.operands if n in inside]
      results = _parts(i.shape)
      if i.opcode.endswith(
        '-start'
      ):  # its shape: of a copy (result, operand, ..), of others (operands, result, ..)
        moved = results[0 if i.opcode == 'copy-start' or len(results) == 1 else 1]
        total += run.times * (
          size(moved) * bool(shapes and size(shapes[0], True)) + size(moved, True)
        )
        continue
      reads, written = {}, [None] * len(results)
      if i.opcode == 'fusion':
        reads, written = _touched(_called(i)[0], computations, known)
      elif i.opcode in ('dynamic-slice', 'slice', 'gather'):
        reads = {0: size(i.shape)}
      elif i.opcode == 'dynamic-update-slice':
        reads, written = {0: 0}, [size(shapes[1])]
      elif i.opcode == 'scatter':
        reads, written = {0: size(shapes[2])}, [size(shapes[2])]
      total += run.times * (
        sum(
          min(size(shape, True), reads.get(place, math.inf)) for place, shape in enumerate(shapes)
        )
        + sum(
          size(shape, True) if touched is None else min(size(shape, True), touched)
          # A scatter of several operands has one entry in `written`.
          for shape, touched in zip(results, written, strict=False)
        )
      )
  return total


def _parts(shape: str) -> list[str]:
  """The elements of a tuple's shape; of another, itself."""
  if not shape.startswith('('):
    return [shape]
  parts, depth, start = [], 0, 1
  for i, character in enumerate(shape[1:-1], 1):
    depth += (character in '({[') - (character in ')}]')
    if character == ',' and depth == 0:
      parts.append(shape[start:i])
      start = i + 1
  return parts + [shape[start:-1]]


def product_flops(text: str) -> float:
  """Floating point operations of the matrix products of a program that is not optimised yet."""
  computations, entry = parse(text)
  total = 0.0
  for name, run in executions(computations, entry).items():
    inside = computations[name]
    for i in inside.values():
      if i.opcode == 'dot':
        ((_, left, _),) = arrays(inside[i.operands[0]].shape)
        contracted = [
          left[int(axis)] for axis in re.findall(r'\d+', i.attribute('lhs_contracting_dims'))
        ]
        total += run.times * 2 * math.prod(arrays(i.shape)[0][1]) * math.prod(contracted)
  return total
