"""Fine-tuning of a pretrained encoder: classification, regression, tagging, question answering.

`electra_jax.finetune(...)` is `python_api.finetune`.
"""

from electra_jax.callable_package import make_callable

make_callable(__name__)
