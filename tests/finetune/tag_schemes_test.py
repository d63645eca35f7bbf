"""Every published scheme of tags is detected, read and written as seqeval reads it.

tests/golden/tag_schemes.json has the results of seqeval.
"""

import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from finetune_files import opened, restored, task_data

from electra_jax.config.finetuning import TAG_SCHEMES
from electra_jax.data.tokenizers.tokenization import SPECIAL_TOKENS, load_tokenizer
from electra_jax.errors import UserError
from electra_jax.finetune import entities
from electra_jax.finetune.tasks import tag_schemes
from electra_jax.finetune.tasks.tag_schemes import IOB2, SCHEMES, TagCoding
from electra_jax.registry import TASKS

CASES = json.loads((pathlib.Path(__file__).parents[1] / 'golden/tag_schemes.json').read_text())
STYLES = [('-', True), ('_', True), ('-', False), ('_', False), (':', True), ('', True)]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['scheme'])
def test_entities_and_f1_equal_those_of_seqeval(case):
  coding = TagCoding(case['scheme'])
  found = [[list(span) for span in coding.spans(tags)] for tags in case['gold']]
  assert found == case['entities']
  gold, predicted = (
    [IOB2.encoded(coding.spans(tags), len(tags)) for tags in case[name]]
    for name in ('gold', 'predicted')
  )
  metrics = entities.entity_metrics(gold, predicted)
  assert metrics['f1'] == metrics['f1_strict'] == pytest.approx(case['f1'], abs=1e-12)


@st.composite
def sentences(draw, types=('PER', 'LOC')):
  """Length of a sentence and its entities."""
  length = draw(st.integers(1, 10))
  spans, at = [], 0
  while at < length:
    size = draw(st.integers(0, 4))
    if size:
      spans.append((draw(st.sampled_from(types)), at, min(length, at + size)))
    at += max(size, 1)
  return length, spans


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('separator, mark_first', STYLES)
@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.data())
def test_tags_of_every_scheme_return_the_entities(scheme, separator, mark_first, data):
  coding = TagCoding(scheme, separator, mark_first)
  types = ('PER', 'LOC') if separator else (tag_schemes.UNTYPED,)
  length, spans = data.draw(sentences(types))
  if scheme == 'io':  # cannot separate entities of a type that touch
    starts = {start for _, start, _ in spans}
    spans = [span for span in spans if span[2] not in starts]
  tags = coding.encoded(spans, length)
  assert coding.spans(tags) == spans and coding.fault(tags) is None


WORDS = 'Ann Lee met Bob in New York City'.split()
SPANS = [('PER', 0, 2), ('PER', 3, 4), ('LOC', 5, 8)]
TOUCHING = [('PER', 0, 1), ('PER', 1, 3)]


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('separator, mark_first', STYLES)
def test_the_scheme_is_detected_from_the_tags(scheme, separator, mark_first):
  coding = TagCoding(scheme, separator, mark_first)
  named = [(kind if separator else tag_schemes.UNTYPED, *rest) for kind, *rest in SPANS]
  sequences = [coding.encoded(named, len(WORDS))]
  if scheme != 'io':
    sequences.append(coding.encoded([(named[0][0], *rest) for _, *rest in TOUCHING], 3))
  assert tag_schemes.detect(sequences) == (coding, 0)


@pytest.mark.parametrize(
  'tags, scheme',
  [
    ('O I-PER I-PER O', 'io'),  # also IOB1 and IOE1 without entities that touch
    ('O B-PER O', 'iob2'),
    ('O E-PER O', 'ioe2'),
    ('O S-PER O', 'iobes'),
    ('O B-PER E-PER', 'iobes'),
    ('B E S B E', 'bmes'),  # segmentation, where no word is O
    ('O U-PER', 'bilou'),
    ('O W-PER', 'bmewo'),
  ],
)
def test_ambiguous_tags_are_decided_by_a_rule(tags, scheme):
  assert tag_schemes.detect([tags.split()]).coding.scheme == scheme


def test_the_config_has_all_schemes():
  assert set(TAG_SCHEMES) == set(SCHEMES)


TYPES_ONLY = [['PER', 'PER', 'O', 'art-music'], ['O', 'LOC']]


def test_types_without_marks_are_io_where_a_task_requires_entities(tmp_path):
  detected = tag_schemes.detect(TYPES_ONLY, types_only=True)
  assert detected.coding == tag_schemes.TYPES and detected.coding.describe() == 'IO, as in TYPE'
  spans = detected.coding.spans(TYPES_ONLY[0])
  assert spans == [('PER', 0, 2), ('art-music', 3, 4)]
  assert detected.coding.encoded(spans, 4) == TYPES_ONLY[0]
  assert tag_schemes.detect(TYPES_ONLY) is None
  assert tag_schemes.detect(TYPES_ONLY, 'iob2', types_only=True) is None
  path = tmp_path / 'train.conll'
  path.write_text('Bob PER\nLee PER\nran O\n\nit O\n')
  task = opened('ner', train=path, dev=path)
  assert task.labels == ('O', 'B-PER', 'I-PER')
  assert task.examples('dev')[0].tags == ('B-PER', 'I-PER', 'O')
  assert opened('tagging', train=path, dev=path).metric == 'accuracy'


@pytest.mark.parametrize('tag', ['b-PER', 'I-PER', 'PER_e', 'X', '1', '-', '2.5'])
def test_tags_that_may_have_a_mark_are_no_types(tag):
  assert tag_schemes.detect([*TYPES_ONLY, ['O', tag]], types_only=True) is None


@pytest.mark.parametrize('task, tag', [('ner', 'O'), ('pos', 'NN'), ('tagging', 'O')])
def test_a_single_tag_is_refused(tmp_path, task, tag):
  path = tmp_path / 'train.conll'
  path.write_text(f'Bob {tag}\nran {tag}\n')
  with pytest.raises(UserError, match='the training data has (no entity|a single tag)'):
    opened(task, train=path, dev=path)


def test_the_scheme_can_be_given():
  assert tag_schemes.detect([['O', 'I-PER']], 'iob1').coding.scheme == 'iob1'
  assert tag_schemes.detect([['O', 'NOUN']]) is None and tag_schemes.detect([['O']]) is None


def test_of_several_schemes_the_one_with_the_fewest_violations_is_used():
  right = [['O', 'B-PER', 'I-PER'], ['B-PER'], ['O', 'B-LOC']]
  detected = tag_schemes.detect([*right, ['O', 'I-PER']])
  assert detected == (IOB2, 1)


def columns(path, coding, words=WORDS, spans=SPANS, repeat=2):
  named = [(kind if coding.separator else tag_schemes.UNTYPED, *rest) for kind, *rest in spans]
  tags = coding.encoded(named, len(words))
  block = '\n'.join(f'{word} {tag}' for word, tag in zip(words, tags, strict=True))
  path.write_text('\n\n'.join([block] * repeat) + '\n')
  return path, tags


def outputs_of(task, features):
  """Outputs that predict the targets."""
  eye = 9.0 * np.eye(len(task.labels))
  return {'logits': [eye[tags.clip(0)] for tags in features.targets['tags']]}


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  path.write_text('\n'.join([*SPECIAL_TOKENS, *(word.lower() for word in WORDS)]))
  return load_tokenizer(path, lowercase=True)


@pytest.mark.parametrize(
  'coding', [TagCoding('bilou'), TagCoding('iob2', '', True), TagCoding('ioe2', '-', False)]
)
def test_a_task_reads_and_writes_the_scheme_of_its_data(tmp_path, tokenizer, coding):
  path, tags = columns(tmp_path / 'train.conll', coding)
  task = opened('ner', train=path, dev=path)
  assert task.labels[0] == 'O' and all(label[:2] in ('B-', 'I-') for label in task.labels[1:])
  assert SCHEMES[coding.scheme].title in task.notes[0]
  for one in (task, restored(task)):
    examples = one.read(str(path))
    features, counts = one.features(examples, tokenizer, 64)
    outputs = outputs_of(one, features)
    assert not counts and one.score('dev', examples, features, outputs)['f1'] == 1
    assert one.predictions(examples, features, outputs)[0]['tags'] == tags
    content = one.submission('dev', examples, features, outputs)['ner-dev.conll'].decode()
    assert content.split('\n')[0] == f'Ann {tags[0]} {tags[0]}'


def test_violations_name_the_scheme_or_are_repaired(tmp_path):
  path, _ = columns(tmp_path / 'train.conll', TagCoding('bilou'), repeat=3)
  bad = tmp_path / 'dev.conll'
  bad.write_text('Ann B-PER\nmet O\n')
  with pytest.raises(
    UserError, match="line 1 .*'B-PER' after the start .* and before 'O', which violates BILOU"
  ):
    opened('ner', train=path, dev=bad).examples('dev')
  task = opened('ner', train=path, dev=bad, repair_tags='repair')
  assert task.examples('dev')[0].tags == ('B-PER', 'O') and task.examples('dev')[0].repaired == 1


def test_marks_without_types_are_entities_of_the_task_tagging_only_in_a_scheme(tmp_path):
  path, _ = columns(tmp_path / 'a.conll', TagCoding('iob2', ''))
  assert opened('tagging', train=path).metric == 'f1'
  (tmp_path / 'b.conll').write_text('a S\nb E\nc X\n')
  assert opened('tagging', train=tmp_path / 'b.conll').metric == 'accuracy'


def test_segmentation_has_no_label_for_words_outside(tmp_path):
  (tmp_path / 'a.conll').write_text('a B\nb M\nc E\nd S\n')
  task = opened('ner', train=tmp_path / 'a.conll')
  assert task.labels == ('B-ENTITY', 'I-ENTITY') and task.coding.scheme == 'bmes'


def test_labels_of_a_model_in_another_scheme_are_scored(tmp_path, tokenizer):
  path, tags = columns(tmp_path / 'dev.conll', IOB2)
  marked = [f'{mark}-{kind}' for kind in ('PER', 'LOC') for mark in 'BILU']
  task = TASKS.get('ner').define('ner', task_data(dev=path), None, ('O', *marked))
  examples = task.examples('dev')
  features, _ = task.features(examples, tokenizer, 64)
  outputs = outputs_of(task, features)
  metrics = task.score('dev', examples, features, outputs)
  assert metrics['f1'] == 1 and 'f1_strict' not in metrics and task.types == ('PER', 'LOC')
  assert task.predictions(examples, features, outputs)[0]['tags'] == tags  # as in the data


INTEGERS = '{"tokens": ["Ann", "ran"], "ner_tags": [1, 0]}\n'


def test_integer_tags_are_named_by_a_field(tmp_path):
  (tmp_path / 'a.jsonl').write_text(INTEGERS)
  (tmp_path / 'a.conll').write_text('Ann 1\nran 0\n')
  (tmp_path / 'names.txt').write_text('O\nB-PER\n')
  for name in ('a.jsonl', 'a.conll'):
    for names in ('O,B-PER', str(tmp_path / 'names.txt')):
      task = opened('ner', train=tmp_path / name, label_names=names)
      assert task.labels == ('O', 'B-PER', 'I-PER')
      assert task.examples('train')[0].tags == ('B-PER', 'O')
    with pytest.raises(UserError, match='integers; set data.label_names|set data.label_names to'):
      opened('ner', train=tmp_path / name)
  assert opened('tagging', train=tmp_path / 'a.jsonl').labels == ('0', '1')
  with pytest.raises(UserError, match='line 1 .* the tag 1; expected 0 to 0, .* has 1 names'):
    (tmp_path / 'one.txt').write_text('O\n')
    opened('ner', train=tmp_path / 'a.jsonl', label_names=str(tmp_path / 'one.txt'))
  with pytest.raises(UserError, match="data.label_names is 'O,O'; expected different names"):
    opened('ner', train=tmp_path / 'a.jsonl', label_names='O,O')


@pytest.mark.parametrize('value', ['null', 'NaN', 'Infinity'])
def test_a_missing_tag_is_refused(tmp_path, value):
  (tmp_path / 'a.jsonl').write_text(INTEGERS.replace('[1', f'[{value}'))
  with pytest.raises(UserError, match="line 1 .* field 'ner_tags' a tag that is null or NaN"):
    opened('ner', train=tmp_path / 'a.jsonl', label_names='O,B-PER')
