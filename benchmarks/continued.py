"""Draws the results of continued.sh: held-out losses of a continued run and of one from scratch.

  python benchmarks/continued.py OUT [SOURCE.json]

SOURCE.json has the losses of the source on the same rows, drawn as lines:
{"generator_loss": ..., "discriminator_loss": ...}. Writes OUT/continued.png.
"""

import json
import pathlib
import sys

from matplotlib import rc_context
from matplotlib.figure import Figure

from electra_jax.training.curves import STYLE
from electra_jax.training.progress import read_metrics

TITLES = {
  'generator_loss': 'generator loss, nats per masked token',
  'discriminator_loss': 'discriminator loss, nats per token',
}


def main(folder: str, source: str | None = None) -> None:
  """Draws the runs in a folder, and prints their first and last losses."""
  out = pathlib.Path(folder)
  lines = {
    name: [line for line in read_metrics(out / name) if line['kind'] == 'heldout']
    for name in ('continued', 'scratch')
  }
  with rc_context(STYLE):
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    for axes, (name, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
      for run, color in (('continued', '#1F5FA8'), ('scratch', '#B0473B')):
        axes.plot(
          [line['tokens'] / 1e6 for line in lines[run]],
          [line[name] for line in lines[run]],
          'o-',
          ms=3.5,
          color=color,
          label={'continued': 'continued', 'scratch': 'from scratch'}[run],
        )
      if source:
        axes.axhline(
          json.loads(pathlib.Path(source).read_text())[name],
          color='#555555',
          ls='--',
          lw=1,
          label='the source, on the same rows',
        )
      axes.set(title=title, xlabel='million tokens of the new text')
    figure.axes[0].legend(edgecolor='none')
    figure.savefig(out / 'continued.png', dpi=130)
  print(f'  {"":12}{"tokens":>10}' + ''.join(f'{name:>20}' for name in TITLES))
  for run, found in lines.items():
    for line in (found[0], found[-1]):
      print(
        f'  {run:12}{line["tokens"]:10,.0f}' + ''.join(f'{line[name]:20.4f}' for name in TITLES)
      )


if __name__ == '__main__':
  main(*sys.argv[1:])
