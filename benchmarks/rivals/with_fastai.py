"""fastai's quick start for images in folders, from scratch: ResNet-34, aug_transforms, one-cycle.

https://docs.fast.ai/quick_start.html. The callback lets the schedule follow the time instead of a number of epochs.
"""

# ruff: noqa: F403, F405
from fastai.vision.all import *
from shared import Timer, files


class ByClock(Callback):  # benchmark
    def __init__(self, seconds):  # benchmark
        self.timer = Timer(seconds)  # benchmark

    def before_batch(self):  # benchmark
        if self.training:  # benchmark
            self.learn.pct_train = self.timer.share  # benchmark
            if self.timer.share == 1:  # benchmark
                raise CancelFitException  # benchmark


def train(images, work, seconds, seed):
    set_seed(seed)
    dls = ImageDataLoaders.from_folder(
        images, valid="val", seed=seed, bs=128, batch_tfms=aug_transforms(), num_workers=0
    )
    learn = vision_learner(dls, resnet34, metrics=error_rate, pretrained=False)
    learn.unfreeze()
    learn.fit_one_cycle(1000, 3e-3, cbs=[ByClock(seconds)])
    learn.export(work / "model.pkl")


def predict(test, work):
    learn = load_learner(work / "model.pkl")
    probabilities, _ = learn.get_preds(dl=learn.dls.test_dl(files(test)))
    return list(learn.dls.vocab), probabilities.numpy()
