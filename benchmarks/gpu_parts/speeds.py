"""The speeds of gpu.py: training steps beside the peer, largest batches, first steps."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gpu_parts.batches import Attempt, expected_batch
from gpu_parts.checks import Found
from gpu_parts.report import Row, ranged, summary
from gpu_parts.session import PartError, Session, TimeLimit, Worker

RATIO = 1.3  # of our speed to the peer's
# Tokens per second that are aimed at: size, length -> card and number.
AIMS = {('base', 512): ('H200', 581_000)}
ROUNDS = 5
ROUND_SECONDS = 0.7  # of one contender
ROUNDS_TAKE = 30.0  # seconds that are kept for the rounds of a group
LARGE_MEMORY = 100e9  # bytes that a process can have, from which batches are whole


class Contender(NamedTuple):
  """One side of a comparison.

  Attributes:
    side: 'ours' or 'peer'.
    attention: our kernel; the peer takes cuDNN's first in any case.
    attention_dropout: rate of dropout of attention probabilities.
  """

  side: str
  attention: str
  attention_dropout: float


CONTENDERS = {
  'xla, dropout': Contender('ours', 'xla', 0.1),
  'peer, dropout': Contender('peer', 'xla', 0.1),
  'xla': Contender('ours', 'xla', 0.0),
  'cudnn': Contender('ours', 'cudnn', 0.0),
  'peer': Contender('peer', 'xla', 0.0),
}
# Ours -> the peer that does the same. cuDNN's kernel has no dropout in JAX.
PAIRS = {'xla, dropout': 'peer, dropout', 'xla': 'peer', 'cudnn': 'peer'}
WORDS = {
  'xla, dropout': 'attention by XLA, with dropout',
  'xla': 'attention by XLA, without its dropout',
  'cudnn': 'attention by cuDNN, without its dropout',
}
ALL = tuple(CONTENDERS)
LARGEST = 'base-512'  # the group whose largest batch is searched
FEWER = ('xla, dropout', 'peer, dropout', 'cudnn', 'peer')


class Group(NamedTuple):
  """Contenders of one size.

  Attributes:
    size: a key of SIZES in speed_tasks.py.
    length: tokens per row.
    batch: rows on a card of LARGE_MEMORY; half of them on a smaller one.
    contenders: keys of CONTENDERS.
  """

  size: str
  length: int
  batch: int
  contenders: tuple[str, ...] = FEWER


TINY = Group('tiny', 32, 4, ALL)
GROUPS = {
  'base-512': Group('base', 512, 64, ALL),
  'small-128': Group('small', 128, 512),
  'base-128': Group('base', 128, 256),
  'small-512': Group('small', 512, 128),
}


def group_here(session: Session, name: str) -> Group:
  """The group in the sizes and with the contenders of this device."""
  group = TINY if session.tiny else GROUPS[name]
  if not session.tiny and (session.device['memory'] or 0) < LARGE_MEMORY:
    group = group._replace(batch=group.batch // 2)
  if session.device['platform'] != 'gpu':
    group = group._replace(contenders=tuple(c for c in group.contenders if c != 'cudnn'))
  return group


def start(session: Session, task: str, group: Group, contender: str, **more: object) -> Worker:
  """Starts a task with a contender."""
  side, attention, attention_dropout = CONTENDERS[contender]
  settings = {
    'side': side,
    'device': session.device['platform'],
    'size': group.size,
    'length': group.length,
    'attention': attention,
    'attention_dropout': attention_dropout,
    'unroll': session.unroll,
  }
  variables = {}
  if side == 'peer':
    variables = {'JAX_PLATFORMS': 'cpu'}  # JAX only counts there
  elif task == 'largest':
    variables = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'true'}  # as in a run of the program
  return session.start(task, settings | more, variables)


#### Steps ####


def measure(session: Session, deadline: float, name: str) -> Found:
  """Interleaved rounds of all contenders of a group, each in its own process."""
  group = group_here(session, name)
  errors: dict[str, str] = {}
  found: dict[str, dict[str, Any]] = {}
  with contextlib.ExitStack() as stack:
    workers = {
      contender: stack.enter_context(start(session, 'contend', group, contender, batch=group.batch))
      for contender in group.contenders
    }
    ready = deadline - min(ROUNDS_TAKE, (deadline - time.monotonic()) / 4)
    for contender, worker in workers.items():
      with _failing(errors, contender):
        answer = worker.answer(ready)
        # Others start beside it, so this is no time of a start by itself.
        first = time.monotonic() - worker.started
        found[contender] = answer | {'seconds_to_first_step': first, 'seconds': []}
    _calibrate(workers, found, errors, session.tiny, deadline)
    products = _rounds(workers, found, errors, deadline)
    for contender in (name for name in found if name not in errors):
      with _failing(errors, contender):
        memory = found[contender]['memory'] = workers[contender].ask({'memory': True}, deadline)
        if name == LARGEST:
          session.memory[contender] = memory | {'batch': group.batch}
        answer = workers[contender].ask({'attention': True}, deadline)
        found[contender]['attention_operations'] = answer['operations']
  result = {'group': group._asdict(), 'contenders': found} | _compared(group, found, products)
  return result, errors, _rows(session, name, group, result)


@contextlib.contextmanager
def _failing(errors: dict[str, str], contender: str) -> Iterator[None]:
  """Notes the reason where a contender fails."""
  try:
    yield
  except PartError as error:
    errors[contender] = str(error)


def _calibrate(
  workers: Mapping[str, Worker],
  found: dict[str, dict[str, Any]],
  errors: dict[str, str],
  tiny: bool,
  deadline: float,
) -> None:
  """Sets the steps in a round of each contender."""
  for contender, numbers in found.items():
    with _failing(errors, contender):
      seconds = workers[contender].ask({'steps': 1 if tiny else 3}, deadline)['seconds']
      numbers['steps'] = 1 if tiny else max(1, round(ROUND_SECONDS / seconds))


def _rounds(
  workers: Mapping[str, Worker],
  found: dict[str, dict[str, Any]],
  errors: dict[str, str],
  deadline: float,
) -> list[float]:
  """Takes the rounds, in alternating order; returns the rates of matrix products between them."""
  products: list[float] = []
  for number in range(ROUNDS):
    began = time.monotonic()
    names = [name for name in found if name not in errors]
    for contender in names if number % 2 == 0 else reversed(names):
      with _failing(errors, contender):
        steps = {'steps': found[contender]['steps']}
        found[contender]['seconds'].append(workers[contender].ask(steps, deadline)['seconds'])
    ours = next((name for name in names if CONTENDERS[name].side == 'ours'), None)
    if ours:
      with _failing(errors, ours):
        products.append(workers[ours].ask({'product': True}, deadline)['flops_per_second'])
    if time.monotonic() + 2 * (time.monotonic() - began) > deadline:
      break
  return products


def _compared(
  group: Group, found: dict[str, dict[str, Any]], products: list[float]
) -> dict[str, Any]:
  """Tokens per second of each contender, and ratios round by round."""
  tokens = group.batch * group.length
  rates = {name: [tokens / s for s in x['seconds']] for name, x in found.items() if x['seconds']}
  peak = summary(products)['median'] if products else None
  ratios = {
    ours: summary([a / b for a, b in zip(rates[ours], rates[peer], strict=False)])
    for ours, peer in PAIRS.items()
    if ours in rates and peer in rates
  }
  shares = {
    name: found[name]['flops'] * summary(values)['median'] / tokens / peak
    for name, values in rates.items()
    if peak
  }
  return {
    'tokens_per_second': {name: summary(values) for name, values in rates.items()},
    'ratios': ratios,
    'matrix_product_flops_per_second': products,
    'share_of_matrix_product_rate': shares,
  }


def _rows(session: Session, name: str, group: Group, result: dict[str, Any]) -> list[Row]:
  rates, ratios = result['tokens_per_second'], result['ratios']
  size = f'{group.size}, {group.batch} x {group.length}'
  rows = []
  for ours, words in WORDS.items():
    if ours not in rates:
      continue
    speed, peer, ratio = ranged(rates[ours], ',.0f'), '', ''
    target, met = '', None
    if ours in ratios:
      peer = ranged(rates[PAIRS[ours]], ',.0f')
      ratio = ranged(ratios[ours], '.2f')
      if not session.tiny:
        target, met = f'{RATIO} x the peer', ratios[ours]['median'] >= RATIO
    rows.append(Row(name, f'{size}, tokens/s, {words}', speed, peer, ratio, target, met))
  rows += _aim(session, name, group, rates)
  for ours in WORDS:
    memory = [result['contenders'].get(x, {}).get('memory') for x in (ours, PAIRS[ours])]
    if all(memory):
      cells = [f'{m["peak"] / 1e9:.1f} GB' for m in memory]
      ratio = f'{memory[1]["peak"] / memory[0]["peak"]:.2f}'
      rows.append(Row(name, f'{size}, peak memory, {WORDS[ours]}', *cells, ratio))
  return rows


def _aim(session: Session, name: str, group: Group, rates: Mapping[str, Any]) -> list[Row]:
  """The row of a speed that is aimed at on one card: that of the fastest of ours."""
  card, aim = AIMS.get((group.size, group.length), ('', 0))
  ours = {x: rates[x]['median'] for x in WORDS if x in rates}
  if not aim or not ours:
    return []
  best = max(ours, key=ours.__getitem__)
  there = card in str(session.device['kind'])
  target, met = f'{aim:,} on {card}', ours[best] >= aim if there else None
  return [Row(name, f'fastest: {WORDS[best]}', f'{ours[best]:,.0f}', '', '', target, met)]


#### The largest batch ####


def largest(session: Session, deadline: float) -> Found:
  """The largest batch whose steps run, with dropout, of both sides after each other."""
  group = group_here(session, LARGEST)
  most = 2 * group.batch if session.tiny else 64 * group.batch
  errors: dict[str, str] = {}
  found: dict[str, list[dict[str, Any]]] = {}
  names = ('xla, dropout', 'peer, dropout')
  for index, name in enumerate(names):
    seconds = (deadline - time.monotonic()) / (len(names) - index)
    end = time.monotonic() + seconds
    # Attempts end by themselves before the process is ended.
    limits = {'start': _first_batch(session, name, group), 'most': most, 'seconds': 0.6 * seconds}
    attempts = found[name] = []
    with start(session, 'largest', group, name, **limits) as worker, _failing(errors, name):
      _read_attempts(worker, attempts, end)
  cells = [_batch(found[name]) for name in names]
  what = f'{group.size}, rows of {group.length}: largest batch, attention dropout'
  return {'attempts': found}, errors, [Row('largest', what, *cells)]


def _first_batch(session: Session, contender: str, group: Group) -> int:
  """The batch that the memory of the group's steps lets expect; else that of the group."""
  known = session.memory.get(contender)
  expected = known and expected_batch(Attempt(fits=True, **known))
  return max(group.batch, int(0.96 * expected) // 8 * 8) if expected else group.batch


def _read_attempts(worker: Worker, attempts: list[dict[str, Any]], end: float) -> None:
  """Adds the attempts of a search to a list; the limit is an error only before the first fit."""
  try:
    while 'done' not in (answer := worker.answer(end)):
      attempts.append(answer)
  except TimeLimit:
    if not any(attempt['fits'] for attempt in attempts):
      raise


def _batch(attempts: list[dict[str, Any]]) -> str:
  fits = max((x['batch'] for x in attempts if x['fits']), default=0)
  fails = min((x['batch'] for x in attempts if not x['fits']), default=None)
  if not attempts:
    return ''
  return f'{fits} fits, {fails} does not' if fails else f'at least {fits}'


#### The first step ####

STARTED = 'small-128'


def first_step(session: Session, deadline: float) -> Found:
  """Seconds from the start of the process to the end of the first step, without any cache."""
  group = group_here(session, STARTED)
  errors: dict[str, str] = {}
  found = {}
  names = ('xla, dropout', 'peer, dropout')
  for name in names:
    with (
      start(session, 'contend', group, name, batch=group.batch) as worker,
      _failing(errors, name),
    ):
      answer = worker.answer(deadline)
      found[name] = answer | {'seconds': time.monotonic() - worker.started}
  cells = [f'{found[name]["seconds"]:.1f} s' if name in found else '' for name in names]
  ratio = ''
  if len(found) == len(names):
    ratio = f'{found[names[1]]["seconds"] / found[names[0]]["seconds"]:.2f}'
  what = f'{group.size}, {group.batch} x {group.length}: process to first step, no caches'
  return {'group': group._asdict(), 'starts': found}, errors, [Row('start', what, *cells, ratio)]
