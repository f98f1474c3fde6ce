// The frame of the page: heading, what is closest, claims, notes; and the start.

function drawHead() {
  const sum = (key) => data.cells.reduce((all, cell) => all + (cell[key] ?? 0), 0), n = data.cells.length;
  const count = (status) => data.cells.filter((cell) => cell.status === status).length;
  const facts = [
    t(clock.film ? "videos" : "cells", { n }),
    free.map((axis) => `${axis.values.length} ${axisName(axis.name, "axes")}`).join(" × "),
    ...fixed.filter((axis) => axis.values[0] !== data.title).map((axis) => `${axisName(axis.name)} ${axis.values[0]}`),
    t("time", { n: seconds(sum("seconds")) }),
    sum("evaluations_saved") ? t("saved", { n: format(sum("evaluations_saved")) }) : "",
    count("failed") ? t("failed.count", { n: count("failed") }) : "",
  ];
  $("title").textContent = data.title;
  $("title").classList.toggle("long", data.title.length > 48);
  $("facts").replaceChildren(...facts.filter(Boolean).map((fact) => h("span", {}, fact)));
  $("sofar").hidden = data.complete;
  $("sofar").textContent = t("sofar", { done: n - count("waiting"), n });
  const date = new Intl.DateTimeFormat(state.language, { dateStyle: "long" }).format(new Date(data.created));
  $("made").textContent = t("made", { version: data.version, date });
}

/** Of the groups of equal cost the one with the least error, and those that tie with it. */
function drawGlance() {
  const best = data.groups.filter((group) => group.verdict === "best"), said = asked.filter(notSteps);
  const short = (group) => groupName(group, groupAxes.filter((axis) => !said.includes(axis)));
  const place = (group) => [t("glance.at", { n: format(group.evaluations) }), placeName(group.at, said)];
  const list = new Intl.ListFormat(state.language);
  $("glance").hidden = !best.length;
  $("cards").replaceChildren(...best.sort((one, other) => one.evaluations - other.evaluations).map((group) => {
    const peers = data.groups.filter((other) =>
      other.evaluations === group.evaluations && said.every((axis) => other.at[axis.name] === group.at[axis.name]));
    const ties = peers.filter((other) => other.verdict === "tie").map(short);
    const cell = data.cells.find((one) => data.groups[one.group] === group && one.status === "done");
    return h("li", {}, cell ? picture(cell, name(cell)) : null, h("div", {},
      h("small", {}, place(group).filter(Boolean).join(" · ")), h("strong", {}, short(group)),
      h("span", {}, plusMinus(meanOf(group, "latent_rmse"), stderrOf(group, "latent_rmse"))),
      h("span", {}, ties.length ? verdict("tie") : t("glance.alone"),
        ties.length ? ` ${t("glance.tie", { names: list.format(ties) })}` : null)));
  }));
}
function drawClaims() {
  $("claims").hidden = !data.claims.length;
  const when = (claim) => (claim.when ? h("span", { class: "when" }, sentence(claim.when)) : null);
  $("claimed").replaceChildren(...data.claims.map((claim) => h("tr", {},
    h("th", { scope: "row" }, sentence(claim.claim)), h("td", {}, sentence(claim.measured)),
    h("td", {}, verdict(claim.verdict), when(claim)))));
}
function drawNotes() {
  const notes = [...data.notes.map(sentence), ...new Set(data.references.map(trust))];
  $("notes").hidden = !notes.length;
  $("noted").replaceChildren(...notes.slice(0, data.notes.length + 4).map((note) => h("li", {}, note)));
}
function drawAll() {
  [translate, drawHead, drawGlance, drawPictures, drawSlider, drawErrors, drawSigmas, drawTable, drawClaims, drawNotes]
    .forEach((draw) => draw());
  for (const link of document.querySelectorAll("nav a")) link.hidden = $(link.hash.slice(1)).hidden;
  clock.show();
}

pairAtFirst();
drawAll();
startClock();
addEventListener("resize", () => {
  sizeGrid();
  document.querySelectorAll("img, canvas").forEach(crisp);
});
