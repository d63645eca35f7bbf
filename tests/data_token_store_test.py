"""A token store gives back what was written, and one that is damaged, cut short or foreign is refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from electra_jax.config import UserError
from electra_jax.data import token_store


def _rows(count=10, length=16, vocab_size=1000):
  return np.random.default_rng(0).integers(1, vocab_size, (count, length))


def _write(path, rows, vocab_size=1000, **facts):
  return token_store.write_store(path, iter(rows), rows.shape[1], vocab_size, 0, 'fingerprint', facts)


def test_rows_come_back(tmp_path):
  rows = _rows()
  rows[3, 10:] = 0
  _write(tmp_path / 'store', rows, source='here')
  store = token_store.open_store(tmp_path / 'store')
  assert (store.rows, store.length, store.pad_id, store.tokens) == (10, 16, 0, 154)
  assert store.tokenizer_fingerprint == 'fingerprint' and store.manifest['source'] == 'here'
  batch = store.read(np.array([7, 0, 7]))
  assert batch.dtype == np.int32 and np.array_equal(batch, rows[[7, 0, 7]])
  assert [path.name for path in tmp_path.iterdir()] == ['store']


@pytest.mark.parametrize('vocab_size, dtype', [(65_536, '<u2'), (65_537, '<u4')])
def test_ids_take_two_bytes_where_they_fit(tmp_path, vocab_size, dtype):
  rows = np.full((3, 8), vocab_size - 1)
  store = _write(tmp_path / 'store', rows, vocab_size)
  assert store.manifest['dtype'] == dtype
  assert np.array_equal(store.read(np.arange(3)), rows)


def test_more_rows_than_a_block(tmp_path):
  rows = _rows(token_store._BLOCK_ROWS * 2 + 5, 8)
  assert np.array_equal(_write(tmp_path / 'store', rows).read(np.arange(len(rows))), rows)


def test_an_empty_store_opens(tmp_path):
  assert _write(tmp_path / 'store', np.zeros((0, 8), int)).rows == 0


def test_a_store_cut_short_while_written_is_not_there(tmp_path):
  def rows():
    yield from _rows()
    raise UserError('the corpus broke')

  with pytest.raises(UserError, match='the corpus broke'):
    token_store.write_store(tmp_path / 'store', rows(), 16, 1000, 0, '', {})
  assert list(tmp_path.iterdir()) == []


def test_ids_outside_the_vocabulary_are_not_written(tmp_path):
  for bad in (1000, -1):
    rows = _rows()
    rows[5, 5] = bad
    with pytest.raises(ValueError, match='token ids must be in 0..999'):
      _write(tmp_path / 'store', rows)
  assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(tmp_path):
  _write(tmp_path / 'store', _rows())
  with pytest.raises(UserError, match="something at .*store' already"):
    _write(tmp_path / 'store', _rows(5))
  assert token_store.open_store(tmp_path / 'store').rows == 10


def _refused(path):
  with pytest.raises(UserError) as caught:
    token_store.open_store(path)
  assert str(path) in str(caught.value) and 'prepare the corpus again' in str(caught.value)
  return str(caught.value)


def test_a_damaged_store_is_refused(tmp_path):
  path = tmp_path / 'store'
  _write(path, _rows())
  content = bytearray((path / 'rows.bin').read_bytes())
  (path / 'rows.bin').write_bytes(content[:-1])
  assert 'has 319 bytes, not 320' in _refused(path)
  content[100] ^= 1
  (path / 'rows.bin').write_bytes(content)
  assert 'checksum of rows.bin is wrong' in _refused(path)
  (path / 'rows.bin').unlink()
  assert 'has 0 bytes, not 320' in _refused(path)


def test_a_foreign_store_is_refused(tmp_path):
  path = tmp_path / 'store'
  assert 'has no manifest.json' in _refused(path)
  _write(path, _rows())
  manifest = json.loads((path / 'manifest.json').read_text())
  for content, complaint in [
    (json.dumps(manifest | {'format_version': 99}), 'has format version 99 where 1 is read'),
    (json.dumps(manifest | {'format': 'another'}), 'is not a token store'),
    (json.dumps([1, 2]), 'is not a token store'),
    (json.dumps({k: v for k, v in manifest.items() if k != 'rows'}), "lacks 'rows'"),
    ('{', 'damaged manifest'),
    ('', 'damaged manifest'),
  ]:
    (path / 'manifest.json').write_text(content)
    assert complaint in _refused(path)


def test_an_unwritable_place_is_named(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(UserError, match='cannot be written'):
    _write(tmp_path / 'file' / 'store', _rows())


def test_unigram_entropy_is_that_of_the_tokens_that_count(tmp_path):
  # Of each row's tokens that count, half are 5, a quarter 6 and a quarter 7.
  row = [2, 5, 5, 5, 5, 6, 6, 7, 7, 0]
  store = _write(tmp_path / 'store', np.tile(row, (9000, 1)))
  entropy = lambda *shares: -sum(share * np.log(share) for share in shares)
  assert np.isclose(store.unigram_entropy(left_out=(0, 2)), entropy(0.5, 0.25, 0.25), rtol=1e-12)
  assert np.isclose(store.unigram_entropy(), entropy(0.1, 0.4, 0.2, 0.2, 0.1), rtol=1e-12)
  assert store.unigram_entropy(left_out=(0, 2, 6, 7)) == 0


def test_unigram_entropy_of_a_large_store_is_taken_from_rows_all_over_it(tmp_path):
  # The first half is all 5, the second all 6: a sample from one end would say 0.
  store = _write(tmp_path / 'store', np.repeat([5, 6], 500)[:, None] * np.ones((1, 10), int))
  read = []
  counted = dataclasses.replace(store, matrix=_Watched(store.matrix, read))
  assert np.isclose(counted.unigram_entropy(most_tokens=100), np.log(2), rtol=1e-12)
  assert sum(read) == 10


class _Watched:
  """A matrix that notes how many rows are read of it."""

  def __init__(self, matrix, read):
    self.matrix, self.read, self.shape = matrix, read, matrix.shape

  def __getitem__(self, rows):
    self.read.append(len(rows))
    return self.matrix[rows]
