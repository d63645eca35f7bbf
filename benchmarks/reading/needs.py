"""Tokens per second that the shipped configs need, by the plans of docs/tpu.md and by FLOPs."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLANS = ROOT / 'docs/tpu.md'
PLANNED = re.compile(
  r'\| `(\w+)`(?:, (phase \d))? \| (\w+-\d+) \| ([\d,]+) x (\d+) \|'
  r'.*? \| ([\d.]+) to [\d.]+ \| \d+% \|'
)
GPU, GPU_SHARE = 'NVIDIA H200', 0.4
CPU_FLOPS = 1e12  # more than models of these sizes reach on tens of cores


@dataclasses.dataclass(frozen=True)
class Need:
  """What one host must read for a config.

  Attributes:
    config: its name, with the phase.
    hardware: the slice, or what else it is for.
    hosts: that read.
    tokens: per second and host, at the least time that the model of the step gives.
  """

  config: str
  hardware: str
  hosts: int
  tokens: float


def planned(page: str) -> list[Need]:
  """The needs of the configs in the table of plans, at the lower bound of the step's time."""
  from electra_jax.training import slices

  found = []
  for name, phase, topology, batch, length, milliseconds in PLANNED.findall(page):
    hosts = slices.parse_slice(topology).hosts
    tokens = int(batch.replace(',', '')) * int(length) / float(milliseconds) * 1e3 / hosts
    found.append(Need(', '.join(filter(None, (name, phase))), topology, hosts, tokens))
  return found


def by_flops(names: Iterable[str], flops: float, hardware: str) -> list[Need]:
  """The needs of configs on one host that computes at a rate.

  Args:
    names: of the configs.
    flops: FLOPs per second.
    hardware: what it is called.
  """
  from electra_jax.pretrain import guidance

  configs = guidance.shipped_pretraining_configs()
  return [
    Need(name, hardware, 1, flops * guidance.config_tokens(c) / guidance.config_flops(c))
    for name, c in configs.items()
    if name in names
  ]


def shipped() -> list[Need]:
  """The needs of all shipped configs; those without a plan are for CPUs."""
  from electra_jax.pretrain import guidance
  from electra_jax.training import progress

  found = planned(PLANS.read_text('utf-8'))
  with_plans = {need.config.partition(',')[0] for need in found}
  others = set(guidance.shipped_pretraining_configs()) - with_plans
  gpu = GPU_SHARE * progress.PEAK_FLOPS[GPU]
  return [
    *found,
    *by_flops(with_plans, gpu, f'{GPU} at {GPU_SHARE:.0%} of its peak'),
    *by_flops(others, CPU_FLOPS, f'a CPU at {CPU_FLOPS / 1e12:g} TFLOP/s'),
  ]
