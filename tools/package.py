"""Build the plugin's zip from this checkout and scan it as the plugin repository does (`make package`).

The scans of plugins.qgis.org (Bandit and detect-secrets) block an upload, so a single finding fails here too.
"""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def version() -> str:
    """Return the plugin's version; `metadata.txt` is its one source (setuptools calls this too)."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "metadata.txt", encoding="utf-8")
    return metadata["general"]["version"]


def build(folder: Path) -> Path:
    """Write `segadapt-<version>.zip` with the one folder `segadapt/` into `folder` and return its path.

    Packs the last commit where nothing was changed since, else the files as they lie here, new ones included.
    Raises `subprocess.CalledProcessError` where this is no git checkout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"segadapt-{version()}.zip"
    with tempfile.TemporaryDirectory() as scratch:
        tree, environment = _tree(Path(scratch))
        pack = ["archive", "--format=zip", "--prefix=segadapt/", f"--output={archive.resolve()}", tree]
        _git(*pack, environment=environment)
    return archive


def scan(archive: Path) -> list[str]:
    """Return what Bandit and detect-secrets find in the unpacked zip, one line each; empty if it is clean."""
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(archive) as file:
            file.extractall(scratch)
        issues = _scanner("bandit", "--recursive", "--quiet", "--format", "json", ".", cwd=scratch)
        secrets = _scanner("detect_secrets", "scan", "--all-files", cwd=scratch)
    found = [f"{i['filename']}:{i['line_number']}: {i['test_id']} {i['issue_text']}" for i in issues]
    return found + [f"{path}:{s['line_number']}: {s['type']}" for path in secrets for s in secrets[path]]


def _tree(scratch: Path) -> tuple[str, dict[str, str]]:
    """Return what to pack and git's environment, which keeps new objects in `scratch`, not in the clone."""
    if not _git("status", "--porcelain"):
        return "HEAD", {}
    objects = _git("rev-parse", "--path-format=absolute", "--git-path", "objects")
    environment = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
    }
    (scratch / "objects").mkdir()
    _git("add", "--all", environment=environment)
    return _git("write-tree", environment=environment), environment


def _git(*arguments: str, environment: dict[str, str] | None = None) -> str:
    # Without the variables that git sets for hooks: this runs in one when pre-commit runs the tests.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.check_output(command, env=clean | (environment or {}), text=True).strip()


def _scanner(module: str, *arguments: str, cwd: str) -> Any:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["results"]
    except json.JSONDecodeError:
        raise SystemExit(f"{module} did not run; run `make setup` again.\n{done.stderr}") from None


def main() -> int:
    """Build into `dist/`, scan, print what came of it; returns the exit status."""
    archive = build(ROOT / "dist")
    print(f"{archive.relative_to(ROOT)}: {archive.stat().st_size / 1e6:.2f} MB")
    findings = scan(archive)
    for finding in findings:
        print(finding, file=sys.stderr)
    if findings:
        print(f"{len(findings)} findings that plugins.qgis.org would refuse; mend them.", file=sys.stderr)
    else:
        print("bandit, detect-secrets: clean")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
