// What every widget shares: one frame around the picture, one control bar, one way to step. Python puts this in front of each widget's file.

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

// Each widget is a script of its own, so they count on the document what must be unique in it.
function uniqueId(kind) {
  document.llama3EduIds = (document.llama3EduIds || 0) + 1;
  return `le-${kind}-${document.llama3EduIds}`;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  return node;
}

function h(tag, attributes = {}, ...children) {
  const node = set(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function s(tag, attributes = {}, ...children) {
  const node = set(document.createElementNS(SVG_NAMESPACE, tag), attributes);
  node.append(...children);
  return node;
}

// A drawing of exact pixels, hidden from screen readers: they read the summary.
function drawing(width, height, ...children) {
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  return s("svg", { ...size, "aria-hidden": "true", focusable: "false" }, ...children);
}

// Fills that can be told apart without colour: `hatch` has stripes, `dot` a point in the middle of each cell.
function fills() {
  const id = uniqueId("fill");
  const stripes = { width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  const whole = { width: 1, height: 1, patternContentUnits: "objectBoundingBox" };
  const named = (kind) => `url(#${id}-${kind})`;
  const pattern = (kind, attributes, ...children) => s("pattern", { id: `${id}-${kind}`, ...attributes }, ...children);
  const stripe = (kind, extra) =>
    pattern(kind, { ...stripes, ...extra }, s("rect", { width: 5, height: 5, class: `le-${kind}-ground` }), s("rect", { width: 2, height: 5, class: `le-${kind}-stripe` }));
  const definitions = s("defs", {},
    stripe("hatch", {}),
    stripe("mask", { width: 6 }),
    stripe("lines", { width: 6 }),
    pattern("dot", whole, s("circle", { cx: 0.5, cy: 0.5, r: 0.14, class: "le-dot" })));
  return { definitions, style: `--le-fill-hatch: ${named("hatch")}; --le-fill-dot: ${named("dot")}; --le-fill-mask: ${named("mask")}; --le-fill-lines: ${named("lines")}` };
}

// At most `most` of the whole numbers below `count`, evenly spread, the first and the last among them: a picture has room for no more.
function evenly(count, most) {
  if (count <= most) return Array.from({ length: count }, (_, index) => index);
  return Array.from({ length: most }, (_, index) => Math.round(index * (count - 1) / (most - 1)));
}

// The place in a rising list of the first number that is `least` or more; past its end if there is none.
function placeOf(rising, least) {
  let [low, high] = [0, rising.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle] < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

function shorten(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}

// The first of `room` things to show of `total`, so that number `at` is among them. It stays for half a window, then jumps.
function windowStart(at, total, room) {
  if (at < room || total <= room) return 0;
  const stride = Math.max(1, Math.floor(room / 2));
  return Math.min(total - room, Math.ceil((at - room + 1) / stride) * stride);
}

// In a row of cells too small for a name each, every how many of them can have one.
function labelEvery(cell, room = 12) {
  return cell * 1.5 < room ? Math.ceil(room / cell) : 1;
}

// Token names along the top of a grid, read from bottom to top; where cells are small, not all of them have room for theirs.
function columnLabels(tokens, { x, y, cell, most = 9 }) {
  const every = labelEvery(cell);
  return tokens.map((token, index) => {
    const across = x + index * cell + cell / 2;
    const place = { class: "le-token", "data-position": index, transform: `translate(${across} ${y}) rotate(-90)`, "dominant-baseline": "central" };
    return s("text", place, index % every ? "" : shorten(token, most));
  });
}

function labelHeight(tokens, most = 9) {
  return 10 + 6.7 * tokens.reduce((longest, token) => Math.max(longest, Math.min(token.length, most)), 0);
}

function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1023.5 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  const digits = Number.isInteger(bytes) ? 0 : Math.max(0, 4 - String(Math.trunc(bytes)).length);
  return `${bytes.toFixed(digits)} ${units[unit]}`;
}

function grouped(number) {
  return String(number).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

// `[["new", "computed for the first time"], …]`: a swatch for each state, drawn as in the grid.
function legend(entries, swatch) {
  const items = entries.map(([state, words]) =>
    h("li", { "data-state": state }, drawing(14, 14, swatch(state)), h("span", {}, words)));
  return h("ul", { class: "le-legend" }, ...items);
}

// A row of choices of which one holds. `onChange` is told the index.
function segmented(label, names, onChange) {
  const group = h("div", { class: "le-segmented", role: "radiogroup", "aria-label": label });
  const name = uniqueId("choice");
  names.forEach((text, index) => {
    const input = h("input", { type: "radio", name, value: index, checked: index === 0 });
    input.addEventListener("change", () => onChange(index));
    group.append(h("label", {}, input, h("span", {}, text)));
  });
  return h("div", { class: "le-option" }, h("span", { class: "le-option-name", "aria-hidden": "true" }, label), group);
}

function dropdown(label, names, onChange) {
  const select = h("select", {}, ...names.map((text, index) => h("option", { value: index }, text)));
  select.addEventListener("change", () => onChange(Number(select.value)));
  return h("label", { class: "le-option" }, h("span", { class: "le-option-name" }, label), select);
}

function choice(label, names, onChange) {
  return names.length <= 8 ? segmented(label, names, onChange) : dropdown(label, names, onChange);
}

// Show which of the choices holds, when something else than the reader's hand changed it.
function showChoice(node, index) {
  const select = node.querySelector("select");
  if (select) select.value = index;
  else node.querySelectorAll("input").forEach((input, own) => { input.checked = own === index; });
}

// Dark or light, as the page has it: this book's site, JupyterLab, VS Code, Colab; else as the system has it.
function pageScheme() {
  const { documentElement: page, body } = document;
  const said = [page.dataset.theme, page.getAttribute("theme"), body.dataset.vscodeThemeKind].find(Boolean) || "";
  if (/dark|high-contrast$/.test(said)) return "dark";
  if (/light/.test(said)) return "light";
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false" ? "dark" : "light";
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function followScheme(root) {
  const apply = () => set(root, { "data-scheme": pageScheme() });
  const observer = new MutationObserver(apply);
  for (const node of [document.documentElement, document.body]) observer.observe(node, { attributes: true });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", apply);
  apply();
  return () => {
    observer.disconnect();
    system.removeEventListener("change", apply);
  };
}

const ICONS = {
  reset: "M5 4v12M16 4.5 8 10l8 5.5z",
  back: "M13.5 4.5 6 10l7.5 5.5z",
  play: "M6 4l10 6-10 6z",
  pause: "M7 4.5v11M13 4.5v11",
  forward: "M6.5 4.5 14 10l-7.5 5.5z",
};

function icon(name) {
  const picture = drawing(20, 20, s("path", { d: ICONS[name] }));
  return set(picture, { class: `le-icon le-icon-${name}` });
}

function button(action, label) {
  return h("button", { type: "button", "data-action": action, "aria-label": label, title: label }, icon(action));
}

// The control bar. `stops` are the steps that back and forward halt at, `go` is told the step to draw.
function controlBar(go) {
  const buttons = {
    reset: button("reset", "Back to the start"),
    back: button("back", "One step back"),
    play: button("play", "Play"),
    forward: button("forward", "One step forward"),
  };
  const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": "Step" });
  const label = h("output", { class: "le-count" });
  const node = h("div", { class: "le-controls" }, h("div", { class: "le-buttons" }, ...Object.values(buttons)), slider, label);
  let stops = [0];
  let at = 0;
  let timer = null;

  const halt = (index) => go(stops[Math.max(0, Math.min(stops.length - 1, index))]);
  const bar = {
    node,
    get playing() { return timer !== null; },
    reset: () => { bar.pause(); halt(0); },
    end: () => { bar.pause(); halt(stops.length - 1); },
    back: () => { bar.pause(); halt(at - 1); },
    forward: () => { bar.pause(); halt(at + 1); },
    pause: () => { clearInterval(timer); timer = null; bar.showPlaying(); },
    play() {
      if (at === stops.length - 1) halt(0);
      timer = setInterval(() => {
        if (!node.isConnected || at >= stops.length - 1) bar.pause();
        else halt(at + 1);
      }, 900);
      bar.showPlaying();
    },
    toggle: () => (bar.playing ? bar.pause() : bar.play()),
    showPlaying() {
      const words = bar.playing ? "Pause" : "Play";
      set(buttons.play, { "aria-label": words, title: words }).replaceChildren(icon(words.toLowerCase()));
      node.dispatchEvent(new Event("le-playing"));
    },
    // Show that `step` is drawn; a step between two stops counts as the later one.
    show(step, newStops) {
      stops = newStops;
      at = Math.min(placeOf(stops, step), stops.length - 1);
      set(slider, { max: stops.length - 1, "aria-valuetext": `${at + 1} of ${stops.length}` });
      slider.value = at;
      slider.style.setProperty("--le-done", stops.length > 1 ? at / (stops.length - 1) : 1);
      label.textContent = `${at + 1} / ${stops.length}`;
      label.style.minWidth = `${2 * String(stops.length).length + 3}ch`;
      for (const [button, off] of [[buttons.reset, at === 0], [buttons.back, at === 0], [buttons.forward, at === stops.length - 1]]) {
        set(button, { "aria-disabled": off ? "true" : null });
      }
    },
  };
  for (const action of ["reset", "back", "forward"]) buttons[action].addEventListener("click", () => bar[action]());
  buttons.play.addEventListener("click", () => bar.toggle());
  slider.addEventListener("input", () => { bar.pause(); halt(Number(slider.value)); });
  return bar;
}

const KEYS = { ArrowLeft: "back", ArrowDown: "back", ArrowRight: "forward", ArrowUp: "forward", Home: "reset", End: "end", " ": "toggle" };

function onKey(event, bar) {
  const action = KEYS[event.key];
  if (!action || event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
  const on = event.target;
  if (on.matches("select, input[type=radio]") || (event.key === " " && on.matches("button"))) return;
  bar[action]();
  event.preventDefault();
  event.stopPropagation();
}

// Make a render function. `makePicture(frames, tools)` returns an object with
//   layout(stage, width): draw everything that stays, into an empty stage;
//   draw(step): show one step by changing what is drawn;
//   options: nodes for choices, if there are any;  stops(step): the steps to halt at while this one is drawn, all of them unless it says otherwise.
// `tools.redraw()` shows the current step again, `tools.go(step)` another one.
// A picture that is a form has no use for a control bar: `{ stepped: false }` leaves it out, and `words()` of the picture is the summary.
function frameWidget(name, makePicture, { stepped = true } = {}) {
  return function render({ model, el }) {
    const title = h("p", { class: "le-title" }, model.get("heading"));
    const options = h("div", { class: "le-options" });
    const stage = h("div", { class: "le-stage" });
    const summary = h("p", { class: "le-summary", "aria-live": "polite" });
    const note = h("p", { class: "le-small le-thinned", hidden: true });
    const bar = controlBar((step) => {
      if (step === model.get("step")) return;
      model.set("step", step);
      model.save_changes();
    });
    const root = h("section", {
      class: "llama3-edu-widget", "data-widget": name, tabindex: stepped ? 0 : null, role: "group", "aria-label": model.get("heading"),
      "data-lm-suppress-shortcuts": "true",
    }, h("div", { class: "le-head" }, title, options), stage, ...(stepped ? [bar.node] : []), summary, note);
    let picture, everyStep, longest, width = 0;

    const redraw = () => {
      const frames = model.get("frames");
      const step = Math.min(model.get("step"), frames.steps.length - 1);
      picture.draw(step);
      bar.show(step, picture.stops ? picture.stops(step) : everyStep);
      const words = stepped ? frames.steps[step].summary : picture.words();
      if (summary.textContent !== words) summary.textContent = words;
      set(root, { "data-step": step });
    };
    // The longest summary decides how tall the summary is, so that nothing moves from step to step.
    const leaveRoom = () => {
      summary.style.minHeight = "";
      summary.textContent = longest;
      summary.style.minHeight = `${summary.offsetHeight}px`;
    };
    const layout = () => {
      leaveRoom();
      stage.replaceChildren();
      picture.layout(stage, width);
      redraw();
    };
    const begin = () => {
      const frames = model.get("frames");
      bar.pause();
      everyStep = frames.steps.map((_, index) => index);
      longest = frames.steps.reduce((text, step) => (step.summary.length > text.length ? step.summary : text), "");
      set(note, { hidden: !frames.note }).textContent = frames.note || "";
      picture = makePicture(frames, { redraw, go: (step) => { bar.pause(); model.set("step", step); model.save_changes(); } });
      options.replaceChildren(...(picture.options || []));
      if (width) layout();
    };
    const measure = () => {
      const measured = Math.floor(stage.clientWidth);
      if (measured < 1 || measured === width) return;
      width = measured;
      layout();
    };

    el.append(root);
    begin();
    measure();
    const sizes = new ResizeObserver(() => requestAnimationFrame(measure));
    sizes.observe(stage);
    const unfollow = followScheme(root);
    if (stepped) root.addEventListener("keydown", (event) => onKey(event, bar));
    bar.node.addEventListener("le-playing", () => set(summary, { "aria-live": bar.playing ? "off" : "polite" }));
    model.on("change:step", redraw);
    model.on("change:frames", begin);
    return () => {
      bar.pause();
      sizes.disconnect();
      unfollow();
      model.off("change:step", redraw);
      model.off("change:frames", begin);
    };
  };
}

