"""Does a package answer as the run did, on images of val that the user has?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np

from petriscope.core.errors import DataError, PetriscopeError, RequestError
from petriscope.core.files import parsing, user_path
from petriscope.core.progress import progress
from petriscope.data.load import load_dataset
from petriscope.data.membership import unpack
from petriscope.experiments.own_data import section_elsewhere
from petriscope.inference.exported import open_package
from petriscope.inference.package import TESTS, read_arrays
from petriscope.inference.verification import OF_VAL, Differences, compare_outputs

BLOCK = 256  # images at a time


@dataclass(frozen=True)
class OnVal:
    """How a package answers on images of val.

    Args:
        images: that were found and compared; of: whose answers the package keeps.
        largest_difference: of a probability.
        source: where they are.
    """

    images: int
    of: int
    largest_difference: float
    source: str

    def as_json(self) -> dict[str, Any]:
        """A tree of JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """The same for people."""
        return (
            f"{self.images:,} of {self.of:,} images of val whose answers the package keeps are in {self.source}: equal answers; "
            f"probabilities differ by {self.largest_difference:.1e} at most"
        )


def verify_on(folder: str | PathLike[str], source: str, quiet: bool = False) -> OnVal:
    """Compare what a package answers with what the run answered, on those images of a source that were in val. They are
    recognized by their content, whatever split they are in.

    Args:
        folder: of the package.
        source: as `petriscope train` takes it; of a recipe with several sources, ``DOMAIN=SOURCE,...``.

    Raises:
        RequestError: there is no package, no such source, or the package keeps no answers on val.
        DataError: none of the images is in the source.
        PetriscopeError: answers differ.
    """
    predictor = open_package(user_path(folder))
    package, path = predictor.package, predictor.package.folder / TESTS / OF_VAL
    if not path.is_file():
        raise RequestError(f"{package.folder} keeps no answers on images of val, because its run had none")
    arrays = read_arrays(path)
    with parsing(path, "export the package again"):
        known = {each: row for row, each in enumerate(unpack(arrays.pop("digests")))}
    section = section_elsewhere(predictor.recipe.data, source, predictor.shape).model_copy(update={"audit": None})
    found, rows = Differences(), set[int]()
    sets = [part for part in load_dataset(section).splits.values() if part is not None]
    with progress("" if quiet else "comparing with the run", sum(map(len, sets))) as bar:
        for part in sets:
            digests = part.digests()
            here = np.array([row for row, each in enumerate(digests) if each in known], np.int64)
            for start in range(0, len(here), BLOCK):
                block = here[start : start + BLOCK]
                places = [known[digests[row]] for row in block.tolist()]
                expected = {name: values[places] for name, values in arrays.items()}
                names = [str(name) for name in part.ids[block]]
                compare_outputs(package, part.take(block), expected, names, len(block), found)
                rows.update(places)
            if not quiet:
                bar.advance(len(part))
    if not rows:
        raise DataError(
            f"none of the {len(known):,} images of val whose answers {package.folder} keeps is in {source}; name the data that "
            "the run was trained on"
        )
    if wrong := found.sentence():
        raise PetriscopeError(
            f"{package.folder} does not answer as the run did. Of {len(rows):,} images of val: {wrong}; do not use it here"
        )
    return OnVal(len(rows), len(known), found.largest, source)
