"""npz files that are wrong, and the values that they hold."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import COUNTS, load, make_mars, make_mask_npz, make_npz, some_images

from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.recipe import DataSection
from petriscope.data import cache
from petriscope.data.sources import npz, npz_file


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def wide(values: int, top: int = 65535) -> np.ndarray:
    return np.linspace(0, top, values * 72).reshape(values, 8, 9).astype(np.uint16)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_labels": None}, "no train_labels"),
        ({"train_images": None}, "no train_images"),
        ({"tran_images": np.zeros(1)}, "did you mean train_images"),
        ({"train_labels": np.zeros((12, 3), int)}, "3 numbers per image"),
        ({"train_labels": np.full(12, np.nan)}, "label of image 0 is nan"),
        ({"train_labels": np.linspace(0, 1, 12)}, "not a whole number"),
        ({"train_labels": np.arange(12) - 3}, "label -3 of image 0 is out of range"),
        ({"train_labels": np.arange(12) * 5000}, "label 10000 of image 2 is out of range"),
        ({"train_labels": np.array(["a"] * 12)}, "whole numbers"),
        ({"train_labels": np.zeros(11, int)}, "first dimensions must agree"),
        ({"classes": np.array(["cat"])}, "label 1 of train image 1 is out of range"),
        ({"classes": np.array(["cat", "cat"])}, "a name twice"),
        ({"classes": np.array([0, 1])}, "strings"),
        ({"train_images": some_images(12)[..., :2]}, "differ in channels between splits"),
        ({"train_images": some_images(12).transpose(0, 3, 1, 2)}, "channels come last"),
        ({"train_images": some_images(12)[:, 0, 0]}, r"\[N, H, W\]"),
        ({"train_images": some_images(12) > 100}, "type bool"),
        ({"train_images": some_images(12).astype(np.int64)}, "type int64"),
        ({"train_images": some_images(12) / 255 * 2 - 1}, r"from -1 to 1; scale"),
        ({"train_images": np.full((12, 8, 9), np.inf)}, "train image 0 has NaN"),
    ],
)
def test_wrong_arrays(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        load(make_npz(tmp_path, **changes))


def test_arrays_without_a_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 8, 9, 3), np.uint8), labels=np.arange(4) % 2)
    with pytest.raises(DataError, match="call them train_images and train_labels, and val and test are drawn"):
        load(tmp_path / "data.npz")


def test_no_images(tmp_path: Path) -> None:
    empty = {f"{split}_images": np.zeros((0, 8, 9, 3), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.zeros(0, int) for split in ("train", "val", "test")}
    with pytest.raises(DataError, match="no images"):
        load(make_npz(tmp_path, **empty, **labels))
    some = make_npz(tmp_path, val_images=empty["val_images"], val_labels=labels["val_labels"])
    assert any("val_images is empty" in text for text in load(some).warnings)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 12, dtype=object)
    for name in ("train_images", "train_labels", "classes"):
        with pytest.raises(DataError, match="unpickling"):
            load(make_npz(tmp_path, **{name: trap}))
    assert not (tmp_path / "sprung").exists()


def test_damaged_files(tmp_path: Path) -> None:
    whole = make_npz(tmp_path).read_bytes()
    path = tmp_path / "bad.npz"
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged or cannot be read"):
            load(path)
    middle = len(whole) // 4
    path.write_bytes(
        whole[:middle] + bytes(value ^ 255 for value in whole[middle : middle + 50]) + whole[middle + 50 :]
    )
    with pytest.raises(DataError):
        load(path)


def zipped(members: dict[str, bytes], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def replace_member(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    path.write_bytes(zipped({**members, name: content}))
    return path


HEADER_TOKENS = (
    b"'", b"(", b")", b",", b"{", b":", b"0", b"-", b"\0", b"\xe9", b"9" * 30, b"|O", b"<U3", b"<M8[ns]", b"<c16", b">u2", b"V3",
    b"'descr'", b"('a',)", b"[('a','u1')]", b"(2,)u1", b"True", b"None", b"[" * 300, b"1e9", b"lambda:0", b"12L",
)  # fmt: skip


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes flipped, replaced, cut out or put in, half of them near the end, where a zip file has its directory."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(max(len(data) - 600, 0) if rng.random() < 0.5 else 0, len(data)))
        odd, count = rng.bytes(int(rng.integers(1, 20))), int(rng.integers(1, 20))
        keep = int(rng.integers(5))
        if keep == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif keep == 1 and at:
            del data[at:]
        else:
            data[at : at + (0, count, len(odd))[keep - 2]] = b"" if keep == 3 else odd
    return bytes(data)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict[str, bytes]]]:
    """One file of each layout, and its members."""
    folder = tmp_path_factory.mktemp("wholes")
    groups = {f"{split}_groups": np.array([f"g{index % 3}" for index in range(n)]) for split, n in COUNTS.items()}
    names = np.array(["cat", "d\xf6g"])
    files = [
        make_npz(folder / "a", classes=names, **groups),
        make_mask_npz(folder / "b"),
        make_mars(folder / "c", count=6),
    ]
    out = []
    for path in files:
        with zipfile.ZipFile(path) as archive:
            out.append((path, {info.filename: archive.read(info) for info in archive.infolist()}))
    return out


def read(path: Path, said: list[str], memory: Any = "resident") -> dict[str, Any]:
    """What a file holds, in a form that can be compared."""
    sets = npz.read(path, DataSection(source=str(path), memory=memory), said)
    arrays = {split: (part.images.tobytes(), part.targets.tobytes()) for split, part in sets.items()}
    names = {split: (part.classes, part.ids.tolist(), np.asarray(part.groups).tolist()) for split, part in sets.items()}
    return {split: (arrays[split], names[split]) for split in sets}


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_bytes_are_refused_or_change_nothing_in_silence(packed: int, wholes: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(packed)
    path = tmp_path / "x.npz"
    for original, members in wholes:
        expected = read(original, [])
        content = zipped(members, packed)
        path.write_bytes(content)
        assert read(path, []) == expected
        for number in range(40):
            path.write_bytes(mutated(content, rng))
            said: list[str] = []
            try:
                found = read(path, said, "mapped" if number % 8 == 0 else "resident")
            except DataError as error:
                assert str(path) in str(error)
            else:
                assert said or found == expected


def test_damaged_headers_are_refused(wholes: Any, tmp_path: Path) -> None:
    """The checksums of the zip file are right, so only the header itself tells."""
    rng = np.random.default_rng(0)
    path = tmp_path / "x.npz"
    for _, members in wholes:
        for _ in range(100):
            name = rng.choice([*members])
            data = bytearray(members[name])
            token = HEADER_TOKENS[rng.integers(len(HEADER_TOKENS))]
            at = int(rng.integers(128))
            data[at : at + int(rng.integers(12))] = token
            path.write_bytes(zipped({**members, name: bytes(data)}, zipfile.ZIP_STORED))
            try:
                read(path, [])
            except DataError as error:
                assert str(path) in str(error)


@pytest.mark.parametrize("name", ["images", "labels", "masks", "groups", "classes"])
@pytest.mark.parametrize(
    "kind", ["?", "i1", ">u4", "u8", "f2", ">f4", "f8", "g", "c8", "M8[s]", "m8[ns]", "S3", "U2", "V2", "i4,f4"]
)
def test_every_type_is_read_or_refused(name: str, kind: str, tmp_path: Path) -> None:
    make = make_mask_npz if name == "masks" else make_npz
    whole = make(tmp_path / "whole")
    with np.load(whole) as arrays:
        key = name if name == "classes" else f"train_{name}"
        old = arrays[key] if key in arrays.files else np.arange(2 if name == "classes" else 12)
    new = np.zeros(old.shape, kind) if kind in ("V2", "i4,f4", "M8[s]", "m8[ns]") else (old % 2).astype(kind)
    groups = {f"{split}_groups": np.arange(4) for split in ("val", "test")} if name == "groups" else {}
    source = make(tmp_path / "x", **{key: new}, **groups)
    try:
        found = npz.read(source, DataSection(source=str(source)), [])["train"]
    except DataError as error:
        assert str(source) in str(error) and key in str(error).replace("the train ", "train_")
    else:
        expected = (old % 2).reshape(old.shape[0], *old.shape[2 if name == "labels" else 1 :])
        if name in ("labels", "masks"):
            assert np.array_equal(found.targets, expected.astype(np.uint8))
        if name == "groups":
            assert [int(float(group == "True") if kind == "?" else group) for group in found.groups] == [
                0,
                1,
            ] * 6


@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    kind=st.sampled_from(["u1", "<i8", "f4", "?"]),
    seed=st.integers(0, 99),
)
def test_one_hot_labels_are_class_numbers_and_others_are_any_number_of_labels(
    labels: list[int], kind: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("set")
    rest = {f"{split}_{each}": None for split in ("val", "test") for each in ("images", "labels")}
    labels[:5] = range(5)
    one_hot = np.eye(5)[labels].astype(kind)
    section = DataSection(source="x")
    said: list[str] = []
    found = npz.read(make_npz(folder, train_labels=one_hot, **rest), section, said)["train"]
    assert found.targets.tolist() == labels and any("one-hot" in each for each in said)
    row, column = divmod(seed % 60, 5)
    one_hot[row, column] = 1 - one_hot[row, column]
    path = make_npz(folder, train_labels=one_hot, **rest)
    with pytest.raises(DataError, match="not one-hot"):
        npz.read(path, DataSection(source="x", task="classification"), [])
    said = []
    several = npz.read(path, section, said)["train"]
    assert several.task.name == "multilabel" and any("1 image that has not exactly one label" in each for each in said)
    np.testing.assert_array_equal(several.targets, one_hot.astype(np.uint8))


@pytest.mark.parametrize("wrong", ([1, 1, 0], [0, 0, 0]))
def test_one_wrong_row_among_many_is_no_second_task(wrong: list[int], tmp_path: Path) -> None:
    labels = np.eye(3, dtype=np.uint8)[np.arange(60) % 3]
    labels[17] = wrong
    np.savez(tmp_path / "set.npz", train_images=np.zeros((60, 8, 8, 3), np.uint8), train_labels=labels)
    with pytest.raises(
        DataError, match=r"1 of 60 images have not exactly one label, first image 17 of train; correct .*data\.task"
    ):
        npz.read(tmp_path / "set.npz", DataSection(source="x"), [])
    found = npz.read(tmp_path / "set.npz", DataSection(source="x", task="multilabel"), [])["train"]
    np.testing.assert_array_equal(found.targets, labels)


class TestNames:
    @pytest.mark.parametrize("name", ["classes", "train_groups"])
    def test_bytes_are_utf_8_or_refused(self, name: str, tmp_path: Path) -> None:
        groups = {f"{split}_groups": np.array(["g"] * count) for split, count in COUNTS.items()}
        count = 2 if name == "classes" else 12
        for encoding in ("utf-8", "latin-1"):
            names = np.array([f"caf\xe9 {index}".encode(encoding) for index in range(count)])
            source = make_npz(tmp_path / encoding, **{**groups, name: names})
            if encoding == "utf-8":
                data = load(source)
                assert (data.classes if name == "classes" else data.split("train").groups)[1] == "caf\xe9 1"
            else:
                with pytest.raises(DataError, match=f"{name} has a name that is not UTF-8"):
                    load(source)

    def test_what_is_not_read_is_said(self, tmp_path: Path) -> None:
        groups = {"train_groups": np.arange(12)}
        data = load(make_npz(tmp_path, notes=np.zeros(3), **groups))
        assert any("also has notes" in each for each in data.warnings)
        assert any("no val_groups" in each for each in data.warnings) and data.split("train").groups is None


class TestForeign:
    def test_an_array_twice(self, tmp_path: Path) -> None:
        path = make_npz(tmp_path)
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr("train_labels.npy", archive.read("val_labels.npy"))
        with pytest.raises(DataError, match="train_labels twice"):
            load(path)

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_an_npy_file(self, suffix: str, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", some_images(4))
        with pytest.raises(DataError, match="one array"):
            load((tmp_path / "x.npy").rename(tmp_path / f"y{suffix}"))

    def test_a_password(self, tmp_path: Path) -> None:
        path = make_npz(tmp_path)
        data = bytearray(path.read_bytes())
        for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            at = -1
            while (at := data.find(mark, at + 1)) >= 0:
                data[at + offset] |= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match="encrypted"):
            load(path)

    def test_a_file_of_python_2(self, tmp_path: Path) -> None:
        path = make_npz(tmp_path)
        old = b"{'descr': '|u1', 'fortran_order': False, 'shape': (12L, 1L), }".ljust(117) + b"\n"
        labels = b"\x93NUMPY\1\0" + len(old).to_bytes(2, "little") + old + bytes([0, 1] * 6)
        assert load(replace_member(path, "train_labels.npy", labels)).split("train").targets.tolist() == [0, 1] * 6


def test_a_header_that_lies(tmp_path: Path) -> None:
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (12, 10**6, 10**6, 3)}
    np.lib.format.write_array_header_1_0(header, fields)
    path = replace_member(make_npz(tmp_path), "train_images.npy", header.getvalue() + b"\0" * 1000)
    with pytest.raises(DataError, match="claims 36,000,000,000,000 bytes"):
        load(path)
    with pytest.raises(DataError, match="train_images is damaged"):
        load(replace_member(path, "train_images.npy", b"nonsense"))


def test_what_unpacks_to_a_thousand_times_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_file, "BOMB_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"unpacks from [\d,]+ to 2,100,000 bytes"):
        load(make_npz(tmp_path, train_images=np.zeros((12, 500, 350), np.uint8)))


def test_more_than_the_memory_or_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_npz(tmp_path)
    monkeypatch.setattr(cache, "free_memory", lambda: 4000)
    monkeypatch.setattr(npz_file, "free_memory", lambda: 4000)
    with pytest.raises(DataError, match=r"data\.memory=mapped"):
        load(path, memory="resident")
    assert load(path, memory="auto").split("train").mapped
    for file in cache.cache_dir().glob("*.*"):
        file.unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(PetriscopeError, match="PETRISCOPE_CACHE"):
        load(path, memory="mapped")


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = wide(12)
    data = load(make_npz(tmp_path, train_images=values))
    expected = np.rint(values / 65535 * 255)
    assert np.abs(data.split("train").images[..., 0].astype(float) - expected).max() <= 1
    assert data.split("train").images.max() == 255


def test_dim_images_of_twelve_bits(tmp_path: Path) -> None:
    names = {f"{split}_images": wide(count, 4095) for split, count in (("train", 12), ("val", 4), ("test", 4))}
    path = make_npz(tmp_path, **names)
    assert any("data.bits=12" in text for text in load(path).warnings)
    data = load(path, bits=12)
    assert data.split("train").images.max() == 255 and not any("data.bits" in text for text in data.warnings)
    with pytest.raises(DataError, match=r"more than data\.bits=10"):
        load(path, bits=10)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_scaled(kind: type, tmp_path: Path) -> None:
    whole = make_npz(tmp_path / "a")
    with np.load(whole) as arrays:
        parts = {name: (arrays[name] / 255).astype(kind) for name in arrays if name.endswith("images")}
    assert load(make_npz(tmp_path / "b", **parts)).fingerprint == load(whole).fingerprint


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint64, np.float32])
def test_labels_of_other_types(kind: type, tmp_path: Path) -> None:
    labels = (np.arange(12) % 2).astype(kind)
    assert load(make_npz(tmp_path / "b", train_labels=labels)).split("train").targets.tolist() == [0, 1] * 6


@pytest.mark.parametrize("memory", ["resident", "mapped"])
@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<f4", ">f8"])
@pytest.mark.parametrize("make", [make_npz, make_mask_npz])
def test_the_order_of_bytes_in_the_file_changes_nothing(make: Any, kind: str, memory: str, tmp_path: Path) -> None:
    whole = make(tmp_path / "a")
    changes: dict[str, Any] = {}
    with np.load(whole) as arrays:
        for name in arrays.files:
            value = arrays[name]
            if name.endswith("images"):
                value = (
                    value / 255 if "f" in kind else value * np.dtype(kind).type(257 if "u2" in kind else 1)
                ).astype(kind)
            changes[name] = np.asfortranarray(value)
    data, plain = load(make(tmp_path / "b", **changes), memory=memory), load(whole)
    assert data.fingerprint == plain.fingerprint
    for split, part in data.splits.items():  # read by rows too, as training does
        assert np.array_equal(part.take(np.array([2, 0])), plain.split(split).images[[2, 0]])
        assert np.array_equal(part.targets, plain.split(split).targets)


def test_class_names(tmp_path: Path) -> None:
    assert load(make_npz(tmp_path, classes=np.array(["cat", "dog"]))).classes == ("cat", "dog")
    labels = {f"{split}_labels": np.arange(n) % 8 for split, n in (("train", 12), ("val", 4), ("test", 4))}
    path = make_npz(tmp_path, **labels)
    assert load(path).classes[0] == "0"
    assert load(path.rename(tmp_path / "bloodmnist_28.npz")).classes[::7] == ("basophil", "platelet")
    with pytest.raises(RequestError, match="need 2"):
        load(make_npz(tmp_path), classes=("a", "b", "c"))


@pytest.mark.parametrize("options", [{}, {"range": (0, 1)}])
def test_images_of_truth_values_are_refused_with_what_helps(options: dict[str, Any], tmp_path: Path) -> None:
    images = some_images(12) > 127
    source = make_npz(tmp_path, train_images=images)
    with pytest.raises(DataError, match="have type bool; save them as uint8, with 255 for True"):
        load(source, **options)
    source = make_npz(tmp_path, train_images=images.astype(np.uint8) * 255)
    assert len(load(source).split("train")) == 12
