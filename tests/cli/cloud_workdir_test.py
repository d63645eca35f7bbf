"""A run in a bucket equals a local run: killed, resumed, evaluated, plotted and opened."""

import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time

import fake_gcs
import micro_run
import pytest
import xla_flags
from tensorboardX.proto.event_pb2 import Event

from electra_jax.errors import UserError
from electra_jax.training import metrics_writer, run_folder

pytest.importorskip('gcsfs', reason='needs gcsfs, of the gcs extra')

FIELDS = ('--config.save_every=5', '--config.profile_steps=(20, 21)')

# In one child process: modes of the command line on a run in a bucket, and electra_jax.load.
OPEN = """
import json, sys
import electra_jax
from electra_jax.main import main
from electra_jax.training import checkpoints
for mode in ('evaluate', 'report', 'inspect'):
  rows = ['--rows=1'] if mode == 'inspect' else []
  assert main(['electra_jax', f'--mode={mode}', '--workdir=gs://bucket/run', *rows]) == 0
run = electra_jax.load('gs://bucket/run', 'best')
NAMES = 'run', 'half', 'none'
result = {'step': run.step, 'replaced': run('bako tiru mesa.').replaced.tolist(),
          'tensorflow': 'tensorflow' in sys.modules,
          'saved': [checkpoints.any_saved('gs://bucket/' + name) for name in NAMES]}
print('RESULT', json.dumps(result))
"""

# In one child process: command lines that cannot work. gcsfs tries six times, which takes half a
# minute; here it does not pause.
MISTAKES = """
import os, sys, types
import gcsfs
from electra_jax.main import main
async def sleep(seconds):
  pass
gcsfs.retry.asyncio = types.SimpleNamespace(sleep=sleep)
for url, argv in CASES:
  os.environ['STORAGE_EMULATOR_HOST'] = url
  print('==', file=sys.stderr)
  assert main(['electra_jax', *argv]) == 1
"""


@pytest.fixture(scope='module')
def bucket():
  with fake_gcs.serving('bucket', 'closed') as buckets:
    buckets.forbidden.add('closed')
    kept = {name: os.environ.get(name) for name in buckets.environment()}
    os.environ.update(buckets.environment())
    yield buckets
    for name, value in kept.items():
      os.environ.pop(name) if value is None else os.environ.update({name: value})


def copied(bucket, name, to) -> pathlib.Path:
  """A folder of the bucket as one of this machine."""
  for file, content in bucket.files('bucket', name + '/').items():
    (to / file).parent.mkdir(parents=True, exist_ok=True)
    (to / file).write_bytes(content)
  return to


def events(file):
  """What is in an event file of TensorBoard, by its format: length, checksum, content, checksum."""
  content = file.read_bytes()
  while content:
    (size,) = struct.unpack('<Q', content[:8])
    yield Event.FromString(content[12 : 12 + size])
    content = content[16 + size :]


def own(err) -> str:
  """stderr without TensorStore's line on the source of its credentials."""
  return ''.join(
    line for line in err.splitlines(keepends=True) if 'google_auth_provider' not in line
  )


def child(code) -> tuple[str, str]:
  """A Python program on one device: stdout, stderr."""
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(micro_run.ROOT),
    'XLA_FLAGS': xla_flags.QUICK,
  }
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=micro_run.ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'
  return done.stdout, done.stderr


@pytest.fixture(scope='module')
def killed_and_resumed(bucket):
  """What the second start of gs://bucket/run printed.

  The first was killed when the checkpoint of step 10 lacked its last object.
  """
  argv = micro_run.arguments('gs://bucket/run', *FIELDS)
  bucket.hold = r'checkpoints/10/commit_success\.txt$'
  process = micro_run.start(*argv)
  micro_run.wait_for(lambda: bucket.waiting, process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  bucket.hold = None
  with bucket.lock:
    cut_short = {
      key: value for key, value in bucket.objects.items() if '/checkpoints/10/' in key[1]
    }
    assert any('/params/' in name for _, name in cut_short)
    assert ('bucket', 'run/checkpoints/10/commit_success.txt') not in cut_short
    for (_, name), value in cut_short.items():
      bucket.objects['bucket', name.replace('run/', 'half/', 1)] = value
  lines = [json.loads(line) for line in bucket.files('bucket')['run/metrics.jsonl'].splitlines()]
  # Metrics are in the bucket before the checkpoint of their step.
  assert ('heldout', 10) in [(line['kind'], line['step']) for line in lines]
  bucket.faults += [
    fake_gcs.Fault(503, 'run/checkpoints/', 'POST', times=3),
    fake_gcs.Fault('reset', 'run/checkpoints/', 'POST', after=5),
    fake_gcs.Fault(503, 'run/checkpoints/', 'GET', times=2),
    fake_gcs.Fault('reset', 'run/(config|metrics)', 'GET'),
    fake_gcs.Fault('cut', 'run/tokenizer', 'GET'),
    fake_gcs.Fault(503, r'run/\.writer', 'POST'),
  ]
  printed = micro_run.run_process(*argv)  # TensorStore reads its environment once per process
  assert sum(fault.times for fault in bucket.faults) == 0, 'it ended although requests failed'
  return printed


@pytest.mark.long
def test_a_run_killed_while_saving_ends_like_a_local_run(bucket, killed_and_resumed, tmp_path):
  out, err = killed_and_resumed
  assert 'restored     step 5, the last checkpoint in gs://bucket/run' in out and not own(err)
  whole, _ = micro_run.finished()
  remote = copied(bucket, 'run', tmp_path / 'remote')
  assert (
    micro_run.differing(micro_run.checkpoint(remote, 30), micro_run.checkpoint(whole, 30)) == []
  )
  assert micro_run.figures(remote) == micro_run.figures(whole)
  assert (remote / 'checkpoints/30/commit_success.txt').exists() and not (
    remote / 'checkpoints/10'
  ).exists()
  status = json.loads((remote / 'status.json').read_text())
  assert (status['state'], status['step'], status['exit_status']) == ('finished', 30, 0)
  assert (status['restored_step'], status['last_checkpoint']) == (5, 30)
  for name in ('config.json', 'resolved.json'):
    ours, others = (json.loads((folder / name).read_text()) for folder in (remote, whole))
    assert ours.keys() == others.keys()
  assert {path.name: path.read_bytes() for path in (remote / 'tokenizer').iterdir()} == {
    path.name: path.read_bytes() for path in (whole / 'tokenizer').iterdir()
  }
  assert not list(remote.glob('.probe*')) and not list(remote.glob('.writer*'))


@pytest.mark.long
def test_tensorboard_files_and_profiles_are_in_the_bucket(bucket, killed_and_resumed, tmp_path):
  remote = copied(bucket, 'run', tmp_path / 'remote')
  *_, last = sorted((remote / 'tensorboard').iterdir())
  drawn = [(value.tag, event.step) for event in events(last) for value in event.summary.value]
  assert [step for tag, step in drawn if tag == 'heldout/total_loss'] == [10, 20, 30]
  assert list(remote.glob('profile/plugins/profile/*/*.xplane.pb'))


@pytest.mark.long
def test_it_is_evaluated_plotted_inspected_and_opened(bucket, killed_and_resumed, tmp_path):
  out, err = child(OPEN)
  assert not own(err)
  result = json.loads(out[out.index('RESULT') + 7 :])
  assert result['saved'] == [True, False, False]
  assert not result['tensorflow']
  assert (
    'gs://bucket/run/evaluation.json' in out
    and 'gs://bucket/run/report.png' in out
    and 'held-out row 0 of 26' in out
  )
  remote = copied(bucket, 'run', tmp_path / 'remote')
  assert (remote / 'report.png').read_bytes().startswith(b'\x89PNG')
  evaluation = json.loads((remote / 'evaluation.json').read_text())
  assert (evaluation['step'], evaluation['rows']) == (30, 26)
  assert f'{evaluation["figures"]["auc"]["value"]:.4f}' in (remote / 'report.md').read_text()
  found = {
    line['step']: line['reference_ap']
    for line in micro_run.figures(remote)
    if line['kind'] == 'heldout'
  }
  assert result['step'] == max(found, key=found.get)
  import electra_jax

  here = electra_jax.load(remote, result['step'])('bako tiru mesa.').replaced
  assert abs(here - result['replaced']).max() < 1e-4  # other compiler flags


@pytest.mark.parametrize(
  'address, named',
  [
    ('s3://bucket/run', 's3://bucket/run'),
    ('gs://', 'gs://bucket/run'),
    ('gs:/bucket/run', 'lacks a slash'),
  ],
)
def test_addresses_that_cannot_hold_a_run(address, named):
  with pytest.raises(UserError, match=named):
    run_folder.folder(address)


def test_missing_gcsfs_is_named(monkeypatch):
  monkeypatch.setattr(run_folder.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    UserError, match='needs gcsfs, which is not installed; expected the extra gcs'
  ):
    run_folder.folder('gs://bucket/run')


def test_an_unreachable_bucket_is_one_sentence_before_long_work(bucket):
  train = (
    f'--config={micro_run.CONFIG}',
    f'--config.data.source={micro_run.shared() / "nosuch.txt"}',
  )
  url, nobody = bucket.url, 'http://127.0.0.1:9'
  cases = [
    (
      url,
      [*train, '--workdir=gs://nosuch/run'],
      "'gs://nosuch/run' cannot be written (there is no such bucket",
    ),
    (
      url,
      [*train, '--workdir=gs://closed/run'],
      "'gs://closed/run' cannot be written (nobody@example.com does not have",
    ),
    (
      url,
      ['--mode=evaluate', '--workdir=gs://closed/run'],
      "'gs://closed/run' cannot be read (nobody@example.com does not have",
    ),
    (url, ['--mode=report', '--workdir=gs://bucket/nosuch'], 'gs://bucket/nosuch is not a run'),
    (
      nobody,
      ['--mode=evaluate', '--workdir=gs://bucket/run'],
      "'gs://bucket/run' cannot be read (Cannot connect",
    ),
    (
      nobody,
      [*train, '--workdir=gs://bucket/run'],
      "'gs://bucket/run' cannot be written (Cannot connect",
    ),
  ]
  _, err = child(MISTAKES.replace('CASES', repr([case[:2] for case in cases])))
  for sentence, (_, _, named) in zip(err.split('==\n')[1:], cases, strict=True):
    assert sentence.startswith('electra_jax: ' + named) and sentence.count('\n') == 1, sentence


#### Files that grow ####


@pytest.fixture
def sent(monkeypatch):
  """What Spool uploads, in order: (address, content). Uploads fail while `sent.broken`."""

  class Sent(list):
    broken, slow = False, None

  sent = Sent()

  def write(path, content):
    if str(path).startswith('gs://'):
      if sent.slow:
        sent.slow.wait(60)
      if sent.broken:
        raise UserError(f'{path} cannot be written (out of order).')
      sent.append((str(path), content))
    else:
      path.write_bytes(content)

  monkeypatch.setattr(run_folder.file_access, 'write_bytes', write)
  return sent


def line(writer, step):
  writer.write('train', step, {'seconds': float(step), 'loss': 1.0})


def test_metrics_are_uploaded_in_the_background_and_before_a_save(sent, monkeypatch):
  # A new run: nothing is in the bucket.
  monkeypatch.setattr(metrics_writer, 'read_metrics', lambda workdir: [])
  monkeypatch.setattr(metrics_writer.file_access, 'exists', lambda path: False)
  writer = metrics_writer.MetricsWriter('gs://bucket/run', 0)
  line(writer, 1)
  assert not sent  # not due yet
  monkeypatch.setattr(run_folder, 'UPLOAD_EVERY', 0)
  writer._spool._next, sent.slow = 0, threading.Event()
  line(writer, 2)  # starts an upload without waiting for it
  line(writer, 3)  # one is running already
  assert not sent
  sent.slow.set()
  assert writer.keep() is None
  metrics = [content for address, content in sent if address == 'gs://bucket/run/metrics.jsonl']
  assert [json.loads(one)['step'] for one in metrics[-1].splitlines()] == [1, 2, 3]
  writer.close()
  boards = [
    content for address, content in sent if address.startswith('gs://bucket/run/tensorboard/events')
  ]
  assert boards and len(boards[-1]) == max(map(len, boards)) > 100
  # Unchanged files are not uploaded again.
  assert len([address for address, _ in sent if address.endswith('metrics.jsonl')]) == len(metrics)
  assert not writer._spool.path.exists()
  writer.close()  # a second time does nothing


def test_what_a_tracker_writes_when_it_is_closed_is_uploaded(sent, monkeypatch):
  monkeypatch.setattr(metrics_writer.file_access, 'exists', lambda path: False)
  writer = metrics_writer.MetricsWriter('gs://bucket/run', 0)
  (tracker,) = writer._files.values()
  close = tracker.close

  def close_slowly(outcome):
    time.sleep(0.1)
    close(outcome)
    (writer._spool.path / 'last').write_text('all of it')

  monkeypatch.setattr(tracker, 'close', close_slowly)
  line(writer, 1)
  writer.close()
  assert ('gs://bucket/run/last', b'all of it') in sent
  assert not writer._thread.is_alive()  # so that closing again does not wait for it


def test_uploads_take_a_small_share_of_the_time(monkeypatch):
  spool, now = run_folder.Spool(run_folder.folder('gs://bucket/run')), [100.0]
  monkeypatch.setattr(run_folder.time, 'monotonic', lambda: now[0])
  for taken, pause in ((0.1, 30), (10, 200)):  # seconds
    monkeypatch.setattr(
      run_folder.file_access,
      'write_bytes',
      lambda path, content, taken=taken: now.__setitem__(0, now[0] + taken),
    )
    (spool.path / 'file').write_text(f'of {taken}')
    spool._upload()
    assert spool._next - now[0] == pytest.approx(pause)
  spool.close()


def test_failed_uploads_lose_no_metric(sent):
  spool = run_folder.Spool(run_folder.folder('gs://bucket/run'))
  (spool.path / 'metrics.jsonl').write_text('1\n')
  sent.broken = True
  assert 'metrics.jsonl cannot be written (out of order)' in spool.now('metrics.jsonl')
  with pytest.raises(UserError, match=f'out of order.*are in {spool.path}'):
    spool.close()
  assert (spool.path / 'metrics.jsonl').read_text() == '1\n'
  sent.broken = False
  spool.close()
  assert sent == [('gs://bucket/run/metrics.jsonl', b'1\n')] and not spool.path.exists()


def test_local_files_are_written_in_place(tmp_path):
  spool = run_folder.Spool(run_folder.folder(tmp_path))
  assert spool.path == tmp_path
  (spool.path / 'file').write_text('a')
  spool.soon()
  assert spool.now('file') is None
  spool.close()
  assert [path.name for path in tmp_path.iterdir()] == ['file']
