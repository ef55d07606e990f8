#!/bin/sh
# Makes .venv and installs into it all that the book and its tests need. `make` calls it; PYTHON names the interpreter.
# Run it again whenever you like: what is there already stays.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv
torch=torch==2.13.0
cpu_wheels=https://download.pytorch.org/whl/cpu

refuse() {
    echo "$*" >&2
    exit 1
}

# Installs Debian or Ubuntu packages where that is allowed without a question.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null ||
        { $sudo apt-get update </dev/null && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" </dev/null; }
}

check_python() {
    command -v "$python" >/dev/null 2>&1 ||
        refuse "There is no $python here. Install Python 3.10 to 3.13, or name one: make PYTHON=python3.12 …"
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        refuse "$python does not run. Name another Python from 3.10 to 3.13: make PYTHON=python3.12 …"
    case $found in
        3.10 | 3.11 | 3.12 | 3.13) ;;
        *) refuse "This project needs Python 3.10 to 3.13; $python is $found. Name another: make PYTHON=python3.12 …" ;;
    esac
}

make_venv() {
    # A .venv of another Python, or one that was interrupted before it had its pip, is made anew.
    made=$("$venv/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
    [ "$made" = "$found" ] && return
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        apt_install "python$found-venv" || refuse "$python cannot make virtual environments. On Debian or Ubuntu: apt-get install python$found-venv"
    fi
    "$python" -m venv --clear "$venv"
}

# A machine without an NVIDIA GPU has no use for the gigabytes of CUDA libraries: it takes the CPU build, where its host answers.
torch_source() {
    [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1 || return 0
    probe='import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)'
    "$venv/bin/python" -c "$probe" "$cpu_wheels" >/dev/null 2>&1 && echo "--extra-index-url $cpu_wheels"
    return 0
}

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@"
}

check_python
make_venv
echo "Installing into $venv (a few minutes the first time) …"
# shellcheck disable=SC2046
install "$torch" $(torch_source)
install -r requirements.txt
install --no-deps --no-build-isolation --editable .
echo "Installed: $("$venv/bin/python" -c 'import sys, torch; print("Python %d.%d, torch %s" % (*sys.version_info[:2], torch.__version__))')"
