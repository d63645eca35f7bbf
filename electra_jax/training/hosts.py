"""The processes of a run: joining them, work of the first one, and the loss of a process."""

import dataclasses
import json
import os
import select
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

from electra_jax import file_access, json_reader
from electra_jax.errors import UserError
from electra_jax.training.preemption import metadata_server

T = TypeVar('T')

LOST = 43  # exit status: another process ended; the same command resumes from the last checkpoint
WAIT = 300  # seconds for all processes to start
GRACE = 10  # seconds that a process has to end by itself after another ended with an error
HEARTBEAT = 100  # seconds without a heartbeat after which JAX ends a process


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

  Afterwards only the first process prints to stdout.

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
    arguments = {}
  else:
    return
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
  if jax.process_count() > 1:
    _watch()


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


def _watch() -> None:
  """Connects the processes, and starts the thread that ends this one when another is lost."""
  server = socket.create_server(('', 0), backlog=jax.process_count()) if first() else None
  port, addresses = from_first(lambda: _where(server))
  if server is None:
    _connect(port, addresses)
  else:
    with server:
      _accept_all(server)
  for link in _links:
    link.settimeout(None)
  if not _links:
    print(
      f'electra_jax: {name()}no connection to the first process; if one is lost, this is noticed '
      f'after {HEARTBEAT} s.',
      file=sys.stderr,
    )
  threading.Thread(target=_listen, args=(list(_links),), daemon=True).start()


def _where(server: socket.socket | None) -> tuple[int, list[str]]:
  """Port of the server of the first process, and addresses of its host to try."""
  port = server.getsockname()[1] if server else 0
  return port, [_address(), socket.gethostname(), '127.0.0.1']


def _accept_all(server: socket.socket) -> None:
  """Accepts the connections of all other processes, for a minute."""
  server.settimeout(60)
  while len(_links) < jax.process_count() - 1:
    try:
      link, _ = server.accept()
    except OSError:
      break
    link.settimeout(60)
    try:
      greeting = link.recv(16)
    except OSError:  # not a process of the run
      continue
    if greeting.startswith(b'electra '):
      _keepalive(link)
      _links.append(link)


def _connect(port: int, addresses: list[str]) -> None:
  """Connects to the first process, at the first address that answers."""
  for address in addresses:
    try:
      link = socket.create_connection((address, port), timeout=5)
      link.sendall(b'electra %d' % (jax.process_index() + 1))
      _keepalive(link)
      _links.append(link)
      break
    except OSError:
      continue


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
