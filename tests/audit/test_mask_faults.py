import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from petriscope.audit.mask_faults import check_masks
from petriscope.core.errors import DataError


def mask(*rows):
    return np.array(rows, dtype=np.uint8)


SOME = mask((0, 1), (1, 2))


def test_each_finding_on_a_mask_that_has_it():
    masks = np.stack([SOME, 0 * SOME, 0 * SOME + 2, SOME + 1, mask((1, 2), (1, 2)), SOME, mask((1, 2), (1, 2))])
    found = check_masks(masks, 3)
    assert found.empty.tolist() == [False, True, False, False, False, False, False]
    assert found.single_class.tolist() == [False, False, True, False, False, False, False]
    assert found.wrong_values.tolist() == [False, False, False, True, False, False, False]
    assert not found.wrong_size.any()
    assert found.group.tolist() == [0, -1, -1, -1, 1, 0, 1]


def test_ignored_pixels_do_not_count():
    ignored = 255
    masks = np.stack(
        [mask((255, 255), (255, 255)), mask((0, 255), (0, 0)), mask((255, 1), (1, 1)), mask((0, 1), (255, 2))]
    )
    found = check_masks(masks, 3, ignore=ignored)
    assert found.empty.tolist() == [True, True, False, False]
    assert found.single_class.tolist() == [False, False, True, False]
    assert not found.wrong_values.any()
    assert check_masks(masks, 3).wrong_values.all()


def test_background_may_be_what_is_ignored():
    found = check_masks(np.stack([mask((0, 0), (0, 0)), mask((0, 0), (1, 1))]), 2, ignore=0)
    assert found.empty.tolist() == [True, False]
    assert found.single_class.tolist() == [False, True]


def test_sizes():
    masks = [SOME, np.zeros((3, 2), np.uint8), SOME.copy()]
    assert check_masks(masks, 3).wrong_size.tolist() == [False, True, False]
    assert check_masks(masks, 3, shape=(3, 2)).wrong_size.tolist() == [True, False, True]
    assert check_masks(masks, 3).group.tolist() == [0, -1, 0]


def test_same_bytes_in_another_shape_are_another_mask():
    assert check_masks([mask((0, 1, 2, 0)), mask((0, 1), (2, 0))], 3).group.tolist() == [-1, -1]


@given(arrays(np.uint8, st.tuples(st.integers(0, 12), st.just(2), st.just(2)), elements=st.integers(0, 2)))
def test_one_group_is_one_mask(masks):
    group = check_masks(masks, 3).group
    for one in range(len(masks)):
        for other in range(one):
            if group[one] >= 0 and group[other] >= 0:
                assert (group[one] == group[other]) == np.array_equal(masks[one], masks[other])


@pytest.mark.parametrize("wrong", [np.zeros((1, 2, 2)), np.zeros((1, 2, 2, 1), np.uint8), [np.zeros(4, np.uint8)]])
def test_what_is_not_masks_is_refused(wrong):
    with pytest.raises(DataError, match="uint8"):
        check_masks(wrong, 2)


def test_classes_are_needed():
    with pytest.raises(DataError, match="classes"):
        check_masks(np.zeros((1, 2, 2), np.uint8), 0)
