"""What is computed: pure Flax modules. Imports nothing else of the package."""
