#!/usr/bin/env bash
# Makes SegAdapt run from this checkout: system packages, Python environment, weights, link into QGIS.
# Run it as often as you like (`make setup`): what is there already is left alone.
#   tools/setup.sh         all of it
#   tools/setup.sh link    only the link into the QGIS profile (`default`, or the one that QGIS_PROFILE names)
set -euo pipefail
cd -P "$(dirname "$0")/.."

python=/usr/bin/python3 # the interpreter that QGIS embeds; a python3 of conda or pyenv cannot import qgis
changed=no
say() { changed=yes; echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

# One set-up at a time: clones share the environment, and apt has no patience. With -o, daemons that apt starts do
# not inherit the lock.
wait_for_others() {
    if [ -n "${SEGADAPT_SETUP_LOCK:-}" ]; then return; fi
    SEGADAPT_SETUP_LOCK="${XDG_CACHE_HOME:-$HOME/.cache}/segadapt-setup.lock"
    mkdir -p "$(dirname "$SEGADAPT_SETUP_LOCK")"
    flock -n "$SEGADAPT_SETUP_LOCK" true || echo "setup: waiting for another set-up to end"
    export SEGADAPT_SETUP_LOCK
    exec flock -o "$SEGADAPT_SETUP_LOCK" tools/setup.sh "$@"
}

refuse_other_systems() {
    if [ "$(uname -s)" = Linux ]; then return; fi
    fail "make setup runs on Linux only. Here, install two things yourself:
  1. QGIS 3.22 or newer (https://qgis.org/download);
  2. the packages under 'dependencies' in pyproject.toml, in a virtual environment made with QGIS's own Python
     (--system-site-packages, numpy pinned to QGIS's); name its folder in SegAdapt's settings or in SEGADAPT_ENV."
}

system_packages() {
    local missing=()
    need() { "${@:2}" >/dev/null 2>&1 || missing+=("$1"); }
    need qgis command -v qgis_process
    need python3-qgis "$python" -c 'import importlib.util as u; raise SystemExit(u.find_spec("qgis") is None)'
    need python3-venv "$python" -c 'import ensurepip'
    need xvfb command -v xvfb-run
    need xauth command -v xauth
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    if [ "$(. /etc/os-release && echo "$ID $VERSION_ID")" != "debian 12" ]; then
        fail "this system lacks ${missing[*]} (Debian's names), and make setup installs packages on Debian 12
only. Install two things yourself, then run it again, it does the rest:
  1. QGIS 3.22 or newer with its Python bindings for $python (https://qgis.org/download), and that Python's venv;
  2. Xvfb with xvfb-run and xauth."
    fi
    local as_root=() install=(apt-get install -y -q --no-install-recommends "${missing[@]}")
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "ask an administrator to run: apt-get update && ${install[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]} with apt"
    { "${as_root[@]}" apt-get update -q && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"; } ||
        fail "apt did not install the packages; look at its message above, then run make setup again."
}

# Leaves the environment's folder in $environment.
python_environment() {
    environment=$("$python" processing/environment.py path)
    if [ -n "${SEGADAPT_ENV:-}" ]; then
        "$python" processing/environment.py check >/dev/null || fail "unset SEGADAPT_ENV to have one made."
        return
    fi
    # `complete` is written last; a folder without it was left by something that was interrupted.
    if [ -f "$environment/complete" ] && [ -x "$environment/bin/python" ]; then return; fi
    local building="$environment.building"
    mkdir -p "$(dirname "$environment")"
    rm -rf "$environment" "$building"
    [ "$(df -Pk "$(dirname "$environment")" | awk 'END { print $4 }')" -gt 8000000 ] ||
        fail "$(dirname "$environment") has less than 8 GB left; free some, or set SEGADAPT_HOME to another folder."
    say "making the Python environment $environment (about 6 GB, some minutes)"
    "$python" -m venv --system-site-packages "$building"
    # What QGIS is built on stays the host's: a numpy of another version would crash it.
    "$python" -c 'import numpy; print(f"numpy=={numpy.__version__}")' >"$building/constraints.txt"
    "$building/bin/python" >"$building/requirements.txt" <<'PYTHON'
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
PYTHON
    "$building/bin/python" -m pip install --quiet --only-binary :all: --disable-pip-version-check \
        -r "$building/requirements.txt" -c "$building/constraints.txt" ||
        fail "pip did not install the packages; look at its message above, then run make setup again."
    # Wheels bring PROJ, GEOS and GDAL with their data; what the host has in their place looks for the data in vain.
    "$building/bin/python" >"$building/host.txt" <<'PYTHON'
import sys
from importlib.metadata import distribution

for name in ("rasterio", "pyproj", "shapely", "pyogrio"):
    found = distribution(name)
    if not str(found.locate_file("")).startswith(sys.prefix):
        print(f"{name}=={found.version}")
PYTHON
    "$building/bin/python" -m pip install --quiet --only-binary :all: --disable-pip-version-check \
        --ignore-installed --no-deps -r "$building/host.txt" ||
        fail "pip did not install the packages; look at its message above, then run make setup again."
    SEGADAPT_ENV="$building" "$python" processing/environment.py check >/dev/null
    # Scripts and pyvenv.cfg name the folder by its full path, which changes now.
    grep -rlIZ -- "$building" "$building/bin" "$building/pyvenv.cfg" | xargs -0 sed -i "s|$building|$environment|g"
    touch "$building/complete"
    mv -T "$building" "$environment"
}

weights() {
    mkdir -p .link
    [ -e .link/segadapt ] || ln -sfn .. .link/segadapt
    local fetched
    fetched=$(PYTHONPATH="$PWD/.link" "$environment/bin/python" <<'PYTHON'
from segadapt.models.checkpoints import fetch_checkpoint, find_checkpoint
from segadapt.models.errors import CheckpointError
from segadapt.models.registry import get_card

card = get_card("mobile_sam")
try:
    if find_checkpoint(card) is None:
        print(fetch_checkpoint(card))
except CheckpointError as error:
    raise SystemExit(f"setup: {error}") from None
PYTHON
    )
    if [ -n "$fetched" ]; then say "fetched the weights $fetched"; fi
}

link_into_qgis() {
    local profile="${QGIS_CUSTOM_CONFIG_PATH:-${XDG_DATA_HOME:-$HOME/.local/share}/QGIS/QGIS3}"
    profile="$profile/profiles/${QGIS_PROFILE:-default}"
    local link="$profile/python/plugins/segadapt" settings="$profile/QGIS/QGIS3.ini"
    if [ -e "$link" ] && [ ! -L "$link" ]; then
        fail "$link is an installed release, not a link; uninstall it in QGIS and run this again."
    fi
    if [ "$(readlink "$link" || true)" != "$PWD" ]; then
        mkdir -p "$(dirname "$link")"
        ln -sfnT "$PWD" "$link"
        say "linked this checkout as $link"
    fi
    if ! awk '/^\[/ { section = $0 } section == "[PythonPlugins]" && $0 == "segadapt=true" { found = 1 }
              END { exit !found }' "$settings" 2>/dev/null; then
        # By Qt, which wrote the file: it keeps every other setting, and locks against a QGIS that is running.
        "$python" - "$settings" <<'PYTHON'
import sys

from qgis.PyQt.QtCore import QSettings

settings = QSettings(sys.argv[1], QSettings.Format.IniFormat)
settings.setValue("PythonPlugins/segadapt", True)
settings.sync()
if settings.status() != QSettings.Status.NoError:
    raise SystemExit(f"setup: cannot write {sys.argv[1]}; close QGIS and look at the file's permissions.")
PYTHON
        say "enabled the plugin in $settings"
    fi
}

refuse_other_systems
if [ "${1:-}" = link ]; then
    link_into_qgis
    exit
fi
wait_for_others "$@"
# Neither packages of the user nor of a caller's PYTHONPATH may stand in for those of the environment.
unset PYTHONPATH
export PYTHONNOUSERSITE=1
system_packages
python_environment
weights
link_into_qgis
if [ $changed = no ]; then echo "setup: nothing to do; the environment is $environment"; fi
