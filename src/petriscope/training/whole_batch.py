"""A forward pass on a slice of a batch that gives what the same rows get in a pass on the whole batch.

Two things in a network depend on more than the image: batch norm, whose statistics are those of the batch, and random numbers,
which are drawn for one image after the other. Both are caught where the network calls torch, so that this holds for networks of
any library: statistics are exchanged, and numbers are drawn for the whole batch, of which the slice is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from petriscope.core.progress import say
from petriscope.core.ranks import Ranks


def whole_batch(ranks: Ranks, count: int) -> AbstractContextManager[object]:
    """Within, a network is run on this process's rows of a batch of ``count``; see the module.

    Not caught, and said once: dropout within attention, and rarer draws. These are drawn anew for each slice, so training with
    them depends on the number of processes.
    """
    return nullcontext() if ranks.size == 1 else _WholeBatch(ranks, count)


class _WholeBatch(TorchFunctionMode):
    said: set[str] = set()  # noqa: RUF012 (of all batches)

    def __init__(self, ranks: Ranks, count: int) -> None:
        super().__init__()
        self.ranks, self.count = ranks, count
        own = ranks.rows(count)
        self.own = own.stop - own.start

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        return func(*args, **kwargs) if handler is None else handler(self, func, *args, **kwargs)

    def has_rows(self, length: int) -> bool:
        """Whether a dimension of that length is over the images, or over the same number of pieces of each."""
        return length > 0 and length % self.own == 0

    def whole_length(self, length: int) -> int:
        return length // self.own * self.count

    def slice_of(self, drawn: Tensor) -> Tensor:
        pieces = len(drawn) // self.count
        rows = self.ranks.rows(self.count)
        return drawn[rows.start * pieces : rows.stop * pieces]

    def like_whole(self, part: Tensor) -> Tensor:
        """An empty tensor for the whole batch, in the memory order of the part: numbers are drawn in that order."""
        shape = (self.whole_length(len(part)), *part.shape[1:])
        last = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
        order = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)


Handler = Callable[..., Any]


def _batch_norm(
    mode: _WholeBatch,
    func: Any,
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if not training:
        return func(images, running_mean, running_var, weight, bias, training, momentum, eps)
    channels = images.shape[1]
    scale = torch.ones(channels, dtype=_statistics(images), device=images.device) if weight is None else weight
    shift = torch.zeros_like(scale) if bias is None else bias
    out, mean, var, total = _SharedNorm.apply(images, scale, shift, eps, mode.ranks)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    return out


def _statistics(images: Tensor) -> torch.dtype:
    return torch.promote_types(images.dtype, torch.float32)


class _SharedNorm(torch.autograd.Function):
    """Batch norm with the statistics of all processes. torch's SyncBatchNorm does the same on GPUs, and refuses the CPU.

    Per channel, the gradient is that of a norm with fixed statistics, less its part along the mean and the variance.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Ranks) -> Any:
        mean, var = torch.batch_norm_update_stats(images, None, None, 0.0)
        number = mean.new_full((1,), images.numel() // images.shape[1], dtype=torch.float64)
        found = torch.stack(ranks.each(torch.cat([mean.double(), var.double(), number])))
        means, variances, numbers = found.tensor_split((len(mean), 2 * len(mean)), dim=1)
        total = numbers.sum()
        mean = (means * numbers).sum(0) / total
        var = ((variances + (means - mean) ** 2) * numbers).sum(0) / total
        kind = _statistics(images)
        fixed = (mean.to(kind), var.to(kind))
        ctx.save_for_backward(images, weight, *fixed, total)
        ctx.eps, ctx.ranks = eps, ranks
        out = torch.batch_norm(images, weight, bias, *fixed, False, 0.0, eps, torch.backends.cudnn.enabled)
        ctx.mark_non_differentiable(mean, var, total)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        images, weight, mean, var, total = ctx.saved_tensors
        backward = torch.ops.aten.native_batch_norm_backward
        along, of_weight, of_bias = backward(
            grads[0].contiguous(memory_format=_order(images)),
            images,
            weight,
            mean,
            var,
            None,
            None,
            False,
            ctx.eps,
            [True] * 3,
        )
        sums = ctx.ranks.add(torch.cat([of_weight, of_bias]).double()) / total
        per_weight, per_bias = sums.to(mean.dtype).tensor_split(2)
        slope = weight * (var + ctx.eps).rsqrt()
        lost = torch.batch_norm(
            images, slope * per_weight, slope * per_bias, mean, var, False, 0.0, ctx.eps, torch.backends.cudnn.enabled
        )
        return along - lost, of_weight, of_bias, None, None


def _order(images: Tensor) -> torch.memory_format:
    last = images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _dropout(
    mode: _WholeBatch, func: Any, images: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    if not training or not p or not mode.has_rows(len(images)):
        return func(images, p=p, training=training, inplace=inplace)
    one = images
    if func is not F.dropout:  # channels are dropped whole
        for dim in range(2, images.ndim):
            one = one.narrow(dim, 0, 1)
    kept = func(mode.like_whole(one).fill_(1), p=p, training=True)
    return images * mode.slice_of(kept)


def _drawn_anew(mode: _WholeBatch, func: Any, *size: Any, **options: Any) -> Any:
    shape = options.pop("size", None) or (size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
    if not shape or not mode.has_rows(int(shape[0])):
        return func(shape, **options)
    return mode.slice_of(func((mode.whole_length(int(shape[0])), *shape[1:]), **options))


def _drawn_like(mode: _WholeBatch, func: Any, images: Tensor, **options: Any) -> Any:
    if not images.ndim or not mode.has_rows(len(images)):
        return func(images, **options)
    return mode.slice_of(func(mode.like_whole(images), **options))


def _drawn_into(mode: _WholeBatch, func: Any, values: Tensor, *rest: Any, **options: Any) -> Any:
    if not values.ndim or not mode.has_rows(len(values)):
        return func(values, *rest, **options)
    return values.copy_(mode.slice_of(func(mode.like_whole(values), *rest, **options)))


def _apart(mode: _WholeBatch, func: Any, *args: Any, **options: Any) -> Any:
    place = ATTENTION.get(func)
    draws = place is None or options.get("dropout_p", args[place] if len(args) > place else 0.0)
    if draws and options.get("training", True) and func.__name__ not in mode.said:
        mode.said.add(func.__name__)
        say(
            f"note: the network draws random numbers with {func.__name__} in each process separately, so the training depends on "
            "the number of processes"
        )
    return func(*args, **options)


ATTENTION = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}  # which argument is the dropout
HANDLERS: dict[Any, Handler] = {
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _dropout),
    **dict.fromkeys((torch.rand, torch.randn), _drawn_anew),
    **dict.fromkeys((torch.rand_like, torch.randn_like), _drawn_like),
    **dict.fromkeys((Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_), _drawn_into),
    **dict.fromkeys((*ATTENTION, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu, torch.bernoulli), _apart),
}
