"""What the tasks, searches and trials of a fine-tuning run share."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from etils import epath

from electra_jax.config import FinetuningConfig
from electra_jax.errors import UserError
from electra_jax.finetune import initial
from electra_jax.training import partitioning
from electra_jax.training.preemption import Notice
from electra_jax.training.product_types import ProductType
from electra_jax.training.status import Status


@dataclasses.dataclass(frozen=True)
class FinetuningSetup:
  """What the tasks of a run share.

  Attributes:
    config: the run's config; of a task after a search, with the chosen setting.
    workdir: the run's folder.
    start: encoder and tokenizer that all trials start from.
    layout: the mesh.
    notice: true once this process is asked to stop.
    status: status file of the run.
    products: the dtype of matrix products, which config.dtype names, and why it was chosen.
  """

  config: FinetuningConfig
  workdir: epath.Path
  start: initial.Initial
  layout: partitioning.Layout
  notice: Notice
  status: Status
  products: ProductType


@contextlib.contextmanager
def memory_errors(task: str) -> Iterator[None]:
  """Raises UserError, with what to change, where a block exceeds the memory of a device."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise UserError(
      f'{task} does not fit the memory of a device; split its batches '
      '(--config.micro_batches=2), recompute activations (--config.model.remat=full), or lower '
      '--config.eval_batch_size.'
    ) from None
