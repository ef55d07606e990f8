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

// More columns than this, and some of the positions stand for all, as some steps do.
const MOST_COLUMNS = 64;

// `6 + 7 + … + 17 = 138`, and the closed form where the sum is 1 + 2 + … + n.
function sum(lengths, total) {
  const shown = lengths.length <= 5 ? lengths : [...lengths.slice(0, 3), "…", lengths[lengths.length - 1]];
  const n = lengths.length;
  const closed = n > 1 && lengths.every((length, index) => length === index + 1) ? ` = ${n} · ${n + 1} / 2` : "";
  return n === 1 ? `${total}` : `${shown.join(" + ")}${closed} = ${grouped(total)}`;
}

function recomputeTriangle(frames) {
  const { tokens, steps, prompt_len: promptLen } = frames;
  const columns = evenly(tokens.length, MOST_COLUMNS);
  const names = columns.map((position) => tokens[position]);
  const numberOf = (row) => grouped(steps[row].chosen - promptLen + 1);
  let panels = [];

  function panel({ run, name }, width) {
    const gutter = Math.max(26, 12 + 7 * numberOf(steps.length - 1).length);
    const cell = Math.max(4, Math.min(26, Math.floor((width - gutter - 4) / columns.length)));
    const top = labelHeight(names);
    const { definitions, style } = fills();
    const labels = columnLabels(names, { x: gutter, y: top - 6, cell });
    const every = labelEvery(cell);
    const numbers = steps.map((_, row) =>
      s("text", { class: "le-row", x: gutter - 8, y: top + row * cell + cell / 2, "text-anchor": "end", "dominant-baseline": "central" }, row % every ? "" : numberOf(row)));
    const cells = steps.map((_, row) => columns.map((position, column) =>
      s("rect", {
        class: "le-cell", "data-row": row, "data-position": position, x: gutter + column * cell + 1, y: top + row * cell + 1,
        width: cell - 2, height: cell - 2, rx: Math.min(3, cell / 6),
      })));
    const marker = s("rect", { class: "le-marker", x: gutter - 3, width: cell * columns.length + 6, height: cell + 4, rx: 4 });
    const image = drawing(gutter + cell * columns.length + 4, top + cell * steps.length + 4, definitions, marker, ...labels, ...numbers, ...cells.flat());
    const total = h("span", { class: "le-big", "data-total": run });
    const now = h("span", { class: "le-small" });
    const working = h("p", { class: "le-formula" });
    const node = h("div", { class: "le-panel", "data-run": run, style },
      h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, name), h("p", { class: "le-reading" }, total, now)),
      image, working);
    return { node, run, cells, labels, numbers, marker, total, now, working, top, cell, drawn: null };
  }

  function drawPanel(own, step) {
    const { run } = own;
    // Between two steps only the rows between them change.
    const [from, to] = own.drawn === null ? [0, steps.length - 1] : [Math.min(own.drawn, step), Math.max(own.drawn, step)];
    for (let index = from; index <= to; index += 1) {
      own.cells[index].forEach((rect, column) => {
        const state = stateOf(frames, run, index, columns[column]);
        set(rect, { "data-state": index <= step ? state : state === "absent" || state === "chosen" ? "absent" : "future" });
      });
    }
    own.drawn = step;
    own.numbers.forEach((text, index) => set(text, { "data-current": index === step }));
    own.labels.forEach((text, column) => set(text, { "data-current": columns[column] === steps[step].chosen, "data-absent": columns[column] > steps[step].chosen }));
    set(own.marker, { y: own.top + step * own.cell - 2 });
    const total = steps[step][`${run}_total`];
    const now = steps[step][run][1] - steps[step][run][0];
    own.total.textContent = grouped(total);
    own.now.textContent = `${total === 1 ? "token" : "tokens"} computed, ${grouped(now)} just now`;
    own.working.textContent = frames.note ? grouped(total) : sum(steps.slice(0, step + 1).map(({ [run]: [first, end] }) => end - first), total);
  }

  return {
    layout(stage, width) {
      const side = width >= 600;
      const each = side ? Math.floor((width - 36) / 2) : width;
      panels = RUNS.map((run) => panel(run, each));
      const { definitions, style } = fills();
      const key = set(legend(STATES, (state) => s("rect", { class: "le-cell", "data-state": state, x: 1, y: 1, width: 12, height: 12, rx: 2 })), { style });
      key.querySelector("svg").prepend(definitions);
      const coarse = columns.length < tokens.length ? [h("p", { class: "le-small" }, `${columns.length} of ${grouped(tokens.length)} positions are shown.`)] : [];
      stage.append(h("div", { class: `le-panels${side ? " le-side" : ""}` }, ...panels.map(({ node }) => node)), key, ...coarse);
    },
    draw: (step) => panels.forEach((own) => drawPanel(own, step)),
  };
}

export default { render: frameWidget("recompute-triangle", recomputeTriangle) };
