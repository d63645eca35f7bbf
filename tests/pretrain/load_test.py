"""A run opened in Python, and its evaluation, on any number of devices, from its parameters."""

import errno
import json
import os
import shutil
import warnings

import jax
import made_run
import micro_run
import numpy as np
import pytest
from absl import logging

import electra_jax
from electra_jax import file_access, main
from electra_jax.errors import UserError
from electra_jax.pretrain.metrics import METRICS
from electra_jax.training import run_folder


@pytest.fixture(scope='module')
def run():
  return electra_jax.load(micro_run.finished()[0])


def test_an_opened_run_has_its_config_tokenizer_model_and_parameters(run):
  whole = micro_run.checkpoint(run.workdir, 30)
  assert run.step == 30 and run.config.name == 'micro' and run.tokenizer.size == 300
  assert (
    run.model.discriminator_config.hidden_size == 32
    and run.settings.mask_id == run.tokenizer.mask_id
  )
  assert run.mesh.size == len(jax.devices()) == 8
  flat = {
    'params/' + '/'.join(str(key.key) for key in path): value
    for path, value in jax.tree_util.tree_leaves_with_path(run.params)
  }
  assert (
    micro_run.differing(
      {name: array for name, array in whole.items() if name.startswith('params/')},
      {name: np.asarray(value) for name, value in flat.items()},
    )
    == []
  )


def test_nothing_is_logged_where_a_run_is_opened(caplog):
  before = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)  # as in a program that does not set it
  try:
    electra_jax.load(micro_run.finished()[0])
    assert not [record.getMessage() for record in caplog.records if record.name == 'absl']
    assert logging.get_verbosity() == logging.WARNING
  finally:
    logging.set_verbosity(before)


def test_the_first_text_with_unknown_characters_is_warned_of():
  opened = electra_jax.load(micro_run.finished()[0])
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    opened('bako')
  with pytest.warns(UserWarning, match='loses .* of the characters .*U\\+0E'):
    opened('ภูเขา')
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    opened('ภูเขา')


def test_texts_give_hidden_states_and_probabilities(run):
  texts = ['bako tiru mesa.', 'lo', '']
  reading = run(texts)
  lengths = [len(tokens) for tokens in reading.tokens]
  assert lengths[1] < lengths[0] and lengths[2] == 2
  for text, tokens in zip(texts, reading.tokens, strict=True):
    assert tokens[0] == '[CLS]' and tokens[-1] == '[SEP]'
    assert ''.join(tokens[1:-1]).replace('▁', ' ').strip() == text
  assert (
    reading.hidden_states.shape == (3, max(lengths), 32)
    and reading.hidden_states.dtype == np.float32
  )
  assert reading.replaced.shape == (3, max(lengths)) and reading.replaced.dtype == np.float32
  for row, length in enumerate(lengths):
    assert ((0 < reading.replaced[row, :length]) & (reading.replaced[row, :length] < 1)).all()
    assert (
      not reading.replaced[row, length:].any() and not reading.hidden_states[row, length:].any()
    )
    assert (
      np.isfinite(reading.hidden_states).all() and reading.hidden_states[row, :length].any(-1).all()
    )


def test_a_text_gives_the_same_result_alone_and_in_a_batch(run):
  alone, batch = run(['bako tiru mesa.']), run(['bako tiru mesa.', 'lo ni pe du fa gi ' * 4])
  length = len(alone.tokens[0])
  assert alone.tokens[0] == batch.tokens[0]
  np.testing.assert_allclose(alone.hidden_states[0], batch.hidden_states[0, :length], atol=1e-5)
  np.testing.assert_allclose(alone.replaced[0], batch.replaced[0, :length], atol=1e-6)


def test_a_single_text_may_be_a_string(run):
  np.testing.assert_array_equal(run('lo ni').replaced, run(['lo ni']).replaced)


def test_another_checkpoint_gives_other_results(run):
  other = electra_jax.load(run.workdir, 5)
  assert other.step == 5
  assert np.abs(other('bako tiru').hidden_states - run('bako tiru').hidden_states).max() > 1e-3


def test_only_parameters_are_read(run, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(run.workdir, copy)
  for step in micro_run.checkpoint_steps(copy):
    for item in ('opt_state', 'counters', 'sums'):
      shutil.rmtree(copy / 'checkpoints' / str(step) / item)
  for which in ('last', 'best', '10'):
    np.testing.assert_array_equal(
      electra_jax.load(copy, which)('bako').replaced,
      electra_jax.load(run.workdir, which)('bako').replaced,
    )


def test_the_best_checkpoint_has_the_highest_average_precision_on_the_reference_corruption(run):
  found = {
    line['step']: line['reference_ap']
    for line in micro_run.figures(run.workdir)
    if line['kind'] == 'heldout'
  }
  assert sorted(found) == [10, 20, 30]
  assert electra_jax.load(run.workdir, 'best').step == max(found, key=found.get)


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match='is not a run'):
    electra_jax.load(tmp_path)


def test_one_device_and_eight_give_the_same_evaluation(run, tmp_path, capsys):
  results = []
  for devices in (1, 8):
    copy = tmp_path / str(devices)
    shutil.copytree(run.workdir, copy)
    for step in micro_run.checkpoint_steps(copy)[:-1]:
      shutil.rmtree(copy / 'checkpoints' / str(step))
    before = {path: path.read_bytes() for path in copy.rglob('*') if path.is_file()}
    if devices == 1:
      out, err = micro_run.run('--mode=evaluate', f'--workdir={copy}')
    else:  # those of this process
      capsys.readouterr()
      assert main.main(['main', '--mode=evaluate', f'--workdir={copy}']) == 0
      out, err = capsys.readouterr()
    assert not err and 'step 30 on 26 held-out rows' in out
    after = {path: path.read_bytes() for path in copy.rglob('*') if path.is_file()}
    assert after.pop(copy / 'evaluation.json') and after == before
    results.append(json.loads((copy / 'evaluation.json').read_text()))
    assert set(results[-1]['figures']) == set(METRICS) - {
      'prediction_loss',
      'prediction_accuracy',
    }  # of other objectives
    for name, metric in results[-1]['figures'].items():
      assert f'{METRICS[name].title:38}{metric["value"]:9.4f}' in out
      assert metric['low'] <= metric['high'] or np.isnan(metric['low'])
  one, eight = results
  assert {name: value for name, value in one.items() if name != 'figures'} == {
    name: value for name, value in eight.items() if name != 'figures'
  }
  for name in one['figures']:
    # Scores fall into bins, and rounding may move one of them into the next.
    for part in ('value', 'low', 'high'):  # both resample the same documents
      np.testing.assert_allclose(
        one['figures'][name][part],
        eight['figures'][name][part],
        rtol=1e-4,
        atol=1e-6,
        err_msg=f'{name}, {part}',
      )
  last = [line for line in micro_run.figures(run.workdir) if line['kind'] == 'heldout'][-1]
  assert (
    abs(one['figures']['generator_loss']['value'] - last['generator_loss']) < 0.1
  )  # 16 of the 26 rows


def test_results_are_printed_where_they_cannot_be_written(run, tmp_path, monkeypatch):
  copy = shutil.copytree(run.workdir, tmp_path / 'copy')
  write = file_access.write_bytes
  argv = ['--mode=evaluate', f'--workdir={copy}', '--rows=8']

  def read_only(path, content):
    with file_access.reaching(path, 'written', local=True):
      if str(path).startswith(str(copy)):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
      write(path, content)

  monkeypatch.setattr(file_access, 'write_bytes', read_only)
  out, err = micro_run.run(*argv)
  assert 'held-out metric' in out and 'written' not in out
  assert err == (
    f"electra_jax: '{copy}/evaluation.json' cannot be written: Read-only file system; the results "
    'are only printed; --output names another folder.\n'
  )
  results = run_folder.Results(copy, str(tmp_path / 'other'))  # the advice
  assert results.write({'evaluation.json': b'{}'}) == f'{tmp_path}/other/evaluation.json'
  # A folder that was asked for is checked before the work.
  (tmp_path / 'file').touch()
  _, err = micro_run.run(*argv, f'--output={tmp_path}/file', status=1)
  assert f'--output {tmp_path}/file cannot be written' in err


def test_a_tokenizer_of_another_size_is_named_and_not_the_checkpoint(run, tmp_path):
  copy = shutil.copytree(run.workdir, tmp_path / 'copy')
  shutil.rmtree(copy / 'tokenizer')
  made_run.wordpiece(copy / 'tokenizer')
  with pytest.raises(
    UserError, match='the tokenizer has .* tokens, and .* started with one of 300'
  ):
    electra_jax.load(copy)


def test_a_damaged_tokenizer_is_named(run, tmp_path):
  copy = shutil.copytree(run.workdir, tmp_path / 'copy')
  path = copy / 'tokenizer' / 'tokenizer.model'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match='tokenizer.model. differs from its checksum; restore'):
    electra_jax.load(copy)
  (copy / 'tokenizer' / 'SHA256SUMS').unlink()  # the other advice: accept the change
  assert electra_jax.load(copy).tokenizer.size == 300


def test_fewer_rows_can_be_evaluated(run, tmp_path):
  copy = shutil.copytree(run.workdir, tmp_path / 'copy')
  micro_run.run('--mode=evaluate', f'--workdir={copy}', '--rows=16', '--step=20')
  result = json.loads((copy / 'evaluation.json').read_text())
  assert (result['step'], result['rows']) == (20, 16)
  line = next(
    line
    for line in micro_run.figures(run.workdir)
    if (line['kind'], line['step']) == ('heldout', 20)
  )
  for name in ('generator_loss', 'discriminator_loss', 'auc', 'total_loss'):
    np.testing.assert_allclose(result['figures'][name]['value'], line[name], rtol=1e-4)
