"""The checks of gpu.py: golden tensors, attention kernels, masks, and resuming after a kill."""

import json
import os
import pathlib
import time
from typing import Any

from gpu_parts.report import Row
from gpu_parts.session import PartError, Session, Worker

# Units of roundoff: 24, 11 and 9 bits are what float32, TF32 and bfloat16 have with rounding.
UNITS = {'float32': 2.0**-24, 'tensorfloat32': 2.0**-11, 'bfloat16': 2.0**-9}
ATTENTION_TOLERANCE = 0.02  # by norm, of bfloat16: ten units of roundoff
DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
POLL = 0.005  # seconds

Found = tuple[dict[str, Any], dict[str, str], list[Row]]  # result, errors, rows


def golden(session: Session, deadline: float) -> Found:
  """The original program's losses, logits and gradients, in float32 and in TF32.

  In TF32 as many units of roundoff are allowed as the contract allows in float32 (168). A CPU
  computes both in float32.
  """
  files = ['tied'] if session.tiny else ['tied', 'base_like', 'all_tied']
  result = session.once('golden', {'files': files}, deadline)
  errors, rows = {}, []
  for precision, files in result['errors'].items():
    tolerance = result['tolerance'] * UNITS[precision] / UNITS['float32']
    which = max(files, key=lambda name: files[name]['error'])
    worst = files[which]['error']
    tensors = sum(file['tensors'] for file in files.values())
    what = f'{tensors} tensors of the original program, products in {precision}'
    met = worst <= tolerance
    rows.append(
      Row('golden', what, f'largest error {worst:.1e}', '', '', f'at most {tolerance:.1e}', met)
    )
    if not met:
      errors[precision] = (
        f'{which}, {files[which]["tensor"]} differs by {worst:.1e} of its largest value; '
        f'expected at most {tolerance:.1e}'
      )
  return result, errors, rows


def attention(session: Session, deadline: float) -> Found:
  """Both attention kernels in bfloat16 against XLA's in float32; whether cuDNN is called."""
  settings = {'lengths': [32] if session.tiny else [128, 512]}
  result = session.once('attention_kernels', settings, deadline)
  errors, rows = {}, []
  on_gpu = session.device['platform'] == 'gpu'
  for length, kernels in result['lengths'].items():
    for kernel, found in kernels.items():
      name = max(found['errors'], key=found['errors'].__getitem__)
      worst = found['errors'][name]
      met = worst <= ATTENTION_TOLERANCE
      by = ' (by XLA, without a GPU)' if kernel == 'cudnn' and not on_gpu else ''
      what = f'{kernel} attention{by}, rows of {length}: outputs and gradients in bfloat16'
      target = f'at most {ATTENTION_TOLERANCE:g}'
      rows.append(Row('attention', what, f'largest error {worst:.1e}', '', '', target, met))
      if not met:
        errors[f'{kernel}, {length}'] = f'{name} differs by {worst:.1e}; expected {target}'
      if on_gpu and found['calls_cudnn'] != (kernel == 'cudnn'):
        errors[f'{kernel}, {length}'] = 'the compiled program does not call the kernel'
  return result, errors, rows


def masks(session: Session, deadline: float) -> Found:
  """Masks of dropout and of pretraining on the device and on the CPU, bit for bit."""
  sizes = {'rows': 2, 'length': 32, 'heads': 2} if session.tiny else {}
  result = session.once('masks', {'rows': 4, 'length': 256, 'heads': 4} | sizes, deadline)
  wrong = result['different']
  what = f"masks and random bits equal to the CPU's, {result['elements']:,} numbers"
  ours = f'{result["arrays"] - len(wrong)} of {result["arrays"]} arrays'
  row = Row('masks', what, ours, '', '', 'all, bit for bit', not wrong)
  errors = {'masks': f'{", ".join(wrong)} differ from those of the CPU'} if wrong else {}
  return result, errors, [row]


#### Resuming ####


def resume(session: Session, deadline: float) -> Found:
  """A run that is killed and resumed, and one that is not: the same bits.

  Operations are deterministic (XLA's flag), and each start compiles anew.
  """
  steps, changes = _run_settings(session.tiny)
  folder = session.folder / 'resume'
  folder.mkdir()
  whole, killed = str(folder / 'whole'), str(folder / 'killed')
  given = {'folder': str(folder), 'changes': changes}
  session.once('prepare', given, deadline, {'JAX_PLATFORMS': 'cpu'})
  flags = {}
  if session.device['platform'] == 'gpu':
    flags = {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {DETERMINISTIC}'}
  with session.start('train', given | {'workdir': whole}, flags) as uninterrupted:
    with session.start('train', given | {'workdir': killed}, flags) as first:
      at = _kill(first, pathlib.Path(killed), steps // 2, deadline)
    resumed = session.once('train', given | {'workdir': killed}, deadline, flags)
    statuses = [uninterrupted.answer(deadline)['status'], resumed['status']]
  restored = json.loads(pathlib.Path(killed, 'status.json').read_text())['restored_step']
  compared = {'workdirs': [whole, killed], 'step': steps}
  result = session.once('difference', compared, deadline, {'JAX_PLATFORMS': 'cpu'})
  result |= {'steps': steps, 'killed_after': at, 'restored_step': restored, 'statuses': statuses}
  what = f'run of {steps} steps killed after {at}, resumed at {restored}: parameters, moments, log'
  equal = result['arrays'] - len(result['different'])
  met = not result['different'] and not result['different_lines'] and 0 < restored < steps
  row = Row(
    'resume', what, f'{equal} of {result["arrays"]} arrays', '', '', 'all, bit for bit', met
  )
  return result, {} if met else {'resume': _difference(result)}, [row]


def _run_settings(tiny: bool) -> tuple[int, dict[str, Any]]:
  """Steps, and changes of the config."""
  if not tiny:
    steps = 200
    return steps, {
      'steps': steps,
      'save_every': 40,
      'log_every': 5,
      'batch_size': 32,
      'model.num_layers': 4,
    }
  steps = 20
  return steps, {
    'steps': steps,
    'save_every': 5,
    'log_every': 1,
    'batch_size': 8,
    'sequence_length': 32,
    'model.hidden_size': 32,
    'model.embedding_size': 32,
    'model.intermediate_size': 64,
    'model.num_layers': 1,
    'model.num_heads': 2,
    'generator.hidden_fraction': 0.5,
  }


def _kill(run: Worker, workdir: pathlib.Path, step: int, deadline: float) -> int:
  """Kills a run once it logged a step and has a checkpoint; returns the last step of its log."""
  log, saved = workdir / 'metrics.jsonl', workdir / 'checkpoints'
  while time.monotonic() < deadline:
    last = _last_step(log)
    if last >= step and any(path.name.isdigit() for path in saved.glob('*')):
      run.close()
      return last
    if run.process.poll() is not None:
      run.answer(deadline)  # raises the reason if it failed
      raise PartError('the run ended before it was killed')
    time.sleep(POLL)
  raise PartError('the run did not log half of its steps in time')


def _last_step(log: pathlib.Path) -> int:
  lines = log.read_text(encoding='utf-8').split('\n')[:-1] if log.exists() else []
  return json.loads(lines[-1])['step'] if lines else 0


def _difference(result: dict[str, Any]) -> str:
  if not 0 < result['restored_step'] < result['steps']:
    return f'the second start restored step {result["restored_step"]}'
  first = result['different'][:1] or ['no array']
  return (
    f'{len(result["different"])} of {result["arrays"]} arrays ({first[0]}, ...) and '
    f'{result["different_lines"]} of {result["lines"]} lines of the log differ'
  )
