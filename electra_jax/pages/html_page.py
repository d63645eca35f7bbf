"""Self-contained pages of HTML: escaped text, tables, pictures, and a policy against all else.

A page consists of `Html`, which only `tag`, `joined_html` and `picture` make; every other value is
escaped where it becomes part of one. So text of corpora and names of runs cannot add elements or
attributes. The page's content security policy forbids whatever is not in the file: other hosts,
event handlers, style attributes, and scripts other than the one that sorts tables.
"""

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from electra_jax.pretrain.readable import escaped
from electra_jax.version import __version__

Figure: TypeAlias = Any  # of matplotlib, which is imported when a picture is drawn
Cell: TypeAlias = Any  # Html, or a value that is shown as text

_VOID = ('br', 'img', 'meta', 'source')  # elements without content and end
# Colors of pictures on a light background, and those that take their place on a dark one. All have
# a contrast of at least 3:1 to their background, texts of 4.5:1.
_DARK = {
  '#0072b2': '#5ab4e8',
  '#d55e00': '#ff9a57',
  '#009e73': '#3fc79f',
  '#aa4499': '#e08bd3',
  '#e69f00': '#f0b840',
  '#56b4e9': '#8fd0f5',
  '#333333': '#c9ced6',
  '#555555': '#a9b0bb',
  '#888888': '#767d88',
  '#e3e3e3': '#30353d',
  '#000000': '#eceff3',
  '#ffffff': '#191c21',
}

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --text: #1c2128;
  --faint: #59626e; --line: #dde1e7; --link: #0a5fa5; --good: #0b6b4f; --good-back: #e5f4ee;
  --warn: #8a4b00; --warn-back: #fdf2e2; --bad: #a8201a; --bad-back: #fcebea; --note: #3d5a80;
  --note-back: #eaf0f7; --heat: 213 94 0; --fit: 0 114 178; }
@media (prefers-color-scheme: dark) { :root { --page: #111317; --card: #191c21; --text: #e6e9ee;
  --faint: #a3abb7; --line: #30353d; --link: #7cbcf0; --good: #6fd3ae; --good-back: #13291f;
  --warn: #f2b366; --warn-back: #2e2213; --bad: #ff9a92; --bad-back: #341917; --note: #a9c6ea;
  --note-back: #1a2533; --heat: 235 112 20; --fit: 60 150 215; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 20px 40px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 40px 0 10px; }
h3 { font-size: 1rem; line-height: 1.35; margin: 0; }
p { margin: 0 0 10px; }
a { color: var(--link); }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace;
  font-size: .88em; }
.faint, figcaption, .lead { color: var(--faint); }
.lead { margin: 0; max-width: 75ch; }
.notes { max-width: 85ch; font-size: .9rem; color: var(--faint); margin: 8px 0 12px; }
nav { margin: 14px 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: 4px 18px; }
.state { display: inline-block; padding: 1px 10px; border-radius: 99px; font-size: .8rem;
  font-weight: 600; vertical-align: middle; margin: 0 0 8px; }
.good { color: var(--good); background: var(--good-back); }
.warning { color: var(--warn); background: var(--warn-back); }
.problem { color: var(--bad); background: var(--bad-back); }
.note { color: var(--note); background: var(--note-back); }
.findings { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px; }
.findings li { background: var(--card); border: 1px solid var(--line); border-left-width: 4px;
  border-radius: 6px; padding: 10px 14px; color: var(--text); }
.findings p { margin: 3px 0 0; max-width: 95ch; }
.findings .kind { font-size: .78rem; font-weight: 600; border-radius: 4px; padding: 1px 7px;
  margin-right: 8px; }
li.is-problem { border-left-color: var(--bad); }
li.is-warning { border-left-color: var(--warn); }
li.is-note { border-left-color: var(--note); }
li.is-good { border-left-color: var(--good); }
.tiles { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: .85rem; color: var(--faint); }
.tile .label { font-weight: 600; color: var(--text); line-height: 1.35; margin: 2px 0; }
.figures { display: grid; gap: 12px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px 6px; min-width: 0; }
figcaption { font-size: .85rem; min-height: 2.6em; }
figcaption h3 { color: var(--text); }
figure img { display: block; width: 100%; height: auto; }
figure.wide { overflow-x: auto; }
figure.wide img { min-width: 640px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: 6px 14px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
thead th { white-space: nowrap; color: var(--faint); font-weight: 600; }
tbody th { font-weight: 500; min-width: 8.5rem; }
th { overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.fields th { width: 14rem; color: var(--faint); }
.value { overflow-wrap: anywhere; min-width: 12rem; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:hover { color: var(--text); text-decoration: underline; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th button::after { content: ' \\2195'; opacity: .55; }
th[aria-sort=ascending] button::after { content: ' \\2191'; opacity: 1; }
th[aria-sort=descending] button::after { content: ' \\2193'; opacity: 1; }
details { margin: 10px 0 0; }
summary { cursor: pointer; color: var(--link); margin-bottom: 8px; }
.columns { display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.example { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; margin: 0 0 10px; }
.example p { line-height: 1.95; margin: 6px 0; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 0 0 12px; font-size: .9rem; }
.token { border-radius: 3px; padding: 1px 0; }
.marked { padding: 1px 3px; margin: 0 1px; }
.token del { opacity: .8; margin-right: 3px; }
.token ins { text-decoration: none; font-weight: 600; }
.token small { font-size: .72em; margin-left: 3px; font-variant-numeric: tabular-nums; }
.caught { box-shadow: inset 0 -2px var(--good); }
.missed { box-shadow: inset 0 -2px var(--bad); }
.alarm { box-shadow: inset 0 -2px var(--warn); }
.kept { border-bottom: 1px dotted var(--faint); }
.facts { display: flex; flex-wrap: wrap; gap: 2px 20px; font-size: .88rem; }
.block { margin: 26px 0 6px; }
.matrix { width: auto; }
.matrix td { min-width: 3.2rem; }
.pair { display: grid; gap: 12px; align-items: start;
  grid-template-columns: minmax(0, 360px) minmax(0, 1fr); }
.special { color: var(--faint); font-size: .75em; }
footer { margin-top: 44px; font-size: .85rem; color: var(--faint); }
@media (max-width: 600px) { .pair { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: 10px 12px; } main { padding: 20px 14px 32px; } h1 { font-size: 1.45rem; }
  th, td { padding: 6px 10px; } .fields th { width: 8.5rem; } .value { min-width: 0; }
  figcaption { min-height: 0; } }
@media print { .scroll, figure.wide { overflow: visible; } }
""" + ''.join(
  f'.{name}{i} {{ background: rgb(var({color}) / {0.06 * i:.2f}); }}\n'
  for name, color in (('p', '--heat'), ('q', '--fit'))
  for i in range(1, 11)
)

# Sorts the rows of a table by the column whose button is pressed: numbers by value, missing last.
_SCRIPT = """
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const header = button.closest('th'), body = header.closest('table').tBodies[0];
    const up = header.getAttribute('aria-sort') !== 'ascending';
    for (const other of header.parentElement.children) other.removeAttribute('aria-sort');
    header.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => row.children[header.cellIndex].dataset.sort;
    const compare = (a, b) => {
      if (a === '' || b === '') return (a === '') - (b === '');
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    };
    for (const row of [...body.rows].sort((a, b) => compare(key(a), key(b)))) body.append(row);
  });
}
"""


class Html(str):
  """Text in HTML, which is not escaped again."""

  __slots__ = ()


def markup(value: Cell) -> Html:
  """A value as HTML: `Html` as it is, all else as escaped text.

  Control characters are shown as Python writes them. Among them are those of the direction of text,
  which could make a line look like another one.
  """
  return value if isinstance(value, Html) else Html(html.escape(escaped(str(value))))


def joined_html(parts: Iterable[Cell], separator: str = '') -> Html:
  """Values as HTML, one after the other."""
  return Html(markup(separator).join(map(markup, parts)))


def tag(name: str, /, *content: Cell, **attributes: Cell) -> Html:
  """An element.

  Args:
    name: of the element.
    content: what it contains; values other than `Html` are escaped.
    attributes: their values are escaped; underscores in names stand for hyphens, one at the end is
      dropped. Empty values are left out.
  """
  written = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{markup(value)}"'
    for key, value in attributes.items()
    if str(value)
  )
  start = f'<{name}{written}>'
  return Html(start if name in _VOID else f'{start}{joined_html(content)}</{name}>')


def isolated(text: str) -> Html:
  """A name or a text of a corpus inside of a sentence, which keeps its own direction."""
  return tag('bdi', text)


def notice(level: str, title: str, detail: str, action: str = '') -> Html:
  """An item of a list of the class 'findings': what is the case, and what to do.

  Args:
    level: 'good', 'note', 'warning' or 'problem'.
    title: a few words.
    detail: a sentence.
    action: a sentence; '' for none.
  """
  kind = tag('span', level.capitalize(), class_=f'kind {level}')
  more = tag('p', action, class_='faint') if action else ''
  return tag('li', tag('h3', kind, title), tag('p', detail), more, class_=f'is-{level}')


#### Tables ####


def table(
  header: Sequence[Cell],
  rows: Iterable[Sequence[Cell]],
  *,
  sort_by: Sequence[Sequence[Cell]] | None = None,
) -> Html:
  """A table in a box that scrolls sideways. The first column is aligned to the left.

  Args:
    header: titles of the columns.
    rows: cells of each row.
    sort_by: of each row and column what it is sorted by, with buttons in the header; None for a
      table that is not sorted.
  """
  titles = [tag('button', title, type='button') if sort_by else title for title in header]
  lines = []
  for number, row in enumerate(rows):
    keys = sort_by[number] if sort_by else [None] * len(row)
    cells = []
    for i, (cell, key) in enumerate(zip(row, keys, strict=True)):
      sort = '' if key is None else f' data-sort="{markup(str(key))}"'
      kind = 'td class="number"' if i else 'th scope="row" dir="auto"'
      cells.append(Html(f'<{kind}{sort}>{markup(cell)}</{kind.split()[0]}>'))
    lines.append(tag('tr', *cells))
  heads = [
    tag('th', title, scope='col', class_='number' if i else '') for i, title in enumerate(titles)
  ]
  body = tag('table', tag('thead', tag('tr', *heads)), tag('tbody', *lines))
  return tag('div', body, class_='scroll', tabindex='0')


def fields(rows: Iterable[tuple[str, Cell]]) -> Html:
  """A table of names and values."""
  lines = [
    tag('tr', tag('th', name, scope='row'), tag('td', value, class_='value', dir='auto'))
    for name, value in rows
  ]
  return tag('div', tag('table', tag('tbody', *lines), class_='fields'), class_='scroll')


#### Pictures ####


def picture(figure: Figure, description: str) -> Html:
  """A figure as part of the page, in colors for a light and for a dark background.

  Args:
    figure: of matplotlib, its background transparent.
    description: what it shows, for those who do not see it.
  """
  light = _as_svg(figure)
  dark = light
  for color, replacement in _DARK.items():
    dark = dark.replace(f' {color}', f' {replacement}')
  width, height = (round(96 * size) for size in figure.get_size_inches())
  return tag(
    'picture',
    tag('source', media='(prefers-color-scheme: dark)', srcset=_data_uri(dark)),
    tag('img', src=_data_uri(light), alt=description, width=width, height=height),
  )


def _as_svg(figure: Figure) -> str:
  """A figure as SVG, the same at each call. Text becomes outlines, which need no fonts."""
  import matplotlib

  content = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'path', 'svg.hashsalt': 'electra_jax'}):
    figure.savefig(content, format='svg', transparent=True, metadata={'Date': None})
  return content.getvalue()


def _data_uri(svg: str) -> Html:
  return Html('data:image/svg+xml;base64,' + base64.b64encode(svg.encode()).decode())


#### The page ####


def page(title: str, *content: Cell) -> str:
  """A complete page.

  Args:
    title: of the window.
    content: values other than `Html` are escaped.
  """
  body = joined_html(content)
  script = _SCRIPT if '<th scope="col"><button' in body else ''
  policy = [
    "default-src 'none'",
    'img-src data:',
    f"style-src '{_digest(STYLE)}'",
    f"script-src '{_digest(script)}'" if script else "script-src 'none'",
    "base-uri 'none'",
    "form-action 'none'",
  ]
  head = joined_html(
    [
      tag('meta', charset='utf-8'),
      tag('meta', http_equiv='Content-Security-Policy', content='; '.join(policy)),
      tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
      tag('meta', name='referrer', content='no-referrer'),
      tag('title', title),
      tag('style', Html(STYLE)),
    ]
  )
  footer = tag('footer', f'Made by electra_jax {__version__}. This file needs no other file.')
  main = tag('main', body, footer)
  end = tag('script', Html(script)) if script else ''
  return f'<!doctype html>\n{tag("html", tag("head", head), tag("body", main, end), lang="en")}\n'


def section(identifier: str, title: str, *content: Cell) -> Html:
  """A part of a page, with a heading."""
  return tag('section', tag('h2', title), *content, id=identifier)


def contents(sections: Mapping[str, str]) -> Html:
  """Links to sections: id -> title."""
  links = [tag('a', title, href=f'#{identifier}') for identifier, title in sections.items()]
  return tag('nav', *links, aria_label='Contents')


def _digest(text: str) -> str:
  """The hash by which a policy allows a style or script."""
  return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
