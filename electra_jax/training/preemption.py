"""Being asked to leave: SIGTERM, as clusters send it before they take a machine away, and Google Cloud's notices of maintenance."""

import http.client
import os
import pathlib
import signal
import threading
import urllib.request

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from electra_jax.errors import Preempted

POLL = 5.0  # seconds between two looks at the notices of the machine


class Notice:
  """True once the process was asked to stop. Ctrl-C counts the first time; the second time it interrupts.

  Until `heed` is called there is nothing to save, and SIGTERM raises Preempted in the main thread.
  """

  def __init__(self):
    self._asked = self._heeding = False
    signal.signal(signal.SIGTERM, self._ask)
    if metadata := metadata_server():
      threading.Thread(target=self._look, args=(metadata,), daemon=True).start()

  def heed(self) -> None:
    """From now on whoever runs the loop looks at this and stops by itself."""
    self._heeding = True
    signal.signal(signal.SIGINT, self._ask)

  def _ask(self, number, frame):
    if self._asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._asked = True
    if not self._heeding:
      raise Preempted('asked to stop before the first step; the same command begins again.')

  def _look(self, metadata):
    pause = threading.Event()
    while not self._asked:
      if leaving(metadata):
        os.kill(os.getpid(), signal.SIGTERM)
        return
      pause.wait(POLL)

  def __bool__(self):
    return self._asked


def metadata_server() -> str | None:
  """The address of Google Cloud's metadata server, or None where this is no machine of theirs."""
  if host := os.environ.get('GCE_METADATA_HOST'):
    return host
  try:
    product = pathlib.Path('/sys/class/dmi/id/product_name').read_text()
  except OSError:
    return None
  return 'metadata.google.internal' if 'Google' in product else None


def leaving(metadata: str) -> bool:
  """Whether the machine is about to be taken away (preempted), or stopped for maintenance, as its metadata say."""
  for key, stay in (('preempted', 'FALSE'), ('maintenance-event', 'NONE')):
    request = urllib.request.Request(
      f'http://{metadata}/computeMetadata/v1/instance/{key}', headers={'Metadata-Flavor': 'Google'}
    )
    try:
      with urllib.request.urlopen(request, timeout=POLL) as response:
        said = response.read().decode().strip()
    except (
      OSError,
      http.client.HTTPException,
    ):  # not reached, no answer to be read, or a key that this machine does not have
      continue
    # A live migration (MIGRATE_ON_HOST_MAINTENANCE) goes on by itself; TPU VMs are terminated.
    if said != stay and not said.startswith('MIGRATE'):
      return True
  return False


class Agreement:
  """What any process was asked, known to all of them at the same step: each asks in every step, and hears what was said in the one before.

  On one process it is heard at once.
  """

  def __init__(self, mesh):
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._any = jax.jit(
      lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    self._count, self._said = mesh.size, None

  def __call__(self, asked: bool) -> bool:
    if jax.process_count() == 1:
      return asked
    said = self._said
    flags = jax.make_array_from_callback(
      (self._count,), self._sharding, lambda _: np.full(1, asked, np.int32)
    )
    self._said = self._any(flags)
    return said is not None and bool(said)
