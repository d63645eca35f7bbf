"""Windows on long texts lose no token, and no answer that a window contains."""

import lzma
import pathlib

import hypothesis
import made_tokenizers
import numpy as np
import pytest
from finetune_files import opened
from hypothesis import strategies

from electra_jax.data.corpus import corpora
from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import restore_task, squad
from electra_jax.finetune.tasks.squad_data import Question

REAL = pathlib.Path(__file__).parents[3] / 'shared/data/squad'
BEAM = 5
LOWEST = np.finfo(np.float32).min
HOSTILE = (
  'Once  upon a\ttime (1895–1943), the café in Zürich\u00a0had “ﬁne oﬃces”: ½ cup ①, Ａｂｃ　ｄ, '
  'e\u0301te\u0301, 日本語, لا فلسفة, '
  "😀 👩\u200d👩\u200d👧 and naïve U.S. $1,000.50 don't-stop Japanese a\u200bb c\u00add\n\nend. "
)


@pytest.fixture(scope='module')
def trained():
  texts = lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(150_000).split('\n\n')

  def train(kind, **options):
    return made_tokenizers.train(texts, kind=kind, vocab_size=800, **options)

  return {
    'unigram': train('unigram'),
    'bytes': train('bpe', byte_fallback=True),
    'wordpiece': train('wordpiece'),
  }


def task(**fields):
  defaults = {
    'name': 'squad2',
    'unanswerable': True,
    'max_question': 64,
    'stride': 128,
    'max_answer': 1000,
    'n_best': 20,
    'threshold': 0.0,
  }
  return restore_task(defaults | fields | {'columns': ['question', 'context', 'answers']})


def question(context, start, end, name='q', asked='What is it?'):
  return Question(
    name,
    asked,
    context,
    (context[start:end],) if end > start else (),
    (start,) if end > start else (),
    0,
  )


def perfect(features, noise=None):
  """Outputs of a perfect model: the target of each row, or [CLS]; other beams are random."""
  rows, targets = len(features), features.targets
  outputs = {
    'start_log_probs': np.full((rows, BEAM), LOWEST, np.float32),
    'start_index': np.zeros((rows, BEAM), np.int32),
    'end_log_probs': np.full((rows, BEAM, BEAM), LOWEST, np.float32),
    'end_index': np.zeros((rows, BEAM, BEAM), np.int32),
    'impossible': np.where(targets['impossible'] > 0, 3, -3).astype(np.float32),
  }
  if noise is not None:
    lengths = np.array([len(ids) for ids in features.token_ids])
    outputs['start_log_probs'][:] = -3 - noise.random((rows, BEAM))
    outputs['end_log_probs'][:] = -3 - noise.random((rows, BEAM, BEAM))
    outputs['start_index'][:] = noise.random((rows, BEAM)) * lengths[:, None]
    outputs['end_index'][:] = noise.random((rows, BEAM, BEAM)) * lengths[:, None, None]
  outputs['start_index'][:, 0], outputs['end_index'][:, 0, 0] = targets['start'], targets['end']
  outputs['start_log_probs'][:, 0], outputs['end_log_probs'][:, 0, 0] = -0.1, -0.1
  return outputs


def best_answers(task, questions, tokenizer, max_length, noise=None):
  """Each question's best answer by a perfect model, and whether a window contains its answer."""
  features, counts = task.features(questions, tokenizer, max_length)
  answers, odds = task.answers(questions, features, perfect(features, noise))
  held = np.zeros(len(questions), bool)
  np.logical_or.at(held, features.examples, features.targets['impossible'] == 0)
  assert counts.get('answers that no window holds whole', 0) == sum(
    bool(q.answers) and not has for q, has in zip(questions, held, strict=True)
  ) - counts.get('answers that the tokenizer has no token for', 0)
  assert ((odds < 0) == held).all()
  return [answer[0] if answer else None for answer in answers], held


#### Windows ####


@pytest.mark.parametrize(
  'tokens, room, stride, starts',
  [
    (0, 10, 4, [0]),
    (1, 10, 4, [0]),
    (10, 10, 4, [0]),
    (11, 10, 4, [0, 4]),
    (14, 10, 4, [0, 4]),
    (15, 10, 4, [0, 4, 8]),
    (30, 10, 128, [0, 5, 10, 15, 20]),
    (3, 1, 128, [0, 1, 2]),
  ],
)
def test_windows_end_with_the_last_token(tokens, room, stride, starts):
  assert list(squad.window_starts(tokens, room, stride)) == starts


@pytest.mark.parametrize('kind', ['unigram', 'bytes', 'wordpiece'])
def test_every_token_of_the_context_is_in_a_window(trained, kind):
  tokenizer, context, asked = trained[kind], HOSTILE * 5, 'Who? ' * 40
  questions = [
    question(context, 0, 0, 'long', asked),
    question('', 0, 0, 'empty'),
    question('one', 0, 3, 'short'),
  ]
  features, counts = task(max_question=9, stride=20).features(questions, tokenizer, 40)
  ids, spans = tokenizer.encode_with_offsets([context])[0]
  cut = tokenizer.encode(asked)[:9]
  assert (
    features.examples.tolist() == [0] * (len(features) - 2) + [1, 2]
    and features.examples.dtype == np.int32
  )
  seen, places = [], []
  for row, note, allowed in list(
    zip(features.token_ids, features.notes, features.targets['allowed'], strict=True)
  )[:-2]:
    assert row.dtype == np.int32 and len(row) <= 40 and note.start == 11
    assert (
      row[:11].tolist() == [tokenizer.cls_id, *cut, tokenizer.sep_id]
      and row[-1] == tokenizer.sep_id
    )
    assert allowed.tolist() == [1, *[0] * 10, *[1] * (len(row) - 12), 0]
    start = len(seen) and len(seen) - (28 - 14)  # windows of 28 tokens that overlap by half
    seen[start:], places[start:] = row[11:-1].tolist(), note.spans.tolist()
  assert seen == ids.tolist() and places == spans.tolist()
  assert features.token_ids[-2].tolist() == [
    tokenizer.cls_id,
    *tokenizer.encode('What is it?')[:9],
    tokenizer.sep_id,
    tokenizer.sep_id,
  ]
  assert (
    counts['questions cut to 9 tokens'] >= 1
    and counts['further windows on texts longer than 40 tokens'] == len(features) - 3
  )


def test_a_window_without_the_whole_answer_is_impossible(trained):
  context = 'a b c d e f g h i j k l m n o p q r s t u v w x y z ' * 2
  start = context.index('q r')
  features, _ = task(stride=5).features(
    [question(context, start, start + 3, asked='x')], trained['unigram'], 20
  )
  start, end, impossible = (features.targets[name] for name in ('start', 'end', 'impossible'))
  assert (start.dtype, end.dtype, impossible.dtype) == (np.int32, np.int32, np.float32)
  assert ((start == 0) == (impossible == 1)).all() and ((end == 0) == (impossible == 1)).all()
  assert 0 < (impossible == 0).sum() < len(features)
  for row, first, last in zip(features.token_ids, start, end, strict=True):
    if first:
      assert trained['unigram'].decode(row[first : last + 1].tolist()) == 'q r'
  q, r = (trained['unigram'].encode(f'a {letter}')[-1] for letter in 'qr')
  # Rows with the answer have both tokens; the second alphabet has them, too.
  for row, holds in zip(features.token_ids, impossible == 0, strict=True):
    assert holds <= ({q, r} <= set(row.tolist()))


def test_no_room_for_the_context_is_an_error(trained):
  asked = 'q' * 18
  size = len(trained['bytes'].encode(asked))
  with pytest.raises(
    UserError,
    match=rf'max_length is {size + 5}, which leaves 2 .* a question of {size} .*max_question',
  ):
    task().features(
      [question('the cat sat on the mat', 0, 3, asked=asked)], trained['bytes'], size + 5
    )
  features, _ = task(max_question=3).features(
    [question('the cat sat on the mat', 0, 3, asked=asked)], trained['bytes'], size + 5
  )
  assert len(features) == 1


#### Answers ####


@pytest.mark.parametrize('kind', ['unigram', 'bytes', 'wordpiece'])
@pytest.mark.parametrize('max_length, stride', [(512, 128), (40, 16), (26, 128), (30, 1)])
def test_each_word_of_a_difficult_text_is_found(trained, kind, max_length, stride):
  context = HOSTILE * 3
  words, at = [], 0
  for word in context.split():
    at = context.index(word, at)
    words.append(question(context, at, at + len(word), str(at)))
    at += len(word)
  found, held = best_answers(
    task(stride=stride), words, trained[kind], max_length, np.random.default_rng(0)
  )
  assert held.mean() > 0.9
  for one, answer, has in zip(words, found, held, strict=True):
    if has:
      assert (answer.text, answer.start) == (one.answers[0], one.starts[0])
      assert context[answer.start : answer.end] == answer.text


def test_any_span_that_a_window_contains_is_found(trained):
  @hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
  @hypothesis.given(
    strategies.data(),
    strategies.sampled_from(sorted(trained)),
    strategies.integers(24, 90),
    strategies.integers(1, 60),
  )
  def holds(data, kind, max_length, stride):
    context = data.draw(strategies.text(alphabet=HOSTILE, max_size=150))
    span = strategies.tuples(strategies.integers(0, len(context)), strategies.integers(1, 20))
    spans = data.draw(strategies.lists(span, min_size=1, max_size=5))
    questions = [
      question(context, start, min(start + size, len(context)), str(i))
      for i, (start, size) in enumerate(spans)
    ]
    found, held = best_answers(task(stride=stride), questions, trained[kind], max_length)
    places = trained[kind].encode_with_offsets([context])[0][1].tolist()
    for one, answer, has in zip(questions, found, held, strict=True):
      if has:  # the span, extended to whole tokens, without white space around it
        end = one.starts[0] + len(one.answers[0])
        tokens = [(a, b) for a, b in places if a < b and a < end and b > one.starts[0]]
        assert answer.text == context[tokens[0][0] : tokens[-1][1]].strip()
        assert (
          answer.start <= max(one.starts[0], tokens[0][0])
          and context[answer.start : answer.end] == answer.text
        )

  holds()


def test_an_answer_of_half_a_window_is_contained_in_one(trained):
  context = ' '.join(f'w{i}' for i in range(200))
  _, spans = trained['unigram'].encode_with_offsets([context])[0]
  half = (64 - 3 - len(trained['unigram'].encode('x'))) // 2
  questions = [
    question(context, int(spans[i, 0]), int(spans[i + half - 1, 1]), str(i), 'x')
    for i in range(len(spans) - half + 1)
  ]
  questions = [one for one in questions if one.answers]
  _, held = best_answers(task(stride=128), questions, trained['unigram'], 64)
  assert len(held) > 200 and held.all()


def test_a_part_of_a_word_is_extended_to_its_tokens(tmp_path):
  vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'fast', 'japanese', 'trains']
  (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
  found, held = best_answers(
    task(), [question('Fast Japanese trains', 5, 10)], tokenization.load_tokenizer(tmp_path), 64
  )
  assert held.all() and found[0].text == 'Japanese'


@pytest.mark.skipif(not REAL.exists(), reason='needs ../shared/data/squad')
@pytest.mark.parametrize(
  'file, name',
  [
    pytest.param('train-v1.1.articlesplit.json', 'squad1', marks=pytest.mark.long),
    ('dev-v1.1.articlesplit.json', 'squad1'),
    ('v2.0.all.json', 'squad2'),
  ],
)
def test_no_answer_of_squad_is_lost(file, name):
  tokenizer = tokenization.load_tokenizer(REAL.parent / 'vocab/bert-base-uncased.txt')
  task = opened(name, dev=REAL / file, max_answer=1000)
  questions = task.examples('dev')
  assert len(questions) == {'v2.0.all.json': 11_873, 'train-v1.1.articlesplit.json': 9_231}.get(
    file, 1_339
  )
  assert sum(not one.answers for one in questions) == (5_945 if name == 'squad2' else 0)
  assert not any(one.moved for one in questions)
  features, counts = task.features(questions, tokenizer, 384)
  assert 'answers that no window holds whole' not in counts
  outputs = perfect(features)
  answers, _ = task.answers(questions, features, outputs)
  assert all(
    one.answers[0] in answer[0].text
    for one, answer in zip(questions, answers, strict=True)
    if one.answers
  )
  metrics = task.score('dev', questions, features, outputs)
  assert metrics['exact'] > 0.99 and (name == 'squad1' or metrics['NoAns_exact'] == 1)
