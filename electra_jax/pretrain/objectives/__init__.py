"""Objectives, a file each. Each has `examples`, `counts` and `loss`, as in electra.py."""
