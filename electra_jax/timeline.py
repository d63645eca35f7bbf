"""--mode=timeline: every kept checkpoint of a pretraining run, on held-out rows and on chosen tasks, against tokens and FLOPs."""

import io
import statistics

import jax

from electra_jax import console
from electra_jax.config import FinetuningConfig, checked_finetuning, freeze, kind_of
from electra_jax.console import say
from electra_jax.errors import PREEMPTED, UserError
from electra_jax.finetune.tasks import open_task
from electra_jax.finetune.train import finetune, read_records
from electra_jax.finetune.trial import plain
from electra_jax.pretrain import evaluation, objectives
from electra_jax.pretrain.build import build_model, build_settings
from electra_jax.pretrain.objectives.common import step_flops
from electra_jax.pretrain.pretrain_step import jit_eval_step
from electra_jax.pretrain.pretrained import Run, open_run, use_compilation_cache
from electra_jax.pretrain.resolve import ResolvedRun
from electra_jax.training import checkpoints, hosts, run_folder
from electra_jax.training.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE
from electra_jax.training.preemption import Notice
from electra_jax.training.progress import quantity

HELDOUT = {
  'generator_loss': 'generator loss',
  'prediction_loss': 'prediction loss',
  'discriminator_loss': 'discriminator loss',
  'auc': 'area under the curve',
}
BATCH = 16  # rows a step of evaluation, and the unit that the bootstrap resamples


def timeline(
  workdir: str, *, config=None, rows: int | None = None, store: str | None = None
) -> int:
  """Evaluates the checkpoints of a run, the first to the last, prints a table and leaves WORKDIR/timeline.json and timeline.png.

  Args:
    workdir: of the pretraining run.
    config: a fine-tuning config: each of its tasks is trained from each checkpoint, in WORKDIR/timeline/step-<step>; goes on where it
      was stopped. None for held-out rows alone.
    rows: most held-out rows, None for all.
    store: the prepared corpus, where it is elsewhere than at training.

  Returns the exit status. Raises UserError where there is no run or no checkpoint, or what pretrain.run and finetune.train raise.
  """
  if config is not None and kind_of(config) is not FinetuningConfig:
    raise UserError(
      '--mode=timeline takes the config of a fine-tuning run, as configs/finetune/cola.py, or none.'
    )
  notice = Notice()
  tasks = []
  if config is not None:
    config = freeze(FinetuningConfig, config)
    config = checked_finetuning(config.replace({'init': str(workdir), 'keep_trials': 'none'}))
    tasks = config.tasks
    for name in tasks:  # what is wrong with the data is told before anything is computed
      open_task(name, config).examples('train')
  steps = checkpoints.all_steps(workdir)
  run = open_run(workdir, steps[-1], store)
  use_compilation_cache(run.config)
  whole = run.resolved
  console.heading(f'{whole.config.name}: {len(steps)} checkpoints  ({workdir})')
  points = [{'step': step, **spent(whole, run.tokenizer, step)} for step in steps]

  #### Held-out rows #################################################################################################
  batch = -(-BATCH // run.mesh.size) * run.mesh.size
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), run.params)
  shardings = jax.tree.map(lambda x: x.sharding, run.params)
  opened: dict[int, tuple[Run, object]] = {}  # a phase's rows have a length of their own
  with console.progress('held out', len(steps)) as live:
    for done, point in enumerate(points):
      number, phase = next((n, p) for n, p in enumerate(whole.phases) if point['step'] <= p.last)
      if number not in opened:
        of_phase = open_run(workdir, point['step'], store)
        opened[number] = (
          of_phase,
          jit_eval_step(
            of_phase.model,
            objectives.named(of_phase.settings.name),
            of_phase.settings,
            of_phase.layout,
            seed=evaluation.EVAL_SEED,
          ),
        )
      of_phase, eval_step = opened[number]
      params, _ = checkpoints.restore_params(workdir, point['step'], shapes, shardings)
      sums = evaluation.heldout_sums(
        eval_step, params, of_phase.heldout, batch_size=batch, mesh=run.mesh, limit=rows
      )
      figures, spread = (
        evaluation.figures_of(sums, of_phase.settings),
        evaluation.intervals(sums, of_phase.settings),
      )
      point['heldout'] = {
        name: {'value': float(figures[name]), 'low': spread[name][0], 'high': spread[name][1]}
        for name in evaluation.NAMES
        if name in figures
      }
      live(done + 1, f'step {point["step"]:,}')

  #### Tasks #########################################################################################################
  for point in points if tasks else ():
    c = config.replace({'init_step': str(point['step'])})
    folder = run_folder.folder(workdir) / 'timeline' / f'step-{point["step"]}'
    if notice or finetune(c, str(folder), notice) == PREEMPTED:
      return PREEMPTED
    records = read_records(folder, tasks)
    point['tasks'] = {task: _trials([r for r in records if r['task'] == task]) for task in tasks}

  result = {'run': str(workdir), 'name': whole.config.name, 'points': points}
  folder = run_folder.folder(workdir)
  image = io.BytesIO()
  draw(result).savefig(image, dpi=130, format='png')
  hosts.from_first(lambda: run_folder.write_json(folder / 'timeline.json', plain(result)))
  hosts.from_first(lambda: run_folder.write_bytes(folder / 'timeline.png', image.getvalue()))
  print('\n' + table(result) + '\n')
  say('written', f'{folder / "timeline.json"}, {folder / "timeline.png"}')
  return 0


def spent(run: ResolvedRun, tokenizer, step: int) -> dict[str, float]:
  """Tokens and FLOPs that a run had spent at a step, over its phases; FLOPs in both conventions of training.flops."""
  totals = {'tokens': 0, 'flops': 0, 'paper_flops': 0}
  for phase in run.phases:
    taken = min(step, phase.last) - phase.first
    if taken <= 0:
      continue
    c = phase.config
    model, settings = build_model(c, tokenizer.size), build_settings(c, tokenizer)
    totals['tokens'] += taken * c.batch_size * c.sequence_length
    for name, convention in (('flops', 'model'), ('paper_flops', 'paper')):
      totals[name] += taken * step_flops(
        settings, model, c.batch_size, c.sequence_length, convention, phase.generator_only
      )
  return totals


def _trials(records):
  metric = records[0]['metric']
  values = [r['figures']['dev'][metric] for r in records if r['figures']['dev'][metric] is not None]
  return {
    'metric': metric,
    'values': values,
    'median': statistics.median(values) if values else None,
  }


def _heldout(result) -> list[str]:
  """The held-out figures that the run's objective has."""
  return [name for name in HELDOUT if name in result['points'][-1]['heldout']]


def table(result: dict) -> str:
  """A line a checkpoint."""
  tasks = list(result['points'][-1].get('tasks', {}))
  heldout = _heldout(result)
  header = ['step', 'tokens', 'FLOPs', *(HELDOUT[name] for name in heldout), *tasks]
  lines = []
  for point in result['points']:
    of_task = (point['tasks'][task]['median'] for task in tasks)
    lines.append(
      [
        f'{point["step"]:,}',
        quantity(point['tokens']),
        quantity(point['flops']),
        *(f'{point["heldout"][name]["value"]:.4f}' for name in heldout),
        *('-' if m is None else f'{100 * m:.1f}' for m in of_task),
      ]
    )
  widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
  text = '\n'.join(
    '  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True))
    for row in [header, *lines]
  )
  return text + ('\n  Tasks: the median of the trials, times 100, on dev.' if tasks else '')


def draw(result: dict):
  """Held-out figures and the tasks' scores over tokens, FLOPs on top: a matplotlib Figure."""
  from matplotlib import rc_context
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  points = result['points']
  tasks = list(points[-1].get('tasks', {}))
  tokens = [point['tokens'] for point in points]
  rate = points[-1]['flops'] / points[-1]['tokens']
  panels = [*_heldout(result), *tasks]
  columns = min(3, len(panels))
  with rc_context(STYLE):
    figure = Figure(
      figsize=(4.3 * columns, 3.4 * -(-len(panels) // columns) + 0.5), layout='constrained'
    )
    figure.suptitle(
      f'{result["name"]}: {len(points)} checkpoints; bands are 95% bootstrap intervals',
      x=0.015,
      ha='left',
      fontsize=11,
    )
    for place, name in enumerate(panels):
      axes = figure.add_subplot(-(-len(panels) // columns), columns, place + 1)
      if name in HELDOUT:
        held = [point['heldout'][name] for point in points]
        color = {'generator_loss': ORANGE, 'discriminator_loss': BLUE}.get(name, GREEN)
        axes.fill_between(
          tokens, [f['low'] for f in held], [f['high'] for f in held], color=color, alpha=0.2, lw=0
        )
        axes.plot(tokens, [f['value'] for f in held], color=color, marker='o', ms=4)
        if name == 'discriminator_loss':
          axes.plot(
            tokens,
            [point['heldout']['constant_loss']['value'] for point in points],
            color=GREY,
            ls='--',
            lw=1.2,
            label='constant predictor',
          )
          axes.legend(framealpha=0.85, edgecolor='none')
        axes.set_title(f'held out: {HELDOUT[name]}', loc='left', fontsize=10, fontweight='bold')
      else:
        of_task = [point['tasks'][name] for point in points]
        for count, trials in zip(tokens, of_task, strict=True):
          axes.plot([count] * len(trials['values']), trials['values'], '.', color=PURPLE, alpha=0.5)
        axes.plot(
          tokens,
          [float('nan') if t['median'] is None else t['median'] for t in of_task],
          color=PURPLE,
          marker='o',
          ms=4,
        )
        axes.set_title(
          f'{name}: {of_task[0]["metric"]} on dev', loc='left', fontsize=10, fontweight='bold'
        )
      axes.set_xlim(0, tokens[-1] * 1.03)
      axes.set_xlabel('tokens')
      axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
      top = axes.secondary_xaxis('top', functions=(lambda x: x * rate, lambda x: x / rate))
      for axis in (axes.xaxis, top.xaxis):
        axis.set_major_locator(MaxNLocator(4))
      top.xaxis.set_major_formatter(lambda value, _: quantity(value, 'FLOP') if value else '')
      top.tick_params(length=2, pad=1, labelcolor=GREY, labelsize=7)
  return figure
