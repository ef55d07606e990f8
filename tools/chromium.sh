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

if [ -n "${CHROMIUM:-}" ]; then
    echo "$CHROMIUM"
elif ! find_chromium; then
    { "$(dirname "$0")/apt-install.sh" chromium && find_chromium; } || {
        echo "The browser tests need Chromium or Chrome. Install one, or name it: make CHROMIUM=/path/to/chrome …" >&2
        exit 1
    }
fi
