"""What preparation counted: gathered from its blocks, in lines for the console, and as a page."""

from collections.abc import Sequence

from electra_jax import console
from electra_jax.data.corpus import corpora
from electra_jax.data.prepare import blocks

_READ = ('blank_documents', 'documents_with_replacements', 'replaced_bytes')


def gather(
  job: blocks.Job,
  groups: Sequence[corpora.Group],
  sources: Sequence[corpora.Source],
  weighted: bool,
) -> tuple[dict, dict]:
  """Adds up finished blocks.

  Args:
    weighted: whether each source has a store of its own.

  Returns:
    facts: JSON values. `stores`: their names. `train` and `heldout` (where some is held out), each: `documents` that
      gave rows or were empty, `empty_documents` of them without a token, `duplicate_documents` and
      `duplicate_characters` left out as near-duplicates, `characters`, `text_tokens` without special tokens,
      `unknown_tokens` among them, `dropped_tokens` cut off, `rows`, `tokens` with special tokens,
      `padding_share`, `longest` documents as [tokens, beginning]. `sources`: location, weight and store of each, what reading it counted (`blank_documents`,
      `documents_with_replacements`, `replaced_bytes`), and the counts of its training documents.
    parts: for each store the files of its rows in order, [(file, rows)].
  """
  splits = {split: {} for split in blocks.SPLITS}
  entries = [
    {
      'location': source.location,
      'weight': source.weight,
      'store': f'train-{i:02d}' if weighted else 'train',
      **dict.fromkeys(_READ, 0),
      **dict.fromkeys(blocks.COUNTS, 0),
    }
    for i, source in enumerate(sources)
  ]
  parts = {entry['store']: [] for entry in entries} | {'heldout': []}
  for index, group in enumerate(groups):
    read, entry = blocks.group_facts(job, index), entries[group.source]
    for name in _READ:
      entry[name] += read['counts'].get(name, 0)
    for number in range(read['blocks']):
      name = blocks.block_name(index, number)
      facts = blocks.block_facts(job, name)
      for split, total in splits.items():
        blocks.add_facts(total, facts[split])
        store = entry['store'] if split == 'train' else 'heldout'
        if facts[split]['rows']:
          parts[store].append((blocks.rows_file(job, name, split), facts[split]['rows']))
      for count in blocks.COUNTS:
        entry[count] += facts['train'][count]
  for total in splits.values():
    blocks.add_facts(
      total, dict.fromkeys(blocks.COUNTS, 0) | {'longest': []}
    )  # all fields, where there was no block
    total['padding_share'] = 1 - total['tokens'] / max(1, total['rows'] * job.row_length)
  if not job.heldout_fraction:
    del splits['heldout'], parts['heldout']
  return {'stores': list(parts), **splits, 'sources': entries}, parts


def lines(facts: dict) -> list[tuple[str, str]]:
  """(label, text) for the console: one for each split, one for each thing that was left out, replaced or cut."""
  length = facts['recipe']['row_length']
  result = []
  for split, title in (('train', 'training'), ('heldout', 'held out')):
    if f := facts.get(split):
      text = f'{f["documents"]:,} documents, {f["text_tokens"]:,} tokens in {f["rows"]:,} rows of {length} '
      text += f'({f["padding_share"]:.2%} padding'
      if f['unknown_tokens']:
        text += f', {_share(f["unknown_tokens"], f["text_tokens"])} unknown'
      if f['empty_documents']:
        text += f', {f["empty_documents"]:,} documents without a token'
      result.append((title, text + ')'))
  total = _total(facts)
  if total['dropped_tokens']:
    result.append(
      (
        'dropped',
        f'{total["dropped_tokens"]:,} tokens, {_share(total["dropped_tokens"], total["text_tokens"])}, cut off by '
        'segment_pair',
      )
    )
  if total['duplicate_documents']:
    result.append(
      (
        'left out',
        f'{total["duplicate_documents"]:,} near-duplicate documents, {total["duplicate_characters"]:,} characters',
      )
    )
  replaced = sum(source['replaced_bytes'] for source in facts['sources'])
  if replaced:
    documents = sum(source['documents_with_replacements'] for source in facts['sources'])
    result.append(('replaced', f'{replaced:,} bytes in {documents:,} documents were not UTF-8'))
  return result


def markdown(facts: dict, seconds: float, processes: int, beam: str | None) -> str:
  """The report as a page: what was made, from what, what was lost, the longest documents, and the time it took."""
  recipe, tokenizer, total = facts['recipe'], facts['tokenizer'], _total(facts)
  columns = [('training', facts['train'])] + (
    [('held out', facts['heldout']), ('all', total)] if 'heldout' in facts else []
  )
  rows = [
    ('documents', lambda f: f'{f["documents"]:,}'),
    ('characters', lambda f: f'{f["characters"]:,}'),
    ('tokens of text', lambda f: f'{f["text_tokens"]:,}'),
    ('characters a token', lambda f: f'{f["characters"] / max(1, f["text_tokens"]):.2f}'),
    (
      'unknown tokens',
      lambda f: f'{f["unknown_tokens"]:,} ({_share(f["unknown_tokens"], f["text_tokens"])})',
    ),
    (
      'tokens dropped',
      lambda f: f'{f["dropped_tokens"]:,} ({_share(f["dropped_tokens"], f["text_tokens"])})',
    ),
    (f'rows of {recipe["row_length"]}', lambda f: f'{f["rows"]:,}'),
    ('padding', lambda f: f'{f["padding_share"]:.3%}'),
    ('documents without a token', lambda f: f'{f["empty_documents"]:,}'),
    (
      'near-duplicates left out',
      lambda f: f'{f["duplicate_documents"]:,} ({f["duplicate_characters"]:,} characters)',
    ),
  ]
  made_by = (
    'by Apache Beam'
    if beam is not None
    else f'by {processes} processes'
    if processes > 1
    else 'by one process'
  )
  return '\n'.join(
    [
      '# Prepared corpus',
      '',
      f'{tokenizer["kind"]} tokenizer of {tokenizer["size"]:,} tokens, row format `{recipe["row_format"]}`, made in '
      f'{console.seconds(seconds)} {made_by}.',
      '',
      *_table(
        [
          ['', *(title for title, _ in columns)],
          *([title, *(cell(f) for _, f in columns)] for title, cell in rows),
        ]
      ),
      '',
      '## Sources',
      '',
      *_table(
        [
          [
            'source',
            'weight',
            'documents',
            'characters',
            'tokens',
            'rows',
            'blank',
            'bytes not UTF-8',
          ],
          *(
            [
              f'`{_cell(s["location"])}`',
              '' if s['weight'] is None else f'{s["weight"]:g}',
              *(
                f'{s[name]:,}'
                for name in (
                  'documents',
                  'characters',
                  'text_tokens',
                  'rows',
                  'blank_documents',
                  'replaced_bytes',
                )
              ),
            ]
            for s in facts['sources']
          ),
        ]
      ),
      '',
      'Documents, characters, tokens and rows of a source are those to train on. Blank documents are left out.',
      '',
      '## Longest documents',
      '',
      *_table(
        [
          ['begins', 'tokens'],
          *([_cell(beginning), f'{tokens:,}'] for tokens, beginning in total['longest']),
        ]
      ),
      '',
    ]
  )


def _table(rows):
  """Lines of a Markdown table whose columns are aligned as text too, the first to the left, figures to the right."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

  def line(row):
    return (
      '| '
      + ' | '.join(
        cell.rjust(w) if i else cell.ljust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
      )
      + ' |'
    )

  rule = '|' + '|'.join('-' * (w + 1) + (':' if i else '-') for i, w in enumerate(widths)) + '|'
  return [line(rows[0]), rule, *map(line, rows[1:])]


def _total(facts):
  """Counts of both splits together."""
  total = {}
  for split in blocks.SPLITS:
    if split in facts:
      blocks.add_facts(total, facts[split])
  total['padding_share'] = 1 - total['tokens'] / max(
    1, total['rows'] * facts['recipe']['row_length']
  )
  return total


def _share(part, whole):
  return f'{part / max(1, whole):.3%}'


def _cell(text):
  """Text that a table and a terminal can hold."""
  return ''.join(c if c.isprintable() else ' ' for c in text).replace('|', '\\|').replace('`', "'")
