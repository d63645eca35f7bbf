"""Prepares a corpus: tokenizes it into token stores, once. Later runs find them again."""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from electra_jax import console, file_access, json_reader, registry
from electra_jax.data.corpus import corpora, corpus_format, duplicates, tfds
from electra_jax.data.prepare import (
  advice,
  beam_pipeline,
  blocks,
  packing,
  preparation_report,
  workers,
)
from electra_jax.data.prepare.finished import FACTS_FILE, building, read_facts, write_facts
from electra_jax.data.prepare.heldout_split import (
  SPLITS,
  HeldoutSplit,
  decide_split,
  fractions_of,
)
from electra_jax.data.prepare.preparation_report import Part
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.store import document_starts
from electra_jax.data.store.mixture import Mixing, Mixture
from electra_jax.data.store.shard_cache import default_cache
from electra_jax.data.store.token_manifest import rows_per_shard, write_manifest
from electra_jax.data.store.token_shards import write_shard
from electra_jax.data.store.token_store import Store, open_store
from electra_jax.data.tokenizers import tokenization
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError
from electra_jax.folder_lock import FolderLock

# Part of every fingerprint. Raise it when the same settings begin to give other tokens or rows.
RECIPE_VERSION = 2

REPORT_FILE = 'report.md'

# Characters per compressed byte, for the progress line of a tokenizer's training only.
_EXPANSION = {'.gz': 3, '.xz': 4, '.bz2': 4, '.zst': 3.5}


class HeldoutSource(NamedTuple):
  """A source of a mixture, in the held-out rows.

  Attributes:
    location: as config.data.source names it.
    weight: its fraction of the training rows of a run.
    rows: its held-out rows.
  """

  location: str
  weight: float
  rows: int


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A prepared corpus, which training reads.

  Attributes:
    train: rows of the training documents: a store, or a mixture of one store per source if the
      sources have weights.
    heldout: rows of the held-out documents of all sources; None if none are held out.
    tokenizer: the tokenizer that made the rows.
    facts: what was counted, see `preparation_report.GatheredFacts`.
    path: the folder or address that holds all of it.
  """

  train: Store | Mixture
  heldout: Store | None
  tokenizer: Tokenizer
  facts: blocks.Facts
  path: str

  @property
  def heldout_sources(self) -> tuple[HeldoutSource, ...]:
    """The sources of a mixture, whose held-out rows follow each other in the store.

    Empty if the training rows are no mixture, or version 0.1.0 prepared them.
    """
    sources = self.facts['sources']
    if not isinstance(self.train, Mixture) or any('heldout_rows' not in s for s in sources):
      return ()
    return tuple(
      HeldoutSource(source['location'], weight, source['heldout_rows'])
      for source, weight in zip(sources, self.train.weights, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What one call of `prepare_corpus` makes, and where.

  Attributes:
    recipe: the settings.
    sources: of the corpus.
    identity: of the corpus, a hash.
    given: an existing tokenizer; None if one is trained.
    fingerprint: of corpus and settings.
    cache: the folder of the cache.
    path: the folder of the prepared corpus.
  """

  recipe: CorpusRecipe
  sources: tuple[corpora.CorpusSource, ...]
  identity: str
  given: Tokenizer | None
  fingerprint: str
  cache: str
  path: str


@dataclasses.dataclass(frozen=True)
class _Runner:
  """Runs work on the cores of this machine, or as Beam pipelines.

  Attributes:
    groups: all groups of the corpus.
    processes: on this machine.
    beam: flags of Beam; None for this machine.
    lock: of the folder of the prepared corpus.
  """

  groups: Sequence[corpora.Group]
  processes: int
  beam: str | None
  lock: FolderLock

  def each_block(self, job: blocks.PreparationJob, work: workers.BlockWork) -> None:
    """Runs a stage for all blocks that have not finished it, while the folder is this process's."""

    def finished(name: str) -> bool:
      self.lock.check()
      return work.finished(name)

    if self.beam is None:
      checked = dataclasses.replace(work, finished=finished)
      workers.each_block(job, self.groups, checked, self.processes)
    else:
      beam_pipeline.each_block(job, self.groups, work.stage, work.label, self.beam)

  def each(self, function: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Calls a function for each item."""
    if self.beam is None:
      workers.each(function, items)
    else:
      beam_pipeline.each(function, items, self.beam)

  @property
  def description(self) -> str:
    """Who does the work, for the report."""
    if self.beam is not None:
      return 'by Apache Beam'
    return f'by {self.processes} processes' if self.processes > 1 else 'by one process'


def prepare_corpus(
  recipe: CorpusRecipe,
  *,
  cache: str | os.PathLike[str] | None = None,
  output: str | os.PathLike[str] | None = None,
  processes: int = 0,
  beam: str | None = None,
  take_over: bool = False,
  mixing: Mixing | None = None,
) -> Prepared:
  """Tokenizes a corpus into rows of training and held-out documents, or opens what exists.

  The result is the same, byte for byte, for any number of processes, with Beam or without. A killed
  preparation is resumed. Processes that start together, on any machines, wait for the first of
  them.

  Args:
    recipe: the settings.
    cache: the folder that holds prepared corpora, under a fingerprint of corpus and settings, and
      trained tokenizers; None for `shard_cache.default_cache()`.
    output: a folder or address to use instead for the prepared corpus.
    processes: that share the work; 0 for one per core.
    beam: flags of an Apache Beam pipeline that does the work, '' for its local runner; None for
      processes on this machine.
    take_over: whether to take the folder from a process that works on it.
    mixing: how sources are weighted, in place of their own weights. They are then stored apart.

  Raises:
    UserError: a setting is wrong; the tokenizer loses much of a source; the corpus or the tokenizer
      cannot be read; a split has no document; the folder cannot be written or holds something else;
      a worker was killed.
  """
  recipe.check()
  plan = _make_plan(recipe, cache, output, apart=bool(mixing))
  if beam is not None:
    beam_pipeline.check_beam_flags(beam, plan.path)
  lock = FolderLock(plan.path, take_over=take_over)
  with building(plan.path, plan.fingerprint, lock) as work:
    if work:
      groups = corpora.groups(plan.sources)
      size = sum(group.bytes for group in groups)
      console.say(
        'corpus', f'{corpora.describe_sources(plan.sources)}, {size / 1e6:,.1f} MB on disk'
      )
      for label, text in corpora.notes(plan.sources):
        console.say(label, text)
      split = _split(plan, groups)
      tokenizer = plan.given or _train_tokenizer(plan, groups, split)
      runner = _Runner(groups, workers.processes_for(groups, processes), beam, lock)
      _make(plan, work, tokenizer, runner, split)
    else:
      console.say('corpus', f'reusing {corpora.describe_sources(plan.sources)} as prepared before')
  return open_prepared(plan.path, plan.cache, mixing or Mixing(_weights(plan.sources)))


def open_prepared(
  path: str | os.PathLike[str],
  cache: str | os.PathLike[str] | None = None,
  mixing: Mixing | None = None,
) -> Prepared:
  """Opens a prepared corpus.

  Args:
    path: its folder or address; shards at an address are fetched into the cache when they are read.
    cache: see `prepare_corpus`.
    mixing: weights of the sources, if they are not those of the preparation.

  Raises:
    UserError: there is none, it is damaged, or its tokenizer is of a kind that is not registered.
  """
  path = file_access.normal(path)
  facts = read_facts(path)
  if facts is None:
    raise UserError(
      f'no prepared corpus at {path!r}: it has no {FACTS_FILE}; make one with --mode=prepare '
      f'--output={path}'
    )
  tokenizer = tokenization.load_tokenizer(file_access.join(path, 'tokenizer'))
  shards = None
  if cache is not None and not file_access.is_remote(cache):
    shards = file_access.join(file_access.normal(cache), 'shards')
  stores = {name: open_store(file_access.join(path, name), shards) for name in facts['stores']}
  for store in stores.values():
    if store.tokenizer_fingerprint != tokenizer.fingerprint:
      raise UserError(
        f'the tokenizer in {path!r} is not the one that made its rows; delete the folder and '
        'prepare the corpus again'
      )
  heldout = stores.pop('heldout', None)
  train = _mixed(tuple(stores.values()), facts, mixing or Mixing(), path)
  for label, text in preparation_report.console_lines(facts):
    console.say(label, text, always=label == 'warning')
  console.say('kept in', path)
  return Prepared(train, heldout, tokenizer, facts, path)


def _mixed(
  stores: tuple[Store, ...], facts: blocks.Facts, mixing: Mixing, path: str
) -> Store | Mixture:
  """The training rows: of one store, or a mixture of those of the sources."""
  if mixing:
    tokens = [source['text_tokens'] for source in facts['sources']]
    if len(stores) == 1 < len(tokens):
      raise UserError(
        f'the sources of the corpus {path!r} are stored together and cannot be weighted; expected '
        'a corpus that was prepared with weights (;weight=... on each source).'
      )
    weights = mixing.of_sources(tokens, path)
  else:
    weights = tuple(source['weight'] for source in facts['sources'])
  return stores[0] if len(stores) == 1 else Mixture(stores, weights)


def _weights(sources: Sequence[corpora.CorpusSource]) -> tuple[float, ...]:
  """The weights of sources; empty if they have none."""
  return tuple(source.weight for source in sources if source.weight is not None)


#### The plan and its fingerprint ####


def _make_plan(
  recipe: CorpusRecipe,
  cache: str | os.PathLike[str] | None,
  output: str | os.PathLike[str] | None,
  apart: bool,
) -> _Plan:
  """Finds the corpus and, if it exists already, the tokenizer. See `prepare_corpus`.

  Args:
    recipe: the settings.
    cache: see `prepare_corpus`.
    output: see `prepare_corpus`.
    apart: whether sources without weights have a store each, too.
  """
  cache = file_access.normal(default_cache() if cache is None else cache)
  for path, what in ((cache, 'config.data.cache'), (output, '--output')):
    if path is not None and not file_access.is_remote(path):
      file_access.check_name(path, what)
  sources = corpora.parse_sources(recipe.source, recipe.document_format)
  if apart and not _weights(sources):
    sources = tuple(dataclasses.replace(source, weight=1.0) for source in sources)
  given = None
  if recipe.tokenizer not in registry.TOKENIZERS:
    path = file_access.normal(recipe.tokenizer)
    given = tokenization.load_tokenizer(
      path, recipe.lowercase, recipe.strip_accents, recipe.add_special_tokens
    )
    if recipe.segmenter:
      given = given.with_segmenter(recipe.segmenter)
  identity = corpora.corpus_identity(sources)
  fingerprint = _fingerprint(recipe, identity, given, sources)
  if output is None:
    folder = file_access.join(cache, 'rows', fingerprint)
  else:
    folder = file_access.normal(output)
  return _Plan(recipe, sources, identity, given, fingerprint, cache, folder)


def _fingerprint(
  recipe: CorpusRecipe,
  identity: str,
  given: Tokenizer | None,
  sources: Sequence[corpora.CorpusSource],
) -> str:
  """A hash of all that decides the rows and how they are cut into blocks.

  Blocks count too, because unfinished work is resumed.
  """
  own = _own_fractions(sources)
  return _hash(
    [
      RECIPE_VERSION,
      identity,
      recipe.heldout_fraction,
      recipe.invalid_utf8,
      recipe.near_duplicates,
      given.fingerprint if given else _tokenizer_fingerprint(recipe, identity, own),
      recipe.row_length,
      recipe.row_format,
      recipe.seed if recipe.row_format == 'segment_pair' else None,
      bool(_weights(sources)),
      packing.MIN_PIECE,
      blocks.BLOCK_CHARACTERS,
      corpus_format.GROUP_BYTES,
      tfds.GROUP_EXAMPLES,
      *own,
    ]
  )


def _own_fractions(sources: Sequence[corpora.CorpusSource]) -> list[list[float | None]]:
  """The held-out fractions that sources state; empty where none does, as in version 0.1.0."""
  fractions = [source.heldout for source in sources]
  return [fractions] if any(fraction is not None for fraction in fractions) else []


def _tokenizer_fingerprint(
  recipe: CorpusRecipe, identity: str, own: Sequence[Sequence[float | None]]
) -> str:
  """A hash of all that decides a tokenizer that is trained on the corpus.

  Args:
    recipe: the settings.
    identity: of the corpus.
    own: of `_own_fractions`.
  """
  return _hash(
    [
      RECIPE_VERSION,
      identity,
      recipe.heldout_fraction,
      recipe.invalid_utf8,
      recipe.tokenizer,
      recipe.vocab_size,
      *tokenization.settings_identity(recipe.tokenizer_settings),
      *own,
    ]
  )


def _hash(values: list[Any]) -> str:
  return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


#### The tokenizer ####


def _split(plan: _Plan, groups: Sequence[corpora.Group]) -> HeldoutSplit:
  """Decides which documents are held out, and prints what is unusual about it."""
  recipe = plan.recipe
  split = decide_split(plan.sources, groups, recipe.heldout_fraction, recipe.invalid_utf8)
  for text in split.describe():
    console.say('held out', text)
  return split


def _train_tokenizer(
  plan: _Plan, groups: Sequence[corpora.Group], split: HeldoutSplit
) -> Tokenizer:
  """A tokenizer trained on the training documents, now or by an earlier run."""
  recipe = plan.recipe
  name = _tokenizer_fingerprint(recipe, plan.identity, _own_fractions(plan.sources))
  if split.cuts:
    name = _hash([name, split.identity()])
  folder = file_access.join(plan.cache, 'tokenizers', name)
  with building(folder) as work:
    if work:
      trained = tokenization.train_tokenizer(
        _training_texts(plan, groups, split),
        recipe.tokenizer_settings,
        _expected_characters(groups),
      )
      trained.save(folder)
      write_facts(folder, {})
      return trained
  tokenizer = tokenization.load_tokenizer(folder)
  console.say('tokenizer', f'reusing a tokenizer of {tokenizer.size:,} tokens trained before')
  return tokenizer


def _expected_characters(groups: Sequence[corpora.Group]) -> int:
  """An estimate of the corpus's characters by the extensions of its files."""
  total = 0.0
  for group in groups:
    extension = os.path.splitext(group.files[0])[1] if group.files else ''
    total += group.bytes * _EXPANSION.get(extension, 1)
  return int(total)


def _training_texts(
  plan: _Plan, groups: Sequence[corpora.Group], split: HeldoutSplit
) -> Iterator[str]:
  """Yields the training documents.

  Raises:
    UserError: at the end, if a split has no document.
  """
  documents = dict.fromkeys(SPLITS, 0)
  for group in groups:
    for text in corpora.documents(group, plan.recipe.invalid_utf8):
      for name, part in split.parts(group.source_index, text):
        documents[name] += 1
        if name == 'train':
          yield part
  _check_documents(plan, documents)


#### The stages ####


def _make(
  plan: _Plan, work: str, tokenizer: Tokenizer, runner: _Runner, split: HeldoutSplit
) -> None:
  """Fills the folder of a plan with tokenizer, stores, report and, last, the facts."""
  start = time.monotonic()
  folder = file_access.join(plan.path, 'tokenizer')
  tokenizer.save(folder)
  job = blocks.PreparationJob(
    work, folder, tokenizer.fingerprint, plan.recipe, plugins=registry.plugin_files(), split=split
  )
  if not plan.recipe.allow_loss:
    advice.check_beginnings(plan.recipe, runner.groups, tokenizer)
  if plan.recipe.near_duplicates:
    job = _without_near_duplicates(job, runner)
  runner.each_block(job, workers.BlockWork(blocks.make_rows, _has_rows(job), 'rows'))
  runner.lock.check(read=True)
  with console.phase('report', 'counting what was prepared'):
    gathered = preparation_report.gather_facts(job, runner.groups, plan.sources)
  _check_rows(plan, gathered.facts)
  preparation_report.add_remedies(gathered.facts, tokenizer)
  if not plan.recipe.allow_loss:
    preparation_report.check_losses(gathered.facts)
  for name, parts in gathered.parts.items():
    with console.phase('writing', f'the rows of {name}'):
      _write_store(plan, work, name, parts, tokenizer, runner)
  if corpora.corpus_identity(plan.sources) != plan.identity:
    raise UserError(
      f'the corpus {corpora.describe_sources(plan.sources)} changed while it was read; prepare it '
      'again'
    )
  runner.lock.check(read=True)
  facts = _facts(plan, tokenizer) | gathered.facts
  seconds = time.monotonic() - start
  page = preparation_report.report_page(facts, seconds, runner.description)
  file_access.write_bytes(file_access.join(plan.path, REPORT_FILE), page.encode('utf-8', 'replace'))
  write_facts(plan.path, facts, indent=2)
  console.say('rows', f'tokenized and packed in {console.seconds(seconds)}')


def _facts(plan: _Plan, tokenizer: Tokenizer) -> blocks.Facts:
  """Facts that are not counted."""
  return {
    'fingerprint': plan.fingerprint,
    'source': plan.recipe.source,
    'recipe': plan.recipe.plain(),
    'tokenizer': {
      'kind': tokenizer.kind,
      'size': tokenizer.size,
      'fingerprint': tokenizer.fingerprint,
      **({'origin': tokenizer.origin} if tokenizer.origin else {}),
    },
  }


def _has_rows(job: blocks.PreparationJob) -> Callable[[str], bool]:
  """Whether the rows of a block are made, by its name."""

  def has_rows(name: str) -> bool:
    return blocks.block_facts(job, name) is not None

  return has_rows


def _without_near_duplicates(job: blocks.PreparationJob, runner: _Runner) -> blocks.PreparationJob:
  """The job without near-duplicate documents, which are found by the signatures of all."""

  def is_signed(name: str) -> bool:
    return file_access.exists(blocks.signatures_file(job, name))

  runner.each_block(job, workers.BlockWork(blocks.sign, is_signed, 'likeness'))
  names = []
  for index in range(len(runner.groups)):
    read = blocks.group_facts(job, index)
    assert read is not None  # every group is read
    names += [blocks.block_name(index, number) for number in range(read['blocks'])]
  owners: list[tuple[str, int]] = []  # block and index of each document

  def signatures() -> Iterator[np.ndarray]:
    with console.progress('likeness', len(names), 'blocks') as update:
      for done, name in enumerate(names):
        for number, values in enumerate(blocks.read_array(blocks.signatures_file(job, name))):
          owners.append((name, number))
          yield values
        update(done + 1, f'{len(owners):,} documents compared')

  dropped: dict[str, list[int]] = {}
  for document in duplicates.near_duplicates(signatures(), job.recipe.near_duplicates):
    name, number = owners[document]
    dropped.setdefault(name, []).append(number)
  console.say(
    'likeness',
    f'{sum(map(len, dropped.values())):,} of {len(owners):,} documents are near-duplicates and '
    'left out',
  )
  return dataclasses.replace(job, dropped={name: tuple(x) for name, x in dropped.items()})


def _check_documents(plan: _Plan, documents: dict[str, int]) -> None:
  """Checks the number of documents of each split.

  Raises:
    UserError: the corpus is empty, or a split is.
  """
  recipe = plan.recipe
  if not sum(documents.values()):
    raise UserError(
      f'the corpus is empty: no text in {corpora.describe_sources(plan.sources)}; expected files '
      "that hold some, or 'sample'"
    )
  fractions = fractions_of(plan.sources, recipe.heldout_fraction)
  if not documents['train'] or (any(fractions) and not documents['heldout']):
    raise UserError(
      f'the corpus has too little text to hold some out: heldout_fraction '
      f'{recipe.heldout_fraction} leaves {documents["train"]} documents to train on and '
      f'{documents["heldout"]} held out; expected more text, or no evaluation '
      '(--config.data.heldout_fraction=0).'
    )


def _check_rows(plan: _Plan, facts: blocks.Facts) -> None:
  """Checks that every split and every source of a mixture has rows.

  Raises:
    UserError: one has none.
  """
  splits = [split for split in SPLITS if split in facts]
  counted = {
    split: facts[split]['documents'] + facts[split]['duplicate_documents'] for split in splits
  }
  _check_documents(plan, dict.fromkeys(SPLITS, 0) | counted)
  for split in splits:
    if not facts[split]['rows']:
      title = 'held-out' if split == 'heldout' else 'training'
      raise UserError(
        f'the {title} documents of {corpora.describe_sources(plan.sources)} hold no token; give '
        'more text'
      )
  for entry in facts['sources']:
    if entry['store'] != 'train' and not entry['rows']:
      raise UserError(
        f'the source {entry["location"]!r} has no training document; give more text, or leave it '
        'out'
      )


#### Stores ####


def _write_store(
  plan: _Plan,
  work: str,
  name: str,
  parts: Sequence[Part],
  tokenizer: Tokenizer,
  runner: _Runner,
) -> None:
  """Writes a store from the row files of finished blocks."""
  shape = {
    'length': plan.recipe.row_length,
    'vocab_size': tokenizer.size,
    'pad_id': tokenizer.pad_id,
  }
  folder = file_access.join(plan.path, name)
  shards = _split_into_shards(parts, rows_per_shard(plan.recipe.row_length, tokenizer.size))
  notes = [
    file_access.join(work, 'shards', f'{name}-{index:05d}.json') for index in range(len(shards))
  ]
  write = functools.partial(_write_noted_shard, folder, shape)
  runner.each(write, list(zip(range(len(shards)), shards, notes, strict=True)))
  for file in file_access.listing(folder):
    if file.endswith('.partial'):  # of a process that was killed while it wrote
      file_access.remove(file_access.join(folder, file))
  starts = None
  if blocks.is_evaluated(plan.recipe, name):
    starts = _document_starts(parts, plan.recipe.row_length)
  documents = {} if starts is None else document_starts.write_starts(folder, starts)
  write_manifest(
    folder,
    [json_reader.read(note) for note in notes],
    **shape,
    tokenizer_fingerprint=tokenizer.fingerprint,
    facts={'source': plan.recipe.source, 'split': name} | documents,
  )


def _document_starts(parts: Sequence[Part], length: int) -> np.ndarray | None:
  """Places of the documents in a store of these parts; None if a part does not have them."""
  first_row, found = 0, [np.zeros(0, np.int64)]
  for file, rows in parts:
    starts = blocks.starts_file(file)
    if not file_access.exists(starts):  # a block of a preparation that version 0.1.0 began
      return None
    found.append(blocks.read_array(starts) + first_row * length)
    first_row += rows
  return np.concatenate(found)


def _split_into_shards(
  parts: Sequence[Part], rows_per_shard: int
) -> list[list[tuple[str, int, int]]]:
  """For each shard the row files that it consists of, each with its first row and its end."""
  ends = np.cumsum([0, *(rows for _, rows in parts)])
  total = int(ends[-1])
  shards = []
  for first in range(0, total, rows_per_shard):
    last = min(first + rows_per_shard, total)
    touched = range(
      int(np.searchsorted(ends, first, 'right')) - 1, int(np.searchsorted(ends, last, 'left'))
    )
    shards.append(
      [(parts[i][0], max(0, first - int(ends[i])), last - int(ends[i])) for i in touched]
    )
  return shards


def _write_noted_shard(
  folder: str, shape: dict[str, int], item: tuple[int, list[tuple[str, int, int]], str]
) -> None:
  """Writes a shard, in any process, and a file with what the manifest needs to know of it.

  Args:
    folder: of the store.
    shape: keyword arguments of `write_shard`.
    item: index of the shard, its row files, and the file for the manifest.
  """
  index, files, note = item
  rows = (blocks.read_array(file)[start:stop] for file, start, stop in files)
  facts = write_shard(folder, index, rows, **shape)
  file_access.write_bytes(note, json.dumps(facts).encode())
