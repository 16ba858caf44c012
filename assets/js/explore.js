/* The Explore tab: grid of the model, linked maps of one layer, thresholds, density.

   The server's functions (viz/pages/explore.py) are asked through `ask`; what a dragged threshold does is
   computed here (`Bins`, `Heatmaps`), and once the finger lets go the server's exact numbers replace it. */
(() => {
  "use strict";
  if (window.SabLens.mountExplore) return;
  const lens = window.SabLens;
  const { make } = lens;
  const { Heatmaps, VIEWS, ratioOf, decodeBase64 } = window.SabHeatmaps;
  const Bins = window.SabBins, Marginals = window.SabMarginals, History = window.SabHistory;
  const { Density } = window.SabDensities;
  const { CLASSES, COLOURS, PRESETS, capital, percent, number, unimodalOf } = window.SabText;

  const THRESHOLDS = {
    salient_top_p: {
      label: "Salient share", about: "A weight is salient if S̄ of either modality is among its largest",
      toPlace: (value, [low, high]) => Math.log(value / low) / Math.log(high / low),
      toValue: (place, [low, high]) => low * (high / low) ** place,
      text: (value) => `top ${Number((100 * value).toPrecision(2))} %`,
    },
    diff_quantile: {
      label: "Difference", about: "Unimodal weights differ between the modalities at least as much as this share of the salient ones",
      toPlace: (value, [low, high]) => (value - low) / (high - low),
      toValue: (place, [low, high]) => low + place * (high - low),
      text: (value) => `above ${Math.round(100 * value)} % of salient`,
    },
    sparsity_thr: {
      label: "Sparsity ρ", about: "Unimodal weights have a larger ρ than this",
      toPlace: (value, [low, high]) => ((value - low) / (high - low)) ** (1 / 3),
      toValue: (place, [low, high]) => low + place ** 3 * (high - low),
      text: (value) => `ρ > ${Number(value.toPrecision(2))} · ${Number(ratioOf(value).toPrecision(3))} ×`,
    },
  };
  const FIRST_VIEWS = ["language", "vision", "cross", "partition", "sparsity", "weighting"];
  const FRAMES = 600; // of which times are kept

  lens.mountExplore = ({ element, server }) => lens.whenReady.then(() => new Explore(element, server));

  class Explore {
    constructor(element, server) {
      this.server = server;
      this.root = element.querySelector(".sab-explore");
      this.layerNumber = 0;
      this.details = new Map();
      this.frameTimes = []; // milliseconds of script in each frame of a drag
      this.build();
      lens.explore = this; // the browser tests and `sab bench ui` read times here
      lens.subscribe((state, changed) => this.changed(changed));
      lens.key(["["], "previous layer", () => this.step(-1), "explore");
      lens.key(["]"], "next layer", () => this.step(1), "explore");
      lens.key(["ArrowLeft", "ArrowRight"], "same layer, other block", (event) => this.stepBlock(event.key === "ArrowLeft" ? -1 : 1), "explore");
      lens.key(["Escape"], "let the kept weight go", () => { this.maps.pin(null); this.maps.hover(null); lens.update({ pinned: "" }); }, "explore");
      lens.key(["Ctrl+z"], "undo", () => this.undo(-1), "explore");
      lens.key(["Ctrl+Z", "Ctrl+y"], "redo", () => this.undo(1), "explore");
      this.history.record(lens.state);
      this.showOverview();
      this.openLayer({});
    }

    /* ---- skeleton ---- */

    build() {
      this.quantity = make("select", { class: "sab-field", "aria-label": "Colour the grid by", onchange: () => lens.update({ colour: this.quantity.value }) });
      this.quantityNote = make("p", { class: "sab-note" }, "\u00a0");
      this.grid = make("div", { class: "sab-plot sab-grid sab-loading" });
      this.depth = make("div", { class: "sab-plot sab-depth sab-loading" });
      this.problem = make("div", { hidden: true });
      const gridCard = make("section", { class: "sab-card" },
        make("header", {}, make("h2", {}, "Every layer"), make("label", { class: "sab-inline" }, "coloured by", this.quantity), this.exporter("grid", "layers")),
        this.grid, this.quantityNote);
      const depthCard = make("section", { class: "sab-card" },
        make("header", {}, make("h2", {}, "Along the depth"), this.exporter("depth", "depth")),
        this.depth,
        this.depthNote = make("p", { class: "sab-note" }, "\u00a0"));

      this.title = make("h2", { class: "sab-layer-title" }, "\u00a0");
      this.facts = make("p", { class: "sab-note" }, "\u00a0");
      this.kind = this.segment({ input: "Input side", fisher: "Fisher" }, "kind", {
        input: "W² times the sensitivity of the layer's output to each input column",
        fisher: "W² times the mean squared gradient of the answers' loss, per weight",
      });
      this.pooling = this.segment({ max: "Strongest", mean: "Mean" }, "pooling", {
        max: "A pooled cell shows its most significant weight", mean: "A pooled cell shows the mean of its weights",
      });
      this.notice = make("div", { class: "sab-layer-notice", hidden: true });
      const head = make("header", { class: "sab-layer-head" },
        make("div", { class: "sab-layer-name" },
          make("button", { type: "button", class: "sab-icon", "aria-label": "Previous layer", title: "Previous layer ( [ )", onclick: () => this.step(-1) }, "‹"),
          make("div", {}, this.title, this.facts),
          make("button", { type: "button", class: "sab-icon", "aria-label": "Next layer", title: "Next layer ( ] )", onclick: () => this.step(1) }, "›")),
        make("div", { class: "sab-layer-options" },
          make("span", { class: "sab-inline" }, "Sensitivity", this.kind),
          make("span", { class: "sab-inline" }, "Pooled cells", this.pooling)));

      this.sliders = {};
      const sliders = Object.entries(THRESHOLDS).map(([name, threshold]) => {
        const input = make("input", { type: "range", min: "0", max: "1", step: "0.001", id: `sab-${name}`, "aria-label": threshold.label });
        const output = make("output", { for: `sab-${name}` });
        input.addEventListener("input", () => this.drag(name, threshold.toValue(Number(input.value), lens.ranges[name])));
        input.addEventListener("change", () => this.letGo());
        this.sliders[name] = { input, output };
        return make("div", { class: "sab-slider", title: threshold.about },
          make("div", {}, make("label", { for: `sab-${name}` }, threshold.label), output), input);
      });
      this.presets = make("div", { class: "sab-segment", role: "group", "aria-label": "Presets" },
        ...Object.entries(PRESETS).map(([name, values]) =>
          make("button", { type: "button", "data-preset": name, onclick: () => this.choose(values) }, name)));
      this.classRows = CLASSES.map((name, code) => {
        const count = make("td", { class: "sab-number" }), share = make("td", { class: "sab-number" });
        return { row: make("tr", {}, make("th", { scope: "row" }, make("i", { class: "sab-swatch", style: `background: var(--sab-${COLOURS[code]})` }), name), count, share), count, share };
      });
      this.bar = make("div", { class: "sab-bar", "aria-hidden": "true" }, ...[1, 2, 3].map((code) => make("i", { style: `background: var(--sab-${COLOURS[code]})` })));
      this.ratioText = make("p", { class: "sab-note" });
      this.exactness = make("span", { class: "sab-exactness" });
      this.undoButton = make("button", { type: "button", class: "sab-icon", "aria-label": "Undo", title: "Undo (Ctrl Z)", disabled: true, onclick: () => this.undo(-1) }, "↶");
      this.redoButton = make("button", { type: "button", class: "sab-icon", "aria-label": "Redo", title: "Redo (Ctrl ⇧ Z)", disabled: true, onclick: () => this.undo(1) }, "↷");
      this.history = new History(() => { this.undoButton.disabled = !this.history.can(-1); this.redoButton.disabled = !this.history.can(1); });
      const side = make("aside", { class: "sab-side" },
        make("div", { class: "sab-side-block" },
          make("header", {}, make("h3", {}, "Thresholds"), make("span", { class: "sab-undo" }, this.undoButton, this.redoButton,
            make("button", { type: "button", class: "sab-text-button", title: "Back to the thresholds of this run", onclick: () => this.choose(this.recipe || PRESETS.Paper) }, "Reset"))),
          ...sliders, this.presets,
          make("button", { type: "button", class: "sab-button", title: "Fit this layer again with these thresholds, and compare", onclick: () => lens.rerunLayer() }, "Rerun this layer")),
        make("div", { class: "sab-side-block" },
          make("header", {}, make("h3", {}, "Weights by class"), this.exactness),
          this.bar,
          make("table", { class: "sab-classes" }, make("tbody", {}, ...this.classRows.map(({ row }) => row))),
          this.ratioText,
          this.chance = make("p", { class: "sab-note sab-chance" })),
        make("div", { class: "sab-side-block" },
          make("h3", {}, "How to read this"),
          this.meaning = make("p", { class: "sab-note" }),
          this.legendText = make("p", { class: "sab-note" })));

      this.maps = null;
      this.mapHost = make("div", { class: "sab-maps" });
      this.chips = make("div", { class: "sab-chips", role: "group", "aria-label": "Maps shown" });
      this.poolNote = make("span", { class: "sab-note sab-pool" });
      const tools = make("div", { class: "sab-map-tools" }, this.chips,
        make("div", { class: "sab-map-buttons" },
          this.poolNote,
          make("button", { type: "button", class: "sab-icon", "aria-label": "Zoom in", title: "Zoom in (+)", onclick: () => this.maps.zoom(0.5) }, "+"),
          make("button", { type: "button", class: "sab-icon", "aria-label": "Zoom out", title: "Zoom out (−)", onclick: () => this.maps.zoom(2) }, "−"),
          make("button", { type: "button", class: "sab-icon sab-fit", "aria-label": "Whole layer", title: "Whole layer (0)", onclick: () => this.maps.reset() }, "⤢"),
          this.exporter("maps", "maps")));
      this.layerProblem = make("div", { hidden: true });

      this.marginals = new Marginals({
        hover: (axis, index) => this.maps.markLine({ axis, index }),
        open: (axis, from, to) => this.openLines(axis, from, to),
      });
      const stripCard = make("section", { class: "sab-strip-card" },
        make("header", {}, make("h3", {}, "Rows and columns"),
          make("span", { class: "sab-note" }, "Lines: mean S̄ of both modalities. Bars: salient weights by class. Click to show a place in the maps."), this.exporter("lines", "lines")),
        this.marginals.root);

      const cuts = { drag: (name, value) => this.drag(name, value), release: () => this.letGo(), bins: () => this.bins, thresholds: () => lens.state };
      const densityHost = make("div", { class: "sab-density-host" }), nullHost = make("div", { class: "sab-density-host" });
      this.density = new Density({ host: densityHost, ...cuts });
      this.nullDensity = new Density({ host: nullHost, ...cuts });
      this.nullPanel = make("div", { class: "sab-null-panel" });
      this.nullText = make("div", { class: "sab-null-text" });
      const line = (colour, label) => make("span", {}, make("i", { class: "sab-line", style: `background: var(--sab-${colour})` }), label);
      const densityCard = make("section", { class: "sab-card sab-densities" },
        make("header", {}, make("h2", {}, "Is it more than chance?"), this.exporter("density", "density")),
        this.nullText,
        make("div", { class: "sab-density-pair" },
          make("figure", {}, make("figcaption", {}, "Language against vision"), densityHost),
          make("figure", {}, make("figcaption", {}, "The null: one half of a modality against its other half"), nullHost, this.nullPanel)),
        make("p", { class: "sab-note sab-line-key" }, "Drag a line: ", line("language", "salient for language from here"), line("vision", "salient for vision"), line("cross", "ρ threshold"), line("muted", "difference")));
      this.weightCard = make("section", { class: "sab-card sab-weight" },
        make("header", {}, make("h2", {}, "One weight")),
        this.weightLead = make("p", { class: "sab-note" }, "\u00a0"),
        this.weightBody = make("div", {}),
        make("h3", {}, "Where these numbers come from"),
        this.source = make("p", { class: "sab-note" }));

      this.layerBody = make("div", { class: "sab-layer-stack" },
        make("section", { class: "sab-card sab-layer", id: "sab-layer" }, head, this.notice, this.layerProblem,
          make("div", { class: "sab-layer-body" }, side, make("div", { class: "sab-layer-main" }, tools, this.mapHost, stripCard))),
        make("div", { class: "sab-bottom" }, densityCard, this.weightCard));
      this.body = make("div", { class: "sab-explore-body" }, make("div", { class: "sab-top" }, gridCard, depthCard), this.layerBody);
      this.root.replaceChildren(this.problem, this.body);

      this.tip = make("div", { class: "sab-tip", hidden: true });
      document.body.appendChild(this.tip);
      document.addEventListener("pointerdown", (event) => { if (!this.mapHost.contains(event.target)) this.tip.hidden = true; });
      document.addEventListener("scroll", () => { this.tip.hidden = true; }, { passive: true });
      this.maps = new Heatmaps({
        host: this.mapHost,
        fetchTile: async (rectangle, fields) => {
          const tile = await this.ask("tile", { rectangle, fields });
          if (tile.error) { this.failLayer(tile.error); return null; }
          return tile;
        },
        onHover: (cell, point) => { this.hover(cell, point); this.marginals.mark(point && cell && cell.pooling !== "mean" ? cell : null); },
        onView: (view, tile) => this.viewed(view, tile),
        onPin: (cell) => lens.update({ pinned: pinnedText(cell) }),
      });
      this.views = viewsOf(lens.state);
      this.drawChips();
      this.maps.show(this.views);
      this.drawSliders();
    }

    segment(choices, name, titles) {
      const buttons = Object.entries(choices).map(([value, label]) =>
        make("button", { type: "button", "data-value": value, title: titles[value], onclick: () => this.pick(name, value) }, label));
      const group = make("span", { class: "sab-segment", role: "group", "aria-label": name }, ...buttons);
      group.draw = () => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.value === lens.state[name])));
      group.draw();
      return group;
    }

    /* ---- the server ---- */

    async ask(name, extra = {}) {
      const { run, linear, kind, pooling, colour, salient_top_p, diff_quantile, sparsity_thr } = lens.state;
      try {
        const request = { run, linear, kind, pooling, colour, salient_top_p, diff_quantile, sparsity_thr, dark: lens.dark, ...extra };
        return (await this.server[name](request)) || { error: "The server sent nothing: try again." };
      } catch {
        return { error: "The server does not answer. Is it still running?" };
      }
    }

    /* ---- what changed ---- */

    changed(names) {
      const any = (...wanted) => wanted.some((name) => names.includes(name));
      this.kind.draw();
      this.pooling.draw();
      if (any("theme") && this.dark !== lens.dark) { this.dark = lens.dark; this.maps.recolour(); this.showOverview(); this.openLayer({ keepMaps: true }); return; }
      if (any("linear") && !any("window", "pinned") && (lens.state.window || lens.state.pinned)) { // they belong to the layer before
        lens.update({ window: "", pinned: "" }, { quiet: !this.history.steps.length });
      }
      if (!this.dragging) this.history.record(lens.state);
      if (any("run", "colour") || (any("runs") && !this.linears)) this.showOverview();
      else if (any("kind", ...Object.keys(THRESHOLDS)) && !this.dragging) this.showProfile();
      if (any("views")) this.showViews();
      if (any("run", "linear", "kind")) { this.details.clear(); this.openLayer({}); }
      else if (any("pooling")) this.maps.reload();
      else if (any(...Object.keys(THRESHOLDS)) && !this.dragging) { this.drawSliders(); this.preview(); this.settle(); }
      if (any("window") && !any("linear") && lens.state.window !== this.windowText()) this.restoreWindow();
      if (any("pinned") && !any("linear") && lens.state.pinned !== pinnedText(this.maps.pinned)) this.restorePin();
      if (any("linear") && this.grid.data) this.markCell();
    }

    /** A step back (-1) or forth (1) in what was chosen. */
    undo(by) {
      const step = this.history.step(by);
      if (step) lens.update(step);
      else lens.toast(by < 0 ? "Nothing to undo." : "Nothing to redo.");
    }

    async showOverview() {
      this.dark = lens.dark;
      const wanted = (this.overviewAsked = {});
      if (!lens.run()) {
        this.body.hidden = true;
        this.problem.hidden = false;
        this.problem.replaceChildren(make("div", { class: "sab-empty" },
          make("h2", {}, "No run to show yet"),
          make("p", { class: "sab-note" }, "Binarize the model first; its layers then appear here."),
          make("button", { type: "button", class: "sab-button primary", onclick: () => lens.update({ tab: "binarize" }, { push: true }) }, "Go to Binarize")));
        const { error } = await this.ask("model");
        if (error && wanted === this.overviewAsked) this.problem.replaceChildren(this.failure(error, () => this.showOverview()));
        return;
      }
      this.body.hidden = false;
      this.problem.hidden = true;
      const [answer, Plotly] = await Promise.all([this.ask("overview"), lens.plotly().catch((error) => error)]);
      if (wanted !== this.overviewAsked) return;
      const error = answer.error || (Plotly instanceof Error && Plotly.message);
      if (error) {
        this.problem.hidden = false;
        this.problem.replaceChildren(this.failure(error, () => this.showOverview()));
        return;
      }
      this.linears = answer.linears;
      this.recipe = Object.fromEntries(Object.keys(THRESHOLDS).map((name) => [name, answer.recipe[name]]));
      if (!this.quantity.options.length) {
        this.quantity.replaceChildren(...Object.entries(answer.quantities).map(([name, { label }]) => make("option", { value: name }, label)));
      }
      this.quantity.value = lens.state.colour;
      const { recipe } = answer;
      this.quantities = answer.quantities;
      this.drawNotes(`as the run saw them: ${recipe.sensitivity === "fisher" ? "Fisher" : "input-side"} sensitivity, top ${Number((100 * recipe.salient_top_p).toPrecision(2))}\u00a0%`);
      this.drawTitle();
      this.grid.classList.remove("sab-loading");
      this.depth.classList.remove("sab-loading");
      await this.drawOverview(Plotly, answer);
      if (!this.listening) {
        this.listening = true;
        this.grid.on("plotly_click", (event) => {
          const name = event.points[0].customdata;
          if (!name) return;
          this.goTo(name);
          document.getElementById("sab-layer").scrollIntoView({ behavior: "smooth", block: "start" });
        });
      }
    }

    async drawOverview(Plotly, { grid, depth }) {
      this.gridData = grid;
      this.depthData = depth;
      await Promise.all([
        Plotly.react(this.grid, grid.data, { ...grid.layout, shapes: this.cellShapes(grid) }, lens.plotlyOptions),
        Plotly.react(this.depth, depth.data, depth.layout, lens.plotlyOptions),
      ]);
      if (wantedOf(this) !== this.profiled) this.showProfile();
    }

    /** The same under the thresholds and the sensitivity chosen here, where the server can say it soon. */
    async showProfile() {
      if (!this.linears) return;
      const wanted = (this.profiled = wantedOf(this));
      const answer = await this.ask("profile");
      if (wanted !== this.profiled || answer.error || !answer.grid || !window.Plotly || !lens.run()) return;
      await this.drawOverview(window.Plotly, answer);
      if (wanted === this.profiled) this.drawNotes(`under the thresholds below, ${lens.state.kind === "fisher" ? "Fisher" : "input-side"} sensitivity`);
    }

    drawNotes(cuts) {
      const classes = ["vision", "language", "cross", "ratio"].includes(lens.state.colour);
      this.quantityNote.textContent = `${capital(this.quantities[lens.state.colour].reading)}${classes ? `, ${cuts}` : ""}. Click a cell to open its layer below.`;
      this.depthNote.textContent = `Classes of the salient weights of each block, ${cuts}; r is the share of all significance that unimodal weights carry, ρ how far a weight leans to one modality on average.`;
    }

    cellShapes(grid) {
      const names = grid.data[0].customdata;
      for (let row = 0; row < names.length; row++) {
        const column = names[row].indexOf(lens.state.linear);
        if (column >= 0) {
          return [{ type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line: { color: lens.colour("text"), width: 2.5 } }];
        }
      }
      return [];
    }

    markCell() {
      if (this.gridData && window.Plotly) window.Plotly.relayout(this.grid, { shapes: this.cellShapes(this.gridData) });
    }

    step(by) {
      if (!this.linears) return;
      const at = this.linears.findIndex(({ name }) => name === lens.state.linear);
      const next = this.linears[at + by];
      if (next) this.goTo(next.name);
      else lens.toast(by > 0 ? "This is the last layer." : "This is the first layer.");
    }

    stepBlock(by) {
      const here = this.linears?.find(({ name }) => name === lens.state.linear);
      const next = here && this.linears.find(({ part, block, kind }) => part === here.part && kind === here.kind && block === here.block + by);
      if (next) this.goTo(next.name);
    }

    goTo(linear) { lens.update({ linear, window: "", pinned: "" }, { push: true }); }

    /* ---- one layer ---- */

    async openLayer({ keepMaps = false }) {
      if (!lens.run() || !lens.state.linear) return;
      const number = ++this.layerNumber;
      clearTimeout(this.windowTimer); // what the layer before showed is not this one's
      const started = performance.now();
      if (lens.state.kind === "fisher" && !(await this.fisherReady())) return;
      if (number !== this.layerNumber) return;
      this.drawTitle();
      this.layerProblem.hidden = true;
      if (!keepMaps) this.maps.loading(true);
      const answer = await this.ask("layer");
      if (number !== this.layerNumber) return;
      if (answer.error) { this.failLayer(answer.error); return; }
      this.layerBody.classList.remove("failed");
      this.layer = answer;
      this.layer.rowMeans = decodeBase64(answer.rows, Float32Array);
      this.layer.columnMeans = decodeBase64(answer.columns, Float32Array);
      this.nullBins = null;
      this.bins = new Bins(answer.bins, answer.code);
      this.notice.hidden = !answer.switched_off;
      if (answer.switched_off) this.notice.replaceChildren(capital(answer.switched_off) + ".");
      this.drawTitle();
      this.drawSliders();
      this.drawNumbers(answer.exact, true);
      this.drawSource();
      this.marginals.show(this.layer);
      this.density.draw(answer.density, answer.exact.boundaries);
      if (!keepMaps) await this.maps.open(answer, answer.exact.boundaries, this.integration(answer.exact), viewOf(lens.state.window));
      else this.maps.recut(answer.exact.boundaries, this.integration(answer.exact));
      if (number !== this.layerNumber || !this.maps.base) return;
      this.lastOpen = performance.now() - started;
      if (!keepMaps && !this.restorePin()) this.showStrongest();
      this.marginals.look(this.maps.view);
      this.countLines();
      this.showNull();
    }

    /** The exact classes of every row and column. */
    async countLines() {
      const number = this.layerNumber, asked = (this.linesAsked = {});
      const found = await this.ask("lines");
      if (number !== this.layerNumber || asked !== this.linesAsked || found.error) return;
      this.marginals.showClasses(decodeBase64(found.rows, Uint32Array), decodeBase64(found.columns, Uint32Array));
    }

    /** Rows or columns [from, to) into view, all of the other side. */
    openLines(axis, from, to) {
      const [rows, columns] = this.layer.shape, margin = Math.max(2, 0.25 * (to - from));
      this.maps.look(axis === "rows"
        ? { top: from - margin, bottom: to + margin, left: this.maps.view.left, right: this.maps.view.right }
        : { left: from - margin, right: to + margin, top: this.maps.view.top, bottom: this.maps.view.bottom });
      if (this.maps.whole() && Math.max(rows, columns) > 64) lens.toast("The maps show it all already.");
    }

    /** What was measured on, and a warning where that is little. */
    drawSource() {
      const { report, shape, source } = this.layer;
      if (!report) { this.source.textContent = "This layer is not binarized yet."; return; }
      const tokens = (count) => count.toLocaleString("en");
      const fewest = Math.min(report.tokens_language, report.tokens_vision);
      const sentences = [
        `Calibrated on ${source.samples} conversations, seed ${source.seed}: ${tokens(report.tokens_language)} language and ${tokens(report.tokens_vision)} vision tokens reached this layer.`,
        `Maps are of the full-precision model; thresholds here do not change the run, which was made with top ${Number((100 * source.thresholds.salient_top_p).toPrecision(2))} %, ${source.thresholds.diff_quantile}, ρ > ${source.thresholds.sparsity_thr}.`,
      ];
      if (fewest < 8 * shape[1] && !this.layer.switched_off) {
        sentences.push(`That is ${number(fewest / shape[1])} tokens per input column for the scarcer modality. Below 8, two samples of the same modality also look different: take single labels with care.`);
      }
      this.source.textContent = sentences.join(" ");
    }

    integration(found) { return { ratio: found.unimodal_ratio, meanSparsity: this.layer.exact.mean_sparsity }; }

    failLayer(sentence) {
      this.maps.loading(false);
      this.layerBody.classList.add("failed");
      this.layer = this.bins = null;
      this.layerProblem.hidden = false;
      this.layerProblem.replaceChildren(this.failure(sentence, () => this.openLayer({})));
    }

    failure(sentence, again) {
      return make("div", { class: "sab-error", role: "alert" }, make("p", {}, sentence), make("button", { type: "button", class: "sab-button", onclick: again }, "Try again"));
    }

    drawTitle() {
      const here = this.linears?.find(({ name }) => name === lens.state.linear);
      document.title = here ? `${capital(here.title)} · ${here.kind} · ${lens.title}` : lens.title;
      this.title.textContent = here ? `${capital(here.title)} · ${here.kind}` : lens.state.linear;
      const parts = here ? [`${here.shape[0]} outputs × ${here.shape[1]} inputs`] : [];
      const report = this.layer?.report;
      if (report && this.layer.shape[0] === here?.shape[0]) {
        parts.push(`squared output error ${percent(report.relative_loss)}`, `${report.bits_nominal.toFixed(2)} bit nominal, ${report.bits_all_in.toFixed(2)} all-in`);
      }
      this.facts.textContent = parts.join(" · ") || "\u00a0";
    }

    /* ---- thresholds ---- */

    drawSliders() {
      for (const [name, { input, output }] of Object.entries(this.sliders)) {
        const value = lens.state[name];
        input.value = String(THRESHOLDS[name].toPlace(value, lens.ranges[name]));
        input.style.setProperty("--at", `${100 * Number(input.value)}%`);
        output.textContent = THRESHOLDS[name].text(value);
      }
      for (const button of this.presets.children) {
        const values = PRESETS[button.dataset.preset];
        button.setAttribute("aria-pressed", String(Object.keys(values).every((name) => Math.abs(values[name] - lens.state[name]) < 1e-9)));
      }
      this.meaning.textContent = `S̄ is the significance of a weight for one modality, relative to the layer's mean: 1 is average. ${lens.state.kind === "input"
        ? "High: without this weight the layer's output on that modality's tokens would change much. Low: it could go unnoticed."
        : "High: the loss of the answers reacts strongly to this weight on that modality's tokens. Low: hardly."}`;
      const value = lens.state.sparsity_thr;
      this.legendText.textContent = `ρ compares the two: 0 where both are equal, 1 where one is zero. ρ > ${Number(value.toPrecision(2))} means that one S̄ is more than ${Number(ratioOf(value).toPrecision(3))} times the other.`;
    }

    drag(name, value) {
      this.dragging = true;
      const [low, high] = lens.ranges[name];
      this.dragged = { ...this.dragged, [name]: Math.min(high, Math.max(low, value)) };
      if (this.dragFrame) return;
      this.dragFrame = requestAnimationFrame(() => {
        this.dragFrame = 0;
        const start = performance.now();
        this.takeDragged();
        this.drawSliders();
        this.preview();
        this.frameTimes.push(performance.now() - start);
        if (this.frameTimes.length > FRAMES) this.frameTimes.splice(0, FRAMES / 2);
      });
    }

    takeDragged() {
      if (this.dragged) lens.update(this.dragged, { quiet: true });
      this.dragged = null;
    }

    /** Estimate everything from the bins, at once. */
    preview() {
      if (!this.bins || this.layer.switched_off) return;
      const found = this.bins.classes(lens.state);
      this.maps.recut(found.boundaries, this.integration(found));
      this.drawNumbers(found, false);
      this.moveLines(found.boundaries);
      if (this.nullBins) this.drawChance(found.counts, unimodalOf(this.nullBins.classes(lens.state).counts), false);
    }

    letGo() {
      cancelAnimationFrame(this.dragFrame);
      this.dragFrame = 0;
      this.takeDragged();
      this.dragging = false;
      lens.update({}, { push: true });
      this.history.record(lens.state);
      this.drawSliders();
      this.settle();
      this.showProfile();
    }

    choose(values) {
      this.dragging = false;
      lens.update(values, { push: true });
    }

    /** The server's exact numbers in place of the estimate. */
    async settle() {
      if (!this.layer) return;
      const asked = (this.settling = {});
      const found = await this.ask("exact");
      if (asked !== this.settling || this.dragging) return;
      if (found.error) { lens.toast(found.error); return; }
      this.maps.recut(found.boundaries, { ratio: found.unimodal_ratio, meanSparsity: found.mean_sparsity });
      this.drawNumbers(found, true);
      this.moveLines(found.boundaries);
      this.countLines();
      this.showNull();
    }

    drawNumbers({ counts, unimodal_ratio: ratio }, exact) {
      this.counted = counts;
      const total = counts.reduce((sum, count) => sum + count, 0) || 1;
      counts.forEach((count, code) => {
        this.classRows[code].count.textContent = Math.round(count).toLocaleString("en");
        this.classRows[code].share.textContent = percent(count / total);
      });
      const salient = total - counts[0] || 1;
      [...this.bar.children].forEach((part, index) => { part.style.width = `${(100 * counts[index + 1]) / salient}%`; });
      this.exactness.textContent = exact ? "exact" : "estimate";
      this.exactness.classList.toggle("estimate", !exact);
      const favour = Math.abs(ratio - 0.5) < 1e-6 ? "no kind of weight" : ratio > 0.5 ? "weights of one modality" : "shared weights";
      this.ratioText.textContent = `r = ${ratio.toFixed(3)}: unimodal weights carry ${percent(ratio)} of all significance, so Λ protects ${favour}.`;
    }

    moveLines(boundaries) {
      this.density.move(boundaries);
      this.nullDensity.move(boundaries);
    }

    /* ---- maps ---- */

    showViews() {
      const views = viewsOf(lens.state);
      if (views.join() === this.views.join()) return;
      this.views = views;
      this.drawChips();
      this.maps.show(views);
    }

    drawChips() {
      this.chips.replaceChildren(...Object.entries(VIEWS).map(([name, { title, about }]) =>
        make("button", {
          type: "button", class: "sab-chip", title: about, "data-view": name, "aria-pressed": String(this.views.includes(name)),
          onclick: () => {
            const views = Object.keys(VIEWS).filter((other) => (other === name ? !this.views.includes(name) : this.views.includes(other)));
            if (!views.length) { lens.toast("One map has to stay."); return; }
            lens.update({ views: views.join() === FIRST_VIEWS.join() ? "" : views.join() });
          },
        }, title)));
    }

    viewed(view, tile) {
      this.marginals.look(view);
      clearTimeout(this.windowTimer);
      this.windowTimer = setTimeout(() => {
        if (this.layer && lens.state.window !== this.windowText()) lens.update({ window: this.windowText() });
      }, 350);
      if (!tile) return;
      const rows = Math.ceil(view.bottom - view.top), columns = Math.ceil(view.right - view.left);
      const how = tile.factor === 1 ? "single weights" : `pooled ×${tile.factor}, ${lens.state.pooling === "max" ? "strongest weight" : "mean"} of each cell`;
      this.poolNote.textContent = `${rows} × ${columns} · ${how}`;
    }

    /** What the maps show, as the link has it. */
    windowText() {
      if (!this.maps.layer || this.maps.whole()) return "";
      const { top, left, bottom, right } = this.maps.view;
      return [top, left, bottom, right].map((edge) => String(Number(edge.toFixed(2)))).join();
    }

    restoreWindow() {
      if (!this.maps.layer) return;
      const view = viewOf(lens.state.window);
      if (view) this.maps.look(view);
      else this.maps.reset();
    }

    /** The weight that is kept, shown in its card; whether there is one. */
    restorePin() {
      if (!this.maps.base) return false;
      const place = lens.state.pinned ? lens.state.pinned.split(",").map(Number) : null;
      this.maps.pin(place);
      if (this.maps.pinned) this.hover(this.maps.pinned, null);
      return Boolean(this.maps.pinned);
    }

    /* ---- Fisher ---- */

    pick(name, value) {
      if (name === "kind" && value === "fisher") { this.wantFisher(); return; }
      this.stopFisher();
      lens.update({ [name]: value }, { push: true });
    }

    async fisherReady() {
      const found = await this.ask("fisher");
      if (found.state === "done") return true;
      lens.update({ kind: "input" });
      this.wantFisher();
      return false;
    }

    stopFisher() {
      clearTimeout(this.fisherTimer);
      if (this.fisherWanted) { this.fisherWanted = false; this.notice.hidden = true; }
    }

    async wantFisher() {
      this.fisherWanted = true;
      const found = await this.ask("fisher", { start: true });
      if (!this.fisherWanted) return;
      if (found.error || found.state === "failed") {
        this.fisherWanted = false;
        this.notice.hidden = false;
        this.notice.replaceChildren(found.error || found.message);
        return;
      }
      if (found.state === "done") {
        this.fisherWanted = false;
        this.notice.hidden = true;
        lens.update({ kind: "fisher" }, { push: true });
        return;
      }
      this.notice.hidden = false;
      this.notice.replaceChildren(
        make("span", {}, `Computing the Fisher sensitivity of every layer, once: ${Math.round(100 * found.share)} %. The maps switch over by themselves.`),
        make("progress", { max: "1", value: String(found.share) }));
      this.fisherTimer = setTimeout(() => this.wantFisher(), 700);
    }

  }

  const viewsOf = ({ views }) => {
    const named = (views || "").split(",").filter((name) => VIEWS[name]);
    return named.length ? [...new Set(named)] : FIRST_VIEWS;
  };
  const viewOf = (text) => {
    const [top, left, bottom, right] = (text || "").split(",").map(Number);
    return bottom > top && right > left ? { top, left, bottom, right } : null;
  };
  const pinnedText = (cell) => (cell && cell.pooling !== "mean" ? `${cell.weightRow},${cell.weightColumn}` : "");
  const wantedOf = ({ quantity }) => JSON.stringify([lens.state.run, lens.state.kind, quantity.value, lens.dark, ...Object.keys(THRESHOLDS).map((name) => lens.state[name])]);

  Object.assign(Explore.prototype, window.SabExploreNull, window.SabExploreWeight, window.SabExploreExport);
})();
