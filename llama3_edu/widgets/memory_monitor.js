// Memory over time as stacked areas: weights, KV cache, the rest. While a cell runs the picture follows it; afterwards it can be stepped through.

const PARTS = [["weights", "weights"], ["kv", "KV cache"], ["rest", "the rest"]];
const LINES = [["reserved", "held by the allocator"], ["card", "in use on the card, by all processes"]];
const SILENCE = 5000; // milliseconds without news after which a run does not count as live

// Fills that differ in texture as well as in colour.
function textures() {
  const id = uniqueId("texture");
  const stripes = { width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  const definitions = s("defs", {},
    s("pattern", { id: `${id}-kv`, ...stripes }, s("rect", { class: "le-texture-kv", width: 6, height: 6 }), s("rect", { class: "le-texture-stripe", width: 2, height: 6 })),
    s("pattern", { id: `${id}-rest`, width: 7, height: 7, patternUnits: "userSpaceOnUse" }, s("rect", { class: "le-texture-rest", width: 7, height: 7 }), s("circle", { class: "le-texture-point", cx: 3.5, cy: 3.5, r: 1.1 })));
  return { definitions, style: `--le-fill-kv: url(#${id}-kv); --le-fill-rest: url(#${id}-rest)` };
}

const usedAt = ({ weights, kv, rest }) => weights + kv + rest;
const seconds = (time) => `${time.toFixed(time < 10 ? 1 : 0)} s`;

// Round values to label an axis from 0 to `end` with: a power of two of bytes, or 1, 2 or 5 of a power of ten of seconds.
function byteTicks(end) {
  const step = 2 ** Math.max(0, Math.ceil(Math.log2(end / 4.5)));
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
}

function timeTicks(end, most) {
  const least = end / most;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((candidate) => candidate >= least);
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, index) => Number((index * step).toPrecision(12)));
}

function memoryMonitor(frames, { redraw, go }) {
  const { steps, total } = frames;
  const highest = steps.reduce((most, step) => Math.max(most, usedAt(step)), 0);
  const peak = steps.findIndex((step) => usedAt(step) === highest);
  const ofModel = steps.reduce((most, { weights, kv }) => Math.max(most, weights + kv), 0);
  let closeUp = false;
  let parts = null;
  let again = null;

  const shown = () => (closeUp ? PARTS.slice(0, 2) : PARTS);
  const heightOf = (step, upTo) => PARTS.slice(0, upTo + 1).reduce((sum, [name]) => sum + step[name], 0);
  const hasTotal = () => !closeUp && total > 0 && total <= 4 * highest;

  function plane(width) {
    const box = { left: 62, right: width - 10, top: 26, bottom: width < 480 ? 210 : 236, width };
    const other = closeUp ? 0 : steps.reduce((most, { reserved, card }) => Math.max(most, reserved || 0, card || 0), 0);
    const end = Math.max(1, closeUp ? ofModel * 1.15 : hasTotal() ? total * 1.06 : Math.max(highest, other) * 1.15);
    const last = Math.max(steps[steps.length - 1].seconds, 0.1);
    return { ...box, end, last, x: (time) => box.left + (box.right - box.left) * time / last, y: (bytes) => box.bottom - (box.bottom - box.top) * bytes / end };
  }

  // A value holds until the next sample.
  function outline(at, values) {
    return values.map((bytes, index) => `${index ? `H${at.x(steps[index].seconds).toFixed(2)}V` : `M${at.left} `}${at.y(bytes).toFixed(2)}`).join("") + `H${at.right}`;
  }

  function area(at, [name], index) {
    const top = outline(at, steps.map((step) => heightOf(step, index)));
    const below = index ? steps.map((step) => heightOf(step, index - 1)) : null;
    const back = below ? below.map((bytes, step) => [bytes, step]).reverse().map(([bytes, step]) => `V${at.y(bytes).toFixed(2)}H${at.x(steps[step].seconds).toFixed(2)}`).join("") : `V${at.bottom}H${at.left}`;
    return s("path", { class: `le-area le-area-${name}`, "data-part": name, d: `${top}${back}z` });
  }

  function grid(at) {
    const up = byteTicks(at.end).map((bytes) => s("g", {},
      s("line", { class: "le-grid-line", x1: at.left, x2: at.right, y1: at.y(bytes), y2: at.y(bytes) }),
      s("text", { class: "le-tick", x: at.left - 7, y: at.y(bytes), "text-anchor": "end", "dominant-baseline": "central" }, formatBytes(bytes))));
    const along = timeTicks(at.last, at.width < 480 ? 4 : 8).map((time) =>
      s("text", { class: "le-tick", x: at.x(time), y: at.bottom + 17, "text-anchor": "middle" }, `${time} s`));
    return [...up, ...along];
  }

  function lines(at) {
    const drawn = LINES.filter(([name]) => !closeUp && steps.some((step) => step[name] !== null));
    const limit = hasTotal() ? [s("line", { class: "le-total", x1: at.left, x2: at.right, y1: at.y(total), y2: at.y(total) })] : [];
    return [...drawn.map(([name]) => s("path", { class: `le-level le-level-${name}`, d: outline(at, steps.map((step) => step[name] || 0)) })), ...limit];
  }

  function marks(at) {
    if (closeUp) return [];
    const [x, y] = [at.x(steps[peak].seconds), at.y(highest)];
    const anchor = x < at.left + 60 ? "start" : x > at.right - 60 ? "end" : "middle";
    return [s("path", { class: "le-peak", "data-step": peak, d: `M${x} ${y - 2}l-5 -8h10z` }),
      s("text", { class: "le-mark-name", x: anchor === "start" ? x - 5 : anchor === "end" ? x + 5 : x, y: y - 15, "text-anchor": anchor }, `peak ${formatBytes(highest)}`),
      ...(hasTotal() ? [s("text", { class: "le-mark-name", x: at.right, y: at.y(total) - 7, "text-anchor": "end" }, `all there is: ${formatBytes(total)}`)] : [])];
  }

  // A finger or the mouse on the picture goes to the sample that holds there.
  function follow(svg, at) {
    const find = (event) => {
      const box = svg.getBoundingClientRect();
      const time = at.last * ((event.clientX - box.left) * at.width / box.width - at.left) / (at.right - at.left);
      return Math.max(0, steps.findLastIndex((step) => step.seconds <= time));
    };
    const jump = (event) => { if (!svg.closest("[data-live]")) go(find(event)); };
    svg.addEventListener("pointerdown", jump);
    svg.addEventListener("pointermove", (event) => { if (event.buttons) jump(event); });
    return svg;
  }

  function chart(width) {
    const at = plane(width);
    const { definitions, style } = textures();
    const cursor = s("line", { class: "le-now", y1: at.top - 6, y2: at.bottom });
    const dots = shown().map(([name]) => s("circle", { class: "le-now-dot", r: 3.5, "data-part": name }));
    const svg = follow(drawing(width, at.bottom + 26, definitions, ...grid(at), ...shown().map((part, index) => area(at, part, index)), ...lines(at), cursor, ...marks(at), ...dots), at);
    set(svg, { class: "le-memory-chart" });
    return { at, cursor, dots, style, svg };
  }

  function swatch(name) {
    const isLine = LINES.some(([line]) => line === name);
    return set(drawing(14, 14, isLine ? s("path", { class: `le-level le-level-${name}`, d: "M0 7H14" }) : s("rect", { class: `le-area-${name}`, x: 1, y: 1, width: 12, height: 12, rx: 2 })), { class: "le-memory-swatch" });
  }

  function readings() {
    const row = (name, words, note) => {
      const [bytes, share] = [h("td", {}), h("td", {})];
      const node = h("tr", { "data-part": name }, h("th", { scope: "row" }, ...(name === "used" ? [] : [swatch(name)]), words, ...(note ? [h("span", { class: "le-small" }, note)] : [])), bytes, share);
      return { name, node, bytes, share };
    };
    const more = LINES.filter(([name]) => steps.some((step) => step[name] !== null));
    return [...PARTS.map(([name, words]) => row(name, words, name === "rest" ? frames.rest : "")), row("used", "in use together", frames.source), ...more.map(([name, words]) => row(name, words, ""))];
  }

  const notes = [
    ...(frames.taken > steps.length ? [`${grouped(frames.taken)} samples were taken, ${grouped(steps.length)} are shown; of neighbours the larger stays.`] : []),
    ...(frames.missed ? [`${grouped(frames.missed)} ${frames.missed === 1 ? "reading" : "readings"} failed.`] : []),
  ];

  const views = segmented("Show", ["everything", "weights and cache"], (index) => { closeUp = Boolean(index); again(); redraw(); });

  return {
    options: ofModel ? [views] : [],
    layout(stage, width) {
      const rows = readings();
      const place = h("div", { class: "le-memory-picture" });
      const table = h("table", { class: "le-table le-memory-table" }, h("tbody", {}, ...rows.map(({ node }) => node)));
      again = () => {
        parts = { ...chart(Math.max(240, width)), rows };
        place.replaceChildren(parts.svg);
        set(stage.firstChild, { style: parts.style });
      };
      stage.append(h("div", { class: "le-memory" }, place, table, ...notes.map((words) => h("p", { class: "le-small" }, words))));
      again();
    },
    draw(step) {
      if (!parts) return; // told of a step before there was room to draw, as in a cell that is out of sight
      const own = steps[Math.min(step, steps.length - 1)];
      const { at, cursor, dots, rows } = parts;
      const x = at.x(own.seconds);
      set(cursor, { x1: x, x2: x, "data-seconds": own.seconds });
      dots.forEach((dot, index) => set(dot, { cx: x, cy: at.y(heightOf(own, index)) }));
      const used = usedAt(own);
      for (const { name, node, bytes, share } of rows) {
        const value = name === "used" ? used : own[name] || 0;
        set(node, { "data-bytes": value });
        bytes.textContent = formatBytes(value);
        share.textContent = name === "used" ? (total ? `of ${formatBytes(total)}` : "") : PARTS.some(([part]) => part === name) && used ? `${(100 * value / used).toFixed(1)} %` : "";
      }
    },
  };
}

const draw = frameWidget("memory-monitor", memoryMonitor);

// Says whether what is drawn is live, and on which hardware. Live is what is heard of now: a kernel that is gone sends nothing.
function render({ model, el }) {
  const undraw = draw({ model, el });
  const root = el.querySelector('[data-widget="memory-monitor"]');
  const status = h("p", { class: "le-status" });
  const [bar, summary] = [".le-controls", ".le-summary"].map((selector) => root.querySelector(selector));
  root.querySelector(".le-title").after(status);
  let heard = false;
  let timer = null;

  const say = () => {
    const live = heard && model.get("live");
    const { hardware } = model.get("frames");
    const cut = !live && model.get("live");
    set(root, { "data-live": live });
    set(bar, { inert: live });
    set(summary, { "aria-live": live ? "off" : "polite" });
    set(status, { "data-status": live ? "live" : cut ? "cut" : "recording" });
    status.textContent = live ? `Live on ${hardware}` : cut ? `Cut off: the last that was heard of a run on ${hardware}` : `A recording made on ${hardware}`;
  };
  const news = () => {
    heard = true;
    clearTimeout(timer);
    timer = setTimeout(() => { heard = false; say(); }, SILENCE);
    say();
  };
  const hold = (event) => { if (heard && model.get("live")) event.stopImmediatePropagation(); };
  root.addEventListener("keydown", hold, true);
  model.on("change:frames", news);
  model.on("change:live", say);
  say();
  return () => {
    clearTimeout(timer);
    model.off("change:frames", news);
    model.off("change:live", say);
    undraw();
  };
}

export default { render };
