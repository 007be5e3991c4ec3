"""Scaled images: the pixels, the digests that stay, and micrometers per pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from petriscope import api
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection, load_recipe
from petriscope.core.scale import asked_scale, in_words, micrometers, read_scale
from petriscope.data import load_dataset
from petriscope.data.appearance import background, measure
from petriscope.data.background import background_colors
from petriscope.data.index import row_digests
from petriscope.data.recognition import join_sets
from petriscope.data.rescale import rescale

LIGHT = (240, 230, 220)


def discs(diameter: float, count: int = 1, height: int = 48, width: int = 48) -> np.ndarray:
    """Images of a stained disc before a bright background, uint8 [count, height, width, 3]."""
    y, x = (np.arange(side) - (side - 1) / 2 for side in (height, width))
    inside = np.hypot(*np.meshgrid(y, x, indexing="ij")) <= diameter * min(height, width) / 2
    image = np.where(inside[..., None], np.array(LIGHT) * 0.45, LIGHT).round().astype(np.uint8)
    return np.repeat(image[None], count, 0)


def at(factor: float, count: int = 1) -> np.ndarray:
    return np.full((count, 2), factor)


def folder_of(place, sides, images=3, diameter=0.5):
    """Two classes, with images of each of these sides."""
    for label in ("a", "b"):
        for side in sides:
            for number in range(images):
                path = place / label / f"{side}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = discs(diameter, height=side, width=side)[0]
                image[0, 0] = (number, side, label == "a")  # no two are copies
                Image.fromarray(image).save(path)
    return place


# ---------------------------------------------------------------------------------------------------------- the pixels


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3])),
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(1, 256),
)
def test_the_background_is_the_same_without_torch(shape: tuple[int, ...], seed: int, levels: int) -> None:
    images = np.random.default_rng(seed).integers(256 - levels, 256, shape, dtype=np.uint8)
    light = background(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert (
        background_colors(images) == np.rint((light.numpy() * 255).round(3))
    ).all()  # a half is one in spite of rounding


@given(diameter=st.floats(0.3, 0.5), factor=st.floats(0.5, 1.7))
def test_objects_are_as_many_times_as_large_before_the_same_background(diameter: float, factor: float) -> None:
    images = discs(diameter, height=96, width=96)
    before, after = (measure(torch.from_numpy(x)) for x in (images, rescale(images, at(factor))))
    assert after.size.item() == pytest.approx(before.size.item() * factor, abs=0.03)
    assert after.background[0].tolist() == pytest.approx(LIGHT, abs=3)


def test_images_are_scaled_about_their_centers_in_each_direction() -> None:
    image = np.zeros((1, 40, 40, 1), np.uint8)
    image[0, 12:16, 24:28] = 250  # its center is 6 above and 6 to the right of that of the image
    for factors, (y, x) in (((2, 1), (8, 26)), ((1, 2), (14, 32)), ((0.5, 0.5), (17, 23)), ((1.5, 1.5), (11, 29))):
        found = np.argwhere(rescale(image, np.array([factors]))[0, :, :, 0] > 125)
        assert found.mean(0).tolist() == pytest.approx([y - 0.5, x - 0.5], abs=0.5), factors


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])),
    factors=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    seed=st.integers(0, 99),
)
def test_any_image_of_any_shape_is_scaled_by_itself(shape, factors, seed) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, *shape)).astype(np.uint8)
    images[1] = 77
    both = np.array([factors, factors, (1, 1)])
    found = rescale(images, both)
    assert found.shape == images.shape and found.dtype == np.uint8
    assert (found[1] == 77).all() and (found[2] == images[2]).all()
    assert (rescale(images[:1], both[:1]) == found[:1]).all()


def test_fine_detail_does_not_alias() -> None:
    board = np.indices((48, 48)).sum(0) % 2 * 200
    found = rescale(board[None, :, :, None].astype(np.uint8), at(0.4))[0, 20:28, 20:28]
    assert found.max() - found.min() < 20 and abs(found.mean() - 100) < 10


# ------------------------------------------------------------------------------------------------------ as it is written


@pytest.mark.parametrize(
    ("written", "read", "words"),
    [
        (1.3, 1.3, "1.3 times"),
        ("0.74", 0.74, "0.74 times"),
        (2, 2.0, "2 times"),
        ("0.1um", "0.1um", "0.1 um per pixel"),
        (" .25 µm", "0.25um", "0.25 um per pixel"),
        ("1e-1 μm", "0.1um", "0.1 um per pixel"),
    ],
)
def test_a_scale_is_a_factor_or_micrometers(written, read, words) -> None:
    assert read_scale(written) == read == read_scale(read) and in_words(read) == words
    assert load_recipe("demo", [], data={"scale": written}).data.scale == read
    assert (micrometers(read) is None) == isinstance(read, float)


@pytest.mark.parametrize(
    "written", [0, -1, 0.01, 11, float("nan"), True, "", "um", "0um", "1.2.3um", "infum", "big", [1]]
)
def test_anything_else_is_refused(written) -> None:
    with pytest.raises(ValueError, match=r"it must be a factor from 0\.1 to 10"):
        read_scale(written)
    with pytest.raises(
        RequestError, match=r"data.scale: (it must be a factor .* or micrometers per pixel of the files|true is not)"
    ):
        load_recipe("demo", [], data={"scale": written})


def test_what_is_estimated_is_no_recipe() -> None:
    assert asked_scale("estimated") == "estimated" and asked_scale(None) is None
    with pytest.raises(RequestError, match=r"data\.scale"):
        load_recipe("demo", ["data.scale=estimated"])
    with pytest.raises(RequestError, match=r"the scale cannot be 'guessed': .*; or estimated"):
        asked_scale("guessed")


# ------------------------------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("memory", ["resident", "mapped"])
def test_scaled_images_keep_their_digests(tiny_npz, memory) -> None:
    plain = load_dataset(DataSection(source=str(tiny_npz)))
    found = load_dataset(DataSection(source=str(tiny_npz), scale=1.5, memory=memory))
    for split, part in found.splits.items():
        before = plain.split(split)
        assert (part.images == rescale(before.images, at(1.5, len(before)))).all()
        assert part.digests() == before.digests() and part.mapped == (memory == "mapped")
        assert part.subset(np.arange(5)).digests() == before.digests()[:5]
    assert found.fingerprint == plain.fingerprint and found.membership.digests == plain.membership.digests
    apart = join_sets([found.train, load_dataset(DataSection(source=str(tiny_npz), scale=2)).test])
    assert apart.digests() == [*plain.train.digests(), *plain.test.digests()]


def test_mapped_images_of_other_scales_are_other_entries_of_the_cache(tiny_npz) -> None:
    sources = {name: {"source": str(tiny_npz), "scale": scale} for name, scale in (("a", 1), ("b", 2))}
    section = DataSection(sources=sources, memory="mapped")
    test = load_dataset(section).test
    plain = load_dataset(DataSection(source=str(tiny_npz))).test.images
    assert (test.images[:40] == plain).all() and (test.images[40:] == rescale(plain, at(2, 40))).all()
    for scale in (None, 2, 3):
        each = section.model_copy(update={"sources": None, "source": str(tiny_npz), "scale": scale})
        assert (load_dataset(each).test.images == rescale(plain, at(scale or 1, 40))).all()


def test_sources_without_a_scale_have_that_of_all(tiny_npz) -> None:
    sources = {"a": str(tiny_npz), "b": {"source": str(tiny_npz), "scale": 1}}
    section = DataSection(sources=sources, scale=1.5)
    assert section.scales == {"a": 1.5, "b": 1.0} and section.scaled == {"": 1.5, "a": 1.5}
    test = load_dataset(section).test.images
    assert (test[:40] == rescale(test[40:], at(1.5, 40))).all()


def test_masks_are_not_scaled() -> None:
    with pytest.raises(RequestError, match="masks are not scaled"):
        load_dataset(DataSection(source="synthetic-terrain:4", size=16, scale=1.5))
    assert load_dataset(DataSection(source="synthetic-terrain:20", size=16, scale=1)).train


def test_an_audit_looks_at_images_as_they_are(tiny_npz, tmp_path) -> None:
    section = DataSection(source=str(tiny_npz), scale=1.5)
    with pytest.raises(RequestError, match=r"leave out data\.scale"):
        api.audit(tiny_npz, tmp_path / "audit", section, labels=False, features=None, quiet=True)


# ----------------------------------------------------------------------------------------------------------- micrometers


def test_files_of_several_sizes_are_brought_to_one_field_of_view(tmp_path) -> None:
    folder = folder_of(tmp_path / "files", (40, 80), diameter=0.5)
    folder_of(folder, (40,), images=4)
    found = load_dataset(DataSection(source=str(folder), scale="0.25um", val_fraction=0, test_fraction=0))
    assert found.field_of_view == (10.0, 10.0) and found.shape == (40, 40, 3)
    said = [text for text in found.warnings if "fields of view differ" in text]
    assert said == [
        "with 0.25 um per pixel, the fields of view differ; all are brought to 10 x 10 um (height x width): 6 images are cropped "
        "and enlarged, 0 are reduced and surrounded by the color of the background"
    ]
    sizes = measure(torch.from_numpy(found.train.images)).size.numpy()
    large = np.array(["80-" in name for name in found.train.ids])
    assert np.median(sizes[large]) == pytest.approx(2 * np.median(sizes[~large]), rel=0.1)
    assert (
        found.train.digests()
        == load_dataset(DataSection(source=str(folder), val_fraction=0, test_fraction=0)).train.digests()
    )


def test_a_given_field_of_view_is_kept(tmp_path) -> None:
    folder = folder_of(tmp_path / "files", (40,), images=10)
    found = load_dataset(DataSection(source=str(folder), scale="0.25um", field=(20, 10)))
    assert found.field_of_view == (20, 10)
    plain = load_dataset(DataSection(source=str(folder))).train.images
    assert (found.train.images == rescale(plain, np.array([[0.5, 1]] * len(plain)))).all()
    with pytest.raises(
        DataError, match=r"20 images are not of the size .*: the first is 10 x 10 um. Factors go from 0\.1 to 10"
    ):
        load_dataset(DataSection(source=str(folder), scale="0.25um", field=0.9))


def test_sources_with_micrometers_share_the_field_of_most_images(tmp_path) -> None:
    many, few = folder_of(tmp_path / "many", (40,), images=10), folder_of(tmp_path / "few", (60,), images=5)
    sources = {"few": {"source": str(few), "scale": "0.1um"}, "many": {"source": str(many), "scale": "0.2um"}}
    found = load_dataset(DataSection(sources=sources, size=40))
    assert found.field_of_view == (8.0, 8.0)
    of_few = found.train.subset(np.flatnonzero(found.train.domains == "few"))
    alone = load_dataset(DataSection(source=str(few), size=40)).train
    order = dict(zip(alone.ids.tolist(), alone.images, strict=True))
    same = np.stack([order[name.removeprefix("few/")] for name in of_few.ids.tolist()])
    assert (of_few.images == rescale(same, at(6 / 8, len(same)))).all()
    assert (row_digests(same) == np.frombuffer(b"".join(of_few.digests()), np.uint8).reshape(-1, 16)).all()
