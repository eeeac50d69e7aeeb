"""Sweeps on Ray Tune: many training runs, what decides between them, and the report.

Tune proposes settings (searchers) and decides who goes on (schedulers). Each trial is a process of its own that is the
driver of a training run, as ``rayloom train`` is one: ending it frees all that its run holds on the cluster, and
nothing of it is Tune's to lose. What has happened stands in the sweep's own folder, and a sweep that goes on is made of
that, not of Tune's state.

Nothing is imported here: Tune's actors need little of it.
"""
