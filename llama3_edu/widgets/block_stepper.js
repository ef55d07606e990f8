// A pool of blocks beside the tables that name them: who holds what, what is free, and what just happened.

const MOST_LANES = 10;

function blockStepper(frames, { redraw }) {
  const { steps, num_blocks: count, block_size: size, holder } = frames;
  const pool = poolOf(frames);
  const lanes = lanesOf(steps);
  const publishes = steps.some(({ changes }) => changes.published);
  let at = 0;
  let looked = null; // the block that is looked at
  let chosen = null; // the row or sequence whose table is looked at
  let view = null;

  const holderName = (name) => `${holder} ${name}`;

  function describe(known) {
    if (chosen !== null) {
      const table = known.tables.get(chosen);
      return `${holderName(chosen)} holds ${plural(table.held, "token")} in ${plural(table.blocks.length, "block")}, in this order: ${listed(table.blocks)}.`.replace(/^./, (first) => first.toUpperCase());
    }
    if (looked === null) return "Click a block to see who holds it, or focus the pool and use the arrow keys.";
    return describeBlock(frames, pool, known, looked, pool.tokens(looked));
  }

  const listed = (blocks) => (blocks.length > 24 ? `${blocks.slice(0, 20).join(", ")}, … and ${blocks[blocks.length - 1]}` : enumerated(blocks.map(String)));

  function chip(block, known, extra = {}) {
    const filled = known.filled[block];
    return h("li", { class: "le-chip", "data-block": block, "data-state": pool.stateOf(block), "data-filled": filled, "data-looked": block === looked, style: `--le-done: ${filled / size}`, ...extra }, String(block));
  }

  // As many as there is room for: the first ones, and the last two.
  function chips(blocks, known, most) {
    if (blocks.length <= most) return blocks.map((block) => chip(block, known));
    const first = blocks.slice(0, most - 3);
    const more = h("li", { class: "le-more" }, `… ${grouped(blocks.length - most + 1)} …`);
    return [...first.map((block) => chip(block, known)), more, ...blocks.slice(-2).map((block) => chip(block, known))];
  }

  function lane() {
    const own = { name: h("span", { class: "le-lane-name" }), held: h("span", { class: "le-small" }), list: h("ol", { class: "le-chips" }), at: null };
    own.button = h("button", { type: "button", class: "le-lane-button", "aria-pressed": "false" }, own.name, own.held);
    own.node = h("div", { class: "le-lane" }, own.button, own.list);
    own.button.addEventListener("click", () => { chosen = chosen === own.at ? null : own.at; looked = null; redraw(); });
    return own;
  }

  function drawLane(own, name, known, marked) {
    const table = name === undefined ? null : known.tables.get(name);
    own.at = table ? name : null;
    set(own.node, { "data-name": table ? name : null, "data-empty": !table, "data-now": table && marked.includes(name) });
    set(own.button, { disabled: !table, "aria-pressed": String(table !== null && name === chosen) });
    own.name.textContent = table ? holderName(name) : "";
    own.held.textContent = table ? plural(table.held, "token") : "";
    own.list.replaceChildren(...(table ? chips(table.blocks, known, view.chips) : []));
  }

  function drawAside(known, marked) {
    const names = namesIn(lanes, at);
    view.lanes.forEach((own, index) => drawLane(own, names[index], known, marked));
    const hidden = names.slice(view.lanes.length).filter((name) => name !== undefined && known.tables.has(name)).length;
    if (view.hidden) view.hidden.textContent = hidden ? `and ${plural(hidden, holder)} more` : "";
    const order = known.free.slice(-view.freeRoom).reverse();
    view.free.replaceChildren(...order.map((block, index) => chip(block, known, { "data-next": index === 0 })));
    const more = known.free.length - order.length;
    view.freeMore.textContent = known.free.length ? (more ? `… ${grouped(more)} more` : "") : "empty";
  }

  function reading(known) {
    const counts = { free: 0, held: 0, shared: 0, cached: 0 };
    for (let block = 0; block < count; block += 1) counts[pool.stateOf(block)] += 1;
    view.big.textContent = grouped(counts.free);
    view.small.textContent = `of ${plural(count, "block")} free`;
    view.held.textContent = `${grouped(counts.held)} held by one ${holder}, ${grouped(counts.shared)} by several${publishes ? `, ${grouped(counts.cached)} kept by the prefix cache alone; ${grouped(known.published.size)} can be found, ${grouped(known.evicted)} given up so far` : ""}`;
    set(view.main, { "data-free": counts.free, "data-held": counts.held, "data-shared": counts.shared, "data-cached": counts.cached, "data-evicted": known.evicted });
  }

  function panel(name, ...children) {
    return h("div", { class: "le-panel" }, h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, name)), ...children);
  }

  function asidePanels(width) {
    const each = Math.max(38, 8 * String(count - 1).length + 14);
    const perLine = Math.max(4, Math.floor((width + 4) / each));
    const most = lanes.count > 4 ? 1 : 2; // lines per table
    const lines = Math.max(1, Math.min(most, Math.ceil(lanes.longest / perLine)));
    view.chips = most * perLine - (lanes.longest > most * perLine ? 1 : 0); // the dots are wider than a block
    view.freeRoom = Math.max(3, Math.floor((width - 96) / each));
    view.lanes = Array.from({ length: Math.max(1, Math.min(MOST_LANES, lanes.count)) }, lane);
    view.lanes.forEach(({ list }) => set(list, { style: `min-height: ${lines * 32 - 4}px` }));
    view.hidden = lanes.count > MOST_LANES ? h("p", { class: "le-small" }) : null;
    view.free = h("ol", { class: "le-chips le-free-list" });
    view.freeMore = h("span", { class: "le-small" });
    return h("div", { class: "le-pool-aside" },
      panel("Block tables", ...view.lanes.map(({ node }) => node), ...(view.hidden ? [view.hidden] : [])),
      panel("Free list: the first is taken next", h("div", { class: "le-free-line" }, view.free, view.freeMore)));
  }

  function pick(block) {
    looked = block;
    chosen = null;
    redraw();
  }

  return {
    layout(stage, width) {
      const side = width >= 640;
      const room = side ? width - 270 - 36 : width;
      view = { big: h("span", { class: "le-big" }), small: h("span", { class: "le-small" }), held: h("p", { class: "le-formula le-counts" }), lookedAt: h("p", { class: "le-looked", "aria-live": "polite" }) };
      view.grid = poolGrid(frames, room, { pool, label: "Pool of blocks: the arrow keys move from one to the next", onPick: pick });
      view.main = h("div", { class: "le-pool-main" },
        h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, `The pool: blocks of ${plural(size, "token")}`), h("p", { class: "le-reading" }, view.big, view.small), view.held),
        view.grid.node, view.lookedAt);
      const key = poolLegend(frames, view.grid.level);
      const parts = [view.main, asidePanels(side ? 270 : width)];
      if (side) view.main.append(key);
      else parts.push(key);
      stage.append(h("div", { class: `le-pool-view${side ? " le-side" : ""}` }, ...parts));
    },
    draw(step) {
      at = step;
      const known = pool.go(step);
      if (chosen !== null && !known.tables.has(chosen)) chosen = null;
      view.grid.draw(known, steps[step]);
      view.grid.look(looked, chosen === null ? [] : known.tables.get(chosen).blocks);
      drawAside(known, steps[step].names);
      reading(known);
      const words = describe(known);
      if (view.lookedAt.textContent !== words) view.lookedAt.textContent = words;
    },
  };
}

// Each table keeps its place for as long as it lasts; a new one takes the first place that is empty.
function lanesOf(steps) {
  const places = new Map();
  const lengths = new Map();
  const changes = [];
  let count = 0;
  let longest = 0;
  steps.forEach((step, index) => {
    const gone = [];
    for (const [name, kept, behind] of step.changes.tables || []) {
      const length = kept + behind.length;
      longest = Math.max(longest, length);
      if (!length) gone.push(name);
      else if (!places.has(name)) {
        const taken = new Set(places.values());
        let place = 0;
        while (taken.has(place)) place += 1;
        places.set(name, place);
        count = Math.max(count, place + 1);
        changes.push([index, place, name]);
      }
      lengths.set(name, length);
    }
    for (const name of gone) {
      if (places.has(name)) changes.push([index, places.get(name), undefined]);
      places.delete(name);
    }
  });
  return { count, longest, changes };
}

function namesIn({ count, changes }, step) {
  const names = new Array(count).fill(undefined);
  for (const [index, place, name] of changes) {
    if (index > step) break;
    names[place] = name;
  }
  return names;
}

export default { render: frameWidget("block-stepper", blockStepper) };
