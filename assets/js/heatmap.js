/* Linked heatmaps of one linear on canvas: several quantities of the same weights, one view, one crosshair.

   A tile holds, per cell, the 16-bit log codes of both significances (see viz/downsample.py); every map but
   those of values is computed from the codes here, so that dragging a threshold needs no server:
   - salient: a code at or above its cut; unimodal: the codes differ by more than `ratio` codes (ρ grows with
     the ratio alone) and the significances by at least `difference`; the larger one names the modality;
   - ρ and Λ: functions of the code difference, looked up in tables. */
(() => {
  "use strict";
  if (window.SabHeatmaps) return;

  const AXIS = { left: 34, bottom: 20, top: 2, right: 2 }; // room around a plot, in CSS pixels
  const NARROW = { panel: 220, left: 25 };
  const TABLE = 4096; // steps of the tables over code differences
  const ROOT = Math.SQRT2;

  // `cut`: what the thresholds change. `fields`: what has to be fetched beside the codes.
  const VIEWS = {
    language: { title: "Language-only", about: "S̄ language of language-only weights; the rest faint", low: "low S̄", high: "high", cut: true },
    vision: { title: "Vision-only", about: "S̄ vision of vision-only weights; the rest faint", low: "low S̄", high: "high", cut: true },
    cross: { title: "Cross-modal", about: "the larger S̄ of cross-modal weights; the rest faint", low: "low S̄", high: "high", cut: true },
    partition: { title: "Partition", about: "the class of every weight", low: "", high: "", cut: true },
    sparsity: { title: "Sparsity ρ", about: "0: both modalities alike; 1: one alone drives the weight", low: "0 · shared", high: "" },
    weighting: { title: "Weighting Λ", about: "how much the error of a weight counts when signs and scales are fitted; mean 1", low: "", high: "", cut: true },
    weight: { title: "W", about: "full-precision value", low: "", high: "", fields: ["weight"] },
    binarized: { title: "Ŵ", about: "value after binarization", low: "", high: "", fields: ["binarized"] },
    error: { title: "W − Ŵ", about: "what binarization changed", low: "", high: "", fields: ["weight", "binarized"] },
  };

  /** ρ of a log2 ratio of the two significances. */
  function sparsityOf(log2Ratio) {
    const t = 2 ** Math.min(Math.abs(log2Ratio), 60);
    return Math.min(1, Math.max(0, (ROOT - (1 + t) / Math.hypot(1, t)) / (ROOT - 1)));
  }

  /** The ratio at which ρ reaches a value (the inverse of the above). */
  function ratioOf(sparsity) {
    const k = (ROOT - Math.min(Math.max(sparsity, 0), 1) * (ROOT - 1)) ** 2 - 1;
    return k <= 0 ? Infinity : (1 + Math.sqrt(Math.max(0, 1 - k * k))) / k;
  }

  function parseColour(text) {
    const hex = text.trim().replace("#", "");
    return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  }

  /** A Uint32 table of `steps` colours through the given stops. */
  function ramp(stops, steps) {
    const colours = stops.map(parseColour);
    const table = new Uint32Array(steps);
    for (let i = 0; i < steps; i++) {
      const place = (i / (steps - 1)) * (colours.length - 1);
      const left = Math.min(Math.floor(place), colours.length - 2);
      const mix = place - left;
      const [r, g, b] = colours[left].map((value, channel) => Math.round(value + mix * (colours[left + 1][channel] - value)));
      table[i] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
    return table;
  }

  function decodeBase64(text, Type) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return new Type(bytes.buffer);
  }

  /** Cuts in codes: what `classify` compares with. */
  function cutsOf(boundaries, code) {
    const toCode = (value) => (value === null || !Number.isFinite(value) ? 70000
      : Math.max(1, Math.round((Math.log2(value) - code.low) / code.step) + 1));
    return {
      language: toCode(boundaries.language),
      vision: toCode(boundaries.vision),
      difference: boundaries.difference === null ? Infinity : boundaries.difference,
      ratio: boundaries.ratio === null ? 70000 : Math.log2(boundaries.ratio) / code.step,
    };
  }

  class Heatmaps {
    /* options: host element, fetchTile(rectangle, fields) -> Promise<tile>, onHover(cell | null, point),
       onView(view, tile) after the view or its sharpness changed, onPin(cell | null) */
    constructor({ host, fetchTile, onHover, onView, onPin }) {
      this.host = host;
      this.fetchTile = fetchTile;
      this.onHover = onHover;
      this.onView = onView;
      this.onPin = onPin;
      this.panels = new Map();
      this.layer = null;
      this.base = null;
      this.sharp = null;
      this.generation = 0;
      this.frame = 0;
      this.pointers = new Map();
      // Sizes are kept, for asking for them while something is dragged makes the page lay itself out each time.
      this.resizer = new ResizeObserver((entries) => {
        for (const { target, contentRect } of entries) this.sizes.set(target, contentRect);
        this.draw();
      });
      this.sizes = new Map();
    }

    /** Show these views, in this order. */
    show(names) {
      const wanted = names.filter((name) => VIEWS[name]);
      for (const [name, panel] of this.panels) {
        if (!wanted.includes(name)) {
          this.resizer.unobserve(panel.stage);
          this.sizes.delete(panel.stage);
          panel.root.remove();
          this.panels.delete(name);
        }
      }
      for (const name of wanted) {
        if (!this.panels.has(name)) this.panels.set(name, this.makePanel(name));
        this.host.appendChild(this.panels.get(name).root);
        this.resizer.observe(this.panels.get(name).stage);
      }
      this.order = wanted;
      if (this.layer) { this.size(); this.reload(); }
    }

    /** Show another linear: {shape, code, range}, the cuts that hold, and the part of it to look at (null: all). */
    async open(layer, boundaries, integration, view = null) {
      this.layer = layer;
      this.base = this.sharp = null;
      this.pinned = this.hovered = this.line = null;
      this.view = view ? this.inside(view) : { top: 0, left: 0, bottom: layer.shape[0], right: layer.shape[1] };
      this.host.classList.toggle("zoomed", !this.whole());
      this.tables = null;
      this.cuts = cutsOf(boundaries, layer.code);
      this.integration = integration;
      this.size();
      await this.reload();
    }

    /** Move the cuts; recolours at once, what they change only. */
    recut(boundaries, integration) {
      if (!this.layer) return;
      this.cuts = cutsOf(boundaries, this.layer.code);
      if (integration) { this.integration = integration; }
      this.tablesOfWeighting = null;
      this.moved = true;
      this.drawNow(false);
    }

    /** Colours changed (light or dark). */
    recolour() {
      this.tables = null;
      this.tablesOfWeighting = null;
      this.stale = true;
      this.draw();
    }

    loading(on) {
      for (const { root } of this.panels.values()) {
        root.classList.toggle("waiting", on);
        root.setAttribute("aria-busy", String(on));
      }
    }

    fields() { return [...new Set((this.order || []).flatMap((name) => VIEWS[name].fields || []))]; }

    /** Fetch the whole layer, then the view's own tile. */
    async reload() {
      const generation = ++this.generation;
      this.sharp = null;
      this.loading(true);
      const { shape } = this.layer;
      const tile = await this.fetchTile([0, 0, shape[0], shape[1]], this.fields());
      if (generation !== this.generation || !tile) return;
      this.base = this.unpack(tile);
      this.tables = this.tablesOfWeighting = null; // their colours end at this layer's extremes
      this.loading(false);
      this.stale = true;
      this.drawNow();
      if (!this.whole()) this.sharpen();
      this.onView(this.view, this.best());
    }

    unpack(tile) {
      const unpacked = { ...tile, codes: [decodeBase64(tile.language, Uint16Array), decodeBase64(tile.vision, Uint16Array)] };
      for (const name of ["weight", "binarized"]) if (tile[name]) unpacked[name] = decodeBase64(tile[name], Float32Array);
      if (tile.representative) unpacked.representative = decodeBase64(tile.representative, Uint32Array);
      if (unpacked.weight && unpacked.binarized) unpacked.error = unpacked.weight.map((value, i) => value - unpacked.binarized[i]);
      const { low, step } = this.layer.code;
      const [a, b] = unpacked.codes;
      const difference = new Float32Array(a.length);
      for (let i = 0; i < a.length; i++) {
        const language = a[i] ? 2 ** (low + (a[i] - 1) * step) : 0;
        const vision = b[i] ? 2 ** (low + (b[i] - 1) * step) : 0;
        difference[i] = Math.abs(language - vision);
      }
      let widest = 0;
      for (let i = 0; i < a.length; i++) {
        const apart = a[i] && b[i] ? Math.abs(a[i] - b[i]) : (a[i] || b[i] ? 65535 : 0);
        if (apart > widest) widest = apart;
      }
      unpacked.sparsityReach = Math.max(0.01, sparsityOf(widest * step)); // where the colours of ρ end
      unpacked.difference = difference;
      unpacked.classes = new Uint8Array(a.length);
      unpacked.images = new Map();
      return unpacked;
    }

    whole() {
      const { top, left, bottom, right } = this.view;
      return top <= 0 && left <= 0 && bottom >= this.layer.shape[0] && right >= this.layer.shape[1];
    }

    best() { return this.sharp || this.base; }

    sharpen() {
      clearTimeout(this.sharpTimer);
      this.sharpTimer = setTimeout(async () => {
        if (!this.base) return;
        if (this.base.factor === 1 || this.whole()) { this.sharp = null; this.stale = true; this.draw(); this.onView(this.view, this.best()); return; }
        const generation = this.generation;
        const asked = (this.asked = {});
        const { top, left, bottom, right } = this.view;
        // A margin, so that a small move needs no new tile.
        const h = (bottom - top) * 0.15, w = (right - left) * 0.15;
        const tile = await this.fetchTile([top - h, left - w, bottom + h, right + w], this.fields());
        if (generation !== this.generation || asked !== this.asked || !tile) return;
        this.sharp = tile.factor < this.base.factor ? this.unpack(tile) : null;
        this.stale = true;
        this.drawNow();
        if (this.pinned) this.pin([this.pinned.weightRow, this.pinned.weightColumn]);
        this.onView(this.view, this.best());
      }, 120);
    }

    /* ---- colours ---- */

    buildTables() {
      const colour = (name) => window.SabLens.colour(name);
      const list = (name) => colour(name).split(",");
      const { range } = this.layer;
      const intensity = new Uint8Array(65536);
      const span = Math.max(1, range[1] - range[0]);
      for (let code = 0; code < 65536; code++) {
        intensity[code] = code ? Math.round(255 * Math.min(1, Math.max(0, (code - range[0]) / span))) : 0;
      }
      const surface = colour("surface"), neither = colour("neither");
      const faint = ramp([surface, neither], 256);
      const step = (65536 / TABLE) * this.layer.code.step;
      const sparsity = new Float32Array(TABLE);
      for (let i = 0; i < TABLE; i++) sparsity[i] = sparsityOf((i + 0.5) * step);
      sparsity[0] = 0;
      const neutral = ramp(list("ramp"), 256);
      this.tables = {
        intensity, faint, sparsity, neutral,
        strong: ["language", "vision", "cross"].map((name) => ramp([neither, colour(name), this.deepest(colour(name))], 256)),
        partition: ramp([neither, colour("language"), colour("vision"), colour("cross")], 4),
        sparsityColour: Uint32Array.from(sparsity, (value) => neutral[Math.round(255 * Math.min(1, value / this.base.sparsityReach))]),
        diverging: ramp(list("diverging"), 256),
      };
    }

    /** The strong end of a class ramp: darker on white, lighter on black. */
    deepest(colour) {
      const target = window.SabLens.dark ? 255 : 0;
      return "#" + parseColour(colour).map((value) => Math.round(value + 0.32 * (target - value)).toString(16).padStart(2, "0")).join("");
    }

    buildWeighting() {
      const { ratio, meanSparsity } = this.integration;
      const raw = (rho) => ratio * rho + (1 - ratio) * (1 - rho);
      const mean = raw(meanSparsity);
      const lambda = (rho) => (mean > 0 ? Math.max(0.01, raw(rho) / mean) : 1);
      const reach = Math.max(Math.abs(Math.log2(lambda(0))), Math.abs(Math.log2(lambda(this.base.sparsityReach))), 0.02);
      this.tablesOfWeighting = {
        lambda, reach,
        colour: Uint32Array.from(this.tables.sparsity, (rho) =>
          this.tables.diverging[Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, Math.log2(lambda(rho)) / reach)))]),
      };
    }

    classify(tile) {
      const [a, b] = tile.codes;
      const { language, vision, ratio, difference } = this.cuts;
      const { classes, difference: apart } = tile;
      for (let i = 0; i < a.length; i++) {
        const x = a[i], y = b[i];
        if (x < language && y < vision) classes[i] = 0;
        else if (apart[i] >= difference && Math.abs(x - y) > ratio) classes[i] = x > y ? 1 : 2;
        else classes[i] = 3;
      }
    }

    paint(name, tile) {
      let image = tile.images.get(name);
      if (!image) {
        const canvas = document.createElement("canvas");
        canvas.width = tile.columns;
        canvas.height = tile.rows;
        const context = canvas.getContext("2d");
        image = { canvas, context, data: context.createImageData(tile.columns, tile.rows) };
        tile.images.set(name, image);
      }
      const out = new Uint32Array(image.data.data.buffer);
      const { classes } = tile;
      const [a, b] = tile.codes;
      const { intensity, faint, strong, partition, sparsityColour, diverging } = this.tables;
      const shift = Math.log2(65536 / TABLE);
      if (name === "partition") {
        for (let i = 0; i < out.length; i++) out[i] = partition[classes[i]];
      } else if (name === "language") {
        for (let i = 0; i < out.length; i++) out[i] = (classes[i] === 1 ? strong[0] : faint)[intensity[a[i]]];
      } else if (name === "vision") {
        for (let i = 0; i < out.length; i++) out[i] = (classes[i] === 2 ? strong[1] : faint)[intensity[b[i]]];
      } else if (name === "cross") {
        for (let i = 0; i < out.length; i++) out[i] = (classes[i] === 3 ? strong[2] : faint)[intensity[a[i] > b[i] ? a[i] : b[i]]];
      } else if (name === "sparsity" || name === "weighting") {
        const table = name === "sparsity" ? sparsityColour : this.tablesOfWeighting.colour;
        for (let i = 0; i < out.length; i++) {
          const apart = a[i] && b[i] ? Math.abs(a[i] - b[i]) : (a[i] || b[i] ? 65535 : 0);
          out[i] = table[apart >> shift];
        }
      } else {
        const values = tile[name];
        if (!values) return null;
        const reach = this.reach(name === "error" ? "weight" : name);
        for (let i = 0; i < out.length; i++) {
          out[i] = diverging[Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, values[i] / reach)))];
        }
      }
      image.context.putImageData(image.data, 0, 0);
      return image.canvas;
    }

    /** Colour reach of value maps: the largest magnitude of the whole-layer tile. */
    reach(name) {
      const values = this.base[name];
      if (!values) return 1;
      if (!this.base[`${name}Reach`]) this.base[`${name}Reach`] = values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
      return this.base[`${name}Reach`];
    }

    /* ---- drawing ---- */

    draw() {
      if (this.frame) return;
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.drawNow();
      });
    }

    /** Draw every panel; without axes where only colours changed. */
    drawNow(axes = true) {
      if (!this.layer || !this.base) return;
      if (!this.tables) { this.buildTables(); this.stale = true; }
      if (!this.tablesOfWeighting) { this.buildWeighting(); this.moved = true; }
      const tiles = [this.base, this.sharp].filter(Boolean);
      if (this.stale || this.moved) {
        // Only what is looked at is painted; the blurred base below a sharp tile waits.
        for (const tile of tiles) {
          tile.classified = false;
          tile.painted = new Set(this.stale ? [] : [...(tile.painted || [])].filter((name) => !VIEWS[name].cut));
        }
        this.stale = this.moved = false;
      }
      for (const [name, panel] of this.panels) {
        if (!this.fit(panel)) continue;
        const { context, width, height } = panel;
        const scale = window.devicePixelRatio || 1;
        context.setTransform(scale, 0, 0, scale, 0, 0);
        const plot = this.plot(panel);
        if (axes || panel.bare) context.clearRect(0, 0, width, height);
        else context.clearRect(plot.x, plot.y, plot.w, plot.h);
        context.save();
        context.beginPath();
        context.rect(plot.x, plot.y, plot.w, plot.h);
        context.clip();
        context.imageSmoothingEnabled = false;
        for (const tile of tiles) {
          if (tile === this.base && this.covers(this.sharp)) continue;
          if (!tile.classified) { this.classify(tile); tile.classified = true; }
          let canvas = tile.images.get(name)?.canvas;
          if (!tile.painted.has(name)) { canvas = this.paint(name, tile); tile.painted.add(name); }
          if (!canvas) continue;
          const x0 = this.toX(plot, tile.column), x1 = this.toX(plot, tile.column + tile.columns * tile.factor);
          const y0 = this.toY(plot, tile.row), y1 = this.toY(plot, tile.row + tile.rows * tile.factor);
          context.drawImage(canvas, x0, y0, x1 - x0, y1 - y0);
        }
        context.restore();
        if (axes || panel.bare) this.drawAxes(panel, plot);
        panel.bare = false;
        this.drawKey(name, panel);
      }
      this.drawCross();
    }

    /** A view moved and cut until it lies in the layer. */
    inside({ top, left, bottom, right }) {
      const [rows, columns] = this.layer.shape;
      const height = Math.min(rows, bottom - top), width = Math.min(columns, right - left);
      const y = Math.min(Math.max(0, top), rows - height), x = Math.min(Math.max(0, left), columns - width);
      return { top: y, left: x, bottom: y + height, right: x + width };
    }

    covers(tile) {
      if (!tile) return false;
      const { top, left, bottom, right } = this.view;
      return tile.row <= top && tile.column <= left
        && tile.row + tile.rows * tile.factor >= Math.min(bottom, this.layer.shape[0])
        && tile.column + tile.columns * tile.factor >= Math.min(right, this.layer.shape[1]);
    }

    size() {
      const [rows, columns] = this.layer.shape;
      const aspect = Math.min(1.25, Math.max(0.45, rows / columns));
      for (const panel of this.panels.values()) panel.stage.style.aspectRatio = `1 / ${aspect}`;
    }

    /** Give a panel's canvases the size of its stage; whether it has one. */
    fit(panel) {
      const { width, height } = this.sizes.get(panel.stage) || { width: 0, height: 0 };
      if (!width || !height) return false;
      const scale = window.devicePixelRatio || 1;
      if (panel.width !== width || panel.height !== height || panel.scale !== scale) {
        Object.assign(panel, { width, height, scale, bare: true });
        for (const canvas of [panel.canvas, panel.overlay]) {
          canvas.width = Math.round(width * scale);
          canvas.height = Math.round(height * scale);
        }
      }
      return true;
    }

    plot(panel) {
      const left = panel.width < NARROW.panel && this.layer.shape[0] < 1000 ? NARROW.left : AXIS.left;
      return { x: left, y: AXIS.top, w: Math.max(1, panel.width - left - AXIS.right), h: Math.max(1, panel.height - AXIS.top - AXIS.bottom) };
    }

    toX(plot, column) { return plot.x + ((column - this.view.left) / (this.view.right - this.view.left)) * plot.w; }
    toY(plot, row) { return plot.y + ((row - this.view.top) / (this.view.bottom - this.view.top)) * plot.h; }
    toColumn(plot, x) { return this.view.left + ((x - plot.x) / plot.w) * (this.view.right - this.view.left); }
    toRow(plot, y) { return this.view.top + ((y - plot.y) / plot.h) * (this.view.bottom - this.view.top); }

    drawAxes(panel, plot) {
      const { context } = panel;
      context.strokeStyle = window.SabLens.colour("line");
      context.fillStyle = window.SabLens.colour("muted");
      context.font = `11px ${window.SabLens.colour("font")}`;
      context.lineWidth = 1;
      context.strokeRect(plot.x - 0.5, plot.y - 0.5, plot.w + 1, plot.h + 1);
      const ticks = (from, to, room) => {
        const rough = (to - from) / Math.max(2, room);
        const power = 10 ** Math.floor(Math.log10(rough));
        const step = Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough));
        const marks = [];
        for (let at = Math.ceil(from / step) * step; at < to; at += step) marks.push(Math.round(at));
        return marks;
      };
      context.textAlign = "center";
      context.textBaseline = "top";
      for (const at of ticks(this.view.left, this.view.right, plot.w / 64)) {
        const x = this.toX(plot, at + 0.5);
        if (x > plot.x + 8 && x < plot.x + plot.w - 10) context.fillText(String(at), x, plot.y + plot.h + 5);
      }
      context.textAlign = "right";
      context.textBaseline = "middle";
      for (const at of ticks(this.view.top, this.view.bottom, plot.h / 44)) {
        const y = this.toY(plot, at + 0.5);
        if (y > plot.y + 4 && y < plot.y + plot.h - 4) context.fillText(String(at), plot.x - 5, y);
      }
    }

    /** Ends of the colour bar beside a panel's title. */
    drawKey(name, panel) {
      if (name === "partition") return;
      let { low, high } = VIEWS[name];
      let stops = window.SabLens.colour("ramp");
      if (["language", "vision", "cross"].includes(name)) {
        stops = [window.SabLens.colour("neither"), window.SabLens.colour(name), this.deepest(window.SabLens.colour(name))].join(",");
        low = this.significanceText(this.layer.range[0]);
        high = this.significanceText(this.layer.range[1]);
      } else if (name === "sparsity") {
        high = Number(this.base.sparsityReach.toPrecision(2)).toString();
      } else if (name === "weighting") {
        stops = window.SabLens.colour("diverging");
        low = (2 ** -this.tablesOfWeighting.reach).toFixed(2);
        high = (2 ** this.tablesOfWeighting.reach).toFixed(2);
      } else if (VIEWS[name].fields) {
        stops = window.SabLens.colour("diverging");
        const reach = this.reach(name === "error" ? "weight" : name).toPrecision(2);
        [low, high] = [`−${reach}`, reach];
      }
      const text = [stops, low, high].join("|");
      if (panel.keyText === text) return;
      panel.keyText = text;
      panel.key.replaceChildren(
        window.SabLens.make("span", {}, low),
        window.SabLens.make("i", { style: `background: linear-gradient(90deg, ${stops})` }),
        window.SabLens.make("span", {}, high));
    }

    significanceText(code) {
      const value = 2 ** (this.layer.code.low + (code - 1) * this.layer.code.step);
      return value >= 100 ? value.toFixed(0) : value >= 1e-4 ? Number(value.toPrecision(1)).toString() : value.toExponential(0);
    }

    drawCross() {
      for (const panel of this.panels.values()) {
        const context = panel.overlay.getContext("2d");
        const scale = panel.scale || 1;
        context.setTransform(scale, 0, 0, scale, 0, 0);
        context.clearRect(0, 0, panel.width, panel.height);
        const plot = this.plot(panel);
        if (this.line && this.line.index !== null) {
          const across = this.line.axis === "columns";
          const at = across ? this.toX(plot, this.line.index + 0.5) : this.toY(plot, this.line.index + 0.5);
          const [start, length] = across ? [plot.x, plot.w] : [plot.y, plot.h];
          if (at >= start && at <= start + length) {
            context.strokeStyle = window.SabLens.colour("text");
            context.globalAlpha = 0.6;
            context.beginPath();
            if (across) { context.moveTo(at, plot.y); context.lineTo(at, plot.y + plot.h); } else { context.moveTo(plot.x, at); context.lineTo(plot.x + plot.w, at); }
            context.stroke();
            context.globalAlpha = 1;
          }
        }
        const cell = this.hovered || this.pinned;
        if (!cell) continue;
        const x0 = this.toX(plot, cell.column), x1 = this.toX(plot, cell.column + cell.factor);
        const y0 = this.toY(plot, cell.row), y1 = this.toY(plot, cell.row + cell.factor);
        if (x1 < plot.x || x0 > plot.x + plot.w || y1 < plot.y || y0 > plot.y + plot.h) continue;
        const x = (x0 + x1) / 2, y = (y0 + y1) / 2;
        context.strokeStyle = window.SabLens.colour("text");
        context.globalAlpha = 0.35;
        context.lineWidth = 1;
        context.beginPath();
        context.moveTo(x, plot.y); context.lineTo(x, plot.y + plot.h);
        context.moveTo(plot.x, y); context.lineTo(plot.x + plot.w, y);
        context.stroke();
        context.globalAlpha = 1;
        context.lineWidth = 1.5;
        context.strokeRect(x - Math.max(6, x1 - x0) / 2, y - Math.max(6, y1 - y0) / 2, Math.max(6, x1 - x0), Math.max(6, y1 - y0));
      }
    }

    /* ---- panels and pointers ---- */

    makePanel(name) {
      const { make } = window.SabLens;
      const canvas = make("canvas", { class: "sab-map-image" });
      const overlay = make("canvas", { class: "sab-map-cross" });
      const stage = make("div", {
        class: "sab-map-stage", tabindex: "0", role: "img",
        "aria-label": `${VIEWS[name].title}: ${VIEWS[name].about}. Double-click shows single weights; arrow keys move, plus and minus zoom, 0 shows the whole layer.`,
      }, canvas, overlay);
      const key = make("span", { class: "sab-map-key" });
      const root = make("figure", { class: "sab-map", "data-view": name },
        make("figcaption", { title: VIEWS[name].about }, make("h3", {}, VIEWS[name].title), key), stage);
      const panel = { root, stage, canvas, overlay, key, context: canvas.getContext("2d"), width: 0, height: 0 };
      stage.addEventListener("wheel", (event) => this.wheel(event, panel), { passive: false });
      stage.addEventListener("dblclick", (event) => {
        const cell = this.cellAt(this.at(event, panel), panel);
        if (!this.layer) return;
        if (!this.whole() || !cell) { this.reset(); return; }
        this.pin([cell.row, cell.column]);
        this.focus(cell.weightRow, cell.weightColumn);
        this.onPin(this.pinned);
      });
      stage.addEventListener("pointerdown", (event) => this.press(event, panel));
      stage.addEventListener("pointermove", (event) => this.move(event, panel));
      for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => this.release(event, panel));
      // A finger leaves as soon as it lifts; what it tapped stays.
      stage.addEventListener("pointerleave", (event) => { if (!this.pointers.size && event.pointerType !== "touch") this.hover(null); });
      stage.addEventListener("keydown", (event) => this.keydown(event));
      if (this.layer) requestAnimationFrame(() => this.size());
      return panel;
    }

    at(event, panel) {
      const box = panel.stage.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    }

    wheel(event, panel) {
      if (!this.layer) return;
      const out = event.deltaY > 0;
      if (out && this.whole()) return; // let the page scroll
      event.preventDefault();
      this.zoom(2 ** (Math.max(-120, Math.min(120, event.deltaY)) / 240), this.at(event, panel), panel);
    }

    /** factor < 1 zooms in; around a point of a panel, or the centre. */
    zoom(factor, point, panel) {
      if (!this.layer) return;
      const view = this.view;
      const [rows, columns] = this.layer.shape;
      const smallest = 8;
      const height = Math.min(rows, Math.max(Math.min(smallest, rows), (view.bottom - view.top) * factor));
      const width = Math.min(columns, Math.max(Math.min(smallest, columns), (view.right - view.left) * factor));
      let fy = 0.5, fx = 0.5;
      if (panel) {
        const plot = this.plot(panel);
        fx = Math.min(1, Math.max(0, (point.x - plot.x) / plot.w));
        fy = Math.min(1, Math.max(0, (point.y - plot.y) / plot.h));
      }
      const row = view.top + fy * (view.bottom - view.top), column = view.left + fx * (view.right - view.left);
      this.look({ top: row - fy * height, left: column - fx * width, bottom: row + (1 - fy) * height, right: column + (1 - fx) * width });
    }

    look(view) {
      this.view = this.inside(view);
      this.host.classList.toggle("zoomed", !this.whole());
      this.draw();
      this.sharpen();
      this.onView(this.view, this.best());
    }

    /** Look at single weights around one of them. */
    focus(row, column) {
      const rows = Math.min(48, this.layer.shape[0]), columns = Math.min(48, this.layer.shape[1]);
      this.look({ top: row + 0.5 - rows / 2, bottom: row + 0.5 + rows / 2, left: column + 0.5 - columns / 2, right: column + 0.5 + columns / 2 });
    }

    /** Keep a weight by its place (null lets go). */
    pin(place) {
      this.pinned = place ? this.cell(place[0], place[1]) : null;
      this.drawCross();
    }

    /** Mark a row or a column that is pointed at elsewhere: {axis, index} or null. */
    markLine(line) {
      this.line = line;
      this.drawCross();
    }

    reset() { if (this.layer) this.look({ top: 0, left: 0, bottom: this.layer.shape[0], right: this.layer.shape[1] }); }

    keydown(event) {
      if (!this.layer) return;
      const h = (this.view.bottom - this.view.top) * 0.15, w = (this.view.right - this.view.left) * 0.15;
      const shift = (dy, dx) => this.look({ top: this.view.top + dy, bottom: this.view.bottom + dy, left: this.view.left + dx, right: this.view.right + dx });
      const actions = {
        "+": () => this.zoom(0.6), "=": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6), 0: () => this.reset(),
        ArrowUp: () => shift(-h, 0), ArrowDown: () => shift(h, 0), ArrowLeft: () => shift(0, -w), ArrowRight: () => shift(0, w),
      };
      if (event.ctrlKey || event.metaKey || !actions[event.key]) return;
      if (event.key.startsWith("Arrow") && this.whole()) return; // then arrows choose another layer
      actions[event.key]();
      event.preventDefault();
    }

    press(event, panel) {
      if (!this.layer || event.button > 0) return;
      this.pointers.set(event.pointerId, this.at(event, panel));
      this.pressed = { view: { ...this.view }, start: this.at(event, panel), moved: false };
      if (event.pointerType !== "touch" || !this.whole()) panel.stage.setPointerCapture?.(event.pointerId);
      if (this.pointers.size === 2) {
        const [one, two] = [...this.pointers.values()];
        this.pinch = { apart: Math.hypot(one.x - two.x, one.y - two.y) };
      }
    }

    move(event, panel) {
      if (!this.layer) return;
      const point = this.at(event, panel);
      if (!this.pointers.has(event.pointerId)) { this.hover(this.cellAt(point, panel), event); return; }
      this.pointers.set(event.pointerId, point);
      if (this.pointers.size === 2 && this.pinch) {
        const [one, two] = [...this.pointers.values()];
        const apart = Math.max(20, Math.hypot(one.x - two.x, one.y - two.y));
        this.zoom(this.pinch.apart / apart, { x: (one.x + two.x) / 2, y: (one.y + two.y) / 2 }, panel);
        this.pinch.apart = apart;
        this.pressed.moved = true;
      } else if (this.pressed) {
        const dx = point.x - this.pressed.start.x, dy = point.y - this.pressed.start.y;
        if (Math.hypot(dx, dy) < 4 && !this.pressed.moved) return;
        this.pressed.moved = true;
        if (this.whole()) { this.hover(this.cellAt(point, panel), event); return; }
        const plot = this.plot(panel), { view } = this.pressed;
        const rows = (-dy / plot.h) * (view.bottom - view.top), columns = (-dx / plot.w) * (view.right - view.left);
        this.hover(null);
        this.look({ top: view.top + rows, bottom: view.bottom + rows, left: view.left + columns, right: view.right + columns });
      }
    }

    release(event, panel) {
      this.pointers.delete(event.pointerId);
      if (this.pointers.size < 2) this.pinch = null;
      if (this.pressed && !this.pressed.moved && event.type === "pointerup") {
        const cell = this.cellAt(this.at(event, panel), panel);
        const same = cell && this.pinned && cell.row === this.pinned.row && cell.column === this.pinned.column;
        this.pinned = same ? null : cell;
        this.hover(cell, event);
        this.onPin(this.pinned);
      }
      if (!this.pointers.size) this.pressed = null;
    }

    /** The cell under a point: its place, its weight (the representative), and what is known of it. */
    cellAt(point, panel) {
      const plot = this.plot(panel);
      if (point.x < plot.x || point.y < plot.y || point.x >= plot.x + plot.w || point.y >= plot.y + plot.h) return null;
      return this.cell(Math.floor(this.toRow(plot, point.y)), Math.floor(this.toColumn(plot, point.x)));
    }

    cell(row, column) {
      const inside = (tile) => tile && row >= tile.row && column >= tile.column
        && row < tile.row + tile.rows * tile.factor && column < tile.column + tile.columns * tile.factor;
      const tile = [this.sharp, this.base].find(inside);
      if (!tile || row >= this.layer.shape[0] || column >= this.layer.shape[1]) return null;
      if (!tile.classified) { this.classify(tile); tile.classified = true; }
      const y = Math.floor((row - tile.row) / tile.factor), x = Math.floor((column - tile.column) / tile.factor);
      const at = y * tile.columns + x;
      const [a, b] = [tile.codes[0][at], tile.codes[1][at]];
      const { low, step } = this.layer.code;
      const value = (code) => (code ? 2 ** (low + (code - 1) * step) : 0);
      const rho = a && b ? sparsityOf((a - b) * step) : (a || b ? 1 : 0);
      const weight = tile.representative ? tile.representative[at] : null;
      return {
        row: tile.row + y * tile.factor, column: tile.column + x * tile.factor, factor: tile.factor,
        pooling: tile.factor > 1 ? (tile.representative ? "max" : "mean") : "",
        weightRow: weight === null ? row : Math.floor(weight / this.layer.shape[1]),
        weightColumn: weight === null ? column : weight % this.layer.shape[1],
        language: value(a), vision: value(b), sparsity: rho, class: tile.classes[at],
        weighting: this.tablesOfWeighting ? this.tablesOfWeighting.lambda(rho) : 1,
      };
    }

    /** The cell of the layer's most significant weight. */
    strongest() {
      const [a, b] = this.base.codes;
      let best = 0;
      for (let i = 1; i < a.length; i++) if (Math.max(a[i], b[i]) > Math.max(a[best], b[best])) best = i;
      const { row, column, columns, factor } = this.base;
      return this.cell(row + Math.floor(best / columns) * factor, column + (best % columns) * factor);
    }

    hover(cell, event) {
      this.hovered = cell;
      this.drawCross();
      this.onHover(cell || this.pinned, cell && event ? { x: event.clientX, y: event.clientY } : null);
    }
  }

  window.SabHeatmaps = { Heatmaps, VIEWS, sparsityOf, ratioOf, cutsOf, decodeBase64 };
})();
