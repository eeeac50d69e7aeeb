"""Serve on this machine: a local Ray of its own, one application, loopback unless told otherwise."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve import Application

from rayloom import errors
from rayloom.artifacts import open_artifact
from rayloom.config import ModelConfig, ServedModelConfig, ServingConfig
from rayloom.errors import RayloomError, ServiceError
from rayloom.models import resolve_source
from rayloom.registry import is_reference, locate
from rayloom.serving.access import LiveKeys
from rayloom.serving.app import application
from rayloom.serving.capacity import num_cpus
from rayloom.serving.connections import CALLBACK
from rayloom.serving.exposure import check_exposure, is_loopback
from rayloom.serving.page.mounting import check_page
from rayloom.serving.replicas import ModelFactory

_APP_NAME = "rayloom"
_KEY_VARIABLE = "RAYLOOM_API_KEY"
_KEY_HINT = f"    export {_KEY_VARIABLE}=…  # a key of: rayloom keys create NAME\n"
_OBJECT_STORE_BYTES = 128 * 1024**2


def serve_artifact(
    config: ServingConfig, *, host: str = "127.0.0.1", port: int = 8000, say: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        config: What to serve, and how.
        host: Address to listen on. Anything but loopback asks for API keys, or for ``allow_anonymous``.
        port: Port to listen on; 0 for a free one.
        say: Gets one text at a time for the user.

    Raises:
        UserError: The artifact, model or keys cannot be opened, or there are no keys and should be.
        ServiceError: The port is taken, or a replica failed.
    """
    config = _checked_door(config, host)
    if config.keys_file is None and not is_loopback(host):
        say(f"Warning: listening on {host} lets anyone who reaches it use the model: there are no API keys.")
    say(f"Opening {', '.join(single.artifact for single in config.served().values())} …")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with serving(config, host=host, port=port) as url:
        # As Ctrl-C, for those who cannot press it (systemd, containers). Ray has its own idea of it, hence here.
        signal.signal(signal.SIGTERM, _interrupt)
        model = served_model(url)
        answers, asks_key = model.get("task") != "language-modeling", config.keys_file is not None
        say(greeting(url, name=str(model.get("name")), answers=answers, asks_key=asks_key, has_page=config.page))
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1.0)
        say("Stopping …")


@contextlib.contextmanager
def serving(
    config: ServingConfig, *, host: str = "127.0.0.1", port: int = 0, open_model: ModelFactory | None = None
) -> Iterator[str]:
    """Serve while the context lasts, for tests and notebooks.

    A Ray that is initialised already is used and left running; else a local one is started and stopped again.

    Args:
        config: What to serve, and how.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        open_model: Opens the model in a replica; a `TextGenerator` where not given.

    Yields:
        The URL, without a slash at its end.

    Raises:
        ConfigError: There are no API keys and should be, or their file is wrong.
        ArtifactError: The artifact is damaged.
        ServiceError: The port is taken, Serve runs already on this Ray, or the model cannot be opened.
    """
    config, port = _checked_door(config, host), _checked_port(host, port)
    if config.page:
        check_page()
    config = _checked_places(config) if open_model is None else config
    with contextlib.ExitStack() as stack:
        if ray.is_initialized():
            _refuse_second()
            stack.callback(serve.shutdown)
        else:
            stack.enter_context(_local_ray(config))
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        _deploy(application(config, open_model=open_model))
        yield url_of(host, port)


def url_of(host: str, port: int) -> str:
    """Where this machine reaches what listens on an address."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to be replaced, not to be bound
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def greeting(url: str, *, name: str, answers: bool, asks_key: bool = False, has_page: bool = False) -> str:
    """What the user sees once the model takes calls: where it is, and how to ask it from a shell and from Python.

    Args:
        url: Of the service.
        name: Of the model.
        answers: Whether the model answers questions; else it continues text.
        asks_key: Whether an API key is needed.
        has_page: Whether there is a page.
    """
    path, field = ("/answer", "question") if answers else ("/generate", "prompt")
    prompt = "What is a kestrel?" if answers else "Once upon a time"
    body = json.dumps({field: prompt, "max_new_tokens": 32})
    header = f' -H "Authorization: Bearer ${_KEY_VARIABLE}"' if asks_key else ""
    argument = f', api_key=os.environ["{_KEY_VARIABLE}"]' if asks_key else ""
    return (
        f"Serving {name} on {url} (Ctrl-C stops it)\n"
        f"  documentation  {url}/docs\n"
        f"{f'  page           {url}/ui/' + chr(10) if has_page else ''}"
        f"  OpenAI API     {url}/v1 (model: {name})\n"
        f"  shell\n{_KEY_HINT if asks_key else ''}"
        f"    curl -s {url}{path}{header} -H 'Content-Type: application/json' -d '{body}'\n"
        f"  Python\n"
        f"{'    import os' + chr(10) if asks_key else ''}"
        f"    from rayloom import TextGenerator\n"
        f"    print(TextGenerator(endpoint={url!r}{argument}).generate({prompt!r}, max_new_tokens=32))"
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def served_model(url: str) -> dict[str, str]:
    """The first model of several, for examples."""
    health = httpx.get(f"{url}/health", timeout=30.0, trust_env=False).json()  # no proxy stands between
    states = health.get("models") or {"": health}
    for name, state in states.items():
        if found := state.get("model"):
            return {**found, **({"name": name} if name else {})}
    return {}


@contextlib.contextmanager
def _local_ray(config: ServingConfig) -> Iterator[None]:
    # Token authentication is on, as it should be; Ray would warn about that.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Sockets live in this folder, and their paths may not be long.
    temp_dir = tempfile.mkdtemp(prefix="rayloom-")
    os.environ.setdefault(*CALLBACK)  # for Serve's proxies, which inherit it
    try:
        ray.init(
            "local",
            num_cpus=num_cpus(config),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=temp_dir,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _deploy(app: Application) -> None:
    """Wait until the model takes calls; a replica's own error is raised here again."""
    try:
        serve.run(app, name=_APP_NAME)
    except RuntimeError as error:
        status = serve.status().applications.get(_APP_NAME)
        messages = [each.message for each in status.deployments.values() if each.message] if status else []
        raise replica_error(messages[0] if messages else str(error)) from None


def replica_error(message: str) -> RayloomError:
    """The error that a replica died of, from the traceback that Serve keeps of it."""
    found = re.search(r"^rayloom\.errors\.(\w+): (.*)", message, re.MULTILINE | re.DOTALL)
    kind = getattr(errors, found[1], None) if found else None
    if found and isinstance(kind, type) and issubclass(kind, RayloomError):
        return kind(found[2].strip())
    last = message.strip().splitlines()[-1]
    return ServiceError(f"the model could not be opened: {last}")


def _checked_door(config: ServingConfig, host: str) -> ServingConfig:
    """The keys are there and can be read, or may be missing; their path made absolute, for it is read elsewhere."""
    check_exposure(config, host)
    if config.keys_file is None:
        return config
    path = Path(config.keys_file).expanduser().absolute()
    LiveKeys(path)
    return config.model_copy(update={"keys_file": str(path)})


def _checked_port(host: str, port: int) -> int:
    """The port, or a free one for 0; refused here, where the reason is plain, rather than by a proxy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
        return int(probe.getsockname()[1])


def _checked_places(config: ServingConfig) -> ServingConfig:
    """Local paths made absolute, for replicas run elsewhere; what cannot be opened is refused at once."""

    def checked(model: ServedModelConfig) -> dict[str, Any]:
        adapters = {name: _checked_place(place) for name, place in model.adapters.items()}
        return {"artifact": _checked_place(model.artifact), **({"adapters": adapters} if adapters else {})}

    if not config.models:
        return config.model_copy(update=checked(config))
    models = {name: model.model_copy(update=checked(model)) for name, model in config.models.items()}
    return config.model_copy(update={"models": models})


def _checked_place(place: str) -> str:
    path = Path(place).expanduser()
    if is_reference(place) and not path.exists():
        open_artifact(locate(place))
        return place  # what it means may change while it is served
    if "://" in place or (path / "manifest.json").is_file():
        return str(open_artifact(place).path)
    resolve_source(ModelConfig(name=place))  # fetched here, where its progress and errors are seen
    return str(path.resolve()) if path.exists() else place


def _refuse_second() -> None:
    if serve.status().proxies:
        raise ServiceError("Ray Serve runs on this Ray already: stop it first, or use `serve deploy`")
