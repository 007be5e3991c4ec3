"""Keras on torch: the network, augmentation and optimizer of its example "Image classification from scratch".

https://keras.io/examples/vision/image_classification_from_scratch
"""

import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import numpy as np
from keras import layers
from PIL import Image
from shared import Timer, files


class ByClock(keras.callbacks.Callback):  # benchmark
    def __init__(self, seconds):  # benchmark
        super().__init__()  # benchmark
        self.timer = Timer(seconds)  # benchmark

    def on_train_batch_end(self, batch, logs=None):  # benchmark
        self.model.stop_training = self.timer.share == 1  # benchmark


def make_model(input_shape, num_classes):
    inputs = keras.Input(shape=input_shape)
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.RandomRotation(0.1)(x)
    x = layers.Rescaling(1.0 / 255)(x)
    x = layers.Conv2D(128, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    previous = x
    for size in [256, 512, 728]:
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(size, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(size, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        residual = layers.Conv2D(size, 1, strides=2, padding="same")(previous)
        x = layers.add([x, residual])
        previous = x
    x = layers.SeparableConv2D(1024, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.25)(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def train(images, work, seconds, seed):
    keras.utils.set_random_seed(seed)
    classes = sorted(folder.name for folder in (images / "train").iterdir())
    found = [(path, k) for k, name in enumerate(classes) for path in files(images / "train" / name)]
    x = np.stack([np.atleast_3d(Image.open(path)) for path, _ in found])
    y = np.array([label for _, label in found])
    model = make_model(x.shape[1:], len(classes))
    model.compile(
        optimizer=keras.optimizers.Adam(3e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=128, epochs=1000, verbose=2, callbacks=[ByClock(seconds)])
    model.save(work / "model.keras")
    (work / "classes.txt").write_text("\n".join(classes))


def predict(test, work):
    model = keras.models.load_model(work / "model.keras")
    x = np.stack([np.atleast_3d(Image.open(path)) for path in files(test)])
    logits = keras.ops.convert_to_tensor(model.predict(x, batch_size=128, verbose=0))
    return (work / "classes.txt").read_text().split("\n"), np.asarray(keras.ops.softmax(logits).cpu())
