// A table of plain text that sorts in the browser; a row with an id may be chosen.
// The value is {columns: [{label, number, hint}], rows: [{id, tag, cells: [text], sort: [number | text | null]}], empty,
// choose: "run" | "", pins}. "run": a click chooses the run for the whole page. With `pins` each row may be pinned as A or B of a comparison.
SabLens.mountTable = ({ element, props, watch }) => {
  const root = element.querySelector('.tb');
  let order = null;

  const node = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  function sorted(value) {
    if (!order) return value.rows;
    const key = (row) => row.sort[order.column];
    const last = (each) => each === null || each === undefined;
    return [...value.rows].sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      if (last(one) || last(other)) return last(one) - last(other);
      return (one < other ? -1 : one > other ? 1 : 0) * (order.down ? -1 : 1);
    });
  }

  function pick(row) {
    SabLens.update({ run: row.id });
    draw();
  }

  const PINS = { pin_a: 'A', pin_b: 'B' };
  function pins(row) {
    return Object.entries(PINS).map(([pin, letter]) => {
      const on = SabLens.state[pin] === row.id, button = node('button', letter, 'tb-pin');
      button.type = 'button';
      button.title = on ? `No longer ${letter} of the comparison` : `Compare as ${letter}`;
      button.setAttribute('aria-label', `${button.title}: ${row.cells[0].split('\n')[0]}`);
      button.setAttribute('aria-pressed', String(on));
      button.addEventListener('click', (event) => {
        event.stopPropagation();
        const other = Object.keys(PINS).find((each) => each !== pin);
        SabLens.update({ [pin]: on ? '' : row.id, ...(SabLens.state[other] === row.id ? { [other]: '' } : {}) }, { push: true });
      });
      return button;
    });
  }

  function draw() {
    const value = props.value;
    if (!value || !value.rows.length) { root.replaceChildren(node('p', value?.empty ?? '', 'tb-empty')); root.classList.remove('more'); return; }
    const table = node('table'), head = node('tr'), body = node('tbody'), top = node('thead');
    value.columns.forEach((column, index) => {
      const cell = node('th', undefined, column.number ? 'number' : ''), button = node('button', column.label);
      button.type = 'button';
      if (column.hint) button.title = column.hint;
      if (order?.column === index) cell.setAttribute('aria-sort', order.down ? 'descending' : 'ascending');
      button.addEventListener('click', () => {
        order = { column: index, down: order?.column === index ? !order.down : Boolean(column.number) };
        draw();
      });
      cell.append(button);
      head.append(cell);
    });
    for (const row of sorted(value)) {
      const line = node('tr'), on = SabLens.state.run === row.id;
      row.cells.forEach((text, index) => {
        const cell = node(index ? 'td' : 'th', undefined, value.columns[index].number ? 'number' : '');
        const [first, second] = text.split('\n');
        if (!index) cell.scope = 'row';
        if (!index && row.id && value.choose) {
          const button = node('button', first, 'tb-pick');
          button.type = 'button';
          button.setAttribute('aria-pressed', String(on));
          cell.append(button);
        } else cell.append(first);
        if (!index && value.pins && row.id) cell.prepend(...pins(row));
        if (!index && row.tag) cell.append(node('span', row.tag, 'tag'));
        if (second) cell.append(node('small', second));
        line.append(cell);
      });
      if (row.id && value.choose) {
        line.classList.add('can');
        line.classList.toggle('on', on);
        line.addEventListener('click', () => pick(row));
      }
      body.append(line);
    }
    top.append(head);
    table.append(top, body);
    root.replaceChildren(table);
    edge();
  }

  // A table wider than its place fades on the side where more of it lies.
  const edge = () => root.classList.toggle('more', root.scrollLeft + root.clientWidth < root.scrollWidth - 2);
  root.addEventListener('scroll', edge, { passive: true });
  new ResizeObserver(edge).observe(root);

  watch('value', draw);
  SabLens.subscribe((state, changed) => { if (changed.some((name) => name === 'run' || name in PINS)) draw(); });
  draw();
};
