// The chain as data, laid out: rows are layers, columns are the original and what a plan makes of it.
const { chain, types, prefix, suffix, layers, segments, depth } = JSON.parse(
  document.getElementById("data").textContent,
);
const place = document.getElementById("chain");
const panel = document.getElementById("panel");
const planned = segments.length > 0;
const shown = planned ? segments : [{ first: 0, layers: chain.layers, depth: chain.layers }];
/** Layers from which on those that are alike are folded. */
const MANY = 24;
/** Lines beside the layers. */
const SIDE_LINES = 4;
const TAP_LINES = 3;
/** Nodes of one list. */
const LISTED = 400;
const unfolded = new Set();
let words = [];
let opener = null;

/** An element; texts are texts, never markup. */
function el(tag, options = {}, ...children) {
  const { hint: told, on, ...attributes } = options;
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) e.setAttribute(name, value === true ? "" : value);
  }
  if (told) e.hint = told;
  for (const [event, handler] of Object.entries(on ?? {})) e.addEventListener(event, handler);
  e.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
  return e;
}
const plural = (n, thing) => `${n.toLocaleString("en-US")} ${thing}${n === 1 ? "" : thing.endsWith("ch") ? "es" : "s"}`;
const range = (what, from, to) => (from === to ? `${what} ${from}` : `${what}s ${from}–${to}`);
function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; bytes >= 1024 && at + 1 < units.length; at++) bytes /= 1024;
  return `${at ? bytes.toFixed(1) : bytes} ${units[at]}`;
}
function short(n) {
  const units = ["", "k", "M", "G"];
  let at = 0;
  for (; n >= 1000 && at + 1 < units.length; at++) n /= 1000;
  return `${at && n < 100 ? n.toFixed(1) : Math.round(n)}${units[at] ? ` ${units[at]}` : ""}`;
}
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const span = (from, n) => Array.from({ length: n }, (_, i) => from + i);
/** Numbers as `0–5, 7`. */
function ranges(numbers) {
  const runs = [];
  for (const n of numbers) {
    const last = runs.at(-1);
    if (last && last[1] + 1 === n) last[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}
const detailOf = (l) => chain.layers_detail[l] ?? { class: 0, nodes: 0, parameters: 0, transfer: "" };
const partsOf = (l) => layers[l]?.parts ?? [];
const weightsOf = (l) => ({ parameters: layers[l]?.parameters ?? detailOf(l).parameters, bytes: layers[l]?.bytes ?? null });
function weightText(of, brief) {
  const parameters = sum(of.map((l) => weightsOf(l).parameters));
  const bytes = of.every((l) => weightsOf(l).bytes !== null) ? sum(of.map((l) => weightsOf(l).bytes)) : null;
  const text = brief ? short(parameters) : `${parameters.toLocaleString("en-US")} parameters`;
  return bytes === null ? text : `${text} · ${size(bytes)}`;
}
/** Layers as a unit's or segment's short list of parts: `2 × attention`. */
function partKinds(of) {
  const counts = new Map();
  for (const kind of of.flatMap(chipsOf)) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return [...counts];
}

// What layers read besides the state, and states that are read behind the chain: lines beside the rows.
const lanes = [];
{
  const caches = new Set(chain.caches.map((c) => `'${c.input}'`));
  const groups = new Map();
  for (const side of chain.side_inputs.filter((s) => !caches.has(s.name))) {
    const key = side.layers.length > 1 ? side.layers.join() : "own";
    if (!groups.has(key)) groups.set(key, { kind: "side", own: key === "own", names: [], layers: new Set() });
    const group = groups.get(key);
    group.names.push(side);
    for (const l of side.layers) group.layers.add(l);
  }
  const sides = [...groups.values()].sort((a, b) => b.layers.size - a.layers.size);
  if (chain.caches.length) {
    const names = chain.caches.map((c) => ({ name: `'${c.input}' → '${c.output}'`, layers: [c.layer] }));
    sides.push({ kind: "cache", own: true, names, layers: new Set(chain.caches.map((c) => c.layer)) });
  }
  sides.forEach((lane, i) => lanes.push({ ...lane, from: -1, to: Math.max(...lane.layers), line: i < SIDE_LINES }));
  chain.taps.forEach((tap, i) => {
    const at = tap.inside ? (tap.after_layer ?? -1) + 1 : tap.after_layer ?? -1;
    const names = tap.readers.map((name) => ({ name, layers: [] }));
    lanes.push({ kind: "tap", tap, names, layers: new Set([at]), from: at, to: chain.layers, line: i < TAP_LINES });
  });
}
const lines = lanes.filter((lane) => lane.line);
place.style.setProperty("--lines", lines.length);
/** The lines beside the rows `from..=to`, or between rows: from what makes a value to its last reader. */
function rail(from, to, options = {}) {
  const cells = lines.map((lane) => {
    const tap = lane.kind === "tap";
    const end = tap ? chain.layers : -1;
    const dot = !options.between && (from === end || [...lane.layers].some((l) => l >= from && l <= to));
    const on = tap ? lane.from <= to : from <= lane.to;
    const starts = dot && (tap ? lane.from >= from : from === end);
    const ends = dot && (tap ? from === end : lane.to <= to);
    const state = [lane.kind, on && "on", dot && on && "dot", starts && "starts", ends && "ends"].filter(Boolean);
    return el("i", { class: state.join(" "), "data-lane": lanes.indexOf(lane) });
  });
  return el("span", { class: "rail", "aria-hidden": "true", style: options.style }, cells);
}
function laneTitle(lane) {
  if (lane.kind === "cache") return "caches";
  if (lane.kind === "tap") {
    const { after_layer: after, inside } = lane.tap;
    return inside ? `tap inside layer ${(after ?? -1) + 1}` : after === null ? "tap before layer 0" : `tap after layer ${after}`;
  }
  return lane.own ? "read by one layer each" : lane.names.length > 1 ? `${lane.names[0].name} and ${lane.names.length - 1} more` : lane.names[0].name;
}

/** An item: what can have the focus, be opened and be found. */
function item(tag, key, options, ...children) {
  const { of = [], column = 0, open, hides = false, ...rest } = options;
  const e = el(tag, { type: "button", tabindex: "-1", "data-key": key, "data-column": column, ...rest }, ...children);
  e.of = new Set(of);
  e.open = open;
  e.hides = hides;
  return e;
}
const chip = (kind, n = 1) =>
  el("span", { class: `chip ${kind === "skip path" ? "skip" : kind.includes("attention") ? "attention" : "mlp"}` },
    n > 1 ? `${n} × ` : "", kind === "skip path" ? "skip" : kind);

/** Kinds of a layer's parts in order; steps of the skip path in a row are one. */
const chipsOf = (l) => partsOf(l).map((p) => p.kind).filter((kind, i, all) => kind !== "skip path" || all[i - 1] !== kind);

function layerHint(l) {
  const d = detailOf(l);
  const told = [`layer ${l}, class ${d.class + 1}`, `${plural(d.nodes, "node")}, ${weightText([l])}`];
  if (layers[l]) {
    told.push(`state ${types[layers[l].state]}`);
    if (layers[l].dispatches !== null) told.push(plural(layers[l].dispatches, "dispatch"));
  }
  return [...told, `skip path: ${d.transfer}`].join("\n");
}
function layerCard(l, row) {
  return item("button", `layer:${l}`,
    { class: "card layer", of: [l], style: `grid-row:${row}`, hint: layerHint(l), open: () => layerPanel(l), "aria-label": `layer ${l}` },
    el("b", {}, `${l}`), el("span", { class: "chips" }, chipsOf(l).map((kind) => chip(kind))),
    el("span", { class: "meta" }, weightText([l], true), !planned && layers[l]?.dispatches ? ` · ${plural(layers[l].dispatches, "dispatch")}` : ""));
}
function sameCard(l, row) {
  return item("button", `same:${l}`,
    { class: "card same", of: [l], column: 1, style: `grid-row:${row}`, hint: layerHint(l), open: () => layerPanel(l), "aria-label": `layer ${l}, as it is` },
    el("b", {}, `${l}`), el("span", { class: "meta" }, "as it is"));
}
function unitCard(s, u, from, to) {
  const { parallel } = shown[s];
  const of = span(shown[s].first + u * parallel.fused, parallel.fused);
  const label = `${range("layer", of[0], of.at(-1))}${of.length > 1 && parallel.avg ? " averaged" : ""}`;
  return item("button", `unit:${s}:${u}`,
    {
      class: "card unit", of, column: 1, style: `grid-row:${from}/${to}`, open: () => unitPanel(s, u), "aria-label": `unit ${u + 1}: ${label}`,
      hint: `unit ${u + 1} of ${parallel.units}: ${label}\n${weightText(of)}\n${segmentDispatches(s)}`,
    },
    el("span", { class: "head" }, el("b", {}, `unit ${u + 1}`), " ", el("span", {}, label)),
    el("span", { class: "chips" }, partKinds(of).map(([kind, n]) => chip(kind, n))),
    el("span", { class: "meta" }, weightText(of, true)));
}
function segmentDispatches(s) {
  const { detail, parallel } = shown[s];
  if (detail?.dispatches === null || detail?.dispatches === undefined) return "";
  if (!parallel) return plural(detail.dispatches, "dispatch");
  const together = parallel.units > 1 ? ` for all ${parallel.units} units` : "";
  const corrections = detail.correction_dispatches ? ` and ${detail.correction_dispatches} for the correction` : "";
  return `${plural(detail.dispatches, "dispatch")}${together}${corrections}`;
}

// Folding: runs in which the same classes come again and again.
function runEnd(alike, from, to, least) {
  let best = from;
  for (let period = 1; period <= 8; period++) {
    let end = from + period;
    while (end < to && alike(end, end - period)) end++;
    if (end - from >= Math.max(least, 2 * period) && end > best) best = end;
  }
  return best;
}
const sameLayer = (a, b) => detailOf(a).class === detailOf(b).class;
/** Rows of the layers `from..to`: single ones, and folds. */
function layerRows(from, to) {
  const rows = [];
  for (let l = from; l < to; ) {
    const end = chain.layers > MANY ? runEnd(sameLayer, l, to, 6) : l;
    const id = `layers:${l}:${end}`;
    if (end > l) rows.push({ fold: id, from: l, to: end - 1 });
    if (end > l && !unfolded.has(id)) {
      l = end;
      continue;
    }
    for (const last = Math.max(end, l + 1); l < last; l++) rows.push({ from: l, to: l });
  }
  return rows;
}
/** Rows of a parallel segment, each with its unit, or the units that are folded. */
function unitRows(segment) {
  const { units, fused } = segment.parallel;
  const first = (u) => segment.first + u * fused;
  const alike = (a, b) => span(0, fused).every((i) => sameLayer(first(a) + i, first(b) + i));
  const rows = [];
  const whole = (u) => rows.push(...layerRows(first(u), first(u + 1)).map((row) => ({ ...row, unit: u })));
  for (let u = 0; u < units; ) {
    const end = chain.layers > MANY ? runEnd(alike, u, units, 6) : u;
    if (end <= u) {
      whole(u++);
      continue;
    }
    const [from, to] = [u + 2, end - 2];
    const id = `units:${first(from)}:${first(to + 1)}`;
    whole(u);
    whole(u + 1);
    rows.push({ fold: id, from: first(from), to: first(to + 1) - 1, units: [from, to] });
    if (unfolded.has(id)) for (let v = from; v <= to; v++) whole(v);
    whole(end - 1);
    u = end;
  }
  return rows;
}
/** A fold; `hides` says that what the plan makes of its layers is folded with them. */
function foldCard(row, at, hides) {
  const open = unfolded.has(row.fold);
  const layersText = range("layer", row.from, row.to);
  const classes = [...new Set(span(row.from, row.to - row.from + 1).map((l) => detailOf(l).class + 1))];
  const alike = classes.length > 1 ? `classes ${classes.slice(0, 4).join(", ")}${classes.length > 4 ? ", …" : ""} by turns` : "alike";
  return item("button", row.fold,
    {
      class: "card fold", hides, of: span(row.from, row.to - row.from + 1), style: `grid-row:${at}`, "aria-expanded": String(open),
      open: () => { unfolded[open ? "delete" : "add"](row.fold); draw(row.fold); },
      hint: `${layersText}: ${row.to - row.from + 1} ${alike}\n${weightText(span(row.from, row.to - row.from + 1))}`,
    },
    el("span", { class: "turn", "aria-hidden": "true" }, open ? "▾" : "▸"), el("b", {}, layersText),
    el("span", { class: "meta" }, open ? "fold" : `${row.to - row.from + 1} ${alike}`), el("span", { class: "hits" }));
}

function segmentView(segment, s) {
  const { parallel } = segment;
  const last = segment.first + segment.layers - 1;
  const rows = parallel ? unitRows(segment) : layerRows(segment.first, last + 1);
  const grid = el("div", { class: "rows" });
  const cells = [];
  rows.forEach((row, i) => {
    const at = i + 1;
    const open = row.fold && unfolded.has(row.fold);
    cells.push(rail(row.from, row.to, { style: `grid-row:${at}`, between: open }));
    cells.push(row.fold ? foldCard(row, at, planned && (!parallel || Boolean(row.units))) : layerCard(row.from, at));
    if (!planned || parallel) return;
    cells.push(el("i", { class: "stream sum", style: `grid-row:${at}`, "aria-hidden": "true" }));
    cells.push(row.fold
      ? el("div", { class: "card same ghost", style: `grid-row:${at}`, "aria-hidden": "true" }, open ? "" : `${range("layer", row.from, row.to)}, as they are`)
      : sameCard(row.from, at));
  });
  if (parallel) {
    const spans = [];
    rows.forEach((row, i) => {
      const key = row.units ? row.fold : row.unit;
      if (spans.at(-1)?.key === key) spans.at(-1).to = i + 2;
      else spans.push({ key, row, from: i + 1, to: i + 2 });
    });
    spans.forEach(({ row, from, to }, i) => {
      const ends = `${i === 0 ? "first" : ""} ${i + 1 === spans.length ? "last" : ""}`;
      const style = `grid-row:${from}/${to}`;
      cells.push(el("i", { class: `stream fan ${parallel.units > 1 ? ends : "sum"}`, style, "aria-hidden": "true" }));
      if (row.units) {
        const open = unfolded.has(row.fold);
        const text = open ? "" : `${range("unit", row.units[0] + 1, row.units[1] + 1)}`;
        cells.push(el("div", { class: "card unit ghost", style, "aria-hidden": "true" }, text));
      } else cells.push(unitCard(s, row.unit, from, to));
    });
    if (parallel.units > 1) {
      const times = parallel.iterations > 1 ? ` × ${parallel.iterations}` : "";
      cells.push(item("button", `correction:${s}`,
        {
          class: "correction", of: span(segment.first, segment.layers), column: 2, style: `grid-row:1/${rows.length + 1}`,
          open: () => correctionPanel(s), hint: `${correctionText(s)}\n${plural(parallel.iterations, "iteration")}`, "aria-label": `correction${times}`,
        }, el("span", {}, `correction${times}`)));
      cells.push(el("i", { class: "return", style: `grid-row:${rows.length + 1}`, "aria-hidden": "true" }));
      cells.push(rail(last + 1, last, { style: `grid-row:${rows.length + 1}`, between: true }));
    }
  }
  grid.append(...cells);
  const left = el("span", { class: "left" }, range("layer", segment.first, last));
  const right = planned ? [el("i", { class: "stream pass", "aria-hidden": "true" }), el("span", { class: "right" }, segmentTitle(segment, s))] : "";
  const head = el("div", { class: "seghead" }, rail(segment.first, segment.first - 1, { between: true }), left, right);
  return el("section", { class: `segment ${parallel ? "parallel" : "sequential"}`, "aria-label": range("layer", segment.first, last) }, head, grid);
}
function segmentTitle(segment, s) {
  const { parallel } = segment;
  const steps = `depth ${segment.depth}`;
  if (!parallel) {
    return [el("b", {}, segment.layers > 1 ? "one after the other" : "as it is"), el("small", {}, `${steps} · ${segmentDispatches(s)}`.replace(/ · $/, ""))];
  }
  const fused = parallel.fused > 1 ? ` of ${parallel.fused} fused layers` : "";
  const title = parallel.units > 1 ? `${parallel.units} units${fused} at once` : `one unit${fused}`;
  const more = [steps];
  if (parallel.iterations > 1) more.push(plural(parallel.iterations, "iteration"));
  const { dispatches, correction_dispatches: corrections } = segment.detail ?? {};
  if (Number.isInteger(dispatches)) more.push(`${dispatches}${corrections ? ` + ${corrections}` : ""} dispatches`);
  return [el("b", {}, title), el("small", {}, more.join(" · "))];
}
function endCard(which, detail, label, n) {
  const dispatches = detail.dispatches === null || detail.dispatches === undefined ? "" : ` · ${plural(detail.dispatches, "dispatch")}`;
  const isPrefix = which === "prefix";
  const row = isPrefix ? -1 : chain.layers;
  return el("div", { class: "end" }, rail(row, row),
    item("button", which, { class: "card", open: () => endPanel(which, label, detail) },
      el("b", {}, label), el("span", { class: "meta always" }, `${plural(n, "node")}${dispatches}`)));
}

function draw(focus) {
  const columns = el("div", { class: "columns", "aria-hidden": "true" },
    el("span", { class: "left" }, el("b", {}, "Original"), el("small", {}, `depth ${chain.layers}`)),
    planned ? el("span", { class: "right" }, el("b", {}, "Rewritten"), el("small", {}, depth === null ? "" : `depth ${depth}`)) : "");
  const chips = lanes.map((lane, i) => item("button", `lane:${i}`,
    { class: `lane ${lane.kind}`, of: lane.layers, open: () => lanePanel(lane), hint: `${laneTitle(lane)}\n${lane.names.slice(0, 6).map((n) => n.name).join("\n")}` },
    el("i", { "aria-hidden": "true" }), el("span", {}, laneTitle(lane)),
    lane.kind === "tap" ? "" : el("small", {}, lane.layers.size === chain.layers ? "all layers" : plural(lane.layers.size, "layer"))));
  place.classList.toggle("planned", planned);
  place.replaceChildren(
    lanes.length ? el("div", { class: "lanes" }, chips) : "",
    columns,
    endCard("prefix", prefix, "before the chain", chain.prefix_nodes),
    ...shown.map(segmentView),
    endCard("suffix", suffix, "behind the chain", chain.suffix_nodes),
  );
  const items = [...place.querySelectorAll("[data-key]")];
  const wanted = items.find((e) => e.dataset.key === focus) ?? items.find((e) => e.dataset.key.startsWith("layer")) ?? items[0];
  wanted.tabIndex = 0;
  if (focus) wanted.focus();
  const folds = items.filter((e) => e.hasAttribute("aria-expanded"));
  const all = document.getElementById("all");
  all.hidden = folds.length === 0;
  all.textContent = unfolded.size ? "Fold all" : "Unfold all";
  mark();
}
// Headings stay below the search field, whatever its height.
const bar = document.querySelector(".bar");
new ResizeObserver(() => {
  place.style.setProperty("--bar", `${bar.offsetHeight}px`);
  place.style.setProperty("--columns", `${place.querySelector(".columns").offsetHeight}px`);
}).observe(bar);
document.getElementById("all").addEventListener("click", () => {
  if (unfolded.size) unfolded.clear();
  else for (const e of place.querySelectorAll("[aria-expanded]")) unfolded.add(e.dataset.key);
  draw();
});

// What belongs together is lit together.
function light(target) {
  const e = target?.closest?.("[data-key], [data-lane]");
  const lane = e?.dataset.lane ?? (e?.dataset.key.startsWith("lane:") ? e.dataset.key.slice(5) : null);
  const of = lane !== null && lane !== undefined ? lanes[lane].layers : e?.of ?? new Set();
  for (const other of place.querySelectorAll("[data-key]")) {
    other.classList.toggle("lit", e !== null && of.size < chain.layers && [...other.of].some((l) => of.has(l)));
  }
  for (const line of place.querySelectorAll("[data-lane]")) line.classList.toggle("lit", line.dataset.lane === lane);
}
place.addEventListener("pointerover", (e) => light(e.target));
place.addEventListener("pointerleave", () => light(null));
place.addEventListener("focusin", (e) => light(e.target));

// Keys: arrows go to the nearest item that way.
function nearest(from, key) {
  const a = from.getBoundingClientRect();
  const down = key === "ArrowDown" || key === "ArrowUp";
  let best = null;
  for (const e of place.querySelectorAll("[data-key]")) {
    if (e === from) continue;
    const b = e.getBoundingClientRect();
    const ahead = { ArrowDown: b.top - a.bottom, ArrowUp: a.top - b.bottom, ArrowRight: b.left - a.right, ArrowLeft: a.left - b.right }[key];
    if (ahead < -4) continue;
    const aside = down ? Math.max(0, b.left - a.right, a.left - b.right) : Math.max(0, b.top - a.bottom, a.top - b.bottom);
    const far = Math.max(0, ahead) + 6 * aside + Math.abs(down ? b.left - a.left : b.top - a.top) / 50;
    if (!best || far < best.far) best = { e, far };
  }
  return best?.e;
}
function go(e) {
  if (!e) return;
  for (const old of place.querySelectorAll('[data-key][tabindex="0"]')) old.tabIndex = -1;
  e.tabIndex = 0;
  e.focus();
  e.scrollIntoView({ block: "nearest" });
}
place.addEventListener("keydown", (e) => {
  const at = e.target.closest("[data-key]");
  if (!at || e.ctrlKey || e.metaKey || e.altKey) return;
  const items = [...place.querySelectorAll("[data-key]")];
  if (e.key.startsWith("Arrow")) go(nearest(at, e.key));
  else if (e.key === "Home") go(items[0]);
  else if (e.key === "End") go(items.at(-1));
  else return;
  e.preventDefault();
});
place.addEventListener("click", (e) => {
  const line = e.target.closest("[data-lane]");
  const at = e.target.closest("[data-key]") ?? (line && place.querySelector(`[data-key="lane:${line.dataset.lane}"]`));
  if (!at) return;
  go(at);
  at.open();
});
