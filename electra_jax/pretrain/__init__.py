"""Pretraining: masking, sampling, objectives, the training program and its evaluation.

`electra_jax.pretrain(...)` is `python_api.pretrain`.
"""

from electra_jax.callable_package import make_callable

make_callable(__name__)
