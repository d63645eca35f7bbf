"""Token stores: rows of token ids on disk or at an address, and batches of them."""
