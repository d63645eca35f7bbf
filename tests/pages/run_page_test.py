"""Pages show what a run recorded, and nothing that text of a corpus or a name adds to them."""

import base64
import json
import pathlib
import re
from xml.etree import ElementTree

import made_run
import micro_run
import pytest
from foreign_html import ATTACKS, BIDI, Parsed, foreign, shown
from made_metrics import LINES, RESOLVED, evaluation, line
from matplotlib.figure import Figure

from electra_jax import report
from electra_jax.config import PretrainingConfig, default_config, freeze, to_plain
from electra_jax.config.config_files import load_config_file
from electra_jax.data.prepare.preparation_report import kept_facts
from electra_jax.pages import html_page
from electra_jax.pretrain import run_start
from electra_jax.training.curves import BLUE

NAME = f'{"".join(ATTACKS)} {BIDI}'


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
  """The folder of a run with hostile text in its corpus, name, config, status and metrics."""
  folder = tmp_path_factory.mktemp('hostile')
  corpus = folder / '<b onclick=alert(1)>"text\'.txt'
  words = micro_run.corpus().read_text('utf-8').split()
  documents = [
    f'{ATTACKS[i % len(ATTACKS)]} {BIDI} {" ".join(words[20 * i : 20 * i + 20])}' for i in range(60)
  ]
  corpus.write_text('\n\n'.join(documents), 'utf-8')
  config = load_config_file(str(micro_run.ROOT / micro_run.CONFIG))
  config.update_from_flattened_dict(
    {
      'name': NAME,
      'steps': 200,
      'data.source': str(corpus),
      'data.cache': str(folder / 'cache'),
      'data.reader': 'numpy',
      'data.heldout_fraction': 0.2,
      'data.vocab_size': 200,
      'data.workers': 1,
      'compilation_cache': '',
    }
  )
  workdir = folder / 'run'
  prepared = run_start.prepare_data(freeze(PretrainingConfig, config), '')
  made_run.make(workdir, config, prepared.tokenizer)
  write_metrics(workdir, [*LINES, line('train', 170, **{ATTACKS[1]: 1.0, 'skipped': 3})], 160)
  corpus_facts = [kept_facts(prepared.facts, prepared.path)]
  resolved = RESOLVED | {
    'vocab_size': prepared.tokenizer.size,
    'data': run_start.data_identity(prepared),
    'corpus': corpus_facts,
  }
  (workdir / 'resolved.json').write_text(json.dumps(resolved))
  status = {'state': 'failed', 'exit_reason': NAME, 'host': ATTACKS[1], 'started': '2026-01-01'}
  (workdir / 'status.json').write_text(json.dumps(status))
  return workdir


def write_metrics(workdir, lines, evaluated):
  text = ''.join(json.dumps(one) + '\n' for one in lines)
  (workdir / 'metrics.jsonl').write_text(text)
  content = evaluation(evaluated)
  figures = {'auc': {'value': 0.8125, 'low': 0.75, 'high': 0.875}}
  content |= {'weighted': figures, 'sources': [{'location': ATTACKS[5], 'figures': figures}]}
  (workdir / 'evaluation.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def page(hostile):
  """The page of that run, as text."""
  with pytest.MonkeyPatch.context() as patch:  # without report.png, which takes as long
    patch.setattr(report, 'draw_curves', lambda *_: Figure(figsize=(1, 1)))
    report.report(hostile)
  return (hostile / 'report.html').read_text('utf-8')


def test_text_of_users_adds_no_element_attribute_or_control_character(page):
  assert foreign(page) == []
  text = shown(page)
  for attack in ATTACKS:
    assert attack in text.replace('\n', ' '), attack
  assert 'abc\\u202edef\\u2066ghi\\u2069\\u200f\\u061c' in text


@pytest.mark.parametrize('attack', [*ATTACKS[:2], *ATTACKS[4:], '<p onclick="1">', '\u202e'])
def test_what_is_foreign_is_noticed(page, attack):
  page = re.sub('base64,[^"]+', 'base64,AAAA', page)  # short
  assert foreign(page.replace('<h1>', f'<h1>{attack}', 1))
  assert foreign(page.replace('<th scope="row"', '<th scope="row" x=""', 1))


def test_pictures_are_plain(page):
  pictures = {*Parsed(page).values('src'), *Parsed(page).values('srcset')}
  assert len(pictures) == 20  # ten panels, light and dark
  for uri in pictures:
    svg = base64.b64decode(uri.partition(',')[2]).decode()
    names = {element.tag.rpartition('}')[2] for element in ElementTree.fromstring(svg).iter()}
    assert not names & {'script', 'image', 'foreignObject', 'a'}
    links = re.findall(r'(?:href="|url\()([^")]+)', svg)
    assert all(link.startswith('#') for link in links)


def test_every_section_shows_what_was_recorded(page):
  text = shown(page)
  for words in (
    '2 problems',
    'The run has failed',
    '3 steps',
    '5.4010',  # the evaluated generator loss
    '5.3810 to 5.4310',
    'documents without a token',
    '1,234 (median',
    'jaxlib',
    'data.vocab_size',
    'Row 0',
    'caught',
    'Metrics of each source',
    '0.8125',
  ):
    assert words in text, words
  classes = set(Parsed(page).values('class'))
  assert {f'p{i}' for i in (2, 4, 6, 8, 10)} <= {name for c in classes for name in c.split()}


def test_values_that_are_not_of_the_objective_have_titles(hostile, page):
  text = shown(page)
  assert 'skipped steps' in text and 'gradient norm, all' in text
  assert 'reference: that without context' not in text  # none is recorded


@pytest.mark.parametrize(
  'change, options, words',
  [
    ('none', {'examples': 0}, '--examples=0'),
    ('no checkpoint', {}, 'has no checkpoint'),
    ('mlm', {}, 'The objective mlm has no discriminator'),
    ('old', {}, 'does not record where its prepared corpus is'),
    ('moved', {}, 'The prepared corpus is not at'),
  ],
)
def test_the_page_states_why_there_are_no_examples(change, options, words, tmp_path, monkeypatch):
  monkeypatch.setattr('electra_jax.pages.run_page.draw_single_panels', lambda *_: [])
  config = default_config()
  config.objective.name = 'mlm' if change == 'mlm' else 'electra'
  (tmp_path / 'config.json').write_text(json.dumps(to_plain(config)))
  write_metrics(tmp_path, LINES, 160)
  corpus = {'corpus': [{'path': '/nowhere'}]} if change == 'moved' else {}
  record = report.read_record(tmp_path)
  monkeypatch.setattr(report.checkpoints, 'any_saved', lambda _: change != 'no checkpoint')
  monkeypatch.setattr(report, 'open_run', None)  # the model is not loaded
  record.resolved.update(corpus)
  assert words in report._examples(record, options.get('examples', 3), None)


def test_a_damaged_checkpoint_does_not_prevent_the_report(hostile, monkeypatch):
  def fail(*_):
    raise report.UserError('the checkpoint is damaged <b>.')

  monkeypatch.setattr(report, 'open_run', fail)
  found = report._examples(report.read_record(hostile), 3, None)
  assert found == 'They cannot be computed: the checkpoint is damaged <b>.'
  assert not isinstance(found, html_page.Html)


def test_a_picture_is_the_same_each_time_and_has_both_sets_of_colors():
  figure = Figure(figsize=(1, 1))
  figure.add_subplot().plot([0, 1], color=BLUE)
  first = html_page.picture(figure, 'a "line"')
  assert html_page.picture(figure, 'a "line"') == first
  (dark,), (light,) = (Parsed(first).values(name) for name in ('srcset', 'src'))
  assert Parsed(first).values('alt') == ['a "line"']
  svg = base64.b64decode(light.partition(',')[2]).decode()
  assert (
    BLUE.lower() in svg and BLUE.lower() not in base64.b64decode(dark.partition(',')[2]).decode()
  )


#### In a browser ####


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_the_page_without_overflow_messages_or_requests(
  browser, hostile, page, width, dark
):
  script = '[window.pwned ?? 0, getComputedStyle(document.body).backgroundColor]'
  opened = browser.open(hostile / 'report.html', width, dark, script)
  assert (opened.messages, opened.requests, opened.overflow) == ([], [], 0)
  assert opened.result[0] == 0
  red = int(re.search(r'\d+', opened.result[1])[0])
  assert (red < 128) == dark


def test_the_policy_forbids_what_escaping_would_let_through(browser, page, tmp_path):
  added = ''.join(ATTACKS[:2]) + '<img src="https://example.invalid/a.png"><p style="color:red">'
  path = tmp_path / 'broken.html'
  path.write_text(page.replace('<h1>', f'{added}<h1>', 1), 'utf-8')
  opened = browser.open(path, script='window.pwned ?? 0')
  assert opened.result == 0 and len(opened.messages) >= 3 and opened.requests == []


def test_a_page_that_is_too_wide_is_noticed(browser, page, tmp_path):
  path = tmp_path / 'wide.html'
  wide = html_page.tag('img', width='1500', height='1', src='data:,')
  path.write_text(page.replace('<main>', f'<main>{wide}', 1), 'utf-8')
  assert browser.open(path, 1280).overflow > 100


def test_buttons_sort_a_table(browser, tmp_path):
  rows = [['b', '10 k', ''], ['a', '9', '2'], ['c', '-1', '3']]
  keys = [['b', 10_000, ''], ['a', 9, 2], ['c', -1, 3]]
  path = pathlib.Path(tmp_path, 'table.html')
  path.write_text(html_page.page('t', html_page.table(['x', 'y', 'z'], rows, sort_by=keys)))
  script = """
    [0, 1, 1, 2, 2].map(i => {
      document.querySelectorAll('th button')[i].click();
      return [...document.querySelectorAll('tbody th')].map(x => x.textContent).join('');
    })"""
  opened = browser.open(path, script=script)
  assert opened.result == ['abc', 'cab', 'bac', 'acb', 'cab'] and opened.messages == []
