"""A server of map tiles whose every pixel is known: `python tile_server.py FOLDER` prints its port.

A process of its own: QGIS's main thread may wait for a tile while it holds Python's lock. It writes what it was asked
for to FOLDER/asked, answers with an error while FOLDER/fail exists, and late while FOLDER/slow does.
"""

from __future__ import annotations

import struct
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

# In each tile, in its pixels: what is bright.
LEFT, TOP, RIGHT, BOTTOM = 64, 96, 160, 176
_SLOW_S = 1.0


def tile(x: int, y: int) -> np.ndarray:
    """(256, 256, 3): dark, with the place in green and blue, and a bright rectangle."""
    rgb = np.empty((256, 256, 3), np.uint8)
    rgb[:] = (40, x % 100, y % 100)
    rgb[TOP:BOTTOM, LEFT:RIGHT, 0] = 220
    return rgb


def png(rgb: np.ndarray) -> bytes:
    """Encode (rows, cols, 3) uint8."""
    rows, cols = rgb.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((rows, 1), np.uint8), rgb.reshape(rows, -1)], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 1)) + chunk(b"IEND", b"")


def serve(folder: Path) -> None:
    """Answer until the process is ended."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            z, x, y = (int(part) for part in self.path.strip("/").removesuffix(".png").split("/"))
            with (folder / "asked").open("a", encoding="utf-8") as file:
                file.write(f"{z} {x} {y}\n")
            if (folder / "slow").exists():
                time.sleep(_SLOW_S)
            if (folder / "fail").exists():
                self.send_error(503, "closed today")
                return
            data = png(tile(x, y))
            try:
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # a drawing that was cancelled waits no longer

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
