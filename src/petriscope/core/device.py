"""The device, its number format, the processor cores and the memory."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from petriscope.core.errors import PetriscopeError, RequestError, shortened
from petriscope.core.launch import launch

if TYPE_CHECKING:  # torch is imported where it is used: reading data needs cores and memory, and no torch
    import numpy as np
    import torch
    from torch import Tensor, nn

    from petriscope.core.launch import Launch

Format = Literal["fp32", "bf16", "fp16"]

SMALLER = "lower data.size or training.batch_size, such as --set data.size=64 or --set training.batch_size=16"
NO_DOUBLES = {"mps"}  # types of devices without float64
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's mallopt


def choose_device(name: str = "auto") -> torch.device:
    """The device with torch's name ``name``; for ``auto``, CUDA if there is one, else MPS, else the CPU. On the CPU, freed
    memory is kept from now on (`keep_freed_memory`). Of several processes on one machine, each gets a CUDA device of its own.

    Raises:
        RequestError: the device is unknown or missing, or cannot be used by several processes.
    """
    started = launch()
    device = _find_device(name) if started.size == 1 else _device_of_one(name, started)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _find_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:1, mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise RequestError(f"this machine or this build of torch has no {device.type} device; use training.device=auto")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise RequestError(f"there is no device {name}; this machine has {count}, counted from cuda:0")
    return device


def _device_of_one(name: str, started: Launch) -> torch.device:
    """The device of one of several processes."""
    import torch

    device = torch.device("cpu") if name == "auto" and not torch.cuda.is_available() else _find_device(name)
    if device.type == "mps" or device.index is not None:
        raise RequestError(
            f"training.device={name} is one device, and {started.size} processes train together; set training.device=auto, "
            "or cpu"
        )
    if device.type == "cuda":
        if (count := torch.cuda.device_count()) < started.local_size:
            raise RequestError(
                f"torchrun started {started.local_size} processes on this machine, which has {count} CUDA devices; start one "
                f"process for each (torchrun --nproc-per-node {count}), or set training.device=cpu"
            )
        device = torch.device("cuda", started.local_rank)
        torch.cuda.set_device(device)
    return device


def choose_format(name: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Format:
    """The format ``name``; for ``auto``, bf16 on processors that multiply it natively, fp16 on older CUDA devices, else fp32."""
    import torch

    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if _cpu_has_bf16() else "fp32"
    return "fp32"


def _cpu_has_bf16() -> bool:
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def autocast(device: torch.device, number_format: Format) -> torch.autocast:
    """The context for forward passes in a format."""
    import torch

    dtype = torch.float16 if number_format == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=number_format != "fp32")


def widest(device: torch.device) -> torch.dtype:
    """The most precise float that a device has."""
    import torch

    return torch.float32 if device.type in NO_DOUBLES else torch.float64


def tensor_of(array: np.ndarray) -> Tensor:
    """An array as a tensor of the same memory; a copy if it is not contiguous, or may not be written, as torch wants it."""
    import numpy as np
    import torch

    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage collection waits. Where many small objects are made that stay, each collection would look at all of them again:
    that took a third of the time in which 100,000 files are listed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. The copy is queued, and neither waits for what was queued before; on MPS, where the tensor
    could be freed too early, it is not queued."""
    return tensor.to(device, non_blocking=device.type != "mps")


def rows_of(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor.index_select(0, index)``, also of uint16, for which GPUs do not have it."""
    import torch

    if tensor.dtype != torch.uint16:
        return tensor.index_select(0, index)
    return tensor.view(torch.int16).index_select(0, index).view(torch.uint16)


def lay_out(model: nn.Module, channels_last: bool) -> nn.Module:
    """Give a model's weights the memory format of its batches, in place."""
    import torch

    order = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(memory_format=order)  # type: ignore[call-overload]


def cores() -> int:
    """The number of processors that this process may use. Processes that train together on one machine share its processors."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // launch().local_size)


def free_memory(device: torch.device | None = None) -> int:
    """Bytes of free memory: on a CUDA device, or, for any other device, what the process can take from the machine without
    swapping, within the container's limit if there is one."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = 2**63
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    if free == 2**63:
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (OSError, ValueError, AttributeError):
            free = 4 * 2**30
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        free = min(free, max(limit - used, 0))
    except (OSError, ValueError):
        pass
    return min(free, _own_limit())


def _own_limit() -> int:
    """Bytes that a limit on the address space of this process leaves (``ulimit -v``)."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        used = pages * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError, AttributeError):
        return 2**63
    return 2**63 if limit == resource.RLIM_INFINITY else max(limit - used, 0)


def gib(size: float) -> str:
    """A number of bytes for people, such as ``1.2 GiB``."""
    return f"{size / 2**30:,.1f} GiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a device was not enough."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "Cannot allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def enough_memory(remedy: str = SMALLER) -> Iterator[None]:
    """Within, or in a function that is decorated with it, lack of memory is an error that says what to do.

    Raises:
        PetriscopeError: the memory was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise PetriscopeError(f"the memory was not enough ({shortened(str(error).strip(), 160)}); {remedy}") from error


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed memory for later requests instead of returning it to the system.

    Every step allocates and frees activations of megabytes. By default glibc returns such blocks at once and then asks for
    new ones, whose pages the system clears at the first access: a fifth of the time of a training step on the CPU. The cost
    is memory: evaluation after training peaks at 2.9 instead of 2.2 GiB at 96 px. If the user has set options of glibc's
    malloc, nothing is changed.

    Returns:
        whether memory is kept; False with another C library.
    """
    own = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(key.startswith("MALLOC_") for key in os.environ)
    if own or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
