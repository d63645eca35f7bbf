"""`default_config` and `load_config_file` for the config files of sweeps.

The fields are declared in electra_jax/config/sweeps.py.
"""

from electra_jax.config.config_files import load_config_file
from electra_jax.config.sweeps import default_config

__all__ = ['default_config', 'load', 'load_config_file']

load = load_config_file  # the name in config files that were written for version 0.1.0
