"""The processes that train one model together, and what they exchange. Nothing else knows of `torch.distributed`.

Every process computes all that a single one would compute, but runs the network on its own slice of each batch only. What the
slices give is gathered in the order of the batch, so each process has the whole. A value that is computed from gathered ones,
such as the loss, is the same in all processes, and is counted once: going backward, each process takes the gradients of its
slice, and the gradients of the weights are added.

So it is after training too: what takes long per image is shared out by `Ranks.spread`, each process goes on with the results for
all images, and the first alone writes. What is decided by a clock or by free memory has to be agreed on.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from petriscope.core.errors import Diverged, Interrupted, PetriscopeError, RequestError, shortened
from petriscope.core.launch import launch
from petriscope.core.progress import silence

BUCKET = 2**23  # numbers that are sent at a time, so that the copies of gradients stay small
LONGEST_WAIT = timedelta(minutes=30)  # for a process that answers no more; one that ends is noticed at once
RUN_KEY, START_KEY = "petriscope/run", "petriscope/start"


class Lost(PetriscopeError):
    """Another process of the training has ended, or cannot be reached."""


class Ranks:
    """The processes of a training, as one of them sees them. With one process, everything is as it was.

    Args:
        rank: the number of this process, counted from 0. Process 0 alone writes and speaks.
        size: the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.told = False  # whether all processes know of the error that ends this one

    @property
    def first(self) -> bool:
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of ``count`` rows are this process's. The slices of all processes differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def part(self, batch: Tensor) -> Tensor:
        """The rows of a batch, [B, ...], that are this process's."""
        return batch if self.size == 1 else batch[self.rows(len(batch))]

    def whole(self, part: Tensor, count: int) -> Tensor:
        """The batch of ``count`` rows, [B, ...], from the parts of all processes. Its gradient is that of this part."""
        return part if self.size == 1 else _Whole.apply(part, self, count)

    def mean(self, value: Tensor, rows: int, count: int) -> Tensor:
        """The mean over a batch from the means over the parts, scalars. Its gradient is that of this part.

        Args:
            rows: how many of the ``count`` rows the part of this process has.
        """
        return value if self.size == 1 else _Mean.apply(value, self, rows / count)

    def joined_rows(self, part: Tensor, count: int) -> Tensor:
        """`whole`, without gradients."""
        rows = [self.of(rank).rows(count) for rank in range(self.size)]
        return torch.cat(self._parts(part, [each.stop - each.start for each in rows]))

    def spread(self, doing: str, count: int, work: Callable[[slice], Sequence[Tensor]]) -> list[Tensor]:
        """What ``work`` gives for ``count`` rows, tensors [count, ...], without gradients. Each process does some of the rows,
        and has the results for all afterwards. If there are fewer rows than processes, each does all.

        Args:
            doing: what is done, to notice processes that do different things.
            work: takes the rows to do; what it gives for a row must not depend on the other rows.

        Raises:
            RequestError, PetriscopeError: what a process failed with.
        """
        if self.size == 1 or count < self.size:
            return list(work(slice(0, count)))
        with self.together(f"{doing} ({count:,})"):
            parts = list(work(self.rows(count)))
        return [self._rows_of_all(part, count) for part in parts]

    def spread_arrays(self, doing: str, count: int, work: Callable[[slice], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """`spread` for arrays."""
        found = self.spread(doing, count, lambda rows: [torch.from_numpy(part) for part in work(rows)])
        return [whole.numpy() for whole in found]

    def _rows_of_all(self, part: Tensor, count: int) -> Tensor:
        if not part.numel():
            return part.new_empty((count, *part.shape[1:]))
        sent = part.view(torch.uint8) if part.dtype == torch.bool else part
        return self.joined_rows(sent, count).view(part.dtype)

    def gathered(self, part: Tensor, owner: np.ndarray) -> Tensor:
        """A batch, [B, ...], of which each process has the rows that it owns, in their order.

        Args:
            owner: the number of a process for each row of the batch, int [B].
        """
        parts = self._parts(part, np.bincount(owner, minlength=self.size).tolist())
        place = np.empty(len(owner), dtype=np.int64)
        place[np.argsort(owner, kind="stable")] = np.arange(len(owner))
        return torch.cat(parts)[torch.from_numpy(place).to(part.device)]

    def _parts(self, part: Tensor, sizes: list[int]) -> list[Tensor]:
        """The parts of all processes, of so many rows each."""
        sent = part.new_zeros((max(sizes), *part.shape[1:]))
        sent[: len(part)] = part
        return [one[:size] for one, size in zip(self.each(sent), sizes, strict=True)]

    def of(self, rank: int) -> Ranks:
        """The same processes, as another one sees them."""
        return Ranks(rank, self.size)

    def each(self, values: Tensor) -> list[Tensor]:
        """The values of all processes, of one shape, in their order."""
        if self.size == 1:
            return [values]
        values = values.contiguous()
        out = [torch.empty_like(values) for _ in range(self.size)]
        with _exchanging():
            dist.all_gather(out, values)
        return out

    def add(self, values: Tensor) -> Tensor:
        """The sum of the values of all processes, in place."""
        if self.size > 1:
            with _exchanging():
                dist.all_reduce(values)
        return values

    def add_gradients(self, weights: Iterable[Tensor]) -> None:
        """Replace the gradients of weights by their sums over all processes."""
        if self.size == 1:
            return
        with torch.no_grad():
            for some in _buckets([p.grad for p in weights if p.grad is not None]):
                total = self.add(torch.cat([grad.reshape(-1) for grad in some]))
                start = 0
                for grad in some:
                    grad.copy_(total[start : start + grad.numel()].view(grad.shape))
                    start += grad.numel()

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process. The flags are sent by way of the CPU, so no GPU is waited for."""
        if self.size == 1:
            return flag
        return bool(self.add(torch.tensor([int(flag)])).item())

    def texts(self, text: str) -> list[str]:
        """The texts of all processes, in their order."""
        if self.size == 1:
            return [text]
        sent = text.encode()
        lengths = [int(length) for length in self.each(torch.tensor([len(sent)]))]
        padded = torch.zeros(max(*lengths, 1), dtype=torch.uint8)
        padded[: len(sent)] = torch.frombuffer(bytearray(sent), dtype=torch.uint8) if sent else padded[:0]
        return [
            bytes(found[:length].tolist()).decode() for found, length in zip(self.each(padded), lengths, strict=True)
        ]

    @contextmanager
    def together(self, doing: str = "preparing") -> Iterator[None]:
        """Within, the processes work, each by itself. If one fails, all do, and its error is said once.

        Args:
            doing: what they do.

        Raises:
            RequestError, PetriscopeError: what a process failed with; or they do different things.
        """
        if self.size == 1:
            yield
            return
        own: PetriscopeError | None = None
        try:
            yield
        except PetriscopeError as error:
            own = error
        found = [json.loads(text) for text in self.texts(json.dumps([doing, _failure(own)]))]
        if other := next((rank for rank, (theirs, _) in enumerate(found) if theirs != found[0][0]), 0):
            self.told = True
            raise PetriscopeError(
                f"the processes do different things: {found[0][0]} in process 0, {found[other][0]} in process {other}; continue "
                "from the last checkpoint"
            )
        failures = [failure for _, failure in found]
        failed = [rank for rank, failure in enumerate(failures) if failure]
        if not failed:
            return
        self.told = True
        if own is not None and len({tuple(failures[rank][:2]) for rank in failed}) == 1 and len(failed) == self.size:
            raise own
        status, text, host = failures[failed[0]]
        kind = RequestError if status == RequestError.exit_status else PetriscopeError
        more = f" (and {len(failed) - 1:,} more)" if len(failed) > 1 else ""
        raise kind(f"in process {failed[0]} of {self.size}{more}, on {host}: {text}")

    def agree(self, what_to_do: str, **facts: str) -> None:
        """Check that facts are the same in all processes.

        Args:
            what_to_do: if they are not, for the message.
            facts: by what they are facts of, such as ``data``.

        Raises:
            PetriscopeError: they differ.
        """
        found = [json.loads(text) for text in self.texts(json.dumps([facts, socket.gethostname()]))]
        for rank, (theirs, host) in enumerate(found):
            for name, value in found[0][0].items():
                if theirs[name] != value:
                    self.told = True
                    raise PetriscopeError(
                        f"the processes differ in their {name}: {shortened(value)} in process 0, {shortened(theirs[name])} in "
                        f"process {rank}, on {host}; {what_to_do}"
                    )

    def agree_on_weights(self, model: torch.nn.Module, when: str) -> None:
        """Check that all processes have the same weights, bit for bit.

        Raises:
            PetriscopeError: they do not.
        """
        if self.size == 1:
            return
        sums = [t.detach().double().abs().sum() for t in model.state_dict().values() if t.is_floating_point()]
        self.agree(
            "use machines and versions of torch that compute alike, and continue from the last checkpoint",
            **{f"weights {when}": float(torch.stack(sums).sum()).hex()},
        )


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started with this one. All but the first say nothing from now on, unless they fail alone.

    Raises:
        Lost: the others cannot be reached.
    """
    started = launch()
    if not started.by_torchrun:
        yield ALONE
        return
    silence(started.rank > 0)
    if not dist.is_initialized():
        # Optimizers import it. Imported later, it keeps the group alive, whose threads would then outlive Python and abort.
        import_module("torch._dynamo")
        with _exchanging():
            if (store := _store(LONGEST_WAIT)) is None:
                dist.init_process_group(_backend(), timeout=LONGEST_WAIT)
            else:
                place = dist.PrefixStore(_name_of_start(store, started.rank, started.size), store)
                dist.init_process_group(
                    _backend(), timeout=LONGEST_WAIT, store=place, rank=started.rank, world_size=started.size
                )
        atexit.register(leave)
    ranks = Ranks(started.rank, started.size)
    try:
        yield ranks
    except Exception as error:
        if ranks.rank and not ranks.told and not isinstance(error, Diverged | Interrupted | Lost):
            silence(False)
            if isinstance(error, PetriscopeError):
                error.args = (f"process {ranks.rank} of {ranks.size}, on {socket.gethostname()}: {error}",)
        raise


def leave() -> None:
    """End the exchanges of this process, and the threads that serve them."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def begun_before(request: str) -> str | None:
    """The run folder that was begun for a request, if torchrun has started its processes again."""
    if not launch().restarts or (store := _store()) is None:
        return None
    key = f"{RUN_KEY}/{digest(request)}"
    return store.get(key).decode() if store.check([key]) else None


def remember(request: str, folder: str) -> None:
    """Tell processes that torchrun may start in place of these which run folder was begun for a request."""
    if launch().by_torchrun and (store := _store()) is not None:
        store.set(f"{RUN_KEY}/{digest(request)}", folder)


def digest(text: str) -> str:
    """A text as it is compared with that of another process."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _name_of_start(store: dist.Store, rank: int, size: int) -> str:
    """A name for this start of the processes, which is new for every start.

    The table has what processes of an earlier start wrote, such as the addresses of those that were killed. Who finds these would
    wait for them, so what processes tell one another is put under a name that no earlier start has had. They agree on it so:
    every process calls with a number that is drawn anew, and process 0 answers to that number.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"{START_KEY}/call/{rank}", own)
        store.wait([f"{START_KEY}/answer/{own}"], LONGEST_WAIT)
        name = store.get(f"{START_KEY}/answer/{own}").decode()
        store.set(f"{START_KEY}/heard/{name}/{rank}", "")
        return name
    answered, silent, began = set[str](), set(range(1, size)), time.monotonic()
    while silent:
        for other in sorted(silent):
            if store.check([f"{START_KEY}/call/{other}"]):
                call = store.get(f"{START_KEY}/call/{other}").decode()
                if call not in answered:
                    store.set(f"{START_KEY}/answer/{call}", own)
                    answered.add(call)
            if store.check([f"{START_KEY}/heard/{own}/{other}"]):
                silent.remove(other)
        if time.monotonic() - began > LONGEST_WAIT.total_seconds():
            raise RuntimeError(f"process {min(silent)} did not start")
        time.sleep(0.02)
    return own


def _store(patience: timedelta = timedelta(seconds=30)) -> dist.TCPStore | None:
    """The table that torchrun keeps from the first to the last start of its processes; None with another launcher."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not port.isdigit():
        return None
    with suppress(RuntimeError):
        return dist.TCPStore(address, int(port), is_master=False, timeout=patience)
    return None


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _failure(error: PetriscopeError | None) -> list[Any]:
    return [] if error is None else [error.exit_status, str(error), socket.gethostname()]


@contextmanager
def _exchanging() -> Iterator[None]:
    """
    Raises:
        Lost: an exchange failed.
    """
    try:
        yield
    except RuntimeError as error:
        why = shortened((str(error).strip().splitlines() or [type(error).__name__])[0], 160)
        raise Lost(
            f"another process of this training has ended or cannot be reached ({why}); what it said stands above. Start the "
            "processes again, with train --resume RUN, to continue from the last checkpoint"
        ) from error


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in groups of one dtype and of at most `BUCKET` numbers, or of one tensor."""
    group: list[Tensor] = []
    for tensor in tensors:
        full = sum(each.numel() for each in group) + tensor.numel() > BUCKET
        if group and (full or group[0].dtype != tensor.dtype):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks, count: int) -> Tensor:
        ctx.ranks = ranks
        return ranks.joined_rows(part, count)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.ranks.part(grads[0]), None, None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks, share: float) -> Tensor:
        ctx.share = share
        return ranks.add(value * share)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.share, None, None
