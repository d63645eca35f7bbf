"""Trackers: where metrics go besides metrics.jsonl, one file each."""
