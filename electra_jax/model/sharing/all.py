"""One encoder and its embeddings serve as both towers (Clark et al. 2020, section 3.2)."""

from electra_jax.model.sharing.scheme import SharingScheme

SCHEME = SharingScheme('all', one_encoder=True)
