"""--mode=timeline: every kept checkpoint of a pretrained run, on held-out rows and on tasks.

The results are plotted against tokens and FLOPs of training.
"""

import io
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from etils import epath
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from electra_jax import console, registry
from electra_jax.config import AnyConfig, FinetuningConfig, checked_finetuning, config_kind, freeze
from electra_jax.console import quantity, say
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune.run_files import json_values, read_records
from electra_jax.finetune.tasks import open_task
from electra_jax.finetune.train import run_finetuning
from electra_jax.pretrain import evaluation
from electra_jax.pretrain.build import build_model, build_settings, objective_of
from electra_jax.pretrain.pretrain_step import jit_eval_step
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.pretrain.trained_run import Run, open_run
from electra_jax.training import checkpoints, hosts, run_folder
from electra_jax.training.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE
from electra_jax.training.devices import use_compilation_cache
from electra_jax.training.preemption import Notice

# One checkpoint: its step, what training had spent, metrics on held-out rows and on tasks.
Point: TypeAlias = dict[str, Any]

# Evaluation metrics that are shown -> their titles.
TITLES = {
  'generator_loss': 'generator loss',
  'prediction_loss': 'prediction loss',
  'discriminator_loss': 'discriminator loss',
  'auc': 'area under the curve',
  'reference_ap': 'reference AP',
}
COLORS = {'generator_loss': ORANGE, 'discriminator_loss': BLUE}
BATCH = 16  # rows per evaluation step


def timeline(
  workdir: str | os.PathLike[str],
  *,
  config: AnyConfig = None,
  rows: int | None = None,
  store: str | None = None,
  output: str | None = None,
) -> int:
  """Evaluates the checkpoints of a run and writes WORKDIR/timeline.json and timeline.png.

  Args:
    workdir: folder of the pretrained run.
    config: a fine-tuning config: each of its tasks is trained from each checkpoint, in
      WORKDIR/timeline/step-<step>. Trials that are done are not repeated. None for no tasks.
    rows: number of held-out rows, at most, evenly spaced; None for all.
    store: the prepared corpus, where it is not where it was during training.
    output: folder to write in; None for the run's.

  Returns:
    The exit status: 0, or PREEMPTED when asked to stop.

  Raises:
    UserError: the folder holds no run or no checkpoint, or data of a task is missing or broken.
  """
  notice = Notice()
  tuning = None if config is None else _tuning_config(config, workdir)
  results = run_folder.Results(workdir, output)
  steps = checkpoints.all_steps(workdir)
  run = open_run(workdir, str(steps[-1]), store)
  use_compilation_cache(run.config.compilation_cache)
  name = run.resolved.config.name
  console.heading(f'{name}: {len(steps)} checkpoints  ({workdir})')
  points = [{'step': step, **spent(run.resolved, run.tokenizer, step)} for step in steps]
  _evaluate(run, points, rows, store)
  if tuning is not None and not _finetune(tuning, points, results.folder, notice):
    return PREEMPTED
  _write(results, {'run': str(workdir), 'name': name, 'points': points})
  return 0


def _tuning_config(config: AnyConfig, workdir: str | os.PathLike[str]) -> FinetuningConfig:
  """The fine-tuning config with the run as its initial weights; data of its tasks is checked."""
  if config_kind(config) is not FinetuningConfig:
    raise UserError(
      '--mode=timeline takes a fine-tuning config, such as configs/finetune/cola.py, or none; the '
      'config is for another mode.'
    )
  frozen = freeze(FinetuningConfig, config)
  c = checked_finetuning(frozen.replace({'init': str(workdir), 'keep_trials': 'none'}))
  for name in c.tasks:  # a mistake in the data is reported before anything is computed
    open_task(name, c).examples('train')
  return c


def _evaluate(run: Run, points: list[Point], rows: int | None, store: str | None) -> None:
  """Adds metrics on held-out rows to each point."""
  batch = -(-BATCH // run.mesh.size) * run.mesh.size
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.params)
  shardings = jax.tree.map(lambda x: x.sharding, run.params)
  opened: dict[
    int, tuple[Run, Any, evaluation.Heldout]
  ] = {}  # by phase, since phases may have rows of other lengths
  with console.progress('held out', len(points), 'checkpoints', before='compiling') as live:
    for done, point in enumerate(points, 1):
      phases = enumerate(run.resolved.phases)
      number = next(n for n, phase in phases if point['step'] <= phase.last)
      if number not in opened:
        of_phase = open_run(run.workdir, str(point['step']), store)
        evaluated = evaluation.heldout(
          of_phase.heldout, of_phase.settings, limit=rows, sources=of_phase.heldout_sources
        )
        opened[number] = of_phase, _eval_step(of_phase), evaluated
      of_phase, eval_step, evaluated = opened[number]
      params, _ = checkpoints.restore_params(run.workdir, point['step'], shapes, shardings)
      sums = evaluation.heldout_sums(eval_step, params, evaluated, batch_size=batch, mesh=run.mesh)
      point['heldout'] = evaluation.with_intervals(sums, evaluated, of_phase.settings)
      live(done, f'step {point["step"]:,}')


def _eval_step(run: Run) -> Callable[..., Any]:
  """The compiled evaluation step of a run."""
  step: Callable[..., Any] = jit_eval_step(
    run.model,
    registry.OBJECTIVES.get(run.settings.name),
    run.settings,
    run.layout,
    seed=evaluation.EVAL_SEED,
  )
  return step


def _finetune(
  config: FinetuningConfig, points: list[Point], workdir: epath.Path, notice: Notice
) -> bool:
  """Adds the results of fine-tuning to each point; False when asked to stop."""
  with console.progress('timeline', len(points)) as live:
    for done, point in enumerate(points):
      live(done)
      folder = workdir / 'timeline' / f'step-{point["step"]}'
      of_step = config.replace({'init_step': str(point['step'])})
      if notice or run_finetuning(of_step, str(folder), notice) == PREEMPTED:
        return False
      records = read_records(folder, config.tasks)
      point['tasks'] = {
        task: _task_result([record for record in records if record['task'] == task])
        for task in config.tasks
      }
  return True


def _task_result(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Metric of a task, its values on dev and their median, from the records of its trials."""
  metric = records[0]['metric']
  values = [record['figures']['dev'][metric] for record in records]
  values = [value for value in values if value is not None]
  return {
    'metric': metric,
    'values': values,
    'median': statistics.median(values) if values else None,
  }


def _write(results: run_folder.Results, result: dict[str, Any]) -> None:
  """Writes timeline.json and timeline.png, and prints the table."""
  image = io.BytesIO()
  draw_timeline(result).savefig(image, dpi=130, format='png')
  files = {
    'timeline.json': run_folder.json_content(json_values(result)),
    'timeline.png': image.getvalue(),
  }
  written = hosts.from_first(lambda: results.write(files))
  print('\n' + timeline_table(result) + '\n')
  if written:
    say('written', written, always=True)


def spent(run: ResolvedRun, tokenizer: Tokenizer, step: int) -> dict[str, float]:
  """Tokens and FLOPs that a run had spent at a step, summed over its phases.

  Args:
    run: the resolved run.
    tokenizer: its tokenizer.
    step: number of updates.

  Returns:
    'tokens', 'flops' and 'paper_flops', the FLOPs in both conventions of training/flops.py.
  """
  totals: dict[str, float] = {'tokens': 0, 'flops': 0, 'paper_flops': 0}
  for phase in run.phases:
    taken = min(step, phase.last) - phase.first
    if taken <= 0:
      continue
    c = phase.config
    model, settings = build_model(c, tokenizer.size), build_settings(c, tokenizer)
    totals['tokens'] += taken * c.batch_size * c.sequence_length
    for name, convention in (('flops', 'model'), ('paper_flops', 'paper')):
      totals[name] += taken * objective_of(c).step_flops(
        settings, model, (c.batch_size, c.sequence_length), convention, phase.generator_only
      )
  return totals


#### Table and picture ####


def _heldout_names(result: Mapping[str, Any]) -> list[str]:
  """The evaluation metrics that the run's objective has, in the order of TITLES."""
  return [name for name in TITLES if name in result['points'][-1]['heldout']]


def timeline_table(result: Mapping[str, Any]) -> str:
  """The results as text, one line per checkpoint.

  Args:
    result: content of timeline.json.
  """
  tasks = list(result['points'][-1].get('tasks', {}))
  names = _heldout_names(result)
  lines = [['step', 'tokens', 'FLOPs', *(TITLES[name] for name in names), *tasks]]
  for point in result['points']:
    medians = [point['tasks'][task]['median'] for task in tasks]
    lines.append(
      [
        f'{point["step"]:,}',
        quantity(point['tokens']),
        quantity(point['flops']),
        *(f'{point["heldout"][name]["value"]:.4f}' for name in names),
        *('-' if median is None else f'{100 * median:.1f}' for median in medians),
      ]
    )
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  padded = [[f'{cell:>{w}}' for cell, w in zip(line, widths, strict=True)] for line in lines]
  text = '\n'.join('  ' + '  '.join(line) for line in padded)
  return text + ('\n  Tasks: median over trials on dev, times 100.' if tasks else '')


def draw_timeline(result: Mapping[str, Any]) -> Figure:
  """One panel per metric and task over tokens, with FLOPs on the upper axis.

  Args:
    result: content of timeline.json.
  """
  points = result['points']
  rate = points[-1]['flops'] / points[-1]['tokens']
  panels = [*_heldout_names(result), *points[-1].get('tasks', {})]
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  with rc_context(STYLE):
    figure = Figure(figsize=(4.3 * columns, 3.4 * rows + 0.5), layout='constrained')
    figure.suptitle(
      f'{result["name"]}: {len(points)} checkpoints; bands are 95% bootstrap intervals',
      x=0.015,
      ha='left',
      fontsize=11,
    )
    for place, name in enumerate(panels, 1):
      axes = figure.add_subplot(rows, columns, place)
      if name in TITLES:
        _draw_metric(axes, points, name)
      else:
        _draw_task(axes, points, name)
      _finish_axes(axes, points[-1]['tokens'], rate)
  return figure


def _draw_metric(axes: Axes, points: Sequence[Point], name: str) -> None:
  """An evaluation metric with its intervals."""
  tokens = [point['tokens'] for point in points]
  values = [point['heldout'][name] for point in points]
  color = COLORS.get(name, GREEN)
  low, high = [v['low'] for v in values], [v['high'] for v in values]
  axes.fill_between(tokens, low, high, color=color, alpha=0.2, lw=0)
  axes.plot(tokens, [v['value'] for v in values], color=color, marker='o', ms=4)
  if name == 'discriminator_loss':
    constant = [point['heldout']['constant_loss']['value'] for point in points]
    axes.plot(tokens, constant, color=GREY, ls='--', lw=1.2, label='constant predictor')
    axes.legend(framealpha=0.85, edgecolor='none')
  _title(axes, f'held out: {TITLES[name]}')


def _draw_task(axes: Axes, points: Sequence[Point], task: str) -> None:
  """The trials of a task and their median."""
  tokens = [point['tokens'] for point in points]
  results = [point['tasks'][task] for point in points]
  for count, trials in zip(tokens, results, strict=True):
    axes.plot([count] * len(trials['values']), trials['values'], '.', color=PURPLE, alpha=0.5)
  medians = [float('nan') if r['median'] is None else r['median'] for r in results]
  axes.plot(tokens, medians, color=PURPLE, marker='o', ms=4)
  _title(axes, f'{task}: {results[0]["metric"]} on dev')


def _title(axes: Axes, text: str) -> None:
  axes.set_title(text, loc='left', fontsize=10, fontweight='bold')


def _finish_axes(axes: Axes, tokens: float, rate: float) -> None:
  """Limits and labels of both horizontal axes; `rate` is FLOPs per token."""

  def to_flops(x: Any) -> Any:  # noqa: ANN401  matplotlib's stubs require any array-like
    return x * rate

  def to_tokens(x: Any) -> Any:  # noqa: ANN401  as above
    return x / rate

  axes.set_xlim(0, tokens * 1.03)
  axes.set_xlabel('tokens')
  axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
  top = axes.secondary_xaxis('top', functions=(to_flops, to_tokens))
  for axis in (axes.xaxis, top.xaxis):
    axis.set_major_locator(MaxNLocator(4))
  top.xaxis.set_major_formatter(lambda value, _: quantity(value, 'FLOP') if value else '')
  top.tick_params(length=2, pad=1, labelcolor=GREY, labelsize=7)
