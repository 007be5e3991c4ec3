"""Fine-tuning: which parts of a model are trained, from which epoch, and with which learning rate.

A phrase names the parts to train, for every model in the same way. The head is always trained.

- ``all``, ``head``;
- ``last 2 blocks``: the last two repeated units of the backbone, and everything after them;
- ``last 140 layers``, ``last 30 %``: counted over the backbone's layers that have parameters, and everything after them;
- the name of a module, such as ``layer4`` or ``blocks.5``;
- several of these, separated by commas.

The other parts are frozen: they get no gradient, and their batch norm and dropout are in evaluation mode.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from petriscope.core.errors import RequestError, near
from petriscope.core.recipe import FinetuneSection
from petriscope.models.layers import head_of, ordered_blocks, ordered_layers

LAST = re.compile(r"last\s+(\d+(?:\.\d+)?)\s*(blocks?|layers?|%)")


@dataclass(frozen=True)
class Stage:
    """The parameters that are trained from an epoch on.

    Args:
        epoch: first epoch, counted from 0.
        names: names of the trained parameters.
        lr: factor on the learning rate.
    """

    epoch: int
    names: frozenset[str]
    lr: float


class Plan:
    """The stages of fine-tuning a model, in order of their first epochs.

    Raises:
        RequestError: a phrase names a part that the model does not have.
    """

    def __init__(self, model: nn.Module, section: FinetuneSection, epochs: int) -> None:
        self.model, self.section = model, section
        phrases = [(0, section.train, 1.0), *((stage.epoch, stage.train, stage.lr) for stage in section.then)]
        if section.unfreeze_every is not None:
            blocks = range(1, len(ordered_blocks(model)) + 1)
            phrases += [(count * section.unfreeze_every, f"last {count} blocks", 1.0) for count in blocks]
            phrases.append(((len(blocks) + 1) * section.unfreeze_every, "all", 1.0))
        stages = sorted((epoch, phrase, lr) for epoch, phrase, lr in phrases if epoch < epochs)
        self.stages = [Stage(epoch, trained(model, phrase), lr) for epoch, phrase, lr in stages]
        # The first epochs of stages that are not reached.
        self.late = sorted(stage.epoch for stage in section.then if stage.epoch >= epochs)

    def stage(self, epoch: int) -> Stage:
        """The stage of an epoch, counted from 0."""
        return [stage for stage in self.stages if stage.epoch <= epoch][-1]

    @property
    def ever(self) -> frozenset[str]:
        """Names of the parameters that are trained in any stage."""
        return frozenset().union(*(stage.names for stage in self.stages))

    def freeze(self, names: frozenset[str]) -> None:
        """Make only the named parameters trainable, and put frozen modules into evaluation mode."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        self.model.train()
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()

    def split_rates(self, optimizer: Optimizer) -> None:
        """Give each block its own learning rate: a factor of 1 for the head, ``lr_decay`` for the last block, its square for
        the block before, and so on. Howard and Ruder, 2018, arXiv:1801.06146."""
        if self.section.lr_decay == 1:
            return
        depth = _depths(self.model)
        groups = []
        for group in optimizer.param_groups:
            by_depth: dict[int, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_depth.setdefault(depth[id(parameter)], []).append(parameter)
            for steps, members in sorted(by_depth.items()):
                groups.append({**group, "params": members, "lr": group["lr"] * self.section.lr_decay**steps})
        optimizer.param_groups[:] = groups

    def describe(self, epoch: int) -> str:
        """The number of layers and parameters trained in an epoch, as text."""
        names = self.stage(epoch).names
        layers = ordered_layers(self.model)
        live = sum(not names.isdisjoint(_own(name, layer)) for name, layer in layers)
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        count, total = sum(sizes[name] for name in names), sum(sizes.values())
        share = 100 * count / total
        digits = f"{share:.1f}" if share >= 1 else f"{share:.2g}"
        return f"{live} of {len(layers)} layers, {count:,} of {total:,} parameters ({digits} %)"


def trained(model: nn.Module, phrase: str) -> frozenset[str]:
    """Names of the parameters that a phrase selects.

    Raises:
        RequestError: the phrase names a part that the model does not have, or more blocks or layers than there are.
    """
    heads = head_of(model)
    names = _below(model, heads)
    for term in (part.strip() for part in phrase.split(",")):
        if term == "all":
            return frozenset(name for name, _ in model.named_parameters())
        if term == "head":
            continue
        names |= _last(model, term, heads) if LAST.fullmatch(term) else _named(model, term)
    return frozenset(names)


def _last(model: nn.Module, term: str, heads: list[str]) -> set[str]:
    match = LAST.fullmatch(term)
    assert match is not None
    number, unit = float(match[1]), match[2].rstrip("s")
    layers = ordered_layers(model)
    body = [i for i, (name, _) in enumerate(layers) if not _within(name, heads)]
    if unit == "block":
        blocks = ordered_blocks(model)
        count, available = int(number), len(blocks)
    else:
        available = len(body)
        count = math.ceil(number / 100 * available) if unit == "%" else int(number)
    if count > available:
        raise RequestError(f"finetune.train is {term!r}, but the model has only {available} {unit}s before its head")
    if count == 0:
        return set()
    if unit == "block":
        first = {id(p) for p in blocks[-count][1].parameters()}
        start = next(i for i in body if any(id(p) in first for p in layers[i][1].parameters(recurse=False)))
    else:
        start = body[-count]
    return set().union(*(_own(name, layer) for name, layer in layers[start:]))


def _named(model: nn.Module, term: str) -> set[str]:
    names = _below(model, [term, f"backbone.{term}"])  # the network may be wrapped, by resizing or with another head
    if not names:
        known = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
        raise RequestError(
            f"finetune.train: the model has no part {term!r}; {near(term, known)} "
            "(or: all, head, last 2 blocks, last 140 layers, last 30 %)"
        )
    return names


def _depths(model: nn.Module) -> dict[int, int]:
    """The number of blocks between each parameter and the logits, by the id of the parameter."""
    blocks = ordered_blocks(model)
    block_of = {id(p): number for number, (_, block) in enumerate(blocks) for p in block.parameters()}
    depths: dict[int, int] = {}
    heads, reached = head_of(model), len(blocks) + 1
    for name, layer in ordered_layers(model):
        for parameter in layer.parameters(recurse=False):
            if id(parameter) in block_of:
                reached = len(blocks) - block_of[id(parameter)]
            after = id(parameter) not in block_of and (reached == 1 or _within(name, heads))
            depths[id(parameter)] = 0 if after else reached
    return depths


def _below(model: nn.Module, modules: list[str]) -> set[str]:
    return {name for name, _ in model.named_parameters() if _within(name, modules)}


def _within(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _own(name: str, layer: nn.Module) -> set[str]:
    """The full names of a layer's own parameters."""
    return {full for full, _ in layer.named_parameters(prefix=name, recurse=False)}
