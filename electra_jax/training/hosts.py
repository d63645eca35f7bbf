"""The processes of a run: joining them, work of the first one, and the loss of a process."""

import contextlib
import dataclasses
import hmac
import ipaddress
import json
import os
import secrets
import select
import selectors
import socket
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

from electra_jax import console, file_access, json_reader
from electra_jax.errors import UserError
from electra_jax.folder_lock import FolderLock
from electra_jax.training.preemption import metadata_server

T = TypeVar('T')

LOST = 43  # exit status: another process ended; the same command resumes from the last checkpoint
WAIT = 300  # seconds for all processes to start
LOCK_WAIT = 300  # seconds for the first process to take the run's folder
GRACE = 10  # seconds that a process has to end by itself after another ended with an error
MEET = 60.0  # seconds in which the processes connect to the first one
GREET = 5.0  # seconds that a connection has to show that it is a process of the run
HEARTBEAT = 100  # seconds without a heartbeat after which JAX ends a process

_TOKEN_BYTES = 32
_STRANGERS = 16  # connections that are not of the run and may be open at a time
_WELCOME = b'electra'
_LOOK = 0.2  # seconds


#### Joining ####


def of_cluster(environment: Mapping[str, str] = os.environ) -> str | None:
  """The variable that shows that this is one of several processes; None if there is none.

  Args:
    environment: variables of a TPU pod slice, SLURM or MPI.
  """

  def several(name: str) -> bool:
    return environment.get(name, '').isdigit() and int(environment[name]) > 1

  if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
    return 'TPU_WORKER_HOSTNAMES'
  for name in ('MEGASCALE_NUM_SLICES', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'JAX_NUM_PROCESSES'):
    if several(name) and not (name == 'SLURM_NTASKS' and 'SLURM_PROCID' not in environment):
      return name
  return None


def tpu_workers(metadata: str | None) -> int:
  """The number of hosts of the TPU slice that this machine is part of; 0 if it is not known.

  Args:
    metadata: address of Google Cloud's metadata server; None on other machines.
  """
  if metadata is None:
    return 0
  request = urllib.request.Request(
    f'http://{metadata}/computeMetadata/v1/instance/attributes/worker-network-endpoints',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=5) as response:
      return len(response.read().decode().split(','))
  except OSError:
    return 0


@dataclasses.dataclass(frozen=True)
class _Address:
  """Where the first process is, and the number of this one."""

  coordinator: str
  processes: int
  process: int


def join_processes(
  how: str = 'auto',
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Joins the processes of the run. Must be called before JAX is asked for devices.

  Afterwards only the first process prints to stdout and shows progress.

  Args:
    how: 'auto' (join if `coordinator` is given or the environment names several processes),
      'cluster' (ask the cluster: Cloud TPU, GKE, SLURM, MPI), or 'off'.
    coordinator: HOST:PORT of the first process, with a free port.
    processes: number of processes.
    process: number of this process, from 0.

  Raises:
    UserError: the arguments contradict each other, or not all processes start within WAIT seconds.
  """
  given = _given_address(how, coordinator, processes, process)
  if given:
    arguments: dict[str, Any] = {
      'coordinator_address': given.coordinator,
      'num_processes': given.processes,
      'process_id': given.process,
    }
  elif how == 'cluster' or how == 'auto' and (of_cluster() or tpu_workers(metadata_server()) > 1):
    arguments = _detected()
  else:
    return
  address = arguments.get('coordinator_address')
  if address and arguments.get('process_id') == 0:
    arguments['coordinator_bind_address'] = bind_address(address)
  try:
    jax.distributed.initialize(
      **arguments, initialization_timeout=WAIT, heartbeat_timeout_seconds=HEARTBEAT
    )
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200].rstrip('.')
    raise UserError(
      f'the processes of the run did not come together ({reason}); start the same command on every '
      'host, with the port of the coordinator open, or name them with --coordinator, --processes '
      'and --process; a single process takes --distributed=off.'
    ) from None
  if not first():
    sys.stdout = open(os.devnull, 'w')
    console.show_progress(False)
  if jax.process_count() > 1:
    _watch(address)


def _given_address(
  how: str, coordinator: str | None, processes: int | None, process: int | None
) -> _Address | None:
  """The address that flags give, checked; None if no flag is given."""
  if coordinator is None or processes is None or process is None:
    flags = {'--coordinator': coordinator, '--processes': processes, '--process': process}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) < len(flags):
      raise UserError(
        f'{missing[0]} is missing; --coordinator=HOST:PORT, --processes=N and --process=I go '
        'together.'
      )
    return None
  if not 0 <= process < processes:
    raise UserError(
      f'--process is {process} of {processes}; processes are numbered from 0 to {processes - 1}.'
    )
  if not coordinator.rpartition(':')[2].isdigit() or not coordinator.rpartition(':')[0]:
    raise UserError(f'--coordinator is {coordinator!r}; give the first process as HOST:PORT.')
  if how == 'off':
    raise UserError(
      '--distributed=off and --coordinator contradict each other; leave one of them out.'
    )
  return _Address(coordinator, processes, process)


def _detected() -> dict[str, Any]:
  """Arguments of jax.distributed.initialize that JAX finds out about the cluster; {} for none.

  JAX does it itself where they are not given, but they must be known before to bind the
  coordinator to one address. JAX 0.10 and 0.11 have no public name for this; where another version
  has none at all, JAX binds its coordinator to all addresses, as by default.
  """
  try:
    from jax._src.clusters import ClusterEnv

    address, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
      os.environ.get('JAX_COORDINATOR_ADDRESS'), None, None, None, None, WAIT
    )
  except Exception:  # of any kind: JAX then tries the same, and its error is reported
    return {}
  if address is None or processes is None or process is None:
    return {}
  return {
    'coordinator_address': address,
    'num_processes': processes,
    'process_id': process,
  }  # JAX finds the devices of the process then, also by JAX_LOCAL_DEVICE_IDS


def bind_address(coordinator: str) -> str | None:
  """Where the coordinator, which is in this process, should listen; None for JAX's default.

  Args:
    coordinator: HOST:PORT, as all processes know it.
  """
  if 'JAX_COORDINATOR_BIND_ADDRESS' in os.environ:  # JAX reads it
    return None
  address = own_address(coordinator)
  if address is None:
    return None
  port = coordinator.rpartition(':')[2]
  return f'[{address}]:{port}' if ':' in address else f'{address}:{port}'


def own_address(coordinator: str) -> str | None:
  """The address of the coordinator's host name that is one of this host's; None if none is.

  Some systems resolve a host's own name to a loopback address, which no other host could reach. It
  does not count unless the name is a loopback name.

  Args:
    coordinator: HOST:PORT.
  """
  host = coordinator.rpartition(':')[0].strip('[]')
  try:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    return None
  for family, _, _, _, (address, *_) in sorted(found):  # IPv4 first
    text = str(address)
    with contextlib.suppress(OSError, ValueError), socket.socket(family) as probe:
      if ipaddress.ip_address(text).is_loopback and not _is_loopback(host):
        continue
      probe.bind((text, 0))
      return text
  return None


def _is_loopback(host: str) -> bool:
  """Whether a name or address is meant as one of this machine only."""
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


#### All processes together ####


def first() -> bool:
  """Whether this process is the first, which writes what is written once."""
  return jax.process_index() == 0


def name() -> str:
  """A prefix for messages of this process, 'process 2 of 4: '; '' for a single process."""
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return ''
  return f'process {jax.process_index() + 1} of {jax.process_count()}: '


def from_first(make: Callable[[], T]) -> T:
  """Calls a function in the first process only, and returns its result in all of them.

  All processes must call this.

  Args:
    make: returns a value that JSON can represent.

  Raises:
    UserError: `make` raised it; it is raised in all processes.
  """
  if jax.process_count() == 1:
    return make()
  from jax.experimental import multihost_utils

  outcome: dict[str, Any] = {}
  if first():
    try:
      outcome = {'value': make()}
    except UserError as error:
      outcome = {'error': str(error)}
  text = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = multihost_utils.broadcast_one_to_all(text if first() else np.zeros(length, np.uint8))
  content = np.asarray(text, np.uint8).tobytes()
  outcome = json_reader.parse(content, 'what the first process sends', rules=json_reader.OWN)
  if 'error' in outcome:
    raise UserError(outcome['error'])
  value: T = outcome['value']
  return value


def acquire(lock: FolderLock) -> None:
  """Takes a folder for all processes. The first one holds the lock; all must call this.

  Raises:
    UserError: another run writes there, or the folder cannot be written; raised in all processes.
  """
  refusal: list[UserError] = []
  if first():
    try:
      lock.acquire()
    except UserError as error:
      refusal.append(error)
    before_exit(lock.release)
  wait_for_all('the folder of the run', LOCK_WAIT)  # the first may wait for a lost process

  def outcome() -> None:
    if refusal:
      raise refusal[0]

  from_first(outcome)


def wait_for_all(name: str, seconds: int) -> None:
  """Waits until every process has called this. Does not use the devices, whose timeout is short.

  Args:
    name: name of the place in the program.
    seconds: longest time to wait.

  Raises:
    UserError: a process did not call it in time.
  """
  if jax.process_count() == 1:
    return
  import orbax.checkpoint as ocp

  try:
    ocp.multihost.sync_global_processes(name, timeout=seconds)
  except Exception as error:  # of any kind: the runtime has no public types
    raise UserError(
      f'not every process came to {name!r} within {seconds} s '
      f'({" ".join(str(error).split())[:120]}).'
    ) from None


def gather(value: int) -> list[int]:
  """An integer of each process, in their order, on every process."""
  if jax.process_count() == 1:
    return [int(value)]
  from jax.experimental import multihost_utils

  # As bytes: JAX would truncate integers to 32 bits.
  gathered = multihost_utils.process_allgather(np.frombuffer(np.int64(value).tobytes(), np.uint8))
  values: list[int] = np.ascontiguousarray(gathered).view(np.int64).ravel().tolist()
  return values


def same_everywhere(what: str, text: str) -> None:
  """Checks that a text is the same in all processes.

  Args:
    what: what the text describes, for the message.
    text: the text.

  Raises:
    UserError: it differs; raised in all processes.
  """
  sums = gather(zlib.crc32(text.encode()))
  if others := [i for i, other in enumerate(sums) if other != sums[0]]:
    raise UserError(
      f'{what} of process {others[0] + 1} is not that of process 1; start the same command, on the '
      'same files, on every host.'
    )


def check_shared(workdir: epath.Path) -> None:
  """Checks that all processes see config.json, which the first one wrote into the run's folder.

  Raises:
    UserError: a process does not see it; raised in all processes.
  """
  seen = gather(file_access.exists(workdir / 'config.json'))
  if not all(seen):
    raise UserError(
      f'--workdir {workdir} is not the same folder for process {seen.index(0) + 1} as for process '
      '1; all processes need it: use a shared file system, or gs://.'
    )


#### Noticing that a process was lost ####
#
# A step waits for every process. If one is lost, the others would wait until JAX's heartbeats stop
# them with a stack trace, and a collective operation in flight may hang longer. So each process
# keeps a connection to the first one. The kernel closes it whatever a process dies of, and TCP
# keepalive finds machines that vanished.
#
# The first process listens only until the others are connected, on one address, and only to
# processes that send a random token. JAX distributes the token: a collective operation over its
# devices gives it to the processes that its coordinator has joined.

_links: list[socket.socket] = []
_ended = threading.Event()  # another process ended, and this one will soon
_leaving = threading.Event()  # this process ends with its own error
_before_exit: list[Callable[[], None]] = []  # called before this process ends with LOST


def before_exit(call: Callable[[], None]) -> None:
  """Registers a function to call before this process ends because another one was lost."""
  _before_exit.append(call)


def forget_exit(call: Callable[[], None]) -> None:
  """Removes a function that `before_exit` registered, if it did."""
  if call in _before_exit:
    _before_exit.remove(call)


def _keepalive(link: socket.socket) -> None:
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (('TCP_KEEPIDLE', 20), ('TCP_KEEPINTVL', 10), ('TCP_KEEPCNT', 3)):
    if hasattr(socket, option):  # not on every system
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _address() -> str:
  """This host's address as other hosts see it."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('192.0.2.1', 9))  # sends nothing: it asks which interface leads out
      return str(probe.getsockname()[0])
    except OSError:
      return '127.0.0.1'


def _watch(coordinator: str | None) -> None:
  """Connects the processes, and starts the thread that ends this one when another is lost.

  Args:
    coordinator: HOST:PORT; None if it is not known.
  """
  server = listening(coordinator, jax.process_count()) if first() else None
  # Only processes that JAX has joined get the token.
  token, address, port = from_first(lambda: _invitation(server))
  if server is not None:
    with server:
      _links.extend(accepted(server, token, jax.process_count()))
  elif (link := connected(address, port, token, jax.process_index())) is not None:
    _links.append(link)
  for link in _links:
    _keepalive(link)
    link.settimeout(None)
  if not _links:
    print(
      f'electra_jax: {name()}no connection to the first process; if one is lost, this is noticed '
      f'after {HEARTBEAT} s.',
      file=sys.stderr,
    )
  threading.Thread(target=_listen, args=(list(_links),), daemon=True).start()


def listening(coordinator: str | None, processes: int) -> socket.socket:
  """A server of the first process, on its address in the coordinator's network, at a free port.

  Args:
    coordinator: HOST:PORT; None if it is not known.
    processes: number of processes.
  """
  address = (own_address(coordinator) if coordinator else None) or _address()
  family = socket.AF_INET6 if ':' in address else socket.AF_INET
  return socket.create_server((address, 0), family=family, backlog=processes + _STRANGERS)


def _invitation(server: socket.socket | None) -> tuple[str, str, int]:
  """A new token, and address and port of the server of the first process."""
  assert server is not None
  address, port = server.getsockname()[:2]
  return secrets.token_hex(_TOKEN_BYTES), address, port


def _greeting(token: str, process: int) -> bytes:
  """What a process sends first, of the same length for all."""
  return f'{token} {process:08d}'.encode()


def accepted(
  server: socket.socket, token: str, processes: int, seconds: float = MEET
) -> list[socket.socket]:
  """The connections of all other processes, those that came within a time.

  Whoever else connects is disconnected without effect: after a wrong greeting, after GREET seconds
  without a complete one, and the oldest one when there are too many.

  Args:
    server: the server.
    token: that the other processes send.
    processes: number of processes.
    seconds: longest time to wait.
  """
  links: dict[int, socket.socket] = {}
  waiting: dict[socket.socket, tuple[bytes, float]] = {}  # what was received, and until when
  size = len(_greeting(token, 0))

  def dismiss(link: socket.socket) -> None:
    selector.unregister(link)
    del waiting[link]

  def admit() -> None:
    with contextlib.suppress(OSError):
      link, _ = server.accept()
      link.setblocking(False)
      selector.register(link, selectors.EVENT_READ)
      waiting[link] = b'', time.monotonic() + GREET
    if len(waiting) > processes + _STRANGERS:
      oldest = next(iter(waiting))
      dismiss(oldest)
      oldest.close()

  def receive(link: socket.socket) -> None:
    received, until = waiting[link]
    try:
      piece = link.recv(size - len(received))
    except BlockingIOError:
      return
    except OSError:
      piece = b''
    received += piece
    if piece and len(received) < size:
      waiting[link] = received, until
      return
    dismiss(link)
    process = _greeted(received, token, processes)
    if process is None or process in links:
      link.close()
      return
    links[process] = link
    with contextlib.suppress(OSError):
      link.sendall(_WELCOME)

  end = time.monotonic() + seconds
  server.setblocking(False)
  with selectors.DefaultSelector() as selector:
    selector.register(server, selectors.EVENT_READ)
    while len(links) < processes - 1 and (left := end - time.monotonic()) > 0:
      for key, _ in selector.select(min(left, _LOOK)):
        link = key.fileobj
        if link is server:
          admit()
        elif isinstance(link, socket.socket) and link in waiting:
          receive(link)
      for link in [link for link, (_, until) in waiting.items() if until < time.monotonic()]:
        dismiss(link)
        link.close()
    for link in list(waiting):
      link.close()
  return list(links.values())


def _greeted(received: bytes, token: str, processes: int) -> int | None:
  """The process that a greeting is from; None if it is none of the run's."""
  start, _, number = received.rpartition(b' ')
  if not hmac.compare_digest(start, token.encode()) or not number.isdigit():
    return None
  return int(number) if 0 < int(number) < processes else None


def connected(
  address: str, port: int, token: str, process: int, seconds: float = MEET / 2
) -> socket.socket | None:
  """A connection to the first process, which has accepted it; None if none is possible.

  Args:
    address: of the first process.
    port: of its server.
    token: that shows that this is a process of the run.
    process: number of this process, from 0.
    seconds: longest time to try.
  """
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    try:
      link = socket.create_connection((address, port), timeout=GREET)
    except OSError:
      time.sleep(_LOOK)
      continue
    try:
      link.settimeout(max(GREET, end - time.monotonic()))
      link.sendall(_greeting(token, process))
      if link.recv(len(_WELCOME), socket.MSG_WAITALL) == _WELCOME:
        return link
    except OSError:
      pass
    link.close()
    time.sleep(_LOOK)
  return None


def _listen(links: list[socket.socket]) -> None:
  """Ends this process when another one ended.

  It ends at once if the other was killed, and after GRACE seconds if it ended with an error.
  """
  while links:
    for link in select.select(links, [], [])[0]:
      try:
        message = link.recv(64)
      except OSError:
        message = b''
      if message.startswith(b'done'):
        links.remove(link)
        continue
      _ended.set()
      if message.startswith(b'error'):
        time.sleep(GRACE)
      if _leaving.is_set():
        return
      sys.stdout.flush()
      print(
        f'electra_jax: {name()}another process of the run ended; this one ends too, and the same '
        'command resumes from the last checkpoint.',
        file=sys.stderr,
        flush=True,
      )
      for other in _links:
        other.close()
      for call in list(_before_exit):  # a bucket may not answer: the exit does not wait long
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(GRACE)
      os._exit(LOST)  # exit handlers would wait for the process that was lost


def give_way() -> None:
  """Waits after an unexpected error for the end of this process, if another process was lost.

  The error is then a consequence of that loss. Returns if no process was lost.
  """
  if _links and _ended.wait(2):
    time.sleep(2 * GRACE)


def leave(agreed: bool) -> bool:
  """Informs the other processes that this one ends; they would take it for lost otherwise.

  Args:
    agreed: whether the other processes end now as well.

  Returns:
    Whether there are other processes.
  """
  links = list(_links)
  _links.clear()
  if not agreed:
    _leaving.set()
  for link in links:
    try:
      link.setblocking(False)
      link.sendall(b'done' if agreed else b'error')
    except OSError:
      pass
  # JAX's service ends with the first process, and would end the others with a stack trace.
  if links and not agreed and first():
    _outlast(list(links))
  return bool(links)


def _outlast(links: list[socket.socket]) -> None:
  """Waits until the other processes have ended, for a limited time."""
  end = time.monotonic() + 2 * GRACE
  while links and (left := end - time.monotonic()) > 0:
    for link in select.select(links, [], [], left)[0]:
      try:
        gone = not link.recv(64)
      except BlockingIOError:  # the listening thread was faster
        gone = False
      except OSError:
        gone = True
      if gone:
        links.remove(link)
