"""Minimal pairs, such as BLiMP's (Warstadt et al. 2020): does a pretrained run, without any fine-tuning, prefer the sentence that is right?

BLiMP is 67 paradigms of 1,000 pairs each, of 12 phenomena in four fields.
"""

import collections
import functools
import glob
import io
import json
import pathlib
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import console, file_access
from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError
from electra_jax.model.encoder import packed_inputs
from electra_jax.training import hosts, partitioning, run_folder

TOWERS = ('discriminator', 'generator')
SENTENCES = ('sentence_good', 'sentence_bad')
BATCH_TOKENS = {'cpu': 4_096}  # of a device and a step; on accelerators:
ACCELERATOR_TOKENS = 32_768
AHEAD = 2  # steps that are computed while the host makes the next
# BLiMP's files write some phenomena and fields otherwise than its paper, whose names and groups these are.
AS_PUBLISHED = {'s-selection': 'argument_structure', 'syntax/semantics': 'syntax_semantics'}
_ARCHIVE = re.compile(r'\.(tar(\.(gz|xz|bz2|zst))?|tgz|txz)$', re.IGNORECASE)
_95 = 1.959964  # normal quantile of 97.5%


class Pair(NamedTuple):
  """Two sentences, of which the first is right, and what the difference is about."""

  good: str
  bad: str
  paradigm: str
  phenomenon: str
  field: str
  place: str  # line and file, for a complaint


def read_pairs(source: str, limit: int | None = None) -> list[Pair]:
  """Pairs in BLiMP's own layout: JSON lines with sentence_good, sentence_bad, and UID, linguistics_term and field where they are given.

  Args:
    source: a file, a folder, or a tar archive of files, plain or compressed; any of them may be an address.
    limit: most pairs of each paradigm, the first ones; None for all.

  Raises UserError where there is none, or a line is broken.
  """
  source = file_access.normal(source)
  found, counts = [], collections.Counter()
  for path, stream in _streams(source):
    for number, line in enumerate(stream, 1):
      if line.strip():
        pair = _pair(line, f'line {number} of the file {path!r}', path)
        counts[pair.paradigm] += 1
        if limit is None or counts[pair.paradigm] <= limit:
          found.append(pair)
  if not found:
    raise UserError(
      f'{source!r} holds no minimal pairs; name a folder, an archive or a file of JSON lines with {" and ".join(SENTENCES)}'
    )
  return found


def _streams(source) -> Iterator[tuple[str, Iterator[bytes]]]:
  if file_access.is_folder(source):
    folder = source if file_access.is_remote(source) else glob.escape(source)
    paths = sorted(
      path
      for suffix in ('', *file_access.COMPRESSIONS)
      for path in file_access.glob(file_access.join(folder, '**', f'*.jsonl{suffix}'))
    )
  else:
    paths = [source]
  for path in paths:
    try:
      with file_access.open_binary(path) as raw:
        if not _ARCHIVE.search(path):
          yield path, io.BytesIO(file_access.decompressed(raw, path).read())
          continue
        # Names are those of an archive as of any file that is compressed once more.
        name = re.sub(r'\.t([gx])z$', r'.tar.\1z', path, flags=re.IGNORECASE)
        with tarfile.open(fileobj=file_access.decompressed(raw, name), mode='r|') as archive:
          for member in archive:
            inside = pathlib.PurePosixPath(member.name)
            if member.isfile() and inside.suffix == '.jsonl' and not inside.name.startswith('.'):
              yield f'{path}/{member.name}', io.BytesIO(archive.extractfile(member).read())
    except (tarfile.TarError, *file_access.damage()) as error:
      raise UserError(f'{path!r} cannot be read: {file_access.reason(error)}') from None


def _pair(line, place, path):
  try:
    record = json.loads(line)
  except ValueError as error:  # UnicodeDecodeError is one
    raise UserError(f'{place} is not JSON ({file_access.reason(error)}); mend it') from None
  if not isinstance(record, dict):
    raise UserError(f'{place} is not a JSON object; mend it')
  for name in SENTENCES:
    if name not in record:
      raise UserError(f'{place} has no field {name!r}; its fields are {named(record)}')
    if not isinstance(record[name], str) or not record[name].strip():
      raise UserError(f'{place} has no sentence in its field {name!r}; mend it')
  stem = pathlib.PurePosixPath(path).name.split('.')[0]

  def kind(name, default):
    value = str(record.get(name) or default)
    return AS_PUBLISHED.get(value, value)

  return Pair(
    *(record[name] for name in SENTENCES),
    kind('UID', stem),
    kind('linguistics_term', 'of no phenomenon'),
    kind('field', 'of no field'),
    place,
  )


def score_sentences(
  run,
  rows: list[np.ndarray],
  *,
  batch_tokens: int | None = None,
  progress: Callable[[int], None] = lambda done: None,
  towers: tuple[str, ...] = TOWERS,
) -> dict[str, np.ndarray]:
  """Scores of sentences, float64 [sentences] by tower; more is better.

  The discriminator's is the sum over tokens of the log-probability that the token is the original one; of `electric` it is the sum of
  the tokens' negative energies, a pseudo-log-likelihood that is not normalised (Clark et al. 2020b). The generator's is the
  pseudo-log-likelihood (Salazar et al. 2020): each token is masked in turn, and the log-probabilities of the original ones are summed.
  [CLS] and [SEP] are not scored; [UNK] is, as any token.

  Args:
    run: electra_jax.Run, on any number of devices.
    rows: int32 [tokens] of each sentence, [CLS] and [SEP] included.
    batch_tokens: of a device and a step, padding included.
    progress: gets the tokens computed since the last time.
  """
  tokenizer, mesh = run.tokenizer, run.mesh
  batch_tokens = batch_tokens or BATCH_TOKENS.get(mesh.devices.flat[0].platform, ACCELERATOR_TOKENS)
  special = tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
  steps = {tower: _step(run.model, run.layout, tower, *special) for tower in towers}
  scores = {tower: np.zeros(len(rows)) for tower in towers}
  lengths = np.array([len(row) for row in rows], np.int64)
  sizes = np.array([bucket(length) for length in lengths], np.int64)
  for size in np.unique(sizes):
    owners = np.flatnonzero(sizes == size)
    padded = np.full((len(owners), size), tokenizer.pad_id, np.int32)
    for row, owner in zip(padded, owners, strict=True):
      row[: lengths[owner]] = rows[owner]
    for tower in towers:
      # What is computed: a row of each sentence, or one for each of its tokens between [CLS] and [SEP].
      copies = np.ones(len(owners), np.int64) if tower == 'discriminator' else lengths[owners] - 2
      which = np.repeat(np.arange(len(owners)), copies)
      positions = (
        np.arange(len(which)) - np.repeat(np.cumsum(copies) - copies, copies) + 1
      ).astype(np.int32)
      batch_size = _batch_size(len(which), batch_tokens // size, partitioning.row_shards(mesh))
      mine, waiting = partitioning.process_rows(mesh, batch_size), collections.deque()

      def take(waiting=waiting, tower=tower, owners=owners, which=which, size=size):
        chosen, values = waiting.popleft()
        np.add.at(
          scores[tower], owners[which[chosen]], np.asarray(values, np.float64)[: len(chosen)]
        )
        progress(len(chosen) * int(size))

      for first in range(0, len(which), batch_size):
        chosen = np.arange(first, min(first + batch_size, len(which)))
        padding = np.pad(chosen, (0, batch_size - len(chosen)), mode='edge')[mine]
        local = (
          partitioning.global_batch(x, mesh, batch_size)
          for x in (padded[which[padding]], positions[padding])
        )
        waiting.append((chosen, steps[tower](run.params, *local)))
        if len(waiting) > AHEAD:
          take()
      while waiting:
        take()
  return scores


@functools.lru_cache(maxsize=4)  # several checkpoints of one model need one compilation
def _step(model, layout, tower, pad_id, cls_id, sep_id, mask_id):
  """The jitted function of parameters, token_ids [batch, length] and positions [batch] to float32 [batch]: what a tower says of each row."""

  def inputs(token_ids):
    return packed_inputs(token_ids, pad_id, cls_id, sep_id)

  def discriminator(params, token_ids, positions):
    del positions
    logits = model.apply({'params': params}, inputs(token_ids), method='discriminator_logits')
    return jnp.where(
      jnp.isin(token_ids, jnp.array([pad_id, cls_id, sep_id])),
      0,
      -logits if model.two_tower else jax.nn.log_sigmoid(-logits),
    ).sum(1)

  def generator(params, token_ids, positions):
    at = positions[:, None]
    masked = jnp.where(
      jax.lax.broadcasted_iota(jnp.int32, token_ids.shape, 1) == at, mask_id, token_ids
    )
    logits = model.apply({'params': params}, inputs(masked), at, method='generator_logits')[:, 0]
    return jnp.take_along_axis(
      jax.nn.log_softmax(logits), jnp.take_along_axis(token_ids, at, axis=1), axis=1
    )[:, 0]

  compute = {'discriminator': discriminator, 'generator': generator}[tower]
  return jax.jit(
    partitioning.within(layout, compute), out_shardings=partitioning.replicated(layout.mesh)
  )


def bucket(length: int) -> int:
  """The length that rows of `length` tokens are padded to: 8, 16, 24, 32, 48, 64, 96, 128, ..., so that few programs are compiled."""
  step = max(8, 1 << max((int(length) - 1).bit_length() - 2, 0))
  return -(-length // step) * step if length > 32 else -(-length // 8) * 8


def _batch_size(count, rows, shards):
  """Rows of a step: as many as a device takes at once, on each, but no more than there are, up to a power of two."""
  rows = max(1, min(rows, 1 << max(-(-count // shards) - 1, 0).bit_length()))
  return rows * shards


def blimp(
  run,
  source: str,
  output: str | None = None,
  *,
  limit: int | None = None,
  batch_tokens: int | None = None,
) -> dict:
  """Scores the minimal pairs of `source` with a run: prints a table and writes WORKDIR/blimp.json, which is returned.

  A pair is right where the good sentence has the higher score; two equal scores, as of two sentences that the tokenizer cannot tell apart,
  count one half.

  Args:
    run: electra_jax.Run, opened on any number of devices.
    source, limit: as of `read_pairs`.
    output: where to write instead.
    batch_tokens: as of `score_sentences`.

  Raises UserError for broken files, or a sentence longer than the encoder's positions.
  """
  towers = tuple(tower for tower in TOWERS if f'{tower}_head' in run.model.heads)
  if not towers:
    raise UserError(
      f'{run.workdir} has neither a discriminator nor a generator, and minimal pairs are scored with one of these; name another run.'
    )
  pairs = read_pairs(source, limit)
  rows = _rows(run, pairs)
  work = sum(
    bucket(len(row)) * (len(row) - 1) for row in rows
  )  # len - 2 masked copies, and one for the discriminator
  console.say(
    'pairs',
    f'{len(pairs):,} of {len({pair.paradigm for pair in pairs})} paradigms, {sum(len(row) - 2 for row in rows):,} tokens to be masked',
  )
  start, done = time.perf_counter(), 0
  with console.progress('scoring', work) as line:

    def progress(tokens):
      nonlocal done
      done += tokens
      line(done, f'{done / (time.perf_counter() - start):,.0f} tokens/s')

    scores = score_sentences(run, rows, batch_tokens=batch_tokens, progress=progress, towers=towers)
  seconds = time.perf_counter() - start
  right = {tower: verdicts(values[0::2], values[1::2]) for tower, values in scores.items()}
  result = {'step': run.step, 'source': str(source), 'limit': limit, **summary(pairs, right)}
  console.say('scored', f'step {run.step:,} on {len(pairs):,} pairs in {console.seconds(seconds)}')
  print(table(result))
  path = run_folder.folder(output) if output else run_folder.folder(run.workdir) / 'blimp.json'
  hosts.from_first(lambda: run_folder.write_json(path, result))
  console.say('written', str(path))
  return result


def _rows(run, pairs):
  """Token ids of both sentences of each pair, the good one first."""
  t, config = run.tokenizer, run.model.discriminator_config
  encoded = t.encode_arrays([text for pair in pairs for text in (pair.good, pair.bad)])
  rows = [np.concatenate([[t.cls_id], ids, [t.sep_id]]).astype(np.int32) for ids in encoded]
  longest = max(range(len(rows)), key=lambda i: len(rows[i]))
  if config.has_position_table and len(rows[longest]) > config.max_positions:
    raise UserError(
      f'{pairs[longest // 2].place} has a sentence of {len(rows[longest])} tokens, and the encoder has {config.max_positions} positions; '
      'leave it out'
    )
  return rows


def verdicts(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
  """1 where the good sentence has the higher score, 0 where the bad one has, and one half where they are equal."""
  return np.where(good > bad, 1.0, np.where(good == bad, 0.5, 0.0))


def summary(pairs: list[Pair], right: dict[str, np.ndarray]) -> dict:
  """Shares of pairs that are right, by tower: of all, and of each field, phenomenon and paradigm, by name.

  Args:
    right: verdicts [pairs] by tower.
  """

  def group(chosen):
    return {'pairs': len(chosen)} | {
      tower: share(values[chosen]) for tower, values in right.items()
    }

  members = {part: collections.defaultdict(list) for part in ('field', 'phenomenon', 'paradigm')}
  for i, pair in enumerate(pairs):
    for part, of in members.items():
      of[getattr(pair, part)].append(i)
  figures = {
    part: {name: group(np.array(chosen)) for name, chosen in sorted(of.items())}
    for part, of in members.items()
  }
  for name, chosen in members['paradigm'].items():
    figures['paradigm'][name] |= {
      'phenomenon': pairs[chosen[0]].phenomenon,
      'field': pairs[chosen[0]].field,
    }
  return {
    'total': group(np.arange(len(pairs))),
    'fields': figures['field'],
    'phenomena': figures['phenomenon'],
    'paradigms': figures['paradigm'],
  }


def share(right: np.ndarray) -> dict[str, float]:
  """The mean of verdicts, its 95% interval (Wilson 1927) as of pairs drawn at random from the same paradigms, and the number of ties."""
  n, p = len(right), float(right.mean())
  middle, spread = p + _95**2 / (2 * n), _95 * (p * (1 - p) / n + (_95 / (2 * n)) ** 2) ** 0.5
  low, high = ((middle + sign * spread) / (1 + _95**2 / n) for sign in (-1, 1))
  return {
    'value': p,
    'low': max(low, 0.0),
    'high': min(high, 1.0),
    'ties': int((right == 0.5).sum()),
  }


def table(result: dict) -> str:
  """blimp.json as aligned text: paradigms under their phenomena, then phenomena, fields and the total, in percent."""
  towers = [tower for tower in TOWERS if tower in result['total']]
  lines = [
    f'\n  {"share of pairs that are right, %; chance is 50":52}{"pairs":>8}'
    + ''.join(f'   {tower:20}' for tower in towers)
  ]

  def row(name, group, indent=2):
    line = f'{" " * indent}{name:{54 - indent}}{group["pairs"]:8,}'
    for tower in towers:
      f = group[tower]
      line += f'   {100 * f["value"]:5.1f} ({100 * f["low"]:.1f} to {100 * f["high"]:.1f})'.ljust(
        23
      )
    lines.append(line.rstrip())

  for phenomenon in result['phenomena']:
    lines.append(f'  {phenomenon}')
    for name, group in result['paradigms'].items():
      if group['phenomenon'] == phenomenon:
        row(name, group, 4)
  for part in ('phenomena', 'fields'):
    lines.append(f'\n  {part}')
    for name, group in result[part].items():
      row(name, group, 4)
  lines.append('')
  row('total', result['total'])
  ties = [result['total'][tower]['ties'] for tower in towers]
  lines.append(
    '\n  95% intervals (Wilson)'
    + (
      f'; ties, which count one half: {" and ".join(f"{count:,}" for count in ties)}'
      if any(ties)
      else ''
    )
  )
  return '\n'.join(lines) + '\n'
