"""`default_config` for a sweep's config files. The fields are declared in electra_jax/config/sweeps.py."""

from electra_jax.config.sweeps import default_config

__all__ = ['default_config']
