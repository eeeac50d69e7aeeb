"""The ``rayloom`` command: one short file per command. Heavy parts are imported when a command runs."""

from rayloom.cli.app import app, main

__all__ = ["app", "main"]
