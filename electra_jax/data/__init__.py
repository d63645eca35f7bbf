"""Data: corpora, tokenizers, preparation, token stores, and the bundled sample."""
