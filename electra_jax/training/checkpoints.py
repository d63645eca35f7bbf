"""Orbax checkpoints. Each step has separate items.

The items are the parameters, the optimizer state, the counters, and the sums of training metrics
since the last log line.
"""

import contextlib
import dataclasses
import errno
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from electra_jax import console, file_access, registry
from electra_jax.config import PretrainingConfig
from electra_jax.errors import UserError
from electra_jax.training import checkpoint_files, run_folder
from electra_jax.training.update_step import TrainState, no_skips

PyTree = Any
PathLike = str | os.PathLike[str]

_ITEMS = ('params', 'opt_state', 'counters', 'sums')
# What a disk or a network file system may report.
_SYSTEM_ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EIO,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.ESTALE,
  errno.EMFILE,
  errno.ENAMETOOLONG,
  errno.ENOENT,
)
_STRAGGLERS = 60.0  # seconds to wait for other parts of a save that failed
_COUNTERS = ('step', 'skipped', 'bad_step', 'recent_skips')  # fields of TrainState


@dataclasses.dataclass(frozen=True)
class Criterion:
  """How the best checkpoint of a run or trial is chosen.

  Attributes:
    metric: name of the evaluation metric.
    mode: whether the lowest or the highest value is the best.
  """

  metric: str
  mode: Literal['min', 'max']

  def value(self, metrics: Mapping[str, float]) -> float:
    """The metric's value, or one that every finite value is better than if it is not finite.

    Orbax would rank nan best. Checkpoints of another criterion have no such metric.
    """
    value = metrics.get(self.metric, math.nan)
    worst = -math.inf if self.mode == 'max' else math.inf
    return value if math.isfinite(value) else worst


# Of pretraining runs.
HELDOUT_LOSS = Criterion('total_loss', 'min')
REFERENCE_AP = Criterion('reference_ap', 'max')


def run_criterion(config: PretrainingConfig) -> Criterion:
  """How the best checkpoint of a pretraining run is chosen: `config.best_by`."""
  if config.best_by == 'total_loss':
    return HELDOUT_LOSS
  criterion: Criterion = registry.OBJECTIVES.get(config.objective.name).best_by
  return criterion


#### Saving ####


def open_manager(
  workdir: PathLike,
  *,
  keep: int = 1,
  read_only: bool = False,
  best_by: Criterion = HELDOUT_LOSS,
) -> ocp.CheckpointManager:
  """Opens WORKDIR/checkpoints. Saves run in the background.

  An interrupted save never gets its final name, or in a bucket its file commit_success.txt; then
  the checkpoint before it is read.

  Args:
    workdir: folder of the run or trial.
    keep: number of last checkpoints to keep, beside the best one.
    read_only: do not write or remove anything.
    best_by: how the best checkpoint is chosen.

  Raises:
    UserError: the bucket cannot be reached, or metrics of a checkpoint are damaged.
  """
  policies = ocp.checkpoint_managers
  mode = best_by.mode
  preservation = policies.AnyPreservationPolicy(
    [
      policies.LatestN(keep),
      policies.BestN(
        get_metric_fn=lambda metrics: best_by.value(metrics) * (1 if mode == 'max' else -1),
        n=1,
        keep_checkpoints_without_metrics=False,
      ),
    ]
  )
  options = ocp.CheckpointManagerOptions(
    best_fn=best_by.value,
    best_mode=mode,
    read_only=read_only,
    create=not read_only,
    cleanup_tmp_directories=not read_only,
    preservation_policy=None if read_only else preservation,
    temporary_path_class=_temporary_path(workdir),
    # Otherwise what is written into a folder waits 5 minutes for it, where it cannot be created.
    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
  )
  directory = _directory(workdir)
  checkpoint_files.check_opened(directory)
  with file_access.reaching(directory):
    manager = ocp.CheckpointManager(directory, options=options, item_names=_ITEMS)
    # A thread removes unfinished saves, and only the next save waits for it. If there is none, the
    # thread would outlive the manager, fail at exit and leave them. Orbax 0.12.8 has no public name
    # for this.
    manager._maybe_await_cleanup_tmp_directory()
    return manager


def _temporary_path(workdir: PathLike) -> type:
  remote = file_access.is_remote(_directory(workdir))
  return checkpoint_files.CheckedCommit if remote else checkpoint_files.CheckedRename


def _directory(workdir: PathLike) -> epath.Path:
  directory = run_folder.folder(workdir) / 'checkpoints'
  if file_access.is_remote(directory):
    return directory
  absolute = pathlib.Path(directory).absolute()
  # TensorStore refuses `..`, which may follow a link: it cannot be removed from the text.
  return run_folder.LocalPath(os.path.realpath(absolute) if '..' in absolute.parts else absolute)


def any_saved(workdir: PathLike) -> bool:
  """Whether the run has a complete checkpoint. A single process may call this."""
  directory = _directory(workdir)
  with file_access.reaching(directory):
    return directory.is_dir() and bool(ocp.utils.checkpoint_steps_paths(directory))


def latest_saved(workdir: PathLike) -> int | None:
  """The step of the newest complete checkpoint; None if there is none.

  A single process may call this. A save in progress does not count.
  """
  directory = _directory(workdir)
  with file_access.reaching(directory):
    if file_access.is_remote(directory):
      paths = ocp.utils.checkpoint_steps_paths(directory)
    else:  # a folder gets its final name, the step, when it is complete
      paths = directory.iterdir() if directory.is_dir() else ()
    return max((int(path.name) for path in paths if path.name.isdigit()), default=None)


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: TrainState,
  sums: PyTree,
  value: float | None,
  best_by: Criterion = HELDOUT_LOSS,
) -> None:
  """Starts to save a checkpoint. Does not wait for the disk.

  Args:
    manager: manager of the checkpoints.
    step: step of the checkpoint.
    state: state after that step.
    sums: sums of training metrics since the last log line.
    value: value of `best_by.metric` at this step; None if it was not computed. One that is not
      finite counts as not computed.
    best_by: how the best checkpoint is chosen.

  Raises:
    file_access.Unwritable: it cannot be written, or the save before could not be.
  """
  if value is not None and not math.isfinite(value):
    value = None
  counters = {name: getattr(state, name) for name in _COUNTERS}
  item = ocp.args.StandardSave
  with _writing(manager):
    manager.save(
      step,
      args=ocp.args.Composite(
        params=item(state.params),
        opt_state=item(state.opt_state),
        counters=item(counters),
        sums=item(sums),
      ),
      metrics=None if value is None else {best_by.metric: value},
      force=True,
    )


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until all started saves are complete.

  Raises:
    file_access.Unwritable: one could not be written.
  """
  with _writing(manager):
    manager.wait_until_finished()


def recover(manager: ocp.CheckpointManager) -> None:
  """Makes a manager usable after a save that failed: removes what it left, and looks again."""
  directory = manager.directory
  # One failure ends the save, while the threads of its other parts may still write. Orbax 0.12.8
  # has no public name for them.
  background = getattr(manager._checkpointer, '_async_manager', None)
  for part in getattr(background, '_commit_futures', None) or ():
    with contextlib.suppress(Exception):  # reported already
      part.result(timeout=_STRAGGLERS)
  if jax.process_index() == 0 and not file_access.is_remote(directory):
    for name in file_access.listing(directory):
      if not name.isdigit():  # an unfinished save takes space
        with contextlib.suppress(file_access.Unwritable):
          file_access.remove(file_access.join(directory, name))
  manager.reload()  # checkpoints that the failed save was to replace are still there


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
  """Raises what goes wrong with a save in the block as Unwritable, with a short reason."""
  with file_access.reaching(manager.directory, 'written'):
    try:
      yield
    except file_access.Unwritable:
      raise
    except Exception as error:  # of any kind: Orbax writes through several libraries
      if file_access.is_remote(manager.directory):
        raise
      reason = str(error) if isinstance(error, UserError) else _write_failure(error)
      raise file_access.Unwritable(reason) from None


def _write_failure(error: BaseException) -> str:
  """Why a save failed, in a few words. TensorStore's errors have the system's words in a text."""
  text = str(error)
  words = (os.strerror(number) for number in _SYSTEM_ERRORS)
  known = next((word for word in words if word in text), None)
  return known or f'{type(error).__name__}: {file_access.reason_text(text)}'


#### Restoring ####


def _targets(shapes: PyTree, shardings: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _replicated_targets(shapes: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
  return _targets(shapes, jax.tree.map(lambda _: sharding, shapes))


def _read(manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> PyTree:
  """Checks and reads items of a checkpoint. All processes of a run call this."""
  directory = manager.directory
  checkpoint_files.check_items(directory, step, list(items), shared=True)
  try:
    return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # of any kind: Orbax reads through several libraries
    first_line = file_access.reason_text(str(error))
    remote = file_access.is_remote(directory)
    trouble = 'cannot be reached, is damaged' if remote else 'is damaged'
    raise UserError(
      f'the checkpoint {directory / str(step)} {trouble} or of another model '
      f'({type(error).__name__}: {first_line}); {checkpoint_files.remedy(directory, step)}'
    ) from None


def restore_state(
  manager: ocp.CheckpointManager,
  step: int,
  shapes: TrainState,
  shardings: TrainState,
  sum_shapes: PyTree,
  replicated: jax.sharding.Sharding,
) -> tuple[TrainState, PyTree]:
  """Restores the state and the sums of a step, on any number of devices.

  Args:
    manager: manager of the checkpoints.
    step: step of the checkpoint.
    shapes: shapes and types of the state.
    shardings: shardings of the state.
    sum_shapes: shapes and types of the sums.
    replicated: sharding of the counters and the sums.

  Returns:
    The state and the sums.

  Raises:
    UserError: the checkpoint is damaged.
  """
  item = ocp.args.StandardRestore
  saved = _saved_counters(manager, step)
  counters = {name: getattr(shapes, name) for name in saved}
  restored = _read(
    manager,
    step,
    {
      'params': item(_targets(shapes.params, shardings.params)),
      'opt_state': item(_targets(shapes.opt_state, shardings.opt_state)),
      'counters': item(_replicated_targets(counters, replicated)),
      'sums': item(_replicated_targets(sum_shapes, replicated)),
    },
  )
  found = restored['counters']
  if 'recent_skips' not in found:
    found['recent_skips'] = jax.device_put(no_skips(), replicated)
  state = shapes._replace(params=restored['params'], opt_state=restored['opt_state'], **found)
  return state, restored['sums']


def _saved_counters(manager: ocp.CheckpointManager, step: int) -> tuple[str, ...]:
  """The counters that a checkpoint has. Those of version 0.1.0 have no `recent_skips`."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      path = manager.directory / str(step) / 'counters'
      names = checkpointer.metadata(path).item_metadata.tree.keys()
    except Exception:  # of any kind: the read that follows reports what is damaged
      return _COUNTERS
  return _COUNTERS if 'recent_skips' in names else _COUNTERS[:-1]


@console.without_library_warnings()
def find_step(workdir: PathLike, which: str | int, best_by: Criterion = HELDOUT_LOSS) -> int:
  """Finds the step of a kept checkpoint.

  Args:
    workdir: folder of the run or trial.
    which: 'last', 'best', or a step. The best is the last if no step was evaluated.
    best_by: how the best checkpoint is chosen.

  Raises:
    UserError: there is no such checkpoint.
  """
  directory = _directory(workdir)
  with file_access.reaching(directory):
    if not directory.is_dir():
      _raise_no_checkpoint(workdir)
  with open_manager(workdir, read_only=True, best_by=best_by) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      _raise_no_checkpoint(workdir)
    step: str | int = which
    if which == 'last':
      step = steps[-1]
    elif which == 'best':
      best = manager.best_step()
      step = steps[-1] if best is None else best
  if str(step) not in map(str, steps):
    raise UserError(
      f'{workdir} has no checkpoint of step {step}; it has those of {", ".join(map(str, steps))}.'
    )
  return int(step)


@console.without_library_warnings()
def all_steps(workdir: PathLike) -> list[int]:
  """Steps of the kept checkpoints, ascending.

  Raises:
    UserError: there is no checkpoint.
  """
  find_step(workdir, 'last')
  with open_manager(workdir, read_only=True) as manager:
    return sorted(manager.all_steps())


@console.without_library_warnings()
def restore_params(
  workdir: PathLike,
  which: str | int,
  shapes: PyTree,
  shardings: PyTree,
  best_by: Criterion = HELDOUT_LOSS,
) -> tuple[PyTree, int]:
  """Restores the parameters without reading the optimizer state.

  Args:
    workdir: folder of the run or trial.
    which: 'last', 'best', or a step.
    shapes: shapes and types of the parameters.
    shardings: shardings of the parameters.
    best_by: how the best checkpoint is chosen.

  Returns:
    The parameters and their step.

  Raises:
    UserError: there is no such checkpoint, or it is damaged.
  """
  step = find_step(workdir, which, best_by)
  with open_manager(workdir, read_only=True, best_by=best_by) as manager:
    item = ocp.args.StandardRestore(_targets(shapes, shardings))
    restored = _read(manager, step, {'params': item})
  return restored['params'], step


@console.without_library_warnings()
def restore_subtrees(workdir: PathLike, step: int, shapes: PyTree, shardings: PyTree) -> PyTree:
  """Restores the parameters whose names are in `shapes`; the others are not read.

  Args:
    workdir: folder of the run or trial.
    step: step of the checkpoint.
    shapes: shapes and types of the parameters to read.
    shardings: their shardings.

  Raises:
    UserError: parameters are missing, or have another shape; each is named.
  """
  path = _directory(workdir) / str(step) / 'params'
  checkpoint_files.check_items(path.parent.parent, step, ('params',), shared=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      tree = checkpointer.metadata(path).item_metadata.tree
    except Exception as error:  # of any kind: Orbax reads through several libraries
      raise UserError(
        f'the parameters in {path} cannot be read ({type(error).__name__}); restore the folder, or '
        'name another checkpoint.'
      ) from None
    if wrong := _differing_shapes(tree, shapes):
      raise UserError(
        f'the checkpoint of step {step} in {workdir} does not fit the encoder of its config: '
        f'{"; ".join(wrong)}.'
      )
    targets = _targets(shapes, shardings)
    restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
    try:
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(item=targets, restore_args=restore_args, partial_restore=True),
      )
    except Exception as error:  # of any kind: Orbax reads through several libraries
      raise UserError(
        f'the parameters in {path} are damaged ({type(error).__name__}); restore the folder, or '
        'name another checkpoint.'
      ) from None


def _differing_shapes(saved: PyTree, expected: PyTree) -> list[str]:
  """For each expected array that is missing or has another shape, a phrase."""

  def name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')

  shapes = {name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(saved)}
  wrong = []
  for path, x in jax.tree_util.tree_leaves_with_path(expected):
    shape = shapes.get(name(path))
    if shape is None:
      wrong.append(f'{name(path)} is missing')
    elif shape != x.shape:
      found, wanted = (' x '.join(map(str, s)) for s in (shape, x.shape))
      wrong.append(f'{name(path)} is {found} and not {wanted}')
  return wrong


def read_arrays(workdir: PathLike, step: int, item: str) -> PyTree:
  """Reads an item of a checkpoint as NumPy arrays, in the tree that it was saved in.

  Args:
    workdir: folder of the run or trial.
    step: step of the checkpoint.
    item: 'params' or 'opt_state'.

  Raises:
    UserError: the item cannot be read.
  """
  path = _directory(workdir) / str(step) / item
  checkpoint_files.check_items(path.parent.parent, step, (item,))
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      tree = checkpointer.metadata(path).item_metadata.tree
      as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
      return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # of any kind: Orbax reads through several libraries
      raise UserError(
        f'{path} cannot be read ({type(error).__name__}); restore the folder, or name another '
        'checkpoint.'
      ) from None


def read_moments(workdir: PathLike, step: int) -> dict[str, PyTree] | None:
  """Reads Adam's moments of a checkpoint as NumPy arrays.

  Returns:
    {'mu': tree like the parameters, 'nu': the same}; None if the optimizer has no such moments.
  """
  found: dict[str, PyTree] = {}

  def visit(node: PyTree) -> None:
    children = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
      children = tuple(node.values())
      if isinstance(node.get('mu'), dict) and isinstance(node.get('nu'), dict):
        found.update(mu=node['mu'], nu=node['nu'])
    for child in children:
      visit(child)

  visit(read_arrays(workdir, step, 'opt_state'))
  return found or None


def _raise_no_checkpoint(workdir: PathLike) -> NoReturn:
  raise UserError(
    f'{workdir} holds no checkpoint; train there first, or name the run with --workdir.'
  )
