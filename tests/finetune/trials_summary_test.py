"""Summaries of trials: statistics as in SciPy, collapsed trials, the GLUE average, tables."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg

from electra_jax.finetune import trial_summary


def record(task, trial, value, metric='accuracy', constant=None, looks=4, split='dev', **further):
  """A record as finetune/trial.py writes it; `further` metrics have a constant of 0."""
  figures = {metric: value} | further

  def at(share):
    return {
      'epoch': 3 * share,
      'step': int(40 * share),
      metric: None if value is None else value * share,
    }

  curve = [at((i + 1) / looks) for i in range(looks)]
  level = {} if constant is None else {metric: constant} | dict.fromkeys(further, 0.0)
  return {
    'task': task,
    'trial': trial,
    'seed': trial - 1,
    'metric': metric,
    'figures': {split: figures},
    'best': None,
    'curve': curve,
    'train_loss': 0.2,
    'constant': level,
    'steps': 40,
    'tokens': 1_000,
    'seconds': 61.0,
  }


def trials(task, values, **fields):
  return [record(task, i + 1, value, **fields) for i, value in enumerate(values)]


def test_statistics_equal_those_of_scipy():
  values = [0.61, 0.66, 0.63, 0.7, 0.58]
  f = trial_summary.summarize_trials(trials('rte', values))['rte']['figures']['dev']['accuracy']
  interval = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
  expected = {
    'n': 5,
    'values': values,
    'median': 0.63,
    'best': 0.7,
    'mean': np.mean(values),
    'deviation': np.std(values, ddof=1),
  }
  expected |= {'low': interval[0], 'high': interval[1]}
  assert f.keys() == expected.keys()
  for name, value in f.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-12)


def test_one_trial_has_no_interval_and_summaries_are_json():
  summaries = trial_summary.summarize_trials(
    [record('pos', 1, 0.9, constant=0.2), record('ner', 1, 0.5, 'f1')]
  )
  f = summaries['pos']['figures']['dev']['accuracy']
  assert f == {
    'n': 1,
    'values': [0.9],
    'median': 0.9,
    'best': 0.9,
    'mean': 0.9,
    'deviation': None,
    'low': None,
    'high': None,
  }
  assert list(summaries) == ['pos', 'ner'] and summaries['pos']['tokens'] == 1_000
  assert json.loads(json.dumps(summaries, allow_nan=False)) == summaries


def test_two_to_four_trials_are_printed_and_have_no_interval():
  values = [0.52, 0.61, 0.6, 0.59]
  summaries = trial_summary.summarize_trials(trials('rte', values))
  f = summaries['rte']['figures']['dev']['accuracy']
  assert f['low'] is None and f['high'] is None and f['values'] == values
  assert '  52.0, 61.0, 60.0, 59.0' in trial_summary.trials_table(summaries)
  assert '| 52.0, 61.0, 60.0, 59.0 |' in trial_summary.trials_markdown(summaries)


@pytest.mark.parametrize(
  'metric, values, least, most',
  [
    ('accuracy', [0.99, 1.0, 0.6, 1.0, 1.0], None, 1.0),
    ('accuracy', [0.0, 0.0, 0.3, 0.0, 0.0], 0.0, None),
    ('matthews', [-0.9, 0.9, -0.9, 0.9, -0.9], -1.0, 1.0),
    ('mse', [0.0, 3.0, 0.0, 0.0, 0.0], 0.0, None),
    ('best_f1_thresh', [0.1, 0.9, 0.1, 0.1, 0.9], None, None),
  ],
)
def test_an_interval_is_inside_the_range_of_the_metric(metric, values, least, most):
  f = trial_summary.summarize_trials(trials('own', values, metric=metric))['own']
  f, whole = f['figures']['dev'][metric], trial_summary.spread(values)
  assert f['low'] == (whole['low'] if least is None else least)
  assert f['high'] == (whole['high'] if most is None else most)


@pytest.mark.parametrize('undefined', [None, math.nan])
def test_an_undefined_metric_counts_as_the_constant_answer_or_is_omitted(undefined):
  known = trials('stsb', [0.8, undefined, 0.7], metric='pearson', constant=0.0)
  f = trial_summary.summarize_trials(known)['stsb']['figures']['dev']['pearson']
  assert (f['n'], f['median'], f['best']) == (3, 0.7, 0.8)
  f = trial_summary.summarize_trials(trials('stsb', [0.8, undefined, 0.7], metric='pearson'))[
    'stsb'
  ]['figures']['dev']['pearson']
  assert (f['n'], f['median']) == (2, 0.75)
  assert '2 of 3' in trial_summary.trials_table(
    trial_summary.summarize_trials(trials('stsb', [0.8, undefined, 0.7], metric='pearson'))
  )


def test_the_best_error_is_the_lowest_and_thresholds_have_no_best():
  f = trial_summary.summarize_trials(
    [record('own', i, 0.5, mse=mse, best_f1_thresh=-2.0) for i, mse in ((1, 0.3), (2, 0.1))]
  )['own']['figures']['dev']
  assert (
    f['mse']['best'] == 0.1
    and f['best_f1_thresh']['best'] is None
    and f['best_f1_thresh']['median'] == -2.0
  )


@pytest.mark.parametrize(
  'values, constant, expected',
  [
    # RTE: collapsed trials are at the majority baseline or slightly below.
    ([0.66, 0.527, 0.68, 0.52, 0.7], 0.527, [2, 4]),
    ([0.66, 0.534, 0.68], 0.527, [2]),  # slightly above it
    ([0.66, 0.64, 0.68], 0.527, []),
    ([0.535, 0.55, 0.54], 0.563, []),  # WNLI: no trial is above the baseline
    ([0.563, 0.55], 0.563, [1]),  # equal to the baseline
    ([0.563], 0.563, [1]),
    ([0.6], 0.563, []),
    ([0.3], None, []),
  ],
)
def test_collapsed_trials_are_found(values, constant, expected):
  records = trials('rte', values, constant=constant)
  others = trials('sst2', [0.9], constant=0.509)
  assert [r['trial'] for r in trial_summary.collapsed_trials(records + others)] == expected
  assert trial_summary.summarize_trials(others + records)['rte']['collapsed'] == expected
  if expected:
    assert f'rte: {len(expected)} trial' in trial_summary.trials_table(
      trial_summary.summarize_trials(records)
    )
  else:
    assert 'collapsed' not in trial_summary.trials_table(trial_summary.summarize_trials(records))


def test_a_trial_with_other_metrics_than_the_constant_answer_did_not_collapse():
  assert not trial_summary.collapsed_trials([record('mrpc', 1, 0.684, constant=0.684, f1=0.7)])
  assert trial_summary.collapsed_trials([record('mrpc', 1, 0.684, constant=0.684, f1=0.0)])
  assert trial_summary.collapsed_trials(
    [record('stsb', 1, None, 'pearson', constant=0.0, spearman=None)]
  )
  # A threshold depends on the weights, whatever the answers are.
  assert trial_summary.collapsed_trials(
    [record('squad2', 1, 0.5, 'best_f1', constant=0.5, best_f1_thresh=-3.2)]
  )


def test_a_trial_of_version_0_1_0_that_ranks_the_wrong_way_did_not_collapse():
  records = [
    record('stsb', 1, -0.27, 'glue', constant=0.0, pearson=-0.26, spearman=-0.28),
    record('stsb', 2, 0.8, 'glue', constant=0.0, pearson=0.8, spearman=0.8),
  ]
  assert not trial_summary.collapsed_trials(records)


@pytest.mark.parametrize(
  'given, collapsed',
  [
    ({'same_answer': 1.0, 'same_target': 0.527}, True),
    ({'same_answer': 0.985, 'same_target': 0.527}, True),
    ({'same_answer': 0.9, 'same_target': 0.527}, False),
    ({'same_answer': 0.985, 'same_target': 0.98}, False),  # a label that is rare in the data
    ({'same_answer': 1.0, 'same_target': 0.99}, True),
    ({'answer_deviation': 0.01}, True),
    ({'answer_deviation': 0.3}, False),
  ],
)
def test_the_answers_decide_whatever_the_metrics_are(given, collapsed):
  for value in (0.527, 0.3, 0.9):
    found = trial_summary.collapsed_trials(
      [record('rte', 1, value, constant=0.527) | {'answers': given}]
    )
    assert bool(found) == collapsed


def test_the_glue_average_is_the_mean_of_the_medians_of_the_published_metrics():
  records = (
    trials('cola', [0.4, 0.5, 0.1], metric='matthews')
    + [record('stsb', 1, 0.9, 'glue', pearson=0.92, spearman=0.88)]
    + trials('wnli', [0.1])
    + trials('pos', [0.2])
  )
  average = trial_summary.glue_average(trial_summary.summarize_trials(records))
  assert average['tasks'] == ['cola', 'stsb'] and average['average'] == pytest.approx(
    (0.4 + 0.88) / 2
  )
  assert average['missing'] == ['sst2', 'mrpc', 'qqp', 'mnli', 'qnli', 'rte']
  text = trial_summary.trials_table(trial_summary.summarize_trials(records))
  assert (
    'GLUE average: 64.0, over the medians of 2 tasks' in text
    and 'missing: sst2, mrpc, qqp, mnli, qnli, rte' in text
  )
  assert trial_summary.glue_average(trial_summary.summarize_trials(trials('pos', [0.2]))) is None
  assert 'GLUE' not in trial_summary.trials_table(
    trial_summary.summarize_trials(trials('cola', [0.4], metric='matthews'))
  )
  # The published results of the small model (google-research/electra, README) have the mean 80.4.
  published = {
    'cola': 56.8,
    'sst2': 88.3,
    'mrpc': 87.4,
    'stsb': 86.8,
    'qqp': 88.3,
    'mnli': 78.9,
    'qnli': 87.9,
    'rte': 68.5,
  }
  whole = [
    record(task, 1, value / 100, trial_summary.published_metrics()[task])
    for task, value in published.items()
  ]
  assert 'GLUE average: 80.4' in trial_summary.trials_table(
    trial_summary.summarize_trials(whole)
  ) and 'complete' in trial_summary.trials_table(trial_summary.summarize_trials(whole))


def test_the_tables_have_the_metrics_in_columns():
  records = trials('mnli', [0.7, 0.72, 0.71], constant=0.33)
  for r in records:
    r['figures']['dev_mismatched'] = {'accuracy': 0.69}
  summaries = trial_summary.summarize_trials(records)
  lines = trial_summary.trials_table(summaries).splitlines()
  assert lines[2].split() == 'mnli accuracy 3 71.0 72.0 71.0 1.0 70.0, 72.0, 71.0 33.0'.split()
  assert (
    lines[3].split() == 'mnli dev_mismatched accuracy 3 69.0 69.0 69.0 0.0 69.0, 69.0, 69.0'.split()
  )
  assert len({line.index('3 ') for line in lines[2:4]}) == 1
  rows = [
    line for line in trial_summary.trials_markdown(summaries).splitlines() if line.startswith('|')
  ]
  assert len(rows) == 4 and len({row.count('|') for row in rows}) == 1
  assert '| mnli | **accuracy** | 3 | 71.0 | 72.0 | 71.0 | 1.0 | 70.0, 72.0, 71.0 | 33.0 |' in rows


def outside(figure):
  """Texts that extend over the edge of a picture, and panels that overlap."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  page, renderer = figure.bbox, canvas.get_renderer()

  # Ticks outside the limits have labels, too, which are not drawn.
  def shown(labels, axis, limits):
    return [text for text in labels if min(limits) <= text.get_position()[axis] <= max(limits)]

  texts = [figure._suptitle] + [
    text
    for axes in figure.axes
    for text in (
      axes._left_title,
      axes.xaxis.label,
      axes.yaxis.label,
      *shown(axes.get_xticklabels(), 0, axes.get_xlim()),
      *shown(axes.get_yticklabels(), 1, axes.get_ylim()),
    )
    if text.get_text()
  ]
  boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
  found = [
    text
    for text, box in boxes
    if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
  ]
  tight = [axes.get_tightbbox(renderer) for axes in figure.axes]
  return found + [
    (i, j) for i, a in enumerate(tight) for j, b in enumerate(tight) if i < j and a.overlaps(b)
  ]


def test_the_picture_shows_every_trial_completely():
  rng = np.random.default_rng(0)
  records = (
    trials('cola', [0.4, 0.41, 0.0, 0.42], metric='matthews', constant=0.0)
    + trials('sst2', 0.88 + 0.01 * rng.random(20), constant=0.509)
    + [record('ner', 1, 0.8, 'f1')]
    + trials('stsb', [0.85, None], metric='pearson', constant=0.0, looks=1)
    + trials('own', [None], metric='pearson')
  )
  figure = trial_summary.draw_trials(records, 'a headline of a run')
  assert not outside(figure)
  assert len(figure.axes) == 10 and figure._suptitle.get_text().startswith('a headline of a run\n')
  dots = [[line for line in axes.lines if line.get_marker() == 'o'] for axes in figure.axes[1::2]]
  assert [len(of_task) for of_task in dots] == [4, 20, 1, 2, 0]
  assert [line.get_markerfacecolor() == 'white' for line in dots[0]] == [False, False, True, False]
  assert [float(line.get_ydata()[0]) for line in dots[0]] == pytest.approx([40, 41, 0, 42])
  assert 'constant 50.9, below' in figure.axes[3].get_title(loc='left')
  assert outside(
    trial_summary.draw_trials(records[:4], 'x' * 400)
  )  # the check finds texts that are cut off
