// Query heads in a row, the KV heads they read below them, a band for each group and a line for each query head; beside it what the cache keeps.

function headGroups(frames, { go }) {
  const { steps, model, own, bits, n_heads: heads, n_layers: layers, head_dim: width } = frames;
  const most = Math.max(...steps.map((step) => step.bytes_per_token));
  let at = 0;
  let looked = null; // the query head that is looked at
  let view = null;
  let rows = [];
  let aside = null;

  const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
  const shareOf = (bytes) => most % bytes === 0 && bytes < most ? `1/${most / bytes} of MHA` : `${(100 * bytes / most).toFixed(bytes === most ? 0 : 1)} % of MHA`;

  // The query heads that read one KV head.
  function members(kv) {
    return steps[at].groups.flatMap((read, query) => (read === kv ? [query] : []));
  }

  function describe(query) {
    const kv = steps[at].groups[query];
    const group = members(kv);
    if (group.length === 1) return `Query head ${query} reads KV head ${kv}, and no other does.`;
    if (group.length === 2) return `Query head ${query} reads KV head ${kv}, and so does ${group[group[0] === query ? 1 : 0]}.`;
    const [first, last] = [group[0], group[group.length - 1]];
    const unbroken = last - first + 1 === group.length;
    return `Query head ${query} reads KV head ${kv}, and so do all of ${unbroken ? `${first} to ${last}` : group.join(", ")}.`;
  }

  function look(query) {
    looked = query;
    view.lookedAt.textContent = query === null ? "Point at a head, or focus the picture and use the arrow keys." : describe(query);
    const kv = query === null ? null : steps[at].groups[query];
    for (const node of view.picture.querySelectorAll("[data-kv]")) set(node, { "data-looked": Number(node.dataset.kv) === kv });
    set(view.picture, { "data-looking": query !== null });
    for (const node of view.queries) set(node, { "data-looked": Number(node.dataset.query) === query });
  }

  function pointed(event) {
    const node = event.target.closest("[data-query], [data-kv]");
    if (!node) return;
    look("query" in node.dataset ? Number(node.dataset.query) : members(Number(node.dataset.kv))[0]);
  }

  function walk(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    look(looked === null ? 0 : Math.max(0, Math.min(heads - 1, looked + move)));
    event.preventDefault();
    event.stopPropagation();
  }

  function measure(room, beside) {
    const cell = Math.min(46, room / heads);
    return {
      cell, left: (room - heads * cell) / 2, box: Math.max(2, cell - Math.min(4, cell * .22)), top: 20, size: Math.max(14, Math.min(24, cell)),
      fall: Math.max(130, Math.min(230, beside ? 70 + 27 * steps.length : room * .36)),
    };
  }

  const across = (query) => view.left + (query + .5) * view.cell;

  // Names of heads where there is room for them: of every one, or of every second, fourth, …
  function named(count, room) {
    const needed = [11, 17, 24][String(count - 1).length - 1] || 30;
    let every = 1;
    while (every * room < needed && every < count) every *= 2;
    return (index) => index % every === 0;
  }

  function queryNode(query, shown) {
    const { cell, box, top, size } = view;
    const middle = across(query);
    const node = s("g", { class: "le-query-head", "data-query": query },
      s("rect", { class: "le-reach", x: middle - cell / 2, y: 0, width: cell, height: top + size }),
      s("rect", { class: "le-head-box", x: middle - box / 2, y: top, width: box, height: size, rx: Math.min(4, box / 3) }));
    if (shown(query)) node.append(s("text", { class: "le-row", x: middle, y: top - 9, "text-anchor": "middle", "dominant-baseline": "central" }, query));
    return node;
  }

  // A KV head: a key over a value, as in the picture of the cache; as wide as a query head, and never too narrow to be seen.
  function kvNode(kv, middle, box, shown) {
    const { size, foot } = view;
    const x = middle - box / 2;
    const node = s("g", { class: "le-kv-head", "data-kv": kv },
      s("rect", { class: "le-reach", x: x - 3, y: foot, width: box + 6, height: 2 * size + 20 }),
      s("rect", { class: "le-kv-k", x, y: foot, width: box, height: size }),
      s("rect", { class: "le-kv-v", x, y: foot + size, width: box, height: size }));
    if (shown) node.append(s("text", { class: "le-row", x: middle, y: foot + 2 * size + 11, "text-anchor": "middle", "dominant-baseline": "central" }, kv));
    return node;
  }

  const bend = (x0, y0, x1, y1) => `C${x0} ${(y0 + y1) / 2} ${x1} ${(y0 + y1) / 2} ${x1} ${y1}`;

  function groupNodes(kv) {
    const { cell, box, top, size, foot } = view;
    const group = members(kv);
    const middle = (across(group[0]) + across(group[group.length - 1])) / 2;
    const foundation = Math.max(box, Math.min(10, group.length * cell - 2));
    const roof = top + size + 3;
    const floor = foot - 3;
    const [left, right] = [across(group[0]) - box / 2, across(group[group.length - 1]) + box / 2];
    const [low, high] = [middle - foundation / 2, middle + foundation / 2];
    const band = s("path", { class: "le-band", "data-kv": kv, d: `M${left} ${roof}${bend(left, roof, low, floor)}H${high}${bend(high, floor, right, roof)}Z` });
    const lines = group.map((query, index) => {
      const end = group.length === 1 ? middle : low + foundation * (index + .5) / group.length;
      return s("path", { class: "le-reads", "data-query": query, "data-kv": kv, "stroke-width": cell < 7 ? .6 : 1.2, d: `M${across(query)} ${roof}${bend(across(query), roof, end, floor)}` });
    });
    return { bands: [band, ...lines], head: kvNode(kv, middle, foundation, named(heads / group.length, group.length * cell)(kv)) };
  }

  function drawGroups(step) {
    const groups = Array.from({ length: steps[step].n_kv_heads }, (_, kv) => groupNodes(kv));
    view.lines.replaceChildren(...groups.flatMap(({ bands }) => bands));
    view.kvs.replaceChildren(...groups.map(({ head }) => head));
    view.queryName.textContent = plural(heads, "query head");
    view.kvName.textContent = plural(steps[step].n_kv_heads, "KV head");
    look(looked);
  }

  function build(room, beside) {
    view = measure(room, beside);
    view.foot = view.top + view.size + view.fall;
    view.lines = s("g");
    view.kvs = s("g");
    view.queries = Array.from({ length: heads }, (_, query) => queryNode(query, named(heads, view.cell)));
    const image = drawing(room, view.foot + 2 * view.size + 20, view.lines, ...view.queries, view.kvs);
    view.queryName = h("span", { class: "le-q-name" });
    view.kvName = h("span", { class: "le-kv-name" });
    view.lookedAt = h("p", { class: "le-looked", "aria-live": "polite" });
    view.picture = h("div", { class: "le-heads", tabindex: 0, role: "application", "aria-label": "Query heads: the left and right arrow keys move from one to the next" }, image);
    view.picture.addEventListener("pointermove", pointed);
    view.picture.addEventListener("pointerdown", pointed);
    view.picture.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") look(null); });
    view.picture.addEventListener("keydown", walk);
    return h("div", { class: "le-heads-picture" }, h("div", { class: "le-panel-head" }, h("p", { class: "le-name" }, view.queryName)), view.picture, h("p", { class: "le-head-name" }, view.kvName, h("span", { class: "le-small" }, " each a key over a value")), view.lookedAt);
  }

  function ladder() {
    rows = steps.map((step, index) => {
      const bar = Object.assign(h("span", { class: "le-bar" }), { style: `width: ${100 * step.bytes_per_token / most}%` });
      const row = h("button", { type: "button", class: "le-rung", "data-index": index, "data-own": step.n_kv_heads === own },
        h("span", { class: "le-rung-count" }, String(step.n_kv_heads)), h("span", { class: "le-track", "aria-hidden": "true" }, bar),
        h("span", { class: "le-rung-bytes" }, formatBytes(step.bytes_per_token)));
      row.addEventListener("click", () => go(index));
      return row;
    });
    return h("div", { class: "le-ladder", role: "group", "aria-label": "Bytes per token by number of KV heads" },
      h("p", { class: "le-rung le-small", "aria-hidden": "true" }, h("span", { class: "le-rung-count" }, "KV"), h("span", {}, "cache per token"), h("span", {})), ...rows);
  }

  function reading() {
    aside = {
      kind: h("p", { class: "le-name" }), big: h("span", { class: "le-big" }), share: h("span", { class: "le-small" }),
      exact: h("p", { class: "le-formula le-factors" }), rep: h("p", { class: "le-formula" }),
    };
    const mark = h("p", { class: "le-small le-own" }, h("span", { class: "le-own-mark", "aria-hidden": "true" }), `${model}: ${own} of ${heads}`);
    return h("div", { class: "le-heads-aside" },
      h("div", { class: "le-panel-head" }, aside.kind, h("p", { class: "le-reading" }, aside.big, aside.share)),
      aside.exact, aside.rep, ladder(), mark);
  }

  function drawReading(step) {
    const { kind, n_kv_heads: kvHeads, n_rep: rep, bytes_per_token: bytes } = steps[step];
    const words = { MHA: "MHA: a KV head for each", GQA: "GQA: groups share a KV head", MQA: "MQA: one KV head for all" };
    aside.kind.textContent = words[kind] || kind;
    aside.big.textContent = formatBytes(bytes);
    aside.share.textContent = bytes === most ? "per token" : `per token, ${shareOf(bytes)}`;
    aside.exact.replaceChildren(h("span", {}, `2 · ${plural(layers, "layer")} · ${plural(kvHeads, "KV head")} ·`), " ", h("span", {}, `${width} · ${bits} / 8 = ${grouped(bytes)} bytes`));
    aside.rep.replaceChildren(h("code", {}, "n_rep"), ` = ${heads} / ${kvHeads} = ${rep}`);
    rows.forEach((row, index) => set(row, { "aria-current": index === step ? "step" : null }));
  }

  return {
    layout(stage, room) {
      const beside = room >= 600;
      const picture = build(beside ? room - 250 - 36 : room, beside);
      stage.append(h("div", { class: `le-head-groups${beside ? " le-side" : ""}` }, picture, reading()));
    },
    draw(step) {
      at = step;
      drawGroups(step);
      drawReading(step);
    },
  };
}

export default { render: frameWidget("head-groups", headGroups) };
