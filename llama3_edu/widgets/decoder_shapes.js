// The decoder's stages in order; the one the step stands at, with its sentence, the shape of its result and a corner of the numbers.

const GROUPS = { in: "In", attention: "Layer 1: attention", "feed-forward": "Layer 1: feed-forward", out: "Out", next: "Next" };

function decoderShapes(frames, { go }) {
  const { tokens, token_ids: ids, steps, next } = frames;
  let stages = [];
  let detail = null;
  let room = 0;

  function stageList() {
    stages = steps.map((stage, index) => {
      const node = h("button", { type: "button", class: "le-stage-button", "data-index": index }, h("span", { class: "le-stage-mark", "aria-hidden": "true" }), h("span", {}, stage.name));
      node.addEventListener("click", () => go(index));
      return node;
    });
    const groups = [...new Set(steps.map(({ group }) => group))];
    return h("div", { class: "le-stages", role: "group", "aria-label": "Stages" }, ...groups.map((group) =>
      h("div", { class: "le-stage-group", "data-group": group }, h("p", { class: "le-small" }, GROUPS[group] || group),
        ...stages.filter((_, index) => steps[index].group === group))));
  }

  function shape(stage) {
    const parts = stage.axes.flatMap((axis, index) => [
      ...(index ? [h("span", { class: "le-times", "aria-hidden": "true" }, "×")] : []),
      h("span", { class: "le-axis" }, h("span", { class: "le-axis-size" }, grouped(stage.shape[index])), h("span", { class: "le-axis-name" }, axis)),
    ]);
    return h("div", { class: "le-shape" }, ...parts);
  }

  // Positive numbers are filled squares, negative ones carry a bar; the stronger the colour, the larger the number.
  function numbers({ rows }) {
    const groups = rows[0].length;
    const columns = rows[0][0].length;
    const names = rows.length === tokens.length;
    const left = names ? 64 : 0;
    const gap = 8;
    const cell = Math.max(2, Math.min(18, (room - left - gap * (groups - 1)) / (groups * columns)));
    const tall = Math.max(12, Math.min(18, cell));
    const cells = rows.flatMap((row, line) => row.flatMap((group, block) => group.map((value, column) => {
      const x = left + block * (columns * cell + gap) + column * cell;
      const size = { x: x + .5, y: line * tall + .5, width: cell - 1, height: tall - 1 };
      const node = s("g", { class: "le-number", "data-value": value }, s("rect", { ...size, "fill-opacity": (.06 + .94 * Math.abs(value) / 100).toFixed(3) }));
      if (value < 0) node.append(s("line", { x1: x + cell * .25, x2: x + cell * .75, y1: line * tall + tall / 2, y2: line * tall + tall / 2 }));
      return node;
    })));
    const labels = names ? tokens.map((token, line) => s("text", { class: "le-token", x: left - 8, y: line * tall + tall / 2, "text-anchor": "end", "dominant-baseline": "central" }, shorten(token, 8))) : [];
    return drawing(left + groups * columns * cell + gap * (groups - 1), rows.length * tall, ...labels, ...cells);
  }

  function tokenCards() {
    return h("div", { class: "le-cards" }, ...tokens.map((token, index) =>
      h("span", { class: "le-card" }, h("code", {}, token), h("span", { class: "le-small" }, String(ids[index])))));
  }

  function likeliest() {
    const most = Math.max(...next.map(({ percent }) => percent));
    return h("div", { class: "le-likeliest" }, ...next.flatMap(({ text, percent }) => [
      h("code", {}, text), h("span", { class: "le-track" }, Object.assign(h("span", { class: "le-bar" }), { style: `width: ${100 * percent / most}%` })), h("span", { class: "le-small" }, `${percent.toFixed(1)} %`),
    ]));
  }

  function caption(stage) {
    if (!stage.preview) return `${tokens.length} tokens and their ids`;
    if (stage.group === "next") return "The likeliest next tokens";
    const rows = stage.preview.rows;
    const groups = rows[0].length;
    const of = stage.axes.includes("n_heads") || stage.axes.includes("n_kv_heads") ? `${groups} ${groups === 1 ? "head" : "heads"}, ` : "";
    return `${of}${rows[0][0].length} of ${grouped(stage.shape[stage.shape.length - 1])} numbers per row; the strongest colour is ${stage.preview.largest}; a bar marks what is below zero`;
  }

  function fill(stage) {
    const picture = stage.group === "next" ? likeliest() : stage.preview ? numbers(stage.preview) : tokenCards();
    const took = stage.parameters ? `${grouped(stage.parameters)} parameters` : "no parameters of its own";
    detail.replaceChildren(
      h("div", { class: "le-stage-head" }, h("p", { class: "le-stage-name" }, stage.name), h("p", { class: "le-small" }, h("code", {}, stage.module), ` · ${took}`)),
      h("p", { class: "le-does" }, stage.does), shape(stage), h("div", { class: "le-picture" }, picture), h("p", { class: "le-small" }, caption(stage)));
  }

  return {
    layout(stage, width) {
      const side = width >= 560;
      room = side ? width - 190 - 32 : width;
      detail = h("div", { class: "le-detail", style: `min-height: ${side ? 400 : 300 + 18 * Math.min(tokens.length, 12)}px` });
      stage.append(h("div", { class: `le-decoder${side ? " le-side" : ""}` }, stageList(), detail));
    },
    draw(step) {
      fill(steps[step]);
      set(detail, { "data-shape": steps[step].shape.join(",") });
      stages.forEach((node, index) => set(node, { "aria-current": index === step ? "step" : null, "data-done": index < step }));
    },
  };
}

export default { render: frameWidget("decoder-shapes", decoderShapes) };
