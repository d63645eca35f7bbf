"""Many runs, compared in one table and one picture."""
