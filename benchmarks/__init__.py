"""Measurements of transact: speed against bare loops, overhead of hooks, and the checks that need a GPU."""
