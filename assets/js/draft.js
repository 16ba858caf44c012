// Writes what the server says into a text box, unless somebody has typed there meanwhile.
SabLens.mountDraft = ({ props, watch, box }) => {
  let done = ''; // what was dealt with last

  function put() {
    const wanted = props.value, field = document.querySelector(box);
    if (!wanted || wanted.turn === done) return;
    if (!field) { requestAnimationFrame(put); return; }
    done = wanted.turn;
    if (wanted.over === null || field.value === wanted.over) SabLens.write(field, wanted.text);
  }

  watch('value', put);
  put();
};
