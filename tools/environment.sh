#!/bin/sh
# Makes .venv and installs into it all that the book and its tests need. `make` calls it; PYTHON names the interpreter.
# Run it again whenever you like: what is there already stays.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv
torch=torch==2.13.0
needed="2.5 GiB, and some GiB more where torch comes with CUDA"

refuse() {
    echo "$*" >&2
    exit 1
}

check_python() {
    command -v "$python" >/dev/null 2>&1 ||
        refuse "There is no $python here. Install Python 3.10 to 3.13, or name one: make PYTHON=python3.12 …"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        refuse "$python does not run. Name another Python from 3.10 to 3.13: make PYTHON=python3.12 …"
    case $version in
        3.10 | 3.11 | 3.12 | 3.13) ;;
        *) refuse "This project needs Python 3.10 to 3.13; $python is $version. Name another: make PYTHON=python3.12 …" ;;
    esac
}

make_venv() {
    # A .venv of another Python, or one that was interrupted before it had its pip, is made anew.
    made=$("$venv/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
    [ "$made" = "$version" ] && return
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || tools/apt-install.sh "python$version-venv" ||
        refuse "$python cannot make virtual environments. On Debian or Ubuntu: apt-get install python$version-venv"
    "$python" -m venv --clear "$venv"
}

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@" || stop_installing
}

stop_installing() {
    # Offline, pip's last word is that there is no such version: say what to look at.
    free=$(df -Pk . | awk 'NR == 2 { printf "%.1f", $4 / 1048576 }')
    refuse "pip could not install all of it; its reason stands above. Where it found no version of a package, look after the" \
        "network or proxy: packages come from the index that pip is set to. $free GiB are free in this folder, and .venv needs" \
        "about $needed. Then run the same command again: what is installed already stays."
}

check_python
make_venv
# Where IPython, Jupyter and matplotlib keep what they write for themselves.
mkdir -p "$venv/var/ipython" "$venv/var/jupyter" "$venv/var/matplotlib"
echo "Installing into $venv (a few minutes the first time) …"
# shellcheck disable=SC2046
install "$torch" $(tools/torch-source.sh "$venv/bin/python")
install -r requirements.txt
install --no-deps --no-build-isolation --editable .
"$venv/bin/python" -c 'import sys, torch; print("Installed: Python %d.%d, torch %s" % (*sys.version_info[:2], torch.__version__))'
