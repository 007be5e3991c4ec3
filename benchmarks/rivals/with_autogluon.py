"""AutoGluon's quick start for images, from scratch, with the preset for the shortest trainings.

https://auto.gluon.ai/stable/tutorials/multimodal/image_prediction. Its time limit is Lightning's. It starts from a
checkpoint in any case (1.6.3 does not hand ``pretrained=False`` on), so it gets the preset's network, untrained, as one.
"""

import json

import lightning.pytorch.callbacks.timer as timer
import pandas as pd
import timm
import torch
from autogluon.multimodal import MultiModalPredictor
from shared import BY_PROCESSOR, files

timer.time = BY_PROCESSOR  # benchmark


def table(folder):
    return pd.DataFrame([{"image": str(p), "label": p.parent.name} for p in sorted(folder.glob("*/*.png"))])


def untrained(folder):
    model = timm.create_model("mobilenetv3_large_100", num_classes=0)
    config = {"architecture": "mobilenetv3_large_100", "num_features": model.num_features}
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": model.default_cfg}))
    return str(folder)


def train(images, work, seconds, seed):
    predictor = MultiModalPredictor(label="label", presets="medium_quality", path=str(work / "model"))
    predictor.fit(
        table(images / "train"),
        tuning_data=table(images / "val"),
        time_limit=seconds,
        seed=seed,
        hyperparameters={
            "model.timm_image.checkpoint_name": untrained(work / "untrained"),
            "env.num_workers": 0,  # benchmark
        },
    )


def predict(test, work):
    predictor = MultiModalPredictor.load(str(work / "model"))
    found = predictor.predict_proba(pd.DataFrame({"image": [str(path) for path in files(test)]}))
    return [str(name) for name in found.columns], found.to_numpy()
