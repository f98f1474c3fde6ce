// The numbers: groups, or every picture, sorted by any column.

const VERDICTS = { best: 0, tie: 1, worse: 2 }; // their order
const verdict = (kind) =>
  (kind ? h("span", { class: `verdict ${kind.replaceAll(" ", "-")}` }, t(`verdict.${kind}`)) : "–");
/** A column of numbers; `show` makes the text of a row. */
const number = (name, value, show = (row) => format(value(row))) => ({ name, value, show, number: true });
const measured = (rows, value, show) => MEASURES.filter((measure) => rows.some((row) => value(row, measure) !== null))
  .map((measure) => number(measure, (row) => value(row, measure), show && ((row) => show(row, measure))));
const plain = (...names) => names.map((name) => number(name, (row) => row[name] ?? null));

const groupColumns = () => [
  { name: "group", value: (group) => groupName(group), show: (group) => groupName(group) },
  { name: "verdict", value: (group) => VERDICTS[group.verdict] ?? null, show: (group) => verdict(group.verdict) },
  ...plain("count", "nfe", "evaluations", "seconds"),
  ...measured(data.groups, meanOf, (group, measure) => plusMinus(meanOf(group, measure), stderrOf(group, measure))),
];
const opener = (cell) => h("button", { class: "link", onclick: () => openCell(cell) }, name(cell));
const copier = (cell) => (cell.command ? copyButton(cell, { "aria-label": `${t("copy")}: ${name(cell)}` }) : "–");
const cellColumns = () => [
  { name: "picture", value: name, show: opener },
  { name: "status", value: (cell) => cell.status, show: (cell) => h("span", { class: `status ${cell.status}` },
    [t(`status.${cell.status}`), sentence(cell.reason)].filter(Boolean).join(": ")) },
  ...plain("nfe", "evaluations", "evaluations_saved", "seconds"),
  ...measured(data.cells, (cell, measure) => cell.measures?.[measure] ?? null),
  { name: "command", value: (cell) => cell.command, show: copier },
];

/** Rows by one column; a row without a value comes last whichever way it is sorted. */
function sorted(rows, { value }, down) {
  const text = new Intl.Collator(state.language, { numeric: true });
  const missing = (one) => one === null || one === undefined;
  const compare = (a, b) => (typeof a === "string" && Number.isNaN(+a) ? text.compare(a, b) : +a === +b ? 0 : a - b);
  return [...rows].sort((one, other) => {
    const a = value(one), b = value(other);
    return missing(a) || missing(b) ? missing(a) - missing(b) : (down ? -1 : 1) * compare(a, b);
  });
}
function drawTable() {
  const what = $("what").value, columns = what === "groups" ? groupColumns() : cellColumns();
  const by = state.sort[what], column = columns.find((one) => one.name === by?.name);
  const rows = column ? sorted(data[what], column, by.down) : data[what];
  const heads = columns.map((one) => {
    const sort = one !== column ? "none" : by.down ? "descending" : "ascending";
    const onclick = () => {
      state.sort[what] = { name: one.name, down: sort === "ascending" };
      redraw(drawTable);
    };
    const arrow = h("i", { "aria-hidden": "true" }, { none: "", ascending: "↑", descending: "↓" }[sort]);
    return h("th", { scope: "col", "aria-sort": sort, class: one.number ? "number" : null },
      h("button", { id: `sort-${one.name}`, onclick }, t(one.name), arrow));
  });
  const line = (row) => h("tr", { class: row.pareto ? "pareto" : null }, columns.map((one, i) =>
    h(i ? "td" : "th", { scope: i ? null : "row", class: one.number ? "number" : null }, one.show(row))));
  $("rows").classList.toggle("long", rows.length > 40);
  $("rows").replaceChildren(h("table", { "aria-labelledby": "table-head" },
    h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows.map(line))));
}
$("what").onchange = drawTable;
