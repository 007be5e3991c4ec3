"""Opens models to serve them. Each kind of thing that a model can come from has its place here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from petriscope.core.errors import RequestError
from petriscope.core.files import user_path
from petriscope.core.progress import say
from petriscope.core.scale import ESTIMATED, Scale, asked_scale
from petriscope.inference.exported import open_package
from petriscope.inference.package import Package, digest, is_package
from petriscope.inference.predictor import Predictor, load_model, model_path
from petriscope.inference.scaling import ChosenScale, sentence
from petriscope.inference.verification import verify
from petriscope.models import ENSEMBLE
from petriscope.ship.server.served import Served
from petriscope.tasks import find_task, in_room
from petriscope.trust.prior import Names, Shares, parse_prior


@dataclass(frozen=True)
class Known:
    """What is known about the images that will come in; see `petriscope.api.predict`.

    Args:
        classes, prior: those that occur, or the share of each; None: nothing is known.
        scale: None: as the model reads images.
    """

    classes: Names | None = None
    prior: Shares | None = None
    scale: Scale | None = None

    def applied(self, predictor: Predictor, name: str) -> Predictor:
        """The model for such images. What is assumed is said.

        Raises:
            RequestError: it does not fit the model.
        """
        if (scale := asked_scale(self.scale)) == ESTIMATED:
            raise RequestError(
                "a server cannot estimate the scale of images before they come in: petriscope predict --scale estimated says "
                "what it is for some of them; give that as --scale"
            )
        prior = parse_prior(predictor.classes, self.classes, self.prior)
        predictor = predictor.under(prior)
        if prior is not None:
            say(f"note: {name}: {prior.sentence()}")
        if scale is not None:
            predictor = predictor.at_scale(scale)
            say(f"note: {name}: {sentence(ChosenScale(scale))}")
        return predictor


NOTHING = Known()


def open_model(path: str, device: str = "auto", known: Known = NOTHING) -> Served:
    """A run folder, a model file or a package behind the server. A package is verified first.

    Raises:
        RequestError: see `petriscope.inference.predictor.load_model`, `petriscope.inference.package.Package`, and `Known`.
        PetriscopeError: the package is not as it was exported, or answers otherwise here.
    """
    place = user_path(path)
    folder = place.parent if place.name == "model.safetensors" else place
    name = folder.resolve().name if folder.is_dir() else place.stem
    if is_package(place):
        say(f"{name}: verifying the package on its test images")
        verify(place)
        package = Package(place)
        task = in_room(find_task(package.manifest.task), "ship.server")
        packed: Served = task.of_package(package, name)
        if known == NOTHING:
            return packed
        predictor: Predictor = open_package(place)  # whose probabilities can be changed
        fingerprint = package.manifest.fingerprint
    else:
        predictor, fingerprint = load_model(path, device), digest(model_path(place))
    predictor = known.applied(predictor, name)
    adapts = predictor.recipe.model.name != ENSEMBLE
    served: Served = in_room(predictor.task, "ship.server").of_run(predictor, name, fingerprint, adapts)
    return served


def open_models(paths: Sequence[str], device: str = "auto", known: Known = NOTHING) -> list[Served]:
    """`open_model` for each path.

    Raises:
        RequestError: two models have one name, so that a request could not say which it wants.
    """
    models = [open_model(path, device, known) for path in paths]
    names = [model.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"two models are called {twice[0]}; rename the folder or the file of one of them")
    return models
