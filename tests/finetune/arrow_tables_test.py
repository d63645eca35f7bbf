"""Parquet, Arrow and folders of datasets are read as rows, with the names of classes.

tests/golden/saved_dataset was written by the datasets library.
"""

import json
import pathlib
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finetune_files import opened

from electra_jax.errors import UserError
from electra_jax.finetune.tasks import arrow_tables, tables

SAVED = pathlib.Path(__file__).parents[1] / 'golden' / 'saved_dataset'
ROWS = [
  {'tokens': ['Ann', 'Lee', 'ran'], 'ner_tags': ['B-PER', 'I-PER', 'O'], 'label': 'good'},
  {'tokens': ['it', 'is'], 'ner_tags': ['O', 'O'], 'label': 'bad'},
  {'tokens': ['Bob'], 'ner_tags': ['B-PER'], 'label': None},
]


def written(path, table, kind):
  if kind == 'parquet':
    pq.write_table(table, path)
  else:
    make = pa.ipc.new_file if kind == 'file' else pa.ipc.new_stream
    with pa.OSFile(str(path), 'wb') as out, make(out, table.schema) as writer:
      writer.write_table(table, max_chunksize=1)
  return str(path)


@pytest.mark.parametrize('path', ['train', 'train.parquet'])
def test_classes_of_a_saved_dataset_become_names(path):
  assert arrow_tables.read_arrow_rows(str(SAVED / path)) == ROWS


def test_a_folder_of_splits_is_a_source(tmp_path):
  task = opened('ner', source=str(SAVED))
  assert task.labels == ('O', 'B-PER', 'I-PER') and task.splits == ('train', 'dev')
  assert task.notes[0] == "columns: words 'tokens', tags 'ner_tags'"
  assert task.examples('dev')[0].tags == ('B-PER', 'I-PER', 'O')
  with pytest.raises(UserError, match="several splits: 'train', 'validation'; name the folder"):
    opened('ner', train=str(SAVED))


def test_columns_of_the_same_name_are_refused(tmp_path):
  table = pa.table([['a'], ['b'], ['x']], names=['text', 'text', 'label'])
  path = written(tmp_path / 'a.parquet', table, 'parquet')
  with pytest.raises(UserError, match="a.parquet' has two columns named 'text'; rename one"):
    arrow_tables.read_arrow_rows(path)


def test_decimals_are_numbers(tmp_path):
  column = pa.array([1, 2]).cast(pa.decimal128(20, 1))
  path = written(tmp_path / 'a.parquet', pa.table({'text': ['a', 'b'], 'label': column}), 'parquet')
  assert opened('classification', train=path).labels == ('1', '2')
  assert opened('regression', train=path).high == 2


def test_an_unknown_class_is_a_missing_label():
  with pytest.raises(UserError, match="row 3 of .* has no label: its column 'label' is null"):
    opened('classification', train=str(SAVED / 'train.parquet'), text='label')


@pytest.mark.parametrize(
  'kind, name', [('parquet', 'a.parquet'), ('file', 'a.arrow'), ('stream', 'a.arrow')]
)
def test_tables_of_all_formats_have_the_same_rows(tmp_path, kind, name):
  table = pa.table({'text': ['a', 'b'], 'label': pa.array(['x', 'y']).dictionary_encode()})
  path = written(tmp_path / name, table, kind)
  assert tables.read_table(path) == [
    tables.Row(1, {'text': 'a', 'label': 'x'}),
    tables.Row(2, {'text': 'b', 'label': 'y'}),
  ]
  task = opened('classification', train=path, dev=path)
  assert task.labels == ('x', 'y') and task.read(path) == task.examples('dev')
  other = tmp_path / 'a.dat'
  other.write_bytes(pathlib.Path(path).read_bytes())
  assert tables.read_table(str(other), 'parquet' if kind == 'parquet' else 'arrow') == (
    tables.read_table(path)
  )


def test_selected_rows_of_a_saved_dataset_are_read_in_their_order(tmp_path):
  folder = tmp_path / 'selected'
  shutil.copytree(SAVED / 'train', folder)
  state = json.loads((folder / 'state.json').read_text())
  state['_indices_data_files'] = [{'filename': 'indices.arrow'}]
  (folder / 'state.json').write_text(json.dumps(state))
  written(folder / 'indices.arrow', pa.table({'indices': pa.array([2, 0], pa.uint64())}), 'stream')
  assert arrow_tables.read_arrow_rows(str(folder)) == [ROWS[2], ROWS[0]]
  written(folder / 'indices.arrow', pa.table({'indices': pa.array([7], pa.uint64())}), 'stream')
  with pytest.raises(UserError, match='cannot be read'):
    arrow_tables.read_arrow_rows(str(folder))


@pytest.mark.parametrize('value', [None, float('nan'), float('inf')])
def test_a_label_that_is_null_or_not_finite_is_refused(tmp_path, value):
  labels = pa.array([1.0, 2.0, value], pa.float64(), from_pandas=False)
  path = written(
    tmp_path / 'a.parquet', pa.table({'text': list('abc'), 'label': labels}), 'parquet'
  )
  with pytest.raises(UserError, match="row 3 of the file .* has no label: its column 'label' is"):
    opened('classification', train=path, dev=path)


def test_damaged_files_and_folders_are_one_sentence(tmp_path):
  table = pa.table({'text': ['a'], 'label': ['x']})
  for kind, name in (('parquet', 'a.parquet'), ('file', 'a.arrow')):
    path = pathlib.Path(written(tmp_path / name, table, kind))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match='damaged or cut short'):
      tables.read_table(str(path))
  folder = tmp_path / 'saved'
  folder.mkdir()
  for files, message in (
    ([], 'lists no data files'),
    ([{'filename': '../x.arrow'}], 'expected files inside of its folder'),
    ([{'filename': 'x.arrow'}], "lacks 'x.arrow'"),
    ([{}], 'is not valid JSON'),
  ):
    (folder / 'state.json').write_text(json.dumps({'_data_files': files}))
    with pytest.raises(UserError, match=message):
      tables.read_table(str(folder))
  empty = written(tmp_path / 'e.parquet', table.slice(0, 0), 'parquet')
  with pytest.raises(UserError, match='has no rows'):
    tables.read_table(empty)
  binary = written(tmp_path / 'b.parquet', pa.table({'text': [b'\xff']}), 'parquet')
  with pytest.raises(UserError, match="row 1 of .* has in its column 'text' binary data"):
    tables.read_table(binary)
