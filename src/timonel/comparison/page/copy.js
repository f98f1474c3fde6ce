// One click copies the command that makes a picture again.

/** Copies text, also where the clipboard interface is missing or refused; says what happened. */
async function copy(text) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyByHand(text);
  }
  say(t(done ? "copied" : "copy.by.hand"));
}
/** The old way: a selected field, inside the dialog where one is open (nothing behind it can have the focus). */
function copyByHand(text) {
  const before = document.activeElement;
  const field = h("textarea", { class: "aside", readonly: "", "aria-label": t("command") });
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.value = text;
  field.select();
  const done = document.execCommand("copy");
  field.onblur = () => field.remove();
  if (done) before.focus();
  return done;
}
const copyButton = (cell, attributes) =>
  h("button", { class: "copy", onclick: () => copy(cell.command), ...attributes }, t("copy"));
