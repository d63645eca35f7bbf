"""What a file is, by its first bytes: a compression, a corpus format, or something else by name."""

import codecs
import re

from electra_jax import file_access, json_reader, registry
from electra_jax.errors import UserError

HEAD_BYTES = 1 << 16  # decompressed bytes that decide

_MOST_RECORDS = 5  # lines that must be JSON objects in a file of JSON lines
_CONTROL_SHARE = 0.02  # of bytes that are not UTF-8, from which they are not text of any encoding
_OBJECT_BEGINS = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:')

# (place, first bytes there, what such a file is). Formats that the package reads are not here.
_KINDS = (
  (0, b'%PDF-', 'a PDF document'),
  (0, b'\x89PNG\r\n\x1a\n', 'a PNG image'),
  (0, b'\xff\xd8\xff', 'a JPEG image'),
  (0, b'GIF87a', 'a GIF image'),
  (0, b'GIF89a', 'a GIF image'),
  (0, b'II*\0', 'a TIFF image'),
  (0, b'MM\0*', 'a TIFF image'),
  (8, b'WEBP', 'a WebP image'),
  (8, b'WAVE', 'WAV audio'),
  (0, b'OggS', 'Ogg audio or video'),
  (0, b'fLaC', 'FLAC audio'),
  (0, b'ID3', 'MP3 audio'),
  (4, b'ftyp', 'MP4 audio or video'),
  (0, b'\x1aE\xdf\xa3', 'Matroska or WebM video'),
  (0, b'\x93NUMPY', 'a NumPy array (.npy)'),
  (0, b'\x89HDF\r\n\x1a\n', 'an HDF5 file'),
  (0, b'SQLite format 3\0', 'an SQLite database'),
  (0, b'\x7fELF', 'an ELF program or library'),
  (0, b'\xca\xfe\xba\xbe', 'a Java class or Mach-O program'),
  (0, b'\xcf\xfa\xed\xfe', 'a Mach-O program or library'),
  (0, b'\0asm', 'a WebAssembly program'),
  (0, b'GGUF', 'a GGUF model'),
  (8, b'{"__metadata__"', 'a safetensors file'),
  (0, b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'an older document of Microsoft Office'),
  (0, b'{\\rtf', 'an RTF document'),
  (0, b'%!PS', 'a PostScript document'),
  (0, b'7z\xbc\xaf\x27\x1c', 'a 7z archive'),
  (0, b'Rar!\x1a\x07', 'a RAR archive'),
  (0, b'\x04"M\x18', 'LZ4 data'),
  (0, b'\x1f\x9d', 'data of compress (.Z)'),
  (0, b'\xff\x06\0\0sNaPpY', 'Snappy data'),
  (0, b'ORC', 'an ORC file'),
  (0, b'Obj\x01', 'an Avro file'),
  (0, b'FEA1', 'a Feather file of version 1'),
)
_ZIP_KINDS = (
  (
    re.compile(rb'\[Content_Types\]\.xml|_rels/|docProps/|word/|xl/|ppt/'),
    'a document of Microsoft Office',
  ),
  (re.compile(rb'mimetypeapplication/epub'), 'an EPUB book'),
  (re.compile(rb'mimetypeapplication/vnd\.oasis'), 'an OpenDocument file'),
  (re.compile(rb'META-INF/'), 'a Java archive'),
  (re.compile(rb'[^\0/]+\.npy'), 'NumPy arrays (.npz)'),
  (re.compile(rb'[^\0/]+/(data\.pkl|\.format_version|byteorder)'), 'a PyTorch file'),
)
_PROGRAM = re.compile(rb'MZ.{58}', re.DOTALL)
_PICKLE = re.compile(rb'\x80[\x02-\x05][\x00-\xff]')
# In this order: the marks of UTF-32 begin with those of UTF-16.
_MARKS = {
  codecs.BOM_UTF32_LE: 'UTF-32',
  codecs.BOM_UTF32_BE: 'UTF-32',
  codecs.BOM_UTF16_LE: 'UTF-16',
  codecs.BOM_UTF16_BE: 'UTF-16',
}
# Encodings of several bytes, and characters by which their text is recognized: most characters of
# Japanese are kana, of Korean syllables; of Chinese one in six is among the most frequent ones.
_KANA = range(0x3041, 0x30FF)
_HANGUL = range(0xAC00, 0xD7A4)
_FREQUENT_HAN = frozenset(
  map(ord, '的一是不了在人有我他这這個个们們中来來上大为為和国國地到以说說时時要就出会會可')
)
_ENCODINGS = (
  ('iso2022_jp', 'ISO-2022-JP', _KANA, 0.2),
  ('shift_jis', 'SHIFT_JIS', _KANA, 0.2),
  ('euc_jp', 'EUC-JP', _KANA, 0.2),
  ('euc_kr', 'EUC-KR', _HANGUL, 0.7),
  ('gb18030', 'GB18030', _FREQUENT_HAN, 0.1),
  ('big5', 'BIG5', _FREQUENT_HAN, 0.1),
)


def format_by_magic(head: bytes) -> str | None:
  """The name of the corpus format whose files begin so; None if there is none."""
  for name in registry.CORPUS_FORMATS:
    if registry.CORPUS_FORMATS.get(name).recognizes(head):
      return name
  return None


def zip_kind(head: bytes) -> str | None:
  """What a file is that begins as a zip archive does and is none of files; None for others.

  The name of the first member begins at byte 30 (APPNOTE.TXT, 4.3.7).
  """
  if not head.startswith(b'PK\x03\x04'):
    return None
  first = head[30:]
  return next((kind for beginning, kind in _ZIP_KINDS if beginning.match(first)), None)


def unreadable_kind(head: bytes) -> str | None:
  """What a file is that begins so, if a text format cannot read it; None if it is text."""
  if name := format_by_magic(head):
    title: str = registry.CORPUS_FORMATS.get(name).title
    return title
  return binary_kind(head)


def binary_kind(head: bytes, whole: bool = False) -> str | None:
  """What a file is that begins so, if it is not text, such as 'a PDF document'; None for text.

  Bytes that are not UTF-8 may be text of another encoding.

  Args:
    head: the first bytes, decompressed.
    whole: whether they are all of the file.
  """
  for place, magic, kind in _KINDS:
    if head[place : place + len(magic)] == magic and not _may_be_prose(head, magic):
      return kind
  for mark, name in _MARKS.items():
    if head.startswith(mark):
      return f'{name} text'
  if is_utf8(head, whole):
    return None
  if suffix := next(
    (s for m, s in file_access.COMPRESSION_MAGIC.items() if head.startswith(m)), ''
  ):
    return f'compressed data ({suffix}) inside of compressed data'
  if _PICKLE.match(head):
    return 'a pickle of Python'
  if _PROGRAM.match(head):
    return 'a program for Windows'
  if name := _wide_encoding(head):
    return f'{name} text'
  controls = sum(byte < 32 and byte not in b'\t\n\r\f\x1b' for byte in head)
  if controls > _CONTROL_SHARE * len(head):
    return 'binary data of an unknown type'
  return None


def encoding_of(data: bytes) -> str:
  """The likely encoding of text that is not UTF-8, as iconv names it; '' if that is unknown."""
  mark = next((name for start, name in _MARKS.items() if data.startswith(start)), '')
  if mark or (name := _wide_encoding(data)):
    return mark or name
  for codec, name, usual, share in _ENCODINGS:
    high = [ord(c) for c in _decoded(data, codec) if c > '\x7f']
    if len(high) > 3 and sum(code in usual for code in high) > share * len(high):
      return name
  return ''


def is_utf8(data: bytes, whole: bool = False) -> bool:
  """Whether bytes are UTF-8, or the beginning of such."""
  try:
    codecs.getincrementaldecoder('utf-8')().decode(data, final=whole)
  except UnicodeDecodeError:
    return False
  return True


def holds_json_lines(head: bytes) -> bool:
  """Whether a text file that begins so holds a JSON object per line.

  A line that is longer than `head` counts if it begins as an object does.
  """
  text = head.removeprefix(codecs.BOM_UTF8).decode(errors='ignore')
  lines = [line for line in text.split('\n') if line.strip()]
  if not lines or not _OBJECT_BEGINS.match(lines[0]):
    return False
  complete = lines if text.endswith('\n') or len(head) < HEAD_BYTES else lines[:-1]
  for line in complete[:_MOST_RECORDS]:
    try:
      if not isinstance(json_reader.parse(line, '', rules=json_reader.TEXTS), dict):
        return False
    except UserError:
      return False
  return True


def _may_be_prose(head: bytes, magic: bytes) -> bool:
  """Whether bytes that begin as a binary file may be text, since its mark is a word."""
  return magic.isalnum() and 0 not in head and is_utf8(head)


def _wide_encoding(data: bytes) -> str:
  """'UTF-16LE' or 'UTF-16BE' where every other byte of Latin text is zero; else ''."""
  if len(data) < 4 or not data.count(0):
    return ''
  even, odd = data[::2], data[1::2]
  if odd.count(0) > 0.7 * len(odd) and even.count(0) < 0.1 * len(even):
    return 'UTF-16LE'
  if even.count(0) > 0.7 * len(even) and odd.count(0) < 0.1 * len(odd):
    return 'UTF-16BE'
  return ''


def _decoded(data: bytes, codec: str) -> str:
  try:
    return codecs.getincrementaldecoder(codec)().decode(data, final=False)
  except UnicodeDecodeError:
    return ''
