"""A small Hub on 127.0.0.1 for `huggingface_hub`'s real client: repositories, commits, LFS and failures on request.

It speaks the HTTP of a model repository: whoami, create, info, tree, paths-info, preupload, LFS batch, upload and
verify, commit, branch and resolve. It offers no Xet, so clients need HF_HUB_DISABLE_XET=1. Large files are answered by
a redirect to `localhost`, another host than the Hub's own, as the Hub redirects to its CDN.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_routes import LARGE, OWNER, ROUTES, TOKENS, Blob, Refused, Repository


@dataclass
class Fault:
    """Something that goes wrong with the next requests whose `METHOD /path` fits a pattern."""

    pattern: str
    times: int
    status: int | None = None
    """None: the connection is cut."""
    after: int = 0
    """Bytes of the body that get through before the cut."""
    headers: dict[str, str] = field(default_factory=dict)
    deaf: bool = False
    """The request is carried out, and the connection is cut instead of an answer."""


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    line: str
    host: str
    token: str | None
    body_bytes: int


class HubStandIn:
    """The server and what it holds. Use it as a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.before: dict[str, Callable[[], object]] = {}
        """What happens before the first request that fits a pattern is answered."""
        self.sent: Counter[str] = Counter()
        """Bytes of answers' bodies, by method and first part of the path."""
        self.waits: list[float] = []
        """Seconds that a client of `connect` would have waited."""
        self.lock = threading.Lock()
        hub = self

        class Bound(Handler):
            stand_in = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, name: str, files: dict[str, bytes], private: bool = False, branch: str = "main") -> str:
        """A commit that holds exactly these files, in a repository that is made where it is not there yet."""
        blobs = {path: Blob(data, path.endswith(LARGE)) for path, data in files.items()}
        self.objects |= {blob.oid: blob.data for blob in blobs.values() if blob.large}
        repository = self.repositories.setdefault(name, Repository(private))
        return repository.commit(branch, blobs, "added")

    def fail(self, pattern: str, status: int | None = None, times: int = 1, **more: Any) -> None:
        """Plans a failure for the next `times` requests that fit; without a status the connection is cut."""
        self.faults.append(Fault(pattern, times, status, **more))

    def fault(self, line: str) -> Fault | None:
        """The planned failure of a request."""
        with self.lock:
            found = next((fault for fault in self.faults if fault.times and re.search(fault.pattern, line)), None)
            if found is not None:
                found.times -= 1
            return found

    def count(self, pattern: str) -> int:
        """Requests so far whose `METHOD /path` fits."""
        return sum(bool(re.search(pattern, seen.line)) for seen in self.seen)

    def uploaded(self) -> int:
        """Bytes of large files that came in, also of uploads that were cut."""
        return sum(seen.body_bytes for seen in self.seen if seen.line.startswith("PUT /lfs/"))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # heads and bodies in one packet, or each would wait for the other's receipt
    disable_nagle_algorithm = True
    stand_in: HubStandIn

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def handle_any(self) -> None:
        """Reads the request, fails if that was planned, else answers."""
        hub, path = self.stand_in, unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        fault = hub.fault(line)
        cut = fault if fault and fault.status is None and not fault.deaf else None
        body = self.body(cut.after if cut and self.command in ("PUT", "POST") else None)
        hub.seen.append(Seen(line, self.headers.get("Host", ""), token, len(body)))
        for pattern in [pattern for pattern in hub.before if re.search(pattern, line)]:
            hub.before.pop(pattern)()
        if cut and self.command in ("PUT", "POST", "HEAD"):
            return self.hang_up()
        self.cut_after = cut.after if cut else 0 if fault and fault.deaf else None
        if fault is not None and fault.status is not None:
            return self.answer(fault.status, b"planned", fault.headers)
        try:
            for pattern, respond in ROUTES:
                if found := re.fullmatch(pattern, line):
                    return respond(self, body=body, token=token, **found.groupdict())
            raise Refused(404, "EntryNotFound")
        except Refused as refused:
            self.answer(refused.status, b"{}", {key: value for key, value in refused.headers.items() if value})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def body(self, most: int | None) -> bytes:
        """The request's body, or its first bytes."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length", 0))
            return self.rfile.read(length if most is None else min(most, length))
        parts = b""
        while (size := int(self.rfile.readline(), 16)) and (most is None or len(parts) < most):
            parts += self.rfile.read(size)
            self.rfile.readline()
        if most is None:
            self.rfile.readline()
        return parts if most is None else parts[:most]

    def hang_up(self) -> None:
        """Cuts the connection."""
        self.close_connection = True
        self.connection.close()

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Sends an answer whole, or what a planned cut lets through."""
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            after = getattr(self, "cut_after", None)
            self.wfile.write(data[:after])
            self.stand_in.sent["/".join(f"{self.command} {self.path}".split("/")[:2])] += len(data[:after])
            if after is not None:
                self.wfile.flush()
                self.hang_up()

    def say(self, value: Any) -> None:
        """Answers with JSON."""
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def repository(self, name: str, token: str | None, write: bool = False) -> Repository:
        """A repository that this token may see, or change."""
        self.check(token)
        found = self.stand_in.repositories.get(name)
        if found is None or (found.private and not (token and name.startswith("alice/"))):
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and (TOKENS.get(token or "") != "write" or not name.startswith("alice/")):
            raise Refused(403, "", "You have read access but not the required permissions for this operation")
        return found

    def check(self, token: str | None) -> None:
        """Refuses a token that nobody takes."""
        if token is not None and token not in TOKENS:
            raise Refused(401, "", "Invalid credentials in Authorization header")

    def head(self, repository: Repository, revision: str) -> str:
        """The commit that a branch, a tag or a commit's id names."""
        oid = repository.refs.get(revision, revision)
        if oid not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


def connect(patch: Any, hub: HubStandIn, folder: Path, token: str | None = OWNER) -> None:
    """Points the Hub's client in this process at a stand-in, with a cache below `folder` and no waiting.

    Args:
        patch: pytest's `monkeypatch`; huggingface_hub reads its environment once, when it is imported.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, close_session

    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for module in (_http, file_download):
        patch.setattr(module, "time", SimpleNamespace(sleep=hub.waits.append))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
    close_session()


def environment(hub: HubStandIn, folder: Path, token: str | None = OWNER) -> dict[str, str]:
    """The same for a new process, as environment variables."""
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HUB_CACHE")}
    return kept | own | ({"HF_TOKEN": token} if token else {})
