// The noise levels of every schedule on one plot. One is named at a time: pointed at, focused or pressed.

function sigmaPlot() {
  const level = $("level").value, log = level === "sigmas";
  const lines = data.schedules.map((schedule) => (schedule[level] ?? [])
    .map((value, i, all) => [i / (all.length - 1), value === null ? NaN : Number(value)])
    .filter(([, value]) => Number.isFinite(value) && (!log || value > 0)));
  const values = lines.flat().map(([, value]) => value);
  if (!values.length || !$("sigmaplot").clientWidth) return;
  const x = { range: [0, 1], title: t("sigmas.x") }, y = { range: range(values, log), log, title: t(`level.${level}`) };
  const { svg, atX, atY } = plot($("sigmaplot"), t("sigmas"), x, y);
  lines.forEach((line, i) => {
    const points = line.map(([at, value]) => [atX(at), atY(value)]), name = () => nameSchedule(i);
    svg.append(s("g", { class: "line", "data-schedule": i, onpointerenter: name, onclick: name },
      s("path", { class: "wide", d: path(points) }), s("path", { d: path(points) }),
      points.map(([cx, cy]) => s("circle", { cx, cy, r: 2.5 }))));
  });
  nameSchedule(state.schedule);
}
/** Lifts one schedule out of the others and says which it is. */
function nameSchedule(i) {
  const { label, sigmas } = data.schedules[i], above = sigmas.filter((value) => value > 0);
  state.schedule = i;
  for (const node of document.querySelectorAll("[data-schedule]")) {
    const named = +node.dataset.schedule === i;
    if (node.matches("button")) node.setAttribute("aria-pressed", named);
    else node.classList.toggle("on", named);
  }
  const line = $("sigmaplot").querySelector(".on");
  if (line?.nextSibling) line.parentNode.append(line); // above the others
  const [first, last] = [above[0], above[above.length - 1]].map((value) => format(value));
  $("named").textContent = t("sigmas.named", { name: sentence(label), n: sigmas.length, first, last });
}
function drawSigmas() {
  $("sigmas").hidden = !data.schedules.length;
  if (!data.schedules.length) return;
  const chip = ({ label }, i) => {
    const name = () => nameSchedule(i);
    return h("button", { "data-schedule": i, onfocus: name, onclick: name, onpointerenter: name }, sentence(label));
  };
  const chips = h("div", { class: "chips", role: "group", "aria-label": t("sigmas.label") }, data.schedules.map(chip));
  $("schedules").replaceChildren(chips);
  roving(chips, "button");
  sigmaPlot();
}
$("level").onchange = sigmaPlot;
drawnIn($("sigmaplot"), sigmaPlot);
