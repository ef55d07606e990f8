// A roofline: how many operations a machine can do a second, by how many of them there are for each byte it has to move.
// Every count is a BigInt and every figure in words is a fraction of two of them, so that the page says exactly what Python says.

// What `forward_cost` computes, by the same names.
function forwardCost(model, { batch, newLen, kvLen, bits, bitsOfWeights }) {
  const size = (name) => BigInt(model[name]);
  const [dim, layers, heads, kvHeads, width] = ["dim", "n_layers", "n_heads", "n_kv_heads", "head_dim"].map(size);
  const tokens = batch * newLen;
  const vocabulary = size("vocab_size");
  const perToken = layers * (2n * dim * heads * width + 2n * dim * kvHeads * width + 3n * dim * size("hidden_dim"));
  const output = vocabulary * dim;
  const lookedUp = (tokens < vocabulary ? tokens : vocabulary) * dim;
  const norms = (2n * layers + 1n) * dim;
  const pairs = newLen * (kvLen - newLen) + newLen * (newLen + 1n) / 2n;
  const stored = (rows) => (rows * 2n * layers * kvHeads * width * bits + 7n) / 8n;
  const linear = 2n * (tokens * perToken + batch * output);
  const attention = 4n * batch * layers * heads * width * pairs;
  const weights = ((perToken + output + lookedUp + norms) * bitsOfWeights + 7n) / 8n;
  const [read, written] = [stored(batch * kvLen), stored(tokens)];
  return { linear, attention, weights, read, written, flops: linear + attention, bytes: weights + read + written };
}

// The least time of a pass, as a fraction, and what it is spent on.
function boundOf(cost, machine) {
  const waits = cost.bytes * machine.flops > cost.flops * machine.bandwidth;
  return waits ? { limit: "memory", time: [cost.bytes, machine.bandwidth] } : { limit: "compute", time: [cost.flops, machine.flops] };
}

// A fraction to three figures, rounded half up from its exact value; whole numbers from 100 on.
function figures(above, below) {
  const digits = above < below ? 3 : above >= 100n * below ? 0 : above >= 10n * below ? 1 : 2;
  const scale = 10n ** BigInt(digits);
  const rounded = (2n * above * scale + below) / (2n * below);
  return grouped(rounded / scale) + (digits ? `.${String(rounded % scale).padStart(digits, "0")}` : "");
}

const PREFIXES = [["E", 18], ["P", 15], ["T", 12], ["G", 9], ["M", 6], ["k", 3], ["", 0], ["m", -3], ["µ", -6], ["n", -9]];

function withUnit(above, below, unit) {
  const scaled = PREFIXES.map(([prefix, power]) => [prefix, above * 10n ** BigInt(Math.max(0, -power)), below * 10n ** BigInt(Math.max(0, power))]);
  const [prefix, high, low] = scaled.find(([, high, low]) => high >= low) || scaled[scaled.length - 1];
  return `${figures(high, low)} ${prefix}${unit}`;
}

const counted = (number, noun) => `${grouped(number)} ${noun}${Number(number) === 1 ? "" : "s"}`;
const ratio = (above, below) => Number(above) / Number(below);
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const powerOfTen = (power) => (power === 0 ? "1" : power === 1 ? "10" : `10${[...String(power)].map((digit) => (digit === "-" ? "⁻" : SUPERSCRIPTS[digit])).join("")}`);

function mark(kind, x, y, size) {
  const paths = {
    decode: `M${x - size} ${y}a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0z`,
    prefill: `M${x - size} ${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    measured: `M${x} ${y - size * 1.3}l${size * 1.3} ${size * 1.3}l${-size * 1.3} ${size * 1.3}l${-size * 1.3} ${-size * 1.3}z`,
  };
  const shape = { alone: "decode" }[kind] || kind;
  return s("path", { class: `le-point le-point-${kind}`, d: paths[shape] });
}

function roofline(frames, { redraw, go }) {
  const { models, steps, axes } = frames;
  const machines = frames.machines.map(({ name, flops_per_second, bytes_per_second, memory_bytes }) => ({ name, flops: BigInt(flops_per_second), bandwidth: BigInt(bytes_per_second), memory: BigInt(memory_bytes) }));
  const [bits, bitsOfWeights] = [BigInt(frames.bits), BigInt(frames.bits_of_weights)];
  let values = null; // what the form says
  let started = null; // the step it was last filled from
  let wide = 0;

  const model = () => models[values.model];
  const machine = () => machines[values.machine];
  const batch = () => 2n ** BigInt(values.batch_power);
  const context = () => 2n ** BigInt(values.context_power);
  const costOf = (rows, newLen, kvLen) => forwardCost(model(), { batch: rows, newLen, kvLen, bits, bitsOfWeights });
  const measured = () => (frames.measured.length && values.machine === 0 ? frames.measured : []);

  // Decode and prefill as asked for; `alone` is the same decode step with nothing before it.
  function found() {
    const passes = { decode: costOf(batch(), 1n, context()), prefill: costOf(batch(), context(), context()), alone: costOf(batch(), 1n, 1n) };
    return Object.fromEntries(Object.entries(passes).map(([name, cost]) => [name, { ...cost, ...boundOf(cost, machine()) }]));
  }

  function change(field, value) {
    values = { ...values, [field]: value };
    redraw();
  }

  function start(index) {
    const { model, machine, batch_power, context_power } = steps[index];
    values = { model, machine, batch_power, context_power };
    started = index;
  }

  function picker(field, label, names) {
    const select = h("select", { "data-field": field }, ...names.map((text, index) => h("option", { value: index }, text)));
    select.addEventListener("change", () => change(field, Number(select.value)));
    return { node: h("label", { class: "le-field" }, h("span", { class: "le-option-name" }, label), select), show: () => { select.value = values[field]; } };
  }

  function power(field, label, most, remark = () => "") {
    const said = h("span", { class: "le-power", "aria-hidden": "true" });
    const hint = h("span", { class: "le-small" });
    const slider = h("input", { type: "range", min: 0, max: most, step: 1, "data-field": field });
    slider.addEventListener("input", () => change(field, Number(slider.value)));
    const show = () => {
      slider.value = values[field];
      said.textContent = grouped(2 ** values[field]);
      hint.textContent = remark();
      set(slider, { "aria-valuetext": said.textContent });
      slider.style.setProperty("--le-done", values[field] / most);
    };
    return { node: h("label", { class: "le-field le-power-field" }, h("span", { class: "le-power-line" }, h("span", { class: "le-option-name" }, label), said), slider, hint), show };
  }

  const tooLong = () => (2 ** values.context_power > model().max_seq_len ? `${model().name} was made for ${grouped(model().max_seq_len)}` : "");
  const fields = [
    picker("model", "Model", models.map(({ name }) => name)),
    picker("machine", "Machine", machines.map(({ name }) => name)),
    power("batch_power", "Rows in the batch", frames.max_batch_power),
    power("context_power", "Tokens per row", frames.max_context_power, tooLong),
  ];
  const form = h("form", { class: "le-form", "aria-label": "What to compute" }, ...fields.map(({ node }) => node));
  form.addEventListener("submit", (event) => event.preventDefault());

  const starts = steps.map((step, index) => {
    const node = h("button", { type: "button", class: "le-start", "data-start": index }, step.name);
    node.addEventListener("click", () => { start(index); go(index); redraw(); });
    return node;
  });

  const chart = h("div", { class: "le-roofline" });
  const key = h("ul", { class: "le-legend" });
  const table = h("tbody");
  const columns = [["decode", "one new token per row"], ["prefill", "all tokens at once"]];
  const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "le-unseen" }, "What")),
    ...columns.map(([name, words]) => h("th", { scope: "col" }, h("span", { class: "le-column-name" }, drawing(14, 14, mark(name, 7, 7, 5)), name), h("span", { class: "le-small" }, words)))));
  const noted = h("p", { class: "le-small le-note" });
  const answer = h("div", { class: "le-answer" }, chart, key, h("table", { class: "le-table le-passes" }, head, table), noted);

  // The picture keeps its axes whatever is asked: what moves is the roof, when the machine changes, and the points.
  function plane() {
    const box = { left: 46, right: Math.max(240, wide) - 8, top: 26, bottom: wide < 480 ? 262 : 300 };
    const along = ([low, high], from, to) => (value) => from + (to - from) * Math.log(value / low) / Math.log(high / low);
    return { ...box, x: along(axes.intensity, box.left, box.right), y: along(axes.flops, box.bottom, box.top), width: Math.max(240, wide), height: box.bottom + 42 };
  }

  const decades = ([low, high], every) => {
    const first = Math.ceil(Math.log10(low)), last = Math.floor(Math.log10(high));
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index).filter((power) => power % every === 0);
  };

  function grid(at) {
    const along = decades(axes.intensity, 1).map((power) => s("g", {},
      s("line", { class: "le-grid-line", x1: at.x(10 ** power), x2: at.x(10 ** power), y1: at.top, y2: at.bottom }),
      s("text", { class: "le-tick", x: at.x(10 ** power), y: at.bottom + 16, "text-anchor": "middle" }, powerOfTen(power))));
    const up = decades(axes.flops, 1).map((power) => s("g", {},
      s("line", { class: "le-grid-line", x1: at.left, x2: at.right, y1: at.y(10 ** power), y2: at.y(10 ** power) }),
      s("text", { class: "le-tick", x: at.left - 7, y: at.y(10 ** power), "text-anchor": "end", "dominant-baseline": "central" }, powerOfTen(power))));
    return [...along, ...up,
      s("text", { class: "le-axis-label", x: at.right, y: at.bottom + 36, "text-anchor": "end" }, "FLOP per byte"),
      s("text", { class: "le-axis-label", x: 0, y: 12 }, "FLOP per second")];
  }

  function roof(at) {
    const { flops, bandwidth } = machine();
    const ridge = ratio(flops, bandwidth);
    const [low, high] = axes.intensity;
    const turn = Math.min(high, Math.max(low, ridge));
    const peak = at.y(Number(flops));
    const points = [[at.x(low), at.y(Math.min(Number(flops), low * Number(bandwidth)))], [at.x(turn), peak], [at.x(high), peak]];
    const line = points.map((point) => point.join(" ")).join("L");
    const side = (words, x, anchor, room) => (room < 92 ? [] : [s("text", { class: "le-side-name", x, y: at.bottom - 9, "text-anchor": anchor }, words)]);
    return [
      s("path", { class: "le-under-memory", d: `M${at.x(low)} ${at.bottom}L${points[0].join(" ")}L${points[1].join(" ")}V${at.bottom}z` }),
      s("line", { class: "le-ridge", x1: at.x(turn), x2: at.x(turn), y1: peak, y2: at.bottom }),
      s("path", { class: "le-roof", d: `M${line}`, "data-ridge": ridge }),
      ...side("memory-bound", at.x(turn) - 8, "end", at.x(turn) - at.left), ...side("compute-bound", at.x(turn) + 8, "start", at.right - at.x(turn)),
    ];
  }

  const heightOf = (cost) => ratio(cost.flops, 1n) / ratio(...cost.time);
  const intensityOf = (cost) => ratio(cost.flops, cost.bytes);

  // Decode at every batch, with this context.
  function trail(at) {
    const costs = Array.from({ length: frames.max_batch_power + 1 }, (_, power) => costOf(2n ** BigInt(power), 1n, context()));
    return costs.map((cost, power) => {
      const own = { ...cost, ...boundOf(cost, machine()) };
      return s("circle", { class: "le-trail", cx: at.x(intensityOf(own)), cy: at.y(heightOf(own)), r: 2.6, "data-batch": 2 ** power });
    });
  }

  function point(at, name, cost, size = 6.5) {
    const place = { x: at.x(intensityOf(cost)), y: at.y(heightOf(cost)) };
    const facts = { "data-point": name, "data-flops": String(cost.flops), "data-bytes": String(cost.bytes), "data-limit": cost.limit, "data-x": place.x.toFixed(2), "data-y": place.y.toFixed(2) };
    return s("g", facts, mark(name, place.x, place.y, size));
  }

  // From where decode would stand with nothing to read back, to where it stands.
  function pull(at, { decode, alone }) {
    const [from, to] = [alone, decode].map((cost) => [at.x(intensityOf(cost)), at.y(heightOf(cost))]);
    const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (length < 26) return [];
    const [ux, uy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
    const off = from[0] > to[0] ? [-uy * 13, ux * 13] : [uy * 13, -ux * 13]; // above the roof on its way up
    const [a, b] = [[from[0] + ux * 8 + off[0], from[1] + uy * 8 + off[1]], [to[0] - ux * 8 + off[0], to[1] - uy * 8 + off[1]]];
    const wing = (turn) => [b[0] - 8 * (ux * Math.cos(turn) - uy * Math.sin(turn)), b[1] - 8 * (uy * Math.cos(turn) + ux * Math.sin(turn))].join(" ");
    return [s("path", { class: "le-pull", d: `M${a.join(" ")}L${b.join(" ")}M${wing(.45)}L${b.join(" ")}L${wing(-.45)}` })];
  }

  // What attention over the cache is worth by itself: the same for every batch.
  function cacheLine(at, decode) {
    const x = at.x(ratio(decode.attention, decode.read));
    return [s("line", { class: "le-cache-line", x1: x, x2: x, y1: at.top, y2: at.bottom, "data-above": String(decode.attention), "data-below": String(decode.read) }),
      s("text", { class: "le-cache-name", x: x + 5, y: at.top + 4 }, `cache alone: ${figures(decode.attention, decode.read)}`)];
  }

  function measuredPoint(at, own, index) {
    const place = { x: at.x(own.flops / own.bytes), y: at.y(own.flops / own.seconds) };
    return s("g", { "data-measured": own.label, "data-x": place.x.toFixed(2), "data-y": place.y.toFixed(2) }, mark("measured", place.x, place.y, 5),
      s("text", { class: "le-measured-name", x: place.x + 10, y: place.y + 1, "dominant-baseline": "central" }, String(index + 1)));
  }

  function named(at, name, cost) {
    const [x, y] = [at.x(intensityOf(cost)), at.y(heightOf(cost))];
    const left = x > at.right - 70;
    return s("text", { class: "le-point-name", x: left ? x - 11 : x + 11, y: y + 17, "text-anchor": left ? "end" : "start" }, name);
  }

  function picture(passes) {
    const at = plane();
    chart.replaceChildren(drawing(at.width, at.height, ...grid(at), ...roof(at), ...cacheLine(at, passes.decode), ...trail(at),
      point(at, "alone", passes.alone, 5.5), ...pull(at, passes), ...measured().map((own, index) => measuredPoint(at, own, index)),
      point(at, "prefill", passes.prefill), point(at, "decode", passes.decode), named(at, "prefill", passes.prefill), named(at, "decode", passes.decode)));
    const entries = [
      [mark("alone", 7, 7, 4.5), "decode with nothing before it; the arrow is what reading the cache does to it"],
      [s("circle", { class: "le-trail", cx: 7, cy: 7, r: 2.6 }), `decode with 1 to ${grouped(2 ** frames.max_batch_power)} rows`],
      ...measured().map(({ words }, index) => [mark("measured", 7, 7, 4.5), `${index + 1}: measured, ${words}`]),
    ];
    key.replaceChildren(...entries.map(([shape, words]) => h("li", {}, drawing(14, 14, shape), h("span", {}, words))));
  }

  function row(part, words, ...cells) {
    return h("tr", { "data-part": part }, h("th", { scope: "row" }, words), ...cells.map((text) => h("td", {}, text)));
  }

  function numbers({ decode, prefill }) {
    const both = (say) => [say(decode), say(prefill)];
    table.replaceChildren(
      row("flops", "computed", ...both(({ flops }) => withUnit(flops, 1n, "FLOP"))),
      row("weights", "weights read", ...both(({ weights }) => withUnit(weights, 1n, "B"))),
      row("kv", "keys and values", ...both(({ read, written }) => withUnit(read + written, 1n, "B"))),
      row("intensity", "FLOP per byte", ...both(({ flops, bytes }) => figures(flops, bytes))),
      row("limit", "the limit is", ...both(({ limit }) => limit)),
      row("time", "takes at least", ...both(({ time }) => withUnit(...time, "s"))),
      row("rate", "tokens a second", figures(batch() * decode.time[1], decode.time[0]), figures(batch() * context() * prefill.time[1], prefill.time[0])));
  }

  const stored = () => (BigInt(model().parameters) * bitsOfWeights + 7n) / 8n + (batch() * context() * 2n * ["n_layers", "n_kv_heads", "head_dim"].reduce((product, name) => product * BigInt(model()[name]), 1n) * bits + 7n) / 8n;
  const misfit = () => (stored() > machine().memory ? `Weights and cache, ${withUnit(stored(), 1n, "B")}, do not fit there.` : "");

  return {
    options: [h("div", { class: "le-starts", role: "group", "aria-label": "Start from" }, ...starts)],
    words() {
      const { decode, prefill } = found();
      const pass = (own) => `${withUnit(own.flops, 1n, "FLOP")} over ${withUnit(own.bytes, 1n, "B")}, ${figures(own.flops, own.bytes)} FLOP per byte; ${own.limit} is the limit: at least ${withUnit(...own.time, "s")}`;
      const kept = bits === bitsOfWeights ? `${bits} bits` : `weights in ${bitsOfWeights} bits, keys and values in ${bits}`;
      const name = model().name[0].toUpperCase() + model().name.slice(1);
      return `${name} on ${machine().name}, ${kept}, ${counted(batch(), "row")} of ${counted(context(), "token")}. `
        + `Decode, one new token per row: ${pass(decode)}, at most ${figures(batch() * decode.time[1], decode.time[0])} tokens a second. `
        + `Prefill, all tokens at once: ${pass(prefill)}.${misfit() ? ` ${misfit()}` : ""}`
        + measured().map(({ words }) => ` Measured: ${words}.`).join("");
    },
    layout(stage, width) {
      const beside = width >= 600;
      wide = beside ? width - 200 - 36 : width;
      stage.append(h("div", { class: `le-calculator le-roofline-form${beside ? " le-side" : ""}` }, form, answer));
    },
    draw(step) {
      if (step !== started) start(step);
      fields.forEach(({ show }) => show());
      const passes = found();
      picture(passes);
      numbers(passes);
      noted.textContent = misfit();
      starts.forEach((node, index) => set(node, { "aria-pressed": String(Object.keys(values).every((field) => steps[index][field] === values[field])) }));
    },
  };
}

export default { render: frameWidget("roofline", roofline, { stepped: false }) };
