"""Files that cannot be read, end too soon, or are of another size than the rest."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petriscope.data.file_check import check_files, is_cut_short
from petriscope.data.sources.listing import ImageFile

FORMATS = ("png", "jpeg", "webp", "gif", "bmp")


def encoded(kind: str, side: int = 16, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def files_in(folder: Path, contents: dict[str, bytes]) -> list[ImageFile]:
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [ImageFile(name, folder / name, "train", "cat") for name in contents]


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_files_are_whole_and_halves_are_not(kind: str) -> None:
    for seed in range(5):
        data = encoded(kind, seed=seed)
        assert not is_cut_short(data)
        assert is_cut_short(data[: len(data) // 2])
        assert is_cut_short(data[:-12])


def test_what_follows_the_end_of_a_image_does_no_harm() -> None:
    for kind in ("png", "jpeg", "webp"):
        assert not is_cut_short(encoded(kind) + b"trailing bytes" * 1000)


def test_a_format_that_does_not_say_where_it_ends_is_taken_as_whole() -> None:
    assert not is_cut_short(b"")
    assert not is_cut_short(encoded("tiff")[:-40])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_found_with_the_reason(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    files = files_in(tmp_path, {"a": whole, "half": whole[: len(whole) // 2], "b": whole, "text": b"no image"})
    found = {fault.id: fault for fault in check_files(files, {"a", "b"})}
    assert {name: fault.finding for name, fault in found.items()} == {"half": "truncated", "text": "unreadable"}
    assert all(fault.evidence and not fault.readable for fault in found.values())


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    files = [*files_in(tmp_path, {"a": encoded("png")}), ImageFile("gone", tmp_path / "gone", "train", "cat")]
    (fault,) = check_files(files, {"a"})
    assert (fault.id, fault.finding, fault.evidence) == ("gone", "unreadable", "no such file")


def test_a_image_that_was_read_though_its_end_is_missing_is_still_there(tmp_path: Path) -> None:
    files = files_in(tmp_path, {"a": encoded("png"), "endless": encoded("png")[:-12]})
    (fault,) = check_files(files, {"a", "endless"})
    assert (fault.id, fault.finding, fault.readable) == ("endless", "truncated", True)


def test_odd_sizes(tmp_path: Path) -> None:
    contents = {f"{index}.png": encoded("png", 16, index) for index in range(9)}
    contents |= {"large.png": encoded("png", 48), "small.png": encoded("png", 6)}
    wide = BytesIO()
    Image.new("RGB", (32, 8)).save(wide, "png")
    contents["wide.png"] = wide.getvalue()
    found = {fault.id: fault for fault in check_files(files_in(tmp_path, contents), set(contents))}
    assert set(found) == {"large.png", "small.png", "wide.png"}
    assert {fault.finding for fault in found.values()} == {"odd_size"}
    assert found["large.png"].score == pytest.approx(3)
    assert "48 x 48" in found["large.png"].evidence and "16 x 16 is usual" in found["large.png"].evidence


def test_sizes_that_vary_by_nature_are_not_odd(tmp_path: Path) -> None:
    contents = {f"{side}.png": encoded("png", side) for side in range(10, 60, 3)}
    assert check_files(files_in(tmp_path, contents), set(contents)) == []


def test_no_files() -> None:
    assert check_files([], set()) == []
