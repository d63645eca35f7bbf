"""Uploads an export to the Hugging Face Hub."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from electra_jax import file_access, hub
from electra_jax.console import quantity, say
from electra_jax.errors import UserError
from electra_jax.version import __version__

_PUBLIC = ':public'


@dataclasses.dataclass(frozen=True)
class Target:
  """A repository to upload to.

  Attributes:
    repository: org/name.
    public: whether it may be public.
  """

  repository: str
  public: bool


def checked_target(text: str) -> Target:
  """Parses --push and checks, before anything is exported, that an upload can succeed.

  The token is that of huggingface_hub: HF_TOKEN, or what `hf auth login` kept. It is only sent to
  the Hub (HF_ENDPOINT).

  Args:
    text: org/name, or org/name:public.

  Raises:
    UserError: the text is malformed, there is no token or an invalid one, the Hub cannot be
      reached, or the repository is public and the text does not allow it.
  """
  target = Target(text.removesuffix(_PUBLIC), text.endswith(_PUBLIC))
  if not re.fullmatch(hub.NAME, target.repository):
    raise UserError(
      f'--push is {text!r}; expected org/name, a repository of the Hub, or org/name:public.'
    )
  import huggingface_hub
  from huggingface_hub import constants

  if constants.HF_HUB_OFFLINE:
    raise UserError('--push is set, and HF_HUB_OFFLINE, too; expected one of them.')
  if huggingface_hub.get_token() is None:
    raise UserError(
      f'--push is {text!r} and there is no token of the Hub; set HF_TOKEN to one that may '
      'write, or run: hf auth login.'
    )
  with _answering(target):
    api = huggingface_hub.HfApi()
    api.whoami()
    exists = api.repo_exists(target.repository)
    if exists and not target.public and not api.model_info(target.repository).private:
      raise UserError(
        f'--push is {text!r}, which is public; expected a private repository, or '
        f'--push={text}{_PUBLIC}.'
      )
  return target


def upload(folder: str, files: Sequence[str], target: Target, replaced: Sequence[str]) -> None:
  """Shows the files of an export, and uploads them in one commit.

  Args:
    folder: a local folder.
    files: names in it.
    target: created if it does not exist.
    replaced: names of files of earlier exports, which are removed from the repository unless they
      are among `files`. Other files in it stay.

  Raises:
    UserError: the Hub refuses, or cannot be reached.
  """
  import huggingface_hub

  sizes = {name: os.path.getsize(file_access.join(folder, name)) for name in files}
  kind = 'public' if target.public else 'private'
  total = quantity(sum(sizes.values()), 'B')
  say('pushing', f'{len(sizes)} files, {total}, to {target.repository} ({kind})')
  for name, size in sizes.items():
    say('', f'{name} ({quantity(size, "B")})')
  with _answering(target):
    api = huggingface_hub.HfApi()
    api.create_repo(target.repository, private=not target.public, exist_ok=True)
    commit = api.upload_folder(
      repo_id=target.repository,
      folder_path=folder,
      allow_patterns=list(files),
      delete_patterns=list(replaced),
      commit_message=f'Export of electra_jax {__version__}',
    )
  say('pushed', commit.commit_url, always=True)


@contextlib.contextmanager
def _answering(target: Target) -> Iterator[None]:
  """Raises what huggingface_hub raises as a UserError of one sentence."""
  from huggingface_hub import errors

  # Also the errors of its HTTP library, which is not the same in all versions.
  kinds: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, ValueError)
  try:
    yield
  except kinds as error:
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    raise UserError(f'{target.repository} was not uploaded: {_reason(error, status)}.') from None


def _reason(error: Exception, status: int | None) -> str:
  """Describes why the Hub refuses, and what to do."""
  if status == 401:
    return 'the Hub does not accept the token; set HF_TOKEN to one that may write'
  if status == 403:
    return (
      'the token may not write there; set HF_TOKEN to one that may, or --push to another repository'
    )
  reason = file_access.reason(error).split('. ')[0].rstrip('.')
  return f'the Hub cannot be reached or refuses ({reason}); repeat the command later'
