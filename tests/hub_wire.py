# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""One HTTP request to the Hub of the tests: which kind it is, whether it is to fail, and its answer on the wire."""

import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit


if TYPE_CHECKING:
    from hub_server import HubServer

BEFORE, HALFWAY, AFTER = "dropped before", "dropped halfway", "dropped after"
"""Faults beside error statuses: the connection breaks before, in the middle of, or after the work of a request."""
PROTOCOL = {  # what a request is -> method and path
    "whoami": ("GET", r"/api/whoami-v2"),
    "create": ("POST", r"/api/repos/create"),
    "validate": ("POST", r"/api/validate-yaml"),
    "list": ("GET", r"/api/(?P<kind>model|dataset)s"),
    "info": ("GET", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"),
    "refs": ("GET", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/refs"),
    "commits": ("GET", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/commits/(?P<revision>[^/]+)"),
    "tag": ("POST", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)"),
    "tree": (
        "GET",
        r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?",
    ),
    "paths": ("POST", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)"),
    "preupload": ("POST", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)"),
    "commit": ("POST", r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)"),
    "batch": ("POST", r"/((?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    "verify": ("POST", r"/verify/(?P<path>[0-9a-f]{64})"),
    "upload": ("PUT", r"/store/(?P<path>[0-9a-f]{64})"),
    "content": ("GET", r"/store/(?P<path>[0-9a-f]{64})"),
    "resolve": (
        "GET|HEAD",
        r"/((?P<kind>dataset)s/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
    ),
}


class Refused(Exception):
    """An error status with the headers that tell the client which error it is."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One request: find its kind, let it fail where the test says so, answer."""

    hub: "HubServer"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer any method."""
        url = urlsplit(self.path)
        body = self.rfile
        what, match = self._kind(url.path)
        how, headers = self.hub.fault(what)
        length = int(self.headers.get("Content-Length") or 0)
        if how == HALFWAY and self.command == "PUT":
            body.read(length // 2)
            return self._break()
        content = self._read_chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else body.read(length)
        self.hub.seen.append(what)
        if match is None:
            self.hub.unknown.append(self.path)
        if how == BEFORE:
            return self._break()
        try:
            if isinstance(how, int):
                said = f" to {self.headers.get('Authorization')}" if self.hub.echoes else ""
                raise Refused(how, f"The server says {how}{said}")
            self._answer(what, match, content, parse_qs(url.query), how)
        except Refused as error:
            told = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {}), **headers}
            said = {"error": str(error), "errors": [{"message": str(error)}], "url": f"{self.hub.url}/it/exists"}
            self._send(error.status, json.dumps(said).encode(), **told)

    def _kind(self, path: str) -> tuple[str, re.Match | None]:
        for what, (methods, pattern) in PROTOCOL.items():
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split("|"):
                return what, match
        return "unknown", None

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self, what, match, content, query, how):
        if match is None:
            raise Refused(404, f"No such address: {self.path}")
        named = match.groupdict()
        if what in ("upload", "content"):
            if "Authorization" in self.headers:
                self.hub.leaked.append(self.path)
            user = None
        else:
            user = self._user()
        if what == "content":
            return self._send_file(self.hub.store[named["path"]], how)
        if what == "resolve":
            return self._resolve(named, user, how)
        answer = self.hub.answer(what, {k: v for k, v in named.items() if v}, user, content, query)
        if how == AFTER:
            return self._break()
        self._send(200, json.dumps(answer).encode())

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _resolve(self, named, user, how):
        self.hub.check_access(named, user)
        commit = self.hub.commit_of(named)
        content = self.hub.repository(named).commits[commit].get(unquote(named["path"]))
        if content is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{content.oid}"'}
        if not content.large:
            return self._send_file(content.data, how, **headers)
        linked = {"X-Linked-Etag": f'"{content.oid}"', "X-Linked-Size": str(len(content.data))}
        self._send(302, b"", Location=f"{self.hub.storage}/store/{content.oid}", **headers, **linked)

    def _send_file(self, data, how, **headers):
        start = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        if start:
            first, last = int(start.group(1)), int(start.group(2) or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data = data[first : last + 1]
        self._send(206 if start else 200, data, stop=len(data) // 2 if how == HALFWAY else None, **headers)

    def _send(self, status, data, stop=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:stop])
        if stop is not None:
            self._break()

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _break(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
