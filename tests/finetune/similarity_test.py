"""Sentence embeddings on pairs with similarities: metrics as of scipy, data of all layouts."""

import dataclasses
import json
import pathlib
import re
import shlex
import tarfile

import hf_runs
import in_process
import micro_run
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch

import electra_jax
from electra_jax.errors import UserError
from electra_jax.finetune import similarity
from electra_jax.finetune.similarity import score_similarity

ROOT = pathlib.Path(__file__).parents[2]
PAIRS = [
  ('a man sleeps', 'a man is asleep', 4.5),
  ('a dog runs', 'a dog runs', 5),
  ('a dog runs', 'he eats "rice"', 0),
  ('she sings', 'a woman sings', 4.5),
  ('she sings', 'it rains', 0.25),
]
DISTANCES = {
  'cosine': lambda a, b: 1 - scipy.spatial.distance.cosine(a, b),
  'dot': np.dot,
  'euclidean': lambda a, b: -scipy.spatial.distance.euclidean(a, b),
  'manhattan': lambda a, b: -scipy.spatial.distance.cityblock(a, b),
}
# A block of data with the name of its file, and the command after it.
EXAMPLE = re.compile(
  r'^```csv sts\.csv\n(?P<data>[^`]*)^```\n\n    python -m electra_jax\.main (?P<command>.*)$',
  re.MULTILINE,
)


class Vectors:
  """Embeds each text as a random vector of its own, other ones for each pooling."""

  def __init__(self):
    self.asked = []

  def embed(self, texts, pooling):
    self.asked.append((list(texts), pooling))
    return np.stack([self.vector(text, pooling) for text in texts])

  def vector(self, text, pooling):
    rng = np.random.default_rng(list(f'{pooling} {text}'.encode()))
    return rng.normal(0.3, 1, 6).astype(np.float32)


def test_correlations_are_those_of_scipy():
  run = Vectors()
  score = score_similarity(run, PAIRS)
  assert score.pairs == 5 and list(score.correlations) == ['cls', 'mean']
  gold = [value for *_, value in PAIRS]
  for one in score.records():
    measure = DISTANCES[one['measure']]
    values = [measure(*(run.vector(t, one['pooling']) for t in pair)) for *pair, _ in PAIRS]
    expected = scipy.stats.spearmanr(gold, values)[0], scipy.stats.pearsonr(gold, values)[0]
    np.testing.assert_allclose((one['spearman'], one['pearson']), expected, rtol=1e-6)
  assert len(score.records()) == 8
  for texts, _ in run.asked:  # each sentence once
    assert len(texts) == len(set(texts)) == 7 and 'a dog runs' in texts
  (only,) = score_similarity(run, PAIRS, pooling='mean').correlations
  assert only == 'mean'


def test_a_measure_without_differences_has_no_correlation():
  class Same:
    def embed(self, texts, pooling):
      return np.zeros((len(texts), 4), np.float32)

  score = score_similarity(Same(), PAIRS)
  assert all(np.isnan([one['spearman'], one['pearson']]).all() for one in score.records())


def test_all_layouts_have_the_same_pairs(tmp_path):
  rows = [dict(zip(('sentence_A', 'sentence_B', 'score'), pair, strict=True)) for pair in PAIRS]
  files = {
    'a.tsv': 'index\tsentence1\tgenre\tsentence2\tscore\n'
    + ''.join(f'{i}\t{a}\tnews\t{b}\t{x:.3f}\n' for i, (a, b, x) in enumerate(PAIRS)),
    'a.csv': 'score,text1,text2\n'
    + ''.join(f'{x},{a},"{b.replace(chr(34), chr(34) * 2)}"\n' for a, b, x in PAIRS),
    'a.jsonl': ''.join(json.dumps(row) + '\n' for row in rows),
  }
  expected = [tuple(pair) for pair in PAIRS]
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  mappings = [{'text': a, 'text_pair': b, 'label': x} for a, b, x in PAIRS]
  for data in (*(tmp_path / name for name in files), PAIRS, mappings, rows):
    found = [(pair.first, pair.second, pair.target) for pair in similarity.read_rated_pairs(data)]
    assert found == expected


@pytest.mark.parametrize(
  'text, message',
  [
    ('sentence1\tsentence2\tscor\na\tb\t1\n', "has no column 'score' \\(did you mean 'scor'\\?\\)"),
    ('sentence1\tscore\na\t1\nb\t2\n', "has no column 'sentence2'"),
    ('sentence1\tsentence2\tscore\na\tb\t1\nc\td\tnan\n', "line 3 .* its column 'score' is nan"),
    ('sentence1\tsentence2\tscore\na\tb\t1\nc\td\t\n', "line 3 .* its column 'score' is empty"),
    ('sentence1\tsentence2\tscore\na\tb\thigh\n', "the similarity 'high'; expected a number"),
    ('sentence1\tsentence2\tscore\na\tb\t1\n', 'one pair; expected at least two'),
    ('sentence1\tsentence2\tscore\na\tb\t1\nc\td\t1.0\n', 'the similarity 1 for all 2 pairs'),
  ],
)
def test_bad_tables_are_refused(text, message, tmp_path):
  (tmp_path / 'bad.tsv').write_text(text)
  with pytest.raises(UserError, match=message):
    score_similarity(Vectors(), tmp_path / 'bad.tsv')


@pytest.mark.parametrize(
  'data, message',
  [
    ([*PAIRS, ('a', 'b', float('nan'))], 'record 6 has no label'),
    ([('a', 'b')] * 2, "record 1 of the data|record 1 has no column 'score'"),
    ([('a', 'b', 1)], 'the data has one pair'),
    ([], 'the data has no records'),
    (['a', 'b'], 'record 1 is a single text'),
  ],
)
def test_bad_records_are_refused(data, message):
  with pytest.raises(UserError, match=message):
    score_similarity(Vectors(), data)


#### Runs ####


@pytest.fixture(scope='module')
def finetuned(tmp_path_factory):
  """A regression run of pairs, made of a model of transformers, and that model."""
  folder = tmp_path_factory.mktemp('similarity')
  with in_process.shared_programs(devices=1):
    model = hf_runs.folder_of(folder / 'hf', 'electra', 'classification', num_labels=1)
    yield hf_runs.adopted(folder, folder / 'hf', 'regression', **{'data.pair': 'second'}), model


def test_embeddings_of_a_finetuned_run_are_those_of_its_encoder(finetuned):
  run, model = finetuned
  texts = ['bako dufa', 'timeru salo nipe rume ' * 5, 'pegi']
  for pooling in ('mean', 'cls'):
    found = run.embed(texts, pooling)
    assert found.dtype == np.float32
    for text, vector in zip(texts, found, strict=True):
      ids = [run.tokenizer.cls_id, *run.tokenizer.encode(text), run.tokenizer.sep_id]
      with torch.no_grad():
        states = model.eval().electra(torch.tensor([ids])).last_hidden_state[0].numpy()
      expected = states.mean(0) if pooling == 'mean' else states[0]
      np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
  assert len(run.tokenizer.encode(texts[1])) > run.max_length  # never truncated
  np.testing.assert_array_equal(run.embed(texts[2])[0], run.embed([texts[2]])[0])


def test_what_cannot_be_embedded_is_refused(finetuned):
  run, _ = finetuned
  with pytest.raises(UserError, match="pooling is 'max'; expected"):
    score_similarity(run, PAIRS, pooling='max')
  with pytest.raises(UserError, match='the encoder has 64 positions; split the text'):
    run.embed('bako ' * 80)
  ensemble = dataclasses.replace(run, others=(run.params,))
  with pytest.raises(UserError, match='an ensemble of 2 trials'):
    ensemble.embed('bako')


@pytest.fixture(scope='module')
def old(tmp_path_factory):
  """The folder of runs of version 0.1.0."""
  folder = tmp_path_factory.mktemp('old')
  with tarfile.open(ROOT / 'tests' / 'versions' / '0.1.0.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  return folder


def example(old, tmp_path, name):
  """The command of docs/finetuning.md for a run, with the file that it names."""
  match = EXAMPLE.search((ROOT / 'docs' / 'finetuning.md').read_text('utf-8'))
  (tmp_path / 'sts.csv').write_text(match['data'], 'utf-8')
  replaced = match['command'].replace('sts.csv', str(tmp_path / 'sts.csv'))
  return shlex.split(replaced.replace('runs/small', str(old / name)))


@pytest.mark.parametrize('name', ['modern', 'finetuned'])
def test_the_command_prints_and_writes_the_scores(name, old, tmp_path):
  out, _ = micro_run.run(*example(old, tmp_path, name), f'--output={tmp_path}')
  written = json.loads((tmp_path / 'similarity.json').read_text())
  score = score_similarity(electra_jax.load(old / name), tmp_path / 'sts.csv')
  assert written['pairs'] == score.pairs == 6 and written['source'].endswith('sts.csv')
  for one in score.records():
    found = written['correlations'][one['pooling']][one['measure']]
    assert found == {name: pytest.approx(one[name], nan_ok=True) for name in found}
    line = f'{one["pooling"]:10}{one["measure"]:12}{100 * one["spearman"]:10.2f}'
    assert line in out


def test_lost_characters_are_an_error_unless_they_are_allowed(old, tmp_path):
  command = example(old, tmp_path, 'modern')
  (tmp_path / 'sts.csv').write_text('text1,text2,score\n漢字,bako,1\n漢字,漢字,2\n', 'utf-8')
  _, err = micro_run.run(*command, status=1)
  assert 'the tokenizer loses' in err and 'set --allow_loss to continue' in err
  _, err = micro_run.run(*command, '--allow_loss', f'--output={tmp_path}')
  assert err.count('the tokenizer loses') == 1 and (tmp_path / 'similarity.json').exists()


def test_flags_of_the_other_kind_of_run_are_refused(old, tmp_path):
  _, err = micro_run.run(*example(old, tmp_path, 'modern'), '--task=cola', status=1)
  assert 'a pretrained run, which has no tasks' in err
  _, err = micro_run.run(*example(old, tmp_path, 'finetuned'), '--step=3', status=1)
  assert 'a fine-tuned run, which is opened at the step that config.select chose' in err
