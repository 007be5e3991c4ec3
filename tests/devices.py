"""The devices that operations are tested on: those of this machine, and `meta`.

Tensors on `meta` have a shape and a dtype but no values. What runs there makes its own tensors on the device of its input,
and never waits for values on the CPU.
"""

import pytest
import torch

DEVICES = [
    "cpu",
    "meta",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def check_same_kind(found, expected, device):
    """A tensor computed on a device is of the same shape and dtype as on the CPU, and still there."""
    assert found.device.type == device
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
