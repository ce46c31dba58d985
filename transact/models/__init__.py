"""Model families: what is cut where in a checkpoint, one module for each family."""
