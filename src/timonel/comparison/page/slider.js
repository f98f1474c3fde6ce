// Before and after: two pictures on top of each other, with a border that moves.

const showable = [...data.cells.filter((cell) => cell.status === "done"), ...data.references];

/** At first: the first picture against the best of its kind and cost, else its reference, else the last picture. */
function pairAtFirst() {
  const first = showable[0];
  const same = (cell) => cell.evaluations === first.evaluations &&
    free.every((axis) => weighed.includes(axis) || cell.at[axis.name] === first.at[axis.name]);
  const best = showable.find((item) => item !== first && data.groups[item.group]?.verdict === "best" && same(item));
  Object.assign(state, { a: first, b: best ?? first?.reference ?? showable[showable.length - 1] });
}
/** Puts a picture on one side. */
function put(side, item) {
  state[side] = item;
  redraw(drawSlider, drawGrid);
  say(t("use.done", { side: side.toUpperCase(), name: name(item) }));
}
/** The picture of one side, the choice of it, and what is known of it. */
function drawSide(side) {
  const item = state[side], error = errorName(item), list = $(`pick-${side}`);
  const facts = isReference(item) ? [item.solver, t("value.steps", { n: item.steps })]
    : [error ? `${t(error)} ${format(item.measures[error])}` : "", `${format(item.nfe)} NFE`, seconds(item.seconds)];
  $(`show-${side}`).replaceChildren(picture(item, `${side.toUpperCase()}: ${name(item)}`));
  $(`facts-${side}`).textContent = facts.filter(Boolean).join(" · ");
  list.replaceChildren(...options(showable.map((other, i) => [i, name(other)]), showable.indexOf(item)));
  list.onchange = () => put(side, showable[list.value]);
}
function drawSlider() {
  $("slider").hidden = showable.length < 2;
  if (showable.length < 2) return;
  drawSide("a");
  drawSide("b");
  moveSplit();
  clock.show();
}
/** The left part shows A, the right part B. The border is a range, so mouse, touch and keys move it. */
function moveSplit() {
  $("stage").style.setProperty("--split", `${$("split").value}%`);
  tell($("split"), t("slider.value", { n: percent($("split").value / 100) }));
}
$("split").oninput = moveSplit;
$("split").onpointerenter = $("split").onfocus = () => sharpen($("stage"));
$("swap").onclick = () => {
  [state.a, state.b] = [state.b, state.a];
  put("a", state.a);
};
