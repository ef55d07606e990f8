#!/bin/sh
# Prints what pip needs to hear in order to find the build of torch that fits this machine. PYTHON is its only argument.
# A Linux machine without an NVIDIA GPU has no use for gigabytes of CUDA libraries: it takes the CPU build, where its host answers.
set -eu
cpu_wheels=https://download.pytorch.org/whl/cpu

[ "$(uname -s)" = Linux ] || exit 0
if command -v nvidia-smi >/dev/null 2>&1; then exit 0; fi
probe='import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)'
if "$1" -c "$probe" "$cpu_wheels/torch/" >/dev/null 2>&1; then
    echo "--extra-index-url $cpu_wheels"
fi
