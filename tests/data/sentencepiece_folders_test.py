"""Folders of transformers with a SentencePiece model only: ids and text of their class."""

import json

import foreign_tokenizers
import made_tokenizers
import pytest

from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError
from electra_jax.interop import tokenizer_files

transformers = pytest.importorskip('transformers', reason='compares with transformers')

TEXTS = [text for text in foreign_tokenizers.TEXTS if '\0' not in text and len(text) < 100]


def model(**options):
  lines = foreign_tokenizers.lines()
  defaults = {'vocab_size': 600, 'character_coverage': 1.0, 'num_threads': 1}
  return made_tokenizers.sentencepiece_model(lines, **defaults | options)


ALBERT = {
  'pad_id': 0,
  'unk_id': 1,
  'bos_id': -1,
  'eos_id': -1,
  'pad_piece': '<pad>',
  'control_symbols': ['[CLS]', '[SEP]', '[MASK]'],
}
DEBERTA = {
  'pad_id': 0,
  'bos_id': 1,
  'eos_id': 2,
  'unk_id': 3,
  'pad_piece': '[PAD]',
  'bos_piece': '[CLS]',
  'eos_piece': '[SEP]',
  'unk_piece': '[UNK]',
}
T5 = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
LLAMA = {'model_type': 'bpe', 'byte_fallback': True, 'normalization_rule_name': 'identity'}
GEMMA = LLAMA | {
  'pad_id': 0,
  'eos_id': 1,
  'bos_id': 2,
  'unk_id': 3,
  'pad_piece': '<pad>',
  'bos_piece': '<bos>',
  'eos_piece': '<eos>',
  'control_symbols': ['<mask>'],
}


def write(folder, name, content, **files):
  folder.mkdir()
  (folder / name).write_bytes(content)
  for stem, described in files.items():
    (folder / f'{stem}.json').write_text(json.dumps(described))
  return folder


def ordinary_ids(theirs, texts):
  return theirs(texts, add_special_tokens=False)['input_ids']


def test_xlm_roberta_has_the_ids_of_fairseq(tmp_path):
  settings = {'tokenizer_class': 'XLMRobertaTokenizer'}
  content = model()
  folder = write(tmp_path / 'a', 'sentencepiece.bpe.model', content, tokenizer_config=settings)
  ours = tokenization.load_tokenizer(folder)
  assert ours.tokens[:4] == ('<s>', '<pad>', '</s>', '<unk>') and ours.tokens[-1] == '<mask>'
  assert ours.size == 602
  plain = tokenization.load_tokenizer(
    write(tmp_path / 'b', 'm.model', content) / 'm.model', add_special_tokens=True
  )
  for text in TEXTS:  # each id is one more than that of the model, except those of special tokens
    known = [i + 1 for i in plain.encode(text) if i != plain.unk_id]
    assert [i for i in ours.encode(text) if i != ours.unk_id] == known
  ours.save(tmp_path / 'saved')
  assert tokenization.load_tokenizer(tmp_path / 'saved').fingerprint == ours.fingerprint


@pytest.mark.parametrize('described', ['tokenizer_config', 'config'])
def test_albert_lowercases_and_strips_accents(tmp_path, described):
  fields = {'tokenizer_class': 'AlbertTokenizer', 'do_lower_case': True, 'keep_accents': False}
  files = {described: fields if described == 'tokenizer_config' else {'model_type': 'albert'}}
  folder = write(tmp_path / 'a', 'spiece.model', model(**ALBERT), **files)
  ours = tokenization.load_tokenizer(folder)
  assert ours.encode("The NAÏVE ``Cafe\u0301''") == ours.encode('the naive "cafe"')
  assert [ours.tokens[i] for i in (ours.pad_id, ours.cls_id, ours.mask_id)] == [
    '<pad>',
    '[CLS]',
    '[MASK]',
  ]
  for name, content in tokenizer_files.files(ours, 64, True).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert ordinary_ids(theirs, TEXTS) == ours.encode_batch(TEXTS)
  ours.save(tmp_path / 'saved')
  assert tokenization.load_tokenizer(tmp_path / 'saved').fingerprint == ours.fingerprint


def test_the_settings_of_an_albert_folder_count(tmp_path):
  settings = {'tokenizer_class': 'AlbertTokenizer', 'do_lower_case': False, 'keep_accents': True}
  folder = write(tmp_path / 'a', 'spiece.model', model(**ALBERT), tokenizer_config=settings)
  ours = tokenization.load_tokenizer(folder)
  assert ours.encode('The') != ours.encode('the') and ours.encode("''") == ours.encode('"')


@pytest.mark.parametrize('added', [{}, {'added_tokens': {'[MASK]': 600}}])
def test_deberta_has_its_mask_after_the_model(tmp_path, added):
  folder = write(
    tmp_path / 'a',
    'spm.model',
    model(**DEBERTA),
    tokenizer_config={'tokenizer_class': 'DebertaV2Tokenizer'},
    **added,
  )
  ours = tokenization.load_tokenizer(folder)
  assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.unk_id, ours.mask_id) == (0, 1, 2, 3, 600)
  assert ours.mask_id not in ours.encode('[MASK]')


def test_t5_has_its_extra_tokens_in_descending_order(tmp_path):
  settings = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 3}
  folder = write(tmp_path / 'a', 'spiece.model', model(**T5), tokenizer_config=settings)
  with pytest.raises(UserError, match=r'lacks \[CLS\] or .*, \[MASK\] or <mask>; .*add_special'):
    tokenization.load_tokenizer(folder)
  ours = tokenization.load_tokenizer(folder, add_special_tokens=True)
  assert ours.tokens[600:] == ('<extra_id_2>', '<extra_id_1>', '<extra_id_0>', '<s>', '<mask>')


@pytest.mark.parametrize('options', [LLAMA, GEMMA], ids=['llama', 'gemma'])
def test_bpe_models_with_bytes_are_read_and_exported(tmp_path, options):
  lines = {'vocab_size': 900}
  folder = write(tmp_path / 'a', 'tokenizer.model', model(**options, **lines))
  ours = tokenization.load_tokenizer(folder, add_special_tokens=True)
  assert ours.kind == 'sentencepiece' and len(set(ours.special_ids)) == 5
  for name, content in tokenizer_files.files(ours, 64, False).items():
    (tmp_path / name).write_bytes(content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert ordinary_ids(theirs, TEXTS) == ours.encode_batch(TEXTS)
  assert all(ours.unk_id not in row for row in ours.encode_batch(TEXTS))


def test_a_pipeline_beside_a_foreign_model_counts(tmp_path):
  folder = foreign_tokenizers.write('albert', tmp_path / 'a')
  (folder / 'spiece.model').write_bytes(model(**ALBERT))
  assert tokenization.load_tokenizer(folder).kind == 'pipeline'
