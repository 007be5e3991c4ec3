"""What runs on a GPU: nothing there waits for it, and nothing makes doubles where there are none."""

import numpy as np
import pytest
import torch

from devices import queued
from petriscope.augment.base import constant
from petriscope.core.device import tensor_of, upload, widest

META = torch.device("meta")
WAITS = {
    "a value": lambda there: there.sum().item(),
    "a condition": lambda there: bool((there > 0).any()),
    "places": lambda there: (there > 0).nonzero(),
    "rows by a mask": lambda there: there[(there > 0)[:, 0]],
    "cells by a mask": lambda there: there[there > 0],
    "set by a mask": lambda there: there.__setitem__(there > 0, torch.ones(3, device=META)),
    "a constant": lambda there: torch.tensor([1.0, 2.0], device=META),
    "a number": lambda there: there.new_tensor(3),
    "a copy": lambda there: torch.zeros(3).to(META),
    "a copy into": lambda there: there.copy_(torch.zeros(4, 3)),
    "the CPU": lambda there: there.cpu(),
    "doubles": lambda there: there.double(),
    "a mean of doubles": lambda there: there.mean(dtype=torch.float64),
    "a new double": lambda there: torch.ones(3, dtype=torch.float64, device=META),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_for_a_gpu_is_noticed(what):
    there = torch.zeros(4, 3, device=META)
    with pytest.raises((pytest.fail.Exception, NotImplementedError, RuntimeError)), queued("meta"):
        WAITS[what](there)


def test_what_does_not_wait_is_not_noticed():
    there = torch.zeros(4, 3, device=META)
    constant((1.0, 2.0, 5.0), META)
    with queued("meta"):
        rows = upload(torch.tensor([0, 2]), META)
        there[rows] += there.index_select(0, rows) * constant((1.0, 2.0, 5.0), META)
        there.masked_fill_(there > 0, 1)
        torch.zeros(3).nonzero(), torch.ones(3).double().sum().item()
        there.new_full((), 3), there.sum(dtype=widest(META))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["plain", "read-only", "backwards", "Fortran"])
def test_any_array_becomes_a_tensor_without_a_warning(how):
    array = np.arange(12).reshape(3, 4)
    array = {"backwards": array[::-1], "Fortran": np.asfortranarray(array)}.get(how, array)
    array.flags.writeable = how != "read-only"
    found = tensor_of(array)
    assert torch.equal(found, torch.tensor(array.tolist()))
    assert np.shares_memory(found.numpy(), array) == (how == "plain")
