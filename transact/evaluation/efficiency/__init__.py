"""What a pruned model costs to run, measured beside its parent."""
