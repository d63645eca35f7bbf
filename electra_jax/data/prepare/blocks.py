"""The unit of preparation: a block of neighbouring documents, whose rows are made by themselves, whoever makes them.

Blocks begin and end at the same documents whatever the number of workers, and what is made of one depends on nothing
outside of it. So the rows are the same for one process, many, or a cluster, and a killed run goes on block by block.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Iterator

import numpy as np

from electra_jax import file_access
from electra_jax.data.corpus import corpora, duplicates
from electra_jax.data.prepare import packing
from electra_jax.data.tokenizers.tokenization import load_tokenizer
from electra_jax.errors import UserError

# Large enough that the padding at a block's end is nothing (half a row in a million tokens), small enough to share out.
BLOCK_CHARACTERS = 4_000_000

LONGEST = 5  # documents that the report lists
_BEGINNING = 60  # characters of each shown there
SPLITS = ('train', 'heldout')
COUNTS = ('documents', 'empty_documents', 'duplicate_documents', 'duplicate_characters', 'characters', 'text_tokens',
          'unknown_tokens', 'dropped_tokens', 'rows', 'tokens')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
  """What workers need to know; small, and the same for all of them.

  Attributes:
    folder: where finished blocks are kept, a path or an address.
    tokenizer: the folder of the tokenizer.
    tokenizer_fingerprint: of it, so that one that stood in the same folder before is not taken for it.
    row_length: tokens a row.
    row_format: one of packing.ROW_FORMATS.
    seed: of segment pairs.
    heldout_fraction: of the documents.
    invalid_utf8: 'refuse' or 'replace'.
    gone: numbers of the near-duplicate documents of each block that has some, by block name.
  """

  folder: str
  tokenizer: str
  tokenizer_fingerprint: str
  row_length: int
  row_format: str
  seed: int
  heldout_fraction: float
  invalid_utf8: str
  gone: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

  def of(self, block: str) -> 'Job':
    """What the worker of one block needs to know."""
    return dataclasses.replace(self, gone={block: self.gone[block]} if block in self.gone else {})


@dataclasses.dataclass(frozen=True)
class Block:
  """Documents to be made into rows."""

  group: int
  number: int
  texts: list[str]

  @property
  def name(self) -> str:
    return block_name(self.group, self.number)


def block_name(group: int, number: int) -> str:
  """Names sort as the documents do."""
  return f'{group:05d}-{number:06d}'


def read_blocks(job: Job, index: int, group: corpora.Group, advance=None) -> Iterator[Block]:
  """Reads a group's documents as blocks; at its end notes what was counted, so that it need not be read again."""
  texts, characters, number, counts = [], 0, 0, {}
  for text in corpora.documents(group, job.invalid_utf8, advance, counts):
    texts.append(text)
    characters += len(text)
    if characters >= BLOCK_CHARACTERS:
      yield Block(index, number, texts)
      texts, characters, number = [], 0, number + 1
  if texts:
    yield Block(index, number, texts)
    number += 1
  _write_json(
    file_access.join(job.folder, 'groups', f'{index:05d}.json'),
    {'blocks': number, 'counts': counts},
  )


def group_facts(job: Job, index: int) -> dict | None:
  """What `read_blocks` noted of a group: 'blocks' (their number) and 'counts'; None where it has not ended."""
  return _read_json(file_access.join(job.folder, 'groups', f'{index:05d}.json'))


def block_facts(job: Job, name: str) -> dict | None:
  """What was counted of a finished block, by split; None of one that is not finished."""
  return _read_json(file_access.join(job.folder, 'rows', f'{name}.json'))


def rows_file(job: Job, name: str, split: str) -> str:
  return file_access.join(job.folder, 'rows', f'{name}.{split}.npy')


def sign(job: Job, block: Block, threads: int | None = 1) -> dict:
  """Writes the MinHash signatures of a block's documents, uint32 [documents, permutations]; counts nothing."""
  del threads  # only for tokenizers
  path = signatures_file(job, block.name)
  if not file_access.exists(path):
    _write_array(path, np.stack([duplicates.signature(text) for text in block.texts]))
  return {}


def signatures_file(job: Job, name: str) -> str:
  return file_access.join(job.folder, 'signatures', f'{name}.npy')


def make_rows(job: Job, block: Block, threads: int | None = 1) -> dict:
  """Writes a block's rows, by split, and returns what was counted; a block that is finished is left as it is."""
  if facts := block_facts(job, block.name):
    return facts
  tokenizer = worker_tokenizer(job.tokenizer, job.tokenizer_fingerprint)
  gone = set(job.gone.get(block.name, ()))
  chosen = {split: [] for split in SPLITS}
  facts = {split: dict.fromkeys(COUNTS, 0) | {'longest': []} for split in SPLITS}
  for number, text in enumerate(block.texts):
    split = SPLITS[corpora.is_held_out(text, job.heldout_fraction)]
    if number in gone:
      facts[split]['duplicate_documents'] += 1
      facts[split]['duplicate_characters'] += len(text)
    else:
      chosen[split].append(text)
  for split, texts in chosen.items():
    rows = _rows(job, block, split, texts, tokenizer, facts[split], threads)
    facts[split]['rows'] = len(rows)
    facts[split]['tokens'] = int((rows != tokenizer.pad_id).sum())
    dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
    if len(rows):
      _write_array(rows_file(job, block.name, split), rows.astype(dtype))
  _write_json(
    file_access.join(job.folder, 'rows', f'{block.name}.json'), facts
  )  # last: it says that the block is finished
  return facts


def add_facts(total: dict, facts: dict) -> dict:
  """Adds the counts of one split of a block to those of all before it."""
  for name in COUNTS:
    total[name] = total.get(name, 0) + facts[name]
  total['longest'] = sorted(
    [*total.get('longest', []), *facts['longest']], key=lambda item: -item[0]
  )[:LONGEST]
  return total


@functools.lru_cache(maxsize=2)
def worker_tokenizer(folder: str, fingerprint: str):
  """The tokenizer of a folder, opened once a process."""
  tokenizer = load_tokenizer(folder)
  if tokenizer.fingerprint != fingerprint:
    raise UserError(
      f'the tokenizer in {folder!r} has changed while rows were made with it; prepare the corpus again'
    )
  return tokenizer


def _rows(job, block, split, texts, tokenizer, facts, threads):
  """Rows `[n, row_length]` of the texts of one split, counted into `facts`."""
  ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
  if job.row_format == 'segment_pair':
    lines = [[line for line in text.split('\n') if line.strip()] for text in texts]
    encoded = iter(
      tokenizer.encode_arrays([line for document in lines for line in document], threads)
    )
    documents = [[next(encoded) for _ in document] for document in lines]
    rng = np.random.Generator(
      np.random.Philox(
        key=[job.seed % 2**64, SPLITS.index(split)], counter=[0, 0, block.group, block.number]
      )
    )
    rows = np.array(
      list(packing.segment_pairs(documents, job.row_length, *ids, rng, facts)), np.int32
    ).reshape(-1, job.row_length)
    tokens = [np.concatenate([*document, np.zeros(0, np.int32)]) for document in documents]
  else:
    tokens = tokenizer.encode_arrays(texts, threads)
    rows = packing.pack(tokens, job.row_length, *ids)
  for text, encoded in zip(texts, tokens, strict=True):
    facts['documents'] += 1
    facts['empty_documents'] += not len(encoded)
    facts['characters'] += len(text)
    facts['text_tokens'] += len(encoded)
    facts['unknown_tokens'] += int((encoded == tokenizer.unk_id).sum())
  longest = sorted(zip(map(len, tokens), texts, strict=True), key=lambda item: -item[0])[:LONGEST]
  facts['longest'] = [
    [length, ' '.join(text[: 4 * _BEGINNING].split())[:_BEGINNING]] for length, text in longest
  ]
  return rows


def _write_array(path, array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  file_access.write_bytes(path, buffer.getvalue())


def read_array(path: str) -> np.ndarray:
  """An array that a worker wrote; mapped, not read, where it is on this machine."""
  if file_access.is_remote(path):
    return np.load(io.BytesIO(file_access.read_bytes(path)))
  return np.load(path, mmap_mode='r')


def _write_json(path, value):
  file_access.write_bytes(
    path, json.dumps(value, ensure_ascii=False).encode('utf-8', 'surrogatepass')
  )


def _read_json(path):
  return json.loads(file_access.read_bytes(path)) if file_access.exists(path) else None
