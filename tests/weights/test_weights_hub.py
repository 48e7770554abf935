"""hf:// against a local server that answers as the Hub does.

Each case runs in a process with its own cache.
"""

import hashlib
import http.server
import os
import subprocess
import sys
import threading

import pytest

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.weights import hub

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40
CONTENT = b"the bytes of a weight file"
FILES = {f"/lab/model/resolve/{revision}/sub/w.safetensors" for revision in ("main", "v2")}


class _Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body):
        found = self.path.split("?")[0] in FILES | {
            f"/lab/model/resolve/{COMMIT}/sub/w.safetensors"
        }
        body = CONTENT if found else b""
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        else:
            self.send_header(
                "X-Error-Code", "EntryNotFound" if "/lab/model/" in self.path else "RepoNotFound"
            )
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def endpoint():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _fetch(address, endpoint, home, **environment):
    """The local path or error of `hub.fetch`; the library reads its environment at import."""
    code = (
        "import sys, time\nfrom medtl.errors import UserError\nfrom medtl.weights import hub\n"
        "time.sleep = lambda seconds: None\n"  # between the library's attempts to reach a server
        "try:\n    print('PATH', hub.fetch(sys.argv[1]))\n"
        "except UserError as error:\n    print('ERROR', error)"
    )
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    done = subprocess.run(
        [sys.executable, "-c", code, address],
        env={**clean, **own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


def test_file_is_fetched_and_then_comes_from_the_cache(endpoint, tmp_path):
    for revision in ("", "@v2"):
        kind, path = _fetch(
            f"hf://lab/model/sub/w.safetensors{revision}", endpoint, tmp_path
        ).split(" ", 1)
        assert kind == "PATH"
        with open(path, "rb") as file:
            assert file.read() == CONTENT
        assert COMMIT in path
    offline = _fetch("hf://lab/model/sub/w.safetensors", endpoint, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.startswith("PATH")


@pytest.mark.parametrize(
    ("address", "environment", "text"),
    [
        ("hf://lab/model/other.safetensors", {}, "the Hub has no such file"),
        ("hf://lab/none/w.safetensors", {}, "the Hub has no such repository"),
        ("hf://lab/model/sub/w.safetensors", {"HF_HUB_OFFLINE": "1"}, "not in the cache"),
        (
            "hf://lab/model/sub/w.safetensors",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "the Hub cannot be reached",
        ),
        ("hf://lab--x/-/w.safetensors", {}, "cannot be downloaded"),
    ],
)
def test_what_cannot_be_had_is_one_error(address, environment, text, endpoint, tmp_path):
    answer = _fetch(address, endpoint, tmp_path, **environment)
    assert answer.startswith("ERROR config.weights.path: ")
    assert text in answer
    assert address in answer


@pytest.mark.parametrize(
    "address", ["hf://w.safetensors", "hf://lab", "https://x.org/w.pth", "hf://a/b/c@d@e"]
)
def test_other_addresses_are_refused_before_any_network(address):
    with pytest.raises(UserError, match="not of the form hf://org/repo/file"):
        weights.check(address)


def test_address_is_recorded_and_the_hash_is_checked(tmp_path, monkeypatch, variables, shapes):
    local = tmp_path / "w.safetensors"
    weights.export(local, "cifar_resnet20", variables, normalization=NORMALIZATIONS["caffe"])
    monkeypatch.setattr(hub, "fetch", lambda address: str(local))
    address = "hf://lab/model/w.safetensors"
    loaded = weights.load(address, models.parse("cifar_resnet20"), shapes("cifar_resnet20"))
    assert (loaded.path, loaded.sha256) == (address, hashlib.sha256(local.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="config.weights.sha256"):
        weights.load(
            address, models.parse("cifar_resnet20"), shapes("cifar_resnet20"), sha256="0" * 64
        )
    with pytest.raises(UserError, match="64 hexadecimal"):
        weights.check(address, sha256="1")
