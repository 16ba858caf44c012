/* The part of Explore that says what chance would give: methods of the class in explore.js. */
(() => {
  "use strict";
  if (window.SabExploreNull) return;
  const lens = window.SabLens;
  const { make } = lens;
  const { percent, unimodalOf, PRESETS } = window.SabText;
  const Bins = window.SabBins;

  window.SabExploreNull = {
    async showNull(start = false) {
      clearTimeout(this.nullTimer);
      if (this.layer.switched_off) {
        this.nullBins = null;
        this.nullDensity.host.hidden = true;
        this.nullPanel.hidden = false;
        this.nullPanel.replaceChildren(make("p", {}, "There is no null, for there are no two modalities to compare."));
        this.nullText.replaceChildren();
        this.chance.textContent = "";
        return;
      }
      const number = this.layerNumber, asked = (this.nullAsked = {});
      const found = await this.ask("null", start ? { start: true } : {});
      if (number !== this.layerNumber || asked !== this.nullAsked || !this.layer) return;
      const problem = found.error || (found.state === "failed" && found.message);
      const drawn = Boolean(found.bins);
      this.nullBins = drawn ? new Bins(found.bins, this.layer.code) : null;
      this.nullDensity.host.hidden = !drawn;
      this.nullPanel.hidden = drawn;
      if (drawn) this.nullDensity.draw(found.density, this.density.boundaries);
      else if (found.state === "running") {
        this.nullPanel.replaceChildren(
          make("p", {}, `Splitting the samples and mapping the halves: ${Math.round(100 * found.share)} %`),
          make("progress", { max: "1", value: String(found.share) }),
          make("p", { class: "sab-note" }, "Chat waits until this is done."));
        this.nullTimer = setTimeout(() => this.showNull(), 1000);
      } else {
        this.nullPanel.replaceChildren(
          make("p", {}, problem || (found.figures ? "The figures above are at hand; the picture of the null is computed when asked for." : "Nobody has computed the null of these maps yet.")),
          make("button", { type: "button", class: "sab-button", onclick: () => this.showNull(true) }, problem ? "Try again" : "Compute the null"),
          make("p", { class: "sab-note" }, "Three calibration seeds, in the background."));
      }
      this.nullFound = found;
      const counts = this.layer.exact.counts;
      const nulls = found.nulls && ["language", "vision"].map((name) => found.nulls[name].unimodal).filter((share) => share !== null);
      this.drawChance(this.counted || counts, nulls?.length ? nulls.reduce((sum, share) => sum + share, 0) / nulls.length : null, true);
      this.drawNullText(found);
    },

    /** Under the class counts: the unimodal share, and what chance would give. */
    drawChance(counts, chance, exact) {
      const here = unimodalOf(counts);
      this.chance.textContent = chance === null || here === null ? ""
        : `${percent(here)} of the salient weights are called unimodal; between two halves of one modality ${exact ? "" : "about "}${percent(chance)} would be.`;
    },

    drawNullText({ figures }) {
      if (!figures) { this.nullText.replaceChildren(); return; }
      const { linear, thresholds, samples, seeds, tokens_half: half } = figures;
      const worst = Math.max(linear.null_language ?? 0, linear.null_vision ?? 0);
      const fact = (value, label, about) => make("div", { title: about }, make("b", {}, value), make("span", {}, label));
      const facts = [
        fact(percent(linear.matched ?? 0), "unimodal: language against vision", `Share of the salient weights, at ${half.toLocaleString("en")} tokens a side`),
        fact(`${percent(linear.null_language ?? 0)} · ${percent(linear.null_vision ?? 0)}`, "unimodal: two halves of language · of vision", "What the same thresholds call unimodal where there is nothing to tell apart"),
        fact(percent(Math.max(0, linear.signal ?? 0)), "of the spread of S̄ ratios is signal", "Share of the variance of the log ratio that the halves do not show"),
      ];
      if (linear.stability) facts.push(fact(percent(linear.stability.same_class), `of the labels stay under ${seeds} other sets of samples`, "Equal classes among weights that are salient in either map"));
      const matched = linear.matched ?? 0, signal = linear.signal ?? 0;
      const verdict = signal < 0.5
        ? "Most of the spread here is sampling noise: do not read single labels. More calibration samples help."
        : worst > 0.6 * matched ? "The share alone says little here, for the difference threshold caps it and noise fills the cap: look at the S̄ ratio of a weight, not at its label."
          : worst > 0.25 * matched ? "More than chance, but part of these labels would come up by chance."
            : "Far more than chance.";
      const paper = Object.keys(PRESETS.Paper).every((name) => Math.abs(PRESETS.Paper[name] - thresholds[name]) < 1e-9);
      this.nullText.replaceChildren(
        make("div", { class: "sab-null-facts" }, ...facts),
        make("p", { class: "sab-note" }, `${verdict} Figures at ${paper ? "the paper's" : "the run's"} thresholds, ${samples} samples a seed.`));
    },
  };
})();
