"""Every parser, given damaged and hostile files: success or one sentence, in bounded memory.

All files are read in one child process, whose memory is limited and which is killed where a file
takes it minutes. The cases are the same each time.
"""

import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import os
import pathlib
import random
import resource
import signal
import tarfile
import traceback
import warnings
import zipfile

import hypothesis
import made_tokenizers
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import strategies as st

from electra_jax import json_reader
from electra_jax.config import PretrainingConfig
from electra_jax.data.corpus import corpora, dataset_metadata
from electra_jax.data.prepare import blocks, finished
from electra_jax.data.store import token_store
from electra_jax.data.tokenizers import sentencepiece_model, tokenization, vocabulary
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import conll, squad_data, tables
from electra_jax.interop import google, hf_config, huggingface, tensor_files
from electra_jax.pretrain import minimal_pairs
from electra_jax.sweep import results
from electra_jax.training import encoders, plugins, progress, run_folder, versions

MEMORY = 3 << 30  # bytes that the child may use beyond what it has at the start
SECONDS = 60  # for one file, before the child is killed
SHORT, LONG = 12, 1500  # cases of each parser

TEXT = ''.join(f'line {i} of a text, caf\u00e9 \u4e2d\u6587\n\n' for i in range(40))
SENTENCES = [{'text': 'a b', 'label': 'x', 'pair': 'c'}, {'text': 'd', 'label': 'y', 'pair': 'e'}]
PAIRS = [{'sentence_good': 'a b', 'sentence_bad': 'b a', 'UID': 'order', 'field': 'f'}] * 3
QUESTIONS = {
  'data': [
    {
      'paragraphs': [
        {
          'context': 'the chef ate',
          'qas': [
            {'id': '1', 'question': 'who', 'answers': [{'text': 'chef', 'answer_start': 4}]},
            {'id': '2', 'question': 'when', 'answers': [], 'is_impossible': True},
          ],
        }
      ]
    }
  ]
}
CONLL = ''.join(f'word{i}\tNN\tB-X\n' + '\n' * (i % 3 == 0) for i in range(20))
CONFIG = {
  'model_type': 'electra',
  'architectures': ['ElectraForPreTraining'],
  'vocab_size': 20,
  'embedding_size': 4,
  'hidden_size': 8,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 8,
  'max_position_embeddings': 8,
  'type_vocab_size': 2,
  'layer_norm_eps': 1e-12,
  'id2label': {'0': 'a', '1': 'b'},
}
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
WORDS = [*SPECIAL, *'abcdefgh', *(f'##{c}' for c in 'abcdefgh'), 'the', 'chef']
PIPELINE = {
  'added_tokens': [{'id': len(WORDS), 'content': '<new>', 'special': False}],
  'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'lowercase': True},
  'pre_tokenizer': {'type': 'BertPreTokenizer'},
  'model': {
    'type': 'WordPiece',
    'continuing_subword_prefix': '##',
    'max_input_chars_per_word': 100,
    'vocab': {word: i for i, word in enumerate(WORDS)},
  },
}
FEATURES = {
  'pythonClassName': 'tensorflow_datasets.core.features.features_dict.FeaturesDict',
  'featuresDict': {
    'features': {
      'text': {
        'pythonClassName': 'tensorflow_datasets.core.features.text_feature.Text',
        'text': {},
      }
    }
  },
}
INFO = {'name': 'x', 'fileFormat': 'tfrecord', 'splits': [{'name': 'train', 'shardLengths': ['1']}]}
RESULT = {
  'run': 'a',
  'seed': 0,
  'digest': 'd',
  'fields': {},
  'tasks': {'t': {'fields': {}}},
  'heldout': {'loss': 1.0},
  'flops': 1e9,
}


#### The files, and what reads them ####


def lines_of(values):
  return ''.join(json.dumps(value) + '\n' for value in values).encode()


def npy():
  out = io.BytesIO()
  np.save(out, np.arange(12, dtype=np.int32).reshape(3, 4))
  return out.getvalue()


def tagged_table(kind):
  """A table with tags of datasets' ClassLabel, as Parquet or as a stream of Arrow."""
  feature = {'feature': {'names': ['O', 'B-X'], '_type': 'ClassLabel'}, '_type': 'List'}
  metadata = {'huggingface': json.dumps({'info': {'features': {'ner_tags': feature}}})}
  columns = {'tokens': [['a', 'b'], ['c']] * 20, 'ner_tags': [[0, 1], [0]] * 20}
  table = pyarrow.table(columns).replace_schema_metadata(metadata)
  out = io.BytesIO()
  if kind == 'parquet':
    pyarrow.parquet.write_table(table, out)
  else:
    with pyarrow.ipc.new_stream(out, table.schema) as writer:
      writer.write_table(table)
  return out.getvalue()


def parquet():
  out = io.BytesIO()
  table = pyarrow.table({'text': ['a text', 'another', None] * 20, 'n': list(range(60))})
  pyarrow.parquet.write_table(table, out, compression='zstd')
  return out.getvalue()


def tar_of_pairs():
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    info = tarfile.TarInfo('data/order.jsonl')
    content = lines_of(PAIRS)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
  return out.getvalue()


def torch_file(legacy):
  import torch

  out = io.BytesIO()
  state = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(4, dtype=torch.int64)}
  torch.save(state, out, _use_new_zipfile_serialization=not legacy)
  return out.getvalue()


@functools.cache
def trained_model():
  lines = made_tokenizers.documents()[0].split('\n')[:200]
  names = {'pad_id': 0, 'unk_id': 1, 'bos_id': -1, 'eos_id': -1}
  special = {'control_symbols': ['[CLS]', '[SEP]', '[MASK]'], 'pad_piece': '[PAD]'}
  return made_tokenizers.sentencepiece_model(lines, vocab_size=150, **names, **special)


def store(folder):
  rows = np.arange(64, dtype=np.int32).reshape(8, 8) % 30
  token_store.write_store(
    folder, [rows], length=8, vocab_size=30, pad_id=0, tokenizer_fingerprint='x', facts={}
  )


def documents(folder, name):
  return sum(map(len, corpora.read_documents(str(folder / name))))


def read_tokenizer(folder):
  tokenizer = tokenization.load_tokenizer(folder)
  tokenizer.encode('the chef, caf\u00e9')
  if 'tokenizer.model' in tokenizer.files:
    sentencepiece_model.parse_model(tokenizer.files['tokenizer.model'])


def read_sentences(folder, name):
  path = str(folder / name)
  return conll.read_sentences(path, conll.SentenceLayout())


def read_questions(folder, name):
  columns = squad_data.QuestionColumns('question', 'context', 'answers')
  return squad_data.read_questions(str(folder / name), 'auto', columns, True)


def read_weights(folder):
  return huggingface.read_weights(str(folder))


def run_files(folder):
  """The files of a run's folder that name and describe it."""
  run_folder.write_json(folder / 'config.json', json_of(PretrainingConfig()))
  run_folder.write_json(
    folder / 'versions.json', {'format': 1, 'started_with': {'jax': '1'}, 'last_run_with': {}}
  )


def json_of(config):
  from electra_jax.config import to_plain

  return to_plain(config)


def write(**files):
  """A function that writes files into a folder: name -> bytes, text or JSON value."""

  def make(folder):
    for name, content in files.items():
      if not isinstance(content, bytes | str):
        content = json.dumps(content)
      path = folder / name.replace('__', '.')
      path.write_bytes(content.encode() if isinstance(content, str) else content)

  return make


def make_weights(folder):
  import jax

  from electra_jax.interop.weights import Weights, expected_shapes

  fields = hf_config.ConfigFields('x', CONFIG)
  encoder = huggingface._architecture_of(fields).read_config(fields)
  weights = Weights('x', encoder, None, 'embeddings', params={})
  shapes = expected_shapes(weights)
  params = jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), shapes)
  weights = Weights('x', encoder, None, 'embeddings', params=params)
  for name, content in huggingface.model_files(weights, 'discriminator').items():
    (folder / name).write_bytes(content)


# name -> (what writes valid files into a folder, what reads them, the files to damage).
PARSERS = {
  'json': (write(a__json=PIPELINE), lambda f: json_reader.read(f / 'a.json'), ('a.json',)),
  'run': (
    run_files,
    lambda f: encoders.run_config(run_folder.folder(f)),
    ('config.json', 'versions.json'),
  ),
  'plugins': (
    write(plugins__json={'plugins': [{'kind': 'objective', 'name': 'a', 'file': 'b.py'}]}),
    plugins.require_recorded,
    ('plugins.json',),
  ),
  'versions': (run_files, versions.read_versions, ('versions.json',)),
  'metrics': (
    write(metrics__jsonl=lines_of([{'kind': 'train', 'step': i, 'x': 1.5} for i in range(9)])),
    progress.read_metrics,
    ('metrics.jsonl',),
  ),
  'results': (
    write(r__jsonl=lines_of([RESULT] * 3)),
    lambda f: [
      results.result_differences({'fields': {}, 'data': '', 'rows': 0, 'tasks': {}}, result)
      for result in results.read_results(f / 'r.jsonl')
    ],
    ('r.jsonl',),
  ),
  'store': (
    store,
    lambda f: token_store.open_store(str(f)),
    ('manifest.json', 'rows-00000.bin'),
  ),
  'facts': (
    write(facts__json={'format': finished.FORMAT}),
    lambda f: finished.read_facts(str(f)),
    ('facts.json',),
  ),
  'npy': (write(a__npy=npy()), lambda f: blocks.read_array(str(f / 'a.npy')), ('a.npy',)),
  'weights': (make_weights, read_weights, ('config.json', 'model.safetensors')),
  'torch': (
    lambda f: write(pytorch_model__bin=torch_file(False))(f),
    lambda f: tensor_files.read_tensors(str(f)),
    ('pytorch_model.bin',),
  ),
  'torch_legacy': (
    lambda f: write(pytorch_model__bin=torch_file(True))(f),
    lambda f: tensor_files.read_tensors(str(f)),
    ('pytorch_model.bin',),
  ),
  'index': (
    lambda f: write(
      pytorch_model__bin__index__json={'weight_map': {'a': 'x.bin', 'b': 'x.bin'}},
      x__bin=torch_file(False),
    )(f),
    lambda f: tensor_files.read_tensors(str(f)),
    ('pytorch_model.bin.index.json',),
  ),
  'hparams': (
    write(hparams__json={'model_hparam_overrides': {'num_attention_heads': 4}}),
    lambda f: google._recorded_heads(str(f / 'model.ckpt')),
    ('hparams.json',),
  ),
  'wordpiece': (
    write(
      vocab__txt='\n'.join(WORDS) + '\n',
      tokenizer_config__json={
        'do_lower_case': True,
        'tokenizer_class': 'BertTokenizer',
        'added_tokens_decoder': {'23': {'content': '<new>'}},
        'cls_token': {'content': '[CLS]'},
      },
      special_tokens_map__json={'sep_token': '[SEP]', 'additional_special_tokens': ['<a>']},
      added_tokens__json={'<b>': 24},
    ),
    read_tokenizer,
    ('vocab.txt', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'),
  ),
  'pipeline': (write(tokenizer__json=PIPELINE), read_tokenizer, ('tokenizer.json',)),
  'registered': (
    write(registered__json={'name': 'mine', 'file': 'a.py', 'options': None, 'files': ['a']}),
    lambda f: tokenization._open_registered(
      {tokenization.REGISTERED_FILE: str(f / 'registered.json')}, 'x'
    ),
    ('registered.json',),
  ),
  'sentencepiece': (
    lambda f: write(tokenizer__model=trained_model())(f),
    read_tokenizer,
    ('tokenizer.model',),
  ),
  'words': (write(w__txt='one\ntwo\n'), lambda f: vocabulary.read_words(f / 'w.txt'), ('w.txt',)),
  'tfds': (
    write(features__json=FEATURES, dataset_info__json=INFO),
    lambda f: dataset_metadata.check_metadata(f, 'x'),
    ('features.json', 'dataset_info.json'),
  ),
  'text': (write(a__txt=TEXT), lambda f: documents(f, 'a.txt'), ('a.txt',)),
  'gz': (
    write(a__txt__gz=gzip.compress(TEXT.encode())),
    lambda f: documents(f, 'a.txt.gz'),
    ('a.txt.gz',),
  ),
  'xz': (
    write(a__txt__xz=lzma.compress(TEXT.encode())),
    lambda f: documents(f, 'a.txt.xz'),
    ('a.txt.xz',),
  ),
  'bz2': (
    write(a__txt__bz2=bz2.compress(TEXT.encode())),
    lambda f: documents(f, 'a.txt.bz2'),
    ('a.txt.bz2',),
  ),
  'zst': (
    write(a__txt__zst=zstandard.compress(TEXT.encode())),
    lambda f: documents(f, 'a.txt.zst'),
    ('a.txt.zst',),
  ),
  'jsonl': (
    write(a__jsonl=lines_of(SENTENCES * 5)),
    lambda f: documents(f, 'a.jsonl'),
    ('a.jsonl',),
  ),
  'parquet': (write(a__parquet=parquet()), lambda f: documents(f, 'a.parquet'), ('a.parquet',)),
  'tsv': (
    write(a__tsv='text\tlabel\na b\tx\nc\ty\n'),
    lambda f: tables.read_table(str(f / 'a.tsv')),
    ('a.tsv',),
  ),
  'csv': (
    write(a__csv='text,label\n"a, ""b""",x\nc,y\n'),
    lambda f: tables.read_table(str(f / 'a.csv')),
    ('a.csv',),
  ),
  'table_jsonl': (
    write(a__jsonl=lines_of(SENTENCES)),
    lambda f: tables.read_table(str(f / 'a.jsonl')),
    ('a.jsonl',),
  ),
  'table_json': (
    write(a__json=SENTENCES),
    lambda f: tables.read_table(str(f / 'a.json')),
    ('a.json',),
  ),
  'table_parquet': (
    write(a__parquet=tagged_table('parquet')),
    lambda f: tables.read_table(str(f / 'a.parquet')),
    ('a.parquet',),
  ),
  'table_arrow': (
    write(a__arrow=tagged_table('arrow')),
    lambda f: tables.read_table(str(f / 'a.arrow')),
    ('a.arrow',),
  ),
  'conll': (write(a__conll=CONLL), lambda f: read_sentences(f, 'a.conll'), ('a.conll',)),
  'conll_jsonl': (
    write(a__jsonl=lines_of([{'tokens': ['a', 'b'], 'tags': ['O', 'B-X']}] * 3)),
    lambda f: read_sentences(f, 'a.jsonl'),
    ('a.jsonl',),
  ),
  'squad': (write(a__json=QUESTIONS), lambda f: read_questions(f, 'a.json'), ('a.json',)),
  'pairs': (
    write(a__jsonl=lines_of(PAIRS)),
    lambda f: minimal_pairs.read_pairs(str(f / 'a.jsonl')),
    ('a.jsonl',),
  ),
  'pairs_tar': (
    write(a__tar=tar_of_pairs()),
    lambda f: minimal_pairs.read_pairs(str(f / 'a.tar')),
    ('a.tar',),
  ),
  'pairs_tar_xz': (
    write(a__tar__xz=lzma.compress(tar_of_pairs())),
    lambda f: minimal_pairs.read_pairs(str(f / 'a.tar.xz')),
    ('a.tar.xz',),
  ),
}


#### Damage ####

NASTY = [
  *(None, True, -1, 0, 10**12, 10**400, 1.5, -1e308, '', 'x' * 3000, '../../etc/passwd', '\ud800'),
  *('\n; touch ran', 'NaN', [], {}, [[]], [None], {'': {}}, ['a', 1], {'a': 'b'}),
]
PIECES = [
  *(b'\0', b'\xff\xff\xff\xff', b'\xff' * 8, b'\x7f' + b'\xff' * 7, b'9' * 30, b'9' * 5000, b'NaN'),
  *(b'[' * 3000, b'{"a":' * 500, b'"', b'\\', b'\n', b'\t', b',', b'\\ud800', b'../../../'),
  *(b'\xed\xa0\x80', b'\xef\xbb\xbf', b'-1', b'1e999', b'\r', b'\x80', b'(' * 2000, b')' * 200),
]


def damaged(content, rng):
  """A file with some of its bytes changed, moved, removed or added."""
  content = bytearray(content)
  for _ in range(rng.choice((1, 1, 2, 4))):
    size = max(1, len(content))
    start = rng.randrange(size)
    end = min(size, start + rng.choice((1, 2, 8, 64, size)))
    kind = rng.randrange(7)
    if kind == 0:
      content[start:end] = b''
    elif kind == 1:
      del content[start:]
    elif kind == 2:
      content[start:start] = rng.choice(PIECES)
    elif kind == 3:
      content[start : start + 8] = rng.choice(PIECES)
    elif kind == 4:
      other = rng.randrange(size)
      content[start:start] = content[other : other + 100]
    elif content:
      for _ in range(rng.choice((1, 3, 20))):
        content[rng.randrange(len(content))] = rng.randrange(256)
  return bytes(content)


def replaced(value, rng):
  """A JSON value with one part replaced, removed, renamed or repeated."""
  places = []

  def visit(parent, key):
    places.append((parent, key))
    inner = parent[key]
    for name in (
      inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
    ):
      visit(inner, name)

  root = [json.loads(json.dumps(value))]
  visit(root, 0)
  parent, key = rng.choice(places)
  kind = rng.randrange(5)
  if kind == 0 and parent is not root:
    del parent[key]
  elif kind == 1 and isinstance(parent, dict):
    parent[rng.choice(('', 'x', key + ' '))] = parent.pop(key)
  else:
    parent[key] = rng.choice(NASTY)
  return root[0]


def harmed(name, content, rng):
  """A damaged file; in half of the cases it is still JSON, where it was."""
  if rng.random() < 0.5:
    with contextlib.suppress(ValueError):
      if name.endswith('.jsonl'):
        lines = [json.loads(line) for line in content.splitlines()]
        lines[rng.randrange(len(lines))] = replaced(rng.choice(lines), rng)
        return lines_of(lines)
      if name.endswith('.json'):
        return json.dumps(replaced(json.loads(content), rng)).encode()
  return damaged(content, rng)


#### The child process ####


class Wrong(Exception):
  """A parser did something else than succeed or raise one sentence."""


def attempt(read, folder):
  """Reads files, and returns the sentence; '' for success."""
  try:
    read(folder)
  except UserError as error:
    sentence = str(error)
    if '\n' in sentence or len(sentence) > 20_000:
      raise Wrong(f'not one sentence: {sentence[:300]!r}') from None
    return sentence
  return ''


def in_child(work, note):
  """Runs a function in a child process with limited memory; returns what it reports.

  Args:
    work: is called with a function to call before each file.
    note: a file in which the child names what it is reading.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # of a fork with threads; the child uses none of them
    child = os.fork()
  if child == 0:
    status = 1
    try:
      pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
      limit = pages * resource.getpagesize() + MEMORY
      resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
      resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
      signal.signal(signal.SIGALRM, signal.SIG_DFL)

      def before(what):
        signal.alarm(SECONDS)
        note.write_text(what)

      work(before)
      note.write_text('')
      status = 0
    except BaseException:
      with open(note, 'a') as out:
        out.write('\n' + traceback.format_exc()[-3000:])
    finally:
      os._exit(status)
  _, status = os.waitpid(child, 0)
  code = os.waitstatus_to_exitcode(status)
  assert code == 0, f'exit status {code} while reading {note.read_text()}'


def fuzz(tmp_path, cases, seed=0):
  """Reads damaged files with every parser, and fails with the first that goes wrong."""
  valid = {}
  for name, (make, _, files) in PARSERS.items():
    folder = tmp_path / name
    if name == 'store':
      make(folder)
    else:
      folder.mkdir()
      make(folder)
    valid[name] = {file: (folder / file).read_bytes() for file in files}

  def work(before):
    for name, (_, read, files) in PARSERS.items():
      folder = tmp_path / name
      before(f'{name}, undamaged')
      sentence = attempt(read, folder)
      if sentence and 'not registered' not in sentence:  # whose user code is not loaded
        raise Wrong(f'the valid file is refused: {sentence}')
      for case in range(cases):
        rng = random.Random(f'{seed} {name} {case}')
        file = rng.choice(files)
        content = harmed(file, valid[name][file], rng)
        (folder / file).write_bytes(content)
        before(f'{name}, case {case} of {file}: {content[:2000]!r}')
        attempt(read, folder)
        (folder / file).write_bytes(valid[name][file])

  in_child(work, tmp_path / 'note')


def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path):
  fuzz(tmp_path, SHORT)


@pytest.mark.faults
def test_many_damaged_files_are_read_or_refused_in_one_sentence(tmp_path):
  fuzz(tmp_path, LONG, seed=1)


#### Bombs, and texts that hypothesis makes ####


def bombs():
  """name of a parser -> (file, content) of small files that ask for very much."""
  big = 1 << 40
  zeros = bytes(1 << 26)
  header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (%d,), }" % big
  yield 'npy', 'a.npy', b'\x93NUMPY\x01\0' + len(header).to_bytes(2, 'little') + header
  yield 'npy', 'a.npy', npy().replace(b"'<i4'", b"'|O' ")
  for size in (b'\xff' * 8, b'\xff' * 7 + b'\x7f', (1 << 33).to_bytes(8, 'little')):
    yield 'weights', 'model.safetensors', size + b'{"a":{}}'
  for change in ({'hidden_size': big}, {'num_hidden_layers': 1 << 30}, {'vocab_size': 10**300}):
    yield 'weights', 'config.json', json.dumps(CONFIG | change).encode()
  yield 'weights', 'config.json', json.dumps(CONFIG | {'layer_norm_eps': 10**400}).encode()
  compressions = {'xz': lzma.compress, 'bz2': bz2.compress, 'zst': zstandard.compress}
  for suffix, compress in compressions.items():
    yield suffix, f'a.txt.{suffix}', compress(zeros) * 12
  yield 'gz', 'a.txt.gz', gzip.compress(zeros) * 12
  yield 'pairs_tar_xz', 'a.tar.xz', lzma.compress(zeros) * 40
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as out:
    out.writestr('archive/data.pkl', zeros)
  yield 'torch', 'pytorch_model.bin', archive.getvalue()
  yield 'store', 'manifest.json', b'{"format_version": ' + b'9' * 4000 + b'}'
  for parser in ('json', 'squad', 'table_json', 'tfds', 'run', 'pipeline', 'hparams', 'facts'):
    file = PARSERS[parser][2][0]
    for opening in (b'[', b'{"a":'):
      yield parser, file, opening * 200_000
  yield 'jsonl', 'a.jsonl', b'{"text": ' + b'[' * 200_000


def test_small_files_that_ask_for_very_much_are_refused(tmp_path):
  cases = list(bombs())
  for name, (make, _, _) in PARSERS.items():
    folder = tmp_path / name
    if name != 'store':
      folder.mkdir()
    make(folder)

  def work(before):
    for name, file, content in cases:
      path = tmp_path / name / file
      valid = path.read_bytes()
      path.write_bytes(content)
      before(f'{name}, {file}: {content[:100]!r}')
      if not attempt(PARSERS[name][1], tmp_path / name) and name != 'hparams':
        raise Wrong('it is accepted')
      path.write_bytes(valid)

  in_child(work, tmp_path / 'note')


TEXTS = st.text(st.sampled_from('{}[]",:0123456789.eE+-\\untrfalse\t\n\r#_ ab\u00e9\u2028\ud800\0'))
READERS = ('json', 'jsonl', 'table_jsonl', 'table_json', 'csv', 'tsv', 'conll', 'squad', 'pairs')


def test_texts_of_any_characters_are_read_or_refused(tmp_path):
  folders = {}
  for name in READERS:
    folders[name] = tmp_path / name
    folders[name].mkdir()

  def work(before):
    @hypothesis.settings(max_examples=40, database=None)
    @hypothesis.given(TEXTS)
    def check(text):
      for name, folder in folders.items():
        before(f'{name}: {text!r}')
        (folder / PARSERS[name][2][0]).write_bytes(text.encode('utf-8', 'surrogatepass'))
        attempt(PARSERS[name][1], folder)

    check()

  in_child(work, tmp_path / 'note')
