#!/bin/sh
# Prints the path of the Chromium or Chrome that the browser tests drive. Where there is none, installs Debian's, if allowed.
set -eu

find_chromium() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" && return
    done
    for app in "Google Chrome" Chromium; do
        path="/Applications/$app.app/Contents/MacOS/$app"
        [ -x "$path" ] && echo "$path" && return
    done
    return 1
}

install_chromium() {
    command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi
    echo "No Chromium here: installing it with apt-get …" >&2
    { $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y chromium; } </dev/null >&2
}

if [ -n "${CHROMIUM:-}" ]; then
    echo "$CHROMIUM"
elif ! find_chromium; then
    { install_chromium && find_chromium; } || {
        echo "The browser tests need Chromium or Chrome. Install one, or name it: make CHROMIUM=/path/to/chrome …" >&2
        exit 1
    }
fi
