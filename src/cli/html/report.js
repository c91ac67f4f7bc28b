// A plan is pointed out in the picture and in the table together.
const parts = [...document.querySelectorAll("[data-plan]")];
function point(plan) {
  for (const part of parts) part.classList.toggle("on", part.dataset.plan === plan);
}
for (const part of parts) {
  part.addEventListener("pointerenter", () => point(part.dataset.plan));
  part.addEventListener("pointerleave", () => point(null));
  part.addEventListener("focus", () => point(part.dataset.plan));
  part.addEventListener("blur", () => point(null));
}
const rows = [...document.querySelectorAll("tr[data-plan]")];
document.addEventListener("keydown", (e) => {
  const at = rows.indexOf(document.activeElement);
  const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
  if (at < 0 || !step) return;
  e.preventDefault();
  rows[Math.max(0, Math.min(rows.length - 1, at + step))].focus();
});
onSearch((words) => {
  const fits = (row) => words.every((w) => row.textContent.toLowerCase().includes(w));
  const plans = new Set(rows.filter(fits).map((row) => row.dataset.plan));
  for (const part of parts) part.classList.toggle("dim", !plans.has(part.dataset.plan));
  for (const strip of document.querySelectorAll(".heat .row:not([aria-hidden])")) {
    strip.classList.toggle("dim", !words.every((w) => strip.textContent.toLowerCase().includes(w)));
  }
  found.textContent = words.length ? `${plans.size} of ${rows.length} plans` : "";
});
