"""Tiles: where they lie, and the map that is blended from them."""

import numpy as np
import pytest
import torch
from small_sources import load, make_folders, save_image, save_mask

from petriscope.audit.runner import audit
from petriscope.core.errors import DataError, RequestError
from petriscope.core.masks import IGNORE
from petriscope.core.recipe import DataSection, TilesSection, check_recipe
from petriscope.data.index import row_digests
from petriscope.data.tile_sets import TileBatches, crops_per_image, draw_places, one_tile_each
from petriscope.data.tiles import blended, cut, starts

SIZES = [(5, 9), (16, 16), (23, 12), (40, 31), (16, 50), (7, 7)]


@pytest.fixture(params=["auto", "mapped"])
def source(request, tmp_path):
    """Images of six sizes with masks of three classes; their red is ten times the class. Also: how they are kept in memory."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        mask = rng.integers(0, 3, size, dtype=np.uint8)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        pixels[..., 0] = 10 * mask
        save_image(tmp_path / "images" / f"{number}.png", pixels)
        save_mask(tmp_path / "masks" / f"{number}.png", mask)
    return tmp_path, request.param


def whole(source, **options):
    folder, memory = source
    options = {"tiles": 16, "val_fraction": 0.0, "test_fraction": 0.0, "memory": memory, **options}
    return load(folder, **options)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 4000])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_tiles_cover_a_side_and_end_with_it(length, overlap):
    found = starts(length, 16, overlap)
    assert found == sorted(set(found)) and found[0] == 0
    assert found[-1] == max(length - 16, 0)
    assert (np.diff(found) <= 16 - round(16 * overlap)).all()


@pytest.mark.parametrize("size", [(3, 5), (16, 16), (17, 16), (40, 9), (61, 47)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
def test_a_map_that_depends_on_each_pixel_alone_is_the_same_from_tiles(size, overlap):
    image = np.random.default_rng(0).integers(0, 256, (*size, 1), dtype=np.uint8)

    def predict(tiles):
        assert tiles.shape[1:] == (16, 12, 1)
        one = tiles[..., 0].astype(np.float32) / 255
        return np.stack([one, 1 - one], axis=1)

    bands = list(blended(predict, image, (16, 12), overlap, 2))
    assert [top for top, _ in bands] == list(np.cumsum([0, *(band.shape[1] for _, band in bands)])[:-1])
    assert max(band.shape[1] for _, band in bands) <= 16  # what is in memory
    np.testing.assert_allclose(np.concatenate([band for _, band in bands], axis=1), predict_whole(image), atol=1e-6)


def predict_whole(image):
    one = image[..., 0].astype(np.float32) / 255
    return np.stack([one, 1 - one])


def test_where_tiles_overlap_one_fades_into_the_other():
    answers = iter([0.0, 1.0])
    image = np.zeros((16, 24, 1), np.uint8)

    def predict(tiles):
        return np.stack([np.full((1, 16, 16), next(answers), np.float32) for _ in tiles])

    ((_, found),) = blended(predict, image, (16, 16), 0.5, 1)
    row = found[0, 3]
    assert row[:8].max() == 0 and row[16:].min() == 1
    assert (np.diff(row[7:17]) > 0).all()


def test_images_keep_their_sizes_and_what_is_added_is_unlabeled(source):
    data = whole(source)
    images = data.split("train")
    assert images.shape == (40, 50, 3) and images.padded
    assert images.mapped == (source[1] == "mapped")
    for row, size in enumerate(SIZES):
        pixels, mask = images.window(row), images.targets[row]
        assert pixels.shape == (*size, 3) and images.extent(row) == size
        np.testing.assert_array_equal(pixels[..., 0], 10 * mask[: size[0], : size[1]])
        beside = mask.copy()
        beside[: size[0], : size[1]] = IGNORE
        assert (beside == IGNORE).all()
        assert images.digests()[row] == row_digests(pixels[None]).tobytes()  # of the image alone, whatever is beside it
        np.testing.assert_array_equal(images.window(row, 2, 3, (4, 4)), pixels[2:6, 3:7])
    assert any("6 sizes and keep them, from 5 x 9 to 40 x 31" in warning for warning in data.warnings)
    assert whole(source, tiles=None).split("train").shape != images.shape  # another entry of the cache


def test_crops_lie_in_their_images_and_small_ones_are_mirrored(source):
    images = whole(source).split("train")
    rows = np.repeat(np.arange(len(images)), 30)
    places = draw_places(images, rows, (16, 16), np.random.default_rng(0))
    last = images.extents[rows] - 16
    assert (places[:, 1:] >= 0).all() and (places[:, 1:] <= np.maximum(last, 0)).all()
    assert (places[rows == 3, 1:].max(0) == last[rows == 3][0]).all()  # the last corner is drawn too
    crops, masks = TileBatches(images, torch.device("cpu"), TilesSection(size=16)).take(places)
    assert crops.shape == (180, 16, 16, 3) and masks.shape == (180, 16, 16)
    labeled = masks != IGNORE
    assert (crops[..., 0][labeled] == 10 * masks[labeled]).all()
    assert labeled[rows == 3].all() and labeled[rows == 5].sum((1, 2)).tolist() == [49] * 30
    np.testing.assert_array_equal(
        crops[-1, :14, :7], crops[-1, :7, :7].repeat(1, 1, 1).numpy()[[*range(7), *range(6, -1, -1)]]
    )
    assert crops_per_image(images, (16, 16)).tolist() == [1, 1, 1, 5, 3, 1]


def test_one_tile_of_each_image_is_an_ordinary_set(source):
    images = whole(source).split("train")
    tiles = one_tile_each(images, DataSection(tiles={"size": (8, 12)}))
    assert tiles.shape == (8, 12, 3) and len(tiles) == 6 and not tiles.padded
    assert tiles.digests() == images.digests()
    assert one_tile_each(images, DataSection()) is images


def test_cut_fills_what_is_missing():
    mask = np.arange(4, dtype=np.uint8).reshape(2, 2)
    assert cut(mask, 0, 0, (2, 4), 9).tolist() == [[0, 1, 9, 9], [2, 3, 9, 9]]
    assert cut(mask, 0, 0, (3, 4)).tolist() == [[0, 1, 1, 0], [2, 3, 3, 2], [2, 3, 3, 2]]


def test_requests_that_tiles_do_not_fit_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"data\.size cannot be set beside it"):
        check_recipe({"data": {"tiles": 16, "size": 32}})
    with pytest.raises(RequestError, match=r"less than or equal to 0\.5"):
        check_recipe({"data": {"tiles": {"size": 16, "overlap": 0.6}}})
    with pytest.raises((RequestError, DataError), match=r"data\.tiles is for images with masks, and .* has labels"):
        load(make_folders(tmp_path), tiles=4)
    with pytest.raises(RequestError, match="an audit looks at images of one size"):
        audit(tmp_path, section=DataSection(tiles={"size": 4}))
