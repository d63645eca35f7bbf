"""Made tests/golden/saved_dataset with datasets 5.2.0: a folder of two splits, and Parquet.

Run with a Python that has datasets: python tests/golden/make_saved_dataset.py
"""

import pathlib

import datasets

TAGS = datasets.ClassLabel(names=['O', 'B-PER', 'I-PER'])
FEATURES = datasets.Features(
  {
    'tokens': datasets.Sequence(datasets.Value('string')),
    'ner_tags': datasets.Sequence(TAGS),
    'label': datasets.ClassLabel(names=['bad', 'good']),
  }
)
ROWS = {
  'tokens': [['Ann', 'Lee', 'ran'], ['it', 'is'], ['Bob']],
  'ner_tags': [[1, 2, 0], [0, 0], [1]],
  'label': [1, 0, -1],
}

if __name__ == '__main__':
  folder = pathlib.Path(__file__).with_name('saved_dataset')
  train = datasets.Dataset.from_dict(ROWS, features=FEATURES)
  splits = {'train': train, 'validation': train.select([0, 1])}
  datasets.DatasetDict(splits).save_to_disk(folder)
  train.to_parquet(folder / 'train.parquet')
