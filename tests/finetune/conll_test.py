"""Words and tags are read from all layouts, with any line ends; errors name the line."""

import io
import pathlib
import types

import pytest

from electra_jax.errors import UserError
from electra_jax.finetune.tasks import conll
from electra_jax.finetune.tasks.conll import SentenceLayout, read_sentences

REAL = pathlib.Path(__file__).parents[3] / 'shared/data/tagging'

CONLL2003 = """-DOCSTART- -X- -X- O

Mora NNP B-NP B-PER
sees VBZ B-VP O
" " O O
# NN B-NP O

Tiru NNP B-NP B-LOC
"""
CONLL2000 = 'Mora NNP B-NP\nsees VBZ B-VP\n. . O\n\nTiru NNP B-NP\n\n'
WNUT17 = '@mora\tO\n#tiru\tB-person\n\t\n #1\tO\n'.replace('\n #1', '\n#1')
UNER = """# newdoc id = a
# sent_id = a-1
# text = Al Mora sees it
1\tAl\tB-PER\t-\tx
2\tMora\tI-PER\t-\tx
3\tsees\tO

# sent_id = a-2
1\t#\tO
"""
MULTICONER = '# id f4-23\tdomain=en\nmora _ _ B-PER\n# _ _ O\n\n# id 9\nit _ _ O\n'
CONLLU = """# sent_id = s1
# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\tNER=B-X|SpaceAfter=No
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\tNER=I-X
2.1\tleft\tleave\tVERB\tVBD\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

# sent_id = s2
1\t2\t2\tNUM\tCD\t_\t0\troot\t_\t_
"""


def read(tmp_path, content, name='data.conll', **layout):
  path = tmp_path / name
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return read_sentences(str(path), SentenceLayout(**layout))


def short(sentences):
  return [(' '.join(s.tokens), ' '.join(s.tags) if s.tags is not None else None) for s in sentences]


CASES = [
  ('data.conll', CONLL2003, {}, [('Mora sees " #', 'B-PER O O O'), ('Tiru', 'B-LOC')]),
  (
    'eng.testa',
    CONLL2003,
    {'tags': '2'},
    [('Mora sees " #', 'B-NP B-VP O B-NP'), ('Tiru', 'B-NP')],
  ),
  (
    'data.txt',
    CONLL2003,
    {'tags': '-2'},
    [('Mora sees " #', 'B-NP B-VP O B-NP'), ('Tiru', 'B-NP')],
  ),
  ('train.txt', CONLL2000, {}, [('Mora sees .', 'B-NP B-VP O'), ('Tiru', 'B-NP')]),
  ('wnut17train.conll', WNUT17, {}, [('@mora #tiru', 'O B-person'), ('#1', 'O')]),
  ('data.tsv', WNUT17, {}, [('@mora #tiru', 'O B-person'), ('#1', 'O')]),
  ('data.iob2', UNER, {}, [('Al Mora sees', 'B-PER I-PER O'), ('#', 'O')]),
  ('data.conll', MULTICONER, {}, [('mora #', 'B-PER O'), ('it', 'O')]),
  ('data.conllu', CONLLU, {}, [("Do n't go", 'AUX PART VERB'), ('2', 'NUM')]),
  ('data', CONLLU, {}, [("Do n't go", 'AUX PART VERB'), ('2', 'NUM')]),
  ('data.conllu', CONLLU, {'tags': 'xpos'}, [("Do n't go", 'VB RB VB'), ('2', 'CD')]),
  ('data.conllu', CONLLU, {'tags': 'NER'}, [("Do n't go", 'B-X I-X O'), ('2', 'O')]),
  ('data.conllu', CONLLU, {'tags': 'Nothing'}, [("Do n't go", None), ('2', None)]),
  (
    'data.jsonl',
    '{"tokens": ["a b", "c"], "tags": ["X", "Y"], "id": 7}\n{"tokens": [], "tags": []}\n',
    {},
    [('a b c', 'X Y'), ('', '')],
  ),
  ('data.jsonl', '{"text": ["a"], "label": ["X"]}', {}, [('a', 'X')]),
  (
    'data.jsonl',
    '{"w": "a  b", "pos": ["X", "Y"]}\n\n{"w": "c"}',
    {'text': 'w', 'label': 'pos'},
    [('a b', 'X Y'), ('c', None)],
  ),
  ('data.json', '[{"tokens": ["a"], "tags": ["X"]}]', {}, [('a', 'X')]),
  ('data.conll', 'Mora\nsees\n\nTiru\n', {}, [('Mora sees', None), ('Tiru', None)]),  # test files
  ('data.conll', 'Mora _\nsees _\n\nTiru _\n', {}, [('Mora sees', None), ('Tiru', None)]),
  ('data.iob2', '1\tMora\n2\tsees\n', {}, [('Mora sees', None)]),
  ('data.conll', '"\tO\n""a\tO\n', {}, [('" ""a', 'O O')]),  # quotes are words
  (
    'data.conll',
    'a\u00a0b O\n\u2028x O\n',
    {},
    [('a\u00a0b \u2028x', 'O O')],
  ),  # other white space is part of words
  ('data.conll', '1 O\n2 O\n', {}, [('1 2', 'O O')]),  # numbers that are words
]


@pytest.mark.parametrize('name, content, layout, expected', CASES)
def test_each_layout_is_read(tmp_path, name, content, layout, expected):
  assert short(read(tmp_path, content, name, **layout)) == expected


@pytest.mark.parametrize('name, content, layout, expected', CASES)
def test_line_ends_blank_lines_and_byte_order_marks_do_not_matter(
  tmp_path, name, content, layout, expected
):
  for changed in (
    content.replace('\n', '\r\n'),
    content.rstrip('\n'),
    content + '\n \n\t\n',
    '\ufeff' + content,
    '\n\n' + content,
  ):
    if name != 'data.json' or '\ufeff' not in changed:
      assert short(read(tmp_path, changed, name, **layout)) == expected, repr(changed)


def test_line_numbers_and_ids_are_kept(tmp_path):
  one, two = read(tmp_path, CONLLU, 'data.conllu')
  assert (one.id, one.lines, two.id, two.lines) == ('s1', (4, 5, 7), 's2', (10,))
  assert [s.id for s in read(tmp_path, MULTICONER)] == ['f4-23', '9']
  assert [s.lines for s in read(tmp_path, CONLL2003)] == [(3, 4, 5, 6), (8,)]


@pytest.mark.parametrize(
  'name, content, layout, message',
  [
    (
      'a.conll',
      'Mora O\nsees it O\n',
      {},
      "line 2 of the file '.*a.conll' has 3 columns; expected 2 as in the first line",
    ),
    ('a.conll', 'Mora NN O\nsees NN\n', {'tags': '2'}, "line 2 of the file '.*' has no tag"),
    ('a.conll', 'Mora\tO\n\tO\n', {}, 'line 2 of .* has no word'),
    ('a.conll', '\n\n', {}, "the file '.*a.conll' has no sentences"),
    ('a.conllu', '1\tMora\tO\n', {}, 'line 1 of .* has 3 columns; expected the ten of CoNLL-U'),
    (
      'a.conllu',
      CONLLU + 'Mora O\n',
      {},
      "line 11 of .* starts with 'Mora'; expected the number of a word",
    ),
    ('a.conllu', CONLLU, {'auto': ''}, 'is CoNLL-U, .* set data.tags to their key'),
    ('a.conllu', CONLLU, {'tags': '12'}, 'data.tags is 12, and CoNLL-U has ten columns'),
    (
      'a.conll',
      CONLL2003,
      {'tags': 'upos'},
      "data.tags is 'upos'; expected a column number, from 0",
    ),
    ('a.csv', 'a,b\n', {}, 'is CSV'),
    ('a.conll', b'Mora O\n\xff O\n', {}, 'line 2 of .* is not UTF-8'),
    ('a.jsonl', '{"tokens": ["a"], "tags": ["X", "Y"]}', {}, 'line 1 of .* has 2 tags for 1 words'),
    (
      'a.jsonl',
      '{"tokens": ["a"], "tags": [1]}',
      {},
      "line 1 of .* has in its field 'tags' integers; set data.label_names",
    ),
    ('a.jsonl', '{"forms": ["a"]}', {}, "line 1 of .* has no field 'text'; its fields are 'forms'"),
    ('a.jsonl', '{"tokens": ["a"]\n', {}, 'line 1 of .* is not valid JSON'),
  ],
)
def test_errors_name_their_line(tmp_path, name, content, layout, message):
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path, content, name, **layout)
  assert '\n' not in str(error.value)


def test_a_format_without_tags_is_an_error():
  with pytest.raises(
    UserError, match="data.format is 'csv'; expected one of auto, conll, conllu, tsv, jsonl, json"
  ):
    SentenceLayout(format='csv')


def test_standard_input_may_be_json(monkeypatch):
  monkeypatch.setattr('sys.stdin', types.SimpleNamespace(buffer=io.BytesIO(b'{"tokens": ["a"]}\n')))
  assert short(read_sentences('-', SentenceLayout())) == [('a', None)]


def test_written_columns_can_be_read(tmp_path):
  sentences = read(
    tmp_path,
    '{"tokens": ["a b", "#", "c"], "tags": ["B-X", "I-X", "O"]}\n{"tokens": ["d"], "tags": ["O"]}',
    'a.jsonl',
  )
  content = conll.to_columns(sentences, [['O', 'B-Y', 'O'], ['B-Y']])
  assert content == b'a_b B-X O\n# I-X B-Y\nc O O\n\nd O B-Y\n\n'
  assert short(read(tmp_path, content)) == [('a_b # c', 'O B-Y O'), ('d', 'B-Y')]
  untagged = [s._replace(tags=None) for s in sentences]
  assert short(read(tmp_path, conll.to_columns(untagged, [['O', 'B-Y', 'O'], ['B-Y']]))) == [
    ('a_b # c', 'O B-Y O'),
    ('d', 'B-Y'),
  ]


@pytest.mark.skipif(not REAL.exists(), reason='needs ../shared/data/tagging')
@pytest.mark.parametrize(
  'name, sentences, words',
  [
    ('ud_ewt/en_ewt-ud-dev.conllu', 2001, 25147),
    ('uner_ewt/en_ewt-ud-dev.iob2', 2001, 25149),
    ('uner_ewt/en_ewt-ud-test.iob2', 2077, 25097),
    ('uner_ewt/en_ewt-ud-train.first-version.iob2', 12543, 204579),
    ('wnut17/wnut17train.conll', 3394, 62730),
    ('wnut17/emerging.dev.conll', 1009, 15733),
    ('wnut17/emerging.test.annotated', 1287, 23394),
  ],
)
def test_real_files_are_read_completely(name, sentences, words):
  found = read_sentences(str(REAL / name), SentenceLayout())
  assert (len(found), sum(len(s.tokens) for s in found)) == (sentences, words)
