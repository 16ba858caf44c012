// Remembers one short text in this browser, under a name. When the page is opened again and there is something to
// remember, it becomes the value and `send` is called.
SabLens.mountMemory = ({ props, watch, name, send }) => {
  const key = `sab-lens-${name}`;
  const stored = () => { try { return localStorage.getItem(key); } catch { return null; } };

  watch('value', () => {
    try { if (props.value) localStorage.setItem(key, props.value); } catch { /* private mode: nothing is remembered */ }
  });
  const kept = stored();
  if (kept && !props.value) {
    props.value = kept;
    SabLens.whenReady.then(() => send({ kept }));
  }
};
