// How far a job is: {state, title, stage, share (0 to 1, or null), left, message, facts: [[label, value]]}; null hides it.
SabLens.mountProgress = ({ element, props, watch }) => {
  const root = element.querySelector('.pg');
  const fill = root.querySelector('.pg-fill'), bar = root.querySelector('.pg-bar');
  const put = (name, text) => { const node = root.querySelector(`.pg-${name}`); node.textContent = text || ''; node.hidden = !text; };

  function draw() {
    const value = props.value, idle = root.hidden || /done|stopped|failed/.test(root.dataset.state);
    root.hidden = !value;
    if (!value) return;
    // Somebody has just pressed a button: on a phone the card lies far below it.
    const begun = idle && /waiting|running/.test(value.state) && navigator.userActivation?.isActive;
    root.dataset.state = value.state;
    const known = value.share !== null && value.share !== undefined, percent = known ? Math.round(100 * value.share) : 0;
    put('title', value.title);
    put('percent', known ? `${percent} %` : '');
    put('stage', value.stage);
    put('left', value.left);
    put('message', value.message);
    bar.hidden = !known;
    fill.style.width = `${percent}%`;
    bar.setAttribute('aria-valuenow', percent);
    root.querySelector('.pg-facts').replaceChildren(...(value.facts || []).map(([label, text]) => {
      const box = document.createElement('div'), number = document.createElement('strong'), name = document.createElement('span');
      number.textContent = text;
      name.textContent = label;
      box.append(number, name);
      return box;
    }));
    if (begun) requestAnimationFrame(() => root.scrollIntoView({ block: 'nearest', behavior: 'smooth' }));
  }

  watch('value', draw);
  draw();
};
