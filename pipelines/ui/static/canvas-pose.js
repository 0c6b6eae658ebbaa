// The pose of a drawn layer, as in pipelines/motion/layers.py; test_ui_canvas.py holds the two
// against each other. At time t in 0..1, with the mean of the corners as pivot,
//   p = pivot + move + scale R(rotate) (p0 - pivot)
// where move and rotate are linear between keyframes and scale is geometric, in eased time.
const EASE = {linear: (t) => t, in: (t) => t * t, out: (t) => t * (2 - t), 'in-out': (t) => t * t * (3 - 2 * t)};
const SCALE = [0.01, 100]; // of a keyframe, least and most

const sub = (a, b) => [a[0] - b[0], a[1] - b[1]];
const pivotOf = (polygon) => [0, 1].map((i) => polygon.reduce((s, p) => s + p[i], 0) / polygon.length);

function poseAt(layer, t) {
  const keys = layer.keys[0] && layer.keys[0].at === 0 ? layer.keys
    : [{at: 0, move: [0, 0], scale: 1, rotate: 0, easing: 'linear'}, ...layer.keys];
  let after = keys.findIndex((k) => k.at >= t - 1e-9);
  if (after < 0) after = keys.length - 1;
  const a = keys[Math.max(after - 1, 0)], b = keys[after], span = b.at - a.at;
  const x = span > 0 ? EASE[b.easing](Math.min(1, (t - a.at) / span)) : 1;
  return {
    move: [0, 1].map((i) => (1 - x) * a.move[i] + x * b.move[i]),
    scale: Math.exp((1 - x) * Math.log(a.scale) + x * Math.log(b.scale)),
    rotate: (1 - x) * a.rotate + x * b.rotate,
  };
}
// Where a pose brings the points of a layer.
function posed(pose, pivot) {
  const r = pose.rotate * Math.PI / 180, c = pose.scale * Math.cos(r), s = pose.scale * Math.sin(r);
  return (p) => {
    const [x, y] = sub(p, pivot);
    return [pivot[0] + pose.move[0] + c * x - s * y, pivot[1] + pose.move[1] + s * x + c * y];
  };
}
// The keyframes with a further one, or another one in the place of that of its time.
function keyed(keys, {at, easing, move, scale, rotate}) {
  const kept = keys.filter((k) => Math.abs(k.at - at) > 1e-6);
  const within = Math.min(SCALE[1], Math.max(SCALE[0], scale));
  return [...kept, {at, easing, move, scale: within, rotate}].sort((a, b) => a.at - b.at);
}
