// Caches side by side while the same tokens arrive: rows are layers and KV heads, columns are tokens, each cell a key over a value.

const CELL_STATES = [
  ["new", "stored now"],
  ["held", "stored before"],
  ["copied", "stored before and copied now"],
  ["empty", "allocated, still empty"],
];

function cacheGrowth(frames, { redraw }) {
  const { tokens, steps, caches, n_layers: layers, n_kv_heads: heads } = frames;
  const columns = Math.max(tokens.length, ...caches.map(({ slots }) => slots || 0));
  const mostHeld = Math.max(1, ...steps.flatMap((step) => step.caches.map(({ held }) => held)));
  const mostCopied = Math.max(1, ...steps.flatMap((step) => step.caches.map(({ copied_total }) => copied_total)));
  const wholeForwards = steps.flatMap((step, index) => (index === steps.length - 1 || steps[index + 1].forward !== step.forward ? [index] : []));
  const everyLayer = steps.map((_, index) => index);
  let stops = wholeForwards;
  let panels = [];

  // The steps that go by between the stop before and this one: all layers of one forward pass, or one layer.
  function lately(step) {
    const before = stops.filter((stop) => stop < step).pop();
    return before === undefined ? [] : steps.slice(before + 1, step + 1);
  }

  function stateOf(cache, index, step, layer, column, recent) {
    const event = recent.find((own) => own.layer === layer);
    const { stored } = steps[step];
    if (column >= stored[layer]) return cache.slots !== null && column < cache.slots ? "empty" : "absent";
    if (!event) return "held";
    if (column >= event.arrived[0]) return "new";
    return event.caches[index].copied > 0 ? "copied" : "held";
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
    const cell = Math.max(5, Math.min(24, (width - gutter - 2) / columns));
    const height = Math.max(10, Math.min(18, cell));
    const gap = heads > 1 ? 6 : 2;
    const top = labelHeight(tokens);
    const { definitions, style } = fills();
    const y = (layer, head) => top + layer * (heads * height + gap) + head * height;
    const names = Array.from({ length: layers }, (_, layer) => s("text", {
      class: "le-row", "data-layer": layer, x: gutter - 8, y: y(layer, 0) + heads * height / 2, "text-anchor": "end", "dominant-baseline": "central",
    }, `L${layer + 1}`));
    const cells = [];
    for (let layer = 0; layer < layers; layer += 1) {
      for (let head = 0; head < heads; head += 1) {
        for (let column = 0; column < columns; column += 1) {
          const name = { "data-layer": layer, "data-head": head, "data-position": column };
          cells.push({ layer, column, node: cellNode(gutter + column * cell, y(layer, head), cell, height, name) });
        }
      }
    }
    const labels = columnLabels(tokens, { x: gutter, y: top - 6, cell });
    const image = drawing(gutter + columns * cell + 2, y(layers, 0), definitions, ...labels, ...names, ...cells.map(({ node }) => node));
    const held = meter("held", "held");
    const copied = meter("copied", "copied so far");
    const node = h("div", { class: "le-panel", "data-cache": cache.name, style },
      h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, cache.name)), image, held.node, copied.node);
    return { node, cache, index, cells, labels, names, held, copied };
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
    const recent = lately(step);
    const now = steps[step].caches[own.index];
    for (const { layer, column, node } of own.cells) set(node, { "data-state": stateOf(own.cache, own.index, step, layer, column, recent) });
    const { arrived, layer } = steps[step];
    own.labels.forEach((text, position) => set(text, { "data-current": position >= arrived[0] && position < arrived[1], "data-absent": position >= Math.max(...steps[step].stored) }));
    own.names.forEach((text, index) => set(text, { "data-current": stops === everyLayer && index === layer }));
    const copiedNow = recent.reduce((sum, event) => sum + event.caches[own.index].copied, 0);
    const used = frames.bytes_per_cell * heads * steps[step].stored.reduce((sum, count) => sum + count, 0);
    own.held.show(now.held, mostHeld, used === now.held ? "all of it in use" : `${formatBytes(used)} in use`);
    own.copied.show(now.copied_total, mostCopied, `${formatBytes(copiedNow)} just now`);
  }

  const options = layers > 1 ? [segmented("Step by", ["token", "layer"], (index) => { stops = index ? everyLayer : wholeForwards; redraw(); })] : [];

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
        h("li", {}, h("span", { class: "le-letters" }, layers > 1 ? `L1 … L${layers}` : "L1"), h("span", {}, `layers, ${heads} KV ${heads === 1 ? "head" : "heads"} each`)));
      stage.append(h("div", { class: `le-panels${side ? " le-side" : ""}` }, ...panels.map(({ node }) => node)), key);
    },
    draw: (step) => panels.forEach((own) => drawPanel(own, step)),
  };
}

export default { render: frameWidget("cache-growth", cacheGrowth) };
