"""Tagging tasks: labels from the training data, one score per word, files for conlleval, errors."""

import io
import json
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
from finetune_files import described, opened, restored

from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import tables, tagging

TRAIN = 'Mora B-PER\nBako I-PER\nsees O\nTiru B-LOC\n\nit O\n\n'
DEV = 'Bako B-PER\nis O\nin O\nTiru B-LOC\nLo I-LOC\n'
TEST = 'Mora\nis\n\nTiru\n'
POS = ''.join(
  f'{i}\t{word}\t_\t{tag}\tX\t_\t_\t_\t_\tNER={ner}\n'
  for i, (word, tag, ner) in enumerate(
    [('Mora', 'PROPN', 'B-PER'), ('sees', 'VERB', 'O'), ('it', 'PRON', 'O'), ('.', 'PUNCT', 'O')], 1
  )
)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """Letters and a few words: Mora is one token, other words one per letter; digits are unknown."""
  letters = 'abcdefghijklmnopqrstuvwxyz.#,'
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text(
    '\n'.join(
      [*SPECIAL_TOKENS, *letters, *('##' + letter for letter in letters), 'mora', 'it', 'sees']
    )
  )
  return load_tokenizer(path, lowercase=True)


def data_fields(tmp_path, files, **more):
  """Writes files, and returns fields of config.data: train.*, dev.* and test.* are the splits."""
  folder = tmp_path / 'data'
  folder.mkdir(exist_ok=True)
  for name, content in files.items():
    (folder / name).write_text(content, 'utf-8')
  splits = {name: name.split('.')[0] for name in files}
  named = {split: folder / name for name, split in splits.items() if split in tables.SPLITS}
  return named | more


def open_task(tmp_path, name='ner', files=None, **more):
  files = files or {'train.conll': TRAIN, 'dev.conll': DEV, 'test.conll': TEST}
  return opened(name, **data_fields(tmp_path, files, **more))


def perfect(task, features, margin=9.0):
  """Outputs that predict the targets at first tokens, and random labels elsewhere."""
  rng = np.random.default_rng(0)
  outputs = [
    rng.normal(size=(len(tags), len(task.labels))).astype(np.float32)
    for tags in features.targets['tags']
  ]
  for logits, tags in zip(outputs, features.targets['tags'], strict=True):
    at = np.flatnonzero(tags >= 0)
    logits[at] = margin * np.eye(len(task.labels))[tags[at]]
  return {'logits': outputs}


def test_labels_come_from_training_with_o_first_and_both_marks_of_each_type(tmp_path):
  task = open_task(tmp_path)
  assert task.labels == ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')  # I-LOC occurs only in dev
  assert (task.head, task.metric, task.splits, task.recipe.max_length) == (
    'tagging',
    'f1',
    ('train', 'dev', 'test'),
    256,
  )
  assert [sentence.tokens for sentence in task.examples('test')] == [('Mora', 'is'), ('Tiru',)]


def test_parts_of_speech_are_scored_by_accuracy(tmp_path):
  task = open_task(tmp_path, 'pos', {'train.conllu': POS, 'dev.conllu': POS})
  assert task.labels == ('PRON', 'PROPN', 'PUNCT', 'VERB') and task.metric == 'accuracy'
  assert open_task(
    tmp_path, 'ner', {'train.conllu': POS, 'dev.conllu': POS}, tags='NER'
  ).labels == ('O', 'B-PER', 'I-PER')


@pytest.mark.parametrize(
  'name, content, metric',
  [
    ('a.conll', TRAIN, 'f1'),
    ('b.conllu', POS, 'accuracy'),
    ('c.conll', 'x O\ny NOUN\n', 'accuracy'),
  ],
)
def test_tags_of_the_task_tagging_are_entities_where_all_have_their_form(
  tmp_path, name, content, metric
):
  assert open_task(tmp_path, 'tagging', {'train' + name[1:]: content}).metric == metric


def test_the_target_of_a_word_is_at_its_first_token(tmp_path, tokenizer):
  task = open_task(tmp_path)
  features, counts = task.features(task.examples('train'), tokenizer, 256)
  assert counts == {} and features.examples.tolist() == [0, 1]
  tokens = [tokenizer.token(i) for i in features.token_ids[0]]
  assert tokens == '[CLS] mora b ##a ##k ##o sees t ##i ##r ##u [SEP]'.split()
  label = task.labels.index
  assert features.targets['tags'][0].tolist() == [
    -1,
    label('B-PER'),
    label('I-PER'),
    -1,
    -1,
    -1,
    label('O'),
    label('B-LOC'),
    -1,
    -1,
    -1,
    -1,
  ]
  assert (
    features.token_ids[0].dtype
    == features.targets['tags'][0].dtype
    == features.examples.dtype
    == np.int32
  )


def test_a_word_without_tokens_becomes_unknown(tmp_path, tokenizer):
  task = open_task(tmp_path, files={'train.conll': 'a O\n\u200b B-X\n\u0301 I-X\n12 O\n'})
  features, _ = task.features(task.examples('train'), tokenizer, 256)
  assert [tokenizer.token(i) for i in features.token_ids[0]] == [
    '[CLS]',
    'a',
    '[UNK]',
    '[UNK]',
    '[UNK]',
    '[SEP]',
  ]
  assert (features.targets['tags'][0][1:-1] >= 0).all()


def test_features_of_empty_and_untagged_sentences(tmp_path, tokenizer):
  task = open_task(tmp_path)
  features, counts = task.features(task.examples('test'), tokenizer, 256)
  assert all((tags == -1).all() for tags in features.targets['tags']) and counts == {}
  (tmp_path / 'empty.jsonl').write_text('{"tokens": []}\n')
  examples = task.read(str(tmp_path / 'empty.jsonl'))
  features, _ = task.features(examples, tokenizer, 256)
  assert features.token_ids[0].tolist() == [tokenizer.cls_id, tokenizer.sep_id]
  assert task.predictions(examples, features, {'logits': [np.zeros((2, 5))]}) == [
    {'tokens': [], 'tags': [], 'probabilities': [], 'entities': []}
  ]


WORDS = st.lists(st.text('abc1\u200b', min_size=1, max_size=9), max_size=12)


@hypothesis.settings(max_examples=60)
@hypothesis.given(sentences=st.lists(WORDS, min_size=1, max_size=5), max_length=st.integers(3, 12))
def test_every_word_is_in_one_row_and_scored_once(tokenizer, sentences, max_length):
  def tag_of(word):
    return ('O', 'B-X', 'B-Y')[len(word) % 3]

  labels = ('O', 'B-X', 'I-X', 'B-Y', 'I-Y')
  layout = tagging.SentenceLayout()
  task = tagging.TaggingTask(name='ner', labels=labels, metric='f1', layout=layout)
  examples = [
    tagging.Sentence(tuple(words), tuple(map(tag_of, words)), 'f', (1,) * len(words))
    for words in sentences
  ]
  features, counts = task.features(examples, tokenizer, max_length)
  assert max(map(len, features.token_ids)) <= max_length and (np.diff(features.examples) >= 0).all()
  assert sum((tags >= 0).sum() for tags in features.targets['tags']) == sum(map(len, sentences))
  assert (
    counts.get('sentences too long for one row, in several', 0)
    == (np.bincount(features.examples, minlength=len(examples)) > 1).sum()
  )
  outputs = perfect(task, features)
  assert [row['tags'] for row in task.predictions(examples, features, outputs)] == [
    list(map(tag_of, words)) for words in sentences
  ]
  if any(sentences):
    metrics = task.score('dev', examples, features, outputs)
    assert metrics['accuracy'] == 1 and metrics['f1'] == (
      1 if any(tag_of(word) != 'O' for words in sentences for word in words) else 0
    )
  kept = [ids[1:-1] for ids in features.token_ids]
  whole = sum(len(ids) or 1 for words in sentences for ids in tokenizer.encode_arrays(words))
  assert sum(map(len, kept)) == whole - counts.get('tokens of words too long for a row, cut off', 0)


def test_scores_count_entities_and_words(tmp_path, tokenizer):
  task = open_task(tmp_path)
  examples = task.examples('dev')
  features, _ = task.features(examples, tokenizer, 8)
  assert len(features) > 1
  outputs = perfect(task, features)
  place = (len(features) - 1, features.notes[-1][-1])  # the last word, I-LOC, is predicted as O
  outputs['logits'][place[0]][place[1]] = 9 * np.eye(5)[0]
  metrics = task.score('dev', examples, features, outputs)
  assert (
    metrics['f1'] == 0.5
    and metrics['f1/PER'] == 1
    and metrics['f1/LOC'] == 0
    and metrics['accuracy'] == 0.8
  )


def test_macro_f1_equals_scikit_learns(tmp_path, tokenizer):
  rng = np.random.default_rng(1)
  tags = list('ABCDE')

  def lines(n):
    return '\n\n'.join('\n'.join(f'a {tag}' for tag in rng.choice(tags, 5)) for _ in range(n))

  task = open_task(tmp_path, 'pos', {'train.conll': lines(30), 'dev.conll': lines(20)})
  examples = task.examples('dev')
  features, _ = task.features(examples, tokenizer, 256)
  outputs = {'logits': [rng.normal(size=(len(ids), 5)) for ids in features.token_ids]}
  gold = [tag for sentence in examples for tag in sentence.tags]
  predicted = [tag for row in task.predictions(examples, features, outputs) for tag in row['tags']]
  metrics = task.score('dev', examples, features, outputs)
  np.testing.assert_allclose(metrics['accuracy'], sklearn.metrics.accuracy_score(gold, predicted))
  np.testing.assert_allclose(
    metrics['macro_f1'], sklearn.metrics.f1_score(gold, predicted, average='macro')
  )


def test_the_constant_answer_is_the_most_frequent_tag(tmp_path):
  assert (
    open_task(tmp_path).constant()['f1'] == 0 and open_task(tmp_path).constant()['accuracy'] == 0.4
  )
  chunks = {
    'train.conll': 'a B-NP\nb I-NP\nc I-NP\n',
    'dev.conll': 'a B-NP\nb I-NP\n\nc B-NP\nd O\n',
  }
  # conlleval reads a sentence of I-NP as one phrase.
  assert open_task(tmp_path, 'chunking', chunks).constant()['f1'] == 0.5


def test_predictions_have_probabilities_and_entities(tmp_path, tokenizer):
  task = open_task(tmp_path)
  examples = task.examples('train')
  features, _ = task.features(examples, tokenizer, 256)
  row, _ = task.predictions(examples, features, perfect(task, features, margin=2.0))
  assert row['tokens'] == ['Mora', 'Bako', 'sees', 'Tiru'] and row['tags'] == [
    'B-PER',
    'I-PER',
    'O',
    'B-LOC',
  ]
  np.testing.assert_allclose(row['probabilities'], np.exp(2) / (np.exp(2) + 4), atol=1e-6)
  assert row['entities'] == [
    {'type': 'PER', 'start': 0, 'end': 2, 'text': 'Mora Bako'},
    {'type': 'LOC', 'start': 3, 'end': 4, 'text': 'Tiru'},
  ]
  json.dumps(row)


def test_the_submission_has_the_format_of_conlleval(tmp_path, tokenizer):
  task = open_task(tmp_path)
  for split, expected in (
    ('dev', b'Bako B-PER B-PER\nis O O\nin O O\nTiru B-LOC B-LOC\nLo I-LOC I-LOC\n\n'),
    ('test', b'Mora O\nis O\n\nTiru O\n\n'),
  ):
    features, _ = task.features(task.examples(split), tokenizer, 256)
    outputs = (
      perfect(task, features)
      if split == 'dev'
      else {'logits': [np.eye(5)[np.zeros(len(ids), int)] for ids in features.token_ids]}
    )
    assert task.submission(split, task.examples(split), features, outputs) == {
      f'ner-{split}.conll': expected
    }


def test_ignored_types_count_as_o(tmp_path):
  files = {'train.conll': 'a B-PER\nb B-OTH\nc I-OTH\n', 'dev.conll': 'a B-OTH\nb B-PER\n'}
  task = open_task(tmp_path, files=files, ignore_labels='OTH')
  assert task.labels == ('O', 'B-PER', 'I-PER') and task.examples('dev')[0].tags == ('O', 'B-PER')
  assert task.examples('train')[0].tags == ('B-PER', 'O', 'O')


def test_iob1_is_read_as_iob2_with_repair_tags(tmp_path, tokenizer):
  files = {'train.conll': 'a I-PER\nb I-PER\nc B-PER\nd O\n', 'dev.conll': 'a I-PER\n'}
  task = open_task(tmp_path, files=files, repair_tags='repair', tag_scheme='iob2')
  assert task.examples('train')[0].tags == ('B-PER', 'I-PER', 'B-PER', 'O')
  assert task.features(task.examples('train'), tokenizer, 256)[1] == {'tags repaired': 1}
  assert (
    open_task(tmp_path, 'tagging', {'train.conll': 'a S-X\nb O\n'}, repair_tags='repair').metric
    == 'f1'
  )


def test_a_task_is_restored_without_its_data(tmp_path, tokenizer):
  task = open_task(tmp_path, ignore_labels='LOC')
  again = restored(task)
  assert described(again) == described(task)
  assert (again.splits, again.labels, again.types) == ((), task.labels, task.types)


READ = [
  ('plain.txt', 'Mora sees it\n\nTiru .\n', ['Mora sees it', 'Tiru .'], None),
  ('-', '1 2 3\nit is O\n', ['1 2 3', 'it is O'], None),
  ('tagged.txt', TRAIN, ['Mora Bako sees Tiru', 'it'], 'B-PER I-PER O B-LOC'),
  ('-', TRAIN, ['Mora Bako sees Tiru', 'it'], 'B-PER I-PER O B-LOC'),
  ('-', '{"tokens": ["a b"]}\n', ['a b'], None),
  ('a.jsonl', '{"tokens": ["a"], "tags": ["B-PER"]}\n', ['a'], 'B-PER'),
  ('a.conllu', POS, ['Mora sees it .'], 'PROPN VERB PRON PUNCT'),
  ('a.conll', TEST, ['Mora is', 'Tiru'], None),
  ('a.conll', 'a I-LOC\n', ['a'], 'B-LOC'),
]


@pytest.mark.parametrize('name, content, words, tags', READ)
def test_a_users_file_is_read_with_and_without_tags(
  tmp_path, monkeypatch, tokenizer, name, content, words, tags
):
  task = restored(open_task(tmp_path))
  if name == '-':
    monkeypatch.setattr('sys.stdin', types.SimpleNamespace(buffer=io.BytesIO(content.encode())))
  else:
    (tmp_path / name).write_text(content, 'utf-8')
    name = str(tmp_path / name)
  examples = task.read(name)
  assert [' '.join(sentence.tokens) for sentence in examples] == words
  assert examples[0].tags == (tags and tuple(tags.split()))
  features, counts = task.features(examples, tokenizer, 256)
  unknown = tags is not None and 'VERB' in tags
  assert counts.get('sentences with unknown tags, read without tags', 0) == unknown
  rows = task.predictions(
    examples, features, {'logits': [np.zeros((len(ids), 5)) for ids in features.token_ids]}
  )
  assert [' '.join(row['tokens']) for row in rows] == words
  if tags is None or unknown:
    with pytest.raises(UserError, match='no tags to compare with'):
      task.score(
        'dev',
        examples,
        features,
        {'logits': [np.zeros((len(ids), 5)) for ids in features.token_ids]},
      )


def test_the_column_of_training_applies_only_to_the_same_layout(tmp_path):
  task = open_task(tmp_path, 'pos', {'train.conllu': POS.replace('\tX\t', '\tY\t', 1)}, tags='xpos')
  (tmp_path / 'other.conll').write_text('Mora X\nit X\n')
  assert task.read(str(tmp_path / 'other.conll'))[0].tags == ('X', 'X')
  task = open_task(tmp_path, 'pos', {'train.conll': 'Mora PROPN B\nit PRON O\n'}, tags='1')
  assert task.labels == ('PRON', 'PROPN')
  (tmp_path / 'other.conllu').write_text(POS)
  assert task.read(str(tmp_path / 'other.conllu'))[0].tags[0] == 'PROPN'


@pytest.mark.parametrize(
  'names, parts',
  [
    (('eng.train', 'eng.testa', 'eng.testb', 'README.md'), ('eng.train', 'eng.testa', 'eng.testb')),
    (
      ('wnut17train.conll', 'emerging.dev.conll', 'emerging.test.annotated', 'LICENSE.txt'),
      ('wnut17train.conll', 'emerging.dev.conll', 'emerging.test.annotated'),
    ),
    (('train.txt', 'valid.txt'), ('train.txt', 'valid.txt', None)),
    (
      ('en-ud-train.conllu', 'en-ud-train.txt', 'en-ud-dev.conllu', 'stats.xml'),
      ('en-ud-train.conllu', 'en-ud-dev.conllu', None),
    ),
  ],
)
def test_splits_are_found_in_a_folder_by_file_name(tmp_path, names, parts):
  data_fields(tmp_path, {name: POS if name.endswith('.conllu') else TRAIN for name in names})
  task = opened('tagging', source=tmp_path / 'data', tags='-1')
  found = (task.paths.get(split, '').split('/')[-1] for split in tables.SPLITS)
  assert tuple(name or None for name in found) == parts


BAD = [
  (
    {'train.conll': 'a O\nb B-LOC\n', 'dev.conll': 'a I-PER\n'},
    {'tag_scheme': 'iob2'},
    "line 1 of the file '.*dev.conll' has the tag 'I-PER' after the start of the sentence, "
    'which violates IOB2',
  ),
  (
    {'train.conll': 'a B-LOC\nb I-PER\n'},
    {},
    "line 2 of .* has the tag 'I-PER' after 'B-LOC', which violates IOB2; .* data.repair_tags",
  ),
  (
    {'train.conll': 'a B-LOC\nb NOUN\n'},
    {},
    "line 2 of .* has the tag 'NOUN'; expected O, B-TYPE or I-TYPE",
  ),
  (
    {'train.conll': 'a B-LOC\n', 'dev.conll': 'a O\n\nb B-PER\n'},
    {},
    "line 3 of .*dev.conll' has the tag 'B-PER', which does not occur .*; expected one of 'O'",
  ),
  ({'train.conll': TEST}, {}, 'line 1 of .* has no tags, which training and dev data require'),
  ({'train.conll': TRAIN, 'dev.conll': TEST}, {}, "line 1 of .*dev.conll' has no tags"),
  ({'train.conll': TRAIN, 'dev.conll': '\n'}, {}, "dev.conll' has no sentences"),
  ({'dev.conll': TRAIN}, {}, "the task 'ner' has no training data; set data.train"),
  (
    {'train.conll': TRAIN},
    {'ignore_labels': 'OHT'},
    "data.ignore_labels has 'OHT', .* its types are 'LOC', 'PER'",
  ),
  (
    {'train.conll': TRAIN},
    {'train': '/nowhere/train.conll'},
    "'/nowhere/train.conll' cannot be read",
  ),
  ({'a.conll': TRAIN}, {'source': 'data'}, 'has no file with train, dev or test in its name'),
  (
    {'train1.conll': TRAIN, 'train2.conll': TRAIN},
    {'source': 'data'},
    "has several files for train: 'train1.conll', 'train2.conll'; set data.train",
  ),
  (
    {'train.conll': TRAIN},
    {'source': 'tfds:conll2003'},
    "data.source is 'tfds:conll2003'; expected a folder",
  ),
]


@pytest.mark.parametrize('files, more, message', BAD)
def test_errors_are_one_sentence(tmp_path, files, more, message):
  if more.get('source') == 'data':
    more = {'source': str(tmp_path / 'data'), 'train': '', 'dev': ''}
  with pytest.raises(UserError, match=message) as error:
    task = open_task(tmp_path, 'ner', files, **more)
    task.examples('dev')
  assert '\n' not in str(error.value)


def test_ignore_labels_requires_entities(tmp_path):
  with pytest.raises(UserError, match="data.ignore_labels is 'X', which requires tags of entities"):
    open_task(tmp_path, 'pos', {'train.conllu': POS}, ignore_labels='X')


def test_max_length_must_leave_room_for_a_word(tmp_path, tokenizer):
  task = open_task(tmp_path)
  with pytest.raises(UserError, match='config.max_length is 2'):
    task.features(task.examples('train'), tokenizer, 2)
