"""Model families: what is cut where in a model, one module for each family."""
