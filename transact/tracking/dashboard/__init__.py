"""The W&B workspaces for runs and for sweeps, as code."""
