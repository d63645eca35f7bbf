"""Multiple choice: tables, rows of all choices in one batch, the loss, predictions."""

import json

import numpy as np
import pytest
import torch
from finetune_files import opened, restored
from torch.nn import functional

from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import answers, batches, losses
from electra_jax.finetune.losses import LossSettings

LINES = [
  {'text': 'q', 'choices': ['a', 'b', 'c'], 'label': 2},
  {'text': 'r', 'choices': ['c', 'd'], 'label': 0},
]


def open_lines(tmp_path, lines=LINES, **fields):
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)))
  return opened('choice', train=path, dev=path, **fields)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join([*SPECIAL_TOKENS, *'abcdqr']))
  return load_tokenizer(path, lowercase=True)


@pytest.mark.parametrize(
  'content, name, fields',
  [
    ('sent1,ending0,ending1,label\nq,a,b,1\nr,c,d,0\n', 'a.csv', {}),  # SWAG
    ('startphrase,sent1,sent2,ending0,ending1,label\nq,s,t,a,b,1\nr,s,t,c,d,0\n', 'a.csv', {}),
    ('premise,choice1,choice2,label\nq,a,b,1\nr,c,d,0\n', 'a.csv', {}),  # COPA
    ('question,premise,choice1,choice2,label\ncause,q,a,b,1.0\neffect,r,c,d,0.0\n', 'a.csv', {}),
    ('question,x,y,answer\nq,a,b,B\nr,c,d,A\n', 'a.csv', {'pair': 'x, y'}),
    ('text,x,y,label\nq,a,b,b\nr,c,d,c\n', 'a.csv', {'pair': 'x,y'}),
  ],
)
def test_choices_are_columns_or_lists(tmp_path, content, name, fields):
  (tmp_path / name).write_text(content)
  task = opened('choice', train=tmp_path / name, dev=tmp_path / name, **fields)
  found = [(e.text, e.choices, e.target) for e in task.examples('dev')]
  assert found == [('q', ('a', 'b'), 1), ('r', ('c', 'd'), 0)]
  assert restored(task).read(str(tmp_path / name)) == task.examples('dev')
  assert task.notes[0].startswith('columns: text ')


def test_each_example_has_a_row_per_choice_and_fillers(tmp_path, tokenizer):
  task = open_lines(tmp_path)
  features, _ = task.features(task.examples('train'), tokenizer, 16)
  words = [' '.join(map(tokenizer.token, row)) for row in features.token_ids]
  assert words[2] == '[CLS] q [SEP] c [SEP]' and words[5] == '[CLS] [SEP] [SEP]'
  assert features.targets['choice'].tolist() == [0, 0, 1, 1, 0, -1]
  assert features.choices == 3 and features.examples.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_choices_of_an_example_are_in_one_batch(tmp_path, tokenizer):
  task = open_lines(tmp_path, LINES * 7)
  features, _ = task.features(task.examples('train'), tokenizer, 16)
  epochs = batches.Epochs(features, 4, seed=0)
  assert epochs.steps == 4  # of 14 examples
  for step in range(8):
    rows = epochs.rows(step).reshape(-1, 3)
    assert (rows % 3 == [0, 1, 2]).all() and len(rows) in (2, 4)
  found = np.sort(np.concatenate([epochs.rows(step) for step in range(4)]))
  assert found.tolist() == list(range(42))


def test_the_loss_is_cross_entropy_over_the_choices():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal(12).astype(np.float32)
  right = np.array([0, 1, 0, 1, 0, -1, np.nan, np.nan, -1, 1, 0, 0], np.float32)
  batch = {'choice': right, 'weights': np.repeat([1, 1, 1, 0], 3).astype(np.float32)}
  settings = LossSettings(choices=3)
  total, count, sums = losses.head_loss('choice', {'value': logits}, batch, settings)
  theirs = sum(
    functional.cross_entropy(torch.tensor(logits[a:b]), torch.tensor(label)).item()
    for a, b, label in ((0, 3, 1), (3, 5, 0))
  )
  assert count == 2 == sums['count']
  np.testing.assert_allclose(total, theirs, rtol=1e-6)


def test_predictions_and_accuracy_are_of_real_choices(tmp_path, tokenizer):
  task = open_lines(tmp_path)
  examples = task.examples('dev')
  features, _ = task.features(examples, tokenizer, 16)
  outputs = {'value': np.array([0, 1, 2, 0, np.log(3), 9])}
  assert task.score('dev', examples, features, outputs) == {'accuracy': 0.5}
  first, second = restored(task).predictions(examples, features, outputs)
  assert (first['label'], first['choice']) == (2, 'c') and second['choice'] == 'd'
  assert second['probabilities'] == pytest.approx([0.25, 0.75])
  assert answers.answer_statistics('choice', features, outputs) == {
    'same_answer': 0.5,
    'same_target': 0.5,
  }
  assert task.constant() == {'accuracy': 0.5} and task.labeled('dev', features)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'label': 3}, 'line 1 .* has the label 3; expected the number of one of its 3 choices'),
    ({'label': None}, "line 1 .* has no label: its column 'label' is null"),
    ({'choices': ['a']}, 'line 1 .* has 1 choices; expected at least two'),
    ({'choices': 'a'}, "line 1 .* has no list of texts in its column 'choices'"),
  ],
)
def test_errors_name_the_line(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    open_lines(tmp_path, [LINES[0] | change])
