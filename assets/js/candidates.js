// What else could have come at a token: both models' likeliest candidates in a small box by the token. Hovering shows
// it; pressing a token keeps it open, and then each candidate is a button that lets that side go on from there.
// `look(side, turn, place)` gives {token, sides: [{side, name, rows, chosen, missing}], branching}; `branch({side, place,
// token})` is called with what was chosen; `frame` is the positioned element that the box stands in.
SabLens.candidates = ({ frame, log, look, branch }) => {
  const make = SabLens.make;
  const tip = make('div', { class: 'cv-tip', role: 'dialog', 'aria-label': 'What else could have come here' });
  frame.append(tip);
  let pinned = null;

  const percent = (share) => share >= 0.9995 ? '100 %' : share >= 0.1 ? `${(100 * share).toFixed(0)} %` : `${(100 * share).toFixed(1)} %`;
  const visible = (text) => text === '' ? '∅' : text.replace(/\n/g, '⏎').replace(/^ | $/g, '␣');

  function list(found, place, keep) {
    const box = make('div', { class: `cv-top ${found.side}` }, make('h4', {}, found.name));
    if (found.missing) { box.append(make('p', {}, found.missing)); return box; }
    for (const [text, share, id] of found.rows) {
      const own = id === found.chosen;
      const bar = make('i', { class: 'bar', style: `width:${Math.max(1, 100 * share)}%` });
      const cells = [make('code', {}, visible(text)), make('span', { class: 'track' }, bar), make('span', { class: 'share' }, percent(share))];
      const row = make(keep ? 'button' : 'div', { class: own ? 'row chosen' : 'row' }, ...cells);
      if (keep) {
        row.type = 'button';
        row.title = `${keep.name} goes on with this token`;
        row.disabled = id === keep.own;
        row.addEventListener('click', () => { close(); branch({ side: keep.side, place, token: id }); });
      }
      box.append(row);
    }
    return box;
  }

  function show(span, keep = false) {
    const { side, turn, place } = span.dataset, at = Number(place), found = look(side, Number(turn), at);
    if (!found) return;
    const { token, sides, branching } = found;
    const mine = keep && branching ? { side, name: sides[0].name, own: token.id } : null;
    const distance = token.kl === undefined ? '' : ` · KL ${token.kl < 0.001 ? token.kl.toExponential(1) : token.kl.toFixed(3)} nats`;
    tip.replaceChildren(make('p', { class: 'cv-tip-head' }, `Token ${at + 1}: probability ${percent(token.prob)}${distance}`),
      ...sides.map((each) => list(each, at, mine)));
    if (mine) tip.append(make('p', { class: 'cv-tip-note' }, `Press a candidate: this side goes on with it from here.`));
    else if (branching) tip.append(make('p', { class: 'cv-tip-note' }, 'Press the token to go on from another one.'));
    tip.classList.add('open');
    tip.classList.toggle('pinned', keep);
    pinned = keep ? span : null;
    const around = frame.getBoundingClientRect(), box = span.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left - around.left), around.width - tip.offsetWidth - 4);
    const fits = box.bottom + tip.offsetHeight + 12 < window.innerHeight || box.top < tip.offsetHeight + 12;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${fits ? box.bottom - around.top + 6 : box.top - around.top - tip.offsetHeight - 6}px`;
    if (keep) tip.querySelector('button:not(:disabled)')?.focus({ preventScroll: true });
  }

  function close() {
    const back = pinned;
    pinned = null;
    tip.classList.remove('open', 'pinned');
    back?.focus?.({ preventScroll: true });
  }
  const leave = () => { if (!pinned) tip.classList.remove('open'); };
  // A bar of the strip stands for its token.
  const tokenOf = (target) => {
    const bar = target.closest('.cv-bar');
    return bar ? bar.closest('.cv-answer').querySelector('.cv-text').children[Number(bar.dataset.place)] : target.closest('.tok');
  };

  let lit = null;
  const light = (span) => { lit?.classList.remove('lit'); lit = span; lit?.classList.add('lit'); };
  log.addEventListener('pointerover', (event) => {
    const span = tokenOf(event.target);
    light(span);
    if (span && !pinned && event.pointerType !== 'touch') show(span); else if (!span) leave();
  });
  log.addEventListener('pointerleave', () => { light(null); leave(); });
  log.addEventListener('click', (event) => { const span = tokenOf(event.target); if (span) show(span, true); });
  log.addEventListener('focusin', (event) => { const span = event.target.closest('.tok'); if (span && !pinned) show(span); });
  log.addEventListener('focusout', leave);
  log.addEventListener('keydown', (event) => {
    const span = event.target.closest('.tok');
    if (!span) return;
    const next = event.key === 'ArrowRight' ? span.nextElementSibling : event.key === 'ArrowLeft' ? span.previousElementSibling : null;
    if (next) { event.preventDefault(); span.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); show(span, true); }
  });
  document.addEventListener('pointerdown', (event) => {
    if (pinned && !tip.contains(event.target) && !tokenOf(event.target)) close();
  });
  tip.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    event.stopPropagation();
    close();
  });
  return { visible, close };
};
