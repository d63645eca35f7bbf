"""The table of training and held-out metrics on the console, one line at a time."""

from collections.abc import Mapping

from electra_jax import console
from electra_jax.console import quantity
from electra_jax.pretrain.metrics import Column
from electra_jax.training.progress import PeakFlops

HEADER_EVERY = 25  # training lines


class MetricsTable:
  """Formats lines of metrics. Each method returns the texts to print, with a header when it is due.

  A header is due before the first line and after every `HEADER_EVERY` training lines.
  """

  def __init__(self, columns: Mapping[str, Column], peak: PeakFlops) -> None:
    """Starts a table.

    Args:
      columns: metric -> column. Columns whose metric the objective lacks are left out.
      peak: peak of all devices.
    """
    self._columns = columns
    self._peak = peak
    self._lines = 0

  def training(
    self, step: int, metrics: Mapping[str, float], seconds_left: float | None
  ) -> list[str]:
    """The line of an interval of training.

    Args:
      step: steps that were taken.
      metrics: training metrics, with `tokens_per_second` and `utilisation`.
      seconds_left: estimated time to the end of the phase; None where it is not known.
    """
    header = [] if self._lines % HEADER_EVERY else [self._header(metrics)]
    self._lines += 1
    share = f'{metrics["utilisation"]:7.0%}' if self._peak.flops else f'{"":7}'
    rate = quantity(metrics['tokens_per_second'])
    left = '-' if seconds_left is None else console.seconds(seconds_left)
    rest = f'{rate:>9} {share} {left:>7}'
    return [*header, self._line(f'{step:,}', metrics['loss'], metrics, rest)]

  def heldout(self, metrics: Mapping[str, float]) -> list[str]:
    """The lines of an evaluation on held-out rows, one of them on the reference corruption."""
    header = [] if self._lines else [self._header(metrics)]
    self._lines = self._lines or 1
    lines = [*header, self._line('held out', metrics['total_loss'], metrics)]
    if 'reference_ap' in metrics:
      lines.append(
        f'{"reference":>11} ap {metrics["reference_ap"]:.3f} (without context '
        f'{metrics["reference_unigram_ap"]:.3f}), auc {metrics["reference_auc"]:.3f} '
        f'({metrics["reference_unigram_auc"]:.3f}), gain {metrics["reference_gain"]:.4f}'
      )
    return lines

  def _header(self, metrics: Mapping[str, float]) -> str:
    titles = ' '.join(
      f'{c.title:>{c.width}}' for name, c in self._columns.items() if name in metrics
    )
    utilization = 'of peak' if self._peak.source == 'measured' else 'MFU'
    return f'\n{"step":>11} {"loss":>7} {titles} {"tokens/s":>9} {utilization:>7} {"left":>7}'

  def _line(self, step: str, loss: float, metrics: Mapping[str, float], rest: str = '') -> str:
    values = ' '.join(
      f'{metrics[name]:{c.width}{c.format}}' for name, c in self._columns.items() if name in metrics
    )
    return f'{step:>11} {loss:7.2f} {values} {rest}'.replace('nan', '  -')  # nan: not defined
