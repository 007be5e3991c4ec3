"""Freed memory is kept where glibc can be told so; devices that are not there are refused."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
import torch

from petriscope.core.device import choose_device, uncollected
from petriscope.core.errors import RequestError

glibc = pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="glibc's malloc alone")

FEWEST = 40  # page faults in ten passes, of which huge pages need four each
PROGRAM = """
import resource, sys
import numpy as np
from petriscope.core.device import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def touch():
    np.ones(1 << 21)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(how: str, **environment: str) -> tuple[str, int]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, how]
    said, faults = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()
    return said, int(faults)


@glibc
def test_memory_that_was_touched_is_not_cleared_again() -> None:
    (_, as_is), (said, kept) = run("as it is"), run("kept")
    assert said == "True"
    if as_is < FEWEST:
        pytest.skip("this system gives memory that was freed back without clearing it, so there is nothing to save")
    assert kept < as_is / 10


@glibc
@pytest.mark.parametrize("own", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_the_users_own_settings_stand(own: dict[str, str]) -> None:
    assert run("kept", **own)[0] == "False"


@pytest.mark.parametrize("name", ["cuda:2", "cuda:99", "gpu", "cuda:x", "", "meta", "cpu:\0", "x" * 300])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match="device"):
        choose_device(name)
    assert choose_device("cuda:1").index == 1


def test_garbage_collection_waits_and_goes_on_even_after_an_error():
    @uncollected()
    def fails():
        assert not gc.isenabled()
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()
