"""Each kind of task reports on its predictions; pages show it, and add nothing from texts."""

import json

import numpy as np
import pytest
import sklearn.metrics
from foreign_html import ATTACKS, foreign, shown

from electra_jax.finetune import report_blocks
from electra_jax.finetune.tasks import question_reports, tagging_reports, text_reports
from electra_jax.finetune.tasks.text_task import Example
from electra_jax.pages.finetuned_page import scored_page

RNG = np.random.default_rng(1)
LABELS = ('no', ATTACKS[0], 'maybe', 'yes')


def examples(targets, second=None):
  texts = [f'{ATTACKS[i % len(ATTACKS)]} text {i}' for i in range(len(targets))]
  return [
    Example(None, text, second and f'{second} {i}', target)
    for i, (text, target) in enumerate(zip(texts, targets, strict=True))
  ]


def labels():
  logits = RNG.normal(size=(60, 4))
  gold = np.append(logits[:40].argmax(-1), RNG.integers(-1, 4, 20))
  return text_reports.label_report(LABELS, examples(gold), logits, logits.argmax(-1))


def several():
  gold = (RNG.uniform(size=(50, 4)) < 0.3).astype(float)
  gold[7] = np.nan
  scores = np.clip(np.nan_to_num(gold) * 0.5 + RNG.uniform(size=gold.shape) * 0.6, 0, 1)
  return text_reports.labels_report(LABELS, examples([None] * 50), gold, scores, 0.5)


def values():
  gold = np.append(RNG.uniform(0, 5, 40), np.nan)
  return text_reports.value_report(examples(gold), gold, 0.6 * gold + RNG.normal(size=41))


def ranking():
  grades = [0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, np.nan]
  pairs = [one._replace(first=f'query {i // 4}') for i, one in enumerate(examples(grades, '<p>'))]
  queries = [('query 0', [0, 1, 2, 3]), ('query 1', [4, 5, 6, 7])]
  return text_reports.ranking_report(queries, pairs, np.arange(8.0)[::-1])


def choices():
  shares = [np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.9]), np.array([0.5, 0.5])]
  listed = [['a', '<b>', 'c'], ['d', 'e'], ['f', 'g']]
  return text_reports.choice_report(['<i>', 'two', 'three'], listed, [1, 1, -1], shares)


def sentences():
  rows = []
  for i, gold in enumerate((['B-X', 'I-X', 'O'], ['O', 'B-Y', 'O'], ['B-X', 'O', 'O'])):
    predicted = [['B-X', 'I-X', 'O'], ['O', 'B-X', 'I-X'], ['O', 'O', 'O']][i]
    words = [f'<w{j}>' for j in range(3)]
    rows.append(tagging_reports.TaggedSentence(f's{i}', words, gold, predicted, np.full(3, 0.8)))
  return rows


def questions():
  context = 'the <b>old</b> mill by the river'
  found = [('mill', 15, 'old</b> mill'), ('', -1, 'river'), ('river', 27, '')]
  made = []
  for i, (given, start, answer) in enumerate(found):
    at = context.find(answer)
    made.append(
      question_reports.AnsweredQuestion(
        f'q{i}',
        'which <i>?',
        context,
        (given,) * bool(given),
        (start,) * bool(given),
        answer,
        (at, at + len(answer)) if answer else None,
        0.9,
        0.0,
        0.5 * (i == 0),
      )
    )
  return question_reports.answer_report(made, unanswerable=True)


REPORTS = {
  'labels': labels,
  'several': several,
  'values': values,
  'ranking': ranking,
  'choices': choices,
  'entities': lambda: tagging_reports.entity_report(sentences(), ('X', 'Y')),
  'tags': lambda: tagging_reports.word_report(sentences(), ('O', 'B-X', 'I-X', 'B-Y')),
  'questions': questions,
}


@pytest.fixture(scope='module')
def reports():
  return {
    name: report_blocks.Report(9, {'accuracy': 0.5, 'other': float('nan')}, make())
    for name, make in REPORTS.items()
  }


def test_reports_are_the_same_after_json(reports):
  for report in reports.values():
    content = json.loads(json.dumps(report.to_json()))
    assert report_blocks.report_of_json(content).blocks == report.blocks
    later = content | {'blocks': [*content['blocks'], {'kind': 'of a later version', 'x': 1}]}
    assert report_blocks.report_of_json(later).blocks == report.blocks


def test_the_page_shows_all_and_adds_nothing(reports):
  page = scored_page(ATTACKS[1], 'Predictions.', reports)
  assert foreign(page) == []
  text = shown(page).replace('\n', ' ')
  for attack in ATTACKS:
    assert attack in text, attack
  for report in reports.values():
    for block in report.blocks:
      assert block.title in text


def test_worst_errors_are_wrong_labeled_examples_by_their_loss(reports):
  (errors,) = (block for block in reports['labels'].blocks if block.name == 'errors')
  facts = [dict(error.facts) for error in errors.errors]
  assert facts and all(one['given'] != one['predicted'] for one in facts)
  stated = [one['its probability'] for one in facts]
  assert stated == sorted(stated)


def test_values_are_those_of_scikit_learn():
  gold, predicted = RNG.normal(size=30), RNG.normal(size=30)
  report = report_blocks.Report(30, {}, text_reports.value_report(examples(gold), gold, predicted))
  found = dict(report['residuals'].rows)
  metrics = sklearn.metrics
  for name, value in {
    'mean absolute error': metrics.mean_absolute_error(gold, predicted),
    'median absolute error': metrics.median_absolute_error(gold, predicted),
    'root mean square error': metrics.root_mean_squared_error(gold, predicted),
    'largest error': metrics.max_error(gold, predicted),
    'coefficient of determination': metrics.r2_score(gold, predicted),
  }.items():
    assert found[name] == pytest.approx(value), name
  assert dict(report['errors'].errors[0].facts)['residual'] in predicted - gold
  assert sum(row[1] for row in report['range'].rows) == 30
  with pytest.raises(KeyError, match="'classes' is not in the report; it has 'residuals'"):
    report['classes']


def test_labels_of_texts_are_those_of_scikit_learn():
  gold = RNG.uniform(size=(40, 4)) < 0.4
  scores = RNG.uniform(size=(40, 4))
  report = report_blocks.Report(
    40, {}, text_reports.labels_report(LABELS, examples([None] * 40), gold * 1.0, scores, 0.5)
  )
  theirs = sklearn.metrics.classification_report(
    gold, scores >= 0.5, target_names=LABELS, output_dict=True, zero_division=0
  )
  names = {'micro average': 'micro avg', 'macro average': 'macro avg'}
  for name, *values, support in report['classes'].rows[:-1]:
    one = theirs[names.get(name, name)]
    assert values == pytest.approx([one['precision'], one['recall'], one['f1-score']]), name
    assert support == one['support']
  for i, row in enumerate(report['thresholds'].records()):
    at = sklearn.metrics.f1_score(gold[:, i], scores[:, i] >= row['its threshold'])
    assert row['best F1'] == pytest.approx(at)
    precision = sklearn.metrics.average_precision_score(gold[:, i], scores[:, i])
    assert row['average precision'] == pytest.approx(precision)


def test_the_query_with_the_worst_ranking_comes_first(reports):
  report = reports['ranking']
  assert dict(report['queries'].rows)['queries with a relevant passage'] == 1
  (error,) = report['errors'].errors
  assert [title[:6] for title, _ in error.texts] == ['query', 'rank 1', 'rank 2']
  grades, scores = [[0.0, 2.0, 0.0, 1.0]], [[7.0, 6.0, 5.0, 4.0]]
  value = sklearn.metrics.ndcg_score(grades, scores, k=10)
  assert dict(error.facts)['nDCG at 10'] == pytest.approx(value)


def test_answers_are_marked_in_their_context(reports):
  report = reports['questions']
  first = next(e for e in report['errors'].errors if dict(e.facts)['question'] == 'q0')
  marked = [(part.text, part.mark) for part in first.texts[1][1] if part.mark]
  assert marked == [('old</b> ', 'wrong'), ('mill', 'right')]
  rows = {row[0]: row[1:] for row in report['lengths'].rows}
  assert rows['all'] == (3, 0.0, pytest.approx(0.5 / 3)) and rows['no answer'][0] == 1
  decisions = {row[0]: row[1:] for row in report['classes'].rows}
  assert decisions['accuracy'][0] == pytest.approx(1 / 3)


def test_long_texts_are_cut_where_nothing_is_marked():
  text = 'x' * 2000 + 'MARKED' + 'y' * 2000
  parts = report_blocks.marked_text(text, [(2000, 2006, report_blocks.WRONG, '')])
  assert [part.text for part in parts if part.mark] == ['MARKED']
  assert sum(len(part.text) for part in parts) < 700 and report_blocks.ELLIPSIS in parts[0].text


@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_the_page_without_overflow_messages_or_requests(
  browser, reports, tmp_path, width
):
  path = tmp_path / 'page.html'
  path.write_text(scored_page(ATTACKS[1], 'Predictions.', reports), 'utf-8')
  script = """[window.pwned ?? 0, document.querySelectorAll('th button').length,
    getComputedStyle(document.querySelector('.q10')).backgroundColor]"""
  opened = browser.open(path, width, script=script)
  assert (opened.messages, opened.requests, opened.overflow) == ([], [], 0)
  assert opened.result[0] == 0 and opened.result[1] > 10 and 'rgba(' in opened.result[2]
