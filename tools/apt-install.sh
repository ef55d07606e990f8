#!/bin/sh
# Installs Debian or Ubuntu packages where that is allowed without a question; fails elsewhere.
set -eu
command -v apt-get >/dev/null 2>&1 || exit 1
if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
echo "Installing $* with apt-get …" >&2
{ $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } </dev/null >&2
