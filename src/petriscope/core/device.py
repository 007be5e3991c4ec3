"""What the machine offers: the device, the number format, the cores and the memory."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Literal

import torch
from torch import nn

from petriscope.core.errors import RequestError

Format = Literal["fp32", "bf16", "fp16"]

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's mallopt


def choose_device(name: str = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's MPS, else the CPU; or a device by torch's name. Where it is the CPU, freed memory is
    kept from now on (`keep_freed_memory`).

    Raises:
        RequestError: the device is unknown or not there.
    """
    device = _find_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _find_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"no device {name!r}; known: auto, cpu, cuda, cuda:1, mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise RequestError(f"this machine, or this build of torch, has no {device.type}; use training.device=auto")
    return device


def choose_format(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Format:
    """``auto``: bf16 where the processor multiplies it natively, fp16 on older CUDA, fp32 elsewhere."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if _cpu_has_bf16() else "fp32"
    return "fp32"


def _cpu_has_bf16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def autocast(device: torch.device, number_format: Format) -> torch.autocast:
    """The context in which the forward pass runs."""
    dtype = torch.float16 if number_format == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=number_format != "fp32")


def lay_out(model: nn.Module, channels_last: bool) -> nn.Module:
    """Order a model's weights in memory, in place, as its batches are."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(memory_format=order)  # type: ignore[call-overload]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Keep what is freed for the next request, rather than hand it back to the system.

    A network's activations come and go by the megabyte at every step. glibc returns such blocks at once and asks for new
    ones, whose pages the system clears one by one at their first touch: a fifth of a training step on the CPU. The price is
    that evaluation no longer reuses what training had: a peak of 2.9 rather than 2.2 GiB at 96 px. Settings that the user
    made for glibc's malloc are left alone.

    Returns:
        whether memory is kept; False where the C library is another.
    """
    own = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(key.startswith("MALLOC_") for key in os.environ)
    if own or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
