"""What benchmarks/growth.py measures, and how it fits and shows it."""
