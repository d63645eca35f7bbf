"""Grain and plain tf.data on the rows of a token store, in an environment that has them.

  PYTHON benchmarks/reading/peers.py STORE READER SECONDS

prints what was measured as JSON. STORE is a folder or an http:// address. electra_jax is not
imported, so that Grain can be in an environment without it. All readers repeat the rows forever and
give batches of int32. Grain shuffles all rows, tf.data those in a buffer.
"""

import functools
import importlib
import json
import os
import pathlib
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reading.timing import BATCH, LENGTH, timed

if TYPE_CHECKING:
  import tensorflow

ROW_BYTES = LENGTH * 2
SHUFFLED = 10_000  # rows in the buffer of tf.data
CHUNK = 4 << 20  # bytes of a request of tf.data to an address
AT_ONCE = 16  # files that tf.data reads at an address
LOCAL_THREADS = 4
REMOTE_THREADS = 64  # of Grain, each of which waits for the answer for a row


class Rows:
  """The rows of a local store, for Grain: one read per row."""

  def __init__(self, store: str) -> None:
    """Takes the folder of the store."""
    self.store = store
    self.shards = json.loads((pathlib.Path(store) / 'manifest.json').read_text())
    self._files: dict[int, int] = {}

  def __len__(self) -> int:
    """The number of rows."""
    return int(self.shards['rows'])

  def __getitem__(self, index: int) -> np.ndarray:
    """A row, int32 `[LENGTH]`."""
    shard, place = divmod(int(index), self.shards['rows_per_shard'])
    content = self.read(shard, place * ROW_BYTES, ROW_BYTES)
    return np.frombuffer(content, np.uint16).astype(np.int32)

  def read(self, shard: int, start: int, size: int) -> bytes:
    """Bytes of a shard."""
    if shard not in self._files:
      name = self.shards['shards'][shard]['file']
      self._files[shard] = os.open(os.path.join(self.store, name), os.O_RDONLY)
    return os.pread(self._files[shard], size, start)


class RemoteRows(Rows):
  """The rows of a store at an http:// address: one request per read, over kept connections."""

  def __init__(self, store: str) -> None:
    """Takes the address of the store."""
    self.store = store
    self.address = urllib.parse.urlsplit(store)
    self._local = threading.local()
    self.shards = json.loads(self._get(f'{self.address.path}/manifest.json', {}))

  def read(self, shard: int, start: int, size: int) -> bytes:
    """Bytes of a shard."""
    name = self.shards['shards'][shard]['file']
    return self._get(f'{self.address.path}/{name}', {'Range': f'bytes={start}-{start + size - 1}'})

  def _get(self, path: str, headers: dict[str, str]) -> bytes:
    import http.client

    if not hasattr(self._local, 'connection'):
      self._local.connection = http.client.HTTPConnection(self.address.netloc)
    self._local.connection.request('GET', path, headers=headers)
    content: bytes = self._local.connection.getresponse().read()
    return content


def rows_of(store: str) -> Rows:
  """The rows of a store at a path or address."""
  return RemoteRows(store) if '://' in store else Rows(store)


def grain_rows(store: str) -> Iterator[np.ndarray]:
  """Grain over a source that reads single rows."""
  import grain

  rows = grain.MapDataset.source(rows_of(store)).shuffle(seed=0).repeat()
  if '://' in store:  # threads that wait for rows
    options = grain.ReadOptions(num_threads=REMOTE_THREADS, prefetch_buffer_size=4 * BATCH)
    return iter(rows.to_iter_dataset(options).batch(BATCH))
  options = grain.ReadOptions(num_threads=LOCAL_THREADS, prefetch_buffer_size=LOCAL_THREADS)
  return iter(rows.batch(BATCH).to_iter_dataset(options))


def tf_data(store: str) -> Iterator[np.ndarray]:
  """tf.data as its documentation recommends: records, a buffer that shuffles, batches, prefetch."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  import tensorflow as tf

  rows = rows_of(store)
  if '://' in store:
    records = _remote_records(rows)
  else:
    files = [os.path.join(store, entry['file']) for entry in rows.shards['shards']]
    records = tf.data.FixedLengthRecordDataset(files, ROW_BYTES)

  def decode(batch: tf.Tensor) -> tf.Tensor:
    ids = tf.cast(tf.io.decode_raw(batch, tf.uint16), tf.int32)
    return tf.ensure_shape(ids, [BATCH, LENGTH])

  batches = records.repeat().shuffle(SHUFFLED, seed=0).batch(BATCH, drop_remainder=True)
  batches = batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
  return batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _remote_records(rows: Rows) -> 'tensorflow.data.Dataset':
  """Rows of a store at an address as strings, of AT_ONCE chunks of shards that arrive together."""
  import tensorflow as tf

  chunks = [
    (shard, start, min(CHUNK, entry['bytes'] - start))
    for shard, entry in enumerate(rows.shards['shards'])
    for start in range(0, entry['bytes'], CHUNK)
  ]

  def read(chunk: np.ndarray) -> np.ndarray:
    content = rows.read(*map(int, chunk))
    return np.array([content[i : i + ROW_BYTES] for i in range(0, len(content), ROW_BYTES)], object)

  order = tf.data.Dataset.from_tensor_slices(np.array(chunks, np.int64))
  order = order.shuffle(len(chunks), seed=0)
  return order.map(
    lambda chunk: tf.numpy_function(read, [chunk], tf.string), num_parallel_calls=AT_ONCE
  ).unbatch()


READERS: dict[str, Callable[[str], Iterator[np.ndarray]]] = {
  'grain': grain_rows,
  'tf.data': tf_data,
}


LIBRARIES = {'grain': 'grain', 'tf.data': 'tensorflow'}


def main(argv: list[str]) -> None:
  """Measures a reader."""
  store, reader, seconds = argv
  importlib.import_module(LIBRARIES[reader])  # which is not timed
  remote = '://' in store
  print(json.dumps(timed(functools.partial(READERS[reader], store), float(seconds), not remote)))


if __name__ == '__main__':
  main(sys.argv[1:])
