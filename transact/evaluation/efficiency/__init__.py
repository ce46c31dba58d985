"""The cost of running a pruned model, measured beside its parent."""
