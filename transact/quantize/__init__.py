"""Quantised variants of a finished run: `transact quantize`."""
