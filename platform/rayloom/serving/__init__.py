"""The Ray Serve application: HTTP routes, model replicas, and a launcher for this machine."""

from rayloom.serving.app import application, build
from rayloom.serving.launcher import serve_artifact, serving

__all__ = ["application", "build", "serve_artifact", "serving"]
