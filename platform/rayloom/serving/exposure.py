"""Who can reach a service, and whether that is meant."""

from __future__ import annotations

import ipaddress

from rayloom.config import ServingConfig
from rayloom.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name counts as another address, for who knows what it means."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: ServingConfig, host: str | None) -> None:
    """Refuse to open a service without keys to other machines, unless that is said to be meant.

    Args:
        config: Of the service.
        host: Address to listen on; None where it is not known, which passes.

    Raises:
        ConfigError: Anyone who reaches the address could use the model.
    """
    if host is None or is_loopback(host) or config.keys_file is not None or config.allow_anonymous:
        return
    raise ConfigError(
        f"listening on {host} would let anyone who reaches it use the model: there are no API keys.\n"
        "Make one with: rayloom keys create NAME --keys keys.yaml\n"
        "Then serve with --keys keys.yaml (in a file: keys_file); "
        "or say --allow-anonymous (allow_anonymous: true) if that is meant."
    )
