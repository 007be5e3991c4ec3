"""Checkpoints: all that resuming needs, in one safetensors file that is written atomically."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from petriscope.core.errors import PetriscopeError
from petriscope.core.files import atomic, json_text, parse_json, parsing
from petriscope.models.weights import differences

Tree = dict[str, Any]


def save_checkpoint(path: Path, tensors: dict[str, dict[str, Tensor]], facts: Tree) -> None:
    """Write groups of tensors and JSON facts atomically.

    Args:
        tensors: tensors by name and by group: ``{"model": model.state_dict(), ...}``.
        facts: everything else, such as the position and the history, as plain JSON values.
    """
    flat = {
        f"{group}/{name}": tensor.detach().contiguous().cpu().clone()
        for group, members in tensors.items()
        for name, tensor in members.items()
    }
    with atomic(path) as temporary:
        save_file(flat, temporary, metadata={"facts": json_text(facts)})


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], Tree]:
    """Read a file written by `save_checkpoint`.

    Raises:
        PetriscopeError: the file is damaged.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    with restoring(path), safe_open(path, framework="pt") as handle:
        facts = parse_json((handle.metadata() or {})["facts"])
        for key in handle.keys():  # noqa: SIM118 (not a mapping)
            group, _, name = key.partition("/")
            tensors.setdefault(group, {})[name] = handle.get_tensor(key)
    return tensors, facts


def restoring(path: Path) -> AbstractContextManager[None]:
    """Within, a checkpoint that is damaged, or of another model, is a `PetriscopeError` that says what to do."""
    return parsing(path, "delete it to train this run from the start", PetriscopeError)


def fitting(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint, which must be those of this model.

    Raises:
        ValueError: they are of another model.
    """
    if wrong := differences(model.state_dict(), tensors):
        raise ValueError(f"its weights do not fit the model of recipe.yaml; {wrong}")
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Tree]:
    """The state of an optimizer: tensors by the name ``index.name``, and the rest as JSON values."""
    tensors, rest = {}, {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is not None:
                rest[f"{index}.{name}"] = value
    return tensors, rest


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: Tree) -> None:
    """Restore a state from `optimizer_tensors`. Moments get the memory layout of their weights, because fused steps read
    both in memory order and would pair the wrong numbers if the layouts differed."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, Tree] = {}
    for key, value in {**tensors, **rest}.items():
        number, _, name = key.partition(".")
        weight = weights[int(number)]
        if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
            raise ValueError(
                f"{key} of the optimizer has the shape {list(value.shape)}, its weight {list(weight.shape)}"
            )
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(number), {})[name] = value
    full = optimizer.state_dict()
    full["state"] = state
    optimizer.load_state_dict(full)
