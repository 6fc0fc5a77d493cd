"""A hub on this machine: an HTTP server with the few addresses of the Hugging Face hub that downloads and uploads of models use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from diffusionlm.models.hub import downloaded


class Hub:
    """Repositories by name, each with its files by name, their commits, and what was requested."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.history: dict[str, dict[str, dict[str, bytes]]] = {}  # the files of each commit
        self.private: dict[str, bool] = {}
        self.requests: Counter[str] = Counter()
        self.url = ""

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """Commit all ``files`` of a repository; return the commit."""
        self.files[name] = dict(files)
        self.private.setdefault(name, private)
        number = len(self.history.setdefault(name, {}))
        commit = hashlib.sha1(f"{name} {number}".encode()).hexdigest()
        self.history[name][commit] = dict(files)
        return commit

    def commit_of(self, name: str, revision: str) -> str | None:
        commits = self.history.get(name, {})
        return list(commits)[-1] if revision == "main" and commits else revision if revision in commits else None


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer(
            {
                r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?": self._info,
                r"/api/models/([^/]+/[^/]+)/tree/([^/]+)": self._tree,
                r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._file,
            }
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        self._answer(
            {
                r"/api/repos/create": self._create,
                r"/api/validate-yaml": lambda: self._send({"errors": [], "warnings": []}),
                r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": self._preupload,
                r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": self._commit,
            }
        )

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, routes: dict[str, Callable[..., None]]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests[f"{self.command} {path}"] += 1
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                answer(*match.groups())
                return
        self._missing("EntryNotFound")

    def _send(self, plain: Any, status: int = 200, **headers: str) -> None:
        data = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._send({"error": code}, 401 if code == "RepoNotFound" else 404, X_Error_Code=code, X_Error_Message=code)

    def _readable(self, name: str, revision: str | None) -> str | None:
        """Return the commit of a revision; answer that it is missing where it is, or is not for the caller."""
        private = self.hub.private.get(name, True) and "authorization" not in self.headers
        commit = None if private else self.hub.commit_of(name, revision or "main")
        if commit is None:
            self._missing("RepoNotFound" if private or name not in self.hub.files else "RevisionNotFound")
        return commit

    def _info(self, name: str, revision: str | None) -> None:
        if name in self.hub.files and not self.hub.history[name]:
            siblings: list[str] = []
            commit: str | None = "0" * 40
        else:
            commit = self._readable(name, revision)
            siblings = [] if commit is None else [*self.hub.history[name][commit]]
        if commit is not None:
            files = [{"rfilename": file} for file in siblings]
            self._send({"id": name, "sha": commit, "private": self.hub.private[name], "siblings": files})

    def _tree(self, name: str, revision: str) -> None:
        if commit := self._readable(name, revision):
            files = self.hub.history[name][commit]
            self._send([{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()])

    def _file(self, name: str, revision: str, path: str) -> None:
        if commit := self._readable(name, revision):
            data = self.hub.history[name][commit].get(path)
            if data is None:
                self._send({"error": path}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            else:
                self._send(data, ETag=f'"{_oid(data)}"', X_Repo_Commit=commit)

    def _create(self) -> None:
        plain = json.loads(self.body)
        name = f"{plain.get('organization') or 'you'}/{plain['name']}"
        if "authorization" not in self.headers:
            self._send({"error": "Invalid username or password."}, 401)
            return
        known = name in self.hub.files
        if not known:
            self.hub.files[name], self.hub.history[name] = {}, {}
            self.hub.private[name] = plain.get("private") or plain.get("visibility") == "private"
        self._send({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409 if known else 200)

    def _preupload(self, name: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        self._send({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]})

    def _commit(self, name: str, revision: str) -> None:
        files = dict(self.hub.files[name])
        for line in map(json.loads, self.body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        commit = self.hub.put(name, files)
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as git


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def connected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub in place of huggingface.co, with an empty cache in ``folder`` and a token."""
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        downloaded.cache_clear()
        yield hub
        downloaded.cache_clear()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
