"""Preparation: a corpus and a tokenizer are turned into token stores, once."""
