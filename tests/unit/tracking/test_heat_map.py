"""The picture of activation norms: dark is large, blue is kept, orange is cut."""

from __future__ import annotations

import numpy

from transact.tracking.heat_map import BAND, WIDEST, heat_map


def test_colours_say_kept_or_cut_and_darkness_the_norm() -> None:
    norms = numpy.array([[4.0, 4.0, 0.0], [1.0, 0.25, 1.0]])
    kept = numpy.array([[True, False, True], [True, True, False]])
    pixels = heat_map(norms, kept)
    assert pixels.shape == (2 * BAND, 3, 3)
    assert (pixels[0, 0] == numpy.round(numpy.array((0.13, 0.40, 0.80)) * 255)).all()  # kept, the largest of its layer
    assert (pixels[0, 1] == numpy.round(numpy.array((0.85, 0.37, 0.05)) * 255)).all()  # cut
    assert (pixels[0, 2] == round(0.93 * 255)).all()  # no energy
    red, _, blue = pixels[BAND, 1].astype(int)  # kept, with a quarter of the norm: half as dark
    assert blue > red > 0.13 * 255


def test_many_channels_share_pixels_and_none_is_left_out() -> None:
    norms = numpy.zeros((1, 11008))
    norms[0, 11007] = 1.0
    pixels = heat_map(norms, None)
    assert pixels.shape == (BAND, WIDEST, 3)
    assert (pixels[0, -1] < pixels[0, 0]).all()
