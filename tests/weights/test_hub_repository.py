"""Whole repositories, hf://org/repo, against a local server that answers as the Hub does."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from urllib.parse import unquote

import numpy as np
import pytest
import safetensors.numpy

from medtl import models, weights
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.weights import hub, siblings

pytest.importorskip("huggingface_hub")
COMMIT = "c" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    """Repositories in memory: repo -> file -> content."""

    protocol_version = "HTTP/1.1"
    repos: dict = {}  # noqa: RUF012

    def do_HEAD(self):
        self._file(with_body=False)

    def do_GET(self):
        parts = unquote(self.path.split("?")[0]).split("/")
        if parts[1:3] == ["api", "models"]:
            content = self.repos.get("/".join(parts[3:5]))
            entries = [
                {"type": "file", "path": n, "size": len(b), "oid": "0" * 40}
                for n, b in (content or {}).items()
            ]
            self._send(404 if content is None else 200, json.dumps(entries).encode())
        else:
            self._file(with_body=True)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            fields = json.loads(body)
            repo = f"{fields['organization']}/{fields['name']}"
            self.repos.setdefault(repo, {})
            answer = {"url": f"http://{self.headers['Host']}/{repo}"}
        elif "/preupload/" in self.path:
            paths = [f["path"] for f in json.loads(body)["files"]]
            answer = {
                "files": [
                    {"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths
                ]
            }
        elif "/commit/" not in self.path:  # the card's YAML is valid
            answer = {"errors": [], "warnings": []}
        else:
            repo = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": url}
        self._send(200, json.dumps(answer).encode())

    def _file(self, *, with_body):
        parts = unquote(self.path.split("?")[0]).split("/")
        content = self.repos.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
        self._send(200, content, headers, with_body=with_body)

    def _send(self, status, body, headers=None, *, with_body=True):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
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


def run(code, endpoint, home, *arguments, **environment):
    """Return what code prints last in a process of its own: the library reads its environment."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()
    }
    own = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "hf_test",
    }
    text = (
        "import sys\nfrom medtl.errors import UserError\nfrom medtl.weights import hub\ntry:\n"
        f"    {code}\nexcept UserError as error:\n    print('ERROR', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        env={**clean, **own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


FETCH = "local = hub.fetch(sys.argv[1]); print('PATH', local, hub.pinned(sys.argv[1], local))"


@pytest.fixture(scope="module")
def parts(variables, tmp_path_factory):
    """A CIFAR ResNet in two parts with an index, as large models are kept; name -> content."""
    folder = tmp_path_factory.mktemp("parts")
    weights.export(
        folder / "w.safetensors", "cifar_resnet20", variables, normalization=NORMALIZATIONS["caffe"]
    )
    tensors = safetensors.numpy.load_file(folder / "w.safetensors")
    names = list(tensors)
    files = {}
    for i, own in enumerate((names[::2], names[1::2]), start=1):
        content = safetensors.numpy.save({n: tensors[n] for n in own})
        files[f"model-{i}-of-2.safetensors"] = (own, content)
    index = {"weight_map": {n: file for file, (own, _) in files.items() for n in own}}
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    return {
        **{file: content for file, (_, content) in files.items()},
        "model.safetensors.index.json": json.dumps(index).encode(),
        "preprocessor_config.json": json.dumps(preprocessor).encode(),
    }


@pytest.fixture(scope="module")
def variables(shapes, randomize):
    return randomize(shapes("cifar_resnet20"))


def test_repository_in_parts_is_resolved_read_and_pinned(
    endpoint, tmp_path, parts, shapes, variables
):
    _Hub.repos["lab/net"] = parts
    kind, local, address = run(FETCH, endpoint, tmp_path, "hf://lab/net").split(" ")
    assert kind == "PATH"
    assert address == f"hf://lab/net/model.safetensors.index.json@{COMMIT}"
    loaded = weights.load(local, models.parse("cifar_resnet20"), shapes("cifar_resnet20"))
    for ours, theirs in zip(
        _leaves(loaded.variables["params"]), _leaves(variables["params"]), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.normalization.mean == (127.5,) * 3  # (x / 255 - 0.5) / 0.5
    assert "preprocessor_config.json" in loaded.report.notes[0]
    began = time.monotonic()
    assert run(FETCH, "http://127.0.0.1:9", tmp_path, "hf://lab/net").startswith(f"PATH {local}")
    assert time.monotonic() - began < 30  # on a busy machine; the library alone tries for longer


def _leaves(tree):
    return [y for x in tree.values() for y in (_leaves(x) if isinstance(x, dict) else [x])]


def test_a_missing_part_is_named(parts, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(parts[index.name])
    (tmp_path / "model-1-of-2.safetensors").write_bytes(parts["model-1-of-2.safetensors"])
    with pytest.raises(UserError, match="model-2-of-2.safetensors, which is missing"):
        weights.check(str(index))
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(UserError, match="no .safetensors file beside it"):
        weights.check(str(index))
    index.write_text("[1]")
    with pytest.raises(UserError, match="no index of safetensors files"):
        weights.check(str(index))


def test_a_repository_without_one_weight_file_shows_what_it_has(endpoint, tmp_path):
    _Hub.repos["lab/two"] = {"a.pth": b"1", "b.pth": b"2"}
    answer = run(FETCH, endpoint, tmp_path, "hf://lab/two")
    assert answer.startswith("ERROR")
    assert "it has a.pth, b.pth" in answer
    offline = run(FETCH, "http://127.0.0.1:9", tmp_path, "hf://lab/other")
    assert "run `hf download lab/other`" in offline


def test_what_is_pushed_comes_back(endpoint, tmp_path, variables):
    path = tmp_path / "mine.safetensors"
    weights.export(path, "cifar_resnet20", variables, normalization=NORMALIZATIONS["caffe"])
    (tmp_path / "mine_loader.py").write_text("# loads it")
    code = "print(hub.push(sys.argv[1], 'lab/mine', card='# Model'))"
    address = run(code, endpoint, tmp_path / "home", path)
    assert address == f"hf://lab/mine/model.safetensors@{COMMIT}"
    assert _Hub.repos["lab/mine"] == {
        "model.safetensors": path.read_bytes(),
        "model_loader.py": b"# loads it",
        "README.md": b"# Model",
    }
    _, local, _ = run(FETCH, endpoint, tmp_path / "home", address).split(" ")
    with open(local, "rb") as file:
        assert file.read() == path.read_bytes()
    assert run(code, endpoint, tmp_path, tmp_path / "none.safetensors").startswith("ERROR push")


def test_timm_and_hugging_face_files_state_the_same_input(tmp_path):
    weights_file = str(tmp_path / "model.safetensors")
    assert siblings.normalization(weights_file) is None
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_cfg": {"mean": mean, "std": std}})
    )
    found, name = siblings.normalization(weights_file)
    assert name == "config.json"
    np.testing.assert_allclose(found.mean, NORMALIZATIONS["torchvision"].mean)
    np.testing.assert_allclose(found.std, NORMALIZATIONS["torchvision"].std)
    settings = {"image_mean": mean, "image_std": std, "do_rescale": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert siblings.normalization(weights_file) == (found, "preprocessor_config.json")
    settings["do_normalize"] = False
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert siblings.normalization(weights_file)[0].std == (255.0,) * 3
    assert siblings.normalization(str(tmp_path / "mine.safetensors")) is None


def test_addresses_with_and_without_a_file():
    assert hub.check("hf://lab/net")["file"] is None
    assert hub.check("hf://lab/net@v1")["revision"] == "v1"
    assert hub.check("hf://lab/net/a/b.bin@v1").groups() == ("lab/net", "a/b.bin", "v1")
