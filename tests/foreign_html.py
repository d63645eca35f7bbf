"""Text that tries to add elements to a page of HTML, and a search for what it has added."""

import html.parser
import re
import unicodedata

from electra_jax.pages import html_page

ATTACKS = (
  '</script><script>window.pwned=1</script>',
  '<img src=x onerror="window.pwned=1">',
  '" onmouseover="window.pwned=1" x="',
  "' autofocus onfocus='window.pwned=1",
  '<a href="javascript:window.pwned=1">javascript:window.pwned=1</a>',
  '</title></style><svg onload=window.pwned=1>',
  '$\\frac$ ]]> <!-- &lt;b&gt; &amp;',
)
BIDI = 'abc\u202edef\u2066ghi\u2069\u200f\u061c'
ELEMENTS = set(
  'html head meta title style body main header nav section article footer h1 h2 h3 p a b ul li div '
  'span bdi del ins small code details summary table thead tbody tr th td figure figcaption '
  'picture source img script button'.split()
)
ATTRIBUTES = set(
  'charset http-equiv content name lang id class href aria-label tabindex scope dir title media '
  'srcset src alt width height type data-sort'.split()
)


class Parsed(html.parser.HTMLParser):
  """The elements, attributes and text of a page."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.attributes, self.open, self.text, self.wrong = [], [], [], {}, []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    if tag not in html_page._VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.wrong.append(f'</{tag}>')

  def handle_data(self, data):
    self.text.setdefault(self.open[-1] if self.open else '', []).append(data)

  def handle_comment(self, data):
    self.wrong.append(f'<!--{data}-->')

  def values(self, name):
    return [value for _, key, value in self.attributes if key == name]


def foreign(text):
  """What a page has that the program does not write."""
  page = Parsed(text)
  found = page.wrong + [tag for tag in page.elements if tag not in ELEMENTS]
  found += [key for _, key, _ in page.attributes if key not in ATTRIBUTES]
  found += [x for x in page.values('href') if not re.fullmatch('#[a-z]+', x)]
  pictures = page.values('src') + page.values('srcset')
  found += [x for x in pictures if not re.fullmatch(r'data:image/svg\+xml;base64,[\w+/=]+', x)]
  found += [x for x in page.text.get('script', []) if x != html_page._SCRIPT]
  found += [x for x in page.text['style'] if x != html_page.STYLE]
  controls = {c for c in text if unicodedata.category(c) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')}
  return found + sorted(controls - {'\n'})


def shown(text):
  return ' '.join(part for parts in Parsed(text).text.values() for part in parts)
