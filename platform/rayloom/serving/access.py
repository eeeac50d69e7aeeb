"""Who may come in: the keys of a file that may change at any time, and what each route wants of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from rayloom.errors import ConfigError
from rayloom.serving.calls import Problem
from rayloom.serving.failures import failure, path_of
from rayloom.serving.keys import ApiKey, hash_of, read_keys
from rayloom.serving.paths import is_page
from rayloom.serving.rates import Rates

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/health", "/ready"})
_LOOK_EVERY_S = 1.0
_STATE = "api_key"

Version = tuple[int, int, int]


class LiveKeys:
    """Keys of a file, read again when it changes. A file that breaks keeps the keys that were good.

    Args:
        path: The file.
        clock: Seconds, for when to look at the file again; injected by tests.

    Raises:
        ConfigError: There is no such file, or something in it is wrong.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = Path(path).expanduser(), clock
        self._looked_s, self._version = clock(), self._version_now()
        self._keys = self._read()

    def find(self, secret: bytes) -> ApiKey | None:
        """The key that a caller sent, whether it is good or not.

        The hash is looked up, so what the time of it tells is about hashes, which no caller can steer.
        """
        self._look()
        return self._keys.get(hash_of(secret))

    def _look(self) -> None:
        if self._clock() < self._looked_s + _LOOK_EVERY_S:
            return
        self._looked_s = self._clock()
        version = self._version_now()
        if version == self._version:
            return
        self._version = version  # a broken file is told of once
        try:
            self._keys = self._read()
        except ConfigError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%s: %d keys", self._path, len(self._keys))

    def _read(self) -> dict[str, ApiKey]:
        try:
            return {key.sha256: key for key in read_keys(self._path)}
        except ConfigError as error:
            raise ConfigError(f"{error}\nMake API keys with: rayloom keys create NAME --keys {self._path}") from None

    def _version_now(self) -> Version | None:
        """Differs between any two files, for keys are put in place by renaming."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


class Access:
    """The door of a service that has keys.

    Args:
        keys: Whom it knows.
        rates: What they have used.
        now: The time, for keys that expire; injected by tests.
    """

    def __init__(
        self, keys: LiveKeys, rates: Rates | None = None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._keys, self.rates, self._now = keys, rates or Rates(), now

    def admit(self, scope: Scope) -> ApiKey | Problem:
        """The key of a request that may come in, or why it may not."""
        secret = _bearer(scope)
        if secret is None:
            return _unauthorized("an API key is needed: send the header Authorization: Bearer KEY")
        key = self._keys.find(secret)
        if key is None:
            return _unauthorized("the API key is not known here")
        if why := key.why_refused(self._now()):
            return _unauthorized(f"the API key '{key.name}' {'was revoked' if why == 'revoked' else 'has expired'}")
        return _lacking(key, path_of(scope)) or key


class Guard:
    """ASGI middleware: lets nobody in without a key, before anything else is read of the request.

    Args:
        app: What is protected.
        access: Who may come in.
    """

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        # The page, where there is one, has a gate of its own: browsers send no key of themselves.
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _is_open(path_of(scope))):
            await self._app(scope, receive, send)
            return
        found = self._access.admit(scope)
        if isinstance(found, ApiKey):
            scope.setdefault("state", {})[_STATE] = found
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = {"WWW-Authenticate": "Bearer"} if found.status == 401 else None
            await failure(Request(scope), found, headers)(scope, receive, send)


def key_of(request: Request) -> ApiKey | None:
    """Whose request it is; None where no keys are asked for."""
    key: ApiKey | None = getattr(request.state, _STATE, None)
    return key


def describe_security(app: FastAPI) -> None:
    """Tell of keys in the OpenAPI document, so that the page at `/docs` asks for one."""
    describe = app.openapi

    def described() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = describe()
            schemes = {"ApiKey": {"type": "http", "scheme": "bearer"}}
            schema.setdefault("components", {})["securitySchemes"] = schemes
            schema["security"] = [{"ApiKey": []}]
            for path in OPEN_PATHS & set(schema["paths"]):
                schema["paths"][path]["get"]["security"] = []
        return describe()

    app.openapi = described  # type: ignore[method-assign]


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or is_page(path)


def _bearer(scope: Scope) -> bytes | None:
    """The key that a request brings; None for none, or for more than one, of which nobody knows which is meant."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    kind, _, secret = values[0].strip().partition(b" ")
    return secret.strip() or None if kind.lower() == b"bearer" else None


def _lacking(key: ApiKey, path: str) -> Problem | None:
    """What a key needs for a path. What is served here may be seen with any."""
    needed = "metrics" if path == "/metrics" else "generate"
    if needed in key.scopes or path == "/v1/models" or path.startswith("/v1/models/"):
        return None
    message = f"the API key '{key.name}' lacks the scope '{needed}'; it has: {', '.join(key.scopes)}"
    return Problem(403, "forbidden", message)


def _unauthorized(message: str) -> Problem:
    return Problem(401, "unauthorized", message)
