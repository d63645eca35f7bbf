"""config.data.source is parsed into sources; what is wrong in it is named in one sentence."""

import pytest

from electra_jax.data.corpus import corpora
from electra_jax.data.corpus.corpora import CorpusSource as Source
from electra_jax.errors import UserError

TFDS = {'field': 'text', 'split': 'train', 'data_dir': '', 'download': 'no'}


@pytest.mark.parametrize(
  'text, expected',
  [
    ('sample', [Source('sample', 'sample')]),
    ('./sample', [Source('./sample', 'line')]),
    ('a.txt', [Source('a.txt', 'line')]),
    (' a/*.txt.gz , b.TXT', [Source('a/*.txt.gz', 'line'), Source('b.TXT', 'line')]),
    (
      'a.jsonl,b.ndjson.zst,C.JSONL.GZ',
      [
        Source(name, 'jsonl', {'field': 'text'})
        for name in ('a.jsonl', 'b.ndjson.zst', 'C.JSONL.GZ')
      ],
    ),
    ('a/*.parquet ; field = body', [Source('a/*.parquet', 'parquet', {'field': 'body'})]),
    ('c4/*.json.gz;format=jsonl', [Source('c4/*.json.gz', 'jsonl', {'field': 'text'})]),
    ('logs.jsonl;format=file', [Source('logs.jsonl', 'file')]),
    (
      'sample;weight=2,a.txt;weight=1e-3',
      [Source('sample', 'sample', weight=2.0), Source('a.txt', 'line', weight=0.001)],
    ),
    (
      'wiki/*.txt.xz;weight=2, tfds:wikipedia/20230601.en;split=train[:50%];weight=1, '
      'gs://b/x-*.jsonl.gz;field=body;weight=.5',
      [
        Source('wiki/*.txt.xz', 'line', weight=2.0),
        Source('tfds:wikipedia/20230601.en', 'tfds', TFDS | {'split': 'train[:50%]'}, weight=1.0),
        Source('gs://b/x-*.jsonl.gz', 'jsonl', {'field': 'body'}, weight=0.5),
      ],
    ),
    (
      'tfds:lm1b;field=t;data_dir=gs://b/d;download=yes',
      [
        Source(
          'tfds:lm1b',
          'tfds',
          {'field': 't', 'split': 'train', 'data_dir': 'gs://b/d', 'download': 'yes'},
        )
      ],
    ),
    (
      'tfds:gs://b/lm1b/1.1.0;split=train+test',
      [Source('tfds:gs://b/lm1b/1.1.0', 'tfds', TFDS | {'split': 'train+test'})],
    ),
  ],
)
def test_sources_are_parsed(text, expected):
  assert list(corpora.parse_sources(text, 'line')) == expected


@pytest.mark.parametrize(
  'text, expected',
  [
    ('', 'source is empty'),
    (';weight=2', "';weight=2' has options but no location"),
    (
      'a.txt;wieght=2',
      "has the unknown option 'wieght=2'; expected some of format=..., field=..., delimiter=...",
    ),
    ('a.txt;weight', "has the unknown option 'weight'"),
    ('a.txt;weight=', "'a.txt' has its option weight without a value"),
    ('a.txt;weight=1;weight=2', "'a.txt' has its option weight twice"),
    ('a.txt;weight=0', "'a.txt' has weight=0; expected a number above 0"),
    ('a.txt;weight=-1', 'weight=-1'),
    ('a.txt;weight=nan', 'weight=nan'),
    ('a.txt;weight=inf', 'weight=inf'),
    ('a.txt;weight=two', 'weight=two; expected a number above 0'),
    ('a.txt;weight=1,b.txt', "'b.txt' has no weight and others do"),
    (
      'a.txt;format=xml',
      "'a.txt' has format=xml; expected one of blank_line, line, file, jsonl, csv, parquet, arrow",
    ),
    ('a.txt;format=tfds', 'format=tfds; expected one of'),
    ('a.txt;format=line;field=body', "'a.txt' is text, which has no option field"),
    ('a.txt;data_dir=b', 'is text, which has no option data_dir'),
    ('a.csv;delimiter=x', 'has delimiter=x; expected one of comma, semicolon, tab, pipe'),
    ('a.csv;quotes=maybe', 'has quotes=maybe; expected yes or no'),
    ('a.txt;heldout=1', 'has heldout=1; expected a fraction of at least 0 and below 1'),
    ('a.jsonl;download=yes', 'is JSON lines, which has no option download'),
    ('a.parquet;data_dir=b', 'is Parquet, which has no option data_dir'),
    ('sample;format=line', 'is the bundled sample, which has no option format'),
    ('tfds:lm1b;format=line', 'is a TFDS dataset, which has no option format'),
    ('tfds:lm1b;download=maybe', 'has download=maybe; expected yes or no'),
    (
      'tfds:/data/lm1b/1.1.0;data_dir=b',
      'is the folder of a TFDS dataset, which has no option data_dir',
    ),
    ('a.parquet.gz', "'a.parquet.gz' is compressed Parquet"),
  ],
)
def test_errors_are_named(text, expected):
  with pytest.raises(UserError) as caught:
    corpora.parse_sources(text)
  assert expected in str(caught.value) and '\n' not in str(caught.value)


def test_an_option_must_belong_to_the_format_of_the_content(tmp_path):
  (tmp_path / 'a.txt').write_text('prose')
  for option in ('field=body', 'split=train'):
    with pytest.raises(UserError, match=f'is text, which has no option {option.split("=")[0]}'):
      corpora.groups(corpora.parse_sources(f'{tmp_path}/a.txt;{option}'))
  (tmp_path / 'a.txt').write_text('{"body": "x"}')
  (group,) = corpora.groups(corpora.parse_sources(f'{tmp_path}/a.txt;field=body'))
  assert group.source.format == 'jsonl'


def test_a_pattern_reads_each_file_in_its_format(tmp_path):
  for name in ('a.txt', 'b.jsonl', 'c.parquet.gz'):
    (tmp_path / name).write_text('{"text": "x"}' if name != 'a.txt' else 'x')
  found = corpora.groups(corpora.parse_sources(f'{tmp_path}/[ab].*', 'line'))
  assert [group.source.format for group in found] == ['line', 'jsonl']
  with pytest.raises(UserError, match='compressed Parquet'):
    corpora.groups(corpora.parse_sources(f'{tmp_path}/*'))
  assert corpora.groups(corpora.parse_sources(f'{tmp_path}/[ab].*;format=jsonl'))
  assert corpora.groups(corpora.parse_sources(f'{tmp_path}/*.jsonl;format=line'))


def test_sources_are_described():
  def words(text):
    return corpora.describe_sources(corpora.parse_sources(text))

  assert words('sample') == 'the bundled sample'
  assert words('a/*.txt;weight=2') == 'a/*.txt'
  assert (
    words('sample;weight=2,tfds:lm1b;weight=.5')
    == 'the bundled sample (weight 2), tfds:lm1b train (weight 0.5)'
  )
  assert words('a,b,c,d,e') == 'a, b and 3 more'
