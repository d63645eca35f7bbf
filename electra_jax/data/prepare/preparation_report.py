"""The counts of a preparation: added up over its blocks, and shown on the console and as a page."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from electra_jax import console, file_access
from electra_jax.data.corpus import corpora
from electra_jax.data.corpus.readers import SKIPPED
from electra_jax.data.prepare import blocks
from electra_jax.data.prepare.blocks import Facts
from electra_jax.data.prepare.heldout_split import SPLITS
from electra_jax.data.tokenizers import loss_report
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.data.tokenizers.tokenization import Tokenizer

# A part of a store: a file of rows, and its number of rows.
Part = tuple[str, int]

_READ_COUNTS = ('blank_documents', 'documents_with_replacements', 'replaced_bytes')
# Columns of the table of sources.
_SOURCE_COLUMNS = {
  'documents': 'documents',
  'characters': 'characters',
  'tokens': 'text_tokens',
  'rows': 'rows',
  'blank': 'blank_documents',
  'bytes not UTF-8': 'replaced_bytes',
}


@dataclasses.dataclass(frozen=True)
class GatheredFacts:
  """What all blocks counted, and where their rows are.

  Attributes:
    facts: JSON values. `stores`: names of the stores. `train` and, if documents are held out,
      `heldout`: `documents`, `empty_documents` without a token, `duplicate_documents` and
      `duplicate_characters` dropped as near-duplicates, `characters`, `text_tokens` without special
      tokens, `unknown_tokens` among them, `dropped_tokens` that segment_pair cut off, `rows`,
      `tokens` with special tokens, `padding_share`, `longest` documents as [tokens, beginning],
      `losses`: characters kept, unknown and so on, counted in a sample, as of
      `CharacterLosses.plain`.
      `sources`: location, weight and store of each, what reading it counted (`blank_documents`,
      `documents_with_replacements`, `replaced_bytes`), the counts of its training documents, and
      `heldout_rows`; `skipped`: files that hold no corpus, by what they are, if there are some.
    parts: of each store, in order.
  """

  facts: Facts
  parts: dict[str, list[Part]]


def gather_facts(
  job: blocks.PreparationJob,
  groups: Sequence[corpora.Group],
  sources: Sequence[corpora.CorpusSource],
) -> GatheredFacts:
  """Adds up what finished blocks counted. Sources with weights have a store each.

  Args:
    job: the job.
    groups: all groups of the corpus.
    sources: all sources of the corpus.
  """
  weighted = sources[0].weight is not None
  splits: dict[str, Facts] = {split: {} for split in SPLITS}
  entries: list[dict[str, Any]] = [
    {
      'location': source.location,
      'weight': source.weight,
      'store': f'train-{i:02d}' if weighted else 'train',
      'heldout_rows': 0,
      **dict.fromkeys(_READ_COUNTS, 0),
      **dict.fromkeys(blocks.COUNTS, 0),
    }
    for i, source in enumerate(sources)
  ]
  parts: dict[str, list[Part]] = {entry['store']: [] for entry in entries}
  parts['heldout'] = []
  for index, group in enumerate(groups):
    read = _recorded(blocks.group_facts(job, index))
    entry = entries[group.source_index]
    for name in _READ_COUNTS:
      entry[name] += read['counts'].get(name, 0)
    for name, number in read['counts'].items():
      if name.startswith(SKIPPED):
        skipped = entry.setdefault('skipped', {})
        kind = name.removeprefix(SKIPPED)
        skipped[kind] = skipped.get(kind, 0) + number
    for number in range(read['blocks']):
      block = blocks.block_name(index, number)
      facts = _recorded(blocks.block_facts(job, block))
      for split, total in splits.items():
        blocks.add_facts(total, facts[split])
        store = entry['store'] if split == 'train' else 'heldout'
        if facts[split]['rows']:
          parts[store].append((blocks.rows_file(job, block, split), facts[split]['rows']))
      entry['heldout_rows'] += facts['heldout']['rows']
      for name in blocks.COUNTS:
        entry[name] += facts['train'][name]
      entry['losses'] = blocks.add_losses(entry, facts['train'])
  for entry, of_source in zip(entries, corpora.skipped_files(sources), strict=True):
    if of_source:
      entry['skipped'] = entry.get('skipped', {}) | of_source
  for total in splits.values():
    # All counts, even if there is no block.
    blocks.add_facts(total, dict.fromkeys(blocks.COUNTS, 0) | {'longest': []})
    total['padding_share'] = _padding_share(total, job.recipe.row_length)
  if not (job.split.holds_out if job.split else job.recipe.heldout_fraction):
    del splits['heldout'], parts['heldout']
  return GatheredFacts({'stores': list(parts), **splits, 'sources': entries}, parts)


def _recorded(facts: Facts | None) -> Facts:
  assert facts is not None  # every block is finished
  return facts


#### Lost characters ####


def add_remedies(facts: Facts, tokenizer: Tokenizer) -> None:
  """Adds to each source what helps where the tokenizer loses characters of it, as `remedy`."""
  for entry in facts['sources']:
    losses = losses_of(entry)
    if losses.lost_share >= loss_report.LOSS_WARNING:
      entry['remedy'] = loss_report.loss_remedy(losses, tokenizer)


def check_losses(facts: Facts) -> None:
  """Refuses a corpus with a source of which the tokenizer loses much.

  Raises:
    UserError: with the source and what helps.
  """
  for entry in facts['sources']:
    what = f'the source {entry["location"]!r}'
    remedy = entry.get('remedy', '')
    loss_report.require_kept(losses_of(entry), what, remedy, loss_report.CORPUS_FLAG)


def loss_warnings(facts: Facts) -> list[str]:
  """Sentences about sources of which the tokenizer loses characters, and about truncation."""
  found = []
  for entry in facts['sources']:
    what = f'the source {entry["location"]!r}'
    found += loss_report.loss_sentences(losses_of(entry), what, entry.get('remedy', ''))
  total = _total(facts, 1)
  truncated = total['dropped_tokens'] / max(1, total['text_tokens'])
  if truncated >= loss_report.TRUNCATION_WARNING:
    found.append(
      f'{truncated:.1%} of the text is cut off by segment_pair; use config.data.row_format=packed '
      'or longer rows (config.sequence_length)'
    )
  return found


def losses_of(facts: Facts) -> CharacterLosses:
  """The character losses of a split or a source; none for those of version 0.1.0."""
  plain = facts.get('losses')
  return CharacterLosses.from_plain(plain) if plain else CharacterLosses()


def loss_rows(facts: Facts) -> list[list[str]]:
  """Rows of the table of characters by what became of them, its header first.

  Args:
    facts: of a finished corpus, or what a run keeps of them.
  """
  return loss_report.fates_table(losses_of(_total(facts, 1)))


def source_loss_rows(sources: Sequence[dict[str, Any]]) -> list[list[str]]:
  """Rows of the table of character losses by source, its header first."""
  return loss_report.source_table([(source['location'], losses_of(source)) for source in sources])


def loss_note(facts: Facts) -> str:
  """How many characters were compared with their tokens."""
  total = _total(facts, 1)
  counted = losses_of(total).characters
  if counted >= total['characters']:
    return f'All {counted:,} characters were compared with their tokens.'
  return (
    f'A sample of {counted:,} of {total["characters"]:,} characters was compared with its tokens.'
  )


#### The console ####


def console_lines(facts: Facts) -> list[tuple[str, str]]:
  """(label, text): a line per split, and one for each kind of text that was lost or replaced."""
  length = facts['recipe']['row_length']
  lines = []
  for split, title in (('train', 'training'), ('heldout', 'held out')):
    if split in facts:
      lines.append((title, _split_line(facts[split], length)))
  total = _total(facts, length)
  if total['dropped_tokens']:
    share = _share(total['dropped_tokens'], total['text_tokens'])
    characters = round(total['dropped_tokens'] * total['characters'] / total['text_tokens'])
    lines.append(
      (
        'dropped',
        f'{total["dropped_tokens"]:,} tokens, {share}, about {characters:,} characters, cut off by '
        'segment_pair',
      )
    )
  if total['duplicate_documents']:
    lines.append(
      (
        'left out',
        f'{total["duplicate_documents"]:,} near-duplicate documents, '
        f'{total["duplicate_characters"]:,} characters',
      )
    )
  replaced = sum(source['replaced_bytes'] for source in facts['sources'])
  if replaced:
    documents = sum(source['documents_with_replacements'] for source in facts['sources'])
    lines.append(('replaced', f'{replaced:,} bytes in {documents:,} documents were not UTF-8'))
  for source in facts['sources']:
    for kind, number in source.get('skipped', {}).items():
      files = f'{number:,} files' if number != 1 else 'a file'
      lines.append(('skipped', f'{files} of {source["location"]}: {kind}'))
  losses = losses_of(total)
  if losses.characters:
    sampled = losses.characters < total['characters']
    note = f' (in a sample of {losses.characters:,})' if sampled else ''
    lines.append(('characters', f'{loss_report.loss_summary(losses)}{note}'))
    lines += [
      (name, f'most often {loss_report.examples(losses, name, 5)}')
      for name in ('unknown', 'removed')
      if getattr(losses, name)
    ]
  return lines + [('warning', text) for text in loss_warnings(facts)]


def _split_line(facts: Facts, length: int) -> str:
  notes = [f'{facts["padding_share"]:.2%} padding']
  if facts['unknown_tokens']:
    notes.append(f'{_share(facts["unknown_tokens"], facts["text_tokens"])} unknown')
  if facts['empty_documents']:
    notes.append(f'{facts["empty_documents"]:,} documents without a token')
  return (
    f'{facts["documents"]:,} documents, {facts["text_tokens"]:,} tokens in {facts["rows"]:,} rows '
    f'of {length} ({", ".join(notes)})'
  )


#### The page ####


def kept_facts(facts: Facts, path: str) -> Facts:
  """The counts that a run keeps of its corpus: all but texts of documents.

  Args:
    facts: of a finished corpus.
    path: the folder or address of the corpus.
  """
  splits = {split: facts[split] | {'longest': []} for split in SPLITS if split in facts}
  tokenizer = {name: facts['tokenizer'][name] for name in ('kind', 'size')}
  row_length = facts['recipe']['row_length']
  if not file_access.is_remote(path):
    path = file_access.absolute(path)
  kept = {'path': path, 'row_length': row_length, 'tokenizer': tokenizer}
  return kept | splits | {'sources': facts['sources']}


def report_page(facts: Facts, seconds: float, made_by: str) -> str:
  """The report in Markdown: what was made from what, what was lost, and the longest documents.

  Args:
    facts: of a finished corpus.
    seconds: that it took.
    made_by: who made it, such as 'by 4 processes'.
  """
  recipe = facts['recipe']
  tokenizer = facts['tokenizer']
  return '\n'.join(
    [
      '# Prepared corpus',
      '',
      f'{tokenizer["kind"]} tokenizer of {tokenizer["size"]:,} tokens, row format '
      f'`{recipe["row_format"]}`, made in {console.seconds(seconds)} {made_by}.',
      '',
      *_table(count_rows(facts, recipe['row_length'])),
      '',
      '## Sources',
      '',
      *_table(_marked_sources(source_rows(facts['sources']))),
      '',
      'Documents, characters, tokens and rows of a source are those of the training split. Blank '
      'documents are dropped.',
      '',
      *_loss_section(facts),
      '## Longest documents',
      '',
      *_table(_longest_rows(_total(facts, recipe['row_length'])['longest'])),
      '',
    ]
  )


def _loss_section(facts: Facts) -> list[str]:
  """Lines of the report about characters that the tokenizer does not keep."""
  if not losses_of(facts['train']).characters:
    return []
  return [
    '## Characters',
    '',
    *_table(loss_rows(facts), left=(0, 3)),
    '',
    f'{loss_note(facts)} Removed: normalization leaves nothing of them. Changed otherwise: without '
    'accents, or in another form of Unicode.',
    '',
    *_table(_marked_sources(source_loss_rows(facts['sources']))),
    '',
    *(f'Warning: {warning}.\n' for warning in loss_warnings(facts)),
  ]


def count_rows(facts: Facts, row_length: int) -> list[list[str]]:
  """Rows of the table of counts, its header first, with a column per split.

  Args:
    facts: of a finished corpus, or what a run keeps of them.
    row_length: tokens of a row.
  """
  columns = {'training': facts['train']}
  if 'heldout' in facts:
    columns |= {'held out': facts['heldout'], 'all': _total(facts, row_length)}
  cells: dict[str, Callable[[Facts], str]] = {
    'documents': _number('documents'),
    'characters': _number('characters'),
    'tokens of text': _number('text_tokens'),
    'characters per token': _characters_per_token,
    'unknown tokens': _tokens_and_share('unknown_tokens'),
    'tokens dropped': _tokens_and_share('dropped_tokens'),
    f'rows of {row_length}': _number('rows'),
    'padding': _padding,
    'documents without a token': _number('empty_documents'),
    'near-duplicates left out': _near_duplicates,
  }
  rows = [[title, *map(cell, columns.values())] for title, cell in cells.items()]
  return [['', *columns], *rows]


def _number(name: str) -> Callable[[Facts], str]:
  def cell(facts: Facts) -> str:
    return f'{facts[name]:,}'

  return cell


def _tokens_and_share(name: str) -> Callable[[Facts], str]:
  def cell(facts: Facts) -> str:
    return f'{facts[name]:,} ({_share(facts[name], facts["text_tokens"])})'

  return cell


def _characters_per_token(facts: Facts) -> str:
  return f'{facts["characters"] / max(1, facts["text_tokens"]):.2f}'


def _padding(facts: Facts) -> str:
  return f'{facts["padding_share"]:.3%}'


def _near_duplicates(facts: Facts) -> str:
  return f'{facts["duplicate_documents"]:,} ({facts["duplicate_characters"]:,} characters)'


def source_rows(sources: Sequence[dict[str, Any]]) -> list[list[str]]:
  """Rows of the table of sources, its header first."""
  rows = [['source', 'weight', *_SOURCE_COLUMNS]]
  for source in sources:
    weight = '' if source['weight'] is None else f'{source["weight"]:g}'
    counts = [f'{source[name]:,}' for name in _SOURCE_COLUMNS.values()]
    rows.append([source['location'], weight, *counts])
  return rows


def _marked_sources(rows: Sequence[Sequence[str]]) -> list[list[str]]:
  """Rows of the table of sources with their locations as code."""
  header, *lines = rows
  return [list(header), *([f'`{_cell(location)}`', *cells] for location, *cells in lines)]


def _longest_rows(longest: Sequence[tuple[int, str]]) -> list[list[str]]:
  rows = [[_cell(beginning), f'{tokens:,}'] for tokens, beginning in longest]
  return [['begins', 'tokens'], *rows]


def _table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
  """Lines of a Markdown table that is aligned as text too, some columns to the left."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = []
  for row in rows:
    cells = [
      cell.ljust(width) if i in left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append(f'| {" | ".join(cells)} |')
  rule = ['-' * (width + 1) + ('-' if i in left else ':') for i, width in enumerate(widths)]
  return [lines[0], f'|{"|".join(rule)}|', *lines[1:]]


def _total(facts: Facts, row_length: int) -> Facts:
  """The counts of both splits together."""
  total: Facts = {}
  for split in SPLITS:
    if split in facts:
      blocks.add_facts(total, facts[split])
  total['padding_share'] = _padding_share(total, row_length)
  return total


def _padding_share(facts: Facts, row_length: int) -> float:
  return float(1 - facts['tokens'] / max(1, facts['rows'] * row_length))


def _share(part: int, whole: int) -> str:
  return f'{part / max(1, whole):.3%}'


def _cell(text: str) -> str:
  """Text without what would break a table or a terminal."""
  return ''.join(c if c.isprintable() else ' ' for c in text).replace('|', '\\|').replace('`', "'")
