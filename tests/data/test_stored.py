"""What a file holds is what is decoded; what is not decoded is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_bytes import png, tiff
from PIL import Image
from small_sources import load, make_npz, make_unsplit, some_images

from petriscope.core.errors import DataError
from petriscope.data import decode
from petriscope.data.contents import HOT, dim_warning, peak_of
from petriscope.data.decode import Form, decode_as, decode_file
from petriscope.data.stored import look

RNG = np.random.default_rng(0)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def deep(channels: int, bits: int = 16, side: int = 6) -> np.ndarray:
    return RNG.integers(0, 2**bits, (side, side + 1, channels)).astype(np.uint16)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return np.floor(values / (2**bits - 1) * 255 + 0.5).astype(np.uint8)


def put(folder: Path, data: bytes, name: str = "a.png") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def warned(source: Path) -> list[str]:
    return [text for text in load(source).warnings if "pixel for pixel" not in text]  # copies in val or test


def fill(source: Path, image: Image.Image, count: int = 3, suffix: str = ".tif", **options: Any) -> None:
    """Put ``count`` copies beside the other images."""
    for number in range(count):
        image.save(source / "cat" / f"zz{number}{suffix}", **options)


@quick
@given(
    st.sampled_from([1, 3, 4]),
    st.integers(9, 16),
    st.sampled_from("<>"),
    st.booleans(),
    st.sampled_from(["png", "tiff"]),
)
def test_all_bits_of_16_are_read(tmp_path: Path, channels: int, bits: int, order: str, packed: bool, form: str) -> None:
    values = deep(channels, bits)
    values[..., 3:] = 65535
    data = png(values) if form == "png" else tiff(values, order, packed, extra=(2,) if channels == 4 else ())
    out = decode_file(put(tmp_path, data), bits=bits)  # contents decide, not the suffix
    assert np.array_equal(out, scaled(values[..., :3], bits))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
def test_16_bit_cmyk_and_unspecified_channels(order: str, packed: bool, tmp_path: Path) -> None:
    values = deep(4)
    ink = decode_file(put(tmp_path, tiff(values, order, packed, photometric=5)))
    eight = Image.frombytes("CMYK", (7, 6), scaled(values, 16).tobytes())
    assert np.array_equal(ink, np.asarray(eight.convert("RGB")))
    assert np.array_equal(
        decode_file(put(tmp_path, tiff(values, order, packed, extra=(0,)))), scaled(values[..., :3], 16)
    )


def test_16_bit_transparency(tmp_path: Path) -> None:
    values = deep(4)
    values[..., 3] = 65535
    values[0, 0, 3] = 0
    for data in (png(values), tiff(values, extra=(2,)), png(values[..., :3], key=tuple(values[0, 0, :3].tolist()))):
        out, content = decode.decode_with_content(put(tmp_path, data))
        assert (out[0, 0] == 255).all() and np.array_equal(out[1:], scaled(values[1:, :, :3], 16))
        assert content.notes == {"transparent": 1}
    gray = values[..., :1]
    out, content = decode.decode_with_content(put(tmp_path, png(gray, key=(int(gray[2, 2, 0]),))))
    assert out[2, 2, 0] == 255 and content.notes == {"transparent": 1}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_whose_zero_is_white(order: str, dtype: type, tmp_path: Path) -> None:
    values = RNG.integers(0, np.iinfo(dtype).max, (5, 6, 1)).astype(dtype)
    path = put(tmp_path, tiff(values, order, photometric=0))
    try:
        out = decode_file(path)
    except DataError as error:
        assert "save it with" in str(error)
    else:
        assert np.array_equal(out, 255 - values if dtype == np.uint8 else scaled(65535 - values, 16))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 5, 1), 0.5, np.float32), "32-bit floating-point"),
        (np.full((4, 5, 1), 0.5, np.float16), "16 bits \\(floating-point\\)"),
        (np.full((4, 5, 3), 0.5, np.float64), "64 bits \\(floating-point\\)"),
        (np.full((4, 5, 1), -3, np.int8), "signed 8-bit"),
        (np.full((4, 5, 1), -3, np.int16), "whole numbers from -3"),
        (np.full((4, 5, 1), 70000, np.int32), "70000 \\(32 bits\\)"),
        (np.full((4, 5, 1), 3 * 10**9, np.uint32), "32 bits|32-bit"),
        (np.full((4, 5, 2), 7, np.uint16), "2 channels of 16 bits"),
        (np.full((4, 5, 7), 7, np.uint8), "7 channels of 8 bits"),
    ],
)
def test_numbers_that_pillow_does_not_read_are_named(
    values: np.ndarray, says: str, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_has_tifffile", lambda: False)  # without tifffile
    with pytest.raises(DataError, match=rf"a\.tif cannot be read as an image: .*{says}.*save it with") as caught:
        decode_file(put(tmp_path, tiff(values, order), "a.tif"))
    assert "data.bits" not in str(caught.value)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turned_tiff_images(order: str, packed: bool, channels: int, dtype: type, tmp_path: Path) -> None:
    values = RNG.integers(0, np.iinfo(dtype).max, (9, 7, channels)).astype(dtype)
    upright = values if dtype == np.uint8 else scaled(values, 16)
    for orientation, expected in (
        (1, upright),
        (3, upright[::-1, ::-1]),
        (6, np.rot90(upright, -1)),
        (8, np.rot90(upright)),
    ):
        path = put(tmp_path, tiff(values, order, packed, orientation=orientation))
        assert np.array_equal(decode_file(path), expected)
        assert decode.image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("order", "<>")
def test_planes(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tifffile")
    eight = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode_file(put(tmp_path, tiff(eight, order, planar=True))), eight)
    values = deep(3)
    path = put(tmp_path, tiff(values, order, planar=True))
    assert np.array_equal(decode_file(path), scaled(values, 16))
    monkeypatch.setattr(decode, "_has_tifffile", lambda: False)
    with pytest.raises(DataError, match=r"separate planes.*petriscope\[tiff\]"):
        decode_file(path)


@pytest.mark.parametrize(
    ("suffix", "pages"), [(".tif", 2), (".tif", 20), (".gif", 3), (".webp", 3), (".png", 4), (".avif", 2)]
)
def test_pages_and_frames_are_counted(suffix: str, pages: int, tmp_path: Path) -> None:
    source = make_unsplit(tmp_path / "data")
    frames = [Image.fromarray(image) for image in some_images(pages, seed=5)]
    fill(source, frames[0], 3, suffix, save_all=True, append_images=frames[1:])
    for _ in range(2):  # decoded, then from the cache
        (said,) = warned(source)
        assert said == f"3 images have {pages} pages or frames, of which the first is taken, such as cat/zz0{suffix}"


def test_different_amounts_make_one_sentence(tmp_path: Path) -> None:
    source = make_unsplit(tmp_path / "data")
    frames = [Image.fromarray(image) for image in some_images(5, seed=5)]
    for pages in (5, 2):
        frames[0].save(source / f"dog/z{pages}.tif", save_all=True, append_images=frames[1:pages])
    assert warned(source) == ["2 images have 2 to 5 pages or frames, of which the first is taken, such as dog/z2.tif"]


def test_dropped_channels_slices_and_transparency_are_said(tmp_path: Path) -> None:
    source = make_unsplit(tmp_path / "data")
    image = some_images(1)[0]
    put(source / "cat", tiff(np.repeat(image, 2, axis=2)[..., :5], extra=(0, 0)), "z5.tif")
    put(source / "cat", tiff(image, depth=9), "z9.tif")
    Image.new("RGBA", (9, 8), (200, 0, 0, 90)).save(source / "dog/clear.png")
    Image.new("RGBA", (9, 8), (200, 0, 0, 255)).save(source / "dog/solid.png")
    Image.new("RGBA", (9, 8), (200, 0, 0, 0)).save(source / "dog/blank.png")
    assert warned(source) == [
        "1 image has 9 pages or frames, of which the first is taken, such as cat/z9.tif",
        "1 image has 5 channels, of which only those of color and transparency are taken, such as cat/z5.tif",
        "1 image has transparent pixels, which are shown on white, such as dog/clear.png",
        "1 image has transparent pixels alone, so that nothing but white is left, such as dog/blank.png",
    ]


def test_bits_that_are_not_read_are_said_and_not_scaled(tmp_path: Path) -> None:
    values = deep(3)
    head = b"P6 7 6 65535\n"
    for name, data in (("a.ppm", head + values.astype(">u2").tobytes()), ("a.png", png(deep(2)))):
        out, content = decode.decode_with_content(put(tmp_path, data, name))
        assert content.notes["bits"] == 16
        assert name == "a.png" or np.abs(out.astype(int) - scaled(values, 16)).max() <= 1
        with pytest.raises(DataError, match=r"upper 8 of its 16 bits are read, so data\.bits=12 does not apply"):
            decode_file(tmp_path / name, bits=12)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_bits_of_jpeg_2000(bits: int, tmp_path: Path) -> None:
    Image.fromarray(some_images(1, side=16)[0]).save(tmp_path / "a.jp2")
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    data[data.index(b"\xff\x4f\xff\x51") + 42] = bits - 1  # of the first channel
    with decode.open_image(put(tmp_path, bytes(data), "a.jp2")) as image:
        assert look(image).bits == bits


@pytest.mark.parametrize("channels", [1, 3])
def test_a_hot_pixel_hides_nothing_and_hinders_nothing(channels: int, tmp_path: Path) -> None:
    source = tmp_path / "data"
    for number in range(10):
        values = np.full((12, 12, channels), 3500, np.uint16)
        values[number, 3, 0] = 65535
        path = source / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(values))
    kept, said = load(source).warnings
    assert "data.depth=16" in kept
    assert "the value 3500 of 65535" in said and "data.bits=12" in said
    data = load(source, bits=12)
    assert np.median(data.split("train").images) > 200
    assert data.warnings == (
        "10 images have pixels brighter than data.bits=12 allows, which are taken as white, such as c0/0.png",
        "images are stored with 16 bits, such as c0/0.png, and are read with 8; --set data.depth=16 keeps all",
    )
    with pytest.raises(DataError, match=r"more than data\.bits=10 allows"):
        load(source, bits=10)


@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_brightness_but_for_hot_pixels(value: int, other: int, height: int, width: int, dtype: type) -> None:
    image = np.full((height, width), value, dtype)

    def asked(peak: int) -> int:
        """Of bytes, whether they are nearly black is all that is asked."""
        return 255 if dtype == np.uint8 and peak >= 16 else peak

    assert peak_of(image) == asked(value)
    image.reshape(-1)[: max(int(HOT * image.size), 1) if image.size > 1 else 0] = np.iinfo(dtype).max
    assert peak_of(image) == asked(value)
    image.reshape(-1)[: image.size // 2] = other
    if image.size >= 6:
        assert peak_of(image) == asked(max(value, other))


@given(st.lists(st.integers(0, 15), min_size=100, max_size=300))
def test_one_bright_image_in_a_hundred_hides_nothing(peaks: list[int]) -> None:
    assert "nearly black" in dim_warning([*peaks, 255], 8)[0]
    assert not dim_warning([*peaks, *([200] * 20)], 8)


@pytest.mark.parametrize("kind", ["folder", "npz", "mapped npz"])
@pytest.mark.parametrize("top", [0, 1, 15, 16])
def test_images_of_8_bits_that_are_nearly_black(top: int, kind: str, tmp_path: Path) -> None:
    dark = {
        f"{split}_images": np.minimum(some_images(count, seed=count), top)
        for split, count in (("train", 12), ("val", 4), ("test", 4))
    }
    source = make_npz(tmp_path, **dark)
    if kind == "folder":
        source = make_unsplit(tmp_path / "data")
        for path in source.rglob("*.png"):
            Image.fromarray(np.minimum(np.asarray(Image.open(path)), top)).save(path)
    said = load(source, memory="mapped" if kind == "mapped npz" else "auto").warnings
    assert any(f"the value {top} of 255" in text and "nearly black" in text for text in said) == (top < 16)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 1 << 20)
    path = put(tmp_path, b"\x89PNG\r\n\x1a\n")
    with path.open("r+b") as handle:
        handle.truncate((1 << 20) + 1)
    monkeypatch.setattr("PIL.Image.open", lambda *args, **how: pytest.fail("it was opened"))
    with pytest.raises(DataError, match=r"a\.png .*1,048,577 bytes"):
        decode_file(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a"])
def test_contents_decide_and_not_the_suffix(mode: str, name: str, tmp_path: Path) -> None:
    image = Image.new(mode, (5, 4), 90 if mode in "LP" else (90,) * len(mode))
    if mode == "P":
        image.putpalette([*range(256)] * 3)  # some versions of Pillow save a short palette so that they cannot read it
    for form in ("PNG", "TIFF", "JPEG", "GIF", "BMP"):
        try:
            image.save(tmp_path / name, format=form)
        except (OSError, ValueError):  # the format does not have the mode
            continue
        assert decode_file(tmp_path / name).shape[:2] == (4, 5)


def test_colors_that_a_model_of_gray_images_does_not_see(tmp_path: Path) -> None:
    color, grayish = some_images(1)[0], np.repeat(some_images(1, gray=True)[0], 3, axis=2)
    for name, image, notes in (("a.png", color, {"color": 3}), ("b.png", grayish, {}), ("c.jpg", grayish, {})):
        Image.fromarray(image).save(tmp_path / name)
        assert decode.decode_with_content(tmp_path / name, channels="gray")[1].notes == notes
        assert not decode.decode_with_content(tmp_path / name)[1].notes
    assert not load(make_unsplit(tmp_path / "data"), channels="gray").warnings  # as asked


def test_bits_that_do_nothing_are_said(tmp_path: Path) -> None:
    (said,) = load(make_unsplit(tmp_path / "data"), bits=12).warnings
    assert said == "data.bits=12 is for images stored with 16 bits, and there are none"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # the tests undo the filter of petriscope.data.decode
def test_a_damaged_second_page_costs_nothing(tmp_path: Path) -> None:
    first, second = (Image.fromarray(image) for image in some_images(2))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for end in range(len(data) - 1, len(data) // 2, -7):
        path = put(tmp_path, bytes(data[:end]), "b.tif")
        assert np.array_equal(decode_file(path), np.asarray(first))


def test_values_below_zero_are_read_by_their_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tifffile")
    path, form = put(tmp_path, tiff(np.full((4, 5, 1), -3, np.int16), "<"), "a.tif"), Form(range=(-10, 4))
    assert (decode_as(path, None, form)[0] == round(255 * 7 / 14)).all()
    monkeypatch.setattr(decode, "_has_tifffile", lambda: False)
    with pytest.raises(DataError, match=r"from -3 to .*--set data\.range=\[\.\.\.\]"):
        decode_file(path)
    with pytest.raises(DataError, match="tifffile"):  # Pillow alone does not read them so
        decode_as(path, None, form)


@pytest.mark.parametrize("span", [None, (0.0, 1.0)])
def test_values_that_are_no_numbers_are_counted(span: tuple[float, float] | None, tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    values = np.full((4, 5, 1), 0.5, np.float32)
    values[0, 0], values[1, 1] = np.nan, np.inf
    with pytest.raises(DataError, match="2 of its 20 values are NaN or infinite"):
        decode_as(put(tmp_path, tiff(values, "<"), "a.tif"), None, Form(range=span))
