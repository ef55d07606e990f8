// A form and its answer: what a model's weights and its cache take on a card. Every size is a BigInt, so that nothing is rounded before it is shown.

const CONTEXT = { field: "seq_len", least: 1, most: 1048576, powers: 20 };
const BATCH = { field: "batch", least: 1, most: 1024, powers: 10 };

const bytesOf = (elements, bits) => (elements * BigInt(bits) + 7n) / 8n;

// What `llama3_edu.memory` computes, by the same names.
function memoryOf(model, card, { seq_len: seqLen, batch, weight_bits: weightBits, kv_bits: kvBits }) {
  const elements = BigInt(model.kv_elements);
  const capacity = BigInt(card.bytes);
  const weights = bytesOf(BigInt(model.parameters), weightBits);
  const row = bytesOf(BigInt(seqLen) * elements, kvBits);
  const kv = bytesOf(BigInt(batch) * BigInt(seqLen) * elements, kvBits);
  const room = capacity > weights ? capacity - weights : 0n;
  return {
    weights, row, kv, capacity, total: weights + kv, left: capacity - weights - kv, perToken: bytesOf(elements, kvBits),
    maxBatch: room / row, maxContext: 8n * room / (BigInt(batch) * elements * BigInt(kvBits)),
  };
}

// A size in a unit: three decimals below 10, two below 1,000, none from there on, rounded half up from the exact integer.
function decimal(bytes, unit) {
  const digits = bytes < 10n * unit ? 3 : bytes < 1000n * unit ? 2 : 0;
  const scale = 10n ** BigInt(digits);
  const scaled = (2n * bytes * scale + unit) / (2n * unit);
  return grouped(scaled / scale) + (digits ? `.${String(scaled % scale).padStart(digits, "0")}` : "");
}

const GB = 10n ** 9n;
const GIB = 2n ** 30n;
const counted = (number, noun) => `${grouped(number)} ${noun}${Number(number) === 1 ? "" : "s"}`;
const sized = (bytes) => `${counted(bytes, "byte")} (${decimal(bytes, GB)} GB, ${decimal(bytes, GIB)} GiB)`;

function memoryCalculator(frames, { redraw, go }) {
  const { models, cards, steps } = frames;
  let values = null; // what the form says
  let started = null; // the step it was last filled from
  let room = 0;

  const model = () => models[values.model];
  const card = () => cards[values.card];
  const memory = () => memoryOf(model(), card(), values);

  function change(field, value) {
    values = { ...values, [field]: value };
    redraw();
  }

  function start(index) {
    const { model, card, seq_len, batch, weight_bits, kv_bits } = steps[index];
    values = { model, card, seq_len, batch, weight_bits, kv_bits };
    started = index;
  }

  function picker(field, label, names) {
    const select = h("select", { "data-field": field }, ...names.map((text, index) => h("option", { value: index }, text)));
    select.addEventListener("change", () => change(field, Number(select.value)));
    return { node: h("label", { class: "le-field" }, h("span", { class: "le-option-name" }, label), select), show: () => { select.value = values[field]; } };
  }

  function bitsOf(field, label, offered) {
    const node = segmented(label, offered.map(String), (index) => change(field, offered[index]));
    const inputs = [...node.querySelectorAll("input")];
    set(node, { class: "le-field", "data-field": field });
    return { node, show: () => inputs.forEach((input, index) => { input.checked = offered[index] === values[field]; }) };
  }

  // A number to type, and a slider over the powers of two.
  function amount({ field, least, most, powers }, label, remark = () => "") {
    const typed = h("input", { type: "number", "data-field": field, min: least, max: most, step: 1, inputmode: "numeric" });
    const slider = h("input", { type: "range", min: 0, max: powers, step: 1, "data-slider": field, "aria-label": `${label}, by powers of two` });
    const wrong = h("span", { class: "le-wrong", role: "alert" });
    const hint = h("span", { class: "le-small" });
    typed.addEventListener("input", () => {
      const value = Number(typed.value);
      const fits = typed.value.trim() !== "" && Number.isInteger(value) && value >= least && value <= most;
      set(typed, { "aria-invalid": fits ? null : "true" });
      wrong.textContent = fits ? "" : `a whole number from ${grouped(least)} to ${grouped(most)}`;
      if (fits) change(field, value);
    });
    slider.addEventListener("input", () => { set(typed, { "aria-invalid": null }); wrong.textContent = ""; change(field, 2 ** Number(slider.value)); });
    const show = () => {
      if (Number(typed.value) !== values[field]) {
        typed.value = values[field];
        set(typed, { "aria-invalid": null });
        wrong.textContent = "";
      }
      hint.textContent = remark();
      const power = Math.log2(values[field]);
      slider.value = Math.min(powers, Math.round(power));
      set(slider, { "aria-valuetext": grouped(values[field]) });
      slider.style.setProperty("--le-done", Math.min(1, power / powers));
    };
    const node = h("div", { class: "le-field" }, h("label", { class: "le-typed" }, h("span", { class: "le-option-name" }, label), typed), slider, wrong, hint);
    return { node, show };
  }

  const fields = [
    picker("model", "Model", models.map(({ name }) => name)),
    picker("card", "Card", cards.map(({ name }) => name)),
    amount(CONTEXT, "Tokens per row", () => (values.seq_len > model().max_seq_len ? `${model().name} was made for ${grouped(model().max_seq_len)}` : "")),
    amount(BATCH, "Rows in the batch"),
    bitsOf("weight_bits", "Bits per weight", frames.weight_bits),
    bitsOf("kv_bits", "Bits per number of K and V", frames.kv_bits),
  ];
  const form = h("form", { class: "le-form", "aria-label": "What to compute" }, ...fields.map(({ node }) => node));
  form.addEventListener("submit", (event) => event.preventDefault());

  const starts = steps.map((step, index) => {
    const node = h("button", { type: "button", class: "le-start", "data-start": index }, step.name);
    node.addEventListener("click", () => { start(index); go(index); redraw(); });
    return node;
  });

  const { definitions, style } = fills();
  const verdict = h("span", { class: "le-big" });
  const spare = h("span", { class: "le-small" });
  const chart = h("div", { class: "le-load" });
  const table = h("tbody");
  const facts = h("dl", { class: "le-facts" });
  const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "le-unseen" }, "What")), ...["bytes", "GB", "GiB"].map((unit) => h("th", { scope: "col" }, unit))));
  const answer = h("div", { class: "le-answer", style },
    h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }), h("p", { class: "le-reading" }, verdict, spare)), chart,
    h("table", { class: "le-table" }, head, table), facts,
    h("p", { class: "le-small le-note" }, "1 GB is 10⁹ bytes, 1 GiB 2³⁰. The label of a card says GB and means GiB. The driver and the computation need some of it too."));
  const headline = answer.querySelector(".le-name");

  // Weights and cache end to end, over the card's memory. Only shares of the picture's width are rounded here.
  function load(found) {
    const wide = Math.max(120, room);
    const whole = found.total > found.capacity ? found.total : found.capacity;
    const at = (bytes) => wide * Number(bytes * 1000000n / whole) / 1000000;
    const [weights, total, limit] = [at(found.weights), at(found.total), at(found.capacity)];
    const top = 20, tall = 40;
    const part = (name, x, width, ...inner) => s("g", { "data-part": name, "data-width": width.toFixed(2) }, ...inner.map((make) => make(x, Math.max(0, width))));
    const box = (kind, y, height) => (x, width) => s("rect", { class: kind, x, y, width, height });
    const over = found.total > found.capacity;
    const inside = (text, x, width, y, least) => (width < least ? [] : [s("text", { class: "le-part-name", x: x + width / 2, y, "text-anchor": "middle", "dominant-baseline": "central" }, text)]);
    const named = limit < 100 ? { x: limit + 1, "text-anchor": "start" } : { x: limit - 1, "text-anchor": "end" };
    const label = s("text", { class: "le-limit-name", y: 8, ...named, "dominant-baseline": "central" }, card().name);
    chart.replaceChildren(drawing(wide, top + tall + 6, definitions,
      s("rect", { class: "le-free", x: .5, y: top + .5, width: Math.max(0, limit - 1), height: tall - 1, rx: 3 }),
      part("weights", 0, weights, box("le-weights", top, tall)),
      part("kv", weights, total - weights, box("le-kv-k", top, tall / 2), box("le-kv-v", top + tall / 2, tall / 2)),
      ...inside("weights", 0, Math.min(weights, limit), top + tall / 2, 60),
      ...inside("K", weights, Math.min(total, limit) - weights, top + tall / 4, 22),
      ...inside("V", weights, Math.min(total, limit) - weights, top + tall * .75, 22),
      ...(over ? [s("rect", { class: "le-over", x: limit, y: top, width: total - limit, height: tall })] : []),
      s("line", { class: "le-limit", x1: limit - (over ? 0 : 1), x2: limit - (over ? 0 : 1), y1: 15, y2: top + tall + 6 }), label));
  }

  function line(part, words, bytes) {
    const size = bytes < 0n ? -bytes : bytes;
    const swatch = h("span", { class: "le-swatch", "data-part": part, "aria-hidden": "true" });
    return h("tr", { "data-part": part, "data-bytes": String(bytes) }, h("th", { scope: "row" }, swatch, words),
      ...[grouped(size), decimal(size, GB), decimal(size, GIB)].map((text) => h("td", {}, text)));
  }

  function fact(name, words, big, ...small) {
    return h("div", { class: "le-fact", "data-fact": name }, h("dt", {}, words), h("dd", {}, h("span", { class: "le-fact-big" }, big), h("span", { class: "le-small" }, ...small)));
  }

  // One row's cache rounded to a tenth of a GB and only then multiplied, beside the exact product.
  function early({ row, kv }) {
    const tenths = (2n * row + GB / 10n) / (GB / 5n);
    const product = tenths * BigInt(values.batch);
    const say = (number) => `${grouped(number / 10n)}.${number % 10n}`;
    const big = `${say(product)} GB`;
    return set(fact("early", "Rounded before multiplying", big, `${say(tenths)} GB × ${grouped(values.batch)}; exact: ${decimal(kv, GB)} GB`), { "data-tenths": String(product) });
  }

  function factList(found) {
    const { n_layers: layers, n_kv_heads: heads, head_dim: width, max_seq_len: longest, name } = model();
    const reach = found.maxContext > BigInt(longest) ? `more than the ${grouped(longest)} ${name} was made for` : `with ${counted(values.batch, "row")} on this card`;
    return [
      set(fact("batch", "Largest batch", counted(found.maxBatch, "row"), `of ${counted(values.seq_len, "token")} on this card`), { "data-rows": String(found.maxBatch) }),
      set(fact("context", "Longest context", counted(found.maxContext, "token"), reach), { "data-tokens": String(found.maxContext) }),
      set(fact("token", "One token", counted(found.perToken, "byte"), `2 · ${layers} · ${heads} · ${width} · ${values.kv_bits}\u00a0/\u00a08`), { "data-bytes": String(found.perToken) }),
      early(found),
    ];
  }

  function answerNow() {
    const found = memory();
    const fits = found.left >= 0n;
    const off = fits ? found.left : -found.left;
    set(answer, { "data-fits": String(fits) });
    headline.textContent = `${model().name}, ${counted(values.batch, "row")} of ${counted(values.seq_len, "token")}, on the ${card().name}`;
    verdict.textContent = fits ? "Fits" : "Does not fit";
    spare.textContent = fits ? `${decimal(off, GIB)} GiB left` : `${decimal(off, GIB)} GiB missing`;
    load(found);
    // From ten trillion bytes on the numbers are set smaller, to have room on a phone.
    set(table.parentNode, { "data-long": found.total >= 10n ** 13n });
    table.replaceChildren(line("weights", "weights", found.weights), line("kv", "KV cache", found.kv), line("total", "together", found.total),
      line("card", "card", found.capacity), line("left", fits ? "left" : "missing", found.left));
    facts.replaceChildren(...factList(found));
    starts.forEach((node, index) => {
      const same = Object.keys(values).every((field) => steps[index][field] === values[field]);
      set(node, { "aria-pressed": String(same) });
    });
  }

  return {
    options: [h("div", { class: "le-starts", role: "group", "aria-label": "Start from" }, ...starts)],
    words() {
      const found = memory();
      const verdict = found.left >= 0n ? `Both fit on the ${card().name}: ${sized(found.left)} are left.` : `Together they do not fit on the ${card().name}: ${sized(-found.left)} are missing.`;
      const largest = found.maxBatch > 0n ? `The largest batch is ${counted(found.maxBatch, "row")}.` : "Not one row fits.";
      return `${model().name}: the weights take ${sized(found.weights)} at ${values.weight_bits} bits; the keys and values of `
        + `${counted(values.batch, "row")} of ${counted(values.seq_len, "token")} take ${sized(found.kv)} at ${values.kv_bits} bits. `
        + `${verdict} ${largest}`;
    },
    layout(stage, width) {
      const beside = width >= 600;
      room = beside ? width - 220 - 36 : width;
      stage.append(h("div", { class: `le-calculator${beside ? " le-side" : ""}` }, form, answer));
    },
    draw(step) {
      if (step !== started) start(step);
      fields.forEach(({ show }) => show());
      answerNow();
    },
  };
}

export default { render: frameWidget("memory-calculator", memoryCalculator, { stepped: false }) };
