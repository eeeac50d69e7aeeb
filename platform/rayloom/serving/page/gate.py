"""What is in front of the page: a key where the service has keys, and only those of Gradio's routes that it needs."""

from __future__ import annotations

import base64
import html
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayloom.serving.access import Access
from rayloom.serving.failures import path_of
from rayloom.serving.keys import ApiKey
from rayloom.serving.paths import PAGE, is_page

COOKIE = "rayloom_key"
_ICON = "/favicon.ico"
"""Browsers ask for one, whatever the page says."""
LOGIN, LOGOUT = f"{PAGE}/login", f"{PAGE}/logout"

_FILES = ("/static/", "/assets/", "/svelte/")
_ROUTES = frozenset(
    {"", "/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
    | {f"/gradio_api/{name}" for name in ("queue/join", "queue/data", "cancel", "reset", "info", "theme.css",
                                          "startup-events", "app_id", "app_id/", "login_check", "login_check/")}
)  # fmt: skip
_HEADERS = {
    # Gradio's own scripts are inline, and it makes workers of blobs. Nothing comes from, or goes to, another place.
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Rayloom</title><style>
body {{ font-family: system-ui, sans-serif; max-width: 24rem; margin: 4rem auto; padding: 0 1rem;
       color-scheme: light dark }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .6rem; margin-top: .6rem }}
p.error {{ color: #c00 }}
</style></head><body><h1>Rayloom</h1>
<form method="post" action="{action}"><label>API key
<input type="password" name="key" autocomplete="current-password" required autofocus></label>
<button>Open</button></form>{error}</body></html>"""


class Gate:
    """ASGI middleware: lets nobody onto the page without a key, and nobody to what the page does not need.

    Args:
        app: What is behind it.
        access: Who may come in; None where no keys are asked for.
    """

    def __init__(self, app: ASGIApp, *, access: Access | None) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and path_of(scope) == _ICON:
            await Response(status_code=204)(scope, receive, send)
            return
        if scope["type"] == "lifespan" or not is_page(path := path_of(scope)):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        refused = self._refusal(scope, path)
        await (refused or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope, path: str) -> Response | None:
        if path in (LOGIN, LOGOUT):
            return None
        below = path.removeprefix(PAGE)
        if below not in _ROUTES and not below.startswith((*_FILES, "/gradio_api/heartbeat/")):
            return PlainTextResponse("not part of the page", status_code=404)
        if self._access is None or isinstance(self._access.admit(_as_caller(scope)), ApiKey):
            return None
        if below in ("", "/"):
            return RedirectResponse(f"{scope.get('root_path', '')}{LOGIN}", status_code=303)
        return PlainTextResponse("sign in with an API key", status_code=401)


def add_login(app: FastAPI, access: Access) -> None:
    """Add the form that asks for a key. The key is kept in a cookie that scripts cannot read and other sites not send.

    Args:
        app: The application.
        access: Who may come in.
    """

    @app.get(LOGIN, include_in_schema=False)
    async def form(request: Request) -> HTMLResponse:
        return _form(request)

    @app.post(LOGIN, include_in_schema=False)
    async def login(request: Request) -> Response:
        given = parse_qs((await request.body()).decode("latin-1")).get("key", [""])[0].strip()
        found = access.admit(_with_key(given))
        if not isinstance(found, ApiKey):
            return _form(request, found.message, found.status)
        root = request.scope.get("root_path", "")
        response = RedirectResponse(f"{root}{PAGE}/", status_code=303)
        is_secure = request.url.scheme == "https"
        value = base64.urlsafe_b64encode(given.encode()).decode()
        response.set_cookie(COOKIE, value, path=f"{root}{PAGE}", httponly=True, samesite="strict", secure=is_secure)
        return response

    @app.get(LOGOUT, include_in_schema=False)
    async def logout(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        response = RedirectResponse(f"{root}{LOGIN}", status_code=303)
        response.delete_cookie(COOKIE, path=f"{root}{PAGE}")
        return response


def secret_in(cookie: str) -> str | None:
    """The key in a request's ``Cookie`` header."""
    try:
        found = SimpleCookie(cookie).get(COOKIE)
        return base64.b64decode(found.value, altchars=b"-_", validate=True).decode() if found else None
    except (CookieError, ValueError):  # what is no base64, or no text, is one, too
        return None


def _as_caller(scope: Scope) -> Scope:
    """A request for text by whoever sent this one."""
    cookies = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
    return _with_key(secret_in(cookies.decode("latin-1")) or "")


def _with_key(secret: str) -> Scope:
    headers = [(b"authorization", b"Bearer " + secret.encode())]
    return {"type": "http", "path": "/generate", "root_path": "", "headers": headers}


def _form(request: Request, error: str = "", status: int = 200) -> HTMLResponse:
    action = html.escape(f"{request.scope.get('root_path', '')}{LOGIN}")
    told = f'<p class="error">{html.escape(error)}</p>' if error else ""
    return HTMLResponse(_FORM.format(action=action, error=told), status_code=status)
