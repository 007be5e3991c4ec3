"""Opens models to serve them. Each kind of thing that a model can come from has its place here."""

from __future__ import annotations

from collections.abc import Sequence

from petriscope.core.errors import RequestError
from petriscope.core.files import user_path
from petriscope.inference.package import Package, digest, is_package
from petriscope.inference.predictor import load_model, model_path
from petriscope.inference.verification import verify
from petriscope.models import ENSEMBLE
from petriscope.ship.server.served import Served
from petriscope.tasks import find_task, in_room


def open_model(path: str, device: str = "auto") -> Served:
    """A run folder, a model file or a package behind the server. A package is verified first.

    Raises:
        RequestError: see `petriscope.inference.predictor.load_model` and `petriscope.inference.package.Package`.
        PetriscopeError: the package is not as it was exported, or answers otherwise here.
    """
    place = user_path(path)
    if is_package(place):
        verify(place)
        package = Package(place)
        task = in_room(find_task(package.manifest.task), "ship.server")
        packed: Served = task.of_package(package, place.resolve().name)
        return packed
    predictor = load_model(path, device)
    folder = place.parent if place.name == "model.safetensors" else place
    name = folder.resolve().name if folder.is_dir() else place.stem
    adapts = predictor.recipe.model.name != ENSEMBLE
    task = in_room(predictor.task, "ship.server")
    model: Served = task.of_run(predictor, name, digest(model_path(place)), adapts)
    return model


def open_models(paths: Sequence[str], device: str = "auto") -> list[Served]:
    """`open_model` for each path.

    Raises:
        RequestError: two models have one name, so that a request could not say which it wants.
    """
    models = [open_model(path, device) for path in paths]
    names = [model.name for model in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"two models are called {twice[0]}; rename the folder or the file of one of them")
    return models
