#!/bin/sh
# Makes .venv-instructors: nbgrader, seeing whatever .venv has. nbgrader needs Python 3.11 or newer; PYTHON names one where .venv's
# is older. BOOK names another environment than .venv to build upon. Run it again whenever you like: what is there already stays.
set -eu
cd "$(dirname "$0")/.."
book=${BOOK:-.venv}
venv=.venv-instructors
version_of='import sys; print("%d.%d" % sys.version_info[:2])'

newer() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for name in "$book/bin/python" ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 /usr/bin/python3; do
        if newer "$name"; then
            echo "$name"
            return
        fi
    done
    echo "nbgrader needs Python 3.11 or newer, and there is none here. Install one, or name it: make PYTHON=python3.12 …" >&2
    return 1
}

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@"
}

python=$(find_python)
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
if [ "$("$venv/bin/python" -c "$version_of")" = "$("$book/bin/python" -c "$version_of")" ]; then
    # The book's packages are seen from here, and stay where they are.
    theirs=$("$book/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    own=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$theirs')" >"$own/book.pth"
else
    # shellcheck disable=SC2046
    install "torch==$("$book/bin/python" -c 'import torch; print(torch.__version__.partition("+")[0])')" \
        $(tools/torch-source.sh "$venv/bin/python")
    install -r requirements.txt
    install --no-deps --no-build-isolation --editable .
fi
install -r requirements-instructors.txt
"$venv/bin/python" -c 'import nbgrader, torch; print("Installed: nbgrader %s beside torch %s" % (nbgrader.__version__, torch.__version__))'
