import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from petriscope.audit.quality import FLAGS, NAMES, measure_quality
from petriscope.core.errors import DataError
from petriscope.data.imageset import ImageSet
from petriscope.data.sources.synthetic_smear import draw_smear

CLEAN = (0.9 * draw_smear(240, 32)[0]).astype(np.uint8)  # a few are drawn overexposed
CLEAN = np.minimum(CLEAN, 225)
PLANTED = slice(0, 240, 24)  # ten images, of every class


def _flatten(images, factor):
    mean = images.mean((1, 2, 3), keepdims=True)
    return mean + factor * (images - mean)


FAULTS = {
    "dark": lambda x: 0.35 * x,
    "bright": lambda x: 1.5 * x + 60,
    "low_contrast": lambda x: _flatten(x, 0.25),
    "blurred": lambda x: gaussian_filter(x, (0, 1.5, 1.5, 0)),
    "blank": lambda x: 0 * x + 200,
    "gray_among_color": lambda x: np.repeat(x.mean(3, keepdims=True), 3, 3),
}


def _with(fault, images=CLEAN):
    spoiled = images.astype(np.float32)
    spoiled[PLANTED] = FAULTS[fault](spoiled[PLANTED])
    return np.clip(np.rint(spoiled), 0, 255).astype(np.uint8)


def test_there_is_a_fault_for_every_flag():
    assert set(FAULTS) == set(FLAGS) == set(measure_quality(CLEAN).flags)


def test_clean_images_have_no_flags():
    assert {name: int(flag.sum()) for name, flag in measure_quality(CLEAN).flags.items()} == dict.fromkeys(FLAGS, 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_spoiled_image_is_flagged_and_no_other(fault):
    found = measure_quality(_with(fault)).flags[fault]
    assert found[PLANTED].all()
    assert found.sum() == 10


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"gray_among_color"}))
def test_gray_images_are_judged_too(fault):
    found = measure_quality(_with(fault)[..., 1:2]).flags
    assert found[fault][PLANTED].all()
    assert not found["gray_among_color"].any()


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"blank"}))
def test_what_all_images_share_is_no_fault(fault):
    every = np.clip(FAULTS[fault](CLEAN.astype(np.float32)), 0, 255).astype(np.uint8)
    assert not measure_quality(every).flags[fault].any()


def test_metrics_of_known_images():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    images[1] = 255
    images[2, :, ::2] = (255, 0, 0)  # columns, red and black
    values = measure_quality(images).values
    assert values["brightness"] == pytest.approx([0, 1, 0.5 * 76 / 255], abs=1e-6)
    assert values["contrast"] == pytest.approx([0, 0, 76 / 255], abs=1e-6)
    assert values["clipped"].tolist() == [0, 1, 0]
    assert values["saturation"] == pytest.approx([0, 0, 0.5])
    assert values["sharpness"] == pytest.approx([0, 0, 2])  # each Laplacian is twice the step, each gradient the step


def test_a_spot_is_not_blank():
    images = np.full((2, 28, 28, 1), 200, np.uint8)
    images[1, 4:6, 4:6] = 90
    assert measure_quality(images).flags["blank"].tolist() == [True, False]


@given(st.permutations(range(12)))
def test_the_order_of_the_images_does_not_matter(order):
    images = _with("blurred")[:12]
    one, other = measure_quality(images), measure_quality(images[list(order)])
    for name in NAMES:
        assert np.array_equal(one.values[name][list(order)], other.values[name])


def test_a_set_gives_what_its_array_gives():
    batch = _with("dark")
    images = ImageSet(
        np.repeat(batch, 2, 0),
        np.zeros(240, np.int64),
        ("cell",),
        np.arange(240).astype(str),
        rows=np.arange(0, 480, 2),
    )
    one, other = measure_quality(batch), measure_quality(images)
    assert all(np.array_equal(one.values[name], other.values[name]) for name in NAMES)
    assert all(np.array_equal(one.flags[name], other.flags[name]) for name in FLAGS)


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (1, 8, 8, 1), (2, 1, 1, 3), (3, 2, 9, 1)])
def test_few_and_tiny_images(shape):
    result = measure_quality(np.full(shape, 7, np.uint8))
    assert all(len(each) == shape[0] for each in (*result.values.values(), *result.flags.values()))
    assert result.flags["blank"].all()


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 17), np.uint8)]
)
def test_what_is_not_images_is_refused(wrong):
    with pytest.raises(DataError, match="uint8"):
        measure_quality(wrong)
