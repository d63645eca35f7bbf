"""Requests to stop: SIGTERM, Ctrl-C, and Google Cloud's notices of maintenance.

Clusters send SIGTERM before they take a machine away.
"""

import http.client
import os
import pathlib
import signal
import threading
import types
import urllib.request

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from electra_jax.errors import Preempted

POLL = 5.0  # seconds between two requests for the notices of the machine


class Notice:
  """True once the process is asked to stop, by SIGTERM, Ctrl-C or a notice of maintenance.

  Before `heed` is called no state exists that could be saved: SIGTERM raises Preempted in the main
  thread, and Ctrl-C KeyboardInterrupt. A second Ctrl-C always raises KeyboardInterrupt.
  """

  def __init__(self) -> None:
    """Handles SIGTERM from now on and, on Google Cloud, polls for notices."""
    self._asked = self._heeding = False
    signal.signal(signal.SIGTERM, self._ask)
    if metadata := metadata_server():
      threading.Thread(target=self._poll, args=(metadata,), daemon=True).start()

  def heed(self) -> None:
    """Declares that the caller checks the notice from now on, and stops by itself."""
    self._heeding = True
    signal.signal(signal.SIGINT, self._ask)

  def _ask(self, number: int, frame: types.FrameType | None) -> None:
    if self._asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._asked = True
    if not self._heeding:
      raise Preempted('asked to stop before the first step; the same command starts again.')

  def _poll(self, metadata: str) -> None:
    pause = threading.Event()
    while not self._asked:
      if leaving(metadata):
        os.kill(os.getpid(), signal.SIGTERM)
        return
      pause.wait(POLL)

  def __bool__(self) -> bool:
    """Whether the process is asked to stop."""
    return self._asked


def metadata_server() -> str | None:
  """The address of Google Cloud's metadata server; None on other machines."""
  if host := os.environ.get('GCE_METADATA_HOST'):
    return host
  try:
    product = pathlib.Path('/sys/class/dmi/id/product_name').read_text()
  except OSError:
    return None
  return 'metadata.google.internal' if 'Google' in product else None


def leaving(metadata: str) -> bool:
  """Whether the machine will soon be preempted, or stopped for maintenance.

  Args:
    metadata: address of the metadata server.
  """
  for key, stay in (('preempted', 'FALSE'), ('maintenance-event', 'NONE')):
    request = urllib.request.Request(
      f'http://{metadata}/computeMetadata/v1/instance/{key}', headers={'Metadata-Flavor': 'Google'}
    )
    try:
      with urllib.request.urlopen(request, timeout=POLL) as response:
        answer = response.read().decode().strip()
    except (OSError, http.client.HTTPException):  # no answer, or the machine lacks the key
      continue
    # With MIGRATE_ON_HOST_MAINTENANCE the machine keeps running; TPU VMs are terminated.
    if answer != stay and not answer.startswith('MIGRATE'):
      return True
  return False


class Agreement:
  """Makes all processes stop after the same step.

  Each process passes on in every step whether it is asked to stop, and gets the answer of all
  processes to the step before. A single process gets its own answer at once.
  """

  def __init__(self, mesh: jax.sharding.Mesh) -> None:
    """Compiles the exchange on a mesh of all devices."""
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._any = jax.jit(
      lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    self._count = mesh.size
    self._answer: jax.Array | None = None

  def __call__(self, asked: bool) -> bool:
    """Whether any process was asked to stop. All processes must call this in every step.

    Args:
      asked: whether this process is asked to stop.
    """
    if jax.process_count() == 1:
      return asked
    answer = self._answer
    flags = jax.make_array_from_callback(
      (self._count,), self._sharding, lambda _: np.full(1, asked, np.int32)
    )
    self._answer = self._any(flags)
    return answer is not None and bool(answer)
