"""What users read of the characters that a tokenizer loses: lines, tables, warnings and errors."""

import unicodedata
import warnings
from collections.abc import Sequence

from electra_jax.data.tokenizers.character_losses import ARROW, FATES, CharacterLosses
from electra_jax.data.tokenizers.tokenization import Tokenizer
from electra_jax.errors import UserError

# Shares of the characters: unknown and removed ones together, and truncated ones.
LOSS_WARNING = 0.01
LOSS_ERROR = 0.20
TRUNCATION_WARNING = 0.10
# What helps where a tokenizer is given with a model.
OTHER_MODEL = (
  'a model whose tokenizer was trained on such text, or one with SentencePiece and byte fallback, '
  'or with byte-level BPE'
)
CORPUS_FLAG = '--config.data.allow_loss=True'
EXAMPLES = 10  # shown of each fate

TITLES = {
  'unknown': 'unknown ([UNK])',
  'removed': 'removed',
  'case_folded': 'case-folded',
  'white_space': 'white space changed',
  'changed': 'changed otherwise',
  'truncated': 'truncated',
}
# Characters that are shown by their names only.
_NAMES = {' ': 'space', '\n': 'line feed', '\t': 'tab', '\r': 'carriage return'}


class LostText(UserError):
  """A tokenizer loses much of a text. Rows that were made of it are good if that is allowed."""


class OneWarning:
  """Issues Python warnings about lost characters, but only the first time that there are some.

  Attributes:
    issued: whether it did.
  """

  def __init__(self) -> None:
    """Nothing was issued yet."""
    self.issued = False
    self._calls = 0

  def due(self) -> bool:
    """Whether a call of the run is to be checked, until there was a warning.

    These are the first, second, fourth, eighth call and so on: counting the lost characters of a
    text takes as long as predicting it.
    """
    self._calls += 1
    return not self.issued and self._calls & (self._calls - 1) == 0

  def __call__(self, sentences: Sequence[str], depth: int = 3) -> None:
    """Issues sentences as UserWarnings, for the line that called the run.

    Args:
      sentences: to issue.
      depth: of the calls from that line to here.
    """
    if self.issued:
      return
    for sentence in sentences:
      self.issued = True
      warnings.warn(sentence, UserWarning, stacklevel=depth)


def loss_summary(losses: CharacterLosses) -> str:
  """One line: the shares of all fates that occur."""
  shares = [
    f'{_percent(getattr(losses, fate), losses.characters)} {TITLES[fate]}'
    for fate in FATES
    if getattr(losses, fate)
  ]
  return ', '.join(shares) or 'all kept as they are'


def fates_table(losses: CharacterLosses) -> list[list[str]]:
  """Rows of a table of all fates, its header first: number, share and examples."""
  rows = [['characters', 'number', 'share', 'most frequent']]
  for fate in ('kept', *FATES):
    number = getattr(losses, fate)
    share = _percent(number, losses.characters)
    rows.append([TITLES.get(fate, fate), f'{number:,}', share, examples(losses, fate)])
  return rows


def source_table(sources: Sequence[tuple[str, CharacterLosses]]) -> list[list[str]]:
  """Rows of a table of the fates in each source, its header first."""
  rows = [['source', 'characters counted', *(TITLES[fate] for fate in FATES)]]
  for location, losses in sources:
    shares = [_percent(getattr(losses, fate), losses.characters) for fate in FATES]
    rows.append([location, f'{losses.characters:,}', *shares])
  return rows


def examples(losses: CharacterLosses, fate: str, number: int = EXAMPLES) -> str:
  """The most frequent characters of a fate, with code points and numbers."""
  found = losses.most_frequent(fate, number)
  return ', '.join(f'{_shown_example(example)} {times:,}' for example, times in found)


def loss_sentences(losses: CharacterLosses, what: str, remedy: str) -> list[str]:
  """Sentences about characters that are lost or truncated; empty where these are few.

  Args:
    losses: what was counted.
    what: of which text, as 'the corpus'.
    remedy: of `loss_remedy`.
  """
  found = []
  if losses.lost and losses.lost_share >= LOSS_WARNING:
    found.append(f'{_lost(losses)} of {what}; use {remedy}')
  if losses.truncated_share >= TRUNCATION_WARNING:
    share = _percent(losses.truncated, losses.characters)
    found.append(f'{share} of the characters of {what} are truncated; use longer rows')
  return found


def require_kept(losses: CharacterLosses, what: str, remedy: str, flag: str) -> None:
  """Refuses text of which much is lost.

  Args:
    losses: what was counted.
    what: of which text.
    remedy: of `loss_remedy`.
    flag: that continues anyway, as on the command line.

  Raises:
    LostText: `LOSS_ERROR` of the characters or more are lost.
  """
  if losses.lost and losses.lost_share >= LOSS_ERROR:
    raise LostText(
      f'{_lost(losses)} of {what}; expected less than {LOSS_ERROR:.0%}, by {remedy}, or set {flag} '
      'to continue.'
    )


def loss_remedy(losses: CharacterLosses, tokenizer: Tokenizer, is_chosen: bool = True) -> str:
  """What helps for this text, as the end of a sentence that begins with "use".

  Args:
    losses: what was counted.
    tokenizer: that loses the characters.
    is_chosen: whether the user can choose another tokenizer; otherwise it comes with a model.
  """
  if not is_chosen:
    return OTHER_MODEL
  found = []
  if losses.unknown >= losses.removed:
    found.append(_unknown_remedy(losses, tokenizer))
  if losses.removed > losses.unknown or losses.removed > LOSS_WARNING * losses.characters:
    found.append(_removed_remedy(losses))
  return ', and '.join(found)


def _unknown_remedy(losses: CharacterLosses, tokenizer: Tokenizer) -> str:
  found = losses.most_frequent('unknown', EXAMPLES)
  known = sum(n for character, n in found if tokenizer.unk_id not in tokenizer.encode(character))
  if 2 * known > sum(n for _, n in found):
    # The characters are in the vocabulary; the words that they are in are too long, or lack pieces.
    return (
      'a tokenizer that splits words of any length: SentencePiece (config.data.tokenizer=unigram) '
      'or byte-level BPE'
    )
  return tokenizer.unknown_remedy


def _removed_remedy(losses: CharacterLosses) -> str:
  found = losses.most_frequent('removed', EXAMPLES)
  marks = sum(n for c, n in found if unicodedata.category(c)[0] == 'M')
  if 2 * marks > sum(n for _, n in found):
    return 'config.data.strip_accents=no'
  return 'another rule of normalization (config.data.normalization)'


def _lost(losses: CharacterLosses) -> str:
  base = losses.characters - losses.truncated
  kinds = [
    f'{_percent(getattr(losses, fate), base)} {name}, most often {examples(losses, fate, 3)}'
    for fate, name in (('unknown', 'unknown'), ('removed', 'removed'))
    if getattr(losses, fate)
  ]
  return f'the tokenizer loses {losses.lost_share:.1%} of the characters ({"; ".join(kinds)})'


def _percent(part: int, whole: int) -> str:
  share = part / max(1, whole)
  if part and share < 0.00001:
    return 'less than 0.001%'
  return f'{share:.3%}' if part and share < 0.01 else f'{share:.1%}'


def _shown_example(example: str) -> str:
  source, arrow, target = example[:1], example[1:2], example[2:]
  text = _shown(source)
  if arrow == ARROW:
    return f'{text} to {" ".join(map(_shown, target)) or "nothing"}'
  return text


def _shown(character: str) -> str:
  """A character and its code point; only the latter where the character cannot be seen."""
  point = f'U+{ord(character):04X}'
  if character in _NAMES:
    return _NAMES[character]
  category = unicodedata.category(character)
  if category[0] in 'CZ' or character in '|`':
    return f'{unicodedata.name(character, "").lower()} {point}'.strip()
  # A mark is shown on a circle, since it would otherwise be drawn on what is before it.
  return f'{"◌" if category[0] == "M" else ""}{character} {point}'
