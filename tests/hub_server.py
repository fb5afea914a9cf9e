"""A stand-in for Hugging Face's hub: enough of its protocol to look a model up and download it."""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(models: dict[str, Path], gated: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Serves directories under their names; gives the address and the growing list of files asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            api = path.startswith("/api/models/")
            path = path.removeprefix("/api/models/").removeprefix("/")
            name = "/".join(path.split("/")[:2])
            if name not in models:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = sorted(file for file in models[name].iterdir() if file.is_file())
            if api and "/tree/" in path:
                rows = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)} for f in files
                ]
                return self.answer(200, json.dumps(rows).encode())
            if api:
                rows = [{"rfilename": f.name, "size": f.stat().st_size, "blobId": etag(f)} for f in files]
                about = {
                    "id": name,
                    "sha": _COMMIT,
                    "siblings": rows,
                    "private": False,
                    "gated": name in gated,
                }
                return self.answer(200, json.dumps(about).encode())
            file = models[name] / path.split("/")[-1]
            if name in gated:
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _COMMIT})
            if self.command == "GET":
                asked.append(file.name)
            body = file.read_bytes()
            self.answer(200, body, {"ETag": f'"{etag(file)}"', "X-Repo-Commit": _COMMIT})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                try:
                    self.wfile.write(body)
                except OSError:  # the client stopped listening: a cancelled download
                    self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(file: Path) -> str:
    """The content's fingerprint."""
    return hashlib.sha1(file.read_bytes()).hexdigest()
