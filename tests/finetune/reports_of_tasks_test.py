"""The report of each kind of task agrees with its metrics, for any outputs."""

import dataclasses
import json
import lzma

import finetune_files
import made_tokenizers
import numpy as np
import pytest
from finetune_files import opened

from electra_jax.data.corpus import corpora
from electra_jax.finetune import predictions, report_blocks
from electra_jax.pages.block_views import block_views

LENGTH = 48
BEAM = 4


@pytest.fixture(scope='module')
def tokenizer():
  texts = lzma.open(corpora.SAMPLE_PATH, 'rt', encoding='utf-8').read(100_000).split('\n\n')
  return made_tokenizers.train(texts, kind='wordpiece', vocab_size=600)


def outputs(task, features, seed=0):
  """Random outputs of a model for rows."""
  rng, rows = np.random.default_rng(seed), len(features)
  if task.head == 'tagging':
    return {'logits': [rng.normal(size=(len(x), len(task.labels))) for x in features.token_ids]}
  if task.head in ('classification', 'multilabel'):
    return {'logits': rng.normal(size=(rows, len(task.labels)))}
  if task.head != 'span':
    return {'value': rng.normal(size=rows)}
  ends = [len(x) - 1 for x in features.token_ids]
  starts = np.stack([rng.integers(6, end, BEAM) for end in ends])
  return {
    'start_index': starts,
    'start_log_probs': -np.sort(rng.uniform(1, 5, (rows, BEAM))),
    'end_index': np.minimum(starts[:, :, None] + rng.integers(0, 3, (rows, 1, BEAM)), 99),
    'end_log_probs': -np.sort(rng.uniform(0, 5, (rows, BEAM, BEAM))),
    'impossible': rng.normal(size=rows),
  }


def reported(task, tokenizer, split='dev'):
  """The metrics and the report of random outputs for a split."""
  examples = task.examples(split)
  features, _ = task.features(examples, tokenizer, LENGTH)
  made = outputs(task, features)
  metrics = task.score(split, examples, features, made)
  blocks = report_blocks.report_blocks(task, examples, features, made)
  report = report_blocks.Report(len(examples), metrics, blocks)
  assert block_views(blocks)
  labeled = predictions.count_labeled(task, examples, features)
  counted = [one[4] for block in blocks for one in getattr(block, 'bins', ())]
  if counted and task.head in ('classification', 'span', 'choice'):
    assert sum(counted) == labeled
  return metrics, report


def averages(report):
  return {row[0]: row[1:] for row in report['classes'].rows}


@pytest.mark.parametrize('name', ['cola', 'mrpc'])
def test_classes(name, tokenizer, tmp_path):
  metrics, report = reported(opened(name, source=finetune_files.glue(tmp_path / 'glue')), tokenizer)
  rows = averages(report)
  assert rows['0'][-1] + rows['1'][-1] == 12
  if name == 'mrpc':
    assert rows['1'][2] == pytest.approx(metrics['f1'])
    assert rows['accuracy'][0] == pytest.approx(metrics['accuracy'])
    assert [title for title, _ in report['errors'].errors[0].texts] == ['first', 'second']


def test_tags_of_entities_and_words(tokenizer, tmp_path):
  metrics, report = reported(
    opened('ner', source=finetune_files.tagged(tmp_path / 'ner', 'ner')), tokenizer
  )
  rows = averages(report)
  names = ('precision', 'recall', 'f1')
  assert rows['micro average'][:3] == pytest.approx([metrics[name] for name in names])
  assert rows['X'][2] == pytest.approx(metrics['f1/X'])
  metrics, report = reported(
    opened('pos', source=finetune_files.tagged(tmp_path / 'pos', 'pos')), tokenizer
  )
  rows = averages(report)
  assert rows['accuracy'][0] == pytest.approx(metrics['accuracy'])
  assert rows['macro average'][2] == pytest.approx(metrics['macro_f1'])


def write(path, rows):
  path.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
  return str(path)


def test_several_labels(tokenizer, tmp_path):
  texts = finetune_files.sentences(20, 3)
  rows = [{'text': text, 'label': text.split()[:2]} for text, _ in texts]
  data = write(tmp_path / 'rows.jsonl', rows)
  metrics, report = reported(opened('multilabel', train=data, dev=data), tokenizer)
  rows = averages(report)
  assert rows['micro average'][2] == pytest.approx(metrics['micro_f1'])
  best = [row['average precision'] for row in report['thresholds'].records()]
  assert np.mean([x for x in best if x is not None]) == pytest.approx(metrics['map'])


def test_values(tokenizer, tmp_path):
  task = opened('stsb', source=finetune_files.glue(tmp_path / 'glue'))
  metrics, report = reported(task, tokenizer)
  scatter = report['scatter']
  found = np.corrcoef(scatter.given, scatter.predicted)[0, 1]
  assert found == pytest.approx(metrics['pearson']) and len(scatter.given) == 12


def test_choices_and_ranks(tokenizer, tmp_path):
  rows = [
    {'question': text, 'choices': ['bako', 'salo', 'nipe'][: 2 + i % 2], 'label': i % 2}
    for i, (text, _) in enumerate(finetune_files.sentences(11, 4))
  ]
  data = write(tmp_path / 'choice.jsonl', rows)
  metrics, report = reported(opened('choice', train=data, dev=data), tokenizer)
  assert averages(report)['accuracy'][0] == pytest.approx(metrics['accuracy'])
  rows = [
    {'query': f'bako {i // 4}', 'passage': text, 'relevance': int(i % 4 == i // 4 % 4)}
    for i, (text, _) in enumerate(finetune_files.sentences(20, 5))
  ]
  data = write(tmp_path / 'ranking.jsonl', rows)
  metrics, report = reported(opened('ranking', train=data, dev=data), tokenizer)
  assert dict(report['queries'].rows)['queries with a relevant passage'] == 5
  values = [dict(error.facts)['nDCG at 10'] for error in report['errors'].errors]
  assert values == sorted(values)
  assert (sum(values) + 5 - len(values)) / 5 == pytest.approx(metrics['ndcg_at_10'])


@pytest.mark.parametrize('version', ['1.1', '2.0'])
def test_questions(version, tokenizer, tmp_path):
  folder = finetune_files.squad(tmp_path / 'squad', version)
  metrics, report = reported(opened(f'squad{version[0]}', source=folder), tokenizer)
  rows = {row[0]: row[1:] for row in report['lengths'].rows}
  assert rows['all'] == pytest.approx((6, metrics['exact'], metrics['f1']))
  if version == '2.0':
    assert rows['no answer'][1] == pytest.approx(metrics['NoAns_exact'])
    assert averages(report)['no answer'][-1] == 3


def test_a_task_of_user_code_without_a_report_has_none(tmp_path):

  @dataclasses.dataclass
  class Task:
    head: str = 'classification'

  assert report_blocks.report_blocks(Task(), (), None, {}) == ()
