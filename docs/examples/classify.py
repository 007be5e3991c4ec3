"""Classify one image with the model of a package: python classify.py PACKAGE IMAGE. Needs numpy, Pillow and onnxruntime."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

package, file = Path(sys.argv[1]), sys.argv[2]
facts = json.loads((package / "package.json").read_text(encoding="utf-8"))
wanted = facts["input"]

image = ImageOps.exif_transpose(Image.open(file)).convert("L" if wanted["channels"] == 1 else "RGB")
image = image.resize((wanted["width"], wanted["height"]), Image.Resampling[wanted["filter"].upper()])
pixels = np.asarray(image).reshape(1, wanted["height"], wanted["width"], wanted["channels"])

session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
found = dict(zip(facts["outputs"], session.run(None, {"images": pixels}), strict=True))

rates = [each["max_error"] for each in facts["error_rates"]]
answer = int(found["answers"][0, rates.index(0.01)])  # at most 1 % of the answers are wrong
print("not sure" if answer < 0 else facts["classes"][answer], f"{found['probabilities'][0].max():.4f}")
