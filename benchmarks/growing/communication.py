"""Bytes that devices exchange per step, from programs that are compiled for devices of the host."""

import collections
from typing import Any

import growing.steps

AXES = ('data', 'fsdp', 'tensor')
# Tables and kernels are above config.sharding.smallest, and heads divide by 8.
SIZES = {
  'batch': 32,
  'length': 128,
  'width': 256,
  'layers': 2,
  'vocabulary': 8_192,
  'fraction': 1.0,
}


def measure(points: list[dict[str, Any]]) -> list[dict[str, float]]:
  """Compiles the step of one batch for devices along a mesh axis.

  Args:
    points: 'axis', one of AXES, and the number of 'devices'.

  Returns:
    For each point `sent`, bytes that a device sends per step with rings; `payload`, bytes of the
    arrays that take part; and that by kind of collective.
  """
  import jax

  from electra_jax.pretrain import build
  from electra_jax.training import hlo

  found = []
  for point in points:
    count = point['devices']
    mesh = dict.fromkeys(AXES, 1) | {point['axis']: count}
    config = growing.steps.config_of(SIZES)
    config = config.replace({f'mesh.{name}': size for name, size in mesh.items()})
    program = growing.steps.program_of(config, jax.devices()[:count])
    collectives = hlo.collectives(build.compile_step(program, 1).as_text() or '')
    kinds: collections.Counter[str] = collections.Counter()
    for one in collectives:
      kinds[one.kind] += round(one.times * one.payload)
    sent = sum(one.sent for one in collectives)
    found.append({'sent': sent, 'payload': sum(kinds.values()), **kinds})
  return found
