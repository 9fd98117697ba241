"""Benchmarks: zcfs beside the bare directory and beside its peers, in one run (see README.md)."""
