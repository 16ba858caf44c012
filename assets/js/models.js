// The dialog behind the model's name: what may be opened, how far an opening is, and the way to another model's page.
// Every model has a page of its own, so going there is going to another address, and the back button returns.
SabLens.mountModels = ({ element, server }) => {
  const { make } = SabLens;
  const KEY = 'sab-lens-opening'; // the ticket of what this tab has opened: a reload does not lose it
  const PAUSE = 400; // milliseconds between two questions about the progress
  const home = location.pathname.replace(/m\/[^/]+\/?$/, '');
  const { arrived } = SabLens;
  const card = element.querySelector('.pg');
  const props = { value: null };
  let drawCard = () => {};
  let following = null;

  const list = make('div', { class: 'mo-list', role: 'list' });
  const field = make('input', { id: 'sab-models-name', type: 'text', autocomplete: 'off', spellcheck: 'false', maxlength: 500,
    placeholder: 'Qwen/Qwen2.5-VL-3B-Instruct or a folder' });
  const send = make('button', { class: 'sab-button primary', type: 'submit' }, 'Open');
  const form = make('form', { class: 'mo-form', hidden: true },
    make('label', { for: 'sab-models-name' }, 'Any other: a Hugging Face id, or a folder of this machine'),
    make('div', {}, field, send),
    make('p', { class: 'sab-note' }, 'Only safetensors weights and configurations are read; code that comes with a model is never run.'));
  const said = make('p', { class: 'mo-said', role: 'alert', hidden: true });
  const cancel = make('button', { class: 'sab-button', type: 'button', hidden: true }, 'Cancel');
  const close = make('button', { class: 'sab-button', type: 'button' }, 'Close');
  const dialog = make('dialog', { class: 'sab-help sab-models', 'aria-labelledby': 'sab-models-title' },
    make('h2', { id: 'sab-models-title' }, 'Model'),
    list, form, card, said, make('div', { class: 'mo-actions' }, cancel, close));
  document.body.appendChild(dialog);
  SabLens.mountProgress({ element: dialog, props, watch: (name, draw) => { drawCard = draw; } });

  const say = (sentence) => { said.textContent = sentence || ''; said.hidden = !sentence; };
  const remember = (ticket) => { try { ticket ? sessionStorage.setItem(KEY, ticket) : sessionStorage.removeItem(KEY); } catch { /* private mode */ } };
  const remembered = () => { try { return sessionStorage.getItem(KEY); } catch { return null; } };

  async function call(name, data) {
    try {
      return await server[name](data);
    } catch {
      return { error: 'The server does not answer; try again, or reload the page.' };
    }
  }

  function go(place, query) {
    remember(null);
    const carried = query || new URLSearchParams(SabLens.state.tab ? { tab: SabLens.state.tab } : {});
    const text = carried.toString();
    window.location.assign(`${home}${place}${text ? `?${text}` : ''}`);
  }

  function draw(rows) {
    list.replaceChildren(...rows.map((row) => make('div', { role: 'listitem' },
      make('button', { type: 'button', class: 'mo-row', 'data-model': row.model, 'aria-current': row.here ? 'page' : false,
        onclick: () => (row.here ? dialog.close() : ask(row.model)) },
      make('strong', {}, row.title), make('span', { class: 'mo-note' }, row.note),
      row.where ? make('span', { class: 'mo-where' }, row.where) : null))));
  }

  function show(view) {
    props.value = view;
    drawCard();
    const busy = Boolean(view) && !/done|stopped|failed/.test(view.state);
    cancel.hidden = !busy;
    send.disabled = busy;
    for (const row of list.querySelectorAll('button')) row.disabled = busy && !row.hasAttribute('aria-current');
    const note = document.querySelector('.sab-model');
    if (note) note.dataset.opening = busy ? (view.share === null ? '…' : `${Math.round(100 * view.share)} %`) : '';
  }

  async function ask(model, query) {
    say('');
    send.disabled = true;
    const answer = await call('open', { model });
    send.disabled = false;
    if (answer.error) { say(answer.error); return; }
    if (!answer.ticket) { go(answer.place, query); return; }
    remember(answer.ticket);
    follow(answer.ticket, query);
  }

  async function follow(ticket, query) {
    following = ticket;
    let lost = 0;
    while (following === ticket) {
      const answer = await call('progress', { ticket });
      if (following !== ticket) return;
      if (answer.error && (answer.forgotten || (lost += 1) > 10)) { end(answer.error); return; }
      if (!answer.error) {
        lost = 0;
        show(answer.view);
        if (answer.ended) {
          end('');
          if (answer.view.state !== 'done') return;
          if (dialog.open) go(answer.place, query);
          else { show(null); SabLens.toast(`${answer.view.title} is open: press the model's name to go there.`); }
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  function end(sentence) {
    following = null;
    remember(null);
    if (sentence) { show(null); say(sentence); }
  }

  async function open(wanted) {
    if (!dialog.open) dialog.showModal();
    say('');
    if (!following) show(null);
    let answer = await call('models', wanted ? { wanted } : {});
    const refused = wanted ? answer.error : '';
    if (refused) answer = await call('models', {});
    say(refused || answer.error);
    if (answer.error) return;
    draw(answer.rows);
    show(props.value);
    form.hidden = !answer.free;
    if (!answer.wanted) return;
    arrived.delete('model');
    if (answer.wanted.at_once) { ask(answer.wanted.model, arrived); return; }
    field.value = answer.wanted.model;
    say(`This link is for ${answer.wanted.model}: press Open to get it.`);
  }

  form.addEventListener('submit', (event) => { event.preventDefault(); ask(field.value); });
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  cancel.addEventListener('click', async () => {
    const ticket = following;
    following = null;
    remember(null);
    show(null);
    await call('stop', { ticket });
    say('Stopped. Files that had come whole are kept for the next time.');
  });

  SabLens.chooseModel = () => open(null);
  SabLens.key(['m'], 'another model', () => { open(null); });
  SabLens.whenReady.then(() => {
    if (arrived.get('model')) open(arrived.get('model'));
    else if (remembered()) follow(remembered());
  });
};
