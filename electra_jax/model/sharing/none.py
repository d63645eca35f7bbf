"""The towers share nothing."""

from electra_jax.model.sharing.scheme import SharingScheme

SCHEME = SharingScheme('none', separate_embeddings=True)
