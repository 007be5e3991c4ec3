"""Archives of class folders, and archives that nobody should trust."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from formats import pack_folder, png
from small_sources import load, make_folders, make_mask_folders, make_unsplit, save_image, some_images

from petriscope.audit import audit
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.sources import list_files, packed

KINDS = ("zip", "tar", "gztar")
MAKERS: tuple[Callable[..., Path], ...] = (make_folders, make_unsplit)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_folder(kind: str, make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    for name in (".hidden", "cat/Thumbs.db", "notes.txt", "__MACOSX/x.png", "cat/.x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    if make is make_folders:
        (folder / "cat/Thumbs.db").unlink()
        (folder / "cat/.x.png").unlink()
        (folder / "cat").rmdir()
    save_image(folder / "loose.png", some_images(1)[0])
    path = pack_folder(folder, kind)
    one, two = load(folder), load(path)
    assert one.fingerprint == two.fingerprint and one.classes == two.classes
    for name, part in one.splits.items():
        assert part.ids.tolist() == two.split(name).ids.tolist()
        assert part.columns["folder"].tolist() == two.split(name).columns["folder"].tolist()
    assert [each.replace(str(folder), "") for each in one.warnings] == [
        each.replace(str(path), "") for each in two.warnings
    ]
    assert one.warnings


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreadable_image_is_named(kind: str, tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "set")
    (folder / "train/cat/bad.png").write_bytes(b"no image")
    path = pack_folder(folder, kind)
    with pytest.raises(DataError, match=rf"{path.name}: 1 image cannot be read: train/cat/bad\.png"):
        load(path)
    data = load(path, unreadable="skip")
    assert len(data.split("train")) == 12 and "train/cat/bad.png" in data.warnings[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_class_folder_is_refused_as_in_a_folder(kind: str, tmp_path: Path) -> None:
    folder = make_unsplit(tmp_path / "set")
    (folder / "emu").mkdir()
    path = pack_folder(folder, kind)
    with pytest.raises(DataError, match=rf"class folder .*{path.name}/emu has no images"):
        load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_audits_look_into_archives(kind: str, tmp_path: Path) -> None:
    folder = make_unsplit(tmp_path / "set")
    file = folder / "cat/train_00.png"
    file.write_bytes(file.read_bytes()[:-30])
    (folder / "dog/bad.png").write_bytes(b"no image")
    path = pack_folder(folder, kind)
    assert {str(each.path) for each in list_files(str(path), DataSection())} == {
        str(path / each.relative_to(folder)) for each in folder.rglob("*.png")
    }
    found = [audit(source, features=None, quiet=True) for source in (folder, path)]
    assert found[0].table.to_dict() == found[1].table.to_dict() and len(found[0].table)


def test_a_table_that_lists_the_images_is_to_be_unpacked(tmp_path: Path) -> None:
    for number, pixels in enumerate(some_images(4)):
        save_image(tmp_path / f"set/images/{number}.png", pixels)
    (tmp_path / "set/labels.csv").write_text("path,label\nimages/0.png,a\nimages/1.png,b\n")
    with pytest.raises(
        DataError, match=r"If labels\.csv lists .*, unpack the archive, and name the table as the source"
    ):
        load(pack_folder(tmp_path / "set", "zip"))


def test_masks_are_refused(tmp_path: Path) -> None:
    path = pack_folder(make_mask_folders(tmp_path / "set"), "zip")
    with pytest.raises(DataError, match="has images and masks, which are read from folders alone"):
        load(path)


def test_other_packings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.7z").write_bytes(b"x")
    with pytest.raises(RequestError, match="packed in a way that is not read"):
        load(tmp_path / "set.7z")


def zipped(path: Path, members: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    out = tarfile.TarInfo(name)
    out.type, out.linkname = kind, target
    return out


IMAGE = png(some_images(1)[0])
OUTSIDE = ("../cat/x.png", "/cat/x.png", "cat/../../x.png", "C:/cat/x.png", "C:cat/x.png")


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_outside_of_the_archive(name: str, tmp_path: Path) -> None:
    for path in (
        zipped(tmp_path / "a.zip", [(name, IMAGE)]),
        zipped(tmp_path / "b.zip", [(name.replace("/", "\\"), IMAGE)]),
        tarred(tmp_path / "a.tar", [(info(name), IMAGE)]),
    ):
        with pytest.raises(DataError, match=rf"{path.name}: .*x\.png.* would lie outside"):
            load(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(kind: bytes, tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", [(info("cat/x.png"), IMAGE), (info("dog/y.png", kind, "/etc/passwd"), b"")])
    with pytest.raises(DataError, match=r"a\.tar: dog/y\.png is a link or no regular file"):
        load(path)


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("dog/y.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    path = zipped(tmp_path / "a.zip", [("cat/x.png", IMAGE), (link, b"/etc/passwd")])
    with pytest.raises(DataError, match=r"a\.zip: dog/y\.png is a link"):
        load(path)


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("cat/x.png", IMAGE)])
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.find(mark) + at] |= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.zip: cat/x\.png is encrypted"):
        load(path)


def test_a_wrong_checksum_names_the_member(tmp_path: Path) -> None:
    members = [(f"{label}/{number}.png", png(image)) for number, image in enumerate(some_images(8)) for label in "ab"]
    path = zipped(tmp_path / "a.zip", members)
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\1\2") + 16] ^= 1  # the checksum of the first member
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.zip: .*a/0\.png \(Bad CRC-32"):
        load(path)


def test_an_unknown_compression(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("cat/x.png", IMAGE), ("dog/y.png", IMAGE)])
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\1\2") + 10] = 97
    data[data.find(b"PK\3\4") + 8] = 97
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.zip: .*cat/x\.png \(.*compression"):
        load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    for path in (
        zipped(tmp_path / "a.zip", [("cat/x.png", IMAGE), ("cat/x.png", IMAGE)]),
        tarred(tmp_path / "a.tar", [(info("cat/x.png"), IMAGE), (info("./cat/x.png"), IMAGE)]),
    ):
        with pytest.raises(DataError, match=rf"{path.name} has cat/x\.png twice"):
            load(path)


def test_a_file_and_a_folder_of_one_name(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("cat", b"x"), ("cat/x.png", IMAGE)])
    with pytest.raises(DataError, match=r"a\.zip has cat as a file and as a folder"):
        load(path)


def test_what_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BOMB_BYTES", 1 << 16)
    bomb = bytes(1 << 20)
    path = zipped(tmp_path / "a.zip", [("cat/x.png", bomb)])
    with pytest.raises(DataError, match=r"a\.zip unpacks from [\d,]+ to 1,048,576 bytes"):
        load(path)
    path = tarred(tmp_path / "a.tgz", [(info("cat/x.png"), bomb)], "w:gz")
    with pytest.raises(DataError, match=r"a\.tgz claims more than"):
        load(path)
    assert not list(cache.cache_dir().glob("*.npy"))


def test_a_member_that_claims_too_much(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", [("cat/x.png", IMAGE), ("dog/y.png", IMAGE)])
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2") + 24
    data[at : at + 4] = ((1 << 30) + 1).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.zip"):
        load(path)


def _header(name: str, size: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    made = tarfile.TarInfo(name)
    made.type = kind
    head = bytearray(made.tobuf(tarfile.USTAR_FORMAT))
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (b"77777777777\0", tarfile.REGTYPE),
        (b"77777777777\0", tarfile.GNUTYPE_LONGNAME),
        (b"77777777777\0", tarfile.XHDTYPE),
        (b"\xff" * 12, tarfile.REGTYPE),  # negative
        (b"\xff" * 10 + b"\xfc\0", tarfile.REGTYPE),
        (b"\xff" * 10 + b"\xfc\0", tarfile.XHDTYPE),
        (b"\x80" + b"\x7f" * 11, tarfile.REGTYPE),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_headers_that_lie(size: bytes, kind: bytes, suffix: str, tmp_path: Path) -> None:
    good = tarred(tmp_path / "good.tar", [(info("cat/x.png"), IMAGE)]).read_bytes()
    data = good[: 512 * 2] + _header("dog/y.png", size, kind) + bytes(1024)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(DataError, match=rf"a{suffix}"):
        load(path)


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    members = [(info(f"{label}/{n}.png"), png(i)) for n, i in enumerate(some_images(8)) for label in "ab"]
    path = tarred(tmp_path / "a.tar", members)
    data = bytearray(path.read_bytes())
    data[data.find(b"b/3.png") + 148] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.tar is damaged at byte [\d,]+, behind a/3\.png"):
        load(path)


def test_a_gzip_checksum(tmp_path: Path) -> None:
    path = pack_folder(make_folders(tmp_path / "set"), "gztar")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"set-packed\.tar\.gz is damaged .*CRC"):
        load(path)


def test_a_changed_archive_is_read_again(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "set")
    path = pack_folder(folder, "gztar")
    one = load(path)
    save_image(folder / "train/cat/more.png", some_images(1, seed=77)[0])
    pack_folder(folder, "gztar")
    two = load(path)
    assert len(two.split("train")) == len(one.split("train")) + 1


def test_what_is_unpacked_is_in_the_cache_alone(tmp_path: Path) -> None:
    path = pack_folder(make_folders(tmp_path / "set"), "gztar")
    before = {each for each in tmp_path.rglob("*") if cache.cache_dir() not in (each, *each.parents)}
    load(path)
    assert {each for each in tmp_path.rglob("*") if cache.cache_dir() not in (each, *each.parents)} == before
    for each in cache.cache_dir().glob("*.npy"):
        each.unlink()
    assert len(load(path).split("train")) == 12


def test_an_archive_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = pack_folder(make_folders(tmp_path / "set"), "zip")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        load(path)


def test_bytes_after_the_end_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BOMB_BYTES", 1 << 16)
    data = tarred(tmp_path / "a.tar", [(info(f"{c}/{n}.png"), IMAGE) for c in "ab" for n in range(3)]).read_bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(data + bytes(1 << 20)))
    with pytest.raises(DataError, match=r"a\.tgz has more than 65,536 bytes behind its last file"):
        load(tmp_path / "a.tgz")
    assert zlib.crc32(data)
