"""Where rasters come from: names, formats, archives, a server; and what tells them apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.shutil import copy
from segadapt.processing.raster.reader import open_raster
from segadapt.processing.raster.windows import SquareWindow

RNG = np.random.default_rng(0)
WHOLE = SquareWindow(0, 0, 256)


def _scene(bands: int, rows: int, cols: int, dtype: str = "uint8") -> np.ndarray:
    return RNG.integers(1, 250, (bands, rows, cols)).astype(dtype)


@pytest.mark.parametrize("name", ["ü #1 ?a=b.tif", "100% café (x).tif", "日本 語.tif", "a|b!c+d.tif"])
def test_names_with_anything_in_them(raster_factory, name):
    pixels = _scene(3, 20, 20)
    with open_raster(raster_factory(pixels, name)) as reader:
        assert np.array_equal(reader.read_chip(WHOLE, out_px=256).pixels, pixels)


def test_vrt_cog_zip_and_jpeg2000_read_alike(raster_factory, tmp_path):
    pixels = _scene(3, 300, 400)
    source = raster_factory(pixels)
    cog, jp2, vrt = tmp_path / "cog.tif", tmp_path / "scene.jp2", tmp_path / "scene.vrt"
    copy(source, cog, driver="COG")
    copy(source, jp2, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    copy(source, vrt, driver="VRT")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, "scene.tif")
    window = SquareWindow(144, 44, 256)
    for path in (source, str(cog), str(jp2), str(vrt), f"/vsizip/{archive}/scene.tif"):
        with open_raster(path) as reader:
            assert reader.shape == (300, 400)
            assert np.array_equal(reader.read_chip(window, out_px=256).pixels, pixels[:, 44:, 144:])


# A process of its own: rasterio keeps the interpreter's lock for parts of opening, so no thread could answer. Prints
# its port, then the length of each answer.
_SERVER = """
import http.server, re, sys

class Handler(http.server.BaseHTTPRequestHandler):
    content = open(sys.argv[1], "rb").read()

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def do_GET(self, with_body=True):
        if self.path != "/cog.tif":
            return self.send_error(404)
        wanted = re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers.get("Range", ""))
        total = len(self.content)
        start, end = (int(wanted[1]), min(total - 1, int(wanted[2]))) if wanted else (0, total - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", end - start + 1)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
        self.end_headers()
        if with_body:
            self.wfile.write(self.content[start : end + 1])
            print(end - start + 1, flush=True)

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_cog_on_a_server_is_read_in_parts(raster_factory, tmp_path, monkeypatch):
    pixels = _scene(3, 2000, 2000, "uint16")
    cog = tmp_path / "cog.tif"
    copy(raster_factory(pixels, compress="deflate"), cog, driver="COG", blocksize=256)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(cog)], stdout=subprocess.PIPE, text=True)
    try:
        path = f"/vsicurl/http://127.0.0.1:{int(server.stdout.readline())}/cog.tif"
        with open_raster(path) as reader:
            chip = reader.read_chip(SquareWindow(256, 512, 256), out_px=256)
            assert np.array_equal(chip.pixels, reader.stretch.apply(pixels[:, 512:768, 256:512]))
            assert reader.identity.startswith(f"{path}|")
    finally:
        server.terminate()
        sent, _ = server.communicate()
    assert 0 < sum(map(int, sent.split())) < cog.stat().st_size / 2


def test_identity_changes_with_the_content_only(raster_factory, tmp_path):
    def identity(path: object) -> str:
        with open_raster(str(path)) as reader:
            return reader.identity

    source = raster_factory(_scene(3, 20, 20))
    vrt = tmp_path / "scene.vrt"
    copy(source, vrt, driver="VRT")
    archive = f"/vsizip/{shutil.make_archive(str(tmp_path / 'archive'), 'zip', tmp_path, 'scene.tif')}/scene.tif"
    before = {path: identity(path) for path in (source, vrt, archive)}
    assert len(set(before.values())) == 3
    assert before == {path: identity(path) for path in (source, vrt, archive)}
    # QGIS writes statistics beside a raster when it is shown.
    (tmp_path / "scene.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert identity(source) == before[source]
    stat = os.stat(source)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert identity(source) != before[source]
    assert identity(vrt) != before[vrt]
    os.utime(tmp_path / "archive.zip", ns=(1, 1))
    assert identity(archive) != before[archive]


def test_identity_without_a_file_follows_the_pixels():
    def identity(value: int) -> str:
        with rasterio.MemoryFile(filename="scene.tif", dirname="identity") as memory:
            profile = {
                "driver": "GTiff",
                "height": 9,
                "width": 9,
                "count": 1,
                "dtype": "uint8",
                "crs": "EPSG:4326",
            }
            with memory.open(transform=Affine.scale(0.1), **profile) as dataset:
                dataset.write(np.full((1, 9, 9), value, np.uint8))
            with open_raster(memory.name) as reader:
                assert reader.path == reader.identity.split("|")[0]
                return reader.identity

    assert identity(1) == identity(1)
    assert identity(1) != identity(2)
