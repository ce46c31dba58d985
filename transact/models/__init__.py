"""Models as folders and as modules: families, config.json, tensors on disk, hooks, rotary frequencies, loss head."""
