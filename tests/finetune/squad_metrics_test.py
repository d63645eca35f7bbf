"""Exact match, F1 and thresholds equal those of SQuAD's official scripts.

tests/golden/squad_metrics.json has the scripts' results for synthetic answers. Those for SQuAD's
questions are not part of the project; they are read from ../shared if it exists.
"""

import json
import pathlib

import numpy as np
import pytest

from electra_jax.finetune.tasks import squad_metrics

CASES = json.loads(
  (pathlib.Path(__file__).parents[1] / 'golden/squad_metrics.json').read_text('utf-8')
)
SHARED = pathlib.Path(__file__).parents[3] / 'shared'
REAL = SHARED / 'golden/squad_metrics.json'
needs_shared = pytest.mark.skipif(
  not REAL.exists(), reason='needs ../shared/golden/squad_metrics.json and ../shared/data/squad'
)


def assert_same(metrics, official):
  """Compares fractions with percentages, without counts; thresholds have the same unit."""
  for name, value in metrics.items():
    wanted = official[name] if name.endswith('thresh') else official[name] / 100
    assert value == pytest.approx(wanted, rel=0, abs=1e-9), name
  assert {name for name in official if not name.endswith('total')} == set(metrics)


@pytest.mark.parametrize('case', CASES, ids=[str(len(case['answers'])) for case in CASES])
def test_scores_of_synthetic_answers_equal_the_official_scripts(case):
  exact, overlap = squad_metrics.scores(case['predictions'], case['answers'], version=2)
  np.testing.assert_array_equal(exact, case['exact'])
  np.testing.assert_allclose(overlap, case['f1'], rtol=0, atol=1e-12)
  assert_same(
    squad_metrics.version_2(
      case['predictions'], case['answers'], case['null_odds'], case['threshold']
    ),
    case['version_2'],
  )
  if 'version_1' in case:
    metrics = squad_metrics.version_1(case['predictions'], case['answers'])
    assert_same({'exact_match': metrics['exact'], 'f1': metrics['f1']}, case['version_1'])


def test_the_synthetic_answers_cover_all_cases():
  assert sum('version_1' in case for case in CASES) > 3
  scores = np.concatenate([case['f1'] for case in CASES])
  assert 0.1 < np.mean((scores > 0) & (scores < 1)) and 0.1 < np.mean(scores == 0)
  thresholds = [case['version_2']['best_f1_thresh'] for case in CASES]
  assert 0 in thresholds and len(set(thresholds)) > 10
  assert any(case['version_2']['best_f1'] > 1 + case['version_2']['f1'] for case in CASES)
  assert any(len(set(case['null_odds'])) < len(case['null_odds']) for case in CASES)
  assert any(
    right and not any(map(squad_metrics.normalize, right))
    for case in CASES
    for right in case['answers']
  )


@pytest.mark.parametrize(
  'text, normal',
  [
    ('The  Cat,\n“the” cat', 'cat “ ” cat'),
    ('a-an', 'aan'),
    ('an A the', ''),
    ('U.S.', 'us'),
    ('İ', 'i̇'),
    ('$5\u00a0%', '5'),
    ('another', 'another'),
  ],
)
def test_normalized(text, normal):
  assert squad_metrics.normalize(text) == normal


def test_words_are_counted_with_their_multiplicity():
  assert squad_metrics.word_overlap_f1('x x y', 'x y y', version=1) == pytest.approx(2 / 3)
  assert (
    squad_metrics.word_overlap_f1('the', 'a', version=1),
    squad_metrics.word_overlap_f1('the', 'a', version=2),
  ) == (
    0,
    1,
  )


def test_the_best_threshold_is_the_best_of_all_odds():
  """Compares with trying each of the odds, which are all different."""
  rng = np.random.default_rng(0)
  for size in (1, 2, 7, 40):
    scores, answerable, odds = rng.random(size), rng.random(size) < 0.5, rng.normal(size=size)
    predictions = ['x'] * size
    scores[~answerable] = 0
    value, threshold = squad_metrics.best_threshold(scores, predictions, answerable, odds)
    tried = [np.where(odds > at, ~answerable, scores).mean() for at in (-np.inf, *odds)]
    assert value == pytest.approx(max(tried))
    assert np.where(odds > threshold, ~answerable, scores).mean() == pytest.approx(
      value
    ) or value == pytest.approx(tried[0])


def questions(name, articles=None):
  data = json.loads((SHARED / 'data/squad' / name).read_text('utf-8'))['data'][:articles]
  return {
    question['id']: [answer['text'] for answer in question['answers']]
    for article in data
    for paragraph in article['paragraphs']
    for question in paragraph['qas']
  }


@needs_shared
def test_difficult_pairs_score_as_in_the_official_scripts():
  for pair in json.loads(REAL.read_text('utf-8'))['pairs']:
    gold, prediction = pair['gold'], pair['pred']
    assert [squad_metrics.normalize(gold), squad_metrics.normalize(prediction)] == pair[
      'normalized'
    ]
    for version in (1, 2):
      assert squad_metrics.word_overlap_f1(prediction, gold, version) == pytest.approx(
        pair[f'f1_v{version}'], rel=0, abs=1e-12
      ), pair
    for version in (1, 2):
      exact, _ = squad_metrics.scores([prediction], [[gold]], version)
      assert exact == [pair[f'exact_v{version}']], pair


@needs_shared
def test_squad_1_scores_equal_the_official_script():
  golden, answers = (
    json.loads(REAL.read_text('utf-8'))['v1'],
    questions('dev-v1.1.articlesplit.json'),
  )
  metrics = squad_metrics.version_1(
    [golden['predictions'][name] for name in answers], list(answers.values())
  )
  assert_same({'exact_match': metrics['exact'], 'f1': metrics['f1']}, golden['metrics'])


@needs_shared
def test_squad_2_scores_equal_the_official_script():
  golden = json.loads(REAL.read_text('utf-8'))['v2']
  answers = questions('v2.0.all.json', golden['articles'])
  predictions, odds = (
    [golden[part][name] for name in answers] for part in ('predictions', 'na_scores')
  )
  exact, overlap = squad_metrics.scores(predictions, list(answers.values()), version=2)
  np.testing.assert_array_equal(exact, [golden['raw_exact'][name] for name in answers])
  np.testing.assert_allclose(
    overlap, [golden['raw_f1'][name] for name in answers], rtol=0, atol=1e-12
  )
  assert golden['metrics']['total'] == len(answers)
  # The script was run without a threshold, so that its other metrics are of all predictions.
  metrics = squad_metrics.version_2(predictions, list(answers.values()), odds, threshold=np.inf)
  assert_same(metrics, golden['metrics'])


@pytest.mark.parametrize(
  'text, units, parts',
  [
    ('The red, cat', 'auto', ['red', 'cat']),
    ('東京タワー、the 333m。', 'auto', ['東', '京', 'タ', 'ワ', 'ー', '333m']),
    ('東京 tower', 'words', ['東京', 'tower']),
    ('한국의 수도', 'auto', ['한국의', '수도']),
    ('한국의 수도', 'characters', ['한', '국', '의', '수', '도']),
    ('กิน', 'auto', ['ก', 'ิ', 'น']),
  ],
)
def test_answers_have_words_or_characters(text, units, parts):
  assert squad_metrics.units_of(text, units) == parts


def test_f1_of_texts_without_spaces_counts_characters():
  """Two of three predicted and of four correct characters are common: 2 * 2 / (3 + 4)."""
  assert squad_metrics.word_overlap_f1('東京市', '大東京都', 1, 'auto') == pytest.approx(4 / 7)
  assert squad_metrics.word_overlap_f1('東京市', '大東京都', 1) == 0
  assert squad_metrics.version_1(['東京'], [['東京。']], 'auto') == {'exact': 1, 'f1': 1}
