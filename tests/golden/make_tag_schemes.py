"""Made tests/golden/tag_schemes.json with seqeval 1.2.2: entities and F1 in each of its schemes.

Run with a Python that has seqeval: python tests/golden/make_tag_schemes.py
"""

import json
import pathlib
import random
import warnings

from seqeval import scheme
from seqeval.metrics import f1_score

warnings.simplefilter('ignore')
SCHEMES = {
  name.lower(): getattr(scheme, name) for name in ('IOB1', 'IOB2', 'IOE1', 'IOE2', 'IOBES', 'BILOU')
}
# Marks of (first, inside, last, single) words; of IOB1 and IOE1 where entities touch.
MARKS = {
  'iob1': 'IIII',
  'iob2': 'BIIB',
  'ioe1': 'IIII',
  'ioe2': 'IIEE',
  'iobes': 'BIES',
  'bilou': 'BILU',
}


def random_spans(rng, length, name):
  # seqeval does not find an entity of one word that is marked E in IOE1.
  least = 2 if name == 'ioe1' else 1
  spans, at = [], 0
  while at < length:
    if rng.random() < 0.6 and at + least <= length:
      end = min(length, at + rng.randint(least, 4))
      spans.append((rng.choice(['PER', 'LOC']), at, end))
      at = end
    else:
      at += 1
  return spans


def tags_of(spans, length, name):
  first, inside, last, single = MARKS[name]
  tags = ['O'] * length
  for kind, start, end in spans:
    marks = [single] if end - start == 1 else [first, *inside * (end - start - 2), last]
    if name == 'iob1' and any((k, e) == (kind, start) for k, _, e in spans):
      marks[0] = 'B'
    if name == 'ioe1' and any((k, s) == (kind, end) for k, s, _ in spans):
      marks[-1] = 'E'
    tags[start:end] = [f'{mark}-{kind}' for mark in marks]
  return tags


def case_of(rng, name):
  lengths = [rng.randint(1, 9) for _ in range(4)]
  gold = [tags_of(random_spans(rng, n, name), n, name) for n in lengths]
  predicted = [
    tags if rng.random() < 0.5 else tags_of(random_spans(rng, len(tags), name), len(tags), name)
    for tags in gold
  ]
  found = scheme.Entities(gold, SCHEMES[name])
  return {
    'scheme': name,
    'gold': gold,
    'predicted': predicted,
    'entities': [[[e.tag, e.start, e.end] for e in entities] for entities in found.entities],
    'f1': f1_score(gold, predicted, mode='strict', scheme=SCHEMES[name]),
  }


if __name__ == '__main__':
  rng = random.Random(0)
  cases = [case_of(rng, name) for name in SCHEMES for _ in range(8)]
  lines = ',\n'.join(json.dumps(case, default=float) for case in cases)
  pathlib.Path(__file__).with_name('tag_schemes.json').write_text(f'[\n{lines}\n]\n')
