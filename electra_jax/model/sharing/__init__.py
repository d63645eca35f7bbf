"""Sharing schemes: which parameters the generator and the discriminator share, one file each."""
