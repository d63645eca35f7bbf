"""Repositories of the Hugging Face Hub as local folders.

Only data files are fetched: weights, configs, tokenizers. No code of a repository is executed.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from electra_jax import checksums, file_access
from electra_jax.errors import UserError

# 'org/name', and with a revision 'org/name@revision', in the characters that the Hub allows.
_PART = r'[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?'
NAME = rf'{_PART}/{_PART}'
_REPOSITORY = re.compile(rf'(?P<name>{NAME})(?:@(?P<revision>[A-Za-z0-9._/-]+))?')
_SAFETENSORS = ('.safetensors', '.safetensors.index.json')
_PICKLED = ('.bin', '.bin.index.json')
# Files of a model besides its weights: settings and tokenizers.
_OTHERS = ('.json', '.txt', '.model', checksums.SUMS)
_TOWERS = ('discriminator', 'generator')  # folders of an export of this project
_UNUSED = re.compile(r'(^|/)(trainer_state|training_args|optimizer|scheduler|rng_state)')


# Chooses names of files.
Select: TypeAlias = Callable[[Sequence[str]], list[str]]


@dataclasses.dataclass(frozen=True)
class HubFolder:
  """A source of weights or of a tokenizer as a folder.

  Attributes:
    path: the folder.
    revision: commit of the repository; '' for a folder that is not of the Hub's cache.
    note: sentence to print; '' where the source was unambiguous.
  """

  path: str
  revision: str = ''
  note: str = ''


def find(source: str, select: Select | None = None) -> HubFolder:
  """Returns the folder of a source; a repository that is not in the Hub's cache is downloaded.

  An existing folder has precedence over a repository of that name. The environment variables of
  huggingface_hub apply: HF_HOME (cache), HF_HUB_OFFLINE (no request is made), HF_TOKEN.

  Args:
    source: a path or an address, or 'org/name' or 'org/name@revision'.
    select: chooses the files to download from the names of all; None for `needed`.

  Raises:
    UserError: there is no such repository or revision, it requires a token, it cannot be reached
      and is not in the cache, or huggingface_hub is not installed.
  """
  path = file_access.normal(source)
  match = _REPOSITORY.fullmatch(source)
  if match is None:
    return HubFolder(path)
  if file_access.exists(path):
    return HubFolder(path, note=f'{source} is the folder of that name here; nothing is downloaded')
  name, revision = match['name'], match['revision']
  folder, commit = _downloaded(name, revision, select or needed)
  return HubFolder(folder, commit, f'{name} of the Hub, revision {commit}, in {folder}')


def repository(source: str) -> str:
  """Returns the 'org/name' of a source of the Hub, as 'hf:org/name@revision'."""
  return source.partition(':')[2].partition('@')[0]


def is_repository(source: str) -> bool:
  """Whether a source names a repository, and not a folder here."""
  return bool(_REPOSITORY.fullmatch(source)) and not file_access.exists(source)


def pinned(source: str, revision: str) -> str:
  """Returns a source of the Hub with a revision, where it names none."""
  match = _REPOSITORY.fullmatch(source)
  return f'{match["name"]}@{revision}' if match and revision and not match['revision'] else source


def _downloaded(name: str, revision: str | None, select: Select) -> tuple[str, str]:
  """Returns the folder of a repository in the cache and its commit."""
  try:
    import huggingface_hub
    from huggingface_hub import constants, errors
  except ImportError:
    raise UserError(
      f'hf:{name} is not a folder here, and downloading it requires huggingface_hub, which is not '
      'installed; expected an existing folder, or: pip install huggingface_hub.'
    ) from None
  # Also the errors of its HTTP library, which is not the same in all versions.
  kinds: tuple[type[Exception], ...] = (
    *errors.HfHubHTTPError.__bases__,
    errors.LocalEntryNotFoundError,
    ValueError,
  )
  try:
    if constants.HF_HUB_OFFLINE:
      folder = huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
    else:
      info = huggingface_hub.HfApi().model_info(name, revision=revision)
      files = select([file.rfilename for file in info.siblings or []])
      folder = huggingface_hub.snapshot_download(name, revision=info.sha, allow_patterns=files)
  except kinds as error:
    raise UserError(_mistake(name, revision, error)) from None
  # The cache has one folder per commit, named after it.
  return str(folder), str(folder).replace('\\', '/').rstrip('/').rsplit('/', 1)[-1]


def needed(files: Sequence[str]) -> list[str]:
  """Returns the files of a repository that a model and its tokenizer consist of.

  Pickled weights are only needed where there are no others.
  """

  def place(file: str) -> str:
    return file.rpartition('/')[0]

  inside = [f for f in files if place(f) in ('', *_TOWERS) and not _UNUSED.search(f)]
  safe = [f for f in inside if f.endswith(_SAFETENSORS)]
  safe_places = {place(f) for f in safe}
  pickled = [f for f in inside if f.endswith(_PICKLED) and place(f) not in safe_places]
  weights = (*_SAFETENSORS, *_PICKLED)
  others = [f for f in inside if f.endswith(_OTHERS) and not f.endswith(weights)]
  return sorted((*safe, *pickled, *others))


def tokenizer_files(files: Sequence[str]) -> list[str]:
  """Returns the files of a repository that a tokenizer consists of."""
  return sorted(f for f in files if '/' not in f and f.endswith(_OTHERS))


def _mistake(name: str, revision: str | None, error: Exception) -> str:
  """Describes why a repository cannot be used, and what to do."""
  from huggingface_hub import errors

  at = f' at revision {revision}' if revision else ''
  if isinstance(error, errors.GatedRepoError):
    return (
      f'hf:{name} requires the consent to its terms and a token; accept them on the page of the '
      'model, and set HF_TOKEN.'
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return f'hf:{name} has no revision {revision}; expected a branch, a tag or a commit of it.'
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f'hf:{name} is neither a folder here nor a repository of the Hub; expected an existing '
      'folder or org/name (and HF_TOKEN for a private one).'
    )
  reason = file_access.reason(error).split('. ')[0].rstrip('.')
  return (
    f'hf:{name}{at} is not a folder here, is not complete in the cache of the Hub, and cannot be '
    f'downloaded ({type(error).__name__}: {reason}); expected an existing folder, or a connection '
    'without HF_HUB_OFFLINE.'
  )
