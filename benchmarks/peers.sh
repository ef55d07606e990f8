#!/bin/sh
# Makes .venv-peers: the libraries that speed is compared with, and the models that are measured, converted for each of them.
# Needs .venv (`make install`). Run it again whenever you like: what is there already stays.
set -eu
cd "$(dirname "$0")/.."
ours=${PYTHON:-.venv/bin/python}
venv=.venv-peers
torch=torch==2.13.0
case $ours in /*) ;; *) ours=$PWD/$ours ;; esac

[ -x "$ours" ] || {
    echo "There is no $ours: run make install first, or name a Python that has this package: PYTHON=… $0" >&2
    exit 1
}

[ -x "$venv/bin/python" ] || "$ours" -m venv "$venv"

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@"
}

# torch first, in its CPU build where that can be had: nothing here has a use for gigabytes of CUDA libraries.
echo "Installing into $venv …"
# shellcheck disable=SC2046
install "$torch" $(tools/torch-source.sh "$venv/bin/python")
install -r benchmarks/peers-requirements.txt

"$ours" -m benchmarks.models rehearsal 110m 1b
for model in rehearsal 110m; do
    home=$venv/models/$model
    [ -e "$home/openvino/model.xml" ] || "$venv/bin/python" -m benchmarks.peers.convert "$home"
done
