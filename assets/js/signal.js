// Tells a page's Python about the visitor's selection: when its tab is shown, and when the selection or the list of runs
// changes while it is. What changes during a drag is sent once, when it rests.
SabLens.mountSignal = ({ props, tab, send }) => {
  let sent = '', timer = 0;

  function tell() {
    if (SabLens.state.tab !== tab) { sent = ''; return; }
    const now = JSON.stringify([SabLens.state, SabLens.runs.map((run) => run.id)]);
    if (now === sent) return;
    sent = now;
    props.value = { ...SabLens.state };
    send();
  }

  SabLens.subscribe(() => { clearTimeout(timer); timer = setTimeout(tell, SabLens.state.tab === tab && sent ? 250 : 30); });
  SabLens.whenReady.then(tell);
};

// Keeps the selection where every event takes it from.
SabLens.mountSelection = ({ props }) => {
  SabLens.carry = (selection) => { props.value = selection; };
  SabLens.whenReady.then(() => SabLens.carry({ ...SabLens.state }));
};

// Sends the selection when somebody asks to rerun the layer that is shown (SabLens.rerunLayer).
SabLens.mountRerun = ({ send }) => {
  const tell = () => {
    if (!SabLens.rerunWanted) return;
    SabLens.rerunWanted = false;
    send(SabLens.state);
  };
  SabLens.subscribe((state, changed) => { if (changed.includes('rerun')) tell(); });
  SabLens.whenReady.then(tell);
};
