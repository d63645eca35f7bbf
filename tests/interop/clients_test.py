"""Exports are opened by the programs that people use, which compute what this package computes."""

import dataclasses
import functools
import subprocess

import client_exports
import numpy as np
import pytest
from client_environments import Environment, environments
from client_exports import CASES, MASKED, OTHERS, PAIRS, TEXTS, TRICKY, Exported

ROUNDING = 1e-5  # of float32, relative to the largest value
# Of int8: mean embeddings of a quantized encoder have at least this cosine with the others.
QUANTIZED = 0.99
# The layers to which docs/interop.md applies LoRA, by the `model_type` of a config.json.
MODULES = {
  'electra': ['query', 'value'],
  'modernbert': ['Wqkv'],
  'bert': ['query', 'value'],
  'roberta': ['query', 'value'],
  'xlm-roberta': ['query', 'value'],
  'deberta-v2': ['query_proj', 'value_proj'],
  'distilbert': ['q_lin', 'v_lin'],
  'albert': ['query', 'value'],
}


#### What is compared ####


def apart(found, expected) -> float:
  """The largest difference, relative to the largest value."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  assert found.shape == expected.shape
  return float(np.abs(found - expected).max() / np.abs(expected).max())


def rounding(found, expected) -> float:
  """The largest difference, which must be that of float32."""
  difference = apart(found, expected)
  assert difference <= ROUNDING
  return difference


def check_equal(name, answer, export):
  assert answer[name] == export.ours[name]


def check_ids(name, answer, export):
  """All ids are the same, except for texts that the client itself reads in another way."""
  rows = zip(TRICKY, answer[name], export.ours[name], strict=True)
  different = {text for text, found, expected in rows if found != expected}
  assert different <= answer['known']


def check_rows(name, answer, export):
  """Hidden states of all tokens."""
  return rounding(client_exports.cut(answer[name], export.lengths), export.ours['hidden'])


def check_verdicts(name, answer, export):
  """The probability that each token was replaced; absolute."""
  logits = client_exports.cut(answer[name], export.lengths)
  difference = np.abs(1 / (1 + np.exp(-logits)) - export.ours[name]).max()
  assert difference <= ROUNDING
  return float(difference)


def check_embeddings(name, answer, export):
  return rounding(answer[name], export.ours['embeddings'])


def check_filled(name, answer, export):
  """The likeliest words at masks, in order, and their probabilities; absolute."""
  found, expected = np.array(answer[name]), np.array(export.ours[name])
  np.testing.assert_array_equal(found[..., 0], expected[..., 0])
  difference = np.abs(found[..., 1] - expected[..., 1]).max()
  assert difference <= ROUNDING
  return float(difference)


def check_quantized(name, answer, export):
  """1 - the cosine of mean embeddings."""
  rows = [np.mean(row[:n], 0) for row, n in zip(answer[name], export.lengths, strict=True)]
  ours = export.ours['embeddings']
  norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(ours, axis=1)
  cosine = float(((rows * ours).sum(1) / norms).min())
  assert cosine >= QUANTIZED
  assert apart(client_exports.cut(answer[name], export.lengths), export.ours['hidden']) > ROUNDING
  full, quantized = answer['bytes']
  assert quantized < full
  return 1 - cosine


def check_training(name, answer, export):
  """Two steps of LoRA lower the loss, and change nothing but the adapters."""
  before, after_one, after_two = answer[name]
  assert after_two < after_one < before
  assert answer['adapters_only'] and answer['encoder_unchanged'] and answer['trained'] >= 2


def check_alignment(name, answer, export):
  """Each token of spaCy has tokens of the encoder, which are all but [CLS] and [SEP]."""
  for lengths, words, ids in zip(answer[name], answer['words'], export.ours['texts'], strict=True):
    assert len(lengths) == len(words) and min(lengths) > 0
    assert sum(lengths) >= len(ids) - 2


CHECKS = {
  'ids': check_ids,
  'pairs': check_equal,
  'texts': check_equal,
  'max_length': check_equal,
  'hidden': check_rows,
  'verdicts': check_verdicts,
  'filled': check_filled,
  'embeddings': check_embeddings,
  'again': check_embeddings,
  'hidden_int8': check_quantized,
  'losses': check_training,
  'aligned': check_alignment,
}


#### Clients ####


@dataclasses.dataclass(frozen=True)
class Client:
  """A program that opens exports.

  Attributes:
    environment: name of where it runs.
    script: of tests/clients.
    answers: that it must give; others are compared where it gives them.
    encoders: whether it opens one export of each family only, those of `Case.onnx`.
    after: a client whose files it reads.
  """

  environment: str
  script: str
  answers: tuple[str, ...]
  encoders: bool = False
  after: str = ''


# Texts of which a client gives other ids than the `tokenizers` library, with the same file.
KNOWN = {
  'transformers.js': {
    'Η γρήγορη αλεπού ΣΑΣ',  # lower case of a sigma at the end of a word
    '\0a\x01b\x7f\x85\u200b\u2028\ufeff\ufffd',  # what white space is
  }
}
_BY_TRANSFORMERS = ('ids', 'pairs', 'max_length', 'hidden', 'filled')
CLIENTS = {
  'transformers 5': Client('tests', 'transformers_client.py', _BY_TRANSFORMERS),
  'transformers 4.48': Client('transformers-4', 'transformers_client.py', _BY_TRANSFORMERS),
  'sentence-transformers': Client(
    'peers', 'sentence_transformers_client.py', ('max_length', 'embeddings', 'again')
  ),
  'peft': Client('peers', 'peft_client.py', ('hidden', 'losses')),
  'onnxruntime': Client('peers', 'onnx_client.py', ('hidden', 'hidden_int8'), encoders=True),
  'transformers.js': Client(
    'javascript', 'javascript_client.mjs', ('ids', 'pairs'), after='onnxruntime'
  ),
  'spaCy': Client('transformers-4', 'spacy_client.py', ('texts', 'hidden', 'aligned')),
}


def cases_of(client):
  return [name for name, case in CASES.items() if case.onnx or not CLIENTS[client].encoders]


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
  """Returns a function that gives the answers of a client, which is asked once, for all exports."""
  folder = tmp_path_factory.mktemp('exports')

  def export(name) -> Exported:
    return client_exports.exported(CASES[name], folder)

  @functools.cache
  def ask(name):
    client = CLIENTS[name]
    if client.after and not environments()[CLIENTS[client.after].environment].missing():
      ask(client.after)
    request = {
      'exports': {case: str(export(case).folder) for case in cases_of(name)},
      'texts': TEXTS,
      'others': OTHERS,
      'tricky': TRICKY,
      'pairs': PAIRS,
      'masked': MASKED,
      'modules': MODULES,
    }
    return environments()[client.environment].ask(client.script, request)

  return lambda client, case: (ask(client), export(case))


@pytest.mark.clients
@pytest.mark.parametrize(
  'client, case', [(client, case) for client in CLIENTS for case in cases_of(client)]
)
def test_a_client_computes_what_this_package_computes(client, case, asked, record_property):
  answers, export = asked(client, case)
  answer = answers['answers'][case]
  assert 'error' not in answer, answer['error']
  assert set(CLIENTS[client].answers) <= answer.keys()
  answer['known'] = KNOWN.get(client, set())
  measured = {}
  for name, check in CHECKS.items():
    if name in answer and (difference := check(name, answer, export)) is not None:
      measured[name] = float(f'{difference:.1e}')
  record_property(
    'measured',
    {
      'client': answers['versions'],
      'family': CASES[case].family,
      'tokenizer': CASES[case].kind,
      **dict(sorted(measured.items())),
    },
  )


#### Environments ####


def test_an_environment_is_made_once_for_its_requirements(tmp_path, monkeypatch):
  monkeypatch.setenv('ELECTRA_JAX_CLIENTS', str(tmp_path))
  made = []
  for requirements in (('a==1',), ('a==1',), ('a==2',)):
    one = Environment('some', requirements, lambda folder, names: made.append(names))
    assert one.missing() == ''
  assert made == [('a==1',), ('a==2',)]


def test_an_environment_that_cannot_be_made_skips_the_test_with_the_reason(tmp_path, monkeypatch):
  monkeypatch.setenv('ELECTRA_JAX_CLIENTS', str(tmp_path))

  def fail(folder, names):
    raise subprocess.CalledProcessError(
      1, ['pip'], stderr='more\nERROR: No matching distribution\n'
    )

  with pytest.raises(pytest.skip.Exception, match='cannot be made: ERROR: No matching distribu'):
    Environment('some', ('a==1',), fail).ask('transformers_client.py', {})
  assert not [path for path in tmp_path.iterdir() if path.is_dir()]
