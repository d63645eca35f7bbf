"""Evaluation of held-out rows of a small model, with the reference corruption and intervals."""

import pathlib
import tempfile
import time

import growing.steps
from growing import resident

SIZES = {'length': 32, 'width': 32, 'layers': 1, 'vocabulary': 2_000, 'fraction': 1.0}
BATCH = 32
ROWS = 1_024


def measure(point: dict[str, int]) -> dict[str, float]:
  """Evaluates rows as `--mode=evaluate` does.

  Args:
    point: 'rows', or sizes that differ from SIZES.

  Returns:
    `processor`: seconds, after compilation; `memory`: the bytes that it adds at most.
  """
  import numpy as np

  from electra_jax.data.store import token_store
  from electra_jax.pretrain import build, evaluation, pretrain_step

  config = growing.steps.config_of({**SIZES, **{k: v for k, v in point.items() if k != 'rows'}})
  program = growing.steps.program_of(config)
  params = build.compile_initial(program, config)().params
  rows, length, size = point.get('rows', ROWS), config.sequence_length, config.data.vocab_size
  eval_step = pretrain_step.jit_eval_step(
    program.model, program.objective, program.settings, program.layout, seed=evaluation.EVAL_SEED
  )

  def evaluate(limit: int) -> None:
    evaluated = evaluation.heldout(store, program.settings, limit=limit)
    sums = evaluation.heldout_sums(
      eval_step, params, evaluated, batch_size=BATCH, mesh=program.layout.mesh
    )
    evaluation.with_intervals(sums, evaluated, program.settings)

  with tempfile.TemporaryDirectory() as folder:
    # Frequencies fall as in text, so that no token has half of all places.
    shares = 1 / np.arange(1, size - 4)
    ids = np.random.default_rng(0).choice(size - 5, (rows, length), p=shares / shares.sum()) + 5
    kind = {'length': length, 'vocab_size': size, 'pad_id': 0, 'tokenizer_fingerprint': ''}
    store = token_store.write_store(pathlib.Path(folder) / 'store', [ids], **kind, facts={})
    evaluate(BATCH)
    before, start = resident.forget(), time.process_time()
    evaluate(rows)
    return {'processor': time.process_time() - start, 'memory': resident.most() - before}
