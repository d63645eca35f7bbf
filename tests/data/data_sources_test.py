"""config.data.source says what is meant: each part is one source, and what cannot be is told in one sentence."""

import pytest

from electra_jax.data.corpus import corpora
from electra_jax.data.corpus.corpora import Source
from electra_jax.errors import UserError


@pytest.mark.parametrize(
  'text, expected',
  [
    ('sample', [Source('sample', 'sample')]),
    ('./sample', [Source('./sample', 'line')]),
    ('a.txt', [Source('a.txt', 'line')]),
    (' a/*.txt.gz , b.TXT', [Source('a/*.txt.gz', 'line'), Source('b.TXT', 'line')]),
    (
      'a.jsonl,b.ndjson.zst,C.JSONL.GZ',
      [Source(name, 'jsonl') for name in ('a.jsonl', 'b.ndjson.zst', 'C.JSONL.GZ')],
    ),
    ('a/*.parquet ; field = body', [Source('a/*.parquet', 'parquet', field='body')]),
    ('c4/*.json.gz;format=jsonl', [Source('c4/*.json.gz', 'jsonl')]),
    ('logs.jsonl;format=file', [Source('logs.jsonl', 'file')]),
    (
      'sample;weight=2,a.txt;weight=1e-3',
      [Source('sample', 'sample', weight=2.0), Source('a.txt', 'line', weight=0.001)],
    ),
    (
      'wiki/*.txt.xz;weight=2, tfds:wikipedia/20230601.en;split=train[:50%];weight=1, gs://b/x-*.jsonl.gz;field=body;'
      'weight=.5',
      [
        Source('wiki/*.txt.xz', 'line', weight=2.0),
        Source('tfds:wikipedia/20230601.en', 'tfds', split='train[:50%]', weight=1.0),
        Source('gs://b/x-*.jsonl.gz', 'jsonl', field='body', weight=0.5),
      ],
    ),
    (
      'tfds:lm1b;field=t;data_dir=gs://b/d;download=yes',
      [Source('tfds:lm1b', 'tfds', field='t', data_dir='gs://b/d', download=True)],
    ),
    (
      'tfds:gs://b/lm1b/1.1.0;split=train+test',
      [Source('tfds:gs://b/lm1b/1.1.0', 'tfds', split='train+test')],
    ),
  ],
)
def test_sources_are_what_they_say(text, expected):
  assert list(corpora.parse_sources(text, 'line')) == expected


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'source is empty'),
    (';weight=2', "';weight=2' has options and no file"),
    (
      'a.txt;wieght=2',
      "has an option 'wieght=2' that is not known; options are format=..., field=..., split=...",
    ),
    ('a.txt;weight', "has an option 'weight' that is not known"),
    ('a.txt;weight=', "'a.txt' gives its option weight no value"),
    ('a.txt;weight=1;weight=2', "'a.txt' gives its option weight twice"),
    ('a.txt;weight=0', "'a.txt' has weight=0; give a number above 0"),
    ('a.txt;weight=-1', 'weight=-1'),
    ('a.txt;weight=nan', 'weight=nan'),
    ('a.txt;weight=inf', 'weight=inf'),
    ('a.txt;weight=two', 'weight=two; give a number above 0'),
    ('a.txt;weight=1,b.txt', "'b.txt' has no weight and others do"),
    (
      'a.txt;format=csv',
      "'a.txt' has format=csv; it can be blank_line, line, file, jsonl, parquet",
    ),
    ('a.txt;format=tfds', 'format=tfds; it can be'),
    ('a.txt;field=body', "'a.txt' is text, for which field=... means nothing"),
    ('a.txt;split=train', 'is text, for which split=... means nothing'),
    ('a.jsonl;download=yes', 'is JSON lines, for which download=... means nothing'),
    ('a.parquet;data_dir=b', 'is Parquet, for which data_dir=... means nothing'),
    ('sample;format=line', 'is the bundled sample, for which format=... means nothing'),
    ('tfds:lm1b;format=line', 'is a TFDS dataset, for which format=... means nothing'),
    ('tfds:lm1b;download=maybe', 'has download=maybe; it can be yes or no'),
    (
      'tfds:/data/lm1b/1.1.0;data_dir=b',
      'is the folder of a TFDS dataset, for which data_dir=... means nothing',
    ),
    ('a.parquet.gz', "'a.parquet.gz' is compressed Parquet"),
    (
      'a.json.gz',
      "'a.json.gz' may be JSON lines or one JSON document; add ;format=jsonl where each line is an object",
    ),
    ('a.tar.gz', "'a.tar.gz' is an archive of files; unpack it"),
    ('a.zip', 'unpack it'),
  ],
)
def test_what_cannot_be_is_told(text, said):
  with pytest.raises(UserError) as caught:
    corpora.parse_sources(text)
  assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_pattern_that_mixes_kinds_of_files_is_told(tmp_path):
  for name in ('a.txt', 'b.jsonl', 'c.parquet.gz', 'd.json.gz'):
    (tmp_path / name).write_text('{"text": "x"}')
  for pattern, said in (
    ('[ab].*', "b.jsonl', which is no text"),
    ('*', 'which is no text'),
    ('c.*', 'compressed Parquet'),
    ('d*', "d.json.gz', which is no text"),
  ):
    with pytest.raises(UserError, match=said.replace('.', r'\.')):
      corpora.groups(corpora.parse_sources(f'{tmp_path}/{pattern}'))
  assert corpora.groups(corpora.parse_sources(f'{tmp_path}/[ab].*;format=jsonl'))
  assert corpora.groups(corpora.parse_sources(f'{tmp_path}/*.jsonl;format=line'))


def test_a_person_is_told_what_the_sources_are():
  def words(text):
    return corpora.describe_sources(corpora.parse_sources(text))

  assert words('sample') == 'the bundled sample'
  assert words('a/*.txt;weight=2') == 'a/*.txt'
  assert (
    words('sample;weight=2,tfds:lm1b;weight=.5')
    == 'the bundled sample (weight 2), tfds:lm1b train (weight 0.5)'
  )
  assert words('a,b,c,d,e') == 'a, b and 3 more'
