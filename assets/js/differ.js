// Why did they differ: a map of blocks by linears, coloured by how much of the KL each swap repairs or causes.
// `value` (viz/pages/differ.py): {state, message, ready, sides: [[side, name]], side, diverged, histories} and, once
// something was swapped, {share, token, words, read, whole: [at, mean], tokens, run: [id], name, columns: [[kind, short]],
// rows: [name], cells: [{names, row, column, repair: [at, mean], damage: [at, mean]}]}. `layer`: what is known of one;
// `refit`: how far a layer is that is being fitted anew (as in viz/pages/progress.py).
SabLens.mountDiffer = ({ element, props, watch, find, halt, layer, refit }) => {
  const make = SabLens.make, root = element.querySelector('.df');
  const WORDS = {
    repair: ['Swap back', 'One linear of the binarized model goes back to full precision: how much of the KL it repairs.'],
    damage: ['Swap in', 'One binarized linear goes into the full-precision model: how much of the KL it causes alone.'],
  };
  let direction = 'repair', measure = 0, chosen = '', feedOf = 'error', side = '';

  const nats = (value) => value === null || value === undefined ? '–' : value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3);
  const percent = (share) => `${Math.round(100 * share)} %`.replace('-', '−');
  const title = (names) => names.length === 1 ? names[0].replace(/^.*?(?=layers\.|blocks\.)/, '') : `all ${names.length} linears`;
  const short = (cell) => cell.names.length === 1 ? `${cell.row} · ${cell.column}` : `${cell.row}, all of it`;
  const id = (cell) => cell.names.join(' ');

  // Repaired: what went, as a share of the whole; caused: what came. Both 1 when this swap does all of it.
  function share(cell) {
    const value = props.value, swapped = cell[direction], whole = value.whole[measure];
    if (!swapped || swapped[measure] === null || !(whole > 0)) return null;
    return direction === 'repair' ? 1 - swapped[measure] / whole : swapped[measure] / whole;
  }

  function segment(label, options, current, choose) {
    const group = make('div', { class: 'sab-segment', role: 'group', 'aria-label': label });
    for (const [key, text, disabled] of options) {
      group.append(make('button', { type: 'button', 'aria-pressed': String(key === current), disabled: Boolean(disabled), onclick: () => choose(key) }, text));
    }
    return group;
  }

  function head(value) {
    const busy = /waiting|writing|loading/.test(value.state), again = value.cells;
    const bar = make('header', { class: 'df-head' }, make('h2', {}, 'Why did they differ?'));
    if (value.sides.length > 1 && !busy) {
      bar.append(segment('Which side to search', value.sides, side, (key) => { side = key; draw(); }));
    }
    if (busy) bar.append(make('button', { type: 'button', class: 'sab-button', onclick: halt }, 'Stop'));
    else if (value.ready) {
      bar.append(make('button', { type: 'button', class: again ? 'sab-button' : 'sab-button primary', onclick: () => find({ side }) },
        again ? 'Search again' : 'Find the layers'));
    }
    return bar;
  }

  function progress(value) {
    const part = Math.round(100 * (value.share || 0));
    return make('div', { class: 'pg-bar', role: 'progressbar', 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': part, 'aria-label': 'Layers swapped' },
      make('div', { class: 'pg-fill', style: `width:${part}%` }));
  }

  function paint(button, part) {
    const amount = Math.min(1, Math.abs(part)), [low, zero, high] = SabLens.colour('diverging').split(',').map((text) => text.trim());
    button.style.background = `color-mix(in srgb, ${part < 0 ? low : high} ${Math.round(100 * amount)}%, ${zero})`;
    button.classList.toggle('strong', amount > 0.6);
  }

  function map(value) {
    const table = make('div', { class: 'df-map', role: 'grid', 'aria-label': 'Blocks by linears', style: `--columns:${value.columns.length}` });
    table.append(make('div', { class: 'df-row', role: 'row' }, make('span', { class: 'df-corner' }),
      ...value.columns.map(([kind, text]) => make('span', { class: 'df-column', role: 'columnheader', title: kind }, text))));
    for (const row of value.rows) {
      const line = make('div', { class: 'df-row', role: 'row' }, make('span', { class: 'df-name', role: 'rowheader' }, row));
      for (const [kind] of value.columns) {
        const cell = value.cells.find((each) => each.row === row && each.column === kind), part = cell ? share(cell) : null;
        if (!cell) { line.append(make('span', { class: 'df-cell none', role: 'gridcell' })); continue; }
        const button = make('button', { type: 'button', class: 'df-cell', role: 'gridcell', 'aria-pressed': String(id(cell) === chosen),
          'aria-label': part === null ? `${short(cell)}: not swapped yet` : `${short(cell)}: ${percent(part)}`, title: part === null ? '' : sentence(cell) });
        button.dataset.cell = id(cell);
        if (part !== null) { button.textContent = Math.round(100 * part); paint(button, part); } else button.classList.add('empty');
        button.addEventListener('click', () => choose(cell));
        button.addEventListener('dblclick', () => open(cell));
        line.append(button);
      }
      table.append(line);
    }
    table.addEventListener('keydown', (event) => {
      const buttons = [...table.querySelectorAll('button')], at = buttons.indexOf(event.target);
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: value.columns.length, ArrowUp: -value.columns.length }[event.key];
      if (at < 0 || !step) return;
      event.preventDefault();
      buttons[at + step]?.focus();
    });
    return table;
  }

  function sentence(cell) {
    const value = props.value, part = share(cell), swapped = cell[direction][measure], whole = value.whole[measure];
    const what = measure ? 'mean KL' : 'KL';
    if (direction === 'damage') return `${short(cell)}: alone in the full-precision model it causes ${nats(swapped)} of ${nats(whole)} nats (${percent(part)}).`;
    const done = part < 0 ? `it gets worse by ${percent(-part)}` : `${percent(part)} repaired`;
    return `${short(cell)}: back in full precision, ${what} goes from ${nats(whole)} to ${nats(swapped)} nats (${done}).`;
  }

  function ranking(value) {
    const ranked = value.cells.filter((cell) => cell.names.length === 1 && share(cell) !== null).sort((a, b) => share(b) - share(a)).slice(0, 5);
    const list = make('ol', { class: 'df-rank' });
    for (const cell of ranked) {
      const part = share(cell), bar = make('i', { style: `width:${Math.max(0, Math.min(100, 100 * part))}%` });
      list.append(make('li', {}, make('button', { type: 'button', onclick: () => choose(cell), title: sentence(cell) },
        make('span', {}, short(cell)), make('span', { class: 'track' }, bar), make('b', {}, percent(part)))));
    }
    return list;
  }

  function choose(cell) {
    chosen = id(cell);
    if (cell.names.length === 1) layer({ names: cell.names });
    draw();
    root.querySelector(`[data-cell="${CSS.escape(chosen)}"]`)?.focus({ preventScroll: true });
  }

  function open(cell) {
    const linear = cell.names[0], run = props.layer && props.layer.name === linear ? props.layer.run : props.value.run[0];
    SabLens.update({ tab: 'explore', linear, run }, { push: true });
  }

  // The picture's tokens over the picture: the more a token feeds the layer, the stronger its square.
  function overlay(found) {
    const { grid: [rows, columns], picture } = found, values = found[feedOf], largest = Math.max(...values, 1e-12), least = Math.min(...values);
    const box = make('div', { class: 'df-picture' }, make('img', { src: picture, alt: 'the picture of this conversation' }));
    const net = make('div', { class: 'df-net', style: `grid-template-columns:repeat(${columns},1fr);grid-template-rows:repeat(${rows},1fr)` });
    values.forEach((amount, place) => {
      const strength = largest > least ? (amount - least) / (largest - least) : 0;
      const square = make('span', { title: `visual token ${place + 1}: ${amount.toPrecision(4)}` });
      square.style.setProperty('--feed', strength.toFixed(3));
      net.append(square);
    });
    box.append(net);
    return box;
  }

  function detail(value) {
    const cell = value.cells.find((each) => id(each) === chosen), box = make('div', { class: 'df-layer' });
    if (!cell) { box.append(make('p', { class: 'sab-note' }, 'Press a cell: how the picture feeds that layer, and the way to Explore.')); return box; }
    box.append(make('h3', {}, short(cell)), make('p', { class: 'sab-note' }, share(cell) === null ? 'Not swapped yet.' : sentence(cell)));
    if (cell.names.length > 1) return box;
    box.append(make('button', { type: 'button', class: 'sab-button', title: title(cell.names), onclick: () => open(cell) }, 'Open in Explore'));
    const known = props.layer && props.layer.name === cell.names[0] ? props.layer : null;
    if (!known) return box;
    const facts = make('dl', { class: 'cv-facts' });
    for (const [label, text] of known.facts) facts.append(make('div', {}, make('dt', {}, label), make('dd', {}, text)));
    box.append(facts);
    if (known.feed) {
      const part = Math.round(100 * known.feed[`${feedOf}_share`]);
      box.append(segment('What is shown over the picture', [['error', 'Error ‖(W−Ŵ)x‖'], ['signal', 'Output ‖Wx‖']], feedOf, (key) => { feedOf = key; draw(); }),
        overlay(known.feed),
        make('p', { class: 'sab-note' }, feedOf === 'error'
          ? `How much output error the binarized weight makes at each of the ${known.feed.error.length} visual tokens, from least to most; ${part} % of this layer's squared error over the whole text lies on the picture.`
          : `How large the layer's output is at each visual token, from least to most; ${part} % of its squared output over the whole text lies on the picture.`));
    } else box.append(make('p', { class: 'sab-note' }, 'No visual token feeds this layer here: the question has no picture, or the layer stands in front of the decoder.'));
    box.append(form(known));
    return box;
  }

  // Another method for this layer alone; what was chosen stays while the card is drawn anew.
  let wanted = {};
  function form(known) {
    if (wanted.name !== known.name) wanted = { name: known.name, method: known.method, top: known.top };
    const running = props.refit && /waiting|running/.test(props.refit.state);
    const method = make('select', { class: 'sab-field', 'aria-label': 'Method for this layer', disabled: Boolean(running) },
      ...known.methods.map(([key, label]) => make('option', { value: key, selected: key === wanted.method }, label)));
    const weighted = () => known.methods.find(([key]) => key === wanted.method)?.[2];
    const top = make('input', { class: 'sab-field', type: 'number', min: 0.1, max: 50, step: 0.1, value: +(100 * wanted.top).toFixed(2), disabled: Boolean(running) });
    const share = make('label', { class: 'df-top', hidden: !weighted() }, 'Salient share, %', top);
    method.addEventListener('change', () => { wanted.method = method.value; share.hidden = !weighted(); });
    top.addEventListener('input', () => { wanted.top = Number(top.value) / 100; });
    const box = make('div', { class: 'df-form' }, make('h3', {}, 'Fit this layer anew'), method, share);
    if (running) {
      const part = Math.round(100 * (props.refit.share || 0));
      box.append(make('p', { class: 'sab-note', role: 'status' }, props.refit.stage), make('div', { class: 'pg-bar' }, make('div', { class: 'pg-fill', style: `width:${part}%` })),
        make('button', { type: 'button', class: 'sab-button', onclick: halt }, 'Stop'));
    } else {
      box.append(make('button', { type: 'button', class: 'sab-button', onclick: () => refit({ ...wanted }) }, 'Fit and answer again'));
      if (props.refit && props.refit.message) box.append(make('p', { class: 'sab-note', role: 'status' }, props.refit.message));
      else box.append(make('p', { class: 'sab-note' }, 'Only this layer is fitted, on the inputs of the full-precision model; the other layers stay as they are.'));
    }
    return box;
  }

  function table(value) {
    return value.cells.map((cell) => ({ row: cell.row, column: cell.column, names: cell.names.join(' '),
      kl_repaired_at_token: cell.repair?.[0] ?? null, kl_repaired_mean: cell.repair?.[1] ?? null,
      kl_caused_at_token: cell.damage?.[0] ?? null, kl_caused_mean: cell.damage?.[1] ?? null }));
  }
  function save(value, kind) {
    const rows = table(value), name = 'sab-lens-why-they-differ';
    if (kind === 'json') {
      SabLens.save(JSON.stringify({ model: value.name, run: value.run, token: value.token, text: value.read, kl_at_token: value.whole[0], kl_mean: value.whole[1], swaps: rows }, null, 1), `${name}.json`, 'application/json');
      return;
    }
    const columns = Object.keys(rows[0]);
    SabLens.save([columns, ...rows.map((row) => columns.map((column) => row[column] ?? ''))].map((row) => row.join(',')).join('\n'), `${name}.csv`, 'text/csv');
  }

  function draw() {
    const value = props.value;
    root.hidden = !value || value.state === 'hidden';
    if (root.hidden) return;
    if (!value.sides.some(([each]) => each === side)) side = value.side;
    const busy = /waiting|writing|loading/.test(value.state), parts = [head(value)];
    if (!value.cells && !value.message && !busy) parts.push(make('p', { class: 'sab-note' },
      'One layer after the other goes back to full precision, and each is ranked by how much of the difference it repairs; then each binarized layer goes by itself into the full model.'));
    if (value.message) parts.push(make('p', { class: value.state === 'failed' ? 'cv-message bad' : 'cv-message', role: 'status' }, value.message));
    if (busy) parts.push(progress(value));
    if (value.cells) {
      if (value.token === null) measure = 1;
      const where = value.token === null ? `No token differs. Mean KL(full ‖ ${value.name}) over the ${value.tokens} tokens of the answer: ${nats(value.whole[1])} nats.`
        : `At token ${value.token}, where “${value.words[0]}” stands against “${value.words[1]}”, KL(full ‖ ${value.name}) is ${nats(value.whole[0])} nats; over the answer's ${value.tokens} tokens ${nats(value.whole[1])} on average.`;
      parts.push(make('p', { class: 'df-where' }, where));
      const tools = make('div', { class: 'df-tools' },
        segment('Direction', Object.entries(WORDS).map(([key, [text]]) => [key, text]), direction, (key) => { direction = key; draw(); }),
        segment('Measured', [[0, 'At this token', value.token === null], [1, 'Mean of the answer']], measure, (key) => { measure = key; draw(); }),
        make('span', { class: 'df-save' }, make('button', { type: 'button', class: 'sab-button', onclick: () => save(value, 'csv') }, 'CSV'),
          make('button', { type: 'button', class: 'sab-button', onclick: () => save(value, 'json') }, 'JSON')));
      const scale = make('p', { class: 'df-scale' }, make('span', {}, '−100 %'), make('i'), make('span', {}, '100 %'),
        make('span', { class: 'df-unit' }, direction === 'repair' ? 'of the KL repaired (below 0: worse)' : 'of the KL caused alone'));
      parts.push(tools, make('p', { class: 'sab-note' }, WORDS[direction][1]),
        make('div', { class: 'df-body' }, make('div', { class: 'df-left' }, make('div', { class: 'df-scroll' }, map(value)), scale, ranking(value)), detail(value)));
      const more = make('details', { class: 'df-limits' }, make('summary', {}, 'What this ranking can mean, and what not'));
      more.append(make('p', {}, 'It says which single layer, put back, brings this one prediction nearest to full precision. Repairs do not add up: errors of layers cancel and amplify each other, so two repairs of 60 % may repair 70 % together. A layer may repair because it makes good an error made elsewhere; put back where its own error made good another’s, it makes matters worse. One token after one text about one picture says nothing of other texts. Only everything put back repairs everything.'));
      if (value.histories) more.append(make('p', {}, 'Earlier turns: both models read the answers that the full-precision side (else the left one) gave.'));
      parts.push(more);
    }
    const opened = root.querySelector('details')?.open, held = document.activeElement?.dataset?.cell;
    root.replaceChildren(...parts);
    if (opened) root.querySelector('details').open = true;
    if (held) root.querySelector(`[data-cell="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  }

  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && element.isConnected && element.offsetParent && /waiting|writing|loading/.test(props.value?.state)) halt();
  });
  SabLens.subscribe((state, changed) => { if (changed.includes('theme')) draw(); });
  watch(['value', 'layer', 'refit'], draw);
  draw();
};
