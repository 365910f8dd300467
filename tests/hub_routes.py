"""What the Hub stand-in holds and how it answers each request. A route gets the handler as `on`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".parquet", ".png", ".bin")
OWNER, READER, EXPIRED = "hf_" + "o" * 34, "hf_" + "r" * 34, "hf_" + "x" * 34
"""Tokens: of `alice` with write permission, of `alice` with read permission alone, and one that nobody takes."""
TOKENS = {OWNER: "write", READER: "read"}
NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Blob:
    """A file's content, and how the Hub keeps it."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        """sha256 of a large file, git's sha1 of a small one."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def described(self, path: str) -> dict[str, Any]:
        """As in a tree listing."""
        lfs = {"lfs": {"oid": self.oid, "size": len(self.data), "pointerSize": 130}} if self.large else {}
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid} | lfs


@dataclass
class Repository:
    """Commits by id, and the names that point at them."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        """A new commit at the head of a branch; its id has 40 hex digits."""
        oid = hashlib.sha1(repr((len(self.commits), branch, sorted(files), message)).encode()).hexdigest()
        self.commits[oid], self.refs[branch] = files, oid
        self.messages.append(message)
        return oid


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


def whoami(on: Any, token: str | None, **_: Any) -> None:
    on.check(token)
    if token is None:
        raise Refused(401, "", "Invalid username or password.")
    on.say({"type": "user", "name": "alice", "auth": {"accessToken": {"role": TOKENS[token]}}})


def create(on: Any, body: bytes, token: str | None, **_: Any) -> None:
    on.check(token)
    wanted = json.loads(body)
    name = f"{wanted['organization']}/{wanted['name']}"
    if token is None:
        raise Refused(401, "", "Invalid username or password.")
    if TOKENS[token] != "write" or wanted["organization"] != "alice":
        raise Refused(403, "", "You don't have the rights to create a model under this namespace")
    if name in on.stand_in.repositories:
        return on.answer(409, json.dumps({"url": f"{on.stand_in.endpoint}/{name}"}).encode())
    repository = Repository(wanted.get("visibility") == "private" or wanted.get("private") is True)
    on.stand_in.repositories[name] = repository
    repository.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
    on.say({"url": f"{on.stand_in.endpoint}/{name}"})


def info(on: Any, name: str, token: str | None, revision: str = "main", **_: Any) -> None:
    repository = on.repository(name, token)
    head = on.head(repository, revision)
    files = [blob.described(path) for path, blob in sorted(repository.commits[head].items())]
    siblings = [{"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]} for file in files]
    on.say({"id": name, "modelId": name, "sha": head, "private": repository.private, "siblings": siblings})


def tree(on: Any, name: str, revision: str, token: str | None, **_: Any) -> None:
    repository = on.repository(name, token)
    on.say([blob.described(path) for path, blob in repository.commits[on.head(repository, revision)].items()])


def validate(on: Any, body: bytes, token: str | None, **_: Any) -> None:
    import yaml

    on.check(token)
    found = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
    try:
        yaml.safe_load(found[1] if found else "")
    except yaml.YAMLError:
        return on.answer(400, json.dumps({"errors": [{"message": "the metadata is no YAML"}], "warnings": []}).encode())
    on.say({"errors": [], "warnings": []})


def preupload(on: Any, name: str, revision: str, body: bytes, token: str | None, **_: Any) -> None:
    repository = on.repository(name, token, write=True)
    there = repository.commits[on.head(repository, revision)]
    answer = []
    for path in (file["path"] for file in json.loads(body)["files"]):
        oid = {"oid": there[path].oid} if path in there else {}
        mode = "lfs" if path.endswith(LARGE) else "regular"
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | oid)
    on.say({"files": answer})


def batch(on: Any, name: str, body: bytes, token: str | None, **_: Any) -> None:
    on.repository(name, token, write=True)
    objects, hub = [], on.stand_in
    for wanted in json.loads(body)["objects"]:
        actions = {
            "upload": {"href": f"{hub.cdn}/lfs/{wanted['oid']}"},
            "verify": {"href": f"{hub.endpoint}/verify"},
        }
        objects.append(wanted | ({} if wanted["oid"] in hub.objects else {"actions": actions}))
    on.say({"transfer": "basic", "objects": objects})


def store(on: Any, oid: str, body: bytes, **_: Any) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "", "the content is not that of its hash")
    on.stand_in.objects[oid] = body
    on.answer(200)


def verify(on: Any, body: bytes, **_: Any) -> None:
    wanted = json.loads(body)
    if len(on.stand_in.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise Refused(404, "", "no such object")
    on.say({})


def commit(on: Any, name: str, revision: str, body: bytes, token: str | None, **_: Any) -> None:
    repository, hub = on.repository(name, token, write=True), on.stand_in
    head = on.head(repository, revision)
    lines = [json.loads(line) for line in body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit", head) != head:
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    files = dict(repository.commits[head])
    for key, value in ((line["key"], line["value"]) for line in lines):
        if key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refused(400, "", "an LFS object is missing")
            files[value["path"]] = Blob(hub.objects[value["oid"]], True)
        elif key == "deletedFile":
            del files[value["path"]]
    oid = repository.commit(revision, files, header["summary"])
    on.say({"commitUrl": f"{hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None})


def branch(on: Any, name: str, revision: str, token: str | None, **_: Any) -> None:
    repository = on.repository(name, token, write=True)
    if revision in repository.refs:
        raise Refused(409)
    repository.refs[revision] = repository.refs["main"]
    on.say({})


def resolve(on: Any, name: str, revision: str, path: str, token: str | None, **_: Any) -> None:
    repository = on.repository(name, token)
    head = on.head(repository, revision)
    blob = repository.commits[head].get(path)
    if blob is None:
        return on.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": head})
    headers = {"X-Repo-Commit": head, "ETag": f'"{blob.oid}"'}
    if not blob.large:
        return on.answer(200, blob.data, headers)
    linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(blob.data))}
    on.answer(302, b"", headers | linked | {"Location": f"{on.stand_in.cdn}/cdn/{blob.oid}"})


def deliver(on: Any, oid: str, **_: Any) -> None:
    data = on.stand_in.objects[oid]
    start = int(re.sub(r"bytes=(\d+)-.*", r"\1", on.headers.get("Range", "bytes=0-")))
    more = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
    on.answer(206 if start else 200, data[start:], more)


ROUTES = (
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (rf"GET /api/models/{NAME}", info),
    (rf"GET /api/models/{NAME}/revision/(?P<revision>.+)", info),
    (rf"GET /api/models/{NAME}/tree/{REVISION}", tree),
    (r"POST /api/validate-yaml", validate),
    (rf"POST /api/models/{NAME}/preupload/(?P<revision>.+)", preupload),
    (rf"POST /api/models/{NAME}/commit/(?P<revision>.+)", commit),
    (rf"POST /api/models/{NAME}/branch/(?P<revision>.+)", branch),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", batch),
    (r"PUT /lfs/(?P<oid>\w+)", store),
    (r"POST /verify", verify),
    (rf"(GET|HEAD) /{NAME}/resolve/{REVISION}/(?P<path>.+)", resolve),
    (r"GET /cdn/(?P<oid>\w+)", deliver),
)
