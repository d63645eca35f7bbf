"""Measures tokenizers on texts in many languages, for the table in docs/languages.md.

  pip install babel
  python benchmarks/languages.py --bert=VOCAB.TXT --json=benchmarks/results/languages.json

The texts are made of the word lists of Unicode CLDR that the package Babel ships: names of
languages, countries, currencies, units, time zones, months and days, drawn by Zipf's law, 12 to a
line. English is the bundled corpus. Tokenizers are trained on the text that they are measured on.
"""

import argparse
import contextlib
import io
import itertools
import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from electra_jax.data.corpus import corpora
from electra_jax.data.tokenizers import comparison, tokenization
from electra_jax.data.tokenizers.tokenizer_settings import UnsupportedSize

CHARACTERS = 60_000
PHRASES_PER_LINE = 12
VOCABULARY = 4000
LANGUAGES = {
  'am': 'Amharic', 'ar': 'Arabic', 'bn': 'Bengali', 'chr': 'Cherokee', 'de': 'German',
  'el': 'Greek', 'en': 'English', 'fa': 'Persian', 'fi': 'Finnish', 'gu': 'Gujarati',
  'he': 'Hebrew', 'hi': 'Hindi', 'hy': 'Armenian', 'ja': 'Japanese', 'ka': 'Georgian',
  'kk': 'Kazakh', 'km': 'Khmer', 'kn': 'Kannada', 'ko': 'Korean', 'lo': 'Lao',
  'ml': 'Malayalam', 'mr': 'Marathi', 'my': 'Burmese', 'ne': 'Nepali', 'or': 'Odia',
  'pa': 'Punjabi', 'pl': 'Polish', 'ru': 'Russian', 'si': 'Sinhala', 'ta': 'Tamil',
  'te': 'Telugu', 'th': 'Thai', 'tr': 'Turkish', 'ur': 'Urdu', 'vi': 'Vietnamese',
  'yo': 'Yoruba', 'zh': 'Chinese',
}  # fmt: skip
# Written without spaces between words.
SPACELESS = ('ja', 'km', 'lo', 'my', 'th', 'zh')


def phrases(code: str) -> list[str]:
  """The names in CLDR's lists of a language."""
  import babel

  locale = babel.Locale.parse(code)
  found = [*locale.languages.values(), *locale.territories.values(), *locale.currencies.values()]
  for forms in (*locale.months.values(), *locale.days.values()):
    for names in forms.values():
      found += names.values()
  found += [zone['city'] for zone in locale.time_zones.values() if 'city' in zone]
  found += [name for meta in locale.meta_zones.values() for name in meta.get('long', {}).values()]
  for patterns in locale._data['unit_patterns'].values():
    found += [str(text).replace('{0}', '').strip() for text in _texts(patterns)]
  return [text for text in dict.fromkeys(found) if len(text) > 1 and not text.isascii()]


def _texts(tree: object) -> list[str]:
  if isinstance(tree, dict):
    return [text for value in tree.values() for text in _texts(value)]
  return [tree] if isinstance(tree, str) and '{0}' in tree else []


def text(code: str) -> str:
  """About `CHARACTERS` characters in a language."""
  if code == 'en':
    documents = itertools.islice(corpora.read_documents('sample'), CHARACTERS // 1000)
    return '\n'.join(documents)[:CHARACTERS]
  rng = random.Random(code)
  words = phrases(code)
  rng.shuffle(words)
  weights = [1 / (rank + 10) for rank in range(len(words))]
  separator = '' if code in SPACELESS else ' '
  lines: list[str] = []
  while sum(map(len, lines)) < CHARACTERS:
    lines.append(separator.join(rng.choices(words, weights, k=PHRASES_PER_LINE)))
  return '\n'.join(lines)


def trained(sample: str, size: int, **settings: object) -> tokenization.Tokenizer:
  """A tokenizer of a size, or of the nearest one that the text supports."""
  while True:
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        return tokenization.train_tokenizer(
          [sample],
          tokenization.TokenizerSettings(vocab_size=size, normalization='auto', **settings),
        )
    except UnsupportedSize as error:
      size = error.supported


def measured(code: str, bert: tokenization.Tokenizer) -> dict[str, object]:
  """The row of a language."""
  sample = text(code)
  unigram = trained(sample, VOCABULARY, kind='unigram', byte_fallback=True)
  wordpiece = trained(sample, unigram.size, kind='wordpiece')
  tokenizers = {'unigram': unigram, 'wordpiece': wordpiece, 'bert': bert}
  row: dict[str, object] = {
    'language': LANGUAGES[code],
    'script': ', '.join(s for s, share in comparison.scripts([sample]) if share > 0.1),
    'characters': len(sample),
  }
  for name, tokenizer in tokenizers.items():
    found = comparison.measure(tokenizer, [sample])
    row[name] = {
      'size': found.size,
      'tokens_per_word': round(found.tokens_per_word, 2),
      'tokens_per_character': round(found.tokens_per_character, 3),
      'whole_words': round(found.whole_share, 3),
      'round_trip': round(found.round_trip, 3),
      **{
        fate: round(getattr(found.losses, fate) / found.characters, 4)
        for fate in ('unknown', 'removed', 'case_folded', 'white_space', 'changed')
      },
    }
  return row


def markdown(rows: list[dict[str, object]]) -> str:
  """The table of docs/languages.md."""
  lines = [
    '| language | script | unigram: size | tokens per word | lost | same lines '
    '| WordPiece: size | tokens per word | lost | BERT uncased: tokens per word | unknown '
    '| removed | changed | same lines |',
    '|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|',
  ]
  for row in rows:
    unigram, wordpiece, bert = row['unigram'], row['wordpiece'], row['bert']
    cells = [
      row['language'] + ('*' if row['spaceless'] else ''),
      row['script'],
      f'{unigram["size"]:,}',
      f'{unigram["tokens_per_word"]:.2f}',
      f'{unigram["unknown"] + unigram["removed"]:.1%}',
      f'{unigram["round_trip"]:.0%}',
      f'{wordpiece["size"]:,}',
      f'{wordpiece["tokens_per_word"]:.2f}',
      f'{wordpiece["unknown"] + wordpiece["removed"]:.1%}',
      f'{bert["tokens_per_word"]:.2f}',
      f'{bert["unknown"]:.1%}',
      f'{bert["removed"]:.1%}',
      f'{bert["changed"]:.1%}',
      f'{bert["round_trip"]:.0%}',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures all languages, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--bert', required=True, help="BERT's uncased vocab.txt")
  parser.add_argument('--json', help='file to write')
  parser.add_argument('--only', help='codes of languages, separated by commas')
  arguments = parser.parse_args()
  bert = tokenization.load_tokenizer(arguments.bert, lowercase=True)
  codes = arguments.only.split(',') if arguments.only else sorted(LANGUAGES, key=LANGUAGES.get)
  rows = []
  for code in codes:
    rows.append(measured(code, bert) | {'spaceless': code in SPACELESS})
    print(LANGUAGES[code], file=sys.stderr, flush=True)
  if arguments.json:
    pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + '\n')
  print(markdown(rows))


if __name__ == '__main__':
  main()
