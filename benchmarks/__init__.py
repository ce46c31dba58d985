"""Benchmarks of transact: quality, speed, memory, recovery from crashes, and the checks that need a GPU."""
