"""Fine-tuning from the command line: trials that are stopped and resumed, and predictions."""

import dataclasses
import json
import shutil
import signal

import finetune_files
import jax
import micro_run
import numpy as np
import pytest
from etils import epath
from foreign_html import foreign, shown

from electra_jax import export, model_card
from electra_jax.config import FinetuningConfig
from electra_jax.errors import UserError
from electra_jax.finetune import initial, report_files, run_files
from electra_jax.finetune.finetuned import open_finetuned
from electra_jax.main import main

CLOCK = ('seconds', 'tokens_per_second')


def arguments(folder, data, *more):
  """Arguments of a run that keeps the weights of all trials."""
  return micro_run.finetune_arguments(folder, data, '--config.keep_trials=all', *more)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return finetune_files.glue(tmp_path_factory.mktemp('data') / 'glue', train=60)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data):
  """The folder of a run that was never stopped, and what it printed."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, micro_run.run(*arguments(folder, data))[0]


def result(folder, trial):
  """result.json of a trial without the fields that depend on the clock."""
  record = json.loads((folder / 'cola' / f'trial-{trial}' / 'result.json').read_text())
  return {name: value for name, value in record.items() if name not in CLOCK}


def metrics(folder):
  """metrics.jsonl of a trial without the fields that depend on the clock."""
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


STOPS = ((1, 3, signal.SIGKILL), (1, 9, signal.SIGTERM), (2, 6, signal.SIGKILL))


@pytest.mark.parametrize(
  'stops',
  [
    pytest.param(STOPS[1:], id='two', marks=pytest.mark.long),
    pytest.param(STOPS, id='three', marks=pytest.mark.faults),
  ],
)
def test_a_killed_and_resumed_fine_tuning_is_bitwise_equal(stops, whole, data, tmp_path):
  killed = tmp_path / 'killed'
  for trial, step, number in stops:
    process = micro_run.start(*arguments(killed, data))
    micro_run.wait_for(
      lambda trial=trial, step=step: (
        micro_run.last_step(killed / 'cola' / f'trial-{trial}') >= step
      ),
      process,
    )
    process.send_signal(number)
    assert process.wait(60) == (42 if number == signal.SIGTERM else -number)
    status = json.loads((killed / 'status.json').read_text())
    assert (status['task'], status['trial'], status['pid']) == ('cola', trial, process.pid)
    # A process that is killed cannot write.
    ends = ('stopped', 42) if number == signal.SIGTERM else ('running', None)
    assert (status['state'], status['exit_status']) == ends
    assert status['step'] <= status['steps']
    if number == signal.SIGTERM:  # a kill can come between the line of metrics and the status
      assert status['step'] >= step
  saved = micro_run.checkpoint_steps(killed / 'cola' / 'trial-2')
  out, _ = micro_run.run(*arguments(killed, data))
  status = json.loads((killed / 'status.json').read_text())
  # All of trial 1, and what trial 2 had saved.
  assert status['restored_step'] == result(killed, 1)['steps'] + (saved or [0])[-1]
  assert status['state'] == 'finished' and status['step'] == status['steps']
  assert 'restored     trial 2' in out
  for trial in (1, 2):
    a, b = (folder / 'cola' / f'trial-{trial}' for folder in (whole[0], killed))
    assert result(whole[0], trial) == result(killed, trial)
    assert metrics(a) == metrics(b)
    last = micro_run.checkpoint_steps(a)[-1]
    assert not micro_run.differing(micro_run.checkpoint(a, last), micro_run.checkpoint(b, last))


def test_a_resumed_run_keeps_the_dtype_of_its_first_start(whole, data, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(whole[0], folder)
  shutil.rmtree(folder / 'cola' / 'trial-2')
  encoder = json.loads((folder / 'encoder.json').read_text())
  assert encoder['dtype'] == 'float32'
  # As a TPU would have recorded it.
  (folder / 'encoder.json').write_text(json.dumps(encoder | {'dtype': 'bfloat16'}))
  out, _ = micro_run.run(*arguments(folder, data))
  assert 'products bfloat16 (auto, as at the first start)' in out
  assert json.loads((folder / 'encoder.json').read_text())['dtype'] == 'bfloat16'
  losses = [
    [line.get('loss') for line in metrics(x / 'cola' / 'trial-2')] for x in (folder, whole[0])
  ]
  assert losses[0] != losses[1]


def test_a_run_writes_readable_results(whole):
  folder, out = whole
  assert 'encoder' in out and 'step 30' in out and 'trial 2' in out
  record = json.loads((folder / 'results.json').read_text())
  assert [trial['seed'] for trial in record['trials']] == [0, 1]
  assert len(record['trials'][0]['curve']) == 4  # evaluations each half of two epochs
  assert (folder / 'results.png').stat().st_size > 10_000 and 'cola' in (
    folder / 'results.md'
  ).read_text()
  assert micro_run.checkpoint(folder / 'cola' / 'trial-1', result(folder, 1)['steps'])[
    'params/head/dense/kernel'
  ].shape == (32, 2)


def test_trials_differ_and_learn(whole):
  trials = [result(whole[0], trial) for trial in (1, 2)]
  assert trials[0]['train_loss'] != trials[1]['train_loss']
  lines = [line for line in metrics(whole[0] / 'cola' / 'trial-1') if line['kind'] == 'train']
  assert lines[-1]['loss'] < lines[0]['loss']


def test_the_same_command_again_has_nothing_to_do(whole, data):
  before = {path: path.stat().st_mtime_ns for path in whole[0].glob('cola/trial-*/checkpoints/*')}
  out, _ = micro_run.run(*arguments(whole[0], data))
  assert 'trial 1 ' not in out and before == {
    path: path.stat().st_mtime_ns for path in whole[0].glob('cola/trial-*/checkpoints/*')
  }


def test_another_config_is_refused(whole, data, capsys):
  argv = arguments(whole[0], data, '--config.optimizer.learning_rate=1e-4')
  assert main(['main', *argv]) == 1
  err = capsys.readouterr().err
  assert 'holds a run of another config (optimizer.learning_rate' in err


def test_predictions_of_standard_input_print_only_json_lines(whole, tmp_path):
  texts = tmp_path / 'texts'
  texts.write_text('bako dufa\nbako salo\n')
  with open(texts) as file:
    out, _ = micro_run.run_process(
      '--mode=predict', f'--workdir={whole[0]}', '--input=-', stdin=file
    )
  predictions = [json.loads(line) for line in out.splitlines()]
  assert len(predictions) == 2 and all(p['label'] in ('0', '1') for p in predictions)
  assert all(abs(sum(p['probabilities'].values()) - 1) < 1e-5 for p in predictions)


def test_predictions_of_the_test_set_become_a_submission_file(whole, tmp_path, capsys):
  argv = ['main', '--mode=predict', f'--workdir={whole[0]}', f'--output={tmp_path / "out"}']
  assert main([*argv, '--split=test']) == 0
  rows = (tmp_path / 'out' / 'CoLA.tsv').read_text().splitlines()
  assert (
    rows[0] == 'index\tprediction'
    and len(rows) == 7
    and all(row.split('\t')[1] in '01' for row in rows[1:])
  )
  capsys.readouterr()
  assert main([*argv, '--split=dev']) == 0
  out = capsys.readouterr().out
  kept = json.loads((whole[0] / 'cola' / 'kept.json').read_text())['trials'][0]
  assert f'matthews {result(whole[0], kept)["figures"]["dev"]["matthews"]:.4f}' in out
  assert len((tmp_path / 'out' / 'cola.dev.jsonl').read_text().splitlines()) == 12


@pytest.mark.parametrize(
  'flags, expected',
  [
    (['--config.init='], 'config.init is empty'),
    (['--config.init=nowhere'], 'config.init is nowhere, which is not a run'),
    (['--config.init=none'], 'config.like is empty'),
    (['--config.task=colla'], "did you mean 'cola'"),
    (['--config.data.source=nowhere'], 'nowhere'),
    (['--config.select=beast'], "config.select is 'beast'"),
    (['--config.head.pooling=max'], 'cls or mean'),
    (['--config.init_step=7'], 'no checkpoint of step 7'),
  ],
)
def test_mistakes_are_one_sentence(flags, expected, data, tmp_path, capsys):
  assert main(['main', *arguments(tmp_path / 'run', data, *flags)]) == 1
  err = capsys.readouterr().err
  assert expected in err and err.count('\n') == 1 and 'Traceback' not in err


def test_each_tensor_of_another_size_is_named(data, tmp_path, capsys):
  other = tmp_path / 'other'
  shutil.copytree(micro_run.finished()[0], other)
  config = json.loads((other / 'config.json').read_text())
  config['model']['intermediate_size'] = 48
  (other / 'config.json').write_text(json.dumps(config))
  assert main(['main', *arguments(tmp_path / 'run', data, f'--config.init={other}')]) == 1
  err = capsys.readouterr().err
  for name in ('mlp_in', 'mlp_gate', 'mlp_output'):
    assert f'discriminator/layers/{name}/kernel is 1 x' in err
  assert 'attention' not in err and 'Traceback' not in err


def test_fine_tuning_can_start_from_a_fine_tuned_task(whole, data, tmp_path):
  config = FinetuningConfig().replace({'init': str(whole[0] / 'cola')})
  start = initial.open_initial(config)
  trial = json.loads((whole[0] / 'cola' / 'kept.json').read_text())['trials'][0]
  assert (
    start.origin['trial'] == f'trial-{trial}'
    and start.origin['step'] == result(whole[0], trial)['selected_step']
  )
  saved = micro_run.checkpoint(whole[0] / 'cola' / f'trial-{trial}', start.origin['step'])
  words = saved['params/embeddings/word']
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  restored = start.restore(
    {'embeddings': {'word': jax.ShapeDtypeStruct(words.shape, words.dtype)}},
    {'embeddings': {'word': one}},
  )
  assert np.array_equal(restored['embeddings']['word'], words)


def test_all_trials_start_from_the_checkpoint_of_the_first_trial(data, tmp_path):
  still_training = tmp_path / 'pretrained'
  shutil.copytree(micro_run.finished()[0], still_training)
  steps = micro_run.checkpoint_steps(still_training)
  config = FinetuningConfig().replace({'init': str(still_training)})
  first = initial.open_initial(config)
  assert first.origin['step'] == steps[-1]
  earlier = first.origin | {'step': steps[-2]}  # an earlier start, when that was the last
  assert initial.open_initial(config, earlier).origin['step'] == steps[-2]
  shutil.rmtree(still_training / 'checkpoints' / str(steps[-2]))
  with pytest.raises(UserError, match=f'no checkpoint of step {steps[-2]}'):
    initial.open_initial(config, earlier)


def test_training_data_that_changed_between_two_starts_is_reported(whole, data, tmp_path, capsys):
  copy, changed = tmp_path / 'run', tmp_path / 'glue'
  shutil.copytree(whole[0], copy)
  shutil.copytree(data, changed)
  with open(changed / 'CoLA' / 'train.tsv', 'a') as file:
    file.write('made\t1\t\tbako bako dufa\n')
  config = json.loads((copy / 'config.json').read_text())
  config['data']['source'] = str(changed)
  (copy / 'config.json').write_text(json.dumps(config))
  for trials in (2, 3):  # none to train, where results would be of the earlier data, and one
    assert main(['main', *arguments(copy, changed, f'--config.num_trials={trials}')]) == 1
    assert 'the training data of cola is not what' in capsys.readouterr().err


def test_labels_that_were_renamed_between_two_starts_are_reported(tmp_path):
  (tmp_path / 'trial-1').mkdir()
  table = tmp_path / 'train.csv'
  table.write_text('text,label\na,1.0\nb,0.0\n')
  task = finetune_files.opened('classification', train=table)
  (tmp_path / initial.TASK).write_text(json.dumps(task.describe()))
  for labels in (('0.0', '1.0'), ('0', '1')):  # as two versions write the same numbers
    run_files.check_labels(epath.Path(tmp_path), dataclasses.replace(task, labels=labels))
  with pytest.raises(UserError, match='the training data of .* is not what .* was started with'):
    run_files.check_labels(epath.Path(tmp_path), dataclasses.replace(task, labels=('no', 'yes')))


def test_the_report_has_what_the_trials_recorded(whole, capsys):
  folder = whole[0]
  assert main(['main', '--mode=report', f'--workdir={folder}']) == 0
  page = (folder / 'report.html').read_text('utf-8')
  assert foreign(page) == []
  text = shown(page)
  for words in (
    'Learning curves',
    'Confusion matrix',
    'Worst errors',
    'layer-wise decay',
    'unknown',
  ):
    assert words in text, words
  trial = json.loads((folder / 'cola' / 'kept.json').read_text())['trials'][0]
  record = result(folder, trial)
  reports = report_files.read_trial_report(epath.Path(folder / 'cola' / f'trial-{trial}'))
  assert reports['dev'].metrics == record['figures']['dev'] and reports['dev'].examples == 12
  assert sum(row[-1] for row in reports['dev']['classes'].rows[:2]) == 12
  steps = [one['step'] for one in record['losses']]
  assert steps == [
    one['step'] for one in metrics(folder / 'cola' / f'trial-{trial}') if 'loss' in one
  ]
  texts = report_files.read_texts(epath.Path(folder / 'cola'))
  assert texts['train']['examples'] == 60 and texts['dev']['losses'].characters > 100


def test_a_labeled_file_gets_a_report(whole, data, tmp_path, capsys):
  page = tmp_path / 'page.html'
  argv = ['main', '--mode=predict', f'--workdir={whole[0]}', f'--report={page}']
  assert main([*argv, f'--input={data / "CoLA" / "dev.tsv"}']) == 0
  out = capsys.readouterr().out
  assert len([json.loads(line) for line in out.splitlines()]) == 12  # predictions only
  assert foreign(page.read_text('utf-8')) == [] and 'dev.tsv' in shown(page.read_text('utf-8'))
  texts = tmp_path / 'texts'
  texts.write_text('bako dufa\n')
  assert main([*argv, f'--input={texts}']) == 1
  assert 'has no label to compare with, which --report requires' in capsys.readouterr().err


def test_the_card_has_the_metrics_of_the_report(whole):
  use = model_card.use_of('classification')
  run = open_finetuned(whole[0])
  card = export._finetuned_card(run, use, model_card.Publication()).decode()
  for words in ('## Per class', '## Calibration', '| expected calibration error |', '## Training'):
    assert words in card
  assert '| learning rate | ' in card and str(whole[0]) not in card
