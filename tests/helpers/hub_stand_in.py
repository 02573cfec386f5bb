"""A local stand-in of the hub's HTTP interface for uploads, which checks what is sent.

Speaks what huggingface_hub speaks with xet off: create repository, tree, preupload, LFS batch with basic uploads,
commit, validate-yaml. Checks: the login on every call but uploads to storage, sha256 and size of every object, that a
commit names only objects that arrived. Its state lives in the process, so it outlasts a client that is killed.
"""

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import web

LARGE = (".gguf", ".safetensors", ".dat")
LICENCES = {"gemma", "apache-2.0", "mit", "other"}


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    token: str
    port: int = 0
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    received: list[tuple[str, int]] = field(default_factory=list)  # oid, bytes of every upload to storage
    wrong: list[str] = field(default_factory=list)  # what the client must not have done
    hold: threading.Event | None = None  # an upload waits on it, once `hold_at` uploads have arrived
    hold_at: int = 0
    holding: threading.Event = field(default_factory=threading.Event)
    spoil: bool = False  # the hub loses the last byte of what it stores

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._login])
        app.router.add_post("/api/repos/create", self.create)
        app.router.add_get("/api/models/{org}/{name}/tree/{rev}", self.tree)
        app.router.add_post("/api/models/{org}/{name}/preupload/{rev}", self.preupload)
        app.router.add_post("/{org}/{name}.git/info/lfs/objects/batch", self.batch)
        app.router.add_put("/storage/{oid}", self.store)
        app.router.add_post("/api/models/{org}/{name}/commit/{rev}", self.commit)
        app.router.add_post("/api/validate-yaml", self.validate)
        return app

    @web.middleware
    async def _login(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.token in str(request.rel_url):
            self.wrong.append("token in an address")
        given = request.headers.get("Authorization")
        if request.path.startswith("/storage/"):
            if given:
                self.wrong.append("token sent to storage")
        elif given not in (None, f"Bearer {self.token}") or (
            given is None and request.method != "GET" and request.path != "/api/validate-yaml"
        ):
            return web.json_response({"error": "Invalid credentials"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    def _repo(self, request: web.Request) -> dict[str, bytes]:
        name = f"{request.match_info['org']}/{request.match_info['name']}"
        if name not in self.repos:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"}, text="Repository not found")
        return self.repos[name]

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"{body['organization']}/{body['name']}"
        if name in self.repos:
            return web.json_response({"error": "You already created this repo"}, status=409)
        self.repos[name] = {".gitattributes": b"*.gguf filter=lfs\n"}
        if body.get("visibility") == "private" or body.get("private"):
            self.private.add(name)
        return web.json_response({"url": f"{self.url}/{name}", "name": name, "id": "1"})

    async def tree(self, request: web.Request) -> web.Response:
        rows = []
        for path, data in sorted(self._repo(request).items()):
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            if path.endswith(LARGE):
                pointer = f"oid sha256:{hashlib.sha256(data).hexdigest()}".encode()
                row |= {
                    "oid": blob_id(pointer),
                    "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": len(pointer)},
                }
            rows.append(row)
        return web.json_response(rows)

    async def preupload(self, request: web.Request) -> web.Response:
        repo, body = self._repo(request), await request.json()
        return web.json_response(
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": blob_id(repo[f["path"]]) if f["path"] in repo else None,
                    }
                    for f in body["files"]
                ]
            }
        )

    async def batch(self, request: web.Request) -> web.Response:
        self._repo(request)
        body = await request.json()
        rows = []
        for o in body["objects"]:
            row = {"oid": o["oid"], "size": o["size"]}
            if o["oid"] not in self.objects:
                row["actions"] = {"upload": {"href": f"{self.url}/storage/{o['oid']}", "header": {}}}
            rows.append(row)
        return web.json_response({"transfer": "basic", "objects": rows})

    async def store(self, request: web.Request) -> web.Response:
        data = await request.read()
        oid = request.match_info["oid"]
        if self.hold is not None and len(self.received) >= self.hold_at:
            self.holding.set()
            while not self.hold.is_set():
                await asyncio.sleep(0.02)
            return web.Response(status=503)
        self.received.append((oid, len(data)))
        if hashlib.sha256(data).hexdigest() != oid:
            self.wrong.append(f"bytes of {oid} are others")
            return web.Response(status=400)
        self.objects[oid] = data
        return web.Response()

    async def commit(self, request: web.Request) -> web.Response:
        repo = self._repo(request)
        names = []
        for line in (await request.read()).splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                repo[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                data = self.objects.get(value["oid"])
                if data is None or len(data) != value["size"]:
                    self.wrong.append(f"commit names {value['path']}, which did not arrive")
                    return web.json_response({"error": "missing object"}, status=400)
                repo[value["path"]] = data[:-1] if self.spoil else data
            elif item["key"] == "header":
                continue
            else:
                self.wrong.append(f"unexpected operation {item['key']}")
            names.append(value["path"])
        self.commits.append(names)
        return web.json_response(
            {
                "commitUrl": f"{self.url}/me/small-GGUF/commit/{len(self.commits):040x}",
                "commitOid": f"{len(self.commits):040x}",
                "success": True,
            }
        )

    async def validate(self, request: web.Request) -> web.Response:
        """The rules of the hub that are written down: front matter is a table, licence known, names where names go."""
        content = (await request.json())["content"]
        errors = []
        try:
            data = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else None
        except yaml.YAMLError as exc:
            data, errors = None, [str(exc)]
        if not isinstance(data, dict):
            errors.append("empty or missing yaml metadata")
        else:
            if data.get("license") not in LICENCES:
                errors.append('"license" must be one of the known ids')
            if not isinstance(data.get("tags", []), list):
                errors.append('"tags" must be an array')
            if "/" not in str(data.get("base_model", "a/b")):
                errors.append('"base_model" is no model id')
        if errors:
            return web.json_response({"errors": [{"message": e} for e in errors], "warnings": []}, status=400)
        return web.json_response({"errors": [], "warnings": []})


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(hub.app(), shutdown_timeout=1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        hub.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.hold is not None:
            hub.hold.set()
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
