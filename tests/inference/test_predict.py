"""Image files are predicted while rows are read, so that memory does not grow with their number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from petriscope.core.errors import RequestError
from petriscope.core.recipe import load_recipe
from petriscope.data.batches import Batches
from petriscope.data.contents import Content
from petriscope.data.imageset import ImageSet
from petriscope.inference import answers, predict
from petriscope.inference import decoding as image_files
from petriscope.inference.decoding import find_images
from petriscope.inference.predictor import Predictor
from petriscope.models import build_model
from petriscope.tasks import find_task

CHUNK = 3


@pytest.fixture
def predictor():
    recipe = load_recipe("demo")
    model = build_model(recipe.model, 2, (28, 28, 3)).eval()
    task, device = find_task("classification"), torch.device("cpu")
    return Predictor(model, recipe, task, ("a, b", '"c"'), (28, 28, 3), (0.5,) * 3, (0.2,) * 3, device)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Eight files, in chunks of three; a chunk has no image that can be read."""
    monkeypatch.setattr(answers, "CHUNK", CHUNK)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}, é.png" for index in range(8)]
    for index, path in enumerate(paths):
        if index < 3:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)
    return paths


def test_the_file_has_the_bytes_of_the_whole_table(predictor, files, tmp_path):
    out = tmp_path / "out" / "rows.csv"
    rows = predict.predict_files(predictor, files, out, "none")
    read = [row for part in rows for row in part]
    assert [row["image"] for row in read] == [str(path) for path in files]
    whole = pd.DataFrame(read, columns=list(rows.columns)).to_csv(index=False)
    assert out.read_bytes() == whole.encode()


def test_nothing_is_predicted_before_it_is_asked_for(predictor, files, tmp_path, monkeypatch):
    asked = []
    found = np.zeros((28, 28, 3), np.uint8), Content(200, 8)
    monkeypatch.setattr(image_files, "decode_as", lambda path, *_: asked.append(path) or found)
    out = tmp_path / "rows.csv"
    parts = iter(predict.predict_files(predictor, files, out, "none"))
    assert asked == []
    for count in (1, 2):
        assert len(next(parts)) == CHUNK
        assert sorted(asked) == files[: count * CHUNK]
        assert not out.exists()
    assert len(next(parts)) == 2
    assert list(parts) == [] and out.is_file()


def test_what_was_read_in_part_leaves_nothing_behind(predictor, files, tmp_path):
    before = sorted(tmp_path.iterdir())
    parts = iter(predict.predict_files(predictor, files, tmp_path / "rows.csv", "none"))
    next(parts)
    parts.close()
    assert sorted(tmp_path.iterdir()) == before


def test_what_the_files_hold_beside_the_images_is_said(predictor, files, capsys):
    frames = [Image.new("RGB", (9, 8), (value, 200, 0)) for value in (10, 20, 30)]
    for path in files[3:5]:
        frames[0].save(path, format="TIFF", save_all=True, append_images=frames[1:])
    list(predict.predict_files(predictor, files, None, "none"))
    said = capsys.readouterr().err
    assert "turned into gray" not in said
    assert f"warning: 2 images have 3 pages or frames, of which the first is taken, such as {files[3]}" in said


def test_folders_are_walked_as_for_training(files, tmp_path, capsys):
    for name in ("@eaDir/x.png", ".h/x.png", "deeper/.x.png", "deeper/x.heic", "deeper/y.jfif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deeper/up").symlink_to(tmp_path)
    assert find_images([tmp_path]) == sorted([*files, tmp_path / "deeper/y.jfif"])
    said = capsys.readouterr().err
    assert "2 hidden or system folders (.h)" in said and "1 .heic file (deeper/x.heic)" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.nii").touch()
    with pytest.raises(RequestError, match=r"no images in .*empty. .*left out 1 .nii file \(a.nii\)"):
        find_images([tmp_path / "empty"])
    for name, says in (
        ("list.csv", "no image file; name image files or folders of them.$"),
        ("a.parquet", "--shards N$"),
    ):
        (tmp_path / name).write_text("path\n0.png")
        with pytest.raises(RequestError, match=says):
            find_images([tmp_path / name])
        assert len(find_images([tmp_path / name, files[0]])) == 2  # as of a pattern: a row says why it has no answer


def test_outputs_that_are_not_numbers_are_refused_and_not_counted_as_the_first_class(predictor, files):
    with torch.no_grad():
        for each in predictor.model.parameters():
            each.fill_(3e38)
    images = np.full((3, *predictor.shape), 200, np.uint8)
    every = ImageSet(images, np.zeros(3, np.int64), predictor.classes, np.array(["a", "b", "c"]))
    for ask in (lambda: predictor.predict(images), lambda: predictor.predict_set(Batches(every, predictor.device))):
        with pytest.raises(RequestError, match="not numbers"):
            ask()


@pytest.mark.parametrize("name", ["3, é.png", "3, é.PNG", "table.parquet", "model.safetensors"])
def test_a_table_never_replaces_an_image_or_another_kind_of_file(predictor, files, tmp_path, name):
    before = files[3].read_bytes()
    with pytest.raises(RequestError, match="the table is written as CSV; name it so"):
        predict.predict_files(predictor, files, tmp_path / name, "none")
    assert files[3].read_bytes() == before


def test_a_table_never_replaces_an_image_without_a_suffix(predictor, files, tmp_path):
    image = files[3].rename(tmp_path / "scan")
    with pytest.raises(RequestError, match="scan is one of the images"):
        predict.predict_files(predictor, [image], tmp_path / "scan", "none")


def test_a_folder_is_no_table_which_is_said_before_anything_is_predicted(predictor, files, tmp_path):
    with pytest.raises(RequestError, match="is a folder; name the CSV file to write"):
        predict.predict_files(predictor, files, tmp_path, "none")


def test_an_unknown_augmentation_is_no_other_one(predictor):
    with pytest.raises(RequestError, match="unknown test-time augmentation 'd8'; known: none, mirror"):
        predictor.probabilities(np.zeros((1, 28, 28, 3), np.uint8), "d8")


def test_a_list_of_arrays_is_no_batch(predictor):
    with pytest.raises(RequestError, match="this model takes an array of uint8, not list"):
        predictor.predict([np.zeros((28, 28, 3), np.uint8)])
