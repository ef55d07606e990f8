"""Lets another process call this one's methods, a line of JSON each way, so that contenders from different environments take turns.

A request is `{"call": "decode", "with": {"steps": 16}}`, a reply `{"value": …}` or `{"error": "…"}`. Between requests the process
waits for its next line and does nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


def serve(peer: object, requests: TextIO, replies: TextIO) -> None:
    """Answer until there are no more requests."""
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"value": getattr(peer, request["call"])(**request["with"])}
        except Exception as error:  # the one who asked has to hear of it, whatever it is
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main(make: Callable[..., Any]) -> None:
    """Make a peer from the command line's model, type and number of threads, and serve it.

    What libraries print goes to stderr: stdout carries replies and nothing else.
    """
    options = argparse.ArgumentParser()
    options.add_argument("model", type=Path)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--threads", type=int, required=True)
    given = options.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = make(given.model, dtype=given.dtype, threads=given.threads)
    replies.write(json.dumps({"value": peer.version}) + "\n")
    replies.flush()
    serve(peer, sys.stdin, replies)
