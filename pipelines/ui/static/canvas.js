// Drawn layers: a polygon with keyframes {at, move, scale, rotate, easing}, posed by canvas-pose.js.
// Whatever changes is sent as the event "draw". canvas-keys.js follows in one script. LIMITS comes
// from drawing.py: polygons at most, and painted cells along a side at most.
const COLORS = ['#f97316', '#22d3ee', '#a3e635', '#f472b6', '#facc15', '#818cf8'];
const COLUMNS = 32;
const $ = (query) => element.querySelector(query);
let size = {width: 64, height: 64, frames: 17}, image = null, layers = [], chosen = -1;
let tool = 'move', corners = [], cross = null, hold = null, cells = null, rows = 1, timer = 0, running = 0;

function place(layer, t) {
  const pose = poseAt(layer, t), pivot = pivotOf(layer.polygon), at = posed(pose, pivot);
  const outline = layer.polygon.map(at), reach = Math.max(...layer.polygon.map((p) => Math.hypot(...sub(p, pivot))));
  const center = at(pivot), handle = at([pivot[0] + reach + 0.06 * size.width, pivot[1]]);
  return {pose, outline, center, handle: within(center, handle)};
}
// The point on the way from a to b that is still inside the picture, so that it can be grabbed.
function within(a, b) {
  const edge = 0.02 * size.width, way = sub(b, a);
  const share = [size.width, size.height].map((most, i) => (way[i] > 0 ? (most - edge - a[i]) / way[i] : way[i] < 0 ? (edge - a[i]) / way[i] : 1));
  const t = Math.min(1, Math.max(0.1, Math.min(...share)));
  return [a[0] + t * way[0], a[1] + t * way[1]];
}
function setKey(layer, pose) {
  layer.keys = keyed(layer.keys, {...pose, at: now(), easing: $('.easing').value});
}
const now = () => Number($('.time').value) / Math.max(1, size.frames - 1);

function send() {
  draw();
  clearTimeout(timer);
  timer = setTimeout(flush, 250);
}
function flush() {
  if (!timer) return;
  clearTimeout(timer);
  timer = 0;
  trigger('draw', {drawing: {
    layers: layers.map((l, z) => ({polygon: l.polygon, keys: l.keys, z})),
    brush: cells && cells.some((v) => v !== null) ? {columns: COLUMNS, rows, cells} : null,
  }});
}

function draw() {
  const canvas = $('canvas'), pen = canvas.getContext('2d');
  const wide = Math.min(640, element.clientWidth || 640), k = wide / size.width;
  const ratio = window.devicePixelRatio || 1, high = size.height * k;
  if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
  }
  pen.setTransform(ratio * k, 0, 0, ratio * k, 0, 0);
  pen.fillStyle = '#334155';
  pen.fillRect(0, 0, size.width, size.height);
  if (image) pen.drawImage(image, 0, 0, size.width, size.height);
  if (cells) cells.forEach((v, i) => {
    if (v === null) return;
    pen.fillStyle = `rgba(244, 63, 94, ${0.15 + 0.5 * v})`;
    pen.fillRect((i % COLUMNS) * size.width / COLUMNS, Math.floor(i / COLUMNS) * size.height / rows, size.width / COLUMNS, size.height / rows);
  });
  pen.lineWidth = 2 / k;
  layers.forEach((layer, i) => {
    const color = COLORS[i % COLORS.length], here = place(layer, now());
    path(pen, place(layer, 0).outline, color, [4 / k, 4 / k]);
    path(pen, here.outline, color, []);
    pen.fillStyle = color + '44';
    pen.fill();
    pen.beginPath();
    for (let j = 0; j <= 40; j++) pen.lineTo(...place(layer, j / 40).center);
    pen.stroke();
    for (const key of layer.keys) dot(pen, place(layer, key.at).center, 3 / k, color);
    if (i === chosen) {
      pen.beginPath();
      pen.moveTo(...here.center);
      pen.lineTo(...here.handle);
      pen.stroke();
      dot(pen, here.handle, 6 / k, '#fff');
    }
  });
  if (corners.length) {
    pen.beginPath();
    corners.forEach((p) => pen.lineTo(...p));
    pen.strokeStyle = '#fff';
    pen.stroke();
    corners.forEach((p) => dot(pen, p, 3 / k, '#fff'));
  }
  if (cross && tool !== 'move') {
    pen.strokeStyle = '#fff';
    for (const [a, b] of [[-1, 0], [0, -1]]) {
      pen.beginPath();
      pen.moveTo(cross[0] + 8 * a / k, cross[1] + 8 * b / k);
      pen.lineTo(cross[0] - 8 * a / k, cross[1] - 8 * b / k);
      pen.stroke();
    }
  }
  $('.at').textContent = `frame ${$('.time').value} of ${size.frames - 1}`;
  $('.what').textContent = told();
}
function told() {
  const layer = layers[chosen], pose = layer && poseAt(layer, now());
  if (cross && tool !== 'move') {
    return `cross at ${cross.map((v) => v.toFixed(0)).join(', ')}` + (corners.length ? `, ${corners.length} corner${corners.length === 1 ? '' : 's'}` : '');
  }
  if (!pose) return layers.length ? `${layers.length} polygons` : 'Draw a polygon or a box, choose a time, and drag it where it shall be then.';
  return `polygon ${chosen + 1} of ${layers.length}: moved ${pose.move.map((v) => v.toFixed(1)).join(', ')} px, scale ${pose.scale.toFixed(2)}, turned ${pose.rotate.toFixed(0)}°; ${layer.keys.length} keyframe${layer.keys.length === 1 ? '' : 's'}`;
}
function path(pen, points, color, dash) {
  pen.setLineDash(dash);
  pen.strokeStyle = color;
  pen.beginPath();
  points.forEach((p) => pen.lineTo(...p));
  pen.closePath();
  pen.stroke();
  pen.setLineDash([]);
}
function dot(pen, p, radius, color) {
  pen.fillStyle = color;
  pen.beginPath();
  pen.arc(p[0], p[1], radius, 0, 7);
  pen.fill();
}
function inside(p, polygon) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [a, b] = [polygon[i], polygon[j]];
    if ((a[1] > p[1]) !== (b[1] > p[1]) && p[0] < (b[0] - a[0]) * (p[1] - a[1]) / (b[1] - a[1]) + a[0]) odd = !odd;
  }
  return odd;
}
function add(polygon) {
  if (polygon.length < 3 || layers.length >= LIMITS.polygons) return;
  layers.push({polygon, keys: []});
  chosen = layers.length - 1;
  pick('move');
  if (Number($('.time').value) === 0) $('.time').value = size.frames - 1;
  send();
}
function pick(name) {
  tool = name;
  corners = [];
  cross = null;
  element.querySelectorAll('[data-tool]').forEach((b) => b.setAttribute('aria-pressed', String(b.dataset.tool === name)));
  draw();
}
function paint(p) {
  if (!cells) cells = new Array(COLUMNS * rows).fill(null);
  const x = p[0] / size.width * COLUMNS, y = p[1] / size.height * rows, value = Number($('.value').value);
  for (let j = 0; j < rows; j++) for (let i = 0; i < COLUMNS; i++) if (Math.hypot(i + 0.5 - x, j + 0.5 - y) < 2) cells[j * COLUMNS + i] = value;
  draw();
}
function box(a, b) {
  return [[a[0], a[1]], [b[0], a[1]], [b[0], b[1]], [a[0], b[1]]];
}
function point(e) {
  const frame = $('canvas').getBoundingClientRect();
  return [(e.clientX - frame.left) / frame.width * size.width, (e.clientY - frame.top) / frame.height * size.height];
}
function down(e) {
  const p = point(e);
  $('canvas').setPointerCapture(e.pointerId);
  if (tool === 'polygon') { corners.push(p); draw(); return; }
  if (tool === 'box') { hold = {from: p}; corners = []; return; }
  if (tool === 'brush') { hold = {brush: true}; paint(p); return; }
  const layer = layers[chosen], near = 12 * size.width / $('canvas').clientWidth;
  if (layer && Math.hypot(...sub(place(layer, now()).handle, p)) < near) {
    const here = place(layer, now());
    hold = {layer, turn: true, center: here.center, start: sub(p, here.center), pose: here.pose};
    return;
  }
  chosen = layers.findLastIndex((l) => inside(p, place(l, now()).outline));
  if (chosen >= 0) hold = {layer: layers[chosen], from: p, pose: poseAt(layers[chosen], now())};
  draw();
}
function drag(e) {
  if (!hold) return;
  const p = point(e);
  if (hold.brush) paint(p);
  else if (!hold.layer) { corners = [...box(hold.from, p), hold.from]; draw(); }
  else if (hold.turn) {
    const to = sub(p, hold.center), angle = Math.atan2(to[1], to[0]) - Math.atan2(hold.start[1], hold.start[0]);
    const turned = Math.atan2(Math.sin(angle), Math.cos(angle)) * 180 / Math.PI;
    setKey(hold.layer, {...hold.pose, rotate: hold.pose.rotate + turned, scale: hold.pose.scale * Math.hypot(...to) / Math.max(1e-3, Math.hypot(...hold.start))});
    draw();
  } else {
    const by = sub(p, hold.from);
    setKey(hold.layer, {...hold.pose, move: [hold.pose.move[0] + by[0], hold.pose.move[1] + by[1]]});
    draw();
  }
}
function up(e) {
  const held = hold, p = point(e);
  hold = null;
  if (!held) return;
  if (held.from && !held.layer) {
    finish(held.from, p);
  } else send();
}
function close(points) {
  if (points.length < 3) return;
  add(points.slice());
}
function finish(a, b) {
  corners = [];
  if (Math.abs(b[0] - a[0]) > 1 && Math.abs(b[1] - a[1]) > 1) add(box(a, b));
  draw();
}
const act = {
  add: () => { const {width: w, height: h} = size; add(box([w * 0.3, h * 0.3], [w * 0.7, h * 0.7])); $('canvas').focus(); },
  remove: () => { if (chosen >= 0) layers.splice(chosen, 1); chosen = layers.length - 1; send(); },
  clear: () => { layers = []; cells = null; chosen = -1; corners = []; send(); },
  key: () => { const l = layers[chosen]; if (l) l.keys = l.keys.filter((k) => Math.abs(k.at - now()) > 1e-6); send(); },
  play: () => {
    clearInterval(running);
    let frame = 0;
    running = setInterval(() => {
      $('.time').value = frame;
      draw();
      if (++frame >= size.frames) clearInterval(running);
    }, 80);
  },
};
function take() {
  const value = props.value || {}, before = size;
  const at = value.layers || size.frames < 2 ? 1 : now();
  size = {width: value.width || 64, height: value.height || 64, frames: value.frames || 17};
  rows = Math.max(1, Math.min(LIMITS.cells, Math.round(COLUMNS * size.height / size.width)));
  const refitted = !value.layers && (before.width !== size.width || before.height !== size.height);
  if (refitted) stretch(size.width / before.width, size.height / before.height);
  if (cells && cells.length !== COLUMNS * rows) cells = null;
  if (value.layers) {
    [layers, chosen, cells] = [value.layers, value.layers.length - 1, null];
    [corners, cross] = [[], null];
  }
  $('.time').max = size.frames - 1;
  $('.time').value = Math.round(at * (size.frames - 1));
  if (value.background !== null) image = null;
  if (value.background) {
    const picture = new Image();
    picture.onload = () => { image = picture; draw(); };
    picture.src = value.background;
  }
  draw();
  if (refitted && layers.length) send();
}
// The drawing keeps its place in a picture of another size, also what is being drawn.
function stretch(x, y) {
  corners = corners.map((p) => [p[0] * x, p[1] * y]);
  if (cross) cross = [cross[0] * x, cross[1] * y];
  for (const layer of layers) {
    layer.polygon = layer.polygon.map((p) => [p[0] * x, p[1] * y]);
    for (const key of layer.keys) key.move = [key.move[0] * x, key.move[1] * y];
  }
}
element.addEventListener('pointerdown', (e) => { if (e.target.matches('canvas')) down(e); });
element.addEventListener('pointermove', drag);
element.addEventListener('pointerup', up);
element.addEventListener('dblclick', (e) => { close(corners.slice(0, -1)); });
element.addEventListener('focusout', flush); // what comes next may want the drawing
element.addEventListener('keydown', (e) => { if (e.target.matches('canvas')) keyboard(e); });
element.addEventListener('input', (e) => { if (e.target.matches('.time')) draw(); });
element.addEventListener('click', (e) => {
  const button = e.target.closest('button');
  if (!button) return;
  if (button.dataset.tool) pick(button.dataset.tool);
  else if (act[button.dataset.do]) act[button.dataset.do]();
});
new ResizeObserver(() => draw()).observe(element);
watch('value', take);
take();
