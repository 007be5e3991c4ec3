"""Weights to start from: a safetensors file, of Petriscope or of others, or a file on timm's hub."""

from __future__ import annotations

import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator
from safetensors import safe_open
from torch import Tensor, nn

from petriscope.core.errors import PetriscopeError, RequestError, listed, shortened
from petriscope.core.files import json_text, parse_json, parsing, slug, user_path, write_text
from petriscope.core.notebook import without_widgets
from petriscope.core.progress import say
from petriscope.core.results import Normalization, validated
from petriscope.data.cache import cache_dir

PROBE_SECONDS = 5.0


def _none_or_file(value: str) -> str:
    if value != "none" and not value.endswith(".safetensors"):
        raise ValueError("takes none or the path of a .safetensors file")
    return value


def _any_weights(value: str) -> str:
    if value not in ("none", "pretrained") and not value.endswith(".safetensors"):
        raise ValueError("takes none, pretrained or the path of a .safetensors file")
    return value


WeightsFile = Annotated[str, AfterValidator(_none_or_file)]
Weights = Annotated[str, AfterValidator(_any_weights)]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    Args:
        path: of the file.
        tensors: by parameter name.
        statistics: mean and std that the weights were trained with, in units of the full range; None: unknown.
    """

    path: Path
    tensors: dict[str, Tensor]
    statistics: Statistics | None


def read_weights(path: str | Path) -> WeightFile:
    """Read a safetensors file; if it is a model file of Petriscope, also the normalization.

    Raises:
        RequestError: there is no such file, or it is damaged.
    """
    path = user_path(path)
    if not path.is_file():
        raise RequestError(f"model.weights: no file {path}")
    with parsing(path, "model.weights takes a .safetensors file of weights"):
        with safe_open(path, framework="pt") as handle:
            facts = parse_json((handle.metadata() or {}).get("petriscope", "{}"))
            # A name with a slash is of what was fitted on val or of the images that were seen, not of a weight.
            names = [key for key in handle.keys() if not (facts and "/" in key)]  # noqa: SIM118 (not a mapping)
            tensors = {key: handle.get_tensor(key) for key in names}
        statistics = None
        if facts:
            found = validated(Normalization, facts, str(path))
            statistics = found.mean, found.std
        if bad := not_finite(tensors):
            raise RequestError(f"model.weights: {path} has numbers that are not finite in {bad}")
    return WeightFile(path, tensors, statistics)


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with numbers that are not finite; empty if there is none."""
    # A sum is finite only if all terms are, unless it overflows; looking at each number takes much longer.
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            return name
    return ""


def differences(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], optional: Callable[[str], bool] = lambda name: False
) -> str:
    """How tensors differ from those of a model, in words; empty if they fit it.

    Args:
        own: the state of the model, which may be on the device ``meta``.
        given: the tensors for it.
        optional: whether they may lack one, by its name.
    """
    both = [name for name in given if name in own]
    misshapen = [
        f"{name} {list(given[name].shape)} where the model has {list(own[name].shape)}"
        for name in both
        if own[name].shape != given[name].shape
    ]
    mistyped = [
        f"{name} {given[name].dtype} where the model has {own[name].dtype}"
        for name in both
        if own[name].is_floating_point() and not given[name].is_floating_point()
    ]
    found = {
        "missing": [name for name in own if name not in given and not optional(name)],
        "unexpected": [name for name in given if name not in own],
        "of another shape": misshapen,
        "of another type": mistyped,
    }
    return "; ".join(
        f"{what}: {listed([shortened(name) for name in names], 3)}" for what, names in found.items() if names
    )


def load_weights(
    model: nn.Module,
    file: WeightFile,
    head: Iterable[str],
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Load the tensors of a file into a model. Those of the head are loaded only if all of them fit; otherwise the model
    keeps its own head, because that of the file is for other classes.

    Args:
        model: to load into.
        file: the tensors.
        head: names of the modules of the head.
        optional: whether the file may lack a parameter, by its name.

    Raises:
        RequestError: the file lacks tensors of the model, has others, or has some of another shape.
    """
    own = model.state_dict()
    prefixes = tuple(f"{name}." for name in head)

    def of_head(name: str) -> bool:
        return name.startswith(prefixes)

    given = dict(file.tensors)
    heads = {name for name in [*own, *given] if of_head(name)}
    if not all(name in own and name in given and own[name].shape == given[name].shape for name in heads):
        given = {name: tensor for name, tensor in given.items() if not of_head(name)}

    def may_lack(name: str) -> bool:
        return of_head(name) or optional(name) or name.endswith("num_batches_tracked")

    if wrong := differences(own, given, may_lack):
        raise RequestError(f"model.weights: {file.path} does not fit this model; {wrong}")
    model.load_state_dict(given, strict=False)


def from_hub(repository: str, filename: str, label: str) -> Path:
    """The path of a file on a hub, downloaded on first use.

    Its revision and its SHA-256 are recorded then, in Petriscope's cache. Later uses take this revision, and refuse a file
    that is another one.

    Args:
        repository, filename: on the hub.
        label: of the model, for the message.

    Raises:
        PetriscopeError: it is not in the cache, and the hub cannot be reached within seconds; or it is not the file that
            was recorded.
    """
    with without_widgets():
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    record = cache_dir() / "hub" / f"{slug(f'{repository}--{filename}')}.json"
    noted = _recorded(record)
    revision = noted.get("revision") or None
    cached = try_to_load_from_cache(repository, filename, revision=revision)
    if isinstance(cached, str):
        return _checked(Path(cached), noted, record, label)
    page = f"{constants.ENDPOINT}/{repository}"
    advice = (
        f"download {filename} from {page} where there is a network and set model.weights=PATH.safetensors, "
        "or train from scratch with model.weights=none"
    )
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT):
        raise PetriscopeError(
            f"{label}: the pretrained weights are not on this machine, and the hub cannot be reached; {advice}"
        )
    try:
        path = Path(hf_hub_download(repository, filename, revision=revision))
    except Exception as error:  # the hub's client raises its own errors and those of its HTTP library
        raise PetriscopeError(f"{label}: downloading the pretrained weights failed ({error}); {advice}") from None
    return _checked(path, noted, record, label)


def _recorded(record: Path) -> dict[str, str]:
    if not record.is_file():
        return {}
    with parsing(record, "delete it to record the weights anew"):
        noted = parse_json(record.read_bytes())
        return {key: str(noted[key]) for key in ("revision", "sha256")}


def _checked(path: Path, noted: dict[str, str], record: Path, label: str) -> Path:
    """The path, if its content is what was recorded; on first use, it is recorded."""
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if noted and noted["sha256"] != found:
        raise PetriscopeError(
            f"{label}: {path} is not the file that was used before: its SHA-256 is {found}, and {noted['sha256']} is recorded "
            f"in {record}. Delete the file to download that one again, or the record to trust this one"
        )
    if not noted:
        folders = path.parts
        revision = folders[folders.index("snapshots") + 1] if "snapshots" in folders[:-2] else ""
        try:
            write_text(record, json_text({"revision": revision, "sha256": found}))
        except PetriscopeError as error:
            say(f"warning: the weights of {label} are used, but not recorded to be checked later: {error}")
    return path


def reachable(address: str) -> bool:
    """Whether a server responds at an address within seconds."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS):
                answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)  # a refusal is a response of the server; "bad gateway" is one of a proxy
        except (OSError, ValueError):
            answers.append(False)

    # In a thread, because name resolution has no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * PROBE_SECONDS)
    return answers == [True]
