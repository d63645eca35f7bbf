"""What is printed before long work: its duration here, whether it fits the corpus, its export."""

import contextlib
import dataclasses
import math

from electra_jax import console
from electra_jax.config import PretrainingConfig, checked_pretraining, config_kind, phases_of
from electra_jax.config.config_files import load_config_file, shipped_configs
from electra_jax.console import quantity, say
from electra_jax.errors import UserError
from electra_jax.interop import huggingface
from electra_jax.model.config import EncoderConfig
from electra_jax.pretrain import build

# Model FLOPs utilization that durations are estimated with, by platform. On TPU and GPU well-tuned
# encoders reach 0.3 to 0.5 of the stated bfloat16 peak; on CPU the peak is itself measured.
UTILIZATION = {'cpu': 0.4, 'gpu': 0.35, 'tpu': 0.4}
LONG_RUN = 30 * 86400.0  # seconds from which a shorter run is suggested
MANY_PASSES = 40  # further passes add next to nothing (Muennighoff et al., 2023)


@dataclasses.dataclass(frozen=True)
class Expectation:
  """What a run takes, as far as it is known before it is compiled.

  Attributes:
    flops: FLOPs of the steps that are left.
    peak: FLOP/s of all devices together; 0 if it is not known.
    utilization: share of the peak that is assumed.
    passes: over the corpus; of a mixture, over the source that is repeated most.
    tokens: of one pass.
  """

  flops: float
  peak: float
  utilization: float
  passes: float
  tokens: float

  @property
  def seconds(self) -> float:
    """Duration of the training steps; 0 if the peak is not known."""
    return self.flops / (self.peak * self.utilization) if self.peak else 0.0

  @property
  def is_too_long(self) -> bool:
    """Whether a shorter run is suggested."""
    return self.seconds > LONG_RUN

  @property
  def repeats_too_often(self) -> bool:
    """Whether the corpus is repeated so often that further passes add next to nothing."""
    return self.passes > MANY_PASSES


def print_expectation(expected: Expectation, config: PretrainingConfig) -> None:
  """Prints the expected duration, and warns of runs that are too long for devices or corpus."""
  if expected.seconds:
    say(
      'expected',
      f'about {in_days(expected.seconds)} of training at an assumed '
      f'{expected.utilization:.0%} of the peak',
    )
  reasons = []
  if expected.is_too_long:
    reasons.append(f'takes about {in_days(expected.seconds)} on these devices')
  if expected.repeats_too_often:
    reasons.append(f'repeats the corpus {expected.passes:,.0f} times')
  if reasons:
    say('warning', f'this run {" and ".join(reasons)}; {_advice(expected, config)}', always=True)


def warn_of_export(discriminator: EncoderConfig) -> None:
  """Warns of a discriminator that `transformers` has no model for, and prints what to change."""
  if problem := huggingface.obstacle(discriminator):
    say(
      'warning',
      f'the discriminator cannot be exported for transformers, as {problem.reason}; set '
      f'--config.model.{problem.field}={problem.value}',
    )


def in_days(seconds: float) -> str:
  """Formats a duration, with days and years where it has them."""
  if seconds < 2 * 86400:
    return console.seconds(seconds)
  days = seconds / 86400
  return f'{days:,.0f} days' if days < 730 else f'{days / 365.25:,.0f} years'


def config_flops(config: PretrainingConfig) -> float:
  """FLOPs of all steps of a config, with the vocabulary that it asks for."""
  total = 0.0
  for phase in phases_of(config):
    c = phase.config
    model = build.build_model(c, c.data.vocab_size, 'cpu')
    settings = build.build_settings(c, build.any_tokenizer(c.data.vocab_size))
    shape = c.batch_size, c.sequence_length
    objective = build.objective_of(c)
    total += c.steps * objective.step_flops(settings, model, shape, 'model', phase.generator_only)
  return total


def config_tokens(config: PretrainingConfig) -> int:
  """Tokens of all steps of a config, padding included."""
  phases = [phase.config for phase in phases_of(config)]
  return sum(c.steps * c.batch_size * c.sequence_length for c in phases)


def shipped_pretraining_configs() -> dict[str, PretrainingConfig]:
  """The shipped configs that pretrain and are complete, by name."""
  found = {}
  for name, path in shipped_configs().items():
    if '/' in name:
      continue
    config = load_config_file(path)
    if config_kind(config) is PretrainingConfig:
      with contextlib.suppress(UserError):  # it requires further fields, such as initial weights
        found[name] = checked_pretraining(config)
  return found


def largest_that_fits(expected: Expectation) -> str | None:
  """The shipped config of the most FLOPs whose run is neither too long nor repeats too often."""
  fitting = {}
  for name, config in shipped_pretraining_configs().items():
    flops = config_flops(config)
    passes = config_tokens(config) / max(1.0, expected.tokens)
    of_config = dataclasses.replace(expected, flops=flops, passes=passes)
    if not of_config.is_too_long and not of_config.repeats_too_often:
      fitting[name] = flops
  return max(fitting, key=lambda name: fitting[name], default=None)


def _advice(expected: Expectation, config: PretrainingConfig) -> str:
  """What would fit: fewer steps of the same config, and the nearest shipped config."""
  passes = float(MANY_PASSES)
  if expected.is_too_long:
    passes = min(passes, expected.passes * LONG_RUN / expected.seconds)
  least = config.batch_size * config.sequence_length / max(1.0, expected.tokens)
  advice = []
  if passes > least:
    advice.append(f'--config.budget_epochs={_round_down(passes):g} makes it fit')
  name = largest_that_fits(expected)
  if name and name != config.name:
    advice.append(f'--config={name} is the largest shipped config that fits')
  if not advice:
    text = f'a larger corpus than {quantity(expected.tokens)} tokens'
    advice.append(f'use {text if expected.repeats_too_often else "more or faster devices"}')
  return '; '.join(advice)


def _round_down(value: float) -> float:
  """The value with two significant digits, rounded down."""
  scale = 10.0 ** (math.floor(math.log10(value)) - 1)
  return math.floor(value / scale) * scale
