"""Makes a small labeled data set from the bundled text: sentences that are questions or statements.

  python examples/questions.py --output=questions

writes train.tsv and dev.tsv with the columns sentence and label. The sentences are in lower case
and have no punctuation, as a transcript of speech: the words alone tell the two apart. Statements
are as many and as long as questions.
"""

import argparse
import collections
import importlib.resources
import lzma
import pathlib
import random
import re

# From a capital letter to the first mark of the end, outside of names with initials or quotations.
SENTENCE = re.compile(r'([A-Z][^.?!:"]{15,150})([.?])(?=["\s])')
LABELS = {'?': 'question', '.': 'statement'}


def labeled_sentences(text: str) -> list[tuple[str, str]]:
  """Pairs of a sentence and its label, in random order.

  Args:
    text: in English, with punctuation.

  Returns:
    The questions of the text, and for each of them a statement with as many words.
  """
  found = {label: dict[str, None]() for label in LABELS.values()}
  for sentence, mark in SENTENCE.findall(text):
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", sentence.lower())
    found[LABELS[mark]][' '.join(words)] = None
  order = random.Random(0)
  statements = collections.defaultdict(list)
  for sentence in order.sample(list(found['statement']), len(found['statement'])):
    if sentence not in found['question']:
      statements[len(sentence.split())].append(sentence)
  pairs = []
  for sentence in found['question']:
    if same_length := statements[len(sentence.split())]:
      pairs += [(sentence, 'question'), (same_length.pop(), 'statement')]
  order.shuffle(pairs)
  return pairs


def main() -> None:
  """Writes both files."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--output', type=pathlib.Path, default=pathlib.Path('questions'))
  parser.add_argument(
    '--dev', type=int, default=400, help='sentences of dev.tsv; the others are train.tsv'
  )
  options = parser.parse_args()
  sample = importlib.resources.files('electra_jax') / 'data' / 'sample' / 'corpus.txt.xz'
  pairs = labeled_sentences(lzma.decompress(sample.read_bytes()).decode('utf-8'))
  options.output.mkdir(parents=True, exist_ok=True)
  for name, part in (('train', pairs[options.dev :]), ('dev', pairs[: options.dev])):
    lines = ['sentence\tlabel', *('\t'.join(pair) for pair in part)]
    path = options.output / f'{name}.tsv'
    path.write_text('\n'.join(lines) + '\n', 'utf-8')
    print(f'{path}: {len(part):,} sentences')


if __name__ == '__main__':
  main()
