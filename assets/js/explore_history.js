/* Undo and redo of what a person chose in Explore: thresholds, sensitivity, layer, maps and what they show. */
(() => {
  "use strict";
  if (window.SabHistory) return;
  const NAMES = ["linear", "kind", "salient_top_p", "diff_quantile", "sparsity_thr", "colour", "pooling", "views", "window", "pinned"];
  const MOST = 200;

  class History {
    /* changed() is called when there is more or less to undo or redo. */
    constructor(changed) {
      this.steps = [];
      this.at = -1;
      this.run = null;
      this.changed = changed;
    }

    /** Remember the selection if it differs from the last one that is remembered. */
    record(state) {
      if (this.run !== state.run) { this.steps = []; this.at = -1; this.run = state.run; }
      const step = Object.fromEntries(NAMES.map((name) => [name, state[name]]));
      const here = this.steps[this.at];
      if (here && NAMES.every((name) => here[name] === step[name])) return;
      this.steps = [...this.steps.slice(0, this.at + 1), step].slice(-MOST);
      this.at = this.steps.length - 1;
      this.changed();
    }

    can(by) { return this.at + by >= 0 && this.at + by < this.steps.length; }

    /** The selection before (-1) or after (1); null where there is none. */
    step(by) {
      if (!this.can(by)) return null;
      this.at += by;
      this.changed();
      return { ...this.steps[this.at] };
    }
  }

  window.SabHistory = History;
})();
