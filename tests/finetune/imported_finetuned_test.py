"""Models of transformers become fine-tuned runs with equal predictions or initialize training."""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import finetune_files
import hf_files
import jax
import numpy as np
import pytest
import torch
import transformers
import xla_flags
from hf_runs import VOCABULARY, adopted, config_of, folder_of

import electra_jax
from electra_jax.config import FinetuningConfig, freeze
from electra_jax.errors import UserError
from electra_jax.finetune import initial, run_files, train
from electra_jax.finetune.adopt import adopt
from electra_jax.finetune.config import default_config
from electra_jax.finetune.predict import predict
from electra_jax.finetune.resolve import resolve_finetuning
from electra_jax.finetune.train import run_finetuning
from electra_jax.interop import huggingface
from electra_jax.interop.weights import same_bits

TEXTS = [
  'bako dufa',
  'timeru salo nipe rume.',
  'pegi',
  'nidufa tisalo bako bako bako dufa salo',
  'b',
]
pytestmark = pytest.mark.usefixtures('on_one_device')
FAMILIES = pytest.mark.parametrize('family', ['electra', 'modern'])


def torch_logits(made, folder, texts, pairs=None):
  """Returns logits of texts, one by one, with the tokenizer of transformers."""
  tokenizer = transformers.BertTokenizer.from_pretrained(folder)
  found = []
  for i, text in enumerate(texts):
    inputs = tokenizer(text, *([pairs[i]] if pairs else []), return_tensors='pt')
    if made.config.model_type == 'modernbert':
      inputs.pop('token_type_ids', None)
    with torch.no_grad():
      found.append(made(**inputs).logits[0].numpy())
  return found


def read_lines(path):
  return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


@FAMILIES
def test_an_imported_classifier_predicts_as_in_pytorch(tmp_path, family):
  names = {0: 'good', 1: 'so so', 2: 'bad'}
  fields = {'classifier_pooling': 'mean'} if family == 'modern' else {}
  made = folder_of(tmp_path / 'hf', family, 'classification', id2label=names, **fields)
  adopt(config_of(tmp_path / 'hf', 'classification'), str(tmp_path / 'run'))
  expected = torch_logits(made, tmp_path / 'hf', TEXTS)
  shutil.rmtree(tmp_path / 'hf')  # the run does not need it
  run = electra_jax.load(tmp_path / 'run')
  assert (
    run.imported
    and run.task.labels == ('good', 'so so', 'bad')
    and run.model.style == 'transformers'
  )
  (tmp_path / 'texts.txt').write_text('\n'.join(TEXTS) + '\n')
  predict(
    str(tmp_path / 'run'),
    source=str(tmp_path / 'texts.txt'),
    task=None,
    split=None,
    output=str(tmp_path / 'predicted.jsonl'),
  )
  for row, logits in zip(read_lines(tmp_path / 'predicted.jsonl'), expected, strict=True):
    shares = np.exp(logits - logits.max())
    np.testing.assert_allclose(
      [row['probabilities'][name] for name in names.values()], shares / shares.sum(), rtol=2e-5
    )
    assert row['label'] == names[int(logits.argmax())]


def test_an_imported_multi_label_model_predicts_as_in_pytorch(tmp_path):
  names = {0: 'good', 1: 'so so', 2: 'bad'}
  problem = 'multi_label_classification'
  made = folder_of(
    tmp_path / 'hf', 'electra', 'classification', id2label=names, problem_type=problem
  )
  run = adopted(tmp_path, tmp_path / 'hf', 'multilabel')
  (tmp_path / 'texts.txt').write_text('\n'.join(TEXTS) + '\n')
  expected = torch_logits(made, tmp_path / 'hf', TEXTS)
  for row, logits in zip(run(str(tmp_path / 'texts.txt')), expected, strict=True):
    probabilities = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(list(row['probabilities'].values()), probabilities, rtol=2e-5)
    assert row['labels'] == [names[i] for i in np.flatnonzero(probabilities >= 0.5)]
  assert run.weights().head.kind == 'multilabel'


def test_an_imported_regression_predicts_as_in_pytorch(tmp_path):
  made = folder_of(
    tmp_path / 'hf', 'modern', 'classification', num_labels=1, problem_type='regression'
  )
  run = adopted(tmp_path, tmp_path / 'hf', 'regression', **{'data.pair': 'pair'})
  (tmp_path / 'pairs.tsv').write_text(
    'text\tpair\n' + ''.join(f'{a}\t{b}\n' for a, b in zip(TEXTS, TEXTS[::-1], strict=True))
  )
  values = [row['value'] for row in run(str(tmp_path / 'pairs.tsv'))]
  np.testing.assert_allclose(
    values,
    np.concatenate(torch_logits(made, tmp_path / 'hf', TEXTS, TEXTS[::-1])),
    rtol=1e-4,
    atol=1e-5,
  )


def test_a_task_with_a_scale_gives_the_values_of_pytorch(tmp_path):
  made = folder_of(
    tmp_path / 'hf', 'electra', 'classification', num_labels=1, problem_type='regression'
  )
  data = finetune_files.glue(tmp_path / 'glue')
  run = adopted(tmp_path, tmp_path / 'hf', 'stsb', max_length=32, **{'data.source': str(data)})
  examples = run.task.read(str(data / 'STS-B' / 'dev.tsv'))
  expected = np.concatenate(
    torch_logits(made, tmp_path / 'hf', [e.first for e in examples], [e.second for e in examples])
  )
  predict(str(tmp_path / 'run'), source=None, task=None, split='dev', output=str(tmp_path / 'out'))
  np.testing.assert_allclose(
    [row['value'] for row in read_lines(tmp_path / 'out' / 'stsb.dev.jsonl')],
    expected,
    rtol=1e-4,
    atol=1e-5,
  )
  theirs = made.classifier.out_proj.weight.detach().numpy().T
  # Exported in the unit of the task.
  np.testing.assert_allclose(run.weights().head.params['dense']['kernel'], theirs, rtol=1e-6)


@FAMILIES
def test_an_imported_tagger_predicts_as_in_pytorch(tmp_path, family):
  names = dict(enumerate(['B-X', 'O', 'I-X', 'B-Y', 'I-Y']))
  made = folder_of(tmp_path / 'hf', family, 'tagging', id2label=names)
  run = adopted(tmp_path, tmp_path / 'hf', 'ner')
  (tmp_path / 'texts.txt').write_text('\n'.join(TEXTS) + '\n')
  tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path / 'hf')
  for text, logits, row in zip(
    TEXTS, torch_logits(made, tmp_path / 'hf', TEXTS), run(str(tmp_path / 'texts.txt')), strict=True
  ):
    assert row['text'] == text
    pieces = [len(tokenizer.tokenize(word)) for word in row['tokens']]
    firsts = np.cumsum([1, *pieces])[:-1]  # after [CLS]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    assert row['tags'] == [names[int(logits[place].argmax())] for place in firsts]
    np.testing.assert_allclose(row['probabilities'], shares[firsts].max(-1), rtol=1e-4, atol=2e-6)


def expected_answer(made, tokenizer, question, context, most=30):
  """Returns the words and the null score difference as run_qa.py of transformers computes them."""
  ids = tokenizer(question, context, return_tensors='pt')
  of_question = len(tokenizer(question)['input_ids'])
  if made.config.model_type == 'modernbert':
    ids.pop('token_type_ids', None)
  with torch.no_grad():
    out = made(**ids)
  start, end = out.start_logits[0].double().numpy(), out.end_logits[0].double().numpy()
  inside = range(of_question, len(start) - 1)
  score, i, j = max((start[i] + end[j], i, j) for i in inside for j in inside if i <= j < i + most)
  words = tokenizer.convert_ids_to_tokens(ids['input_ids'][0])
  return words[i : j + 1], start[0] + end[0] - score


@pytest.mark.parametrize('family, most', [('electra', 30), ('modern', 2)])
def test_answers_are_those_of_the_best_pair_of_logits(tmp_path, family, most):
  made = folder_of(tmp_path / 'hf', family, 'span')
  run = adopted(tmp_path, tmp_path / 'hf', 'squad2', **{'data.max_answer': most, 'head.beam': 3})
  questions = [
    {'question': TEXTS[i % 3], 'context': ' '.join(finetune_files.WORDS[i % 5 :][: 4 + i])}
    for i in range(6)
  ]
  (tmp_path / 'q.jsonl').write_text('\n'.join(map(json.dumps, questions)))
  tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path / 'hf')
  expected = [
    expected_answer(made, tokenizer, row['question'], row['context'], most) for row in questions
  ]
  odds = [null for _, null in expected]
  threshold = (sorted(odds)[2] + sorted(odds)[3]) / 2
  middle = dataclasses.replace(run, task=run.task.tuned({'best_f1_thresh': threshold}))
  for given in (run, middle):
    for row, (words, null) in zip(given(str(tmp_path / 'q.jsonl')), expected, strict=True):
      np.testing.assert_allclose(row['null_odds'], null, rtol=1e-4, atol=1e-5)
      assert row['n_best'][0]['text'] == ' '.join(words)
      assert row['answer'] == ('' if null > given.task.threshold else ' '.join(words))
  # Release 5 of transformers has no pipeline for questions.
  for one, row, (words, _) in zip(run.predict(questions), questions, expected, strict=True):
    assert one.candidates[0].text == ' '.join(words)
    assert all(row['context'][span.start : span.end] == span.text for span in one.candidates)


@pytest.fixture
def pipeline():
  """A pipeline of transformers for a folder that `folder_of` wrote."""

  def make(task, folder, made, **options):
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    return transformers.pipeline(task, model=made, tokenizer=tokenizer, device='cpu', **options)

  return make


def test_predictions_are_those_of_the_pipeline_for_text_classification(tmp_path, pipeline):
  names = {0: 'good', 1: 'so so', 2: 'bad'}
  made = folder_of(tmp_path / 'hf', 'electra', 'classification', id2label=names)
  run = adopted(tmp_path, tmp_path / 'hf', 'classification', **{'data.pair': 'second'})
  theirs = pipeline('text-classification', tmp_path / 'hf', made, top_k=None)
  pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
  items = [{'text': first, 'text_pair': second} for first, second in pairs]
  assert run.predict(pairs) == run.predict(items)
  for ours, expected in zip(run.predict(pairs), theirs(items), strict=True):
    assert ours.label == expected[0]['label']
    for one in expected:
      np.testing.assert_allclose(ours.probabilities[one['label']], one['score'], rtol=2e-5)


def test_entities_are_those_of_the_pipeline_for_token_classification(tmp_path, pipeline):
  names = dict(enumerate(['O', 'B-X', 'I-X', 'B-Y', 'I-Y']))
  made = folder_of(tmp_path / 'hf', 'electra', 'tagging', id2label=names)
  run = adopted(tmp_path, tmp_path / 'hf', 'ner', max_length=64)
  theirs = pipeline('token-classification', tmp_path / 'hf', made, aggregation_strategy='first')
  rng = np.random.default_rng(0)
  texts = ['  '.join(rng.choice(finetune_files.WORDS, 12)) for _ in range(6)]
  count = 0
  for text, ours, expected in zip(texts, run.predict(texts), theirs(texts), strict=True):
    found = [(one.type, one.start, one.end, one.text) for one in ours.entities]
    assert found == [
      (one['entity_group'], one['start'], one['end'], text[one['start'] : one['end']])
      for one in expected
    ]
    np.testing.assert_allclose(
      [one.probability for one in ours.entities], [one['score'] for one in expected], rtol=1e-4
    )
    count += len(found)
  assert count > 5


def test_squad_with_its_data_is_scored(tmp_path, capsys):
  folder_of(tmp_path / 'hf', 'electra', 'span')
  data = finetune_files.squad(tmp_path / 'squad', '2.0')
  adopted(tmp_path, tmp_path / 'hf', 'squad2', **{'data.source': str(data)})
  predict(str(tmp_path / 'run'), source=None, task=None, split='dev', output=str(tmp_path / 'out'))
  assert 'best_f1 ' in capsys.readouterr().out
  assert len(json.loads((tmp_path / 'out' / 'squad2.dev' / 'predictions.json').read_text())) == 6


def test_labels_are_put_in_the_order_of_the_task(tmp_path, capsys):
  made = folder_of(
    tmp_path / 'hf',
    'electra',
    'classification',
    id2label={0: 'NEUTRAL', 1: 'CONTRADICTION', 2: 'ENTAILMENT'},
  )
  data = finetune_files.glue(tmp_path / 'glue')
  run = adopted(tmp_path, tmp_path / 'hf', 'mnli', max_length=32, **{'data.source': str(data)})
  assert (
    run.task.labels == ('contradiction', 'entailment', 'neutral')
    and 'in the order of the task' in capsys.readouterr().out
  )
  examples = run.task.read(str(data / 'MNLI' / 'dev_matched.tsv'))
  predict(str(tmp_path / 'run'), source=None, task=None, split='dev', output=str(tmp_path / 'out'))
  rows = read_lines(tmp_path / 'out' / 'mnli.dev.jsonl')
  for one, logits in zip(
    rows,
    torch_logits(made, tmp_path / 'hf', [e.first for e in examples], [e.second for e in examples]),
    strict=True,
  ):
    assert one['label'] == ('neutral', 'contradiction', 'entailment')[int(logits.argmax())]
  right = np.mean(
    [one['label'] == run.task.labels[e.target] for one, e in zip(rows, examples, strict=True)]
  )
  assert f'accuracy {right:.4f}' in capsys.readouterr().out


def test_labels_without_names_are_those_of_the_task_with_a_note(tmp_path, capsys):
  folder_of(tmp_path / 'hf', 'electra', 'classification', num_labels=2)
  data = finetune_files.glue(tmp_path / 'glue')
  run = adopted(tmp_path, tmp_path / 'hf', 'cola', **{'data.source': str(data)})
  assert run.task.labels == ('0', '1') and 'LABEL_0 is 0, LABEL_1 is 1' in capsys.readouterr().out
  (tmp_path / 'train.csv').write_text('text,label\nbako,up\nsalo,down\n')
  adopt(
    config_of(tmp_path / 'hf', 'classification', **{'data.train': str(tmp_path / 'train.csv')}),
    str(tmp_path / 'own'),
  )
  assert electra_jax.load(tmp_path / 'own').task.labels == ('down', 'up')
  adopt(config_of(tmp_path / 'hf', 'classification'), str(tmp_path / 'plain'))
  assert electra_jax.load(tmp_path / 'plain').task.labels == ('LABEL_0', 'LABEL_1')


def test_weights_survive_import_and_export_bit_for_bit(tmp_path):
  folder_of(tmp_path / 'hf', 'modern', 'tagging', id2label=dict(enumerate('abcde')))
  run = adopted(tmp_path, tmp_path / 'hf', 'tagging')
  theirs, ours = huggingface.read_weights(str(tmp_path / 'hf')), run.weights()
  assert same_bits(ours.params, theirs.params) and same_bits(ours.head.params, theirs.head.params)
  assert ours.head.labels == theirs.head.labels and ours.discriminator.vocab_size == len(VOCABULARY)
  files = huggingface.model_files(ours, 'finetuned')
  assert hf_files.opened(files, tmp_path / 'again', 'tagging', 'modern').config.id2label == dict(
    enumerate('abcde')
  )


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Folders by kind of model."""
  base = tmp_path_factory.mktemp('folders')
  for kind in ('classification', 'tagging', 'discriminator', 'generator'):
    folder_of(base / kind, 'electra', kind)
  folder_of(base / 'one type', 'electra', 'classification', type_vocab_size=1)
  folder_of(base / 'bare', 'electra', 'discriminator', tokenizer=False)
  folder_of(base / 'more', 'electra', 'discriminator', vocab_size=len(VOCABULARY) + 1000)
  folder_of(base / 'padded', 'electra', 'discriminator', vocab_size=-(-len(VOCABULARY) // 8) * 8)
  return base


@pytest.mark.parametrize(
  'kind, task, fields, message',
  [
    (
      'tagging',
      'cola',
      {},
      'is a model for tagging, and cola is classification; set --config.task=ner',
    ),
    ('classification', 'pos', {}, 'is a model for classification, and pos is tagging'),
    ('discriminator', 'cola', {}, 'has no head of a task'),
    ('classification', 'cola', {}, 'has 3 labels without names, and cola has 2: 0, 1'),
    ('tagging', 'ner', {}, 'ner requires tags of entities .* set --config.task=tagging'),
    ('classification', 'cola,rte', {}, 'config.task is cola, rte; expected one task'),
    ('classification', 'classification', {'init': 'runs/x'}, "config.init is 'runs/x'"),
    (
      'one type',
      'classification',
      {'data.pair': 'pair'},
      'classification has two texts per row, .* and the encoder has 1',
    ),
    ('classification', 'classification', {'data.dev': 'nowhere.csv'}, 'nowhere.csv'),
  ],
)
def test_models_that_cannot_be_imported_are_reported_in_one_sentence(
  folders, tmp_path, kind, task, fields, message
):
  with pytest.raises(UserError, match=message) as error:
    adopt(config_of(folders / kind, task, **fields), str(tmp_path / 'run'))
  assert '\n' not in str(error.value) and not (tmp_path / 'run' / 'encoder.json').exists()


def test_the_message_names_labels_of_another_task(tmp_path):
  folder_of(tmp_path / 'hf', 'electra', 'classification', id2label={0: 'spam', 1: 'ham'})
  with pytest.raises(UserError, match='has the labels spam, ham, and sst2 has 0, 1'):
    adopt(config_of(tmp_path / 'hf', 'sst2'), str(tmp_path / 'run'))
  (tmp_path / 'dev.csv').write_text('text,label\nbako,eggs\n')
  with pytest.raises(UserError, match="'eggs'"):
    adopt(
      config_of(tmp_path / 'hf', 'classification', **{'data.dev': str(tmp_path / 'dev.csv')}),
      str(tmp_path / 'run'),
    )


def test_complete_runs_are_not_replaced_and_incomplete_ones_are(folders, tmp_path):
  config = config_of(folders / 'classification', 'classification')
  run = tmp_path / 'run'
  adopt(config, str(run))
  with pytest.raises(UserError, match='holds a run already'):
    adopt(config, str(run))
  (run / 'classification' / 'kept.json').unlink()
  adopt(config, str(run))
  assert electra_jax.load(run).imported
  saved = default_config()
  saved.update(json.loads((run / 'config.json').read_text()))
  with pytest.raises(UserError, match=f'--config.init={run}/classification'):
    run_finetuning(saved, str(run))


#### Fine-tuning from files of transformers ####


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return finetune_files.glue(tmp_path_factory.mktemp('data') / 'glue')


def started(source):
  """Returns what fine-tuning is initialized from."""
  return initial.open_initial(FinetuningConfig().replace({'init': source}))


@pytest.mark.long
def test_all_trials_have_the_same_initial_weights_and_do_not_need_the_folder_afterwards(
  folders, data, tmp_path, capsys
):
  shutil.copytree(folders / 'classification', tmp_path / 'hf')
  run, config = (
    tmp_path / 'run',
    config_of(
      tmp_path / 'hf',
      'cola',
      num_trials=2,
      **{'data.source': str(data), 'head.style': 'transformers'},
    ),
  )
  # With this learning rate the trained encoder equals the initial one.
  config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-30, 0.0
  assert run_finetuning(config, str(run)) == 0
  out = capsys.readouterr().out
  assert f'hf:{tmp_path}/hf' in out and 'the head for classification is not used' in out
  theirs = huggingface.read_weights(str(tmp_path / 'hf'))
  origin = json.loads((run / 'encoder.json').read_text())['origin']
  assert origin['run'] == config.init and origin['checksum'] == initial.checksum(
    {name: theirs.params[name] for name in ('discriminator', 'embeddings')}
  )

  # Later trials require the same weights.
  typed = freeze(FinetuningConfig, config)
  assert initial.open_initial(typed, origin).origin == origin
  hf_files.saved(
    hf_files.model(
      'electra', 'discriminator', seed=5, vocab_size=len(VOCABULARY), max_position_embeddings=64
    ),
    tmp_path / 'hf',
  )
  with pytest.raises(UserError, match='has other weights than those that the run started from'):
    initial.open_initial(typed, origin)
  with pytest.raises(UserError, match='has other weights'):
    run_finetuning(config, str(run))

  shutil.rmtree(tmp_path / 'hf')
  for trial in (1, 2):
    (run / 'cola' / 'kept.json').write_text(json.dumps({'trials': [trial]}))
    opened = electra_jax.load(run)
    weights = opened.weights()
    assert same_bits(weights.params, theirs.params) and weights.head.params['dense'][
      'bias'
    ].shape == (2,)
  (tmp_path / 'texts.txt').write_text('\n'.join(TEXTS) + '\n')
  assert len(opened(str(tmp_path / 'texts.txt'))) == len(TEXTS)


def test_padding_rows_of_a_vocabulary_are_removed_with_a_note(folders):
  start = started(f'hf:{folders}/padded')
  assert any('rows that pad the vocabulary' in note for note in start.notes)
  assert start.weights['embeddings']['word'].shape == (len(VOCABULARY), 12)
  shapes = {'embeddings': {'word': jax.ShapeDtypeStruct((128, 12), np.float32)}}
  restored = dataclasses.replace(
    start, weights={'embeddings': {'word': start.weights['embeddings']['word']}}
  ).restore(shapes, {'embeddings': {'word': jax.sharding.SingleDeviceSharding(jax.devices()[0])}})[
    'embeddings'
  ]['word']
  assert not np.asarray(restored)[len(VOCABULARY) :].any() and np.array_equal(
    restored[: len(VOCABULARY)], start.weights['embeddings']['word']
  )


@pytest.mark.parametrize(
  'kind, message',
  [
    ('generator', 'has a generator but no discriminator'),
    ('bare', 'has no tokenizer; add its files'),
    ('more', f'has embeddings of 1,0{len(VOCABULARY)} tokens and a tokenizer of {len(VOCABULARY)}'),
    ('nowhere', 'nowhere'),
  ],
)
def test_unsuitable_initial_weights_are_reported_in_one_sentence(folders, kind, message):
  with pytest.raises(UserError, match=message):
    started(f'hf:{folders}/{kind}')


def test_fresh_weights_have_the_sizes_of_a_folder(folders):
  config = FinetuningConfig().replace({'init': 'none', 'like': f'hf:{folders}/discriminator'})
  start = initial.open_initial(config)
  assert (
    start.weights is None
    and start.model.hidden_size == 16
    and start.tokenizer.size == len(VOCABULARY)
  )


def test_a_checkpoint_of_the_original_initializes_fine_tuning(folders, tmp_path):
  from electra_jax.interop import google

  weights = huggingface.read_weights(str(folders / 'discriminator'))
  google.write_checkpoint(weights, str(tmp_path / 'tf' / 'model.ckpt-7'))
  shutil.copy(folders / 'discriminator' / 'vocab.txt', tmp_path / 'tf')
  start = started(f'tf:{tmp_path}/tf;heads=2')
  assert same_bits(
    start.weights, {name: weights.params[name] for name in ('embeddings', 'discriminator')}
  )
  assert start.model.num_heads == 2 and start.tokenizer.size == len(VOCABULARY)


def test_a_resumed_run_is_computed_as_its_earlier_start_recorded(folders, tmp_path):
  run, config = tmp_path / 'run', config_of(folders / 'discriminator', 'cola')
  first = resolve_finetuning(config, run)
  run_files.claim_finetuning(run, first.config)
  assert train.open_encoder(first, 'float32').model.dropout_generator == 'counter'
  # As version 0.1.0 wrote it, when dropout had another default.
  written = json.loads((run / 'encoder.json').read_text())
  written['model']['dropout_generator'] = 'hash'
  del written['model']['dropout_scale']
  (run / 'encoder.json').write_text(json.dumps(written))
  (run / 'cola' / 'trial-1').mkdir(parents=True)
  for _ in range(2):
    resumed = train.open_encoder(resolve_finetuning(config, run), 'float32').model
    assert (resumed.dropout_generator, resumed.dropout_scale) == ('hash', 'dtype')
  again = train.open_encoder(resolve_finetuning(config, tmp_path / 'another'), 'float32').model
  assert again.dropout_generator == 'counter'


def test_import_and_prediction_do_not_require_torch_or_transformers(tmp_path):
  made = folder_of(tmp_path / 'hf', 'electra', 'classification', id2label={0: 'good', 1: 'bad'})
  (tmp_path / 'texts.txt').write_text('\n'.join(TEXTS) + '\n')
  commands = [
    [
      '--mode=import',
      '--config=configs/finetune/own.py',
      f'--config.init=hf:{tmp_path}/hf',
      f'--workdir={tmp_path}/run',
    ],
    [
      '--mode=predict',
      f'--workdir={tmp_path}/run',
      f'--input={tmp_path}/texts.txt',
      f'--output={tmp_path}/predicted.jsonl',
    ],
  ]
  program = (
    "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
    'from electra_jax.main import main\n'
    + ''.join(f'assert main({["main", *command]!r}) == 0\n' for command in commands)
  )
  ended = subprocess.run(
    [sys.executable, '-c', program],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags.QUICK},
  )
  assert ended.returncode == 0, ended.stderr
  assert 'labels good, bad' in ended.stdout
  for row, logits in zip(
    read_lines(tmp_path / 'predicted.jsonl'),
    torch_logits(made, tmp_path / 'hf', TEXTS),
    strict=True,
  ):
    np.testing.assert_allclose(
      row['probabilities']['good'], 1 / (1 + np.exp(logits[1] - logits[0])), rtol=2e-5
    )
