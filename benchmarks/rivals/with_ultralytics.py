"""Ultralytics classify, a new model from its YAML file: https://docs.ultralytics.com/tasks/classify."""

import ultralytics.engine.trainer
from PIL import Image
from shared import BY_PROCESSOR, files
from ultralytics import YOLO, settings

ultralytics.engine.trainer.time = BY_PROCESSOR  # benchmark
settings.update({"mlflow": False, "wandb": False, "tensorboard": False})  # benchmark


def train(images, work, seconds, seed):
    side = Image.open(next((images / "train").rglob("*.png"))).width
    model = YOLO("yolo26n-cls.yaml")
    size = max(32, 32 * round(side / 32))
    model.train(data=images, time=seconds / 3600, imgsz=size, seed=seed, project=work, name="run", plots=False)


def predict(test, work):
    model = YOLO(work / "run" / "weights" / "best.pt")
    results = [model(path, verbose=False)[0] for path in files(test)]
    return list(results[0].names.values()), [result.probs.data.tolist() for result in results]
