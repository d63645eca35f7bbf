"""Corpora: where text comes from, and documents read from it."""
