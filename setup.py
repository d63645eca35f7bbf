"""Puts the shipped configs into the package; everything else is in pyproject.toml."""

import pathlib
import shutil

import setuptools
from setuptools.command import build_py


class BuildWithConfigs(build_py.build_py):
  """Copies `configs/` to `electra_jax/configs/` of a wheel. Editable installs read it in place."""

  def run(self) -> None:
    """Builds the package, then copies the configs."""
    super().run()
    if self.editable_mode:
      return
    target = pathlib.Path(self.build_lib, 'electra_jax', 'configs')
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree('configs', target, ignore=shutil.ignore_patterns('__pycache__'))


setuptools.setup(cmdclass={'build_py': BuildWithConfigs})
