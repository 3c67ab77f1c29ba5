from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.data import transforms
from mmseg_cli.data.labels import IGNORE

unit = st.floats(0, 1, exclude_max=True)
sizes = st.tuples(st.integers(1, 400), st.integers(1, 400))


@given(size=sizes, out=st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_labels_are_resized_like_torchs_nearest_exact(size, out):
    label_HW = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    theirs = F.interpolate(torch.from_numpy(label_HW)[None, None], size=out, mode="nearest-exact")[0, 0].numpy()
    ours = transforms.resize_label(label_HW, out)
    # A pixel whose centre falls on the border of two is rounded by either in its own way: there both are right.
    rows, columns = ((np.arange(out[axis]) + 0.5) * size[axis] / out[axis] for axis in (0, 1))
    border = np.isclose(rows, rows.round())[:, None] | np.isclose(columns, columns.round())[None, :]
    np.testing.assert_array_equal(np.where(border, 0, ours), np.where(border, 0, theirs))


def test_halving_a_label_takes_no_border_pixels_unequally():
    label_HW = np.arange(64, dtype=np.uint8).reshape(8, 8)
    theirs = F.interpolate(torch.from_numpy(label_HW)[None, None], size=(4, 4), mode="nearest-exact")[0, 0].numpy()
    np.testing.assert_array_equal(transforms.resize_label(label_HW, (4, 4)), theirs)
    assert theirs[0, 0] == 9  # torch's plain "nearest" takes 0


def check(region, size, crop):
    assert 0 <= region.top <= region.top + region.height <= size[0]
    assert 0 <= region.left <= region.left + region.width <= size[1]
    assert region.height >= 1
    assert region.width >= 1
    assert 1 <= region.out_height <= crop[0]
    assert 1 <= region.out_width <= crop[1]
    assert region.box == (region.top, region.left, region.height, region.width)


@given(size=sizes, crop=sizes, low=st.floats(0.1, 1), high=st.floats(1, 4), scale=unit, top=unit, left=unit)
def test_a_zoomed_region_lies_inside(size, crop, low, high, scale, top, left):
    region = transforms.zoomed_region(size, crop, zoom=(low, high), scale=scale, top=top, left=left)
    check(region, size, crop)
    factor = low * (high / low) ** scale
    for axis, (inside, out) in enumerate(((region.height, region.out_height), (region.width, region.out_width))):
        if inside < size[axis] and crop[axis] / factor >= 1:
            assert abs(out - crop[axis]) <= max(1, factor)  # an image that is large enough fills the crop
        assert abs(inside * factor - out) <= max(1, factor)


@given(size=sizes, crop=sizes, low=st.floats(0.05, 1), scale=unit, aspect=unit, top=unit, left=unit)
def test_an_area_region_lies_inside_and_fills_the_crop(size, crop, low, scale, aspect, top, left):
    region = transforms.area_region(size, crop, area=(low, 1.0), scale=scale, aspect=aspect, top=top, left=left)
    check(region, size, crop)
    assert (region.out_height, region.out_width) == crop


def test_an_area_region_has_the_wanted_area_and_aspect():
    size = (1000, 1000)
    for scale, aspect in ((0.0, 0.0), (0.0, 0.999), (0.5, 0.5)):
        region = transforms.area_region(size, (8, 8), area=(0.1, 0.5), scale=scale, aspect=aspect, top=0, left=0)
        assert region.height * region.width == pytest.approx((0.1 + 0.4 * scale) * 1e6, rel=0.01)
        assert region.width / region.height == pytest.approx((4 / 3) ** (2 * aspect - 1), rel=0.01)


def test_a_zoom_reaches_every_corner():
    image, crop = (100, 200), (50, 50)
    corners = {
        transforms.zoomed_region(image, crop, zoom=(1, 1), scale=0, top=top, left=left).box[:2]
        for top in (0.0, 0.99999)
        for left in (0.0, 0.99999)
    }
    assert corners == {(0, 0), (0, 150), (50, 0), (50, 150)}


def test_zooming_is_symmetric_in_its_logarithm():
    middle = transforms.zoomed_region((400, 400), (100, 100), zoom=(0.5, 2), scale=0.5, top=0, left=0)
    assert (middle.height, middle.out_height) == (100, 100)


def test_what_lies_outside_the_image_is_ignored():
    image_HWC = np.full((3, 4, 3), 9, np.uint8)
    label_HW = np.full((3, 4), 2, np.uint8)
    placed_HWC, placed_HW = transforms.place_image(image_HWC, (5, 6)), transforms.place_label(label_HW, (5, 6))
    inside = np.zeros((5, 6), bool)
    inside[:3, :4] = True
    assert (placed_HW[inside] == 2).all()
    assert (placed_HW[~inside] == IGNORE).all()
    assert (placed_HWC[inside] == 9).all()
    assert (placed_HWC[~inside] == transforms.MEAN).all()
    assert transforms.place_label(label_HW, (3, 4)) is label_HW


def test_jitter_of_no_strength_changes_nothing():
    image_HWC = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(transforms.jitter_colour(image_HWC, strength=0, colour=(0.1, 0.9, 0.3)), image_HWC)
    middle = transforms.jitter_colour(image_HWC, strength=0.5, colour=(0.5, 0.5, 0.5)).astype(int)
    assert np.abs(middle - image_HWC).max() <= 1


def test_jitter_changes_brightness_contrast_and_saturation_each():
    image_HWC = np.random.default_rng(0).integers(60, 180, (16, 16, 3), dtype=np.uint8)
    plain = image_HWC.astype(float)

    def jittered(*colour):
        return transforms.jitter_colour(image_HWC, strength=0.3, colour=colour).astype(float)

    assert jittered(1, 0.5, 0.5).mean() == pytest.approx(1.3 * plain.mean(), rel=0.02)
    assert jittered(0.5, 0, 0.5).std() == pytest.approx(0.7 * plain.std(), rel=0.02)
    assert jittered(0.5, 0, 0.5).mean() == pytest.approx(plain.mean(), rel=0.02)
    assert np.ptp(jittered(0.5, 0.5, 0), axis=2).mean() == pytest.approx(0.7 * np.ptp(plain, axis=2).mean(), rel=0.02)


def test_jitter_stays_in_range():
    for value in (0, 255):
        image_HWC = np.full((4, 4, 3), value, np.uint8)
        for colour in ((0, 0, 0), (0.999, 0.999, 0.999)):
            out_HWC = transforms.jitter_colour(image_HWC, strength=1.0, colour=colour)
            assert out_HWC.dtype == np.uint8
            assert np.ptp(out_HWC) == 0


@given(size=sizes, crop=st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_a_centre_crop_has_its_size(size, crop):
    image_HWC = np.zeros((*size, 3), np.uint8)
    assert transforms.centre_crop(image_HWC, crop).shape == (*crop, 3)


def test_a_centre_crop_shows_seven_eighths_of_the_middle():
    columns = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], 256, axis=0).repeat(3, axis=2)
    cropped = transforms.centre_crop(columns, (224, 224))
    np.testing.assert_array_equal(cropped, columns[16:240, 16:240])
