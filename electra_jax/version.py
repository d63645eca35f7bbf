"""The version of the package. CHANGELOG.md lists the changes of each version."""

__version__ = '0.2.0.dev0'
