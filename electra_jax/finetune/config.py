"""`default_config` for fine-tuning config files. The fields are declared in electra_jax/config/finetuning.py."""

from electra_jax.config.finetuning import default_config

__all__ = ['default_config']
