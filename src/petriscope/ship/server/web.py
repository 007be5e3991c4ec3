"""The application: its paths, and what they take and give."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from petriscope.core.drawing import shown
from petriscope.core.errors import RequestError, near
from petriscope.core.version import __version__
from petriscope.data.decode import workers
from petriscope.inference.decoding import DecodedFile
from petriscope.ship.server.counters import Counters
from petriscope.ship.server.gate import FACTS, FAILED, HEADERS, Facts, Gate, on_disconnect, on_refusal, refused
from petriscope.ship.server.lane import Lane
from petriscope.ship.server.limits import Limits, Refusal
from petriscope.ship.server.reading import Body, Held, Upload, client_left, drain, read_body
from petriscope.ship.server.served import Asked, Row, Served, check_pixels
from petriscope.ship.server.trial import try_out
from petriscope.ship.server.watch import Guarantee

ABOUT = (
    "Predictions with an answer, or the reason to abstain, for images and with the guarantees of `petriscope predict`."
)
IMAGES = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        }
    },
    "image/png": {"schema": {"type": "string", "format": "binary"}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
TURNS = 4  # of the loop, in which it sees that a client has left right after it had sent its request

M = TypeVar("M", bound=BaseModel)


class Options(Asked):
    """The options of `POST /predict`, in the query or as fields of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str | None = Field(None, description="The name of a model; default: the first one.")

    @property
    def asked(self) -> Asked:
        return Asked(max_error=self.max_error, coverage=self.coverage, without_guarantee=self.without_guarantee)


class OverlayOptions(BaseModel):
    """The options of `POST /overlay`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str | None = Field(None, description="The name of a model; default: the first one.")
    plain: bool = Field(False, description="The image alone, as the model sees it.")


class Answers(BaseModel):
    """What `POST /predict` gives.

    Args:
        fingerprint: sha-256 of what the model was loaded from.
        notes: what is guaranteed, a sentence each.
        guarantee: whether guarantees hold for the images that come in; only if one was asked for.
    """

    model: str
    fingerprint: str
    rows: list[Row]
    notes: list[str] = []
    guarantee: Guarantee | None = None
    error: str | None = None


class Described(BaseModel):
    """One model of `GET /models`.

    Args:
        shape: height, width and channels that images are brought to.
        max_errors, coverages: that can be asked for; other values between 0 and 1 can be, too.
        overlays: whether `POST /overlay` can show where it looked, or its mask.
        unshown: why it cannot; empty where it can.
        assumed: what was said about the classes and the scale of the images that come in.
        colors: of the classes in overlays of masks; of others none.
        guarantee: null for models that guarantee nothing.
    """

    name: str
    fingerprint: str
    task: str
    classes: list[str]
    shape: tuple[int, int, int]
    max_errors: list[float]
    coverages: list[float]
    overlays: bool
    unshown: str
    assumed: str
    colors: list[str]
    guarantee: Guarantee | None


class Models(BaseModel):
    """What `GET /models` gives."""

    version: str
    models: list[Described]
    limits: dict[str, float]


class Failure(BaseModel):
    """What went wrong.

    Args:
        limit: the limit that the request went beyond, if it did.
    """

    error: str
    limit: str | None = None


FAILURES: dict[int | str, dict[str, Any]] = {
    401: {"model": Failure, "description": "The token is missing or wrong."},
    408: {"model": Failure, "description": "The body did not arrive in time."},
    413: {"model": Failure, "description": "The request is too large."},
    415: {"model": Failure, "description": "The content type is none of those that are taken."},
    422: {"model": Failure, "description": "An option is wrong, or no image can be read."},
    429: {"model": Failure, "description": "Too many images are waiting."},
    503: {"model": Failure, "description": "The server is starting, busy or stopping."},
}


def create_app(
    models: Sequence[Served],
    limits: Limits | None = None,
    token: str = "",
    attempt: Callable[[Served, int], None] = try_out,
    local: bool = False,
) -> Gate:
    """The application for some models, at least one, which have different names.

    Args:
        token: that requests must carry; an empty string: none.
        attempt: tries a model, with the largest batch, before it is used.
        local: answer requests to localhost, or to an address, alone.
    """
    limits, counters = limits or Limits(), Counters()
    server = _Server(models, limits, counters, attempt)
    app = FastAPI(
        title="Petriscope",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=server.lifespan,
    )
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_failure)

    app.post(
        "/predict",
        response_model=Answers,
        responses=FAILURES,
        openapi_extra={"parameters": _parameters(Options), "requestBody": {"required": True, "content": IMAGES}},
    )(server.predict)
    app.post(
        "/overlay",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}, "description": "A PNG file."}, **FAILURES},
        openapi_extra={"parameters": _parameters(OverlayOptions), "requestBody": {"required": True, "content": IMAGES}},
    )(server.overlay)

    @app.get("/models", response_model=Models)
    async def models_() -> Response:
        """The models, and whether their guarantees hold for the images that come in."""
        return _json(server.describe())

    @app.get("/health/live")
    async def live() -> Response:
        """200 while the process answers."""
        return JSONResponse({"status": "live"}, headers=HEADERS)

    @app.get("/health/ready", responses={503: {"model": Failure}})
    async def ready() -> Response:
        """200 when all models were loaded and tried, until the server stops."""
        server.check_ready()
        return JSONResponse({"status": "ready"}, headers=HEADERS)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters in the format of Prometheus."""
        for lane in server.lanes.values():
            counters.queue.labels(lane.served.name).set(lane.pending)
        return Response(counters.text(), media_type=CONTENT_TYPE_LATEST)

    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        app.get(path, include_in_schema=False, response_class=HTMLResponse)(_page(name))
    paths = frozenset(str(getattr(route, "path", "")) for route in app.routes)
    direct = {("POST", "/predict"): server.predict}
    return Gate(app, paths, direct, counters, limits, token, server.lanes, local)


class _Server:
    """The models and what the paths do with them."""

    def __init__(
        self, models: Sequence[Served], limits: Limits, counters: Counters, attempt: Callable[[Served, int], None]
    ) -> None:
        self.limits, self.attempt = limits, attempt
        self.pool = ThreadPoolExecutor(workers(), "decoding")
        self.lanes = {model.name: Lane(model, limits, counters, self.pool) for model in models}
        self.held = Held(limits.held_bytes)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        for lane in self.lanes.values():
            lane.start(self.attempt)
        yield
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self.pool.shutdown()
        for lane in self.lanes.values():
            lane.stop()

    def check_ready(self) -> None:
        for lane in self.lanes.values():
            _check_ready(lane)

    def describe(self) -> Models:
        return Models(
            version=__version__,
            models=[_described(lane) for lane in self.lanes.values()],
            limits=asdict(self.limits),
        )

    async def predict(self, request: Request) -> Response:
        """Predict images: one row per image."""
        deadline = time.monotonic() + self.limits.deadline
        with _Reading(self, request) as reading:
            body = await reading.read()
            options = _validated(Options, request, body)
            lane = self._lane(options.model, reading.facts)
            return await _answers(lane, body.files, options.asked, deadline, reading.gone)

    async def overlay(self, request: Request) -> Response:
        """Where the model looked, or its mask, on one image."""
        deadline = time.monotonic() + self.limits.deadline
        with _Reading(self, request) as reading:
            body = await reading.read()
            options = _validated(OverlayOptions, request, body)
            lane = self._lane(options.model, reading.facts)
            if len(body.files) > 1:
                raise Refusal(413, "an overlay is of one image; send one at a time", "files")
            file, served = body.files[0], lane.served

            def decode() -> DecodedFile:
                check_pixels(file.name, file.content, self.limits.pixels)
                return served.decode(file.name, file.content)

            try:
                decoding = asyncio.get_running_loop().run_in_executor(self.pool, decode)
                image = await lane.wait_for(decoding, deadline, reading.gone)
                if options.plain:
                    return _png(shown(image.pixels, served.reading.channels))
                return _png(await lane.call(lambda: served.overlay(image), deadline, reading.gone))
            except RequestError as error:
                raise Refusal(422, str(error)) from None

    def _lane(self, name: str | None, facts: Facts) -> Lane:
        lane = next(iter(self.lanes.values())) if name is None else self.lanes.get(name)
        if lane is None:
            raise Refusal(422, f"there is no model {str(name)[:60]!r}; {near(str(name)[:60], self.lanes)}")
        _check_ready(lane)
        facts.model = lane.served.name
        return lane


class _Reading:
    """Reads the body of a request, and gives back the memory that it takes when the request is answered.

    Attributes:
        gone: from when the body was read, whether the client has left.
    """

    gone: asyncio.Future[None]

    def __init__(self, server: _Server, request: Request) -> None:
        self.server, self.request = server, request
        self.body = Body(server.held)
        self.facts: Facts = request.scope[FACTS]

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.close()
        if hasattr(self, "gone"):
            self.gone.cancel()

    async def read(self) -> Body:
        limits = self.server.limits
        try:
            await read_body(self.request, self.body, limits)
        except TimeoutError:
            raise Refusal(
                408, f"the body of the request did not arrive within {limits.deadline:g} s", "deadline"
            ) from None
        except Refusal as refusal:
            self.body.close()
            refusal.ended = await drain(self.request, limits.body_bytes)
            raise
        finally:
            self.facts.bytes, self.facts.images = self.body.size, len(self.body.files)
        self.gone = asyncio.ensure_future(client_left(self.request))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self.gone.done():
            raise ClientDisconnect
        return self.body


async def _answers(
    lane: Lane, files: Sequence[Upload], asked: Asked, deadline: float, gone: asyncio.Future[None]
) -> Response:
    served, state = lane.served, lane.state()
    if asked.without_guarantee and not asked.guarantees:
        raise Refusal(422, "without_guarantee needs max_error or coverage: without them, nothing is guaranteed")
    try:
        rules = await lane.rules(asked, state.withdrawn)
    except RequestError as error:
        raise Refusal(422, str(error)) from None
    rows, failed = await lane.predict(files, rules, deadline, gone)
    told: dict[str, Any] = {"model": served.name, "fingerprint": served.fingerprint, "rows": rows}
    if asked.guarantees:
        told |= {"notes": list(rules.notes), "guarantee": state.describe(served, asked.without_guarantee)}
    if failed == len(rows):
        return _json(Answers(**told, error="the model failed; the log of the server says why"), 500)
    if all(row.error is not None for row in rows):
        which = (
            rows[0].error
            if len(rows) == 1
            else f"none of the {len(rows):,} images can be read, the first: {rows[0].error}"
        )
        return _json(Answers(**told, error=which), 422)
    return _json(Answers(**told))


def _check_ready(lane: Lane) -> None:
    if lane.broken:
        raise Refusal(503, f"{lane.served.name} cannot be used: {lane.broken}")
    if not lane.ready:
        raise Refusal(503, f"{lane.served.name} is being tried; try again in a few seconds", retry_after=2)


def _described(lane: Lane) -> Described:
    served = lane.served
    return Described(
        name=served.name,
        fingerprint=served.fingerprint,
        task=served.task,
        classes=list(served.classes),
        shape=served.shape,
        max_errors=list(served.max_errors),
        coverages=list(served.coverages),
        overlays=not served.unshown,
        unshown=served.unshown,
        assumed=served.assumed.get("assumed", ""),
        colors=list(served.colors),
        guarantee=lane.state().describe(served, without_guarantee=False) if served.max_errors else None,
    )


def _validated(kind: type[M], request: Request, body: Body) -> M:
    given: dict[str, str] = {}
    for name, value in (*request.query_params.multi_items(), *body.fields):
        if given.setdefault(name, value) != value:
            raise Refusal(422, f"{name[:60]} is given twice, with different values; give it once")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise Refusal(422, _sentence(error.errors())) from None


def _sentence(errors: Sequence[Any]) -> str:
    def one(found: Any) -> str:
        place = ".".join(str(part)[:60] for part in found["loc"])
        unknown = "there is no such option" if found["type"] == "extra_forbidden" else found["msg"]
        return f"{place}: {unknown}"

    return "; ".join(map(one, errors[:3]))


def _parameters(kind: type[BaseModel]) -> list[dict[str, Any]]:
    """The options as OpenAPI describes parameters of the query."""
    properties = kind.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "description": schema.pop("description"), "schema": schema}
        for name, schema in properties.items()
    ]


def _json(content: BaseModel, status: int = 200) -> Response:
    return Response(content.model_dump_json(exclude_unset=True), status, HEADERS, "application/json")


def _png(pixels: np.ndarray) -> Response:
    out = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels).save(out, "PNG")
    return Response(out.getvalue(), media_type="image/png", headers=HEADERS)


def _page(name: str) -> Callable[[], Any]:
    """A page that loads nothing from elsewhere, with a policy that allows nothing else: only its own script and style run."""
    text = files("petriscope.ship.server").joinpath(name).read_text(encoding="utf-8")

    def allowed(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def page() -> Response:
        return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": policy})

    return page


async def _on_refusal(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return on_refusal(refusal)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refused(Refusal(422, _sentence(error.errors())))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is no such path; see /docs", 405: f"this path does not take {request.method[:10]}; see /docs"}
    return refused(Refusal(error.status_code, said.get(error.status_code, str(error.detail)[:200])))


async def _on_failure(_: Request, error: Exception) -> Response:
    return refused(Refusal(500, FAILED))  # the error is raised again, and logged by `Gate`


async def _on_disconnect(_: Request, error: Exception) -> Response:
    return on_disconnect()
