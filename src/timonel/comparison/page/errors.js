// Error against cost: a mark for each group with a bar of one standard error, a line for each series, the Pareto front.

const meanOf = (group, measure) => (measure === "energy" ? group.energy : group.mean?.[measure]) ?? null;
const stderrOf = (group, measure) => (measure === "energy" ? group.energy_stderr : group.stderr?.[measure]) ?? null;
const plotted = ERRORS.filter((measure) => data.groups.some((group) => meanOf(group, measure) > 0));

/** Groups by what they are asked: every model, guidance scale, … has a front of its own. */
function fronts(groups, cost, measure) {
  const key = (group) => placeName(group.at, asked.filter(notSteps));
  return [...new Set(groups.map(key))].map((one) => front(groups.filter((group) => key(group) === one), cost, measure));
}
/** The groups that nothing beats: less error for no more cost. */
function front(groups, cost, measure) {
  const kept = [], mean = (group) => meanOf(group, measure);
  for (const group of [...groups].sort((one, other) => one[cost] - other[cost] || mean(one) - mean(other))) {
    if (!kept.length || mean(group) < mean(kept[kept.length - 1])) kept.push(group);
  }
  return kept;
}
/** Groups that differ in nothing but their steps, in one line. */
function series(groups) {
  const lines = new Map();
  for (const group of groups) {
    const label = groupName(group, groupAxes.filter(notSteps));
    lines.set(label, [...(lines.get(label) ?? []), group]);
  }
  return [...lines].map(([label, list]) => ({ label, list: list.sort((one, other) => one.nfe - other.nfe) }));
}

function errorPlot() {
  const cost = $("cost").value, measure = $("measure").value, box = $("errorplot"), wide = box.clientWidth >= 560;
  const groups = data.groups.filter((group) => meanOf(group, measure) > 0 && group[cost] > 0);
  if (!groups.length || !box.clientWidth) return box.replaceChildren();
  const lines = series(groups), best = fronts(groups, cost, measure);
  const costs = [...new Set(groups.map((group) => group[cost]))], few = cost !== "seconds" && costs.length < 9;
  const reach = groups.flatMap((group) =>
    [-1, 0, 1].map((sign) => meanOf(group, measure) + sign * stderrOf(group, measure))).filter((value) => value > 0);
  const longest = Math.max(...lines.map((line) => line.label.length));
  const made = plot(box, t("errors"),
    { range: range(costs, true), log: true, title: t(`cost.${cost}`), ticks: few ? costs : null },
    { range: range(reach, true), log: true, title: t(measure) },
    wide ? Math.min(box.clientWidth / 3, 16 + 7.2 * longest) : 16);
  // marks of equal cost stand side by side, so that their bars can be told apart
  const gap = few ? Math.min(8, 44 / lines.length) : 0;
  const aside = (group) => gap * (lines.findIndex(({ list }) => list.includes(group)) - (lines.length - 1) / 2);
  const at = (group) => [made.atX(group[cost]) + aside(group), made.atY(meanOf(group, measure))];
  made.svg.append(...best.map((list) => s("path", { class: "front", d: path(list.map(at)) })),
    ...lines.map(({ list }) => s("path", { class: "thin", d: path(list.map(at)) })),
    ...(wide ? endLabels(lines, at, made) : []),
    ...groups.map((group) => mark(group, at(group), made, best.flat().includes(group))));
  roving(made.svg, ".group");
}
/** The name of each series beside its last mark. */
function endLabels(lines, at, { bottom, end }) {
  const ends = lines.map(({ list }) => at(list[list.length - 1])), heights = apart(ends.map(([, y]) => y), 15, bottom);
  return lines.flatMap(({ label }, i) => [
    s("path", { class: "lead", d: path([[ends[i][0] + 6, ends[i][1]], [end + 8, heights[i]]]) }),
    s("text", { class: "end", x: end + 12, y: heights[i] + 4 }, label)]);
}
function mark(group, [cx, cy], { atY, bottom }, best) {
  const cost = $("cost").value, measure = $("measure").value;
  const mean = meanOf(group, measure), error = stderrOf(group, measure);
  const price = `${format(group[cost])} ${t(`cost.${cost}`)}`, told = `${t(measure)} ${plusMinus(mean, error)}`;
  const text = [groupName(group), told, price, ...(best ? [t("errors.front")] : [])].join(" · ");
  const tell = () => { $("pointed").textContent = text; };
  const low = mean > error ? atY(mean - error) : bottom; // a bar that reaches zero runs to the edge
  const spread = error ? s("path", { class: "spread", d: path([[cx, atY(mean + error)], [cx, low]]) }) : null;
  const events = { onfocus: tell, onpointerenter: tell, onclick: tell };
  return s("g", { class: best ? "group best" : "group", role: "img", "aria-label": text, ...events },
    s("circle", { class: "reach", cx, cy, r: 12 }), spread, s("circle", { cx, cy, r: 4.5 }));
}
function drawErrors() {
  $("errors").hidden = !plotted.length;
  if (!plotted.length) return;
  const chosen = $("measure").value || plotted[0];
  $("measure").replaceChildren(...options(plotted.map((measure) => [measure, t(measure)]), chosen));
  $("stochastic").hidden = !data.groups.some((group) => group.stochastic && group.energy !== null);
  $("pointed").textContent = t("errors.keys");
  errorPlot();
}
$("cost").onchange = $("measure").onchange = errorPlot;
drawnIn($("errorplot"), errorPlot);
