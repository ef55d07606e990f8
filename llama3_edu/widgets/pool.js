// What pictures of a pool of blocks share: its state at any step, and the grid of blocks.

const blockStates = (holder) => [
  ["free", "free"],
  ["held", `held by one ${holder}`],
  ["shared", "held by several"],
  ["cached", "kept by the prefix cache alone"],
];

const HAPPENED = {
  allocated: "taken", shared: "shared", released: "let go", freed: "freed", copied: "copy", published: "published", evicted: "given up",
  reused: "found", computed: "taken",
};

const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
const enumerated = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`);

// Steps hold changes. Going forward applies them; going back begins again with a pool that is all free.
function poolOf(frames, { begin = () => {}, apply = () => {} } = {}) {
  const { num_blocks: count, block_size: size, steps } = frames;
  const tokensOf = new Map(frames.rows.map(({ name, tokens }) => [name, tokens]));
  let known = null;
  let at = -1;

  function restart() {
    known = {
      refs: new Array(count).fill(0), filled: new Array(count).fill(0), origins: new Array(count).fill(null), tables: new Map(), published: new Set(),
      free: Array.from({ length: count }, (_, index) => count - 1 - index), evicted: 0,
    };
    at = -1;
    begin();
  }

  function take({ blocks = [], tables = [], free = null, published = [], evicted = [], ...more }) {
    for (const [block, refs, filled] of blocks) {
      known.refs[block] = refs;
      known.filled[block] = filled;
      if (!refs) known.origins[block] = null;
    }
    for (const [name, kept, behind, held] of tables) {
      const before = known.tables.get(name);
      const table = before ? before.blocks : [];
      table.length = kept;
      table.push(...behind);
      behind.forEach((block, index) => { known.origins[block] = [name, kept + index]; });
      if (table.length) known.tables.set(name, { blocks: table, held });
      else known.tables.delete(name);
    }
    if (free) {
      known.free.length = free[0];
      known.free.push(...free[1]);
    }
    evicted.forEach((block) => known.published.delete(block));
    published.forEach((block) => known.published.add(block));
    known.evicted += evicted.length;
    apply(more);
  }

  return {
    go(step) {
      if (!known || step < at) restart();
      while (at < step) take(steps[(at += 1)].changes);
      return known;
    },
    // Holders beside the prefix cache.
    holders: (block) => known.refs[block] - (known.published.has(block) ? 1 : 0),
    stateOf(block) {
      if (!known.refs[block]) return "free";
      const others = known.refs[block] - (known.published.has(block) ? 1 : 0);
      return others > 1 ? "shared" : others === 1 ? "held" : "cached";
    },
    names: (block) => [...known.tables].flatMap(([name, { blocks }]) => (blocks.includes(block) ? [name] : [])).sort((a, b) => a - b),
    tokens(block) {
      const origin = known.origins[block];
      const tokens = origin && tokensOf.get(origin[0]);
      return tokens ? tokens.slice(origin[1] * size, origin[1] * size + known.filled[block]) : [];
    },
  };
}

// Who holds a block and what is in it, in words.
function describeBlock(frames, pool, known, block, tokens) {
  const { block_size: size, holder } = frames;
  const refs = known.refs[block];
  if (!refs) {
    const place = known.free.length - 1 - known.free.indexOf(block);
    return `Block ${block} is free; ${place === 0 ? "it is taken next" : `${plural(place, "block")} will be taken before it`}.`;
  }
  const text = tokens.length ? `: “${tokens.join("").replace(/^␣/, "")}”` : "";
  const names = pool.names(block);
  const told = names.length ? [`${holder}${names.length === 1 ? "" : "s"} ${enumerated(names.map(String))}`] : [];
  const cached = known.published.has(block);
  const missing = refs - names.length - (cached ? 1 : 0);
  if (missing > 0) told.push(`${plural(missing, "holder")} whose table is not told yet`);
  if (cached) told.push("the prefix cache");
  const who = told.length ? ` Held by ${enumerated(told)}` : "";
  return `Block ${block} holds ${known.filled[block]} of ${plural(size, "token")}${text}.${who}: reference count ${refs}.${cached ? " It can be found by its tokens." : ""}`;
}

// How large blocks are drawn: with their slots and text, with their number, or as cells.
function gridSizes(count, width, most, { plain = false } = {}) {
  const narrow = width < 480;
  const fit = (least, gap) => Math.max(1, Math.floor((width + gap) / (least + gap)));
  const even = (columns) => {
    for (let fewer = Math.min(columns, count); fewer > columns * .6; fewer -= 1) if (count % fewer === 0) return fewer;
    return Math.min(columns, count);
  };
  const sized = (level, columns, gap, widest, height) => {
    const box = Math.min(widest, (width - gap * (columns - 1)) / columns);
    return { level, columns, gap, box, height, rows: Math.ceil(count / columns) };
  };
  const full = even(fit(narrow ? 66 : 104, 10));
  if (!plain && count <= full * 8) return sized("full", full, 10, 190, 64);
  const small = even(fit(narrow ? 44 : 38, 4));
  if (Math.ceil(count / small) * 40 <= most) return sized("small", small, 4, 46, narrow ? 44 : 36);
  const cell = Math.max(3, Math.min(18, Math.floor(Math.sqrt(width * most / count) * 2) / 2));
  const columns = Math.floor(width / cell);
  return sized("cell", columns >= 32 ? columns - columns % 16 : columns, 0, cell, cell);
}

// A block as one shape: a point is free, a full square held, one with a hole shared; a missing corner says that it can be found.
function cellPath(state, share, published, size) {
  const edge = size - Math.max(1, size * .14);
  if (state === "free") return `M${edge / 2 - .75} ${edge / 2 - .75}h1.5v1.5h-1.5z`;
  const top = published ? 0 : edge * (1 - Math.max(.3, share));
  const cut = published ? edge * .42 : 0;
  const outline = `M0 ${top}H${edge - cut}L${edge} ${top + cut}V${edge}H0Z`;
  const hole = edge * .3;
  return state === "shared" ? `${outline}M${hole} ${edge - hole}H${edge - hole}V${edge - hole - edge * .34}H${hole}Z` : outline;
}

function blockNode(block, sizes, slots) {
  const { level, box, height } = sizes;
  if (level === "cell") return { root: s("path", { class: "le-block le-block-cell", "data-block": block }), text: [], slots: [] };
  const root = s("g", { class: `le-block le-block-${level}`, "data-block": block },
    s("rect", { class: "le-stack", x: 3.5, y: 3.5, width: box, height, rx: 5 }),
    s("rect", { class: "le-ground", width: box, height, rx: 5 }));
  const corner = s("path", { class: "le-found", d: `M${box - 13} 0H${box - 5}Q${box} 0 ${box} 5V13Z` });
  if (level === "small") {
    const fill = s("rect", { class: "le-fill", x: 3, width: box - 6, rx: 3 });
    const name = s("text", { class: "le-block-name", x: box / 2, y: height / 2, "text-anchor": "middle", "dominant-baseline": "central" }, block);
    root.append(fill, corner, name);
    return { root, fill, text: [], slots: [] };
  }
  const name = s("text", { class: "le-block-name", x: 7, y: 15 }, block);
  const refs = s("text", { class: "le-refs", x: box - 15, y: 15, "text-anchor": "end" });
  const words = s("text", { class: "le-token le-words", x: 7, y: height - 9 });
  const room = box - 14;
  const gap = slots * 5 <= room ? 2 : slots * 3 <= room ? 1 : 0;
  const each = (room - gap * (slots - 1)) / slots;
  const cells = Array.from({ length: slots }, (_, slot) => s("rect", { class: "le-slot", x: 7 + slot * (each + gap), y: 23, width: each, height: 14, rx: Math.min(2, each / 3) }));
  root.append(...cells, corner, name, refs, words);
  return { root, refs, words, slots: cells, most: Math.floor(room / 7.3) };
}

function updateBlock(view, sizes, { state, refs, filled, published, tokens, size }) {
  const share = size ? filled / size : 0;
  set(view.root, { "data-state": state, "data-refs": refs, "data-filled": filled, "data-published": published });
  if (sizes.level === "cell") set(view.root, { d: cellPath(state, share, published, sizes.box), "fill-rule": "evenodd" });
  else if (sizes.level === "small") {
    const high = (sizes.height - 6) * share;
    set(view.fill, { y: sizes.height - 3 - high, height: high });
  } else {
    view.slots.forEach((slot, index) => set(slot, { "data-on": index < filled }));
    view.refs.textContent = refs > 1 ? `×${refs}` : "";
    view.words.textContent = shorten(tokens.join(""), view.most);
  }
}

// The grid: blocks, and over them what just happened, the block that is looked at, and the way of a table through the pool.
function poolGrid(frames, width, { pool, label, most = 520, plain = false, tokensOf = pool.tokens, onPick }) {
  const { num_blocks: count, block_size: size } = frames;
  const sizes = gridSizes(count, width, most, { plain });
  const { columns, rows, gap, box, height, level } = sizes;
  const lift = plain ? 3 : 14;
  const across = (block) => (block % columns) * (box + gap) + 1;
  const down = (block) => Math.floor(block / columns) * (height + gap) + lift;
  const middle = (block) => [across(block) + box / 2, down(block) + height / 2];
  const views = Array.from({ length: count }, (_, block) => blockNode(block, sizes, size));
  views.forEach(({ root }, block) => set(root, { transform: `translate(${across(block)} ${down(block)})` }));
  const drawn = new Array(count).fill("");
  const layers = { trail: s("g"), now: s("g"), looked: s("g") };
  const wide = columns * (box + gap) - gap + (level === "cell" ? 2 : 6);
  const { definitions, style } = poolFills();
  const image = drawing(Math.min(width, wide), rows * (height + gap) - gap + lift + 6, definitions, s("g", {}, ...views.map(({ root }) => root)), layers.trail, layers.now, layers.looked);
  const node = h("div", { class: "le-pool", "data-level": level, tabindex: 0, role: "application", "aria-label": label, style }, image);

  const ring = (block, kind) => {
    const pad = level === "cell" ? 1.5 : 2;
    return s("rect", { class: `le-ring le-ring-${kind}`, "data-block": block, x: across(block) - pad, y: down(block) - pad, width: box + 2 * pad, height: height + 2 * pad, rx: level === "cell" ? 1 : 6 });
  };
  const tag = (block, words) => {
    const long = 7.4 * words.length + 14;
    const x = Math.max(0, Math.min(Math.max(wide, 80) - long, middle(block)[0] - long / 2));
    const y = Math.max(0, down(block) - (level === "cell" ? 22 : 11));
    return s("g", { class: "le-tag", "data-block": block, transform: `translate(${x} ${y})` }, s("rect", { width: long, height: 18, rx: 9 }),
      s("text", { x: long / 2, y: 9.5, "text-anchor": "middle", "dominant-baseline": "central" }, words));
  };
  // From the edge of the block that was read to the edge of the copy, bent a little so that it is no line of the grid.
  const arrow = (source, block) => {
    const [x0, y0] = middle(source);
    const [x1, y1] = middle(block);
    const length = Math.hypot(x1 - x0, y1 - y0) || 1;
    const [ux, uy] = [(x1 - x0) / length, (y1 - y0) / length];
    const inside = Math.min(box, height) * .3;
    const [ax, ay, bx, by] = [x0 + ux * inside, y0 + uy * inside, x1 - ux * inside, y1 - uy * inside];
    const bend = Math.min(26, length * .2);
    const [cx, cy] = [(ax + bx) / 2 + uy * bend, (ay + by) / 2 - ux * bend];
    const turn = Math.atan2(by - cy, bx - cx) * 180 / Math.PI;
    const head = level === "cell" ? 6 : 9;
    return s("g", { class: "le-copy", "data-source": source, "data-block": block }, s("path", { class: "le-copy-line", d: `M${ax} ${ay}Q${cx} ${cy} ${bx} ${by}` }),
      s("path", { class: "le-copy-head", d: `M0 0L${-head} ${-head / 2}V${head / 2}Z`, transform: `translate(${bx} ${by}) rotate(${turn})` }));
  };

  const pick = (block) => onPick(block);
  const blockAt = (event) => {
    const area = image.getBoundingClientRect();
    const scale = wide > width ? width / wide : 1;
    const column = Math.floor((event.clientX - area.left) / scale / (box + gap));
    const block = Math.floor(((event.clientY - area.top) / scale - lift) / (height + gap)) * columns + column;
    return column >= 0 && column < columns && block >= 0 && block < count ? block : null;
  };
  let looked = null;
  node.addEventListener("click", (event) => { const block = blockAt(event); pick(block === looked ? null : block); });
  node.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (event.altKey || event.ctrlKey || event.metaKey || (!move && !(event.key === "Escape" && looked !== null))) return;
    if (!move) pick(null);
    else if (looked === null) pick(0);
    else if (looked + move >= 0 && looked + move < count) pick(looked + move);
    event.preventDefault();
    event.stopPropagation();
  });

  return {
    node,
    level,
    // Redraw the blocks that changed, and mark what the step is about.
    draw(known, { what, blocks, source }, state = pool.stateOf) {
      for (let block = 0; block < count; block += 1) {
        const published = known.published.has(block);
        const now = state(block);
        const tokens = level === "full" ? tokensOf(block) : [];
        const mark = `${now} ${known.refs[block]} ${known.filled[block]} ${published} ${tokens.join("")}`;
        if (mark === drawn[block]) continue;
        drawn[block] = mark;
        updateBlock(views[block], sizes, { state: now, refs: known.refs[block], filled: known.filled[block], published, tokens, size });
      }
      const marks = blocks.slice(0, 64).map((block) => ring(block, "now"));
      const words = HAPPENED[what];
      if (source !== null) marks.push(arrow(source, blocks[0]));
      if (words && blocks.length && !plain) marks.push(tag(blocks[0], words));
      if (source !== null && !plain) marks.push(tag(source, "source"));
      layers.now.replaceChildren(...marks);
    },
    look(block, table = []) {
      looked = block;
      layers.looked.replaceChildren(...(block === null ? [] : [ring(block, "looked")]));
      const points = table.map((held) => middle(held).join(" "));
      const order = level === "full" ? table.map((held, index) => s("g", { class: "le-order", "data-block": held, "data-order": index + 1, transform: `translate(${across(held) + box} ${down(held) + height})` },
        s("circle", { r: 10 }), s("text", { "text-anchor": "middle", "dominant-baseline": "central" }, index + 1))) : [];
      layers.trail.replaceChildren(...(points.length > 1 ? [s("polyline", { class: "le-trail", points: points.join(" ") })] : []), ...table.map((held) => ring(held, "table")), ...order);
      set(node, { "data-looking": table.length > 0 });
      if (table.length) views.forEach(({ root }, held) => set(root, { "data-off": !table.includes(held) }));
      else if (node.dataset.dimmed) views.forEach(({ root }) => set(root, { "data-off": false }));
      set(node, { "data-dimmed": table.length > 0 ? "1" : null });
    },
  };
}

// The fills of blocks beside those that all widgets share: what the prefix cache alone keeps is striped.
function poolFills() {
  const { definitions, style } = fills();
  const id = uniqueId("kept");
  definitions.append(s("pattern", { id, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    s("rect", { width: 5, height: 5, class: "le-kept-ground" }), s("rect", { width: 2, height: 5, class: "le-kept-stripe" })));
  return { definitions, style: `${style}; --le-fill-kept: url(#${id})` };
}

function poolLegend(frames, level) {
  const cached = frames.steps.some(({ changes }) => changes.published);
  const states = blockStates(frames.holder).filter(([state]) => state !== "cached" || cached);
  const sizes = { level: level === "cell" ? "cell" : "small", box: 15, height: 15 };
  const swatch = (state, published) => {
    const view = blockNode(0, sizes, 1);
    if (level !== "cell") {
      view.root.querySelector("text").remove();
      set(view.root.querySelector(".le-found"), { d: "M6 0H12Q15 0 15 3V9Z" });
    }
    updateBlock(view, sizes, { state, refs: 0, filled: state === "free" ? 0 : 1, published, tokens: [], size: 1 });
    view.root.classList.replace("le-block", "le-block-swatch");
    set(view.root, { "data-block": null });
    return view.root;
  };
  const { definitions, style } = poolFills();
  const list = set(legend(states, (state) => swatch(state, false)), { style });
  if (cached) list.append(h("li", {}, drawing(15, 15, swatch("held", true)), h("span", {}, "corner: can be found by its tokens")));
  list.append(h("li", {}, drawing(15, 15, s("rect", { class: "le-ring le-ring-now", x: 1, y: 1, width: 13, height: 13, rx: 4 })), h("span", {}, "just now")));
  if (level === "full") list.append(h("li", {}, h("span", { class: "le-letters" }, "×2"), h("span", {}, "reference count, where it is above 1")));
  list.querySelector("svg").prepend(definitions);
  return list;
}
