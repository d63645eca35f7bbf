"""Many runs, one table and one picture: the config of a sweep, its runs one after another or as jobs, and what they say together."""
