// Example questions as buttons; a click sends the question. Props: `questions` [text].
SabLens.mountExamples = ({ element, props, watch, send }) => {
  const row = element.querySelector('.ex');

  function draw() {
    row.replaceChildren(...(props.questions || []).map((text) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = text;
      button.addEventListener('click', () => send({ text }));
      return button;
    }));
  }

  watch('questions', draw);
  draw();
};
