/* The shell of the page: the visitor's selection, the URL, colours, and the header.

   One global, `SabLens`. `SabLens.state` is the selection; `SabLens.update(change)` changes it, puts it in
   the URL, tells every subscriber and (validated there) the server. */
(() => {
  "use strict";
  if (window.SabLens) return;

  const listeners = new Set();
  let send = null;
  let sendTimer = 0;
  let ready;

  const lens = {
    state: {},
    runs: [],
    model: "",
    defaults: {},
    ranges: {},
    whenReady: new Promise((resolve) => { ready = resolve; }),

    /** Call `listener(state, changedKeys)` after each change; returns how to stop. */
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },

    /** Change the selection. `quiet` keeps it from the server while something is dragged;
        `push` makes a step that the back button undoes. */
    update(change, { quiet = false, push = false } = {}) {
      const changed = Object.keys(change).filter((key) => lens.state[key] !== change[key]);
      if (!changed.length) { if (!quiet) tellServer(); return; }
      lens.state = { ...lens.state, ...change };
      if (!quiet) { writeUrl(push); tellServer(); }
      for (const listener of [...listeners]) listener(lens.state, changed);
    },

    run() { return lens.runs.find((run) => run.id === lens.state.run) || null; },

    /** The link that restores everything. */
    link() {
      const url = new URL(window.location.href);
      url.search = query().toString();
      url.hash = "";
      return url.toString();
    },

    colour(name) {
      return getComputedStyle(document.body).getPropertyValue(`--sab-${name}`).trim();
    },

    get dark() { return document.body.classList.contains("dark"); },

    /** Called by the tabs when a person switches. */
    tabShown(name) {
      if (lens.state.tab !== undefined && lens.state.tab !== name) lens.update({ tab: name }, { push: true });
      window.dispatchEvent(new Event("resize"));
    },

    mountHeader,
  };
  window.SabLens = lens;

  function query() {
    const entries = [];
    for (const [key, value] of Object.entries(lens.state)) {
      if (value !== lens.defaults[key] && value !== "") entries.push([key, String(value)]);
    }
    return new URLSearchParams(entries);
  }

  function writeUrl(push) {
    const link = lens.link();
    if (link === window.location.href) return;
    history[push ? "pushState" : "replaceState"](null, "", link);
  }

  function tellServer() {
    clearTimeout(sendTimer);
    sendTimer = setTimeout(() => send && send(lens.state), 60);
  }

  function mountHeader({ element, props, watch, send: sender }) {
    send = sender;
    const root = element.querySelector(".sab-header");
    const draw = () => {
      const value = props.value;
      if (!value) return;
      lens.runs = value.runs;
      lens.model = value.model;
      lens.defaults = value.defaults;
      lens.ranges = value.ranges;
      const changed = Object.keys(value.selection).filter((key) => value.selection[key] !== lens.state[key]);
      lens.state = { ...value.selection };
      root.textContent = `SAB Lens — ${lens.model}`;
      ready();
      for (const listener of [...listeners]) listener(lens.state, [...changed, "runs"]);
    };
    watch("value", draw);
    draw();
  }
})();
