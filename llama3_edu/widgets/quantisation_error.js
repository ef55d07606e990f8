// Tokens down, channels across: a square for every number, as large as its error; the groups' outlines; and at the edges, how large the numbers were.

function quantisationError(frames, { go }) {
  const { tokens, steps, num_channels: channels, largest, layer, head } = frames;
  const n = tokens.length;
  let at = 0;
  let looked = null; // the number the reader points at: [token, channel]
  let view = null;

  const minus = (text) => text.replace("-", "\u2212");
  const told = (thousandths, digits = 3) => minus((thousandths / 1000).toFixed(digits));
  const distinct = (field) => [...new Set(steps.map((step) => step[field]))];
  const fields = ["tensor", "axis", "bits", "group_size"];
  const values = Object.fromEntries(fields.map((field) => [field, distinct(field)]));

  // The step that differs from the one drawn in one choice.
  function choose(field, value) {
    const wanted = { ...steps[at], [field]: value };
    const found = steps.findIndex((step) => fields.every((name) => step[name] === wanted[name]));
    if (found >= 0) go(found);
  }

  function picker(field, label, names) {
    const node = segmented(label, names, (index) => choose(field, values[field][index]));
    set(node, { "data-field": field });
    const inputs = [...node.querySelectorAll("input")];
    return { node, show: () => inputs.forEach((input, index) => { input.checked = values[field][index] === steps[at][field]; }) };
  }

  const pickers = [
    picker("tensor", "Of", values.tensor),
    picker("axis", "A group is", values.axis.map((axis) => (axis === "channel" ? "one channel" : "one token"))),
    picker("bits", "Bits", values.bits.map(String)),
    picker("group_size", "Group of", values.group_size.map(String)),
  ];

  // Which group a number is in: its row and column among the groups, and its rectangle among the numbers.
  function groupOf(token, channel) {
    const { axis, group_size: size } = steps[at];
    const down = axis === "channel";
    const [row, column] = down ? [Math.floor(token / size), channel] : [token, Math.floor(channel / size)];
    return { row, column, token: down ? row * size : token, channel: down ? channel : column * size, tall: down ? size : 1, wide: down ? 1 : size };
  }

  function describe(token, channel) {
    const { tensor, axis, bits, errors, zeros, scales, group_size: size } = steps[at];
    const before = frames[tensor][token][channel];
    const error = errors[token][channel];
    const { row, column } = groupOf(token, channel);
    const group = axis === "channel" ? `${size} tokens of channel ${channel}` : `${size} channels of token ${token}`;
    return [
      h("span", { class: "le-quant-which" }, `Token ${token}, “${tokens[token]}”, channel ${channel}`), h("br"),
      h("strong", {}, `${told(before)} becomes ${told(before + error)}: off by ${told(Math.abs(error))}.`), h("br"),
      `Its group, ${group}, has ${2 ** bits} levels from ${minus(String(zeros[row][column]))}, ${scales[row][column]} apart.`,
    ];
  }

  function look(token, channel) {
    looked = token === null ? null : [token, channel];
    const { worst } = steps[at];
    const [row, column] = looked || [worst.token, worst.channel];
    const { cell, left, top } = view;
    const group = groupOf(row, column);
    set(view.cursor, { x: left + column * cell, y: top + row * cell, "data-token": row, "data-channel": column });
    set(view.ring, { x: left + group.channel * cell, y: top + group.token * cell, width: group.wide * cell, height: group.tall * cell });
    view.lookedAt.replaceChildren(...describe(row, column));
  }

  function place(event) {
    const box = view.image.getBoundingClientRect();
    const channel = Math.floor((event.clientX - box.left - view.left) / view.cell);
    const token = Math.floor((event.clientY - box.top - view.top) / view.cell);
    if (channel >= 0 && channel < channels && token >= 0 && token < n) look(token, channel);
  }

  function walk(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    const { worst } = steps[at];
    const [token, channel] = looked || [worst.token, worst.channel];
    look(Math.max(0, Math.min(n - 1, token + move[0])), Math.max(0, Math.min(channels - 1, channel + move[1])));
    event.preventDefault();
    event.stopPropagation();
  }

  const meanSize = (numbers) => numbers.reduce((sum, number) => sum + Math.abs(number), 0) / numbers.length;

  // How large numbers were, per channel above and per token at the right.
  function edges() {
    const { left, top, right, cell, bar, tensor } = view;
    const rows = frames[tensor];
    const perChannel = Array.from({ length: channels }, (_, channel) => meanSize(rows.map((row) => row[channel])));
    const perToken = rows.map(meanSize);
    const most = Math.max(...perChannel, ...perToken);
    const kind = tensor === "keys" ? "le-kv-k" : "le-kv-v";
    const thick = Math.max(1, cell - 2);
    return [
      ...perChannel.map((size, channel) => s("rect", { class: `le-quant-size ${kind}`, "data-channel": channel, x: left + channel * cell + 1, y: top - 6 - bar * size / most, width: thick, height: bar * size / most })),
      ...perToken.map((size, token) => s("rect", { class: `le-quant-size ${kind}`, "data-token": token, x: right + 6, y: top + token * cell + 1, width: bar * size / most, height: thick })),
    ];
  }

  function outlines() {
    const { axis, group_size: size } = steps[at];
    const { left, top, right, cell } = view;
    const bottom = top + n * cell;
    const [across, down] = axis === "channel" ? [size, 1] : [1, size];
    const lines = [];
    for (let row = 0; row <= n; row += across) lines.push(`M${left} ${top + row * cell}H${right}`);
    for (let column = 0; column <= channels; column += down) lines.push(`M${left + column * cell} ${top}V${bottom}`);
    return lines.join("");
  }

  const words = (text, x, y, attributes = {}) => s("text", { class: "le-quant-word", x, y, "dominant-baseline": "central", ...attributes }, text);

  function build(width) {
    const names = width < 420 ? 46 : 84;
    const bar = width < 420 ? 22 : 34;
    const cell = Math.max(5, Math.min(14, Math.floor((width - names - bar - 8) / channels)));
    const every = Math.ceil(15 / cell);
    const left = names, top = bar + 28, right = left + channels * cell;
    view = { cell, bar, left, top, right, tensor: null };
    view.cells = tokens.map((_, token) => Array.from({ length: channels }, (_, channel) => s("rect", { class: "le-quant-error", "data-token": token, "data-channel": channel })));
    view.lines = s("path", { class: "le-quant-groups" });
    view.edges = s("g");
    view.ring = s("rect", { class: "le-quant-ring" });
    view.cursor = s("rect", { class: "le-cursor", width: cell, height: cell });
    const rows = tokens.flatMap((token, index) => (index % every ? [] : [words(shorten(token, width < 420 ? 5 : 10), left - 7, top + (index + .5) * cell, { "text-anchor": "end", class: "le-quant-word le-quant-token" })]));
    const columns = Array.from({ length: channels }, (_, channel) => channel).filter((channel) => channel % 8 === 0)
      .map((channel) => words(String(channel), left + (channel + .5) * cell, top + n * cell + 11, { "text-anchor": "middle" }));
    view.image = drawing(right + bar + 8, top + n * cell + 20, ...rows, ...columns,
      words("channel", left - 7, top + n * cell + 11, { "text-anchor": "end" }), words("mean size of a channel’s numbers", left, 8), view.edges,
      ...view.cells.flat(), view.lines, view.ring, view.cursor);
    view.lookedAt = h("p", { class: "le-looked", "aria-live": "polite" });
    const frame = h("div", { class: "le-matrix", tabindex: 0, role: "application", "aria-label": "Errors: arrow keys move from number to number" }, view.image);
    frame.addEventListener("pointermove", place);
    frame.addEventListener("pointerdown", place);
    frame.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") look(null); });
    frame.addEventListener("keydown", walk);
    return frame;
  }

  function fact(name, term) {
    const value = h("span", { class: "le-fact-big", "data-fact": name });
    const more = h("span", { class: "le-small" });
    const show = (text, small = "") => { value.textContent = text; more.textContent = small; };
    return { node: h("div", { class: `le-fact le-quant-${name}` }, h("dt", {}, term), h("dd", {}, value, more)), show };
  }

  const facts = { mean: fact("mean", "mean error"), worst: fact("worst", "worst error"), bits: fact("bits", "effective bits") };

  return {
    options: pickers.map(({ node }) => node),
    layout(stage, width) {
      const beside = width >= 600;
      const frame = build(beside ? width - 236 : width);
      const list = h("dl", { class: "le-facts" }, ...Object.values(facts).map(({ node }) => node));
      const full = drawing(14, 14, s("rect", { class: "le-quant-error", width: 14, height: 14 }));
      const key = h("ul", { class: "le-legend" }, h("li", {}, full, h("span", {}, `a full square is an error of ${told(largest)}`)));
      const where = h("p", { class: "le-small" }, `Layer ${layer + 1}, KV head ${head + 1}: ${n} tokens, ${channels} channels`);
      stage.append(h("div", { class: `le-quant${beside ? " le-side" : ""}` }, frame, h("div", { class: "le-aside" }, list, view.lookedAt, key, where)));
    },
    draw(step) {
      at = step;
      const { tensor, errors, mean, worst, bits, group_size: size, effective_bits: effective } = steps[step];
      const { cell, left, top } = view;
      pickers.forEach(({ show }) => show());
      if (view.tensor !== tensor) {
        view.tensor = tensor;
        view.edges.replaceChildren(...edges());
      }
      errors.forEach((row, token) => row.forEach((error, channel) => {
        const share = largest ? Math.abs(error) / largest : 0;
        const side = (cell - 1) * Math.sqrt(share);
        set(view.cells[token][channel], {
          x: left + (channel + .5) * cell - side / 2, y: top + (token + .5) * cell - side / 2, width: side, height: side,
          "fill-opacity": (.45 + .55 * share).toFixed(3), "data-error": error,
        });
      }));
      set(view.lines, { d: outlines() });
      facts.mean.show(String(mean));
      facts.worst.show(told(worst.error));
      facts.bits.show(String(effective), `= ${bits} + 2 · 16 / ${size}`);
      look(...(looked || [null]));
    },
  };
}

export default { render: frameWidget("quantisation-error", quantisationError) };
