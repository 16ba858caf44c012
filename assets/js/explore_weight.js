/* The part of Explore about one weight, in its card and under the pointer: methods of the class in explore.js. */
(() => {
  "use strict";
  if (window.SabExploreWeight) return;
  const lens = window.SabLens;
  const { make } = lens;
  const { CLASSES, COLOURS, number, signed } = window.SabText;

  window.SabExploreWeight = {
    /** The card about one weight is never empty: it begins with the layer's strongest. */
    showStrongest() {
      const cell = this.maps.strongest();
      if (cell) this.hover(cell, null);
      this.weightLead.textContent = "The most significant weight of this layer. Point at a map for another, tap a cell to keep it.";
    },

    hover(cell, point) {
      clearTimeout(this.detailTimer);
      if (!cell) { this.tip.hidden = true; return; }
      const body = this.describe(cell);
      this.weightLead.textContent = this.maps.pinned ? "Kept: tap the cell again, or press Esc, to let go." : "Tap a cell to keep it here.";
      this.weightBody.replaceChildren(...body.map((node) => node.cloneNode(true)));
      if (cell.pooling !== "mean" && (cell.factor > 1 || this.maps.view.bottom - this.maps.view.top > 64)) {
        this.weightBody.append(make("button", { type: "button", class: "sab-button", onclick: () => this.focus(cell) }, "Zoom to this weight"));
      }
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
    },

    focus(cell) {
      this.maps.pin([cell.row, cell.column]);
      this.maps.focus(cell.weightRow, cell.weightColumn);
      lens.update({ pinned: `${cell.weightRow},${cell.weightColumn}` });
      this.mapHost.scrollIntoView({ behavior: "smooth", block: "nearest" });
    },

    /** log2 of vision over language significance of a whole row or column; ±40 where one of them is nothing. */
    lean(means, line) {
      const count = means.length / 2, [language, vision] = [means[line], means[count + line]];
      return language || vision ? Math.max(-40, Math.min(40, Math.log2(vision) - Math.log2(language))) : 0;
    },

    describe(cell) {
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
          terms.push(...found.stored.map(([term, value]) => [term, typeof value === "number" ? signed(value) : value]));
        }
      } else if (!mean) terms.push(["W", "…"]);
      const cause = (line, ratio) => (Math.abs(ratio) < 0.005 ? `${line}: both modalities alike`
        : Math.abs(ratio) >= 40 ? `${line}: ${ratio > 0 ? "vision" : "language"} alone`
        : `${line}: ${ratio > 0 ? "vision" : "language"} ${number(2 ** Math.abs(ratio))} × ${ratio > 0 ? "language" : "vision"}`);
      const causes = [];
      if (!mean && !this.layer.switched_off) {
        const column = `column ${cell.weightColumn}`, row = `row ${cell.weightRow}`;
        if (lens.state.kind === "input") causes.push(`Why: in ${cause(column, this.lean(this.layer.columnMeans, cell.weightColumn))}; the input decides it for the whole column.`);
        else causes.push(`Summed over ${cause(row, this.lean(this.layer.rowMeans, cell.weightRow))}.`, `Summed over ${cause(column, this.lean(this.layer.columnMeans, cell.weightColumn))}.`);
      }
      const notes = cell.factor > 1 ? [`${mean ? "Mean" : "Strongest"} of ${cell.factor} × ${cell.factor} weights.`] : [];
      return [
        make("p", { class: "sab-tip-head" }, make("i", { class: "sab-swatch", style: `background: var(--sab-${COLOURS[cell.class]})` }), make("b", {}, CLASSES[cell.class]), ` ${place}`),
        make("dl", { class: "sab-tip-terms" }, ...terms.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)))),
        ...[...causes, ...notes].map((text) => make("p", { class: "sab-note" }, text)),
      ];
    },
  };
})();
