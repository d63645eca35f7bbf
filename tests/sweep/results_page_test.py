"""The page of a sweep shows its results, and nothing that names add to it."""

import pytest
from foreign_html import ATTACKS, BIDI, foreign, shown

from electra_jax.sweep import picture, summary
from electra_jax.sweep.results_page import results_page

NAME = ''.join(ATTACKS) + BIDI


def result(run, seed, flops, learned=True):
  """A line of results."""
  heldout = {
    'auc': {'value': 0.6 + seed / 100 + flops / 1e14, 'low': 0.5, 'high': 0.7},
    'gain': {'value': 0.01, 'low': 0.0, 'high': 0.02},
  }
  return {
    'run': run,
    'seed': seed,
    'learned': learned,
    'heldout': heldout,
    'tasks': {ATTACKS[1]: {'metric': BIDI, 'values': [0.5, 0.75]}},
    'flops': flops,
    'paper_flops': 1.2 * flops,
    'tokens': flops / 1e6,
    'device': ATTACKS[0],
  }


@pytest.fixture(scope='module')
def page():
  names = [f'{ATTACKS[0]}@1', 'small@1', 'small@2']
  results = [result(names[0], 0, 1e12, False)]
  results += [result('small@1', seed, 1e12) for seed in (0, 1)]
  results += [result('small@2', seed, 2e12) for seed in (0, 1)]
  summaries = summary.summarize_runs(results, names)
  return results_page(NAME, summaries, 2, picture.draw_sweep(NAME, summaries))


def test_names_add_no_element_attribute_or_control_character(page):
  assert foreign(page) == []
  assert all(attack in shown(page) for attack in ATTACKS)


def test_results_and_what_is_missing_are_shown(page):
  text = shown(page)
  assert '5 results of 3 runs; 1 of these runs' in text
  assert '62.5 ± 0.0 (62.5 to 62.5)' in text and '2 of 2' in text and 'not learned' in text
  assert 'Student' in text and text.count('Not learned') >= 2


@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_and_sorts_it(browser, page, tmp_path, width):
  path = tmp_path / 'sweep.html'
  path.write_text(page, 'utf-8')
  script = """
    [1, 2].map(() => {
      document.querySelectorAll('th button')[6].click();
      return [...document.querySelectorAll('tbody th')].at(-1).textContent;
    }).concat(window.pwned ?? 0)"""
  opened = browser.open(path, width, script=script)
  assert (opened.messages, opened.requests, opened.overflow) == ([], [], 0)
  assert opened.result[0] == 'small@2' and opened.result[1] != 'small@2' and opened.result[2] == 0
