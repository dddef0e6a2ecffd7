"""A Hub in this process: repositories in a dictionary, the few endpoints that pushing and pulling a model touch."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "c0ffee" + "0" * 34


class FakeHub(ThreadingHTTPServer):
    """`with FakeHub() as hub:` serves `hub.url`; pushed files are in `hub.repos[repo][path]`.

    A data set's repo is `datasets/<owner>/<name>`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


def listed(path, files):
    """How the Hub lists a file or a folder; None where there is neither."""
    if path in files:
        return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
    is_folder = any(name.startswith(path + "/") for name in files)
    return {"type": "directory", "path": path, "oid": "0" * 40} if is_folder else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Keeps the test output clean."""

    def answer(self, content, status=200, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in (
            ("Content-Length", len(body)),
            ("Content-Type", kind),
            ("X-Repo-Commit", COMMIT),
            *headers,
        ):
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def received(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def missing(self, code):
        self.answer({"error": code}, 404, [("X-Error-Code", code)])

    def handle_request(self):
        body, repos = self.received(), self.server.repos
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            return self.answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        if parts[:2] == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            repos.setdefault(repo, {})
            return self.answer({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        if parts[:2] == ["api", "models"]:
            return self.model("/".join(parts[2:4]), parts[4:], body)
        if parts[:2] == ["api", "datasets"]:
            return self.model("/".join(["datasets", *parts[2:4]]), parts[4:], body)
        if "resolve" in parts[2:4]:
            place = parts.index("resolve")
            content = repos.get("/".join(parts[:place]), {}).get("/".join(parts[place + 2 :]))
            if content is None:
                return self.missing("EntryNotFound")
            return self.answer(content, headers=[("ETag", f'"{hashlib.sha1(content).hexdigest()}"')])
        return self.missing("EntryNotFound")

    def level(self, files, inside):
        start = inside + "/" if inside else ""
        names = dict.fromkeys(
            start + path.removeprefix(start).split("/")[0] for path in files if path.startswith(start)
        )
        return self.answer([listed(name, files) for name in names]) if names else self.missing("EntryNotFound")

    def model(self, repo, rest, body):
        files = self.server.repos.get(repo)
        if files is None:
            return self.missing("RepoNotFound")
        if rest[:1] == ["preupload"]:
            plan = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": plan})
        if rest[:1] == ["commit"]:
            for line in body.splitlines():
                step = json.loads(line)
                if step["key"] == "file":
                    files[step["value"]["path"]] = base64.b64decode(step["value"]["content"])
                if step["key"] == "deletedFile":
                    files.pop(step["value"]["path"])
            return self.answer(
                {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}"}
            )
        if rest[:1] == ["paths-info"]:
            wanted = parse_qs(body.decode())["paths"]
            return self.answer([listed(path, files) for path in wanted if listed(path, files)])
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            if "recursive=false" in urlparse(self.path).query.lower():
                return self.level(files, inside)
            found = {path: c for path, c in files.items() if not inside or path.startswith(inside + "/")}
            listed = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in found.items()
            ]
            return self.answer(listed) if listed or not inside else self.missing("EntryNotFound")
        siblings = [{"rfilename": path} for path in files]
        return self.answer(
            {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        )

    do_GET = do_HEAD = do_POST = do_PUT = handle_request
