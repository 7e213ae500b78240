// The page: head, tables, and what is told of the selection.

function head() {
  const { model, limits, certificate: proof, prediction } = plan;
  document.getElementById("model").textContent = model.name;
  const bounds = [limits.memory_mb && `${count(limits.memory_mb)} MB of memory`, limits.package_mb && `${count(limits.package_mb)} MB of package`,
    limits.weight_bytes && `${bytes(limits.weight_bytes)} of weights`].filter(Boolean);
  document.getElementById("summary").textContent = `${count(model.parameters)} parameters, ${bytes(model.weight_bytes)} of weights, `
    + `cut for ${plan.target} by the objective “${plan.objective}”. Each slice within ${bounds.join(", ")}.`;
  const proven = proof.status === "optimal"
    ? element("span", { class: "optimal" }, plan.objective === "bytes" ? "proven minimal" : "proven least by the prediction")
    : element("span", { class: "bounded" }, `at most ${fixed(proof.gap * 100)} % above the bound`);
  const tiles = [
    ["slices", count(plan.slices.length), `${count(new Set(plan.slices.map((slice) => slice.stage)).size)} stages, one after the other`],
    ["bytes between slices", count(plan.cross_slice_bytes), plan.objective === "bytes" ? proven : ""],
  ];
  if (prediction.latency_ms !== null) {
    tiles.push(["warm request", ms(prediction.latency_ms), plan.objective === "latency" ? proven : `half within ${ms(prediction.latency_p50_ms)}, 99 % within ${ms(prediction.latency_p99_ms)}`],
      ["first request", ms(prediction.cold_latency_ms, 0), "with nothing warm"],
      ["a million requests", usd(prediction.cost_per_million_usd), plan.objective === "cost" ? proven : ""]);
  }
  tiles.push(["certificate", proof.status, `${proof.method}, ${fixed(proof.seconds)} s`]);
  document.getElementById("tiles").append(...tiles.map(([title, value, more]) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, value, element("small", {}, more)))));
  const ways = [...new Set(plan.edges.map((edge) => edge.transport))];
  document.getElementById("legend").append(`Transports: ${ways.map((way) => `${way} ${{ payload: "solid", s3: "dashed", s3express: "dotted" }[way] ?? ""}`).join(", ")}.`);
  document.getElementById("footer").textContent = `Written by slicewise ${data.version}. The numbers are those of plan.json. Drawn with d3 (ISC) and dagre (MIT), whose licences are in this page's source.`;
}

function tables() {
  document.getElementById("slices").append(table([
    ["slice", (slice) => sliceLink(slice.name)],
    ["stage", (slice) => slice.stage, true],
    ["ops", (slice) => count(slice.ops.length), true],
    ["weights", (slice) => bytes(slice.weight_bytes), true],
    ["peak memory", (slice) => bytes(slice.peak_memory_bytes), true],
    ["function", (slice) => `${count(slice.memory_mb)} MB`, true],
    ["package", (slice) => `${bytes(slice.package_bytes)} ${slice.packaging}`, true],
    ["time", (slice) => { const share = timeShare(slice.name); return share === null ? "" : percent(share); }, true],
    ["modules", where],
  ], plan.slices, { caption: "Slices", rowAttributes: (slice) => ({ "data-row": `slice=${slice.name}` }) }));
  document.getElementById("edges").append(edgeTable(plan.edges, true));
}

function edgeTable(edges, wide) {
  const columns = [
    ["tensor", edgeLink],
    ["from", (edge) => sliceLink(edge.producer)],
    ["to", (edge) => sliceLink(edge.consumer)],
    ["bytes", (edge) => count(edge.bytes), true],
    ["transport", (edge) => edge.transport],
  ];
  if (wide) {
    columns.splice(1, 0, ["module", (edge) => edge.module], ["shape", (edge) => element("code", {}, shape(edge))]);
    columns.push(["or else", runnerUp], ["reason", (edge) => edge.reason]);
  }
  return table(columns, edges, { caption: "Edges", rowAttributes: (edge) => ({
    class: crosses(edge) ? null : "end", "data-row": `edge=${plan.edges.indexOf(edge)}`, "data-bytes": edge.bytes }) });
}

function tellSlice(slice) {
  const found = predictedOf.get(slice.name);
  const edges = plan.edges.filter((edge) => edge.producer === slice.name || edge.consumer === slice.name);
  return [
    element("h3", {}, element("span", { class: "chip", style: `--c:${colorOf(slice.name)}` }), slice.name),
    element("p", {}, where(slice)),
    element("p", {}, `${count(slice.ops.length)} ops in stage ${slice.stage}; ${bytes(slice.weight_bytes)} of weights; takes ${bytes(slice.peak_memory_bytes)} of ${count(slice.memory_mb)} MB.`),
    slice.shard ? element("p", {}, data.groups[slice.shard.group]) : null,
    found ? element("p", {}, `A call: ${ms(found.call_ms)} on the way, ${ms(found.compute_ms)} computing, billed ${ms(found.billed_ms)}, ${usd(found.cost_per_million_usd)} per million.`) : null,
    element("h3", {}, "Edges"), element("div", { class: "scroll", id: "selected-edges" }, edgeTable(edges, false)),
    ops ? element("details", {}, element("summary", {}, `${count(slice.ops.length)} ops`), opList(slice)) : null,
    data.handlers[slice.name] ? element("details", {}, element("summary", {}, "Handler code"), element("pre", {}, element("code", {}, data.handlers[slice.name]))) : null,
  ];
}

function opList(slice) {
  const inside = new Set(slice.ops), rows = d3.range(ops.name.length).filter((index) => inside.has(ops.name[index]));
  const columns = [["op", opLink], ["module", (op) => ops.modules[ops.module[op]]], ["ms", (op) => fixed(ops.time_ms[op], 2), true]];
  const place = element("div", {});
  const show = (most) => place.replaceChildren(table(columns, rows.slice(0, most)),
    rows.length > most ? element("button", { type: "button", click: () => show(rows.length) }, `Show all ${count(rows.length)}`) : "");
  show(150);
  return place;
}

function tellEdge(edge) {
  return [
    element("h3", {}, edge.tensor),
    edge.module ? element("p", {}, "made by ", element("code", {}, edge.module)) : null,
    element("p", {}, sliceLink(edge.producer), " → ", sliceLink(edge.consumer)),
    element("p", {}, element("code", {}, shape(edge)), `, ${count(edge.bytes)} bytes`),
    element("p", {}, `By ${edge.transport}: ${edge.reason}.`),
    edge.prices.length ? table([["transport", ([name]) => name + (name === edge.transport ? " (chosen)" : "")],
      ["expected", ([, value]) => ms(value), true], ["per million", ([, , value]) => usd(value), true]], edge.prices) : null,
    edge.choices.length ? element("p", { class: "hint" }, `By size: ${edge.choices.map(([name, most]) => (most === null ? `${name} above` : `${name} up to ${count(most)} bytes`)).join(", ")}.`) : null,
  ];
}

function tellOp(name) {
  const op = ops.name.indexOf(name);
  const homes = plan.slices.filter((slice) => slice.ops.includes(name));
  const near = (mine, other) => [...new Set(ops.edges[mine].flatMap((each, index) => (each === op ? [ops.edges[other][index]] : [])))];
  const links = (found) => (found.length ? found.slice(0, 12).flatMap((each, index) => [index ? ", " : "", opLink(each)]) : ["nothing"]);
  return [
    element("h3", {}, name),
    element("p", {}, element("code", {}, ops.kinds[ops.kind[op]]), ops.modules[ops.module[op]] ? " of " : "", element("code", {}, ops.modules[ops.module[op]])),
    element("p", {}, "Runs in ", homes.flatMap((slice, index) => [index ? ", " : "", sliceLink(slice.name)]),
      homes.length > 1 ? ": it is cheap, and running it again sends fewer bytes." : "."),
    element("p", {}, `${ms(ops.time_ms[op], 3)} on one vCPU; ${bytes(ops.weight_bytes[op])} of weights.`),
    element("p", {}, "Reads ", links(near("to", "from"))), element("p", {}, "Is read by ", links(near("from", "to"))),
    ops.sources[ops.source[op]] ? element("p", { class: "hint" }, ops.sources[ops.source[op]]) : null,
    element("p", { class: "hint" }, "What moving it would take: ", element("code", {}, `slicewise inspect BUNDLE --why ${name}`)),
  ];
}

function tell() {
  const { kind, name } = selection();
  const place = document.getElementById("detail");
  let told = [];
  if (kind === "slice" && sliceOf.has(name)) told = tellSlice(sliceOf.get(name));
  else if (kind === "edge" && plan.edges[name]) told = tellEdge(plan.edges[name]);
  else if (kind === "op" && ops?.name.includes(name)) told = tellOp(name);
  else told = [element("h3", {}, "Nothing selected"), element("p", { class: "hint" }, "Select a slice, an arrow or an op, here or in any table. Keys: Tab goes from one to the next, Enter selects or unfolds, the browser's Back returns.")];
  place.replaceChildren(...told.filter(Boolean));
  place.scrollTop = 0;
  document.querySelectorAll("[data-row]").forEach((row) => row.classList.toggle("selected", row.dataset.row === `${kind}=${name}`));
  if (ops) mark();
}

head();
if (ops) startGraph(); else document.getElementById("graph").replaceWith(element("p", {}, "This bundle has no graph.json: compile the model again to see its modules."));
drawTime(document.getElementById("time"));
drawMemory(document.getElementById("memory"));
drawCost(document.getElementById("cost"));
drawFrontier(document.getElementById("frontier"));
tables();
addEventListener("hashchange", tell);
tell();
