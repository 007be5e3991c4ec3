"""Loads models and serves them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from os import PathLike

from petriscope.core.arguments import checked_arguments
from petriscope.core.errors import RequestError
from petriscope.core.files import path_text
from petriscope.core.progress import say
from petriscope.core.scale import Scale
from petriscope.ship.server.limits import Limits
from petriscope.trust.prior import Names, Shares

MISSING = "the server needs more packages: pip install 'petriscope[serve]'"


@checked_arguments
def serve(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str = "",
    device: str = "auto",
    limits: Limits | None = None,
    classes: Names | None = None,
    prior: Shares | None = None,
    scale: Scale | None = None,
) -> None:
    """Serve models over HTTP until SIGTERM or SIGINT.

    Args:
        models: a run folder, a model file or a package, or several.
        token: that requests must carry; an empty string: none.
        classes, prior, scale: of the images that will come in, for all models; see `petriscope.api.predict`.

    Raises:
        RequestError: a package is missing, or a model cannot be served.
        PetriscopeError: the address cannot be used.
    """
    each = [models] if isinstance(models, str | PathLike) else list(models)
    if not each:
        raise RequestError("name the models to serve: run folders, model files or packages")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RequestError(f"{MISSING} ({error.name} is missing)") from None
    from petriscope.ship.server.opening import Known, open_models
    from petriscope.ship.server.running import run
    from petriscope.ship.server.web import create_app

    opened = open_models([path_text(model) for model in each], device, Known(classes, prior, scale))
    if not token and not _is_loopback(host):
        say(
            f"warning: anybody who can reach {host}, port {port}, can use the server; ask for a token with --token or "
            "PETRISCOPE_TOKEN"
        )
    run(create_app(opened, limits, token, local=not token and _is_loopback(host)), host, port)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
