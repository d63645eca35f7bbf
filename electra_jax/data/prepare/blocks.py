"""Blocks of neighboring documents, whose rows are made independently of each other.

A block starts and ends at the same documents for any number of workers, and what is made of it
depends on nothing else. The rows are therefore the same for one process, several or a cluster, and
a killed preparation resumes block by block.
"""

import dataclasses
import functools
import io
import json
import math
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from electra_jax import file_access, json_reader, registry
from electra_jax.data.corpus import corpora, duplicates
from electra_jax.data.prepare import packing
from electra_jax.data.prepare.heldout_split import SPLITS, HeldoutSplit
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.tokenizers import character_losses
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.data.tokenizers.tokenization import Tokenizer, load_tokenizer
from electra_jax.errors import UserError

# Large enough that padding at the end of a block does not matter (half a row per million tokens),
# small enough to distribute.
BLOCK_CHARACTERS = 4_000_000

# Characters of a block that are compared with their tokens, which takes longer than encoding: of
# the first block of a group of files, which may be all, and of the others.
FIRST_SAMPLE = 300_000
LATER_SAMPLE = 8_000

LONGEST = 5  # longest documents in the report
_BEGINNING_CHARACTERS = 60  # of each, shown in the report
COUNTS = (
  'documents',
  'empty_documents',
  'duplicate_documents',
  'duplicate_characters',
  'characters',
  'text_tokens',
  'unknown_tokens',
  'dropped_tokens',
  'rows',
  'tokens',
)

Facts = dict[str, Any]  # what was counted, as JSON values


@dataclasses.dataclass(frozen=True)
class PreparationJob:
  """What workers need to know; small, and the same for all blocks.

  Attributes:
    folder: where finished blocks are stored, a path or an address.
    tokenizer: the folder of the tokenizer.
    tokenizer_fingerprint: of the tokenizer, so that another one in the same folder is noticed.
    recipe: the settings.
    dropped: indices of the near-duplicates in each block that has some, by the block's name.
    plugins: files of user code that register corpus formats and tokenizers.
    split: which documents are held out; None for the fraction of the recipe.
  """

  folder: str
  tokenizer: str
  tokenizer_fingerprint: str
  recipe: CorpusRecipe
  dropped: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  plugins: tuple[str, ...] = ()
  split: HeldoutSplit | None = None

  def for_block(self, name: str) -> 'PreparationJob':
    """What the worker of one block needs to know."""
    dropped = {name: self.dropped[name]} if name in self.dropped else {}
    return dataclasses.replace(self, dropped=dropped)

  def parts(self, source: int, text: str) -> Iterator[tuple[str, str]]:
    """See `HeldoutSplit.parts`."""
    split = self.split or HeldoutSplit((self.recipe.heldout_fraction,) * (source + 1))
    return split.parts(source, text)


@dataclasses.dataclass(frozen=True)
class Block:
  """Documents that are made into rows.

  Attributes:
    group: index of the group of files that they are read from.
    number: of the block in its group.
    texts: the documents.
    source: index of their source.
  """

  group: int
  number: int
  texts: list[str]
  source: int = 0

  @property
  def name(self) -> str:
    """The name of the block's files."""
    return block_name(self.group, self.number)


Stage = Callable[..., Facts]  # `sign` or `make_rows`


def block_name(group: int, number: int) -> str:
  """The name of a block; names sort in the order of the documents."""
  return f'{group:05d}-{number:06d}'


def run_stage(stage: Stage, job: PreparationJob, block: Block, threads: int | None = 1) -> Facts:
  """Runs a stage for one block, in any process of any machine."""
  registry.load_plugins(job.plugins)
  return stage(job, block, threads)


#### Reading ####


def read_blocks(
  job: PreparationJob,
  index: int,
  group: corpora.Group,
  advance: Callable[[int], None] | None = None,
) -> Iterator[Block]:
  """Yields the blocks of a group, and records at its end how many there are and what was counted.

  Args:
    job: the job.
    index: of the group.
    group: the files to read.
    advance: is called with the number of bytes read since the last call.
  """
  registry.load_plugins(job.plugins)
  texts: list[str] = []
  counts: dict[str, int] = {}
  characters = 0
  number = 0
  for text in corpora.documents(group, job.recipe.invalid_utf8, advance, counts):
    texts.append(text)
    characters += len(text)
    if characters >= BLOCK_CHARACTERS:
      yield Block(index, number, texts, group.source_index)
      texts = []
      characters = 0
      number += 1
  if texts:
    yield Block(index, number, texts, group.source_index)
    number += 1
  _write_json(_group_file(job, index), {'blocks': number, 'counts': counts})


def group_facts(job: PreparationJob, index: int) -> Facts | None:
  """What `read_blocks` recorded of a group: 'blocks' (their number) and 'counts'.

  Returns:
    None if the group was not read to its end.
  """
  return _read_json(_group_file(job, index))


def _group_file(job: PreparationJob, index: int) -> str:
  return file_access.join(job.folder, 'groups', f'{index:05d}.json')


#### Stage: signatures ####


def sign(job: PreparationJob, block: Block, threads: int | None = 1) -> Facts:
  """Writes the MinHash signatures of a block, uint32 `[documents, permutations]`.

  Args:
    job: the job.
    block: the documents.
    threads: unused.

  Returns:
    Nothing counted.
  """
  del threads
  path = signatures_file(job, block.name)
  if not file_access.exists(path):
    _write_array(path, np.stack([duplicates.signature(text) for text in block.texts]))
  return {}


def signatures_file(job: PreparationJob, name: str) -> str:
  """The file of a block's signatures."""
  return file_access.join(job.folder, 'signatures', f'{name}.npy')


#### Stage: rows ####


def make_rows(job: PreparationJob, block: Block, threads: int | None = 1) -> Facts:
  """Writes the rows of a block, by split. A finished block is not changed.

  Args:
    job: the job.
    block: the documents.
    threads: of the tokenizer; None for all cores.

  Returns:
    What was counted, by split.
  """
  if finished := block_facts(job, block.name):
    return finished
  tokenizer = worker_tokenizer(job.tokenizer, job.tokenizer_fingerprint)
  dropped = set(job.dropped.get(block.name, ()))
  chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
  facts: Facts = {split: dict.fromkeys(COUNTS, 0) | {'longest': []} for split in SPLITS}
  for number, text in enumerate(block.texts):
    for split, part in job.parts(block.source, text):
      if number in dropped:
        facts[split]['duplicate_documents'] += 1
        facts[split]['duplicate_characters'] += len(part)
      else:
        chosen[split].append(part)
  dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32
  for split, texts in chosen.items():
    rows, starts = _rows(job, block, split, texts, tokenizer, facts[split], threads)
    facts[split]['rows'] = len(rows)
    facts[split]['tokens'] = int((rows != tokenizer.pad_id).sum())
    if len(rows):
      if is_evaluated(job.recipe, split):
        _write_array(starts_file(rows_file(job, block.name, split)), np.array(starts, np.int64))
      _write_array(rows_file(job, block.name, split), rows.astype(dtype))
  _write_json(_facts_file(job, block.name), facts)  # last, because it marks the block as finished
  return facts


def is_evaluated(recipe: CorpusRecipe, split: str) -> bool:
  """Whether rows of a split are evaluated: those held out, or all where none are held out."""
  return split == 'heldout' or not recipe.heldout_fraction


def block_facts(job: PreparationJob, name: str) -> Facts | None:
  """What was counted in a finished block, by split; None if it is not finished."""
  return _read_json(_facts_file(job, name))


def rows_file(job: PreparationJob, name: str, split: str) -> str:
  """The file of a block's rows, int `[rows, row_length]`."""
  return file_access.join(job.folder, 'rows', f'{name}.{split}.npy')


def starts_file(rows: str) -> str:
  """The file of the places of the documents in a file of rows, int64 `[documents]`.

  It exists for held-out rows, unless the block was finished by version 0.1.0.
  """
  return f'{rows.removesuffix(".npy")}.documents.npy'


def _facts_file(job: PreparationJob, name: str) -> str:
  return file_access.join(job.folder, 'rows', f'{name}.json')


def add_facts(total: Facts, facts: Facts) -> Facts:
  """Adds the counts of one split of a block to a total, which is returned."""
  for name in COUNTS:
    total[name] = total.get(name, 0) + facts[name]
  longest = [*total.get('longest', []), *facts['longest']]
  total['longest'] = sorted(longest, key=lambda item: -item[0])[:LONGEST]
  total['losses'] = add_losses(total, facts)
  return total


def add_losses(total: Facts, facts: Facts) -> Facts:
  """The sum of the character losses of two counts; version 0.1.0 counted none."""
  losses = CharacterLosses()
  for counted in (total, facts):
    if 'losses' in counted:
      losses.add(CharacterLosses.from_plain(counted['losses']))
  return losses.plain()


@functools.lru_cache(maxsize=2)
def worker_tokenizer(folder: str, fingerprint: str) -> Tokenizer:
  """The tokenizer in a folder, opened once per process.

  Raises:
    UserError: its fingerprint is another one.
  """
  tokenizer = load_tokenizer(folder)
  if tokenizer.fingerprint != fingerprint:
    raise UserError(
      f'the tokenizer in {folder!r} changed while rows were made with it; prepare the corpus again'
    )
  return tokenizer


def _rows(
  job: PreparationJob,
  block: Block,
  split: str,
  texts: list[str],
  tokenizer: Tokenizer,
  facts: Facts,
  threads: int | None,
) -> tuple[np.ndarray, list[int]]:
  """Rows `[rows, row_length]` of the texts of one split, and the places of its documents in them.

  What is counted is added to `facts`.
  """
  if job.recipe.row_format == 'segment_pair':
    rng = np.random.Generator(
      np.random.Philox(
        key=[job.recipe.seed % 2**64, SPLITS.index(split)],
        counter=[0, 0, block.group, block.number],
      )
    )
    tokens, rows, starts = _segment_pair_rows(job, texts, tokenizer, rng, facts, threads)
  else:
    tokens = tokenizer.encode_arrays(texts, threads)
    starts = []
    rows = packing.pack(tokens, job.recipe.row_length, *_row_ids(tokenizer), document_starts=starts)
  for text, encoded in zip(texts, tokens, strict=True):
    facts['documents'] += 1
    facts['empty_documents'] += not len(encoded)
    facts['characters'] += len(text)
    facts['text_tokens'] += len(encoded)
    facts['unknown_tokens'] += int((encoded == tokenizer.unk_id).sum())
  facts['losses'] = _losses(block, texts, tokenizer, threads).plain()
  longest = sorted(zip(map(len, tokens), texts, strict=True), key=lambda item: -item[0])[:LONGEST]
  facts['longest'] = [[length, _beginning(text)] for length, text in longest]
  return rows, starts


def _losses(
  block: Block, texts: list[str], tokenizer: Tokenizer, threads: int | None
) -> CharacterLosses:
  """What the tokenizer loses of the texts of one split, counted in a sample of the block."""
  characters = sum(map(len, texts))
  of_block = max(1, sum(map(len, block.texts)))
  limit = LATER_SAMPLE if block.number else FIRST_SAMPLE
  chosen = character_losses.sample_texts(texts, -(-limit * characters // of_block))
  return character_losses.count(tokenizer, chosen, threads=threads)


def _segment_pair_rows(
  job: PreparationJob,
  texts: list[str],
  tokenizer: Tokenizer,
  rng: np.random.Generator,
  facts: Facts,
  threads: int | None,
) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
  """(tokens of each text, rows, places of documents) in the format segment_pair.

  Its segments are made of lines.
  """
  lines = [[line for line in text.split('\n') if line.strip()] for text in texts]
  encoded = iter(
    tokenizer.encode_arrays([line for document in lines for line in document], threads)
  )
  documents = [[next(encoded) for _ in document] for document in lines]
  length = job.recipe.row_length
  made = list(packing.segment_pairs(documents, length, *_row_ids(tokenizer), rng, facts))
  rows = np.array([row for _, row in made], np.int32).reshape(-1, length)
  _, firsts = np.unique([index for index, _ in made], return_index=True)
  tokens = [np.concatenate([*document, np.zeros(0, np.int32)]) for document in documents]
  return tokens, rows, (firsts * length).tolist()


def _row_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
  """The ids that packing adds."""
  return tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id


def _beginning(text: str) -> str:
  return ' '.join(text[: 4 * _BEGINNING_CHARACTERS].split())[:_BEGINNING_CHARACTERS]


#### Files ####

# What NumPy raises for damaged headers, which are literals of Python.
_DAMAGE = (ValueError, TypeError, EOFError, OverflowError, SyntaxError, tokenize.TokenError)


def read_array(path: str) -> np.ndarray:
  """An array that a worker wrote; a local one is mapped and not read.

  Raises:
    UserError: the file is damaged. Its header cannot make the process execute code
      or allocate memory.
  """
  try:
    if not file_access.is_remote(path):
      mapped: np.ndarray = np.load(path, mmap_mode='r', allow_pickle=False)
      return mapped
    content = file_access.read_bytes(path)
    _check_header(content)
    remote: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return remote
  except (*_DAMAGE, OSError) as error:
    raise UserError(
      f'{path!r} is damaged ({file_access.reason(error)}); delete the folder and prepare the '
      'corpus again.'
    ) from None


def _check_header(content: bytes) -> None:
  """Raises ValueError where an array is claimed to be larger than the file."""
  file = io.BytesIO(content)
  read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  version = np.lib.format.read_magic(file)
  if version not in read:
    raise ValueError(f'the format has version {version}')
  shape, _, dtype = read[version](file)
  if math.prod(shape) * dtype.itemsize > len(content):
    raise ValueError(f'{len(content):,} bytes are not an array of shape {shape}')


def _write_array(path: str, array: np.ndarray) -> None:
  buffer = io.BytesIO()
  np.save(buffer, array)
  file_access.write_bytes(path, buffer.getvalue())


def _write_json(path: str, value: Facts) -> None:
  content = json.dumps(value, ensure_ascii=False)
  file_access.write_bytes(path, content.encode('utf-8', 'surrogatepass'))


def _read_json(path: str) -> Facts | None:
  if not file_access.exists(path):
    return None
  value: Facts = json_reader.read(path, {}, rules=json_reader.OWN)
  return value
