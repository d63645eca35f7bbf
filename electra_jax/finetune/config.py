"""`default_config` for config files of fine-tuning. Its fields are in config/finetuning.py."""

from electra_jax.config.finetuning import default_config

__all__ = ['default_config']
