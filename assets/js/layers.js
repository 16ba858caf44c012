// A grid of the model's layers to tick: a row a block. The value is {rows: [{part, label, cells: [{name, kind}]}], chosen}.
// A click ticks a layer, a click on the label of a row or a column all of them there; `chosen` goes back with the form.
SabLens.mountLayers = ({ element, props, watch }) => {
  const root = element.querySelector('.ly'), make = SabLens.make;
  const short = (kind) => kind.replace(/_proj$/, '');
  let chosen = new Set();

  function toggle(names) {
    const all = names.every((name) => chosen.has(name));
    names.forEach((name) => (all ? chosen.delete(name) : chosen.add(name)));
    props.value = { ...props.value, chosen: [...chosen] };
    mark();
  }

  function mark() {
    for (const cell of root.querySelectorAll('[data-name]')) cell.setAttribute('aria-pressed', String(chosen.has(cell.dataset.name)));
    const count = root.querySelector('.ly-count');
    if (count) count.textContent = chosen.size ? `${chosen.size} ${chosen.size === 1 ? 'layer' : 'layers'} ticked` : 'No layer ticked yet.';
  }

  function draw() {
    const value = props.value;
    chosen = new Set(value?.chosen || []);
    const parts = new Map();
    for (const row of value?.rows || []) parts.set(row.part, [...(parts.get(row.part) || []), row]);
    const tables = [...parts].map(([part, rows]) => {
      const kinds = [...new Set(rows.flatMap((row) => row.cells.map((cell) => cell.kind)))];
      const head = make('tr', {}, make('td', {}), ...kinds.map((kind) => make('th', { scope: 'col' },
        make('button', { type: 'button', title: `${kind} of every block`, onclick: () => toggle(rows.flatMap((row) => row.cells.filter((cell) => cell.kind === kind).map((cell) => cell.name))) }, short(kind)))));
      const lines = rows.map((row) => make('tr', {},
        make('th', { scope: 'row' }, make('button', { type: 'button', onclick: () => toggle(row.cells.map((cell) => cell.name)) }, row.label)),
        ...kinds.map((kind) => make('td', {}, ...row.cells.filter((cell) => cell.kind === kind).map((cell) =>
          make('button', { type: 'button', class: 'ly-cell', 'data-name': cell.name, 'aria-label': `${row.label}, ${kind}`, title: cell.name, onclick: () => toggle([cell.name]) }))))));
      const grid = make('table', {}, make('thead', {}, head), make('tbody', {}, ...lines));
      return make('details', { open: part === 'decoder' || rows.some((row) => row.cells.some((cell) => chosen.has(cell.name))) }, make('summary', {}, part), grid);
    });
    root.replaceChildren(...tables, make('p', { class: 'ly-count', role: 'status' }));
    mark();
  }

  watch('value', () => { if (JSON.stringify(props.value?.chosen || []) !== JSON.stringify([...chosen]) || !root.querySelector('[data-name]')) draw(); });
  draw();
};
