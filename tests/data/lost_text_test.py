"""Corpora of which a tokenizer loses much: counted by source, warned of, refused, and advised on.

The inputs are like those of ../shared/cases, which are used where that folder is.
"""

import dataclasses
import pathlib
import random

import made_tokenizers
import pytest

from electra_jax.data.prepare import advice, blocks, preparation, preparation_report
from electra_jax.data.prepare.recipe import CorpusRecipe
from electra_jax.data.tokenizers import comparison
from electra_jax.data.tokenizers.character_losses import CharacterLosses
from electra_jax.errors import UserError

CASES = pathlib.Path(__file__).parents[3] / 'shared' / 'cases'
HINDI = 'हिन्दी में पढ़ना और लिखना बच्चे मुंबई के समय वह फूल पहाड़ का कहानी खेल शिक्षा'.split()
TURKISH = 'IŞIK ışık İZMİR izmir KISA kısa ÖĞÜN öğün yiyor YİYOR İstanbul'.split()
PERSIAN = 'می\u200cخواهم کتاب\u200cها را بخوانم نمی\u200cشود خانه\u200cای'.split()


def documents(words, count=24, separator=' '):
  rng = random.Random(0)
  return [separator.join(rng.choices(words, k=60)) for _ in range(count)]


def with_english(texts):
  """Texts of few words among others, which support a vocabulary."""
  return [*texts, *made_tokenizers.documents()[:10]]


def proteins():
  rng = random.Random(0)
  return [''.join(rng.choices('ACDEFGHIKLMNPQRSTVWY', k=rng.randint(200, 400))) for _ in range(30)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('lost')


def written(folder, name, texts):
  path = folder / name
  path.write_text('\n\n'.join(texts), encoding='utf-8')
  return str(path)


@pytest.fixture(scope='module')
def english(folder):
  """The folder of a WordPiece vocabulary of English, with BERT's normalization."""
  made_tokenizers.train(made_tokenizers.documents(), kind='wordpiece', vocab_size=500).save(
    folder / 'english'
  )
  return str(folder / 'english')


def recipe(source, tokenizer='wordpiece', **fields):
  return CorpusRecipe(
    source, row_length=32, heldout_fraction=0.2, tokenizer=tokenizer, **{'vocab_size': 200} | fields
  )


def prepare(folder, made, **settings):
  return preparation.prepare_corpus(made, cache=folder / 'cache', **settings)


def refused(folder, made):
  with pytest.raises(UserError) as caught:
    prepare(folder, made)
  return str(caught.value)


def loss_of(prepared):
  (source,) = prepared.facts['sources']
  return preparation_report.losses_of(source)


def test_words_over_the_limit_of_wordpiece_are_refused(folder):
  message = refused(folder, recipe(written(folder, 'protein.txt', proteins())))
  assert 'the tokenizer loses 100.0% of the characters (100.0% unknown, most often' in message
  assert 'splits words of any length: SentencePiece (config.data.tokenizer=unigram)' in message
  assert message.endswith('or set --config.data.allow_loss=True to continue.')


def test_after_an_error_a_flag_continues_where_it_ended(folder, capsys, monkeypatch):
  made = recipe(written(folder, 'again.txt', proteins()))
  refused(folder, made)

  def fail(*arguments):
    raise AssertionError('a block is made again')

  monkeypatch.setattr(blocks, '_rows', fail)
  prepared = prepare(folder, dataclasses.replace(made, allow_loss=True))
  assert loss_of(prepared).unknown == prepared.facts['sources'][0]['characters']
  capsys.readouterr()
  prepare(folder, made)  # it exists, and is opened with the same warning
  assert 'warning      the tokenizer loses 100.0%' in capsys.readouterr().out


def test_a_large_source_is_refused_before_the_work_begins(folder, english, monkeypatch):
  thai = documents(['บ้าน', 'เมือง'], separator='')
  source = written(folder, 'large_thai.txt', [*thai, *made_tokenizers.documents()[:30]])
  monkeypatch.setattr(advice, 'LARGE_BYTES', 0)
  monkeypatch.setattr(advice, 'SAMPLE', 5000)
  monkeypatch.setattr(blocks, '_rows', None)
  assert 'of the beginning of the source' in refused(folder, recipe(source, english))


def test_vowel_signs_that_bert_strips_are_counted_with_their_code_points(folder, capsys):
  source = written(folder, 'hindi.txt', with_english(documents(HINDI)))
  prepared = prepare(folder, recipe(source, vocab_size=400))
  losses = loss_of(prepared)
  expected = sum(
    text.count(sign) for text in documents(HINDI) for sign in '\u094d\u0947\u0902\u093c\u0941\u0942'
  )
  assert 0 < losses.removed <= expected
  printed = capsys.readouterr().out
  assert 'removed      most often ◌' in printed and 'use config.data.strip_accents=no' in printed
  assert '## Characters' in pathlib.Path(prepared.path, 'report.md').read_text()
  kept = prepare(folder, recipe(source, vocab_size=400, normalization='auto'))
  assert loss_of(kept).removed == 0


def test_joiners_are_counted_as_spaces_and_kept_by_default(folder):
  source = written(folder, 'persian.txt', with_english(documents(PERSIAN)))
  sizes = {'tokenizer': 'unigram', 'vocab_size': 300}
  joiners = sum(text.count('\u200c') for text in documents(PERSIAN))
  original = prepare(folder, recipe(source, **sizes)).facts
  found = [preparation_report.losses_of(original[split]) for split in ('train', 'heldout')]
  assert sum(one.examples['white_space']['\u200c→ '] for one in found) == joiners
  assert (
    '\u200c→ '
    not in loss_of(prepare(folder, recipe(source, **sizes, normalization='auto'))).examples[
      'white_space'
    ]
  )


def test_turkish_words_in_upper_and_lower_case_are_the_same_word(folder):
  source = written(folder, 'turkish.txt', with_english(documents(TURKISH)))
  made = recipe(source, normalization='auto', casing='turkish', vocab_size=400)
  tokenizer = prepare(folder, made).tokenizer
  assert tokenizer.encode('IŞIK') == tokenizer.encode('ışık')
  assert tokenizer.encode('İZMİR') == tokenizer.encode('izmir')


@pytest.mark.parametrize('fields', [{'normalization': 'nfc'}, {'casing': 'turkish'}])
def test_a_given_tokenizer_keeps_its_own_rule(folder, english, fields):
  source = written(folder, 'rule.txt', documents(['the', 'sea']))
  (name,) = fields
  message = refused(folder, recipe(source, english, **fields))
  assert message.startswith(f'config.data.{name} is ') and 'has its own rule' in message
  kept = prepare(folder, recipe(source, english, normalization='auto')).tokenizer
  assert kept.read_by_original_program


def test_a_source_is_refused_although_others_are_kept(folder, english):
  good = written(folder, 'good.txt', made_tokenizers.documents()[:30])
  thai = written(folder, 'thai.txt', documents(['บ้าน', 'เมือง', 'ภาษา'], separator=''))
  message = refused(folder, recipe(f'{good},{thai}', english))
  assert f'of the source {thai!r}' in message and good not in message
  assert 'SentencePiece with byte fallback' in message
  prepared = prepare(
    folder, dataclasses.replace(recipe(f'{good},{thai}', english), allow_loss=True)
  )
  first, second = map(preparation_report.losses_of, prepared.facts['sources'])
  assert first.lost_share < 0.01 and second.lost_share == 1


def test_one_percent_is_a_warning_and_less_is_none(folder, english, capsys):
  words = 'the old man and the sea'.split()
  few = written(folder, 'few.txt', [f'{text} แ' for text in documents(words)])
  assert 0 < loss_of(prepare(folder, recipe(few, english))).lost_share < 0.01
  assert 'warning' not in capsys.readouterr().out
  some = written(folder, 'some.txt', [f'{text} แแแแแแแแ' for text in documents(words)])
  assert 0.01 < loss_of(prepare(folder, recipe(some, english))).lost_share < 0.2
  assert 'warning' in capsys.readouterr().out


def test_text_cut_off_by_segment_pair_is_warned_of(folder, english, capsys):
  lines = ['\n'.join(documents(['the', 'old', 'sea', f'{i}'], count=6)) for i in range(24)]
  made = recipe(written(folder, 'lines.txt', lines), english)
  prepare(folder, dataclasses.replace(made, row_format='segment_pair'))
  printed = capsys.readouterr().out
  assert 'characters, cut off by segment_pair' in printed
  assert 'is cut off by segment_pair; use config.data.row_format=packed' in printed


def test_a_sample_is_counted_in_large_blocks(folder, english, monkeypatch):
  source = written(folder, 'large.txt', [f'{text} แ' for text in documents(['the', 'sea'], 400)])
  whole = loss_of(prepare(folder, recipe(source, english)))
  monkeypatch.setattr(blocks, 'FIRST_SAMPLE', 20_000)
  (folder / 'sampled').mkdir()
  sampled = loss_of(prepare(folder / 'sampled', recipe(source, english)))
  assert 14_000 < sampled.characters < 18_000 < whole.characters
  assert sampled.lost_share == pytest.approx(whole.lost_share, rel=0.2)


def test_facts_of_version_0_1_0_have_no_losses():
  total = blocks.add_losses({}, {'documents': 1})
  assert CharacterLosses.from_plain(total) == CharacterLosses()
  assert preparation_report.losses_of({}).characters == 0


#### Advice ####


def test_advice_measures_the_tokenizer_beside_two_others(folder, english):
  source = written(folder, 'mixed.txt', [*made_tokenizers.documents()[:10], *documents(HINDI)])
  made = recipe(source, english)
  found = advice.advise(made, prepare(folder, dataclasses.replace(made, allow_loss=True)).tokenizer)
  names = [name for name, _ in found.rows]
  assert len(names) == 3 and names[0] == f'this corpus: {english}'
  own, *others = [measures for _, measures in found.rows]
  assert own.losses.lost_share > 0.03 > max(other.losses.lost_share for other in others)
  assert [name for name, _ in found.scripts] == ['Latin', 'Devanagari']
  lines = advice.measures_table(found.rows)
  assert len(lines) == 4 and len(set(map(len, lines))) == 1


def test_measures_are_those_of_the_text():
  tokenizer = made_tokenizers.train(
    made_tokenizers.documents(), kind='unigram', vocab_size=500, byte_fallback=True
  )
  found = comparison.measure(tokenizer, ['the sea\nof  the', 'บ้าน'])
  assert (found.words, found.characters, found.lines, found.same_lines) == (5, 19, 3, 2)
  lines = ['the sea', 'of  the', 'บ้าน']
  assert found.tokens == sum(map(len, tokenizer.encode_batch(lines)))
  single = [w for w in ('the', 'sea', 'of', 'the', 'บ้าน') if len(tokenizer.encode(w)) == 1]
  assert found.whole_words == len(single)
  assert found.tokens_per_word == found.tokens / 5


def test_words_keep_marks_and_joiners():
  assert comparison.words_of(f'{HINDI[0]}, {PERSIAN[0]}! x_1') == [HINDI[0], PERSIAN[0], 'x', '1']


@pytest.mark.skipif(not CASES.exists(), reason='needs ../shared/cases')
@pytest.mark.parametrize('name', ['protein.txt', 'hindi.txt', 'turkish.txt'])
def test_published_cases_are_kept_or_reported(folder, name):
  source = str(CASES / name)
  if name == 'protein.txt':
    assert 'loses 100.0%' in refused(folder, recipe(source, vocab_size=150))
  else:
    size = 266 if name == 'hindi.txt' else 160
    made = recipe(source, vocab_size=size, normalization='auto', casing='turkish')
    assert loss_of(prepare(folder, made)).lost == 0
