/* The Explore tab: grid of the model, linked maps of one layer, thresholds, density.

   The server's functions (viz/pages/explore.py) are asked through `ask`; what a dragged threshold does is
   computed here (`Bins`, `Heatmaps`), and once the finger lets go the server's exact numbers replace it. */
(() => {
  "use strict";
  if (window.SabLens.mountExplore) return;
  const lens = window.SabLens;
  const { make } = lens;
  const { Heatmaps, VIEWS, ratioOf, decodeBase64 } = window.SabHeatmaps;

  const CLASSES = ["neither", "language-only", "vision-only", "cross-modal"];
  const COLOURS = ["neither", "language", "vision", "cross"];
  const PRESETS = {
    Paper: { salient_top_p: 0.05, diff_quantile: 0.5, sparsity_thr: 0.005 },
    Strict: { salient_top_p: 0.01, diff_quantile: 0.75, sparsity_thr: 0.1 },
    Loose: { salient_top_p: 0.1, diff_quantile: 0.25, sparsity_thr: 0.001 },
  };
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

  /** The binned plane of both significances: cuts, class counts and r for any thresholds, without the server. */
  class Bins {
    constructor({ counts, first, size, side }, code) {
      const all = decodeBase64(counts, Uint32Array);
      Object.assign(this, { first, size, side, code });
      this.language = new Float64Array(side);
      this.vision = new Float64Array(side);
      const filled = [];
      for (let i = 0; i < all.length; i++) {
        if (!all[i]) continue;
        filled.push(i);
        this.vision[Math.floor(i / side)] += all[i];
        this.language[i % side] += all[i];
      }
      this.total = this.language.reduce((sum, count) => sum + count, 0);
      this.mass = Float64Array.from(filled, (i) => all[i]);
      this.row = Uint16Array.from(filled, (i) => Math.floor(i / side));
      this.column = Uint16Array.from(filled, (i) => i % side);
      const centre = Float64Array.from({ length: side }, (_, bin) => (bin ? this.value(bin + 0.5) : 0));
      // Within one bin the two differ by a third of its width on average.
      const within = (2 ** (size * code.step) - 1) / 3;
      this.apart = Float64Array.from(filled, (_, k) => {
        const language = centre[this.column[k]], vision = centre[this.row[k]];
        return Math.log2(Math.max(Math.abs(language - vision), within * Math.max(language, vision), 2 ** -40));
      });
      this.sum = Float64Array.from(filled, (_, k) => centre[this.column[k]] + centre[this.row[k]]);
      this.whole = 2 * this.total; // both significances have mean 1
    }

    /** Significance at a place counted in bins. */
    value(place) { return 2 ** (this.code.low + (this.first + place * this.size - 1.5) * this.code.step); }

    /** Place from which the top `share` lies. */
    cut(marginal, share) {
      const wanted = Math.max(1, Math.round(share * this.total));
      let above = 0;
      for (let bin = this.side - 1; bin > 0; bin--) {
        if (above + marginal[bin] >= wanted) return bin + 1 - (wanted - above) / marginal[bin];
        above += marginal[bin];
      }
      return 1;
    }

    classes({ salient_top_p: share, diff_quantile: quantile, sparsity_thr: sparsity }) {
      const { mass, row, column, apart, side } = this;
      const places = [this.cut(this.language, share), this.cut(this.vision, share)];
      const part = places.map((place) => Float64Array.from({ length: side }, (_, bin) => Math.min(1, Math.max(0, bin + 1 - place))));
      const salient = new Float64Array(mass.length);
      const steps = 2048, perOctave = 32;
      const spread = new Float64Array(steps);
      const slot = (log2) => Math.min(steps - 1, Math.max(0, Math.floor((log2 + 40) * perOctave)));
      let all = 0;
      for (let k = 0; k < mass.length; k++) {
        const share = 1 - (1 - part[0][column[k]]) * (1 - part[1][row[k]]);
        if (!share) continue;
        salient[k] = mass[k] * share;
        all += salient[k];
        spread[slot(apart[k])] += salient[k];
      }
      let below = 0, at = 0;
      const wanted = quantile * all;
      while (at < steps - 1 && below + spread[at] < wanted) below += spread[at++];
      const difference = quantile <= 0 ? -40 : (at + (spread[at] ? (wanted - below) / spread[at] : 0)) / perOctave - 40;
      const ratio = Math.log2(ratioOf(sparsity)) / this.code.step / this.size; // in bins
      const width = this.size * this.code.step;
      const counts = [this.total - all, 0, 0, 0];
      let carried = 0;
      for (let k = 0; k < mass.length; k++) {
        if (!salient[k]) continue;
        const gap = Math.abs(column[k] - row[k]);
        // Two places spread evenly over their bins: their gap has a triangular distribution.
        const over = ratio - gap;
        let apartEnough = over <= -1 ? 1 : over >= 1 ? 0 : over < 0 ? 1 - (1 + over) ** 2 / 2 : (1 - over) ** 2 / 2;
        if (gap === 0) apartEnough = ratio >= 1 ? 0 : (1 - ratio) ** 2;
        const unimodal = salient[k] * Math.min(apartEnough, Math.min(1, Math.max(0, (apart[k] - difference) / width + 0.5)));
        if (gap === 0) { counts[1] += unimodal / 2; counts[2] += unimodal / 2; }
        else counts[column[k] > row[k] ? 1 : 2] += unimodal;
        counts[3] += salient[k] - unimodal;
        carried += unimodal * this.sum[k];
      }
      return {
        boundaries: { language: this.value(places[0]), vision: this.value(places[1]), difference: 2 ** difference, ratio: ratioOf(sparsity) },
        counts,
        unimodal_ratio: this.whole ? Math.min(1, carried / this.whole) : 0,
      };
    }
  }

  lens.mountExplore = ({ element, server }) => lens.whenReady.then(() => new Explore(element, server));

  class Explore {
    constructor(element, server) {
      this.server = server;
      this.root = element.querySelector(".sab-explore");
      this.layerNumber = 0;
      this.details = new Map();
      this.build();
      lens.explore = this; // the browser tests and `sab bench ui` read times here
      lens.subscribe((state, changed) => this.changed(changed));
      lens.key(["["], "previous layer", () => this.step(-1), "explore");
      lens.key(["]"], "next layer", () => this.step(1), "explore");
      lens.key(["ArrowLeft", "ArrowRight"], "same layer, other block", (event) => this.stepBlock(event.key === "ArrowLeft" ? -1 : 1), "explore");
      lens.key(["Escape"], "release the pinned weight", () => { this.maps.pinned = null; this.maps.hover(null); }, "explore");
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
      const side = make("aside", { class: "sab-side" },
        make("div", { class: "sab-side-block" },
          make("header", {}, make("h3", {}, "Thresholds"), make("button", { type: "button", class: "sab-text-button", onclick: () => this.choose(this.recipe || PRESETS.Paper) }, "Reset")),
          ...sliders, this.presets,
          make("button", { type: "button", class: "sab-button", title: "Open the Binarize tab with these thresholds", onclick: () => lens.update({ tab: "binarize" }, { push: true }) }, "Rerun binarization…")),
        make("div", { class: "sab-side-block" },
          make("header", {}, make("h3", {}, "Weights by class"), this.exactness),
          this.bar,
          make("table", { class: "sab-classes" }, make("tbody", {}, ...this.classRows.map(({ row }) => row))),
          this.ratioText),
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

      this.density = make("div", { class: "sab-plot sab-density sab-loading" });
      const densityCard = make("section", { class: "sab-card" },
        make("header", {}, make("h2", {}, "Both significances of every weight"), this.exporter("density", "density")),
        this.density,
        make("p", { class: "sab-note" },
          make("i", { class: "sab-line", style: "background: var(--sab-language)" }), "salient for language from here ",
          make("i", { class: "sab-line", style: "background: var(--sab-vision)" }), "salient for vision ",
          make("i", { class: "sab-line", style: "background: var(--sab-cross)" }), "ρ threshold ",
          make("i", { class: "sab-line", style: "background: var(--sab-muted)" }), "difference"));
      this.weightCard = make("section", { class: "sab-card sab-weight" },
        make("header", {}, make("h2", {}, "One weight")),
        this.weightLead = make("p", { class: "sab-note" }, "\u00a0"),
        this.weightBody = make("div", {}),
        make("h3", {}, "Where these numbers come from"),
        this.source = make("p", { class: "sab-note" }));

      this.layerBody = make("div", { class: "sab-layer-stack" },
        make("section", { class: "sab-card sab-layer", id: "sab-layer" }, head, this.notice, this.layerProblem,
          make("div", { class: "sab-layer-body" }, side, make("div", { class: "sab-layer-main" }, tools, this.mapHost))),
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
        onHover: (cell, point) => this.hover(cell, point),
        onView: (view, tile) => this.viewed(view, tile),
      });
      this.views = this.storedViews();
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

    exporter(what, file) {
      const entries = what === "maps"
        ? { PNG: () => this.exportMaps(), "CSV (cells shown)": () => this.exportCells(), "JSON (this layer)": () => this.exportLayer() }
        : { PNG: () => this.exportPlot(what, file, "png"), SVG: () => this.exportPlot(what, file, "svg"), JSON: () => this.exportPlot(what, file, "json") };
      const details = make("details", { class: "sab-export" }, make("summary", { title: "Export" }, "Export"),
        make("div", {}, ...Object.entries(entries).map(([label, run]) =>
          make("button", { type: "button", onclick: () => { details.open = false; run(); } }, label))));
      details.addEventListener("focusout", (event) => { if (!details.contains(event.relatedTarget)) details.open = false; });
      return details;
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
      if (any("run", "colour") || (any("runs") && !this.linears)) this.showOverview();
      if (any("run", "linear", "kind")) { this.details.clear(); this.openLayer({}); }
      else if (any("pooling")) this.maps.reload();
      else if (any("salient_top_p", "diff_quantile", "sparsity_thr") && !this.dragging) { this.drawSliders(); this.preview(); this.settle(); }
      if (any("linear") && this.grid.data) this.markCell();
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
      const cuts = `as the run saw them: ${recipe.sensitivity === "fisher" ? "Fisher" : "input-side"} sensitivity, top ${Number((100 * recipe.salient_top_p).toPrecision(2))}\u00a0%`;
      const classes = ["vision", "language", "cross", "ratio"].includes(lens.state.colour);
      this.quantityNote.textContent = `${capital(answer.quantities[lens.state.colour].reading)}${classes ? `, ${cuts}` : ""}. Click a cell to open its layer below.`;
      this.depthNote.textContent = `Classes of the salient weights of each block, ${cuts}; r is the share of all significance that unimodal weights carry.`;
      this.drawTitle();
      this.grid.classList.remove("sab-loading");
      this.depth.classList.remove("sab-loading");
      this.gridLayout = answer.grid.layout;
      await Promise.all([
        Plotly.react(this.grid, answer.grid.data, { ...answer.grid.layout, shapes: this.cellShapes(answer.grid) }, lens.plotlyOptions),
        Plotly.react(this.depth, answer.depth.data, answer.depth.layout, lens.plotlyOptions),
      ]);
      this.gridData = answer.grid;
      if (!this.listening) {
        this.listening = true;
        this.grid.on("plotly_click", (event) => {
          const name = event.points[0].customdata;
          if (!name) return;
          lens.update({ linear: name }, { push: true });
          document.getElementById("sab-layer").scrollIntoView({ behavior: "smooth", block: "start" });
        });
      }
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
      if (next) lens.update({ linear: next.name }, { push: true });
      else lens.toast(by > 0 ? "This is the last layer." : "This is the first layer.");
    }

    stepBlock(by) {
      const here = this.linears?.find(({ name }) => name === lens.state.linear);
      const next = here && this.linears.find(({ block, kind }) => kind === here.kind && block === here.block + by);
      if (next) lens.update({ linear: next.name }, { push: true });
    }

    /* ---- one layer ---- */

    async openLayer({ keepMaps = false }) {
      if (!lens.run() || !lens.state.linear) return;
      const number = ++this.layerNumber;
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
      this.layer.columnRatio = decodeBase64(answer.column_ratio, Float32Array);
      this.layer.rowRatio = decodeBase64(answer.row_ratio, Float32Array);
      this.bins = new Bins(answer.bins, answer.code);
      this.notice.hidden = !answer.switched_off;
      if (answer.switched_off) this.notice.replaceChildren(capital(answer.switched_off) + ".");
      this.drawTitle();
      this.drawSliders();
      this.drawNumbers(answer.exact, true);
      this.drawSource();
      if (!keepMaps) await this.maps.open(answer, answer.exact.boundaries, this.integration(answer.exact));
      else this.maps.recut(answer.exact.boundaries, this.integration(answer.exact));
      if (number !== this.layerNumber || !this.maps.base) return;
      this.lastOpen = performance.now() - started;
      if (!keepMaps) this.showStrongest();
      const Plotly = await lens.plotly().catch(() => null);
      if (!Plotly || number !== this.layerNumber) return;
      this.density.classList.remove("sab-loading");
      this.densityLayout = answer.density.layout;
      await Plotly.react(this.density, answer.density.data, answer.density.layout, lens.plotlyOptions);
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
      if (fewest < 8 * shape[1]) {
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
      document.title = here ? `Block ${here.block} · ${here.kind} · SAB Lens` : "SAB Lens";
      this.title.textContent = here ? `Block ${here.block} · ${here.kind}` : lens.state.linear;
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
      lens.update({ [name]: value }, { quiet: true });
      this.drawSliders();
      this.preview();
    }

    /** Estimate everything from the bins, at once. */
    preview() {
      if (!this.bins || this.layer.switched_off) return;
      const start = performance.now();
      const found = this.bins.classes(lens.state);
      this.maps.recut(found.boundaries, this.integration(found));
      this.drawNumbers(found, false);
      this.moveLines(found.boundaries);
      this.lastPreview = performance.now() - start;
    }

    letGo() {
      this.dragging = false;
      lens.update({}, { push: true });
      this.settle();
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
    }

    drawNumbers({ counts, unimodal_ratio: ratio }, exact) {
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
      if (!this.densityLayout || !window.Plotly || !this.density.layout) return;
      const [low, high] = this.densityLayout.xaxis.range;
      const log = (value, otherwise) => (value > 0 && Number.isFinite(value) ? Math.log10(value) : otherwise);
      const language = log(boundaries.language, high + 1), vision = log(boundaries.vision, high + 1);
      const tilt = log(boundaries.ratio, high - low + 1);
      const along = Array.from({ length: 80 }, (_, i) => low + ((high - low) * i) / 79);
      const other = along.map((x) => Math.log10(10 ** x + Math.max(boundaries.difference ?? 0, 0)));
      const points = {
        "salient-language": [[language, language], [low, high]],
        "salient-vision": [[low, high], [vision, vision]],
        "ratio-above": [[low, high], [low + tilt, high + tilt]],
        "ratio-below": [[low, high], [low - tilt, high - tilt]],
        "difference-above": [along, other],
        "difference-below": [other, along],
      };
      const shapes = this.densityLayout.shapes.map((shape) => {
        const [x, y] = points[shape.name];
        return { ...shape, path: "M" + x.map((value, i) => `${value.toFixed(4)},${y[i].toFixed(4)}`).join("L") };
      });
      this.densityShapes = shapes;
      if (this.linesFrame) return;
      this.linesFrame = requestAnimationFrame(() => {
        this.linesFrame = 0;
        window.Plotly.relayout(this.density, { shapes: this.densityShapes });
      });
    }

    /* ---- maps ---- */

    storedViews() {
      try {
        const stored = JSON.parse(localStorage.getItem("sab-views"));
        if (Array.isArray(stored) && stored.length && stored.every((name) => VIEWS[name])) return stored;
      } catch { /* private window or damaged */ }
      return FIRST_VIEWS;
    }

    drawChips() {
      this.chips.replaceChildren(...Object.entries(VIEWS).map(([name, { title, about }]) =>
        make("button", {
          type: "button", class: "sab-chip", title: about, "data-view": name, "aria-pressed": String(this.views.includes(name)),
          onclick: () => {
            const views = Object.keys(VIEWS).filter((other) => (other === name ? !this.views.includes(name) : this.views.includes(other)));
            if (!views.length) return;
            this.views = views;
            try { localStorage.setItem("sab-views", JSON.stringify(views)); } catch { /* private window */ }
            this.drawChips();
            this.maps.show(views);
          },
        }, title)));
    }

    viewed(view, tile) {
      if (!tile) return;
      const rows = Math.ceil(view.bottom - view.top), columns = Math.ceil(view.right - view.left);
      const how = tile.factor === 1 ? "single weights" : `pooled ×${tile.factor}, ${lens.state.pooling === "max" ? "strongest weight" : "mean"} of each cell`;
      this.poolNote.textContent = `${rows} × ${columns} · ${how}`;
    }

    /** The card about one weight is never empty: it begins with the layer's strongest. */
    showStrongest() {
      const cell = this.maps.strongest();
      if (cell) this.hover(cell, null);
      this.weightLead.textContent = "The most significant weight of this layer. Point at a map for another, tap a cell to keep it.";
    }

    hover(cell, point) {
      clearTimeout(this.detailTimer);
      if (!cell) { this.tip.hidden = true; return; }
      const body = this.describe(cell);
      this.weightLead.textContent = this.maps.pinned ? "Kept: tap the cell again, or press Esc, to let go." : "Tap a cell to keep it here.";
      this.weightBody.replaceChildren(...body.map((node) => node.cloneNode(true)));
      this.tip.hidden = !point;
      if (point) {
        this.tip.replaceChildren(...body);
        const box = this.tip.getBoundingClientRect();
        this.tip.style.left = `${Math.max(8, Math.min(point.x + 16, window.innerWidth - box.width - 8))}px`;
        this.tip.style.top = `${point.y + 18 + box.height > window.innerHeight ? Math.max(8, point.y - box.height - 14) : point.y + 18}px`;
      }
      const mean = cell.pooling === "mean";
      const key = `${cell.weightRow}|${cell.weightColumn}`;
      if (mean || this.details.has(key)) return;
      this.detailTimer = setTimeout(async () => {
        const found = await this.ask("weight", { row: cell.weightRow, column: cell.weightColumn });
        if (found.error) return;
        if (this.details.size > 500) this.details.clear();
        this.details.set(key, found);
        const now = this.maps.hovered || this.maps.pinned;
        if (!now && !point) this.showStrongest();
        else if (now && now.weightRow === cell.weightRow && now.weightColumn === cell.weightColumn) this.hover(now, this.tip.hidden ? null : point);
      }, 70);
    }

    describe(cell) {
      const { columnRatio, rowRatio } = this.layer;
      const mean = cell.pooling === "mean";
      const place = cell.factor === 1
        ? `row ${cell.row}, column ${cell.column}`
        : mean ? `rows ${cell.row}–${Math.min(cell.row + cell.factor, this.layer.shape[0]) - 1}, columns ${cell.column}–${Math.min(cell.column + cell.factor, this.layer.shape[1]) - 1}`
          : `row ${cell.weightRow}, column ${cell.weightColumn}`;
      const terms = [["S̄ language", number(cell.language)], ["S̄ vision", number(cell.vision)], ["ρ", cell.sparsity.toFixed(3)], ["Λ", cell.weighting.toFixed(3)]];
      const found = mean ? null : this.details.get(`${cell.weightRow}|${cell.weightColumn}`);
      if (found) {
        terms.push(["W", signed(found.weight)]);
        if (found.binarized !== undefined) {
          terms.push(["Ŵ", signed(found.binarized)], ["W − Ŵ", signed(found.lost)]);
          terms.push(found.integer ? ["code", String(found.code)]
            : ["bit", `${found.code > 0 ? "+1" : "−1"}${found.two_bits ? " (first of 2)" : ""}`]);
          if (!found.integer && !found.two_bits) terms.push(["scale", number(Math.abs(found.binarized))]);
        }
      } else if (!mean) terms.push(["W", "…"]);
      const cause = (line, ratio) => (Math.abs(ratio) < 0.005 ? `${line}: both modalities alike`
        : `${line}: ${ratio > 0 ? "vision" : "language"} ${number(2 ** Math.abs(ratio))} × ${ratio > 0 ? "language" : "vision"}`);
      const causes = [];
      if (!mean) {
        const column = `column ${cell.weightColumn}`, row = `row ${cell.weightRow}`;
        if (lens.state.kind === "input") causes.push(`Why: in ${cause(column, columnRatio[cell.weightColumn])}; the input decides it for the whole column.`);
        else causes.push(`Summed over ${cause(row, rowRatio[cell.weightRow])}.`, `Summed over ${cause(column, columnRatio[cell.weightColumn])}.`);
      }
      const notes = cell.factor > 1 ? [`${mean ? "Mean" : "Strongest"} of ${cell.factor} × ${cell.factor} weights.`] : [];
      return [
        make("p", { class: "sab-tip-head" }, make("i", { class: "sab-swatch", style: `background: var(--sab-${COLOURS[cell.class]})` }), make("b", {}, CLASSES[cell.class]), ` ${place}`),
        make("dl", { class: "sab-tip-terms" }, ...terms.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)))),
        ...[...causes, ...notes].map((text) => make("p", { class: "sab-note" }, text)),
      ];
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

    /* ---- export ---- */

    fileName(what) {
      const layer = lens.state.linear.split(".").slice(-3).join("-");
      return `sab-lens-${lens.state.run}-${layer}-${what}`;
    }

    exportPlot(what, file, format) {
      const plot = this[what];
      if (!window.Plotly || !plot.data) return;
      if (format === "json") {
        const { data, layout } = { grid: this.gridData, depth: plot, density: plot }[what];
        lens.save(JSON.stringify({ data, layout: { xaxis: layout.xaxis, yaxis: layout.yaxis } }), `sab-lens-${file}.json`, "application/json");
        return;
      }
      window.Plotly.downloadImage(plot, { format, filename: `sab-lens-${file}`, width: plot.clientWidth, height: plot.clientHeight, scale: format === "png" ? 2 : 1 });
    }

    exportMaps() {
      const panels = [...this.maps.panels.values()];
      if (!panels.length || !this.layer) return;
      const scale = window.devicePixelRatio || 1;
      const [width, height] = [panels[0].canvas.width, panels[0].canvas.height];
      const across = Math.min(3, panels.length), down = Math.ceil(panels.length / across);
      const head = 30 * scale, gap = 14 * scale, top = 34 * scale;
      const canvas = make("canvas", { width: across * (width + gap) + gap, height: top + down * (height + head + gap) });
      const context = canvas.getContext("2d");
      context.fillStyle = lens.colour("surface");
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.fillStyle = lens.colour("text");
      context.font = `600 ${15 * scale}px ${lens.colour("font")}`;
      context.fillText(`${this.title.textContent} · ${lens.run().name} · ${this.poolNote.textContent}`, gap, 22 * scale);
      context.font = `600 ${13 * scale}px ${lens.colour("font")}`;
      this.maps.order.forEach((name, index) => {
        const panel = this.maps.panels.get(name);
        const x = gap + (index % across) * (width + gap), y = top + Math.floor(index / across) * (height + head + gap);
        context.fillText(VIEWS[name].title, x, y + 18 * scale);
        context.drawImage(panel.canvas, x, y + head);
      });
      canvas.toBlob((blob) => lens.save(blob, `${this.fileName("maps")}.png`));
    }

    /** The server writes it: what is drawn here comes from 16-bit codes, and a few weights at a cut may fall otherwise. */
    async exportCells() {
      const tile = this.maps.best();
      if (!tile) return;
      const { row, column, rows, columns, factor } = tile, { top, left, bottom, right } = this.maps.view;
      const rectangle = [row, column, row + rows * factor, column + columns * factor];
      const found = await this.ask("cells", { rectangle, view: [top, left, bottom, right] });
      if (found.error) { lens.toast(found.error); return; }
      lens.save(found.csv, `${this.fileName("cells")}.csv`, "text/csv");
    }

    async exportLayer() {
      const exact = await this.ask("exact");
      if (exact.error) { lens.toast(exact.error); return; }
      const { run, linear, kind } = lens.state;
      const content = {
        run, linear, sensitivity: kind, shape: this.layer.shape,
        thresholds: exact.thresholds,
        boundaries: exact.boundaries, counts: Object.fromEntries(CLASSES.map((name, code) => [name, exact.counts[code]])),
        unimodal_ratio: exact.unimodal_ratio, report: this.layer.report,
      };
      lens.save(JSON.stringify(content, null, 1), `${this.fileName("layer")}.json`, "application/json");
    }
  }

  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(1)} %` : `${Number((100 * share).toPrecision(2))} %`);
  const number = (value) => (value === 0 ? "0" : value >= 100 ? value.toFixed(0) : value >= 0.01 ? Number(value.toPrecision(3)).toString() : value >= 1e-4 ? Number(value.toPrecision(2)).toString() : value.toExponential(1));
  const signed = (value) => (value < 0 ? `−${number(-value)}` : number(value));
})();
