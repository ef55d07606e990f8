"""The state of a page's widgets, written small: what all of them share stands in it once, and what nobody reads is left out.

Every widget brings its whole script and style, as it must in a notebook. On a page of the site the host script puts them together
again: where a state has a list in place of a text, a number in it stands for one of the page's `texts`.
"""

import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from llama3_edu.widgets.base import source

STATE = re.compile(r'(<script type="application/vnd\.jupyter\.widget-state\+json">)(.*?)(</script>)', re.DOTALL)


def smaller(state: dict[str, Any], page: str) -> dict[str, Any]:
    """Return a page's widget state with the models alone that the page shows, and the texts that they share written once."""
    texts = [source("shared.js"), source("shared.css")]
    models = {}
    for name, model in state["state"].items():
        if "_esm" not in model.get("state", {}) or not is_shown(name, model, page):
            continue
        inner = {key: value for key, value in model["state"].items() if not key.startswith("_") or key in ("_esm", "_css")}
        inner |= {key: in_parts(inner[key], texts) for key in ("_esm", "_css") if key in inner}
        models[name] = {**model, "state": inner}
    return {**state, "state": models, "texts": texts}


def is_shown(name: str, model: dict[str, Any], page: str) -> bool:
    return name in page or f'data-page-key="{model["state"].get("page_key")}"' in page


def in_parts(text: str, texts: list[str]) -> str | list[int | str]:
    """Write a text as the number of the shared text it begins with and what follows, if it begins with one."""
    for number, shared in enumerate(texts):
        if text.startswith(shared):
            return [number, text.removeprefix(shared)]
    return text


def smaller_page(page: str) -> str:
    """Return a page's HTML with its widget state written small."""

    shown = STATE.sub("", page)

    def rewritten(found: re.Match[str]) -> str:
        state = json.loads(found[2])
        if "texts" in state:  # a page of an earlier build, which is still there
            return found[0]
        written = json.dumps(smaller(state, shown), separators=(",", ":"), ensure_ascii=False)
        return found[1] + written.replace("<", r"\u003c") + found[3]

    return STATE.sub(rewritten, page)


def write_states_small(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for path in Path(app.outdir).rglob("*.html"):
            before = path.read_text(encoding="utf-8")
            if (after := smaller_page(before)) != before:
                path.write_text(after, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write_states_small)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
