"""Pages of HTML: the report of a run and of a sweep."""
