"""A web server on the loopback that misbehaves as told, and model cards whose weights it serves."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from segadapt.models import downloads
from segadapt.models.card import Checkpoint, HubSource, ModelCard, WheelSource


@dataclass
class WeightsServer:
    """`files`: what is served by path. `stops`: after how many bytes of the body each request is cut off."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    stops: list[int] = field(default_factory=list)
    has_ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return self.address + path


def _handler(server: WeightsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            byte_range = self.headers.get("Range")
            server.requests.append((self.path, byte_range))
            body = server.files.get(self.path)
            if self.path in server.redirects:
                self.send_response(302)
                self.send_header("Location", server.redirects[self.path])
                self.end_headers()
                return
            if body is None:
                self.send_error(404)
                return
            start = int(byte_range[6:].rstrip("-")) if byte_range and server.has_ranges else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            stop = server.stops.pop(0) if server.stops else len(body)
            with suppress(ConnectionError):  # the test hung up
                self.wfile.write(body[start : start + stop])

        def log_message(self, *_args: object) -> None:
            """Keep the output of the tests clean."""

    return Handler


@pytest.fixture
def weights_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    server = WeightsServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        # No certificate for the loopback: these tests alone may speak plain http.
        monkeypatch.setattr(downloads, "SCHEMES", ("http",))
        monkeypatch.setattr(downloads, "pip_index", lambda: server.url("/simple"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("PIP_INDEX_URL", raising=False)
        yield server
        http.shutdown()
        thread.join()


@pytest.fixture
def make_card() -> Callable[..., ModelCard]:
    """Build a card for weights of the given content."""

    def make(
        content: bytes,
        *,
        hub: HubSource | None = None,
        wheel: WheelSource | None = None,
        url: str | None = None,
    ) -> ModelCard:
        sha256 = hashlib.sha256(content).hexdigest()
        return ModelCard(
            name="toy",
            title="Toy",
            family="promptable",
            bands=("red",),
            input_px=8,
            mean=(0.0,),
            std=(1.0,),
            gsd_range_m=None,
            licence="MIT",
            source="https://example.org",
            builder=None,
            parameters_m=0.1,
            checkpoint=Checkpoint("toy.pt", len(content), sha256, hub=hub, wheel=wheel, url=url),
        )

    return make


class RecordingProgress:
    """Remembers what it was told; says it is cancelled from the `cancel_at`-th question on."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.fractions: list[float] = []
        self.texts: list[str] = []
        self._questions, self._cancel_at = 0, cancel_at

    def set_fraction(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def info(self, text: str) -> None:
        self.texts.append(text)

    def is_cancelled(self) -> bool:
        self._questions += 1
        return self._cancel_at is not None and self._questions >= self._cancel_at


@pytest.fixture
def make_progress() -> type[RecordingProgress]:
    return RecordingProgress


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `SEGADAPT_HOME` and the Hub's cache new folders, and forget that the machine is offline."""
    for name in ("SEGADAPT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SEGADAPT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
