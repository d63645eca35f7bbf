"""Minimal pairs, such as BLiMP (Warstadt et al. 2020): which of two sentences a run prefers.

A pretrained run is evaluated without fine-tuning: it should prefer the acceptable sentence. BLiMP
has 67 paradigms of 1,000 pairs each, of 12 phenomena in four fields.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import console, file_access, input_limits, json_reader
from electra_jax.data.corpus.readers import named
from electra_jax.errors import UserError
from electra_jax.model.electra import Electra
from electra_jax.model.encoder import Inputs, packed_inputs
from electra_jax.training import hosts, partitioning, run_folder

if TYPE_CHECKING:
  from electra_jax.pretrain.trained_run import Run

TOWERS = ('discriminator', 'generator')
SENTENCES = ('sentence_good', 'sentence_bad')
# Tokens per device and step, by platform; ACCELERATOR_TOKENS on all others.
BATCH_TOKENS = {'cpu': 4_096}
ACCELERATOR_TOKENS = 32_768
AHEAD = 2  # steps that the device computes while the host prepares the next one
# BLiMP's files spell some phenomena and fields differently from the paper, whose groups these are.
AS_PUBLISHED = {'s-selection': 'argument_structure', 'syntax/semantics': 'syntax_semantics'}
_ARCHIVE = re.compile(r'\.(tar(\.(gz|xz|bz2|zst))?|tgz|txz)$', re.IGNORECASE)
_NORMAL_QUANTILE = 1.959964  # of 97.5%, for intervals of 95%

PyTree: TypeAlias = Any
# Parameters, token ids [batch, length] and positions [batch] to scores [batch].
ScoreStep: TypeAlias = Callable[[PyTree, jax.Array, jax.Array], jax.Array]


class Pair(NamedTuple):
  """An acceptable sentence and an unacceptable one.

  Attributes:
    good: the acceptable sentence.
    bad: the unacceptable sentence.
    paradigm: BLiMP's UID, the kind of the difference.
    phenomenon: group of paradigms.
    field: group of phenomena.
    place: line and file, for error messages.
  """

  good: str
  bad: str
  paradigm: str
  phenomenon: str
  field: str
  place: str


def read_pairs(source: str, limit: int | None = None) -> list[Pair]:
  """Reads pairs in BLiMP's layout.

  Each line is a JSON object with sentence_good, sentence_bad and optionally UID, linguistics_term
  and field.

  Args:
    source: a file, a folder, or a tar archive of files, plain or compressed; or an address.
    limit: number of pairs per paradigm, the first ones; None for all.

  Raises:
    UserError: there are no pairs, or a line is damaged.
  """
  source = file_access.normal(source)
  found = []
  counts: collections.Counter[str] = collections.Counter()
  for path, stream in _streams(source):
    for number, line in enumerate(stream, 1):
      if line.strip():
        pair = _pair(line, f'line {number} of the file {path!r}', path)
        counts[pair.paradigm] += 1
        if limit is None or counts[pair.paradigm] <= limit:
          found.append(pair)
  if not found:
    raise UserError(
      f'{source!r} has no minimal pairs; expected a folder, an archive or a file of JSON lines '
      f'with {" and ".join(SENTENCES)}.'
    )
  return found


def _streams(source: str) -> Iterator[tuple[str, Iterator[bytes]]]:
  """(path, lines) of each file of a source."""
  paths = [source]
  if file_access.is_folder(source):
    folder = file_access.escape(source)
    paths = sorted(
      path
      for suffix in ('', *file_access.COMPRESSIONS)
      for path in file_access.glob(file_access.join(folder, '**', f'*.jsonl{suffix}'))
    )
  for path in paths:
    try:
      with file_access.open_binary(path) as raw:
        if not _ARCHIVE.search(path):
          yield path, _lines(file_access.decompressed(raw, path), path)
          continue
        # .tgz and .txz are archives that are compressed once more.
        name = re.sub(r'\.t([gx])z$', r'.tar.\1z', path, flags=re.IGNORECASE)
        with tarfile.open(fileobj=file_access.decompressed(raw, name), mode='r|') as archive:
          yield from _members(archive, path)
    except _damage() as error:
      raise _unreadable(path, error) from None


def _members(archive: tarfile.TarFile, path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
  for member in archive:
    inside = pathlib.PurePosixPath(member.name)
    if member.isfile() and inside.suffix == '.jsonl' and not inside.name.startswith('.'):
      opened = archive.extractfile(member)
      if opened is not None:
        inner = f'{path}/{member.name}'
        yield inner, _lines(opened, inner)


def _lines(stream: IO[bytes], path: str) -> Iterator[bytes]:
  """The lines of a file, none of which may be larger than memory should hold."""
  most = input_limits.scaled(input_limits.LINE_BYTES)
  number = 0
  try:
    while line := stream.readline(most + 1):
      number += 1
      input_limits.check(len(line), input_limits.LINE_BYTES, f'line {number} of the file {path!r}')
      yield line
  except _damage() as error:
    raise _unreadable(path, error) from None


def _damage() -> tuple[type[Exception], ...]:
  return (tarfile.TarError, *file_access.damage())


def _unreadable(path: str, error: Exception) -> UserError:
  return UserError(f'{path!r} cannot be read: {file_access.reason(error)}')


def _pair(line: bytes, place: str, path: str) -> Pair:
  record = json_reader.parse(line, place, 'fix it', json_reader.TEXTS)
  if not isinstance(record, dict):
    raise UserError(f'{place} is not a JSON object; fix it.')
  for name in SENTENCES:
    if name not in record:
      raise UserError(f'{place} has no field {name!r}; its fields are {named(record)}.')
    if not isinstance(record[name], str) or not record[name].strip():
      raise UserError(f'{place} has no sentence in its field {name!r}; fix it.')
  stem = pathlib.PurePosixPath(path).name.split('.')[0]

  def group(name: str, default: str) -> str:
    value = str(record.get(name) or default)
    return AS_PUBLISHED.get(value, value)

  good, bad = (record[name] for name in SENTENCES)
  return Pair(
    good=good,
    bad=bad,
    paradigm=group('UID', stem),
    phenomenon=group('linguistics_term', 'of no phenomenon'),
    field=group('field', 'of no field'),
    place=place,
  )


#### Scores ####


def _ignore(done: int) -> None:
  del done


def score_sentences(
  run: 'Run',
  rows: Sequence[np.ndarray],
  *,
  batch_tokens: int | None = None,
  progress: Callable[[int], None] = _ignore,
  towers: tuple[str, ...] = TOWERS,
) -> dict[str, np.ndarray]:
  """Scores of sentences, float64 [sentences] by tower; higher is better.

  The discriminator's score is the sum over tokens of the log-probability that the token is
  original. For `electric` it is the sum of the tokens' negative energies, an unnormalized
  pseudo-log-likelihood (Clark et al. 2020b). The generator's score is the pseudo-log-likelihood
  (Salazar et al. 2020): each token is masked in turn, and the log-probabilities of the original
  tokens are summed. [CLS] and [SEP] are not scored; [UNK] is scored as any token.

  Args:
    run: a pretrained run, on any number of devices.
    rows: int32 [tokens] of each sentence, [CLS] and [SEP] included.
    batch_tokens: tokens per device and step, padding included.
    progress: called with the number of tokens computed since the last call.
    towers: which towers to score with.
  """
  tokenizer = run.tokenizer
  platform = run.mesh.devices.flat[0].platform
  batch_tokens = batch_tokens or BATCH_TOKENS.get(platform, ACCELERATOR_TOKENS)
  special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
  steps = {tower: _score_step(run.model, run.layout, tower, special) for tower in towers}
  scores = {tower: np.zeros(len(rows)) for tower in towers}
  lengths = np.array([len(row) for row in rows], np.int64)
  sizes = np.array([bucket(length) for length in lengths], np.int64)
  for size in np.unique(sizes):
    sentences = np.flatnonzero(sizes == size)
    padded = np.full((len(sentences), size), tokenizer.pad_id, np.int32)
    for row, sentence in zip(padded, sentences, strict=True):
      row[: lengths[sentence]] = rows[int(sentence)]
    for tower in towers:
      owners, positions = _copies(tower, lengths[sentences])
      batches = _run_batches(
        run, steps[tower], padded, owners, positions, device_rows=batch_tokens // size
      )
      for chosen, values in batches:
        np.add.at(scores[tower], sentences[owners[chosen]], values)
        progress(len(chosen) * int(size))
  return scores


def _copies(tower: str, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The rows that are computed for sentences of some lengths.

  The discriminator reads each sentence once; the generator reads it once for each token between
  [CLS] and [SEP], which is masked.

  Args:
    tower: one of TOWERS.
    lengths: int64 [sentences], [CLS] and [SEP] included.

  Returns:
    (index of the sentence of each row, int64 [rows]; position of the masked token, int32 [rows]).
  """
  copies = np.ones(len(lengths), np.int64) if tower == 'discriminator' else lengths - 2
  owners = np.repeat(np.arange(len(lengths)), copies)
  first = np.repeat(np.cumsum(copies) - copies, copies)
  return owners, (np.arange(len(owners)) - first + 1).astype(np.int32)


def _run_batches(
  run: 'Run',
  step: ScoreStep,
  sentences: np.ndarray,
  owners: np.ndarray,
  positions: np.ndarray,
  *,
  device_rows: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Runs a step on rows in batches, some batches ahead of the host.

  Args:
    run: a pretrained run.
    step: of `_score_step`.
    sentences: token ids, int32 [sentences, length].
    owners: the sentence of each row, int64 [rows].
    positions: the position of its masked token, int32 [rows].
    device_rows: most rows per device and step.

  Yields:
    (indices of the rows of a batch, their scores, float64).
  """
  mesh = run.mesh
  count = len(owners)
  batch_size = _batch_size(count, device_rows, partitioning.row_shards(mesh))
  mine = partitioning.process_rows(mesh, batch_size)
  waiting: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

  def oldest() -> tuple[np.ndarray, np.ndarray]:
    chosen, values = waiting.popleft()
    return chosen, np.asarray(values, np.float64)[: len(chosen)]

  for first in range(0, count, batch_size):
    chosen = np.arange(first, min(first + batch_size, count))
    local = np.pad(chosen, (0, batch_size - len(chosen)), mode='edge')[mine]
    batch = partitioning.global_batch(sentences[owners[local]], mesh, batch_size)
    at = partitioning.global_batch(positions[local], mesh, batch_size)
    waiting.append((chosen, step(run.params, batch, at)))
    if len(waiting) > AHEAD:
      yield oldest()
  while waiting:
    yield oldest()


@functools.lru_cache(maxsize=4)  # several checkpoints of a model share one compilation
def _score_step(
  model: Electra, layout: partitioning.Layout, tower: str, special: tuple[int, int, int, int]
) -> ScoreStep:
  """The jitted function of a tower's scores, float32 [batch].

  Args:
    model: of the run.
    layout: of the run.
    tower: one of TOWERS.
    special: ids of [PAD], [CLS], [SEP] and [MASK].
  """
  pad_id, cls_id, sep_id, mask_id = special

  def inputs(token_ids: jax.Array) -> Inputs:
    return packed_inputs(token_ids, pad_id, cls_id, sep_id)

  def logits_of(params: PyTree, *arguments: Inputs | jax.Array, method: str) -> jax.Array:
    return cast(jax.Array, model.apply({'params': params}, *arguments, method=method))

  def discriminator(params: PyTree, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
    del positions
    logits = logits_of(params, inputs(token_ids), method='discriminator_logits')
    return jnp.where(
      jnp.isin(token_ids, jnp.array([pad_id, cls_id, sep_id])),
      0,
      -logits if model.two_tower else jax.nn.log_sigmoid(-logits),
    ).sum(1)

  def generator(params: PyTree, token_ids: jax.Array, positions: jax.Array) -> jax.Array:
    at = positions[:, None]
    masked = jnp.where(
      jax.lax.broadcasted_iota(jnp.int32, token_ids.shape, 1) == at, mask_id, token_ids
    )
    logits = logits_of(params, inputs(masked), at, method='generator_logits')[:, 0]
    return jnp.take_along_axis(
      jax.nn.log_softmax(logits), jnp.take_along_axis(token_ids, at, axis=1), axis=1
    )[:, 0]

  compute = {'discriminator': discriminator, 'generator': generator}[tower]
  step: ScoreStep = jax.jit(
    partitioning.within(layout, compute), out_shardings=partitioning.replicated(layout.mesh)
  )
  return step


def bucket(length: int) -> int:
  """The length that a row is padded to: 8, 16, 24, 32, 48, 64, 96, 128, ...

  There are few of these, so that few programs are compiled.
  """
  step = max(8, 1 << max((int(length) - 1).bit_length() - 2, 0))
  return -(-length // step) * step if length > 32 else -(-length // 8) * 8


def _batch_size(count: int, device_rows: int, shards: int) -> int:
  """Rows per step: the most that each device takes, but at most `count`, rounded up to 2**n.

  Args:
    count: number of rows.
    device_rows: most rows per device.
    shards: number of devices that rows are split over.
  """
  rows = max(1, min(device_rows, 1 << max(-(-count // shards) - 1, 0).bit_length()))
  return rows * shards


#### Results ####


def blimp(
  run: 'Run',
  source: str,
  output: str | None = None,
  *,
  limit: int | None = None,
  batch_tokens: int | None = None,
) -> dict[str, Any]:
  """Scores the minimal pairs of `source` with a run.

  Prints a table and writes WORKDIR/blimp.json. A pair is right if the good sentence has the higher
  score. Equal scores, as of two sentences that have the same tokens, count one half.

  Args:
    run: a pretrained run, opened on any number of devices.
    source: as of `read_pairs`.
    output: folder for blimp.json; None for the run's.
    limit: as of `read_pairs`.
    batch_tokens: as of `score_sentences`.

  Returns:
    The content of the file.

  Raises:
    UserError: files are damaged, or a sentence is longer than the encoder's positions.
  """
  towers = _towers_of(run)
  results = run_folder.Results(run.workdir, output)
  pairs = read_pairs(source, limit)
  rows = _rows(run, pairs)
  paradigms = len({pair.paradigm for pair in pairs})
  masked = sum(len(row) - 2 for row in rows)
  console.say('pairs', f'{len(pairs):,} of {paradigms} paradigms, {masked:,} tokens to be masked')
  start = time.perf_counter()
  scores = _score_with_progress(run, rows, batch_tokens, towers)
  seconds = time.perf_counter() - start
  right = {tower: verdicts(values[0::2], values[1::2]) for tower, values in scores.items()}
  result = {'step': run.step, 'source': str(source), 'limit': limit, **_summary(pairs, right)}
  console.say(
    'scored',
    f'step {run.step:,} on {len(pairs):,} pairs in {console.seconds(seconds)}',
    always=True,
  )
  files = {'blimp.json': run_folder.json_content(result)}
  written = hosts.from_first(functools.partial(results.write, files))
  print(format_results(result))
  if written:
    console.say('written', written, always=True)
  return result


def _towers_of(run: 'Run') -> tuple[str, ...]:
  towers = tuple(tower for tower in TOWERS if f'{tower}_head' in run.model.heads)
  if not towers:
    raise UserError(
      f'{run.workdir} has neither a discriminator nor a generator, which score minimal pairs; '
      'choose another run.'
    )
  return towers


@dataclasses.dataclass(frozen=True)
class PairScore:
  """The scores of a minimal pair; higher is better.

  Attributes:
    good: the good sentence.
    bad: the bad sentence.
    scores: of both, in this order, by tower: 'discriminator', 'generator' or both.
  """

  good: str
  bad: str
  scores: dict[str, tuple[float, float]]


def score_pairs(run: 'Run', sentences: Sequence[tuple[str, str]]) -> list[PairScore]:
  """Scores minimal pairs in memory.

  Args:
    run: a pretrained run.
    sentences: pairs of a good and a bad sentence.

  Raises:
    UserError: the run has no tower that scores sentences, or one is longer than its positions.
  """
  pairs = [
    Pair(good, bad, '', '', '', f'pair {number}') for number, (good, bad) in enumerate(sentences, 1)
  ]
  towers = _towers_of(run)
  if not pairs:
    return []
  found = score_sentences(run, _rows(run, pairs), towers=towers)
  scores = {tower: values.reshape(-1, 2).tolist() for tower, values in found.items()}
  return [
    PairScore(pair.good, pair.bad, {tower: tuple(values[i]) for tower, values in scores.items()})
    for i, pair in enumerate(pairs)
  ]


def _score_with_progress(
  run: 'Run', rows: Sequence[np.ndarray], batch_tokens: int | None, towers: tuple[str, ...]
) -> dict[str, np.ndarray]:
  # length - 2 masked copies for the generator, and one row for the discriminator
  work = sum(bucket(len(row)) * (len(row) - 1) for row in rows)
  done = 0
  with console.progress('scoring', work, 'tokens', before='compiling') as line:

    def progress(tokens: int) -> None:
      nonlocal done
      done += tokens
      line(done)

    return score_sentences(run, rows, batch_tokens=batch_tokens, progress=progress, towers=towers)


def _rows(run: 'Run', pairs: Sequence[Pair]) -> list[np.ndarray]:
  """Token ids of both sentences of each pair, the good one first."""
  tokenizer = run.tokenizer
  encoded = tokenizer.encode_arrays([text for pair in pairs for text in (pair.good, pair.bad)])
  rows = [
    np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]]).astype(np.int32)
    for ids in encoded
  ]
  config = run.model.discriminator_config
  longest = max(range(len(rows)), key=lambda i: len(rows[i]))
  if config.has_position_table and len(rows[longest]) > config.max_positions:
    raise UserError(
      f'{pairs[longest // 2].place} has a sentence of {len(rows[longest])} tokens, and the encoder '
      f'has {config.max_positions} positions; remove it.'
    )
  return rows


def verdicts(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
  """1 where the good sentence has the higher score, 0 where the bad one has, 0.5 where equal."""
  return np.where(good > bad, 1.0, np.where(good == bad, 0.5, 0.0))


def _summary(pairs: Sequence[Pair], right: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Shares of right pairs by tower: in total, and of each field, phenomenon and paradigm.

  Args:
    pairs: all pairs.
    right: verdicts [pairs] by tower.
  """

  def shares(chosen: np.ndarray) -> dict[str, Any]:
    return {'pairs': len(chosen)} | {
      tower: share(values[chosen]) for tower, values in right.items()
    }

  def grouped(attribute: str) -> dict[str, Any]:
    names = np.array([getattr(pair, attribute) for pair in pairs])
    return {str(name): shares(np.flatnonzero(names == name)) for name in np.unique(names)}

  paradigms = grouped('paradigm')
  for pair in reversed(pairs):  # the first pair of a paradigm decides
    paradigms[pair.paradigm] |= {'phenomenon': pair.phenomenon, 'field': pair.field}
  return {
    'total': shares(np.arange(len(pairs))),
    'fields': grouped('field'),
    'phenomena': grouped('phenomenon'),
    'paradigms': paradigms,
  }


def share(right: np.ndarray) -> dict[str, float]:
  """The mean of verdicts, its 95% interval and the number of ties.

  The interval (Wilson 1927) is that of pairs drawn at random from the same paradigms. It is
  computed here since scipy's requires counts, and ties count one half.
  """
  n = len(right)
  p = float(right.mean())
  z = _NORMAL_QUANTILE
  middle = p + z**2 / (2 * n)
  spread = z * (p * (1 - p) / n + (z / (2 * n)) ** 2) ** 0.5
  low, high = ((middle + sign * spread) / (1 + z**2 / n) for sign in (-1, 1))
  return {
    'value': p,
    'low': max(low, 0.0),
    'high': min(high, 1.0),
    'ties': int((right == 0.5).sum()),
  }


def format_results(result: Mapping[str, Any]) -> str:
  """The content of blimp.json as aligned text, in percent.

  Paradigms are listed under their phenomena, then phenomena, fields and the total.
  """
  towers = [tower for tower in TOWERS if tower in result['total']]
  heading = f'\n  {"share of pairs that are right, %; chance is 50":52}{"pairs":>8}'
  lines = [heading + ''.join(f'   {tower:20}' for tower in towers)]

  def add(name: str, group: Mapping[str, Any], indent: int = 2) -> None:
    line = f'{" " * indent}{name:{54 - indent}}{group["pairs"]:8,}'
    for tower in towers:
      value, low, high = (100 * group[tower][key] for key in ('value', 'low', 'high'))
      line += f'   {value:5.1f} ({low:.1f} to {high:.1f})'.ljust(23)
    lines.append(line.rstrip())

  for phenomenon in result['phenomena']:
    lines.append(f'  {phenomenon}')
    for name, group in result['paradigms'].items():
      if group['phenomenon'] == phenomenon:
        add(name, group, 4)
  for part in ('phenomena', 'fields'):
    lines.append(f'\n  {part}')
    for name, group in result[part].items():
      add(name, group, 4)
  lines.append('')
  add('total', result['total'])
  footnote = '\n  95% intervals (Wilson)'
  ties = [result['total'][tower]['ties'] for tower in towers]
  if any(ties):
    footnote += f'; ties, which count one half: {" and ".join(f"{count:,}" for count in ties)}'
  lines.append(footnote)
  return '\n'.join(lines) + '\n'
