"""The version of the package; CHANGELOG.md lists what each brings."""

__version__ = '0.2.0.dev0'
