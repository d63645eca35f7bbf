"""`default_config` for config files of probes. Its fields are in config/probing.py."""

from electra_jax.config.probing import default_config

__all__ = ['default_config']
