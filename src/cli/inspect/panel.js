// What is opened, and what is searched for.
function openPanel(title, ...content) {
  opener = document.activeElement?.dataset?.key ?? opener;
  panel.replaceChildren(
    el("div", { class: "panelhead" }, el("h2", { id: "panel-title", tabindex: "-1" }, title),
      el("button", { type: "button", class: "button", "aria-label": "Close", on: { click: closePanel } }, "Close")),
    ...content.flat(Infinity).filter((c) => c !== ""));
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
  if (opener === null) find.focus();
  else go(itemOf(opener));
}
/** The item of this key, or the fold that hides it. */
function itemOf(key) {
  const items = [...place.querySelectorAll("[data-key]")];
  const [what, a, b] = key.split(":");
  const l = what === "unit" ? shown[a].first + b * shown[a].parallel.fused : +a;
  return items.find((e) => e.dataset.key === key) ?? items.find((e) => e.hasAttribute("aria-expanded") && e.of.has(l));
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
const fits = (text) => words.every((w) => (/ \d+$/.test(w) ? `${text} `.includes(`${w} `) : text.includes(w)));
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
    nodeBlock("as rewritten", changedNodes(l), false),
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
    el("p", { class: "note" }, "F are the units evaluated on the states s that were guessed; after as many iterations as there are units the result is that of the units one after the other" + (parallel.fused > 1 ? "; fused layers are another function than the sequential model's." : ": the sequential model's.")),
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
  openPanel(label[0].toUpperCase() + label.slice(1), facts(["dispatches", detail.dispatches]), nodeBlock("nodes", detail.nodes), nodeBlock("as rewritten", detail.rewritten, false),
    detail.nodes?.length ? "" : el("p", { class: "note" }, "A converted model does not carry its original's nodes."));
}

// Search: what fits stays, the rest is dimmed; Enter lists the nodes. A place is what has a text and nodes of its own.
const searched = (nodes) => (nodes ?? []).map((n) => [n, nodeText(n)]);
const kindsOf = (l) => partsOf(l).map((p) => p.kind).join(" ");
const layerText = (l) => `layer ${l} class ${detailOf(l).class + 1} ${detailOf(l).transfer} ${kindsOf(l)}`;
const aPlace = (own, nodes, same = false) => ({ own: own.toLowerCase(), nodes: searched(nodes), same });
const segmentOf = (l) => shown.findIndex(({ first, layers: n }) => l >= first && l < first + n);
function changedNodes(l) {
  const s = planned ? segmentOf(l) : -1;
  return s < 0 ? null : shown[s].detail?.layers?.[l - shown[s].first];
}
const original = {
  prefix: aPlace("", prefix.nodes),
  suffix: aPlace("", suffix.nodes),
  layers: span(0, chain.layers).map((l) => aPlace(layerText(l), partsOf(l).flatMap((p) => p.nodes))),
};
/** What the plan makes of it; where it leaves nodes as they are, they are found on both sides. */
const rewritten = planned ? {
  prefix: aPlace("", prefix.rewritten ?? prefix.nodes, !prefix.rewritten),
  suffix: aPlace("", suffix.rewritten ?? suffix.nodes, !suffix.rewritten),
  segments: shown.map(({ first, layers: n, parallel, detail }, s) => {
    const of = span(first, n);
    if (!parallel) {
      const stays = of.map((l, i) => aPlace(`${layerText(l)} as it is`, changedNodes(l) ?? original.layers[l].nodes.map(([node]) => node), !detail?.layers?.[i]));
      return { own: aPlace(`segment ${s + 1} s${n} sequential one after the other`), layers: stays };
    }
    const text = `segment ${s + 1} ${parallel.text} ${parallel.init} ${parallel.avg ? "averaged" : ""} ${parallel.fused > 1 ? "fused" : ""}`;
    const units = span(0, parallel.units).map((u) => aPlace(`unit ${u + 1} ${span(first + u * parallel.fused, parallel.fused).map(layerText).join(" ")}`));
    const correction = parallel.units > 1 ? aPlace(`correction ${detail?.surrogate ?? ""} ${text}`, detail?.correction) : aPlace("", detail?.correction);
    return { own: aPlace(text, detail?.nodes), units, correction };
  }),
} : null;
/** Looks everywhere for the words. */
function look() {
  const at = ({ own, nodes }) => {
    const found = nodes.filter(([, text]) => fits(text)).map(([n]) => n);
    const named = own !== "" && fits(own);
    return { named, nodes: found, hit: named || found.length > 0 };
  };
  const side = ({ prefix: before, suffix: behind, ...rest }) => ({ prefix: at(before), suffix: at(behind), ...rest });
  const first = { ...side(original), layers: original.layers.map(at), lanes: lanes.map((lane) => lane.names.some((n) => fits(n.name.toLowerCase()))) };
  if (!rewritten) return { first };
  const segmentsNow = rewritten.segments.map((segment) => {
    const own = at(segment.own);
    // A segment's nodes are those of all its units together.
    const within = (p) => ({ ...at(p), hit: own.hit || at(p).hit });
    return { own, layers: (segment.layers ?? []).map(within), units: (segment.units ?? []).map(within), correction: segment.correction ? at(segment.correction) : null };
  });
  return { first, second: { ...side(rewritten), segments: segmentsNow } };
}
/** Whether a layer's place in the rewritten model is found. */
function hitBehind({ second }, l) {
  const s = second ? segmentOf(l) : -1;
  if (s < 0) return false;
  const { first, parallel } = shown[s];
  return parallel ? second.segments[s].units[Math.floor((l - first) / parallel.fused)].hit : second.segments[s].layers[l - first].hit;
}
function isOn(e, now) {
  const [what, a, b] = e.dataset.key.split(":");
  const { first, second } = now;
  switch (what) {
    case "prefix": case "suffix": return first[what].hit || Boolean(second?.[what].hit);
    case "lane": return first.lanes[a];
    case "layer": return first.layers[a].hit;
    case "same": return hitBehind(now, +a);
    case "unit": return second.segments[a].units[b].hit;
    case "correction": return second.segments[a].correction.hit;
    default: return [...e.of].some((l) => first.layers[l].hit || (e.hides && hitBehind(now, l)));
  }
}
const all = (places) => sum(places.map((p) => p.nodes.length));
const hit = (places) => places.filter((p) => p.hit).length;
/** What is found on one side, in words. */
function told(side) {
  const of = (what) => (side.segments ?? []).flatMap((segment) => segment[what] ?? []);
  const layersOf = side.layers ?? of("layers");
  const nodes = all([side.prefix, side.suffix, ...layersOf, ...of("own"), ...of("correction")]);
  const counts = [[nodes, "node"], [hit(layersOf), "layer"], [hit(of("units")), "unit"], [hit(of("correction")), "correction"], [(side.lanes ?? []).filter(Boolean).length, "line beside the chain", "lines beside the chain"]];
  return counts.filter(([n]) => n > 0).map(([n, what, many]) => n > 1 && many ? `${n} ${many}` : plural(n, what)).join(" · ");
}
function mark() {
  const searching = words.length > 0;
  const now = searching ? look() : null;
  for (const e of place.querySelectorAll("[data-key]")) {
    const on = !searching || isOn(e, now);
    e.classList.toggle("dim", !on);
    const count = e.querySelector(".hits");
    const layersHit = () => [...e.of].filter((l) => now.first.layers[l].hit || (e.hides && hitBehind(now, l))).length;
    if (count) count.textContent = searching && on ? `${layersHit()} hit` : "";
  }
  found.textContent = searching ? summary(now) : "";
  return now;
}
function summary({ first, second }) {
  const [before, behind] = [told(first), second ? told(second) : ""];
  if (!before && !behind) return "nothing found";
  const text = second ? `original: ${before || "nothing"} — rewritten: ${behind || "nothing"}` : before;
  return `${text} · Enter lists`;
}
function results() {
  const now = mark();
  const button = (text, key, open) => el("button", { type: "button", class: "button", on: { click: () => { opener = key; open(); } } }, text);
  const group = (title, nodes, ...buttons) => el("details", { open: true }, el("summary", {}, el("b", {}, title), nodes.length ? ` ${plural(nodes.length, "node")}` : ""),
    el("p", { class: "links" }, buttons.flat()), nodes.length ? nodeList(nodes) : "");
  /** Groups until enough nodes are listed. */
  const list = (side) => {
    let left = LISTED;
    const groups = [];
    const put = (place, make) => {
      if (!place.hit) return;
      if (left > 0) groups.push(make());
      left -= place.nodes.length + 1;
    };
    side(put);
    return [groups, left <= 0 && groups.length ? el("p", { class: "note" }, "What follows is left out where the list is long: search for more words.") : ""];
  };
  const end = (put, which, label, detail, { [which]: at }) => put(at, () => group(label, at.nodes, button(`Open ${label}`, which, () => endPanel(which, label, detail))));
  const layer = (put, l, at, key) => put(at, () => group(`layer ${l}`, at.nodes, button(`Open layer ${l}`, `${key}:${l}`, () => layerPanel(l))));
  const beside = lanes.flatMap((lane, i) => now.first.lanes[i] ? button(`Open ${laneTitle(lane)}`, `lane:${i}`, () => lanePanel(lane)) : []);
  const before = list((put) => {
    put({ hit: beside.length > 0, nodes: [] }, () => group("beside the chain", [], beside));
    end(put, "prefix", "before the chain", prefix, now.first);
    now.first.layers.forEach((at, l) => layer(put, l, at, "layer"));
    end(put, "suffix", "behind the chain", suffix, now.first);
  });
  const { first, second } = now;
  const same = [];
  const behind = second && list((put) => {
    // What stays as it is stands in the first list, unless it is found by what the plan makes of it alone.
    const unless = (p, at, there, then) => { if (!p.same || (at.hit && !there.hit)) then(); else if (at.hit) same.push(at); };
    unless(rewritten.prefix, second.prefix, now.first.prefix, () => end(put, "prefix", "before the chain", prefix, second));
    second.segments.forEach(({ own, layers: stay, units, correction }, s) => {
      const { first, parallel } = shown[s];
      stay.forEach((at, i) => unless(rewritten.segments[s].layers[i], at, now.first.layers[first + i], () => layer(put, first + i, at, "same")));
      if (!parallel) return;
      const links = units.flatMap((unit, u) => unit.hit ? button(`Open unit ${u + 1}`, `unit:${s}:${u}`, () => unitPanel(s, u)) : []);
      put({ nodes: own.nodes, hit: links.length > 0 }, () => group(`segment ${s + 1}: ${parallel.text}`, own.nodes, links));
      put(correction, () => group(`correction of segment ${s + 1}`, correction.nodes, parallel.units > 1 ? button("Open correction", `correction:${s}`, () => correctionPanel(s)) : ""));
    });
    unless(rewritten.suffix, second.suffix, now.first.suffix, () => end(put, "suffix", "behind the chain", suffix, second));
  });
  const asIs = same.length ? el("p", { class: "note" }, `${all(same) ? plural(all(same), "node") : "found"} as in the original`) : "";
  opener = null;
  openPanel("Found", el("p", { class: "note" }, found.textContent.replace(" · Enter lists", "")),
    second && told(second) ? [el("h3", {}, "Rewritten"), asIs, behind] : "", second && told(first) ? el("h3", {}, "Original") : "", before);
}
/** `layer 1` is one layer, not each that has a 1 somewhere. */
function phrases(wanted) {
  const out = [];
  for (const word of wanted) {
    if (/^\d+$/.test(word) && /^(layer|unit|segment|class)$/.test(out.at(-1) ?? "")) out.push(`${out.pop()} ${word}`);
    else out.push(word);
  }
  return out;
}
onSearch((wanted) => {
  words = phrases(wanted);
  mark();
});
find.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && words.length) results();
});
draw();
