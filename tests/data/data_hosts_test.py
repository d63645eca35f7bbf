"""Any number of processes read together the batches of one, and each only its own rows.

The processes use jax.distributed over loopback and have four devices in total. This file is also
their program.
"""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import xla_flags

from electra_jax.data.store import row_batches, token_store
from electra_jax.training import partitioning

LENGTH, BATCH, SEED, DEVICES = 8, 12, 3, 4
SIZES = {'one': 50, 'two': 30}
HELDOUT_LIMIT = 18


def _open(folder):
  """A store and a mixture of two. Row i of the mixture is all i + 1, so ids identify rows."""
  stores = tuple(token_store.open_store(pathlib.Path(folder) / name) for name in SIZES)
  return {'store': stores[0], 'mixture': row_batches.Mixture(stores, (3, 1))}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder, first = tmp_path_factory.mktemp('stores'), 1
  kind = {'length': LENGTH, 'vocab_size': 1000, 'pad_id': 0, 'tokenizer_fingerprint': ''}
  for name, size in SIZES.items():
    token_store.write_store(
      folder / name, [np.arange(first, first + size)[:, None].repeat(LENGTH, 1)], **kind, facts={}
    )
    first += size
  return folder


@pytest.fixture(scope='module')
def alone(folder):
  """What this process reads by itself: steps 0 to 6."""
  return _read_as_a_process(folder, 'numpy', 0, 6)


@pytest.fixture(scope='module', params=[2, pytest.param(4, marks=pytest.mark.long)])
def run(request, folder):
  """A run of several processes: its first and last step, and what each process printed.

  Two processes read steps 0 to 3, and four read 3 to 6. One of the four uses tf.data if it is
  installed.
  """
  last = 'tf' if importlib.util.find_spec('tensorflow') else 'numpy'
  first_step, last_step, readers = {
    2: (0, 3, ['numpy'] * 2),
    4: (3, 6, ['numpy'] * 3 + [last]),
  }[request.param]
  started = _start(folder, readers, first_step, last_step)
  ends = [process.communicate(timeout=120) for process in started]
  for process, (_, errors) in zip(started, ends, strict=True):
    assert process.returncode == 0, errors[-3000:]
  return first_step, last_step, [json.loads(output.splitlines()[-1]) for output, _ in ends]


def _start(folder, readers, first_step, last_step):
  """Starts the processes of a run, one per reader."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  devices = DEVICES // len(readers)
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': os.pathsep.join(sys.path),
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'TF_ENABLE_ONEDNN_OPTS': '0',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {xla_flags.QUICK}',
  }
  return [
    subprocess.Popen(
      [
        sys.executable,
        __file__,
        address,
        str(len(readers)),
        str(process),
        str(folder),
        reader,
        str(first_step),
        str(last_step),
      ],
      env=environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for process, reader in enumerate(readers)
  ]


@pytest.mark.parametrize('data', ['store', 'mixture'])
def test_processes_together_read_the_batches_of_one(folder, run, data):
  whole = _open(folder)[data]
  first_step, last_step, printed = run
  for i, step in enumerate(range(first_step, last_step)):
    batch = row_batches.read_batch(whole, step, BATCH, SEED)[:, 0].tolist()
    rows = {}
    for process in printed:
      held = {int(row): value for row, value in process['held'][data][i].items()}
      assert not rows.keys() & held.keys(), 'two processes hold a row'
      rows |= held
    assert rows == dict(enumerate(batch)), step


@pytest.mark.parametrize('data', ['store', 'mixture'])
def test_a_run_continues_as_one_process_with_any_number_of_them(alone, run, data):
  first_step, last_step, printed = run
  sums = alone['sums'][data]
  assert len(set(sums)) == 6
  assert all(process['sums'][data] == sums[first_step:last_step] for process in printed)


def test_each_process_reads_only_its_own_rows(run):
  first_step, last_step, printed = run
  for process in printed:
    assert len(process['mine']) == BATCH // len(printed)
    assert process['read'] == dict.fromkeys(
      ('store', 'mixture'), (last_step - first_step) * BATCH // len(printed)
    )
  assert sorted(row for process in printed for row in process['mine']) == list(range(BATCH))


def test_processes_together_read_the_held_out_rows_of_one(folder, alone, run):
  store = _open(folder)['store']
  expected = np.concatenate(list(row_batches.heldout_batches(store, BATCH, limit=HELDOUT_LIMIT)))[
    :, 0
  ].tolist()
  for printed in ([alone], run[2]):
    together = [{}, {}]
    for process in printed:
      assert process['heldout read'] == sum(
        BATCH * i + row < HELDOUT_LIMIT for i in range(2) for row in process['mine']
      )
      for rows, held in zip(together, process['heldout'], strict=True):
        rows |= {int(row): value for row, value in held.items()}
    assert [rows[i] for rows in together for i in range(BATCH)] == expected


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_one_process_holds_all_rows(devices):
  mesh = partitioning.make_mesh(jax.devices()[:devices])
  assert partitioning.process_rows(mesh, 16).tolist() == list(range(16))
  for shape in ((16,), (16, 5)):
    local = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    ours, theirs = (
      partitioning.global_batch(local, mesh, 16),
      jax.device_put(local, partitioning.batch_sharding(mesh)),
    )
    assert (
      ours.sharding == theirs.sharding
      and ours.dtype == theirs.dtype
      and np.array_equal(ours, theirs)
    )
  with pytest.raises(ValueError, match='15 rows were given; this process holds 16'):
    partitioning.global_batch(local[:15], mesh, 16)


def _read_as_a_process(folder, reader, first_step, last_step):
  """What one process of a run holds of each batch on its devices, and how many rows it read."""
  mesh = partitioning.make_mesh(jax.devices()[:DEVICES])
  mine = partitioning.process_rows(mesh, BATCH)
  checksum = jax.jit(
    lambda ids: (ids[:, 0] * (1 + np.arange(BATCH)) ** 2).sum(),
    out_shardings=partitioning.replicated(mesh),
  )

  def held(batch):
    """First id of each row of the global batch that this process's devices have."""
    rows = {}
    for shard in batch.addressable_shards:
      values = np.asarray(shard.data)
      assert (values == values[:, :1]).all()
      rows |= dict(
        zip(np.arange(BATCH)[shard.index[0]].tolist(), values[:, 0].tolist(), strict=True)
      )
    return rows

  printed = {'mine': mine.tolist(), 'held': {}, 'sums': {}, 'read': {}}
  counted, read = [], token_store.Store.read
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      token_store.Store, 'read', lambda self, rows: counted.append(len(rows)) or read(self, rows)
    )
    for name, data in _open(folder).items():
      counted.clear()
      local = row_batches.batches(
        data, BATCH, SEED, first_step, last_step, mine, use_tf=reader == 'tf'
      )
      whole = [partitioning.global_batch(rows, mesh, BATCH) for rows in local]
      printed['held'][name] = [held(batch) for batch in whole]
      printed['sums'][name] = [int(checksum(batch)) for batch in whole]  # over all processes
      printed['read'][name] = sum(counted)
    counted.clear()
    heldout = row_batches.heldout_batches(_open(folder)['store'], BATCH, mine, HELDOUT_LIMIT)
    printed['heldout'] = [held(partitioning.global_batch(rows, mesh, BATCH)) for rows in heldout]
    printed['heldout read'] = sum(counted)
  return printed


if __name__ == '__main__':
  address, processes, process, *what = sys.argv[1:]
  jax.distributed.initialize(address, int(processes), int(process))
  assert len(jax.devices()) == DEVICES and len(jax.local_devices()) == DEVICES // int(processes)
  print(json.dumps(_read_as_a_process(*what[:2], *map(int, what[2:]))))
  jax.distributed.shutdown()
