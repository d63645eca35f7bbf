"""benchmarks/compare.py: the normal form of programs, and reports on equal and changed trees."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))

import compare
from comparison import matrix, results, trees
from comparison.normalize import normalize

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """\
module @jit_step attributes {mhlo.num_partitions = 1 : i32} {
  func.func public @main(%arg0: tensor<3xf32>) -> (tensor<3xf32> {jax.result_info = "r.loss"}) {
    %0 = call @clip(%arg0) : (tensor<3xf32>) -> tensor<3xf32>
    %1 = call @clip_0(%0) : (tensor<3xf32>) -> tensor<3xf32>
    return %1 : tensor<3xf32>
  }
  func.func private @clip(%arg0: tensor<3xf32>) -> tensor<3xf32> {
    %cst = stablehlo.constant dense<2.000000e+00> : tensor<f32>
    %0 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<3xf32>
    %1 = stablehlo.minimum %0, %arg0 : tensor<3xf32>
    return %1 : tensor<3xf32>
  }
  func.func private @clip_0(%arg0: tensor<3xf32>) -> tensor<3xf32> {
    %0 = stablehlo.negate %arg0 : tensor<3xf32>
    return %0 : tensor<3xf32>
  }
}
"""


def reordered(text: str) -> str:
  """The program with its two helper functions in the other order."""
  start = text.index('  func.func private @clip(')
  end = text.index('  func.func private @clip_0(')
  return text[:start] + text[end:-2] + text[start:end] + '}\n'


def test_programs_that_differ_only_in_names_are_equal():
  renamed = (
    PROGRAM.replace('@clip_0', '@negated')
    .replace('@clip', '@"limit.to"')
    .replace('jit_step', 'jit_train_step')
    .replace('r.loss', 'result[1]')
  )
  assert renamed != PROGRAM
  assert normalize(renamed) == normalize(PROGRAM)


def test_the_order_of_functions_and_locations_do_not_matter():
  assert normalize(reordered(PROGRAM)) == normalize(PROGRAM)
  located = PROGRAM.replace('return %1 : tensor<3xf32>', 'return %1 : tensor<3xf32> loc(#loc3)')
  located += '#loc3 = loc("step.py":3:7)\n'
  assert normalize(located) == normalize(PROGRAM)


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('2.000000e+00', '2.000001e+00'),
    ('stablehlo.minimum', 'stablehlo.maximum'),
    ('call @clip_0(%0)', 'call @clip(%0)'),
    ('%0, %arg0 : tensor', '%arg0, %0 : tensor'),
    ('num_partitions = 1', 'num_partitions = 8'),
    ('main(%arg0: tensor<3xf32>', 'main(%arg0: tensor<3xf32> {tf.aliasing_output = 0 : i32}'),
  ],
)
def test_a_real_difference_stays(old, new):
  assert old in PROGRAM
  assert normalize(PROGRAM.replace(old, new)) != normalize(PROGRAM)


def test_the_matrix_covers_every_choice_of_the_config():
  cells = matrix.cells()
  pretraining = [cell.fields for cell in cells if not cell.finetune]
  for field, choices in (
    ('objective.name', matrix.OBJECTIVES),
    ('sharing', matrix.SHARINGS),
    ('model.family', matrix.FAMILIES),
    ('objective.masking', ('words', 'spans')),
    ('optimizer.name', ('lamb',)),
  ):
    assert {fields.get(field) for fields in pretraining} >= set(choices)
  from electra_jax.config import PretrainingConfig
  from electra_jax.config.declarations import fields_of
  from electra_jax.model.heads import KINDS

  objectives = fields_of(PretrainingConfig)['objective.name'].declaration.choices
  assert set(matrix.OBJECTIVES) == set(objectives)
  assert {*matrix.HEADS, *matrix.NEWER_HEADS} == set(KINDS)


def write_steps(folder: pathlib.Path, loss: float, weight: float, seconds: float) -> pathlib.Path:
  """The record of a run: one line of metrics and one array."""
  folder.mkdir()
  line = {'kind': 'train', 'step': 10, 'loss': loss, 'seconds': seconds}
  (folder / 'metrics.json').write_text(json.dumps([line]))
  np.savez(folder / 'arrays.npz', **{'params/kernel': np.array([1.0, weight], np.float32)})
  return folder


def test_steps_are_compared_bitwise_but_for_the_clock(tmp_path):
  base = write_steps(tmp_path / 'base', 2.5, 1.0, 3.0)
  same = write_steps(tmp_path / 'same', 2.5, 1.0, 4.0)
  other = write_steps(tmp_path / 'other', 2.5000001, np.nextafter(np.float32(1), 2), 3.0)
  assert results.compare_metrics(base, same) == results.compare_arrays(base, same) == ([], [])
  assert 'step 10, train loss' in results.compare_metrics(base, other)[0][0]
  assert '1 of 1 arrays differ, params/kernel' in results.compare_arrays(base, other)[0][0]


def test_the_exit_status_grades_differences():
  equal, differs = {'train': results.EQUAL}, {'train': results.DIFFERS}
  cases = [
    (results.Outcome(equal), 0),
    (results.Outcome(equal, results.EQUAL), 0),
    (results.Outcome(equal, results.DIFFERS), 2),
    (results.Outcome(differs, results.EQUAL), 1),
    (results.Outcome(differs, results.DIFFERS), 2),
    (results.Outcome(differs), 2),
    (results.Outcome({'train': results.FAILED}, results.FAILED), 2),
  ]
  for outcome, status in cases:
    assert results.exit_status({'cell': outcome}) == status


# Part of the masked language modeling loss; to be kept in step with the package's source.
LOSS = "losses.sum() / context.counts['masked']"


def scale_loss(package: pathlib.Path) -> None:
  """Makes masked language modeling count 1% more in a copy of the package."""
  found = [path for path in package.rglob('*.py') if LOSS in path.read_text('utf-8')]
  assert found, f'no file of the package has {LOSS!r}'
  for path in found:
    path.write_text(path.read_text('utf-8').replace(LOSS, f'1.01 * {LOSS}'), 'utf-8')


def compared(folder: pathlib.Path, other: pathlib.Path) -> results.Outcome:
  """A cell of this tree, compared with that of another tree."""
  base, tree = (
    trees.Tree(name, path, folder / 'work' / name)
    for name, path in (('base', ROOT), ('other', other))
  )
  inputs = folder / 'inputs'
  for path in (inputs, base.work, tree.work):
    path.mkdir(parents=True)
  trees.write_samples(inputs)
  cells = compare.select('mlm-electra-embeddings')
  trees.record((base, tree), 'lower', cells, inputs, print)
  return results.compare_programs((base, tree), cells[0])


@pytest.mark.long
def test_a_tree_equals_itself(tmp_path):
  found = compared(tmp_path, ROOT)
  assert found.programs == dict.fromkeys(results.ROLES, results.EQUAL)
  assert not found.notes


@pytest.mark.long
def test_a_changed_loss_is_reported(tmp_path):
  changed = tmp_path / 'changed'
  shutil.copytree(ROOT / 'electra_jax', changed / 'electra_jax')
  scale_loss(changed / 'electra_jax')
  found = compared(tmp_path, changed)
  assert (found.programs['init'], found.programs['train']) == (results.EQUAL, results.DIFFERS)
  assert found.notes[0].startswith('training step: line ')


def test_an_unknown_base_and_an_unknown_cell_are_refused(capsys):
  assert compare.main(['no-such-commit']) == 2
  assert "BASE is 'no-such-commit'" in capsys.readouterr().err
  assert compare.main(['HEAD', '--cells=no-such-cell']) == 2
  assert "'no-such-cell', which matches no cell" in capsys.readouterr().err
