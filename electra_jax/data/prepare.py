"""A corpus and a tokenizer to token stores, once; later runs find them again."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import numpy as np

from electra_jax import console
from electra_jax.config import UserError
from electra_jax.data import corpora, packing, tokenizers
from electra_jax.data.token_store import Store, open_store, write_store
from electra_jax.data.tokenizers import Tokenizer

# Part of every fingerprint: raise it when the same settings begin to give other tokens or rows.
RECIPE_VERSION = 1

_ENCODE_CHARACTERS = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """What training reads.

  Attributes:
    train: rows of the training documents.
    heldout: rows of the held-out documents, None where none were asked for.
    tokenizer: what made them.
    facts: what was counted, JSON values: for `train` and `heldout` each `documents`, `empty_documents` (they give no
      token), `characters`, `text_tokens` (without special tokens), `unknown_tokens`, `rows` and `padding_share`;
      `source` and `fingerprint` of it all.
    path: the folder that holds all of it.
  """

  train: Store
  heldout: Store | None
  tokenizer: Tokenizer
  facts: dict
  path: pathlib.Path


def default_cache() -> pathlib.Path:
  """Where prepared corpora are kept unless a person says otherwise."""
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'electra_jax'


def prepare(
  source: corpora.Source = corpora.SAMPLE,
  *,
  vocab_size: int,
  row_length: int,
  document_format: str = 'blank_line',
  heldout_fraction: float = 0.05,
  cache: str | os.PathLike | None = None,
  tokenizer: Tokenizer | None = None,
) -> Prepared:
  """Tokenizes a corpus into rows of training and held-out documents, or finds what an earlier run made.

  What is made is kept in the cache under a fingerprint of the corpus and these settings. Processes that start together
  wait for the first of them, and one that dies leaves nothing that would be read.

  Args:
    source, document_format: see `corpora.documents`.
    vocab_size: of the tokenizer to train on the training documents; of no effect where `tokenizer` is given.
    row_length: tokens a row.
    heldout_fraction: expected share of documents held out, chosen by their text; 0 holds out none.
    cache: the folder to keep it in; None is `default_cache()`.
    tokenizer: one to use in place of training one.

  Raises:
    UserError: what `corpora.documents`, `train_sentencepiece` and `packing.pack` raise; a split without documents; a
      fraction out of range; a cache that cannot be written.
  """
  if not 0 <= heldout_fraction < 1:
    raise UserError(f'heldout_fraction is {heldout_fraction}; it can be from 0 up to, not including, 1')
  packing.check_row_length(row_length)
  cache = pathlib.Path(cache) if cache is not None else default_cache()
  corpus = _Corpus(source, document_format, heldout_fraction)
  identity = [RECIPE_VERSION, corpora.corpus_identity(source), document_format, heldout_fraction]
  vocabulary = f'given {tokenizer.fingerprint}' if tokenizer else f'sentencepiece {vocab_size}'
  fingerprint = _hash([*identity, vocabulary, row_length, packing.MIN_PIECE])
  path = cache / 'rows' / fingerprint
  made = False
  if not path.exists():
    console.say('corpus', f'{corpora.describe(source)}, {corpora.corpus_bytes(source) / 1e6:,.1f} MB on disk')
    if tokenizer is None:
      tokenizer = _tokenizer(cache / 'tokenizers' / _hash([*identity, vocabulary]), corpus, vocab_size)
    with _building(path) as partial:
      made = partial is not None
      if made:
        _make(partial, fingerprint, corpus, tokenizer, row_length)
  prepared = _open(path)
  if not made:
    console.say('corpus', f'reusing {corpora.describe(source)} as prepared before')
  for split, title in (('train', 'training'), ('heldout', 'held out')):
    if split in prepared.facts:
      console.say(title, _split_line(prepared.facts[split], row_length))
  console.say('kept in', str(path))
  return prepared


@dataclasses.dataclass(frozen=True)
class _Corpus:
  source: corpora.Source
  document_format: str
  heldout_fraction: float

  def documents(self, heldout: bool, advance=None) -> Iterator[str]:
    """Documents of one of the two splits; an error at the end where a split that is wanted has none."""
    counts = {True: 0, False: 0}
    for text in corpora.documents(self.source, self.document_format, advance):
      split = corpora.is_held_out(text, self.heldout_fraction)
      counts[split] += 1
      if split == heldout:
        yield text
    if not counts[False] or (self.heldout_fraction and not counts[True]):
      raise UserError(
        f'the corpus has too few documents to hold some out: heldout_fraction {self.heldout_fraction} of '
        f'{sum(counts.values())} leaves {counts[False]} to train on and {counts[True]} held out; part the text into '
        f'more documents (document_format is {self.document_format!r}) or choose another fraction'
      )


def _tokenizer(path, corpus, vocab_size):
  with contextlib.nullcontext() if path.exists() else _building(path) as partial:
    if partial is not None:
      tokenizers.train_sentencepiece(corpus.documents(heldout=False), vocab_size).save(partial)
  tokenizer = tokenizers.load_tokenizer(path)
  if partial is None:
    console.say('tokenizer', f'reusing {tokenizer.size:,} tokens learned before')
  return tokenizer


def _make(folder, fingerprint, corpus, tokenizer, row_length):
  """Fills a folder with both stores, the tokenizer and the facts."""
  start = time.monotonic()
  source = corpora.describe(corpus.source)
  facts = {'source': source, 'fingerprint': fingerprint}
  for split in ('train', 'heldout') if corpus.heldout_fraction else ('train',):
    facts[split] = _write_split(folder / split, corpus, split == 'heldout', tokenizer, row_length, source)
  tokenizer.save(folder / 'tokenizer')
  (folder / 'facts.json').write_text(json.dumps(facts, indent=2, ensure_ascii=False) + '\n', 'utf-8')
  console.say('rows', f'tokenized and packed in {console.seconds(time.monotonic() - start)}')


def _write_split(path, corpus, heldout, tokenizer, row_length, source):
  """Writes one store and returns what was counted on the way."""
  facts = {'documents': 0, 'empty_documents': 0, 'characters': 0, 'text_tokens': 0, 'unknown_tokens': 0}
  with console.progress('held out' if heldout else 'rows', corpora.corpus_bytes(corpus.source)) as update:
    read = 0

    def advance(count):
      nonlocal read
      read += count
      update(read, f"{facts['documents']:,} documents, {facts['text_tokens'] / 1e6:,.1f} million tokens")

    ids = _encoded(corpus.documents(heldout, advance), tokenizer, facts)
    rows = packing.pack(ids, row_length, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    stored = {'source': source, 'document_format': corpus.document_format, 'heldout': heldout}
    stored |= {'heldout_fraction': corpus.heldout_fraction, 'facts': facts}
    store = write_store(path, rows, row_length, tokenizer.size, tokenizer.pad_id, tokenizer.fingerprint, stored)
  if store.rows == 0:
    raise UserError(f"the {'held-out' if heldout else 'training'} documents of {source} hold no token; give more text")
  return facts | {'rows': store.rows, 'padding_share': 1 - store.tokens / store.matrix.size}


def _encoded(texts, tokenizer, facts):
  """Token ids of each document, counted into `facts`; encoded by the batch, which uses all cores."""
  batch, characters = [], 0
  for text in texts:
    batch.append(text)
    characters += len(text)
    if characters >= _ENCODE_CHARACTERS:
      yield from _encode_batch(batch, tokenizer, facts)
      batch, characters = [], 0
  yield from _encode_batch(batch, tokenizer, facts)


def _encode_batch(batch, tokenizer, facts):
  for text, encoded in zip(batch, tokenizer.encode_batch(batch), strict=True):
    ids = np.asarray(encoded, np.int32)
    facts['documents'] += 1
    facts['empty_documents'] += not len(ids)
    facts['characters'] += len(text)
    facts['text_tokens'] += len(ids)
    facts['unknown_tokens'] += int((ids == tokenizer.unk_id).sum())
    yield ids


def _split_line(facts, row_length):
  line = (
    f"{facts['documents']:,} documents, {facts['text_tokens']:,} tokens in {facts['rows']:,} rows of {row_length} "
    f"({facts['padding_share']:.2%} padding"
  )
  if facts['unknown_tokens']:
    line += f", {facts['unknown_tokens'] / facts['text_tokens']:.3%} unknown"
  if facts['empty_documents']:
    line += f", {facts['empty_documents']:,} documents without a token"
  return line + ')'


def _open(path):
  try:
    facts = json.loads((path / 'facts.json').read_text('utf-8'))
  except (OSError, ValueError):
    raise UserError(f'the prepared corpus {str(path)!r} is damaged: no readable facts.json; delete it') from None
  tokenizer = tokenizers.load_tokenizer(path / 'tokenizer')
  stores = {split: open_store(path / split) for split in ('train', 'heldout') if split in facts}
  for store in stores.values():
    if store.tokenizer_fingerprint != tokenizer.fingerprint:
      raise UserError(f'the tokenizer in {str(path)!r} is not the one that made its rows; delete the folder')
  return Prepared(stores['train'], stores.get('heldout'), tokenizer, facts, path)


@contextlib.contextmanager
def _building(path):
  """Yields a folder to fill, which becomes `path` at the end; None where another process has made `path` meanwhile."""
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  with contextlib.ExitStack() as stack:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(path.with_name(f'.{path.name}.lock'), 'w'))
      if _lock(lock):
        for stale in path.parent.glob(f'.{path.name}.*.partial'):  # of a process that died
          shutil.rmtree(stale, ignore_errors=True)
      if path.exists():
        partial = None
      else:
        partial.mkdir()
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
    except OSError as error:
      raise UserError(f'the cache {str(path.parent)!r} cannot be written: {error.strerror}; name another') from None
    yield partial
    if partial is not None:
      try:
        os.rename(partial, path)
      except OSError:
        if not path.exists():  # where locks do not work, another process may have been first, and that is as good
          raise


def _lock(file):
  """Waits until this process alone holds the lock; False where files cannot be locked."""
  try:
    import fcntl
  except ImportError:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    console.say('waiting', 'for another run that is preparing the same corpus')
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError:
    return False
  return True


def _hash(values):
  return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()
