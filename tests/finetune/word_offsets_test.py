"""Entities by characters of texts, in data and in predictions, and words of raw text."""

import json

import numpy as np
import pytest
from finetune_files import opened, restored

from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import offsets

TEXT = "In Paris, John Smith's U.S. firm paid $3.5."


@pytest.mark.parametrize(
  'text, words',
  [
    (TEXT, "In Paris , John Smith 's U.S. firm paid $ 3.5 .".split()),
    ("don't e-mail a_b", "don 't e - mail a_b".split()),
    ('東京タワーに行った。', '東 京 タワー に 行 っ た 。'.split()),
    ('ฉันกิน', ['ฉั', 'น', 'กิ', 'น']),
    ('हिन्दी में', ['हिन्दी', 'में']),
    ('می‌خواهم برو', ['می‌خواهم', 'برو']),
    (' 한국어\u00a0문장\t', ['한국어', '문장']),
    ('cafe\u0301 😀!', ['cafe\u0301', '😀', '!']),
    ('a\ufffd b', ['a', '\ufffd', 'b']),
    (' ', []),
  ],
)
def test_words_of_raw_text(text, words):
  assert [text[start:end] for start, end in offsets.word_spans(text)] == words


def record(text=TEXT, *found):
  spans = [{'start': s, 'end': e, 'label': label} for s, e, label in found]
  return json.dumps({'text': text, 'entities': spans}) + '\n'


PARIS, SMITH = (3, 8, 'LOC'), (10, 20, 'PER')
LINE = record(TEXT, PARIS, SMITH)


@pytest.mark.parametrize(
  'line',
  [
    LINE,
    json.dumps({'text': TEXT, 'label': [[10, 20, 'PER'], [3, 8, 'LOC']]}) + '\n',  # doccano
    json.dumps(
      {
        'sentence': TEXT,
        'spans': [
          {'start_offset': 3, 'end_offset': 8, 'type': 'LOC'},
          {'start_offset': 10, 'end_offset': 20, 'type': 'PER'},
        ],
      }
    )
    + '\n',
  ],
)
def test_entities_by_characters_become_tags(tmp_path, line):
  (tmp_path / 'a.jsonl').write_text(line + record('it ran'))
  task = opened('ner', train=tmp_path / 'a.jsonl', dev=tmp_path / 'a.jsonl')
  first, second = task.examples('train')
  assert first.tags == ('O', 'B-LOC', 'O', 'B-PER', 'I-PER', *['O'] * 7)
  assert second.tags == ('O', 'O') and task.labels == ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join([*SPECIAL_TOKENS, 'in', 'paris', 'john', 'smith']))
  return load_tokenizer(path, lowercase=True)


def predictions(task, examples, tokenizer):
  features, counts = task.features(examples, tokenizer, 64)
  eye = 9.0 * np.eye(len(task.labels))
  outputs = {'logits': [eye[tags.clip(0)] for tags in features.targets['tags']]}
  return task.predictions(examples, features, outputs), counts


def test_predictions_have_the_form_of_the_data(tmp_path, tokenizer):
  (tmp_path / 'a.jsonl').write_text(LINE)
  task = opened('ner', train=tmp_path / 'a.jsonl', dev=tmp_path / 'a.jsonl')
  for one in (task, restored(task)):
    rows, counts = predictions(one, one.read(str(tmp_path / 'a.jsonl')), tokenizer)
    assert not counts and rows[0]['text'] == TEXT
    assert rows[0]['entities'] == [
      {'start': 3, 'end': 8, 'label': 'LOC', 'text': 'Paris'},
      {'start': 10, 'end': 20, 'label': 'PER', 'text': 'John Smith'},
    ]


def test_plain_text_has_words_and_characters(tmp_path, tokenizer):
  (tmp_path / 'a.conll').write_text('Paris B-LOC\nran O\n')
  (tmp_path / 'new.txt').write_text('In Paris, John\n\n')
  task = opened('ner', train=tmp_path / 'a.conll')
  (sentence,) = task.read(str(tmp_path / 'new.txt'))
  assert sentence.tokens == ('In', 'Paris', ',', 'John')
  rows, _ = predictions(task, [sentence._replace(tags=('O', 'B-LOC', 'O', 'O'))], tokenizer)
  assert rows[0]['text'] == 'In Paris, John' and rows[0]['entities'] == [
    {'type': 'LOC', 'start': 1, 'end': 2, 'start_char': 3, 'end_char': 8, 'text': 'Paris'}
  ]


def test_an_entity_inside_a_word_is_extended_and_counted(tmp_path, tokenizer):
  (tmp_path / 'a.jsonl').write_text(record('Pariser Platz', (0, 5, 'LOC')))
  task = opened('ner', train=tmp_path / 'a.jsonl')
  (sentence,) = task.examples('train')
  assert sentence.tags == ('B-LOC', 'O')
  _, counts = predictions(task, [sentence], tokenizer)
  assert counts == {'entities that began or ended inside a word, extended to it': 1}


@pytest.mark.parametrize(
  'line, message',
  [
    (record('ab', (0, 3, 'X')), 'from character 0 to 3; expected a part of its text, .* 2 char'),
    (record('ab', (1, 1, 'X')), 'with the end after the start'),
    (record('a b c', (0, 3, 'X'), (2, 5, 'Y')), "overlap, 'a b' and 'b c'"),
    (record('a  b', (1, 2, 'X')), "the entity ' ', which has no word"),
    (record('abcd', (0, 2, 'X'), (2, 4, 'Y')), "two entities in the word 'abcd'"),
  ],
)
def test_wrong_entities_name_their_line(tmp_path, line, message):
  (tmp_path / 'a.jsonl').write_text(LINE + line)
  with pytest.raises(UserError, match=f'line 2 of .*{message}'):
    opened('ner', train=tmp_path / 'a.jsonl')
