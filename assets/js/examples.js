// Example questions as buttons; a click sends the question. Props: `questions` [text] that fit the canvas, `follow_ups`
// {question: what may be asked after it}, which stand in the place of the question that was asked last, and `shown`
// [{kind, title, name, question, sample, run}], which bring their own picture and run. A question that comes from
// elsewhere ("sab:ask") is sent when its picture lies on the canvas.
SabLens.mountExamples = ({ element, props, watch, send }) => {
  const make = SabLens.make, row = element.querySelector('.ex');
  let last = '', offered = JSON.stringify(props.questions); // the question that was asked last; those that fit

  function draw() {
    const shown = (props.shown || []).map((each) => make('button', { type: 'button', class: `ex-shown ${each.kind}`,
      title: `${each.question} Right side: ${each.name}. Found by measurement on these weights.`,
      onclick: () => document.dispatchEvent(new CustomEvent('sab:ask', { detail: { text: each.question, sample: each.sample, picture: null, right: each.run } })) },
    make('b', {}, each.title), make('span', {}, each.name)));
    const next = (props.follow_ups || {})[last];
    const plain = (props.questions || []).map((text) => (text === last && next
      ? make('button', { type: 'button', class: 'ex-next', title: 'Follows the last question', onclick: () => send({ text: next, next: true }) }, next)
      : make('button', { type: 'button', onclick: () => send({ text }) }, text)));
    const focused = [...row.children].indexOf(document.activeElement);
    row.replaceChildren(...shown, ...plain);
    row.children[focused]?.focus({ preventScroll: true });
  }

  document.addEventListener('sab:placed', (event) => {
    if (element.isConnected) send({ text: event.detail.text, right: event.detail.right });
  });
  document.addEventListener('sab:asked', (event) => {
    if (!element.isConnected || event.detail.text === last) return;
    last = event.detail.text;
    draw();
  });
  watch(['questions', 'follow_ups', 'shown'], () => {
    const now = JSON.stringify(props.questions);
    if (now !== offered) last = ''; // another picture: what was asked about the one before has no follow-up here
    offered = now;
    draw();
  });
  draw();
};
