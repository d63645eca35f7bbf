"""The timeline of a run: its metrics are those of evaluation, and tokens and FLOPs add up."""

import json
import pathlib
import shutil

import finetune_files
import micro_run
import pytest

from electra_jax.config import PretrainingConfig, default_config, finetuning, freeze, phases_of
from electra_jax.errors import UserError
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.pretrain.trained_run import open_run
from electra_jax.timeline import spent, timeline, timeline_table


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A copy of the finished run with two of its checkpoints."""
  folder = tmp_path_factory.mktemp('timeline') / 'run'
  shutil.copytree(micro_run.finished()[0], folder)
  for step in micro_run.checkpoint_steps(folder):
    if step not in (10, 30):
      shutil.rmtree(folder / 'checkpoints' / str(step))
  return folder


@pytest.mark.long
def test_every_checkpoint_is_evaluated_and_drawn(run, tmp_path, capsys):
  c = finetuning.default_config()
  c.name = 'timeline'
  c.task = 'cola'
  c.batch_size = c.eval_batch_size = 8
  c.max_length = 32
  c.epochs = 1.0
  c.bucketed = False
  c.compilation_cache = ''
  c.data.source = str(finetune_files.glue(tmp_path / 'glue'))
  assert timeline(str(run), config=c) == 0
  result = json.loads((run / 'timeline.json').read_text())
  first, last = result['points']
  assert (first['step'], last['step']) == (10, 30)
  for point in (first, last):
    assert point['tokens'] == point['step'] * 8 * 32
    assert len(point['tasks']['cola']['values']) == 1
  lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
  logged = {line['step']: line for line in lines if line['kind'] == 'heldout'}
  # During training some of the same rows were evaluated: config.eval_rows of them.
  for point in (first, last):
    loss = point['heldout']['generator_loss']
    assert loss['low'] - 0.3 < logged[point['step']]['generator_loss'] < loss['high'] + 0.3
  losses = [point['heldout']['generator_loss']['value'] for point in (first, last)]
  assert losses[0] > losses[1]
  assert (run / 'timeline.png').stat().st_size > 10_000
  table = timeline_table(result)
  assert table.splitlines()[1].strip().startswith('10')
  assert table in capsys.readouterr().out


def test_tokens_and_flops_add_up_over_phases():
  c = default_config()
  c.steps = 30
  c.optimizer.warmup_steps = 2
  c.batch_size = 4
  c.sequence_length = 32
  tokenizer = open_run(str(micro_run.finished()[0])).tokenizer
  run = resolved(c)
  whole = spent(run, tokenizer, 30)
  assert whole['tokens'] == 30 * 4 * 32
  assert spent(run, tokenizer, 15)['flops'] * 2 == whole['flops']
  c.phases = ({'steps': 10}, {'steps': 20, 'sequence_length': 64, 'batch_size': 8})
  run = resolved(c)
  assert spent(run, tokenizer, 12)['tokens'] == 10 * 4 * 32 + 2 * 8 * 64
  of_first_phase = spent(run, tokenizer, 10)['flops']
  assert of_first_phase == spent(run, tokenizer, 5)['flops'] * 2
  assert of_first_phase < spent(run, tokenizer, 11)['flops']


def resolved(config):
  c = freeze(PretrainingConfig, config)
  return ResolvedRun(c, phases_of(c))


def test_a_pretraining_config_and_a_folder_without_a_run_are_refused(run):
  with pytest.raises(UserError, match='takes a fine-tuning config'):
    timeline(str(run), config=default_config())
  with pytest.raises(UserError, match='holds no checkpoint'):
    timeline(str(pathlib.Path(run).parent / 'nowhere'))
