// The two answers of each question beside each other, token by token, as they stream.
// Props: `questions` [{text, picture}] and, per side, `left` and `right`:
// {name, tags: [str], facts: [[label, value]], turns: [Turn]} with
// Turn {state, message, facts, ended, tokens: [Token], diverged: index | null, forced: index | null},
// Token {text, id, prob, top: [[text, prob, id]]} and, once both sides have ended, kl (nats) and other (as top).
// While an answer is written, `left_news` and `right_news` bring only its end: {turn, from, ...Turn}.
// Words reach the page by textContent only, so nothing a visitor or a model writes is read as HTML.
// `branch({side, place, token})` asks the server to let a side go on from another token.
SabLens.mountConversation = ({ element, props, watch, branch }) => {
  const SIDES = ['left', 'right'];
  const log = element.querySelector('.cv-log');
  const heads = element.querySelector('.cv-heads');
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const known = { left: null, right: null }; // what is shown of each side, pieces put together
  const side = (name) => known[name] || { name: '', tags: [], facts: [], turns: [] };
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
        span.tabIndex = place ? -1 : 0;
        text.append(span);
      }
      if (span.textContent !== token.text) span.textContent = token.text;
      Object.assign(span.dataset, { side: name, turn: number, place });
      span.classList.toggle('unsure', token.prob < 0.5);
    }
    text.querySelector('.forced')?.classList.remove('forced');
    text.children[turn.forced ?? -1]?.classList.add('forced');
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
    drawStrip(node.querySelector('.cv-strip'), turn);
    const message = node.querySelector('.cv-message');
    message.textContent = turn.message || '';
    message.classList.toggle('bad', turn.state === 'failed');
    const shown = JSON.stringify(turn.facts || []);
    const foot = node.querySelector('.cv-foot');
    if (foot.dataset.shown !== shown) { foot.replaceChildren(facts(turn.facts)); foot.dataset.shown = shown; }
  }

  // KL per token: heights go with the square root, so that a distance of 0.01 nats can still be seen beside one of 4.
  const height = (kl) => Math.min(1, Math.sqrt(kl / 4));
  const nats = (kl) => kl < 0.001 ? kl.toExponential(1) : kl.toFixed(3);
  function drawStrip(node, turn) {
    const read = turn.tokens.filter((token) => token.kl !== undefined);
    node.hidden = !read.length;
    if (!read.length) return;
    const mean = read.reduce((sum, token) => sum + token.kl, 0) / read.length;
    const largest = turn.tokens.reduce((best, token, place) => token.kl > (turn.tokens[best].kl ?? 0) ? place : best, 0);
    const bars = turn.tokens.map((token, place) => {
      const bar = make('i', place === turn.diverged ? 'cv-bar diverged' : 'cv-bar');
      bar.dataset.place = place;
      bar.style.setProperty('--kl', height(token.kl ?? 0).toFixed(3));
      return bar;
    });
    const strip = make('div', 'cv-bars');
    strip.append(...bars);
    strip.setAttribute('role', 'img');
    strip.setAttribute('aria-label', `KL of the two models for each token: mean ${nats(mean)} nats, largest ${nats(turn.tokens[largest].kl)} at token ${largest + 1}`);
    node.replaceChildren(strip, make('span', 'cv-strip-words', `KL per token, mean ${nats(mean)} nats`));
  }

  function section(number) {
    const node = make('section', 'cv-turn'), question = make('div', 'cv-question'), verdict = make('p', 'cv-verdict');
    question.append(make('p', ''));
    node.append(question);
    for (const name of SIDES) {
      const answer = make('article', `cv-answer ${name}`);
      answer.append(make('p', 'cv-text'), make('div', 'cv-strip'), make('p', 'cv-message'), make('div', 'cv-foot'));
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
    document.dispatchEvent(new CustomEvent('sab:asked', { detail: { text: questions.at(-1)?.text ?? '' } }));
  }

  function look(name, number, place) {
    const other = name === 'left' ? 'right' : 'left';
    const here = (side(name).turns || [])[number], there = (side(other).turns || [])[number];
    const token = here && here.tokens[place];
    if (!token) return null;
    const sides = [{ side: name, name: side(name).name, rows: token.top, chosen: token.id }];
    // Behind the first difference the other side's own tokens followed other words; what it thinks of these words is
    // known when it has read them.
    const same = here.diverged === null || here.diverged === undefined || place <= here.diverged;
    const theirs = there && same ? there.tokens[place] : null;
    if (token.other) sides.push({ side: other, name: side(other).name, rows: token.other, chosen: theirs?.id });
    else if (theirs) sides.push({ side: other, name: side(other).name, rows: theirs.top, chosen: theirs.id });
    else if (there && same) sides.push({ side: other, name: side(other).name, rows: [], missing: 'ended before this token' });
    const resting = [here, there].every((turn) => turn && /done|stopped|failed/.test(turn.state));
    return { token, sides, branching: resting && number === (props.questions || []).length - 1 };
  }
  const { visible, close } = SabLens.candidates({ frame: element.querySelector('.cv'), log, look, branch });

  // Esc stops both sides wherever the focus is, as long as this tab is the one shown.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !element.isConnected || !element.offsetParent) return;
    close();
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
