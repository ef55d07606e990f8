// Two grids, steps down and positions across: which tokens each step computes, without a cache and with one.

const RUNS = [
  { run: "naive", name: "Without a cache" },
  { run: "cached", name: "With a cache" },
];

const STATES = [
  ["new", "computed for the first time"],
  ["again", "computed again"],
  ["kept", "kept in the cache, not computed"],
  ["chosen", "the token chosen"],
];

// What happens to one position in one step of one run.
function stateOf(frames, run, step, position) {
  const { [run]: [first, end], chosen } = frames.steps[step];
  if (position === chosen) return "chosen";
  if (position > chosen) return "absent";
  if (position < first) return "kept";
  const before = step ? frames.steps[step - 1][run][1] : 0;
  return position < before && position < end ? "again" : "new";
}

// `6 + 7 + … + 17 = 138`, and the closed form where the sum is 1 + 2 + … + n.
function sum(lengths, total) {
  const shown = lengths.length <= 5 ? lengths : [...lengths.slice(0, 3), "…", lengths[lengths.length - 1]];
  const n = lengths.length;
  const closed = n > 1 && lengths.every((length, index) => length === index + 1) ? ` = ${n} · ${n + 1} / 2` : "";
  return n === 1 ? `${total}` : `${shown.join(" + ")}${closed} = ${grouped(total)}`;
}

function recomputeTriangle(frames) {
  const { tokens, steps } = frames;
  let panels = [];

  function panel({ run, name }, width) {
    const gutter = 26;
    const cell = Math.max(5, Math.min(26, Math.floor((width - gutter) / tokens.length)));
    const top = labelHeight(tokens);
    const { definitions, style } = fills();
    const labels = columnLabels(tokens, { x: gutter, y: top - 6, cell });
    const numbers = steps.map((_, row) =>
      s("text", { class: "le-row", x: gutter - 8, y: top + row * cell + cell / 2, "text-anchor": "end", "dominant-baseline": "central" }, row + 1));
    const cells = steps.map((_, row) => tokens.map((_, column) =>
      s("rect", {
        class: "le-cell", "data-row": row, "data-position": column, x: gutter + column * cell + 1, y: top + row * cell + 1,
        width: cell - 2, height: cell - 2, rx: Math.min(3, cell / 6),
      })));
    const marker = s("rect", { class: "le-marker", x: gutter - 3, width: cell * tokens.length + 6, height: cell + 4, rx: 4 });
    const image = drawing(gutter + cell * tokens.length + 4, top + cell * steps.length + 4, definitions, marker, ...labels, ...numbers, ...cells.flat());
    const total = h("span", { class: "le-big", "data-total": run });
    const now = h("span", { class: "le-small" });
    const working = h("p", { class: "le-formula" });
    const node = h("div", { class: "le-panel", "data-run": run, style },
      h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, name), h("p", { class: "le-reading" }, total, now)),
      image, working);
    return { node, run, cells, labels, numbers, marker, total, now, working, top, cell };
  }

  function drawPanel(own, step) {
    const { run } = own;
    own.cells.forEach((row, index) => row.forEach((rect, position) => {
      const state = stateOf(frames, run, index, position);
      set(rect, { "data-state": index <= step ? state : state === "absent" || state === "chosen" ? "absent" : "future" });
    }));
    own.numbers.forEach((text, index) => set(text, { "data-current": index === step }));
    own.labels.forEach((text, position) => set(text, { "data-current": position === steps[step].chosen, "data-absent": position > steps[step].chosen }));
    set(own.marker, { y: own.top + step * own.cell - 2 });
    const lengths = steps.slice(0, step + 1).map(({ [run]: [first, end] }) => end - first);
    const total = steps[step][`${run}_total`];
    own.total.textContent = grouped(total);
    const now = lengths[step];
    own.now.textContent = `${total === 1 ? "token" : "tokens"} computed, ${now} just now`;
    own.working.textContent = sum(lengths, total);
  }

  return {
    layout(stage, width) {
      const side = width >= 600;
      const each = side ? Math.floor((width - 36) / 2) : width;
      panels = RUNS.map((run) => panel(run, each));
      const { definitions, style } = fills();
      const key = set(legend(STATES, (state) => s("rect", { class: "le-cell", "data-state": state, x: 1, y: 1, width: 12, height: 12, rx: 2 })), { style });
      key.querySelector("svg").prepend(definitions);
      stage.append(h("div", { class: `le-panels${side ? " le-side" : ""}` }, ...panels.map(({ node }) => node)), key);
    },
    draw: (step) => panels.forEach((own) => drawPanel(own, step)),
  };
}

export default { render: frameWidget("recompute-triangle", recomputeTriangle) };
