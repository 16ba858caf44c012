// One sentence for the person at the page; hidden while it is empty.
SabLens.mountNotice = ({ element, props, watch }) => {
  const line = element.querySelector('p');
  const draw = () => { line.textContent = props.value || ''; line.hidden = !props.value; };
  watch('value', draw);
  draw();
};
