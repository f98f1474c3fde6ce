// What both plots share: scales, ticks, the empty plot with its axes, and labels that do not overlap.

const scale = ([low, high], [from, to], log) => {
  const f = log ? Math.log : Number;
  return (value) => from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
};
/** The range of some numbers with a margin, in the plot's own measure. */
function range(values, log, margin = 0.06) {
  const f = log ? Math.log : Number, back = log ? Math.exp : Number;
  const low = f(Math.min(...values)), high = f(Math.max(...values)), more = (high - low) * margin || 0.5;
  return [back(low - more), back(high + more)];
}
/** Round numbers inside a range: 1, 2, 5 times powers of ten where it is logarithmic, else even steps. */
function ticks([low, high], log, most = 6) {
  const inside = (list) => list.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
  const upTo = (from, to, make) => Array.from({ length: to - from + 1 }, (_, i) => make(from + i));
  if (log) {
    const powers = upTo(Math.floor(Math.log10(low)), Math.floor(Math.log10(high)), (power) => power);
    const all = [[1, 2, 5], [1, 3], [1]].map((steps) =>
      inside(powers.flatMap((power) => steps.map((step) => step * 10 ** power))));
    const found = all.find((list) => list.length <= most) ?? all[2];
    if (found.length > 1) return found; // else the range is too narrow for powers of ten
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough);
  return upTo(Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9), (i) => i * step);
}

/** Of marks along an axis those whose texts do not run into each other; `at` says where a text is, and what it is. */
function legible(marks, at) {
  let end = -Infinity;
  return [...marks].sort((one, other) => one - other).filter((mark) => {
    const [middle, text] = at(mark), half = 3.6 * text.length;
    const fits = middle - half > end + 8;
    if (fits) end = middle + half;
    return fits;
  });
}
/** An empty plot as wide as its box. `x` and `y` are {range, log, title, ticks}; returns it and its two scales. */
function plot(box, label, x, y, right = 16) {
  const width = box.clientWidth, height = Math.max(260, Math.min(420, width * 0.5));
  const left = 58, top = 30, bottom = height - 46;
  const atX = scale(x.range, [left, width - right], x.log), atY = scale(y.range, [bottom, top], y.log);
  const text = (value) =>
    format(value, { maximumSignificantDigits: 3, notation: Math.abs(value) >= 1e4 ? "scientific" : "standard" });
  const rows = ticks(y.range, y.log).map((value) => s("g", { class: "tick" },
    s("line", { x1: left, x2: width - right, y1: atY(value), y2: atY(value) }),
    s("text", { x: left - 8, y: atY(value) + 4, "text-anchor": "end" }, text(value))));
  const marks = x.ticks ?? ticks(x.range, x.log, width < 500 ? 4 : 8);
  const columns = legible(marks, (value) => [atX(value), text(value)]).map((value) =>
    s("text", { x: atX(value), y: bottom + 20, "text-anchor": "middle" }, text(value)));
  const svg = s("svg", { class: "plot", width, height, role: "group", "aria-label": label }, rows, columns,
    s("text", { class: "title", x: 0, y: 14 }, y.title),
    s("text", { class: "title", x: width - right, y: height - 6, "text-anchor": "end" }, x.title));
  box.replaceChildren(svg);
  return { svg, atX, atY, top, bottom, end: width - right };
}
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
/** Moves heights apart until neighbours are `gap` away from each other and none is below `bottom`. */
function apart(heights, gap, bottom) {
  const order = heights.map((_, i) => i).sort((i, j) => heights[i] - heights[j]), moved = [...heights];
  order.forEach((i, k) => { if (k) moved[i] = Math.max(moved[i], moved[order[k - 1]] + gap); });
  order.reverse().forEach((i, k) => { moved[i] = Math.min(moved[i], k ? moved[order[k - 1]] - gap : bottom); });
  return moved;
}
/** Draws a plot whenever the width of its box changes. */
function drawnIn(box, draw) {
  new ResizeObserver(() => {
    if (box.clientWidth && box.drawn !== box.clientWidth) draw();
    box.drawn = box.clientWidth;
  }).observe(box);
}
