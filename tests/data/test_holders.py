"""What holds many images is found alike on the disk and at an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from petriscope.data.omissions import LeftOut
from petriscope.data.sources.holders import Source

SHARDS = ("b/2.tar", "b/10.tar", "a/cells.TAR", "a/below/cells.tgz", "top.tar")
IN_ORDER = ["top.tar", "a/cells.TAR", "a/below/cells.tgz", "b/10.tar", "b/2.tar"]
ELSE = ("classes.txt", "b/notes.txt", "b/table.parquet", ".hidden/x.tar", "a/__MACOSX/x.tar", "a/.x.tar")


def made(home: str, tmp_path: Path, names: tuple[str, ...]) -> Source:
    """A source with empty files."""
    if home == "disk":
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return Source(str(tmp_path))
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name in names:
        system.pipe(f"/{tmp_path.name}/{name}", b"")
    return Source(f"memory://{tmp_path.name}")


def found(source: Source, left_out: LeftOut, *used: str) -> list[tuple[str, str]]:
    home = f"memory:///{source.name.removeprefix('memory://')}" if source.is_remote else source.name
    return [
        (holder.kind, source.shown(holder.path).removeprefix(f"{home}/")) for holder in source.chosen(left_out, used)
    ]


@pytest.mark.parametrize("home", ["disk", "address"])
def test_tar_files_are_found_before_tables_and_all_else_is_said(home: str, tmp_path: Path) -> None:
    source, left_out = made(home, tmp_path, (*SHARDS, *ELSE)), LeftOut()
    assert found(source, left_out, "classes.txt") == [("tar", name) for name in IN_ORDER]
    said = " ".join(left_out.sentences("cells"))
    for words in (
        "1 .txt file ",
        "b/notes.txt",
        "1 Parquet file beside tar files",
        "2 hidden or system folders",
        "1 hidden or system file ",
    ):
        assert words in said, (words, said)


@pytest.mark.parametrize("home", ["disk", "address"])
def test_tables_are_found_where_nothing_else_is_and_are_not_said_to_be_left_out(home: str, tmp_path: Path) -> None:
    source, left_out = made(home, tmp_path, ("b.parquet", "a/1.PQ")), LeftOut()
    assert found(source, left_out) == [("table", "b.parquet"), ("table", "a/1.PQ")]
    assert not left_out.sentences("cells")


@pytest.mark.parametrize("home", ["disk", "address"])
def test_images_are_found_before_all(home: str, tmp_path: Path) -> None:
    source, left_out = made(home, tmp_path, ("b/1.png", "a.tar", "b/2.jpg", "z.parquet")), LeftOut()
    assert found(source, left_out) == [("image", "b/1.png"), ("image", "b/2.jpg")]
    said = " ".join(left_out.sentences("cells"))
    assert "1 tar file beside image files" in said and "1 Parquet file beside image files" in said
