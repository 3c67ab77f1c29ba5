from __future__ import annotations

import warnings
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

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


@given(size=sizes, crop=sizes, low=st.floats(0.1, 1), high=st.floats(1, 4), scale=unit, row=unit, column=unit)
def test_a_centred_region_has_its_centre_in_the_middle_where_the_image_allows(
    size, crop, low, high, scale, row, column
):
    centre = (int(row * size[0]), int(column * size[1]))
    region = transforms.centred_region(size, crop, zoom=(low, high), scale=scale, centre=centre)
    check(region, size, crop)
    other = transforms.zoomed_region(size, crop, zoom=(low, high), scale=scale, top=row, left=column)
    assert region.box[2:] == other.box[2:]
    assert (region.out_height, region.out_width) == (other.out_height, other.out_width)
    starts, lengths = region.box[:2], region.box[2:]
    for axis in (0, 1):
        assert starts[axis] <= centre[axis] < starts[axis] + lengths[axis]
        if starts[axis] > 0 and starts[axis] + lengths[axis] < size[axis]:
            assert centre[axis] - starts[axis] == lengths[axis] // 2


@given(size=sizes, out=st.tuples(st.integers(1, 300), st.integers(1, 300)), seed=st.integers(0, 9))
def test_images_are_resized_like_pillows_bilinear(size, out, seed):
    image_HWC = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs_HWC = np.asarray(Image.fromarray(image_HWC).resize((out[1], out[0]), Image.Resampling.BILINEAR))
    ours_HWC = transforms.resize_image(image_HWC, out)
    assert ours_HWC.dtype == np.uint8
    assert ours_HWC.flags.c_contiguous
    assert np.abs(ours_HWC.astype(int) - theirs_HWC).max() <= 1


def test_an_array_that_may_not_be_written_to_is_taken_without_a_warning():
    image_HWC = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    fixed_HWC = image_HWC.copy()
    fixed_HWC.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resized_HWC = transforms.resize_image(fixed_HWC, (5, 5))
        jittered_HWC = transforms.jitter_colour(fixed_HWC, strength=0.5, colour=(0.1, 0.2, 0.9))
    np.testing.assert_array_equal(resized_HWC, transforms.resize_image(image_HWC, (5, 5)))
    np.testing.assert_array_equal(fixed_HWC, image_HWC)
    assert (jittered_HWC != image_HWC).any()


@pytest.mark.parametrize("flip", [False, True])
def test_what_lies_outside_the_image_is_ignored(flip):
    image_HWC = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    label_HW = np.random.default_rng(0).integers(0, 19, (3, 4), dtype=np.uint8)
    out_HWC, out_HW = np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6), np.uint8)
    transforms.put_image(out_HWC, image_HWC, flip=flip)
    transforms.put_label(out_HW, label_HW, flip=flip)
    if flip:
        out_HWC, out_HW = out_HWC[:, ::-1], out_HW[:, ::-1]
    inside = np.zeros((5, 6), bool)
    inside[:3, :4] = True
    np.testing.assert_array_equal(out_HW[:3, :4], label_HW)
    np.testing.assert_array_equal(out_HWC[:3, :4], image_HWC)
    assert (out_HW[~inside] == IGNORE).all()
    assert (out_HWC[~inside] == transforms.MEAN).all()


@pytest.mark.parametrize("flip", [False, True])
def test_an_image_that_fills_the_crop_covers_all_of_it(flip):
    image_HWC = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    out_HWC, out_HW = np.zeros((6, 7, 3), np.uint8), np.zeros((6, 7), np.uint8)
    transforms.put_image(out_HWC, image_HWC, flip=flip)
    transforms.put_label(out_HW, image_HWC[..., 0], flip=flip)
    expected_HWC = image_HWC[:, ::-1] if flip else image_HWC
    np.testing.assert_array_equal(out_HWC, expected_HWC)
    np.testing.assert_array_equal(out_HW, expected_HWC[..., 0])


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    strength=st.floats(0.01, 1),
    colour=st.tuples(unit, unit, unit),
    seed=st.integers(0, 99),
)
def test_jitter_is_the_affine_map_of_its_definition(size, strength, colour, seed):
    image_HWC = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    brightness, contrast, saturation = (1 + strength * (2 * number - 1) for number in colour)
    x_HWC = image_HWC * brightness
    grey_HW1 = x_HWC @ np.array([[0.299], [0.587], [0.114]])
    x_HWC = saturation * x_HWC + (1 - saturation) * grey_HW1
    x_HWC = contrast * x_HWC + (1 - contrast) * grey_HW1.mean()
    ours_HWC = transforms.jitter_colour(image_HWC, strength=strength, colour=colour)
    assert np.abs(ours_HWC - x_HWC.clip(0, 255)).max() <= 0.5 + 0.1  # rounding, and what the whole multiples take


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)), colour=st.tuples(unit, unit, unit), seed=st.integers(0, 99)
)
def test_jitter_is_exact_whatever_pieces_it_is_computed_in(size, colour, seed):
    """Else the last bit could depend on how BLAS divides the work, and so on the number of threads."""
    image_HWC = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected_HWC = transforms.jitter_colour(image_HWC, strength=1.0, colour=colour)
    for wide, piece in ((1, 1), (3, 7), (16, 64), (5, 1 << 16)):
        with mock.patch.multiple(transforms, _WIDE=wide, _PIECE=piece):
            np.testing.assert_array_equal(
                transforms.jitter_colour(image_HWC, strength=1.0, colour=colour), expected_HWC
            )


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


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)), sigma=st.floats(*transforms.BLUR), seed=st.integers(0, 99)
)
def test_a_blur_is_scipys_gaussian(size, sigma, seed):
    rng = np.random.default_rng(seed)
    image_HWC = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs_HWC = gaussian_filter(image_HWC.astype(float), (sigma, sigma, 0), mode="nearest")
    difference_HWC = transforms.smooth(image_HWC, sigma=sigma) - theirs_HWC
    assert np.abs(difference_HWC).max() < 4  # weights in 128ths, twice
    flat_HWC = np.full((*size, 3), rng.integers(0, 256), np.uint8)
    np.testing.assert_array_equal(transforms.smooth(flat_HWC, sigma=sigma), flat_HWC)


def test_a_share_of_images_is_blurred():
    image_HWC = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert transforms.blur(image_HWC, probability=0.0, numbers=(0.0, 0.9)) is image_HWC
    assert transforms.blur(image_HWC, probability=0.3, numbers=(0.31, 0.9)) is image_HWC
    spreads = [transforms.blur(image_HWC, probability=0.3, numbers=(0.29, n)).std() for n in (0.0, 0.5, 0.99)]
    assert image_HWC.std() == pytest.approx(spreads[0], rel=0.01)
    assert spreads[0] > 1.5 * spreads[1] > 1.5 * spreads[2]


# --------------------------------------------------------------------------------- what torchvision draws for itself


@pytest.fixture
def generator_alone():
    """Fails a test that moves torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_rand_augment_is_a_function_of_its_key(generator_alone):
    image_HWC = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    image_HWC.flags.writeable = False
    outs = [transforms.rand_augment(image_HWC, ops=2, magnitude=9, key=key) for key in range(12)]
    assert all(out_HWC.shape == image_HWC.shape and out_HWC.dtype == np.uint8 for out_HWC in outs)
    assert len({out_HWC.tobytes() for out_HWC in outs}) >= 9
    for key, out_HWC in enumerate(outs):
        np.testing.assert_array_equal(transforms.rand_augment(image_HWC, ops=2, magnitude=9, key=key), out_HWC)


def mixed(kind, key, *, alpha=1.0):
    image_2HWC = np.stack([np.full((32, 24, 3), 40, np.uint8), np.full((32, 24, 3), 240, np.uint8)])
    return transforms.mix_pair(image_2HWC, (2, 0), kind=kind, alpha=alpha, classes=4, key=key)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_pair_has_the_target_that_its_pixels_have(kind, generator_alone):
    shares = set()
    for key in range(30):
        image_2HWC, target_2K = mixed(kind, key)
        assert (image_2HWC.dtype, target_2K.dtype) == (np.uint8, np.float32)
        np.testing.assert_allclose(target_2K.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(target_2K[0], target_2K[1][[2, 1, 0, 3]], rtol=1e-6)  # the same share, the other way
        assert not target_2K[:, [1, 3]].any()
        seen = (image_2HWC.reshape(2, -1).mean(axis=1) - 40) / 200  # of the bright picture, whose class is 0
        np.testing.assert_allclose(seen, target_2K[:, 0], atol=0.003)
        assert (kind == "cutmix") == (set(np.unique(image_2HWC)) <= {40, 240}) or target_2K[0, 0] in (0, 1)
        again_2HWC, again_2K = mixed(kind, key)
        np.testing.assert_array_equal(again_2HWC, image_2HWC)
        np.testing.assert_array_equal(again_2K, target_2K)
        shares.add(float(target_2K[0, 0]))
    assert len(shares) >= 20


def test_a_small_alpha_mixes_little():
    shares = [mixed("mixup", key, alpha=0.1)[1][0, 0] for key in range(60)]
    assert np.mean([min(share, 1 - share) for share in shares]) < 0.1
