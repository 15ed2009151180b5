"""A hub on this machine: the endpoints that huggingface_hub asks, with large files on another host, as the real one has."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
#: Files from this size on are large ones (LFS).
LARGE = 1000


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """Repositories by name, their files by path; what was asked; and what is to go wrong."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.gated: set[str] = set()
        #: Said of a file instead of the truth: its size.
        self.sizes: dict[str, int] = {}
        #: Sent instead of a file's content.
        self.damaged: dict[str, bytes] = {}
        #: After so many bytes of a file the connection breaks, once; or it waits for `go_on`, once.
        self.break_after: dict[str, int] = {}
        self.stall_after: dict[str, int] = {}
        self.go_on = threading.Event()
        self.status: int | None = None

    def asked(self, method: str, part: str) -> list[tuple[str | None, str | None]]:
        """(Range, Authorization) of the requests whose path has `part` in it."""
        return [(r, a) for m, path, r, a in self.requests if m == method and part in path]


@contextmanager
def serve():
    """A running FakeHub and its address. The storage of large files is the same server under another name."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def body(self, content, headers, name=None):
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(wanted[1]) if wanted else 0
            self.send_response(206 if wanted else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            part = content[start:]
            if name in hub.break_after:
                part = part[: hub.break_after.pop(name)]
                self.close_connection = True
            if name in hub.stall_after:
                self.wfile.write(part[: hub.stall_after.pop(name)])
                hub.go_on.wait(60)
                self.close_connection = True
                return
            self.wfile.write(part)

        def do_GET(self):
            hub.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            if hub.status is not None:
                return self.refuse(hub.status, "")
            path = self.path.partition("?")[0].replace("%2B", "+")
            if stored := re.fullmatch(r"/storage/([0-9a-f]{64})", path):
                for files in hub.repositories.values():
                    for name, content in files.items():
                        if hashlib.sha256(content).hexdigest() == stored[1]:
                            return self.body(hub.damaged.get(name, content), {}, name)
            if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
                return self.model_info(*api.groups())
            if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.file(*file.groups())
            self.refuse(404, "RepoNotFound")

        do_HEAD = do_GET

        def model_info(self, repository, revision):
            if repository in hub.gated:
                return self.refuse(403, "GatedRepo")
            if repository not in hub.repositories:
                return self.refuse(404, "RepoNotFound")
            if revision not in {"main", COMMIT}:
                return self.refuse(404, "RevisionNotFound")
            siblings = []
            for name, content in hub.repositories[repository].items():
                size = hub.sizes.get(name, len(content))
                siblings.append({"rfilename": name, "size": size, "blobId": git_name(content)})
                if len(content) >= LARGE:
                    sha256 = hashlib.sha256(content).hexdigest()
                    siblings[-1]["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 135}
            answer = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.body(json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def file(self, repository, commit, name):
            content = hub.repositories[repository].get(name)
            if content is None:
                return self.refuse(404, "EntryNotFound")
            if len(content) < LARGE:
                tags = {"ETag": f'"{git_name(content)}"', "X-Repo-Commit": commit}
                return self.body(hub.damaged.get(name, content), tags)
            sha256 = hashlib.sha256(content).hexdigest()
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/storage/{sha256}")
            self.send_header("X-Linked-Etag", f'"{sha256}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
