// What buttons of the theme do, and search where there is no server. A classic script: pages opened as files run no others.
(() => {
  "use strict";

  const ACTIONS = {
    print: () => window.print(),
    "full-screen": () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-press]");
    if (button) ACTIONS[button.dataset.press]?.();
  });

  // Paper is light. Widgets and figures follow the page's theme, so the page takes off its dark one while it is printed.
  const page = document.documentElement;
  let worn = null;
  addEventListener("beforeprint", () => {
    worn ??= page.dataset.theme;
    page.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    if (worn !== null) page.dataset.theme = worn;
    worn = null;
  });

  // Search finds pages from its index alone. What it shows of each it would have to read from that page, which browsers refuse to files.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
})();
