"""Successive halving: how far the settings of a search are trained before some of them are left.

Source: Jamieson and Talwalkar 2016, algorithm 1, with parts of each setting's own training as the
resource, so that a setting that continues follows the schedule that it started with.
"""

from collections.abc import Mapping


def parts(settings: int, eta: int) -> list[float]:
  """The shares of the training after which settings are left, ascending; [] without halving.

  Before the last part, in which the remaining settings are trained to the end, there are as many as
  whole powers of `eta` in the number of settings: 1/3 and 1/9 of the training for nine settings
  and eta 3, so that each part costs about as much.

  Args:
    settings: their number.
    eta: the best 1/eta of the settings continue; 0 for no halving.
  """
  if not eta:
    return []
  count = 0
  while settings >= eta ** (count + 1):
    count += 1
  return [float(eta**-power) for power in range(count, 0, -1)]


def kept(scores: Mapping[int, float], eta: int) -> list[int]:
  """The numbers of the settings that continue, ascending: the best 1/eta, and at least one.

  Args:
    scores: by number; larger is better. Of equal ones the lower number is better.
    eta: as of `parts`.
  """
  ranked = sorted(scores, key=lambda number: (-scores[number], number))
  return sorted(ranked[: max(1, len(ranked) // eta)])


def best(scores: Mapping[int, float]) -> int:
  """The number of the setting with the highest score; of equal ones the lowest."""
  return min(scores, key=lambda number: (-scores[number], number))


def steps_of_part(share: float, steps: int, interval: int) -> int:
  """Steps of a trial after which a part of its training ends: at an evaluation.

  Args:
    share: of the training.
    steps: of the trial.
    interval: steps between evaluations; `steps` where there is only one, at the end. Then the part
      ends at its share of the steps, and is evaluated there.
  """
  if interval >= steps:
    return max(1, round(share * steps))
  return min(steps, interval * max(1, round(share * steps / interval)))
