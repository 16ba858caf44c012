// Remembers one short text under a name, in this browser or, with `tab`, in this tab only. When the page is opened again
// and there is something to remember, it becomes the value and `send` is called.
SabLens.mountMemory = ({ props, watch, name, tab, send }) => {
  const key = `sab-lens-${name}${location.pathname}`; // the page of another model remembers for itself
  const place = () => (tab ? sessionStorage : localStorage); // asking for them throws where they are forbidden
  const stored = () => { try { return place().getItem(key); } catch { return null; } };

  watch('value', () => {
    try { if (props.value) place().setItem(key, props.value); } catch { /* private mode: nothing is remembered */ }
  });
  const kept = stored();
  if (kept && !props.value) {
    props.value = kept;
    SabLens.whenReady.then(() => send({ kept }));
  }
};
