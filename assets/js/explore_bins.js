/* Counting without the server: the binned plane of both significances of one map (see viz/figures/density.py). */
(() => {
  "use strict";
  if (window.SabBins) return;
  const { ratioOf, decodeBase64 } = window.SabHeatmaps;

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

    /** Share of the weights whose significance for a modality ("language" or "vision") is at least `value`. */
    shareFrom(modality, value) {
      const place = (Math.log2(value) - this.code.low) / this.code.step + 1.5;
      const at = (place - this.first) / this.size;
      if (at <= 1) return 1;
      const marginal = this[modality];
      let above = 0;
      for (let bin = this.side - 1; bin > at; bin--) above += marginal[bin];
      const bin = Math.floor(at);
      return (above + (bin < this.side ? marginal[bin] * (bin + 1 - at) : 0)) / this.total;
    }

    /** Share of the salient weights whose two significances differ by less than `difference`. */
    quantileFrom(difference, share) {
      const { mass, row, column, apart } = this;
      const log2 = Math.log2(difference);
      const language = this.cut(this.language, share), vision = this.cut(this.vision, share);
      let all = 0, below = 0;
      for (let k = 0; k < mass.length; k++) {
        if (column[k] + 1 <= language && row[k] + 1 <= vision) continue;
        all += mass[k];
        if (apart[k] < log2) below += mass[k];
      }
      return all ? below / all : 0;
    }
  }

  window.SabBins = Bins;
})();
