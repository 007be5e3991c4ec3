"""Image files of every mode, unreadable ones, and the cache of decoded images."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from small_sources import load, make_folders, make_unsplit, save_image, some_images

from petriscope.core.errors import DataError, PetriscopeError
from petriscope.data import cache, decode, decode_many
from petriscope.data.decode import Channels, Form, decode_file, decode_with_content, read_image
from petriscope.data.decode_many import known_files
from petriscope.data.in_memory import InMemory


def save(path: Path, mode: str, value: Any, **options: Any) -> Path:
    Image.new(mode, (5, 4), value).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "value", "expected"),
    [
        ("a.png", "L", 90, [90]),
        ("a.png", "1", 1, [255]),
        ("a.png", "RGB", (1, 2, 3), [1, 2, 3]),
        ("a.png", "RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("a.png", "RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("a.png", "LA", (40, 0), [255]),
        ("a.png", "LA", (40, 255), [40]),
        ("a.tif", "CMYK", (0, 0, 0, 255), [0, 0, 0]),
        ("a.png", "I;16", 65535, [255]),
        ("a.tif", "I;16", 32896, [128]),
        ("a.bmp", "RGB", (1, 2, 3), [1, 2, 3]),
        ("a.webp", "RGB", (128, 128, 128), [128, 128, 128]),
        ("a.gif", "L", 90, [90]),
    ],
)
def test_modes(name: str, mode: str, value: Any, expected: list[int], tmp_path: Path) -> None:
    out = decode_file(save(tmp_path / name, mode, value))
    assert out.dtype == np.uint8 and out.shape == (4, 5, len(expected))
    assert np.array_equal(out[2, 2], expected)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (5, 4), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    out = decode_file(tmp_path / "a.png")
    assert out[0, 0].tolist() == [0, 200, 0] and out[1, 1].tolist() == [255, 255, 255]


def test_only_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (5, 4), value) for value in (10, 200)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert decode_file(tmp_path / name, channels="gray").max() == 10


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_exif_orientation(name: str, tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise: its left is then on top
    for label in "ab":
        path = tmp_path / label / name
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path, exif=exif)
    out = decode_file(tmp_path / "a" / name)
    assert out.shape == (32, 16, 3) and out[:12].min() > 200 and out[20:].max() < 50
    assert load(tmp_path).shape == (32, 16, 3)


def test_size_channels_and_bits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", "I;16", 4095)
    assert decode_file(path, (2, 3), channels="rgb", bits=12).tolist() == np.full((2, 3, 3), 255).tolist()
    assert decode_file(save(tmp_path / "b.png", "RGB", (255, 0, 0)), channels="gray").max() == 76
    with pytest.raises(DataError, match=r"a\.png .*4095.*data\.bits=10"):
        decode_file(path, bits=10)


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png .*no such file"):
        decode_file(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"floating-point|data\.range"):
        decode_file(save(tmp_path / "f.tif", "F", 7.5))
    (tmp_path / "t.png").write_text("hello")
    with pytest.raises(DataError, match="not an image"):
        decode_file(tmp_path / "t.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8001, 10_000, 14_000])
def test_bombs_are_refused_before_decoding(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=r"bomb\.png.* more than 64 megapixels"):
        decode_file(path)


def test_a_file_that_another_program_would_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *args, **how: pytest.fail("a program was started"))
    path = tmp_path / "cell.png"
    Image.new("RGB", (8, 8)).save(path, format="EPS")
    with pytest.raises(DataError, match=r"cell\.png cannot be read as an image: not an image in a format"):
        decode_file(path)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    make_folders(tmp_path)
    os.mkfifo(next(tmp_path.rglob("*.png")).with_name("pipe.png"))
    with pytest.raises(DataError, match=r"pipe\.png \(not a regular file\)"):
        load(tmp_path)


def damage(folder: Path) -> list[str]:
    """Make seven images unreadable in several ways."""
    files = sorted(folder.rglob("*.png"))[::3]
    for index, path in enumerate(files):
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"text")[index % 3])
    return [path.relative_to(folder).as_posix() for path in files]


def test_unreadable_images(tmp_path: Path) -> None:
    make_unsplit(tmp_path / "data")
    bad = damage(tmp_path / "data")
    with pytest.raises(DataError, match=r"data\.unreadable=skip") as caught:
        load(tmp_path / "data", size=8, channels="rgb")
    assert f"{len(bad)} images cannot be read" in str(caught.value) and "and 2 more" in str(caught.value)
    assert all(name in str(caught.value) for name in bad[:5]) and bad[5] not in str(caught.value)
    for _ in range(2):  # decoded, then from the cache
        data = load(tmp_path / "data", unreadable="skip")
        kept = np.concatenate([part.ids for part in data.splits.values()])
        assert len(kept) == 20 - len(bad) and not set(kept) & set(bad)
        assert any("left out" in text and bad[0] in text for text in data.warnings)
    assert not list(cache.cache_dir().glob(".*"))


def test_nothing_readable(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.png").write_text("x")
    with pytest.raises(DataError, match="no image is left"):
        load(tmp_path, unreadable="skip")


def test_sizes_that_differ(tmp_path: Path) -> None:
    make_unsplit(tmp_path / "data")
    save_image(tmp_path / "data/cat/large.png", some_images(1, side=30)[0])
    data = load(tmp_path / "data")
    assert data.shape == (8, 9, 3)
    assert any("2 sizes" in text and "8 x 9" in text and "data.size" in text for text in data.warnings)
    assert not load(tmp_path / "data", size=7).warnings


def test_one_color_image_makes_all_color(tmp_path: Path) -> None:
    make_unsplit(tmp_path / "data", gray=True)
    save_image(tmp_path / "data/cat/color.png", some_images(1)[0])
    assert load(tmp_path / "data").shape == (8, 9, 3)


def test_dim_sixteen_bit_files(tmp_path: Path) -> None:
    source = tmp_path / "data"
    for number in range(8):
        path = source / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5), 500 + number, np.uint16)).save(path)
    assert any("data.bits=9" in text for text in load(source).warnings)
    assert load(source, bits=9).split("train").images.min() > 240


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    done: list[Path] = []
    original = decode_many.read_image

    def counted(path: Path, *rest: Any) -> Any:
        done.append(path)
        return original(path, *rest)

    monkeypatch.setattr(decode_many, "read_image", counted)

    def taken() -> int:
        count = len(done)
        done.clear()
        return count

    return taken


@pytest.mark.parametrize("memory", ["resident", "mapped", "auto"])
def test_images_are_decoded_once(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "data")
    taken = count_decodes(monkeypatch)
    first = load(source, memory=memory)
    assert taken() == 20
    assert load(source, memory=memory).fingerprint == first.fingerprint and taken() == 0
    load(source, memory=memory, size=5)
    assert taken() == 20


def test_changed_images_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "data")
    taken = count_decodes(monkeypatch)
    first = load(source)
    save_image(source / "train/cat/train_00.png", some_images(1, seed=77)[0])
    assert taken() == 20 and load(source).fingerprint != first.fingerprint and taken() == 20
    (source / "train/cat/train_00.png").unlink()
    assert len(load(source).split("train")) == 11


def test_changed_contents_are_noticed_whatever_the_times(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "data")
    path, found = source / "train/cat/train_00.png", []
    for value in (10, 200):
        bitmap = save(tmp_path / "a.bmp", "RGB", (value, value, value))
        path.write_bytes(bitmap.read_bytes())  # of one size; contents decide, not the suffix
        os.utime(path, (1e9, 1e9))
        found.append(load(source, size=8).split("train").images)
    assert [(images == 200).all((1, 2, 3)).sum() for images in found] == [0, 1]


def test_a_moved_set_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "data")
    first = load(source)
    taken = count_decodes(monkeypatch)
    assert load(source.rename(tmp_path / "moved")).fingerprint == first.fingerprint and taken() == 0


def test_at_the_first_start_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "data")
    read = decode_many.Bytes.read
    taken: list[int] = []
    monkeypatch.setattr(decode_many.Bytes, "read", lambda self, place: taken.append(place) or read(self, place))
    monkeypatch.setattr(decode_many, "CHUNK", 4)  # of these, headers and contents are looked at before
    monkeypatch.setattr(cache, "contents", lambda *_: pytest.fail("files were read without being decoded"))
    once = load(source)
    assert sorted(taken) == list(range(20))
    monkeypatch.undo()
    again = load(source)
    assert again.fingerprint == once.fingerprint and again.warnings == once.warnings


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("odd", [None, 2, 15])
def test_files_that_are_read_and_decoded_at_once_are_as_others(
    odd: int | None, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one has another size, or cannot be read."""
    source = make_unsplit(tmp_path / "data")
    files = sorted(source.rglob("*.png"))
    if odd is not None:
        save_image(files[odd], some_images(1, side=11)[0])
    files[7].write_bytes(files[7].read_bytes()[:60])
    one = load(source, size=size, unreadable="skip")
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(
        decode_many, "_known_or_decoded", lambda paths, _names, _section, name: known_files(paths, name)
    )
    other = load(source, size=size, unreadable="skip")
    assert one.fingerprint == other.fingerprint and one.warnings == other.warnings
    assert sum(map(len, one.splits.values())) == 19


@pytest.mark.parametrize("channels", ["auto", "gray", "rgb"])
def test_plain_files_are_decoded_as_all_others(
    channels: Channels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    color = Image.fromarray(some_images(1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, image in enumerate(
        [color, color.convert("L"), color.convert("P"), color.convert("RGBA"), color.convert("1"), color.convert("LA")]
    ):
        image.save(tmp_path / f"{number}.png")
        if image.mode in ("RGB", "L"):
            image.save(tmp_path / f"{number}.jpg")
            image.save(tmp_path / f"{number}-turned.jpg", exif=exif)
            image.save(tmp_path / f"{number}-turned.png", exif=exif)
            image.save(tmp_path / f"{number}-clear.png", transparency=0 if image.mode == "L" else (1, 2, 3))
            image.save(tmp_path / f"{number}-pages.png", save_all=True, append_images=[color.convert(image.mode)])
    files = [each for path in sorted(tmp_path.iterdir()) for each in (path, InMemory(path.name, path.read_bytes()))]
    fast = [read_image(file, None, Form(channels=channels)) for file in files]
    monkeypatch.setattr(decode, "_plain", lambda *_: None)
    for file, (array, content) in zip(files, fast, strict=True):
        expected, noted = read_image(file, None, Form(channels=channels))
        assert np.array_equal(array, expected) and content == noted, str(file)


def test_images_that_change_while_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "data")
    original = decode_many.read_image

    def decode_and_change(path: Path, *rest: Any) -> Any:
        found = original(path, *rest)
        if path.name.endswith("train_00.png"):
            for file in source.rglob("train_00.png"):
                file.write_bytes(file.read_bytes() + b"more")
        return found

    monkeypatch.setattr(decode_many, "read_image", decode_and_change)
    with pytest.raises(DataError, match=r"changed while being read, the first: train/.*train_00\.png"):
        load(source)
    assert not list(cache.cache_dir().glob("*.npy"))


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "gone"])
def test_a_damaged_cache_is_rebuilt(suffix: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folders(tmp_path / "data")
    first = load(source)
    (file,) = cache.cache_dir().glob(f"*{suffix}")
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"flip": flipped, "cut": content[:middle], "empty": b""}[how])
    assert load(source).fingerprint == first.fingerprint


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = make_folders(tmp_path / "data")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PetriscopeError, match="no space left"):
        load(source)
    assert [path.name for path in cache.cache_dir().iterdir()] == ["locks"]


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PETRISCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(PetriscopeError, match="cannot write"):
        load(make_folders(tmp_path / "data"))


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PETRISCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "petriscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "petriscope"


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_files_are_decoded_at_a_fraction_of_their_size(tmp_path, orientation):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    big, exif = coarse.resize((800, 480), Image.Resampling.BICUBIC), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = (480, 800) if orientation == 1 else (800, 480)
    for name, options in (("a.jpg", {"quality": 95, "exif": exif}), ("a.png", {"exif": exif})):
        big.save(tmp_path / name, **options)
        size = (48, 80) if orientation == 1 else (80, 48)
        draft, content = decode_with_content(tmp_path / name, size, "draft")
        plain, whole = decode_with_content(tmp_path / name, size, "bilinear")
        assert content.size == whole.size == upright and draft.shape == plain.shape
        assert np.abs(draft.astype(int) - plain).mean() < 2
        assert (draft != plain).any() == (name == "a.jpg")  # other files are as with bilinear
        near, _ = decode_with_content(tmp_path / name, (upright[0] * 3 // 4, upright[1] * 3 // 4), "draft")
        same, _ = decode_with_content(tmp_path / name, (upright[0] * 3 // 4, upright[1] * 3 // 4), "bilinear")
        np.testing.assert_array_equal(near, same)  # there is nothing to gain
