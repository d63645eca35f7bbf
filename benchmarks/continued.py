r"""Continued pretraining on other text: what it gains, and with which objective and generator.

  python benchmarks/continued.py objectives DATA OUT     # an hour and a half on a core
  python benchmarks/continued.py scratch RUN TEXT OUT    # half an hour
  python benchmarks/continued.py generators RUN TEXT OUT # a quarter of an hour

objectives: a BERT-shaped and a ModernBERT-shaped masked language model are pretrained, exported for
transformers, opened again as hf:FOLDER, and continued on novels by masked language modeling and by
replaced token detection at equal FLOPs. All of them are fine-tuned on two tasks, and probed on one
with a frozen encoder. DATA has pretrain/openstax_ccby.txt.xz, pretrain/wiki_cc_by_sa.txt.xz and
pretrain/fiction_pd.txt.xz, tagging/ud_ewt and glue/SST-2. Results are lines of
OUT/sweep/results.jsonl, and the table is printed; with --json=FILE both go there, with processor
and versions.

scratch: RUN, of configs/mini.py, is exported and continued on TEXT, a document per line, beside a
run from scratch; draws OUT/continued.png. generators: the discriminator of RUN is continued with
a generator cut out of it, and with a new one.

Killed, the same command resumes.
"""

import argparse
import json
import lzma
import pathlib
from collections.abc import Mapping, Sequence

import ml_collections
from environment import environment, run_main
from matplotlib import rc_context
from matplotlib.figure import Figure

from electra_jax.finetune.trial_summary import spread
from electra_jax.sweep import config as sweep_config
from electra_jax.sweep.results import RESULTS_FILE, Result, read_results
from electra_jax.sweep.runner import sweep
from electra_jax.training.curves import STYLE
from electra_jax.training.progress import read_metrics

#### Objectives ####

# Fields of the two sources: a WordPiece and a SentencePiece vocabulary, as those encoders have.
SHAPES = {
  'bert': {
    'model.family': 'bert',
    'model.max_positions': 256,
    'model.intermediate_size': 512,
    'data.tokenizer': 'wordpiece',
    'optimizer.learning_rate': 1e-3,
  },
  'modern': {
    'model.family': 'modern',
    'model.intermediate_size': 256,
    'data.tokenizer': 'unigram',
    'optimizer.learning_rate': 2e-3,
  },
}
ROWS = {'sequence_length': 128, 'batch_size': 8, 'optimizer.warmup_fraction': 0.08}
SMALLEST_SAMPLE = 3  # values of an interval; of two it would be too wide to be useful
CHARACTERS_PER_BOOK = 10_000
HELDOUT = (
  ('generator_loss', 'masked-token loss', 3),
  ('gain', 'gain of the discriminator', 4),
  ('auc', 'area under the curve', 3),
)
TASKS = ('pos', 'pos_frozen', 'sst2')
STAGES = {'source': 'source', 'mlm': 'source + MLM', 'rtd': 'source + RTD'}


def flag(name: str, value: object) -> str:
  """A config field on the command line."""
  return f'--config.{name}={value}'


def pretrain_source(shape: str, arguments: argparse.Namespace) -> str:
  """Pretrains a source and exports it; returns the folder of its masked language model."""
  data = arguments.data / 'pretrain'
  books, wiki = data / 'openstax_ccby.txt.xz', data / 'wiki_cc_by_sa.txt.xz'
  out = arguments.out / 'sources' / shape
  exported = arguments.out / 'sources' / f'{shape}-hf'
  fields = {
    'name': f'source-{shape}',
    'objective.name': 'mlm',
    'data.lowercase': 'no',
    'data.tokenizer_characters': 2e7,
    'data.source': f'{books};weight=6,{wiki};weight=4',
    'data.cache': arguments.out / 'cache',
    'budget_flops': arguments.source_flops,
    'eval_rows': 512,
    'eval_every': 1_000,
  }
  fields |= ROWS | SHAPES[shape]
  flags = [flag(name, value) for name, value in fields.items()]
  if not exported.exists():
    run_main(f'--config={arguments.base}', *flags, f'--workdir={out}')
    run_main('--mode=export', f'--workdir={out}', f'--output={exported}')
  return str(exported / 'generator')


def domain_text(arguments: argparse.Namespace) -> pathlib.Path:
  """The beginnings of all novels, a paragraph per line."""
  path = arguments.out / 'domain.txt'
  if path.exists():
    return path
  kept, room = [], CHARACTERS_PER_BOOK
  with lzma.open(arguments.data / 'pretrain' / 'fiction_pd.txt.xz', 'rt', encoding='utf-8') as file:
    for line in file:
      if not line.strip():
        room = CHARACTERS_PER_BOOK
      elif room > 0:
        kept.append(line)
        room -= len(line)
  path.write_text(''.join(kept), encoding='utf-8')
  return path


def objectives_sweep(
  sources: Mapping[str, str], arguments: argparse.Namespace
) -> ml_collections.ConfigDict:
  """The sweep: each source as it is, and continued by either objective."""
  c = sweep_config.default_config()
  c.name = 'continued'
  c.base = arguments.base
  c.seeds = tuple(range(arguments.seeds))
  c.rows = arguments.rows
  fields = {
    'data.source': str(domain_text(arguments)),
    'data.document_format': 'line',
    'data.tokenizer': 'init',
    'data.heldout_fraction': 0.02,
    'data.cache': str(arguments.out / 'cache'),
    'optimizer.learning_rate': arguments.rate,
    'eval_every': 100_000,
    'save_every': 500,
    'trackers': (),
  }
  c.fields = tuple((fields | ROWS).items())
  mlm = {'objective.name': 'mlm'}
  rtd = {
    'continued.generator': 'narrowed',
    'generator.hidden_fraction': 0.5,
    'generator.alone_steps': arguments.alone_steps,
  }
  budget = {'budget_flops': arguments.flops}
  still = {'steps': 1, 'optimizer.learning_rate': 1e-9, 'optimizer.warmup_fraction': 0.0}
  still |= {'optimizer.warmup_steps': 0}
  c.runs = tuple(
    (f'{shape}-{stage}', {'init': f'hf:{source}', **changes})
    for shape, source in sources.items()
    for stage, changes in (('source', mlm | still), ('mlm', mlm | budget), ('rtd', rtd | budget))
  )
  tasks = objectives_tasks(arguments)
  c.finetune = tuple((name, *tasks[name]) for name in arguments.tasks)
  return c


def objectives_tasks(arguments: argparse.Namespace) -> dict[str, tuple[str, dict[str, object]]]:
  """Config file and fields of each task."""
  common = {
    'train_examples': arguments.examples,
    'epochs': arguments.epochs,
    'batch_size': 16,
    'max_length': 64,
    'eval_every': 0.0,
    'model.scan_unroll': 1,  # compiles faster, which takes longer than so few steps
    'trackers': (),
  }
  fast = {'optimizer.learning_rate': 1e-3}
  tags = common | {'data.source': str(arguments.data / 'tagging' / 'ud_ewt')}
  # At a quarter of these examples SST-2 is answered with one label.
  glue = common | {'data.source': str(arguments.data / 'glue')}
  glue['train_examples'] = 4 * arguments.examples
  return {
    'pos': ('configs/finetune/pos.py', tags | fast),
    'pos_frozen': ('configs/finetune/pos.py', tags | {'frozen': True}),
    'sst2': ('configs/finetune/sst2.py', glue | fast),
  }


def values_of(results: Sequence[Result], run: str, task: str) -> dict[int, float]:
  """Scores of a run by seed, times 100."""
  return {r['seed']: 100 * r['tasks'][task]['values'][0] for r in results if r['run'] == run}


def interval(values: Sequence[float], digits: int = 1) -> str:
  """'mean (low to high)', the 95% interval of the mean by Student's t; of two values both."""
  s = spread(values)
  if s['mean'] is None:
    return ''
  text = f'{s["mean"]:.{digits}f}'
  if len(values) == SMALLEST_SAMPLE - 1:
    return f'{text} ({", ".join(f"{value:.{digits}f}" for value in values)})'
  if s['low'] is not None:
    text += f' ({s["low"]:.{digits}f} to {s["high"]:.{digits}f})'
  return text


def objectives_table(results: Sequence[Result], shapes: Sequence[str]) -> str:
  """The table: held-out metrics and scores; a line per shape has the differences by seed."""
  tasks = list(results[0]['tasks'])
  titles = [title for _, title, _ in HELDOUT]
  rows = [['', 'tokens', 'FLOPs', *titles, *tasks]]
  for shape in shapes:
    for stage, title in STAGES.items():
      run = f'{shape}-{stage}'
      mine = [r for r in results if r['run'] == run]
      if not mine:
        continue
      spent = 'source' != stage
      row = [f'{shape}, {title}']
      row += [f'{r["tokens"] / 1e6:.2f} M' if spent else '' for r in mine[:1]]
      row += [f'{r["flops"] / 1e12:.2f} T' if spent else '' for r in mine[:1]]
      for name, _, digits in HELDOUT:
        found = [r['heldout'][name]['value'] for r in mine if name in r['heldout']]
        row.append(interval(found, digits))
      rows.append(row + [interval(list(values_of(mine, run, t).values())) for t in tasks])
    rows.append(
      [f'{shape}, RTD - MLM', *([''] * (2 + len(HELDOUT))), *_gaps(results, shape, tasks)]
    )
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])


def _gaps(results: Sequence[Result], shape: str, tasks: Sequence[str]) -> list[str]:
  """Differences between the two objectives, seed by seed."""
  cells = []
  for task in tasks:
    rtd, mlm = (values_of(results, f'{shape}-{stage}', task) for stage in ('rtd', 'mlm'))
    cells.append(interval([rtd[seed] - mlm[seed] for seed in sorted(rtd) if seed in mlm]))
  return cells


def objectives(arguments: argparse.Namespace) -> None:
  """Runs the comparison, or the rest of it, and prints its table."""
  arguments.out.mkdir(parents=True, exist_ok=True)
  sources = {shape: pretrain_source(shape, arguments) for shape in arguments.shapes}
  if status := sweep(objectives_sweep(sources, arguments), arguments.out / 'sweep'):
    raise SystemExit(status)
  lines = read_results(str(arguments.out / 'sweep' / RESULTS_FILE))
  last = {(line['seed'], line['run']): line for line in lines}  # others had other settings
  results = [last[key] for key in sorted(last)]
  print(objectives_table(results, arguments.shapes))
  if arguments.json:
    chosen = {name: str(value) for name, value in vars(arguments).items() if name in SETTINGS}
    lines = [{'environment': environment(), 'settings': chosen}, *results]
    arguments.json.write_text(''.join(json.dumps(line) + '\n' for line in lines))


#### Runs of configs/mini.py ####

TITLES = {
  'generator_loss': 'generator loss, nats per masked token',
  'discriminator_loss': 'discriminator loss, nats per token',
}


def common_flags(text: str, out: pathlib.Path) -> list[str]:
  """Flags of all runs on TEXT."""
  fields = {
    'data.source': text,
    'data.document_format': 'line',
    'data.cache': out / 'cache',
    'steps': 400,
    'optimizer.warmup_steps': 40,
    'log_every': 20,
    'eval_every': 40,
    'save_every': 400,
    'eval_rows': 512,
  }
  return ['--config=configs/mini.py', *(flag(name, value) for name, value in fields.items())]


def exported_run(run: str, out: pathlib.Path) -> pathlib.Path:
  """The folder of a run's export for transformers, which is made once."""
  folder = out / 'hf'
  if not folder.exists():
    run_main('--mode=export', f'--workdir={run}', f'--output={folder}')
  return folder


def scratch(arguments: argparse.Namespace) -> None:
  """Continues RUN on TEXT, trains another from scratch, and draws both."""
  out = arguments.out
  source, flags = exported_run(arguments.run, out), common_flags(arguments.text, out)
  continued = {
    'init': f'hf:{source}',
    'data.tokenizer': 'init',
    'optimizer.learning_rate': 1e-3,
  }
  changes = [flag(name, value) for name, value in continued.items()]
  run_main(*flags, *changes, f'--workdir={out / "continued"}')
  run_main(*flags, flag('data.tokenizer', source / 'discriminator'), f'--workdir={out / "scratch"}')
  draw(out, arguments.source)


def generators(arguments: argparse.Namespace) -> None:
  """Continues the discriminator of RUN with a generator cut out of it, and with a new one."""
  out = arguments.out
  fields = {
    'init': f'hf:{exported_run(arguments.run, out) / "discriminator"}',
    'data.tokenizer': 'init',
    'sharing': 'embeddings',
    'generator.hidden_fraction': 0.5,
    'generator.alone_steps': 200,
    'optimizer.learning_rate': 1e-3,
    'optimizer.warmup_steps': 10,
    'steps': 220,
    'eval_every': 110,
    'save_every': 220,
  }
  changes = [flag(name, value) for name, value in fields.items()]
  for generator in ('narrowed', 'scratch'):
    workdir = out / f'narrow-{generator}'
    run_main(
      *common_flags(arguments.text, out),
      *changes,
      flag('continued.generator', generator),
      f'--workdir={workdir}',
    )
    for line in heldout_lines(workdir):
      print(f'  {generator:10}{line["step"]:6,}{line["generator_loss"]:10.4f}')


def heldout_lines(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The held-out evaluations of a run."""
  return [line for line in read_metrics(workdir) if line['kind'] == 'heldout']


def draw(out: pathlib.Path, source: pathlib.Path | None = None) -> None:
  """Draws the runs `continued` and `scratch` of a folder, and prints their first and last losses.

  Args:
    out: the folder; writes continued.png there.
    source: a file with the losses of the source on the same rows, by the names of TITLES.
  """
  lines = {name: heldout_lines(out / name) for name in ('continued', 'scratch')}
  with rc_context(STYLE):
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    for axes, (name, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
      for run, color in (('continued', '#1F5FA8'), ('scratch', '#B0473B')):
        tokens = [line['tokens'] / 1e6 for line in lines[run]]
        label = {'continued': 'continued', 'scratch': 'from scratch'}[run]
        values = [line[name] for line in lines[run]]
        axes.plot(tokens, values, 'o-', ms=3.5, color=color, label=label)
      if source:
        level = json.loads(source.read_text())[name]
        label = 'the source, on the same rows'
        axes.axhline(level, color='#555555', ls='--', lw=1, label=label)
      axes.set(title=title, xlabel='million tokens of the new text')
    figure.axes[0].legend(edgecolor='none')
    figure.savefig(out / 'continued.png', dpi=130)
  print(f'  {"":12}{"tokens":>10}' + ''.join(f'{name:>20}' for name in TITLES))
  for run, found in lines.items():
    for line in (found[0], found[-1]):
      print(
        f'  {run:12}{line["tokens"]:10,.0f}' + ''.join(f'{line[name]:20.4f}' for name in TITLES)
      )


#### Command line ####

# Arguments of `objectives` that change its results.
SETTINGS = ('base', 'source_flops', 'flops', 'rate', 'alone_steps', 'examples', 'epochs', 'rows')


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, dest='command')
  p = commands.add_parser('objectives')
  p.set_defaults(function=objectives)
  p.add_argument('data', type=pathlib.Path)
  p.add_argument('out', type=pathlib.Path)
  p.add_argument('--base', default='configs/nano.py', help='config of sources and runs')
  p.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
  p.add_argument('--source-flops', type=float, default=9e12, help='of the pretraining of a source')
  p.add_argument('--flops', type=float, default=1e12, help='of each continued pretraining')
  p.add_argument('--rate', type=float, default=1e-3, help='peak learning rate, for both objectives')
  p.add_argument('--alone-steps', type=int, default=40, help='first steps, of the generator only')
  p.add_argument('--seeds', type=int, default=3)
  p.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
  p.add_argument(
    '--examples', type=int, default=1_000, help='of parts of speech; SST-2: four times as many'
  )
  p.add_argument('--epochs', type=float, default=1.0, help='of fine-tuning')
  p.add_argument('--rows', type=int, default=256, help='held-out rows')
  p.add_argument('--json', type=pathlib.Path, help='a file for the results')
  for name, function in (('scratch', scratch), ('generators', generators)):
    p = commands.add_parser(name)
    p.set_defaults(function=function)
    p.add_argument('run', help='a run of configs/mini.py')
    p.add_argument('text', help='a file with a document per line')
    p.add_argument('out', type=pathlib.Path)
    p.add_argument('--source', type=pathlib.Path, help='a file with the losses of the source')
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a comparison."""
  arguments = parse_arguments(argv)
  arguments.out = arguments.out.absolute()
  arguments.function(arguments)


if __name__ == '__main__':
  main()
