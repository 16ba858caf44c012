// Example questions as buttons; a click sends the question. Props: `questions` [text] that fit the canvas, `follow_ups`
// {question: what may be asked after it}, which stand in the place of the question that was asked last, and `shown`
// [{kind, title, name, question, sample, run}], which bring their own picture and run. A question that comes from
// elsewhere ("sab:ask") is sent when its picture lies on the canvas.
SabLens.mountExamples = ({ element, props, watch, send }) => {
  const make = SabLens.make, row = element.querySelector('.ex');
  let last = ''; // the question that was asked last

  function draw() {
    const shown = (props.shown || []).map((each) => make('button', { type: 'button', class: `ex-shown ${each.kind}`,
      title: `${each.question} Right side: ${each.name}. Found by measurement on these weights.`,
      onclick: () => document.dispatchEvent(new CustomEvent('sab:ask', { detail: { text: each.question, sample: each.sample, picture: null, right: each.run } })) },
    make('b', {}, each.title), make('span', {}, each.name)));
    const next = (props.follow_ups || {})[last], own = (text) => (text === last && next) || text;
    const plain = (props.questions || []).map((text) => make('button', { type: 'button', class: own(text) === text ? '' : 'ex-next',
      onclick: () => send({ text: own(text) }) }, own(text)));
    row.replaceChildren(...shown, ...plain);
  }

  document.addEventListener('sab:placed', (event) => {
    if (element.isConnected) send({ text: event.detail.text, right: event.detail.right });
  });
  document.addEventListener('sab:asked', (event) => {
    if (!element.isConnected || event.detail.text === last) return;
    last = event.detail.text;
    draw();
  });
  watch(['questions', 'follow_ups', 'shown'], draw);
  draw();
};
