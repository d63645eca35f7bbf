"""Fits linear probes of all layers of an encoder, and describes the result for JSON."""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from electra_jax import console
from electra_jax.config import FinetuningConfig
from electra_jax.config.probing import ProbingConfig
from electra_jax.data.store.permutation import permutation
from electra_jax.errors import UserError
from electra_jax.finetune import initial, linear_probe, probe_data, task_losses, task_program
from electra_jax.finetune.finetune_step import PredictionSizes
from electra_jax.finetune.probe_data import ProbeExamples, StateReader
from electra_jax.finetune.splits import length_limit
from electra_jax.finetune.task_losses import Split
from electra_jax.finetune.tasks import open_task
from electra_jax.finetune.tasks.task import Task
from electra_jax.model.heads import init_finetuned
from electra_jax.training import devices, partitioning

RESAMPLES = 1000  # of intervals
Json = dict[str, Any]


class _Part(NamedTuple):
  """A part of the data with its states."""

  split: Split
  probed: ProbeExamples
  states: list[np.ndarray]


class _Answers(NamedTuple):
  """Whether the answers of a probe are right, bool `[examples]`, and those of its control task."""

  right: np.ndarray
  control: np.ndarray | None
  metrics: dict[str, float]
  fitted: linear_probe.Fitted


def run_probes(config: ProbingConfig, workdir: str) -> Json:
  """Probes all layers of an encoder.

  Args:
    config: of the probes.
    workdir: the run that is probed where config.init names nothing.

  Returns:
    The content of probe.json; see docs/probes.md.

  Raises:
    UserError: the encoder or the data cannot be read, or the task is of another kind.
  """
  c = config.finetuning(workdir).replace({'head.pooling': config.pooling})
  (name,) = c.tasks
  task = open_task(name, c)
  if task.head not in ('classification', 'tagging'):
    raise probe_data.not_probed(task)
  if task.head == 'tagging':
    c = c.replace({'head.pooling': 'cls'})  # without effect, and the only one that is accepted
  with console.phase('reading', f'the encoder of {c.init}'):
    start = initial.open_initial(c)
  console.say('encoder', start.describe())
  reader = _reader(c, task, start, config.compilation_cache)
  with tempfile.TemporaryDirectory(prefix='electra_jax_probe_') as folder:
    chosen = _chosen(config, len(task.examples('train')))
    union = np.unique(np.concatenate(chosen))
    examples = task.examples('train')
    train = _part(c, task, start, reader, 'train', [examples[i] for i in union], folder)
    dev = _part(c, task, start, reader, 'dev', task.examples('dev'), folder)
    subsets = [np.searchsorted(union, one) for one in chosen]
    found = _probe_all(config, task, train, dev, subsets)
  described = {'name': start.origin['name'], 'step': start.origin.get('step')}
  return {'task': name, 'init': c.init, 'encoder': described, **found}


def _reader(c: FinetuningConfig, task: Task, start: initial.Initial, cache: str) -> StateReader:
  """The encoder that computes states."""
  devices.use_compilation_cache(cache)
  layout = partitioning.make_layout()
  max_length = length_limit(c, task)
  model, _ = task_program.build_task_model(c, task, start, max_length)
  boxed = jax.eval_shape(lambda: init_finetuned(model, 0))
  shapes, shardings = nn.unbox(boxed), partitioning.parameter_shardings(boxed, layout)
  names = ('embeddings', 'discriminator')
  params = start.restore(
    {name: shapes[name] for name in names}, {name: shardings[name] for name in names}
  )
  sizes = PredictionSizes(max_length, c.eval_batch_size)
  return StateReader(model, params, start.tokenizer, layout, sizes)


def _chosen(config: ProbingConfig, examples: int) -> list[np.ndarray]:
  """Indices of the training examples of each seed, ascending."""
  count = config.train_examples or examples
  if count >= examples:
    return [np.arange(examples)] * config.num_trials
  seeds = range(config.seed, config.seed + config.num_trials)
  return [np.sort(permutation(np.arange(count), examples, seed, 0)) for seed in seeds]


def _part(
  c: FinetuningConfig,
  task: Task,
  start: initial.Initial,
  reader: StateReader,
  name: str,
  examples: Sequence[Any],
  folder: str,
) -> _Part:
  """Computes the states of a part of the data."""
  features, _ = task.features(examples, start.tokenizer, length_limit(c, task))
  split = Split(examples, features)
  task_losses.report_losses(c, task, name, split, start.tokenizer)
  probed = probe_data.probe_examples(task, examples, features)
  if not len(probed.rows):
    raise UserError(f'the {name} data of {task.name} has no labels; expected some.')
  path = pathlib.Path(folder) / name
  path.mkdir()
  with console.progress(f'{name} states', len(features), 'rows', before='compiling') as live:
    states = reader.states(features, probed, path, live)
  return _Part(split, probed, states)


#### Probes ####


def _probe_all(
  config: ProbingConfig, task: Task, train: _Part, dev: _Part, subsets: Sequence[np.ndarray]
) -> Json:
  """Probes each layer and the mix of all, for each seed."""
  layers = [[i] for i in range(len(train.states))]
  if config.mix:
    layers.append(list(range(len(train.states))))
  answers: list[list[_Answers]] = []
  total = len(layers) * len(subsets)
  with console.progress('probing', total, 'probes') as live:
    for number, which in enumerate(layers):
      answers.append(
        [
          _probe(config, task, which, train, dev, (subset, config.seed + trial))
          for trial, subset in enumerate(subsets)
        ]
      )
      live((number + 1) * len(subsets))
  draws = _resampled(dev.probed.groups)
  described = [_described(found, dev.probed.groups, draws) for found in answers]
  result: Json = {
    'metric': task.metric,
    'labels': list(task.labels),
    'control': bool(answers[0][0].control is not None),
    'layers': [{'layer': i, **one} for i, one in enumerate(described[: len(train.states)])],
    'baselines': _baselines(train.probed, dev.probed, subsets),
    'counts': {
      'train_examples': int(np.mean([len(subset) for subset in subsets])),
      'dev_examples': len(dev.split.examples),
      'train_labels': int(np.mean([_inside(train.probed, s).sum() for s in subsets])),
      'dev_labels': len(dev.probed.labels),
    },
    'settings': {
      name: getattr(config, name)
      for name in ('penalty', 'pooling', 'seed', 'num_trials', 'train_examples', 'max_steps')
    },
  }
  if config.mix:
    result['mix'] = described[-1] | _mix(answers[-1])
  return result


def _inside(probed: ProbeExamples, subset: np.ndarray) -> np.ndarray:
  """Which examples of a probe are from the texts of a subset, bool `[examples]`."""
  return np.isin(probed.groups, subset)


def _probe(
  config: ProbingConfig,
  task: Task,
  layers: Sequence[int],
  train: _Part,
  dev: _Part,
  trial: tuple[np.ndarray, int],
) -> _Answers:
  """Fits a probe and its control task; `trial` has the training texts and the seed."""
  subset, seed = trial
  inside = np.flatnonzero(_inside(train.probed, subset))
  states, others = [], []
  for i in layers:
    mine, theirs = standardized(train.states[i][inside], dev.states[i])
    states.append(mine)
    others.append(theirs)
  classes = len(task.labels)
  labels = train.probed.labels[inside]
  fitted = linear_probe.fit(states, labels, classes, config.penalty, config.max_steps)
  logits = fitted.logits(others)
  outputs = probe_data.word_outputs(dev.probed, logits, dev.split.features)
  metrics = task.score('dev', dev.split.examples, dev.split.features, outputs)
  right = logits.argmax(-1) == dev.probed.labels
  if not config.control or not train.probed.words:
    return _Answers(right, None, metrics, fitted)
  words = [train.probed.words[i] for i in inside.tolist()]
  probed = train.probed._replace(labels=labels, words=words)
  random, expected = probe_data.control_labels(probed, dev.probed, classes, seed)
  of_control = linear_probe.fit(states, random, classes, config.penalty, config.max_steps)
  control = of_control.logits(others).argmax(-1) == expected
  return _Answers(right, control, metrics, fitted)


def standardized(train: np.ndarray, dev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """States with mean 0 and standard deviation 1 over the training examples, by dimension.

  Args:
    train: float32 `[examples, width]`.
    dev: float32 `[examples of dev, width]`.
  """
  mean = train.mean(0, dtype=np.float64)
  deviation = train.std(0, dtype=np.float64)
  scale = (1 / np.where(deviation > 0, deviation, 1)).astype(np.float32)
  center = mean.astype(np.float32)
  return (np.asarray(train) - center) * scale, (np.asarray(dev) - center) * scale


#### Results ####


def _resampled(groups: np.ndarray) -> np.ndarray:
  """Weights of the texts of dev in bootstrap samples, int64 `[RESAMPLES, texts]`."""
  texts = int(groups.max()) + 1
  present = np.unique(groups)
  draws = np.random.default_rng(0).choice(present, (RESAMPLES, len(present)))
  return np.stack([np.bincount(draw, minlength=texts) for draw in draws])


def _interval(values: np.ndarray, groups: np.ndarray, draws: np.ndarray) -> Json:
  """The mean of values and its 95% interval, where texts are resampled.

  Args:
    values: float `[examples]`, means over the seeds.
    groups: the text of each example.
    draws: of `_resampled`.
  """
  sums = np.bincount(groups, values, minlength=draws.shape[1])
  sizes = np.bincount(groups, minlength=draws.shape[1])
  low, high = np.quantile((draws @ sums) / (draws @ sizes), (0.025, 0.975))
  return {'value': float(values.mean()), 'low': float(low), 'high': float(high)}


def _described(answers: Sequence[_Answers], groups: np.ndarray, draws: np.ndarray) -> Json:
  """Accuracy, control accuracy and selectivity of a probe over its seeds."""
  right = np.mean([one.right for one in answers], axis=0)
  by_seed = [float(one.right.mean()) for one in answers]
  found: Json = {'accuracy': _interval(right, groups, draws) | {'seeds': by_seed}}
  controls = [one.control for one in answers if one.control is not None]
  if controls:
    control = np.mean(controls, axis=0)
    seeds = [float(one.mean()) for one in controls]
    found['control'] = _interval(control, groups, draws) | {'seeds': seeds}
    differences = [a - b for a, b in zip(by_seed, seeds, strict=True)]
    found['selectivity'] = _interval(right - control, groups, draws) | {'seeds': differences}
  names = answers[0].metrics
  found['metrics'] = {name: float(np.mean([a.metrics[name] for a in answers])) for name in names}
  found['train_loss'] = float(np.mean([a.fitted.loss for a in answers]))
  found['converged'] = all(a.fitted.converged for a in answers)
  return found


def _mix(answers: Sequence[_Answers]) -> Json:
  """Weights of the layers, and their center of gravity (Tenney et al. 2019, equation 3)."""
  weights = np.mean([one.fitted.layers for one in answers], axis=0)
  return {
    'weights': [float(x) for x in weights],
    'scale': float(np.mean([one.fitted.scale for one in answers])),
    'center_of_gravity': float(weights @ np.arange(len(weights))),
  }


def _baselines(
  train: ProbeExamples, dev: ProbeExamples, subsets: Sequence[np.ndarray]
) -> Mapping[str, float]:
  """Accuracies without an encoder, means over the seeds."""
  found: dict[str, list[float]] = {}
  for subset in subsets:
    inside = np.flatnonzero(_inside(train, subset))
    words = [train.words[i] for i in inside.tolist()] if train.words else ()
    mine = train._replace(labels=train.labels[inside], words=words)
    for name, answers in probe_data.baseline_answers(mine, dev).items():
      found.setdefault(name, []).append(float((answers == dev.labels).mean()))
  return {name: float(np.mean(values)) for name, values in found.items()}
