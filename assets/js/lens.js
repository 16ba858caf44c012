/* The shell of the page: the visitor's selection, the URL, colours, keys and the header.

   One global, `SabLens`. `SabLens.state` is the selection; `SabLens.update(change)` changes it, puts it in
   the URL, tells every subscriber here and, validated there, the server. */
(() => {
  "use strict";
  if (window.SabLens) return;

  const FIRST_TAB = "explore"; // what gradio opens by itself
  const listeners = new Set();
  const keys = [];
  const colours = new Map();
  let becomeReady;
  let early = ""; // the tab that was opened before the server had read the URL
  let plotly = null;

  const lens = {
    state: {},
    runs: [],
    model: "",
    arrived: new URLSearchParams(window.location.search), // what the address said before the state was written there
    title: window.gradio_config?.title || "SAB Lens", // of the page; what it shows comes before it
    defaults: {},
    ranges: {},
    whenReady: new Promise((resolve) => { becomeReady = resolve; }),

    /** Keeps the selection as an input of whatever is pressed; set by the component that carries it (signal.js). */
    carry: null,

    /** Call `listener(state, changedNames)` after each change ("runs" and "theme" are names too). */
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },

    /** Change the selection. quiet: not to the URL and the server (while something is dragged);
        push: a step that the back button undoes. A change of `tab` also opens that tab. */
    update(change, { quiet = false, push = false } = {}) {
      const changed = Object.keys(change).filter((name) => lens.state[name] !== change[name]);
      lens.state = { ...lens.state, ...change };
      if (!quiet) { writeUrl(push); stateChanged(); }
      if (changed.length) tell(changed);
    },

    run() { return lens.runs.find((run) => run.id === lens.state.run) || null; },

    /** Refit the layer that is shown, with the thresholds that are set and the method of the run; Binarize shows it. */
    rerunLayer() {
      lens.rerunWanted = true;
      lens.update({ tab: "binarize" }, { push: true });
      tell(["rerun"]);
    },

    /** The link that restores everything. */
    link() {
      const url = new URL(window.location.href);
      const entries = [];
      for (const [name, value] of Object.entries(lens.state)) {
        // Without a kind in the link the server chooses the best one there is, so it is always named.
        if ((value === lens.defaults[name] && name !== "kind") || value === "") continue;
        entries.push([name, typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value)]);
      }
      const theme = url.searchParams.get("__theme");
      if (theme) entries.push(["__theme", theme]);
      url.search = new URLSearchParams(entries).toString();
      url.hash = "";
      return url.toString();
    },

    /** A colour of the current mode, e.g. colour("vision"); read once, for reading styles makes the page lay itself out. */
    colour(name) {
      const key = `${lens.dark} ${name}`;
      if (!colours.has(key)) colours.set(key, getComputedStyle(document.body).getPropertyValue(`--sab-${name}`).trim());
      return colours.get(key);
    },

    /** Whether the page is being laid out for paper. */
    printing: false,

    get dark() { return document.body.classList.contains("dark"); },

    /** plotly.js, loaded when first asked for. */
    plotly() {
      plotly = plotly || new Promise((resolve, reject) => {
        // With a <base> in the page plotly writes gradients and clips as url(<address when drawn>#id), and they
        // are lost when the address changes, which it does here all the time. "./" says nothing anyway.
        document.querySelector('base[href="./"]')?.remove();
        const tag = document.createElement("script");
        tag.src = document.querySelector('meta[name="sab-plotly"]').content;
        tag.onload = () => resolve(window.Plotly);
        tag.onerror = () => { plotly = null; reject(new Error("The chart library did not load: reload the page.")); };
        document.head.appendChild(tag);
      });
      return plotly;
    },

    /** plotly's options for every chart of the page. */
    plotlyOptions: { displaylogo: false, showSendToCloud: false, responsive: true, displayModeBar: false },

    /** Listen to a key while no field has the focus: key(["["], "previous layer", handler, tab). */
    key(names, label, handler, tab = "") { keys.push({ names, label, handler, tab }); },

    /** One short sentence at the bottom of the page. */
    toast(sentence) {
      const box = document.createElement("div");
      box.className = "sab-toast";
      box.setAttribute("role", "status");
      box.textContent = sentence;
      document.body.appendChild(box);
      setTimeout(() => box.remove(), 4000);
    },

    /** A question for Chat from another page or an example, until Chat takes it: {text, picture: data URL or null, sample:
        number of a sample picture instead, right: run of the right side}. Sent as the event "sab:ask"; with `right` it
        is asked at once, else it waits in the box. */
    asked: null,

    /** What lies on Chat's canvas: {kind: "sample" | "own" | "none", index of the sample}; null before it has changed. */
    canvas: null,

    /** Put a text into a box as if it had been typed there. */
    write(box, text) {
      Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(box, text);
      box.dispatchEvent(new Event("input", { bubbles: true }));
    },

    /** Give the visitor a file made here. */
    save(content, name, type) {
      const blob = content instanceof Blob ? content : new Blob([content], { type });
      const anchor = document.createElement("a");
      anchor.href = URL.createObjectURL(blob);
      anchor.download = name;
      anchor.click();
      setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
    },

    /** Make an element: make("p", {class: "note"}, "text", child). */
    make(tag, attributes = {}, ...children) {
      const element = document.createElement(tag);
      for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (value === true) element.setAttribute(name, "");
        else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
      }
      element.append(...children.filter((child) => child !== null && child !== undefined));
      return element;
    },

    /** Sizes and counts as people read them. */
    bytes(count) {
      if (!(count > 0)) return "–";
      const units = ["B", "KB", "MB", "GB", "TB"];
      const power = Math.min(Math.floor(Math.log10(count) / 3), units.length - 1);
      const value = count / 1000 ** power;
      return `${value.toFixed(power && value < 100 ? 1 : 0)} ${units[power]}`;
    },

    /** Called by the tabs when a person switches. */
    tabShown(name) {
      if (lens.state.tab === undefined) early = name;
      else if (lens.state.tab !== name) {
        lens.state = { ...lens.state, tab: name };
        writeUrl(true);
        stateChanged();
        tell(["tab"]);
      }
      requestAnimationFrame(() => window.dispatchEvent(new Event("resize")));
    },

    /** Show the dialog that leads to other models; set where there is one. */
    chooseModel: null,

    mountHeader,
  };
  document.addEventListener("sab:ask", (event) => { lens.asked = event.detail; }, { capture: true });
  window.SabLens = lens;

  function tell(changed) {
    for (const listener of [...listeners]) listener(lens.state, changed);
  }

  function writeUrl(push) {
    const link = lens.link();
    if (link !== window.location.href) history[push ? "pushState" : "replaceState"]({ ...lens.state }, "", link);
  }

  function stateChanged() {
    if (lens.carry) lens.carry({ ...lens.state });
    showTab();
  }

  /** Open the tab of the selection where another one is shown. A tab that has no room in the bar lies in its menu. */
  function showTab() {
    const tab = lens.state.tab;
    if (document.getElementById(`sab-tab-${tab}`)?.offsetParent) return;
    const inMenu = [...document.querySelectorAll("#sab-tabs .overflow-dropdown button")];
    const button = document.querySelector(`#sab-tabs [data-tab-id="${tab}"]`)
      ?? inMenu.find((each) => each.textContent.trim().toLowerCase() === tab);
    button?.click();
  }

  window.addEventListener("popstate", (event) => {
    if (!event.state) return;
    const before = lens.state;
    lens.state = { ...event.state };
    const changed = Object.keys(lens.state).filter((name) => lens.state[name] !== before[name]);
    stateChanged();
    tell(changed);
  });

  window.addEventListener("keydown", (event) => {
    const target = event.composedPath()[0];
    const typing = target instanceof HTMLElement
      && (target.isContentEditable || /^(TEXTAREA|SELECT)$/.test(target.tagName)
        || (target.tagName === "INPUT" && !/^(range|checkbox|radio|button)$/.test(target.type)));
    if (typing || event.altKey || event.defaultPrevented) return;
    const pressed = (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + event.key;
    if (target instanceof HTMLInputElement && event.key.startsWith("Arrow")) return;
    if (document.querySelector("dialog[open]")) return;
    const match = keys.find(({ names, tab }) => names.includes(pressed) && (!tab || tab === lens.state.tab));
    if (match && match.handler(event) !== false) event.preventDefault();
  });

  /* ---- header ---- */

  const MARK = `<svg viewBox="0 0 32 32" width="30" height="30" aria-hidden="true">
    <g class="m-l"><rect x="2" y="2" width="8" height="8" rx="1.5"/><rect x="2" y="12" width="8" height="8" rx="1.5"/></g>
    <g class="m-v"><rect x="22" y="12" width="8" height="8" rx="1.5"/><rect x="22" y="22" width="8" height="8" rx="1.5"/></g>
    <g class="m-c"><rect x="12" y="12" width="8" height="8" rx="1.5"/></g>
    <g class="m-n"><rect x="12" y="2" width="8" height="8" rx="1.5"/><rect x="22" y="2" width="8" height="8" rx="1.5"/>
      <rect x="2" y="22" width="8" height="8" rx="1.5"/><rect x="12" y="22" width="8" height="8" rx="1.5"/></g></svg>`;
  const ICON = {
    link: '<path d="M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7l-1 1M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7l1-1"/>',
    mode: '<circle cx="12" cy="12" r="8"/><path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor"/>',
    help: '<circle cx="12" cy="12" r="9"/><path d="M9.5 9.5a2.5 2.5 0 1 1 3.6 2.2c-.7.4-1.1.9-1.1 1.8M12 17v.1"/>',
    close: '<path d="M6 6l12 12M18 6L6 18"/>',
  };
  lens.icon = (name) => `<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor"
    stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">${ICON[name]}</svg>`;

  function iconButton(name, label, handler) {
    const button = lens.make("button", { type: "button", class: "sab-icon", title: label, "aria-label": label, onclick: handler });
    button.innerHTML = lens.icon(name);
    return button;
  }

  function mountHeader({ element, props, watch }) {
    const make = lens.make;
    const root = element.querySelector(".sab-header");
    const mark = make("span", { class: "sab-mark" });
    mark.innerHTML = MARK;
    const model = make("button", { type: "button", class: "sab-model", title: "Open another model (m)",
      "aria-haspopup": "dialog", onclick: () => { if (lens.chooseModel) lens.chooseModel(); } });
    const choose = make("select", { id: "sab-run", "aria-label": "Run", onchange: () => lens.update({ run: choose.value }, { push: true }) });
    const facts = make("dl", { class: "sab-facts" });
    const link = make("input", { id: "sab-link", readonly: true, "aria-label": "Link to this view", onfocus: () => link.select() });
    const message = make("div", { class: "sab-message", role: "status", hidden: true });
    root.replaceChildren(
      make("div", { class: "sab-brand" }, mark, make("div", {}, make("h1", {}, "SAB Lens"), model)),
      make("label", { class: "sab-run" }, make("span", {}, "Run"), choose),
      facts,
      make("div", { class: "sab-tools" },
        make("div", { class: "sab-link" }, link, iconButton("link", "Copy the link to this view", copyLink)),
        iconButton("mode", "Light or dark", toggleMode),
        iconButton("help", "Keys (?)", showHelp)),
      message,
    );

    async function copyLink() {
      const text = lens.link();
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        link.value = text;
        link.focus();
        link.select();
        document.execCommand("copy");
      }
      lens.toast("Link copied: it restores model, run, layer, thresholds and tab.");
    }

    function drawFacts() {
      const run = lens.run();
      link.value = lens.link();
      if (!run) {
        facts.replaceChildren();
        return;
      }
      const fact = (term, value, title) => make("div", { title }, make("dt", {}, term), make("dd", {}, value));
      const bits = (value) => (Number.isFinite(value) ? value.toFixed(2) : "–");
      facts.replaceChildren(
        fact("Method", run.method, "How the weights were binarized"),
        fact("Nominal", `${bits(run.bits_nominal)} bit`, "What papers print: 1 + share of weights that get a second bit"),
        fact("All-in", `${bits(run.bits_all_in)} bit`, "Every stored bit of the binarized layers per weight: signs, bitmaps, scales, indices"),
        fact("On disk", lens.bytes(run.bytes), "Size of the packed layers"),
      );
    }

    function draw() {
      const value = props.value;
      if (!value || !value.selection) return;
      const selection = value.change && lens.state.tab !== undefined ? { ...lens.state, ...value.change } : value.selection;
      const changed = Object.keys(selection).filter((name) => selection[name] !== lens.state[name]);
      lens.runs = value.runs;
      lens.model = value.model;
      lens.defaults = value.defaults;
      lens.ranges = value.ranges;
      const first = lens.state.tab === undefined; // then the server has just read the URL itself
      lens.state = { ...selection };
      if (first && early && early !== FIRST_TAB) lens.state.tab = early;
      model.textContent = lens.model;
      choose.replaceChildren(...lens.runs.map((run) => make("option", { value: run.id }, run.name + (run.finished ? "" : " (unfinished)"))));
      if (!lens.runs.length) choose.replaceChildren(make("option", { value: "" }, "no run yet"));
      choose.value = lens.state.run;
      message.hidden = !value.message;
      message.replaceChildren(value.message || "", iconButton("close", "Dismiss", () => { message.hidden = true; }));
      drawFacts();
      if (first) {
        history.replaceState({ ...lens.state }, "", lens.link()); // what the back button returns to
        showTab();
      } else { writeUrl(false); if (changed.length) stateChanged(); }
      becomeReady();
      tell([...changed, "runs"]);
    }

    lens.subscribe((state, changed) => {
      choose.value = state.run;
      link.value = lens.link();
      if (changed.includes("run")) drawFacts();
    });
    choose.replaceChildren(make("option", {}, "…"));
    watch("value", draw);
    draw();
  }

  function toggleMode() {
    document.body.classList.toggle("dark");
    try { localStorage.setItem("sab-mode", lens.dark ? "dark" : "light"); } catch { /* private window */ }
    tell(["theme"]);
  }

  function restoreMode() {
    let mode = null;
    try { mode = localStorage.getItem("sab-mode"); } catch { /* private window */ }
    const forced = new URLSearchParams(window.location.search).get("__theme");
    if (!forced && mode) document.body.classList.toggle("dark", mode === "dark");
  }
  restoreMode();
  // gradio follows the system's mode on its own after loading; charts have to hear of it.
  new MutationObserver(() => tell(["theme"])).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  // Paper is white: what is printed is the light page. Figures hear of the same events after this and draw to its width.
  let wasDark = false;
  window.addEventListener("beforeprint", () => {
    lens.printing = true;
    wasDark = lens.dark;
    document.body.classList.remove("dark");
  });
  window.addEventListener("afterprint", () => {
    lens.printing = false;
    document.body.classList.toggle("dark", wasDark);
  });

  function showHelp() {
    const make = lens.make;
    const rows = keys.map(({ names, label }) =>
      make("div", {}, make("dt", {}, ...names.map((name) => make("kbd", {}, KEY_NAMES[name] || name))), make("dd", {}, label)));
    const dialog = make("dialog", { class: "sab-help", "aria-label": "Keys" },
      make("h2", {}, "Keys"),
      make("dl", {}, ...rows),
      make("p", {}, "On the maps: wheel or pinch zooms, drag moves, double-click shows single weights, and again the whole layer."),
      make("form", { method: "dialog" }, make("button", { class: "sab-button" }, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.appendChild(dialog);
    dialog.showModal();
  }
  const KEY_NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", "Ctrl+z": "Ctrl Z", "Ctrl+Z": "Ctrl ⇧ Z" };
  lens.key(["?"], "this list", showHelp);
})();
