"""A run survives export, from_pretrained, save_pretrained and config.init=hf: bit for bit."""

import dataclasses
import json
import pathlib
import shutil

import encoder_formats
import foreign_tokenizers
import hf_runs
import made_run
import made_tokenizers
import pytest
import transformers

from electra_jax import export, main
from electra_jax.config import families
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.finetune.adopt import adopt
from electra_jax.finetune.finetuned import open_finetuned
from electra_jax.interop import huggingface, origins, own
from electra_jax.interop.weights import same_bits

FORMATS = encoder_formats.FORMATS | {
  'electra': encoder_formats.Format(
    'electra',
    'Electra',
    encoder_formats.FORMATS['bert'].fields | {'hidden_act': 'gelu'},
    types=True,
  )
}
TRAINED = {
  'wordpiece': {'normalization': 'original', 'lowercase': True},
  'wordpiece, auto': {'kind': 'wordpiece', 'normalization': 'auto'},
  'unigram': {'normalization': 'auto'},
  'unigram, bytes': {'kind': 'unigram', 'byte_fallback': True},
  'bpe': {'normalization': 'original'},
  'byte_level_bpe': {},
}
COMPLETE = [form for form in foreign_tokenizers.FORMS if form not in foreign_tokenizers.INCOMPLETE]
TEXTS = foreign_tokenizers.TEXTS


def tokenizer_of(kind, folder):
  if kind in foreign_tokenizers.FORMS:
    return load_tokenizer(foreign_tokenizers.write(kind, folder / kind))
  settings = {'kind': kind, 'vocab_size': 1000} | TRAINED[kind]
  return made_tokenizers.train(foreign_tokenizers.lines(), **settings)


def assert_same_ids(theirs, ours):
  assert theirs.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
  assert theirs.tokens == ours.tokens and theirs.special_ids == ours.special_ids


def run_of(family, kind, folder):
  """The folder of a run with random weights, in which both towers are as wide."""
  config = main.parse_flags(['main', '--config=tests/configs/micro.py']).config
  width = 16 if family in ('electra', 'albert') else 32
  config.model.update(family=family, embedding_size=width, max_positions=40, layer_norm_eps=1e-12)
  if families.FAMILIES[family].relative:
    config.model.position_buckets = 16
  config.generator.hidden_fraction = 1.0
  made_run.make(str(folder / 'run'), config, tokenizer_of(kind, folder))
  return folder / 'run'


# Each family and each kind of tokenizer at least once; the first pair is in every test run.
PAIRS = [('camembert', 'byte_level_bpe')]
LONG = [
  *((family, 'wordpiece') for family in FORMATS),
  *(('modern', kind) for kind in (*TRAINED, *COMPLETE)),
  *(('roberta', kind) for kind in ('unigram', 'xlm_roberta', 'roberta')),
  ('deberta-v2', 'deberta_v3'),
  ('albert', 'albert'),
]


def long(*values):
  return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(
  'family, kind', [*PAIRS, *(long(*pair) for pair in dict.fromkeys(LONG) if pair not in PAIRS)]
)
def test_a_pretrained_run_survives_with_its_tokenizer(family, kind, tmp_path):
  run = run_of(family, kind, tmp_path)
  export.export(str(run), str(tmp_path / 'out'))
  for tower in export.TOWERS:
    place, again = tmp_path / 'out' / tower, tmp_path / 'again' / tower
    transformers.AutoTokenizer.from_pretrained(place).save_pretrained(again)
    auto = 'MaskedLM' if tower == 'generator' else 'PreTraining' * (family == 'electra')
    auto = f'AutoModelFor{auto}' if auto else 'AutoModel'
    getattr(transformers, auto).from_pretrained(place).save_pretrained(again)
    if (place / huggingface.HEAD).exists():
      shutil.copy(place / huggingface.HEAD, again)
  before = own.read_weights(run, moments=False)
  expected = dict(before.params)
  if family == 'deberta-v2':  # transformers leaves its head out, which is in the model's file
    del expected['discriminator_head']
  weights, tokenizer = origins.with_tokenizer(
    origins.open_source(f'hf:{tmp_path / "again"}'), 'config.init'
  )
  assert same_bits(weights.params, expected) and weights.sharing == before.sharing
  assert_same_ids(tokenizer, load_tokenizer(run / 'tokenizer'))


#### Fine-tuned ####

LABELS = {0: 'good', 1: 'so so', 2: 'bad'}
# Class of transformers, fields of its config, task.
HEADS = {
  'classification': ('SequenceClassification', {'id2label': LABELS}, 'classification'),
  'multilabel': (
    'SequenceClassification',
    {'id2label': LABELS, 'problem_type': 'multi_label_classification'},
    'multilabel',
  ),
  'regression': (
    'SequenceClassification',
    {'num_labels': 1, 'problem_type': 'regression'},
    'regression',
  ),
  'tagging': ('TokenClassification', {'id2label': {0: 'O', 1: 'B-A', 2: 'I-A'}}, 'ner'),
  'span': ('QuestionAnswering', {}, 'squad2'),
  'choice': ('MultipleChoice', {}, 'choice'),
}
FORMS = {
  'modern': 'modernbert',
  'roberta': 'roberta',
  'xlm-roberta': 'xlm_roberta',
  'camembert': 'xlm_roberta',
  'deberta-v2': 'deberta_v3',
  'albert': 'albert',
}
FINE_TUNED = [('distilbert', 'choice')]


def source_of(family, head, folder):
  """A folder of transformers with a model of a class and the tokenizer of a form."""
  name, fields, _ = HEADS[head]
  if 'id2label' in fields:
    labels = fields['id2label']
    fields = fields | {'label2id': {text: i for i, text in labels.items()}}
  foreign_tokenizers.write(FORMS.get(family, 'bert'), folder)
  tokenizer = load_tokenizer(folder)
  fields = fields | {'vocab_size': tokenizer.size, 'pad_token_id': tokenizer.pad_id}
  fields |= {'bos_token_id': tokenizer.cls_id, 'eos_token_id': tokenizer.sep_id}
  if family == 'modern':
    fields |= {'cls_token_id': tokenizer.cls_id, 'sep_token_id': tokenizer.sep_id}
  model = FORMATS[family].model(f'For{name}', **fields)
  model.save_pretrained(folder)
  return folder


@pytest.mark.parametrize(
  'family, head',
  [
    *FINE_TUNED,
    *(
      long(family, head) for family in FORMATS for head in HEADS if (family, head) not in FINE_TUNED
    ),
  ],
)
def test_a_fine_tuned_run_survives_with_its_head_and_labels(family, head, tmp_path):
  name, _, task = HEADS[head]
  source = source_of(family, head, tmp_path / 'source')
  adopt(hf_runs.config_of(source, task), str(tmp_path / 'run'))
  export.export(str(tmp_path / 'run'), str(tmp_path / 'out'))
  model, loaded = getattr(transformers, f'AutoModelFor{name}').from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not loaded['missing_keys'] and not loaded['unexpected_keys'], loaded
  model.save_pretrained(tmp_path / 'again')
  transformers.AutoTokenizer.from_pretrained(tmp_path / 'out').save_pretrained(tmp_path / 'again')
  adopt(hf_runs.config_of(tmp_path / 'again', task), str(tmp_path / 'second'))
  first, second = open_finetuned(tmp_path / 'run'), open_finetuned(tmp_path / 'second')
  before, after = first.weights(), second.weights()
  assert same_bits(after.params, before.params) and same_bits(after.head.params, before.head.params)
  assert dataclasses.replace(after.head, params={}) == dataclasses.replace(before.head, params={})
  assert after.head.kind == head and second.task.labels == first.task.labels
  given = json.loads(pathlib.Path(source, 'config.json').read_text()).get('id2label')
  if head in ('classification', 'multilabel', 'tagging'):
    assert list(after.head.labels) == list(given.values())
  assert_same_ids(second.tokenizer, first.tokenizer)
