"""The towers share word, position and type embeddings and their LayerNorm, as published.

Source: Clark et al. 2020, section 3.2.
"""

from electra_jax.model.sharing.scheme import SharingScheme

SCHEME = SharingScheme('embeddings')
