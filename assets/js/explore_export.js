/* The part of Explore that writes files: methods of the class in explore.js. */
(() => {
  "use strict";
  if (window.SabExploreExport) return;
  const lens = window.SabLens;
  const { make } = lens;
  const { CLASSES } = window.SabText;
  const { VIEWS } = window.SabHeatmaps;

  window.SabExploreExport = {
    exporter(what, file) {
      const entries = what === "maps"
        ? { PNG: () => this.exportMaps("png"), SVG: () => this.exportMaps("svg"), "CSV (cells shown)": () => this.exportCells(), "JSON (this layer)": () => this.exportLayer() }
        : what === "lines" ? { PNG: () => this.exportLines("png"), SVG: () => this.exportLines("svg"), CSV: () => this.exportLines("csv") }
        : { PNG: () => this.exportPlot(what, file, "png"), SVG: () => this.exportPlot(what, file, "svg"), JSON: () => this.exportPlot(what, file, "json") };
      const details = make("details", { class: "sab-export" }, make("summary", { title: "Export" }, "Export"),
        make("div", {}, ...Object.entries(entries).map(([label, run]) =>
          make("button", { type: "button", onclick: () => { details.open = false; run(); } }, label))));
      details.addEventListener("focusout", (event) => { if (!details.contains(event.relatedTarget)) details.open = false; });
      return details;
    },

    fileName(what) {
      const layer = lens.state.linear.split(".").slice(-3).join("-");
      return `sab-lens-${lens.state.run}-${layer}-${what}`;
    },

    async exportPlot(what, file, format) {
      const Plotly = window.Plotly;
      if (!Plotly || !this.gridData) return;
      const layered = what === "density";
      const figures = layered ? { density: this.density.seen(), null: this.nullBins && this.nullDensity.seen() } : { [what]: what === "grid" ? this.gridData : this.depthData };
      const plot = { grid: this.grid, depth: this.depth, density: this.density.plot }[what];
      for (const [name, figure] of Object.entries(figures)) {
        if (!figure) continue;
        const filename = layered ? this.fileName(name) : `sab-lens-${file}`;
        if (format === "json") {
          lens.save(JSON.stringify({ data: figure.data, layout: { xaxis: figure.layout.xaxis, yaxis: figure.layout.yaxis, shapes: figure.layout.shapes } }), `${filename}.json`, "application/json");
        } else {
          await Plotly.downloadImage({ data: figure.data, layout: { ...figure.layout, paper_bgcolor: lens.colour("surface") } }, { format, filename, width: plot.clientWidth, height: plot.clientHeight, scale: format === "png" ? 2 : 1 });
        }
      }
    },

    exportLines(format) {
      if (!this.layer) return;
      const name = this.fileName("lines");
      if (format === "csv") { lens.save(this.marginals.csv(), `${name}.csv`, "text/csv"); return; }
      if (format === "svg") { lens.save(this.marginals.svg(), `${name}.svg`, "image/svg+xml"); return; }
      this.rasterise(this.marginals.svg(), (blob) => lens.save(blob, `${name}.png`));
    },

    /** An SVG as PNG, twice as sharp. */
    rasterise(svg, done) {
      const picture = new Image();
      picture.onload = () => {
        const canvas = make("canvas", { width: 2 * picture.width, height: 2 * picture.height });
        canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
        canvas.toBlob(done);
      };
      picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
    },

    /** The maps as they stand; in SVG titles are text and the cells of each map a picture. */
    exportMaps(format) {
      const panels = this.maps.order.map((name) => [name, this.maps.panels.get(name)]);
      if (!panels.length || !this.layer) return;
      const scale = window.devicePixelRatio || 1;
      const [width, height] = [panels[0][1].canvas.width / scale, panels[0][1].canvas.height / scale];
      const across = Math.min(3, panels.length), down = Math.ceil(panels.length / across);
      const head = 30, gap = 14, top = 34;
      const size = [across * (width + gap) + gap, top + down * (height + head + gap)];
      const caption = `${this.title.textContent} · ${lens.run().name} · ${this.poolNote.textContent}`;
      const place = (index) => [gap + (index % across) * (width + gap), top + Math.floor(index / across) * (height + head + gap)];
      if (format === "svg") {
        const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
        const parts = panels.map(([name, panel], index) => {
          const [x, y] = place(index);
          return `<text x="${x}" y="${y + 18}" font-size="13" font-weight="600">${escaped(VIEWS[name].title)}</text><image x="${x}" y="${y + head}" width="${width}" height="${height}" href="${panel.canvas.toDataURL("image/png")}"/>`;
        });
        const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${size[0]}" height="${size[1]}" font-family='${lens.colour("font").replaceAll("'", "")}' fill="${lens.colour("text")}"><rect width="100%" height="100%" fill="${lens.colour("surface")}"/><text x="${gap}" y="22" font-size="15" font-weight="600">${escaped(caption)}</text>${parts.join("")}</svg>`;
        lens.save(svg, `${this.fileName("maps")}.svg`, "image/svg+xml");
        return;
      }
      const canvas = make("canvas", { width: Math.round(size[0] * scale), height: Math.round(size[1] * scale) });
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      context.fillStyle = lens.colour("surface");
      context.fillRect(0, 0, ...size);
      context.fillStyle = lens.colour("text");
      context.font = `600 15px ${lens.colour("font")}`;
      context.fillText(caption, gap, 22);
      context.font = `600 13px ${lens.colour("font")}`;
      panels.forEach(([name, panel], index) => {
        const [x, y] = place(index);
        context.fillText(VIEWS[name].title, x, y + 18);
        context.drawImage(panel.canvas, x, y + head, width, height);
      });
      canvas.toBlob((blob) => lens.save(blob, `${this.fileName("maps")}.png`));
    },

    /** The server writes it: what is drawn here comes from 16-bit codes, and a few weights at a cut may fall otherwise. */
    async exportCells() {
      const tile = this.maps.best();
      if (!tile) return;
      const { row, column, rows, columns, factor } = tile, { top, left, bottom, right } = this.maps.view;
      const rectangle = [row, column, row + rows * factor, column + columns * factor];
      const found = await this.ask("cells", { rectangle, view: [top, left, bottom, right] });
      if (found.error) { lens.toast(found.error); return; }
      lens.save(found.csv, `${this.fileName("cells")}.csv`, "text/csv");
    },

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
    },
  };
})();
