"""Question answering: files in all formats, error messages, answers from beams, thresholds.

Also files for the official scripts.
"""

import gzip
import io
import json
import lzma
import math
import types

import made_tokenizers
import numpy as np
import pytest
from finetune_files import described, opened, restored

from electra_jax.data.corpus import corpora
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import prepared, squad_data, squad_metrics
from electra_jax.finetune.tasks.tables import Row
from electra_jax.finetune.tasks.task import TaskRecipe

MILL = (
  'The mill by the river was built in 1790 by Anna Brook. It burnt down twice, in 1803 and in 1871.'
)
FERRY = 'A ferry crosses the bay every hour; the fare is two coins.'


@pytest.fixture(scope='module')
def tokenizer():
  texts = lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(150_000).split('\n\n')
  return made_tokenizers.train(texts, kind='unigram', vocab_size=800)


def answer(text, context=MILL, start=None):
  return {'text': text, 'answer_start': context.index(text) if start is None else start}


def qa(name, question, *answers, **more):
  return {'id': name, 'question': question, 'answers': list(answers), **more}


def document(*questions, version='1.1', context=MILL):
  return {
    'version': version,
    'data': [
      {'title': 'Mill', 'paragraphs': [{'context': context, 'qas': list(questions)}]},
      {
        'title': 'Ferry',
        'paragraphs': [
          {'context': FERRY, 'qas': [qa('fare', 'What does it cost?', answer('two coins', FERRY))]}
        ],
      },
    ],
  }


TRAIN = document(
  qa('built', 'When was it built?', answer('1790')),
  qa('who', 'Who built it?', answer('Anna Brook'), answer('Brook')),
)
TRAIN_2 = document(
  qa('built', 'When was it built?', answer('1790'), is_impossible=False),
  qa('sold', 'When was it sold?', is_impossible=True, plausible_answers=[answer('1803')]),
  qa('why', 'Why was it built?', is_impossible=True),
  version='v2.0',
)


def written(path, value):
  path.write_text(value if isinstance(value, str) else json.dumps(value), 'utf-8')
  return path


@pytest.fixture
def squad1(tmp_path):
  written(tmp_path / 'train-v1.1.json', TRAIN)
  written(tmp_path / 'dev-v1.1.json', TRAIN)
  return opened('squad1', source=tmp_path)


@pytest.fixture
def squad2(tmp_path):
  written(tmp_path / 'train-v2.0.json', TRAIN_2)
  written(tmp_path / 'dev-v2.0.json', TRAIN_2)
  return opened('squad2', source=tmp_path)


def beams(features, row_spans, beam=3):
  """Outputs of the span head.

  Args:
    features: the rows.
    row_spans: for each row, its spans (first token, last token, log-probability of the start, and
      of the end) and its odds.
    beam: number of starts, and of ends for each.
  """
  rows = len(features)
  outputs = {
    'start_log_probs': np.full((rows, beam), -1e38, np.float32),
    'start_index': np.zeros((rows, beam), np.int32),
    'end_log_probs': np.full((rows, beam, beam), -1e38, np.float32),
    'end_index': np.zeros((rows, beam, beam), np.int32),
    'impossible': np.array([odds for _, odds in row_spans], np.float32),
  }
  for row, (spans, _) in enumerate(row_spans):
    for i, (first, last, start, end) in enumerate(spans):
      outputs['start_index'][row, i], outputs['start_log_probs'][row, i] = first, start
      outputs['end_index'][row, i, 0], outputs['end_log_probs'][row, i, 0] = last, end
  return outputs


def tokens_of(features, row, context, text):
  """First and last token of a row for a text of its context."""
  start = context.index(text)
  note = features.notes[row]
  inside = np.flatnonzero((note.spans[:, 0] < start + len(text)) & (note.spans[:, 1] > start))
  return note.start + int(inside[0]), note.start + int(inside[-1])


#### Files ####


def test_squad_1_is_read_from_its_folder(squad1):
  assert (squad1.name, squad1.head, squad1.labels, squad1.metric, squad1.splits) == (
    'squad1',
    'span',
    (),
    'f1',
    ('train', 'dev'),
  )
  assert squad1.recipe == TaskRecipe(epochs=2.0, max_length=512)
  built, who, fare = squad1.examples('train')
  assert built == squad_data.Question('built', 'When was it built?', MILL, ('1790',), (35,), 0)
  assert (who.answers, who.starts) == (('Anna Brook', 'Brook'), (43, 48)) and fare.context == FERRY


def test_squad_2_is_read_from_its_folder(squad2):
  assert (squad2.metric, squad2.unanswerable) == ('best_f1', True)
  assert [question.answers for question in squad2.examples('train')] == [
    ('1790',),
    (),
    (),
    ('two coins',),
  ]


def test_other_file_names_compressed_files_and_named_files_are_read(tmp_path):
  written(tmp_path / 'train.json', TRAIN)
  with gzip.open(tmp_path / 'dev-v1.1.json.gz', 'wt') as file:
    json.dump(TRAIN, file)
  written(tmp_path / 'other.json', TRAIN)
  task = opened('squad1', source=tmp_path, test=tmp_path / 'other.json')
  assert task.splits == ('train', 'dev', 'test')
  assert task.examples('train') == task.examples('dev') == task.examples('test')
  split = written(tmp_path / 'dev-v2.0.part.json', TRAIN_2)
  assert opened('squad2', source=tmp_path).splits == ('train', 'dev')
  written(tmp_path / 'dev-v2.0.other.json', TRAIN_2)
  with pytest.raises(UserError, match='dev-v2.0.other.json.*dev-v2.0.part.json.*config.data.dev'):
    opened('squad2', source=tmp_path)
  assert opened('squad2', dev=split).splits == ('dev',)


def test_prepared_datasets_are_read(monkeypatch):
  rows = [
    Row(
      1,
      {
        'id': 'a',
        'title': 'T',
        'context': MILL,
        'question': 'When?',
        'answers': {'text': ['1790', '1790'], 'answer_start': [35, 35]},
        'is_impossible': False,
      },
    ),
    Row(
      2,
      {
        'id': 'b',
        'title': 'T',
        'context': MILL,
        'question': 'Why?',
        'answers': {'text': [], 'answer_start': []},
        'is_impossible': True,
      },
    ),
  ]
  asked = []
  monkeypatch.setattr(prepared, 'prepared_splits', lambda source: ('train', 'validation'))
  monkeypatch.setattr(prepared, 'read_prepared', lambda source: asked.append(source) or rows)
  task = opened('squad2', source='tfds:squad/v2.0;data_dir=there')
  assert task.splits == ('train', 'dev')
  assert [question.answers for question in task.examples('dev')] == [('1790', '1790'), ()]
  assert asked == ['tfds:squad/v2.0;split=validation;data_dir=there']


def table(path, rows, header='question\tcontext\tanswer'):
  return written(path, '\n'.join([header, *('\t'.join(row) for row in rows)]) + '\n')


def own(tmp_path, train, dev=None, **fields):
  fields = {'text': 'question', 'pair': 'context', 'label': 'answer'} | fields
  return opened('span', train=train, dev=dev or train, **fields)


def test_user_tables_are_read(tmp_path):
  rows = [('When?', MILL, '1790'), ('What burnt?', MILL, 'It')]
  task = own(tmp_path, table(tmp_path / 'a.tsv', rows))
  assert (task.name, task.metric, task.unanswerable) == ('span', 'f1', False)
  assert [(q.id, q.answers, q.starts) for q in task.examples('train')] == [
    ('1', ('1790',), (35,)),
    ('2', ('It',), (MILL.index('It'),)),
  ]
  task = own(tmp_path, table(tmp_path / 'b.tsv', [*rows, ('Why?', MILL, '')]))
  assert (task.metric, task.unanswerable, task.examples('dev')[2].answers) == ('best_f1', True, ())
  task = own(
    tmp_path,
    table(
      tmp_path / 'c.tsv',
      [('In what year?', MILL, 'in', str(MILL.index('in 1871')))],
      'question\tcontext\tanswer\tanswer_start',
    ),
  )
  assert task.examples('train')[0].starts == (MILL.index('in 1871'),)


def test_user_json_lines_are_read(tmp_path):
  lines = [
    {
      'id': 7,
      'question': 'When?',
      'context': MILL,
      'answer': ['1871', '1803'],
      'answer_start': [MILL.index('1871'), MILL.index('1803')],
    },
    {'question': 'Why?', 'context': MILL, 'answer': None},
    {'question': 'How?', 'context': MILL},
    {'question': 'Who?', 'context': MILL, 'answer': []},
    {'question': 'What year?', 'context': MILL, 'answer': 1790},
    {'question': 'What year?', 'context': MILL, 'answer': {'text': ['1790'], 'answer_start': [35]}},
  ]
  path = written(tmp_path / 'a.jsonl', '\n'.join(map(json.dumps, lines)))
  questions = own(tmp_path, path).examples('train')
  assert [(q.id, q.answers) for q in questions] == [
    ('7', ('1871', '1803')),
    ('2', ()),
    ('3', ()),
    ('4', ()),
    ('5', ('1790',)),
    ('6', ('1790',)),
  ]
  assert (
    own(tmp_path, written(tmp_path / 'a.json', json.dumps(lines))).examples('train')[0]
    == questions[0]
  )
  assert own(tmp_path, written(tmp_path / 'b.json', TRAIN)).examples('train')[1].answers == (
    'Anna Brook',
    'Brook',
  )


def test_files_for_prediction_need_no_answers(squad1, tmp_path, monkeypatch):
  task = restored(squad1)
  bare = document({'id': 'x', 'question': 'Who?'})
  assert [q.answers for q in task.read(str(written(tmp_path / 'x.json', bare)))] == [
    None,
    ('two coins',),
  ]
  assert (
    task.read(
      str(written(tmp_path / 'x.jsonl', json.dumps({'question': 'Who?', 'context': MILL})))
    )[0].answers
    is None
  )
  assert (
    task.read(str(table(tmp_path / 'x.tsv', [('Who?', MILL)], 'question\tcontext')))[0].answers
    is None
  )
  assert task.read(str(written(tmp_path / 'x.txt', f'Who?\t{MILL}\nWhy?\t{MILL}\n')))[1][:4] == (
    '2',
    'Why?',
    MILL,
    None,
  )
  for text in (
    json.dumps(bare),
    json.dumps({'question': 'Who?', 'context': MILL}),
    f'Who?\t{MILL}\n',
    f'context\tquestion\n{MILL}\tWho?\n',
  ):
    monkeypatch.setattr('sys.stdin', types.SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert task.read('-')[0][1:4] == ('Who?', MILL, None)


def test_a_test_file_without_answers_is_predicted_and_not_scored(tokenizer, tmp_path):
  path = written(
    tmp_path / 'test.json',
    {'data': [{'paragraphs': [{'context': MILL, 'qas': [{'id': 'x', 'question': 'Who?'}]}]}]},
  )
  task = opened('squad1', test=path)
  questions = task.examples('test')
  features, counts = task.features(questions, tokenizer, 64)
  outputs = beams(features, [([(*tokens_of(features, 0, MILL, 'Anna Brook'), -1, -1)], 0)])
  assert [one['answer'] for one in task.predictions(questions, features, outputs)] == [
    'Anna Brook'
  ] and not counts
  assert task.score('test', questions, features, outputs) == {}


#### Answers in the context ####


def test_wrong_starts_of_answers_are_corrected_and_counted(tokenizer, tmp_path):
  off = document(
    qa('a', 'When?', answer('1790', start=33)),
    qa('b', 'Where?', answer('in', start=MILL.index('in 1871') + 3)),
    qa('c', 'What?', answer('1790')),
    qa('d', 'Who?', answer(' Anna Brook.  ', start=0)),
  )
  written(tmp_path / 'train.json', off)
  task = opened('squad1', source=tmp_path)
  questions = task.examples('train')
  assert [(q.starts, q.moved) for q in questions] == [
    ((35,), 1),
    ((MILL.index('in 1871'),), 1),
    ((35,), 0),
    ((43,), 1),
    ((48,), 0),
  ]
  assert questions[3].answers == ('Anna Brook.',)
  _, counts = task.features(questions, tokenizer, 64)
  assert counts == {'answers that start elsewhere than stated': 3}


@pytest.mark.parametrize(
  'answer, start, place',
  [
    ('a', None, 0),
    ('b', None, 1),
    ('b', 5, 5),
    ('b', 4, 5),
    ('b', 3, 1),
    ('b', 100, 5),
    ('b', -3, 1),
    ('c', 0, None),
    ('ab', 6, 4),
  ],
)
def test_the_occurrence_of_an_answer_closest_to_its_start_is_used(answer, start, place):
  assert squad_data.answer_position('ab..ab', answer, start) == place


#### Errors ####


def mistake(tmp_path, value, name='squad1', file='train.json', split='train', **fields):
  path = value if value is None else written(tmp_path / file, value)
  with pytest.raises(UserError) as caught:
    opened(name, **{split: path or tmp_path / file} | fields).examples(split)
  message = str(caught.value)
  assert '\n' not in message and not message.endswith('.')
  return message


BAD = document(
  qa('built', 'When was it built?', answer('1791', start=35), answer('1790')),
  qa('who', 'Who built it?', answer('Carl Brook', start=3)),
  qa('where', 'Where is it?', answer('by\u00a0the  river', start=9)),
)


def test_all_answers_that_are_not_in_their_contexts_are_listed_at_once(tmp_path):
  found = mistake(tmp_path, BAD)
  assert "has 2 answers that are not in their contexts: '1791' of the question 'built', " in found
  assert "'Carl Brook' of the question 'who'" in found and 'data.bad_answers=drop' in found
  many = document(*(qa(f'q{i}', 'When?', answer('1791', start=0)) for i in range(30)))
  assert 'and 20 more' in mistake(tmp_path, many)


def test_bad_answers_are_dropped_from_training_and_kept_for_scoring(tmp_path, tokenizer):
  path = written(tmp_path / 'a.json', BAD)
  task = opened('squad1', train=path, dev=path, bad_answers='drop')
  train, dev = task.examples('train'), task.examples('dev')
  assert [(q.id, q.answers) for q in train] == [
    ('built', ('1790',)),
    ('where', ('by the river',)),
    ('fare', ('two coins',)),
  ]
  assert dev[0].answers == ('1791', '1790') and dev[1].answers == ('Carl Brook',)
  assert '1 question left out of training' in task.notes[0] and len(task.notes) == 2
  _, counts = task.features(train, tokenizer, 128)
  assert counts == {
    'answers that match up to white space or Unicode composition': 1,
  }
  features, _ = task.features(dev, tokenizer, 128)
  assert features.targets['impossible'].tolist()[:2] == [1, 1]


def test_answers_longer_than_max_answer_are_counted(tmp_path, tokenizer):
  path = written(tmp_path / 'a.json', TRAIN)
  task = opened('squad1', train=path, dev=path, max_answer=1)
  _, counts = task.features(task.examples('train'), tokenizer, 128)
  assert counts['answers longer than data.max_answer, 1 tokens'] >= 1


@pytest.mark.parametrize(
  'context, wanted, found',
  [
    ('in K\u00f6ln am Rhein', 'Ko\u0308ln', 'K\u00f6ln'),
    ('in Ko\u0308ln am Rhein', 'K\u00f6ln', 'Ko\u0308ln'),
    ('a  long\n name here', 'long name', 'long\n name'),
    ('\ud55c\uad6d\uc5b4', '\u1112\u1161\u11ab', '\ud55c'),
    ('\ud55c', '\u1112\u1161', None),  # a part of a character
    ('cafe\u0301', 'cafe', None),
    ('x y', 'z', None),
  ],
)
def test_answers_match_up_to_white_space_and_composition(context, wanted, found):
  span = squad_data.equivalent_span(context, wanted, None)
  assert (span and context[slice(*span)]) == found


def test_user_tables_may_have_the_columns_of_squad(tmp_path):
  answers = {'text': ['Anna'], 'answer_start': [45]}
  row = json.dumps({'question': 'Who?', 'context': MILL, 'answers': answers})
  path = written(tmp_path / 'a.jsonl', row)
  task = opened('span', train=path, dev=path)
  assert task.examples('train')[0].answers == ('Anna',)
  assert task.notes == ("columns: question 'question', context 'context', answers 'answers'",)


def test_errors_in_squad_files_name_their_place(tmp_path):
  found = mistake(tmp_path, document(qa('q7', 'When?', answer('1791', start=35))))
  assert "the question 'q7'" in found
  assert "train.json' has an answer that is not in its context: '1791' of" in found
  found = mistake(tmp_path, '{"data": [}')
  assert 'line 1 of' in found and 'is not valid JSON' in found
  assert 'no list "data"' in mistake(tmp_path, {'version': '1.1'})
  assert 'question 2 of paragraph 1 of article 1 of the file' in mistake(
    tmp_path, document(qa('a', 'x', answer('1790')), {'id': 'b'})
  )
  assert "it lacks 'question'" in mistake(tmp_path, document({'id': 'b'}))
  assert 'paragraph 1 of article 1' in mistake(tmp_path, {'data': [{'paragraphs': [{'qas': []}]}]})
  assert 'article 2' in mistake(tmp_path, {'data': [{'paragraphs': []}, {}]})
  assert 'another type' in mistake(
    tmp_path, {'data': [{'paragraphs': [{'context': 3, 'qas': []}]}]}
  )
  assert "two questions with the id 'a'" in mistake(
    tmp_path, document(qa('a', 'x', answer('1790')), qa('a', 'y', answer('1790')))
  )
  assert 'has no questions' in mistake(tmp_path, {'data': []})
  found = mistake(tmp_path, document(qa('why', 'x', is_impossible=True)))
  assert "'why'" in found and 'squad2' in found
  assert 'has no "answers"' in mistake(tmp_path, document({'id': 'x', 'question': 'y'}))
  assert 'starts at' in mistake(
    tmp_path, document(qa('a', 'x', {'text': '1790', 'answer_start': 'there'}))
  )
  assert 'is not text' in mistake(
    tmp_path, document(qa('a', 'x', {'text': None, 'answer_start': 3}))
  )
  assert 'cannot be read' in mistake(tmp_path, None, file='nowhere.json')
  only = {'data': [{'paragraphs': [{'context': MILL, 'qas': [qa('a', 'x', is_impossible=True)]}]}]}
  assert 'no question of' in mistake(tmp_path, only, name='squad2')


def test_errors_in_tables_name_their_place(tmp_path):
  fields = {
    'name': 'span',
    'text': 'question',
    'pair': 'context',
    'label': 'answer',
    'file': 'train.tsv',
  }
  rows = f'question\tcontext\tanswer\nWhen?\t{MILL}\t1790\n'
  found = mistake(tmp_path, rows.replace('\t1790', '\t1791'), **fields)
  assert "'1791' of the question '1' on line 2;" in found
  assert "has no column 'contekst' (did you mean 'context'?)" in mistake(
    tmp_path, rows, **fields | {'pair': 'contekst'}
  )
  assert 'data.label' in mistake(tmp_path, rows, **fields | {'label': 'gold'})
  assert 'line 1 of' in mistake(tmp_path, '{"question": "x"}', **fields | {'file': 'train.jsonl'})
  assert 'a list' in mistake(
    tmp_path,
    json.dumps({'question': ['x'], 'context': MILL, 'answer': ''}),
    **fields | {'file': 'train.jsonl'},
  )
  assert '2 answers and 1 of their starts' in mistake(
    tmp_path,
    json.dumps({'question': 'x', 'context': MILL, 'answer': ['1790', 'It'], 'answer_start': [35]}),
    **fields | {'file': 'train.jsonl'},
  )
  assert 'has no known format' in mistake(
    tmp_path, 'nothing\nof the kind\n', **fields | {'file': 'train.txt'}
  )


def test_errors_in_the_config_name_the_field(tmp_path, squad1):
  def refused(name, **fields):
    return pytest.raises(UserError, opened, name, **fields).value.args[0]

  assert 'config.data.source' in refused('squad1') and 'tfds:squad/v2.0' in refused('squad2')
  assert 'config.data.train' in refused('span') and 'leave config.data.source empty' in refused(
    'span', source='x'
  )
  (tmp_path / 'empty').mkdir()
  assert 'dev-v1.1.json' in refused('squad1', source=tmp_path / 'empty')
  for field in ('max_question', 'stride', 'max_answer', 'n_best'):
    assert f'config.data.{field} is 0' in refused('squad1', source=tmp_path, **{field: 0})
  with pytest.raises(UserError, match='no test data.*config.data.test'):
    squad1.examples('test')


#### Answers from beams ####


def test_the_likeliest_span_over_all_windows_is_the_answer(squad1, tokenizer):
  questions = squad1.examples('dev')[:2]
  features, _ = squad1.features(questions, tokenizer, 40)
  rows = [np.flatnonzero(features.examples == i) for i in (0, 1)]
  assert len(rows[0]) > 2
  row_spans = [([(0, 0, -0.1, -0.1)], 0.0) for _ in range(len(features))]  # [CLS]
  held = [row for row in rows[0] if features.targets['start'][row]]
  last = rows[0][-1]
  row_spans[held[0]] = ([(*tokens_of(features, held[0], MILL, '1790'), -0.5, -1.0)], 0)
  row_spans[last] = (
    [
      (*tokens_of(features, last, MILL, '1871'), -0.5, -0.25),
      (*tokens_of(features, last, MILL, 'and in 1871'), -0.5, -0.75),
    ],
    0,
  )
  found = squad1.predictions(questions, features, beams(features, row_spans))
  assert (found[0]['id'], found[0]['answer'], found[0]['start'], found[0]['end']) == (
    'built',
    '1871',
    MILL.index('1871'),
    MILL.index('1871') + 4,
  )
  scores = np.array([-0.75, -1.25, -1.5])
  np.testing.assert_allclose(
    [one['probability'] for one in found[0]['n_best']],
    np.exp(scores) / np.exp(scores).sum(),
    rtol=1e-6,
  )
  assert [one['text'] for one in found[0]['n_best']] == ['1871', 'and in 1871', '1790']
  assert (
    found[0]['probability'] == found[0]['n_best'][0]['probability'] and 'null_odds' not in found[0]
  )
  assert found[1]['answer']  # 1.1 always has an answer, even where all beams are [CLS]


def test_answers_are_forward_short_in_the_context_and_not_empty(squad2, tokenizer):
  questions = squad2.examples('dev')[:1]
  features, _ = squad2.features(questions, tokenizer, 512)
  (first, last), offset = tokens_of(features, 0, MILL, MILL), features.notes[0].start
  good = tokens_of(features, 0, MILL, 'Anna')
  spans = [
    (0, 0, 0, 0),
    (1, 1, 0, 0),
    (1, good[1], 0, 0),
    (good[1] + 3, good[0], 0, 0),
    (first, first + 30, 0, 0),
    (good[0], last + 1, 0, 0),
    (good[0], 10_000, 0, 0),
    (good[0], good[1], np.nan, 0),
    (good[0] + 1, good[1] + 1, -np.inf, 0),
    (first, first + 29, -4, -4),
    (*good, -5, -5),
  ]
  outputs = beams(features, [(spans, -1.0)], beam=len(spans))
  found = squad2.predictions(questions, features, outputs)[0]['n_best']
  assert len(found) == 2 and found[1]['text'] == 'Anna' and found[0]['start'] == 0
  assert len(tokenizer.encode(found[0]['text'])) <= 30 and offset == first
  blank = squad_data.Question('b', 'x', ' \u00a0 ', None, (), 0)
  features, _ = squad2.features([blank], tokenizer, 64)
  assert squad2.predictions([blank], features, beams(features, [([], 0)]))[0]['answer'] == ''


def test_n_best_answers_have_different_texts(squad1, tokenizer):
  context = 'yes no yes no yes'
  questions = [squad_data.Question('a', 'x', context, None, (), 0)]
  features, _ = squad1.features(questions, tokenizer, 64)
  note = features.notes[0]
  spots = [(note.start + i, note.start + i) for i in range(len(note.spans))]
  outputs = beams(
    features, [([(*spot, -1.0 - i, 0) for i, spot in enumerate(spots)], 0)], beam=len(spots)
  )
  found = squad1.predictions(questions, features, outputs)[0]['n_best']
  texts = [one['text'] for one in found]
  assert len(set(texts)) == len(texts) < len(spots) and found[0]['start'] == 0
  few = restored(squad1, n_best=1).predictions(questions, features, outputs)
  assert few[0]['n_best'] == [found[0] | {'probability': 1.0}]


def test_null_odds_are_the_lowest_of_all_windows(squad2, tokenizer):
  questions = squad2.examples('dev')
  features, _ = squad2.features(questions, tokenizer, 40)
  odds = np.random.default_rng(0).normal(size=len(features))
  outputs = beams(features, [([], value) for value in odds])
  for i, one in enumerate(squad2.predictions(questions, features, outputs)):
    assert one['null_odds'] == pytest.approx(odds[features.examples == i].min(), rel=1e-6)
    assert (one['answer'] == '') == (one['null_odds'] > 0) and one['n_best'][0]['text']


def correct(task, questions, features, odds):
  """Outputs with the correct answer where there is one, 'by' elsewhere, and with given odds."""
  row_spans = []
  for row, number in enumerate(features.examples):
    question = questions[number]
    text = question.answers[0] if question.answers else 'by'
    row_spans.append(([(*tokens_of(features, row, question.context, text), -1, -1)], odds[number]))
  return beams(features, row_spans)


def test_the_best_threshold_is_found_and_kept(squad2, tokenizer):
  questions = squad2.examples('dev')  # an answer, none, none, an answer
  features, _ = squad2.features(questions, tokenizer, 512)
  outputs = correct(squad2, questions, features, [1.5, 3.0, -4.0, 1.0])
  metrics = squad2.score('dev', questions, features, outputs)
  # At 0 neither of the two answers is given, and one of the two questions without one is answered.
  assert metrics['exact'] == 0.25
  assert (metrics['best_f1'], metrics['best_f1_thresh']) == (0.75, 1.5)
  assert (metrics['HasAns_exact'], metrics['NoAns_exact']) == (0, 0.5)
  kept = restored(squad2.tuned(metrics), max_length=512)
  assert kept.threshold == 1.5 and kept.score('dev', questions, features, outputs)['f1'] == 0.75
  assert [one['answer'] for one in kept.predictions(questions, features, outputs)] == [
    '1790',
    '',
    'by',
    'two coins',
  ]
  files = {
    name: json.loads(content)
    for name, content in kept.submission('test', questions, features, outputs).items()
  }
  assert files['predictions.json'] == {
    'built': '1790',
    'sold': '',
    'why': 'by',
    'fare': 'two coins',
  }
  assert files['best_answers.json'] == files['predictions.json'] | {'sold': 'by'}
  assert files['null_odds.json'] == pytest.approx(
    {'built': 1.5, 'sold': 3.0, 'why': -4.0, 'fare': 1.0}
  )
  official = squad_metrics.version_2(
    list(files['best_answers.json'].values()),
    [q.answers for q in questions],
    list(files['null_odds.json'].values()),
    1.5,
  )
  assert official == kept.score('dev', questions, features, outputs)


def test_the_threshold_is_below_all_odds_where_no_answer_is_best(squad2, tokenizer):
  questions = squad2.examples('dev')[1:3]
  features, _ = squad2.features(questions, tokenizer, 512)
  outputs = correct(squad2, questions, features, [-3.0, -4.0])
  metrics = squad2.score('dev', questions, features, outputs)
  assert (metrics['f1'], metrics['best_f1'], metrics['best_f1_thresh']) == (0, 1, -5)
  assert squad2.tuned(metrics).score('dev', questions, features, outputs)['f1'] == 1


def test_squad_1_scores_and_submits(squad1, tokenizer):
  questions = squad1.examples('dev')
  features, _ = squad1.features(questions, tokenizer, 512)
  outputs = correct(squad1, questions, features, [9.0, 9.0, 9.0])
  assert squad1.score('dev', questions, features, outputs) == {'exact': 1, 'f1': 1}
  assert {
    name: json.loads(content)
    for name, content in squad1.submission('test', questions, features, outputs).items()
  } == {'predictions.json': {'built': '1790', 'who': 'Anna Brook', 'fare': 'two coins'}}
  own = restored(squad1, name='span')
  assert own.submission('test', questions, features, outputs) == {}


def test_score_of_a_constant_answer(squad1, squad2, tmp_path):
  assert squad1.constant() == pytest.approx({'exact': 1 / 3, 'f1': 1 / 3})
  assert squad2.constant()['best_f1'] == squad2.constant()['f1'] == 0.5  # no answer at all
  assert all(math.isfinite(value) for value in squad2.constant().values())


def test_a_task_is_restored_from_json(tmp_path, squad1):
  again = restored(squad1)
  assert described(again) == described(squad1)
  assert (again.metric, again.recipe, again.splits) == ('f1', squad1.recipe, ())
  path = table(tmp_path / 'own.tsv', [('When?', MILL, ''), ('When?', MILL, '1790')])
  columns = {'text': 'question', 'pair': '', 'label': 'answer'}
  span = opened('span', train=path, **columns, max_question=9, n_best=3)
  again = restored(span)
  assert described(again) == described(span)
  assert (again.metric, again.max_question, again.columns.answers) == ('best_f1', 9, 'answer')


def test_no_questions_have_no_predictions(squad1, tokenizer):
  features, counts = squad1.features([], tokenizer, 64)
  assert (len(features), counts, squad1.predictions([], features, {})) == (0, {}, [])
