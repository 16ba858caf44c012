// The two answers of each question beside each other, token by token, as they stream.
// Props: `questions` [{text, picture}] and, per side, `left` and `right`:
// {name, tags: [str], facts: [[label, value]], turns: [Turn]} with
// Turn {state, message, facts, ended, tokens: [{text, prob, top: [[text, prob]]}], diverged: index | null}.
// While an answer is written, `left_news` and `right_news` bring only its end: {turn, from, ...Turn}.
// Words reach the page by textContent only, so nothing a visitor or a model writes is read as HTML.
SabLens.mountConversation = ({ element, props, watch }) => {
  const SIDES = ['left', 'right'];
  const log = element.querySelector('.cv-log');
  const heads = element.querySelector('.cv-heads');
  const tip = document.createElement('div');
  tip.className = 'cv-tip';
  tip.setAttribute('role', 'tooltip');
  element.querySelector('.cv').append(tip);

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const known = { left: null, right: null }; // what is shown of each side, pieces put together
  const side = (name) => known[name] || { name: '', tags: [], facts: [], turns: [] };
  const percent = (share) => share >= 0.9995 ? '100 %' : share >= 0.1 ? `${(100 * share).toFixed(0)} %` : `${(100 * share).toFixed(1)} %`;
  const visible = (text) => text === '' ? '∅' : text.replace(/\n/g, '⏎').replace(/^ | $/g, '␣');

  function facts(rows) {
    const list = make('dl', 'cv-facts');
    for (const [label, value] of rows || []) {
      const pair = make('div');
      pair.append(make('dt', '', label), make('dd', '', value));
      list.append(pair);
    }
    return list;
  }

  function drawHeads() {
    heads.replaceChildren(...SIDES.map((name) => {
      const shown = side(name), head = make('div', `cv-head ${name}`);
      const title = make('h3', '', shown.name || (name === 'left' ? 'Full precision' : 'No run chosen'));
      const tags = make('p', 'cv-tags');
      for (const tag of shown.tags || []) tags.append(make('span', tag === 'simulated' ? 'tag warn' : 'tag', tag));
      head.append(title, tags, facts(shown.facts));
      return head;
    }));
  }

  // One answer is updated in place: tokens that are there already keep their nodes, so hovering survives streaming.
  function drawAnswer(node, name, number, from = 0) {
    const turn = (side(name).turns || [])[number];
    node.hidden = !turn;
    if (!turn) return;
    node.dataset.state = turn.state;
    const text = node.querySelector('.cv-text');
    while (text.childElementCount > turn.tokens.length) text.lastElementChild.remove();
    for (let place = Math.min(from, text.childElementCount); place < turn.tokens.length; place++) {
      const token = turn.tokens[place];
      let span = text.children[place];
      if (!span) {
        span = make('span', 'tok');
        span.tabIndex = -1;
        text.append(span);
      }
      if (span.textContent !== token.text) span.textContent = token.text;
      Object.assign(span.dataset, { side: name, turn: number, place });
      span.classList.toggle('unsure', token.prob < 0.5);
    }
    text.querySelector('.end')?.classList.remove('end');
    if (turn.ended) text.lastElementChild?.classList.add('end');
    const diverged = turn.diverged ?? -1, mark = text.querySelector('.diverged');
    if (mark !== (text.children[diverged] ?? null)) {
      mark?.classList.remove('diverged');
      mark?.removeAttribute('aria-label');
      const first = text.children[diverged];
      first?.classList.add('diverged');
      first?.setAttribute('aria-label', `${first.textContent} (first token that differs)`);
    }
    const message = node.querySelector('.cv-message');
    message.textContent = turn.message || '';
    message.classList.toggle('bad', turn.state === 'failed');
    const shown = JSON.stringify(turn.facts || []);
    const foot = node.querySelector('.cv-foot');
    if (foot.dataset.shown !== shown) { foot.replaceChildren(facts(turn.facts)); foot.dataset.shown = shown; }
  }

  function section(number) {
    const node = make('section', 'cv-turn'), question = make('div', 'cv-question'), verdict = make('p', 'cv-verdict');
    question.append(make('p', ''));
    node.append(question);
    for (const name of SIDES) {
      const answer = make('article', `cv-answer ${name}`);
      answer.append(make('p', 'cv-text'), make('p', 'cv-message'), make('div', 'cv-foot'));
      node.append(answer);
    }
    verdict.setAttribute('role', 'status');
    node.append(verdict);
    log.append(node);
    return node;
  }

  function verdict(number) {
    const [left, right] = SIDES.map((name) => (side(name).turns || [])[number]);
    if (!left || !right) return '';
    if (left.diverged === null || left.diverged === undefined) {
      return left.state === 'done' && right.state === 'done' ? `Both gave the same ${left.tokens.length} tokens.` : '';
    }
    const place = left.diverged;
    const [first, second] = [left, right].map((turn) => turn.tokens[place] ? `“${visible(turn.tokens[place].text)}”` : 'the end');
    return `First difference at token ${place + 1}: ${first} against ${second}.`;
  }

  // The newest words stay in sight, unless the person has scrolled back to read.
  let pinned = true;
  log.addEventListener('scroll', () => { pinned = log.scrollTop + log.clientHeight > log.scrollHeight - 40; }, { passive: true });
  const follow = () => { if (pinned) log.scrollTop = log.scrollHeight; };

  function draw() {
    const questions = props.questions || [], before = log.childElementCount;
    element.querySelector('.cv').classList.toggle('empty', !questions.length);
    drawHeads();
    while (log.childElementCount > questions.length) log.lastElementChild.remove();
    questions.forEach((question, number) => {
      const node = log.children[number] || section(number), box = node.querySelector('.cv-question');
      box.querySelector('p').textContent = question.text;
      const old = box.querySelector('img');
      if (question.picture && !old) {
        const image = make('img');
        image.src = question.picture; image.alt = 'the picture of this conversation';
        box.prepend(image);
      } else if (old && question.picture !== old.getAttribute('src')) {
        if (question.picture) old.src = question.picture; else old.remove();
      }
      for (const name of SIDES) drawAnswer(node.querySelector(`.cv-answer.${name}`), name, number);
      node.querySelector('.cv-verdict').textContent = verdict(number);
    });
    if (questions.length > before) { pinned = true; log.lastElementChild.scrollIntoView({ block: 'nearest' }); }
    follow();
  }

  // --- what else could have come here
  function candidates(name, number, place) {
    const turn = (side(name).turns || [])[number], token = turn && turn.tokens[place];
    const box = make('div', `cv-top ${name}`);
    box.append(make('h4', '', side(name).name));
    if (!token) { box.append(make('p', '', 'ended before this token')); return box; }
    for (const [text, share] of token.top) {
      const row = make('div', text === token.text ? 'row chosen' : 'row'), bar = make('i', 'bar');
      bar.style.width = `${Math.max(1, 100 * share)}%`;
      const track = make('span', 'track');
      track.append(bar);
      row.append(make('code', '', visible(text)), track, make('span', 'share', percent(share)));
      box.append(row);
    }
    return box;
  }

  function show(span) {
    const { side: name, turn, place } = span.dataset, number = Number(turn), at = Number(place);
    const other = name === 'left' ? 'right' : 'left', here = (side(name).turns || [])[number];
    if (!here || !here.tokens[at]) return;
    // After the first difference the two models no longer see the same words, so only this side's list is shown.
    const same = here.diverged === null || here.diverged === undefined || at <= here.diverged;
    tip.replaceChildren(make('p', 'cv-tip-head', `Token ${at + 1}: probability ${percent(here.tokens[at].prob)}`),
      candidates(name, number, at));
    if (same && (side(other).turns || [])[number]) tip.append(candidates(other, number, at));
    tip.classList.add('open');
    const frame = element.querySelector('.cv').getBoundingClientRect(), box = span.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left - frame.left), frame.width - tip.offsetWidth - 4);
    const under = box.bottom - frame.top + 6;
    const fits = box.bottom + tip.offsetHeight + 12 < window.innerHeight || box.top < tip.offsetHeight + 12;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${fits ? under : box.top - frame.top - tip.offsetHeight - 6}px`;
  }
  const hide = () => tip.classList.remove('open');
  log.addEventListener('pointerover', (event) => { const span = event.target.closest('.tok'); if (span) show(span); else hide(); });
  log.addEventListener('pointerleave', hide);
  log.addEventListener('focusin', (event) => { const span = event.target.closest('.tok'); if (span) show(span); });
  log.addEventListener('focusout', hide);

  // Esc stops both sides wherever the focus is, as long as this tab is the one shown.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !element.isConnected || !element.offsetParent) return;
    hide();
    const stop = document.querySelector('#chat-stop');
    if (stop && !stop.disabled) stop.click();
  });

  function takeAll() {
    for (const name of SIDES) known[name] = props[name] ? JSON.parse(JSON.stringify(props[name])) : null;
    draw();
  }

  function takeNews(name) {
    const news = props[`${name}_news`], turn = news && side(name).turns[news.turn];
    if (!turn || news.from > turn.tokens.length) return; // a piece is missing: the whole answer comes at the end
    const tokens = turn.tokens;
    tokens.splice(news.from, tokens.length, ...news.tokens);
    Object.assign(turn, news, { tokens });
    // The first difference is known as soon as either side has it.
    const other = side(name === 'left' ? 'right' : 'left').turns[news.turn];
    if (other) other.diverged = news.diverged;
    const node = log.children[news.turn];
    if (!node) return;
    drawAnswer(node.querySelector(`.cv-answer.${name}`), name, news.turn, news.from);
    node.querySelector('.cv-verdict').textContent = verdict(news.turn);
    follow();
  }

  watch(['questions', 'left', 'right'], takeAll);
  for (const name of SIDES) watch(`${name}_news`, () => takeNews(name));
  takeAll();
};
