"""Which documents are held out, and where documents are cut if there are too few to hold some out.

A hash of a document's text decides whether it is held out, so that neither its place nor other
documents matter. Where that would hold out no document of a corpus, or all of them, its documents
are cut instead:

  - Of each document whose last part, `fraction` of its characters, is long enough, that part.
  - If no document is so long, whole documents from the end of the corpus.
  - Of a corpus of one short document, its end.

A mixture is decided on source by source, so that each source has held-out rows.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from electra_jax.data.corpus import corpora

SPLITS = ('train', 'heldout')

LEAST_CHARACTERS = 256  # of a part that is held out, where the corpus has so much text
MOST_SHARE = 0.2  # of a corpus, which is held out to reach that
_WINDOW = 10_000  # characters in which a cut looks for a line break or a space

Digest = bytes


@dataclasses.dataclass(frozen=True)
class HeldoutSplit:
  """How the documents of a corpus are distributed to training and evaluation.

  Attributes:
    fractions: of each source.
    cuts: of each source whose documents are cut: where the held-out part of a document begins, by
      the digest of its text; documents that are not named are trained on.
  """

  fractions: tuple[float, ...]
  cuts: Mapping[int, Mapping[Digest, int]] = dataclasses.field(default_factory=dict)

  @property
  def holds_out(self) -> bool:
    """Whether anything is held out."""
    return any(self.fractions)

  def parts(self, source: int, text: str) -> Iterator[tuple[str, str]]:
    """Yields (split, text): a document, or its two parts if it is cut.

    Args:
      source: the index of its source.
      text: the document.
    """
    if source not in self.cuts:
      yield SPLITS[corpora.is_held_out(text, self.fractions[source])], text
      return
    place = self.cuts[source].get(_digest(text), len(text))
    if place:
      yield 'train', text[:place]
    if place < len(text):
      yield 'heldout', text[place:]

  def identity(self) -> str:
    """A text that differs where other text is trained on; '' where no document is cut."""
    cuts = {
      source: sorted((digest.hex(), place) for digest, place in of_source.items())
      for source, of_source in self.cuts.items()
    }
    return json.dumps(cuts, sort_keys=True) if cuts else ''

  def describe(self) -> list[str]:
    """What is unusual about the split, in sentences for the console."""
    lines = []
    distinct = {id(of_source): of_source for of_source in self.cuts.values()}
    for of_source in filter(None, distinct.values()):
      cut = sum(place > 0 for place in of_source.values())
      whole = len(of_source) - cut
      documents = 'a document' if cut + whole == 1 else f'{cut + whole:,} documents'
      part = f'the end of {documents}' if cut else f'the last {documents}'
      lines.append(f'{part}, as there are too few documents to hold some out at random')
    return lines


def fractions_of(sources: Sequence[corpora.CorpusSource], fraction: float) -> tuple[float, ...]:
  """The fraction of the documents of each source that is held out; `fraction` if it states none."""
  return tuple(fraction if s.heldout is None else s.heldout for s in sources)


def decide_split(
  sources: Sequence[corpora.CorpusSource],
  groups: Sequence[corpora.Group],
  fraction: float,
  invalid_utf8: str,
) -> HeldoutSplit:
  """Decides on the split of a corpus.

  Documents are read until both splits have one, which takes about 1 / fraction of them.

  Args:
    sources: of the corpus; those of a mixture have weights, or are read as if they had.
    groups: of the corpus.
    fraction: of documents of sources that do not have their own.
    invalid_utf8: see `corpora.documents`.

  Raises:
    UserError: see `corpora.documents`.
  """
  fractions = fractions_of(sources, fraction)
  indices = range(len(sources))
  together = [[i] for i in indices] if sources[0].weight is not None else [list(indices)]
  cuts: dict[int, Mapping[Digest, int]] = {}
  for members in together:
    held = [i for i in members if fractions[i]]
    trains = len(held) < len(members)  # a source whose documents are all for training
    of_members = [group for group in groups if group.source_index in held]
    found = _cuts(of_members, fractions, invalid_utf8, trains)
    if found is not None:
      cuts |= dict.fromkeys(held, found)
  return HeldoutSplit(fractions, cuts)


def _cuts(
  groups: Sequence[corpora.Group], fractions: Sequence[float], invalid_utf8: str, trains: bool
) -> dict[Digest, int] | None:
  """Where documents are cut; None where the hash of documents splits them.

  Args:
    groups: to read.
    fractions: of each source.
    invalid_utf8: see `corpora.documents`.
    trains: whether other documents are trained on.
  """
  if not groups:
    return None
  splits = {False} if trains else set()
  lengths: dict[Digest, int] = {}
  ends: dict[Digest, int] = {}
  only, fraction = '', 0.0
  for group in groups:
    fraction = fractions[group.source_index]
    for text in corpora.documents(group, invalid_utf8):
      splits.add(corpora.is_held_out(text, fraction))
      if len(splits) == 2:
        return None
      digest = _digest(text)
      lengths[digest] = len(text)
      only = text if len(lengths) == 1 else ''
      if round(fraction * len(text)) >= LEAST_CHARACTERS:
        ends[digest] = _boundary(text, len(text) - round(fraction * len(text)))
  ends = {digest: place for digest, place in ends.items() if place}
  if ends:
    return ends
  total = sum(lengths.values())
  wanted = max(round(fraction * total), min(LEAST_CHARACTERS, int(MOST_SHARE * total)))
  if len(lengths) == 1:
    place = _boundary(only, len(only) - max(1, wanted))
    return {_digest(only): place} if place else {}
  return _last_documents(lengths, wanted)


def _last_documents(lengths: Mapping[Digest, int], wanted: int) -> dict[Digest, int]:
  """Whole documents from the end, of so many characters in all; never the first document."""
  chosen: dict[Digest, int] = {}
  for digest in [*lengths][:0:-1]:
    if wanted <= 0:
      break
    chosen[digest] = 0
    wanted -= lengths[digest]
  return chosen


def _boundary(text: str, place: int) -> int:
  """The last beginning of a line, or else of a word, that is not after a place.

  Text without spaces is cut at the place, but not between a letter and its marks.
  """
  low = max(1, place - min(_WINDOW, len(text) - place))
  line = text.rfind('\n', low, place)
  if line >= 0:
    return line + 1
  for at in range(place, low, -1):
    if text[at - 1].isspace():
      return at
  while place > 0 and place < len(text) and _joins(text, place):
    place -= 1
  return place


def _joins(text: str, place: int) -> bool:
  """Whether the characters before and after a place make one letter."""
  return unicodedata.category(text[place])[0] == 'M' or '\u200d' in text[place - 1 : place + 1]


def _digest(text: str) -> Digest:
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).digest()
