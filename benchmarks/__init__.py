"""Side-by-side measurements; docs/benchmarks.md has what they gave."""
