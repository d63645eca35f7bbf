"""Only processes of the run take part in its connections, whoever else connects to their port."""

import contextlib
import socket
import threading

import jax
import pytest

from electra_jax.training import hosts

TOKEN = 'ab' * 32


@contextlib.contextmanager
def accepting(processes, seconds=30.0):
  """The server of a first process while it accepts; yields its port and the list of links."""
  links = []
  with hosts.listening('127.0.0.1:1', processes) as server:

    def accept():
      links.extend(hosts.accepted(server, TOKEN, processes, seconds))

    thread = threading.Thread(target=accept)
    thread.start()
    try:
      yield server.getsockname()[1], links, thread
    finally:
      thread.join(60)
      for link in links:
        link.close()


def stranger(port, words=b''):
  link = socket.create_connection(('127.0.0.1', port), timeout=30)
  link.sendall(words)
  return link


def is_closed(link):
  try:
    return link.recv(1) == b''
  except ConnectionError:
    return True


def test_strangers_are_disconnected_without_effect():
  greeting = hosts._greeting(TOKEN, 1)
  words = [
    b'electra 2',  # the greeting of version 0.1.0
    b'done',
    hosts._greeting('cd' * 32, 1),
    hosts._greeting('', 1),
    hosts._greeting(TOKEN, 3),  # there is no such process
    hosts._greeting(TOKEN, 0),
    greeting[:-8] + b'-0000001',
    greeting[:-1],  # incomplete
    b'GET / HTTP/1.1\r\nHost: ' + b'x' * 100_000,
    b'\xff' * len(greeting),
  ]
  with accepting(3) as (port, links, thread):
    for word in words:
      with contextlib.suppress(ConnectionError):
        stranger(port, word).close()
    silent = [stranger(port) for _ in range(3)]
    ours = [hosts.connected('127.0.0.1', port, TOKEN, number) for number in (1, 2)]
    thread.join(60)
    assert None not in ours and len(links) == 2
    for link in silent:
      assert is_closed(link)
    for link, ours_of_it in zip(links, ours, strict=True):
      ours_of_it.sendall(b'done')
      assert link.recv(64) == b'done'


def test_one_process_counts_once():
  with accepting(3, seconds=5.0) as (port, links, _):
    first = hosts.connected('127.0.0.1', port, TOKEN, 1)
    again = stranger(port, hosts._greeting(TOKEN, 1))
    assert is_closed(again)
    second = hosts.connected('127.0.0.1', port, TOKEN, 2)
  assert first and second and len(links) == 2


def test_silent_and_many_connections_do_not_keep_a_process_out(monkeypatch):
  monkeypatch.setattr(hosts, '_STRANGERS', 2)
  with accepting(2) as (port, links, _):
    many = [stranger(port) for _ in range(5)]
    assert is_closed(many[0]), 'the oldest one makes room'
    assert hosts.connected('127.0.0.1', port, TOKEN, 1) is not None
  assert len(links) == 1
  monkeypatch.setattr(hosts, 'GREET', 0.05)
  with accepting(2) as (port, links, _):
    silent = stranger(port)
    assert is_closed(silent), 'it had its time'
    assert hosts.connected('127.0.0.1', port, TOKEN, 1) is not None


def test_a_process_that_reaches_no_server_of_the_run_gives_up():
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]

    def answer():
      link, _ = other.accept()
      link.sendall(b'HTTP/1.1 400 Bad Request')
      link.close()

    thread = threading.Thread(target=answer)
    thread.start()
    assert hosts.connected('127.0.0.1', port, TOKEN, 1, seconds=0.1) is None
    thread.join()


def names(monkeypatch, **addresses):
  """Makes host names resolve to addresses."""
  original = socket.getaddrinfo

  def resolve(host, *more, **options):
    if host in addresses:
      return original(addresses[host], *more, **options)
    if host == 'unknown':
      raise socket.gaierror(-2, 'Name or service not known')
    return original(host, *more, **options)

  monkeypatch.setattr(socket, 'getaddrinfo', resolve)


@pytest.mark.parametrize(
  'coordinator, bound',
  [
    ('127.0.0.1:1234', '127.0.0.1:1234'),
    ('127.0.0.2:1234', '127.0.0.2:1234'),
    ('localhost:1234', '127.0.0.1:1234'),
    ('myself:1234', None),  # Debian resolves a host's own name to 127.0.1.1
    ('balancer:1234', None),  # an address of another machine, which forwards connections
    ('unknown:1234', None),
  ],
)
def test_the_coordinator_listens_on_the_address_that_the_others_know(
  monkeypatch, coordinator, bound
):
  names(monkeypatch, myself='127.0.1.1', balancer='192.0.2.1')
  assert hosts.bind_address(coordinator) == bound
  if bound:
    with hosts.listening(coordinator, 2) as server:
      assert server.getsockname()[0] == bound.partition(':')[0]
  monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', '0.0.0.0:1234')
  assert hosts.bind_address(coordinator) is None, 'the environment decides'


def test_no_server_listens_on_all_addresses(monkeypatch):
  for coordinator in (None, 'unknown:1'):
    names(monkeypatch)
    with hosts.listening(coordinator, 2) as server:
      assert server.getsockname()[0] not in ('', '0.0.0.0', '::')


@pytest.mark.parametrize('process', [0, 1])
def test_jax_is_told_where_to_listen(monkeypatch, process):
  given = {}
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **kwargs: given.update(kwargs))
  monkeypatch.setattr(hosts, 'first', lambda: True)
  hosts.join_processes('auto', '127.0.0.1:1234', 2, process)
  expected = {'coordinator_bind_address': '127.0.0.1:1234'} if process == 0 else {}
  assert {k: v for k, v in given.items() if k == 'coordinator_bind_address'} == expected


def test_the_address_of_a_cluster_is_found_before_jax_starts(monkeypatch):
  slurm = {
    'SLURM_JOB_ID': '12',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '0',
    'SLURM_LOCALID': '0',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_NODES': '1',
  }
  for name, value in slurm.items():
    monkeypatch.setenv(name, value)
  given = {}
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **kwargs: given.update(kwargs))
  monkeypatch.setattr(hosts, 'first', lambda: True)
  hosts.join_processes('cluster')
  assert (given['num_processes'], given['process_id']) == (2, 0)
  assert given['coordinator_bind_address'].startswith('127.0.0.1:')
  assert given['coordinator_address'].partition(':')[0] == 'localhost'
  monkeypatch.setattr('jax._src.clusters.ClusterEnv', None)  # another version of JAX
  given.clear()
  hosts.join_processes('cluster')
  assert 'coordinator_address' not in given
