/* The plane of both significances with its threshold lines, which can be dragged; and beside it the same plane between
   two halves of one modality. plotly draws the density, an SVG above it the lines, so that moving them costs nothing. */
(() => {
  "use strict";
  if (window.SabDensities) return;
  const { sparsityOf } = window.SabHeatmaps;
  const SVG = "http://www.w3.org/2000/svg";
  const STEPS = 80;

  /* What a line stands for, how it is drawn, and how a pointer takes hold of it. */
  const LINES = {
    "salient-language": { colour: "language", cursor: "ew-resize", threshold: "salient_top_p" },
    "salient-vision": { colour: "vision", cursor: "ns-resize", threshold: "salient_top_p" },
    "ratio-above": { colour: "cross", cursor: "nwse-resize", threshold: "sparsity_thr" },
    "ratio-below": { colour: "cross", cursor: "nwse-resize", threshold: "sparsity_thr" },
    "difference-above": { colour: "muted", cursor: "nwse-resize", threshold: "diff_quantile" },
    "difference-below": { colour: "muted", cursor: "nwse-resize", threshold: "diff_quantile" },
  };

  const log = (value, otherwise) => (value > 0 && Number.isFinite(value) ? Math.log10(value) : otherwise);

  /** Points (log10) of every line between two ends of the axes. */
  function pointsOf(boundaries, low, high) {
    const language = log(boundaries.language, high + 1), vision = log(boundaries.vision, high + 1);
    const tilt = log(boundaries.ratio, high - low + 1);
    const along = Array.from({ length: STEPS }, (_, i) => low + ((high - low) * i) / (STEPS - 1));
    const other = along.map((x) => Math.log10(10 ** x + Math.max(boundaries.difference ?? 0, 0)));
    return {
      "salient-language": [[language, language], [low, high]],
      "salient-vision": [[low, high], [vision, vision]],
      "ratio-above": [[low, high], [low + tilt, high + tilt]],
      "ratio-below": [[low, high], [low - tilt, high - tilt]],
      "difference-above": [along, other],
      "difference-below": [other, along],
    };
  }

  class Density {
    /* host: where plotly draws. drag(threshold, value) while a line moves, release() afterwards; bins() the binned plane
       of the map, by which a place becomes a threshold. */
    constructor({ host, drag, release, bins, thresholds }) {
      Object.assign(this, { host, bins, thresholds });
      this.plot = window.SabLens.make("div", { class: "sab-plot sab-density sab-loading" });
      this.svg = document.createElementNS(SVG, "svg");
      this.svg.setAttribute("class", "sab-cuts");
      this.svg.setAttribute("aria-hidden", "true");
      const clip = document.createElementNS(SVG, "clipPath");
      clip.id = `sab-clip-${Math.random().toString(36).slice(2)}`;
      this.frame = document.createElementNS(SVG, "rect");
      clip.append(this.frame);
      const group = document.createElementNS(SVG, "g");
      group.setAttribute("clip-path", `url(#${clip.id})`);
      this.svg.append(clip, group);
      this.paths = {};
      for (const [name, { colour, cursor, threshold }] of Object.entries(LINES)) {
        const line = document.createElementNS(SVG, "path"), hold = document.createElementNS(SVG, "path");
        line.setAttribute("style", `fill: none; stroke: var(--sab-${colour}); stroke-width: 1.75`);
        hold.setAttribute("style", `fill: none; stroke: transparent; stroke-width: 15; pointer-events: stroke; cursor: ${cursor}; touch-action: none`);
        hold.dataset.line = name;
        const title = document.createElementNS(SVG, "title");
        title.textContent = { salient_top_p: "Drag: share of salient weights", sparsity_thr: "Drag: ρ threshold", diff_quantile: "Drag: difference that counts" }[threshold];
        hold.append(title);
        group.append(line, hold);
        this.paths[name] = [line, hold];
        hold.addEventListener("pointerdown", (event) => {
          if (event.button > 0) return;
          event.preventDefault();
          hold.setPointerCapture(event.pointerId);
          line.style.strokeWidth = 3;
          const move = (moved) => {
            const value = this.thresholdAt(name, moved);
            if (value !== null) drag(threshold, value);
          };
          const end = () => {
            hold.removeEventListener("pointermove", move);
            line.style.strokeWidth = 1.75;
            release();
          };
          hold.addEventListener("pointermove", move);
          hold.addEventListener("lostpointercapture", end, { once: true });
        });
      }
      host.append(this.plot, this.svg);
    }

    async draw(figure, boundaries) {
      this.boundaries = boundaries;
      const Plotly = await window.SabLens.plotly().catch(() => null);
      if (!Plotly) return;
      this.plot.classList.remove("sab-loading");
      this.figure = figure;
      await Plotly.react(this.plot, figure.data, { ...figure.layout, shapes: [] }, window.SabLens.plotlyOptions);
      if (!this.listening) {
        this.listening = true;
        this.plot.on("plotly_afterplot", () => this.move(this.boundaries));
      }
      this.move(this.boundaries);
    }

    /** Where the axes lie, in pixels of the plot, and their ends in log10. */
    axes() {
      const layout = this.plot._fullLayout;
      if (!this.figure || !layout?._size) return null;
      const { l, t, w, h } = layout._size;
      const [low, high] = this.figure.layout.xaxis.range;
      return { x: l, y: t, width: w, height: h, low, high };
    }

    /** Put the lines where the thresholds cut. */
    move(boundaries) {
      this.boundaries = boundaries;
      const axes = this.axes();
      if (!axes) return;
      const { x, y, width, height, low, high } = axes;
      for (const [name, value] of Object.entries({ x, y, width, height })) this.frame.setAttribute(name, value);
      const points = pointsOf(boundaries, low, high);
      for (const [name, [across, up]] of Object.entries(points)) {
        const path = across.map((value, i) =>
          `${i ? "L" : "M"}${(x + ((value - low) / (high - low)) * width).toFixed(1)} ${(y + height - ((up[i] - low) / (high - low)) * height).toFixed(1)}`).join("");
        for (const part of this.paths[name]) part.setAttribute("d", path);
      }
    }

    /** The threshold that would put a line under the pointer. */
    thresholdAt(name, event) {
      const axes = this.axes(), bins = this.bins();
      if (!axes || !bins) return null;
      const box = this.plot.getBoundingClientRect();
      const place = (value, size) => axes.low + Math.min(1, Math.max(0, value / size)) * (axes.high - axes.low);
      const x = place(event.clientX - box.left - axes.x, axes.width);
      const y = place(axes.height - (event.clientY - box.top - axes.y), axes.height);
      if (name === "salient-language") return bins.shareFrom("language", 10 ** x);
      if (name === "salient-vision") return bins.shareFrom("vision", 10 ** y);
      if (name.startsWith("ratio")) return sparsityOf(Math.abs(y - x) / Math.log10(2));
      return bins.quantileFrom(Math.abs(10 ** x - 10 ** y), this.thresholds().salient_top_p);
    }

    /** The figure as it is seen, lines included, for a download. */
    seen() {
      const axes = this.axes();
      if (!axes) return null;
      const points = pointsOf(this.boundaries, axes.low, axes.high);
      const shapes = Object.entries(points).map(([name, [across, up]]) => ({
        type: "path", name, path: "M" + across.map((value, i) => `${value.toFixed(4)},${up[i].toFixed(4)}`).join("L"),
        line: { color: window.SabLens.colour(LINES[name].colour), width: 1.75 },
      }));
      return { data: this.figure.data, layout: { ...this.figure.layout, shapes } };
    }
  }

  window.SabDensities = { Density };
})();
