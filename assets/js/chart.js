// One plotly figure that lives as long as the page: a new value redraws the same div, so zoom and hover stay.
// The value is written by viz/pages/chart.py: {name, light, dark, words, empty, frames, controls}. With controls,
// sliders over the figure choose among the frames in the browser, without asking the server.
SabLens.mountChart = ({ element, props, watch }) => {
  const root = element.querySelector('.ch');
  const plot = element.querySelector('.ch-plot');
  const controls = element.querySelector('.ch-controls');
  const words = element.querySelector('.ch-words');
  const NARROW = 560, PAPER = 640; // pixels; PAPER fits between the margins of A4 and of US letter
  let places = [], built = '', drawn = '';

  const narrow = () => !SabLens.printing && element.clientWidth < NARROW;
  const frame = () => {
    const { frames, controls: all } = props.value;
    if (!frames) return null;
    return frames[all.reduce((number, control, index) => number * control.steps.length + places[index], 0)];
  };

  // A dotted key ("xaxis.domain") reaches into the layout; everything on the way is copied, never changed.
  function assign(layout, changes) {
    for (const [path, value] of Object.entries(changes || {})) {
      const keys = path.split('.'), last = keys.pop();
      let place = layout;
      for (const key of keys) { place[key] = Array.isArray(place[key]) ? [...place[key]] : { ...place[key] }; place = place[key]; }
      place[last] = value;
    }
  }

  // One drawing at a time: what changes meanwhile is drawn once, afterwards.
  let busy = false, again = false;
  async function draw() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do { again = false; await drawOnce(); } while (again);
    } finally { busy = false; }
  }

  async function drawOnce() {
    const value = props.value, filled = Boolean(value && value.light);
    root.classList.toggle('filled', filled);
    words.textContent = filled ? (frame()?.words ?? value.words) : (value?.empty ?? '');
    if (!filled || !element.clientWidth) return;
    const Plotly = await SabLens.plotly();
    const seen = look(), base = SabLens.dark ? value.dark : value.light, step = frame();
    const data = base.data.map((trace, index) => ({ ...trace, ...(step?.data[index] || {}) }));
    const layout = { ...base.layout, height: base.layout.meta.height };
    if (narrow()) assign(layout, base.layout.meta.narrow);
    layout.width = SabLens.printing ? PAPER : plot.clientWidth;
    await Plotly.react(plot, data, layout, {
      displaylogo: false, showSendToCloud: false, scrollZoom: false, displayModeBar: narrow() ? false : 'hover',
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'zoomIn2d', 'zoomOut2d', 'pan2d'],
      modeBarButtonsToAdd: [{
        name: 'Download as SVG', icon: Plotly.Icons.disk,
        click: (node) => Plotly.downloadImage(node, { format: 'svg', filename: value.name }),
      }],
      toImageButtonOptions: { format: 'png', scale: 2, filename: value.name },
    });
    drawn = seen;
  }

  const look = () => [element.clientWidth, SabLens.dark, SabLens.printing].join();
  const redraw = () => { if (drawn !== look()) draw(); };

  function buildControls() {
    const wanted = props.value?.controls || [], shape = JSON.stringify(wanted);
    if (shape === built) return;
    built = shape;
    places = wanted.map((control) => control.start);
    controls.replaceChildren(...wanted.map((control, index) => {
      const label = document.createElement('label'), name = document.createElement('span');
      const range = document.createElement('input'), output = document.createElement('output');
      name.textContent = control.label;
      Object.assign(range, { type: 'range', min: 0, max: control.steps.length - 1, step: 1, value: control.start });
      const tell = () => {
        output.textContent = control.steps[places[index]];
        range.style.setProperty('--range_progress', `${(100 * places[index]) / Math.max(1, control.steps.length - 1)}%`);
        range.setAttribute('aria-valuetext', output.textContent);
      };
      range.addEventListener('input', () => { places[index] = Number(range.value); tell(); draw(); });
      tell();
      label.append(name, range, output);
      return label;
    }));
  }

  const update = () => { buildControls(); draw(); };
  watch('value', update);
  new ResizeObserver(redraw).observe(element);
  for (const event of ['beforeprint', 'afterprint']) window.addEventListener(event, redraw);
  new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ['class'] });
  update();
};
