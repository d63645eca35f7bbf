"""Classification and regression of user tables.

Texts and pairs are read from tables or plain lines, truncated with a count, scored and predicted;
errors name their place.
"""

import io
import json
import math
import sys
import types

import finetune_files
import numpy as np
import pytest

from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import restore_task, text_rows
from electra_jax.finetune.tasks.text_task import Example

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


def opened(name, folder, train='train.tsv', dev='dev.tsv', test='', **fields):
  files = {'train': train, 'dev': dev, 'test': test}
  paths = {split: folder / file if file else '' for split, file in files.items()}
  return finetune_files.opened(name, **paths, **fields)


def restored(first='text', second=''):
  """A classification task without data, with the columns of texts and the labels no and yes."""
  columns = {'first': [first], 'second': [second] if second else [], 'target': ['label']}
  return restore_task(
    {
      'name': 'classification',
      'labels': ['no', 'yes'],
      'low': 0,
      'high': 1,
      'columns': columns,
    }
  )


def contents(examples):
  return [(example.first, example.second, example.target) for example in examples]


def message(*arguments, name='classification', **fields):
  with pytest.raises(UserError) as caught:
    task = opened(name, *arguments, **fields)
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
def test_labels_come_from_the_training_data_as_text(folder, name, content):
  (folder / name).write_text(content)
  task = opened('classification', folder, train=name, dev='')
  assert task.labels == ('10', '9') and task.splits == ('train',)
  assert contents(task.examples('train')) == [('a, b', None, 0), ('c', None, 1)]
  assert [str(example.id) for example in task.examples('train')] == ['7', '8']


def test_pairs_other_columns_and_a_test_file_without_labels(folder):
  (folder / 'p.csv').write_text('claim,proof,verdict\na,b,true\nc,d,false\n')
  (folder / 'q.csv').write_text('proof,claim\nf,e\n')
  columns = {'text': 'claim', 'pair': 'proof', 'label': 'verdict'}
  task = opened('classification', folder, train='p.csv', dev='p.csv', test='q.csv', **columns)
  assert task.labels == ('false', 'true') and contents(task.examples('dev')) == [
    ('a', 'b', 1),
    ('c', 'd', 0),
  ]
  assert contents(task.examples('test')) == [('e', 'f', -1)]


def test_values_are_scaled_by_the_range_of_the_training_data(folder, tokenizer):
  (folder / 't.tsv').write_text('text\tlabel\na\t-2\nb\t6\nc\t0.0\n')
  (folder / 'd.tsv').write_text('text\tlabel\na\t10\nb\t-2\n')
  task = opened('regression', folder, train='t.tsv', dev='d.tsv')
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
  assert [one['value'] for one in task.predictions(dev, None, outputs)] == [4.0, 0.0]
  assert task.constant() == pytest.approx(
    {'pearson': 0.0, 'spearman': 0.0, 'mse': ((10 - 4 / 3) ** 2 + (2 + 4 / 3) ** 2) / 2}
  )


def test_rows_of_single_texts_and_pairs(tokenizer):
  single, pair = restored(), restored('a', 'b')
  a, b, c, d, e = (WORDS.index(letter) for letter in 'abcde')
  features, counts = single.features(
    [Example(None, 'a b c d e', None, 1), Example(None, '', None, -1)], tokenizer, 6
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
    [Example(None, 'a b c d e', 'e', 0), Example(None, 'a b c', 'd e a', 0)], tokenizer, 8
  )
  assert [row.tolist() for row in features.token_ids] == [
    [2, a, b, c, d, 3, e, 3],
    [2, a, b, c, 3, d, e, 3],
  ]
  assert counts == {'texts cut to 8 tokens': 2, 'tokens cut off': 2}
  assert pair.features([Example(None, 'a', 'b', 0)], tokenizer, 8)[1] == {}
  with pytest.raises(UserError, match='config.max_length is 4, which leaves no room'):
    pair.features([Example(None, 'a', 'b', 0)], tokenizer, 4)


def test_the_longer_text_of_a_pair_is_truncated_token_by_token():
  def slowly(first, second, room):
    while first + second > room:
      first, second = (first - 1, second) if first > second else (first, second - 1)
    return first

  for first in range(14):
    for second in range(14):
      for room in range(2, 20):
        if first + second > room:
          assert text_rows.truncated_first(first, second, room) == slowly(first, second, room), (
            first,
            second,
            room,
          )


def test_metrics_and_predictions_of_labels(folder):
  task = opened('classification', folder, dev='train.tsv')
  examples = task.examples('dev')
  outputs = {'logits': np.log(np.array([[0.75, 0.25], [0.4, 0.6], [0.9, 0.1]], np.float32))}
  assert task.metric == 'accuracy'
  assert task.score('dev', examples, None, outputs) == pytest.approx(
    {'accuracy': 2 / 3, 'macro_f1': 2 / 3, 'matthews': 0.5}
  )
  predictions = task.predictions(examples, None, outputs)
  assert json.loads(json.dumps(predictions[0])) == {
    'index': 0,
    'text': 'bad cat',
    'label': 'no',
    'probability': pytest.approx(0.75),
    'probabilities': {'no': pytest.approx(0.75), 'yes': pytest.approx(0.25)},
  }
  assert [one['label'] for one in predictions] == ['no', 'yes', 'no'] and task.submission(
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
  train = 'pairs.tsv' if pair else 'train.tsv'
  original = opened('classification', folder, train=train, dev='', pair=pair)
  task = finetune_files.restored(original)
  for name in ('labels', 'metric', 'head', 'columns'):
    assert getattr(task, name) == getattr(original, name), name
  monkeypatch.setattr(sys, 'stdin', types.SimpleNamespace(buffer=io.BytesIO(content.encode())))
  if path != '-':
    path = str(folder / path)
    with open(path, 'w', newline='') as file:
      file.write(content)
  assert contents(task.read(path)) == expected


@pytest.mark.parametrize(
  'path, content, pair, expected',
  [
    (
      't.tsv',
      'texts\nx\n',
      '',
      "line 2 of the file '{}' has no column 'text' (did you mean 'texts'?); its columns are "
      "'texts'; set data.text to one of them",
    ),
    (
      't.tsv',
      'text\tlabel\nx\tmaybe\n',
      '',
      "line 2 of the file '{}' has the label 'maybe'; expected one of 'no', 'yes'",
    ),
    (
      't.txt',
      'a\tb\na\tb\tc\n',
      'pair',
      "line 2 of the file '{}' has 3 fields; expected two texts separated by a tab, for the task "
      "'classification'",
    ),
    ('t.txt', '', '', "the file '{}' is empty; expected one text per line"),
    ('t.jsonl', '{"text": ["a"]}\n', '', "line 1 of the file '{}' has a list in its column 'text'"),
    ('t.txt', 'a\0b', '', "line 1 of the file '{}' contains a zero byte"),
  ],
)
def test_errors_in_files_to_predict_name_their_place(folder, path, content, pair, expected):
  task = restored(second=pair)
  (folder / path).write_text(content)
  with pytest.raises(UserError) as caught:
    task.read(str(folder / path))
  assert expected.format(folder / path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'name, content, fields, expected',
  [
    ('train.tsv', 'text\tlabel\na\t\nb\tyes\n', {}, "line 2 of the file '{}' has no label"),
    ('train.tsv', 'text\tlabel\na\tyes\nb\tyes\n', {}, "the file '{}' has a single label, 'yes'"),
    (
      'train.tsv',
      'text\ttag\na\tyes\nb\tno\n',
      {},
      "the file '{}' has no column 'label'; its columns are 'text', 'tag'; set data.label to one",
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
      "the file '{}' has no column 'other'; its columns are 'text', 'label'; set data.pair to one",
    ),
    ('train.tsv', 'text\ttext\na\tyes\n', {}, "the file '{}' has two columns named 'text'"),
    (
      'train.tsv',
      'text\tlabel\na\tyes\nb\n',
      {},
      "line 3 of the file '{}' has 1 fields; expected 2 as in the header",
    ),
    ('train.tsv', '', {}, "the file '{}' is empty"),
    ('dev.tsv', 'text\tlabel\n', {}, "the file '{}' has no rows"),
    (
      'dev.tsv',
      'text\tlabel\na\tno\nb\tmaybe\n',
      {},
      "line 3 of the file '{}' has the label 'maybe'; expected one of 'no', 'yes'",
    ),
    ('dev.tsv', 'text\na\n', {}, "the file '{}' has no column 'label'"),
    (
      'dev.tsv',
      'text\tlabel\na\t\n',
      {},
      "line 2 of the file '{}' has no label: its column 'label' is empty",
    ),
  ],
)
def test_errors_in_training_and_dev_data_name_their_place(folder, name, content, fields, expected):
  (folder / name).write_text(content)
  assert expected.format(folder / name) in message(folder, **fields)


@pytest.mark.parametrize(
  'content, expected',
  [
    (
      'text\tlabel\na\t1\nb\thigh\n',
      "line 3 of the file '{}' has the value 'high'; expected a number (data.label names the",
    ),
    (
      'text\tlabel\na\t1\nb\tnan\n',
      "line 3 of the file '{}' has no label: its column 'label' is nan",
    ),
    (
      'text\tlabel\na\t1\nb\t\n',
      "line 3 of the file '{}' has no label: its column 'label' is empty",
    ),
    (
      'text\tlabel\na\t1\nb\t1.0\n',
      "the file '{}' has a single value, 1; expected at least two different values",
    ),
  ],
)
def test_values_that_are_not_numbers_are_errors(folder, content, expected):
  (folder / 'train.tsv').write_text(content)
  assert expected.format(folder / 'train.tsv') in message(folder, name='regression', dev='')


def test_each_json_line_is_checked_for_its_columns(folder):
  (folder / 't.jsonl').write_text('{"text": "a", "label": "no"}\n{"text": "b", "lable": "yes"}\n')
  found = message(folder, train='t.jsonl')
  assert found.startswith('line 2 of')
  assert "t.jsonl' has no column 'label' (did you mean 'lable'?)" in found


def test_missing_data_is_an_error_that_names_the_field(folder):
  assert (
    "the task 'classification' has no train data; it has 'dev': set config.data.train"
    in message(folder, train='')
  )
  assert 'leave config.data.source empty' in message(folder, source='somewhere')
  assert "nosuch.tsv' cannot be read: No such file" in message(folder, train='nosuch.tsv')
  with pytest.raises(
    UserError,
    match="task 'classification' has no test data; it has 'train', 'dev': set config.data.test",
  ):
    opened('classification', folder).examples('test')


def test_metrics_without_labeled_examples_are_nan(folder):
  task = opened('classification', folder)
  metrics = task.score('test', [Example(None, 'a', None, -1)], None, {'logits': np.zeros((1, 2))})
  assert metrics.keys() == {'accuracy', 'macro_f1', 'matthews'} and all(
    map(math.isnan, metrics.values())
  )


@pytest.mark.parametrize(
  'written, labels, others',
  [
    ('1.0 0 1', ('0', '1'), '1.0 0.0 1 "1.0"'),
    ('true false true', ('false', 'true'), '"True" "FALSE" true "true"'),
    ('"1.0" "0.0" "1.0"', ('0.0', '1.0'), '1 0 1.0 "1"'),
  ],
)
def test_numbers_and_booleans_are_the_same_label_however_they_are_written(
  folder, written, labels, others
):
  for name, values in (('t.jsonl', written), ('u.jsonl', others)):
    rows = [f'{{"text": "a", "label": {value}}}' for value in values.split()]
    (folder / name).write_text('\n'.join(rows))
  task = opened('classification', folder, 't.jsonl', 'u.jsonl')
  assert task.labels == labels
  assert [example.target for example in task.examples('dev')] == [1, 0, 1, 1]


@pytest.mark.parametrize(
  'value', ['NaN', 'nan', '<NA>', 'Infinity', '-inf', 'null', 'NULL', '', ' ']
)
@pytest.mark.parametrize('name', ['classification', 'regression'])
def test_labels_that_stand_for_a_missing_value_are_refused(folder, value, name):
  (folder / 't.csv').write_text(f'text,label\na,1\nb,2\nc,{value}\n')
  assert 'line 4 of the file' in message(folder, 't.csv', '', name=name)
  assert "has no label: its column 'label' is" in message(folder, 't.csv', '', name=name)
  if value in ('NaN', 'Infinity', 'null'):
    rows = ['{"text": "a", "label": 1}', '{"text": "b", "label": 2}', '{"text": "c", "label": %s}']
    (folder / 't.jsonl').write_text('\n'.join(rows) % value)
    assert 'line 3 of the file' in message(folder, 't.jsonl', '', name=name)
    assert "has no label: its column 'label' is" in message(folder, 't.jsonl', '', name=name)


def test_a_column_that_is_not_read_may_be_nan(folder):
  (folder / 't.jsonl').write_text(
    '{"text": "a", "label": 1, "x": NaN}\n{"text": "b", "label": 2, "x": 1}\n'
  )
  assert opened('classification', folder, 't.jsonl', '').labels == ('1', '2')
  (folder / 'u.jsonl').write_text('{"text": NaN, "label": 1}\n{"text": "b", "label": 2}\n')
  assert "has NaN in its column 'text'; expected text" in message(folder, 'u.jsonl', '')


def test_integers_are_named_by_a_field(folder):
  (folder / 't.csv').write_text('text,label\na,0\nb,2.0\n')
  task = opened('classification', folder, 't.csv', 't.csv', label_names='bad,so so,good')
  assert task.labels == ('bad', 'so so', 'good')
  assert [example.target for example in task.examples('dev')] == [0, 2]
  again = restore_task(json.loads(json.dumps(task.describe())))
  assert [example.target for example in again.read(str(folder / 't.csv'))] == [0, 2]
  found = message(folder, 't.csv', '', label_names='bad,good')
  assert (
    'line 3' in found and 'has the label 2.0; expected 0 to 1, as data.label_names has 2' in found
  )
  found = message(folder, 't.csv', '', label_names='nosuch.txt')
  assert "data.label_names is 'nosuch.txt', which is no file; expected names separated" in found
  (folder / 'u.csv').write_text('text,label\na,bad\nb,worse\n')
  found = message(folder, 'u.csv', '', label_names='bad,good')
  assert "has the label 'worse', which data.label_names lacks" in found


@pytest.mark.parametrize(
  'header, pair, columns',
  [
    ('sentence,label', None, "columns: text 'sentence', label 'label'"),
    ('premise,hypothesis,label', 'b', "columns: text 'premise', pair 'hypothesis', label 'label'"),
    ('text,sentence2,category', None, "columns: text 'text', label 'category'"),
  ],
)
def test_usual_columns_are_detected_and_reported(folder, header, pair, columns):
  rows = ['a,b,1', 'c,d,2'] if header.count(',') == 2 else ['a,1', 'c,2']
  (folder / 't.csv').write_text('\n'.join([header, *rows]) + '\n')
  task = opened('classification', folder, 't.csv', '')
  assert task.notes == (columns,)
  assert contents(task.examples('train'))[0] == ('a', pair, 0)


LONG = [Example(None, 'a b c d e f g h i j', None, 1), Example(None, 'a b', None, 0)]


def windowed(**changes):
  described = restored().describe() | {'long_texts': 'windows', 'stride': 4} | changes
  return restore_task(json.loads(json.dumps(described)))


def test_windows_cover_a_long_text_and_have_its_label(tokenizer):
  features, counts = windowed().features(LONG, tokenizer, 8)
  words = [''.join(WORDS[i] for i in row[1:-1]) for row in features.token_ids]
  assert words == ['abcdef', 'defghi', 'ghij', 'ab']
  assert features.examples.tolist() == [0, 0, 0, 1]
  assert features.targets['label'].tolist() == [1, 1, 1, 0]
  assert counts == {'further windows on texts longer than 8 tokens': 2}


def test_windows_of_a_pair_have_the_first_text(tokenizer):
  task = restore_task(restored('x', 'y').describe() | {'long_texts': 'windows', 'stride': 4})
  features, counts = task.features([Example(None, 'a b c', 'a b c d e f', 0)], tokenizer, 9)
  rows = [' '.join(WORDS[i] for i in row) for row in features.token_ids]
  assert rows[0] == '[CLS] a b c [SEP] a b c [SEP]' and rows[-1].endswith('e f [SEP]')
  assert all(row.startswith('[CLS] a b c [SEP]') for row in rows)
  assert counts == {'further windows on texts longer than 9 tokens': len(rows) - 1}


@pytest.mark.parametrize('pooling, share', [('mean', (0.2 + 0.6 + 0.7) / 3), ('max', None)])
def test_outputs_of_windows_are_pooled(tokenizer, pooling, share):
  task = windowed(window_pooling=pooling)
  features, _ = task.features(LONG, tokenizer, 8)
  shares = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
  outputs = {'logits': np.log(shares)}
  predicted = task.predictions(LONG, features, outputs)
  share = 0.7 / 1.5 if share is None else share  # of the largest logits of both labels
  assert [row['probabilities']['yes'] for row in predicted] == pytest.approx([share, 0.1])
  accuracy = task.score('dev', LONG, features, outputs)['accuracy']
  assert accuracy == (share > 0.5) / 2 + 0.5
