"use strict";
// What every part shares: the data, what the reader has chosen, and small builders of elements.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const words = JSON.parse($("words").textContent);
const ERRORS = ["latent_rmse", "rmse", "lpips", "energy"]; // less is better
const MEASURES = ["latent_rmse", "energy", "rmse", "psnr", "ssim", "lpips", "consistency"];
const OVER = ["seed", "prompt", "negative_prompt", "image"]; // a group is the mean over these axes
// a verdict weighs these against each other where everything else is equal
const WEIGHED = ["sampler", "grid", "options", "grid_options", "noise", "guidance_until", "rescale"];
const free = data.axes.filter((axis) => axis.values.length > 1);
const fixed = data.axes.filter((axis) => axis.values.length === 1);
const groupAxes = free.filter((axis) => !OVER.includes(axis.name));
const weighed = groupAxes.filter((axis) => WEIGHED.includes(axis.name));
const asked = groupAxes.filter((axis) => !WEIGHED.includes(axis.name));
const notSteps = (axis) => axis.name !== "steps";

const state = {
  language: (navigator.language || "en").toLowerCase().startsWith("es") ? "es" : "en",
  place: {}, // of each free axis: "across", "down" or the index of the value shown
  a: null, // what the slider shows
  b: null,
  schedule: 0, // the one that is named
  sort: {}, // of each table: {name, down}
};

const build = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
};
/** An element. A string among the children stays text: nothing here ever parses markup. */
const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
/** The same for SVG. */
const s = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const options = (pairs, chosen) =>
  pairs.map(([value, text]) => h("option", { value, selected: value === chosen ? "" : null }, text));

/** One tab stop for many elements: arrow keys, Home and End move the focus. `beside(element, key)` names the next. */
function roving(box, selector, beside = inLine) {
  const all = () => [...box.querySelectorAll(selector)];
  const only = (one) => all().forEach((other) => other.setAttribute("tabindex", other === one ? 0 : -1));
  only(all()[0]);
  box.addEventListener("focusin", (event) => { if (event.target.matches(selector)) only(event.target); });
  box.addEventListener("keydown", (event) => {
    if (!/^(Arrow|Home$|End$)/.test(event.key) || !event.target.matches(selector)) return;
    event.preventDefault();
    beside(event.target, event.key, all())?.focus();
  });
}
function inLine(from, key, all) {
  const at = all.indexOf(from), steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  return key === "Home" ? all[0] : key === "End" ? all[all.length - 1] : all[at + steps[key]];
}

/** What a range stands at, in words: aloud, and in the output beside it. */
function tell(range, text) {
  range.setAttribute("aria-valuetext", text);
  if (range.nextElementSibling) range.nextElementSibling.textContent = text;
}
/** Tells the reader what happened, aloud too, for four seconds. */
function say(text) {
  const said = $("said");
  clearTimeout(say.timer);
  said.textContent = "";
  requestAnimationFrame(() => { said.textContent = text; });
  say.timer = setTimeout(() => { said.textContent = ""; }, 4000);
}
/** Draws anew, and gives the focus back to the control that had it. */
function redraw(...draws) {
  const { id, dataset } = document.activeElement;
  for (const draw of draws) draw();
  (id ? $(id) : dataset.at && document.querySelector(`[data-at="${dataset.at}"]`))?.focus({ preventScroll: true });
}
