"""Outputs of a jitted function for any number of rows, in batches that fit the rows."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from electra_jax.training import partitioning
from electra_jax.training.length_batches import BatchPlanner, PlannedBatch, Shape

PyTree: TypeAlias = Any
Arrays: TypeAlias = dict[str, np.ndarray]
RowInputs: TypeAlias = Sequence[np.ndarray] | np.ndarray  # values per token, or per row


def padded_rows(rows: Sequence[np.ndarray], shape: Shape, fill: int) -> np.ndarray:
  """Rows of different lengths as one array, int32 `[shape.rows, shape.length]`.

  Args:
    rows: at most `shape.rows`, each of at most `shape.length` values.
    shape: of the array.
    fill: the value after the end of each row, and of rows that are not given.
  """
  array = np.full(shape, fill, np.int32)
  for i, row in enumerate(rows):
    array[i, : len(row)] = row
  return array


@dataclasses.dataclass(frozen=True)
class RowPredictor:
  """Applies a function to rows of token ids.

  Attributes:
    function: `(parameters, batch) -> outputs` under jax.jit; the batch has `token_ids` int32
      `[rows, length]` and further arrays, the outputs are replicated arrays `[rows, ...]`.
    planner: chooses the batches.
    pad_id: id of [PAD].
    mesh: the mesh.
  """

  function: Callable[[PyTree, dict[str, Any]], dict[str, jax.Array]]
  planner: BatchPlanner
  pad_id: int
  mesh: jax.sharding.Mesh

  def batches(
    self,
    params: PyTree,
    token_ids: Sequence[np.ndarray],
    others: Mapping[str, RowInputs] | None = None,
  ) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields numbers of rows, int64 `[n]`, and their outputs, `[n, ...]` by name.

    Outputs per token are as long as the batch. While the devices compute a batch, the host handles
    the outputs of the one before.

    Args:
      params: parameters of the function.
      token_ids: the rows, int32 `[length]` each.
      others: further inputs by name, with one value per token (a sequence of arrays) or per row (an
        array); they are padded with 0.
    """
    pending: tuple[np.ndarray, dict[str, jax.Array]] | None = None
    lengths = np.array([len(row) for row in token_ids], np.int64)
    for planned in self.planner.plan(lengths):
      outputs = self.function(params, self._batch(planned, token_ids, others or {}))
      if pending:
        yield _fetched(*pending)
      pending = planned.rows, outputs
    if pending:
      yield _fetched(*pending)

  def _batch(
    self,
    planned: PlannedBatch,
    token_ids: Sequence[np.ndarray],
    others: Mapping[str, RowInputs],
  ) -> dict[str, Any]:
    rows, shape = planned
    batch: dict[str, Any] = {
      'token_ids': padded_rows([token_ids[row] for row in rows], shape, self.pad_id)
    }
    for name, values in others.items():
      if isinstance(values, np.ndarray):
        batch[name] = np.zeros(shape.rows, values.dtype)
        batch[name][: len(rows)] = values[rows]
      else:
        batch[name] = padded_rows([values[row] for row in rows], shape, 0)
    # On one device the function takes NumPy arrays, which saves a third of a millisecond.
    return batch if self.mesh.size == 1 else partitioning.on_mesh(batch, self.mesh)


def _fetched(rows: np.ndarray, outputs: dict[str, jax.Array]) -> tuple[np.ndarray, Arrays]:
  for value in outputs.values():
    value.copy_to_host_async()
  # As jax.device_get, without its search for arrays in a tree.
  return rows, {name: np.asarray(value)[: len(rows)] for name, value in outputs.items()}
