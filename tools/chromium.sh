#!/bin/sh
# Prints the path of the Chromium or Chrome that the browser tests drive. Where there is none, installs Debian's; where there
# is none of those either (Ubuntu), fetches Playwright's into .venv.
set -eu
cd "$(dirname "$0")/.."

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

fetch_chromium() {
    export PLAYWRIGHT_BROWSERS_PATH="$PWD/.venv/var/browsers"
    with_deps=
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then with_deps=--with-deps; fi
    .venv/bin/playwright install $with_deps chromium </dev/null >&2 || return 1
    .venv/bin/python -c 'from playwright.sync_api import sync_playwright as s; p = s().start(); print(p.chromium.executable_path); p.stop()'
}

if [ -n "${CHROMIUM:-}" ]; then
    echo "$CHROMIUM"
else
    find_chromium || { tools/apt-install.sh chromium && find_chromium; } || fetch_chromium || {
        echo "The browser tests need Chromium or Chrome. Install one, or name it: make CHROMIUM=/path/to/chrome …" >&2
        exit 1
    }
fi
