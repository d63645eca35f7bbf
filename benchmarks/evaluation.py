"""What the reference corruption costs an evaluation: a run's held-out rows with and without it.

    python benchmarks/evaluation.py runs/small --rows=256 --rounds=5

Both programs are compiled first. Rounds are interleaved; ratios are of the two times of a round.
"""

import argparse
import dataclasses
import json
import statistics
import time

import electra_jax
from electra_jax import registry
from electra_jax.pretrain import evaluation, pretrain_step


def main() -> None:
  """Measures and prints a table; with --output also writes the raw times."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('--rows', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--output', help='a JSON file')
  args = parser.parse_args()

  run = electra_jax.load(args.workdir)
  objective = registry.OBJECTIVES.get(run.settings.name)
  step = pretrain_step.jit_eval_step(
    run.model, objective, run.settings, run.layout, seed=evaluation.EVAL_SEED
  )
  whole = evaluation.heldout(run.heldout, run.settings, limit=args.rows)
  kinds = {'without': dataclasses.replace(whole, reference=None), 'with': whole}

  def seconds(kind: str) -> float:
    start = time.perf_counter()
    evaluation.heldout_sums(
      step, run.params, kinds[kind], batch_size=args.batch, mesh=run.layout.mesh
    )
    return time.perf_counter() - start

  for kind in kinds:
    seconds(kind)
  rounds = [{kind: seconds(kind) for kind in kinds} for _ in range(args.rounds)]
  for kind in kinds:
    times = [r[kind] for r in rounds]
    print(f'{kind:8} {statistics.median(times):8.2f} s ({min(times):.2f} to {max(times):.2f})')
  ratios = [r['with'] / r['without'] for r in rounds]
  print(f'ratio    {statistics.median(ratios):8.2f}   ({min(ratios):.2f} to {max(ratios):.2f})')
  if args.output:
    with open(args.output, 'w', encoding='utf-8') as file:
      json.dump({'rows': whole.rows, 'batch': args.batch, 'rounds': rounds}, file, indent=1)


if __name__ == '__main__':
  main()
