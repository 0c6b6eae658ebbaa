// The drawing by keyboard; the same script as canvas.js.
const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
function keyboard(e) {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const far = Math.max(1, Math.round(size.width / 64)) * (e.shiftKey ? 5 : 1);
  const by = ARROWS[e.key] && ARROWS[e.key].map((v) => v * far);
  const later = {',': -1, '.': 1}[e.key];
  let used = true;
  if (later) { $('.time').value = Number($('.time').value) + later; draw(); }
  else if (e.key === 'Escape') pick('move');
  else if (e.key === 'n' && layers.length) { chosen = (chosen + 1) % layers.length; draw(); }
  else used = tool === 'move' ? pose(e.key, by) : aim(e.key, by);
  if (used) e.preventDefault();
}
// The chosen polygon by keyboard; whether the key meant something.
function pose(key, by) {
  const layer = layers[chosen];
  const change = {'+': {scale: 1.1}, '-': {scale: 1 / 1.1}, r: {rotate: 5}, l: {rotate: -5}}[key];
  if (!layer) return false;
  if (key === 'Delete') { act.remove(); return true; }
  if (!by && !change) return false;
  const at = poseAt(layer, now());
  if (by) at.move = [at.move[0] + by[0], at.move[1] + by[1]];
  if (change) { at.scale *= change.scale || 1; at.rotate += change.rotate || 0; }
  setKey(layer, at);
  send();
  return true;
}
// Drawing by keyboard: a cross is moved, the space bar does there what a click would.
function aim(key, by) {
  if (key === 'Enter') { close(corners); return true; }
  if (key === 'Backspace') { corners.pop(); draw(); return true; }
  if (!by && key !== ' ') return false;
  cross = cross || [size.width / 2, size.height / 2];
  if (by) cross = cross.map((v, i) => Math.min([size.width, size.height][i], Math.max(0, v + by[i])));
  else if (tool === 'brush') { paint(cross); send(); }
  else if (tool === 'box' && corners.length) { finish(corners[0], cross); return true; }
  else corners.push(cross.slice());
  draw();
  return true;
}
