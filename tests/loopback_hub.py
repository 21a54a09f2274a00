"""A Hugging Face Hub on 127.0.0.1 that serves local folders as repositories, for `HF_ENDPOINT`.

    with LoopbackHub() as hub:
        hub.add("user/model", folder)
        subprocess.run(command, env=os.environ | hub.environment(cache))

It has what downloads need: repository info, the tree listing and the files themselves (HEAD and GET); and what uploads
need: who a token belongs to, new repositories, the check of cards, commits with small files in them, and a storage that
weights, tables and pictures are put to by Git LFS ("basic" transfer). A folder is read at each request, and its commit
is a hash of its content, so changed files are a new commit; older ones are not kept. Repositories that are created live
in a temporary folder, and may be written by the token `TOKEN` only.
"""

import base64
import hashlib
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

BRANCH = "main"
TOKEN = "hf_loopback"
USER = "user"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".jpg")
TYPE_OF_PREFIX = {"": "model", "models": "model", "datasets": "dataset", "spaces": "space"}


class HubError(Exception):
    """An answer with the status and the `X-Error-Code` by which huggingface_hub chooses its exception."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


@dataclass
class Answer:
    """Body and headers of a response."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value, **kwargs) -> "Answer":
        return cls(json.dumps(value).encode(), headers={"Content-Type": "application/json"}, **kwargs)


@dataclass
class Repository:
    """A folder served under `repo_id`; its only branch is `main`."""

    repo_id: str
    folder: Path
    private: bool = False
    sdk: str | None = None

    def files(self) -> dict[str, Path]:
        """The files by their path in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in paths}

    def commit(self) -> str:
        """40 hexadecimal digits that stand for names and content of all files."""
        listing = [f"{name} {blob_id(path.read_bytes())}" for name, path in self.files().items()]
        return hashlib.sha1("\n".join(listing).encode()).hexdigest()

    def resolve(self, revision: str) -> str:
        """The commit of a branch or commit name."""
        commit = self.commit()
        if revision not in (BRANCH, commit):
            raise HubError(404, "RevisionNotFound", f"{self.repo_id} has no revision {revision}")
        return commit


def blob_id(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_id(content: bytes) -> str:
    """The hash by which Git LFS stores a file."""
    return hashlib.sha256(content).hexdigest()


def lfs_pointer(content: bytes) -> bytes:
    """What Git has in the place of a file that Git LFS stores."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{lfs_id(content)}\nsize {len(content)}\n".encode()


def is_lfs(path: str) -> bool:
    """Whether Git LFS stores the file."""
    return path.endswith(LFS_SUFFIXES)


def description(path: str, content: bytes) -> dict:
    """A file as the tree lists it."""
    if not is_lfs(path):
        return {"type": "file", "size": len(content), "oid": blob_id(content)}
    pointer = lfs_pointer(content)
    lfs = {"oid": lfs_id(content), "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "size": len(content), "oid": blob_id(pointer), "lfs": lfs}


class LoopbackHub:
    """The server; a context manager.

    Attributes:
        url: its address, for `HF_ENDPOINT`.
        requests: "METHOD /path" of all requests up to now, in their order.
    """

    def __init__(self):
        self.requests: list[str] = []
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._objects: dict[str, bytes] = {}
        self._created = tempfile.TemporaryDirectory()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._created.cleanup()

    def add(self, repo_id: str, folder: str | Path, repo_type: str = "model") -> Repository:
        """Serve a folder as the repository `namespace/name`."""
        repository = Repository(repo_id, Path(folder))
        self._repositories[repo_type, repo_id] = repository
        return repository

    def repository(self, repo_type: str, repo_id: str) -> Repository:
        if (repo_type, repo_id) not in self._repositories:
            raise HubError(404, "RepoNotFound", f"there is no {repo_type} repository {repo_id}")
        return self._repositories[repo_type, repo_id]

    def environment(self, home: str | Path) -> dict[str, str]:
        """Environment variables of a process that takes this for the Hub, with its caches under `home`.

        Where hf_xet is installed, huggingface_hub uploads by Xet whatever a server says, unless that is forbidden.
        """
        switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home)} | switches

    def answer(self, method: str, path: str, query: str, body: bytes, token: str | None) -> Answer:
        """The response to a request; the routes are tried in their order."""
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in methods:
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                if methods in (_WRITE, _OWN) and token != TOKEN:
                    raise HubError(401, "", "Invalid credentials in Authorization header")
                return action(self, body if methods in (_WRITE, _STORE) else parse_qs(query), **groups)
        raise HubError(404, "NotFound", f"no route for {method} {path}")

    def info(self, query: dict, prefix: str, repo_id: str, revision: str) -> Answer:
        """Commit and file names of a repository."""
        repository = self.repository(TYPE_OF_PREFIX[prefix], repo_id)
        commit = repository.resolve(revision or BRANCH)
        siblings = [{"rfilename": name} for name in repository.files()]
        content = {"id": repo_id, "sha": commit, "private": repository.private, "tags": [], "siblings": siblings}
        return Answer.of_json(content)

    def tree(self, query: dict, prefix: str, repo_id: str, revision: str, folder: str) -> Answer:
        """Files with size and hash, and folders, on one page: those in `folder`, or all below it if recursive."""
        repository = self.repository(TYPE_OF_PREFIX[prefix], repo_id)
        commit = {"X-Repo-Commit": repository.resolve(revision)}
        start = f"{folder}/" if folder else ""
        entries = {}
        for name, path in repository.files().items():
            if name.startswith(start):
                content = path.read_bytes()
                for parent in list(Path(name).relative_to(folder).parents)[:-1]:
                    entries[start + parent.as_posix()] = {"type": "directory", "size": 0, "oid": "0" * 40}
                entries[name] = description(name, content)
        if folder and not entries:
            raise HubError(404, "EntryNotFound", f"{repo_id} has no folder {folder}", commit)
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = {name: entry for name, entry in entries.items() if "/" not in name[len(start) :]}
        return Answer.of_json([{"path": name} | entry for name, entry in entries.items()])

    def file(self, query: dict, prefix: str, repo_id: str, revision: str, path: str) -> Answer:
        """A file, with its hash as ETag."""
        repository = self.repository(TYPE_OF_PREFIX[prefix], repo_id)
        commit = {"X-Repo-Commit": repository.resolve(revision)}
        source = repository.files().get(path)
        if source is None:
            raise HubError(404, "EntryNotFound", f"{repo_id} has no file {path}", commit)
        content = source.read_bytes()
        linked = {"X-Linked-Etag": f'"{lfs_id(content)}"', "X-Linked-Size": str(len(content))} if is_lfs(path) else {}
        return Answer(content, headers=commit | linked | {"ETag": f'"{blob_id(content)}"'})

    def store(self, body: bytes, oid: str) -> Answer:
        """A file into the storage."""
        if lfs_id(body) != oid:
            raise HubError(400, "", f"this is not the content of {oid}")
        self._objects[oid] = body
        return Answer(b"")

    def batch(self, body: bytes, prefix: str, repo_id: str) -> Answer:
        """Where files for Git LFS shall be put; nowhere if they are stored already."""
        self.repository(TYPE_OF_PREFIX[prefix], repo_id)
        objects = json.loads(body)["objects"]
        for asked in objects:
            if asked["oid"] not in self._objects:
                asked["actions"] = {"upload": {"href": f"{self.url}/storage/{asked['oid']}"}}
        return Answer.of_json({"transfer": "basic", "objects": objects})

    def whoami(self, query: dict) -> Answer:
        """Whose the token is."""
        return Answer.of_json({"type": "user", "name": USER, "orgs": []})

    def create(self, body: bytes) -> Answer:
        """A new and empty repository of the user."""
        asked = json.loads(body)
        repo_id, repo_type = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        if asked["organization"] != USER:
            raise HubError(403, "", f"You don't have the rights to create a {repo_type} under {asked['organization']}")
        url = {"url": f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"}
        if (repo_type, repo_id) in self._repositories:
            return Answer.of_json(url | {"error": "You already created this repo"}, status=409)
        folder = Path(self._created.name) / repo_type / repo_id
        folder.mkdir(parents=True)
        repository = self.add(repo_id, folder, repo_type)
        repository.private, repository.sdk = asked.get("visibility") == "private", asked.get("sdk")
        return Answer.of_json(url)

    def validate(self, body: bytes) -> Answer:
        """Whether a card begins with metadata in YAML."""
        found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            is_good = isinstance(yaml.safe_load(found[1]), dict)
        except (TypeError, yaml.YAMLError):
            is_good = False
        errors = [] if is_good else [{"message": "no metadata"}]
        return Answer.of_json({"errors": errors, "warnings": []}, status=200 if is_good else 400)

    def preupload(self, body: bytes, prefix: str, repo_id: str, revision: str) -> Answer:
        """How files shall be uploaded, and the hashes of those that are there."""
        files = self.repository(TYPE_OF_PREFIX[prefix], repo_id).files()
        answers = []
        for path in (asked["path"] for asked in json.loads(body)["files"]):
            mode, hash_of = ("lfs", lfs_id) if is_lfs(path) else ("regular", blob_id)
            oid = hash_of(files[path].read_bytes()) if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer.of_json({"files": answers})

    def commit(self, body: bytes, prefix: str, repo_id: str, revision: str) -> Answer:
        """Files added and taken away, as lines of JSON."""
        repository = self.repository(TYPE_OF_PREFIX[prefix], repo_id)
        for line in map(json.loads, body.splitlines()):
            path = repository.folder / line["value"].get("path", "")
            if line["key"] in ("file", "lfsFile"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._content(line["value"]))
            elif line["key"] == "deletedFile":
                path.unlink()
            elif line["key"] == "deletedFolder":
                shutil.rmtree(path)
            elif line["key"] != "header":
                raise HubError(400, "", f"no such operation: {line['key']}")
        commit = repository.commit()
        return Answer.of_json({"commitUrl": f"{self.url}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _content(self, added: dict) -> bytes:
        """The content of a file that a commit adds, which is in the commit or in the storage."""
        if "content" in added:
            return base64.b64decode(added["content"])
        if added["oid"] not in self._objects:
            raise HubError(400, "", f"the content of {added['path']} has not been uploaded")
        return self._objects[added["oid"]]


_READ, _STORE = ("GET", "HEAD"), ("PUT",)
_OWN, _WRITE = ("GET",), ("POST",)
"""Methods of requests that need the token."""
_API = "/api/(?P<prefix>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_FILES = "/((?P<prefix>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., Answer]]] = [
    (_OWN, "/api/whoami-v2", LoopbackHub.whoami),
    (_WRITE, "/api/repos/create", LoopbackHub.create),
    (_WRITE, "/api/validate-yaml", LoopbackHub.validate),
    (_WRITE, _API + "/preupload/(?P<revision>[^/]+)", LoopbackHub.preupload),
    (_WRITE, _API + "/commit/(?P<revision>[^/]+)", LoopbackHub.commit),
    (_WRITE, _FILES + ".git/info/lfs/objects/batch", LoopbackHub.batch),
    (_STORE, "/storage/(?P<oid>[0-9a-f]{64})", LoopbackHub.store),
    (_READ, _API + "(/revision/(?P<revision>[^/]+))?", LoopbackHub.info),
    (_READ, _API + "/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", LoopbackHub.tree),
    (_READ, _FILES + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", LoopbackHub.file),
]


class _Handler(BaseHTTPRequestHandler):
    """Passes requests on to the hub, and its answers back."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            answer = self.hub.answer(self.command, url.path, url.query, body, token)
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            answer = Answer.of_json({"error": str(error)}, status=error.status)
            answer.headers |= headers | error.headers
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815  (the names http.server asks for)

    def log_message(self, format: str, *args) -> None:
        """Keep quiet: `LoopbackHub.requests` is the log."""
