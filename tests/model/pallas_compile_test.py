"""The attention kernel compiles for TPUs in the sizes of shipped configs, without scores in HBM."""

import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from electra_jax import plan
from electra_jax.config import checked_pretraining, phases_of
from electra_jax.training import slices
from electra_jax.training.encoders import towers

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="libtpu, TPU's compiler, is not installed"
)
ROOT = pathlib.Path(__file__).parents[2]
CHIPS = {'v4': 'v4-8', 'v5e': 'v5e-4', 'v5p': 'v5p-8', 'v6e': 'v6e-4'}

# Compiles both passes for each of some (shape, type, rate, reach); prints bytes of temporaries.
CODE = """
import json, sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from electra_jax.model import pallas_attention
from electra_jax.training import slices
topology, cases = json.loads(sys.argv[1])
device = slices.topology_devices(slices.parse_slice(topology))[0]

def array(shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

def temporaries(shape, dtype, rate, reach):
  computation = pallas_attention.KernelSettings(rate, reach)
  def both(query, key, value, gradient, *others):
    def attend(query, key, value):
      return pallas_attention.attend(computation, query, key, value, *others)
    return jax.vjp(attend, query, key, value)[1](gradient)
  integers = ((shape[0], shape[3]), jnp.int32), ((shape[0],), jnp.uint32), ((shape[1],), jnp.int32)
  given = [array(shape, dtype)] * 4 + [array(*x) for x in integers]
  program = jax.jit(both).lower(*given).compile()
  assert program.as_text().count('"tpu_custom_call"') == 2
  return program.memory_analysis().temp_size_in_bytes

print(json.dumps([temporaries(*case) for case in cases]))
"""


def compiled(topology, cases) -> list[int]:
  done = subprocess.run(
    [sys.executable, '-c', CODE, json.dumps([topology, list(cases)])],
    env=plan._child_environment(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_it_compiles_for_a_v5e():
  assert compiled('v5e-4', [((4, 2, 64, 128), 'bfloat16', 0.1, None)])


def shipped() -> list[tuple]:
  """Sizes of all towers and phases, each with and without dropout and window."""
  found = set()
  for path in sorted((ROOT / 'configs').glob('*.py')):
    if path.stem == 'continued':  # has the sizes of the weights that it starts from
      continue
    config = checked_pretraining(importlib.import_module(f'configs.{path.stem}').get_config())
    for phase in phases_of(config):
      for tower in towers(phase.config, False, 1000, 'tpu'):
        shape = 4, tower.num_heads, tower.head_size, phase.config.sequence_length
        reaches = [None] + [tower.local_window // 2] * (
          tower.traits.rotary and tower.global_every > 1
        )
        found |= {(shape, 'bfloat16', rate, reach) for reach in reaches for rate in (0.0, 0.1)}
  return sorted(found, key=str)


# Beside those: the longest rows, with a window that is narrower, and the sizes of a head.
LARGEST = [
  ((2, 2, 64, 1024), 'bfloat16', 0.1, 64),
  ((2, 2, 128, 1024), 'bfloat16', 0.1, None),
  ((2, 2, 32, 512), 'bfloat16', 0.1, None),
  ((2, 2, 96, 384), 'bfloat16', 0.1, None),
  ((4, 2, 40, 72), 'bfloat16', 0.1, 9),
  ((2, 2, 64, 512), 'float32', 0.1, None),
]


@pytest.mark.tpu
@pytest.mark.parametrize('chip', CHIPS)
def test_it_compiles_in_the_sizes_of_all_shipped_configs(chip):
  """Temporaries are far below the scores of one row and head, of which there are four or more."""
  assert set(CHIPS) == set(slices.CHIPS)
  cases = shipped() + LARGEST
  for (shape, *_), held in zip(cases, compiled(CHIPS[chip], cases), strict=True):
    scores = 4 * shape[0] * shape[1] * shape[3] ** 2
    assert held < max(1 << 22, scores), shape


# Compiles the train step of a config with an attention kernel; prints arrays of all pairs.
STEP = """
import json, re, sys
from electra_jax.pretrain import build
from electra_jax.pretrain.resolve import resolve_run
from electra_jax.training import partitioning, slices
from configs import tiny
length, kernel = json.loads(sys.argv[1])
config = tiny.get_config()
config.update(sequence_length=length, batch_size=32, micro_batches=1)
config.model.update(attention=kernel, num_layers=2, max_positions=length, attention_dropout=0.1)
run = resolve_run(config, platform='tpu')
layout = partitioning.make_layout(run.config, slices.topology_devices(slices.parse_slice('v5e-4')))
program = build.program(run.config, run.phases[0], build.any_tokenizer(1000), layout)
text = build.compile_step(program, 1).as_text()
print(json.dumps(sorted(set(re.findall(rf'\\w+\\[[\\d,]+,{length},{length}\\]', text)))))
"""


@pytest.mark.tpu
@pytest.mark.parametrize('kernel', ['xla', 'auto'])
def test_a_train_step_holds_no_scores(kernel):
  done = subprocess.run(
    [sys.executable, '-c', STEP, json.dumps([384, kernel])],
    env=plan._child_environment(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert bool(found) == (kernel == 'xla'), found
