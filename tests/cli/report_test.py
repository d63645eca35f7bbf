"""A report shows metrics.jsonl and evaluation.json, in a readable picture."""

import json
import math

import numpy as np
import pytest
from made_metrics import LINES, RESOLVED, TOKENS_PER_STEP, TOWERS, evaluation, line

from electra_jax.config import default_config, to_plain
from electra_jax.errors import UserError
from electra_jax.report import headline, key_lines, read_record, report
from electra_jax.training.curves import describe_schedule, draw_curves, series


@pytest.fixture(autouse=True)
def no_panels(monkeypatch):
  """Leaves the panels of the page out, which take seconds; tests/pages has tests of the page."""
  monkeypatch.setattr('electra_jax.pages.run_page.draw_single_panels', lambda *_: [])


@pytest.fixture
def make_run(tmp_path):
  def make(lines=LINES, evaluated=None, resolved=RESOLVED, **fields):
    config = default_config()
    config.update_from_flattened_dict({'name': 'probe', 'steps': 200, **fields})
    (tmp_path / 'config.json').write_text(json.dumps(to_plain(config)))
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in lines))
    if resolved:
      (tmp_path / 'resolved.json').write_text(json.dumps(resolved))
    if evaluated:
      (tmp_path / 'evaluation.json').write_text(json.dumps(evaluation(evaluated)))
    return tmp_path

  return make


def panels(record):
  """Title -> axes of the picture."""
  return {axes.get_title(loc='left'): axes for axes in draw_curves(record, headline(record)).axes}


def drawn(axes, lines, name):
  """Whether a metric of these lines is plotted over tokens."""
  tokens, values = series(lines, name)
  return any(
    np.array_equal(np.asarray(one.get_xdata(), float), tokens)
    and np.array_equal(np.asarray(one.get_ydata(), float), values, equal_nan=True)
    for one in axes.lines
  )


def at_height(axes, value):
  """Whether there is a horizontal line at this height."""
  return any(
    len(one.get_ydata()) == 2 and np.allclose(one.get_ydata(), value) for one in axes.lines
  )


def test_every_panel_draws_its_metrics(make_run):
  record = read_record(make_run())
  axes = panels(record)
  assert len(axes) == 10
  both = {
    'Generator loss': ['generator_loss'],
    'Discriminator loss': ['discriminator_loss'],
    'Area under the ROC curve': ['auc'],
    'Average precision': ['average_precision'],
    'Precision and recall': ['precision', 'recall'],
    "Generator's accuracy": ['generator_accuracy', 'sampled_accuracy'],
  }
  for title, names in both.items():
    for name in names:
      assert drawn(axes[title], record.train, name) and drawn(axes[title], record.heldout, name), (
        name
      )
  training = {
    'Gradient norms': [f'gradient_norm/{tower}' for tower in TOWERS],
    'Learning rate': ['learning_rate'],
    'Tokens per second': ['tokens_per_second'],
    'Utilization': ['utilisation', 'input_wait'],
  }
  for title, names in training.items():
    for name in names:
      assert drawn(axes[title], record.train, name), name


def test_reference_lines_are_drawn(make_run):
  record = read_record(make_run())
  axes = panels(record)
  assert at_height(axes['Generator loss'], math.log(2000)) and at_height(
    axes['Generator loss'], 6.25
  )
  assert drawn(axes['Discriminator loss'], record.heldout, 'constant_loss')
  assert at_height(axes['Area under the ROC curve'], 0.5)
  assert drawn(axes['Average precision'], record.heldout, 'replaced_rate')


def test_intervals_of_the_evaluation_are_drawn_at_its_step(make_run):
  axes = panels(read_record(make_run(evaluated=150)))['Average precision']
  (bars,) = axes.containers
  (segment,) = bars.lines[2][0].get_segments()
  value = line('heldout', 150)['average_precision']
  at = 150 * TOKENS_PER_STEP
  np.testing.assert_allclose(segment, [[at, value - 0.02], [at, value + 0.03]])


def overlaps(record):
  """Titles, tick labels and legends that overlap or are cut off."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  figure = draw_curves(record, headline(record))
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  renderer, boxes, page = canvas.get_renderer(), [('headline', figure._suptitle)], figure.bbox
  for axes in figure.axes:
    boxes += [(text.get_text(), text) for text in (axes._left_title, *axes.texts, axes.xaxis.label)]
    every = [axes.xaxis, axes.yaxis, *(child.xaxis for child in axes.child_axes)]
    for axis in every:
      low, high = sorted(axis.get_view_interval())
      boxes += [
        (tick.label1.get_text() or tick.label2.get_text(), label)
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)
      ]
    if axes.get_legend():
      boxes.append(('legend', axes.get_legend()))
  boxes = [
    (name, artist.get_window_extent(renderer))
    for name, artist in boxes
    if name and artist.get_visible()
  ]
  assert len(boxes) > 100
  found = [
    (one, other)
    for i, (one, a) in enumerate(boxes)
    for other, b in boxes[:i]
    if a.padded(-1).overlaps(b)
  ]
  return found + [
    name
    for name, box in boxes
    if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1
  ]


@pytest.mark.parametrize('case', ['short', 'long', 'one line'])
def test_no_text_of_the_picture_is_cut_off_or_overlaps_another(make_run, case):
  if case == 'short':
    workdir = make_run(evaluated=150, sharing='all')
  elif case == 'long':
    steps = range(10_000, 1_000_001, 5_000)
    lines = [line(kind, step) | {'auc': 0.9} for step in steps for kind in ('train', 'heldout')]
    workdir = make_run(lines, resolved=RESOLVED | {'vocab_size': 250_112})
  else:
    workdir = make_run([line('train', 1, learning_rate=6.7e-7)])
  assert not overlaps(read_record(workdir))


def test_an_overlap_is_detected(make_run, monkeypatch):
  from matplotlib.axes import Axes

  set_title = Axes.set_title
  monkeypatch.setattr(
    Axes, 'set_title', lambda *args, **kwargs: set_title(*args, **kwargs | {'pad': 4})
  )
  assert overlaps(read_record(make_run()))


def test_files_and_console_lines_show_the_metrics(make_run, capsys):
  from matplotlib.image import imread

  workdir = make_run(evaluated=160)
  report(workdir)
  pixels = imread(workdir / 'report.png')
  assert pixels.shape[0] > 1500 and pixels.shape[1] > 1200 and pixels.std() > 0.05
  printed = capsys.readouterr().out
  value = line('heldout', 160)
  assert all(str(workdir / f'report.{kind}') in printed for kind in ('html', 'png', 'md'))
  assert (workdir / 'report.html').read_text().startswith('<!doctype html>')
  assert f'loss {value["generator_loss"]:.3f} ({value["generator_loss"] - 0.02:.3f} to' in printed
  assert 'unigram entropy 6.250' in printed and '95% bootstrap' in printed
  assert f'{value["constant_loss"] - value["discriminator_loss"]:.4f} below' in printed

  text, auc = (workdir / 'report.md').read_text(), value['auc']
  auc_train, auc_heldout = line('train', 160)['auc'], line('heldout', 150)['auc']
  for words in (
    '](report.png)',
    'probe',
    '1.23 M parameters',
    '160 of 200',
    '3.2 epochs',
    '2 micro-batches',
    '2,621,440',
    f'--mode=evaluate --workdir={workdir}',
    '77 held-out rows',
    f'| area under the ROC curve | {auc_train:.4f} | {auc_heldout:.4f} |',
    f'| area under the ROC curve | {auc:.4f} | {auc - 0.02:.4f} to {auc + 0.03:.4f} |',
  ):
    assert words in text, words


def test_an_evaluation_older_than_the_metrics_is_not_used(make_run):
  lines = dict(key_lines(read_record(make_run(evaluated=100))))
  assert (
    lines['figures'] == 'held-out rows, step 150'
    and f'{line("heldout", 150)["auc"]:.3f}' in lines['ranking']
  )
  assert dict(key_lines(read_record(make_run(evaluated=150))))['figures'].startswith(
    'evaluation, step 150'
  )


def test_a_discriminator_worse_than_the_constant_predictor_is_reported(make_run):
  record = read_record(make_run([line('train', 50, discriminator_loss=0.6, constant_loss=0.4)]))
  assert "0.2000 above the constant predictor's 0.4000" in dict(key_lines(record))['verdicts']


def test_missing_values_are_left_out(make_run):
  unknown = {'auc': None, 'average_precision': None, 'utilisation': None}
  workdir = make_run([line('train', 1, **unknown)], resolved=None)
  report(workdir)
  text = (workdir / 'report.md').read_text()
  assert (
    '| area under the ROC curve | - | - |' in text
    and 'unigram' not in text
    and 'Not evaluated yet' in text
  )
  assert (workdir / 'report.png').stat().st_size > 10_000


def test_a_run_without_a_training_line_is_drawn(make_run):
  workdir = make_run([line('heldout', 0)])
  figure = draw_curves(read_record(workdir), 'x')
  figure.draw_without_rendering()
  assert len(figure.axes) == 10


def test_an_incomplete_line_is_left_out(make_run):
  workdir = make_run()
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"kind": "train", "st')
  assert read_record(workdir).last['step'] == 160


@pytest.mark.parametrize(
  'file, content, words',
  [
    ('config.json', None, 'is not a run'),
    ('metrics.jsonl', None, 'no metrics'),
    ('metrics.jsonl', '', 'no metrics'),
    ('config.json', '{', 'config.json is damaged'),
    ('evaluation.json', '{"step"', 'evaluation.json is damaged'),
  ],
)
def test_a_folder_without_metrics_is_refused_in_one_sentence(make_run, file, content, words):
  workdir = make_run()
  (workdir / file).unlink(missing_ok=True)
  if content is not None:
    (workdir / file).write_text(content)
  with pytest.raises(UserError, match=words) as caught:
    report(workdir)
  assert str(workdir) in str(caught.value) and '\n' not in str(caught.value)
  assert not (workdir / 'report.png').exists()


def test_a_folder_that_cannot_be_written_is_reported(make_run):
  workdir = make_run()
  # In place of a folder without permission, which root has everywhere.
  (workdir / 'report.md').mkdir()
  with pytest.raises(UserError, match='cannot be written'):
    report(workdir)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({}, 'a warm-up, then linear decay to 0'),
    ({'warmup_steps': 0}, 'linear decay to 0'),
    ({'decay_power': 0.5}, 'a warm-up, then decay with power 0.5 to 0'),
  ],
)
def test_the_learning_rate_panel_describes_the_schedule(fields, words):
  config = to_plain(default_config())
  assert describe_schedule(config | {'optimizer': config['optimizer'] | fields}) == words
