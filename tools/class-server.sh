#!/bin/sh
# Starts what it is told, in a home that has the book's notebooks. What a learner has already stays: homes outlive containers.
set -eu
from=$(cd "$(dirname "$0")/.." && pwd)

for notebook in "$from"/book/*.ipynb "$from"/book/exercises/*.ipynb; do
    mine=$HOME/book/${notebook#"$from"/book/}
    [ -e "$mine" ] && continue
    mkdir -p "$(dirname "$mine")"
    cp "$notebook" "$mine"
done
exec "$@"
