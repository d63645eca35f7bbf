"""Saves checkpoints and metrics while file operations fail; run with failing_files.c preloaded.

Usage: saving_child.py FOLDER CASES, a JSON list of [nth operation that fails, errno, whether all
later ones fail too]. Prints what happened in each case as a line of JSON. The first line has the
number of operations of a save without faults.
"""

import ctypes
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from electra_jax import console
from electra_jax.errors import UserError
from electra_jax.training import (
  checkpoint_files,
  checkpoints,
  metrics_writer,
  partitioning,
  progress,
  saving,
)
from electra_jax.training.update_step import TrainState, no_skips

saving.RETRY_WAITS = (0.0, 0.0, 0.0)
metrics_writer.RETRY_EVERY = 0.01
NONE = (0, 0, False)


def state_of(step):
  """A state whose values depend on the step."""
  params = {'kernel': jnp.arange(512.0).reshape(64, 8) + step, 'bias': jnp.full(8, step, float)}
  return TrainState(
    jnp.int32(step), params, {'mu': params}, jnp.int32(0), jnp.int32(-1), no_skips()
  )


def arm(folder, nth, error, lasting):
  faults.faults_arm(os.fsencode(folder), ctypes.c_long(nth), error, int(lasting))


def attempt(folder, case):
  """Saves step 2 under faults; returns what happened."""
  writer = metrics_writer.MetricsWriter(folder, 0)
  manager = checkpoints.open_manager(folder, keep=1)
  saver = saving.CheckpointSaver(manager, checkpoints.HELDOUT_LOSS)
  sums = {'steps': jnp.int32(1)}
  writer.write('train', 1, {'loss': 1.0})
  saver.save(1, state_of(1), sums, None)
  saver.finish(1, state_of(1), sums)
  sentence = None
  arm(folder, *case)
  try:
    writer.write('train', 2, {'loss': 2.0})
    writer.keep()
    saver.save(2, state_of(2), sums, 1.0)
    saver.finish(2, state_of(2), sums)
  except UserError as error:
    sentence = str(error)
  operations = faults.faults_count()
  arm(folder, *NONE)
  writer.close()  # the disk works again
  if sentence is None:
    manager.close()
  return {'case': case, 'operations': operations, 'sentence': sentence, **found(folder)}


def found(folder):
  """Which checkpoints there are, whether they are whole and right, and the lines of metrics."""
  directory = folder / 'checkpoints'
  steps = checkpoint_files.steps_of(directory)
  shapes = jax.eval_shape(lambda: state_of(0))
  whole = partitioning.replicated(partitioning.make_mesh())
  shardings = jax.tree.map(lambda _: whole, shapes)
  right = []
  for step in steps:
    params, _ = checkpoints.restore_params(folder, step, shapes.params, shardings.params)
    same = jax.tree.map(np.array_equal, params, state_of(step).params)
    right.append(all(jax.tree.leaves(same)) and not checkpoint_files.damage_of(directory, step))
  lines, damaged = progress.parse_metrics((folder / 'metrics.jsonl').read_bytes())
  return {
    'steps': steps,
    'right': right,
    'lines': [line['step'] for line in lines],
    'damaged': damaged,
  }


if __name__ == '__main__':
  logging.set_verbosity(logging.FATAL)  # as in main.py
  console.quiet_libraries()
  faults = ctypes.CDLL(None)
  faults.faults_count.restype = ctypes.c_long
  place = pathlib.Path(sys.argv[1]).resolve()
  for number, one in enumerate([NONE, *map(tuple, json.loads(sys.argv[2]))]):
    print(json.dumps(attempt(place / str(number), one)), flush=True)
