"""`default_config` and `load` for a sweep's config files. The fields are declared in electra_jax/config/sweeps.py."""

from electra_jax.config.sweeps import default_config
from electra_jax.sweep.resolve import load

__all__ = ['default_config', 'load']
