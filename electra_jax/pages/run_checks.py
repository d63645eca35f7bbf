"""Checks of what a run recorded: what is wrong or unusual, and what to do about it.

docs/troubleshooting.md explains each of them. A check reads only files of the run's folder.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from electra_jax import registry
from electra_jax.data.prepare.preparation_report import losses_of
from electra_jax.data.tokenizers import loss_report
from electra_jax.data.tokenizers.loss_report import LOSS_ERROR, LOSS_WARNING
from electra_jax.pretrain import metrics
from electra_jax.pretrain.guidance import MANY_PASSES
from electra_jax.pretrain.objectives.objective import Objective
from electra_jax.training.curves import Line, RunRecord

Level: TypeAlias = Literal['problem', 'warning', 'note']

LEVELS: tuple[Level, ...] = ('problem', 'warning', 'note')  # the worst first

_EARLY = 0.25  # share of the steps before which a model that has not learned is no warning
_NEAR_BASELINE = 0.99  # of the unigram entropy
_OLD_BEST = 0.2  # share of the steps since the best held-out value
_GAP = 0.15  # of the training loss, by which the held-out loss of the generator is higher
_UNKNOWN = 0.01  # share of unknown tokens
_TRUNCATED = 0.1  # share of tokens that were cut off
_WAIT = 0.05  # share of the time waiting for input
_SLOW = 0.7  # of the median speed
_SPIKE = 10.0  # times the median gradient norm


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that a check found.

  Attributes:
    level: 'problem' for what makes results unusable or stops the run, 'warning' for what costs
      quality or time, 'note' for what one should know.
    title: what it is, a few words.
    detail: the numbers.
    action: what to do.
  """

  level: Level
  title: str
  detail: str
  action: str


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """The contents of a run's files.

  Attributes:
    record: config, metrics and evaluation.
    corpus: counts of the corpus of each phase; empty where they were not recorded.
    status: of status.json; empty where there is none.
    versions: of versions.json; empty where there is none.
  """

  record: RunRecord
  corpus: Sequence[Mapping[str, Any]] = ()
  status: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def objective(self) -> Objective:
    """The objective; older runs do not record its name."""
    name = self.record.config['objective'].get('name', 'electra')
    objective: Objective = registry.OBJECTIVES.get(name)
    return objective

  @property
  def progress(self) -> float:
    """Share of the steps that were taken."""
    return float(self.record.last['step'] / max(1, self.record.config['steps']))

  @property
  def is_early(self) -> bool:
    """Whether the run has just started, so that a model that has not learned yet is usual."""
    return self.progress < _EARLY

  @property
  def latest(self) -> Line:
    """The latest held-out metrics, or training metrics where there are none."""
    return (self.record.heldout or self.record.train)[-1]

  @property
  def corpus_tokens(self) -> float:
    """Tokens of one pass over the training rows, padding included; 0 if it is not known."""
    rows = self.record.resolved.get('train_rows') or 0
    return float(rows * self.record.config['sequence_length'])


def findings(files: RunFiles) -> list[Finding]:
  """What all checks found, the worst first."""
  found = [finding for check in _CHECKS for finding in check(files)]
  return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _state(files: RunFiles) -> Iterator[Finding]:
  status, last = files.status, files.record.last
  reason = status.get('exit_reason')
  if status.get('state') == 'failed':
    yield Finding(
      'problem',
      'The run has failed',
      f'At step {last["step"]:,}: {reason or "no reason was recorded"}',
      'Resolve the cause; the same command then resumes from the last checkpoint.',
    )
  elif files.progress < 1:
    state = {'running': 'was running', 'stopped': 'was stopped'}.get(status.get('state', ''), '')
    yield Finding(
      'note',
      'The run is not complete',
      f'Step {last["step"]:,} of {files.record.config["steps"]:,} ({files.progress:.0%})'
      + (f'; it {state} when its status was written.' if state else '.'),
      'The same command resumes it. Metrics are those of an unfinished schedule.',
    )


def _skipped(files: RunFiles) -> Iterator[Finding]:
  skipped = files.record.train[-1].get('skipped') if files.record.train else 0
  if skipped:
    share = skipped / max(1, files.record.last['step'])
    yield Finding(
      'problem' if share > 0.01 else 'warning',
      'Steps were skipped',
      f'{skipped:,.0f} steps ({share:.2%}) were skipped because a loss or gradient was not finite.',
      'Skipping is for rare events. Use a lower config.optimizer.learning_rate or a longer '
      'warm-up.',
    )


def _generator(files: RunFiles) -> Iterator[Finding]:
  entropy, loss = files.record.resolved.get('unigram_entropy'), files.latest.get('generator_loss')
  if not entropy or loss is None or files.record.config['generator'].get('uniform'):
    return
  if loss < _NEAR_BASELINE * entropy:
    return
  where = 'above' if loss > entropy / _NEAR_BASELINE else 'at'
  yield Finding(
    'note' if files.is_early else 'warning',
    f"The generator's loss is {where} the baseline",
    f'{loss:.3f} nats; a generator without context scores {entropy:.3f} (unigram entropy).',
    'Usual early in training. If it stays: train longer, use the modern family for small budgets, '
    'a smaller vocabulary, or another learning rate.',
  )


def _discriminator(files: RunFiles) -> Iterator[Finding]:
  latest, evaluation = files.latest, files.record.evaluation
  if not files.objective.trains_discriminator or latest.get('auc') is None:
    return
  level: Level = 'note' if files.is_early else 'warning'
  action = (
    'Usual early in training, and recall follows last. If AUC stays at 0.5: use a weaker generator '
    '(config.generator.hidden_fraction), a lower learning rate or a longer warm-up.'
  )
  defined = {name: math.nan if value is None else value for name, value in latest.items()}
  if metrics.answers_original(defined):
    yield Finding(
      level,
      'The discriminator answers "original" to every token',
      f'Recall {latest["recall"]:.3f}, AUC {latest["auc"]:.3f} (chance 0.5).',
      action,
    )
    return
  gain, low = latest['constant_loss'] - latest['discriminator_loss'], None
  if evaluation and evaluation['step'] >= latest['step'] and 'gain' in evaluation['figures']:
    gain, low = (evaluation['figures']['gain'][name] for name in ('value', 'low'))
    low = low if low is not None and math.isfinite(low) else None  # of one batch
  if gain <= 0 or (low is not None and not low > 0):
    interval = '' if low is None else f' (the interval begins at {low:.4f})'
    yield Finding(
      level,
      'The discriminator is not better than a constant prediction',
      f'It gains {gain:.4f} nats over the best constant{interval}, with an AUC of '
      f'{latest["auc"]:.3f}.',
      action,
    )


def _best(files: RunFiles) -> Iterator[Finding]:
  config = files.record.config
  lines = _last_phase(files.record)
  name, best_of = 'total_loss', min
  if config.get('best_by') == 'objective' and lines and 'reference_ap' in lines[-1]:
    name, best_of = 'reference_ap', max
  values = {line['step']: line[name] for line in lines if line.get(name) is not None}
  if len(values) < 3:
    return
  best = max(step for step, value in values.items() if value == best_of(values.values()))
  last = max(values)
  if last - best > _OLD_BEST * config['steps']:
    title = files.objective.displayed
    label = title[name].title if name in title else name
    yield Finding(
      'warning',
      'The best checkpoint is old',
      f'{label} on held-out rows was best at step {best:,} ({values[best]:.4f}); at step {last:,} '
      f'it is {values[last]:.4f}.',
      'Open the best checkpoint with --step=best. Use more text, fewer steps or a lower learning '
      'rate.',
    )


def _last_phase(record: RunRecord) -> list[Line]:
  """Held-out lines that compare: those of the last phase, after steps of the generator only."""
  config = record.config
  phases = [phase['steps'] for phase in config.get('phases') or ()]
  starts = [sum(phases[:i]) for i in range(len(phases))]
  start = max((first for first in starts if first < record.last['step']), default=0)
  start = max(start, config['generator'].get('alone_steps', 0))
  return [line for line in record.heldout if line['step'] > start]


def _overfitting(files: RunFiles) -> Iterator[Finding]:
  record = files.record
  if not record.heldout or not record.train:
    return
  step = record.heldout[-1]['step']
  near = min(record.train, key=lambda line: abs(line['step'] - step))
  for name, title in (('generator_loss', 'generator'), ('prediction_loss', 'main tower')):
    train, heldout = near.get(name), record.heldout[-1].get(name)
    if train and heldout and heldout > train * (1 + _GAP):
      yield Finding(
        'warning',
        'Training rows are predicted better than held-out rows',
        f'Loss of the {title} at step {step:,}: {train:.3f} nats in training, {heldout:.3f} held '
        'out.',
        'The model memorizes the corpus, or held-out documents are of another kind. Use more text '
        'or fewer steps.',
      )
      return


def _repeated(files: RunFiles) -> Iterator[Finding]:
  if not files.corpus_tokens:
    return
  passes = files.record.last['tokens'] / files.corpus_tokens
  if passes > MANY_PASSES:
    yield Finding(
      'warning',
      'The corpus is repeated often',
      f'{passes:,.0f} passes over {files.corpus_tokens:,.0f} tokens; beyond {MANY_PASSES} further '
      'passes add next to nothing.',
      f'Use more text, or stop earlier: --config.budget_epochs={MANY_PASSES}.',
    )


def _text(files: RunFiles) -> Iterator[Finding]:
  for facts in files.corpus:
    yield from _lost_text(facts['train'], facts.get('sources', ()))


def _lost_text(train: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
  tokens = max(1, train.get('text_tokens', 0))
  unknown, dropped = (train.get(name, 0) / tokens for name in ('unknown_tokens', 'dropped_tokens'))
  replaced = sum(source.get('replaced_bytes', 0) for source in sources)
  yield from _lost_characters(sources)
  if unknown > _UNKNOWN and not any('losses' in source for source in sources):
    yield Finding(
      'warning',
      'Many tokens are unknown',
      f'{train["unknown_tokens"]:,} training tokens ({unknown:.2%}) are [UNK].',
      'Train a tokenizer on this text, use a larger vocabulary, or config.data.byte_fallback.',
    )
  if dropped > _TRUNCATED:
    yield Finding(
      'warning',
      'Much text was cut off',
      f'{train["dropped_tokens"]:,} training tokens ({dropped:.1%}) were cut off.',
      'Use longer rows (config.sequence_length) or config.data.row_format=packed.',
    )
  if replaced:
    yield Finding(
      'warning',
      'Text is not UTF-8',
      f'{replaced:,} bytes were replaced.',
      'Convert the files: iconv -f latin1 -t utf-8 old.txt > new.txt.',
    )


def _lost_characters(sources: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
  """Findings about sources of which the tokenizer loses characters; 0.1.0 did not count them."""
  for source in sources:
    losses = losses_of(dict(source))
    if losses.lost_share < LOSS_WARNING:
      continue
    examples = [loss_report.examples(losses, fate, 3) for fate in ('unknown', 'removed')]
    yield Finding(
      'problem' if losses.lost_share >= LOSS_ERROR else 'warning',
      'The tokenizer loses characters',
      f'{losses.lost_share:.1%} of the characters of {source["location"]} are unknown or removed, '
      f'most often {", ".join(filter(None, examples))}.',
      f'Use {source["remedy"]}.',
    )


def _speed(files: RunFiles) -> Iterator[Finding]:
  # The first line includes the first step, which is slower.
  train = files.record.train[1:]
  waits = [line['input_wait'] for line in train if line.get('input_wait') is not None]
  if waits and statistics.fmean(waits) > _WAIT:
    yield Finding(
      'warning',
      'Devices wait for input',
      f'{statistics.fmean(waits):.0%} of the time was spent waiting for rows.',
      'Put config.data.cache on a local disk.',
    )
  speeds = [line['tokens_per_second'] for line in train if line.get('tokens_per_second')]
  median = statistics.median(speeds) if speeds else 0
  slow = sum(speed < _SLOW * median for speed in speeds)
  if slow > 0.1 * len(speeds):
    yield Finding(
      'note',
      'The speed varies',
      f'{slow} of {len(speeds)} lines are below {_SLOW:.0%} of the median of {median:,.0f} tokens '
      'per second.',
      'Other programs use the machine, or devices wait for input; see the panels of speed.',
    )


def _gradients(files: RunFiles) -> Iterator[Finding]:
  lines = files.record.train
  norms = {line['step']: line.get('gradient_norm/all') for line in lines[len(lines) // 2 :]}
  values = {step: norm for step, norm in norms.items() if norm}
  if len(values) < 5:
    return
  worst, median = max(values, key=lambda step: values[step]), statistics.median(values.values())
  if values[worst] > _SPIKE * median:
    yield Finding(
      'warning',
      'Gradient norms spike',
      f'{values[worst]:.3g} at step {worst:,}, with a median of {median:.3g} in the later half.',
      'Use a lower config.optimizer.learning_rate or a longer warm-up.',
    )


def _evaluation(files: RunFiles) -> Iterator[Finding]:
  evaluation, last = files.record.evaluation, files.record.last['step']
  command = f'python -m electra_jax.main --mode=evaluate --workdir={files.record.workdir}'
  if not evaluation:
    yield Finding('note', 'Not evaluated', 'The metrics have no intervals yet.', f'Run {command}')
  elif evaluation['step'] < last:
    yield Finding(
      'note',
      'The evaluation is of an earlier step',
      f'It is of step {evaluation["step"]:,}, the last metrics of step {last:,}.',
      f'Run {command}',
    )


def _versions(files: RunFiles) -> Iterator[Finding]:
  started, last = (files.versions.get(name) or {} for name in ('started_with', 'last_run_with'))
  changed = [
    f'{name} {started.get(name, "?")} to {version}'
    for name, version in last.items()
    if started and started.get(name) != version
  ]
  if changed:
    yield Finding(
      'note',
      'Versions changed during the run',
      f'{", ".join(changed)}.',
      'The run keeps its meaning; numbers may differ by rounding from those of one version.',
    )


_CHECKS: tuple[Callable[[RunFiles], Iterator[Finding]], ...] = (
  _state,
  _skipped,
  _discriminator,
  _generator,
  _best,
  _overfitting,
  _repeated,
  _text,
  _gradients,
  _speed,
  _evaluation,
  _versions,
)
