"""A search: what is trained, compiled, kept, chosen and repeated."""

import collections
import json
import pathlib
import re
import shutil
import signal

import finetune_files
import jax
import micro_run
import numpy as np
import pytest
from foreign_html import foreign

import electra_jax
from electra_jax import file_access, python_api
from electra_jax.config import FinetuningConfig, checked_finetuning
from electra_jax.errors import UserError
from electra_jax.finetune import halving, search, search_report
from electra_jax.finetune.search import read_rungs
from electra_jax.finetuned_report import finetuned_report
from electra_jax.training import run_folder

CLOCK = ('seconds', 'tokens_per_second')
RATES, BATCHES = (1e-3, 3e-3), (8, 16)
VARIED = (
  f'--config.search.learning_rate={RATES}',
  f'--config.search.batch_size={BATCHES}',
  '--config.search.halving=2',
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Files of labeled training and test data; there is no dev data."""
  folder = tmp_path_factory.mktemp('data')
  for split, count, seed in (('train', 64, 1), ('test', 8, 2)):
    rows = [{'text': text, 'label': str(y)} for text, y in finetune_files.sentences(count, seed)]
    (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def arguments(folder, data, *more):
  """Arguments of a run on these files, which keeps the weights of all trials."""
  return [
    *micro_run.finetune_arguments(folder, ''),
    '--config.task=classification',
    f'--config.data.train={data}/train.jsonl',
    f'--config.data.test={data}/test.jsonl',
    '--config.data.dev_fraction=0.25',
    '--config.keep_trials=all',
    '--config.head.label_smoothing=0.1',  # no other test has compiled such steps before
    *more,
  ]


@pytest.fixture(scope='module')
def searched(tmp_path_factory, data):
  """The folder of a search that was never stopped, and how often which program was compiled."""
  folder, seen = tmp_path_factory.mktemp('searched'), collections.Counter()

  def count(event, _, **fields):
    if event.endswith('backend_compile_duration'):
      seen[fields['fun_name']] += 1

  jax.monitoring.register_event_duration_secs_listener(count)
  (folder / 'printed.txt').write_text(micro_run.run(*arguments(folder, data, *VARIED))[0])
  compiled = dict(seen)  # later compilations are of other tests
  return folder / 'classification', compiled


def read(path):
  return json.loads(path.read_text())


def without_clock(value):
  """JSON without fields that depend on the clock."""
  if isinstance(value, dict):
    return {name: without_clock(x) for name, x in value.items() if name not in CLOCK}
  return [without_clock(x) for x in value] if isinstance(value, list) else value


@pytest.mark.long
def test_each_batch_size_is_compiled_once(searched):
  _, compiled = searched
  assert compiled['jit(train_step)'] == len(BATCHES)
  assert compiled['jit(predict)'] <= 2  # shapes of dev and test


def test_the_best_halves_continue_and_the_best_setting_is_chosen(searched):
  folder, _ = searched
  found, rungs = read(folder / 'search.json'), read_rungs(folder)
  assert [rung.share for rung in rungs] == [0.25, 0.5, 1.0]
  assert [len(rung.scores) for rung in rungs] == [4, 2, 1]
  for rung in rungs:
    best = sorted(rung.scores.values(), reverse=True)[: len(rung.kept)]
    assert sorted((rung.scores[n] for n in rung.kept), reverse=True) == best
  (chosen,) = rungs[-1].kept
  assert found['chosen']['setting'] == chosen
  expected = [(b, r) for b in BATCHES for r in RATES][chosen - 1]
  assert tuple(found['chosen']['changes'].values()) == expected
  of_chosen = found['settings'][chosen - 1]
  values = [
    read(folder / f'trial-{n}' / 'result.json')['figures']['dev']['accuracy'] for n in (1, 2)
  ]
  assert of_chosen['values'] == values and of_chosen['mean'] == np.mean(values)
  left = [one['left_after'] for one in found['settings'] if not one['chosen']]
  assert sorted(left) == [0.25, 0.25, 0.5]


def test_a_part_in_which_nothing_was_learned_is_reported(searched):
  folder, _ = searched
  printed, constant = (folder.parent / 'printed.txt').read_text(), read(folder / 'search.json')
  by_chance = [
    max(rung.scores.values()) <= constant['constant'] + 0.01 for rung in read_rungs(folder)[:-1]
  ]
  assert printed.count('chance decided which ones continue') == sum(by_chance)


def test_only_the_chosen_setting_is_evaluated_on_test_and_keeps_weights(searched):
  folder, _ = searched
  for n in (1, 2):
    assert set(read(folder / f'trial-{n}' / 'result.json')['figures']) == {'dev', 'test'}
    assert micro_run.checkpoint_steps(folder / f'trial-{n}')
  others = list((folder / 'search').glob('setting-*/trial-*'))
  assert len(others) == 6 and not any((one / 'checkpoints').exists() for one in others)
  kinds = {json.loads(x)['kind'] for one in others for x in (one / 'metrics.jsonl').open()}
  assert kinds == {'train', 'dev'}


def test_halving_leaves_the_chosen_trials_bitwise_as_they_are_without_it(searched, data, tmp_path):
  folder, _ = searched
  changes = read(folder / 'search.json')['chosen']['changes']
  plain = [f'--config.{field}={value}' for field, value in changes.items()]
  micro_run.run(*arguments(tmp_path / 'run', data, '--config.num_trials=1', *plain))
  a, b = folder / 'trial-1', tmp_path / 'run' / 'classification' / 'trial-1'
  assert without_clock(read(a / 'result.json')) == without_clock(read(b / 'result.json'))
  last = micro_run.checkpoint_steps(a)[-1]
  assert not micro_run.differing(micro_run.checkpoint(a, last), micro_run.checkpoint(b, last))


def test_the_folder_opens_with_the_chosen_setting(searched):
  folder, _ = searched
  run = electra_jax.load(folder.parent)
  assert run.config.batch_size == read(folder / 'search.json')['chosen']['changes']['batch_size']
  assert len(run.predict(['bako dufa'])) == 1
  results = read(folder.parent / 'results.json')
  assert results['search']['classification'] == read(folder / 'search.json')['chosen']['changes']
  assert [one['trial'] for one in results['trials']] == [1, 2]


def test_the_page_and_the_picture_show_all_settings(searched):
  folder, _ = searched
  page = (folder / 'search.md').read_text()
  rows = [line for line in page.splitlines() if line.startswith('| ')][2:]
  assert len(rows) == 4 and '**chosen**' in rows[0] and 'left at epoch 0.' in rows[-1]
  assert (folder / 'search.png').stat().st_size > 10_000


def cells_of(page, section):
  """The cells of each row of the tables of a section."""
  part = page.split(f'<section id="{section}">')[1].split('</section>')[0]
  rows = re.findall('<tr>(.*?)</tr>', part)
  return [re.findall('<t[hd][^>]*>(.*?)</t[hd]>', row) for row in rows]


def test_the_report_of_the_run_shows_all_settings_and_when_they_were_stopped(searched):
  folder, _ = searched
  finetuned_report(folder.parent)
  page, found = (folder.parent / 'report.html').read_text(), read(folder / 'search.json')
  assert foreign(page) == [] and page.count(' on dev by ') == 2 * len(found['chosen']['changes'])
  header, *rows = cells_of(page, 'search')
  assert header[1:6] == ['result', 'batch_size', 'learning_rate', 'accuracy', 'sd']
  assert header[6] == 'by seed: 0, 1' and [row[1] for row in rows[:4]].count('chosen') == 1
  by_number = {int(row[0]): row for row in rows[:4]}
  for one in found['settings']:
    row = by_number[one['setting']]
    assert row[2:4] == [f'{value:g}' for value in one['changes'].values()]
    assert row[4] == f'{100 * one["mean"]:.1f}'
    assert row[6] == ', '.join(f'{100 * value:.1f}' for value in one['values'])
    if one['left_after']:
      assert row[1].startswith(f'stopped at {one["left_after"]:g}, epoch ')
  assert [row[:3] for row in rows[5:]] == [['0.25', '4', '2'], ['0.5', '2', '1'], ['1', '1', '0']]


def test_a_search_that_ended_before_its_trials_were_moved_continues(searched, data, tmp_path):
  copy = tmp_path / 'run'
  shutil.copytree(searched[0].parent, copy)
  folder, expected = copy / 'classification', read(searched[0] / 'trial-2' / 'result.json')
  chosen = read(folder / 'search.json')['chosen']['setting']
  before = folder / 'search' / f'setting-{chosen}' / 'trial-2'
  (folder / 'trial-2').rename(before)
  record = read(before / 'result.json')
  del record['figures']['test']
  (before / 'result.json').write_text(json.dumps(record))
  out, _ = micro_run.run(*arguments(copy, data, *VARIED))
  assert 'compiling' not in out and not before.exists()
  assert read(folder / 'trial-2' / 'result.json') == expected


class Killed(BaseException):
  """Ends a search at a place."""


@pytest.mark.long
def test_an_interrupted_search_continues_and_ends_as_one_that_was_not(
  searched, data, tmp_path, monkeypatch
):
  argv = arguments(tmp_path / 'run', data, *VARIED)
  for name, number in (('run_part', 3), ('run_trial', 1), ('move_trial', 2)):
    original, calls = getattr(search, name), []

    def fails(*given, original=original, calls=calls, number=number):
      calls.append(given)
      if len(calls) == number:
        raise Killed
      return original(*given)

    with monkeypatch.context() as patch:
      patch.setattr(search, name, fails)
      with pytest.raises(Killed):
        micro_run.run(*argv)
  out, _ = micro_run.run(*argv)
  folder = tmp_path / 'run' / 'classification'
  assert 'compiling' not in out  # all trials were complete
  expected = read(searched[0] / 'search.json')
  assert without_clock(read(folder / 'search.json')) == without_clock(expected)
  for n in (1, 2):
    a, b = (place / f'trial-{n}' / 'result.json' for place in (folder, searched[0]))
    assert without_clock(read(a)) == without_clock(read(b))


@pytest.mark.faults
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_search_ends_as_one_that_was_not(number, searched, data, tmp_path):
  argv = arguments(tmp_path / 'run', data, *VARIED)
  folder = tmp_path / 'run' / 'classification'
  for setting, step in ((1, 2), (3, 2)):
    process = micro_run.start(*argv)
    place = folder / 'search' / f'setting-{setting}' / 'trial-1'
    micro_run.wait_for(lambda place=place, step=step: micro_run.last_step(place) >= step, process)
    process.send_signal(number)
    assert process.wait(60) in (42, -number)
  micro_run.run_process(*argv)
  expected = read(searched[0] / 'search.json')
  assert without_clock(read(folder / 'search.json')) == without_clock(expected)


@pytest.mark.long
def test_more_trials_are_of_the_chosen_setting(searched, data, tmp_path):
  copy = tmp_path / 'run'
  shutil.copytree(searched[0].parent, copy)
  micro_run.run(*arguments(copy, data, *VARIED, '--config.num_trials=3'))
  record = read(copy / 'classification' / 'trial-3' / 'result.json')
  batch = read(copy / 'classification' / 'search.json')['chosen']['changes']['batch_size']
  assert record['seed'] == 2 and record['steps'] == 2 * 48 // batch
  assert set(record['figures']) == {'dev', 'test'}


#### Without training ####


def test_parts_of_halving():
  assert halving.parts(9, 3) == [pytest.approx(1 / 9), pytest.approx(1 / 3)]
  assert halving.parts(8, 2) == [0.125, 0.25, 0.5]
  assert halving.parts(6, 4) == [0.25] and halving.parts(5, 0) == []
  assert halving.kept({1: 0.5, 2: 0.7, 3: 0.7, 4: 0.1, 5: 0.6}, 2) == [2, 3]
  assert halving.kept({1: 0.5}, 3) == [1] and halving.best({1: 0.5, 2: 0.7, 3: 0.7}) == 2
  # At evaluations, the first at the earliest; without them at the share itself.
  assert [halving.steps_of_part(share, 90, 30) for share in (0.1, 0.4, 0.6, 1.0)] == [
    30,
    30,
    60,
    90,
  ]
  assert halving.steps_of_part(0.25, 90, 90) == 22


@pytest.mark.parametrize(
  'changes, expected',
  [
    ({'learning_rate': (1e-4, 'fast')}, "config.optimizer.learning_rate is 'fast'"),
    ({'learning_rate': (1e-4, -1.0)}, 'config.search.learning_rate has -1.0; expected values of'),
    ({'batch_size': (8, 8)}, 'config.search.batch_size is (8, 8); expected each value once'),
    ({'batch_size': (8, 16.5)}, 'config.batch_size is 16.5; expected an integer'),
    ({'halving': 2}, 'config.search has no settings; expected at least 2'),
    ({'halving': 1}, 'config.search.halving is 1'),
    ({'epochs': (1, 2), 'halving': 3}, 'config.search has 2 settings; expected at least 3'),
  ],
)
def test_mistakes_are_found_before_anything_is_read(changes, expected):
  config = FinetuningConfig().replace(
    {'init': 'run'} | {f'search.{n}': x for n, x in changes.items()}
  )
  with pytest.raises(UserError) as raised:
    checked_finetuning(config)
  assert expected in str(raised.value)


def test_settings_are_all_combinations_with_the_types_of_their_fields():
  config = FinetuningConfig().replace({'search.epochs': (1, 2), 'search.batch_size': (8, 16)})
  assert config.settings == tuple(
    {'batch_size': batch, 'epochs': epochs} for batch in (8, 16) for epochs in (1.0, 2.0)
  )
  assert isinstance(config.settings[0]['epochs'], float)
  assert config.with_setting(config.settings[3]).batch_size == 16
  assert search_report.described_setting(config.settings[3]) == 'batch_size 16, epochs 2'


def test_a_trial_is_moved_in_a_bucket_with_its_result_last(tmp_path, monkeypatch):
  source, place = run_folder.folder(tmp_path / 'before'), run_folder.folder(tmp_path / 'trial-1')
  names = ('checkpoints/1/params', 'metrics.jsonl', 'result.json', 'tensorboard/events')
  for name in names:
    file_access.write_bytes(source / name, name.encode())
  file_access.write_bytes(place / 'metrics.jsonl', b'of a move that was interrupted')
  written = []
  monkeypatch.setattr(file_access, 'is_remote', lambda _: True)
  monkeypatch.setattr(file_access, 'files_below', lambda _: names)
  monkeypatch.setattr(file_access, 'read_bytes', lambda path: pathlib.Path(path).read_bytes())

  def writes(path, content):
    written.append(path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_bytes(content)

  monkeypatch.setattr(file_access, 'write_bytes', writes)
  search.move_trial(source, place)
  assert written[-1] == 'result.json' and not source.exists()
  assert all((place / name).read_text() == name for name in names)


def test_a_search_from_python_is_that_of_the_command_line(tmp_path, monkeypatch):
  given = []
  monkeypatch.setattr(python_api, 'run_finetuning', lambda *arguments: given.append(arguments) or 0)
  rows = [{'text': 'one', 'label': 'a'}, {'text': 'two', 'label': 'b'}]
  changes = {
    'search': {'learning_rate': np.array([1e-4, 3e-4]), 'halving': np.int64(2)},
    'search.batch_size': [np.int64(8), 16],
  }
  result = electra_jax.finetune('run', tmp_path / 'run', train=rows, config=changes)
  config = checked_finetuning(given[0][0])
  assert config.search.learning_rate == (1e-4, 3e-4) and config.search.halving == 2
  assert len(config.settings) == 4 and not config.data.dev and result.settings == {}
  electra_jax.finetune('run', tmp_path / 'run', train=rows, config={'search': {'rate': [1]}})
  with pytest.raises(UserError, match='config.search.rate is not a field'):
    checked_finetuning(given[1][0])
