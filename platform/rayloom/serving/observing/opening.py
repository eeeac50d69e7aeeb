"""From the config to what watches the requests."""

from __future__ import annotations

from rayloom.config import ServingConfig
from rayloom.serving.observing.logs import RequestLog, write_logs
from rayloom.serving.observing.observer import Observer
from rayloom.serving.observing.traces import open_spans


def open_observer(config: ServingConfig) -> Observer:
    """What an ingress process of Ray Serve observes with. This process's log goes where the config says.

    Args:
        config: Its `log_…` and `traces_endpoint`.

    Raises:
        ConfigError: The log cannot be written, or traces need an extra that is not installed.
    """
    write_logs(config.log_format, config.log_file)
    log = RequestLog(shows_prompts=config.log_prompts)
    return Observer(log=log, spans=open_spans(config.traces_endpoint), returns_id=False)
