"""Channels, slices, pages and frames of TIFF, DICOM and makers' files, written by the library of each format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import save_dicom
from small_sources import load, write_table

from petriscope.core.errors import DataError
from petriscope.core.recipe import DataSection
from petriscope.data import decode
from petriscope.data.decode import Form, decode_as, pages_of
from petriscope.data.in_memory import Page
from petriscope.data.planes import Stack, combine
from petriscope.data.sources import list_files
from petriscope.inference.decoding import find_images

RNG = np.random.default_rng(3)
NAMES = ("DAPI", "GFP", "Cy5", "BF")


def planes(*shape: int, high: int = 65536) -> np.ndarray:
    return RNG.integers(0, high, (*shape, 8, 9)).astype(np.uint16)


def last(values: np.ndarray) -> np.ndarray:
    """Channels last."""
    return np.moveaxis(values, 0, -1)


def write(path: Path, values: np.ndarray, **options: Any) -> Path:
    tifffile = pytest.importorskip("tifffile")
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)
    return path


def ome(path: Path, values: np.ndarray, axes: str = "ZCYX", names: tuple[str, ...] = NAMES) -> Path:
    about = {
        "axes": axes,
        "Channel": {"Name": list(names)},
        "PhysicalSizeX": 100.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.2,
    }
    return write(path, values, ome=True, photometric="minisblack", metadata=about)


def read(path: Path, **options: Any) -> np.ndarray:
    return decode_as(path, None, Form(depth=16, **options))[0]


def fill(folder: Path, values: np.ndarray, **changes: Any) -> Path:
    for number, each in enumerate(values):
        for label in ("cat", "dog"):
            ome(folder / label / f"{number}.ome.tif", each + np.uint16(label == "dog"), **changes)
    return folder


def test_ome_tiff_keeps_all_bits_channels_names_and_micrometers(tmp_path: Path) -> None:
    values = planes(3, 2, 4, high=65535)  # three images of two slices and four channels
    source = fill(tmp_path / "set", values)
    data = load(source, depth=16, projection="maximum", val_fraction=0, test_fraction=0)
    assert data.channels == NAMES and data.bits == 16
    part = data.split("train")
    for image, name in zip(part.images, part.ids, strict=True):
        expected = values[int(name[4])].max(0) + (name[:3] == "dog")
        assert np.array_equal(image, last(expected))
    assert set(part.columns["micrometers_per_pixel"]) == {"0.2 x 0.1"}
    assert not any("slices" in warning or "16 bits" in warning for warning in data.warnings)
    some = load(source, depth=16, channels=["BF", "DAPI"], val_fraction=0, test_fraction=0)
    assert some.channels == ("BF", "DAPI")
    first = some.split("train").images[some.split("train").ids.tolist().index("cat/0.ome.tif")]
    assert np.array_equal(first, last(values[0, 0])[..., [3, 0]])
    assert any("2 channels that data.channels leaves out" in warning for warning in some.warnings)
    assert any("2 slices, of which the first is taken; data.projection" in warning for warning in some.warnings)
    eight = load(source, projection="maximum", val_fraction=0, test_fraction=0)
    assert eight.bits == 8 and any("data.depth=16 keeps all" in warning for warning in eight.warnings)


@pytest.mark.parametrize("imagej", [False, True])
def test_projections(imagej: bool, tmp_path: Path) -> None:
    values = planes(5, 2)
    path = tmp_path / "a.tif"
    if imagej:
        write(path, values, imagej=True, metadata={"axes": "ZCYX", "unit": "um"}, resolution=(10, 5))
        assert decode_as(path, None, Form())[1].micrometers == (0.2, 0.1)
    else:
        ome(path, values, names=NAMES[:2])
    assert np.array_equal(read(path), last(values[0]))
    assert np.array_equal(read(path, projection="maximum"), last(values.max(0)))
    assert np.array_equal(read(path, projection="mean"), last(np.rint(values.mean(0)).astype(np.uint16)))
    assert np.array_equal(read(path, projection="middle"), last(values[2]))


def test_pages_that_nothing_is_said_of(tmp_path: Path) -> None:
    values = planes(4)
    path = write(tmp_path / "a.tif", values, photometric="minisblack")
    image, content = decode_as(path, None, Form(depth=16))
    assert np.array_equal(image, values[0][..., None]) and content.notes == {"pages": 4}
    assert np.array_equal(read(path, pages="channels"), last(values))
    assert np.array_equal(read(path, projection="maximum"), values.max(0)[..., None])
    pages = pages_of(path)
    assert [str(page) for page in pages] == [f"{path}#{number}" for number in range(4)]
    for page, plane in zip(pages, values, strict=True):
        image, content = decode_as(page, None, Form(depth=16, pages="images"))
        assert np.array_equal(image, plane[..., None]) and content.notes == {}


def test_pages_are_images_in_folders_and_for_predictions_alone(tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        path = write(tmp_path / f"{number}.tif", planes(3, high=999), photometric="minisblack")
        rows.append({"path": path.name, "label": ("cat", "dog")[number % 2]})
    data = load(write_table(tmp_path / "set.csv", rows), pages="images", val_fraction=0, test_fraction=0)
    assert len(data.split("train")) == 4
    assert any("4 images have 3 pages" in warning and "first is taken" in warning for warning in data.warnings)
    path = tmp_path / "0.tif"
    assert find_images([path]) == [path]
    assert find_images([path], "images") == [Page(path, number) for number in range(3)]
    assert find_images([tmp_path], "images")[3] == Page(tmp_path / "1.tif", 0)


def test_pages_of_a_file_stay_in_one_split(tmp_path: Path) -> None:
    for number in range(6):
        for label in ("cat", "dog"):
            write(tmp_path / "set" / label / f"{number}.tif", planes(3), photometric="minisblack")
    data = load(tmp_path / "set", pages="images", depth=16)
    files = list_files(str(tmp_path / "set"), DataSection(pages="images"))  # which an audit looks at
    assert {file.id for file in files} == {name for part in data.splits.values() for name in part.ids}
    assert sum(map(len, data.splits.values())) == 36
    assert any("one group of images" in warning for warning in data.warnings)
    homes = [{name.rpartition("#")[0] for name in part.ids} for part in data.splits.values()]
    assert sum(map(len, homes)) == 12


def test_kinds_of_pixels(tmp_path: Path) -> None:
    values = planes(2, high=256).astype(np.uint8)
    inverted = write(tmp_path / "white.tif", values, photometric="miniswhite")
    assert np.array_equal(decode_as(inverted, None, Form(pages="channels"))[0], last(255 - values))
    colors = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    table = write(tmp_path / "palette.tif", values, photometric="palette", colormap=colors)
    expected = np.moveaxis((colors >> 8)[:, values[1]], 0, 2)
    assert np.array_equal(decode_as(pages_of(table)[1], None, Form(pages="images"))[0], expected)
    bits = write(tmp_path / "bits.tif", values > 99, photometric="minisblack")
    assert np.array_equal(decode_as(bits, None, Form(pages="channels"))[0], last((values > 99) * np.uint8(255)))
    deep = planes(3)
    planar = write(tmp_path / "planar.tif", deep, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read(planar), last(deep))
    signed = write(tmp_path / "signed.tif", planes(high=3000).astype(np.int16) - 1000)
    with pytest.raises(DataError, match="whole numbers from -"):
        decode_as(signed, None, Form())
    assert decode_as(signed, None, Form(range=(-1000, 2000)))[0].max() > 200
    floats = write(tmp_path / "float.tif", np.linspace(-5, 5, 72, dtype=np.float32).reshape(8, 9))
    with pytest.raises(DataError, match=r"go from -5 to 5; say which are black and white: --set data\.range"):
        decode_as(floats, None, Form())
    assert np.array_equal(np.unique(decode_as(floats, None, Form(range=(-5, 5)))[0])[[0, -1]], [0, 255])
    with pytest.raises(DataError, match="CMYK"):
        decode_as(
            write(tmp_path / "inks.tif", planes(2, 4).transpose(0, 2, 3, 1), photometric="separated"),
            None,
            Form(pages="channels"),
        )


def test_files_that_lack_something_are_refused(tmp_path: Path) -> None:
    values = planes(2, 3)
    whole = ome(tmp_path / "a.ome.tif", values, names=NAMES[:3])
    data = whole.read_bytes()
    short = tmp_path / "short.ome.tif"
    short.write_bytes(data[: len(data) - 200])
    with pytest.raises(DataError, match=r"short\.ome\.tif"):
        decode_as(short, None, Form(projection="maximum"))
    far = write(
        tmp_path / "far.ome.tif",
        values[0],
        photometric="minisblack",
        metadata=None,
        description='<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="9" SizeY="8" SizeZ="1" SizeC="6" '
        'SizeT="1"><TiffData FirstC="0" IFD="0" PlaneCount="3"><UUID FileName="far.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstC="3" IFD="0" PlaneCount="3"><UUID FileName="a.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>",
    )
    with pytest.raises(DataError, match="planes in other files"):
        decode_as(far, None, Form())
    with pytest.raises(DataError, match="17 channels; there can be 1 to 16"):
        decode_as(write(tmp_path / "many.tif", planes(17), photometric="minisblack"), None, Form(pages="channels"))


def test_images_that_differ_in_channels_are_named(tmp_path: Path) -> None:
    source = fill(tmp_path / "set", planes(2, 1, 4, high=9999))
    ome(source / "cat/x.ome.tif", planes(1, 2), names=NAMES[:2])
    with pytest.raises(
        DataError, match=r"differ in channels: .*4 channels \(DAPI.* and .*x\.ome\.tif 2 channels \(DAPI, GFP\)"
    ):
        load(source)
    data = load(source, channels=["GFP"])
    assert data.channels == ("GFP",)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", planes(3), photometric="minisblack")
    monkeypatch.setattr(decode, "_has_tifffile", lambda: False)
    assert decode_as(path, None, Form())[1].notes["pages"] == 3  # by Pillow
    with pytest.raises(DataError, match=r"pip install tifffile imagecodecs, or 'petriscope\[tiff\]'"):
        decode_as(path, None, Form(pages="channels"))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
    with pytest.raises(DataError, match=r"pip install pydicom, or pip install 'petriscope\[dicom\]'"):
        decode_as(tmp_path / "a.dcm", None, Form())
    starts = {"czi": b"ZISRAWFILE", "nd2": b"\xda\xce\xbe\x0a", "lif": b"\x70\0\0\0\x10\0\0\0\x2a"}
    for kind, start in starts.items():
        monkeypatch.setitem(sys.modules, f"bioio_{kind}", None)
        (tmp_path / f"a.{kind}").write_bytes(start + bytes(200))
        with pytest.raises(DataError, match=rf"bioio-{kind}, which is not installed.*'petriscope\[{kind}\]'"):
            decode_as(tmp_path / f"a.{kind}", None, Form())


def dicom(path: Path, values: np.ndarray, *words: Any, **tags: Any) -> Path:
    pytest.importorskip("pydicom")
    save_dicom(path, values, *words, **tags)
    return path


def test_dicom_gray(tmp_path: Path) -> None:
    values = planes(high=4096)
    plain = dicom(tmp_path / "a.dcm", values, "MONOCHROME2", 12)
    image, content = decode_as(plain, None, Form(depth=16))
    assert np.array_equal(image[..., 0], np.rint(values / 4095 * 65535)) and content.notes == {"no window": 12}
    dark = dicom(tmp_path / "b.dcm", values, "MONOCHROME1", 12)
    assert np.array_equal(decode_as(dark, None, Form(depth=16))[0][..., 0], np.rint((4095 - values) / 4095 * 65535))
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "PixelSpacing": [0.5, 0.25]}
    scaled = dicom(tmp_path / "c.dcm", values, "MONOCHROME2", 12, WindowCenter=1000, WindowWidth=2001, **tags)
    image, content = decode_as(scaled, None, Form())
    units = values * 2.0 - 1000
    low, high = 1000 - 0.5 - 1000, 1000 - 0.5 + 1000  # PS3.3 C.11.2.1.2.1
    assert np.abs(image[..., 0] - ((units - low) / (high - low)).clip(0, 1) * 255).max() <= 0.51
    assert content.notes == {} and content.micrometers == (500, 250)
    asked = decode_as(scaled, None, Form(range=(-1000, 7190)))[0][..., 0]
    assert np.array_equal(asked, np.rint((units + 1000) * (255 / 8190)))
    assert decode_as(scaled, None, Form(range=(0, 100)))[1].notes == {"clipped": 1}
    several = dicom(tmp_path / "d.dcm", values, "MONOCHROME2", 12, WindowCenter=[9, 99], WindowWidth=[9, 99])
    assert decode_as(several, None, Form())[1].notes == {"windows": 2}


def test_dicom_frames_and_colors(tmp_path: Path) -> None:
    frames = planes(3, high=256).astype(np.uint8)
    several = dicom(tmp_path / "f.dcm", frames, NumberOfFrames=3)
    image, content = decode_as(several, None, Form())
    assert np.array_equal(image[..., 0], frames[0]) and content.notes["pages"] == 3
    assert np.array_equal(decode_as(several, None, Form(pages="channels"))[0], last(frames))
    assert np.array_equal(decode_as(several, None, Form(projection="maximum"))[0][..., 0], frames.max(0))
    assert np.array_equal(decode_as(pages_of(several)[2], None, Form(pages="images"))[0][..., 0], frames[2])
    colors = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    rgb = dicom(tmp_path / "rgb.dcm", colors, "RGB")
    assert np.array_equal(decode_as(rgb, None, Form())[0], colors)
    from pydicom.pixels import convert_color_space

    ybr = dicom(tmp_path / "ybr.dcm", convert_color_space(colors, "RGB", "YBR_FULL"), "YBR_FULL")
    assert np.abs(decode_as(ybr, None, Form())[0].astype(int) - colors).max() <= 2
    table = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    lut = {}
    for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        lut[f"{name}PaletteColorLookupTableData"] = row.astype("<u2").tobytes()
    palette = dicom(tmp_path / "p.dcm", frames[0], "PALETTE COLOR", **lut)
    assert np.array_equal(decode_as(palette, None, Form())[0], np.moveaxis((table >> 8)[:, frames[0]], 0, 2))
    import pydicom
    from pydicom.uid import RLELossless

    packed = pydicom.dcmread(rgb)
    packed.compress(RLELossless, generate_instance_uid=False)
    packed.save_as(tmp_path / "rle.dcm")
    assert np.array_equal(decode_as(tmp_path / "rle.dcm", None, Form())[0], colors)


def test_dicom_without_pixels_and_other_colors(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    path = dicom(tmp_path / "a.dcm", planes(high=9))
    data = pydicom.dcmread(path)
    data.PhotometricInterpretation = "HSV"
    data.save_as(tmp_path / "b.dcm")
    with pytest.raises(DataError, match="photometric interpretation, HSV, is not read"):
        decode_as(tmp_path / "b.dcm", None, Form())
    del data.PixelData
    data.save_as(tmp_path / "c.dcm")
    with pytest.raises(DataError, match="has no pixels"):
        decode_as(tmp_path / "c.dcm", None, Form())


def test_czi_channels_and_slices(tmp_path: Path) -> None:
    pytest.importorskip("bioio_czi")
    czi = pytest.importorskip("pylibCZIrw").czi
    values = planes(2, 3, 2)  # scenes, slices, channels
    path = tmp_path / "a.czi"
    with czi.create_czi(str(path)) as file:
        for scene in range(2):
            for z in range(3):
                for channel in range(2):
                    where = {"Z": z, "C": channel}
                    file.write(values[scene, z, channel][..., None], plane=where, scene=scene, location=(scene * 50, 0))
        file.write_metadata("a", channel_names={0: "DAPI", 1: "GFP"}, scale_x=1e-7, scale_y=2e-7)
    image, content = decode_as(path, None, Form(depth=16, projection="maximum"))
    assert np.array_equal(image, last(values[0].max(0))) and content.notes == {"positions": 2}  # not in its metadata
    assert content.micrometers == pytest.approx((0.2, 0.1))
    header, _ = decode.probe_file(path)
    assert header is not None and header[:4] == (8, 9, False, ("DAPI", "GFP"))
    assert np.array_equal(read(path, projection="middle"), last(values[0, 1]))


def test_what_a_stack_becomes() -> None:
    values = planes(2, 3)
    stack = Stack(8, 9, ("gray",), lambda page, z: values[page, z][..., None], pages=2, slices=3)
    assert combine(stack, "auto", None)[1] == {"pages": 2, "slices": 3}
    assert np.array_equal(combine(stack, "auto", "maximum")[0][..., 0], values.max((0, 1)))
    assert np.array_equal(combine(stack, "images", "maximum", 1)[0][..., 0], values[1].max(0))
    channels, notes = combine(stack, "channels", None)
    assert np.array_equal(channels, last(values[:, 0])) and notes == {"slices": 3}
