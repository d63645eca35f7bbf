"""One's own texts and pairs: read from tables or plain lines, cut to length and counted, scored and predicted; what is wrong is told."""

import io
import json
import math
import sys
import types

import numpy as np
import pytest

from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import text

TRAIN = 'text\tlabel\nbad cat\tno\ngood dog\tyes\ngood cat\tyes\n'
DEV = 'text\tlabel\nbad dog\tno\n'
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghij', 'good', 'bad', 'cat', 'dog']


@pytest.fixture
def folder(tmp_path):
  for name, content in {'train.tsv': TRAIN, 'dev.tsv': DEV}.items():
    (tmp_path / name).write_text(content)
  return tmp_path


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'vocab.txt'
  path.write_text('\n'.join(WORDS))
  return load_tokenizer(path)


def data(folder, train='train.tsv', dev='dev.tsv', test='', **fields):
  named = {
    split: str(folder / name) if name else ''
    for split, name in {'train': train, 'dev': dev, 'test': test}.items()
  }
  return types.SimpleNamespace(
    **{'source': '', 'format': 'auto', 'text': 'text', 'pair': '', 'label': 'label'}
    | named
    | fields
  )


def told(examples):
  return [(example.first, example.second, example.target) for example in examples]


def message(*arguments, name='classification', **fields):
  with pytest.raises(UserError) as caught:
    task = text.open_task(name, data(*arguments, **fields))
    for split in task.splits:
      task.examples(split)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  'name, content',
  [
    ('t.csv', 'id,text,label\n7,"a, b",10\n8,c,9\n'),
    ('t.jsonl', '{"id": 7, "text": "a, b", "label": 10}\n{"id": 8, "text": "c", "label": "9"}\n'),
    ('t.json', '[{"id": 7, "text": "a, b", "label": 10}, {"id": 8, "text": "c", "label": 9}]'),
    ('t.tsv', 'label\tid\ttext\n10\t7\ta, b\n9\t8\tc\n'),
  ],
)
def test_labels_are_found_in_the_training_data_and_stay_text(folder, name, content):
  (folder / name).write_text(content)
  task = text.open_task('classification', data(folder, train=name, dev=''))
  assert task.labels == ('10', '9') and task.splits == ('train',)
  assert told(task.examples('train')) == [('a, b', None, 0), ('c', None, 1)]
  assert [str(example.id) for example in task.examples('train')] == ['7', '8']


def test_pairs_and_other_columns_and_a_test_file_without_labels(folder):
  (folder / 'p.csv').write_text('claim,proof,verdict\na,b,true\nc,d,false\n')
  (folder / 'q.csv').write_text('proof,claim\nf,e\n')
  task = text.open_task(
    'classification',
    data(
      folder, train='p.csv', dev='p.csv', test='q.csv', text='claim', pair='proof', label='verdict'
    ),
  )
  assert task.labels == ('false', 'true') and told(task.examples('dev')) == [
    ('a', 'b', 1),
    ('c', 'd', 0),
  ]
  assert told(task.examples('test')) == [('e', 'f', -1)]


def test_values_are_scaled_by_the_training_range(folder, tokenizer):
  (folder / 't.tsv').write_text('text\tlabel\na\t-2\nb\t6\nc\t0.0\n')
  (folder / 'd.tsv').write_text('text\tlabel\na\t10\nb\t-2\n')
  task = text.open_task('regression', data(folder, train='t.tsv', dev='d.tsv'))
  assert (task.head, task.metric, task.low, task.high) == ('regression', 'spearman', -2.0, 6.0)
  assert task.features(task.examples('train'), tokenizer, 16)[0].targets['value'].tolist() == [
    0.0,
    1.0,
    0.25,
  ]
  assert task.features(task.examples('dev'), tokenizer, 16)[0].targets['value'].tolist() == [
    1.5,
    0.0,
  ]
  outputs = {'value': np.array([0.75, 0.25], np.float32)}  # 4 and 0
  dev = task.examples('dev')
  assert task.score('dev', dev, None, outputs) == pytest.approx(
    {'pearson': 1.0, 'spearman': 1.0, 'mse': (36 + 4) / 2}
  )
  assert [said['value'] for said in task.predictions(dev, None, outputs)] == [4.0, 0.0]
  assert task.constant() == pytest.approx(
    {'pearson': 0.0, 'spearman': 0.0, 'mse': ((10 - 4 / 3) ** 2 + (2 + 4 / 3) ** 2) / 2}
  )


def test_rows_of_single_texts_and_pairs(tokenizer):
  single = text.restore(
    {
      'name': 'classification',
      'labels': ['no', 'yes'],
      'low': 0,
      'high': 1,
      'columns': {'first': ['text'], 'second': [], 'target': ['label']},
    }
  )
  pair = text.restore(
    {
      'name': 'classification',
      'labels': ['no', 'yes'],
      'low': 0,
      'high': 1,
      'columns': {'first': ['a'], 'second': ['b'], 'target': ['label']},
    }
  )
  a, b, c, d, e = (WORDS.index(letter) for letter in 'abcde')
  features, counts = single.features(
    [text.Example(None, 'a b c d e', None, 1), text.Example(None, '', None, -1)], tokenizer, 6
  )
  assert [row.tolist() for row in features.token_ids] == [
    [2, a, b, c, d, 3],
    [2, 3],
  ] and counts == {'texts cut to 6 tokens': 1, 'tokens cut off': 1}
  assert (
    features.targets['label'].tolist() == [1, -1] and features.targets['label'].dtype == np.int32
  )
  assert features.examples.tolist() == [0, 1] and all(
    row.dtype == np.int32 for row in features.token_ids
  )
  features, counts = pair.features(
    [text.Example(None, 'a b c d e', 'e', 0), text.Example(None, 'a b c', 'd e a', 0)], tokenizer, 8
  )
  assert [row.tolist() for row in features.token_ids] == [
    [2, a, b, c, d, 3, e, 3],
    [2, a, b, c, 3, d, e, 3],
  ]
  assert counts == {'texts cut to 8 tokens': 2, 'tokens cut off': 2}
  assert pair.features([text.Example(None, 'a', 'b', 0)], tokenizer, 8)[1] == {}
  with pytest.raises(UserError, match='max_length=4 leaves no room'):
    pair.features([text.Example(None, 'a', 'b', 0)], tokenizer, 4)


def test_pairs_are_cut_from_the_longer_one_token_by_token():
  def slowly(first, second, room):
    while first + second > room:
      first, second = (first - 1, second) if first > second else (first, second - 1)
    return first

  for first in range(14):
    for second in range(14):
      for room in range(2, 20):
        if first + second > room:
          assert text.kept(first, second, room) == slowly(first, second, room), (
            first,
            second,
            room,
          )


def test_figures_and_predictions_of_labels(folder):
  task = text.open_task('classification', data(folder, dev='train.tsv'))
  examples = task.examples('dev')
  outputs = {'logits': np.log(np.array([[0.75, 0.25], [0.4, 0.6], [0.9, 0.1]], np.float32))}
  assert task.metric == 'accuracy'
  assert task.score('dev', examples, None, outputs) == pytest.approx(
    {'accuracy': 2 / 3, 'macro_f1': 2 / 3, 'matthews': 0.5}
  )
  said = task.predictions(examples, None, outputs)
  assert json.loads(json.dumps(said[0])) == {
    'index': 0,
    'text': 'bad cat',
    'label': 'no',
    'probability': pytest.approx(0.75),
    'probabilities': {'no': pytest.approx(0.75), 'yes': pytest.approx(0.25)},
  }
  assert [one['label'] for one in said] == ['no', 'yes', 'no'] and task.submission(
    'dev', examples, None, outputs
  ) == {}
  assert task.constant() == pytest.approx({'accuracy': 2 / 3, 'macro_f1': 0.4, 'matthews': 0.0})
  huge = task.predictions(examples[:1], None, {'logits': np.array([[1e4, -1e4]], np.float32)})
  assert huge[0]['probability'] == 1.0


@pytest.mark.parametrize(
  'path, content, pair, expected',
  [
    (
      't.jsonl',
      '{"text": "a", "label": "yes"}\n{"text": "b"}\n{"text": "c", "label": null}\n',
      '',
      [('a', None, 1), ('b', None, -1), ('c', None, -1)],
    ),
    ('t.tsv', 'id\ttext\n5\ta\n', '', [('a', None, -1)]),
    ('t.csv', 'text,label\na,no\nb,\n', '', [('a', None, 0), ('b', None, -1)]),
    ('t.txt', 'a "b\tc\r\n\nd', '', [('a "b\tc', None, -1), ('', None, -1), ('d', None, -1)]),
    ('t', 'a\n', '', [('a', None, -1)]),
    ('t.txt', 'text\tlabel\na\tyes\n', '', [('a', None, 1)]),
    ('t.txt', 'a\tb\nc\t\n', 'pair', [('a', 'b', -1), ('c', '', -1)]),
    ('t.txt', 'pair\ttext\na\tb\n', 'pair', [('b', 'a', -1)]),
    ('-', 'a\nb', '', [('a', None, -1), ('b', None, -1)]),
    ('-', '{"text": "a"}\n', '', [('a', None, -1)]),
    ('-', 'text\tlabel\na\tno\n', '', [('a', None, 0)]),
    ('-', 'a\tb\n', 'pair', [('a', 'b', -1)]),
  ],
)
def test_a_restored_task_reads_tables_and_plain_lines(
  folder, monkeypatch, path, content, pair, expected
):
  (folder / 'pairs.tsv').write_text('text\tpair\tlabel\na\tb\tno\nc\td\tyes\n')
  opened = text.open_task(
    'classification', data(folder, train='pairs.tsv' if pair else 'train.tsv', dev='', pair=pair)
  )
  task = text.restore(json.loads(json.dumps(opened.describe())))
  assert (task.labels, task.metric, task.head, task.columns) == (
    opened.labels,
    opened.metric,
    opened.head,
    opened.columns,
  )
  monkeypatch.setattr(sys, 'stdin', types.SimpleNamespace(buffer=io.BytesIO(content.encode())))
  if path != '-':
    path = str(folder / path)
    with open(path, 'w', newline='') as file:
      file.write(content)
  assert told(task.read(path)) == expected


@pytest.mark.parametrize(
  'path, content, pair, said',
  [
    (
      't.tsv',
      'texts\nx\n',
      '',
      "line 2 of the file '{}' has no column 'text' (did you mean 'texts'?); its columns are 'texts'; name one with data.text",
    ),
    (
      't.tsv',
      'text\tlabel\nx\tmaybe\n',
      '',
      "line 2 of the file '{}' has the label 'maybe', which the task 'classification' has not; labels are 'no', 'yes'",
    ),
    (
      't.txt',
      'a\tb\na\tb\tc\n',
      'pair',
      "line 2 of the file '{}' has 3 fields where the task 'classification' wants two texts with a tab between",
    ),
    ('t.txt', '', '', "the file '{}' is empty; give a text a line"),
    ('t.jsonl', '{"text": ["a"]}\n', '', "line 1 of the file '{}' has a list in its column 'text'"),
    ('t.txt', 'a\0b', '', "line 1 of the file '{}' holds a zero byte"),
  ],
)
def test_what_is_wrong_with_texts_to_predict_is_told(folder, path, content, pair, said):
  task = text.restore(
    {
      'name': 'classification',
      'labels': ['no', 'yes'],
      'low': 0,
      'high': 1,
      'columns': {'first': ['text'], 'second': [pair] if pair else [], 'target': ['label']},
    }
  )
  (folder / path).write_text(content)
  with pytest.raises(UserError) as caught:
    task.read(str(folder / path))
  assert said.format(folder / path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'name, content, fields, said',
  [
    ('train.tsv', 'text\tlabel\na\t\nb\tyes\n', {}, "line 2 of the file '{}' has no label"),
    ('train.tsv', 'text\tlabel\na\tyes\nb\tyes\n', {}, "the file '{}' has one label alone, 'yes'"),
    (
      'train.tsv',
      'text\ttag\na\tyes\nb\tno\n',
      {},
      "the file '{}' has no column 'label'; its columns are 'text', 'tag'; name one with data.label",
    ),
    (
      'train.tsv',
      'text\tlabel\na\tyes\nb\tno\n',
      {'text': 'txt'},
      "the file '{}' has no column 'txt' (did you mean 'text'?)",
    ),
    (
      'train.tsv',
      'text\tlabel\na\tyes\nb\tno\n',
      {'pair': 'other'},
      "the file '{}' has no column 'other'; its columns are 'text', 'label'; name one with data.pair",
    ),
    ('train.tsv', 'text\ttext\na\tyes\n', {}, "the file '{}' has two columns called 'text'"),
    (
      'train.tsv',
      'text\tlabel\na\tyes\nb\n',
      {},
      "line 3 of the file '{}' has 1 fields where its header has 2",
    ),
    ('train.tsv', '', {}, "the file '{}' is empty"),
    ('dev.tsv', 'text\tlabel\n', {}, "the file '{}' holds no rows"),
    (
      'dev.tsv',
      'text\tlabel\na\tno\nb\tmaybe\n',
      {},
      "line 3 of the file '{}' has the label 'maybe', which the training data have not; labels are 'no', 'yes'",
    ),
    ('dev.tsv', 'text\na\n', {}, "the file '{}' has no column 'label'"),
    (
      'dev.tsv',
      'text\tlabel\na\t\n',
      {},
      "line 2 of the file '{}' has nothing in its column 'label'",
    ),
  ],
)
def test_what_is_wrong_with_ones_own_data_is_told(folder, name, content, fields, said):
  (folder / name).write_text(content)
  assert said.format(folder / name) in message(folder, **fields)


@pytest.mark.parametrize(
  'content, said',
  [
    (
      'text\tlabel\na\t1\nb\thigh\n',
      "line 3 of the file '{}' has 'high' where a number is wanted; mend it, or name another column with data.label",
    ),
    ('text\tlabel\na\t1\nb\tnan\n', "line 3 of the file '{}' has 'nan' where a number is wanted"),
    ('text\tlabel\na\t1\nb\t\n', "line 3 of the file '{}' has nothing in its column 'label'"),
    (
      'text\tlabel\na\t1\nb\t1.0\n',
      "the file '{}' has one value alone, 1, so there is nothing to learn",
    ),
  ],
)
def test_values_that_are_none_are_told(folder, content, said):
  (folder / 'train.tsv').write_text(content)
  assert said.format(folder / 'train.tsv') in message(folder, name='regression', dev='')


def test_json_lines_are_checked_one_by_one(folder):
  (folder / 't.jsonl').write_text('{"text": "a", "label": "no"}\n{"text": "b", "lable": "yes"}\n')
  assert "t.jsonl' has no column 'label' (did you mean 'lable'?)" in (
    said := message(folder, train='t.jsonl')
  ) and said.startswith('line 2 of')


def test_data_that_is_not_named_is_told(folder):
  assert (
    "the task 'classification' has no training data; name a file in config.data.train"
    in message(folder, train='')
  )
  assert 'leave config.data.source empty' in message(folder, source='somewhere')
  assert "nosuch.tsv' cannot be read: No such file" in message(folder, train='nosuch.tsv')
  with pytest.raises(
    UserError,
    match="there is no test data for the task 'classification'; it has 'train', 'dev'; name a file in config.data.test",
  ):
    text.open_task('classification', data(folder)).examples('test')


def test_no_labelled_example_has_no_figure(folder):
  task = text.open_task('classification', data(folder))
  figures = task.score(
    'test', [text.Example(None, 'a', None, -1)], None, {'logits': np.zeros((1, 2))}
  )
  assert figures.keys() == {'accuracy', 'macro_f1', 'matthews'} and all(
    map(math.isnan, figures.values())
  )
