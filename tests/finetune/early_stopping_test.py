"""Trials end after evaluations without improvement, by metric or loss, and keep the best."""

import json

import finetune_files
import micro_run
import pytest

import electra_jax
from electra_jax.finetune.initial import best_criterion
from electra_jax.finetune.trial import _out_of_patience, best_evaluation


def curve(metric, loss):
  return [
    {'step': 10 * i, 'epoch': i, 'accuracy': a, 'dev_loss': b}
    for i, (a, b) in enumerate(zip(metric, loss, strict=True), 1)
  ]


def test_the_best_evaluation_is_by_metric_or_loss():
  found = curve([0.5, 0.8, None, 0.8], [0.7, 0.6, 0.4, float('nan')])
  by_metric, by_loss = best_criterion('metric', 'accuracy'), best_criterion('loss', 'accuracy')
  assert best_evaluation(found, by_metric) == {'epoch': 2, 'step': 20, 'value': 0.8}
  assert best_evaluation(found, by_loss) == {'epoch': 3, 'step': 30, 'value': 0.4}
  assert best_evaluation(curve([None], [None]), by_loss) is None
  assert _out_of_patience(found, by_metric, 2) and not _out_of_patience(found, by_metric, 3)
  assert _out_of_patience(found, by_loss, 1) and not _out_of_patience(found, by_loss, 2)
  assert not _out_of_patience(found, by_loss, 0)


@pytest.mark.long
@pytest.mark.parametrize('best_by', ['loss', 'metric'])
def test_a_trial_keeps_its_best_epoch(best_by, tmp_path):
  data = finetune_files.glue(tmp_path / 'glue', train=40)
  argv = (
    f'--config.best_by={best_by}',
    '--config.select=best',
    '--config.patience=2',
    '--config.eval_every=1.0',
    '--config.epochs=12.0',
    '--config.optimizer.learning_rate=0.2',  # too large, so that the loss soon increases
    '--config.num_trials=1',
  )
  micro_run.run(*micro_run.finetune_arguments(tmp_path / 'run', data, *argv))
  record = json.loads((tmp_path / 'run' / 'cola' / 'trial-1' / 'result.json').read_text())
  name, sign = {'loss': ('dev_loss', -1), 'metric': ('matthews', 1)}[best_by]
  values = [sign * line[name] for line in record['curve']]
  best = values.index(max(values))
  assert len(values) == min(12, best + 3) < 12
  assert record['selected_step'] == record['curve'][best]['step'] == record['best']['step']
  assert record['dev_loss'] == record['curve'][best]['dev_loss']
  assert electra_jax.load(tmp_path / 'run').step == record['selected_step']
