/* What every input column and output row of a layer adds up to: mean S̄ of both modalities, and its salient weights by
   class; attention heads and neurons are marked. The view is the maps' own. */
(() => {
  "use strict";
  if (window.SabMarginals) return;
  const { make } = window.SabLens;
  const HEIGHT = { lines: 74, gap: 8, bars: 40, labels: 20 };
  const LEFT = 44, RIGHT = 6;
  const CLASS_COLOURS = ["language", "vision", "cross"];

  const text = (value) => (value >= 100 ? value.toFixed(0) : value >= 0.01 ? String(Number(value.toPrecision(3))) : value > 0 ? value.toExponential(1) : "0");

  class Strip {
    /* axis "columns" or "rows"; hover(index | null) and open(from, to) tell the maps. */
    constructor({ axis, hover, open }) {
      this.axis = axis;
      this.hover = hover;
      this.canvas = make("canvas", { class: "sab-strip-canvas", role: "img" });
      this.readout = make("span", { class: "sab-note sab-strip-readout" }, "\u00a0");
      this.title = make("h3", {});
      this.leaders = make("div", { class: "sab-leaders" });
      this.root = make("figure", { class: "sab-strip", "data-axis": axis },
        make("figcaption", {}, this.title, this.readout), this.canvas, this.leaders);
      this.canvas.addEventListener("pointermove", (event) => this.point(this.at(event)));
      this.canvas.addEventListener("pointerleave", () => this.point(null));
      this.canvas.addEventListener("click", (event) => {
        const line = this.at(event);
        if (line !== null) open(axis, ...this.unitRange(line));
      });
      this.openUnit = (unit) => open(axis, ...this.unitRange(unit * (this.unit?.size || 1)));
      new ResizeObserver(() => this.draw()).observe(this.root);
    }

    /** means: Float32Array [2, lines] of language and vision; unit: {name, size} or null. */
    show(means, count, unit) {
      this.count = count;
      this.means = [means.subarray(0, count), means.subarray(count)];
      this.unit = unit;
      this.classes = null;
      this.line = null;
      this.range = [0, count];
      const kind = this.axis === "rows" ? "output row" : "input column";
      this.title.textContent = unit ? `By ${kind}, one ${unit.name} ${unit.size > 1 ? `every ${unit.size}` : "each"}` : `By ${kind}`;
      this.canvas.setAttribute("aria-label", `Mean significance of every ${kind} for language and for vision.`);
      let low = Infinity, high = 0;
      for (const values of this.means) for (const value of values) if (value > 0) { if (value < low) low = value; if (value > high) high = value; }
      this.scale = high > 0 ? [Math.log10(Math.max(low, high / 1e4)), Math.log10(high)] : [-1, 0];
      if (this.scale[1] - this.scale[0] < 0.3) { this.scale[0] -= 0.15; this.scale[1] += 0.15; }
      this.drawLeaders();
      this.draw();
    }

    /** Class counts [3, lines] under the thresholds. */
    showClasses(counts) {
      this.classes = [0, 1, 2].map((code) => counts.subarray(code * this.count, (code + 1) * this.count));
      this.draw();
    }

    look(from, to) {
      if (!this.count) return;
      this.range = [from, to];
      this.draw();
    }

    unitRange(line) {
      const size = this.unit?.size || 1;
      const from = Math.floor(line / size) * size;
      if (size > 1) return [from, Math.min(from + size, this.count)];
      return [Math.max(0, line - 12), Math.min(this.count, line + 13)]; // a single line with its neighbours
    }

    unitName(line) {
      if (!this.unit) return "";
      return this.unit.size > 1 ? `${this.unit.name} ${Math.floor(line / this.unit.size)}` : `${this.unit.name} ${line}`;
    }

    /** Mean S̄ of a head (or line) for both modalities. */
    unitMeans(unit) {
      const size = this.unit?.size || 1;
      return this.means.map((values) => {
        let sum = 0, lines = 0;
        for (let line = unit * size; line < Math.min((unit + 1) * size, this.count); line++) { sum += values[line]; lines++; }
        return sum / Math.max(1, lines);
      });
    }

    /** The units that lean most to either side, among those that matter (mean S̄ of at least a half). */
    drawLeaders() {
      const size = this.unit?.size || 1, name = this.unit?.name || (this.axis === "rows" ? "row" : "column");
      const units = Array.from({ length: Math.ceil(this.count / size) }, (_, unit) => {
        const [language, vision] = this.unitMeans(unit);
        return { unit, strength: Math.max(language, vision), lean: Math.log2(vision / language) };
      }).filter(({ strength, lean }) => strength >= 0.5 && Number.isFinite(lean));
      units.sort((one, other) => other.lean - one.lean);
      const row = (label, colour, chosen) => make("div", {},
        make("span", { class: "sab-note" }, make("i", { class: "sab-swatch", style: `background: var(--sab-${colour})` }), label),
        ...chosen.map(({ unit, lean }) => make("button", { type: "button", class: "sab-chip", title: `Show ${name} ${unit} in the maps`, onclick: () => this.openUnit(unit) },
          `${name} ${unit} · ${text(2 ** Math.abs(lean))} ×`)));
      const vision = units.filter(({ lean }) => lean > 0.015).slice(0, 4), language = units.filter(({ lean }) => lean < -0.015).slice(-4).reverse();
      this.leaders.replaceChildren(
        ...(language.length ? [row("most for language", "language", language)] : []),
        ...(vision.length ? [row("most for vision", "vision", vision)] : []),
        ...(language.length || vision.length ? [] : [make("span", { class: "sab-note" }, `No ${name} leans to one modality.`)]));
    }

    at(event) {
      const box = this.canvas.getBoundingClientRect();
      const place = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
      if (place < 0 || place >= 1 || !this.count) return null;
      return Math.min(this.count - 1, Math.floor(this.range[0] + place * (this.range[1] - this.range[0])));
    }

    point(line) {
      if (line === this.line) return;
      this.line = line;
      this.hover(this.axis, line);
      this.draw();
      this.tell(line);
    }

    /** Mark a line that is pointed at elsewhere. */
    mark(line) {
      if (line === this.line) return;
      this.line = line;
      this.tell(line);
      this.draw();
    }

    tell(line) {
      if (line === null || !this.count || line >= this.count) { this.readout.textContent = "\u00a0"; return; }
      const [language, vision] = this.means.map((values) => values[line]);
      const lean = vision && language ? Math.max(vision / language, language / vision) : Infinity;
      const side = Math.abs(vision - language) < 0.005 * Math.max(vision, language) ? "both alike"
        : `${vision > language ? "vision" : "language"} ${Number.isFinite(lean) ? `${text(lean)} ×` : "alone"}`;
      const counts = this.classes?.map((values) => values[line]);
      this.readout.textContent = `${this.axis === "rows" ? "row" : "column"} ${line}${this.unit ? ` · ${this.unitName(line)}` : ""} · S̄ language ${text(language)}, vision ${text(vision)} (${side})`
        + (counts ? ` · ${counts[0]} language-only, ${counts[1]} vision-only, ${counts[2]} cross-modal` : "");
    }

    /** One value a pixel: the largest of what falls on it. */
    pooled(values, pixels) {
      const [from, to] = this.range, out = new Float64Array(pixels);
      for (let x = 0; x < pixels; x++) {
        const a = Math.max(0, Math.floor(from + ((to - from) * x) / pixels)), b = Math.min(this.count, Math.max(a + 1, Math.floor(from + ((to - from) * (x + 1)) / pixels)));
        for (let i = a; i < b; i++) if (values[i] > out[x]) out[x] = values[i];
      }
      return out;
    }

    draw() {
      const width = this.canvas.clientWidth;
      if (!this.count || !width) return;
      const total = HEIGHT.lines + HEIGHT.gap + HEIGHT.bars + HEIGHT.labels, scale = window.devicePixelRatio || 1;
      if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(total * scale)) {
        this.canvas.width = Math.round(width * scale);
        this.canvas.height = Math.round(total * scale);
      }
      const context = this.canvas.getContext("2d");
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.clearRect(0, 0, width, total);
      this.paint(new CanvasPen(context), width);
    }

    /** Draw with a pen, which is a canvas on the page and SVG in a download. */
    paint(pen, width) {
      const { colour } = window.SabLens;
      const inner = Math.max(1, Math.floor(width - LEFT - RIGHT));
      const [from, to] = this.range, x = (line) => LEFT + ((line - from) / (to - from)) * inner;
      const top = 2, bottom = top + HEIGHT.lines, barsTop = bottom + HEIGHT.gap, barsBottom = barsTop + HEIGHT.bars;
      const font = colour("font"), muted = colour("muted");
      const size = this.unit?.size || 1, pixelsPerUnit = (inner * size) / (to - from);
      if (this.unit && pixelsPerUnit > 5) {
        for (let unit = Math.floor(from / size); unit * size < to; unit++) {
          const a = Math.max(LEFT, x(unit * size)), b = Math.min(LEFT + inner, x((unit + 1) * size));
          if (unit % 2) pen.rect(a, top, b - a, barsBottom - top, colour("raised"));
        }
      }
      const y = (value) => bottom - Math.min(1, Math.max(0, (Math.log10(Math.max(value, 1e-12)) - this.scale[0]) / (this.scale[1] - this.scale[0]))) * HEIGHT.lines;
      for (let power = Math.ceil(this.scale[0]); power <= this.scale[1]; power++) {
        pen.path([[LEFT, y(10 ** power)], [LEFT + inner, y(10 ** power)]], colour("line"), 1);
        pen.text(power === 0 ? "1" : power > 0 ? String(10 ** power) : (10 ** power).toFixed(-power), LEFT - 6, y(10 ** power), muted, font, "right", "middle");
      }
      for (const [index, name] of ["language", "vision"].entries()) {
        const values = this.pooled(this.means[index], inner);
        const points = [];
        values.forEach((value, place) => points.push([LEFT + place, y(value)], [LEFT + place + 1, y(value)]));
        pen.path(points, colour(name), 1.5);
      }
      if (this.classes) {
        const pooled = this.classes.map((values) => this.pooled(values, inner));
        let most = 1;
        for (let place = 0; place < inner; place++) most = Math.max(most, pooled[0][place] + pooled[1][place] + pooled[2][place]);
        pooled.forEach((values, code) => {
          values.forEach((value, place) => {
            if (!value) return;
            const below = pooled.slice(0, code).reduce((sum, other) => sum + other[place], 0);
            const height = (value / most) * HEIGHT.bars;
            pen.rect(LEFT + place, barsBottom - (below / most) * HEIGHT.bars - height, 1.02, height, colour(CLASS_COLOURS[code]));
          });
        });
        pen.text(String(most), LEFT - 6, barsTop + 5, muted, font, "right", "middle");
      }
      pen.path([[LEFT, barsBottom + 0.5], [LEFT + inner, barsBottom + 0.5]], colour("line"), 1);
      pen.text("0", LEFT - 6, barsBottom - 3, muted, font, "right", "middle");
      const label = this.unit && size > 1 && pixelsPerUnit > 20;
      const every = label ? size * Math.ceil(48 / pixelsPerUnit) : niceStep((to - from) / Math.max(2, inner / 72));
      for (let at = Math.ceil(from / every) * every; at < to; at += every) {
        const middle = x(label ? at + size / 2 : at + 0.5);
        if (middle > LEFT + 4 && middle < LEFT + inner - 8) pen.text(label ? `${this.unit.name} ${at / size}` : String(at), middle, barsBottom + 6, muted, font, "center", "top");
      }
      if (this.line !== null && this.line >= from && this.line < to) {
        const a = x(this.line + 0.5);
        pen.path([[a, top], [a, barsBottom]], colour("text"), 1);
      }
    }

    svg(width, at) {
      const pen = new SvgPen();
      const marked = this.line;
      this.line = null;
      this.paint(pen, width);
      this.line = marked;
      return `<g transform="translate(0 ${at})"><text x="${LEFT}" y="-8" font-size="13" font-weight="600" fill="${window.SabLens.colour("text")}">${this.title.textContent}</text>${pen.parts.join("")}</g>`;
    }

    lines() {
      const kind = this.axis === "rows" ? "row" : "column";
      return Array.from({ length: this.count }, (_, line) => [
        kind, line, this.unit ? this.unitName(line) : "", ...this.means.map((values) => values[line]), ...(this.classes?.map((values) => values[line]) || ["", "", ""]),
      ].join(","));
    }
  }

  const niceStep = (rough) => {
    const power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
    return Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((step) => step >= rough));
  };

  class CanvasPen {
    constructor(context) { this.context = context; }
    rect(x, y, width, height, colour) { this.context.fillStyle = colour; this.context.fillRect(x, y, width, height); }
    path(points, colour, width) {
      const { context } = this;
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
    }
    text(content, x, y, colour, font, align, baseline) {
      Object.assign(this.context, { fillStyle: colour, font: `11px ${font}`, textAlign: align, textBaseline: baseline });
      this.context.fillText(content, x, y);
    }
  }

  class SvgPen {
    constructor() { this.parts = []; }
    rect(x, y, width, height, colour) { this.parts.push(`<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${width.toFixed(1)}" height="${height.toFixed(1)}" fill="${colour}"/>`); }
    path(points, colour, width) { this.parts.push(`<path d="M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}" fill="none" stroke="${colour}" stroke-width="${width}"/>`); }
    text(content, x, y, colour, font, align, baseline) {
      const anchor = { right: "end", center: "middle" }[align] || "start", shift = baseline === "top" ? 10 : 4;
      this.parts.push(`<text x="${x.toFixed(1)}" y="${(y + shift).toFixed(1)}" font-size="11" text-anchor="${anchor}" fill="${colour}">${content}</text>`);
    }
  }

  /** Both strips of a layer. */
  class Marginals {
    constructor({ hover, open }) {
      this.strips = ["columns", "rows"].map((axis) => new Strip({ axis, hover, open }));
      this.root = make("div", { class: "sab-strips" }, ...this.strips.map(({ root }) => root));
    }

    show({ shape, rowMeans, columnMeans, units }) {
      const [columns, rows] = this.strips;
      columns.show(columnMeans, shape[1], units?.axis === "columns" ? units : null);
      rows.show(rowMeans, shape[0], units?.axis === "rows" ? units : null);
    }

    showClasses(rows, columns) { this.strips[0].showClasses(columns); this.strips[1].showClasses(rows); }
    look({ top, left, bottom, right }) { this.strips[0].look(left, right); this.strips[1].look(top, bottom); }
    mark(cell) { this.strips[0].mark(cell ? cell.weightColumn : null); this.strips[1].mark(cell ? cell.weightRow : null); }
    redraw() { for (const strip of this.strips) { strip.drawLeaders(); strip.draw(); } }

    csv() {
      return ["line,index,unit,mean_significance_language,mean_significance_vision,language_only,vision_only,cross_modal", ...this.strips.flatMap((strip) => strip.lines())].join("\n") + "\n";
    }

    svg() {
      const width = this.strips[0].canvas.clientWidth, { colour } = window.SabLens;
      return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="380" font-family='${colour("font").replaceAll("'", "")}'><rect width="100%" height="100%" fill="${colour("surface")}"/>${this.strips.map((strip, i) => strip.svg(width, 30 + 185 * i)).join("")}</svg>`;
    }
  }

  window.SabMarginals = Marginals;
})();
