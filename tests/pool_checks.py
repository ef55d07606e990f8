"""What pictures of a pool of blocks must show, compared with the frames they were given."""

from typing import Any

from playwright.sync_api import Locator

import llama3_edu as le
from llama3_edu.trace import Frames

DATA = "(nodes, names) => nodes.map(node => names.map(name => node.dataset[name] ?? null))"
TAGS = {
    "allocated": "taken", "shared": "shared", "released": "let go", "freed": "freed", "copied": "copy", "published": "published",
    "evicted": "given up", "reused": "found",
}  # fmt: skip
_STATES: dict[tuple[int, int], tuple[Frames, dict[str, Any]]] = {}


def pool_state(frames: Frames, step: int) -> dict[str, Any]:
    """All that is known of the pool at a step; worked out once."""
    if (id(frames), step) not in _STATES:
        _STATES[id(frames), step] = frames, le.block_state(frames, step)
    return _STATES[id(frames), step][1]


def data(widget: Locator, selector: str, *names: str) -> list[list[str | None]]:
    return widget.locator(selector).evaluate_all(DATA, list(names))


def kind_of(state: dict[str, Any], block: int) -> str:
    """How a block is drawn: by who holds it beside the prefix cache."""
    refs = state["ref_counts"][block]
    others = refs - (block in state["published"])
    return "free" if not refs else "cached" if not others else "held" if others == 1 else "shared"


def check_pool(widget: Locator, frames: Frames, step: int) -> None:
    """Every block of the grid, by its attributes, and those that something happened to."""
    state = pool_state(frames, step)
    drawn = data(widget, ".le-pool .le-block", "block", "state", "refs", "filled", "published")
    assert drawn == [
        [str(b), kind_of(state, b), str(state["ref_counts"][b]), str(state["filled"][b]), "" if b in state["published"] else None]
        for b in range(frames["num_blocks"])
    ]
    happened = data(widget, ".le-pool .le-ring-now", "block")
    assert happened == [[str(block)] for block in frames["steps"][step]["blocks"][:64]]


def check_blocks(widget: Locator, frames: Frames, step: int) -> None:
    own, state = frames["steps"][step], pool_state(frames, step)
    check_pool(widget, frames, step)
    check_slots(widget, frames, state)
    lanes = """nodes => nodes.map(node =>
        [node.dataset.name, [...node.querySelectorAll('.le-chip')].map(chip => Number(chip.dataset.block))])"""
    drawn = dict(widget.locator(".le-lane[data-name]").evaluate_all(lanes))
    assert drawn == {str(table["name"]): table["blocks"] for table in state["tables"]}
    for table in state["tables"]:
        lane = widget.locator(f'.le-lane[data-name="{table["name"]}"]')
        assert lane.locator("button").inner_text().split("\n")[-1].startswith(f"{table['num_tokens']} token")
        assert (lane.get_attribute("data-now") is not None) == (table["name"] in own["names"])
    free = [int(block) for (block,) in data(widget, ".le-free-list .le-chip", "block")]
    assert free == state["free"][: len(free)] and (free or not state["free"])
    counts = [kind_of(state, block) for block in range(frames["num_blocks"])]
    main = widget.locator(".le-pool-main")
    for kind in ("free", "held", "shared", "cached"):
        assert main.get_attribute(f"data-{kind}") == str(counts.count(kind))
    assert main.get_attribute("data-evicted") == str(state["num_evicted"])
    check_marks(widget, own)


def check_slots(widget: Locator, frames: Frames, state: dict[str, Any]) -> None:
    """Slots filled, the reference count, and the tokens, in a grid whose blocks have room for them."""
    inside = """nodes => nodes.map(n => [n.querySelectorAll('[data-on]').length,
        n.querySelector('.le-refs').textContent, n.querySelector('.le-words').textContent])"""
    texts = {row["name"]: row["tokens"] for row in frames["rows"]}
    size = frames["block_size"]
    for block, (slots, refs, words) in enumerate(widget.locator(".le-pool .le-block").evaluate_all(inside)):
        assert slots == state["filled"][block]
        assert refs == (f"×{state['ref_counts'][block]}" if state["ref_counts"][block] > 1 else "")
        for table in state["tables"]:
            if block in table["blocks"]:
                first = table["blocks"].index(block) * size
                held = "".join(texts[table["name"]][first : first + state["filled"][block]])
                assert words == held or (words.endswith("…") and held.startswith(words[:-1]) and len(words) > 3)
        assert bool(words) == bool(state["filled"][block]) or not state["owners"][block]


def check_marks(widget: Locator, own: dict[str, Any]) -> None:
    """What happened is said beside the block; a copy has an arrow from the block that was read to the one that was written."""
    tags = widget.locator(".le-tag text").all_text_contents()
    words = [TAGS[own["what"]]] if own["blocks"] else []
    assert tags == words + (["source"] if own["source"] is not None else [])
    arrows = data(widget, ".le-copy", "source", "block")
    assert arrows == ([[str(own["source"]), str(own["blocks"][0])]] if own["source"] is not None else [])
    if arrows:
        ends = widget.locator(".le-copy-line").evaluate(
            """path => [0, path.getTotalLength()].map(at => {
                const { x, y } = path.getPointAtLength(at).matrixTransform(path.getScreenCTM());
                return [x, y];
            })"""
        )
        for (x, y), block in zip(ends, arrows[0]):
            box = widget.locator(f'.le-pool .le-block[data-block="{block}"] .le-ground').bounding_box()
            assert box["x"] <= x <= box["x"] + box["width"] and box["y"] <= y <= box["y"] + box["height"]


def tree_order(frames: Frames, step: int) -> list[int]:
    """The nodes published at a step, the one used longest ago first."""
    order: list[int] = []
    for own in frames["steps"][: step + 1]:
        changes = own["changes"]
        order += changes.get("added", [])
        for node in changes.get("touched", []):
            order.remove(node)
            order.append(node)
        order = [node for node in order if node not in changes.get("removed", [])]
    return order


def check_tree(widget: Locator, frames: Frames, step: int) -> None:
    own, state, nodes = frames["steps"][step], pool_state(frames, step), frames["nodes"]
    check_pool(widget, frames, step)
    order = tree_order(frames, step)
    assert sorted(nodes[node]["block"] for node in order) == sorted(state["published"])
    to_go = [node for node in order if kind_of(state, nodes[node]["block"]) == "cached"]
    drawn = {int(row[0]): row[1:] for row in data(widget, ".le-tree .le-node", "node", "block", "state", "rank", "lit")}
    assert set(drawn) == {*order, *own["nodes"]}
    for node, (block, kind, rank, lit) in drawn.items():
        assert block == str(nodes[node]["block"])
        assert kind == (kind_of(state, nodes[node]["block"]) if node in order else "evicted")
        assert rank == (str(to_go.index(node)) if node in to_go else None)
        assert lit == (own["what"] if node in own["nodes"] else None)
    links = {(int(parent), int(child)) for parent, child in data(widget, ".le-link", "from", "to")}
    assert links == {(nodes[node]["parent"], node) for node in drawn if nodes[node]["parent"] in drawn}
    check_places(widget, frames, set(drawn), links)
    check_prompt(widget, frames, step)


def check_places(widget: Locator, frames: Frames, drawn: set[int], links: set[tuple[int, int]]) -> None:
    """Each node shows its own text, below its parent and not to the left of it; no two overlap."""
    script = """nodes => nodes.map(n => { const b = n.querySelector('.le-ground').getBoundingClientRect();
        return [Number(n.dataset.node), n.querySelector('.le-words').textContent, b.left, b.top, b.bottom]; })"""
    rows = {node: rest for node, *rest in widget.locator(".le-tree .le-node").evaluate_all(script)}
    assert set(rows) == drawn
    for node, (words, *_) in rows.items():
        text = "".join(frames["nodes"][node]["tokens"])
        assert words == text or (words.endswith("…") and text.startswith(words[:-1]) and len(words) > 3)
    for parent, child in links:
        assert rows[child][1] >= rows[parent][1] and rows[child][2] > rows[parent][3]
    spans = sorted((top, bottom) for _, _, top, bottom in rows.values())
    assert all(bottom <= top for (_, bottom), (top, _) in zip(spans, spans[1:]))


def check_prompt(widget: Locator, frames: Frames, step: int) -> None:
    """The prompt that came in last, block by block: found or to be computed."""
    prompts = [own["prompt"] for own in frames["steps"][: step + 1] if own["prompt"]]
    pieces = data(widget, ".le-piece", "state")
    if not prompts:
        assert pieces == []
        return
    last, size = prompts[-1], frames["block_size"]
    assert widget.locator(".le-prompt").get_attribute("data-name") == str(last["name"])
    found, whole = last["num_cached"] // size, -(-last["num_tokens"] // size)
    assert pieces == [["found"]] * found + [["computed"]] * (whole - found)
