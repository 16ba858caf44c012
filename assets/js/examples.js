// Example questions as buttons; a click sends the question. The first that fits the canvas also stands in the text box,
// until somebody types there. Props: `fitting` {samples: [offer], any: offer, none: offer}, questions by what lies on
// the canvas, each offer {questions: [text], follow_ups: {question: what may be asked after it}}: a follow-up stands in
// the place of the question that was asked last; `shown` [{kind, title, name, question, sample, run}], which bring their
// own picture and run. A question that comes from elsewhere ("sab:ask") is sent when its picture lies on the canvas.
SabLens.mountExamples = ({ element, props, watch, box, send }) => {
  const make = SabLens.make, row = element.querySelector('.ex');
  const NONE = { questions: [], follow_ups: {} };
  let last = ''; // the question that was asked last about this picture

  function offer() {
    const all = props.fitting, { kind, index } = SabLens.canvas || { kind: 'sample', index: 0 }; // the page opens with it
    if (!all) return NONE;
    return kind === 'sample' ? all.samples[index] || NONE : kind === 'none' ? all.none : all.any;
  }

  function suggested(text) {
    const all = props.fitting;
    return Boolean(all) && [all.any, all.none, ...all.samples].some((each) => each.questions.includes(text));
  }

  function suggest() {
    const field = document.querySelector(box), text = field?.value, found = offer().questions;
    if (!field || !found.length || found.includes(text)) return;
    const sample = !SabLens.canvas || SabLens.canvas.kind === 'sample';
    if (text ? suggested(text) : sample) SabLens.write(field, found[0]);
  }

  function draw() {
    const shown = (props.shown || []).map((each) => make('button', { type: 'button', class: `ex-shown ${each.kind}`,
      title: `${each.question} Right side: ${each.name}. Found by measurement on these weights.`,
      onclick: () => document.dispatchEvent(new CustomEvent('sab:ask', { detail: { text: each.question, sample: each.sample, picture: null, right: each.run } })) },
    make('b', {}, each.title), make('span', {}, each.name)));
    const { questions, follow_ups: after } = offer();
    const plain = questions.map((text) => (text === last && after[last]
      ? make('button', { type: 'button', class: 'ex-next', title: 'Follows the last question', onclick: () => send({ text: after[last], next: true }) }, after[last])
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
  document.addEventListener('sab:canvas', () => {
    if (!element.isConnected) return;
    last = ''; // what was asked about another picture has no follow-up here
    draw();
    suggest();
  });
  watch('fitting', () => { draw(); suggest(); });
  watch('shown', draw);
  draw();
  suggest();
};
