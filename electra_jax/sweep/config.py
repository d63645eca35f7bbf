"""`default_config` and `load_config_file` for the config files of sweeps.

The fields are declared in electra_jax/config/sweeps.py.
"""

from electra_jax.config.sweeps import default_config
from electra_jax.sweep.resolve import load_config_file

__all__ = ['default_config', 'load_config_file']
