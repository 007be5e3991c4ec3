"""Which images a run had in which split, and which of them its model learned from: by content, so that images are
recognized wherever they lie and whatever they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petriscope.core.names import SPLITS

FILE = "splits.parquet"
DIGEST = 16  # bytes of the hash of an image
UNKNOWN = "the model file has no record of the images that it was trained on, so it cannot be checked"


@dataclass(frozen=True)
class Exposure:
    """The images that a model has seen, as digests; see `ImageSet.digests`.

    Args:
        train: it learned from them.
        val: it was chosen by them, or its temperature and thresholds were fitted on them.
    """

    train: frozenset[bytes] = frozenset()
    val: frozenset[bytes] = frozenset()

    def __or__(self, other: Exposure) -> Exposure:
        return Exposure(self.train | other.train, self.val | other.val)

    def roles(self, digests: Iterable[bytes]) -> np.ndarray:
        """``train``, ``val`` or an empty string for each image, [N] strings."""
        return np.array(
            ["train" if each in self.train else "val" if each in self.val else "" for each in digests], dtype=np.str_
        )

    @staticmethod
    def sentence(train: int, val: int, first: str) -> str:
        """How many images the model has seen; there is at least one."""
        words = [f"learned from {train:,}"] * bool(train) + [f"was fitted on {val:,} (val)"] * bool(val)
        return f"the model {' and '.join(words)}, the first: {first}"

    def arrays(self) -> dict[str, np.ndarray]:
        """The digests of each role, uint8 [N, 16], sorted."""
        return {"train": pack(sorted(self.train)), "val": pack(sorted(self.val))}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Exposure:
        """
        Raises:
            KeyError, ValueError: an array is missing, or of another type or shape.
        """
        for role in ("train", "val"):
            if arrays[role].dtype != np.uint8 or arrays[role].shape[1:] != (DIGEST,):
                raise ValueError(f"digests of {role} must be uint8 [N, {DIGEST}]")
        return cls(frozenset(unpack(arrays["train"])), frozenset(unpack(arrays["val"])))


@dataclass(frozen=True)
class Change:
    """How a source differs from what it was when a run was trained.

    Args:
        new: ids of the images that the run did not have.
        changed: ids of the images that have other pixels now.
        relabeled: ids of the images that have another label or mask now.
        gone: ids of the images that are no longer there.
    """

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    relabeled: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = (
            (self.new, "image is new", "images are new"),
            (self.changed, "image has changed", "images have changed"),
            (self.relabeled, "image has another label or mask", "images have another label or mask"),
            (self.gone, "image is gone", "images are gone"),
        )
        return ", ".join(
            f"{len(ids):,} {one if len(ids) == 1 else many} ({'' if len(ids) == 1 else 'the first: '}{ids[0]})"
            for ids, one, many in kinds
            if ids
        )


@dataclass(frozen=True, eq=False)
class Membership:
    """The split of every image of a run.

    Args:
        splits: train, val or test, [N] strings.
        ids: as `ImageSet.ids`.
        digests: of the pixels, in the form that the run decoded them to.
        targets: the class of each image, or a hash of its mask, [N] strings.
        groups: as `ImageSet.groups`.
        used: bool [N]; False: the decisions of an audit or ``data.drop_single_class`` left the image out of its split, or
            ``data.leave_out`` an image of another domain out of test.
        domains: as `ImageSet.domains`.
    """

    splits: np.ndarray
    ids: np.ndarray
    digests: list[bytes]
    targets: np.ndarray
    groups: np.ndarray | None
    used: np.ndarray
    domains: np.ndarray | None = None

    @property
    def exposure(self) -> Exposure:
        """What a model that was trained on train and fitted on val has seen."""

        def of(split: str) -> frozenset[bytes]:
            rows = np.flatnonzero((self.splits == split) & self.used)
            return frozenset(self.digests[row] for row in rows)

        return Exposure(of("train"), of("val"))

    def joined(self, other: Membership) -> Membership:
        """The images of both, which have domains. Where only one has groups, an image of the other is a group of its own."""
        assert self.domains is not None and other.domains is not None
        grouped = self.groups is not None or other.groups is not None
        groups = [each.ids if each.groups is None else each.groups for each in (self, other)]
        return Membership(
            np.concatenate([self.splits, other.splits]),
            np.concatenate([self.ids, other.ids]),
            [*self.digests, *other.digests],
            np.concatenate([self.targets, other.targets]),
            np.concatenate(groups) if grouped else None,
            np.concatenate([self.used, other.used]),
            np.concatenate([self.domains, other.domains]),
        )

    def of_domain(self, name: str) -> Membership:
        """The images of one of several sources, called as the source calls them; all images, where none is of it."""
        if self.domains is None or name not in self.domains:
            return self
        rows = np.flatnonzero(self.domains == name)

        def bare(names: np.ndarray) -> np.ndarray:
            return np.array([each.removeprefix(f"{name}/") for each in names[rows].tolist()], dtype=np.str_)

        return Membership(
            self.splits[rows],
            bare(self.ids),
            [self.digests[row] for row in rows.tolist()],
            self.targets[rows],
            None if self.groups is None else bare(self.groups),
            self.used[rows],
        )

    def write(self, path: Path) -> None:
        """Write a Parquet table with a row per image: split, id, digest (hexadecimal), target, used, and group and domain if
        there are any."""
        import pandas as pd

        # A name that is not UTF-8 cannot be stored as it is; the image is recognized by its content.
        ids = [name.encode("utf-8", "backslashreplace").decode() for name in self.ids.tolist()]
        columns = {"split": self.splits, "id": ids, "digest": [each.hex() for each in self.digests], "used": self.used}
        columns["target"] = self.targets
        if self.groups is not None:
            columns["group"] = self.groups
        if self.domains is not None:
            columns["domain"] = self.domains
        with path.open("wb") as handle:
            pd.DataFrame(columns).to_parquet(handle, index=False, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Membership:
        """Read what `write` wrote.

        Raises:
            OSError, ValueError, KeyError: it is damaged.
        """
        import pandas as pd

        with path.open("rb") as handle:
            table = pd.read_parquet(handle)
        digests = [bytes.fromhex(each) for each in table["digest"]]
        if not set(table["split"]) <= set(SPLITS) or any(len(each) != DIGEST for each in digests):
            raise ValueError("it has unknown splits or digests")
        return cls(
            table["split"].to_numpy(np.str_),
            table["id"].to_numpy(np.str_),
            digests,
            table["target"].to_numpy(np.str_),
            table["group"].to_numpy(np.str_) if "group" in table else None,
            table["used"].to_numpy(bool),
            table["domain"].to_numpy(np.str_) if "domain" in table else None,
        )


def pack(digests: Sequence[bytes]) -> np.ndarray:
    """Digests as one array, uint8 [N, 16]."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST).copy()


def unpack(array: np.ndarray) -> list[bytes]:
    """The digests in an array, uint8 [N, 16]."""
    content = np.ascontiguousarray(array).tobytes()
    return [content[start : start + DIGEST] for start in range(0, len(content), DIGEST)]
