// The attention matrix under its mask, and beside it what one replaced token changes: keys and values above, queries at the left, outputs and logits at the right.

function causalMask(frames, { redraw }) {
  const { tokens, steps, weights, n_layers: layers, n_heads: heads, replacement } = frames;
  const n = tokens.length;
  let layer = 0;
  let head = -1; // the mean of all heads
  let at = 0; // the step drawn
  let view = null;
  let looked = null; // the cell that is looked at: [query, key]

  function weight(query, key) {
    if (head >= 0) return weights[layer][head][query][key] / 1000;
    return weights[layer].reduce((sum, own) => sum + own[query][key], 0) / heads / 1000;
  }

  const changes = () => steps[at].layers[layer];
  const masked = (query, key) => key > query;

  function describe(query, key) {
    const who = `Query ${query}, “${tokens[query]}”, and key ${key}, “${tokens[key]}”:`;
    if (masked(query, key)) return `${who} masked. A query never looks at a later key.`;
    const of = head < 0 ? `mean of ${heads} heads` : `head ${head + 1}`;
    const score = steps[at].position === null ? "" : changes().scores[query][key] === "1" ? " Its score changes." : " Its score stays as it is.";
    return `${who} weight ${weight(query, key).toFixed(3)} (${of}).${score}`;
  }

  function look(query, key) {
    looked = query === null ? null : [query, key];
    view.lookedAt.textContent = looked ? describe(query, key) : "Point at a cell, or focus the matrix and use the arrow keys.";
    set(view.cursor, { visibility: looked ? null : "hidden" });
    if (looked) set(view.cursor, { x: view.left + key * view.cell, y: view.top + query * view.cell });
  }

  function strip(kind, word, place) {
    return tokens.map((_, position) => {
      const { x, y } = place(position);
      const { cell } = view;
      return s("g", { class: "le-strip", "data-kind": kind, "data-position": position, transform: `translate(${x} ${y})` },
        s("rect", { x: 1.5, y: 1.5, width: cell - 3, height: cell - 3, rx: Math.min(3, cell / 6) }),
        s("text", { x: cell / 2, y: cell / 2, "text-anchor": "middle", "dominant-baseline": "central" }, word));
    });
  }

  function matrix() {
    const { left, top, cell } = view;
    return tokens.map((_, query) => tokens.map((_, key) => {
      const node = s("g", { class: "le-score", "data-query": query, "data-key": key, transform: `translate(${left + key * cell} ${top + query * cell})` });
      if (masked(query, key)) {
        set(node, { "data-state": "masked" });
        node.append(s("rect", { class: "le-ground", width: cell, height: cell }));
        return node;
      }
      node.append(s("rect", { class: "le-ground", x: .5, y: .5, width: cell - 1, height: cell - 1 }), s("rect", { class: "le-weight" }));
      return node;
    }));
  }

  function pointed(event) {
    const cell = event.target.closest(".le-score");
    if (cell) look(Number(cell.dataset.query), Number(cell.dataset.key));
  }

  function walk(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    const [query, key] = looked || [-move[0], -move[1]];
    const inside = (value) => Math.max(0, Math.min(n - 1, value));
    look(inside(query + move[0]), inside(key + move[1]));
    event.preventDefault();
    event.stopPropagation();
  }

  const side = (words, x, y, turned) => s("text", {
    class: "le-side-name", transform: `translate(${x} ${y})${turned ? " rotate(-90)" : ""}`, "text-anchor": turned ? "start" : "end", "dominant-baseline": "central",
  }, words);

  // Sizes: token names at the left and on top, then one cell for Q, the square, and one cell each for O and L.
  function measure(width) {
    const names = Math.min(90, Math.max(50, Math.floor(width * 0.15)));
    const cell = Math.max(8, Math.min(34, Math.floor((width - names - 16) / (n + 3))));
    const tall = Math.max(labelHeight(tokens), 0);
    const left = names + cell + 6;
    return { names, cell, tall, left, top: tall + 2 * cell + 6, right: left + n * cell + 6, most: Math.floor((names - 10) / 6.7) };
  }

  function build(width) {
    view = measure(width);
    const { names, cell, tall, left, top, right, most } = view;
    const { definitions, style } = fills();
    const down = (position) => top + position * cell;
    const across = (position) => left + position * cell;
    view.columns = columnLabels(tokens, { x: left, y: tall - 4, cell });
    view.rows = tokens.map((token, position) => s("text", {
      class: "le-token", "data-position": position, x: names - 8, y: down(position) + cell / 2, "text-anchor": "end", "dominant-baseline": "central",
    }, shorten(token, most)));
    view.strips = [
      ...strip("q", "Q", (position) => ({ x: names, y: down(position) })),
      ...strip("k", "K", (position) => ({ x: across(position), y: tall })),
      ...strip("v", "V", (position) => ({ x: across(position), y: tall + cell })),
      ...strip("out", "O", (position) => ({ x: right, y: down(position) })),
      ...strip("logits", "L", (position) => ({ x: right + cell, y: down(position) })),
    ];
    view.cells = matrix();
    view.cursor = s("rect", { class: "le-cursor", width: cell, height: cell, rx: 2, visibility: "hidden" });
    const words = [
      side("keys", left - 8, tall + cell / 2), side("values", left - 8, tall + 1.5 * cell),
      side("output", right + cell / 2, top - 6, true), side("logits", right + 1.5 * cell, top - 6, true),
    ];
    const image = drawing(right + 2 * cell + 2, top + n * cell + 2, definitions, ...view.columns, ...view.rows, ...words,
      ...view.cells.flat(), ...view.strips, view.cursor);
    view.lookedAt = h("p", { class: "le-looked", "aria-live": "polite" });
    const frame = h("div", { class: "le-matrix", tabindex: 0, role: "application", "aria-label": "Attention matrix: arrow keys move over its cells", style }, image);
    frame.addEventListener("pointermove", pointed);
    frame.addEventListener("pointerdown", pointed);
    frame.addEventListener("focus", () => { if (!looked) look(n - 1, 0); });
    frame.addEventListener("keydown", walk);
    return frame;
  }

  function key() {
    const { definitions, style } = fills();
    const swatches = {
      stays: () => s("g", { class: "le-score", "data-state": "stays" }, s("rect", { class: "le-ground", x: .5, y: .5, width: 13, height: 13 }), s("rect", { class: "le-weight", x: 3, y: 3, width: 8, height: 8 })),
      changed: () => s("g", { class: "le-score", "data-state": "changed" }, s("rect", { class: "le-ground", x: .5, y: .5, width: 13, height: 13 }), s("rect", { class: "le-weight", x: 3, y: 3, width: 8, height: 8 })),
      masked: () => s("g", { class: "le-score", "data-state": "masked" }, s("rect", { class: "le-ground", width: 14, height: 14 })),
    };
    const words = [["stays", "a score; the larger the square, the larger the weight"], ["changed", "the score changed"], ["masked", "masked: the key comes later"]];
    const list = set(legend(words, (state) => swatches[state]()), { style });
    list.querySelector("svg").prepend(definitions);
    const striped = h("li", { style }, drawing(14, 14, s("g", { class: "le-strip", "data-state": "changed" }, s("rect", { x: .5, y: .5, width: 13, height: 13, rx: 2 }))), h("span", {}, "query, key, value, output of the layer or logits changed"));
    list.append(striped);
    return list;
  }

  const options = [];
  if (layers > 1) options.push(choice("Layer", Array.from({ length: layers }, (_, index) => `${index + 1}`), (index) => { layer = index; redraw(); }));
  if (heads > 1) options.push(dropdown("Head", ["mean of all", ...Array.from({ length: heads }, (_, index) => `${index + 1}`)], (index) => { head = index - 1; redraw(); }));

  return {
    options,
    layout(stage, width) {
      const beside = width >= 600;
      const frame = build(beside ? width - 240 : width);
      view.swap = h("p", { class: "le-swap" });
      const about = beside ? [frame, h("div", { class: "le-aside" }, view.swap, view.lookedAt, key())] : [view.swap, frame, view.lookedAt, key()];
      stage.append(h("div", { class: `le-mask${beside ? " le-side" : ""}` }, ...about));
    },
    draw(step) {
      at = step;
      const { position, logits } = steps[step];
      const { cell } = view;
      const own = changes();
      view.cells.forEach((row, query) => row.forEach((node, key) => {
        if (masked(query, key)) return;
        const size = Math.max(1, (cell - 5) * Math.sqrt(weight(query, key)));
        set(node, { "data-state": own.scores[query][key] === "1" ? "changed" : "stays", "data-weight": weight(query, key).toFixed(3) });
        set(node.lastChild, { x: (cell - size) / 2, y: (cell - size) / 2, width: size, height: size });
      }));
      for (const node of view.strips) {
        const flags = node.dataset.kind === "logits" ? logits : own[node.dataset.kind];
        set(node, { "data-state": flags[node.dataset.position] === "1" ? "changed" : "stays" });
      }
      for (const text of [...view.columns, ...view.rows]) set(text, { "data-replaced": Number(text.dataset.position) === position });
      view.swap.replaceChildren(...(position === null
        ? ["No token is replaced yet. Step forward to replace one after another."]
        : [`Position ${position} is replaced`, h("br"), h("code", { class: "le-old" }, tokens[position]), " → ", h("code", { class: "le-new" }, replacement)]));
      look(...(looked || [null]));
    },
  };
}

export default { render: frameWidget("causal-mask", causalMask) };
