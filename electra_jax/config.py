"""Reads and checks a run's config; every complaint names the field and what would do."""


class UserError(Exception):
  """A person's mistake: one sentence that names the thing and what would do. main.py prints it and exits with 1."""
