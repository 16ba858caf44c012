// Example questions as buttons; a click sends the question. Props: `questions` [text] that fit the canvas, and `shown`
// [{kind, title, name, question, sample, run}], which bring their own picture and run. A question that comes from
// elsewhere ("sab:ask") is sent when its picture lies on the canvas.
SabLens.mountExamples = ({ element, props, watch, send }) => {
  const make = SabLens.make, row = element.querySelector('.ex');

  function draw() {
    const shown = (props.shown || []).map((each) => make('button', { type: 'button', class: `ex-shown ${each.kind}`,
      title: `${each.question} Right side: ${each.name}. Found by measurement on these weights.`,
      onclick: () => document.dispatchEvent(new CustomEvent('sab:ask', { detail: { text: each.question, sample: each.sample, picture: null, right: each.run } })) },
    make('b', {}, each.title), make('span', {}, each.name)));
    const plain = (props.questions || []).map((text) => make('button', { type: 'button', onclick: () => send({ text }) }, text));
    row.replaceChildren(...shown, ...plain);
  }

  document.addEventListener('sab:placed', (event) => {
    if (element.isConnected) send({ text: event.detail.text, right: event.detail.right });
  });
  watch(['questions', 'shown'], draw);
  draw();
};
