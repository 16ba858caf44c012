/* Names, presets and numbers as Explore writes them. */
(() => {
  "use strict";
  if (window.SabText) return;

  const CLASSES = ["neither", "language-only", "vision-only", "cross-modal"];
  const COLOURS = ["neither", "language", "vision", "cross"];
  const PRESETS = {
    Paper: { salient_top_p: 0.05, diff_quantile: 0.5, sparsity_thr: 0.005 },
    Strict: { salient_top_p: 0.01, diff_quantile: 0.75, sparsity_thr: 0.1 },
    Loose: { salient_top_p: 0.1, diff_quantile: 0.25, sparsity_thr: 0.001 },
  };

  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(1)} %` : `${Number((100 * share).toPrecision(2))} %`);
  const number = (value) => (value === 0 ? "0" : value >= 100 ? value.toFixed(0) : value >= 0.01 ? Number(value.toPrecision(3)).toString() : value >= 1e-4 ? Number(value.toPrecision(2)).toString() : value.toExponential(1));
  const signed = (value) => (value < 0 ? `−${number(-value)}` : number(value));
  const unimodalOf = ([, language, vision, cross]) => (language + vision + cross > 0 ? (language + vision) / (language + vision + cross) : null);

  window.SabText = { CLASSES, COLOURS, PRESETS, capital, percent, number, signed, unimodalOf };
})();
