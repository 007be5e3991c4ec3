"""Images in every form that callers have them: each gives what the file of the same image gives, or is refused by name."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import petriscope
from petriscope import explain, predict
from petriscope.core.errors import DataError, RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data.decode import decode_file
from petriscope.data.membership import Exposure
from petriscope.inference.given import as_files
from petriscope.inference.predictor import Predictor, save_model
from petriscope.models import build_model
from petriscope.tasks import find_task

SHAPE = (9, 8, 3)


@pytest.fixture(scope="module")
def predictor():
    recipe = load_recipe("demo", ("model.widths=[4,4,4]", "model.hidden=4"))
    torch.manual_seed(0)
    model = build_model(recipe.model, 2, SHAPE).eval()
    task, device = find_task("classification"), torch.device("cpu")
    return Predictor(model, recipe, task, ("a", "b"), SHAPE, (0.5,) * 3, (0.2,) * 3, device, exposure=Exposure())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    Image.fromarray(pixels()).save(tmp_path / "new" / "a.png")
    return tmp_path


def pixels():
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def encoded(kind="PNG"):
    out = BytesIO()
    Image.fromarray(pixels()).save(out, kind)
    return out.getvalue()


FORMS = {
    "text": lambda: "new/a.png",
    "text with a dot": lambda: "./new/a.png",
    "absolute text": lambda: str(Path("new/a.png").resolve()),
    "path": lambda: Path("new/a.png"),
    "folder": lambda: "new",
    "array": pixels,
    "stack": lambda: pixels()[None],
    "array with opacity": lambda: np.dstack([pixels(), np.full(SHAPE[:2], 255, np.uint8)]),
    "array in another order": lambda: np.asfortranarray(pixels()),
    "pil": lambda: Image.fromarray(pixels()),
    "pil, opened": lambda: Image.open("new/a.png"),
    "bytes": encoded,
    "bytearray": lambda: bytearray(encoded("BMP")),
    "memoryview": lambda: memoryview(encoded("TIFF")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: (x for _ in range(1))])
def test_every_form_of_an_image_is_predicted_alike(form, wrap, predictor, folder):
    expected = predictor.probabilities(pixels()[None])[0]
    table = predict(predictor, wrap(FORMS[form]()), quiet=True)
    assert table["error"].isna().all()
    np.testing.assert_allclose(table[["p_a", "p_b"]].to_numpy(), expected[None], atol=1e-6)


def test_forms_can_be_mixed_and_have_names(predictor, folder):
    table = predict(predictor, ["new/a.png", pixels(), np.stack([pixels()] * 2), encoded()], quiet=True)
    assert table["image"].tolist() == ["new/a.png", "image-1", "image-2", "image-3", "image-4"]
    assert table["p_a"].nunique() == 1


def test_bytes_that_are_no_image_are_an_error_of_that_image(predictor, folder):
    table = predict(predictor, [b"no image", encoded()], quiet=True)
    assert "image-0 cannot be read" in table["error"][0] and table["error"].notna().tolist() == [True, False]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_pil_images_of_every_mode_are_read_as_their_files(mode, kind, tmp_path):
    image = Image.fromarray(pixels())
    image = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    try:
        image.save(tmp_path / "a", kind)
    except OSError:
        return  # there are no such files
    (file,) = as_files(image)
    read = decode_file(file, channels="rgb")
    np.testing.assert_allclose(read, decode_file(tmp_path / "a", channels="rgb"), atol=0 if mode != "YCbCr" else 3)


@pytest.mark.parametrize("mode", ["I;16B", "I;16L", "I;16N"])
def test_pil_images_and_arrays_of_16_bits_are_read_in_any_order_of_bytes(mode):
    array = pixels()[..., 0].astype(np.uint16) * 200 + 7
    order = {"B": ">", "L": "<", "N": "="}[mode[-1]]
    expected = decode_file(as_files(array)[0], channels="rgb", depth=16)
    image = Image.frombytes(mode, array.shape[::-1], array.astype(f"{order}u2").tobytes())
    for form in (image, array.astype(">u2"), array.astype("<u2")):
        (file,) = as_files(form)
        assert np.array_equal(decode_file(file, channels="rgb", depth=16), expected)


@pytest.mark.parametrize(("mode", "of"), [("RGBa", "RGBA"), ("La", "LA"), ("PA", "RGBA")])
def test_pil_images_with_opacity_of_rare_modes_are_put_onto_white_too(mode, of):
    image = Image.fromarray(np.dstack([pixels(), np.full(SHAPE[:2], 255, np.uint8)]))
    image.paste((0, 0, 0, 0), (0, 0, 3, 3))
    rare = image.convert("P").convert("PA") if mode == "PA" else image.convert(of).convert(mode)
    one, other = (decode_file(as_files(each)[0], channels="rgb") for each in (rare, rare.convert(of)))
    assert np.array_equal(one, other)
    assert mode == "PA" or (one[:3, :3] == 255).all()


def test_a_pil_image_is_turned_upright(tmp_path):
    image = Image.fromarray(pixels())
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    (file,) = as_files(Image.open(tmp_path / "a.jpg"))
    read = decode_file(file)
    assert read.shape == (SHAPE[1], SHAPE[0], 3)
    assert np.array_equal(read, decode_file(tmp_path / "a.jpg"))


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "WEBP", "GIF", "JPEG"])
def test_bytes_of_every_format_are_read_as_files(kind, tmp_path):
    if kind not in Image.SAVE and not Image.init() and kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    (tmp_path / "a").write_bytes(encoded(kind))
    (file,) = as_files(encoded(kind))
    assert np.array_equal(decode_file(file), decode_file(tmp_path / "a"))


@given(arrays(np.uint8, array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)))
def test_arrays_are_taken_or_refused_by_shape(array):
    shape = array.shape
    is_image = array.size and (len(shape) == 2 or (len(shape) in (3, 4) and 1 <= shape[-1] <= 16))
    count = (shape[0] if len(shape) == 4 else 1) if is_image else 0
    if not count:
        with pytest.raises(RequestError, match="array of uint8"):
            as_files(array)
        return
    files = as_files(array)
    assert len(files) == count
    if shape[-1] in (1, 3) or len(shape) == 2:
        first = array if len(shape) < 4 else array[0]
        assert np.array_equal(
            decode_file(files[0], channels="rgb"),
            np.broadcast_to(first[..., None] if len(shape) == 2 else first, (*first.shape[:2], 3)),
        )


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool, object, "U1"])
def test_arrays_of_other_types_are_refused_by_name(dtype):
    with pytest.raises(RequestError, match=r"array of .*\[9, 8, 3\].*uint8"):
        as_files([np.zeros(SHAPE).astype(dtype)])


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint16, 3), (np.uint16, 4), (np.uint8, 2), (np.uint16, 16)])
def test_arrays_of_other_channels_and_sixteen_bits_keep_their_values(dtype, channels):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (2, 9, 8, channels), dtype=dtype)
    names = tuple(f"c{place}" for place in range(channels))
    for file, image in zip(as_files([array]), array, strict=True):
        read = decode_file(file, channels=names, depth=8 * array.itemsize)
        assert read.dtype == dtype and np.array_equal(read, image)


@pytest.mark.parametrize(
    "wrong", [None, 3, {"a": 1}, [None], [3.5], [torch.zeros(3, 4, 4)], [["new/a.png"]], BytesIO()]
)
def test_other_objects_are_refused_by_name(wrong):
    with pytest.raises(RequestError, match="a list of these"):
        as_files(wrong)


def test_a_damaged_pil_image_is_an_error(folder):
    whole = encoded()
    with pytest.raises(DataError, match="image-1"):
        as_files(["new/a.png", Image.open(BytesIO(whole[: len(whole) // 2]))])


CALLS = {
    "load_model": petriscope.load_model,
    "predict": lambda wrong: petriscope.predict(wrong, "new"),
    "explain": lambda wrong: petriscope.explain(wrong, "new", "out"),
    "evaluate": petriscope.evaluate,
    "evaluate data": lambda wrong: petriscope.evaluate("model.safetensors", wrong),
    "calibrate": petriscope.calibrate,
    "recalibrate": lambda wrong: petriscope.recalibrate(wrong, "new"),
    "recalibrate data": lambda wrong: petriscope.recalibrate("run", wrong),
    "open_run": petriscope.open_run,
    "report": petriscope.report,
    "resume": petriscope.resume,
    "train": petriscope.train,
    "load_dataset": petriscope.load_dataset,
    "compare": lambda wrong: petriscope.compare([wrong]),
    "ensemble": lambda wrong: petriscope.ensemble([wrong, wrong]),
}


@pytest.mark.parametrize("wrong", [3, 2.5, np.zeros((2, 2)), object()], ids=["int", "float", "ndarray", "object"])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_path_is_refused_by_name(call, wrong, predictor, folder):
    save_model(Path("model.safetensors"), predictor.model.state_dict(), predictor, {})
    with pytest.raises(RequestError, match=f"not {type(wrong).__name__}"):
        CALLS[call](wrong)


@pytest.mark.parametrize("call", [petriscope.compare, petriscope.ensemble])
@pytest.mark.parametrize("form", [str, Path])
def test_one_folder_is_not_taken_for_its_letters(call, form, folder):
    with pytest.raises(RequestError, match="new is not a run folder"):
        call(form("new"))


def test_images_in_memory_are_explained(predictor, folder):
    table = explain(predictor, [pixels(), "new/a.png"], folder / "out", quiet=True)
    assert table["image"].tolist() == ["image-0", "new/a.png"] and (folder / "out" / "index.html").is_file()


def test_images_that_the_model_has_seen_are_counted(predictor, folder, capsys):
    from dataclasses import replace

    from petriscope.data.index import row_digests

    seen = replace(predictor, exposure=Exposure(val=frozenset(map(bytes, row_digests(pixels()[None])))))
    predict(seen, [255 - pixels(), pixels(), "new"], quiet=True)
    assert "of 3 images, the model was fitted on 2 (val), the first: image-1" in capsys.readouterr().err
    predict(seen, 255 - pixels(), quiet=True)
    assert not capsys.readouterr().err
    predict(replace(predictor, exposure=None), "new", quiet=True)
    assert "cannot be checked" in capsys.readouterr().err


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(RequestError, match="an empty name stands where a path should"):
        as_files("")


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
@pytest.mark.parametrize("tag", [1, 3, 6, 8])
def test_a_pil_image_is_turned_as_its_file_is(mode, tag, tmp_path):
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(pixels()).convert(mode).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        (given_image,) = as_files(image)
        found = decode_file(given_image, None)
    np.testing.assert_array_equal(found, decode_file(tmp_path / "a.jpg", None))
