"""Made tests/golden/seqeval.json with seqeval 1.2.2: verdicts on random and edge tag sequences.

Run with a Python that has seqeval: python tests/golden/make_seqeval.py
"""

import json
import pathlib
import random
import warnings

from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

warnings.simplefilter('ignore')
EDGES = [
  ('nothing anywhere', [['O', 'O'], ['O']], [['O', 'O'], ['O']]),
  ('nothing in the gold', [['O', 'O', 'O']], [['B-PER', 'I-PER', 'O']]),
  ('nothing predicted', [['B-PER', 'I-PER', 'O']], [['O', 'O', 'O']]),
  ('all right', [['B-PER', 'I-PER', 'O'], ['B-LOC']], [['B-PER', 'I-PER', 'O'], ['B-LOC']]),
  ('I first', [['B-PER', 'I-PER', 'O']], [['I-PER', 'I-PER', 'O']]),
  ('the type changes inside', [['B-PER', 'I-PER', 'I-PER']], [['B-PER', 'I-LOC', 'I-PER']]),
  ('two beside each other', [['B-PER', 'B-PER', 'I-PER']], [['B-PER', 'I-PER', 'I-PER']]),
  ('too short', [['B-PER', 'I-PER', 'I-PER']], [['B-PER', 'I-PER', 'O']]),
  (
    'does not run over the end of a sentence',
    [['O', 'B-PER'], ['I-PER', 'O']],
    [['O', 'B-PER'], ['B-PER', 'O']],
  ),
  ('hyphens in the type', [['B-a-b', 'I-a-b', 'O']], [['B-a-b', 'I-a', 'O']]),
  ('a type of the prediction alone', [['B-PER', 'O']], [['B-PER', 'B-LOC']]),
  ('an empty sentence', [[], ['B-PER'], []], [[], ['B-PER'], []]),
  (
    'IOBES',
    [['S-PER', 'O', 'B-LOC', 'I-LOC', 'E-LOC']],
    [['S-PER', 'S-PER', 'I-LOC', 'E-LOC', 'E-LOC']],
  ),
]


def random_case(rng):
  types = rng.sample(['PER', 'LOC', 'ORG', 'MISC', 'a-b'], rng.randint(1, 4))
  tags = ['O'] * rng.randint(1, 6) + [
    f'{mark}-{kind}' for kind in types for mark in ('BIES' if rng.random() < 0.2 else 'BI')
  ]
  gold = [rng.choices(tags, k=rng.randint(0, 9)) for _ in range(rng.randint(1, 6))]
  keep = rng.random()
  predicted = [
    [tag if rng.random() < keep else rng.choice(tags) for tag in tags_] for tags_ in gold
  ]
  return gold, predicted


def verdict(name, gold, predicted):
  found = [
    [[kind, start, end + 1] for kind, start, end in get_entities(tags)] for tags in predicted
  ]
  case = {
    'name': name,
    'gold': gold,
    'predicted': predicted,
    'entities': found,
    'precision': precision_score(gold, predicted),
    'recall': recall_score(gold, predicted),
    'f1': f1_score(gold, predicted),
  }
  if not any(tag[0] in 'ES' for tags in gold + predicted for tag in tags):
    # Its strict mode fails where there is no entity at all; that is 0 in the other mode.
    try:
      case['f1_strict'] = f1_score(gold, predicted, mode='strict', scheme=IOB2)
    except ValueError:
      case['f1_strict'] = 0.0
  if any(spans for tags in gold + predicted for spans in [get_entities(tags)]):
    report = classification_report(gold, predicted, output_dict=True)
    case['types'] = {
      kind: row['f1-score'] for kind, row in report.items() if not kind.endswith(' avg')
    }
    case['report'] = report
  return case


if __name__ == '__main__':
  rng = random.Random(0)
  cases = [verdict(*edge) for edge in EDGES] + [
    verdict(f'random {i}', *random_case(rng)) for i in range(120)
  ]
  lines = ',\n'.join(json.dumps(case, default=float) for case in cases)
  pathlib.Path(__file__).with_name('seqeval.json').write_text(f'[\n{lines}\n]\n')
