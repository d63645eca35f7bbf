"""Tables in Markdown pages that a program writes, between two marks."""

import pathlib


def marked(name: str, table: str) -> str:
  """A table between its marks.

  Args:
    name: of the table.
    table: its text.
  """
  return f'<!-- {name} -->\n\n{table.strip()}\n\n<!-- end of {name} -->'


def replace(page: pathlib.Path, name: str, table: str) -> None:
  """Replaces a table of a page.

  Args:
    page: the file.
    name: of the table.
    table: its new text.

  Raises:
    ValueError: the page does not have the table's marks once.
  """
  text = page.read_text('utf-8')
  begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
  if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
    raise ValueError(f'{page} does not have one table {name!r}; expected {begin} and {end} in it.')
  before, after = text.split(begin)[0], text.split(end)[1]
  page.write_text(before + marked(name, table) + after, encoding='utf-8')
