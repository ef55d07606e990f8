// Requests in rows, an engine's steps in columns; under them how full each step's batch was and what it computed. Several runs one above the other.

function schedulerTimeline(frames) {
  const { runs, steps } = frames;
  const longest = Math.max(...runs.map((run) => run.steps.length));
  const works = (state) => state === "prefill" || state === "recompute" || state === "decode";
  const batchOf = (own) => own.states.filter(works).length;
  const tokensOf = (own) => own.num_tokens.reduce((sum, count) => sum + count, 0);
  const batches = runs.map((run) => run.steps.map(batchOf));
  const places = Math.max(1, ...batches.flat());
  const mostTokens = Math.max(1, ...runs.flatMap((run) => run.steps.map(tokensOf)));
  const most = Math.max(...runs.map((run) => run.requests.length));
  let at = 0; // the engine's step
  let pinned = null; // the request that was chosen
  let pointedAt = null; // the request under the pointer
  let views = [];
  let lookedAt = null;
  let roomForLife = ""; // how tall the longest life is
  let narrow = false;

  const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
  const last = (run) => Math.min(at, run.steps.length - 1);

  // -- A request's life in words --

  const ENDS = { stop: "it came to a stop", length: "all it asked for", cancelled: "cancelled", refused: "refused: it could never fit", failed: "an error" };

  function happenings(run, index) {
    const told = [];
    let waited = 0;
    run.steps.slice(0, last(run) + 1).forEach((own, step) => {
      const place = `step ${own.step + 1}`;
      if (run.requests[index].arrived === step) told.push(`arrives for ${place}`);
      for (const [, lost] of own.preempted.filter(([who]) => who === index)) {
        told.push(`gives way in ${place}, ${plural(lost, "token")} lost`);
      }
      for (const [, found] of own.admitted.filter(([who]) => who === index)) {
        const after = waited ? ` after ${plural(waited, "step")} of waiting` : "";
        told.push(`joins ${place}${after}${found ? `, ${plural(found, "token")} found in the prefix cache` : ""}`);
        waited = 0;
      }
      for (const [, parent] of own.forked.filter(([who]) => who === index)) told.push(`parts from request ${parent} in ${place}`);
      if (own.finished.includes(index)) {
        const { reason, new_tokens: tokens } = run.requests[index];
        told.push(`ends in ${place} with ${plural(tokens, "new token")} (${ENDS[reason] || reason})`);
      }
      if (own.states[index] === "waiting" || own.states[index] === "preempted") waited += 1;
    });
    return told;
  }

  const NOW = {
    waiting: "It waits.", preempted: "It waits to be let in again.", running: "It has blocks and no turn in this step.",
    attached: "It will part from another one once their common tokens are computed.",
  };

  function life(run, index) {
    const request = run.requests[index];
    const whose = request.parent === null ? "" : ` of request ${request.parent}`;
    const who = `Request ${index}, ${request.parent === null ? "" : "a fork, "}prompt${whose} of ${plural(request.prompt_len, "token")}`;
    const told = happenings(run, index);
    if (!told.length) return `${who}: not there yet.`;
    const own = run.steps[last(run)];
    const state = own.states[index];
    const now = works(state) && !own.finished.includes(index)
      ? `Now: ${state === "recompute" ? "computing again" : state}, ${plural(own.num_tokens[index], "token")}.` : NOW[state] || "";
    return `${who}: ${told.join("; ")}. ${now}`.trim();
  }

  function look() {
    const index = pointedAt === null ? pinned : pointedAt;
    const lines = index === null
      ? ["Point at a request, choose one above, or focus a picture and use the up and down arrow keys."]
      : runs.filter((run) => run.requests[index]).map((run) => (run.name ? h("span", {}, h("b", {}, `${run.name}:`), ` ${life(run, index)}`) : life(run, index)));
    lookedAt.style.minHeight = narrow && pinned === null ? "" : roomForLife; // on a phone nothing is pointed at, so no room is kept for it
    lookedAt.replaceChildren(...lines.flatMap((line, place) => (place ? [h("br"), line] : [line])));
    for (const view of views) {
      const here = index !== null && index < view.run.requests.length;
      set(view.row, { visibility: here ? null : "hidden", y: view.top + (here ? index : 0) * view.tall });
      for (const name of view.names) set(name, { "data-current": Number(name.dataset.request) === index });
    }
  }

  // The longest life decides how tall its place is, so that what is below it does not move.
  function leaveRoom() {
    at = longest - 1;
    const lives = Array.from({ length: most }, (_, index) => runs.filter((run) => run.requests[index]).map((run) => h("span", {}, `${run.name}: ${life(run, index)}`, h("br"))));
    const length = (spans) => spans.reduce((sum, span) => sum + span.textContent.length, 0);
    lookedAt.replaceChildren(...lives.reduce((best, one) => (length(one) > length(best) ? one : best)));
    roomForLife = `${lookedAt.offsetHeight}px`;
  }

  const names = Array.from({ length: most }, (_, index) => `${index}`);
  const picker = dropdown("Request", ["none", ...names], (index) => {
    pinned = index ? index - 1 : null;
    look();
  });

  function pin(index) {
    pinned = index;
    picker.querySelector("select").value = index + 1;
    look();
  }

  function requestAt(view, event) {
    const row = Math.floor((event.clientY - view.image.getBoundingClientRect().top - view.top) / view.tall);
    return row >= 0 && row < view.run.requests.length ? row : null;
  }

  function walk(event, view) {
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    pin(pinned === null ? 0 : Math.max(0, Math.min(view.run.requests.length - 1, pinned + move)));
    event.preventDefault();
    event.stopPropagation();
  }

  // -- The picture --

  function measure(width) {
    const left = 50;
    const least = width < 480 ? 6 : 5;
    const cell = Math.max(least, Math.min(26, Math.floor((width - left - 2) / longest)));
    const shown = Math.min(longest, Math.floor((width - left - 2) / cell));
    const tall = most <= 8 ? 24 : most <= 16 ? 18 : most <= 32 ? 12 : 8;
    return { left, cell, shown, tall, top: 22 };
  }

  // A number every so often, so that they do not touch.
  const every = (room, needed) => [1, 2, 5, 10, 20, 50, 100, 200, 500].find((count) => count * room >= needed) || 1000;

  // What a request does in one step, or in several alike: each state has a shape of its own.
  function mark(state, x, y, wide, tall) {
    const middle = y + tall / 2;
    const gap = wide > 8 ? 1 : 0;
    const inset = tall > 10 ? 2 : 1;
    const box = (high) => s("rect", { class: "le-turn", "data-state": state, x: x + gap, y: middle - high / 2, width: Math.max(1, wide - 2 * gap), height: high });
    if (state === "prefill" || state === "recompute") return box(tall - 2 * inset);
    if (state === "decode") return box(Math.max(3, Math.round(tall * .4)));
    if (state === "running") return s("rect", { class: "le-turn", "data-state": state, x: x + 1.5, y: middle - tall * .2, width: Math.max(1, wide - 3), height: tall * .4 });
    return s("line", { class: "le-turn", "data-state": state, x1: x + 1, x2: x + wide - 1, y1: middle, y2: middle });
  }

  // Steps in which a request does the same, as [first, end, state]; chunks of a prompt stay apart.
  function spans(run, index, from, to, apart) {
    const found = [];
    for (let step = from; step < to; step += 1) {
      const state = run.steps[step].states[index];
      const before = found[found.length - 1];
      const chunk = state === "prefill" || state === "recompute";
      if (before && before[2] === state && before[1] === step && !(works(state) && (chunk || apart))) before[1] = step + 1;
      else if (state !== "absent" && state !== "finished") found.push([step, step + 1, state]);
    }
    return found;
  }

  function spanNode(view, run, index, [first, end, state]) {
    const { left, top, cell, tall, start } = view;
    const [x, y, wide] = [left + (first - start) * cell, top + index * tall, (end - first) * cell];
    const node = s("g", { class: "le-span", "data-request": index, "data-from": first, "data-to": end, "data-state": state }, mark(state, x, y, wide, tall));
    const count = String(run.steps[first].num_tokens[index]);
    if ((state === "prefill" || state === "recompute") && tall >= 18 && cell >= 7.2 * count.length + 4) {
      node.append(s("text", { class: "le-turn-count", x: x + wide / 2, y: y + tall / 2 + .5, "text-anchor": "middle", "dominant-baseline": "central" }, count));
    }
    return node;
  }

  const cross = (x, y, size) => `M${x - size} ${y - size}L${x + size} ${y + size}M${x - size} ${y + size}L${x + size} ${y - size}`;
  const diamond = (x, y, size) => `M${x} ${y - size}L${x + size} ${y}L${x} ${y + size}L${x - size} ${y}Z`;

  function marker(kind, index, step, d) {
    return s("path", { class: "le-moment", "data-kind": kind, "data-request": index, "data-step": step, d });
  }

  // What happens to a request at one moment: found in the prefix cache, parted, preempted, ended.
  function moments(view, run, step) {
    const { left, top, cell, tall, start } = view;
    const own = run.steps[step];
    const x = left + (step - start) * cell;
    const middle = (index) => top + (index + .5) * tall;
    const size = Math.max(2.2, Math.min(4.5, tall / 4));
    const ends = (index) => {
      const edge = own.states[index] === "finished" ? x + 1.5 : x + cell - 1.5;
      const calm = ["stop", "length"].includes(run.requests[index].reason);
      return calm ? `M${edge} ${middle(index) - tall / 2 + 1.5}v${tall - 3}` : cross(edge, middle(index), size * .8);
    };
    return [
      ...own.forked.map(([index, parent]) => marker("forked", index, step, `M${x + cell / 2} ${middle(parent)}V${middle(index)}`)),
      ...own.preempted.map(([index]) => marker("preempted", index, step, cross(x + Math.max(size, Math.min(cell / 2, 7)), middle(index), size))),
      ...own.admitted.filter(([, found]) => found).map(([index]) => marker("found", index, step, diamond(cell > 8 ? x - size : x + 1, middle(index), size + .8))),
      ...own.finished.map((index) => marker("finished", index, step, ends(index))),
    ];
  }

  function bar(view, kind, step, base, high, amount) {
    const { left, cell, start } = view;
    const gap = cell > 8 ? 1 : 0;
    return s("rect", { class: "le-total", "data-kind": kind, "data-step": step, "data-amount": amount, x: left + (step - start) * cell + gap, y: base - high, width: cell - 2 * gap, height: high });
  }

  function totals(view, run, index, step) {
    const own = run.steps[step];
    const tall = (amount) => (amount ? Math.max(1.5, amount / mostTokens * view.tokensTall) : 0);
    const nodes = [bar(view, "batch", step, view.batchBase, batches[index][step] / places * view.batchTall, batches[index][step])];
    let base = view.tokensBase;
    for (const [kind, amount] of [["decoded", own.decoded_tokens], ["prompt", own.prompt_tokens], ["again", own.recomputed_tokens]]) {
      if (!amount) continue;
      nodes.push(bar(view, kind, step, base, tall(amount), amount));
      base -= tall(amount);
    }
    return nodes;
  }

  // Everything of the steps in the window; a clip decides how much of it has happened.
  function drawWindow(view, index) {
    const { run, start, shown, cell, left, top } = view;
    const end = Math.min(start + shown, run.steps.length);
    const inWindow = Array.from({ length: Math.max(0, end - start) }, (_, offset) => start + offset);
    view.past.replaceChildren(
      ...run.requests.flatMap((_, request) => spans(run, request, start, end, cell > 8).map((span) => spanNode(view, run, request, span))),
      ...inWindow.flatMap((step) => totals(view, run, index, step)),
      ...inWindow.flatMap((step) => moments(view, run, step)));
    const stride = every(cell, 30);
    view.numbers = inWindow.filter((step) => (step + 1) % stride === 0 || (step === 0 && stride === 5)).map((step) =>
      s("text", { class: "le-row", "data-step": step, x: left + (step - start + .5) * cell, y: top - 12, "text-anchor": "middle", "dominant-baseline": "central" }, step + 1));
    view.axis.replaceChildren(...view.numbers);
    view.windowName.textContent = shown < longest ? `steps ${start + 1} to ${start + shown} of ${longest}` : "";
  }

  function build(run, index, width) {
    const view = { run, start: null, ...measure(width) };
    const { left, top, tall, shown, cell } = view;
    const rows = run.requests.length;
    const bottom = top + rows * tall;
    const right = left + shown * cell;
    Object.assign(view, { batchTall: 22, tokensTall: 40, batchBase: bottom + 34, tokensBase: bottom + 86 });
    const clip = uniqueId("past");
    const { definitions, style } = fills();
    view.clip = s("rect", { x: left - 6, y: 0, height: view.tokensBase + 2 });
    view.past = s("g", { "clip-path": `url(#${clip})` });
    view.axis = s("g");
    view.row = s("rect", { class: "le-marker", x: 0, width: right, height: tall, visibility: "hidden" });
    view.column = s("rect", { class: "le-now", y: top - 3, width: cell, height: view.tokensBase - top + 3 });
    view.now = s("text", { class: "le-row", "data-current": true, y: top - 12, "text-anchor": "middle", "dominant-baseline": "central" });
    const named = every(tall, 15);
    view.names = run.requests.map((_, request) => request).filter((request) => request % named === 0).map((request) =>
      s("text", { class: "le-row", "data-request": request, x: left - 12, y: top + (request + .5) * tall, "text-anchor": "end", "dominant-baseline": "central" }, request));
    const words = (text, y) => s("text", { class: "le-row", x: 0, y, "dominant-baseline": "central" }, text);
    const rule = (y) => s("line", { class: "le-base", x1: left, x2: right, y1: y, y2: y });
    view.image = drawing(width, view.tokensBase + 4, definitions, s("defs", {}, s("clipPath", { id: clip }, view.clip)),
      view.row, view.column, ...view.names, words("step", top - 12), words("batch", view.batchBase - 9), words("tokens", view.tokensBase - 9),
      rule(view.batchBase), s("line", { class: "le-full", x1: left, x2: right, y1: view.batchBase - view.batchTall, y2: view.batchBase - view.batchTall }), rule(view.tokensBase),
      view.axis, view.past, view.now);
    view.picture = h("div", { class: "le-schedule", tabindex: 0, role: "application", style, "aria-label": `${run.name || "Requests"}: the up and down arrow keys move from one request to the next` }, view.image);
    view.picture.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") { pointedAt = requestAt(view, event); look(); } });
    view.picture.addEventListener("pointerleave", () => { pointedAt = null; look(); });
    view.picture.addEventListener("click", (event) => { const row = requestAt(view, event); if (row !== null) pin(row); });
    view.picture.addEventListener("keydown", (event) => walk(event, view));
    view.big = h("span", { class: "le-big" });
    view.small = h("span", { class: "le-small" });
    view.windowName = h("span", { class: "le-small le-window" });
    view.formula = h("p", { class: "le-formula" });
    const head = h("div", { class: "le-panel-head" }, h("p", { class: "le-run-name" }, h("span", { class: "le-name" }, run.name || "requests"), view.windowName),
      h("p", { class: "le-reading" }, view.big, view.small));
    view.panel = h("div", { class: "le-panel", "data-run": index }, head, view.picture, view.formula);
    return view;
  }

  function drawRun(view, index) {
    const { run, left, cell, shown } = view;
    const start = windowStart(at, longest, shown);
    if (start !== view.start) {
      view.start = start;
      drawWindow(view, index);
    }
    const through = last(run);
    const over = at >= run.steps.length;
    const x = left + (at - start) * cell;
    set(view.clip, { width: 6 + Math.max(0, through + 1 - start) * cell });
    set(view.past, { "data-through": through });
    set(view.column, { x, visibility: over ? "hidden" : null });
    set(view.now, { x: Math.max(x + cell / 2, left + 4), visibility: over ? "hidden" : null });
    view.now.textContent = over ? "" : run.steps[at].step + 1;
    for (const number of view.numbers) set(number, { visibility: !over && Math.abs(Number(number.dataset.step) - at) * cell < 26 ? "hidden" : null });
    drawReading(view, index, through, over);
  }

  function drawReading(view, index, through, over) {
    const { run } = view;
    const own = run.steps[through];
    const taken = batches[index].slice(0, through + 1).reduce((sum, count) => sum + count, 0);
    const offered = (through + 1) * places;
    const ended = run.requests.filter((_, request) => own.states[request] === "finished" || own.finished.includes(request)).length;
    view.big.textContent = `${Math.floor(100 * taken / offered)} %`;
    view.small.textContent = `of the batches' places taken so far, ${grouped(taken)} of ${grouped(offered)}; ${ended} of ${plural(run.requests.length, "request")} ended`;
    set(view.panel, { "data-taken": taken, "data-offered": offered, "data-ended": ended });
    view.formula.textContent = over ? `Over after ${plural(run.steps.length, "step")}.`
      : `Step ${own.step + 1}: ${batches[index][through]} of ${plural(places, "place")}, ${plural(tokensOf(own), "token")}: ${own.prompt_tokens} of prompts, ${own.decoded_tokens} decoded, ${own.recomputed_tokens} computed again.`;
  }

  // -- The legend --

  function key() {
    const seen = new Set(runs.flatMap((run) => run.steps.flatMap((own) => own.states)));
    const happens = (what) => runs.some((run) => run.steps.some((own) => own[what].length));
    const found = runs.some((run) => run.steps.some((own) => own.admitted.some(([, tokens]) => tokens)));
    const { definitions, style } = fills();
    const words = [
      ["prefill", "prefill: tokens of a prompt"], ["decode", "decode: one token"], ["recompute", "computed again"], ["running", "has blocks, no turn"],
      ["waiting", "waits"], ["preempted", "gave way, waits again"], ["attached", "will part from another"],
    ].filter(([state]) => seen.has(state));
    const glyphs = {
      found: () => marker("found", "", "", diamond(7, 7, 5)), finished: () => marker("finished", "", "", "M7 1.5v11"),
      forked: () => marker("forked", "", "", "M7 0V14"), preempted: () => marker("preempted", "", "", cross(7, 7, 4)),
    };
    if (happens("preempted")) words.push(["gave", "gives its blocks back"]);
    if (found) words.push(["found", "found in the prefix cache"]);
    if (happens("forked")) words.push(["forked", "parts from another"]);
    if (happens("finished")) words.push(["finished", "ends"]);
    const list = legend(words, (state) => (state === "gave" ? glyphs.preempted() : glyphs[state] && state !== "preempted" ? glyphs[state]() : mark(state, 0, -1, 14, 16)));
    list.prepend(set(drawing(0, 0, definitions), { class: "le-fills" }));
    return set(list, { style });
  }

  return {
    options: [picker],
    layout(stage, width) {
      narrow = width < 480;
      lookedAt = h("p", { class: "le-looked", "aria-live": "polite" });
      views = runs.map((run, index) => build(run, index, width));
      stage.append(h("div", { class: "le-panels" }, ...views.map((view) => view.panel)), lookedAt, key());
      leaveRoom();
    },
    draw(step) {
      at = steps[step].step;
      views.forEach(drawRun);
      look();
    },
  };
}

export default { render: frameWidget("scheduler-timeline", schedulerTimeline) };
