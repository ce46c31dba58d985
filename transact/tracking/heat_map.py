"""Activation norms as a picture: a band of pixels per layer, channels from left to right."""

from __future__ import annotations

from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]

WIDEST = 1024  # pixels; several channels share one where there are more
BAND = 8  # pixels of height per layer
KEPT, CUT, UNKNOWN = (0.13, 0.40, 0.80), (0.85, 0.37, 0.05), (0.30, 0.30, 0.30)  # blue, orange, grey
PALE = 0.93  # of a channel without energy


def heat_map(norms: Array, kept: Array | None) -> Array:
    """Dark where the norm is large within its layer; blue what is kept, orange what is cut, grey where nobody knows.

    Args:
        norms: (layers, channels), not negative.
        kept: (layers, channels) bool.

    Returns:
        (layers * 8, at most 1024, 3) uint8.
    """
    strength = _binned(norms, numpy.maximum.reduceat)
    strength = strength / numpy.maximum(strength.max(axis=1, keepdims=True), numpy.finfo(strength.dtype).tiny)
    strength = numpy.sqrt(strength)[..., None]  # norms have long tails
    colours = numpy.broadcast_to(UNKNOWN, (*strength.shape[:2], 3))
    if kept is not None:
        widths = _binned(numpy.ones_like(norms), numpy.add.reduceat)
        share = (_binned(kept.astype(norms.dtype), numpy.add.reduceat) / widths)[..., None]
        colours = share * numpy.array(KEPT) + (1 - share) * numpy.array(CUT)
    pixels = PALE + (colours - PALE) * strength
    return numpy.repeat(numpy.round(pixels * 255).astype(numpy.uint8), BAND, axis=0)


def _binned(values: Array, reduce: Any) -> Array:
    """(layers, channels) -> (layers, at most WIDEST)."""
    channels = values.shape[1]
    starts = numpy.arange(min(channels, WIDEST)) * channels // min(channels, WIDEST)
    return numpy.asarray(reduce(values, starts, axis=1))
