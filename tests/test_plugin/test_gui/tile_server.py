"""A server of map tiles whose every pixel is known: `python tile_server.py FOLDER` prints its port.

The same picture as XYZ (/z/x/y.png), WMS 1.3.0 (/wms) and WMTS 1.0.0 (/wmts), all in EPSG:3857.

A process of its own: QGIS's main thread may wait for a tile while it holds Python's lock. It writes which
tiles it was asked for to FOLDER/asked, answers with an error while FOLDER/fail exists, and late while FOLDER/slow does.
"""

from __future__ import annotations

import struct
import sys
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

# In each tile, in its pixels: what is bright.
LEFT, TOP, RIGHT, BOTTOM = 64, 96, 160, 176
_SLOW_S = 1.0
HALF_WORLD = 20_037_508.342789244
ZOOM = 19
"""Of the pixels that a WMS draws from; tiles are the same at each zoom."""
_WMS = """<?xml version="1.0" encoding="UTF-8"?>
<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms" xmlns:xlink="http://www.w3.org/1999/xlink">
<Service><Name>WMS</Name><Title>Known pixels</Title></Service>
<Capability><Request><GetCapabilities><Format>text/xml</Format>{address}</GetCapabilities>
<GetMap><Format>image/png</Format>{address}</GetMap></Request>
<Layer><Title>All</Title><CRS>EPSG:3857</CRS><Layer><Name>tiles</Name><Title>Tiles</Title><CRS>EPSG:3857</CRS>
<BoundingBox CRS="EPSG:3857" minx="-{half}" miny="-{half}" maxx="{half}" maxy="{half}"/>
</Layer></Layer></Capability></WMS_Capabilities>"""
_WMTS = """<?xml version="1.0" encoding="UTF-8"?>
<Capabilities version="1.0.0" xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1"
 xmlns:xlink="http://www.w3.org/1999/xlink">
<ows:OperationsMetadata><ows:Operation name="GetTile"><ows:DCP><ows:HTTP><ows:Get xlink:href="{url}?">
<ows:Constraint name="GetEncoding"><ows:AllowedValues><ows:Value>KVP</ows:Value></ows:AllowedValues></ows:Constraint>
</ows:Get></ows:HTTP></ows:DCP></ows:Operation></ows:OperationsMetadata>
<Contents><Layer><ows:Title>Tiles</ows:Title><ows:Identifier>tiles</ows:Identifier>
<Style isDefault="true"><ows:Identifier>default</ows:Identifier></Style><Format>image/png</Format>
<TileMatrixSetLink><TileMatrixSet>web</TileMatrixSet></TileMatrixSetLink></Layer>
<TileMatrixSet><ows:Identifier>web</ows:Identifier><ows:SupportedCRS>urn:ogc:def:crs:EPSG::3857</ows:SupportedCRS>
{matrices}</TileMatrixSet></Contents></Capabilities>"""
_MATRIX = """<TileMatrix><ows:Identifier>{zoom}</ows:Identifier><ScaleDenominator>{scale!r}</ScaleDenominator>
<TopLeftCorner>-{half} {half}</TopLeftCorner><TileWidth>256</TileWidth><TileHeight>256</TileHeight>
<MatrixWidth>{side}</MatrixWidth><MatrixHeight>{side}</MatrixHeight></TileMatrix>"""


def tile(x: int, y: int) -> np.ndarray:
    """(256, 256, 3): dark, with the place in green and blue, and a bright rectangle."""
    rgb = np.empty((256, 256, 3), np.uint8)
    rgb[:] = (40, x % 100, y % 100)
    rgb[TOP:BOTTOM, LEFT:RIGHT, 0] = 220
    return rgb


def drawn(bounds: tuple[float, ...], cols: int, rows: int) -> np.ndarray:
    """(rows, cols, 3): the tiles of `ZOOM` within (left, bottom, right, top), the nearest pixel to each centre."""
    left, bottom, right, top = bounds
    scale = 2 * HALF_WORLD / 256 / 2**ZOOM
    x = ((left + (np.arange(cols) + 0.5) * (right - left) / cols + HALF_WORLD) // scale).astype(int)
    y = ((HALF_WORLD - top + (np.arange(rows) + 0.5) * (top - bottom) / rows) // scale).astype(int)
    rgb = np.empty((rows, cols, 3), np.uint8)
    for row in np.unique(y // 256):
        for col in np.unique(x // 256):
            part = np.ix_(np.flatnonzero(y // 256 == row), np.flatnonzero(x // 256 == col))
            rgb[part] = tile(col, row)[np.ix_(y[part[0].ravel()] % 256, x[part[1].ravel()] % 256)]
    return rgb


def wms_capabilities(url: str) -> bytes:
    """What the WMS at an address offers."""
    resource = f'<OnlineResource xlink:href="{url}?"/>'
    address = f"<DCPType><HTTP><Get>{resource}</Get></HTTP></DCPType>"
    return _WMS.format(address=address, half=HALF_WORLD).encode()


def wmts_capabilities(url: str) -> bytes:
    """What the WMTS at an address offers."""
    matrices = "".join(
        # 0.28 mm is the pixel of a scale.
        _MATRIX.format(zoom=zoom, scale=2 * HALF_WORLD / 256 / 2**zoom / 0.00028, side=2**zoom, half=HALF_WORLD)
        for zoom in range(23)
    )
    return _WMTS.format(url=url, matrices=matrices).encode()


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
            parts = urlsplit(self.path)
            url = f"http://{self.headers['Host']}{parts.path}"
            query = {key.upper(): value for key, value in parse_qsl(parts.query)}
            if query.get("REQUEST") == "GetCapabilities":
                make = wms_capabilities if parts.path == "/wms" else wmts_capabilities
                self.answer(make(url), "text/xml")
            elif query.get("REQUEST") == "GetMap":
                bounds = tuple(map(float, query["BBOX"].split(",")))
                self.draw(lambda: drawn(bounds, int(query["WIDTH"]), int(query["HEIGHT"])))
            elif query.get("REQUEST") == "GetTile":
                self.draw_tile(*(int(query[key]) for key in ("TILEMATRIX", "TILECOL", "TILEROW")))
            else:
                self.draw_tile(*(int(part) for part in parts.path.strip("/").removesuffix(".png").split("/")))

        def draw_tile(self, z: int, x: int, y: int) -> None:
            with (folder / "asked").open("a", encoding="utf-8") as file:
                file.write(f"{z} {x} {y}\n")
            self.draw(lambda: tile(x, y))

        def draw(self, picture: Callable[[], np.ndarray]) -> None:
            if (folder / "slow").exists():
                time.sleep(_SLOW_S)
            if (folder / "fail").exists():
                self.send_error(503, "closed today")
                return
            self.answer(png(picture()), "image/png")

        def answer(self, data: bytes, kind: str) -> None:
            try:
                self.send_response(200)
                self.send_header("Content-Type", kind)
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
