"""Notices of maintenance and preemption from Google Cloud's metadata server act like SIGTERM."""

import contextlib
import http.server
import os
import socket
import threading

import micro_run
import pytest

from electra_jax.errors import PREEMPTED
from electra_jax.training import hosts, preemption


@contextlib.contextmanager
def metadata(**values):
  """A stand-in for the metadata server: its address and its values; a missing key is a 404."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      folder, _, key = self.path.rpartition('/')
      value = values.get(key.replace('-', '_'))
      # Like the real server, answer only requests with its header.
      known = (
        folder == '/computeMetadata/v1/instance'
        and self.headers.get('Metadata-Flavor') == 'Google'
        and value is not None
      )
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(value.encode() if known else b'not found')

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f'127.0.0.1:{server.server_port}', values
  finally:
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
  'values, leaves',
  [
    ({'preempted': 'FALSE', 'maintenance_event': 'NONE'}, False),
    ({'preempted': 'TRUE', 'maintenance_event': 'NONE'}, True),
    ({'preempted': 'FALSE', 'maintenance_event': 'TERMINATE_ON_HOST_MAINTENANCE'}, True),
    ({'preempted': 'FALSE', 'maintenance_event': 'MIGRATE_ON_HOST_MAINTENANCE'}, False),
    ({'preempted': 'TRUE', 'maintenance_event': 'MIGRATE_ON_HOST_MAINTENANCE'}, True),
    ({'preempted': 'FALSE\n', 'maintenance_event': 'NONE\n'}, False),
    ({'maintenance_event': 'TERMINATE_ON_HOST_MAINTENANCE'}, True),
    ({'preempted': 'TRUE'}, True),
    ({}, False),
  ],
  ids=str,
)
def test_notices_end_the_run_unless_the_machine_migrates(values, leaves):
  with metadata(**values) as (address, _):
    assert preemption.leaving(address) is leaves


def test_a_server_that_is_not_there_or_says_no_http_is_no_notice(monkeypatch):
  monkeypatch.setattr(preemption, 'POLL', 0.5)
  with socket.create_server(('127.0.0.1', 0)) as silent:
    address = f'127.0.0.1:{silent.getsockname()[1]}'
    assert not preemption.leaving(address)  # answers nothing: given up after a while

    def babble():
      with contextlib.suppress(OSError):
        while True:
          with silent.accept()[0] as link:
            link.sendall(b'220 ready\r\n')

    threading.Thread(target=babble, daemon=True).start()
    assert not preemption.leaving(address)
  assert not preemption.leaving(address)  # nobody listens


def test_the_environment_names_the_metadata_server(monkeypatch):
  monkeypatch.setenv('GCE_METADATA_HOST', '127.0.0.1:1')
  assert preemption.metadata_server() == '127.0.0.1:1'
  monkeypatch.delenv('GCE_METADATA_HOST')
  for product, expected in (
    ('Google Compute Engine\n', 'metadata.google.internal'),
    ('Standard PC\n', None),
  ):
    monkeypatch.setattr(preemption.pathlib.Path, 'read_text', lambda self, product=product: product)
    assert preemption.metadata_server() == expected

  def missing(self):
    raise FileNotFoundError(str(self))

  monkeypatch.setattr(preemption.pathlib.Path, 'read_text', missing)
  assert preemption.metadata_server() is None


@pytest.mark.long
def test_a_run_saves_and_leaves_when_its_machine_is_preempted(tmp_path, monkeypatch):
  with metadata(preempted='FALSE', maintenance_event='MIGRATE_ON_HOST_MAINTENANCE') as (
    address,
    values,
  ):
    monkeypatch.setenv('GCE_METADATA_HOST', address)
    # So many steps that the run cannot end before the next check.
    process = micro_run.start(
      *micro_run.arguments(
        tmp_path / 'run',
        '--config.steps=100000',
        '--config.save_every=100000',
        '--config.eval_every=100000',
      )
    )
    try:
      micro_run.wait_for(lambda: micro_run.last_step(tmp_path / 'run') >= 6, process)
      assert not preemption.leaving(address)
      values['preempted'] = 'TRUE'
      out, err = process.communicate(timeout=300)
    finally:
      process.kill()
  assert process.returncode == PREEMPTED and not err
  (stopped,) = micro_run.checkpoint_steps(tmp_path / 'run')
  assert stopped >= 6 and f'asked to stop: saved step {stopped}; the same command resumes' in out


#### Whether this is one process of several ####


@pytest.mark.parametrize(
  'environment, found',
  [
    ({}, None),
    ({'TPU_WORKER_HOSTNAMES': '10.0.0.1,10.0.0.2'}, 'TPU_WORKER_HOSTNAMES'),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({'TPU_WORKER_HOSTNAMES': ''}, None),
    ({'MEGASCALE_NUM_SLICES': '2', 'TPU_WORKER_HOSTNAMES': 'localhost'}, 'MEGASCALE_NUM_SLICES'),
    ({'MEGASCALE_NUM_SLICES': '1'}, None),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, 'SLURM_NTASKS'),
    ({'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
    ({'SLURM_NTASKS': '4'}, None),  # in the batch script itself, outside of srun
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'OMPI_COMM_WORLD_SIZE'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_NUM_PROCESSES'),
    ({'JAX_NUM_PROCESSES': 'two'}, None),
    ({'JAX_NUM_PROCESSES': '-2'}, None),
  ],
  ids=str,
)
def test_the_environment_shows_whether_there_are_several_processes(environment, found):
  assert hosts.of_cluster(environment) == found


def test_the_environment_is_that_of_the_process(monkeypatch):
  for name in [
    name
    for name in os.environ
    if name.startswith(('TPU_', 'MEGASCALE_', 'SLURM_', 'OMPI_', 'JAX_NUM'))
  ]:
    monkeypatch.delenv(name)
  assert hosts.of_cluster() is None
  monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
  assert hosts.of_cluster() == 'OMPI_COMM_WORLD_SIZE'
