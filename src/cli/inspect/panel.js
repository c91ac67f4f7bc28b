// What is opened, and what is searched for.
function openPanel(title, ...content) {
  opener = document.activeElement?.dataset?.key ?? opener;
  panel.replaceChildren(
    el("div", { class: "panelhead" }, el("h2", { id: "panel-title", tabindex: "-1" }, title),
      el("button", { type: "button", class: "button", "aria-label": "Close", on: { click: closePanel } }, "Close")),
    ...content.flat());
  panel.hidden = false;
  panel.scrollTop = 0;
  document.body.classList.add("open");
  for (const e of place.querySelectorAll("[data-key]")) e.classList.toggle("opened", e.dataset.key === opener);
  showHint(null);
  document.getElementById("panel-title").focus({ preventScroll: true });
  place.querySelector(".opened")?.scrollIntoView({ block: "nearest" });
}
function closePanel() {
  panel.hidden = true;
  document.body.classList.remove("open");
  for (const e of place.querySelectorAll(".opened")) e.classList.remove("opened");
  go([...place.querySelectorAll("[data-key]")].find((e) => e.dataset.key === opener));
}
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape" && !panel.hidden) closePanel();
});
const facts = (...rows) =>
  el("dl", { class: "facts" }, rows.filter(([, v]) => v !== "" && v !== null && v !== undefined).map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]).flat());
/** A text with the words that are searched for marked. */
function marked(text) {
  const small = text.toLowerCase();
  const at = words.map((w) => [small.indexOf(w), w.length]).filter(([i]) => i >= 0).sort((a, b) => a[0] - b[0])[0];
  if (!at || small.length !== text.length) return [text];
  const [from, n] = at;
  return [text.slice(0, from), el("mark", {}, text.slice(from, from + n)), text.slice(from + n)];
}
const fits = (text) => words.every((w) => text.includes(w));
const nodeText = ([op, name, type]) => `${op} ${name} ${types[type]}`.toLowerCase();
function nodeList(nodes) {
  const rows = nodes.slice(0, LISTED).map(([op, name, type]) =>
    el("li", {}, el("b", {}, marked(op)), el("code", { class: "type" }, marked(types[type])), el("code", {}, name ? marked(name) : "")));
  const more = nodes.length > LISTED ? el("p", { class: "note" }, `and ${plural(nodes.length - LISTED, "more node")}`) : "";
  return [el("ol", { class: "nodes" }, rows), more];
}
function nodeBlock(title, nodes, open = true) {
  if (!nodes?.length) return "";
  return el("details", { open }, el("summary", {}, el("b", {}, title), ` ${plural(nodes.length, "node")}`), nodeList(nodes));
}
function layerLinks(of) {
  return el("p", { class: "links" }, of.map((l) => el("button", { type: "button", class: "button", on: { click: () => { opener = `layer:${l}`; layerPanel(l); } } }, `layer ${l}`)));
}
function reads(l) {
  const names = lanes.filter((lane) => lane.kind !== "tap").flatMap((lane) => lane.names.filter((n) => n.layers.includes(l)).map((n) => n.name));
  return names.length ? el("details", {}, el("summary", {}, el("b", {}, "reads besides the state"), ` ${names.length}`), el("ul", { class: "names" }, names.map((n) => el("li", {}, el("code", {}, n))))) : "";
}
function layerPanel(l) {
  const d = detailOf(l);
  const states = ["the state that enters", ...partsOf(l).map((_, i) => `the state behind part ${i + 1}`)];
  openPanel(`Layer ${l}`,
    facts(["class", `${d.class + 1} of ${chain.classes.length}`], ["weights", weightText([l])], ["dispatches", layers[l]?.dispatches],
      ["state", layers[l] ? el("code", {}, types[layers[l].state]) : ""], ["skip path", d.transfer], ["nodes", `${d.nodes}`]),
    partsOf(l).map((p, i) => {
      const title = `${i + 1}. ${p.kind}`;
      const weight = p.bytes ? `, ${p.parameters.toLocaleString("en-US")} parameters, ${size(p.bytes)}` : "";
      return el("details", { open: partsOf(l).length < 4 || p.kind !== "skip path" },
        el("summary", {}, el("b", {}, title), ` ${plural(p.nodes.length, "node")}${weight}`),
        el("p", { class: "note" }, `computed from ${states[p.reads] ?? "the state"}`), nodeList(p.nodes));
    }),
    reads(l),
    layers[l] ? "" : el("p", { class: "note" }, "A converted model does not carry its original's nodes."));
}
function unitPanel(s, u) {
  const { parallel, first, detail } = shown[s];
  const of = span(first + u * parallel.fused, parallel.fused);
  openPanel(`Unit ${u + 1} of ${parallel.units}`,
    facts(["segment", el("code", {}, parallel.text)], ["layers", ranges(of)], ["weights", weightText(of)], ["dispatches", segmentDispatches(s)],
      ["starts from", parallel.units > 1 ? parallel.init : ""], ["parts", partKinds(of).map(([k, n]) => `${n} × ${k}`).join(", ")]),
    of.length > 1 ? el("p", { class: "note" }, parallel.avg
      ? "All its layers see the same input; their branches are averaged, sub-block by sub-block."
      : "All its layers see the same input; their branches are added up, sub-block by sub-block.") : "",
    layerLinks(of),
    nodeBlock(parallel.units > 1 ? "all units, as rewritten" : "as rewritten", detail?.nodes));
}
function correctionText(s) {
  const { parallel, detail } = shown[s];
  const damped = parallel.elk ? `${+(1 - parallel.elk).toFixed(4)} · ` : "";
  const formula = {
    identity: `s′ₗ = Fₗ + ${damped}(s′ₗ₋₁ − sₗ₋₁), a prefix sum`,
    transfer: `s′ₗ = Fₗ + ${damped}Aₗ (s′ₗ₋₁ − sₗ₋₁), Aₗ what the skip path does`,
    diagonal: `s′ₗ = Fₗ + ${damped}diag(Jₗ) (s′ₗ₋₁ − sₗ₋₁), measured`,
    exact: `s′ₗ = Fₗ + ${damped}Jₗ (s′ₗ₋₁ − sₗ₋₁), measured`,
    jacobi: "s′ₗ = Fₗ, no correction",
  };
  return formula[detail?.surrogate] ?? "every state corrected by the change of the one before";
}
function correctionPanel(s) {
  const { parallel, detail } = shown[s];
  openPanel("Correction",
    facts(["segment", el("code", {}, parallel.text)], ["each state", correctionText(s)], ["surrogate", detail?.surrogate], ["iterations", `${parallel.iterations}`],
      ["starts from", parallel.init], ["dispatches", detail?.correction_dispatches]),
    el("p", { class: "note" }, "F are the units evaluated on the states s that were guessed; after as many iterations as there are units the result is the sequential model's."),
    nodeBlock("corrections", detail?.correction), nodeBlock("all units, as rewritten", detail?.nodes, false));
}
function lanePanel(lane) {
  const title = { side: "Side input", cache: "Caches", tap: "Tap" }[lane.kind];
  const list = lane.names.slice(0, LISTED).map(({ name, layers: of }) =>
    el("li", {}, el("code", {}, marked(name)), of.length ? el("small", {}, ` ${of.length > 1 ? "layers" : "layer"} ${ranges(of)}`) : ""));
  const what = {
    side: "Values that the layers read besides the state.",
    cache: "Keys and values that layers keep between calls, as input and output of the model.",
    tap: `${laneTitle(lane)}: a state that is read behind the chain, by`,
  }[lane.kind];
  openPanel(title, el("p", { class: "note" }, what), el("ul", { class: "names" }, list));
}
function endPanel(which, label, detail) {
  openPanel(label[0].toUpperCase() + label.slice(1), facts(["dispatches", detail.dispatches]), nodeBlock("nodes", detail.nodes),
    detail.nodes?.length ? "" : el("p", { class: "note" }, "A converted model does not carry its original's nodes."));
}

// Search: what fits stays, the rest is dimmed; Enter lists the nodes.
const haystack = span(0, chain.layers).map((l) => {
  const d = detailOf(l);
  const own = `layer ${l} class ${d.class + 1} ${d.transfer} ${partsOf(l).map((p) => p.kind).join(" ")}`.toLowerCase();
  return { own, nodes: partsOf(l).flatMap((p) => p.nodes).map((n) => [n, nodeText(n)]) };
});
const ends = { prefix: (prefix.nodes ?? []).map((n) => [n, nodeText(n)]), suffix: (suffix.nodes ?? []).map((n) => [n, nodeText(n)]) };
function hitsOf(l) {
  const { own, nodes } = haystack[l];
  return { layer: fits(own), nodes: nodes.filter(([, text]) => fits(text)).map(([n]) => n) };
}
let hits = [];
function mark() {
  const searching = words.length > 0;
  hits = searching ? haystack.map((_, l) => hitsOf(l)) : [];
  const inEnds = Object.fromEntries(Object.entries(ends).map(([k, nodes]) => [k, searching ? nodes.filter(([, t]) => fits(t)).map(([n]) => n) : []]));
  const hit = (l) => hits[l].layer || hits[l].nodes.length > 0;
  for (const e of place.querySelectorAll("[data-key]")) {
    const key = e.dataset.key;
    let on = true;
    if (searching && key in inEnds) on = inEnds[key].length > 0;
    else if (searching && key.startsWith("lane:")) on = lanes[key.slice(5)].names.some((n) => fits(n.name.toLowerCase()));
    else if (searching) on = [...e.of].some(hit);
    e.classList.toggle("dim", !on);
    const count = e.querySelector(".hits");
    if (count) count.textContent = searching && on ? `${[...e.of].filter(hit).length} hit` : "";
  }
  const nodes = sum(hits.map((h) => h.nodes.length)) + sum(Object.values(inEnds).map((n) => n.length));
  const inLayers = hits.filter((h) => h.layer || h.nodes.length).length;
  found.textContent = !searching ? "" : nodes + inLayers === 0 ? "nothing found" : `${plural(nodes, "node")} · ${plural(inLayers, "layer")}${nodes ? " · Enter lists" : ""}`;
  return inEnds;
}
function results() {
  const inEnds = mark();
  const group = (title, nodes, open) => el("details", { open: true }, el("summary", {}, el("b", {}, title), ` ${plural(nodes.length, "node")}`),
    el("p", { class: "links" }, el("button", { type: "button", class: "button", on: { click: open } }, `Open ${title}`)), nodeList(nodes));
  let left = LISTED;
  const groups = [];
  if (inEnds.prefix.length) groups.push(group("before the chain", inEnds.prefix, () => endPanel("prefix", "before the chain", prefix)));
  hits.forEach((h, l) => {
    if (!(h.layer || h.nodes.length) || left <= 0) return;
    left -= h.nodes.length + 1;
    groups.push(group(`layer ${l}`, h.nodes, () => { opener = `layer:${l}`; layerPanel(l); }));
  });
  if (inEnds.suffix.length) groups.push(group("behind the chain", inEnds.suffix, () => endPanel("suffix", "behind the chain", suffix)));
  openPanel("Found", el("p", { class: "note" }, found.textContent.replace(" · Enter lists", "")), groups,
    left <= 0 ? el("p", { class: "note" }, "Later layers are left out: search for more words.") : "");
}
onSearch((wanted) => {
  words = wanted;
  mark();
});
find.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && words.length) results();
});
draw();
