// The cut as a picture: a box per slice, in it the modules, which unfold down to ops.

const NODE = { width: 176, height: 38 }, CHUNK = 40, MOST_HEIGHT = 640, FIRST_NODES = 24;
let trees, edgesInside, unfolded, svg, canvas, zoom, placed;

// A group: a module's ops within one slice. A leaf is one op.
function buildTrees() {
  const number = new Map(ops.name.map((name, index) => [name, index]));
  trees = new Map(); edgesInside = new Map();
  for (const slice of plan.slices) {
    const root = { id: slice.name, slice: slice.name, path: "", children: [], parent: null };
    const modules = new Map([["", root]]), leaves = new Map();
    for (const name of slice.ops) {
      const op = number.get(name), path = ops.modules[ops.module[op]];
      let group = root, prefix = "";
      for (const part of path ? path.split(".") : []) {
        prefix = prefix ? `${prefix}.${part}` : part;
        if (!modules.has(prefix)) {
          const made = { id: `${slice.name}/${prefix}`, slice: slice.name, path: prefix, children: [], parent: group };
          modules.set(prefix, made); group.children.push(made);
        }
        group = modules.get(prefix);
      }
      const leaf = { id: `${slice.name}/${path}#${name}`, slice: slice.name, path, op, children: [], parent: group };
      group.children.push(leaf); leaves.set(op, leaf);
    }
    finish(root);
    trees.set(slice.name, { root, leaves });
    edgesInside.set(slice.name, []);
  }
  ops.edges.from.forEach((from, index) => {
    const to = ops.edges.to[index];
    for (const [name, { leaves }] of trees) {
      if (leaves.has(from) && leaves.has(to)) edgesInside.get(name).push([from, to, ops.edges.bytes[index]]);
    }
  });
}

// Counts ops and time; a group of one child is that child; many children come in chunks.
function finish(group) {
  if (group.op !== undefined) { group.count = 1; group.time = ops.time_ms[group.op]; group.weights = ops.weight_bytes[group.op]; return; }
  group.children.forEach(finish);
  group.children = group.children.map((child) => {
    if (child.op !== undefined || child.children.length !== 1) return child;
    const only = child.children[0]; only.parent = group; return only;
  });
  addUp(group);
  // A module's own ops, scattered between its modules, would hide these.
  const own = group.children.filter((child) => child.op !== undefined && child.path === group.path);
  if (own.length > 1 && own.length < group.children.length) {
    const rest = group.children.filter((child) => !own.includes(child));
    group.children = [gathered(group, "own", `${group.path || group.slice}: own ops`, own), ...rest];
  }
  if (group.children.length > CHUNK) {
    const size = Math.max(CHUNK, Math.ceil(Math.sqrt(group.children.length)));
    group.children = d3.range(0, group.children.length, size).map((start) => {
      const children = group.children.slice(start, start + size);
      const [first, last] = [children[0], children.at(-1)].map((child) => child.path.split("."));
      const words = children[0].path !== group.path && first.length === last.length
        ? `${first.join(".")}–${last.at(-1)}` : `parts ${start + 1}–${start + children.length}`;
      return gathered(group, start, words, children);
    });
  }
}

function gathered(group, key, words, children) {
  const made = { id: `${group.id}@${key}`, slice: group.slice, path: group.path, children, parent: group, words };
  children.forEach((child) => { child.parent = made; });
  addUp(made);
  if (children.every((child) => child.op !== undefined) && children.length > CHUNK) finish(made);
  return made;
}
const addUp = (group) => ["count", "time", "weights"].forEach((key) => { group[key] = d3.sum(group.children, (child) => child[key]); });

// At first as many modules as can be read at once, the largest opened first.
function firstUnfolded() {
  unfolded = new Set(plan.slices.map((slice) => slice.name));
  const budget = Math.max(3, Math.floor(FIRST_NODES / plan.slices.length));
  for (const { root } of trees.values()) {
    let shown = [...root.children];
    while (true) {
      // Modules only: what is made of ops alone stays folded.
      const modules = shown.filter((each) => each.children.some((child) => child.children.length));
      const next = d3.greatest(modules, (each) => each.count);
      if (!next || (shown.length > 1 && shown.length + next.children.length - 1 > budget)) break;
      unfolded.add(next.id);
      shown = shown.flatMap((each) => (each === next ? next.children : [each]));
    }
  }
}

const visibleOf = (leaf) => {
  let found = leaf;
  for (let group = leaf.parent; group; group = group.parent) if (!unfolded.has(group.id)) found = group;
  return found;
};
function visibleIn(group) {
  return group.children.flatMap((child) => (unfolded.has(child.id) && child.children.length ? visibleIn(child) : [child]));
}

function layoutSlice(name) {
  const { root, leaves } = trees.get(name), nodes = visibleIn(root);
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 14, ranksep: 22 });
  graph.setDefaultEdgeLabel(() => ({}));
  nodes.forEach((node) => graph.setNode(node.id, { ...NODE, node }));
  for (const [from, to, size] of edgesInside.get(name)) {
    const a = visibleOf(leaves.get(from)).id, b = visibleOf(leaves.get(to)).id;
    if (a === b) continue;
    const known = graph.edge(a, b);
    if (known) known.bytes += size; else graph.setEdge(a, b, { bytes: size });
  }
  dagre.layout(graph);
  const size = graph.graph();
  return { name, graph, width: Math.max(size.width, 200) + 36, height: size.height + 92 };
}

const wayWidth = (size) => 1.2 + 2 * Math.log10(1 + size / 1024);

function drawGraph() {
  canvas.replaceChildren();
  const boxes = new Map(plan.slices.map((slice) => [slice.name, layoutSlice(slice.name)]));
  const stages = d3.groups(plan.slices, (slice) => slice.stage).sort((a, b) => a[0] - b[0]);
  const tall = d3.max(stages, ([, slices]) => d3.sum(slices, (slice) => boxes.get(slice.name).height + 30));
  let x = 190;
  for (const [, slices] of stages) {
    const wide = d3.max(slices, (slice) => boxes.get(slice.name).width);
    let y = (tall - d3.sum(slices, (slice) => boxes.get(slice.name).height + 30)) / 2;
    for (const slice of slices) {
      const box = boxes.get(slice.name);
      Object.assign(box, { x: x + (wide - box.width) / 2, y });
      y += box.height + 30;
    }
    x += wide + 150;
  }
  const middle = tall / 2;
  placed = { boxes, width: x + 40, height: tall, ends: { [INPUT]: { x: 0, y: middle - 20 }, [OUTPUT]: { x: x - 45, y: middle - 20 } } };
  for (const box of boxes.values()) canvas.append(frame(box));
  for (const [end, at] of Object.entries(placed.ends)) {
    canvas.append(element("svg:g", { class: "terminal", transform: `translate(${at.x},${at.y})` },
      element("svg:rect", { width: 80, height: 40, rx: 20 }),
      element("svg:text", { x: 40, y: 24, "text-anchor": "middle" }, endName(end))));
  }
  drawTensors();
  mark();
}

function frame(box) {
  const slice = sliceOf.get(box.name);
  const activate = (event) => { if (!event.key || event.key === "Enter" || event.key === " ") { event.preventDefault(); select("slice", box.name); } };
  const group = element("svg:g", { class: "frame", style: `--c:${colorOf(box.name)}`, transform: `translate(${box.x},${box.y})`, "data-slice": box.name },
    element("svg:rect", { width: box.width, height: box.height, rx: 10 }),
    element("svg:text", { class: "title", x: 18, y: 26, tabindex: 0, role: "button", click: activate, keydown: activate,
      "aria-label": `${box.name}: ${slice.ops.length} ops, ${bytes(slice.weight_bytes)} of weights` }, box.name),
    element("svg:text", { class: "soft", x: 18, y: 43 }, `${count(slice.ops.length)} ops, ${bytes(slice.weight_bytes)}`));
  const inner = element("svg:g", { transform: "translate(18,62)" });
  const curve = d3.line((point) => point.x, (point) => point.y).curve(d3.curveBasis);
  for (const id of box.graph.edges()) {
    const edge = box.graph.edge(id);
    inner.append(element("svg:path", { class: "inner", d: curve(edge.points), "stroke-width": Math.min(4, 0.6 + wayWidth(edge.bytes) / 4) }));
  }
  for (const id of box.graph.nodes()) inner.append(node(box.graph.node(id)));
  group.append(inner);
  return group;
}

function node({ x, y, node: each }) {
  const isOp = each.op !== undefined;
  const isModule = !isOp || (each.path && each.path !== each.parent.path);
  const name = each.words ?? (isModule ? each.path : ops.name[each.op]);
  const below = isOp ? (isModule ? ops.name[each.op] : ops.kinds[ops.kind[each.op]].replace("aten.", "")) : `${count(each.count)} ops${each.weights ? `, ${bytes(each.weights)}` : ""}`;
  const activate = (event) => {
    if (event.key && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault(); event.stopPropagation();
    if (isOp) select("op", ops.name[each.op]); else unfold(each);
  };
  return element("svg:g", { class: isOp ? "node op" : "node", transform: `translate(${x - NODE.width / 2},${y - NODE.height / 2})`, tabindex: 0,
      role: "button", "aria-expanded": isOp ? null : "false", "aria-label": `${isOp ? "op" : "module"} ${name}, ${below}, ${ms(each.time, 2)}`,
      "data-node": each.id, "data-op": isOp ? ops.name[each.op] : null, click: activate, keydown: activate },
    element("svg:title", {}, `${each.path || each.slice}${isOp ? ` · ${ops.name[each.op]}` : ""}\n${below}, ${ms(each.time, 3)}`),
    element("svg:rect", { width: NODE.width, height: NODE.height, rx: 6 }),
    element("svg:text", { x: 10, y: 16 }, name.length > 24 ? `…${name.slice(-22)}` : name),
    element("svg:text", { class: "soft", x: 10, y: 31 }, `${below.length > 19 ? `${below.slice(0, 18)}…` : below}, ${ms(each.time, 2)}`));
}

function unfold(group) {
  unfolded.add(group.id);
  drawGraph();
  const first = visibleIn(group)[0];
  canvas.querySelector(`[data-node="${CSS.escape(first.id)}"]`)?.focus();
}

// Where a tensor leaves or enters: at the node that makes or first reads it.
function port(name, edge, isSource) {
  const end = placed.ends[name];
  if (end) return { x: end.x + (isSource ? 80 : 0), y: end.y + 20 };
  const box = placed.boxes.get(name), { leaves } = trees.get(name);
  const op = isSource ? ops.edges.maker[edge.tensor] : (ops.edges.readers[edge.tensor] ?? []).find((each) => leaves.has(each));
  const found = op === undefined || !leaves.has(op) ? null : box.graph.node(visibleOf(leaves.get(op)).id);
  const y = box.y + (found ? found.y + 62 : box.height / 2);
  return { x: box.x + (isSource ? box.width : 0), y, inside: found && { x: box.x + 18 + found.x + (isSource ? 1 : -1) * NODE.width / 2, y } };
}

function drawTensors() {
  const labels = [];
  let lane = placed.height + 34;
  const stageOf = (name) => (name === INPUT ? -1 : name === OUTPUT ? plan.slices.at(-1).stage + 1 : sliceOf.get(name).stage);
  plan.edges.forEach((edge, index) => {
    const from = port(edge.producer, edge, true), to = port(edge.consumer, edge, false);
    const jumps = stageOf(edge.consumer) - stageOf(edge.producer) > 1;
    const start = from.inside ?? from, end = to.inside ?? to;
    const path = d3.path();
    path.moveTo(start.x, start.y); path.lineTo(from.x, from.y);
    let at;
    if (jumps) {
      path.bezierCurveTo(from.x + 60, from.y, from.x + 30, lane, from.x + 110, lane);
      path.lineTo(to.x - 110, lane);
      path.bezierCurveTo(to.x - 30, lane, to.x - 60, to.y, to.x, to.y);
      at = { x: (from.x + to.x) / 2, y: lane };
      lane += 34;
    } else {
      const bend = Math.max(40, (to.x - from.x) / 2);
      path.bezierCurveTo(from.x + bend, from.y, to.x - bend, to.y, to.x, to.y);
      at = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
    }
    path.lineTo(end.x, end.y);
    while (labels.some((other) => Math.abs(other.x - at.x) < 150 && Math.abs(other.y - at.y) < 32)) at.y += 32;
    labels.push(at);
    const said = `${edge.tensor}, ${shape(edge)}, ${bytes(edge.bytes)} by ${edge.transport}, from ${endName(edge.producer)} to ${endName(edge.consumer)}`;
    const activate = (event) => { if (!event.key || event.key === "Enter" || event.key === " ") { event.preventDefault(); select("edge", String(index)); } };
    const short = edge.tensor.length > 22 ? `…${edge.tensor.slice(-21)}` : edge.tensor;
    canvas.append(element("svg:g", { class: `tensor ${edge.transport}${crosses(edge) ? "" : " end"}`, tabindex: 0, role: "button", "aria-label": said, "data-edge": index, click: activate, keydown: activate },
      element("svg:title", {}, `${said}\n${edge.reason}`),
      element("svg:path", { class: "hit", d: path.toString() }),
      element("svg:path", { d: path.toString(), "stroke-width": wayWidth(edge.bytes) }),
      element("svg:text", { x: at.x, y: at.y - 6, "text-anchor": "middle" }, short),
      element("svg:text", { class: "soft", x: at.x, y: at.y + 8, "text-anchor": "middle" }, `${bytes(edge.bytes)}, ${edge.transport}`)));
  });
  placed.height = Math.max(placed.height, lane);
}

function mark() {
  const { kind, name } = selection();
  const is = (what, value) => kind === what && name === String(value);
  canvas.querySelectorAll(".frame").forEach((each) => each.classList.toggle("selected", is("slice", each.dataset.slice)));
  canvas.querySelectorAll(".node.op").forEach((each) => each.classList.toggle("selected", is("op", each.dataset.op)));
  canvas.querySelectorAll(".tensor").forEach((each) => each.classList.toggle("selected", is("edge", each.dataset.edge)));
}

function fit() {
  const width = placed.width + 40, height = placed.height + 40, room = svg.getBoundingClientRect().width;
  // Too small to read: show the beginning, and let people move.
  const chosen = Math.max(0.6, Math.min(1.1, room / width, MOST_HEIGHT / height));
  const tall = Math.max(300, Math.min(MOST_HEIGHT, height * chosen));
  svg.style.height = `${tall}px`;
  const x = width * chosen > room ? 16 : (room - width * chosen) / 2 + 20 * chosen;
  const y = height * chosen > tall ? 14 : (tall - height * chosen) / 2 + 20 * chosen;
  d3.select(svg).call(zoom.transform, d3.zoomIdentity.translate(x, y).scale(chosen));
}

function startGraph() {
  svg = document.getElementById("graph");
  canvas = element("svg:g");
  svg.append(canvas);
  zoom = d3.zoom().scaleExtent([0.05, 4]).on("zoom", (event) => canvas.setAttribute("transform", event.transform));
  d3.select(svg).call(zoom).on("dblclick.zoom", null);
  buildTrees(); firstUnfolded(); drawGraph(); fit();
  const button = (words, act) => element("button", { type: "button", click: act }, words);
  document.getElementById("graph-buttons").append(
    button("Fold", () => { unfolded = new Set(plan.slices.map((slice) => slice.name)); drawGraph(); fit(); }), " ",
    button("Unfold more", () => {
      const shown = [...trees.values()].flatMap(({ root }) => visibleIn(root));
      for (const group of shown.filter((each) => each.children.length).slice(0, 80)) unfolded.add(group.id);
      drawGraph(); fit();
    }), " ",
    button("Closer", () => d3.select(svg).call(zoom.scaleBy, 1.3)), " ",
    button("Farther", () => d3.select(svg).call(zoom.scaleBy, 1 / 1.3)), " ", button("Fit", fit));
}
