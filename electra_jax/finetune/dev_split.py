"""Splits dev examples off the training data of a task that has no dev data."""

import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from electra_jax.config import FinetuningConfig
from electra_jax.data.store.permutation import permutation
from electra_jax.errors import UserError
from electra_jax.finetune.tasks import open_task
from electra_jax.finetune.tasks.task import SplitKey, SplitsOffDev, Task
from electra_jax.training import hosts, run_folder

SPLIT = 'split.json'  # in the folder of a task: the training examples that are its dev data
SEED = 0  # of the order of groups: the split depends on the data only, so that runs are comparable


def open_split_task(
  name: str, config: FinetuningConfig, workdir: epath.Path | None = None
) -> tuple[Task, str]:
  """Opens a task; without dev data, some of its training examples become dev.

  Which ones depends on the data and config.data.dev_fraction only. A run's folder records them, and
  later starts read them from there.

  Args:
    name: of the task.
    config: of the run.
    workdir: the run's folder; None to record nothing.

  Returns:
    The task, and a sentence about the split; '' where the task has dev data, or cannot be split.

  Raises:
    UserError: the data is missing or malformed, or too few examples differ.
  """
  task = open_task(name, config)
  fraction = config.data.dev_fraction
  splits_off = isinstance(task, SplitsOffDev) and fraction and 'train' in task.splits
  if 'dev' in task.splits or not splits_off:
    return task, ''
  assert isinstance(task, SplitsOffDev)
  folder = None if workdir is None else workdir / name
  found = task.split_off(functools.partial(_chosen, name, fraction, folder))
  dev, train = len(found.examples('dev')), len(found.examples('train'))
  where = '' if folder is None else f', recorded in {name}/{SPLIT}'
  return found, (
    f'no dev data: {dev:,} training examples are dev and {train:,} remain '
    f'(config.data.dev_fraction={fraction:g}){where}'
  )


def _chosen(
  name: str, fraction: float, folder: epath.Path | None, keys: Sequence[SplitKey]
) -> np.ndarray:
  """Indices of the dev examples: as recorded in the task's folder, or chosen and recorded."""
  identity = zlib.crc32(repr([tuple(key) for key in keys]).encode())
  if folder is None:
    return choose_dev(keys, fraction, name)
  record = hosts.from_first(functools.partial(_read_record, folder))
  if record.get('identity') == identity and record['fraction'] == fraction:
    return np.array(record['dev'], np.int64)
  dev = choose_dev(keys, fraction, name)
  record = {'fraction': fraction, 'examples': len(keys), 'identity': identity, 'dev': dev.tolist()}
  hosts.from_first(functools.partial(_write_record, folder, record))
  return dev


def _read_record(folder: epath.Path) -> dict[str, object]:
  shape = {'fraction': float, 'identity': int, 'dev': [int]}
  return run_folder.read_json_if_any(folder / SPLIT, shape) or {}


def _write_record(folder: epath.Path, record: dict[str, object]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  run_folder.write_json(folder / SPLIT, record)


#### The choice ####


class _Groups(NamedTuple):
  """Examples that must be on one side.

  Attributes:
    of: the group of each example, int64 `[examples]`.
    sizes: examples of each group, int64 `[groups]`.
    labels: examples of each group with each label, int64 `[groups, labels]`.
    order: the groups in pseudo-random order, int64 `[groups]`.
  """

  of: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray
  order: np.ndarray


def choose_dev(keys: Sequence[SplitKey], fraction: float, name: str = 'the task') -> np.ndarray:
  """The examples that become dev; examples of a group are on one side.

  Where each example has one label, dev has the rounded up fraction of the examples, and its numbers
  of labels are those of scikit-learn's StratifiedShuffleSplit: the shares of the training data,
  rounded by largest remainders, where groups allow it. Each label stays in the training data. Where
  examples have several labels, they are distributed by iterative stratification (Sechidis et al.
  2011, algorithm 1). Without labels the choice is random.

  Args:
    keys: of the examples.
    fraction: of the examples that become dev, above 0 and below 1.
    name: of the task, for messages.

  Returns:
    Their indices, int64, ascending.

  Raises:
    UserError: all examples are of one group.
  """
  groups = _groups(keys)
  if len(groups.sizes) < 2:
    raise UserError(
      f'{name} has no dev data, and its training data cannot be split, since its '
      f'{len(keys):,} examples have the same text; set --config.data.dev to a file.'
    )
  several = any(len(key.labels) > 1 for key in keys)
  chosen = _iteratively(groups, fraction) if several else _by_quotas(groups, fraction)
  if not chosen.any():  # labels of which there is too little for any share
    chosen[groups.order[np.argmin(groups.sizes[groups.order])]] = True
  return np.flatnonzero(chosen[groups.of])


def _groups(keys: Sequence[SplitKey]) -> _Groups:
  numbers: dict[object, int] = {}
  of = np.array([numbers.setdefault(key.group, len(numbers)) for key in keys], np.int64)
  sizes = np.bincount(of, minlength=len(numbers))
  # Examples without a label count as of one more.
  none = 1 + max((label for key in keys for label in key.labels), default=-1)
  labels = np.zeros((len(numbers), none + 1), np.int64)
  for group, key in zip(of, keys, strict=True):
    labels[group, list(key.labels or (none,))] += 1
  count = len(numbers)
  return _Groups(of, sizes, labels, permutation(np.arange(count), count, SEED, 0))


def label_quotas(counts: np.ndarray, fraction: float) -> np.ndarray:
  """The number of dev examples of each label, int64 `[labels]`.

  Args:
    counts: examples with each label.
    fraction: of the examples that become dev.
  """
  wanted = int(np.ceil(fraction * counts.sum()))
  shares = counts / counts.sum() * wanted
  quotas = np.floor(shares).astype(np.int64)
  largest = np.argsort(quotas - shares, kind='stable')  # remainders, descending
  quotas[largest[: wanted - quotas.sum()]] += 1
  found: np.ndarray = np.minimum(quotas, np.maximum(counts - 1, 0))
  return found


def _by_quotas(groups: _Groups, fraction: float) -> np.ndarray:
  """Which groups are dev, bool `[groups]`, for examples with at most one label each."""
  total = groups.labels.sum(0)
  quotas = label_quotas(total, fraction)
  taken = np.zeros_like(quotas)
  chosen = np.zeros(len(groups.sizes), bool)
  # First those that fit; then those that come nearer to a quota by exceeding it.
  for share in (1.0, 0.5):
    for group in groups.order:
      if (taken >= quotas).all():
        break
      more = groups.labels[group]
      has = more > 0
      fits = taken + share * more <= quotas
      leaves = taken + more < total  # each label stays in the training data
      if not chosen[group] and (fits & leaves)[has].all():
        chosen[group] = True
        taken += more
  return chosen


def _iteratively(groups: _Groups, fraction: float) -> np.ndarray:
  """Which groups are dev, bool `[groups]`, for examples with several labels."""
  shares = np.array([1 - fraction, fraction])  # of train and dev
  room, rooms = shares * groups.sizes.sum(), shares[:, None] * groups.labels.sum(0)
  side = np.full(len(groups.sizes), -1)
  left = groups.labels.sum(0)
  while left.any():
    rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
    for group in groups.order:
      if side[group] >= 0 or not groups.labels[group, rarest]:
        continue
      # Where most is missing of the label; of equal ones, where most examples are missing.
      to = max((0, 1), key=lambda one: (rooms[one, rarest], room[one]))
      side[group] = to
      room[to] -= groups.sizes[group]
      rooms[to] -= groups.labels[group]
      left -= groups.labels[group]
  found: np.ndarray = side == 1
  return found
