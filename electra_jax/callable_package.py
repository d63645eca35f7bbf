"""Packages that can be called: `electra_jax.pretrain(...)` is a function and a package."""

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


class CallablePackage(types.ModuleType):
  """A package whose call is that of a function of the Python API."""

  def _function(self) -> Callable[..., Any]:
    api = importlib.import_module('electra_jax.python_api')
    found: Callable[..., Any] = getattr(api, self.__name__.rpartition('.')[2])
    return found

  def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - those of the function
    """Calls the function of `python_api` that has the package's name."""
    return self._function()(*args, **kwargs)

  @property
  def __signature__(self) -> inspect.Signature:
    return inspect.signature(self._function())


def make_callable(name: str) -> None:
  """Makes a package callable.

  Args:
    name: of the package, `__name__`.
  """
  sys.modules[name].__class__ = CallablePackage
