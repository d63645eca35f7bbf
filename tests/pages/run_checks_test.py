"""Each check of a run finds what it is for, and nothing in a run that is as it should be."""

import dataclasses
import math

import pytest
from made_metrics import RESOLVED, TOKENS_PER_STEP, evaluation, line

from electra_jax.config import default_config, to_plain
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.pages.run_checks import LEVELS, RunFiles, findings
from electra_jax.training.curves import RunRecord

STEPS = (1, *range(20, 201, 20))


def source_with(**counts):
  """Facts of a source of 1,000 characters, of which some are lost."""
  examples = {'unknown': {'ก': 20, '\u0e31': 30}}
  losses = CharacterLosses(characters=1000, examples=examples, **counts)
  return {'location': 'thai.txt', 'losses': losses.plain(), 'remedy': 'another tokenizer'}


TRAIN = {'text_tokens': 10_000, 'unknown_tokens': 0, 'dropped_tokens': 0}
CORPUS = ({'train': TRAIN, 'sources': [{'replaced_bytes': 0}]},)
VERSIONS = {'started_with': {'jax': '0.10.2'}, 'last_run_with': {'jax': '0.10.2'}}


def run(train=None, heldout=None, config=None, evaluated=200, **files):
  """A complete run of 200 steps that is as it should be, but for these changes.

  Args:
    train: name -> function of the step, for lines on training rows.
    heldout: the same for lines on held-out rows.
    config: fields that differ.
    evaluated: step of the evaluation, or its content.
    files: other fields of RunFiles, or of its record.
  """
  c = default_config()
  c.update_from_flattened_dict({'steps': 200, 'sequence_length': 128, **(config or {})})
  usual = {'gain': 0.03, 'gradient_norm/all': 1.0, 'skipped': 0}
  lines = {
    kind: [
      line(kind, step, **usual) | {name: value(step) for name, value in (changes or {}).items()}
      for step in STEPS
    ]
    for kind, changes in (('train', train), ('heldout', heldout))
  }
  resolved = RESOLVED | {'train_rows': 25_600}
  content = evaluation(evaluated) if isinstance(evaluated, int) else evaluated
  if content:
    content['figures']['gain'] = {'value': 0.03, 'low': 0.02, 'high': 0.04}
  record = RunRecord(
    '/runs/x',
    config=to_plain(c),
    resolved=resolved | files.pop('resolved', {}),
    evaluation=content,
    **lines,
  )
  usual_files = {'corpus': CORPUS, 'status': {'state': 'finished'}, 'versions': VERSIONS}
  return RunFiles(record, **(usual_files | files))


def at_loss(value):
  return {'generator_loss': lambda _: value}


GOOD = {'total_loss': lambda step: 30 - step / 100, 'discriminator_loss': lambda _: 0.3}


def test_nothing_is_found_in_a_run_that_is_as_it_should_be():
  assert findings(run(heldout=GOOD)) == []


@pytest.mark.parametrize(
  'level, title, words, changes',
  [
    (
      'problem',
      'The run has failed',
      'disk is full',
      {'status': {'state': 'failed', 'exit_reason': 'The disk is full.'}},
    ),
    (
      'note',
      'The run is not complete',
      'Step 200 of 400 (50%); it was stopped',
      {'config': {'steps': 400}, 'status': {'state': 'stopped'}},
    ),
    ('warning', 'Steps were skipped', '1 steps (0.50%)', {'train': {'skipped': lambda _: 1}}),
    ('problem', 'Steps were skipped', '9 steps', {'train': {'skipped': lambda _: 9}}),
    (
      'warning',
      "The generator's loss is at the baseline",
      '6.240 nats; a generator without context scores 6.250',
      {'heldout': GOOD | at_loss(6.24), 'train': at_loss(6.3)},
    ),
    (
      'warning',
      "The generator's loss is above the baseline",
      '7.000 nats',
      {'heldout': GOOD | at_loss(7.0), 'train': at_loss(7.0)},
    ),
    (
      'warning',
      'The discriminator answers "original" to every token',
      'AUC 0.500',
      {'heldout': GOOD | {'recall': lambda _: 0.0, 'auc': lambda _: 0.5}},
    ),
    (
      'warning',
      'The discriminator is not better than a constant prediction',
      'gains -0.1000 nats',
      {
        'heldout': GOOD | {'discriminator_loss': lambda _: 0.5, 'constant_loss': lambda _: 0.4},
        'evaluated': None,
      },
    ),
    (
      'warning',
      'The best checkpoint is old',
      'best at step 100 (0.0000); at step 200 it is 100.0000',
      {'heldout': GOOD | {'total_loss': lambda step: abs(step - 100)}},
    ),
    (
      'warning',
      'The best checkpoint is old',
      'best at step 40 ',
      {
        'heldout': GOOD | {'reference_ap': lambda step: 1 - abs(step - 40) / 1000},
        'best_by': 'objective',
      },
    ),
    (
      'warning',
      'Training rows are predicted better than held-out rows',
      'generator at step 200: 2.000 nats in training, 5.000 held out',
      {'train': at_loss(2.0), 'heldout': GOOD | at_loss(5.0)},
    ),
    (
      'warning',
      'The corpus is repeated often',
      f'{200 * TOKENS_PER_STEP / 128 / 600:.0f} passes',
      {'resolved': {'train_rows': 600}},
    ),
    (
      'warning',
      'Many tokens are unknown',
      '200 training tokens (2.00%)',
      {'corpus': ({'train': TRAIN | {'unknown_tokens': 200}},)},
    ),
    (
      'warning',
      'The tokenizer loses characters',
      '5.0% of the characters of thai.txt are unknown or removed, most often ◌ั U+0E31 30, ก',
      {'corpus': ({'train': TRAIN, 'sources': [source_with(unknown=50)]},)},
    ),
    (
      'problem',
      'The tokenizer loses characters',
      '30.0% of the characters',
      {'corpus': ({'train': TRAIN, 'sources': [source_with(unknown=250, removed=50)]},)},
    ),
    (
      'warning',
      'Much text was cut off',
      '2,000 training tokens (20.0%)',
      {'corpus': ({'train': TRAIN | {'dropped_tokens': 2000}},)},
    ),
    (
      'warning',
      'Text is not UTF-8',
      '7 bytes',
      {'corpus': ({'train': TRAIN, 'sources': [{'replaced_bytes': 7}]},)},
    ),
    (
      'warning',
      'Gradient norms spike',
      '50 at step 180',
      {'train': {'gradient_norm/all': lambda step: 50.0 if step == 180 else 1.0}},
    ),
    ('warning', 'Devices wait for input', '30%', {'train': {'input_wait': lambda _: 0.3}}),
    (
      'note',
      'The speed varies',
      '2 of 10 lines',
      {'train': {'tokens_per_second': lambda step: 100 if step in (40, 80) else 1000}},
    ),
    ('note', 'Not evaluated', 'no intervals', {'evaluated': None}),
    ('note', 'The evaluation is of an earlier step', 'step 100', {'evaluated': 100}),
    (
      'note',
      'Versions changed during the run',
      'jax 0.10.2 to 0.12.0',
      {'versions': VERSIONS | {'last_run_with': {'jax': '0.12.0'}}},
    ),
  ],
)
def test_each_check_finds_what_it_is_for(level, title, words, changes):
  best_by = changes.pop('best_by', None)
  files = run(**{'heldout': GOOD} | changes)
  if best_by:
    files.record.config['best_by'] = best_by
  (found,) = [one for one in findings(files) if one.title == title]
  assert found.level == level and words in found.detail, found
  assert found.action.endswith(('.', '/runs/x'))
  assert {one.title for one in findings(files)} - {title} <= {'Not evaluated'}


def test_a_model_that_has_not_learned_early_is_only_a_note():
  changes = {'generator_loss': lambda _: 7.0, 'recall': lambda _: 0.0, 'auc': lambda _: 0.5}
  found = findings(run(at_loss(7.0), GOOD | changes, config={'steps': 2000}))
  assert {one.level for one in found} == {'note'} and len(found) == 3


def test_the_worst_is_first():
  files = run(
    heldout=GOOD | at_loss(7.0),
    status={'state': 'failed', 'exit_reason': 'x'},
    evaluated=None,
  )
  levels = [LEVELS.index(one.level) for one in findings(files)]
  assert levels == sorted(levels) and len(set(levels)) == 3


def test_missing_values_and_files_are_no_findings():
  nothing = {name: lambda _: None for name in ('auc', 'generator_loss', 'input_wait')}
  files = run(train=nothing, heldout=nothing, corpus=(), versions={}, resolved={'train_rows': 0})
  assert not [one for one in findings(files) if 'nan' in one.detail]
  record = dataclasses.replace(files.record, heldout=[])
  assert findings(dataclasses.replace(files, record=record)) is not None
  record = dataclasses.replace(files.record, train=[])
  assert findings(dataclasses.replace(files, record=record)) is not None
  assert math.isclose(files.progress, 1)


def test_steps_of_the_generator_only_and_of_earlier_phases_do_not_compare():
  worse_later = {'total_loss': lambda step: 1.0 if step <= 100 else 30 - step / 100}
  alone = run(heldout=GOOD | worse_later, config={'generator.alone_steps': 100})
  phased = run(heldout=GOOD | worse_later)
  phased.record.config['phases'] = [{'steps': 100}, {'steps': 100}]
  assert [one.title for one in findings(run(heldout=GOOD | worse_later))] == [
    'The best checkpoint is old'
  ]
  assert findings(alone) == findings(phased) == []
