// Brings the widgets of a static page to life, with no kernel and no network.
//
// The page holds every widget's state as JSON (myst-nb writes it there). Where a widget belongs, there is either its text summary,
// `.llama3-edu-words`, which carries the widget's `page_key`, or a view script that carries its model's id. For each of them this script
// makes a small model out of the state, imports the widget's own script from a Blob and lets it render. If that fails the text stays.
//
// What the reader sees is drawn first, then what is nearest to it, one widget after another, with room between them for clicks and keys.
// Until a widget is drawn its words stand in its place. Printing waits for none: what is left is drawn at once.
//
// A classic script on purpose: browsers do not run module scripts from file://, but they import Blobs there.
(() => {
  "use strict";
  const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
  const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';
  const modules = new Map();
  const models = new Map();
  const styles = new Set();

  // What anywidget's render() is given: get and set, and word of changes.
  function modelOf(state) {
    const values = { ...state };
    const listeners = new Map();
    const tell = (name, ...news) => [...(listeners.get(name) || [])].forEach((listener) => listener(...news));
    const model = {
      get: (key) => values[key],
      set(key, value) {
        if (Object.is(values[key], value)) return;
        values[key] = value;
        tell(`change:${key}`, model, value);
        tell("change", model);
      },
      on: (name, listener) => { listeners.set(name, (listeners.get(name) || new Set()).add(listener)); },
      off(name, listener) {
        if (listener) listeners.get(name)?.delete(listener);
        else listeners.delete(name);
      },
      save_changes() {},
      send() {},
    };
    return model;
  }

  // A widget that stands in the page twice has one model: both follow each other.
  function sharedModel(state) {
    if (!models.has(state)) models.set(state, modelOf(state));
    return models.get(state);
  }

  // The same text is imported once, however many widgets on the page share it.
  function moduleOf(text) {
    if (!modules.has(text)) {
      const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      modules.set(text, import(address).finally(() => URL.revokeObjectURL(address)));
    }
    return modules.get(text);
  }

  function addStyle(text) {
    if (!text || styles.has(text)) return;
    styles.add(text);
    const style = document.createElement("style");
    style.textContent = text;
    document.head.append(style);
  }

  function inWords(state) {
    const words = document.createElement("div");
    words.className = "llama3-edu-words";
    const step = state.frames?.steps?.[state.step || 0];
    words.textContent = step ? step.summary : "This widget has no summary.";
    return words;
  }

  async function mount(place, state) {
    const el = document.createElement("div");
    el.className = "llama3-edu-mount";
    place.before(el);
    try {
      const loaded = await moduleOf(state._esm);
      addStyle(state._css);
      const widget = typeof loaded.default === "function" ? await loaded.default() : loaded.default;
      await (widget ?? loaded).render({ model: sharedModel(state), el });
      if (place.matches(".llama3-edu-words")) place.remove();
    } catch (error) {
      el.remove();
      if (!place.matches(".llama3-edu-words")) place.before(inWords(state));
      console.error("A widget could not be drawn; its summary stands in for it.", error);
    }
  }

  // Pairs of a place in the page and the state that belongs there.
  function placesWithStates() {
    const states = new Map();
    for (const script of document.querySelectorAll(STATE)) {
      const page = JSON.parse(script.textContent);
      // What widgets share is written once: in place of a text there may be a list, whose numbers stand for the page's texts.
      const whole = (text) => (Array.isArray(text) ? text.map((part) => page.texts?.[part] ?? part).join("") : text);
      for (const [id, model] of Object.entries(page.state)) {
        if (!model.state?._esm) continue;
        Object.assign(model.state, { _esm: whole(model.state._esm), _css: whole(model.state._css) });
        states.set(id, model.state);
        states.set(model.state.page_key, model.state);
      }
    }
    const words = [...document.querySelectorAll(".llama3-edu-words[data-page-key]")].map((place) => [place, states.get(place.dataset.pageKey)]);
    const views = [...document.querySelectorAll(VIEW)].map((place) => [place, states.get(JSON.parse(place.textContent).model_id)]);
    return [...words, ...views].filter(([, state]) => state);
  }

  // How far a place is from what is on the screen, in pixels; 0 for what can be seen.
  function distance(place) {
    const { top, bottom } = place.getBoundingClientRect();
    return Math.max(0, top - innerHeight, -bottom);
  }

  function takeNearest(waiting) {
    const distances = waiting.map(([place]) => distance(place));
    return waiting.splice(distances.indexOf(Math.min(...distances)), 1)[0];
  }

  const breath = () => new Promise((resolve) => {
    if (window.requestIdleCallback) requestIdleCallback(resolve, { timeout: 200 });
    else setTimeout(resolve, 20);
  });

  async function start() {
    const waiting = placesWithStates();
    addEventListener("beforeprint", () => { while (waiting.length) mount(...waiting.shift()); });
    while (waiting.length) {
      if (waiting.every(([place]) => distance(place) > 0)) await breath();
      if (waiting.length) await mount(...takeNearest(waiting));
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
