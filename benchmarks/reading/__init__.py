"""Readers of rows beside ours, a slow object store, and what the shipped configs need."""
