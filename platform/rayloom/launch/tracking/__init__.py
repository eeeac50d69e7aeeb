"""Where the figures of a run go besides the terminal: trackers, the run page, and its state for `rayloom runs`.

Nothing is imported here, so that listing runs needs neither torch nor ray.
"""
