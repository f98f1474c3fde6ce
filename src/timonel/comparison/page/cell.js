// One picture, opened: its story, its numbers, its recipe and the command that makes it again.

/** How far a reference can be trusted. */
const trust = ({ solver, steps, change }) =>
  t(typeof change === "number" ? "reference.lead" : "reference.unchecked",
    { solver, steps: format(steps), change: format(change) });

function openCell(item) {
  const failed = item.status === "failed", shown = showable.includes(item);
  $("cell-head").textContent = name(item);
  $("reason").textContent = failed ? sentence(item.reason) : t("waiting");
  $("reason").hidden = shown;
  $("seen").hidden = !shown;
  if (shown) showCell(item);
  $("remake").hidden = !item.command;
  const parts = (item.command ?? "").split(/(?<= )/); // a line breaks only between them
  $("command").replaceChildren(...parts.map((part) => h("span", {}, part)));
  $("copy").onclick = () => copy(item.command);
  $("recipe").textContent = JSON.stringify(item.recipe ?? null, null, 2);
  $("cell").showModal();
  sharpen($("big"));
  clock.show();
}
function showCell(item) {
  const shown = picture(item, name(item));
  $("big").replaceChildren(item.full ? h("a", { href: item.full, target: "_blank", rel: "noopener" }, shown) : shown);
  $("full").hidden = !item.full;
  if (item.full) $("full").href = item.full;
  $("trust").textContent = isReference(item) ? trust(item) : "";
  $("numbers").replaceChildren(...(isReference(item) ? [] : numbersOf(item)).map(([key, text]) =>
    h("div", {}, h("dt", {}, t(key)), h("dd", {}, text))));
  $("storybar").hidden = !item.story;
  if (item.story) showStory(item);
  $("use-a").onclick = () => use(["a", item]);
  $("use-b").onclick = () => use(["b", item]);
  $("use-reference").hidden = !item.reference;
  $("use-reference").onclick = () => use(["a", item], ["b", item.reference]);
}
const numbersOf = (cell) => [
  ...["nfe", "evaluations", "evaluations_saved"].map((key) => [key, format(cell[key])]), ["seconds", seconds(cell.seconds)],
  ...MEASURES.filter((key) => (cell.measures[key] ?? null) !== null).map((key) => [key, format(cell.measures[key])]),
];

/** The previews of the run; the scrubber's last place is the finished picture. */
function showStory(item) {
  const { count } = item.story, canvas = storyOf(item), scrub = $("story");
  const levels = data.schedules[item.schedule]?.sigmas ?? [];
  $("big").append(canvas);
  Object.assign(scrub, { max: count, value: count });
  scrub.oninput = () => {
    const step = +scrub.value, told = { n: step + 1, count, sigma: format(levels[step]) };
    const word = step === count ? "story.end" : levels.length === count + 1 ? "story.sigma" : "story.step";
    canvas.step(step);
    tell(scrub, t(word, told));
  };
  scrub.oninput();
}
/** Puts pictures into the slider and goes there. */
function use(...pairs) {
  $("cell").close();
  for (const [side, item] of pairs) put(side, item);
  $("slider").scrollIntoView();
  $("split").focus({ preventScroll: true });
}
$("close").onclick = () => $("cell").close();
$("cell").onclick = (event) => { if (event.target === $("cell")) $("cell").close(); };
