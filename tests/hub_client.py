"""Asks `llama3_edu.hub` for directories, one request per line, in a process of its own: its environment says which hub that is.

The package is not imported around it: the module needs no torch, and so a bare environment with an old huggingface-hub will do.
"""

import json
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

bare = types.ModuleType("llama3_edu")
bare.__path__ = [str(ROOT / "llama3_edu")]
sys.modules["llama3_edu"] = bare

from llama3_edu.hub import local_directory  # noqa: E402


def answer(request):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(request.pop("environ", {}))
    try:
        folder = local_directory(request.pop("place"), **request)
    except OSError as error:
        return {"error": type(error).__name__, "errno": error.errno, "message": str(error)}
    return {"folder": str(folder)}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
