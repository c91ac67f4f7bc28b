// The switch of colours: the reader's system decides until it is used.
const root = document.documentElement;
const theme = document.getElementById("theme");
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
function remembered(value) {
  // Pages opened from a disk may have no storage.
  try {
    if (value) localStorage.setItem("snlp-theme", value);
    return localStorage.getItem("snlp-theme");
  } catch {
    return null;
  }
}
function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches;
}
function showTheme() {
  theme.lastChild.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-pressed", String(isDark()));
}
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remembered(root.dataset.theme);
  showTheme();
});
systemDark.addEventListener("change", showTheme);
showTheme();

// Hints: what an element's `hint` property or data says, while it is pointed at or has the focus.
const hint = document.getElementById("hint");
function hinted(target) {
  for (let e = target; e && e !== document; e = e.parentNode) {
    if (e.hint) return [e, typeof e.hint === "function" ? e.hint() : e.hint];
    if (e.dataset?.hint) return [e, e.dataset.hint];
  }
  return null;
}
function showHint(target) {
  const found = hinted(target);
  hint.hidden = !found;
  if (!found) return;
  hint.textContent = found[1];
  const box = found[0].getBoundingClientRect();
  const below = box.bottom + 8 + hint.offsetHeight < window.innerHeight;
  hint.style.top = `${Math.max(4, below ? box.bottom + 8 : box.top - hint.offsetHeight - 8)}px`;
  hint.style.left = `${Math.max(4, Math.min(box.left, window.innerWidth - hint.offsetWidth - 8))}px`;
}
document.addEventListener("pointerover", (e) => { if (e.pointerType !== "touch") showHint(e.target); });
document.addEventListener("focusin", (e) => showHint(e.target.matches(":focus-visible") ? e.target : null));
document.addEventListener("focusout", () => showHint(null));
document.addEventListener("scroll", () => showHint(null), { passive: true });

// The search field: `/` leads to it, Escape empties it.
const find = document.getElementById("find");
const found = document.getElementById("found");
/** Calls `look` with the words that are searched for, in small letters, whenever they change. */
function onSearch(look) {
  const words = () => find.value.toLowerCase().split(/\s+/).filter(Boolean);
  find.addEventListener("input", () => look(words()));
  find.addEventListener("keydown", (e) => {
    if (e.key !== "Escape") return;
    e.stopPropagation();
    if (find.value) {
      find.value = "";
      look([]);
    } else {
      find.blur();
    }
  });
  document.addEventListener("keydown", (e) => {
    const writing = e.target.matches("input, textarea, [contenteditable]");
    if (e.key === "/" && !writing && !e.ctrlKey && !e.metaKey && !e.altKey) {
      e.preventDefault();
      find.focus();
      find.select();
    }
  });
}
