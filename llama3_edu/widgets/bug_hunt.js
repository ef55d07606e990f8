// What a trial found in a cache: the error of every position's logits over the keys of every layer, how many keys there are and what they take. Beside it, the names to choose from.

function bugHunt(frames) {
  const { steps, names, cuts, seq_len: length, n_layers: layers, swap_at: swap, rounding, lowest, highest } = frames;
  const named = steps.map(() => []); // for each case, the names that were tried, the last one last
  const starts = [0, ...cuts];
  const superscript = (power) => String(power).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);
  let at = 0;
  let view = null;

  const power = (error) => Math.max(lowest, Math.min(highest, Math.log10(Math.max(error, 1e-300))));
  const up = (error) => view.base - (power(error) - lowest) / (highest - lowest) * view.tall;
  const across = (position) => view.left + position * view.cell;
  const label = (x, y, words, anchor = "middle") => s("text", { class: "le-mark", x, y, "text-anchor": anchor, "dominant-baseline": "central" }, words);

  function axes() {
    const right = across(length);
    const band = up(rounding);
    const levels = [];
    for (let level = highest; level > lowest; level -= highest - lowest > 10 ? 4 : 2) {
      const y = up(10 ** level);
      levels.push(s("line", { class: "le-level", x1: view.left, x2: right, y1: y, y2: y }), label(view.left - 6, y, level === 0 ? "1" : level === 1 ? "10" : `10${superscript(level)}`, "end"));
    }
    const every = view.cell < 12 ? 8 : 4;
    const ticks = Array.from({ length: Math.ceil(length / every) }, (_, index) => label(across(index * every) + view.cell / 2, view.base + 14, index * every));
    return [
      s("rect", { class: "le-rounding", x: view.left, y: band, width: right - view.left, height: view.base - band }), ...levels,
      ...ticks,
      s("line", { class: "le-axis-line", x1: view.left, x2: right, y1: view.base, y2: view.base }),
    ];
  }

  // Words that stand over what is drawn.
  function remarks() {
    return [label(view.left + 5, up(rounding) + 11, "rounding", "start"), label(across(swap) - 6, view.top + 4, "rows swap", "end")].map((text) => set(text, { class: "le-mark le-halo" }));
  }

  // Which positions were fed in one forward, and where the rows changed places.
  function feeding() {
    const y = view.base + 27;
    const pieces = starts.map((start, index) => {
      const end = starts[index + 1] ?? length;
      return s("rect", { class: "le-piece", "data-start": start, x: across(start) + 1, y, width: (end - start) * view.cell - 2, height: 14, rx: 3 });
    });
    const words = starts.slice(0, 2).map((start, index) => label((across(start) + across(starts[index + 1] ?? length)) / 2, y + 7.5, index ? "next" : "first piece"));
    const x = across(swap);
    return [
      ...pieces, ...words, s("line", { class: "le-swap-line", x1: x, x2: x, y1: view.top - 4, y2: y + 14 }),
    ];
  }

  function errorNodes() {
    return Array.from({ length }, (_, position) => s("g", { class: "le-error", "data-position": position },
      s("line", { x1: across(position) + view.cell / 2, x2: across(position) + view.cell / 2, y1: view.base }), s("path")));
  }

  function keyNodes() {
    return Array.from({ length: layers }, (_, layer) => Array.from({ length }, (_, slot) => {
      const { cell, row } = view;
      const node = s("g", { class: "le-key-check", "data-layer": layer, "data-slot": slot, transform: `translate(${across(slot)} ${view.keys + layer * row})` });
      const inset = Math.min(3, cell / 4);
      node.append(s("rect", { x: .5, y: .5, width: cell - 1, height: row - 1 }),
        s("path", { d: `M${inset} ${row / 2 - cell / 2 + inset}L${cell - inset} ${row / 2 + cell / 2 - inset}M${cell - inset} ${row / 2 - cell / 2 + inset}L${inset} ${row / 2 + cell / 2 - inset}` }));
      return node;
    }));
  }

  function measure(width) {
    const left = 46;
    const cell = (width - left - 2) / length;
    const top = 8;
    const tall = 150;
    const base = top + tall;
    const row = Math.max(12, Math.min(16, cell));
    return { left, cell, top, tall, base, row, keys: base + 74 };
  }

  function build(width) {
    view = measure(width);
    view.errors = errorNodes();
    view.cells = keyNodes();
    const foot = view.keys + layers * view.row;
    const sides = [0, layers - 1].map((layer) => label(view.left - 6, view.keys + (layer + .5) * view.row, `layer ${layer + 1}`, "end"));
    const image = drawing(width, foot + 4, ...axes(), ...feeding(), ...view.errors, ...remarks(), ...view.cells.flat(), ...sides);
    const heading = h("p", { class: "le-name" }, "Largest error of a logit, by position");
    // The second heading stands over the keys, inside the drawing, so that both grids share one scale.
    image.append(s("text", { class: "le-mark le-strong", x: view.left, y: view.keys - 13, "dominant-baseline": "central" }, "Keys by slot (×: a wrong one)"));
    view.books = ["keys", "memory"].map((book) => h("p", { class: "le-book", "data-book": book }));
    return h("div", { class: "le-evidence" }, heading, image, h("div", { class: "le-books" }, ...view.books));
  }

  function suspects() {
    view.names = names.map((name, index) => {
      const button = h("button", { type: "button", class: "le-suspect", "data-index": index }, h("span", { class: "le-verdict", "aria-hidden": "true" }), h("span", {}, name));
      button.addEventListener("click", () => { named[at] = [...named[at].filter((tried) => tried !== index), index]; drawNames(); });
      return button;
    });
    view.reply = h("p", { class: "le-reply", role: "status" });
    // The longest reply of all decides how much room there is, so that nothing moves.
    view.longest = steps.flatMap(({ replies }) => replies).reduce((longest, text) => (text.length > longest.length ? text : longest), "");
    return h("div", { class: "le-suspects" }, h("p", { class: "le-name" }, "Name it"), h("div", { role: "group", "aria-label": "Which bug is it?" }, ...view.names), view.reply);
  }

  function drawNames() {
    const { answer, replies } = steps[at];
    const tried = named[at];
    view.names.forEach((button, index) => {
      const state = !tried.includes(index) ? "untried" : index === answer ? "right" : "wrong";
      set(button, { "data-state": state, "aria-pressed": String(tried[tried.length - 1] === index), "aria-description": { untried: null, right: "right", wrong: "wrong" }[state] });
      button.firstChild.textContent = { untried: "", right: "✓", wrong: "✗" }[state];
    });
    const words = tried.length ? replies[tried[tried.length - 1]] : "Choose a name. You are told at once what decides.";
    if (view.reply.textContent !== words) view.reply.textContent = words;
    set(view.reply, { "data-state": tried.length ? (tried[tried.length - 1] === answer ? "right" : "wrong") : "untried" });
  }

  function drawErrors({ errors, keys }) {
    view.errors.forEach((node, position) => {
      const error = errors[position];
      const wrong = error > rounding;
      const x = across(position) + view.cell / 2;
      const y = up(error);
      const r = Math.min(3.6, view.cell / 2 - .5);
      set(node, { "data-state": wrong ? "wrong" : "right", "data-error": error });
      set(node.firstChild, { y2: y });
      set(node.lastChild, { d: wrong ? `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z` : `M${x - r * .6} ${y}a${r * .6} ${r * .6} 0 1 0 ${r * 1.2} 0a${r * .6} ${r * .6} 0 1 0 ${-r * 1.2} 0Z` });
    });
    view.cells.forEach((row, layer) => row.forEach((node, slot) => set(node, { "data-state": keys[layer][slot] === "1" ? "wrong" : "right" })));
  }

  function drawBooks({ surplus, nbytes, allocated }) {
    const sides = [
      [length + surplus === length, `${length + surplus} keys`, `${length} tokens`],
      [nbytes === allocated, `${grouped(nbytes)} bytes reported`, `${grouped(allocated)} taken`],
    ];
    sides.forEach(([equal, one, other], index) => {
      set(view.books[index], { "data-state": equal ? "right" : "wrong" });
      view.books[index].replaceChildren(h("span", { class: "le-equal" }, equal ? "=" : "≠"), `${one}, ${other}`);
    });
  }

  return {
    layout(stage, width) {
      const beside = width >= 600;
      const evidence = build(beside ? width - 240 - 32 : width);
      stage.append(h("div", { class: `le-hunt${beside ? " le-side" : ""}` }, evidence, suspects()));
      view.reply.textContent = view.longest;
      view.reply.style.minHeight = `${Math.ceil(view.reply.getBoundingClientRect().height)}px`;
    },
    draw(step) {
      at = step;
      drawErrors(steps[step]);
      drawBooks(steps[step]);
      drawNames();
    },
  };
}

export default { render: frameWidget("bug-hunt", bugHunt) };
