"""What a package carries runs where numpy, Pillow and onnxruntime are all that is installed."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SRC = Path(__file__).parents[2] / "src"
LIGHT = (  # all that these import is light too
    "petriscope.inference.answers",
    "petriscope.inference.label_answers",
    "petriscope.inference.segmentation",
    "petriscope.inference.given",
    "petriscope.trust.verdict",
)
ALONE = """
import sys

SRC, LIGHT = sys.argv[1], sys.argv[2].split(",")
ALLOWED = {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime", "petriscope"}


class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse)
sys.path.insert(0, SRC)
for name in LIGHT:
    __import__(name)
"""
WORK = """
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.core.errors import RequestError
from petriscope.data.membership import Exposure
from petriscope.inference.answers import answer_files
from petriscope.inference.base import Prediction, Reading
from petriscope.inference.decoding import find_images
from petriscope.inference.given import as_files
from petriscope.inference.segmentation import predict_files
from petriscope.inference.table import Wanted
from petriscope.metrics.selective import Threshold
from petriscope.trust.abstention import Abstention
from petriscope.trust.two_sample import Likeness, traits_of


@dataclass
class Brightness:
    # Two classes: dark and light.
    classes = ("=dark", "light")
    shape = (8, 8, 1)
    reading = Reading(scale=0.5)
    exposure = Exposure()

    def predict(self, images, tta=None):
        light = images.mean((1, 2, 3), dtype=np.float64) / 255
        raw = np.stack([1 - light, light], 1).astype(np.float32)
        return Prediction(raw, raw, np.zeros(len(raw), np.float32))

    def traits(self, images, likeness):
        raw = self.predict(images).raw
        return likeness.see(raw, raw, None, np.full((len(raw), 4), np.nan))

    def probabilities(self, images, tta=None):
        p = self.predict(images).probabilities
        return np.broadcast_to(p[:, :, None, None], (*p.shape, 8, 8))


model, folder = Brightness(), Path(sys.argv[3])
val = np.random.default_rng(0).integers(0, 256, (60, 1, 1, 1), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
raw = model.predict(val).raw
traits = traits_of(raw, raw.min(1), raw.argmax(1), None, np.full((60, 4), np.nan))
model.likeness = Likeness(np.eye(2, dtype=np.float32), traits, raw.argmax(1))

plan = Abstention(model.classes, 0.1, Threshold(0.1, 0.4, 60, 0, 0.05), np.array([0.6, 0.6]), ("noted",))
rows = answer_files(model, find_images([folder]), Wanted(folder / "out.csv", "none", 0.1, 0.9, False), plan)
print(json.dumps([row for part in rows for row in part]))
list(predict_files(model, as_files([np.full((9, 9), 200, np.uint8)]), Wanted(folder / "masks", "none", None, None, True)))
"""
SEEN = "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'scipy', 'pandas', 'pydantic', 'rich')])"


def alone(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", ALONE + script, str(SRC), ",".join(LIGHT), *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_script_refuses_what_is_heavy():
    done = alone("import petriscope.core.recipe")
    assert done.returncode == 1 and "No module named" in done.stderr


def test_images_are_compared_and_answered_and_tables_and_masks_written_without_anything_heavy(tmp_path):
    for number, level in enumerate(np.linspace(0, 255, 30).astype(np.uint8)):
        Image.fromarray(np.full((12, 10), level)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "30, broken.png").write_bytes(b"no image")
    done = alone(WORK + SEEN, tmp_path)
    assert done.returncode == 0, done.stderr
    rows, heavy = map(json.loads, done.stdout.splitlines())
    assert heavy == []
    assert [row["answer"] for row in rows[:30:29]] == ["=dark", "light"] and "cannot be read" in rows[30]["error"]
    assert "not sure" in {row["answer"] for row in rows} and rows[0]["assumed"] == "scale 0.5"
    table = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["answer"] for row in table[:30:29]] == ["'=dark", "light"]
    assert [row["p_light"] for row in table] == ["" if row["error"] else repr(row["p_light"]) for row in rows]
    assert (tmp_path / "masks/image-0.png").is_file() and (tmp_path / "masks/masks.csv").is_file()
    assert done.stderr.splitlines() == ["noted"]


def test_a_format_that_needs_another_package_names_it(tmp_path):
    starts = {"pydicom": bytes(128) + b"DICM", "tifffile": b"II\x2a\0\x08\0\0\0", "bioio-czi": b"ZISRAWFILE"}
    for name, start in starts.items():
        (tmp_path / name).write_bytes(start + bytes(200))
        done = alone("from petriscope.data.decode import decode_file\ndecode_file(sys.argv[3])", tmp_path / name)
        assert done.returncode == 1 and "cannot be read as an image" in done.stderr, done.stderr
        assert f"needs {name}, which is not installed: pip install" in done.stderr, done.stderr
