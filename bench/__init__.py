"""Load and comparison benchmarks."""
