"""Entities are found and counted as in conlleval and seqeval.

tests/golden/seqeval.json has the results of seqeval.
"""

import json
import pathlib

import numpy as np
import pytest

from electra_jax.finetune import entities

CASES = json.loads((pathlib.Path(__file__).parents[1] / 'golden/seqeval.json').read_text())


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['name'])
def test_metrics_equal_those_of_seqeval(case):
  assert [[list(span) for span in entities.entities(tags)] for tags in case['predicted']] == case[
    'entities'
  ]
  ours = entities.entity_metrics(case['gold'], case['predicted'])
  for name in ('precision', 'recall', 'f1', 'f1_strict'):
    if name in case:
      np.testing.assert_allclose(ours[name], case[name], atol=1e-12, err_msg=name)
  types = {
    name.removeprefix('f1/'): value for name, value in ours.items() if name.startswith('f1/')
  }
  assert types == pytest.approx(case.get('types', {}), abs=1e-12)


def test_the_golden_results_cover_all_cases():
  """The results have metrics of all sizes, and tags that violate IOB2."""
  assert sum('f1_strict' in case and case['f1_strict'] != case['f1'] for case in CASES) > 20
  assert sum(0 < case['f1'] < 1 for case in CASES) > 40
  assert (
    sum(entities.first_fault(tags) is not None for case in CASES for tags in case['predicted'])
    > 100
  )


def test_a_type_that_nobody_has_is_undefined():
  metrics = entities.entity_metrics([['B-PER', 'O']], [['B-PER', 'O']], ['PER', 'LOC'])
  assert metrics['f1/PER'] == 1 and np.isnan(metrics['f1/LOC'])


def test_sentences_must_be_as_long_as_their_tags():
  with pytest.raises(ValueError, match='1 tags for 2 words'):
    entities.entity_metrics([['O', 'O']], [['O']])


@pytest.mark.parametrize(
  'tags, fault',
  [
    ('O B-PER I-PER B-PER', None),
    ('', None),
    ('O I-PER', 1),
    ('I-PER', 0),
    ('B-PER I-LOC', 1),
    ('B-PER O I-PER', 2),
    ('B-a-b I-a-b', None),
    ('B-a-b I-a', 1),
    ('B-PER S-PER', 1),
    ('B-', 0),
    ('NOUN', 0),
  ],
)
def test_the_first_violation_of_iob2_is_found(tags, fault):
  assert entities.first_fault(tags.split()) == fault


@pytest.mark.parametrize(
  'tags, expected',
  [
    (
      'I-PER I-PER O I-LOC B-LOC I-LOC',
      'B-PER I-PER O B-LOC B-LOC I-LOC',
    ),  # IOB1, as CoNLL-2003 is distributed
    ('B-PER I-LOC', 'B-PER B-LOC'),
    ('S-PER B-LOC E-LOC S-LOC', 'B-PER B-LOC I-LOC B-LOC'),
    ('', ''),
    ('O B-PER', 'O B-PER'),
  ],
)
def test_repair_keeps_the_entities(tags, expected):
  fixed = entities.repaired(tags.split())
  assert fixed == expected.split() and entities.first_fault(fixed) is None
  assert entities.entities(fixed) == entities.entities(tags.split())


def test_repair_of_all_golden_sequences_keeps_the_entities():
  for case in CASES:
    for tags in case['gold'] + case['predicted']:
      fixed = entities.repaired(tags)
      assert entities.first_fault(fixed) is None and entities.entities(
        fixed
      ) == entities.strict_entities(fixed) == entities.entities(tags)


def test_other_tags_cannot_be_repaired():
  assert entities.repaired(['NOUN', 'O']) is None
