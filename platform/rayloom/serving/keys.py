"""API keys on disk: a file of hashes, and who may do what until when.

Only the SHA-256 of a key is kept. A slow, salted hash is for passwords, which people choose and others guess; a key is
256 random bits, so there is nothing to guess and no table to look it up in, and every request can afford the hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from filelock import FileLock
from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from rayloom.config import dump_yaml, load_section, validate
from rayloom.config.base import Section
from rayloom.errors import ConfigError

Scope = Literal["generate", "metrics"]
KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

_PREFIX = "rl-"
"""So that scanners, and people, know a key when they see one where it should not be."""
_SECRET = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]{{20,}}")
_HEADER = "# API keys of `rayloom serve`: hashes only. Written by `rayloom keys`, which keeps no comments.\n"


class ApiKey(Section):
    """One key: its hash, and what it may do."""

    name: KeyName
    """Who it is for. Limits and turns in the engine go by it."""
    sha256: str
    """Of the key, as `rayloom keys create` writes it."""
    scopes: tuple[Scope, ...] = Field(("generate",), min_length=1)
    """`generate`: every route of the model. `metrics`: `/metrics`."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Most requests, prompts counted one by one."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Most tokens, of prompts and answers together."""
    priority: int = Field(0, ge=-100, le=100)
    """Calls of lower numbers go strictly before those of higher ones."""
    created: AwareDatetime
    """When it was made."""
    expires: AwareDatetime | None = None
    """From when on it is refused."""
    revoked: AwareDatetime | None = None
    """When it was revoked; a revoked key is refused for ever."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 is to be 64 digits 0-9a-f: a hash, not the key itself")
        return self

    def why_refused(self, now: datetime) -> str | None:
        """``revoked`` or ``expired``; None for a key that is good."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else None


class KeyFile(Section):
    """All keys of a service."""

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        hashes = [key.sha256 for key in self.keys]
        if len(set(hashes)) < len(hashes):
            raise ValueError("two keys have the same sha256")
        return self


@dataclass(frozen=True)
class Terms:
    """What a new key may do.

    Attributes:
        scopes: As in `ApiKey`, as are the next three.
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        priority: Lower goes first.
        days: Until it expires; None for never.
    """

    scopes: Sequence[str] = ("generate",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    priority: int = 0
    days: float | None = None


class KeyStore:
    """A file of keys. Several processes may change it at once.

    Args:
        path: The file; need not exist before the first key.
        clock: The time; injected by tests.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path, self._clock = Path(path).expanduser().resolve(), clock

    def all(self) -> tuple[ApiKey, ...]:
        """All keys, by age.

        Raises:
            ConfigError: There is no such file, or something in it is wrong.
        """
        return read_keys(self.path)

    def create(self, name: str, terms: Terms) -> str:
        """Add a key.

        Returns:
            The key itself, which is kept nowhere.

        Raises:
            ConfigError: The name is in use, or something in the terms is wrong.
        """
        secret = _PREFIX + secrets.token_urlsafe(32)
        with self._locked():
            keys = self.all() if self.path.exists() else ()
            now = self._clock()
            if any(key.name == name and key.why_refused(now) is None for key in keys):
                raise ConfigError(f"there is a key '{name}' already: revoke it first, or take another name")
            self._write((*keys, _key(name, secret, terms, now)))
        return secret

    def revoke(self, name: str) -> int:
        """Refuse the keys of a name from now on.

        Returns:
            How many were good until now.

        Raises:
            ConfigError: There is no key of this name.
        """
        with self._locked():
            keys, now = self.all(), self._clock()
            if not any(key.name == name for key in keys):
                names = ", ".join(dict.fromkeys(key.name for key in keys)) or "none"
                raise ConfigError(f"there is no key '{name}'; there are: {names}", path=self.path)
            good = [key for key in keys if key.name == name and key.why_refused(now) is None]
            self._write([key.model_copy(update={"revoked": now}) if key in good else key for key in keys])
        return len(good)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.parent / f".{self.path.name}.lock", mode=0o600):
                yield
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror or error}", path=self.path) from None

    def _write(self, keys: Sequence[ApiKey]) -> None:
        """A reader sees the old file or the new one, and nobody but the owner sees either."""
        text = _HEADER + dump_yaml(KeyFile(keys=tuple(keys)))
        descriptor, staged = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, self.path)
        except BaseException:
            os.unlink(staged)
            raise


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Keys of a file, YAML or JSON.

    Raises:
        ConfigError: There is no such file, or something in it is wrong.
    """
    try:
        return load_section(KeyFile, path).keys
    except ConfigError as error:
        # Errors quote what is wrong; somebody may have put a key where its hash belongs.
        raise ConfigError(_SECRET.sub(f"{_PREFIX}…", str(error))) from None


def hash_of(secret: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret).hexdigest()


def _key(name: str, secret: str, terms: Terms, now: datetime) -> ApiKey:
    if terms.days is not None and not 0 < terms.days <= 36500:
        raise ConfigError(f"a key cannot expire in {terms.days:g} days; give more than 0, and at most 36500")
    values = {
        "name": name,
        "sha256": hash_of(secret.encode()),
        "scopes": tuple(dict.fromkeys(terms.scopes)),
        "requests_per_minute": terms.requests_per_minute,
        "tokens_per_minute": terms.tokens_per_minute,
        "priority": terms.priority,
        "created": now.replace(microsecond=0),
        "expires": None if terms.days is None else (now + timedelta(days=terms.days)).replace(microsecond=0),
    }
    return validate(ApiKey, values)
