"""The devices that operations are tested on: those of this machine, and `meta`.

Tensors on `meta` have a shape and a dtype but no values. What runs there makes its own tensors on the device of its input,
and never waits for values on the CPU. Here `meta` also has no float64, as Apple's GPUs have none.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from petriscope.core.device import NO_DOUBLES

NO_DOUBLES.add("meta")
DEVICES = [
    "cpu",
    "meta",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2"}


def check_same_kind(found, expected, device):
    """A tensor computed on a device is of the same shape and dtype as on the CPU, and still there."""
    assert found.device.type == device
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype


class Queued(TorchDispatchMode):
    """Fails where an operation would wait for `meta` if it were a GPU, or makes doubles on it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = [each for each in given if each.device.type == "meta"]
        masks = [each for each in there if each.dtype in (torch.bool, torch.uint8) and name.startswith("index")]
        indexed = masks and name in ("index", "index_put", "index_put_") and masks != [args[0]]
        out = func(*args, **kwargs)
        made = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor) and each.device.type == "meta"]
        if any(each.dtype in (torch.float64, torch.complex128) for each in made):
            pytest.fail(f"{name} makes doubles on a device without them")
        if there and (name in READS or indexed):
            pytest.fail(f"{name} reads values from the device")
        copied = name in ("_to_copy", "copy_") and made and len(there) < len(given)
        if copied and not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))):
            pytest.fail("a copy to the device waits for what is queued there")
        return out


class NoConstants(TorchFunctionMode):
    """Fails where Python's numbers become a tensor on `meta`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and out.device.type == "meta":
            pytest.fail("a constant is copied to the device, which waits for what is queued there")
        return out


@contextmanager
def queued(device):
    """Within, nothing may wait for the device, nor copy a constant to it. Run once before, so that constants are there."""
    if device == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    else:
        with Queued(), NoConstants():
            yield
