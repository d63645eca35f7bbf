"""Folders written by version 0.1.0 open, evaluate, export and resume with this version.

tests/versions/make_0_1_0.py made the folders and describes them. What they record was computed on
another processor: stored bytes are compared bitwise, computed values to float32 rounding. Programs
compiled for SSE4.2 instead of AVX-512 differed by at most 3e-7 relative in two of the runs.
"""

import contextlib
import functools
import json
import pathlib
import shutil
import tarfile
import zlib

import in_process
import jax
import micro_run
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

import electra_jax
from electra_jax.interop import huggingface, own
from electra_jax.interop.weights import same_bits
from electra_jax.main import main

VERSIONS = pathlib.Path(__file__).parents[1] / 'versions'
PRETRAINED = ('electra', 'modern')
# Both families are resumed by the same code.
RESUMED = ('electra', pytest.param('modern', marks=pytest.mark.long))
TEXTS = ('The old man, née Smith.', ' two  spaces \n', 'e\u0301 ﬁ ½ 日本 😀', '', 'x' * 20)
FINETUNED = {'finetuned': 'glue/CoLA/dev.tsv', 'finetuned_stopped': 'ner/dev.conll'}
CLOCK = (*micro_run.TIMES, 'total_seconds')
# Version 0.1.0 gave intervals of two and three trials; they are null now.
INTERVAL = ('low', 'high')


@functools.cache
def stored() -> pathlib.Path:
  """The folders as version 0.1.0 left them. Not to be changed: take a copy."""
  folder, configs = micro_run.shared() / '0.1.0', VERSIONS / '0.1.0' / 'configs'
  with micro_run.locked('versions'):
    if not folder.exists():
      with tarfile.open(VERSIONS / '0.1.0.tar.xz') as archive:
        archive.extractall(folder, filter='data')
      shutil.copytree(configs, folder / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
  return folder


def recorded() -> pathlib.Path:
  """What version 0.1.0 computed from them."""
  return stored() / 'expected'


def copied(folder: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(stored(), folder))


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """A copy in which nothing is trained."""
  return copied(tmp_path_factory.mktemp('original') / 'copy')


@pytest.fixture
def here(original, monkeypatch):
  """The same as the working directory, since the paths in the folders are relative."""
  monkeypatch.chdir(original)
  return original


def run_commands(folder: pathlib.Path, *commands: list[str]) -> pathlib.Path:
  """Runs commands after each other in a folder, on one device; returns the folder."""
  with in_process.shared_programs(devices=1), contextlib.chdir(folder):
    for argv in commands:
      assert main(['main', *argv]) == 0, argv
  return folder


@pytest.fixture(scope='module')
def resumed(tmp_path_factory):
  """A function of a run's name: a copy in which the command that started the run resumed it.

  A pretraining run was evaluated before.
  """

  @functools.cache
  def resume(name):
    folder = copied(tmp_path_factory.mktemp('resumed') / name)
    if name not in PRETRAINED:
      return run_commands(
        folder, ['--mode=finetune', '--config=configs/ner.py', f'--workdir={name}']
      )
    (folder / name / 'evaluation.json').unlink()
    return run_commands(
      folder,
      ['--mode=evaluate', f'--workdir={name}'],
      [f'--config=configs/{name}.py', f'--workdir={name}'],
    )

  return resume


@pytest.fixture(scope='module')
def extended(tmp_path_factory):
  """A copy in which a fine-tuned run got a third trial, and an export was trained further."""
  return run_commands(
    copied(tmp_path_factory.mktemp('extended') / 'copy'),
    [
      '--mode=finetune',
      '--config=configs/cola.py',
      '--workdir=finetuned',
      '--config.num_trials=3',
    ],
    # A new run, with the bins of version 0.1.0 for AUC and average precision, and its dropout.
    [
      '--config=configs/continued.py',
      '--workdir=continued',
      '--config.logit_bins=uniform',
      '--config.model.dropout_generator=hash',
    ],
  )


def read_json(path: pathlib.Path):
  return json.loads(path.read_text('utf-8'))


def same_values(ours, expected, where: str = '', rtol: float = 1e-4, atol: float = 1e-6) -> None:
  """Asserts that two JSON values are equal, numbers with a fraction up to rounding, times excepted.

  Keys that a later version adds are not compared.
  """
  if isinstance(expected, dict):
    assert expected.keys() <= ours.keys(), where
    for name in expected.keys() - set(CLOCK):
      if name in INTERVAL and ours[name] is None:
        continue
      same_values(ours[name], expected[name], f'{where}/{name}', rtol, atol)
  elif isinstance(expected, list):
    assert len(ours) == len(expected), where
    for number, pair in enumerate(zip(ours, expected, strict=True)):
      same_values(*pair, f'{where}/{number}', rtol, atol)
  elif isinstance(expected, float):
    np.testing.assert_allclose(ours, expected, rtol=rtol, atol=atol, err_msg=where)
  else:
    assert ours == expected, where


def metrics(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()]


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """The parameters of the last checkpoint by their path, as stored."""
  arrays = micro_run.checkpoint(workdir, max(micro_run.checkpoint_steps(workdir)))
  prefix = 'params/'
  return {
    path.removeprefix(prefix): value for path, value in arrays.items() if path.startswith(prefix)
  }


def test_the_stored_folders_are_below_2_mb_in_git():
  contents = {path.read_bytes() for path in stored().rglob('*') if path.is_file()}
  assert sum(len(zlib.compress(content)) for content in contents) < 2e6


@pytest.mark.parametrize('path', [*PRETRAINED, *FINETUNED, 'store'])
def test_the_stored_folders_name_no_absolute_path(path):
  for file in (stored() / path).glob('*.json'):
    assert '"/' not in file.read_text('utf-8'), file


@pytest.mark.parametrize('name', PRETRAINED)
def test_a_run_opens_and_computes_the_same(here, name):
  run = electra_jax.load(name)
  leaves = jax.tree_util.tree_leaves_with_path(run.params)
  opened = {'/'.join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}
  assert run.step == max(micro_run.checkpoint_steps(stored() / name))
  assert not micro_run.differing(opened, parameters(stored() / name))
  reading = run(read_json(recorded() / 'texts.json'))
  assert reading.tokens == read_json(recorded() / f'{name}.tokens.json')
  expected = np.load(recorded() / f'{name}.npz')
  for field in ('hidden_states', 'replaced'):
    ours = getattr(reading, field)
    np.testing.assert_allclose(ours, expected[field], rtol=1e-5, atol=1e-5, err_msg=field)


@pytest.mark.parametrize('name', RESUMED)
def test_a_run_evaluates_to_the_same_metrics(resumed, name):
  path = pathlib.Path(name, 'evaluation.json')
  ours, expected = read_json(resumed(name) / path), read_json(stored() / path)
  if ours['resampled']['unit'] == 'documents':  # prepared again: other intervals, the same values
    expected['figures'] = {
      metric: {'value': figure['value']} for metric, figure in expected['figures'].items()
    }
  same_values(ours, expected)
  assert 'reference_ap' in ours['figures']  # metrics are added


@pytest.mark.parametrize('name', RESUMED)
def test_a_resumed_run_keeps_its_criterion(resumed, name):
  config = electra_jax.load(resumed(name) / name).config
  assert (config.best_by, config.best_phases, config.logit_bins) == ('total_loss', 'all', 'uniform')
  assert read_json(resumed(name) / name / 'config.json')['best_by'] == 'total_loss'


@pytest.mark.parametrize('name', [*PRETRAINED, 'finetuned'])
def test_an_export_has_bitwise_the_same_tensors(here, tmp_path, name):
  assert main(['main', '--mode=export', f'--workdir={name}', f'--output={tmp_path / "out"}']) == 0
  before = stored() / 'exports' / name
  paths = [path.relative_to(before) for path in before.rglob('*') if path.is_file()]
  assert len([path for path in paths if path.suffix == '.safetensors']) == (
    1 if name == 'finetuned' else 2
  )
  for path in paths:
    ours, expected = tmp_path / 'out' / path, before / path
    if path.suffix == '.safetensors':
      assert not micro_run.differing(tensors_of(ours), load_file(expected)), path
    elif path.name == 'tokenizer.json':  # SentencePiece models are written in another form now
      ids = [
        [tokenizers.Tokenizer.from_file(str(file)).encode(text).ids for text in TEXTS]
        for file in (ours, expected)
      ]
      assert ids[0] == ids[1], path
    elif path.name == 'tokenizer_config.json':
      described = [read_json(file) for file in (ours, expected)]
      # 0.1.0 wrote the size of the position table, of which only this part was trained.
      lengths = [one.pop('model_max_length') for one in described]
      assert lengths[0] == min(32, lengths[1])
      same_values(*described, str(path))
    elif path.suffix == '.json':
      fields = read_json(expected)
      if path.name == 'config.json' and ours.with_name(huggingface.HEAD).exists():
        # 0.1.0 wrote a token classifier with one label.
        fields |= {'architectures': ['ModernBertModel']}
        assert fields.pop('id2label') and fields.pop('label2id')
      same_values(read_json(ours), fields, str(path))
    else:
      assert ours.exists(), path


def tensors_of(path):
  """The tensors of an export as 0.1.0 named them: with the head of a discriminator, in one file."""
  head = path.with_name(huggingface.HEAD)
  if not head.exists():
    return load_file(path)
  return {f'model.{name}': value for name, value in load_file(path).items()} | load_file(head)


@pytest.mark.parametrize('name', PRETRAINED)
def test_an_export_is_read_as_before(here, name):
  before = huggingface.read_weights(str(stored() / 'exports' / name))
  assert same_bits(before.params, own.read_weights(name).params)


def test_the_card_of_a_fine_tuned_run_has_its_metrics_and_recipe(here, tmp_path):
  flags = ['--base_model=google/electra-small-discriminator', '--datasets=nyu-mll/glue']
  argv = ['--mode=export', '--workdir=finetuned', f'--output={tmp_path / "out"}', *flags]
  assert main(['main', *argv]) == 0
  text = (tmp_path / 'out' / 'README.md').read_text('utf-8')
  data = pytest.importorskip('huggingface_hub').ModelCard(text).data
  assert (data.pipeline_tag, data.base_model) == (
    'text-classification',
    ['google/electra-small-discriminator'],
  )
  (result,) = data.eval_results
  assert (result.metric_type, result.dataset_type) == ('matthews_correlation', 'nyu-mll/glue')
  trials = read_json(stored() / 'finetuned' / 'results.json')['trials']
  assert round(result.metric_value, 6) in [
    round(trial['figures']['dev']['matthews'], 6) for trial in trials
  ]
  assert 'The encoder of google/electra-small-discriminator, fine-tuned on cola' in text
  assert '| `num_trials` | ' in text and 'glue/' not in text.partition('## Recipe')[2]


@pytest.mark.parametrize('name', FINETUNED)
def test_a_fine_tuned_run_gives_the_same_predictions(here, name):
  ours = electra_jax.load(name)(FINETUNED[name])
  lines = (recorded() / f'{name}.jsonl').read_text('utf-8').splitlines()
  same_values(ours, [json.loads(line) for line in lines])


@pytest.mark.parametrize('name', RESUMED)
def test_a_stopped_run_resumes_to_the_same_end(resumed, name):
  ours, expected = metrics(resumed(name) / name), metrics(recorded() / name)
  before = metrics(stored() / name)
  assert before and len(before) < len(expected)
  assert ours[: len(before)] == before  # times too: these steps were not repeated
  same_values(ours, expected)
  final = dict(np.load(recorded() / name / 'parameters.npz'))
  same_parameters(parameters(resumed(name) / name), final)
  # The steps that were resumed change the parameters by far more than the tolerance.
  with pytest.raises(AssertionError):
    same_parameters(parameters(stored() / name), final)


def same_parameters(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
  assert ours.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_allclose(ours[path], value, rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.long
def test_a_store_and_an_export_are_trained_from_to_the_same_end(extended):
  same_values(metrics(extended / 'continued'), metrics(recorded() / 'continued'))
  final = dict(np.load(recorded() / 'continued' / 'parameters.npz'))
  same_parameters(parameters(extended / 'continued'), final)


def same_results(folder: pathlib.Path, name: str, task: str, complete: int) -> None:
  """Asserts that a fine-tuned run has the recorded results, and did not repeat complete trials."""
  path = pathlib.Path(name, 'results.json')
  same_values(read_json(folder / path), read_json(recorded() / path))
  for trial in range(1, complete + 1):
    path = pathlib.Path(name, task, f'trial-{trial}', 'result.json')
    assert read_json(folder / path) == read_json(stored() / path)  # times too


def test_a_stopped_fine_tuned_run_resumes_to_the_same_results(resumed):
  name = 'finetuned_stopped'
  same_results(resumed(name), name, 'ner', 1)
  path = pathlib.Path(name, 'ner', 'trial-2')
  before = metrics(stored() / path)
  assert before and metrics(resumed(name) / path)[: len(before)] == before


@pytest.mark.long
def test_a_complete_fine_tuned_run_gets_another_trial_with_the_same_results(extended):
  same_results(extended, 'finetuned', 'cola', 2)


@pytest.mark.parametrize(
  'flags, field',
  [
    (
      ['--config=configs/electra.py', '--workdir=electra', '--config.optimizer.b1=0.8'],
      'optimizer.b1',
    ),
    (
      ['--mode=finetune', '--config=configs/ner.py', '--workdir=finetuned_stopped']
      + ['--config.batch_size=4'],
      'batch_size',
    ),
  ],
)
def test_another_config_is_refused(here, capsys, flags, field):
  assert main(['main', *flags]) == 1
  err = capsys.readouterr().err
  assert f'{field}: ' in err and 'Traceback' not in err
