// Single questions with every model's answer: filters, pages, and one click to Chat.
// `server.questions({right, wrong, category, page})` brings {models: [{id, name}], categories, asked, total, page, pages,
// items: [{number, category, prompt, truth, picture, answers: [{text, correct, models}]}]} or {error}.
SabLens.mountQuestions = ({ element, server }) => {
  const root = element.querySelector('.qb');
  const wanted = { right: 'full', wrong: null, category: '', page: 0 }; // wrong null: the run of the header
  let latest = 0, drawn = false;

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  function choice(label, name, options, value) {
    const box = make('label', 'qb-choice'), list = make('select');
    box.append(make('span', '', label), list);
    for (const [key, text] of options) {
      const option = make('option', '', text);
      option.value = key;
      list.append(option);
    }
    list.value = value;
    list.dataset.name = name;
    list.addEventListener('change', () => { wanted[name] = list.value; wanted.page = 0; ask(); });
    return box;
  }

  function ask() {
    const call = ++latest;
    root.classList.add('busy');
    server.questions({ ...wanted, wrong: wanted.wrong ?? SabLens.state.run }).then((found) => {
      if (call !== latest) return; // a later request is on its way
      root.classList.remove('busy');
      if (found.error) root.replaceChildren(make('p', 'qb-empty bad', found.error)); else draw(found);
    }, () => { root.classList.remove('busy'); root.replaceChildren(make('p', 'qb-empty bad', 'The server does not answer; reload the page.')); });
  }

  function draw(found) {
    drawn = true;
    if (!found.models.length) {
      root.replaceChildren(make('p', 'qb-empty', 'No answers are stored yet: evaluate full precision and a run above.'));
      return;
    }
    const names = found.models.map((model) => [model.id, model.name]);
    const known = (id) => (names.some(([each]) => each === id) ? id : '');
    const bar = make('div', 'qb-bar');
    bar.append(
      choice('Right', 'right', [['', 'anybody'], ...names], known(wanted.right)),
      choice('Wrong', 'wrong', [['', 'anybody'], ...names], known(wanted.wrong ?? SabLens.state.run)),
      choice('Category', 'category', [['', 'all'], ...found.categories.map((each) => [each, each])], wanted.category),
      make('p', 'qb-count', `${found.total.toLocaleString('en')} of ${found.asked.toLocaleString('en')} questions`));
    const list = make('div', 'qb-list');
    for (const item of found.items) list.append(card(item));
    if (!found.items.length) list.append(make('p', 'qb-empty', 'No question fits: choose other models, or all categories.'));
    root.replaceChildren(bar, list, pager(found));
  }

  function card(item) {
    const node = make('article', 'qb-card'), words = make('div', 'qb-words'), head = make('p', 'qb-head');
    if (item.picture) {
      const image = make('img');
      image.src = item.picture;
      image.alt = `picture of question ${item.number}`;
      node.append(image);
    } else node.append(make('div', 'qb-none', 'no picture'));
    head.append(make('span', 'qb-number', `${item.number}`), make('span', '', item.category));
    const answers = make('ul', 'qb-answers');
    for (const answer of item.answers) {
      const line = make('li', answer.correct ? 'right' : 'wrong');
      line.append(make('b', '', answer.correct ? '✓' : '✗'), make('q', '', answer.text || '(nothing)'),
        make('span', '', answer.models.join(', ')));
      line.querySelector('b').setAttribute('aria-label', answer.correct ? 'right' : 'wrong');
      answers.append(line);
    }
    const send = make('button', 'qb-send', 'Ask in Chat');
    send.type = 'button';
    send.addEventListener('click', () => {
      SabLens.update({ tab: 'chat' }, { push: true });
      document.dispatchEvent(new CustomEvent('sab:ask', { detail: { picture: item.picture, text: item.prompt } }));
    });
    words.append(head, make('p', 'qb-prompt', item.prompt), make('p', 'qb-truth', item.truth), answers, send);
    node.append(words);
    return node;
  }

  function pager(found) {
    const node = make('div', 'qb-pager');
    const step = (text, by) => {
      const button = make('button', '', text);
      button.type = 'button';
      button.disabled = found.page + by < 0 || found.page + by >= found.pages;
      button.addEventListener('click', () => { wanted.page = found.page + by; ask(); });
      return button;
    };
    node.append(step('← Before', -1), make('span', '', `page ${found.page + 1} of ${found.pages}`), step('Next →', 1));
    return node;
  }

  // Asked for when the tab is first shown, and again when another run is chosen or a run was evaluated.
  let seen = '';
  function follow() {
    if (SabLens.state.tab !== 'benchmark') return;
    const now = JSON.stringify([SabLens.state.run, SabLens.runs.map((run) => run.id)]);
    if (now === seen && drawn) return;
    seen = now;
    ask();
  }
  SabLens.subscribe(follow);
  SabLens.whenReady.then(follow);
};
