"""The pool of blocks and the prefix tree under the reader's hands; and a pool of thousands of blocks, which must stay quick."""

import random
from functools import cache
from pathlib import Path

import pytest
from browser import press, quiet_page, step_of
from long_pool import long_life
from playwright.sync_api import Browser, Locator
from pool_checks import check_pool, data, pool_state, tree_order
from test_drawn import FRAMES, PHONE, show

import llama3_edu as le
from llama3_edu import widgets
from llama3_edu.trace import Frames

BLOCKS, TREE = FRAMES[widgets.BlockStepper], FRAMES[widgets.PrefixTree]


@cache
def long_frames() -> Frames:
    return le.block_frames(long_life(), num_blocks=4096, block_size=16, most=150)


@cache
def long_stepper() -> widgets.BlockStepper:
    return widgets.BlockStepper(frames=long_frames())


def shared_step() -> tuple[int, int]:
    """A step, and a block that two sequences and the prefix cache hold then."""
    for step in range(len(BLOCKS["steps"])):
        state = pool_state(BLOCKS, step)
        for block in state["published"]:
            if len(state["owners"][block]) == 2 and state["ref_counts"][block] == 3:
                return step, block
    raise AssertionError("the trace should come to such a step")


def go_to(widget: Locator, step: int) -> None:
    slider = widget.locator('input[type="range"]')
    slider.evaluate("(node, step) => { node.value = step; node.dispatchEvent(new Event('input', { bubbles: true })); }", step)
    assert step_of(widget) == step


def block_of(widget: Locator, block: int) -> Locator:
    return widget.locator(f'.le-pool .le-block[data-block="{block}"]')


@pytest.mark.parametrize("by", ["mouse", "touch", "keyboard"])
def test_a_block_tells_who_holds_it_and_its_table_entries_are_marked(by: str, browser: Browser, tmp_path: Path):
    step, block = shared_step()
    state = pool_state(BLOCKS, step)
    with quiet_page(browser, **(PHONE if by == "touch" else {})) as page:
        widget = show(page, tmp_path, widgets.BlockStepper(frames=BLOCKS, step=step))
        if by == "keyboard":
            pool = widget.locator(".le-pool")
            pool.focus()
            for _ in range(block + 1):  # the first press comes to block 0
                pool.press("ArrowRight")
        else:
            getattr(block_of(widget, block), "tap" if by == "touch" else "click")()
        first, second = sorted(state["owners"][block])
        said = widget.locator(".le-looked").inner_text()
        assert said.startswith(f"Block {block} holds {state['filled'][block]} of 4 tokens: “")
        assert f"Held by sequences {first} and {second} and the prefix cache: reference count 3." in said
        tokens = next(row["tokens"] for row in BLOCKS["rows"] if row["name"] == first)
        place = next(table["blocks"] for table in state["tables"] if table["name"] == first).index(block)
        assert "".join(tokens[4 * place : 4 * place + 4]).removeprefix("␣") in said
        assert data(widget, ".le-lane .le-chip[data-looked]", "block") == [[str(block)]] * 2
        assert data(widget, ".le-ring-looked", "block") == [[str(block)]]
        assert step_of(widget) == step, "looking does not step"


def test_looking_ends_with_escape_and_with_a_second_click(browser: Browser, tmp_path: Path):
    step, block = shared_step()
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.BlockStepper(frames=BLOCKS, step=step))
        for end in (lambda: widget.locator(".le-pool").press("Escape"), block_of(widget, block).click):
            block_of(widget, block).click()
            assert widget.locator(".le-ring-looked").count() == 1
            end()
            assert widget.locator(".le-ring-looked").count() == 0
            assert widget.locator(".le-looked").inner_text().startswith("Click a block")


def test_a_free_block_tells_when_it_is_taken(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.BlockStepper(frames=BLOCKS))
        block_of(widget, 0).click()
        assert widget.locator(".le-looked").inner_text() == "Block 0 is free; it is taken next."
        block_of(widget, 3).click()
        assert widget.locator(".le-looked").inner_text() == "Block 3 is free; 3 blocks will be taken before it."


@pytest.mark.parametrize("by", ["mouse", "touch", "keyboard"])
def test_a_sequence_shows_its_blocks_in_order(by: str, browser: Browser, tmp_path: Path):
    step, _ = shared_step()
    table = max(pool_state(BLOCKS, step)["tables"], key=lambda table: len(table["blocks"]))
    with quiet_page(browser, **(PHONE if by == "touch" else {})) as page:
        widget = show(page, tmp_path, widgets.BlockStepper(frames=BLOCKS, step=step))
        button = widget.locator(f'.le-lane[data-name="{table["name"]}"] button')
        if by == "keyboard":
            button.press("Enter")
        else:
            getattr(button, "tap" if by == "touch" else "click")()
        assert button.get_attribute("aria-pressed") == "true"
        order = {int(place): int(block) for block, place in data(widget, ".le-order", "block", "order")}
        assert [order[place] for place in sorted(order)] == table["blocks"] and sorted(order) == [*range(1, len(order) + 1)]
        assert [int(block) for (block,) in data(widget, ".le-ring-table", "block")] == table["blocks"]
        off = {int(block) for (block,) in data(widget, ".le-pool .le-block[data-off]", "block")}
        assert off == set(range(BLOCKS["num_blocks"])) - set(table["blocks"])
        if by == "touch":
            assert button.bounding_box()["height"] >= 44
        last = len(BLOCKS["steps"]) - 1
        go_to(widget, last)
        assert widget.locator(".le-ring-table, .le-pool .le-block[data-off]").count() == 0, "it has ended"


@pytest.mark.parametrize("by", ["mouse", "touch", "keyboard", "pool"])
def test_a_node_shows_its_way_down_in_the_tree_and_in_the_pool(by: str, browser: Browser, tmp_path: Path):
    step = max(range(len(TREE["steps"])), key=lambda step: len(tree_order(TREE, step)))
    nodes, order = TREE["nodes"], tree_order(TREE, step)
    depth = {node: 1 + (0 if nodes[node]["parent"] is None else len(path_to(node)) - 1) for node in order}
    deepest = max(order, key=depth.__getitem__)
    block, path = nodes[deepest]["block"], path_to(deepest)
    with quiet_page(browser, **(PHONE if by == "touch" else {})) as page:
        widget = show(page, tmp_path, widgets.PrefixTree(frames=TREE, step=step))
        tree = widget.locator(".le-tree")
        if by == "keyboard":
            tree.focus()
            for _ in order:
                tree.press("ArrowDown")
                if data(widget, ".le-node[data-looked]", "node") == [[str(deepest)]]:
                    break
        elif by == "pool":
            block_of(widget, block).click()
        else:
            getattr(widget.locator(f'.le-node[data-node="{deepest}"]'), "tap" if by == "touch" else "click")()
        assert data(widget, ".le-node[data-looked]", "node") == [[str(deepest)]]
        assert {int(node) for (node,) in data(widget, ".le-node[data-path]", "node")} == set(path)
        assert [int(held) for (held,) in data(widget, ".le-ring-table", "block")] == [nodes[node]["block"] for node in path]
        said = widget.locator(".le-looked").inner_text()
        assert said.startswith(f"Block {block} holds 4 of 4 tokens: “{''.join(nodes[deepest]['tokens']).removeprefix('␣')}”")
        before = [str(nodes[node]["block"]) for node in path[:-1]]
        assert f"behind blocks {', '.join(before[:-1])} and {before[-1]}" in said
        assert step_of(widget) == step


def path_to(node: int) -> list[int]:
    path = [node]
    while TREE["nodes"][path[0]]["parent"] is not None:
        path.insert(0, TREE["nodes"][path[0]]["parent"])
    return path


def test_thousands_of_blocks_are_one_shape_each_and_only_what_changed_is_drawn_again(browser: Browser, tmp_path: Path):
    frames = long_frames()
    last = len(frames["steps"]) - 1
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, long_stepper())
        for selector in (".le-pool .le-block", ".le-pool .le-block, .le-pool .le-block *"):
            assert widget.locator(selector).count() == 4096
        assert widget.locator(".le-thinned").inner_text() == frames["note"]
        for step in (last, last // 2, last // 2 + 1, 3):
            go_to(widget, step)
            check_pool(widget, frames, step)
        page.evaluate("""() => {
            window.redrawn = new Set();
            new MutationObserver(found => found.forEach(({ target }) => window.redrawn.add(Number(target.dataset.block))))
                .observe(document.querySelector('.le-pool'), { attributes: true, subtree: true, attributeFilter: ['d'] });
        }""")
        press(widget, "forward")
        changes = frames["steps"][4]["changes"]
        changed = {block for block, *_ in changes.get("blocks", [])}
        changed |= {*changes.get("published", []), *changes.get("evicted", [])}
        assert changed and set(page.evaluate("[...window.redrawn]")) <= changed


def test_a_block_among_thousands_can_be_pointed_at(browser: Browser, tmp_path: Path):
    frames = long_frames()
    state = pool_state(frames, len(frames["steps"]) - 1)
    block = next(b for b in state["published"] if b > 600 and state["ref_counts"][b] == 1)
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, long_stepper())
        go_to(widget, len(frames["steps"]) - 1)
        box = block_of(widget, block).bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        said = widget.locator(".le-looked").inner_text()
        assert said.startswith(f"Block {block} holds 16 of 16 tokens. Held by the prefix cache:")
        moved = {"ArrowRight": 1, "ArrowLeft": -1}
        for key, by in moved.items():
            widget.locator(".le-pool").press(key)
            block += by
            assert data(widget, ".le-ring-looked", "block") == [[str(block)]]


@pytest.mark.slow
def test_a_large_tree_shows_what_was_used_last_and_says_so(browser: Browser, tmp_path: Path):
    frames = le.prefix_frames(long_life(), num_blocks=4096, block_size=16, most=150)
    last = len(frames["steps"]) - 1
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.PrefixTree(frames=frames, step=last))
        for step in (last, last // 3):
            go_to(widget, step)
            order = tree_order(frames, step)
            drawn = {int(node) for (node,) in data(widget, ".le-node", "node")}
            assert set(order[-24:]) <= drawn <= {*order, *frames["steps"][step]["nodes"]} and len(drawn) < 60
            assert f"of {len(order):,} published blocks are shown" in widget.locator(".le-tree-main").inner_text()
            check_pool(widget, frames, step)


@pytest.mark.parametrize(("cls", "frames"), [(widgets.BlockStepper, BLOCKS), (widgets.PrefixTree, TREE)], ids=["blocks", "tree"])
@pytest.mark.parametrize("seed", range(4))
def test_steps_left_out_go_into_the_next_that_is_kept(cls: type[widgets.FrameWidget], frames: Frames, seed: int):
    num_steps, chance = len(frames["steps"]), random.Random(seed)
    steps = sorted({0, num_steps - 1, *chance.sample(range(num_steps), num_steps // (2 + 3 * seed))})
    fewer, whole = cls.only(frames, steps), list(le.block_states(frames))
    assert list(le.block_states(fewer)) == [whole[step] for step in steps]
    assert [step["summary"] for step in fewer["steps"]] == [frames["steps"][step]["summary"] for step in steps]
    if cls is widgets.PrefixTree:
        assert [tree_order(fewer, index) for index in range(len(steps))] == [tree_order(frames, step) for step in steps]
