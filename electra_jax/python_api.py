"""Training from Python on data in memory: `electra_jax.pretrain` and `electra_jax.finetune`."""

import contextlib
import dataclasses
import json
import os
import reprlib
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax import registry
from electra_jax.config import AnyConfig
from electra_jax.config.config_files import load_config_file
from electra_jax.errors import UserError
from electra_jax.finetune import records
from electra_jax.finetune.finetuned import FineTunedRun, open_finetuned
from electra_jax.finetune.run_files import RESULTS
from electra_jax.finetune.train import run_finetuning
from electra_jax.pretrain.train import train
from electra_jax.pretrain.trained_run import Run, open_run
from electra_jax.training import progress, run_folder
from electra_jax.training.preemption import Notice

FieldValue: TypeAlias = Any  # of a config
PathOrData: TypeAlias = Any  # the path of a file, or data as of FineTunedRun.predict

_SECOND = {'pair', 'text_pair', 'sentence2', 'context'}  # names of the second text of a pair
_WORDS = {'tokens', 'words'}  # names of the words of a sentence
DATA = 'data'  # folder of data that was given in memory, in a run's folder


@dataclasses.dataclass(frozen=True)
class PretrainingResult:
  """A pretraining run that is done.

  Attributes:
    workdir: its folder, which `electra_jax.load` opens.
    step: of the last checkpoint.
    metrics: of the last evaluation on held-out rows, by name.
    stopped: whether it was asked to stop before its end; the same call continues it.
  """

  workdir: str
  step: int
  metrics: dict[str, float]
  stopped: bool

  def load(self) -> Run:
    """Opens the run, its last checkpoint."""
    return open_run(self.workdir)


@dataclasses.dataclass(frozen=True)
class FinetuningResult:
  """A fine-tuning run that is done.

  Attributes:
    workdir: its folder, which `electra_jax.load` opens.
    metrics: by task and name the median over the trials on dev, as fractions.
    stopped: whether it was asked to stop before its end; the same call continues it.
    settings: by task, what the setting that a search has chosen changes in the config.
  """

  workdir: str
  metrics: dict[str, dict[str, float]]
  stopped: bool
  settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

  def load(self, task: str | None = None, ensemble: bool | int = False) -> FineTunedRun:
    """Opens the best trial of a task, None for the only one, or an ensemble; see `load`."""
    return open_finetuned(self.workdir, task, ensemble)


def pretrain(
  texts: str | os.PathLike[str] | Iterable[Any],
  workdir: str | os.PathLike[str],
  *,
  config: AnyConfig = 'small',
  field: str = 'text',
  plugins: Sequence[str | os.PathLike[str]] = (),
) -> PretrainingResult:
  """Pretrains an encoder, or continues an earlier call with the same arguments.

  It is the program of `--mode=train`, in this process: it prints what that prints, and writes the
  same folder.

  Args:
    texts: documents: an iterable of strings, or of mappings with a string each, such as a list, a
      generator or a `datasets.Dataset`. They are written to `workdir`/data/documents.jsonl, one at
      a time in memory. Or what config.data.source takes: files, patterns, tfds:...
    workdir: the run's folder, on this machine for texts in memory.
    config: the name of a shipped config, a config file, or a ConfigDict; or a dict of fields to
      change in `small`, such as {'steps': 1000, 'data.vocab_size': 8192}.
    field: of mappings.
    plugins: Python files that register what user code added (--plugins).

  Raises:
    electra_jax.errors.UserError: a field or a text is wrong, or a loss is not finite.
  """
  registry.load_plugins(plugins)
  changed = _config(config, 'small')
  if isinstance(texts, str | os.PathLike):
    changed.data.source = os.fspath(texts)
  else:
    changed.data.source = _documents_file(workdir, texts, field)
  with _requests_to_stop() as notice:
    status = train(changed, workdir, notice)
  lines = progress.read_metrics(run_folder.folder(workdir))
  last = [line for line in lines if line['kind'] == 'heldout'][-1:]
  metrics = {name: x for line in last for name, x in line.items() if isinstance(x, float)}
  return PretrainingResult(os.fspath(workdir), open_run(workdir).step, metrics, status != 0)


def finetune(
  init: str | os.PathLike[str],
  workdir: str | os.PathLike[str],
  *,
  train: PathOrData,
  dev: PathOrData = None,
  test: PathOrData = None,
  task: str = 'classification',
  config: AnyConfig = None,
) -> FinetuningResult:
  """Fine-tunes an encoder, or continues an earlier call with the same arguments.

  It is the program of `--mode=finetune`, in this process.

  Args:
    init: what config.init takes: the folder of a pretraining run, hf:... or tf:...
    workdir: the run's folder, on this machine for data in memory.
    train: training examples: a data frame, a list of mappings or a mapping of lists, with text, for
      pairs text_pair, and label; question, context and answers; or tokens and tags. They are
      written to `workdir`/data/train.jsonl. Or the path of a file in any format that the task
      reads.
    dev: examples to evaluate on, in the same way; None for a part of the training examples, by
      config.data.dev_fraction.
    test: further examples to evaluate on; None for none.
    task: name of the task.
    config: the name of a shipped config, such as 'finetune/cola', a config file, or a ConfigDict;
      or a dict of fields to change in the defaults, such as {'epochs': 5.0, 'num_trials': 1}, or
      {'search': {'learning_rate': [1e-4, 3e-4]}} to compare settings; None for the defaults.

  Raises:
    electra_jax.errors.UserError: a field or the data is wrong, or a loss is not finite.
  """
  changed = _config(config or {}, 'finetune/own')
  changed.update(init=os.fspath(init), task=task)
  for split, data in (('train', train), ('dev', dev), ('test', test)):
    if isinstance(data, str | os.PathLike):
      changed.data[split] = os.fspath(data)
    elif data is not None:
      changed.data[split] = _records_file(workdir, split, data, changed)
  with _requests_to_stop() as notice:
    status = run_finetuning(changed, workdir, notice)
  results: dict[str, Any] = run_folder.read_json_if_any(run_folder.folder(workdir) / RESULTS) or {}
  summaries = results.get('summaries', {})
  metrics = {
    name: {metric: x['median'] for metric, x in summary['figures'].get('dev', {}).items()}
    for name, summary in summaries.items()
  }
  chosen = results.get('search', {})
  return FinetuningResult(os.fspath(workdir), metrics, status != 0, chosen)


#### Configs ####


def _config(config: AnyConfig, default: str) -> AnyConfig:
  """A ConfigDict of a file, a copy of one, or the default one with changes.

  Raises:
    UserError: there is no such config or field, or a value has another type.
  """
  if isinstance(config, str | os.PathLike):
    return load_config_file(os.fspath(config))
  if not isinstance(config, dict):
    return config.copy_and_resolve_references()
  found = load_config_file(default)
  for name, value in _flat_fields(config, found).items():
    try:
      found.update_from_flattened_dict({name: value})
    except (KeyError, TypeError, AttributeError, ValueError):
      raise UserError(
        f'config has {name!r}: {value!r}; expected a field of docs/reference/config.md, with a '
        'value of its type.'
      ) from None
  return found


def _flat_fields(given: Mapping[str, Any], fields: AnyConfig) -> dict[str, Any]:
  """Fields by their names with dots, of a dict that may hold groups as dicts and tuples as lists.

  Args:
    given: the dict.
    fields: the ConfigDict that has them, or a group of it.
  """
  found: dict[str, Any] = {}
  for name, value in given.items():
    first, _, rest = name.partition('.')
    of = fields.get(first)
    if rest and hasattr(of, 'items'):
      found |= {f'{first}.{n}': x for n, x in _flat_fields({rest: value}, of).items()}
    elif isinstance(value, Mapping) and hasattr(of, 'items') and len(of):  # a group, not options
      found |= {f'{name}.{n}': x for n, x in _flat_fields(value, of).items()}
    else:
      plain = _without_numpy(value)
      found[name] = tuple(plain) if isinstance(plain, list) and isinstance(of, tuple) else plain
  return found


def _without_numpy(value: FieldValue) -> FieldValue:
  """A value with Python's numbers and lists in place of NumPy's."""
  if hasattr(value, 'tolist'):
    return value.tolist()
  if isinstance(value, list | tuple):
    return type(value)(map(_without_numpy, value))
  return value


#### Data in memory ####


def _documents_file(workdir: str | os.PathLike[str], documents: Iterable[Any], field: str) -> str:
  """Writes documents as JSON lines, one after the other; returns the path."""

  def lines() -> Iterator[str]:
    for number, document in enumerate(documents, 1):
      text = document.get(field) if isinstance(document, Mapping) else document
      if not isinstance(text, str):
        raise UserError(
          f'text {number} is {reprlib.repr(document)}; expected a string, or a mapping with a '
          f'string in {field!r}.'
        )
      yield json.dumps({'text': text}) + '\n'

  return _written(workdir, 'documents.jsonl', lines())


def _records_file(
  workdir: str | os.PathLike[str], split: str, data: records.Data, config: AnyConfig
) -> str:
  """Writes labeled records as JSON lines, by the names of the columns in the config."""
  items = records.as_items(data, words=isinstance(data, Mapping) and bool(_WORDS & data.keys()))
  if not items:
    raise UserError(f'{split} has no records; expected at least one.')
  paired = any(isinstance(item, Mapping) and _SECOND & item.keys() for item in items)
  if paired and not config.data.pair:
    config.data.pair = 'context' if config.task == 'span' else 'pair'
  names = (config.data.text, config.data.pair, config.data.label)
  rows = records.as_records(items, names)
  return _written(workdir, f'{split}.jsonl', (json.dumps(row) + '\n' for row in rows))


def _written(workdir: str | os.PathLike[str], name: str, lines: Iterable[str]) -> str:
  """Writes a file of the folder of data; returns its path.

  A file with the same content stays as it is, so that a repeated call continues its run.
  """
  folder = os.path.join(os.fspath(workdir), DATA)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, name)
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    file.writelines(lines)
  os.replace(partial, path)
  return path


#### Requests to stop ####


class _NoNotice(Notice):
  """No requests: signals reach only the main thread."""

  def __init__(self) -> None:
    self._asked = self._heeding = False

  def heed(self) -> None:
    """Installs no handlers of signals."""


@contextlib.contextmanager
def _requests_to_stop() -> Iterator[Notice]:
  """Requests to stop during a call; the handlers of signals are restored after it."""
  if threading.current_thread() is not threading.main_thread():
    yield _NoNotice()
    return
  kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield Notice()
  finally:
    for number, handler in kept.items():
      signal.signal(number, handler)
