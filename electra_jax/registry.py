"""Closed lists: everything that exists in several kinds, by name.

Each list maps a name to the place of its spec, one line of help and the options that it adds to a
config. Importing this module imports no spec, so the command line and the config checks know all
names without JAX or TensorFlow. A spec's module is imported when the spec is first used.

User code adds to a list from its config file, or from a file given with `--plugins`:

    from electra_jax import registry

    registry.OBJECTIVES.register('my_objective', MyObjective(), help='What it trains.')

Names that configs take (such as config.objective.name) are checked against the lists, so a
registered name is accepted wherever a built-in one is. A run records what user code registered, see
training/plugins.py. docs/extending.md has a complete example of each list that user code can
extend.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from electra_jax.errors import UserError

T = TypeVar('T')
# Stands for the file of specs that were registered in an interactive session.
INTERACTIVE = '<interactive>'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One name of a list.

  Attributes:
    name: as a config or a flag has it.
    help: one line.
    target: 'MODULE:ATTRIBUTE', the place of the spec; '' where `spec` holds it.
    spec: spec that user code registered.
    options: dataclass of the spec's options, a `config.declarations.Config`; None for none.
    file: Python file of the user code that registered it; '' for an entry of this package.
    package: module of an optional package that the spec needs; '' for none.
  """

  name: str
  help: str
  target: str = ''
  spec: Any = None
  options: type[Any] | None = None
  file: str = ''
  package: str = ''


class Registry(Generic[T]):
  """A list of names and their specs. Iteration and `in` are over the names, in their order."""

  def __init__(self, kind: str, field: str, entries: Sequence[Entry]) -> None:
    """Makes a list.

    Args:
      kind: what an entry is, for messages, such as 'objective'.
      field: the config field or flag that holds a name, for messages.
      entries: entries of this package.
    """
    self.kind = kind
    self.field = field
    self._entries = {entry.name: entry for entry in entries}

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)

  def __contains__(self, name: object) -> bool:
    return name in self._entries

  def entry(self, name: str) -> Entry:
    """The entry of a name.

    Raises:
      UserError: the name is not in the list.
    """
    if name not in self._entries:
      near = difflib.get_close_matches(name, self._entries, n=1)
      known = f'did you mean {near[0]!r}?' if near else f'expected one of {", ".join(self)}.'
      if not self._entries:
        known = 'expected one that the config file registers (docs/extending.md).'
      raise UserError(f'{self.field} is {name!r}, which is not a registered {self.kind}; {known}')
    return self._entries[name]

  def get(self, name: str) -> T:
    """The spec of a name. Its module is imported on first use.

    Raises:
      UserError: the name is not in the list.
    """
    entry = self.entry(name)
    if entry.target:
      module, _, attribute = entry.target.partition(':')
      spec: T = getattr(importlib.import_module(module), attribute)
      return spec
    found: T = entry.spec
    return found

  def register(
    self, name: str, spec: T | str, help: str = '', options: type[Any] | None = None
  ) -> None:
    """Adds a spec of user code to the list.

    A file may register its names again, since a process may execute it several times.

    Args:
      name: as configs will have it.
      spec: the spec, or 'MODULE:ATTRIBUTE' of one that is imported on first use.
      help: one line.
      options: dataclass of the spec's options, a `config.declarations.Config`.

    Raises:
      UserError: another file, or this package, has registered the name.
    """
    given = sys._getframe(1).f_globals.get('__file__')
    file = os.path.abspath(given) if given else INTERACTIVE
    registered = self._entries.get(name)
    if registered is not None and registered.file != file:
      owner = registered.file or 'electra_jax'
      raise UserError(
        f'the {self.kind} {name!r} of {file} is already registered by {owner}; expected a name '
        'that is not in use.'
      )
    target = spec if isinstance(spec, str) else ''
    self._entries[name] = Entry(name, help, target, None if target else spec, options, file)


#### The lists ####

OBJECTIVES: Registry[Any] = Registry(
  'objective',
  'config.objective.name',
  [
    Entry(
      'electra',
      'replaced token detection by the discriminator, masked LM by the generator',
      'electra_jax.pretrain.objectives.electra:OBJECTIVE',
    ),
    Entry('mlm', 'masked LM by one tower', 'electra_jax.pretrain.objectives.mlm:OBJECTIVE'),
    Entry(
      'replace_mlm',
      'masked LM with samples of the generator in place of [MASK]',
      'electra_jax.pretrain.objectives.replace_mlm:OBJECTIVE',
    ),
    Entry(
      'all_tokens_mlm',
      'prediction of every token, with a copy mechanism',
      'electra_jax.pretrain.objectives.all_tokens_mlm:OBJECTIVE',
    ),
    Entry(
      'electra_15',
      'electra with the discriminator loss at the masked positions only',
      'electra_jax.pretrain.objectives.electra_15:OBJECTIVE',
    ),
    Entry(
      'electric',
      'energy of every token by noise-contrastive estimation',
      'electra_jax.pretrain.objectives.electric:OBJECTIVE',
    ),
  ],
)

SHARING_SCHEMES: Registry[Any] = Registry(
  'sharing scheme',
  'config.sharing',
  [
    Entry('embeddings', 'the embeddings', 'electra_jax.model.sharing.embeddings:SCHEME'),
    Entry('none', 'nothing', 'electra_jax.model.sharing.none:SCHEME'),
    Entry('all', 'all parameters of the encoder', 'electra_jax.model.sharing.all:SCHEME'),
    Entry(
      'disentangled',
      "the generator's embeddings, without the discriminator's gradient (GDES)",
      'electra_jax.model.sharing.disentangled:SCHEME',
    ),
  ],
)

OPTIMIZERS: Registry[Any] = Registry(
  'optimizer',
  'config.optimizer.name',
  [
    Entry('adamw', 'AdamW', 'electra_jax.training.optimizers:ADAMW'),
    Entry('lamb', 'LAMB, for tens of thousands of rows', 'electra_jax.training.optimizers:LAMB'),
  ],
)

TOKENIZERS: Registry[Any] = Registry(
  'tokenizer',
  'config.data.tokenizer',
  [
    Entry(
      'unigram',
      'SentencePiece unigram',
      'electra_jax.data.tokenizers.sentencepiece_tokenizer:SentencePieceTokenizer',
    ),
    Entry(
      'bpe',
      'SentencePiece BPE',
      'electra_jax.data.tokenizers.sentencepiece_tokenizer:SentencePieceTokenizer',
    ),
    Entry(
      'wordpiece',
      "BERT's WordPiece",
      'electra_jax.data.tokenizers.wordpiece_tokenizer:WordPieceTokenizer',
    ),
    Entry(
      'byte_level_bpe',
      'byte-level BPE',
      'electra_jax.data.tokenizers.pipeline_tokenizer:PipelineTokenizer',
    ),
  ],
)

# Functions from a text to its words, all of them of user code.
SEGMENTERS: Registry[Any] = Registry('segmenter', 'config.data.segmenter', [])

CORPUS_FORMATS: Registry[Any] = Registry(
  'corpus format',
  'the format of config.data.source',
  [
    Entry(
      'blank_line',
      'text, blank lines between documents',
      'electra_jax.data.corpus.text_format:BLANK_LINE',
    ),
    Entry('line', 'text, one document per line', 'electra_jax.data.corpus.text_format:LINE'),
    Entry('file', 'text, one document per file', 'electra_jax.data.corpus.text_format:FILE'),
    Entry('jsonl', 'JSON lines', 'electra_jax.data.corpus.jsonl_format:JSONL'),
    Entry('csv', 'CSV and TSV', 'electra_jax.data.corpus.csv_format:CSV'),
    Entry('parquet', 'Parquet', 'electra_jax.data.corpus.parquet_format:PARQUET'),
    Entry('arrow', 'Arrow files and streams', 'electra_jax.data.corpus.arrow_format:ARROW'),
    Entry(
      'save_to_disk',
      'a folder of datasets.save_to_disk',
      'electra_jax.data.corpus.dataset_folder:DATASET_FOLDER',
    ),
    Entry('zip', 'a zip archive of files', 'electra_jax.data.corpus.archive_format:ZIP'),
    Entry('tar', 'a tar archive of files', 'electra_jax.data.corpus.archive_format:TAR'),
    Entry('tfds', 'a TensorFlow Datasets dataset', 'electra_jax.data.corpus.tfds:TFDS'),
    Entry('texts', 'texts given in Python', 'electra_jax.data.corpus.given_texts:GIVEN_TEXTS'),
    Entry('sample', 'the bundled sample', 'electra_jax.data.corpus.text_format:SAMPLE'),
  ],
)

WEIGHT_FORMATS: Registry[Any] = Registry(
  'format of weights',
  'the prefix of config.init',
  [
    Entry('hf', 'folders of transformers', 'electra_jax.interop.huggingface:FORMAT'),
    Entry('tf', 'checkpoints of the original program', 'electra_jax.interop.google:FORMAT'),
  ],
)


def split_source(init: str) -> tuple[str, str]:
  """Splits a source of weights, as in config.init, into its format and path.

  Returns:
    ('hf', FOLDER) for 'hf:FOLDER', and so on; ('', FOLDER) for a run's folder.
  """
  name, colon, path = init.partition(':')
  return (name, path) if colon and name in WEIGHT_FORMATS else ('', init)


def is_foreign(init: str) -> bool:
  """Whether a source of weights has a format of WEIGHT_FORMATS and is not a run's folder."""
  return bool(split_source(init)[0])


def _glue(*names: str) -> list[Entry]:
  return [
    Entry(name, 'a task of GLUE', f'electra_jax.finetune.tasks.glue:{name.upper()}')
    for name in names
  ]


TASKS: Registry[Any] = Registry(
  'task',
  'config.task',
  [
    *_glue('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli'),
    Entry(
      'classification', 'a class of each text', 'electra_jax.finetune.tasks.text:CLASSIFICATION'
    ),
    Entry(
      'multilabel',
      'any number of labels of each text',
      'electra_jax.finetune.tasks.multilabel:MULTILABEL',
    ),
    Entry('ranking', 'passages by relevance', 'electra_jax.finetune.tasks.ranking:RANKING'),
    Entry('regression', 'a number of each text', 'electra_jax.finetune.tasks.text:REGRESSION'),
    Entry('ner', 'named entities', 'electra_jax.finetune.tasks.tagging:NER'),
    Entry('chunking', 'phrases', 'electra_jax.finetune.tasks.tagging:CHUNKING'),
    Entry('pos', 'parts of speech', 'electra_jax.finetune.tasks.tagging:POS'),
    Entry('tagging', 'a label of each word', 'electra_jax.finetune.tasks.tagging:TAGGING'),
    Entry('squad1', 'SQuAD 1.1', 'electra_jax.finetune.tasks.squad:SQUAD1'),
    Entry('squad2', 'SQuAD 2.0', 'electra_jax.finetune.tasks.squad:SQUAD2'),
    Entry('span', 'an answer in a context', 'electra_jax.finetune.tasks.squad:SPAN'),
  ],
)

TRACKERS: Registry[Any] = Registry(
  'tracker',
  'config.trackers',
  [
    Entry(
      'tensorboard',
      "TensorBoard's event files in the run's folder",
      'electra_jax.training.trackers.tensorboard_files:TensorBoardFiles',
    ),
    Entry(
      'wandb',
      'Weights & Biases',
      'electra_jax.training.trackers.wandb_runs:WandbRun',
      package='wandb',
    ),
    Entry(
      'mlflow', 'MLflow', 'electra_jax.training.trackers.mlflow_runs:MlflowRun', package='mlflow'
    ),
  ],
)

LISTS: dict[str, Registry[Any]] = {
  registry.kind: registry
  for registry in (
    OBJECTIVES,
    SHARING_SCHEMES,
    OPTIMIZERS,
    TOKENIZERS,
    SEGMENTERS,
    CORPUS_FORMATS,
    WEIGHT_FORMATS,
    TASKS,
    TRACKERS,
  )
}


#### Files of user code ####


def load_plugins(files: Sequence[str | os.PathLike[str]]) -> None:
  """Executes files of user code that register specs. A file that was executed before is skipped.

  Args:
    files: paths of Python files.

  Raises:
    UserError: a file does not exist, or it raises an error.
  """
  for given in files:
    path = os.path.abspath(os.path.expanduser(os.fspath(given)))
    name = f'electra_jax_plugin_{hashlib.blake2b(path.encode(), digest_size=6).hexdigest()}'
    if name in sys.modules or path in plugin_files():
      continue
    spec = importlib.util.spec_from_file_location(name, path)
    if not os.path.isfile(path) or spec is None or spec.loader is None:
      raise UserError(
        f'the plugin {path} is not a Python file; expected the path of one (--plugins=FILE,...).'
      )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
      spec.loader.exec_module(module)
    except UserError:
      del sys.modules[name]
      raise
    except Exception as error:
      del sys.modules[name]
      reason = ' '.join(str(error).split())
      raise UserError(
        f'the plugin {path} cannot be loaded ({type(error).__name__}: {reason}).'
      ) from error


def plugin_files() -> tuple[str, ...]:
  """Files whose code has registered specs. Worker processes pass them to `load_plugins`."""
  entries = (specs.entry(name) for specs in LISTS.values() for name in specs)
  files = (entry.file for entry in entries if entry.file not in ('', INTERACTIVE))
  return tuple(dict.fromkeys(files))


def from_user_code(used: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
  """Those of the names in use that user code registered, as run folders record them.

  Args:
    used: kind -> names, such as {'objective': ['electra']}. Names that are not registered, such as
      the path of a tokenizer, are skipped.

  Returns:
    For each name a dict of 'kind', 'name' and 'file'.
  """
  return [
    {'kind': kind, 'name': name, 'file': LISTS[kind].entry(name).file}
    for kind, names in used.items()
    for name in names
    if name in LISTS[kind] and LISTS[kind].entry(name).file
  ]


def require_registered(recorded: Sequence[Mapping[str, str]], owner: str) -> None:
  """Checks that what user code registered when a folder was made is registered now.

  Args:
    recorded: as `from_user_code` returns it.
    owner: the folder, for the message.

  Raises:
    UserError: something is not registered.
  """
  for entry in recorded:
    kind, name = entry['kind'], entry['name']
    file = entry['file']
    if kind not in LISTS or name not in LISTS[kind]:
      raise UserError(
        f'{owner} uses the {kind} {name!r}, which {file} registered and which is not registered '
        f'now; set --plugins={file} (in Python, load(..., plugins=[{file!r}])).'
      )
