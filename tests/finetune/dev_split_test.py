"""Dev data that is split off training data: shares of labels, equal texts, groups, records."""

import json

import finetune_files
import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from electra_jax.config import FinetuningConfig
from electra_jax.errors import UserError
from electra_jax.finetune.dev_split import choose_dev, open_split_task
from electra_jax.finetune.tasks.task import SplitKey
from electra_jax.training import run_folder

RNG = np.random.default_rng(0)


def labeled(counts):
  """Keys of examples of different texts, with so many of each label, in random order."""
  labels = RNG.permutation(np.repeat(np.arange(len(counts)), counts))
  return [SplitKey(i, (int(label),)) for i, label in enumerate(labels)]


def counted(keys, chosen):
  return np.bincount([keys[i].labels[0] for i in chosen])


@pytest.mark.parametrize('counts', [(70, 30), (601, 255, 144), (997, 13, 5), (50,) * 4])
@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.37])
def test_numbers_of_labels_are_those_of_scikit_learn(counts, fraction):
  keys = labeled(counts)
  labels = [key.labels[0] for key in keys]
  splitter = StratifiedShuffleSplit(1, test_size=fraction, random_state=0)
  ((_, expected),) = splitter.split(np.zeros(len(labels)), labels)
  theirs = np.bincount(np.array(labels)[expected], minlength=len(counts))
  ours = np.pad(found := counted(keys, choose_dev(keys, fraction)), (0, len(counts) - len(found)))
  if len(set(counts)) == len(counts):
    assert np.array_equal(ours, theirs)
  else:  # scikit-learn draws which of several equal remainders is rounded up
    assert np.array_equal(np.sort(ours), np.sort(theirs))


def test_equal_texts_are_on_one_side_and_shares_stay_exact():
  keys = [
    key._replace(group=key.group // 2 if key.group < 60 else key.group)
    for key in labeled((80, 120))
  ]
  chosen = set(choose_dev(keys, 0.2).tolist())
  sides = {}
  for i, key in enumerate(keys):
    sides.setdefault(key.group, set()).add(i in chosen)
  assert all(len(side) == 1 for side in sides.values())
  assert counted(keys, chosen).tolist() == [16, 24]


def test_each_label_stays_in_the_training_data():
  keys = labeled((1, 2, 40))
  train = counted(keys, set(range(len(keys))) - set(choose_dev(keys, 0.45).tolist()))
  assert len(train) == 3 and train.all()


def test_large_groups_come_near_to_the_fraction():
  keys = [SplitKey(i // 60) for i in range(600)]
  assert len(choose_dev(keys, 0.09)) == 60  # 54 are wanted


def test_labels_of_texts_with_several_are_spread_better_than_at_random():
  rates = np.array([0.5, 0.2, 0.05, 0.02])
  labels = RNG.random((1000, 4)) < rates
  keys = [SplitKey(i, tuple(np.flatnonzero(row).tolist())) for i, row in enumerate(labels)]

  def distance(chosen):
    return np.abs(labels[chosen].sum(0) / labels.sum(0) - 0.1).max()

  ours = choose_dev(keys, 0.1)
  random = [distance(RNG.permutation(1000)[:100]) for _ in range(20)]
  assert 95 <= len(ours) <= 105 and distance(ours) <= 0.03 < np.median(random)


def test_texts_that_are_all_equal_are_refused():
  with pytest.raises(UserError, match='have the same text; set --config.data.dev'):
    choose_dev([SplitKey('a', (0,)), SplitKey('a', (1,))], 0.5)


#### Tasks ####

TASKS = {
  'classification': [
    {'text': f'{word} {i // 2}', 'label': word} for i in range(40) for word in ('good', 'bad')
  ],
  'regression': [{'text': f'text {i // 2}', 'label': i / 40} for i in range(40)],
  'multilabel': [{'text': f'text {i}', 'label': ['a', 'b'][: i % 3]} for i in range(40)],
  'ranking': [
    {'query': f'query {i // 4}', 'passage': f'passage {i}', 'relevance': i % 2} for i in range(40)
  ],
  'choice': [
    {'text': f'text {i // 2}', 'choices': ['a', f'b {i}'], 'label': i % 2} for i in range(40)
  ],
  'span': [
    {
      'question': f'which {i}',
      'context': f'number {i // 4} it is',
      'answers': {'text': [f'{i // 4}'], 'answer_start': [7]},
    }
    for i in range(40)
  ],
  'tagging': [
    {'tokens': ['word', str(i // 2)], 'tags': ['O', 'B-X' if i % 3 else 'O']} for i in range(40)
  ],
}
# What examples of one group have in common.
GROUPS = {
  'classification': lambda one: one.first,
  'regression': lambda one: one.first,
  'multilabel': lambda one: one.first,
  'ranking': lambda one: one.first,
  'choice': lambda one: one.text,
  'span': lambda one: one.context,
  'tagging': lambda one: one.tokens,
}


def config_of(name, path, **changes):
  fields = {'task': name, 'data.train': str(path)} | changes
  return FinetuningConfig().replace(fields)


@pytest.fixture(params=TASKS)
def made(request, tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in TASKS[request.param]))
  return request.param, path


def test_no_group_is_on_both_sides(made, tmp_path):
  name, path = made
  config = config_of(name, path)
  task, note = open_split_task(name, config, run_folder.folder(tmp_path / 'run'))
  train, dev = task.examples('train'), task.examples('dev')
  assert len(train) + len(dev) == len(TASKS[name]) and 0 < len(dev) <= len(TASKS[name]) // 8
  assert not set(map(GROUPS[name], train)) & set(map(GROUPS[name], dev))
  assert f'{len(dev)} training examples are dev and {len(train)} remain' in note
  assert task.splits[:2] == ('train', 'dev') and task.constant()
  again, _ = open_split_task(name, config)  # without a record
  assert list(again.examples('dev')) == list(dev)


def test_the_recorded_split_is_used(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in TASKS['classification']))
  folder = run_folder.folder(tmp_path / 'run')
  open_split_task('classification', config_of('classification', path), folder)
  record = json.loads((folder / 'classification' / 'split.json').read_text())
  record['dev'] = [0, 1]
  (folder / 'classification' / 'split.json').write_text(json.dumps(record))
  task, _ = open_split_task('classification', config_of('classification', path), folder)
  assert len(task.examples('dev')) == 2
  other = config_of('classification', path, **{'data.dev_fraction': 0.2})
  assert len(open_split_task('classification', other, folder)[0].examples('dev')) == 16


def test_swapped_pairs_are_on_the_side_of_their_pair(tmp_path):
  folder = finetune_files.glue(tmp_path / 'glue', train=40)
  (folder / 'MRPC' / 'dev.tsv').unlink()
  config = config_of('mrpc', '', **{'data.source': str(folder)})
  task, _ = open_split_task('mrpc', config)
  train, dev = task.examples('train'), task.examples('dev')
  pairs = {frozenset((one.first, one.second)) for one in dev}
  assert len(train) == 2 * (40 - len(dev)) and len(dev) >= 4
  assert not pairs & {frozenset((one.first, one.second)) for one in train}


def test_a_fraction_of_0_requires_dev_data(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in TASKS['regression']))
  config = config_of('regression', path, **{'data.dev_fraction': 0.0})
  task, note = open_split_task('regression', config)
  assert 'dev' not in task.splits and not note
