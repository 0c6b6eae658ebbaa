// Players in step. The reference leads; when one of the others is nearly half a frame off, all stop,
// stand at one place and start again. Picture k is shown from k / fps on, so steps go to its middle.
let stop = () => {};

function start() {
  stop();
  const root = element.querySelector('.compare');
  if (!root) return;
  const fps = Number(root.dataset.fps), frames = Number(root.dataset.frames);
  const stage = root.querySelector('.stage');
  const lead = root.querySelector('.reference');
  const seek = root.querySelector('.seek'), shown = root.querySelector('.frame');
  const split = root.querySelector('.split'), mode = root.querySelector('select');
  const play = root.querySelector('[data-do=play]'), cursor = root.querySelector('.cursor');
  const all = [lead, root.querySelector('.accelerated'), root.querySelector('.difference')];
  let playing = false, alive = true, steady = false, turn = 0;
  seek.max = frames - 1;

  const frameAt = (time) => Math.min(frames - 1, Math.max(0, Math.floor(time * fps + 1e-3)));
  function show(frame) {
    seek.value = frame;
    shown.textContent = `${frame} of ${frames - 1}`;
    if (cursor) {
      const x = `${frame * Number(cursor.dataset.step)}%`;
      cursor.setAttribute('x1', x);
      cursor.setAttribute('x2', x);
    }
  }
  function go(frame) {
    pause();
    const time = (Math.min(frames - 1, Math.max(0, frame)) + 0.5) / fps;
    for (const video of all) video.currentTime = time;
    show(frameAt(time));
  }
  function pause() {
    playing = false;
    turn += 1;
    play.textContent = 'Play';
    for (const video of all) video.pause();
  }
  function resume() {
    playing = true;
    play.textContent = 'Pause';
    together(lead.currentTime > (frames - 0.6) / fps ? 0 : lead.currentTime);
  }
  const once = (video, event) => new Promise((done) => video.addEventListener(event, done, {once: true}));
  // Nobody starts before everybody stands at the same place. One that is not loaded yet cannot seek.
  async function together(time) {
    const mine = ++turn;
    for (const video of all) video.pause();
    await Promise.all(all.map(async (video) => {
      if (video.readyState === 0) await once(video, 'loadedmetadata');
      const there = once(video, 'seeked');
      video.currentTime = time;
      await there;
    }));
    if (mine !== turn || !playing) return;
    await Promise.allSettled(all.map((video) => video.play()));
    if (mine === turn) steady = true;
  }
  function tick() {
    if (!alive || !root.isConnected) return;
    if (playing) {
      const apart = Math.max(...all.map((video) => Math.abs(video.currentTime - lead.currentTime)));
      if (steady && lead.ended) { steady = false; together(0); }
      else if (steady && apart > 0.4 / fps) { steady = false; together(lead.currentTime); }
      show(frameAt(lead.currentTime));
    }
    requestAnimationFrame(tick);
  }
  function edge() {
    stage.style.setProperty('--split', `${split.value}%`);
  }
  function choose() {
    stage.className = `stage ${mode.value}`;
    split.parentElement.hidden = mode.value !== 'slider';
  }
  const frame = () => Number(seek.value);
  const act = {
    play: () => (playing ? pause() : resume()),
    back: () => go(frame() - 1),
    ahead: () => go(frame() + 1),
  };
  root.querySelectorAll('[data-do]').forEach((b) => b.addEventListener('click', () => act[b.dataset.do]()));
  seek.addEventListener('input', () => go(frame()));
  split.addEventListener('input', edge);
  mode.addEventListener('change', choose);
  let dragging = false;
  const drag = (e) => {
    if (!dragging || mode.value !== 'slider') return;
    const box = stage.getBoundingClientRect();
    split.value = Math.round(100 * (e.clientX - box.left) / box.width);
    edge();
  };
  stage.addEventListener('pointerdown', (e) => { dragging = true; stage.setPointerCapture(e.pointerId); drag(e); });
  stage.addEventListener('pointermove', drag);
  stage.addEventListener('pointerup', () => { dragging = false; });
  root.addEventListener('keydown', (e) => {
    if (e.target.matches('input, select')) return;
    const key = {' ': 'play', ArrowLeft: 'back', ArrowRight: 'ahead'}[e.key];
    if (!key || (key === 'play' && e.target.matches('button'))) return;
    e.preventDefault();
    act[key]();
  });
  edge();
  choose();
  show(0);
  requestAnimationFrame(tick);
  stop = () => { alive = false; };
}

watch('value', start);
start();
