// The attention matrix of one pass under its mask: queries at the left, keys and values on top, outputs and logits at the right. What a
// query may see is decided here as in `causal_mask`, by comparing positions. The whole text keeps its place; a pass is a window into it.

const ANY = null;

function causalMask(frames, { redraw, go }) {
  const { tokens, steps, runs, weights, changes, n_layers: layers, n_heads: heads, replacement } = frames;
  const chosenHere = runs.length > 1; // else each step says which token is replaced
  const most = steps.reduce((longest, step) => Math.max(longest, step.key_positions.length), 0);
  const stepsOf = runs.map(() => []);
  steps.forEach(({ run }, index) => stepsOf[run].push(index));
  let layer = 0;
  let head = -1; // the mean of all heads
  let swapped = null; // the position whose token the reader replaced
  let at = 0; // the step drawn
  let view = null;
  let room = 0;
  let looked = null; // the cell that is looked at: [row, column]

  const run = () => runs[steps[at].run];
  const replaced = () => (chosenHere ? swapped : steps[at].replaced);
  const columnsOf = (step) => {
    const own = stepsOf[steps[step].run];
    return steps[own[own.length - 1]].key_positions;
  };
  const nameOf = (position) => (position < 0 ? "pad" : tokens[position]);
  const quoted = (position) => `“${tokens[position].replace(/^␣+(?=.)/, "")}”`;
  const named = (position) => `position ${position}, ${quoted(position)}`;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);

  // Where the pass drawn lies: its queries are the rows [first, end), its keys the columns [0, end).
  function pass() {
    const { positions, key_positions: keys } = steps[at];
    return { first: keys.length - positions.length, end: keys.length };
  }

  function weight(query, key) {
    if (head >= 0) return weights[layer][head][query][key] / 1000;
    return weights[layer].reduce((sum, own) => sum + own[query][key], 0) / heads / 1000;
  }

  const changed = (kind, position) => {
    if (replaced() === null || position < 0) return false;
    const own = changes[replaced()];
    return (kind === "logits" ? own.logits : own.layers[layer][kind])[position] === "1";
  };
  const scoreChanged = (query, key) => replaced() !== null && changes[replaced()].layers[layer].scores[query][key] === "1";
  // What should change but does not, because the pass reads what the cache kept of the old token.
  const isStale = () => replaced() !== null && view.slots.indexOf(replaced()) < pass().first;
  const stateIf = (change) => (!change ? "stays" : view.stale ? "stale" : "changed");

  const inPass = (row, column) => row >= pass().first && row < pass().end && column < pass().end;
  const sees = (query, key) => key >= 0 && key <= query;

  function stateOfCell(row, column) {
    if (!inPass(row, column)) return "outside";
    const [query, key] = [view.slots[row], view.slots[column]];
    if (!sees(query, key)) return "masked";
    return stateIf(scoreChanged(query, key));
  }

  function why(query, key) {
    if (key < 0) return `This column is padding: its position is −1, and 0 ≤ −1 does not hold. No query looks at it.`;
    if (query < 0) return `This query is padding: its position is −1, and ${key} ≤ −1 does not hold. It sees nothing.`;
    if (key > query) return `${capital(named(query))}, may not look at ${named(key)}: ${key} ≤ ${query} does not hold. Masked: the key comes later.`;
    return `${capital(named(query))}, may look at ${named(key)}: 0 ≤ ${key} ≤ ${query}.`;
  }

  function describe(row, column) {
    const [query, key] = [view.slots[row], view.slots[column]];
    const { first, end } = pass();
    if (row >= end || column >= end) return `${row >= end ? "This query" : "This key"} is not given yet: it comes in a later pass.`;
    if (row < first) return query < 0 ? "This padding column came in an earlier pass." : `${capital(named(query))}, asked in an earlier pass. It is never asked again.`;
    if (!sees(query, key)) return why(query, key);
    const of = head < 0 ? `mean of ${heads} heads` : `head ${head + 1}`;
    const from = column < first ? " The key is read from the cache." : "";
    const effect = { stays: " Its score stays as it is.", changed: " Its score changes.", stale: " Its score should change, but the key in the cache is the old one." };
    return `${why(query, key)} Weight ${weight(query, key).toFixed(3)} (${of}).${from}${replaced() === null ? "" : effect[stateOfCell(row, column)]}`;
  }

  function look(row, column) {
    looked = row === ANY ? null : [row, column];
    view.lookedAt.textContent = looked ? describe(row, column) : "Point at a cell, or focus the matrix and use the arrow keys.";
    set(view.cursor, { visibility: looked ? null : "hidden" });
    if (looked) set(view.cursor, { x: view.left + column * view.cell, y: view.top + row * view.cell });
  }

  function strip(kind, word, place) {
    return view.slots.map((_, index) => {
      const { x, y } = place(index);
      const { cell } = view;
      const size = { x: 1.5, y: 1.5, width: cell - 3, height: cell - 3, rx: Math.min(3, cell / 6) };
      return s("g", { class: "le-strip", "data-kind": kind, "data-index": index, transform: `translate(${x} ${y})` },
        s("rect", size), s("text", { x: cell / 2, y: cell / 2, "text-anchor": "middle", "dominant-baseline": "central" }, word));
    });
  }

  function matrix() {
    const { left, top, cell, slots } = view;
    return slots.map((_, row) => slots.map((__, column) =>
      s("g", { class: "le-score", "data-query": row, "data-key": column, transform: `translate(${left + column * cell} ${top + row * cell})` },
        s("rect", { class: "le-ground", x: .5, y: .5, width: cell - 1, height: cell - 1 }), s("rect", { class: "le-weight" }))));
  }

  function pointed(event) {
    const cell = event.target.closest(".le-score");
    if (cell) look(Number(cell.dataset.query), Number(cell.dataset.key));
  }

  function walk(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    const [row, column] = looked || [-move[0], -move[1]];
    const inside = (value) => Math.max(0, Math.min(view.slots.length - 1, value));
    look(inside(row + move[0]), inside(column + move[1]));
    event.preventDefault();
    event.stopPropagation();
  }

  const side = (words, x, y, turned) => s("text", {
    class: "le-side-name", transform: `translate(${x} ${y})${turned ? " rotate(-90)" : ""}`, "text-anchor": turned ? "start" : "end", "dominant-baseline": "central",
  }, words);

  // Sizes: token names at the left and on top, then one cell for Q, the square, and one cell each for O and L.
  function measure(width, slots) {
    const names = Math.min(90, Math.max(50, Math.floor(width * 0.15)));
    const cell = Math.max(8, Math.min(34, Math.floor((width - names - 16) / (most + 3))));
    const tall = labelHeight(tokens);
    const left = names + cell + 6;
    return { slots, names, cell, tall, left, top: tall + 2 * cell + 6, right: left + slots.length * cell + 6, letters: Math.floor((names - 10) / 7.3) };
  }

  function build(slots) {
    view = measure(room, slots);
    const { names, cell, tall, left, top, right, letters } = view;
    const { definitions, style } = fills();
    const down = (row) => top + row * cell;
    const across = (column) => left + column * cell;
    view.columns = columnLabels(slots.map(nameOf), { x: left, y: tall - 4, cell });
    view.rows = slots.map((position, row) => s("text", {
      class: "le-token", "data-position": row, x: names - 8, y: down(row) + cell / 2, "text-anchor": "end", "dominant-baseline": "central",
    }, shorten(nameOf(position), letters)));
    view.strips = [
      ...strip("q", "Q", (row) => ({ x: names, y: down(row) })),
      ...strip("k", "K", (column) => ({ x: across(column), y: tall })),
      ...strip("v", "V", (column) => ({ x: across(column), y: tall + cell })),
      ...strip("out", "O", (row) => ({ x: right, y: down(row) })),
      ...strip("logits", "L", (row) => ({ x: right + cell, y: down(row) })),
    ];
    view.cells = matrix();
    view.pass = s("rect", { class: "le-pass", rx: 3 });
    view.cursor = s("rect", { class: "le-cursor", width: cell, height: cell, rx: 2, visibility: "hidden" });
    const words = [
      side("keys", left - 8, tall + cell / 2), side("values", left - 8, tall + 1.5 * cell),
      side("output", right + cell / 2, top - 6, true), side("logits", right + 1.5 * cell, top - 6, true),
    ];
    // As large as the longest run needs, so that another choice moves nothing below.
    const image = drawing(left + most * cell + 6 + 2 * cell + 2, top + most * cell + 2, definitions, ...view.columns, ...view.rows, ...words,
      ...view.cells.flat(), ...view.strips, view.pass, view.cursor);
    set(view.frame = frame, { style }).replaceChildren(image);
    view.lookedAt = lookedAt;
    view.swap = swap;
  }

  const lookedAt = h("p", { class: "le-looked", "aria-live": "polite" });
  const swap = h("p", { class: "le-swap" });
  const frame = h("div", { class: "le-matrix", tabindex: 0, role: "application", "aria-label": "Attention matrix: arrow keys move over its cells" });
  frame.addEventListener("pointermove", pointed);
  frame.addEventListener("pointerdown", pointed);
  frame.addEventListener("focus", () => { if (!looked) look(pass().end - 1, 0); });
  frame.addEventListener("keydown", walk);

  function key() {
    const { definitions, style } = fills();
    const score = (state, size) => s("g", { class: "le-score", "data-state": state }, s("rect", { class: "le-ground", x: .5, y: .5, width: 13, height: 13 }), s("rect", { class: "le-weight", x: 7 - size / 2, y: 7 - size / 2, width: size, height: size }));
    const part = (state, from) => s("g", { class: "le-strip", "data-kind": "k", "data-state": state, "data-from": from }, s("rect", { x: 1, y: 1, width: 12, height: 12, rx: 2 }));
    const entries = [
      ["stays", "a score; the larger the square, the larger the weight", () => score("stays", 8)],
      ["masked", chosenHere ? "masked: the key comes later, or key or query is padding" : "masked: the key comes later", () => score("masked", 0)],
      ["changed", "changed, be it score, query, key, value, output or logits", () => part("changed")],
    ];
    if (chosenHere) {
      entries.push(["stale", "should change, but comes from a cache of the old token: stale", () => part("stale")]);
      entries.push(["new", "computed in this pass", () => part("stays", "new")], ["cached", "read from the cache", () => part("stays", "cached")]);
    }
    const list = set(legend(entries, (state) => entries.find(([own]) => own === state)[2]()), { style });
    list.querySelector("svg").prepend(definitions);
    return list;
  }

  function paintStrip(node) {
    const { kind, index } = node.dataset;
    const [position, { first, end }] = [view.slots[index], pass()];
    const beside = kind === "k" || kind === "v";
    const outside = index >= end || (!beside && index < first);
    const state = outside ? "outside" : position < 0 ? "padding" : stateIf(changed(kind, position));
    set(node, { "data-state": state, "data-from": beside && !outside ? (index < first ? "cached" : "new") : null });
  }

  function paintCell(node, row, column) {
    const state = stateOfCell(row, column);
    const drawn = state !== "outside" && state !== "masked";
    const own = drawn ? weight(view.slots[row], view.slots[column]) : 0;
    const size = drawn ? Math.max(1, (view.cell - 5) * Math.sqrt(own)) : 0;
    set(node, { "data-state": state, "data-weight": drawn ? own.toFixed(3) : null });
    set(node.lastChild, { x: (view.cell - size) / 2, y: (view.cell - size) / 2, width: size, height: size });
  }

  function aboutSwap() {
    const position = replaced();
    if (position === null) return [chosenHere ? "No token is replaced. Choose one to see what it changes in this pass." : "No token is replaced yet. Step forward to replace one after another."];
    const { first, end } = pass();
    const slot = view.slots.indexOf(position);
    const head = [`Position ${position} is replaced`, h("br"), h("code", { class: "le-old" }, tokens[position]), " → ", h("code", { class: "le-new" }, replacement)];
    if (!chosenHere) return head;
    const untouched = first ? "The cache stays valid: it was computed from earlier tokens alone." : "Nothing is cached yet.";
    const about = slot < first ? `It is cached. What the cache holds from there on is stale: this pass would give, bit for bit, what it gave for the old token. Drop the cache from position ${position} on and compute it again.`
      : slot < end ? `It is computed in this pass. ${untouched}` : `It comes in a later pass: nothing changes here. ${untouched}`;
    return [...head, h("br"), about];
  }

  // The choices of a kind, in the order they are offered; choosing one keeps the others.
  const offered = (kind) => [...new Set(runs.map((own) => own[kind]))];
  function choose(kind, value) {
    const wanted = { ...run(), [kind]: value };
    const index = runs.findIndex((own) => Object.keys(wanted).every((name) => own[name] === wanted[name]));
    const end = pass().end;
    const own = stepsOf[index];
    go(kind === "cached" ? own[0] : own.find((step) => steps[step].key_positions.length >= end) ?? own[own.length - 1]);
  }

  const WORDS = { cached: ["Cached at the start", String], chunk: ["Chunk", (length) => (length === null ? "all" : String(length))], padding: ["Padding", String] };
  const pickers = Object.keys(WORDS).filter((kind) => offered(kind).length > 1).map((kind) => {
    const [label, word] = WORDS[kind];
    const values = offered(kind);
    return { kind, values, node: choice(label, values.map(word), (index) => choose(kind, values[index])) };
  });
  const options = pickers.map(({ node }) => node);
  if (chosenHere) options.push(dropdown("Replace", ["no token", ...tokens.map((token, position) => `${position} ${token}`)], (index) => { swapped = index ? index - 1 : null; redraw(); }));
  if (layers > 1) options.push(choice("Layer", Array.from({ length: layers }, (_, index) => `${index + 1}`), (index) => { layer = index; redraw(); }));
  if (heads > 1) options.push(dropdown("Head", ["mean of all", ...Array.from({ length: heads }, (_, index) => `${index + 1}`)], (index) => { head = index - 1; redraw(); }));

  return {
    options,
    stops: (step) => stepsOf[steps[step].run],
    layout(stage, width) {
      const beside = width >= 600;
      room = beside ? width - 240 : width;
      view = null;
      // A long key stands below the matrix, a short one beside it.
      const below = beside && chosenHere ? [key()] : [];
      const aside = beside && !chosenHere ? [key()] : [];
      const about = beside ? [frame, h("div", { class: "le-aside" }, swap, lookedAt, ...aside)] : [swap, frame, lookedAt, key()];
      stage.append(h("div", { class: `le-mask${beside ? " le-side" : ""}`, "data-chosen-here": chosenHere }, ...about), ...below);
    },
    draw(step) {
      at = step;
      const slots = columnsOf(step);
      if (!view || slots.join() !== view.slots.join()) {
        build(slots);
        looked = looked && looked.every((index) => index < slots.length) ? looked : null;
      }
      const { left, top, cell } = view;
      const { first, end } = pass();
      view.stale = isStale();
      view.cells.forEach((row, query) => row.forEach((node, key) => paintCell(node, query, key)));
      view.strips.forEach(paintStrip);
      view.columns.forEach((text, column) => set(text, { "data-replaced": slots[column] === replaced(), "data-absent": column >= end }));
      view.rows.forEach((text, row) => set(text, { "data-replaced": slots[row] === replaced(), "data-absent": row < first || row >= end }));
      set(view.pass, { x: left - .5, y: top + first * cell - .5, width: end * cell + 1, height: (end - first) * cell + 1, "data-queries": end - first, "data-keys": end });
      for (const { kind, values, node } of pickers) showChoice(node, values.indexOf(run()[kind]));
      swap.replaceChildren(...aboutSwap());
      look(...(looked || [ANY]));
    },
  };
}

export default { render: frameWidget("causal-mask", causalMask) };
