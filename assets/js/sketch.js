// The picture of a chat: one canvas that takes an upload, a drop, a paste, a sample or a drawing.
// The value is a data URL of what lies on the canvas, or null when it is blank. Props: `samples` [{picture: data URL,
// note}], of which the first is put there as long as nobody has touched the canvas, and `restored`, a former value.
// With data-square pictures of other shapes are put on a white square.
// `SabLens.canvas` says what lies there; "sab:canvas" is sent whenever that changes.
SabLens.mountSketch = ({ element, props, watch }) => {
  const BLANK = 448;      // side of a fresh canvas in pixels
  const LARGEST = 1024;   // longer side of an uploaded picture after scaling
  const HEAVIEST = 20e6;  // bytes of a file that is still opened
  const STEPS = 12;       // undo depth

  const canvas = element.querySelector('canvas');
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  const stage = element.querySelector('.sk-stage');
  const note = element.querySelector('.sk-note');
  const file = element.querySelector('input[type=file]');
  const strip = element.querySelector('.sk-samples');
  const undoButton = element.querySelector('[data-do=undo]');
  const redoButton = element.querySelector('[data-do=redo]');
  const clearButton = element.querySelector('[data-do=clear]');
  const drawButton = element.querySelector('[data-do=draw]');
  const tools = element.querySelector('.sk-tools');
  const square = element.querySelector('.sk').dataset.square === 'true';

  let tool = 'pencil', colour = '#dc2626', size = 10;
  let past = [], future = [], stroke = null, blank = true;
  let origin = { kind: 'none', index: null }, told = ''; // where the picture comes from, and what was told of it
  let spoken = false; // a conversation has begun: another picture would end it
  let drawing = window.matchMedia('(min-width: 761px)').matches; // on a phone a finger on the picture scrolls the page

  const say = (text, bad = false) => { note.textContent = text; note.classList.toggle('bad', bad); };
  const snapshot = () => ({ pixels: pen.getImageData(0, 0, canvas.width, canvas.height), blank, origin });
  const remember = () => { past.push(snapshot()); if (past.length > STEPS) past.shift(); future = []; };

  function restore(state) {
    canvas.width = state.pixels.width; canvas.height = state.pixels.height;
    pen.putImageData(state.pixels, 0, 0);
    ({ blank, origin } = state);
    publish();
  }

  function wipe() {
    canvas.width = canvas.height = BLANK;
    pen.fillStyle = '#ffffff'; pen.fillRect(0, 0, BLANK, BLANK);
    blank = true;
    origin = { kind: 'none', index: null };
  }

  function tell() {
    strip.querySelectorAll('button').forEach((button, index) =>
      button.setAttribute('aria-pressed', String(origin.kind === 'sample' && origin.index === index)));
    const now = JSON.stringify(origin);
    if (now === told) return;
    told = now;
    SabLens.canvas = { ...origin };
    document.dispatchEvent(new CustomEvent('sab:canvas'));
  }

  function publish() {
    stage.classList.toggle('blank', blank);
    undoButton.disabled = !past.length; redoButton.disabled = !future.length; clearButton.disabled = blank;
    if (blank) { props.value = null; say('No picture: the question goes alone.'); tell(); return; }
    const exact = canvas.toDataURL('image/png');
    props.value = exact.length < 600000 ? exact : canvas.toDataURL('image/jpeg', 0.92);
    say('This picture goes with the question.');
    tell();
  }

  function place(image, width, height, from = { kind: 'own', index: null }) {
    const scale = Math.min(1, LARGEST / Math.max(width, height));
    const wide = Math.max(1, Math.round(width * scale)), high = Math.max(1, Math.round(height * scale));
    // A model that was only shown squares gets one, with white beside or above and below the picture.
    canvas.width = square ? Math.max(wide, high) : wide; canvas.height = square ? canvas.width : high;
    pen.fillStyle = '#ffffff'; pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingQuality = 'high';
    pen.drawImage(image, Math.floor((canvas.width - wide) / 2), Math.floor((canvas.height - high) / 2), wide, high);
    blank = false;
    origin = from;
    publish();
  }

  async function open(candidate) {
    if (!candidate) return;
    if (candidate.size > HEAVIEST) { say('This file is larger than 20 MB; choose a smaller picture.', true); return; }
    if (!/^image\/(png|jpeg|webp)$/.test(candidate.type)) {
      say('Only PNG, JPEG and WebP pictures can be read; choose another file.', true); return;
    }
    try {
      const image = await createImageBitmap(candidate, { imageOrientation: 'from-image' });
      remember();
      place(image, image.width, image.height);
      image.close();
    } catch {
      say('This file could not be read as a picture; it may be damaged. Choose another one.', true);
    }
  }

  // --- drawing
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
  };
  const thickness = () => size * Math.max(canvas.width, canvas.height) / BLANK;

  function begin(event) {
    if (event.button || !drawing) return;
    event.preventDefault();
    const [x, y] = at(event);
    remember();
    blank = false;
    origin = { kind: 'own', index: null };
    stage.classList.remove('blank');
    if (tool === 'fill') { fill(Math.floor(x), Math.floor(y)); publish(); return; }
    canvas.setPointerCapture(event.pointerId);
    stroke = { id: event.pointerId, x, y, midX: x, midY: y };
    pen.strokeStyle = pen.fillStyle = tool === 'eraser' ? '#ffffff' : colour;
    pen.lineCap = pen.lineJoin = 'round';
    pen.lineWidth = thickness() * (tool === 'eraser' ? 2 : 1);
    pen.beginPath(); pen.arc(x, y, pen.lineWidth / 2, 0, 7); pen.fill();
  }

  function move(event) {
    if (!stroke || event.pointerId !== stroke.id) return;
    for (const each of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
      const [x, y] = at(each), midX = (stroke.x + x) / 2, midY = (stroke.y + y) / 2;
      pen.beginPath(); pen.moveTo(stroke.midX, stroke.midY); pen.quadraticCurveTo(stroke.x, stroke.y, midX, midY); pen.stroke();
      Object.assign(stroke, { x, y, midX, midY });
    }
  }

  function end(event) {
    if (!stroke || event.pointerId !== stroke.id) return;
    pen.beginPath(); pen.moveTo(stroke.midX, stroke.midY); pen.lineTo(stroke.x, stroke.y); pen.stroke();
    stroke = null;
    publish();
  }

  // Span fill of the connected area whose colour lies near that of the clicked pixel.
  function fill(x, y) {
    const { width, height } = canvas, image = pen.getImageData(0, 0, width, height), data = image.data;
    const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
    const seed = (y * width + x) * 4, old = [data[seed], data[seed + 1], data[seed + 2]];
    const done = new Uint8Array(width * height), stack = [[x, y]];
    const near = (index) => !done[index] && Math.abs(data[index * 4] - old[0]) + Math.abs(data[index * 4 + 1] - old[1])
      + Math.abs(data[index * 4 + 2] - old[2]) < 96;
    while (stack.length) {
      const [column, row] = stack.pop();
      let left = column;
      if (!near(row * width + left)) continue;
      while (left > 0 && near(row * width + left - 1)) left--;
      let above = false, below = false;
      for (let each = left; each < width && near(row * width + each); each++) {
        const index = row * width + each;
        done[index] = 1;
        if (row > 0) { const open = near(index - width); if (open && !above) stack.push([each, row - 1]); above = open; }
        if (row + 1 < height) { const open = near(index + width); if (open && !below) stack.push([each, row + 1]); below = open; }
      }
    }
    // One pixel beyond the area, or the smoothed edge of a line would leave a pale seam.
    const paint = (index) => { data.set([red, green, blue, 255], index * 4); };
    for (let index = 0; index < done.length; index++) {
      if (!done[index]) continue;
      paint(index);
      if (index % width) paint(index - 1);
      if (index % width < width - 1) paint(index + 1);
      if (index >= width) paint(index - width);
      if (index < done.length - width) paint(index + width);
    }
    pen.putImageData(image, 0, 0);
  }

  canvas.addEventListener('pointerdown', begin);
  canvas.addEventListener('pointermove', move);
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', end);

  // --- tools
  const press = (group, chosen) => element.querySelectorAll(`[${group}]`).forEach((button) =>
    button.setAttribute('aria-pressed', String(button.getAttribute(group) === chosen)));
  const choose = (name) => { tool = name; press('data-tool', tool); stage.dataset.tool = tool; };

  function arm() {
    element.querySelector('.sk').classList.toggle('drawing', drawing);
    tools.hidden = !drawing;
    drawButton.setAttribute('aria-expanded', String(drawing));
  }

  element.querySelectorAll('[data-tool]').forEach((button) => button.addEventListener('click', () => choose(button.dataset.tool)));
  element.querySelectorAll('[data-colour]').forEach((button) => button.addEventListener('click', () => {
    colour = button.dataset.colour; press('data-colour', colour);
    if (tool === 'eraser') choose('pencil');
  }));
  element.querySelectorAll('[data-size]').forEach((button) => button.addEventListener('click', () => {
    size = Number(button.dataset.size); press('data-size', button.dataset.size);
  }));

  const step = (from, to) => { if (from.length) { to.push(snapshot()); restore(from.pop()); } };
  drawButton.addEventListener('click', () => { drawing = !drawing; arm(); });
  undoButton.addEventListener('click', () => step(past, future));
  redoButton.addEventListener('click', () => step(future, past));
  clearButton.addEventListener('click', () => { remember(); wipe(); publish(); });
  element.querySelector('[data-do=upload]').addEventListener('click', () => file.click());
  file.addEventListener('change', async () => { await open(file.files[0]); file.value = ''; });
  element.addEventListener('keydown', (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== 'z') return;
    event.preventDefault(); event.stopPropagation();
    if (event.shiftKey) step(future, past); else step(past, future);
  });

  for (const name of ['dragenter', 'dragover']) stage.addEventListener(name, (event) => { event.preventDefault(); stage.classList.add('over'); });
  for (const name of ['dragleave', 'drop']) stage.addEventListener(name, (event) => { event.preventDefault(); stage.classList.remove('over'); });
  stage.addEventListener('drop', (event) => open(event.dataTransfer.files[0]));
  element.addEventListener('paste', (event) => {
    const picture = [...event.clipboardData.files].find((each) => each.type.startsWith('image/'));
    if (picture) { event.preventDefault(); open(picture); }
  });

  // --- samples
  function gallery() {
    strip.replaceChildren(...(props.samples || []).map((sample, index) => {
      const button = document.createElement('button'), image = document.createElement('img');
      button.type = 'button';
      button.title = sample.note;
      image.src = sample.picture;
      image.alt = sample.note;
      button.append(image);
      button.addEventListener('click', () => { remember(); take(image, index); });
      return button;
    }));
    tell();
    const first = strip.querySelector('img');
    const untouched = () => blank && !past.length && !spoken && !SabLens.asked && typeof props.restored !== 'string';
    if (first && untouched()) first.decode().then(() => { if (untouched()) take(first, 0); }, () => {});
  }

  function take(image, index) {
    if (!image.naturalWidth) return;
    const big = enlarged(image);
    place(big, big.width, big.height, { kind: 'sample', index });
  }

  // The very text that came stays the value, so that the server knows the picture as the same one.
  function putBack() {
    const kept = props.restored;
    if (typeof kept !== 'string') return;
    if (!kept) { wipe(); publish(); return; }
    const image = new Image();
    image.onload = () => { place(image, image.naturalWidth, image.naturalHeight); props.value = kept; };
    image.src = kept;
  }

  // A question comes from elsewhere: its picture goes onto the canvas, then the question into the box, or, where it
  // names the right side's run, to the examples, which send it.
  async function receive() {
    const wanted = SabLens.asked;
    if (!wanted || !strip.childElementCount) return; // the samples have not come yet: asked for again when they do
    SabLens.asked = null;
    remember();
    if (Number.isInteger(wanted.sample) && strip.children[wanted.sample]) {
      const image = strip.children[wanted.sample].querySelector('img');
      await image.decode().catch(() => {});
      take(image, wanted.sample);
    } else if (wanted.picture) {
      const image = new Image();
      image.src = wanted.picture;
      try { await image.decode(); } catch { say('The picture of this question could not be read.', true); return; }
      const big = enlarged(image);
      place(big, big.width, big.height);
    } else { wipe(); publish(); }
    if (wanted.right !== undefined) {
      requestAnimationFrame(() => document.dispatchEvent(new CustomEvent('sab:placed', { detail: wanted })));
      return;
    }
    const box = document.querySelector('#chat-prompt textarea');
    if (box) SabLens.write(box, wanted.text);
  }
  document.addEventListener('sab:asked', (event) => { spoken = event.detail.text !== ''; });
  document.addEventListener('sab:ask', () => { if (element.isConnected) receive(); });

  // Samples are drawn at the model's own small size; enlarging without smoothing keeps every pixel as the model sees it.
  function enlarged(image) {
    const big = document.createElement('canvas');
    const scale = Math.max(1, Math.floor(BLANK / Math.max(image.naturalWidth, image.naturalHeight)));
    big.width = image.naturalWidth * scale; big.height = image.naturalHeight * scale;
    const brush = big.getContext('2d');
    brush.imageSmoothingEnabled = false;
    brush.drawImage(image, 0, 0, big.width, big.height);
    return big;
  }

  wipe();
  choose('pencil'); press('data-colour', colour); press('data-size', String(size));
  arm();
  told = JSON.stringify(origin); // the page opens with questions for the first sample: an empty canvas is no news yet
  publish();
  watch('samples', () => { gallery(); receive(); });
  watch('restored', putBack);
  gallery();
  putBack();
  receive();
};
