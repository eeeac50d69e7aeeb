"""The tests of the embedded registry, on one in a real MLflow database."""

from __future__ import annotations

import pytest

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")

from rayloom.registry import Registry, open_registry
from tests.unit.registry.test_registry import (  # noqa: F401 - collected here too, with this module's registry
    test_a_changed_or_lost_artifact_is_not_resolved,
    test_a_rollback_after_somebody_elses_is_refused,
    test_a_rollback_to_a_damaged_artifact_is_refused,
    test_a_verdict_is_void_once_anything_it_depends_on_has_changed,
    test_a_version_has_its_lineage_and_a_copy_of_its_artifact,
    test_production_is_not_archived_nor_made_a_candidate,
    test_promotion_archives_the_old_version_and_rollback_brings_it_back,
    test_references_mean_versions_stages_or_production,
    test_the_parent_is_found_in_the_config_or_given,
    test_the_same_artifact_is_the_same_version_and_another_is_the_next,
    test_what_fails_the_gate_is_not_promoted,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(place: str) -> Registry:
    return open_registry()
