"""The examples of docs/finetuning.md: their data and commands are read as the page says."""

import json
import pathlib
import re
import shlex

import micro_run
import pytest

from electra_jax.cli.command_line import parse_flags
from electra_jax.config import checked_finetuning
from electra_jax.finetune.dev_split import open_split_task

ROOT = pathlib.Path(__file__).parents[2]
# A block of data with the name of its file, and the command after it.
EXAMPLE = re.compile(
  r'^```\w+ (?P<name>\S+)\n(?P<data>[^`]*)^```\n\n    python -m electra_jax\.main (?P<command>.*)$',
  re.MULTILINE,
)
TEXT = (ROOT / 'docs' / 'finetuning.md').read_text('utf-8')
FOUND = {
  match['name']: match
  for match in EXAMPLE.finditer(TEXT)
  if '--mode=finetune' in match['command']  # others are in the tests of their modes
}
DETECTED = {
  'multilabel.jsonl': (('film', 'negative', 'positive'), "text 'text', label 'label'"),
  'choice.jsonl': ((), "text 'question', choices 'choices', label 'label'"),
  'ranking.csv': ((), "text 'query', pair 'passage', label 'relevance'"),
  'entities.jsonl': (('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER'), "words 'text', tags 'entities'"),
  'tags.conll': (('O', 'B-PER', 'I-PER'), 'BILOU, as in B_TYPE'),
  'span.jsonl': ((), "question 'question', context 'context', answers 'answers'"),
  'search.jsonl': (('negative', 'positive'), "text 'text', label 'label'"),
  'long.jsonl': (('negative', 'positive'), "text 'text', label 'label'"),
}


def test_all_examples_are_tried():
  assert set(FOUND) == set(DETECTED)


@pytest.mark.parametrize('name', DETECTED)
def test_an_example_is_read(name, tmp_path, monkeypatch):
  match = FOUND[name]
  monkeypatch.chdir(ROOT)  # for the config file
  config = checked_finetuning(parse_flags(['main', *shlex.split(match['command'])]).config)
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).write_text(match['data'], 'utf-8')
  (task_name,) = config.tasks
  task, _ = open_split_task(task_name, config)
  labels, note = DETECTED[name]
  assert all(task.examples(split) for split in ('train', 'dev')) and task.labels == labels
  assert note in '; '.join(task.notes) and task.constant()


@pytest.mark.long
def test_the_search_is_run(tmp_path):
  match = FOUND['search.jsonl']
  (tmp_path / 'search.jsonl').write_text(match['data'], 'utf-8')
  replaced = {
    'runs/small': str(micro_run.finished()[0]),
    'search.jsonl': str(tmp_path / 'search.jsonl'),
    'runs/search': str(tmp_path / 'run'),
  }
  command = match['command']
  for name, value in replaced.items():
    command = command.replace(name, value)
  small = ('--config.max_length=16', f'--config.compilation_cache={micro_run.programs()}')
  out, _ = micro_run.run(*shlex.split(command), *small)
  folder = tmp_path / 'run' / 'classification'
  found = json.loads((folder / 'search.json').read_text())
  assert len(found['settings']) == 4 and f'setting {found["chosen"]["setting"]}:' in out
  assert len(json.loads((folder / 'kept.json').read_text())['trials']) == 1
