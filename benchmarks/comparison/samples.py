"""A small corpus and labeled data of made-up words, the same for a given seed."""

import json
import pathlib
import random

SYLLABLES = 'ba ko ti ru me sa lo ni pe du fa gi'.split()


def vocabulary(seed: int = 0) -> list[str]:
  """500 words of one to four syllables."""
  rng = random.Random(seed)
  return [''.join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(500)]


def corpus(path: pathlib.Path, documents: int = 120, seed: int = 0) -> None:
  """Writes a text file of documents, separated by blank lines."""
  rng, words = random.Random(seed), vocabulary(seed)
  texts = [' '.join(rng.choices(words, k=rng.randint(40, 80))) + '.' for _ in range(documents)]
  path.write_text('\n\n'.join(texts) + '\n', 'utf-8')


def example(task: str, rng: random.Random, words: list[str]) -> dict:
  """One labeled example, as a line of JSON holds it."""
  if task == 'span':
    context = rng.sample(words, k=5)
    return {'text': rng.choice(words), 'pair': ' '.join(context), 'label': rng.choice(context)}
  text = rng.choices(words, k=rng.randint(3, 7))
  if task == 'tagging':
    return {'text': text, 'label': ['B-X' if len(word) > 4 else 'O' for word in text]}
  signal = sum(len(word) for word in text) / len(text)
  label = signal if task == 'regression' else ['short', 'long'][signal > 5]
  return {'text': ' '.join(text), 'pair': ' '.join(text[::-1]), 'label': label}


def labeled(folder: pathlib.Path, task: str, train: int = 80, dev: int = 16) -> None:
  """Writes train.jsonl and dev.jsonl of classification, regression, tagging or span."""
  folder.mkdir(parents=True)
  words = sorted(set(vocabulary()))
  for part, count, seed in (('train', train, 1), ('dev', dev, 2)):
    rng = random.Random(seed)
    lines = [json.dumps(example(task, rng, words)) for _ in range(count)]
    (folder / f'{part}.jsonl').write_text('\n'.join(lines) + '\n', 'utf-8')
