"""Orbax checkpoints: parameters, optimizer state, counters and the figures' running sums as separate items of each step."""

import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from electra_jax.errors import UserError
from electra_jax.training import run_folder

_ITEMS = ('params', 'opt_state', 'counters', 'sums')
METRIC = 'total_loss'  # the figure that the best checkpoint of a pretraining run is chosen by; lower is better


def open_manager(
  workdir, *, keep: int = 1, read_only: bool = False, metric: str = METRIC, mode: str = 'min'
) -> ocp.CheckpointManager:
  """The checkpoints of a run, in WORKDIR/checkpoints. Saves go on in the background.

  Keeps the last `keep` and the best by `metric`, whose lower ('min') or higher ('max') values are better. A save that is cut short never gets its final name, or in a bucket its file
  commit_success.txt, so the one before it is read.

  Raises UserError where its bucket cannot be reached.
  """
  policies = ocp.checkpoint_managers
  options = ocp.CheckpointManagerOptions(
    best_fn=lambda metrics: metrics[metric],
    best_mode=mode,
    read_only=read_only,
    create=not read_only,
    cleanup_tmp_directories=not read_only,
    preservation_policy=None
    if read_only
    else policies.AnyPreservationPolicy(
      [
        policies.LatestN(keep),
        policies.BestN(
          get_metric_fn=lambda metrics: metrics[metric] * (1 if mode == 'max' else -1),
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    ),
  )
  directory = _directory(workdir)
  with run_folder.reaching(directory):
    manager = ocp.CheckpointManager(directory, options=options, item_names=_ITEMS)
    # Only a save waits for the thread that clears unfinished ones away. Where none comes, it would outlive the manager, fail at exit
    # and leave them. Orbax has no public name for this as of 0.12.8.
    manager._maybe_await_cleanup_tmp_directory()
    return manager


def _directory(workdir) -> epath.Path:
  directory = run_folder.folder(workdir) / 'checkpoints'
  return (
    directory if run_folder.is_remote(directory) else epath.Path(pathlib.Path(directory).absolute())
  )


def any_saved(workdir) -> bool:
  """Whether the run has a checkpoint that was saved whole. One process may ask alone."""
  directory = _directory(workdir)
  with run_folder.reaching(directory):
    return directory.is_dir() and bool(ocp.utils.checkpoint_steps_paths(directory))


def latest_saved(workdir) -> int | None:
  """The step of the newest checkpoint that was saved whole; None where there is none.

  One process may call this by itself. A save that is still in progress does not count.
  """
  directory = _directory(workdir)
  with run_folder.reaching(directory):
    if run_folder.is_remote(directory):
      paths = ocp.utils.checkpoint_steps_paths(directory)
    else:  # a folder gets its final name, the step, when it is complete
      paths = directory.iterdir() if directory.is_dir() else ()
    return max((int(path.name) for path in paths if path.name.isdigit()), default=None)


def save(manager, step: int, state, sums, figure: float | None, metric: str = METRIC) -> None:
  """Begins to save a training.step.TrainState and the sums since the last line of figures. Does not wait for the disk.

  `figure` is that of `metric` at this step, None where it was not taken.

  Raises UserError where its bucket cannot be written, be it now or by the save before.
  """
  counters = {'step': state.step, 'skipped': state.skipped, 'bad_step': state.bad_step}
  item = ocp.args.StandardSave
  with run_folder.reaching(manager.directory, 'written'):
    manager.save(
      step,
      args=ocp.args.Composite(
        params=item(state.params),
        opt_state=item(state.opt_state),
        counters=item(counters),
        sums=item(sums),
      ),
      metrics=None if figure is None else {metric: figure},
      force=True,
    )


def wait(manager) -> None:
  """Waits until what was begun is saved. Raises UserError where its bucket cannot be written."""
  with run_folder.reaching(manager.directory, 'written'):
    manager.wait_until_finished()


def _targets(shapes, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _read(manager, step: int, items: dict):
  try:
    return manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # of any kind: the store below is several libraries deep
    first_line = (str(error).strip().splitlines() or [''])[0][:160]
    wrong = (
      'cannot be reached, is damaged' if run_folder.is_remote(manager.directory) else 'is damaged'
    )
    raise UserError(
      f'the checkpoint {manager.directory / str(step)} {wrong} or of another model '
      f'({type(error).__name__}: {first_line}); remove its folder, and the one before it is taken.'
    ) from None


def restore(manager, step: int, shapes, shardings, sum_shapes, whole):
  """The state and sums saved at `step`, born with the given shardings: any number of devices will do.

  Raises UserError where the checkpoint is damaged.
  """
  item = ocp.args.StandardRestore
  counters = {name: getattr(shapes, name) for name in ('step', 'skipped', 'bad_step')}
  restored = _read(
    manager,
    step,
    {
      'params': item(_targets(shapes.params, shardings.params)),
      'opt_state': item(_targets(shapes.opt_state, shardings.opt_state)),
      'counters': item(_targets(counters, jax.tree.map(lambda _: whole, counters))),
      'sums': item(_targets(sum_shapes, jax.tree.map(lambda _: whole, sum_shapes))),
    },
  )
  return shapes._replace(
    params=restored['params'], opt_state=restored['opt_state'], **restored['counters']
  ), restored['sums']


def find_step(workdir, which, **best) -> int:
  """The step of a kept checkpoint.

  Args:
    workdir: of the run.
    which: 'last', 'best', or a step.
    best: `metric` and `mode` of open_manager, where 'best' is not by METRIC.

  Raises UserError where there is no such checkpoint.
  """
  directory = _directory(workdir)
  with run_folder.reaching(directory):
    found = directory.is_dir()
  with open_manager(workdir, read_only=True, **best) if found else _none(workdir) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      _none(workdir)
    step = manager.best_step() if which == 'best' else steps[-1] if which == 'last' else which
  if step is None:
    step = steps[-1]  # none was evaluated
  if str(step) not in map(str, steps):
    raise UserError(
      f'{workdir} has no checkpoint of step {step}; it has those of {", ".join(map(str, steps))}.'
    )
  return int(step)


def all_steps(workdir) -> list[int]:
  """Steps of the kept checkpoints, ascending. Raises UserError where there is none."""
  find_step(workdir, 'last')
  with open_manager(workdir, read_only=True) as manager:
    return sorted(manager.all_steps())


def restore_params(workdir, which: str, shapes, shardings, **best):
  """Parameters alone, without reading the optimizer's state.

  Args:
    workdir, which, best: as in find_step.
    shapes, shardings: of the parameters.

  Returns: parameters, step.

  Raises UserError where there is no such checkpoint, or it is damaged.
  """
  step = find_step(workdir, which, **best)
  with open_manager(workdir, read_only=True, **best) as manager:
    restored = _read(
      manager, step, {'params': ocp.args.StandardRestore(_targets(shapes, shardings))}
    )
  return restored['params'], step


def restore_subtrees(workdir, step: int, shapes, shardings):
  """Those parameters of a checkpoint whose names are in `shapes`; the rest is left where it is, and not read.

  Raises UserError that names, one by one, parameters that are missing or of another shape.
  """
  path = _directory(workdir) / str(step) / 'params'

  def name(key):
    return jax.tree_util.keystr(key, simple=True, separator='/')

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      tree = checkpointer.metadata(path).item_metadata.tree
    except Exception as error:  # of any kind: the store below is several libraries deep
      raise UserError(
        f'the parameters in {path} cannot be read ({type(error).__name__}); restore the folder, or name another checkpoint.'
      ) from None
    there = {name(key): tuple(x.shape) for key, x in jax.tree_util.tree_leaves_with_path(tree)}
    wrong = []
    for key, wanted in jax.tree_util.tree_leaves_with_path(shapes):
      if name(key) not in there:
        wrong.append(f'{name(key)} is missing')
      elif there[name(key)] != wanted.shape:
        wrong.append(
          f'{name(key)} is {" x ".join(map(str, there[name(key)]))} and not {" x ".join(map(str, wanted.shape))}'
        )
    if wrong:
      raise UserError(
        f'the checkpoint of step {step} in {workdir} does not fit the encoder of its config: {"; ".join(wrong)}.'
      )
    targets = _targets(shapes, shardings)
    try:
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=targets,
          restore_args=ocp.checkpoint_utils.construct_restore_args(targets),
          partial_restore=True,
        ),
      )
    except Exception as error:
      raise UserError(
        f'the parameters in {path} are damaged ({type(error).__name__}); restore the folder, or name another checkpoint.'
      ) from None


def read_arrays(workdir, step: int, item: str):
  """An item of a checkpoint (params, opt_state) as NumPy arrays on this machine, in the tree that it was saved in.

  Raises UserError where it cannot be read.
  """
  path = _directory(workdir) / str(step) / item
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      tree = checkpointer.metadata(path).item_metadata.tree
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        ),
      )
    except Exception as error:  # of any kind: the store below is several libraries deep
      raise UserError(
        f'{path} cannot be read ({type(error).__name__}); restore the folder, or name another checkpoint.'
      ) from None


def read_moments(workdir, step: int) -> dict | None:
  """Adam's moments of a checkpoint, {'mu': tree like the parameters, 'nu': the same}, as NumPy arrays; None where it has none."""
  found = {}

  def visit(node):
    if (
      isinstance(node, dict)
      and isinstance(node.get('mu'), dict)
      and isinstance(node.get('nu'), dict)
    ):
      found.update(mu=node['mu'], nu=node['nu'])
    for child in (
      node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
    ):
      visit(child)

  visit(read_arrays(workdir, step, 'opt_state'))
  return found or None


def _none(workdir):
  raise UserError(
    f'{workdir} holds no checkpoint; train there first, or name the run with --workdir.'
  )
