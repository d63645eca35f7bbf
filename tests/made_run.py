"""The folder of a pretraining run that was never trained: random weights and made-up metrics."""

import json
import pathlib

import jax
import numpy as np
from conftest import random_params

from electra_jax.config import PretrainingConfig, freeze
from electra_jax.pretrain import build, run_start
from electra_jax.training import checkpoints
from electra_jax.training.update_step import fresh_state

WORDS = 'the chef cooked ate meal in old house and said nothing of it ##ed ##ing . ,'.split()
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
TEXTS = ['The chef ate the meal.', 'a house of nothing, cooked and said', 'the old meals']


def wordpiece(folder) -> str:
  """Writes a vocab.txt into a new folder, and returns the folder."""
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  letters = [*'abcdefghijklmnopqrstuvwxyz', *(f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyz')]
  (pathlib.Path(folder) / 'vocab.txt').write_text('\n'.join([*SPECIAL, *letters, *WORDS]) + '\n')
  return str(folder)


def make(workdir, config, tokenizer, step: int = 7):
  """Writes the run of a config with a checkpoint of large random weights; returns the state."""
  config = freeze(PretrainingConfig, config)
  run_start.claim_workdir(workdir, config)
  run_start.keep_run_tokenizer(workdir, tokenizer)
  model = build.build_model(config, tokenizer.size)
  optimizer, _ = build.build_optimizer(config)
  start = jax.jit(lambda params: fresh_state(optimizer, params))  # one program, not one per shape
  state = start(random_params(model, step))._replace(step=np.int32(step))
  manager = checkpoints.open_manager(workdir)
  checkpoints.save(manager, step, state, {'steps': np.int32(0)}, 1.5)
  checkpoints.wait(manager)
  manager.close()
  metrics = {
    'generator_loss': 4.25,
    'discriminator_loss': 0.3125,
    'constant_loss': 0.35,
    'total_loss': 19.875,
    'tokens': 1792.0,
    'seconds': 3.0,
  }
  with open(pathlib.Path(workdir) / 'metrics.jsonl', 'w') as out:
    out.write(json.dumps({'kind': 'heldout', 'step': step, **metrics}) + '\n')
  return state
