"""The processes of a run: joining them, what the first of them does for all, and noticing when one of them is gone."""

import json
import os
import select
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable

import jax
import numpy as np

from electra_jax.errors import UserError
from electra_jax.training import run_folder
from electra_jax.training.preemption import metadata_server

LOST = 43  # exit status: another process of the run ended; the same command goes on from the last checkpoint
WAIT = 300  # seconds for all processes to come, at the start
GRACE = 10  # seconds that a process has to end by itself after another ended with an error
HEARTBEAT = 100  # seconds without a sign of life after which JAX itself gives a process up


def of_cluster(environment=os.environ) -> str | None:
  """What in the environment says that this is one of several processes, or None: a TPU pod slice, SLURM or MPI."""

  def several(name):
    return environment.get(name, '').isdigit() and int(environment[name]) > 1

  if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
    return 'TPU_WORKER_HOSTNAMES'
  for name in ('MEGASCALE_NUM_SLICES', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'JAX_NUM_PROCESSES'):
    if several(name) and not (name == 'SLURM_NTASKS' and 'SLURM_PROCID' not in environment):
      return name
  return None


def tpu_workers(metadata: str | None) -> int:
  """How many hosts the TPU slice of this machine has, as Google Cloud's metadata server says; 0 where it does not."""
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


def join(
  how: str = 'auto',
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Joins the run's processes; to be called before anything asks JAX for a device. Then only the first one prints.

  Args:
    how: 'auto' (join where `coordinator` is given or the environment names several processes), 'cluster' (ask the
      cluster: Cloud TPU, GKE, SLURM, MPI), or 'off'.
    coordinator: HOST:PORT of the first process, where a port is free.
    processes, process: how many there are, and the number of this one.

  Raises UserError where what is given does not fit together, or the others do not come within WAIT seconds.
  """
  given = {'--coordinator': coordinator, '--processes': processes, '--process': process}
  if any(value is not None for value in given.values()):
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise UserError(
        f'{missing[0]} is missing; --coordinator=HOST:PORT, --processes=N and --process=I go together.'
      )
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
    arguments = {
      'coordinator_address': coordinator,
      'num_processes': processes,
      'process_id': process,
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
      f'the processes of the run did not come together ({reason}); start the same command on every host, with the port of '
      'the coordinator open, or name them with --coordinator, --processes and --process; a process that is alone takes --distributed=off.'
    ) from None
  if not first():
    sys.stdout = open(os.devnull, 'w')
  if jax.process_count() > 1:
    _watch()


def first() -> bool:
  """Whether this process is the one that writes what is written once."""
  return jax.process_index() == 0


def name() -> str:
  """'process 2 of 4: ' where there are several, for what a process says of itself."""
  alone = not jax.distributed.is_initialized() or jax.process_count() == 1
  return '' if alone else f'process {jax.process_index() + 1} of {jax.process_count()}: '


def from_first(make):
  """What `make()`, called by the first process alone, returns: a value that JSON has, the same on every process.

  A UserError that it raises is raised on every process. All processes must call this.
  """
  if jax.process_count() == 1:
    return make()
  from jax.experimental import multihost_utils

  said = {}
  if first():
    try:
      said = {'value': make()}
    except UserError as error:
      said = {'error': str(error)}
  text = np.frombuffer(json.dumps(said).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  text = multihost_utils.broadcast_one_to_all(text if first() else np.zeros(length, np.uint8))
  said = json.loads(np.asarray(text, np.uint8).tobytes())
  if 'error' in said:
    raise UserError(said['error'])
  return said['value']


def wait_for_all(name: str, seconds: int) -> None:
  """Waits until every process is here. Without the devices, whose own patience is short. Raises UserError when one is not."""
  if jax.process_count() == 1:
    return
  import orbax.checkpoint as ocp

  try:
    ocp.multihost.sync_global_processes(name, timeout=seconds)
  except Exception as error:  # of the runtime below, which has no public types
    raise UserError(
      f'not every process came to {name!r} within {seconds} s ({" ".join(str(error).split())[:120]}).'
    ) from None


def gather(value) -> list:
  """One whole number of each process, in their order, on every process."""
  if jax.process_count() == 1:
    return [int(value)]
  from jax.experimental import multihost_utils

  # As bytes: of integers of 64 bits JAX would keep 32.
  said = multihost_utils.process_allgather(np.frombuffer(np.int64(value).tobytes(), np.uint8))
  return np.ascontiguousarray(said).view(np.int64).ravel().tolist()


def same_everywhere(what: str, text: str) -> None:
  """Raises UserError, on every process, where `text` is not the same on all of them."""
  import zlib

  sums = gather(zlib.crc32(text.encode()))
  if others := [i for i, other in enumerate(sums) if other != sums[0]]:
    raise UserError(
      f'{what} of process {others[0] + 1} is not that of process 1; start the same command, on the same files, on every host.'
    )


def check_shared(workdir) -> None:
  """Raises UserError, on every process, where one of them does not see what the first wrote into WORKDIR."""
  seen = gather(run_folder.exists(workdir / 'config.json'))
  if not all(seen):
    raise UserError(
      f'--workdir {workdir} is not the same folder for process {seen.index(0) + 1} as for process 1; all processes need it: '
      'use a shared file system, or gs://.'
    )


#### Noticing that a process is gone ##########################################################################
#
# A step waits for every process. When one is gone the others would wait until JAX's heartbeats stop them, with a stack trace, and a
# collective that is in flight may hang longer. So each process keeps a connection to the first one; the kernel closes it whatever a
# process dies of, and TCP keepalive finds machines that vanished.

_links: list[socket.socket] = []
_ended = threading.Event()  # another process has, and this one is about to
_leaving = threading.Event()  # this one has an error of its own to end with
_before_exit: list[Callable[[], None]] = []  # called before this process ends with LOST


def before_exit(call: Callable[[], None]) -> None:
  """Has a function called before this process ends because another one was lost."""
  _before_exit.append(call)


def forget_exit(call: Callable[[], None]) -> None:
  """Takes back what `before_exit` was given, if it was."""
  if call in _before_exit:
    _before_exit.remove(call)


def _keepalive(link):
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in (('TCP_KEEPIDLE', 20), ('TCP_KEEPINTVL', 10), ('TCP_KEEPCNT', 3)):
    if hasattr(socket, option):  # not on every system
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _address() -> str:
  """This host's address as other hosts see it."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(('192.0.2.1', 9))  # sends nothing: it asks which interface leads out
      return probe.getsockname()[0]
    except OSError:
      return '127.0.0.1'


def _watch():
  server = socket.create_server(('', 0), backlog=jax.process_count()) if first() else None
  port, addresses = from_first(
    lambda: [server.getsockname()[1], [_address(), socket.gethostname(), '127.0.0.1']]
  )
  number = jax.process_index() + 1
  if first():
    server.settimeout(60)
    while len(_links) < jax.process_count() - 1:
      try:
        link, _ = server.accept()
      except OSError:
        break
      link.settimeout(60)
      try:
        theirs = link.recv(16)
      except OSError:  # not one of ours
        continue
      if theirs.startswith(b'electra '):
        _keepalive(link)
        _links.append(link)
  else:
    for address in addresses:
      try:
        link = socket.create_connection((address, port), timeout=5)
        link.sendall(b'electra %d' % number)
        _keepalive(link)
        _links.append(link)
        break
      except OSError:
        continue
  for link in _links:
    link.settimeout(None)
  if not _links:
    print(
      f'electra_jax: {name()}no connection to the first process; if one is lost, this is noticed after {HEARTBEAT} s.',
      file=sys.stderr,
    )
  threading.Thread(target=_listen, args=(list(_links),), daemon=True).start()


def _listen(links):
  """Ends this process when another one has: at once when it was killed, after GRACE seconds when it ended with an error."""
  while links:
    for link in select.select(links, [], [])[0]:
      try:
        said = link.recv(64)
      except OSError:
        said = b''
      if said.startswith(b'done'):
        links.remove(link)
        continue
      _ended.set()
      if said.startswith(b'error'):
        time.sleep(GRACE)
      if _leaving.is_set():
        return
      sys.stdout.flush()
      print(
        f'electra_jax: {name()}another process of the run ended; this one ends too, and the same command goes on from the last '
        'checkpoint.',
        file=sys.stderr,
        flush=True,
      )
      for other in _links:
        other.close()
      for call in list(_before_exit):  # a bucket may not answer: the exit does not wait long
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(GRACE)
      os._exit(LOST)  # exit handlers would wait for the process that is gone


def give_way() -> None:
  """To be called on an error that nobody expected: where another process ended, it is of that, and this one ends as said above."""
  if _links and _ended.wait(2):
    time.sleep(2 * GRACE)


def leave(agreed: bool) -> bool:
  """Says goodbye to the other processes, who would else take this one for lost; whether there are any. `agreed`: they end now as well."""
  links, _links[:] = list(_links), []
  if not agreed:
    _leaving.set()
  for link in links:
    try:
      link.setblocking(False)
      link.sendall(b'done' if agreed else b'error')
    except OSError:
      pass
  if (
    links and not agreed and first()
  ):  # JAX's service ends with this process, and would end the others with a stack trace
    _outlast(list(links))
  return bool(links)


def _outlast(links):
  end = time.monotonic() + 2 * GRACE
  while links and (left := end - time.monotonic()) > 0:
    for link in select.select(links, [], [], left)[0]:
      try:
        gone = not link.recv(64)
      except BlockingIOError:  # the listening thread was first
        gone = False
      except OSError:
        gone = True
      if gone:
        links.remove(link)
