"""The example with Optuna: trials are runs of the package, and a study continues."""

import importlib.util

import micro_run
import pytest

optuna = pytest.importorskip('optuna', reason='requires optuna: pip install optuna')


@pytest.fixture
def example(monkeypatch):
  """The module of the example, on the corpus and the compiled programs of the tests."""
  path = micro_run.ROOT / 'examples' / 'optuna_search.py'
  spec = importlib.util.spec_from_file_location('optuna_search', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  load = module.load_config_file

  def on_the_corpus_of_the_tests(path):
    c = load(path)
    c.data.source, c.data.cache = str(micro_run.corpus()), str(micro_run.shared() / 'cache')
    c.compilation_cache = str(micro_run.programs())
    return c

  monkeypatch.setattr(module, 'load_config_file', on_the_corpus_of_the_tests)
  return module


def test_a_study_maximizes_the_metric_of_its_runs_and_continues(example, tmp_path):
  example.search(f'{micro_run.ROOT / micro_run.CONFIG}:steps=4,warmup=1', tmp_path, 1)
  study = example.search(f'{micro_run.ROOT / micro_run.CONFIG}:steps=4,warmup=1', tmp_path, 1)
  assert [trial.state.name for trial in study.trials] == ['COMPLETE', 'COMPLETE']
  for trial in study.trials:
    evaluated = (tmp_path / f'trial-{trial.number}' / 'evaluation.json').read_text()
    assert str(trial.value) in evaluated
  assert study.best_value == max(trial.value for trial in study.trials)
  assert set(study.best_params) == {'learning_rate', 'temperature'}


def test_a_trial_with_a_mistake_fails_only_itself(example, tmp_path):
  study = example.search(f'{micro_run.ROOT / micro_run.CONFIG}:seq=8,batch=999999', tmp_path, 1)
  assert [trial.state.name for trial in study.trials] == ['FAIL']
