// Published blocks as a tree, each below the block it follows, beside the pool they lie in. A prompt comes in and walks down.

const MOST_ROWS = 40; // a tree with more places than this shows some
const SOME_ROWS = 24;
const MOST_CHIPS = 10;

function prefixTree(frames, { redraw }) {
  const { steps, nodes, num_blocks: count, block_size: size, holder } = frames;
  const places = placesOf(nodes);
  const few = places.length <= MOST_ROWS;
  const prompts = promptsOf(steps);
  const rows = new Map(frames.rows.map(({ name, tokens }) => [name, tokens]));
  let order = new Set(); // the nodes that are published, the one used longest ago first
  let nodeOf = new Map(); // for each published block, its node
  let at = 0;
  let looked = null; // the block that is looked at
  let view = null;

  const pool = poolOf(frames, {
    begin() { order = new Set(); nodeOf = new Map(); },
    apply({ added = [], touched = [], removed = [] }) {
      for (const node of [...added, ...touched]) {
        order.delete(node);
        order.add(node);
      }
      removed.forEach((node) => order.delete(node));
      removed.forEach((node) => { if (nodeOf.get(nodes[node].block) === node) nodeOf.delete(nodes[node].block); });
      added.forEach((node) => { if (order.has(node)) nodeOf.set(nodes[node].block, node); });
    },
  });

  const textOf = (node) => nodes[node].tokens.join("");
  const blockTokens = (block) => (nodeOf.has(block) ? nodes[nodeOf.get(block)].tokens : pool.tokens(block));

  // From the start of a prompt down to a node.
  function pathTo(node) {
    const path = [];
    for (let own = node; own !== null && own !== undefined; own = nodes[own].parent) path.unshift(own);
    return path;
  }

  // What would be given up first, second, …: what nobody else holds, by when it was used last.
  function ranks() {
    return new Map([...order].filter((node) => pool.stateOf(nodes[node].block) === "cached").map((node, index) => [node, index]));
  }

  const ordinal = (index) => `${index + 1}${["th", "st", "nd", "rd"][(index + 1) % 100 > 10 && (index + 1) % 100 < 14 ? 0 : (index + 1) % 10] || "th"}`;

  function holdersInWords(block) {
    const names = pool.names(block);
    const others = pool.holders(block);
    return names.length === others && others < 4 ? `${holder}${others === 1 ? "" : "s"} ${names.join(", ")}` : `${plural(others, "holder")}`;
  }

  function describe(known) {
    if (looked === null) return "Click a block in the tree or in the pool, or focus one of them and use the arrow keys.";
    const words = describeBlock(frames, pool, known, looked, blockTokens(looked));
    const node = nodeOf.get(looked);
    if (node === undefined) return words;
    const rank = ranks().get(node);
    const before = pathTo(node).slice(0, -1).map((own) => String(nodes[own].block));
    const behind = before.length ? ` It stands for its tokens behind ${before.length === 1 ? "block" : "blocks"} ${enumerated(before)}.` : " It stands for its tokens at the start of a prompt.";
    return `${words}${behind}${rank === undefined ? "" : ` Nobody else holds it: it would be given up ${rank === 0 ? "next" : ordinal(rank)}.`}`;
  }

  // Which nodes are drawn: one for each place in a small tree; in a large one those used last, which bring the ones before them.
  function shown() {
    const meant = steps[at].nodes;
    const present = few ? [...order] : [...order].slice(-SOME_ROWS);
    return { drawn: new Set([...present, ...meant]), hidden: order.size - present.length };
  }

  function arrange(drawn) {
    const wanted = few ? places : places.filter(({ members }) => members.some((node) => drawn.has(node)));
    const there = new Set(wanted.map(({ index }) => index));
    const children = (place) => wanted.filter(({ parent }) => (there.has(parent) ? parent : null) === place);
    const lines = [];
    const below = (place, depth) => {
      const own = children(place);
      const deeper = place === null ? 0 : depth + (own.length > 1 ? 1 : .75);
      for (const child of own) {
        lines.push({ place: child, depth: deeper, line: lines.length });
        below(child.index, deeper);
      }
    };
    below(null, 0);
    return lines;
  }

  function rowNode(entry, node, marks) {
    const { place, depth, line } = entry;
    const { indent, high, box } = view;
    const { block } = nodes[node];
    const present = order.has(node);
    const state = present ? pool.stateOf(block) : "evicted";
    const rank = marks.ranks.get(node);
    const left = depth * indent + 1;
    const wide = view.width - left - 3;
    const status = !present ? "given up" : state === "cached" ? (rank === 0 ? "next to go" : `${ordinal(rank)} to go`) : holdersInWords(block);
    const room = Math.floor((wide - 58 - 6.6 * status.length) / 7.3);
    const top = line * high + (high - box) / 2;
    const lit = marks.meant.includes(node) ? steps[at].what : null;
    return s("g", { class: "le-node", "data-node": node, "data-place": place.index, "data-block": block, "data-state": state, "data-lit": lit, "data-path": marks.path.includes(node), "data-looked": present && block === looked, "data-rank": rank === undefined ? null : rank, transform: `translate(${left} ${top})` },
      s("rect", { class: "le-stack", x: 3, y: 3, width: wide, height: box, rx: 6 }),
      s("rect", { class: "le-ground", width: wide, height: box, rx: 6 }),
      s("path", { class: "le-fill", d: `M6 0H36V${box}H6A6 6 0 0 1 0 ${box - 6}V6A6 6 0 0 1 6 0Z` }),
      s("text", { class: "le-block-name", x: 18, y: box / 2 + .5, "text-anchor": "middle", "dominant-baseline": "central" }, block),
      s("text", { class: "le-token le-words", x: 44, y: box / 2 + .5, "dominant-baseline": "central" }, room > 2 ? shorten(textOf(node), room) : ""),
      s("text", { class: "le-status", x: wide - 8, y: box / 2 + .5, "text-anchor": "end", "dominant-baseline": "central" }, status));
  }

  // The block before this one is not among those shown.
  function cutLink({ depth, line }) {
    const { indent, high, box } = view;
    return s("path", { class: "le-link-cut", d: `M${depth * indent + 12} ${line * high - 1}V${line * high + (high - box) / 2}` });
  }

  // From a block to each block that follows it.
  function links(lines, found) {
    const { indent, high, box } = view;
    const lineOf = new Map(lines.map((entry) => [entry.place.index, entry]));
    return lines.flatMap((entry) => {
      const above = lineOf.get(entry.place.parent);
      if (!above && entry.place.parent !== null && found.has(entry.place.index)) return [cutLink(entry)];
      if (!above || !found.has(entry.place.index) || !found.has(entry.place.parent)) return [];
      const x = above.depth * indent + 12;
      const from = above.line * high + (high + box) / 2;
      const straight = entry.depth * indent < x + 3; // a deep tree has no room to step to the right
      const to = entry.line * high + (straight ? (high - box) / 2 : high / 2);
      return [s("path", { class: "le-link", "data-from": found.get(entry.place.parent), "data-to": found.get(entry.place.index), d: straight ? `M${x} ${from}V${to}` : `M${x} ${from}V${to}H${entry.depth * indent + 1}` })];
    });
  }

  function drawTree() {
    const { drawn, hidden } = shown();
    const lines = arrange(drawn);
    view.indent = Math.min(24, (view.width - 210) / Math.max(1, ...lines.map(({ depth }) => depth)));
    if (!few) setHeight(lines.length);
    const found = new Map(); // for each place that is drawn, the node in it
    for (const { place } of lines) {
      const node = place.members.filter((own) => drawn.has(own)).pop();
      if (node !== undefined) found.set(place.index, node);
    }
    const marks = { meant: steps[at].nodes, ranks: ranks(), path: looked !== null && nodeOf.has(looked) ? pathTo(nodeOf.get(looked)) : [] };
    const shownLines = lines.filter(({ place }) => found.has(place.index));
    view.nodes = shownLines.map((entry) => rowNode(entry, found.get(entry.place.index), marks));
    view.links.replaceChildren(...links(lines, found));
    view.rows.replaceChildren(...view.nodes);
    view.hidden.textContent = hidden ? `${SOME_ROWS} of ${grouped(order.size)} published blocks are shown: those used last.` : "";
    view.empty.textContent = shownLines.length ? "" : "Nothing is published yet.";
  }

  function setHeight(lines) {
    const high = Math.max(1, lines) * view.high;
    set(view.image, { height: high, viewBox: `0 0 ${view.width} ${high}` });
  }

  function drawPrompt() {
    const { prompt, step } = prompts[at] || {};
    set(view.prompt, { "data-empty": !prompt, "data-name": prompt ? prompt.name : null, "data-now": step === at });
    view.promptName.textContent = prompt ? `${holder} ${prompt.name} asks with ${plural(prompt.num_tokens, "token")}` : "No prompt yet";
    if (!prompt) return view.promptChips.replaceChildren();
    const tokens = (rows.get(prompt.name) || []).slice(0, prompt.num_tokens);
    const pieces = Array.from({ length: Math.ceil(prompt.num_tokens / size) }, (_, index) => {
      const found = (index + 1) * size <= prompt.num_cached;
      const words = shorten(tokens.slice(index * size, (index + 1) * size).join(""), view.most) || plural(Math.min(size, prompt.num_tokens - index * size), "token");
      return h("li", { class: "le-piece", "data-state": found ? "found" : "computed" }, h("code", {}, words), h("span", { class: "le-small" }, found ? "found" : "to compute"));
    });
    const more = pieces.length - view.pieces;
    view.promptChips.replaceChildren(...pieces.slice(0, view.pieces), ...(more > 0 ? [h("li", { class: "le-more" }, `… and ${plural(more, "block")} more`)] : []));
    return null;
  }

  function pick(block) {
    looked = block;
    redraw();
  }

  function walk(event) {
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || (!move && !(event.key === "Escape" && looked !== null))) return;
    const blocks = view.nodes.filter(({ dataset }) => dataset.state !== "evicted").map(({ dataset }) => Number(dataset.block));
    const now = blocks.indexOf(looked);
    if (!move) pick(null);
    else if (blocks.length) pick(blocks[now < 0 ? 0 : Math.max(0, Math.min(blocks.length - 1, now + move))]);
    event.preventDefault();
    event.stopPropagation();
  }

  function build(width) {
    const narrow = width < 480;
    view.width = width;
    view.high = narrow ? 46 : 38;
    view.box = narrow ? 36 : 28;
    view.links = s("g");
    view.rows = s("g");
    const { definitions, style } = poolFills();
    view.image = drawing(width, view.high, definitions, view.links, view.rows);
    setHeight(few ? places.length : 1);
    const tree = h("div", { class: "le-tree", tabindex: 0, role: "application", "aria-label": "Tree of published blocks: the up and down arrow keys move from one to the next", style }, view.image);
    tree.addEventListener("click", (event) => {
      const node = event.target.closest(".le-node");
      const block = node && node.dataset.state !== "evicted" ? Number(node.dataset.block) : null;
      pick(block === looked ? null : block);
    });
    tree.addEventListener("keydown", walk);
    return tree;
  }

  function promptStrip(width) {
    view.most = width < 480 ? 12 : 20;
    view.pieces = width < 480 ? 6 : MOST_CHIPS;
    view.promptName = h("p", { class: "le-name" });
    view.promptChips = h("ol", { class: "le-pieces" });
    view.prompt = h("div", { class: "le-prompt" }, h("div", { class: "le-panel-head" }, view.promptName), view.promptChips);
    return view.prompt;
  }

  // The prompt that takes the most room decides how tall the strip is, so that nothing below it moves.
  function leaveRoom() {
    const own = at;
    const seen = new Set();
    let most = 0;
    prompts.forEach((found, index) => {
      if (!found || seen.has(found.step) || seen.size > 60) return;
      seen.add(found.step);
      at = index;
      drawPrompt();
      most = Math.max(most, view.promptChips.offsetHeight);
    });
    at = own;
    set(view.promptChips, { style: `min-height: ${most}px` });
  }

  return {
    layout(stage, width) {
      const side = width >= 640;
      const room = side ? width - 230 - 36 : width;
      view = { lookedAt: h("p", { class: "le-looked", "aria-live": "polite" }), hidden: h("p", { class: "le-small" }), empty: h("p", { class: "le-small le-tree-empty" }) };
      const tree = build(room);
      const name = h("p", { class: "le-name" }, "Blocks that can be found, each behind the one it follows");
      view.grid = poolGrid(frames, side ? 230 : width, { pool, label: "Pool of blocks: the arrow keys move from one to the next", most: side ? 420 : 260, plain: true, onPick: pick });
      const main = h("div", { class: "le-tree-main" }, h("div", { class: "le-panel" }, h("div", { class: "le-panel-head" }, name), view.empty, tree, view.hidden));
      const aside = h("div", { class: "le-pool-aside" },
        h("div", { class: "le-panel" }, h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, `The pool: ${plural(count, "block")}`)), view.grid.node),
        ...(side ? [] : [view.lookedAt]), poolLegend(frames, view.grid.level));
      stage.append(promptStrip(width), h("div", { class: `le-pool-view le-tree-view${side ? " le-side" : ""}` }, main, aside), ...(side ? [view.lookedAt] : []));
      leaveRoom();
    },
    draw(step) {
      at = step;
      const known = pool.go(step);
      drawPrompt();
      drawTree();
      view.grid.draw(known, steps[step]);
      view.grid.look(looked, looked !== null && nodeOf.has(looked) ? pathTo(nodeOf.get(looked)).map((node) => nodes[node].block) : []);
      const words = describe(known);
      if (view.lookedAt.textContent !== words) view.lookedAt.textContent = words;
    },
  };
}

// A place in the tree: the same tokens behind the same tokens. A block that is published again for them stands there again.
function placesOf(nodes) {
  const places = [];
  const placeOf = [];
  const byKey = new Map();
  nodes.forEach(({ parent, tokens }, node) => {
    const above = parent === null ? null : placeOf[parent];
    const key = JSON.stringify([above, tokens]);
    if (!byKey.has(key)) {
      byKey.set(key, places.length);
      places.push({ index: places.length, parent: above, members: [] });
    }
    placeOf.push(byKey.get(key));
    places[byKey.get(key)].members.push(node);
  });
  return places;
}

// For each step the prompt that came in last, and the step it came with.
function promptsOf(steps) {
  let found = null;
  return steps.map(({ prompt }, step) => {
    if (prompt) found = { prompt, step };
    return found;
  });
}

export default { render: frameWidget("prefix-tree", prefixTree) };
