"""Where documents begin in held-out rows, and the groups of rows that intervals resample."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_jax.data.prepare import packing
from electra_jax.data.prepare.preparation import prepare_corpus
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store import document_starts
from electra_jax.data.store.document_starts import MOST_GROUPS, group_rows
from electra_jax.data.store.token_store import open_store
from electra_jax.errors import UserError

PAD, CLS, SEP = 0, 2, 3


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(0, 90), max_size=20), row_length=st.integers(8, 40))
def test_packing_tells_where_each_document_with_tokens_begins(lengths, row_length):
  documents = [np.full(n, 10 + i) for i, n in enumerate(lengths)]
  starts = []
  rows = packing.pack(documents, row_length, CLS, SEP, PAD, document_starts=starts).reshape(-1)
  filled = [document for document in documents if len(document)]
  assert len(starts) == len(filled) and starts == sorted(set(starts))
  for start, end, document in zip(starts, [*starts, len(rows)][1:], filled, strict=True):
    inside = rows[start:end]
    assert inside[0] == CLS and (inside[inside >= 10] == document[0]).sum() == len(document)


@pytest.fixture(scope='module', params=['packed', 'segment_pair'])
def prepared(request, tmp_path_factory):
  """A small corpus, prepared from two files as one store; each word is a document's own."""
  folder = tmp_path_factory.mktemp('documents')
  rng = np.random.default_rng(0)
  texts = [
    '\n'.join(' '.join(rng.choice(list('abcdef'), 12)) for _ in range(rng.integers(1, 9)))
    for _ in range(60)
  ]
  (folder / 'text.txt').write_text('\n\n'.join(texts) + '\n')
  recipe = CorpusRecipe(
    source=str(folder / 'text.txt'),
    row_length=16,
    heldout_fraction=0.3,
    vocab_size=141,  # single characters only
    tokenizer='wordpiece',
    row_format=request.param,
  )
  return prepare_corpus(recipe, output=folder / 'out', cache=folder / 'cache', processes=1)


def test_preparation_records_the_documents_of_held_out_rows_beside_them(prepared):
  store = prepared.heldout
  starts = store.document_starts()
  rows = store.read(np.arange(store.rows)).reshape(-1)
  facts = prepared.facts['heldout']
  assert len(starts) == facts['documents'] - facts['empty_documents'] > 10
  assert (rows[starts] == CLS).all() and starts[0] == 0 and (np.diff(starts) > 0).all()
  if prepared.facts['recipe']['row_format'] == 'segment_pair':
    assert (starts % 16 == 0).all()
  assert prepared.train.document_starts() is None
  assert [s['heldout_rows'] for s in prepared.facts['sources']] == [store.rows]


def test_the_identity_of_a_store_does_not_depend_on_them(prepared, tmp_path):
  old = tmp_path / 'old'  # as version 0.1.0 left it
  shutil.copytree(prepared.heldout.path, old)
  (old / document_starts.FILE).unlink()
  manifest = json.loads((old / 'manifest.json').read_text())
  del manifest['documents']
  (old / 'manifest.json').write_text(json.dumps(manifest))
  store = open_store(old)
  assert store.identity == prepared.heldout.identity and store.document_starts() is None


def test_a_damaged_or_missing_file_is_named(prepared, tmp_path):
  folder = tmp_path / 'copy'
  shutil.copytree(prepared.heldout.path, folder)
  path = pathlib.Path(folder, document_starts.FILE)
  content = path.read_bytes()
  for damaged in (content[:-8], content[:8] + b'\x07' + content[9:]):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match='documents.bin is missing or damaged'):
      open_store(folder).document_starts()
  path.unlink()
  with pytest.raises(UserError, match='documents.bin is missing or damaged'):
    open_store(folder).document_starts()


#### Groups ####


def test_rows_of_one_document_are_in_one_group():
  # Documents of 3, 1, 2 and 4 rows of 10; the third begins and ends inside of rows.
  starts = np.array([0, 30, 42, 59])
  groups = group_rows(np.arange(10), 10, starts)
  assert groups.of_row.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
  assert (groups.unit, groups.count, groups.source_of.tolist()) == ('documents', 4, [0] * 4)


def test_of_some_rows_the_same_rows_are_together():
  starts = np.array([0, 30, 42, 59])
  groups = group_rows(np.array([0, 2, 4, 6, 8]), 10, starts)
  assert groups.of_row.tolist() == [0, 0, 1, 2, 2]


@settings(max_examples=50)
@given(
  sizes=st.lists(st.integers(1, 400), min_size=1, max_size=400),
  first_source=st.integers(0, 400),
)
def test_there_are_at_most_256_groups_of_consecutive_documents_and_of_one_source(
  sizes, first_source
):
  length = 20
  starts = np.cumsum([0, *sizes[:-1]])
  rows = -(-sum(sizes) // length)
  source_rows = [min(first_source, rows), rows - min(first_source, rows)]
  groups = group_rows(np.arange(rows), length, starts, source_rows)
  assert groups.count == groups.of_row[-1] + 1 <= MOST_GROUPS + 1
  assert set(np.diff(groups.of_row)) <= {0, 1}
  sources = np.repeat([0, 1], source_rows)
  np.testing.assert_array_equal(groups.source_of[groups.of_row], sources)


def test_many_rows_are_in_groups_of_about_equal_size():
  sizes = np.random.default_rng(0).integers(10, 300, 5000)
  starts = np.cumsum([0, *sizes[:-1]])
  groups = group_rows(np.arange(sizes.sum() // 50), 50, starts)
  counts = np.bincount(groups.of_row)
  assert 200 < groups.count <= MOST_GROUPS and counts.max() < 1.2 * np.median(counts)


def test_without_recorded_documents_groups_are_blocks_of_rows():
  groups = group_rows(np.arange(70), 10, None)
  assert np.bincount(groups.of_row).tolist() == [16, 16, 16, 16, 6]
  assert groups.unit == 'blocks of 16 rows'
  assert group_rows(np.arange(16 * 1000), 10, None).count <= MOST_GROUPS
