# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""A small Hub in this process, for the real huggingface_hub client: repositories, LFS, commits, downloads, faults.

It is a reading of the protocol as the pinned client uses it, not the Hub: no Xet, no pull requests, no gated models.
It never offers Xet: no answer names a Xet hash, and no address gives out a Xet token.
Large files lie on a second port, as the real ones lie on another host, so that a token that follows them is seen.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote

import pytest
import transformers.utils.hub
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import _http

from hub_wire import Handler, Refused


TOKEN, STRANGER = "hf_" + 30 * "a", "hf_" + 30 * "b"
LARGE = (".safetensors", ".parquet", ".png")
WRITES = ("tag", "preupload", "commit", "batch")


@dataclass(frozen=True)
class Content:
    """A file of a commit."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """What the client compares with: the SHA-256 of a large file, git's hash of another."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repository:
    """A repository whose first commit is empty."""

    private: bool
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, title: str, files: dict[str, Content]) -> str:
        """Make `files` the new head and return the commit."""
        told = repr((len(self.commits), title, sorted((path, one.oid) for path, one in files.items())))
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid], self.titles[oid], self.refs["main"] = files, title, oid
        return oid

    @property
    def files(self) -> dict[str, Content]:
        """Files at the head."""
        return self.commits[self.refs["main"]]


class HubServer:
    """The server: its state is open to the test, and `fail` breaks chosen requests.

    `echoes` lets its errors repeat the token they were sent, and `unknown` lists what it was asked for in vain.

    Args:
        users: Token -> name of the user it belongs to.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repos: dict[tuple[str, str], Repository] = {}
        self.store: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.leaked: list[str] = []
        self.unknown: list[str] = []
        self.echoes = False
        self.waits: list[float] = []
        self._faults: list[list] = []
        self._lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        hosts = ("127.0.0.1", "localhost")  # the store is another host: within one, clients follow redirects of HEAD
        self.url, self.storage = (f"http://{h}:{s.server_port}" for h, s in zip(hosts, self._servers, strict=True))

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fail(self, what: str, how: int | str, times: int = 1, after: int = 0, **headers: str) -> None:
        """Let `times` requests of the kind `what` (a name of `PROTOCOL`), `after` others, end in a status or break."""
        self._faults.append([what, how, times, headers, after])

    def heal(self) -> None:
        """Take the faults away that have not come up."""
        self._faults.clear()

    def fault(self, what: str) -> tuple[int | str | None, dict[str, str]]:
        """Return how the present request is to fail, if it is."""
        with self._lock:
            for one in self._faults:
                if one[0] == what and one[4] > 0:
                    one[4] -= 1
                elif one[0] == what and one[2] > 0:
                    one[2] -= 1
                    return one[1], one[3]
        return None, {}

    def answer(self, what: str, match: dict, user: str | None, body: bytes, query: dict) -> dict | list:
        """Return the JSON that answers a request of the kind `what`."""
        with self._lock:
            if "name" in match:
                self._check(what, match, user)
            return getattr(self, f"_{what}")(match, user, body, query)

    def repository(self, match: dict) -> Repository:
        """Return the repository a request names."""
        return self.repos[match.get("kind") or "model", match["name"]]

    def commit_of(self, match: dict) -> str:
        """Return the commit that the request's revision stands for."""
        repository, revision = self.repository(match), unquote(match.get("revision") or "main")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def check_access(self, match: dict, user: str | None) -> None:
        """Refuse who may not read, in the Hub's words: a private repository looks as if it were not there."""
        repository = self.repos.get((match.get("kind") or "model", match["name"]))
        if repository is None or (repository.private and user != match["name"].split("/")[0]):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")

    def _check(self, what: str, match: dict, user: str | None) -> None:
        self.check_access(match, user)
        if what in WRITES and user != match["name"].split("/")[0]:
            raise Refused(403 if user else 401, "You don't have the rights to write here")

    def _whoami(self, match, user, body, query):
        if user is None:
            raise Refused(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}}

    def _create(self, match, user, body, query):
        asked = json.loads(body)
        owner, kind = asked.get("organization") or user, asked.get("type") or "model"
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if owner != user:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        name, prefix = f"{owner}/{asked['name']}", "datasets/" if kind == "dataset" else ""
        if (kind, name) in self.repos:
            raise Refused(409, f"You already created this {kind} repo")
        self.repos[kind, name] = Repository(asked.get("visibility") == "private")
        self.repos[kind, name].add("initial commit", {".gitattributes": Content(b"*.safetensors lfs\n", False)})
        return {"url": f"{self.url}/{prefix}{name}", "name": name}

    def _validate(self, match, user, body, query):
        text = json.loads(body)["content"]
        head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        data = yaml.safe_load(head.group(1)) if head else None
        if not isinstance(data, dict) or not isinstance(data.get("license"), str):
            raise Refused(400, "Expected YAML with a license")
        return {"errors": [], "warnings": []}

    def _describe(self, kind, name, commit):
        repository = self.repos[kind, name]
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        told = {"_id": name, "id": name, "author": name.split("/")[0], "sha": commit, "private": repository.private}
        return {**told, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "gated": False}

    def _list(self, match, user, body, query):
        mine = [(kind, name) for kind, name in self.repos if kind == match["kind"]]
        shown = [key for key in mine if not self.repos[key].private or user == key[1].split("/")[0]]
        author = query.get("author", [None])[0]
        listed = [key for key in shown if author in (None, key[1].split("/")[0])]
        return [self._describe(*key, self.repos[key].refs["main"]) for key in listed]

    def _info(self, match, user, body, query):
        return self._describe(match["kind"], match["name"], self.commit_of(match))

    def _refs(self, match, user, body, query):
        refs = [
            {"name": name, "ref": f"refs/{'heads' if name == 'main' else 'tags'}/{name}", "targetCommit": commit}
            for name, commit in self.repository(match).refs.items()
        ]
        return {"branches": refs[:1], "tags": refs[1:], "converts": []}

    def _commits(self, match, user, body, query):
        titles = reversed(self.repository(match).titles.items())
        when = "2026-01-01T00:00:00.000Z"
        return [{"id": oid, "title": one, "message": "", "date": when, "authors": []} for oid, one in titles]

    def _tag(self, match, user, body, query):
        self.repository(match).refs[json.loads(body)["tag"]] = self.commit_of(match)
        return {}

    def _entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content.data), "oid": content.oid}
        if content.large:
            entry["lfs"] = {"oid": content.oid, "size": len(content.data), "pointerSize": 134}
        return entry

    def _tree(self, match, user, body, query):
        files = self.repository(match).commits[self.commit_of(match)]
        below = f"{unquote(match['path'])}/" if match.get("path") else ""
        inside = {path: one for path, one in files.items() if path.startswith(below)}
        if below and not inside:
            raise Refused(404, f"{below} does not exist", "EntryNotFound")
        nested = {path for path in inside if "/" in path[len(below) :]}
        folders = {path[: path.index("/", len(below))] for path in nested}
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [self._entry(path, one) for path, one in inside.items() if recursive or path not in nested]
        return entries + [{"type": "directory", "path": one, "size": 0, "oid": 40 * "0"} for one in sorted(folders)]

    def _paths(self, match, user, body, query):
        files = self.repository(match).commits[self.commit_of(match)]
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        folders = [one for one in asked if any(path.startswith(f"{one}/") for path in files)]
        entries = [self._entry(path, files[path]) for path in asked if path in files]
        return entries + [{"type": "directory", "path": one, "size": 0, "oid": 40 * "0"} for one in folders]

    def _preupload(self, match, user, body, query):
        there = self.repository(match).commits[self.commit_of(match)]
        return {
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": there[one["path"]].oid if one["path"] in there else None,
                }
                for one in json.loads(body)["files"]
            ]
        }

    def _batch(self, match, user, body, query):
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.storage}/store/{one['oid']}"},
                "verify": {"href": f"{self.url}/verify/{one['oid']}"},
            }
            objects.append({**one} if one["oid"] in self.store else {**one, "actions": actions})
        return {"transfer": "basic", "objects": objects}

    def _upload(self, match, user, body, query):
        if hashlib.sha256(body).hexdigest() != match["path"]:
            raise Refused(400, "The content has another hash than its address")
        self.store[match["path"]] = body
        return {}

    def _verify(self, match, user, body, query):
        if len(self.store.get(match["path"], b"")) != json.loads(body)["size"]:
            raise Refused(400, "The object was not uploaded whole")
        return {}

    def _commit(self, match, user, body, query):
        lines = [json.loads(line) for line in body.splitlines()]
        header, repository = lines[0]["value"], self.repository(match)
        if header.get("parentCommit", repository.refs["main"]) != repository.refs["main"]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files)
        for line in lines[1:]:
            key, one = line["key"], line["value"]
            if key == "file":
                files[one["path"]] = Content(base64.b64decode(one["content"]), False)
            elif key == "lfsFile" and one["oid"] in self.store:
                files[one["path"]] = Content(self.store[one["oid"]], True)
            elif key == "deletedFile" and one["path"] in files:
                del files[one["path"]]
            else:
                raise Refused(400, f"Cannot apply {key} of {one['path']}")
        commit = repository.add(header["summary"], files)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{match['name']}/commit/{commit}"}


@contextmanager
def open_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """Yield a server that this process talks to in the name of `tester`, with no waits between retries."""
    with HubServer({TOKEN: "tester", STRANGER: "stranger"}) as server:
        connect(monkeypatch, server, TOKEN, cache)
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=server.waits.append))
        yield server


def connect(monkeypatch: pytest.MonkeyPatch, hub: HubServer, token: str, cache: Path) -> None:
    """Let the Hugging Face libraries of this process talk to `hub`: they read the environment when imported."""
    for module, name, value in [
        (constants, "ENDPOINT", hub.url),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"),
        (constants, "HF_HUB_OFFLINE", False),
        (constants, "HF_HUB_DISABLE_XET", True),
        (constants, "HF_HUB_CACHE", str(cache)),
    ]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it keeps the address that it was first used with
    monkeypatch.setenv("HF_TOKEN", token)
