// The grid: every place of the plan, with the axes where the reader wants them.

const keyOf = (at) => JSON.stringify(free.map((axis) => at[axis.name]));
const cellAt = new Map(data.cells.map((cell) => [keyOf(cell.at), cell]));

/** The reference of a cell: the same place on every axis the reference names, the same guidance where there is one. */
function referenceOf(cell) {
  const near = data.references.filter((reference) =>
    Object.entries(reference.at).every(([axis, value]) => axis === "guidance" || cell.at[axis] === value));
  return near.find((reference) => reference.at.guidance === cell.at.guidance) ?? near[0] ?? null;
}
for (const cell of data.cells) cell.reference = referenceOf(cell);

// at first, what is weighed runs across and the steps down; seeds and prompts come last
new Set([...weighed.slice(0, 1), ...groupAxes.filter((axis) => !notSteps(axis)), ...weighed, ...groupAxes, ...free])
  .forEach((axis) => { state.place[axis.name] = ["across", "down"][Object.keys(state.place).length] ?? 0; });

const on = (side) => free.filter((axis) => state.place[axis.name] === side);
/** Every combination of the values of some axes, e.g. [{sampler: "euler", steps: 6}, …]. */
const product = (axes) => axes.reduce((all, axis) =>
  all.flatMap((at) => axis.values.map((value) => ({ ...at, [axis.name]: value }))), [{}]);

/** What the grid shows now: the lines of items, and the places their rows and columns stand for. */
function layout() {
  const rows = product(on("down")), columns = product(on("across")), rest = {};
  for (const axis of free) rest[axis.name] = axis.values[state.place[axis.name]];
  const lines = rows.map((row) => columns.map((column) => cellAt.get(keyOf({ ...rest, ...row, ...column })) ?? null));
  // a reference that a whole line shares stands at its end
  const shared = (line) => {
    const found = new Set(line.filter(Boolean).map((cell) => cell.reference));
    return found.size === 1 ? [...found][0] : null;
  };
  const right = lines.map(shared), below = columns.map((_, j) => shared(lines.map((line) => line[j])));
  if (right.every(Boolean)) {
    lines.forEach((line, i) => line.push(right[i]));
    columns.push(null);
  } else if (below.every(Boolean)) {
    lines.push(below);
    rows.push(null);
  }
  return { rows, columns, lines };
}

/** One cell of the grid: its picture and its error, or why there is none. */
function gridCell(item, at) {
  if (!item) return h("button", { class: "shot empty", "data-at": at, "aria-label": t("nothing") }, "–");
  const events = { onclick: () => openCell(item), onkeydown: (event) => shortcut(event, item) };
  if (showable.includes(item)) {
    const under = isReference(item) ? t("value.steps", { n: item.steps }) : errorOf(item);
    const label = [...sidesOf(item), name(item), under].join(", ");
    const button = h("button", { class: "shot", "data-at": at, "aria-label": label, ...events });
    button.append(framed(item), h("small", {}, under));
    return button;
  }
  const why = item.status === "failed" ? `${t("failed")}: ${sentence(item.reason)}` : t("waiting");
  return h("button", { class: `shot ${item.status}`, "data-at": at, "aria-label": `${name(item)}, ${why}`, ...events },
    h("span", { class: "reason" }, why));
}
const errorName = (item) => ERRORS.find((measure) => (item.measures?.[measure] ?? null) !== null);
const errorOf = (item) => format(item.measures?.[errorName(item)], { maximumSignificantDigits: 2 });
const sidesOf = (item) => ["a", "b"].filter((side) => state[side] === item).map((side) => side.toUpperCase());
/** The picture with its story over it, and a mark where the slider shows it. */
const framed = (item) => h("span", { class: "frame", "data-sides": sidesOf(item).join(" ") || null },
  picture(item, ""), item.story ? storyOf(item) : null);
function shortcut(event, item) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "c" && item.command) copy(item.command);
  if ((key === "a" || key === "b") && showable.includes(item)) put(key, item);
}

function drawGrid() {
  const { rows, columns, lines } = layout();
  const breakable = (word) => word.replace(/[/_]/g, "$&\u200b");
  const words = (at, axes) => axes.map((axis) => breakable(valueName(axis.name, at[axis.name])));
  const title = (at, axes, scope, role) =>
    h("th", { scope, role }, (at ? words(at, axes) : [t("reference")]).map((word) => h("span", {}, word)));
  const cell = (item, i, j) => h("td", { role: "gridcell" }, gridCell(item, `${i},${j}`),
    showable.includes(item) && item.command ? copyButton(item, { tabindex: -1, class: "copy over" }) : null);
  const heads = columns.map((at) => title(at, on("across"), "col", "columnheader"));
  const table = h("table", { role: "grid", "aria-labelledby": "pictures-head" },
    h("thead", {}, h("tr", { role: "row" }, h("td"), heads)),
    h("tbody", {}, lines.map((line, i) => h("tr", { role: "row" }, title(rows[i], on("down"), "row", "rowheader"),
      line.map((item, j) => cell(item, i, j))))));
  $("grid").replaceChildren(table);
  roving(table, ".shot", (from, key) => {
    const [i, j] = from.dataset.at.split(",").map(Number), last = columns.length - 1;
    const row = { ArrowUp: i - 1, ArrowDown: i + 1 }[key] ?? i;
    const column = { ArrowLeft: j - 1, ArrowRight: j + 1, Home: 0, End: last }[key] ?? j;
    return table.querySelector(`[data-at="${row},${column}"]`);
  });
  sizeGrid();
  scrubAll();
}
/** Pictures as large as the width allows, between 84 and 180 pixels. */
function sizeGrid() {
  const [corner, ...columns] = $("grid").querySelector("tr").children;
  const wide = ($("grid").clientWidth - corner.offsetWidth) / columns.length - 14;
  $("grid").style.setProperty("--thumb", `${Math.max(84, Math.min(180, Math.floor(wide)))}px`);
}

/** Shows every run as far as the scrubber says; at its end, the pictures. */
function scrubAll() {
  const scrub = $("scrub"), fraction = scrub.value / scrub.max;
  tell(scrub, fraction < 1 ? t("scrub.at", { n: percent(fraction) }) : t("scrub.end"));
  for (const canvas of $("grid").querySelectorAll(".story")) canvas.reach(fraction);
}

/** Where an axis goes: across, down, or only one of its values. */
function placeChoice(axis) {
  const values = axis.values.map((value, i) => [i, valueName(axis.name, value)]);
  const all = [["across", t("across")], ["down", t("down")], ...values];
  const onchange = ({ target }) => {
    state.place[axis.name] = Number.isNaN(+target.value) ? target.value : +target.value;
    drawGrid();
  };
  return h("label", { class: "choice" }, h("span", {}, axisName(axis.name)),
    h("select", { id: `place-${axis.name}`, onchange }, options(all, state.place[axis.name])));
}
function drawPictures() {
  const longest = Math.max(0, ...data.cells.map((cell) => cell.story?.count ?? 0));
  const measure = data.cells.map(errorName).find(Boolean);
  $("places").replaceChildren(...free.map(placeChoice));
  $("scrubbar").hidden = !longest;
  if (+$("scrub").max !== longest) Object.assign($("scrub"), { max: longest, value: longest, oninput: scrubAll });
  $("under").textContent = measure ? t("pictures.under", { name: t(measure) }) : "";
  drawGrid();
}
