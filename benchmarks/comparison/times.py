"""Step time, time to the first step, and peak memory of two trees, in interleaved rounds."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from comparison.results import aligned
from comparison.trees import Tree, environment

# Config -> steps. Rows of small are few, so that a step takes about a second on two cores.
CONFIGS = {'configs/tiny.py': 40, 'configs/small.py:batch=8,warmup=2': 8}
SKIPPED = 2  # first steps that the median leaves out
QUANTITIES = {
  'step': ('time per step', 's'),
  'first': ('time to the first step', 's'),
  'memory': ('peak memory', 'MB'),
}
POLL = 0.01  # seconds


def command(tree: Tree, config: str, steps: int, workdir: pathlib.Path) -> list[str]:
  """A training run that logs every step, without a cache of compiled programs."""
  file, _, options = config.partition(':')
  options = ','.join(filter(None, (options, f'steps={steps}')))
  return [
    *(sys.executable, '-P', '-m', 'electra_jax.main'),
    f'--config={tree.path / file}:{options}',
    f'--workdir={workdir}',
    f'--config.data.cache={tree.work / "cache"}',
    '--config.data.reader=numpy',
    '--config.compilation_cache=',
    '--config.log_every=1',
    f'--config.eval_every={steps}',
    f'--config.save_every={steps}',
    '--config.eval_rows=16',
    '--config.micro_batches=1',
  ]


def measure(tree: Tree, config: str, steps: int, workdir: pathlib.Path) -> dict[str, float]:
  """Runs a command once.

  Returns:
    `step`: median seconds per step; `first`: seconds from the start of the process to the first
    line of metrics; `memory`: peak resident memory in MB.

  Raises:
    RuntimeError: the command failed.
  """
  metrics, first = workdir / 'metrics.jsonl', 0.0
  workdir.mkdir(parents=True)
  with open(workdir / 'output.txt', 'w') as output:
    start = time.perf_counter()
    process = subprocess.Popen(
      command(tree, config, steps, workdir),
      cwd=tree.path,
      env=environment(tree),
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=output,
    )
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
      if not first and metrics.exists() and metrics.stat().st_size:
        first = time.perf_counter() - start
      time.sleep(POLL)
  process.returncode = os.waitstatus_to_exitcode(ended[1])
  if process.returncode or not first:
    raise RuntimeError(
      f'{tree.name}: {config} ended with status {process.returncode}: '
      f'{(workdir / "output.txt").read_text()[-500:]}'
    )
  lines = [json.loads(line) for line in metrics.read_text().splitlines()]
  seconds = [line['seconds'] for line in lines if line['kind'] == 'train']
  per_step = [b - a for a, b in zip(seconds, seconds[1:], strict=False)]
  return {
    'step': statistics.median(per_step[SKIPPED - 1 :]),
    'first': first,
    'memory': ended[2].ru_maxrss / 1024,
  }


def prepare(tree: Tree, config: str) -> None:
  """Prepares a config's corpus, so that no measured run does."""
  whole = command(tree, config, SKIPPED + 2, tree.work)
  kept = [x for x in whole if not x.startswith('--workdir')]
  subprocess.run(
    [*kept, '--mode=prepare'],
    cwd=tree.path,
    env=environment(tree),
    check=True,
    stdout=subprocess.DEVNULL,
  )


def compare(
  trees: Sequence[Tree],
  rounds: int,
  report: Callable[[str], None],
  configs: dict[str, int] | None = None,
) -> str:
  """Measures both trees in turn, `rounds` times, and returns a Markdown table with paired ratios.

  Args:
    trees: base and head.
    rounds: number of rounds; the order within a round alternates.
    report: called with a sentence after each round.
    configs: config -> steps; None for CONFIGS.
  """
  rows = [['config', 'quantity', 'base', 'head', 'head / base, by round', 'median ratio']]
  for config, steps in (configs or CONFIGS).items():
    for tree in trees:
      prepare(tree, config)
    measured: dict[str, list[dict[str, float]]] = {tree.name: [] for tree in trees}
    for number in range(rounds):
      for tree in trees if number % 2 == 0 else reversed(trees):
        name = pathlib.Path(config.partition(':')[0]).stem
        workdir = tree.work / 'times' / f'{name}-{number}'
        measured[tree.name].append(measure(tree, config, steps, workdir))
      latest = ', '.join(f'{tree.name} {measured[tree.name][-1]["step"]:.3f} s' for tree in trees)
      report(f'times: {config}, round {number + 1} of {rounds}: per step {latest}')
    base, head = (measured[tree.name] for tree in trees)
    rows += [row(config, quantity, base, head) for quantity in QUANTITIES]
  return '\n'.join(aligned(rows))


def row(config: str, quantity: str, base: list[dict], head: list[dict]) -> list[str]:
  """One row of the table: medians of both trees, the ratios of all rounds, and their median."""
  title, unit = QUANTITIES[quantity]
  values = [(a[quantity], b[quantity]) for a, b in zip(base, head, strict=True)]
  ratios = [b / a for a, b in values]
  return [
    config,
    title,
    f'{statistics.median(a for a, _ in values):.4g} {unit}',
    f'{statistics.median(b for _, b in values):.4g} {unit}',
    ', '.join(f'{ratio:.3f}' for ratio in ratios),
    f'{statistics.median(ratios):.3f}',
  ]
