"""Made tests/golden/squad_metrics.json with the official SQuAD scripts from invented answers.

Run with their paths: python tests/golden/make_squad_metrics.py evaluate-v1.1.py evaluate-v2.0.py
"""

import importlib.util
import json
import pathlib
import random
import sys

WORDS = [
  'the',
  'a',
  'an',
  'The',
  'cat',
  'cats',
  'river',
  'Zürich',
  'naïve',
  'U.S.',
  '1,000',
  '“mill”',
  '$5',
  '(',
  '-',
  '—',
  'İzmir',
  '½',
  'n\u00a0m',
  '',
]


def text(rng):
  return ' '.join(rng.choices(WORDS, k=rng.choice((0, 1, 1, 2, 2, 3, 4)))) + rng.choice(
    ('', '', ' ', '.', '\n')
  )


def near(rng, answer):
  """An answer that may have something of another."""
  words = answer.split(' ')
  change = rng.random()
  if change < 0.4:
    return answer
  return (
    ' '.join(words[1:])
    if change < 0.6
    else f'{answer} {rng.choice(WORDS)}'
    if change < 0.8
    else text(rng)
  )


def load(path):
  spec = importlib.util.spec_from_file_location(
    pathlib.Path(path).stem.replace('-', '_').replace('.', '_'), path
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def dataset(answers):
  questions = [
    {'id': str(i), 'answers': [{'text': answer} for answer in right]}
    for i, right in enumerate(answers)
  ]
  return [{'paragraphs': [{'qas': questions}]}]


def case(rng, version_1, version_2, size, with_answer, ties):
  answers = [
    [text(rng) for _ in range(rng.randint(1, 4))] if rng.random() < with_answer else []
    for _ in range(size)
  ]
  predictions = [near(rng, right[0]) if right else rng.choice(('', text(rng))) for right in answers]
  odds = [round(rng.gauss(-1 if right else 1, 2), 1 if ties else 6) for right in answers]
  made = {'answers': answers, 'predictions': predictions, 'null_odds': odds}
  data, named, scores = (
    dataset(answers),
    dict(zip(map(str, range(size)), predictions, strict=True)),
    dict(zip(map(str, range(size)), odds, strict=True)),
  )
  if all(answers):
    made['version_1'] = version_1.evaluate(data, named)
  answerable = version_2.make_qid_to_has_ans(data)
  exact, overlap = version_2.get_raw_scores(data, named)
  made['exact'], made['f1'] = list(exact.values()), list(overlap.values())
  made['threshold'] = rng.choice((0.0, 1.0, -2.75))
  cut = [
    version_2.apply_no_ans_threshold(raw, scores, answerable, made['threshold'])
    for raw in (exact, overlap)
  ]
  figures = version_2.make_eval_dict(*cut)
  for prefix, wanted in (('HasAns', True), ('NoAns', False)):
    if chosen := [name for name, has in answerable.items() if has == wanted]:
      version_2.merge_eval(figures, version_2.make_eval_dict(*cut, qid_list=chosen), prefix)
  version_2.find_all_best_thresh(figures, named, exact, overlap, scores, answerable)
  return made | {'version_2': figures}


if __name__ == '__main__':
  rng, modules = random.Random(0), list(map(load, sys.argv[1:3]))
  shapes = [
    (200, 0.5, False),
    (100, 0.7, True),
    (60, 1.0, False),
    (40, 0.0, True),
    (1, 1.0, False),
    (1, 0.0, False),
  ]
  cases = [case(rng, *modules, *shape) for shape in shapes] + [
    case(rng, *modules, rng.randint(1, 12), 0.6, True) for _ in range(30)
  ]
  lines = ',\n'.join(map(json.dumps, cases))
  pathlib.Path(__file__).with_name('squad_metrics.json').write_text(f'[\n{lines}\n]\n')
