"""Versions of named models, their stages, and the gate before production. No torch, no ray."""

from rayloom.registry.choosing import open_registry
from rayloom.registry.database import registry_root
from rayloom.registry.lineage import manifest_digest
from rayloom.registry.records import Change, Check, Lineage, ModelSummary, Report, Stage, Verdict, Version
from rayloom.registry.references import Reference, is_reference, parse_reference
from rayloom.registry.resolving import locate, resolve
from rayloom.registry.store import Registry

__all__ = [
    "Change",
    "Check",
    "Lineage",
    "ModelSummary",
    "Reference",
    "Registry",
    "Report",
    "Stage",
    "Verdict",
    "Version",
    "is_reference",
    "locate",
    "manifest_digest",
    "open_registry",
    "parse_reference",
    "registry_root",
    "resolve",
]
