"""A corpus and a tokenizer to token stores, once; later runs find them again."""

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from electra_jax import console, file_access, registry
from electra_jax.data.corpus import corpora, duplicates
from electra_jax.data.prepare import beam_pipeline, blocks, packing, preparation_report, workers
from electra_jax.data.prepare.finished import FACTS_FILE, FORMAT, building, read_facts
from electra_jax.data.store.mixture import Mixture
from electra_jax.data.store.shard_cache import default_cache
from electra_jax.data.store.token_store import (
  Store,
  open_store,
  rows_per_shard,
  write_manifest,
  write_shard,
)
from electra_jax.data.tokenizers import tokenization
from electra_jax.data.tokenizers.tokenization import Tokenizer, TokenizerSettings
from electra_jax.errors import UserError

# Part of every fingerprint: raise it when the same settings begin to give other tokens or rows.
RECIPE_VERSION = 2

REPORT_FILE = 'report.md'

# Text that a compressed byte makes, about; only for the progress line of a tokenizer in training.
_EXPANSION = {'.gz': 3, '.xz': 4, '.bz2': 4, '.zst': 3.5}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """All that decides what is made of a corpus; the fields of config.data, which explains them, and the row length."""

  source: str
  row_length: int
  document_format: str = 'blank_line'
  heldout_fraction: float = 0.05
  invalid_utf8: str = 'refuse'
  near_duplicates: float = 0.0
  row_format: str = 'packed'
  seed: int = 0
  tokenizer: str = 'unigram'
  vocab_size: int = 30522
  lowercase: bool | None = None
  strip_accents: bool | None = None
  byte_fallback: bool | None = None
  tokenizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def tokenizer_settings(self) -> TokenizerSettings:
    """How the tokenizer is trained."""
    return TokenizerSettings(
      kind=self.tokenizer,
      vocab_size=self.vocab_size,
      lowercase=self.lowercase,
      strip_accents=self.strip_accents,
      byte_fallback=self.byte_fallback,
      options=self.tokenizer_options,
    )

  def check(self) -> None:
    """Raises UserError for a field that cannot be."""
    if not 0 <= self.heldout_fraction < 1:
      raise UserError(
        f'heldout_fraction is {self.heldout_fraction}; it can be from 0 up to, not including, 1'
      )
    if not 0 <= self.near_duplicates <= 1:
      raise UserError(
        f'near_duplicates is {self.near_duplicates}; it is the similarity from which documents go, up to 1, or 0 to '
        'keep all'
      )
    if self.row_format not in packing.ROW_FORMATS:
      raise UserError(
        f'row_format is {self.row_format!r}; it can be {" or ".join(packing.ROW_FORMATS)}'
      )
    if self.invalid_utf8 not in ('refuse', 'replace'):
      raise UserError(f'invalid_utf8 is {self.invalid_utf8!r}; it can be refuse or replace')
    packing.check_row_length(self.row_length)
    if self.tokenizer_options and self.tokenizer not in registry.TOKENIZERS:
      raise UserError(
        f'config.data.tokenizer_options is set, but config.data.tokenizer is {self.tokenizer!r}; '
        f'expected a kind to train: {", ".join(registry.TOKENIZERS)}.'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """What training reads.

  Attributes:
    train: rows of the training documents: a store, or where sources have weights a mixture of one store a source.
    heldout: rows of the held-out documents of all sources, None where none were asked for.
    tokenizer: what made them.
    facts: what was counted, see preparation_report.gather.
    path: the folder or address that holds all of it.
  """

  train: Store | Mixture
  heldout: Store | None
  tokenizer: Tokenizer
  facts: dict
  path: str


def prepare(
  recipe: Recipe,
  *,
  cache: str | os.PathLike | None = None,
  output: str | os.PathLike | None = None,
  processes: int = 0,
  beam: str | None = None,
) -> Prepared:
  """Tokenizes a corpus into rows of training and held-out documents, or finds what an earlier run made.

  What is made is the same, byte for byte, whatever the number of processes, with Beam or without. A run that was killed
  is gone on with where it was. Processes that start together wait for the first of them, where files can be locked;
  where they cannot, as at addresses, each does the same work.

  Args:
    recipe: what to make.
    cache: the folder where it is kept under a fingerprint of corpus and recipe, and tokenizers too; None is
      `shard_cache.default_cache()`.
    output: a folder or address to keep it in instead.
    processes: that share the work; 0: one a core.
    beam: flags of an Apache Beam pipeline that does the work, '' for its local runner; None for `processes`.

  Raises:
    UserError: a recipe that cannot be; what corpora and tokenizers raise; a split without documents; a place that
      cannot be written, or holds something else; a worker that died.
  """
  recipe.check()
  cache = file_access.normal(cache if cache is not None else default_cache())
  sources = corpora.parse_sources(recipe.source, recipe.document_format)
  given = None
  if recipe.tokenizer not in registry.TOKENIZERS:
    given = tokenization.load_tokenizer(
      file_access.normal(recipe.tokenizer), recipe.lowercase, recipe.strip_accents
    )
  identity = corpora.corpus_identity(sources)
  fingerprint = _fingerprint(recipe, identity, given, weighted=_weighted(sources))
  path = (
    file_access.normal(output)
    if output is not None
    else file_access.join(cache, 'rows', fingerprint)
  )
  if beam is not None:
    beam_pipeline.check(beam, path)
  with building(path, fingerprint) as work:
    if work:
      groups = corpora.groups(sources)
      console.say(
        'corpus',
        f'{corpora.describe(sources)}, {sum(group.bytes for group in groups) / 1e6:,.1f} MB on disk',
      )
      tokenizer = given or _train_tokenizer(
        file_access.join(cache, 'tokenizers', _tokenizer_fingerprint(recipe, identity)),
        recipe,
        sources,
        groups,
      )
      _make(
        path,
        work,
        fingerprint,
        identity,
        recipe,
        sources,
        groups,
        tokenizer,
        workers.processes_for(groups, processes),
        beam,
      )
    else:
      console.say('corpus', f'reusing {corpora.describe(sources)} as prepared before')
  return open_prepared(path, cache, [source.weight for source in sources])


def _tokenizer_fingerprint(recipe, identity):
  """Of all that a tokenizer trained on a corpus depends on."""
  return _hash(
    [
      RECIPE_VERSION,
      identity,
      recipe.heldout_fraction,
      recipe.invalid_utf8,
      recipe.tokenizer,
      recipe.vocab_size,
      *tokenization.settings_identity(recipe.tokenizer_settings),
    ]
  )


def _fingerprint(recipe, identity, given, weighted):
  """Of all that the rows depend on, how they are cut into blocks included: unfinished ones are gone on with."""
  return _hash(
    [
      RECIPE_VERSION,
      identity,
      recipe.heldout_fraction,
      recipe.invalid_utf8,
      recipe.near_duplicates,
      given.fingerprint if given else _tokenizer_fingerprint(recipe, identity),
      recipe.row_length,
      recipe.row_format,
      recipe.seed if recipe.row_format == 'segment_pair' else None,
      weighted,
      packing.MIN_PIECE,
      blocks.BLOCK_CHARACTERS,
      corpora.GROUP_BYTES,
      corpora.GROUP_EXAMPLES,
    ]
  )


def open_prepared(
  path: str | os.PathLike,
  cache: str | os.PathLike | None = None,
  weights: list[float] | None = None,
) -> Prepared:
  """Opens what `prepare` made.

  Args:
    path: its folder or address; shards at an address are fetched into the cache when they are read.
    cache: see `prepare`.
    weights: of the sources, where they are others than at preparation.

  Raises:
    UserError: nothing there, or it is damaged.
  """
  path = file_access.normal(path)
  facts = read_facts(path)
  if facts is None:
    raise UserError(
      f'no prepared corpus at {path!r}: it has no {FACTS_FILE}; make one with --mode=prepare --output={path}'
    )
  tokenizer = tokenization.load_tokenizer(file_access.join(path, 'tokenizer'))
  shards = (
    None
    if cache is None or file_access.is_remote(cache)
    else file_access.join(file_access.normal(cache), 'shards')
  )
  stores = {name: open_store(file_access.join(path, name), shards) for name in facts['stores']}
  for store in stores.values():
    if store.tokenizer_fingerprint != tokenizer.fingerprint:
      raise UserError(
        f'the tokenizer in {path!r} is not the one that made its rows; delete the folder and prepare the corpus again'
      )
  heldout = stores.pop('heldout', None)
  (train,) = stores.values() if len(stores) == 1 else [None]
  if train is None:
    train = Mixture(
      tuple(stores.values()), tuple(weights or [source['weight'] for source in facts['sources']])
    )
  prepared = Prepared(train, heldout, tokenizer, facts, path)
  for line in preparation_report.lines(facts):
    console.say(*line)
  console.say('kept in', path)
  return prepared


def _make(path, work, fingerprint, identity, recipe, sources, groups, tokenizer, processes, beam):
  """Fills a folder with the stores, the tokenizer, the report and, last, the facts."""
  start = time.monotonic()
  tokenizer.save(file_access.join(path, 'tokenizer'))
  job = blocks.Job(
    work,
    file_access.join(path, 'tokenizer'),
    tokenizer.fingerprint,
    recipe.row_length,
    recipe.row_format,
    recipe.seed,
    recipe.heldout_fraction,
    recipe.invalid_utf8,
  )

  def each_block(job, stage, finished, label):
    if beam is None:
      workers.each_block(job, groups, stage, finished, processes, label)
    else:
      beam_pipeline.each_block(job, groups, stage, label, beam)

  if recipe.near_duplicates:
    each_block(
      job,
      blocks.sign,
      lambda name: file_access.exists(blocks.signatures_file(job, name)),
      'likeness',
    )
    job = dataclasses.replace(job, gone=_gone(job, groups, recipe.near_duplicates))
  each_block(job, blocks.make_rows, lambda name: blocks.block_facts(job, name) is not None, 'rows')

  facts, parts = preparation_report.gather(job, groups, sources, _weighted(sources))
  _check_rows(facts, recipe, sources)
  facts = {
    'format': FORMAT,
    'fingerprint': fingerprint,
    'source': recipe.source,
    'recipe': _recorded(recipe),
    'tokenizer': {
      'kind': tokenizer.kind,
      'size': tokenizer.size,
      'fingerprint': tokenizer.fingerprint,
    },
  } | facts
  for name, pieces in parts.items():
    _write_store(path, work, name, pieces, recipe, tokenizer, beam)
  if corpora.corpus_identity(sources) != identity:
    raise UserError(
      f'the corpus {corpora.describe(sources)} has changed while it was read; prepare it again'
    )
  seconds = time.monotonic() - start
  file_access.write_bytes(
    file_access.join(path, REPORT_FILE),
    preparation_report.markdown(facts, seconds, processes, beam).encode('utf-8', 'replace'),
  )
  file_access.write_bytes(
    file_access.join(path, FACTS_FILE), (json.dumps(facts, indent=2) + '\n').encode()
  )
  console.say('rows', f'tokenized and packed in {console.seconds(seconds)}')


def _gone(job, groups, threshold):
  """Numbers of the near-duplicates in each block that has some."""
  names = [
    blocks.block_name(i, number)
    for i in range(len(groups))
    for number in range(blocks.group_facts(job, i)['blocks'])
  ]
  owners = []

  def signatures():
    with console.progress('likeness', len(names)) as update:
      for done, name in enumerate(names):
        for number, values in enumerate(blocks.read_array(blocks.signatures_file(job, name))):
          owners.append((name, number))
          yield values
        update(done + 1, f'{len(owners):,} documents compared')

  gone = {}
  for index in duplicates.duplicates(signatures(), threshold):
    name, number = owners[index]
    gone.setdefault(name, []).append(number)
  console.say(
    'likeness',
    f'{sum(map(len, gone.values())):,} of {len(owners):,} documents are near-duplicates and left out',
  )
  return {name: tuple(numbers) for name, numbers in gone.items()}


def _write_store(path, work, name, pieces, recipe, tokenizer, beam):
  """Writes a store from the row files of finished blocks: `pieces` is a list of (file, rows) in order."""
  sizes = {'length': recipe.row_length, 'vocab_size': tokenizer.size, 'pad_id': tokenizer.pad_id}
  per_shard = rows_per_shard(recipe.row_length, tokenizer.size)
  ends = np.cumsum([0, *(rows for _, rows in pieces)])
  shards = []
  for first in range(0, int(ends[-1]), per_shard):
    last = min(first + per_shard, int(ends[-1]))
    touched = range(
      int(np.searchsorted(ends, first, 'right')) - 1, int(np.searchsorted(ends, last, 'left'))
    )
    shards.append(
      [(pieces[i][0], max(0, first - int(ends[i])), last - int(ends[i])) for i in touched]
    )
  noted = [
    file_access.join(work, 'shards', f'{name}-{index:05d}.json') for index in range(len(shards))
  ]
  write = functools.partial(_write_shard, file_access.join(path, name), sizes)
  numbered = list(zip(range(len(shards)), shards, noted, strict=True))
  if beam is None:
    workers.each(write, numbered)
  else:
    beam_pipeline.each(write, numbered, beam)
  for left in file_access.listing(file_access.join(path, name)):
    if left.endswith('.partial'):  # of a process that was killed while it wrote
      file_access.remove(file_access.join(path, name, left))
  facts = {'source': recipe.source, 'split': name}
  write_manifest(
    file_access.join(path, name),
    [json.loads(file_access.read_bytes(note)) for note in noted],
    **sizes,
    tokenizer_fingerprint=tokenizer.fingerprint,
    facts=facts,
  )


def _write_shard(folder, sizes, numbered):
  """Writes one shard and notes what it holds, in whatever process that is."""
  index, pieces, note = numbered
  facts = write_shard(
    folder, index, (blocks.read_array(file)[start:stop] for file, start, stop in pieces), **sizes
  )
  file_access.write_bytes(note, json.dumps(facts).encode())


def _train_tokenizer(folder, recipe, sources, groups):
  """The tokenizer of the training documents: learned before, or now."""
  with building(folder) as work:
    if work:
      expected = int(
        sum(
          group.bytes * _EXPANSION.get(os.path.splitext((*group.files, '')[0])[1], 1)
          for group in groups
        )
      )
      trained = tokenization.train_tokenizer(
        _training_texts(recipe, sources, groups), recipe.tokenizer_settings, expected
      )
      trained.save(folder)
      file_access.write_bytes(
        file_access.join(folder, FACTS_FILE), (json.dumps({'format': FORMAT}) + '\n').encode()
      )
      return trained
  tokenizer = tokenization.load_tokenizer(folder)
  console.say('tokenizer', f'reusing {tokenizer.size:,} tokens learned before')
  return tokenizer


def _training_texts(recipe, sources, groups):
  """The documents to train on; an error at the end where a split that is wanted has none."""
  documents = dict.fromkeys(blocks.SPLITS, 0)
  for group in groups:
    for text in corpora.documents(group, recipe.invalid_utf8):
      split = blocks.SPLITS[corpora.is_held_out(text, recipe.heldout_fraction)]
      documents[split] += 1
      if split == 'train':
        yield text
  _check_documents(documents, recipe, sources)


def _check_documents(documents, recipe, sources):
  """Raises UserError where a split that is wanted has no document; `documents` is their number by split."""
  if not sum(documents.values()):
    raise UserError(
      f"the corpus is empty: no text in {corpora.describe(sources)}; give files that hold some, or 'sample'"
    )
  if not documents['train'] or (recipe.heldout_fraction and not documents['heldout']):
    raise UserError(
      f'the corpus has too few documents to hold some out: heldout_fraction {recipe.heldout_fraction} of '
      f'{sum(documents.values())} leaves {documents["train"]} to train on and {documents["heldout"]} held out; part '
      f'the text into more documents (document_format is {recipe.document_format!r}) or choose another fraction'
    )


def _check_rows(facts, recipe, sources):
  """Raises UserError where a split or a source of a mixture has no row."""
  splits = [split for split in blocks.SPLITS if split in facts]
  _check_documents(
    dict.fromkeys(blocks.SPLITS, 0)
    | {split: facts[split]['documents'] + facts[split]['duplicate_documents'] for split in splits},
    recipe,
    sources,
  )
  for split in splits:
    if not facts[split]['rows']:
      raise UserError(
        f'the {"held-out" if split == "heldout" else "training"} documents of {corpora.describe(sources)} hold no '
        'token; give more text'
      )
  for entry in facts['sources']:
    if entry['store'] != 'train' and not entry['rows']:
      raise UserError(
        f'the source {entry["location"]!r} has no training document; give more text, or leave it out'
      )


def _recorded(recipe):
  """The recipe as facts have it; options only where the tokenizer has some."""
  plain = dataclasses.asdict(recipe)
  if not recipe.tokenizer_options:
    del plain['tokenizer_options']
  return plain


def _weighted(sources):
  return sources[0].weight is not None


def _hash(values):
  return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()
