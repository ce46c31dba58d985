"""Evaluation beyond perplexity: the tasks of lm-evaluation-harness, on a model that the ranks share."""
