"""The checkpoints of a run over time: held-out figures are evaluation's own, tasks are fine-tuned from each, tokens and FLOPs are counted."""

import json
import pathlib
import shutil

import finetune_files
import micro_run
import pytest

from electra_jax.config import PretrainingConfig, default_config, finetuning, freeze, phases_of
from electra_jax.errors import UserError
from electra_jax.pretrain.trained_run import open_run
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.timeline import spent, table, timeline


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The finished run with two of its checkpoints."""
  folder = tmp_path_factory.mktemp('timeline') / 'run'
  shutil.copytree(micro_run.finished()[0], folder)
  for step in micro_run.checkpoint_steps(folder):
    if step not in (10, 30):
      shutil.rmtree(folder / 'checkpoints' / str(step))
  return folder


def test_every_checkpoint_is_evaluated_and_drawn(run, tmp_path, capsys):
  c = finetuning.default_config()
  c.name, c.task = 'timeline', 'cola'
  c.batch_size = c.eval_batch_size = 8
  c.max_length, c.epochs, c.num_trials, c.bucketed, c.compilation_cache = 32, 1.0, 1, False, ''
  c.data.source = str(finetune_files.glue(tmp_path / 'glue'))
  assert timeline(str(run), config=c) == 0
  result = json.loads((run / 'timeline.json').read_text())
  assert [point['step'] for point in result['points']] == [10, 30]
  for point in result['points']:
    assert point['tokens'] == point['step'] * 8 * 32
    assert len(point['tasks']['cola']['values']) == 1
  logged = {
    line['step']: line
    for line in map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    if line['kind'] == 'heldout'
  }
  for point in result[
    'points'
  ]:  # training looked at the same rows, all of them where there are no more than config.eval_rows
    low, high = (
      point['heldout']['generator_loss']['low'],
      point['heldout']['generator_loss']['high'],
    )
    assert low - 0.3 < logged[point['step']]['generator_loss'] < high + 0.3
  assert (
    result['points'][0]['heldout']['generator_loss']['value']
    > result['points'][1]['heldout']['generator_loss']['value']
  )
  assert (run / 'timeline.png').stat().st_size > 10_000
  shown = capsys.readouterr().out
  assert table(result).splitlines()[1].strip().startswith('10') and table(result) in shown


def test_what_was_spent_adds_up_over_phases():
  c = default_config()
  c.steps, c.optimizer.warmup_steps, c.batch_size, c.sequence_length = 30, 2, 4, 32
  run = _resolved(c)
  plain = spent(run, _tokenizer(), 30)
  assert (
    plain['tokens'] == 30 * 4 * 32 and spent(run, _tokenizer(), 15)['flops'] * 2 == plain['flops']
  )
  c.phases = ({'steps': 10}, {'steps': 20, 'sequence_length': 64, 'batch_size': 8})
  run = _resolved(c)
  assert spent(run, _tokenizer(), 12)['tokens'] == 10 * 4 * 32 + 2 * 8 * 64
  assert (
    spent(run, _tokenizer(), 10)['flops']
    == spent(run, _tokenizer(), 5)['flops'] * 2
    < spent(run, _tokenizer(), 11)['flops']
  )


def _resolved(config):
  c = freeze(PretrainingConfig, config)
  return ResolvedRun(c, phases_of(c))


def _tokenizer():
  return open_run(str(micro_run.finished()[0])).tokenizer


def test_a_config_to_pretrain_with_is_no_task(run):
  with pytest.raises(UserError, match='takes the config of a fine-tuning run'):
    timeline(str(run), config=default_config())
  with pytest.raises(UserError, match='holds no checkpoint'):
    timeline(str(pathlib.Path(run).parent / 'nowhere'))
