"""Characters that fine-tuning, prediction and opened runs lose: counted, warned of, refused."""

import dataclasses
import json
import types
import warnings

import finetune_files
import made_tokenizers
import numpy as np
import pytest

from electra_jax.config import FinetuningConfig
from electra_jax.data.tokenizers import tokenization
from electra_jax.errors import UserError
from electra_jax.finetune import finetuned, predict, splits, task_losses
from electra_jax.finetune.tasks.conll import Sentence

THAI = 'ภูเขาขายได้อาหารหนังสือมีกฎหมายอากาศการความไปมีที่ฝนเลือกตั้ง'
LATIN = 'the old man and the sea, far away from the land'


@pytest.fixture(scope='module')
def tokenizer():
  """A vocabulary without Thai."""
  return made_tokenizers.train(
    made_tokenizers.documents(), kind='wordpiece', vocab_size=400, lowercase=True
  )


def task(folder, *texts):
  path = folder / 'texts.jsonl'
  rows = [{'text': text, 'label': str(i % 2)} for i, text in enumerate(texts)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return finetune_files.opened('classification', train=path, dev=path)


def features_of(opened, tokenizer, **fields):
  return splits.training_split(FinetuningConfig().replace(fields), opened, tokenizer).features


def test_fine_tuning_on_text_without_a_vocabulary_is_refused(tmp_path, tokenizer):
  opened = task(tmp_path, *[THAI] * 4)
  with pytest.raises(UserError) as caught:
    features_of(opened, tokenizer)
  message = str(caught.value)
  assert 'loses 100.0% of the characters' in message and 'U+0E' in message
  assert 'of the train data of classification' in message
  assert 'byte fallback' in message and '--config.allow_loss=True' in message


def test_a_flag_continues_with_a_warning(tmp_path, tokenizer, capsys):
  rows = features_of(task(tmp_path, *[THAI] * 4), tokenizer, allow_loss=True)
  assert len(rows) == 4
  printed = capsys.readouterr().out
  assert 'warning' in printed and '100.0% unknown ([UNK])' in printed


def test_one_percent_is_a_warning_and_less_is_none(tmp_path, tokenizer, capsys):
  features_of(task(tmp_path, LATIN, f'{LATIN} แ'), tokenizer)
  assert 'most often แ U+0E41 1' in capsys.readouterr().out
  features_of(task(tmp_path, LATIN * 3, f'{LATIN} แ'), tokenizer)
  printed = capsys.readouterr().out
  assert '0.526% unknown' in printed and 'warning' not in printed


def test_truncated_characters_are_counted_and_warned_of(tmp_path, tokenizer, capsys):
  opened = task(tmp_path, LATIN, LATIN * 10)
  features_of(opened, tokenizer, max_length=32)
  printed = capsys.readouterr().out
  assert 'truncated' in printed and 'are truncated; use longer rows' in printed
  examples = opened.examples('train')
  features, _ = opened.features(examples, tokenizer, 32)
  losses = task_losses.count_losses(opened, examples, features, tokenizer)
  (ids, spans) = tokenizer.encode_with_offsets([LATIN * 10])[0]
  assert losses.characters == 11 * len(LATIN)
  assert losses.truncated == 10 * len(LATIN) - spans[29, 1] and len(ids) > 30


def test_both_texts_of_a_pair_are_counted(tmp_path, tokenizer):
  path = tmp_path / 'pairs.jsonl'
  rows = [{'text': LATIN * 5, 'pair': THAI, 'label': str(i)} for i in range(2)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  opened = finetune_files.opened('classification', train=path, dev=path, pair='pair')
  examples = opened.examples('train')
  features, _ = opened.features(examples, tokenizer, 64)
  losses = task_losses.count_losses(opened, examples, features, tokenizer)
  assert losses.unknown == 2 * len(THAI) and losses.truncated > 0
  assert losses.characters == 2 * (5 * len(LATIN) + len(THAI))


def test_words_of_tagging_are_counted(tmp_path, tokenizer):
  path = tmp_path / 'tags.conll'
  path.write_text(f'the O\n{THAI} B-X\n\nold O\n\n')
  opened = finetune_files.opened('tagging', train=path, dev=path)
  examples = opened.examples('train')
  assert isinstance(examples[0], Sentence)
  features, _ = opened.features(examples, tokenizer, 64)
  losses = task_losses.count_losses(opened, examples, features, tokenizer)
  assert (losses.characters, losses.unknown) == (len(THAI) + len('the old'), len(THAI))


def test_many_examples_are_sampled(tmp_path, tokenizer, monkeypatch):
  monkeypatch.setattr(task_losses, 'SAMPLE', 10 * len(LATIN))
  opened = task(tmp_path, *[LATIN] * 100)
  examples = opened.examples('train')
  features, _ = opened.features(examples, tokenizer, 64)
  losses = task_losses.count_losses(opened, examples, features, tokenizer)
  assert losses.characters == 10 * len(LATIN) and losses.lost == 0


@pytest.fixture
def run(tmp_path, tokenizer):
  """What prediction uses of an opened run, whose model answers nothing."""

  class Run(finetuned.FineTunedRun):
    def outputs(self, features, progress=None):
      return {'logits': np.zeros([len(features), 2], np.float32)}

  fields = dict.fromkeys(finetuned.FineTunedRun.__dataclass_fields__)
  opened = task(tmp_path, LATIN, LATIN)
  given = {'task': opened, 'tokenizer': tokenizer, 'max_length': 64, 'config': FinetuningConfig()}
  return Run(**fields | given)


def test_prediction_refuses_text_that_is_lost_and_a_flag_continues(run, tmp_path, capsys):
  path = tmp_path / 'input.txt'
  path.write_text(f'{THAI}\n{THAI}\n')
  with pytest.raises(UserError, match='of the input of classification; .* or set --allow_loss to'):
    predict._predict_file(run, str(path), None, allow_loss=False)
  predict._predict_file(run, str(path), None, allow_loss=True)
  printed = capsys.readouterr()
  allowed = dataclasses.replace(run, config=run.config.replace({'allow_loss': True}))
  predict._predict_file(allowed, str(path), str(tmp_path / 'output'), allow_loss=False)
  assert len(printed.out.splitlines()) == 2  # predictions and nothing else
  assert 'electra_jax: warning: the tokenizer loses 100.0%' in printed.err


def test_an_opened_run_warns_once(run):
  with pytest.warns(UserWarning, match='loses 98.5% of the characters .* of these examples'):
    run(run.task.examples('train')[:1] + [run.task.examples('train')[0]._replace(first=THAI * 50)])
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    run([run.task.examples('train')[0]._replace(first=THAI)])


def test_a_task_of_user_code_without_texts_is_not_counted(tokenizer):
  losses = task_losses.count_losses(types.SimpleNamespace(), [1], None, tokenizer)
  assert losses.characters == 0


def test_text_that_the_tokenizer_keeps_is_not_warned_of(run):
  assert isinstance(run.tokenizer, tokenization.Tokenizer)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert len(run(run.task.examples('train'))) == 2
