"""Time from the command to the first step of training and fine-tuning, and to the end of others.

  python benchmarks/startup.py                          # tiny and small, cold and warm
  python benchmarks/startup.py --configs=tiny --rounds=3

The corpus is prepared before. `cold` starts with an empty folder of compiled programs, `warm` with
what the cold start left there. Evaluation is of 8 rows, prediction of one text, fine-tuning of
batches of 8 short texts, whose first step is included, since it compiles. Processor seconds are
those of all threads of the process.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from environment import ROOT, environment

MODULES = {
  'train': 'electra_jax.pretrain.train',
  'evaluate': 'electra_jax.pretrain.evaluation',
  'finetune': 'electra_jax.finetune.train',
  'predict': 'electra_jax.finetuned_report',
}
COMPILE_IN_STEP = ('finetune',)  # modes whose first step compiles


def child(mode: str, argv: Sequence[str], output: str, start: float) -> None:
  """Runs a command in this process and writes the times of its phases.

  Args:
    mode: a key of MODULES.
    argv: arguments of the command line.
    output: file for the times.
    start: when the process was started, of time.time.
  """
  sys.path.insert(0, str(ROOT))
  import importlib

  from electra_jax import main

  importlib.import_module(MODULES[mode])
  import jax.monitoring

  from electra_jax.training.step_loop import StepRunner

  marks = [time.process_time()]
  counts = {'programs': 0, 'cached': 0}

  def duration(name: str, seconds: float, **_: object) -> None:
    if name.endswith('backend_compile_duration'):
      counts['programs'] += 1
    if name.endswith('jaxpr_to_mlir_module_duration') and seconds > 0.05 and len(marks) == 1:
      marks.append(time.process_time())

  def event(name: str, **_: object) -> None:
    counts['cached'] += name.endswith('cache_hits')

  def write() -> None:
    if not pathlib.Path(output).exists():
      marks.extend([time.process_time()] * (3 - len(marks)))
      memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
      found = {'marks': marks, 'seconds': time.time() - start, 'memory': memory, **counts}
      pathlib.Path(output).write_text(json.dumps(found), encoding='utf-8')

  take_step = StepRunner.take_step

  def first_step(runner: StepRunner, *args: object) -> None:
    if mode not in COMPILE_IN_STEP:
      write()
    take_step(runner, *args)
    if not pathlib.Path(output).exists():
      runner.wait()
      write()

  jax.monitoring.register_event_duration_secs_listener(duration)
  jax.monitoring.register_event_listener(event)
  StepRunner.take_step = first_step
  status = main.main(['main', f'--mode={mode}', *argv])
  write()
  sys.exit(status)


def measure(mode: str, argv: Sequence[str], folder: pathlib.Path) -> dict[str, float]:
  """Starts a command once.

  Returns:
    Processor seconds of `imports`, `data and model` (until the first large program is lowered),
    `programs` (until the first step, or the end) and `total`; `seconds` on the clock; `memory`, the
    most resident bytes; `programs compiled`, those read from the cache included, and `cached`.

  Raises:
    RuntimeError: the command failed.
  """
  output = folder / f'{time.time_ns()}.json'
  command = [sys.executable, __file__, '--child', mode, str(output), repr(time.time()), *argv]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr[-2000:]}')
  found = json.loads(output.read_text(encoding='utf-8'))
  imports, lowered, end = found['marks'][:3]
  return {
    'imports': imports,
    'data and model': lowered - imports,
    'programs': end - lowered,
    'total': end,
    'seconds': found['seconds'],
    'memory': found['memory'],
    'programs compiled': found['programs'],
    'cached': found['cached'],
  }


def rounds_of(config: str, rounds: int, folder: pathlib.Path) -> list[dict[str, object]]:
  """Measures cold and warm starts of a config, interleaved."""
  common = [
    f'--config=configs/{config}.py',
    '--config.steps=1',
    '--config.optimizer.warmup_steps=0',
  ]
  common += [f'--config.data.cache={folder / "cache"}', '--config.eval_rows=8']
  prepare = [sys.executable, '-m', 'electra_jax.main', '--mode=prepare', *common]
  subprocess.run(prepare, cwd=ROOT, capture_output=True, check=True)
  found: list[dict[str, object]] = []

  def start(mode: str, cache: str, *argv: str) -> None:
    times = measure(mode, argv, folder)
    found.append({'config': config, 'mode': mode, 'start': cache} | times)

  for number in range(rounds):
    xla = f'--config.compilation_cache={folder / f"xla-{config}-{number}"}'
    run = folder / f'{config}-{number}'
    for cache in ('cold', 'warm'):
      start('train', cache, *common, xla, f'--workdir={run}-{cache}')
    for cache in ('cold', 'warm'):  # the programs of other modes are not those of training
      start('evaluate', cache, f'--workdir={run}-warm', '--rows=8')
    for cache in ('cold', 'warm'):
      flags = [*finetuning_flags(folder), f'--config.init={run}-warm', xla]
      start('finetune', cache, *flags, f'--workdir={run}-tuned-{cache}')
    for cache in ('cold', 'warm'):
      start('predict', cache, f'--workdir={run}-tuned-warm', f'--input={folder / "text.txt"}')
  return found


def finetuning_flags(folder: pathlib.Path) -> list[str]:
  """Flags of a fine-tuning on a few short texts, which are written to the folder."""
  texts = [f'the {word} river ran past the old mill' for word in ('wide', 'cold', 'slow', 'deep')]
  rows = [{'text': text, 'label': text[4]} for text in 4 * texts]
  file = folder / 'labeled.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  (folder / 'text.txt').write_text(texts[0] + '\n', encoding='utf-8')
  return [
    '--config=configs/finetune/own.py',
    f'--config.data.train={file}',
    f'--config.data.dev={file}',
    '--config.batch_size=8',
    '--config.epochs=1.0',
    '--config.num_trials=1',
  ]


def table(found: Sequence[dict[str, object]]) -> str:
  """Medians over the rounds, as a Markdown table."""
  names = ('imports', 'data and model', 'programs', 'total', 'seconds')
  counts = ('programs compiled', 'cached')
  lines = ['| config | mode | cache | ' + ' | '.join((*names, *counts)) + ' |']
  lines.append('|' + '---|' * (3 + len(names) + len(counts)))
  for key in dict.fromkeys((x['config'], x['mode'], x['start']) for x in found):
    same = [x for x in found if (x['config'], x['mode'], x['start']) == key]
    cells = [f'{statistics.median(float(str(x[name])) for x in same):.2f}' for name in names]
    cells += [str(same[0][name]) for name in counts]
    lines.append('| ' + ' | '.join((*map(str, key), *cells)) + ' |')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--configs', default='tiny,small', help='names, separated by commas')
  parser.add_argument('--rounds', type=int, default=1)
  parser.add_argument('--json', help='a file for the raw numbers')
  options = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(prefix='electra_jax_startup_') as folder:
    found = [
      one
      for config in options.configs.split(',')
      for one in rounds_of(config, options.rounds, pathlib.Path(folder))
    ]
  print(table(found))
  if options.json:
    content = {'environment': environment(), 'starts': found}
    pathlib.Path(options.json).write_text(json.dumps(content, indent=1), encoding='utf-8')


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    child(sys.argv[2], sys.argv[5:], sys.argv[3], float(sys.argv[4]))
  main()
