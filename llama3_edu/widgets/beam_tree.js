// The tree of a search: a column for each forward pass, a node for each beam. Below it the block tables of the beams that go on.

function beamTree(frames) {
  const { forwards: steps, prompt, prompt_len: promptLen } = frames; // a step of the tree is a forward pass
  const hasBlocks = steps.some((step) => step.written.length);
  const rowsOf = (step) => steps[step].beams.length + steps[step].ended.length;
  const mostRows = Math.max(...steps.map((_, step) => rowsOf(step)));
  const mostBeams = Math.max(1, ...steps.map((step) => step.beams.length), ...steps.map((step) => step.written.length));
  let at = 0;
  let chosen = null; // the node that was chosen, as [step, row]; null: the best beam
  let view = null;

  const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
  const scoreOf = (score) => score.toFixed(2).replace("-", "−");

  // -- Nodes: the rows of a step are its beams, then those that ended --

  function nodeOf(step, row) {
    const { beams, ended } = steps[step];
    return row < beams.length ? { ...beams[row], ended: false } : { ...ended[row - beams.length], ended: true };
  }

  // From a node back to the prompt, as [step, row].
  function pathOf(step, row) {
    const path = [];
    for (let [index, own] = [step, row]; index >= 0; index -= 1) {
      path.unshift([index, own]);
      own = nodeOf(index, own).parent;
    }
    return path;
  }

  const keyOf = ([step, row]) => `${step}:${row}`;

  // The best beam that goes on; once none does, the best of all that ended.
  function bestOf(step) {
    if (steps[step].beams.length) return [step, 0];
    const ended = steps.slice(0, step + 1).flatMap((own, index) => own.ended.map((beam, place) => [beam.score, index, own.beams.length + place]));
    const [, index, row] = ended.reduce((best, one) => (one[0] > best[0] ? one : best));
    return [index, row];
  }

  // What has become of each node by now: it ended, it leads to a beam that goes on or has ended, or it leads nowhere.
  function fates(step) {
    const alive = new Set();
    const goOn = steps[step].beams.map((_, row) => [step, row]);
    const ended = steps.slice(0, step + 1).flatMap((own, index) => own.ended.map((_, place) => [index, own.beams.length + place]));
    for (let [index, row] of [...goOn, ...ended]) {
      for (; index >= 0 && !alive.has(keyOf([index, row])); index -= 1) {
        alive.add(keyOf([index, row]));
        row = nodeOf(index, row).parent;
      }
    }
    return (index, row) => {
      const node = nodeOf(index, row);
      if (node.ended) return "ended";
      if (alive.has(keyOf([index, row]))) return "alive";
      const next = steps[index + 1];
      const continued = index < step && [...next.beams, ...next.ended].some((beam) => beam.parent === row);
      return continued ? "left" : "closed";
    };
  }

  function textOf(path) {
    const tokens = path.map(([step, row]) => nodeOf(step, row).token);
    const plain = (pieces) => (pieces.some((piece) => piece.startsWith("#")) ? pieces.join(" ") : pieces.join("").replaceAll("␣", " ").replaceAll("\\n", " ↵ "));
    return [prompt.length ? plain(prompt) : `prompt of ${plural(promptLen, "token")}`, plain(tokens)];
  }

  const selected = () => (chosen !== null && chosen[0] <= at && chosen[1] < rowsOf(chosen[0]) ? chosen : bestOf(at));

  function choose(place) {
    chosen = place;
    drawAll();
  }

  function pointed(event) {
    const node = event.target.closest("[data-row]");
    if (node && node.dataset.step !== undefined) choose([Number(node.dataset.step), Number(node.dataset.row)]);
  }

  function walk(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key !== "Escape" && !move) return;
    const [step, row] = selected();
    const within = at === step || chosen === null ? at : step;
    const from = within === step ? row : -1;
    choose(move ? [within, Math.max(0, Math.min(rowsOf(within) - 1, from + move))] : null);
    event.preventDefault();
    event.stopPropagation();
  }

  // -- The tree --

  function measure(width) {
    const root = 26;
    const least = width < 480 ? 84 : 92;
    const room = Math.max(1, Math.floor((width - root) / least));
    const shown = Math.min(steps.length, room);
    const column = Math.min(132, Math.floor((width - root) / shown));
    const tall = mostRows <= 10 ? 44 : mostRows <= 16 ? 26 : 20;
    return { width, root, shown, column, tall, top: 24, boxHigh: tall - (tall > 30 ? 8 : 4), boxWide: Math.min(108, column - 20) };
  }

  const across = (step) => view.root + (step - view.start) * view.column;
  const down = (row) => view.top + (row + .5) * view.tall;

  function edge(step, row, state) {
    const { parent } = nodeOf(step, row);
    const from = step === 0 ? [view.root - 12, down(0)] : [across(step - 1) + 16 + view.boxWide, down(parent)];
    const [x, y] = [across(step) + 16, down(row)];
    const middle = step === 0 ? (from[0] + x) / 2 : x - 10;
    const d = `M${from[0]} ${from[1]}H${step === 0 ? from[0] : across(step - 1) + 16 + view.boxWide}C${middle} ${from[1]} ${middle} ${y} ${x} ${y}`;
    return s("path", { class: "le-edge", "data-step": step, "data-row": row, "data-parent": parent, "data-state": state, d });
  }

  function treeNode(step, row, state) {
    const { boxWide, boxHigh, tall } = view;
    const { token, score, ended } = nodeOf(step, row);
    const [x, y] = [across(step) + 16, down(row)];
    const two = tall > 30;
    const letters = Math.max(2, Math.floor((boxWide - 14) / 7.3));
    const node = s("g", { class: "le-beam", "data-step": step, "data-row": row, "data-state": state, "data-score": score, "data-token": token },
      s("rect", { class: "le-reach", x: across(step) + 6, y: y - tall / 2, width: view.column - 6, height: tall }),
      s("rect", { class: "le-beam-box", x, y: y - boxHigh / 2, width: boxWide, height: boxHigh, rx: ended ? 2 : Math.min(9, boxHigh / 2) }),
      s("text", { class: "le-token le-beam-token", x: x + boxWide / 2, y: y - (two ? 7.5 : 0), "text-anchor": "middle", "dominant-baseline": "central" }, shorten(token, letters)));
    if (two) node.append(s("text", { class: "le-beam-score", x: x + boxWide / 2, y: y + 9, "text-anchor": "middle", "dominant-baseline": "central" }, scoreOf(score)));
    const end = x + boxWide;
    if (state === "ended") node.append(s("path", { class: "le-end", d: `M${end + 4} ${y - boxHigh / 2 + 2}v${boxHigh - 4}` }));
    if (state === "closed") node.append(s("path", { class: "le-cut", d: `M${end + 3} ${y - 3.5}l7 7m0 -7l-7 7` }));
    return node;
  }

  function drawTree() {
    const { shown, tall } = view;
    view.start = windowStart(at, steps.length, shown);
    const inWindow = Array.from({ length: Math.max(0, Math.min(at + 1, view.start + shown) - view.start) }, (_, offset) => view.start + offset);
    const fate = fates(at);
    const best = new Set(pathOf(...bestOf(at)).map(keyOf));
    const own = new Set(pathOf(...selected()).map(keyOf));
    const places = inWindow.flatMap((step) => Array.from({ length: rowsOf(step) }, (_, row) => [step, row]));
    const dress = (node, place) => set(node, { "data-best": best.has(keyOf(place)), "data-looked": own.has(keyOf(place)) });
    const order = ([step, row]) => (own.has(keyOf([step, row])) ? 2 : 0) + (best.has(keyOf([step, row])) ? 1 : 0);
    const edges = [...places].sort((one, other) => order(one) - order(other));
    view.edges.replaceChildren(...edges.map((place) => dress(edge(...place, fate(...place)), place)));
    view.nodes.replaceChildren(...places.map((place) => dress(treeNode(...place, fate(...place)), place)));
    view.columns.replaceChildren(...inWindow.map((step) => s("text", {
      class: "le-row", "data-current": step === at, x: across(step) + 16 + view.boxWide / 2, y: 9, "text-anchor": "middle", "dominant-baseline": "central",
    }, steps[step].position)));
    set(view.rootMark, { visibility: view.start ? "hidden" : null });
    set(view.earlier, { visibility: view.start ? null : "hidden" });
    set(view.rootMark, { cy: view.top + tall / 2 });
    view.windowName.textContent = shown < steps.length ? `positions ${steps[view.start].position} to ${steps[view.start + shown - 1].position} (of ${promptLen} to ${steps[steps.length - 1].position})` : "";
  }

  function drawWords() {
    const [step, row] = selected();
    const node = nodeOf(step, row);
    const state = fates(at)(step, row);
    const words = {
      alive: step === at ? (row === 0 ? "the best beam so far" : `beam ${row + 1} of ${steps[step].beams.length}`) : "others continue it",
      ended: "ended", closed: "closed: nothing continues it", left: "left behind: all that continued it is closed",
    };
    const [before, found] = textOf(pathOf(step, row));
    const blocks = node.blocks && node.blocks.length ? ` Blocks ${node.blocks.join(", ")}.` : "";
    view.about.textContent = `Position ${steps[step].position}, ${words[state]}. ${node.ended ? `Final score, length penalty included: ${scoreOf(node.score)}` : `Score ${scoreOf(node.score)}`}.${step === at ? blocks : ""}`;
    view.text.replaceChildren(h("span", { class: "le-small" }, before), " ", h("span", { class: "le-found" }, found.trim() || found));
  }

  // -- The blocks --

  // The tables to show: those of the beams that go on, or, when the search ends, those of the last forward pass.
  const tablesAt = (step) => (steps[step].beams.length ? steps[step].beams.map((beam) => beam.blocks) : steps[step].written);
  const indexIn = (tables, block) => tables.map((table) => table.indexOf(block)).find((index) => index >= 0);

  // Blocks that went back to the pool in this step, by the column they stood in.
  function ghostsOf(step) {
    const { written, freed } = steps[step];
    const ghosts = {};
    for (const block of freed) {
      const column = indexIn(written, block);
      if (column !== undefined) (ghosts[column] = ghosts[column] || []).push(block);
    }
    return ghosts;
  }

  const mostGhosts = hasBlocks ? Math.max(...steps.map((_, step) => Math.max(0, ...Object.values(ghostsOf(step)).map((blocks) => blocks.length)))) : 0;
  const mostColumns = Math.max(1, ...steps.flatMap((step) => step.written.map((table) => table.length)));

  function measureBlocks(width) {
    const left = Math.min(92, Math.max(64, width * .2));
    const shown = Math.min(mostColumns, Math.max(1, Math.floor((width - left) / 62)));
    const column = Math.min(86, Math.floor((width - left) / shown));
    const tall = mostBeams <= 10 ? 28 : 20;
    return { left, shown, column, tall, top: 20, wide: Math.min(40, column - 24), high: tall - 6, ghostTop: 20 + mostBeams * tall + 12 };
  }

  // One block that several neighbouring rows hold is one tall box; rows further off are connected to it by a line.
  function blockNodes(column, tables, own) {
    const { plan } = view;
    const x = plan.left + (column - plan.start) * plan.column + 20;
    const rows = new Map();
    tables.forEach((table, row) => { if (table.length > column) rows.set(table[column], [...(rows.get(table[column]) || []), row]); });
    let ties = 0;
    return [...rows].map(([block, held]) => {
      const node = s("g", { class: "le-held", "data-block": block, "data-index": column, "data-rows": held.join(" "), "data-state": held.length > 1 ? "shared" : "alone", "data-looked": own.has(block) });
      const groups = held.reduce((runs, row) => { const run = runs[runs.length - 1]; if (run && run[run.length - 1] === row - 1) run.push(row); else runs.push([row]); return runs; }, []);
      if (groups.length > 1) {
        const y = (row) => plan.top + (row + .5) * plan.tall;
        const out = 4 + 4 * (ties % 3); // each tie of a column has a line of its own
        ties += 1;
        node.append(s("path", { class: "le-tie", d: `M${x + plan.wide + out} ${y(groups[0][0])}V${y(groups[groups.length - 1][0])}${groups.map((run) => `M${x + plan.wide} ${y(run[0])}h${out}`).join("")}` }));
      }
      for (const run of groups) {
        const y = plan.top + run[0] * plan.tall + 3;
        const high = run.length * plan.tall - 6;
        node.append(s("rect", { class: "le-held-box", x, y, width: plan.wide, height: high, rx: 4 }), s("text", { x: x + plan.wide / 2, y: y + high / 2 + .5, "text-anchor": "middle", "dominant-baseline": "central" }, block));
      }
      return node;
    });
  }

  function ghostNodes(column, blocks) {
    const { plan } = view;
    const x = plan.left + (column - plan.start) * plan.column + 20;
    return blocks.map((block, place) => {
      const y = plan.ghostTop + place * plan.tall + 3;
      return s("g", { class: "le-held", "data-block": block, "data-index": column, "data-state": "freed" },
        s("rect", { class: "le-held-box", x, y, width: plan.wide, height: plan.high, rx: 4 }), s("text", { x: x + plan.wide / 2, y: y + plan.high / 2 + .5, "text-anchor": "middle", "dominant-baseline": "central" }, block));
    });
  }

  // An arrow from a block to its copy, on the left of their column, wherever both are drawn.
  function copyNodes(column, tables, ghosts) {
    const { plan } = view;
    const x = plan.left + (column - plan.start) * plan.column + 20;
    const gone = ghosts[column] || [];
    const place = (block) => {
      const row = tables.findIndex((table) => table[column] === block);
      if (row >= 0) return plan.top + (row + .5) * plan.tall;
      const ghost = gone.indexOf(block);
      return ghost >= 0 ? plan.ghostTop + (ghost + .5) * plan.tall : null;
    };
    return steps[at].copied.flatMap(([source, block]) => {
      const [from, to] = [place(source), place(block)];
      if (from === null || to === null) return [];
      const d = `M${x - 1} ${from}C${x - 17} ${from} ${x - 17} ${to} ${x - 3} ${to}m-5.5 -3.5l5.5 3.5l-5.5 3.5`;
      return [s("path", { class: "le-copy", "data-source": source, "data-block": block, d })];
    });
  }

  function drawBlocks() {
    const { plan } = view;
    const tables = tablesAt(at);
    const ghosts = ghostsOf(at);
    const [step, row] = selected();
    const blocksOf = (index, own) => (nodeOf(index, own).ended ? steps[index].written[nodeOf(index, own).parent] || [] : nodeOf(index, own).blocks);
    const own = new Set(blocksOf(step, row));
    const columns = Math.max(1, ...tables.map((table) => table.length), ...Object.keys(ghosts).map((column) => Number(column) + 1));
    plan.start = windowStart(columns - 1, mostColumns, plan.shown);
    const inWindow = Array.from({ length: Math.min(plan.shown, columns - plan.start) }, (_, offset) => plan.start + offset);
    view.blocks.replaceChildren(...inWindow.flatMap((column) => [...blockNodes(column, tables, own), ...ghostNodes(column, ghosts[column] || [])]),
      ...inWindow.flatMap((column) => copyNodes(column, tables, ghosts)));
    const label = (words, y, attributes = {}) => s("text", { class: "le-row", x: 0, y, "dominant-baseline": "central", ...attributes }, words);
    const goOn = steps[at].beams;
    const letters = Math.floor((plan.left - 8) / 7.3);
    view.labels.replaceChildren(
      ...tables.map((_, place) => label(goOn.length ? shorten(goOn[place].token, letters) : `row ${place}`, plan.top + (place + .5) * plan.tall, { "data-current": goOn.length ? step === at && row === place : false, class: goOn.length ? "le-row le-mono" : "le-row" })),
      ...(steps[at].freed.length ? [label("freed", plan.ghostTop + plan.tall / 2)] : []),
      ...inWindow.map((column) => s("text", { class: "le-row", x: plan.left + (column - plan.start) * plan.column + 20 + plan.wide / 2, y: 8, "text-anchor": "middle", "dominant-baseline": "central" }, column)));
    drawCounts();
  }

  function drawCounts() {
    const { num_blocks: held, without_sharing: without, copied, freed } = steps[at];
    const whole = Math.max(1, ...steps.map((step) => step.without_sharing));
    for (const [kind, count] of [["held", held], ["without", without]]) {
      const { number, bar, node } = view.counts[kind];
      number.textContent = grouped(count);
      bar.style.width = `${100 * count / whole}%`;
      set(node, { "data-count": count });
    }
    view.moved.textContent = `${plural(copied.length, "block")} copied, ${freed.length} freed in this step.`;
  }

  function counter(kind, words) {
    const number = h("span", { class: "le-meter-number" });
    const bar = h("span", { class: "le-bar" });
    const node = h("div", { class: "le-meter", "data-kind": kind }, h("p", { class: "le-meter-line" }, h("span", {}, words), number), h("span", { class: "le-track" }, bar));
    return { number, bar, node };
  }

  function buildBlocks(width) {
    const beside = width >= 620;
    view.plan = measureBlocks(beside ? width - 220 - 32 : width);
    const { plan } = view;
    const high = plan.ghostTop + mostGhosts * plan.tall;
    view.blocks = s("g");
    view.labels = s("g");
    view.counts = { held: counter("held", "blocks held"), without: counter("without", "without sharing") };
    view.moved = h("p", { class: "le-small" });
    const words = s("text", { class: "le-row", x: 0, y: 8, "dominant-baseline": "central" }, "block index");
    const image = drawing(plan.left + plan.shown * plan.column, high, words, view.labels, view.blocks);
    const counts = h("div", { class: "le-block-counts" }, view.counts.held.node, view.counts.without.node, view.moved);
    return h("div", { class: `le-beam-blocks${beside ? " le-side" : ""}` }, h("div", {}, h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, "block tables of the beams")), image), counts);
  }

  function build(width) {
    view = { ...measure(width), start: 0 };
    view.edges = s("g");
    view.nodes = s("g");
    view.columns = s("g");
    view.rootMark = s("circle", { class: "le-root", cx: view.root - 14, cy: 0, r: 6 });
    view.earlier = s("text", { class: "le-row", x: 0, y: 9, "dominant-baseline": "central", visibility: "hidden" }, "…");
    view.image = drawing(width, view.top + mostRows * view.tall + 4, view.columns, view.earlier, view.edges, view.rootMark, view.nodes);
    view.picture = h("div", { class: "le-tree", tabindex: 0, role: "application", "aria-label": "Tree of beams: the up and down arrow keys move from one beam to the next, Escape goes back to the best one" }, view.image);
    view.picture.addEventListener("click", pointed);
    view.picture.addEventListener("keydown", walk);
    view.windowName = h("span", { class: "le-small" });
    view.about = h("p", { class: "le-small" });
    view.text = h("p", { class: "le-beam-text" });
    const head = h("div", { class: "le-panel-head" }, h("p", { class: "le-run-name" }, h("span", { class: "le-name" }, "beams, by position"), view.windowName));
    view.looked = h("div", { class: "le-looked", "aria-live": "polite" }, view.about, view.text);
    return h("div", {}, head, view.picture, view.looked);
  }

  function key() {
    const swatch = (state) => s("g", { class: "le-beam", "data-state": state === "best" ? "alive" : state, "data-best": state === "best", "data-looked": state === "looked" },
      state === "best" ? s("path", { class: "le-edge", "data-state": "alive", "data-best": true, d: "M0 7H14" })
        : s("rect", { class: "le-beam-box", x: 1, y: 2.5, width: state === "ended" || state === "closed" ? 9 : 12, height: 9, rx: state === "ended" ? 1 : 4 }),
      ...(state === "ended" ? [s("path", { class: "le-end", d: "M13 2.5v9" })] : []),
      ...(state === "closed" ? [s("path", { class: "le-cut", d: "M11 5l4 4m0 -4l-4 4" })] : []));
    const words = [["alive", "a beam that goes on"], ["best", "the best path"], ["looked", "the chosen path and its blocks"], ["closed", "closed: nothing continues it"]];
    if (steps.some((step) => step.ended.length)) words.push(["ended", "ended, with its final score"]);
    return legend(words, swatch);
  }

  // The longest text decides how tall its place is, so that what is below it does not move.
  function leaveRoom() {
    const [before, found] = textOf(pathOf(...bestOf(steps.length - 1)));
    view.about.textContent = "Position 0, left behind: all that continued it is closed. Score −00.00.";
    view.text.textContent = `${before} ${found}`;
    view.looked.style.minHeight = `${view.looked.offsetHeight + 22}px`;
  }

  function drawAll() {
    drawTree();
    drawWords();
    if (hasBlocks) drawBlocks();
  }

  return {
    layout(stage, width) {
      const parts = [build(width), key(), ...(hasBlocks ? [buildBlocks(width)] : [])];
      stage.append(h("div", { class: "le-beams" }, ...parts));
      leaveRoom();
    },
    draw(step) {
      at = frames.steps[step].forward;
      drawAll();
    },
  };
}

export default { render: frameWidget("beam-tree", beamTree) };
