"""The ``rayloom`` command: one short file per command. Heavy parts are imported when a command runs."""
