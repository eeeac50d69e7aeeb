"""A hub on this machine that Hugging Face's own client talks to: what of its HTTP API artifacts and datasets need."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

TOKEN = "hf_test"


@dataclass
class FakeRepo:
    """A model repository: its commits, and what its branches point to."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[digest], self.branches[branch] = files, digest
        self.messages.append(message)
        return digest

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class FakeHub:
    """Repositories by name, and the blobs that were uploaded before their commit."""

    def __init__(self) -> None:
        self.repos: dict[str, FakeRepo] = {}
        self.blobs: dict[str, bytes] = {}
        self.ignored: set[str] = set()
        """Paths that a .gitignore names."""
        self.meanwhile: Callable[[FakeRepo], None] | None = None
        """What somebody else does between an upload and its commit."""

    def make(self, name: str, files: dict[str, bytes] | None = None, *, private: bool = False) -> FakeRepo:
        repo = self.repos[name] = FakeRepo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"} | (files or {}), "initial commit")
        return repo


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


def fake_hub_app(hub: FakeHub) -> FastAPI:  # noqa: C901, PLR0915 - one route after another
    """The hub's HTTP API. Who has no `TOKEN` may read public repositories only."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, go_on: Any) -> Response:
        token = request.headers.get("authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            return _error(401, "", "Invalid username or password.")
        if token is None and request.method == "POST":  # where a blob goes to is a secret by itself
            return _error(401, "", "Invalid username or password.")
        request.state.knows = token is not None
        # A dataset's repository is a model's under another address.
        path = request.scope["path"].replace("/api/datasets/", "/api/models/", 1).removeprefix("/datasets")
        request.scope["path"] = path
        answer: Response = await go_on(request)
        return answer

    def found(
        request: Request, owner: str, name: str, revision: str
    ) -> tuple[FakeRepo, str, None] | tuple[None, None, JSONResponse]:
        """A repository, the commit that a revision names, and no problem; or the answer that tells of one."""
        repo = hub.repos.get(f"{owner}/{name}")
        if repo is None or (repo.private and not request.state.knows):
            return None, None, _error(404, "RepoNotFound", "Repository not found")
        digest = repo.branches.get(revision, revision)
        if digest not in repo.commits:
            return None, None, _error(404, "RevisionNotFound", "Invalid rev id")
        return repo, digest, None

    @app.head("/")
    async def alive() -> Response:
        return Response()

    @app.post("/api/validate-yaml")
    async def validate(request: Request) -> Any:
        wrong = "license: nonsense" in (await request.json())["content"]
        errors = [{"message": '"license" must be one of …'}] if wrong else []
        return JSONResponse({"errors": errors, "warnings": []}, 400 if wrong else 200)

    @app.post("/api/repos/create")
    async def create(request: Request) -> Any:
        asked = await request.json()
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "team":
            return _error(403, "", f"You don't have the rights to create a model under {asked['organization']}")
        if name in hub.repos:
            return JSONResponse({"url": f"{request.base_url}{name}"}, 409)
        hub.make(name, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return {"url": f"{request.base_url}{name}"}

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    async def info(request: Request, owner: str, name: str, revision: str = "main") -> Any:
        repo, digest, problem = found(request, owner, name, revision)
        if problem is not None:
            return problem
        siblings = [{"rfilename": path} for path in repo.commits[digest]]
        return {"id": f"{owner}/{name}", "sha": digest, "private": repo.private, "siblings": siblings, "tags": []}

    @app.get("/api/models/{owner}/{name}/tree/{revision}")
    @app.get("/api/models/{owner}/{name}/tree/{revision}/{folder:path}")
    async def tree(owner: str, name: str, revision: str, folder: str = "", recursive: bool = False) -> Any:
        files, start = hub.repos[f"{owner}/{name}"].files(revision), f"{folder}/" if folder else ""
        below = {path.removeprefix(start): what for path, what in files.items() if path.startswith(start)}
        here = {path: what for path, what in below.items() if recursive or "/" not in path}
        folders = {path.partition("/")[0] for path in below if path not in here}
        found = [{"type": "directory", "path": start + path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return found + [
            {"type": "file", "path": start + path, "size": len(what), "oid": "0" * 40} for path, what in here.items()
        ]

    @app.post("/api/models/{owner}/{name}/branch/{branch}")
    async def branch(request: Request, owner: str, name: str, branch: str) -> Any:
        repo = hub.repos[f"{owner}/{name}"]
        if branch in repo.branches:
            return _error(409, "", "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        return {}

    @app.post("/api/models/{owner}/{name}/preupload/{revision}")
    async def preupload(request: Request, owner: str, name: str, revision: str) -> Any:
        paths = [each["path"] for each in (await request.json())["files"]]
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                    "shouldIgnore": path in hub.ignored,
                }
                for path in paths
            ]
        }

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, owner: str, name: str) -> Any:
        objects = [{"oid": each["oid"], "size": each["size"]} for each in (await request.json())["objects"]]
        for each in objects:
            if each["oid"] not in hub.blobs:
                each["actions"] = {"upload": {"href": f"{request.base_url}blobs/{each['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    @app.put("/blobs/{digest}")
    async def blob(request: Request, digest: str) -> Response:
        content = await request.body()
        assert hashlib.sha256(content).hexdigest() == digest
        hub.blobs[digest] = content
        return Response()

    @app.post("/api/models/{owner}/{name}/commit/{revision}")
    async def commit(request: Request, owner: str, name: str, revision: str) -> Any:
        repo = hub.repos[f"{owner}/{name}"]
        if hub.meanwhile is not None:
            hub.meanwhile(repo)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header, files = lines[0]["value"], dict(repo.files(revision))
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            return _error(412, "", "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        digest = repo.commit(revision, files, header["summary"])
        return {"commitUrl": f"{request.base_url}{owner}/{name}/commit/{digest}", "commitOid": digest}

    @app.api_route("/{owner}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve(request: Request, owner: str, name: str, revision: str, path: str) -> Any:
        repo, digest, problem = found(request, owner, name, revision)
        if problem is not None:
            return problem
        content = repo.commits[digest].get(path)
        headers = {"X-Repo-Commit": digest, "Access-Control-Allow-Origin": "*"}
        if content is None:
            return JSONResponse({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if request.method == "HEAD":
            return Response(headers=headers | {"Content-Length": str(len(content))})
        return Response(content, media_type="application/octet-stream", headers=headers)

    return app
