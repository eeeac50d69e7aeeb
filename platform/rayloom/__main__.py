"""``python -m rayloom``."""

from rayloom.cli.app import main

if __name__ == "__main__":
    main()
