"""Artifacts on the Hugging Face hub: a model repository each, which stock libraries load by its name.

The model's own files (or the adapter's) lie at the top there, where ``from_pretrained`` looks for them; everything else
lies as in an artifact's folder. A new version is one commit, so that readers see the old one or the new one.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rayloom.artifacts.manifest import MANIFEST_FILE, Manifest, parse_manifest
from rayloom.errors import ArtifactError, HubError, RayloomError

SCHEME = "hf://"
_PROBE_TIMEOUT_S = 5.0
_NEW = {".gitattributes", "README.md"}
"""What a repository may hold that nobody has published into yet."""
_TOKEN = "log in with 'hf auth login', or set HF_TOKEN"


@dataclass(frozen=True)
class HubPlace:
    """A model repository, and a branch, tag or commit of it; None is its main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return SCHEME + self.repo + (f"@{self.revision}" if self.revision else "")


def hub_place(location: str) -> HubPlace | None:
    """The repository that a location names; None where it is none of the hub.

    Raises:
        ArtifactError: It is of the hub, and no model's name.
    """
    if not location.startswith(SCHEME):
        return None
    repo, _, revision = location.removeprefix(SCHEME).rstrip("/").partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ArtifactError(f"{location}: a model on the hub is {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@BRANCH")
    return HubPlace(repo, revision or None)


def is_reachable() -> bool:
    """Whether the hub answers at all. The hub's own client retries for half a minute per file."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=_PROBE_TIMEOUT_S)
    except (httpx.HTTPError, OSError):
        return False
    return True


class HubFiles:
    """An artifact's files in a repository.

    Args:
        place: Where.
    """

    def __init__(self, place: HubPlace) -> None:
        self._place, self._commit = place, place.revision

    def manifest(self) -> bytes:
        """Its manifest; the hub client's cached one where the hub is out of reach.

        Raises:
            ArtifactError: The repository holds no artifact.
            HubError: The hub does not give it.
        """
        from huggingface_hub import constants, hf_hub_download

        offline = constants.HF_HUB_OFFLINE or not is_reachable()
        with _told(self._place):
            path = Path(
                hf_hub_download(
                    self._place.repo, MANIFEST_FILE, revision=self._place.revision, local_files_only=offline
                )
            )
        self._commit = path.parent.name  # a later commit must not be mixed with this one
        return path.read_bytes()

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        """Download all files of the manifest that was read.

        Raises:
            HubError: The hub does not give one of them.
        """
        from huggingface_hub import hf_hub_download

        with _told(self._place), tempfile.TemporaryDirectory(dir=folder) as scratch:
            for name, on_hub in names_on_hub(manifest).items():
                got = hf_hub_download(self._place.repo, on_hub, revision=self._commit, local_dir=scratch)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Path(got).rename(folder / name)


def names_on_hub(manifest: Manifest) -> dict[str, str]:
    """Where each file of an artifact lies in a repository, by its path in the artifact.

    Raises:
        ArtifactError: Two files would lie in the same place.
    """
    top = "model/" if manifest.kind == "full" else "adapter/"
    names = {name: name.removeprefix(top) for name in manifest.files}
    taken: dict[str, str] = {MANIFEST_FILE: MANIFEST_FILE}
    for name, on_hub in names.items():
        if on_hub in taken:
            raise ArtifactError(f"on the hub '{name}' and '{taken[on_hub]}' would be the same file: rename one of them")
        taken[on_hub] = name
    return names


def put_on_hub(
    content: Mapping[str, Path | bytes], manifest: Manifest, place: HubPlace, *, public: bool | None, message: str
) -> None:
    """Publish an artifact into a repository, which is made where there is none, in one commit.

    Args:
        content: All files of the manifest, by their paths in the artifact, and the manifest itself.
        manifest: The artifact's description.
        place: The repository; a branch that does not exist is made.
        public: Whether everybody may read it. Where not given, a new repository is private, and another stays as it is.
        message: Of the commit.

    Raises:
        ArtifactError: The repository holds something else, or cannot become what is asked for.
        HubError: The hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    if constants.HF_HUB_OFFLINE or not is_reachable():
        raise HubError(f"{_unreachable(place)}: nothing was published")
    names = names_on_hub(manifest) | {MANIFEST_FILE: MANIFEST_FILE}
    api = HfApi()
    with _told(place):
        api.create_repo(place.repo, private=not public, exist_ok=True)
        if place.revision:
            api.create_branch(place.repo, branch=place.revision, exist_ok=True)
        info = api.model_info(place.repo, revision=place.revision)
        if public is not None and info.private == public:
            is_now = "private" if info.private else "public"
            raise ArtifactError(f"{place} exists and is {is_now}: change that in its settings on the hub first")
        present = {each.rfilename for each in info.siblings or []}
        old = _published(place, present) & present
        add = [CommitOperationAdd(names[name], _as_upload(what)) for name, what in content.items()]
        delete = [CommitOperationDelete(name) for name in sorted(old - set(names.values()))]
        commit = api.create_commit(
            place.repo,
            [*add, *delete],
            commit_message=message,
            revision=place.revision,
            parent_commit=info.sha,  # nobody else's new version is lost
        )
        now = {each.rfilename for each in api.model_info(place.repo, revision=commit.oid).siblings or []}
    if missing := set(names.values()) - now:
        raise HubError(f"{place}: the hub did not take {', '.join(sorted(missing))}; does its .gitignore name them?")


def _as_upload(what: Path | bytes) -> str | bytes:
    return what if isinstance(what, bytes) else str(what)


def _published(place: HubPlace, present: set[str]) -> set[str]:
    """Files of the artifact that is there now; others in its repository are left alone."""
    if MANIFEST_FILE in present:
        try:
            return set(names_on_hub(parse_manifest(HubFiles(place).manifest(), str(place))).values())
        except ArtifactError:  # damaged, or of a newer Rayloom: replaced all the same
            return set()
    if present - _NEW:
        raise ArtifactError(
            f"{place} exists and holds something that is no artifact; it will not be overwritten: choose another name"
        )
    return set()


@contextlib.contextmanager
def _told(place: HubPlace) -> Iterator[None]:
    """The hub client's errors in our own words."""
    import httpx

    try:
        yield
    except RayloomError:
        raise
    except (ValueError, httpx.HTTPError, OSError, RuntimeError) as error:  # all that the client raises is one of these
        raise _in_our_words(error, place) from error


def _in_our_words(error: Exception, place: HubPlace) -> RayloomError:
    from huggingface_hub import errors as hub

    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    known: list[tuple[type[Exception], RayloomError]] = [  # the narrowest first
        (hub.LocalEntryNotFoundError, HubError(f"{_unreachable(place)}, and it is not in the cache")),
        (
            hub.EntryNotFoundError,
            ArtifactError(
                f"{place} is no artifact: it has no {MANIFEST_FILE}. A stock model is named without {SCHEME}"
            ),
        ),
        (hub.HFValidationError, ArtifactError(f"{place}: the hub takes no such name: {first}")),
        (hub.LocalTokenNotFoundError, HubError(f"{place}: the hub asks who you are: {_TOKEN}")),
        (hub.RevisionNotFoundError, HubError(f"{place}: the hub has the model but not this revision")),
        (
            hub.RepositoryNotFoundError,
            HubError(f"the hub has no model {place} that you may see: check its name, or {_TOKEN}"),
        ),
        (hub.HfHubHTTPError, HubError(f"{place}: {_refusal(error, first)}")),
        (ValueError, ArtifactError(f"{place}: the hub refused the model card: {first}")),
    ]
    told = next((ours for kind, ours in known if isinstance(error, kind)), None)
    return told or HubError(f"{place}: the hub did not answer to the end: {first}; try again")


def _refusal(error: Exception, first: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"you may not do this ({first}): {_TOKEN}"
    if status == 412:
        return "somebody else has published there meanwhile: look, and try again"
    return f"the hub refused: {first}"


def _unreachable(place: HubPlace) -> str:
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return f"{place}: {why}"
