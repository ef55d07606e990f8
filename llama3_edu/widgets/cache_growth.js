// Caches side by side while the same tokens arrive: rows are layers and KV heads, columns are tokens, each cell a key over a value.

const CELL_STATES = [
  ["new", "stored now"],
  ["held", "stored before"],
  ["copied", "stored before and copied now"],
  ["empty", "allocated, still empty"],
];

// More rows or columns than these, and some stand for all.
const MOST_ROWS = 32;
const MOST_COLUMNS = 64;

function cacheGrowth(frames, { redraw }) {
  const { tokens, steps, caches, n_layers: layers, n_kv_heads: heads } = frames;
  const slots = Math.max(tokens.length, ...caches.map((cache) => cache.slots || 0));
  const columns = evenly(slots, MOST_COLUMNS);
  const names = columns.map((position) => tokens[position] || "");
  const drawnLayers = evenly(layers, MOST_ROWS);
  const drawnHeads = drawnLayers.length * heads <= MOST_ROWS ? heads : 1;
  const largest = (name) => steps.reduce((most, step) => step.caches.reduce((own, cache) => Math.max(own, cache[name]), most), 1);
  const [mostHeld, mostCopied] = [largest("held"), largest("copied_total")];
  const wholeForwards = steps.flatMap((step, index) => (index === steps.length - 1 || steps[index + 1].forward !== step.forward ? [index] : []));
  const everyLayer = steps.map((_, index) => index);
  let stops = wholeForwards;
  let panels = [];

  // The stop before a step; what lies between the two is all layers of one forward pass, or one layer.
  function stopBefore(step) {
    const place = placeOf(stops, step);
    return place > 0 ? steps[stops[place - 1]] : null;
  }

  function stateOf(cache, copies, step, before, layer, column) {
    const { stored } = steps[step];
    if (column >= stored[layer]) return cache.slots !== null && column < cache.slots ? "empty" : "absent";
    if (before === null || stored[layer] === before.stored[layer]) return "held";
    if (column >= before.stored[layer]) return "new";
    return copies ? "copied" : "held";
  }

  function cellNode(x, y, width, height, name) {
    const half = height / 2;
    return s("g", { class: "le-kv", ...name, transform: `translate(${x} ${y})` },
      s("rect", { class: "le-kv-k", x: .75, y: .75, width: width - 1.5, height: half - .75 }),
      s("rect", { class: "le-kv-v", x: .75, y: half, width: width - 1.5, height: half - .75 }),
      s("rect", { class: "le-kv-edge", x: .75, y: .75, width: width - 1.5, height: height - 1.5, rx: 1.5 }));
  }

  function panel(cache, index, width) {
    const gutter = 34;
    const cell = Math.max(4, Math.min(24, (width - gutter - 2) / columns.length));
    const height = Math.max(10, Math.min(18, cell));
    const gap = drawnHeads > 1 ? 6 : 2;
    const top = labelHeight(names);
    const { definitions, style } = fills();
    const y = (row, head) => top + row * (drawnHeads * height + gap) + head * height;
    const rows = drawnLayers.map((layer, row) => s("text", {
      class: "le-row", "data-layer": layer, x: gutter - 8, y: y(row, 0) + drawnHeads * height / 2, "text-anchor": "end", "dominant-baseline": "central",
    }, `L${layer + 1}`));
    const cells = [];
    drawnLayers.forEach((layer, row) => {
      for (let head = 0; head < drawnHeads; head += 1) {
        columns.forEach((position, column) => {
          const name = { "data-layer": layer, "data-head": head, "data-position": position };
          cells.push({ layer, position, node: cellNode(gutter + column * cell, y(row, head), cell, height, name) });
        });
      }
    });
    const labels = columnLabels(names, { x: gutter, y: top - 6, cell });
    const image = drawing(gutter + columns.length * cell + 2, y(drawnLayers.length, 0), definitions, ...labels, ...rows, ...cells.map(({ node }) => node));
    const held = meter("held", "held");
    const copied = meter("copied", "copied so far");
    const node = h("div", { class: "le-panel", "data-cache": cache.name, style },
      h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, cache.name)), image, held.node, copied.node);
    return { node, cache, index, cells, labels, rows, held, copied };
  }

  function meter(kind, words) {
    const bar = h("span", { class: "le-bar" });
    const number = h("span", { class: "le-meter-number" });
    const note = h("span", { class: "le-small" });
    const node = h("div", { class: "le-meter", "data-kind": kind },
      h("p", { class: "le-meter-line" }, number, h("span", { class: "le-small" }, words), note), h("span", { class: "le-track" }, bar));
    return { node, show: (bytes, most, more) => {
      number.textContent = formatBytes(bytes);
      note.textContent = more;
      set(node, { "data-bytes": bytes });
      bar.style.width = `${100 * bytes / most}%`;
    } };
  }

  function drawPanel(own, step) {
    const before = stopBefore(step);
    const now = steps[step].caches[own.index];
    const copiedNow = before === null ? 0 : now.copied_total - before.caches[own.index].copied_total;
    for (const { layer, position, node } of own.cells) set(node, { "data-state": stateOf(own.cache, copiedNow > 0, step, before, layer, position) });
    const { arrived, layer, stored } = steps[step];
    const longest = Math.max(...stored);
    own.labels.forEach((text, column) => set(text, { "data-current": columns[column] >= arrived[0] && columns[column] < arrived[1], "data-absent": columns[column] >= longest }));
    own.rows.forEach((text, row) => set(text, { "data-current": stops === everyLayer && drawnLayers[row] === layer }));
    const used = frames.bytes_per_cell * heads * steps[step].stored.reduce((sum, count) => sum + count, 0);
    own.held.show(now.held, mostHeld, used === now.held ? "all of it in use" : `${formatBytes(used)} in use`);
    own.copied.show(now.copied_total, mostCopied, `${formatBytes(copiedNow)} just now`);
  }

  const options = wholeForwards.length < steps.length ? [segmented("Step by", ["token", "layer"], (index) => { stops = index ? everyLayer : wholeForwards; redraw(); })] : [];

  return {
    options,
    stops: () => stops,
    layout(stage, width) {
      const side = width >= 600 && caches.length > 1;
      const each = side ? Math.floor((width - 36) / 2) : width;
      panels = caches.map((cache, index) => panel(cache, index, each));
      const { definitions, style } = fills();
      const key = set(legend(CELL_STATES, (state) => set(cellNode(0, 0, 14, 14, {}), { "data-state": state })), { style });
      key.querySelector("svg").prepend(definitions);
      key.append(h("li", {}, h("span", { class: "le-letters" }, h("span", { class: "le-letter-k" }, "K"), " over ", h("span", { class: "le-letter-v" }, "V")), h("span", {}, "in each cell")),
        h("li", {}, h("span", { class: "le-letters" }, layers > 1 ? `L1 … L${layers}` : "L1"), h("span", {}, `layers, ${heads} KV ${heads === 1 ? "head" : "heads"} each${drawnHeads < heads ? ", drawn as one" : ""}`)));
      const coarse = columns.length < slots ? [h("p", { class: "le-small" }, `${columns.length} of ${grouped(slots)} slots are drawn.`)] : [];
      if (drawnLayers.length < layers) coarse.push(h("p", { class: "le-small" }, `${drawnLayers.length} of ${layers} layers are drawn.`));
      stage.append(h("div", { class: `le-panels${side ? " le-side" : ""}` }, ...panels.map(({ node }) => node)), key, ...coarse);
    },
    draw: (step) => panels.forEach((own) => drawPanel(own, step)),
  };
}

export default { render: frameWidget("cache-growth", cacheGrowth) };
