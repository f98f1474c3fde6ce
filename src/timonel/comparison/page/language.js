// Words, numbers and names in the reader's language.

const known = (key) => key in words[state.language];
/** A word of the page. `{name}` takes a value; a number `n` of 1 takes the form `key.one` where there is one. */
function t(key, values = {}) {
  const text = words[state.language][Number(values.n) === 1 && known(`${key}.one`) ? `${key}.one` : key];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
/** A sentence that came with the data, either plain or in both languages. */
const sentence = (text) => (text && typeof text === "object" ? text[state.language] ?? text.en : text ?? "");

const formats = new Map(); // making one is slow
function format(value, options = { maximumSignificantDigits: 3 }) {
  if (value === null || value === undefined) return "–";
  const key = state.language + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(state.language, options));
  return formats.get(key).format(value);
}
const percent = (value) => format(value, { style: "percent", maximumFractionDigits: 0 });
const seconds = (value) => `${format(value)} s`;
/** Mean ± standard error, with the decimals of one digit of the error, of two where it starts with 1. */
function plusMinus(mean, stderr) {
  if (!stderr || !Number.isFinite(mean)) return format(mean);
  const power = Math.floor(Math.log10(stderr)), fine = stderr < 2 * 10 ** power ? 1 : 0;
  const digits = Math.min(8, Math.max(0, fine - power));
  const same = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return `${format(mean, same)} ± ${format(stderr, same)}`;
}

const axisName = (name, kind = "axis") => (known(`${kind}.${name}`) ? t(`${kind}.${name}`) : name.replaceAll("_", " "));
/** A value in words: "10 steps", "seed 0", and where only the axis says what it is, "width 64". */
function valueName(axis, value) {
  const n = typeof value === "number" ? format(value, { maximumFractionDigits: 6, useGrouping: false }) : value;
  if (known(`value.${axis}.${value}`)) return t(`value.${axis}.${value}`);
  if (known(`value.${axis}`)) return t(`value.${axis}`, { n });
  return typeof value === "number" || value === "none" ? `${axisName(axis)} ${n}` : value;
}
/** A place in words, e.g. "dpmpp_2m/karras · 10 steps · seed 0"; only axes that differ say anything. */
const placeName = (at, axes = free) =>
  axes.filter((axis) => axis.name in at).map((axis) => valueName(axis.name, at[axis.name])).join(" · ");
const groupName = (group, axes = groupAxes) => placeName(group.at, axes) || sentence(group.label);
const isReference = (item) => item.solver !== undefined;
/** What a cell or a reference is called. */
const name = (item) => (isReference(item) ? [t("reference"), placeName(item.at)].filter(Boolean).join(" · ")
  : placeName(item.at) || placeName(item.at, data.axes)); // the only cell differs in nothing

/** Puts the words of the language where the frame of the page asks for them. */
function translate() {
  document.documentElement.lang = state.language;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = t(node.dataset.word);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
  $("language").lang = state.language === "es" ? "en" : "es";
}
$("language").onclick = () => {
  state.language = $("language").lang;
  redraw(drawAll);
};
$("theme").onchange = () => { document.documentElement.dataset.theme = $("theme").value; };
