"""The phases of a pretraining run, which have separate rows, batches and schedules."""

import dataclasses
from typing import Any

from electra_jax.config.declarations import fields_of, typed_value
from electra_jax.config.pretraining import PretrainingConfig

KNOWN = fields_of(PretrainingConfig)


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps of a run that share a config.

  Attributes:
    first: steps of the run before this phase.
    last: steps of the run at its end.
    config: the run's config with the phase's fields; `steps` are the phase's, `phases` is empty.
    generator_only: whether only the generator is trained (config.generator.alone_steps).
  """

  first: int
  last: int
  config: PretrainingConfig
  generator_only: bool = False


def phases_of(config: PretrainingConfig) -> tuple[Phase, ...]:
  """The phases of a config in their order; one where it names none.

  Steps of config.generator.alone_steps are a separate phase before the others.
  """
  parts: list[dict[str, Any]] = [dict(f) for f in config.phases or ({'steps': config.steps},)]
  alone = config.generator.alone_steps
  if alone:
    warmup = parts[0].get('optimizer.warmup_steps', config.optimizer.warmup_steps)
    parts = [
      parts[0] | {'steps': alone, 'optimizer.warmup_steps': min(warmup, alone // 10)},
      parts[0] | {'steps': parts[0]['steps'] - alone},
      *parts[1:],
    ]
  found: list[Phase] = []
  for fields in parts:
    typed = {name: typed_value(KNOWN[name], value) for name, value in fields.items()}
    c = config.replace(typed | {'phases': (), 'generator.alone_steps': 0})
    if c.optimizer.warmup_fraction:
      c = c.replace(
        {
          'optimizer.warmup_steps': int(c.optimizer.warmup_fraction * c.steps),
          'optimizer.warmup_fraction': 0.0,
        }
      )
    first = found[-1].last if found else 0
    found.append(Phase(first, first + c.steps, c, bool(alone) and not found))
  return tuple(found)
