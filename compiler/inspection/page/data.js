// What the page tells: the plan as plan.json has it, the ops, and words for both.

const data = JSON.parse(document.getElementById("data").textContent);
const plan = data.plan;
const ops = data.ops;  // columns: name, kind, module, source, time_ms, weight_bytes, is_cheap; null without graph.json
const INPUT = "@input", OUTPUT = "@output";

const sliceOf = new Map(plan.slices.map((slice) => [slice.name, slice]));
const predictedOf = new Map(plan.prediction.slices.map((slice) => [slice.name, slice]));
const colors = [...d3.schemeTableau10];
const colorOf = (name) => {
  const index = plan.slices.findIndex((slice) => slice.name === name);
  return index < 0 ? "#8892a0" : colors[index % colors.length];
};
const endName = (name) => ({ [INPUT]: "request", [OUTPUT]: "reply" })[name] ?? name;

const count = (value) => value.toLocaleString("en-US");
const fixed = (value, digits = 1) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const ms = (value, digits = 1) => `${fixed(value, digits)} ms`;
const usd = (value) => `$${fixed(value, 2)}`;
const percent = (value) => `${Math.round(value * 100)} %`;
const bytes = (value) =>
  value < 1024 ? `${value} B` : value < 1048576 ? `${fixed(value / 1024)} KB` : `${fixed(value / 1048576)} MB`;
const shape = (edge) => `${edge.dtype}[${edge.shape.join(", ")}]`;
const crosses = (edge) => edge.producer !== INPUT && edge.consumer !== OUTPUT;
const some = (words, most = 6) =>
  words.length > most ? `${words.slice(0, most).join(", ")} and ${words.length - most} more` : words.join(", ");
const isStored = (edge) => edge.transport !== "payload";

function where(slice) {
  if (slice.modules.length) return slice.modules.join(", ");
  return slice.ops.length > 1 ? `${slice.ops[0]} … ${slice.ops.at(-1)}` : slice.ops[0];
}

function timeShare(name) {
  const found = predictedOf.get(name);
  return found && plan.prediction.latency_ms ? (found.call_ms + found.billed_ms) / plan.prediction.latency_ms : null;
}

function runnerUp(edge) {
  const own = edge.prices.find(([name]) => name === edge.transport);
  const others = edge.prices.filter(([name]) => name !== edge.transport).sort((a, b) => a[1] - b[1]);
  if (!own || !others.length || !crosses(edge)) return "";
  const more = others[0][1] - own[1];
  return `${others[0][0]} ${more < 0 ? "−" : "+"}${ms(Math.abs(more))}`;
}

// An element with attributes; functions are listeners, text is never HTML.
function element(tag, attributes = {}, ...children) {
  const svg = tag.startsWith("svg:");
  const made = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// A table: columns are [title, cell of a row, is it a number].
function table(columns, rows, { caption, rowAttributes = () => ({}), foot } = {}) {
  const cell = (tag, content, number, more = {}) =>
    element(tag, { class: number ? "number" : null, ...more }, content);
  return element("table", {},
    caption ? element("caption", { class: "skip" }, caption) : null,
    element("thead", {}, element("tr", {}, columns.map(([title, , number]) => cell("th", title, number, { scope: "col" })))),
    element("tbody", {}, rows.map((row) =>
      element("tr", rowAttributes(row), columns.map(([, read, number]) => cell("td", read(row), number))))),
    foot ? element("tfoot", {}, element("tr", {}, foot.map((content, index) => cell("td", content, columns[index][2])))) : null,
  );
}

const sliceLink = (name) => {
  if (!sliceOf.has(name)) return endName(name);
  return element("span", { class: "slice" },
    element("span", { class: "chip", style: `--c:${colorOf(name)}`, "aria-hidden": "true" }),
    element("button", { class: "link", type: "button", click: () => select("slice", name) }, name));
};
const edgeLink = (edge) =>
  element("button", { class: "link", type: "button", click: () => select("edge", String(plan.edges.indexOf(edge))) }, edge.tensor);
const opLink = (index) =>
  element("button", { class: "link", type: "button", click: () => select("op", ops.name[index]) }, ops.name[index]);

// What is selected is in the address, so that it can be linked to and "back" works.
function select(kind, name) {
  location.hash = `${kind}=${encodeURIComponent(name)}`;
}
function selection() {
  const [kind, name] = location.hash.slice(1).split("=");
  return name === undefined ? { kind: "", name: "" } : { kind, name: decodeURIComponent(name) };
}
