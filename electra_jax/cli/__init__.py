"""The command line: one table of modes, from which flags, checks and help are derived."""
