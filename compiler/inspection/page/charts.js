// Gantt, memory bars, costs, frontier.

const PARTS = [
  ["call_ms", "on the way", 0.25], ["receive_ms", "receiving", 0.5], ["compute_ms", "computing", 1],
  ["send_ms", "sending", 0.5], ["rest_ms", "handling", 0.25],
];

// Rows of bars: every slice starts when the slowest of the stage before is done.
function timeline(calls) {
  const rows = [];
  let start = 0;
  for (const stage of d3.groups(calls, (call) => sliceOf.get(call.name).stage).sort((a, b) => a[0] - b[0])) {
    for (const call of stage[1]) rows.push({ ...call, start });
    start += d3.max(stage[1], (call) => call.total_ms);
  }
  return { rows, end: start };
}

const predictedCalls = () => plan.prediction.slices.map((found) => {
  const known = found.receive_ms + found.compute_ms + found.send_ms;
  return { ...found, rest_ms: Math.max(0, found.billed_ms - known), total_ms: found.call_ms + found.billed_ms };
});

const measuredCalls = () => (data.trace?.slices ?? []).filter((found) => sliceOf.has(found.slice)).map((found) => {
  const known = (found.receive_ms ?? 0) + (found.compute_ms ?? 0) + (found.send_ms ?? 0);
  return { receive_ms: 0, compute_ms: 0, send_ms: 0, ...found, name: found.slice, total_ms: found.call_ms,
    call_ms: Math.max(0, found.call_ms - known), rest_ms: 0 };
});

function drawTime(place) {
  const lines = [];
  if (plan.prediction.latency_ms !== null) {
    lines.push({ title: "predicted", total: plan.prediction.latency_ms, ...timeline(predictedCalls()) });
  }
  const measured = measuredCalls();
  if (measured.length) lines.push({ title: "measured", total: data.trace.total_ms, ...timeline(measured) });
  document.getElementById("time-hint").textContent = lines.length
    ? `A warm request. ${lines.map((line) => `${line.title} ${ms(line.total)}, of which ${ms(line.total - line.end)} outside the slices' calls`).join("; ")}`
      + `${measured.length ? `, network ${data.trace.network ?? "unknown"}` : ""}. Op times: ${plan.prediction.source}.`
    : "No prediction was made.";
  if (!lines.length) return;
  const bar = lines.length > 1 ? 14 : 20, row = bar * lines.length + 14, left = 100, width = 660;
  const height = row * plan.slices.length + 34;
  const x = d3.scaleLinear([0, d3.max(lines, (line) => Math.max(line.total, line.end))], [left, width - 30]).nice();
  const svg = d3.create("svg").attr("class", "chart").attr("viewBox", `0 0 ${width} ${height}`)
    .attr("role", "group").attr("aria-label", "Time of every slice within a request");
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 26})`)
    .call(d3.axisBottom(x).ticks(6).tickFormat((value) => `${value} ms`));
  plan.slices.forEach((slice, index) => {
    const y = index * row + 6;
    label(svg, slice.name, y + (bar * lines.length) / 2 + 4);
    lines.forEach((line, number) => {
      for (const call of line.rows.filter((each) => each.name === slice.name)) {
        let at = call.start;
        const said = PARTS.map(([key, words]) => `${words} ${ms(call[key])}`).join(", ");
        const group = svg.append("g").attr("role", "img").attr("data-bar", `${line.title}-${slice.name}`)
          .attr("aria-label", `${slice.name}, ${line.title}: ${ms(call.total_ms)} from ${ms(call.start)}; ${said}`);
        group.append("title").text(`${slice.name}, ${line.title}: ${said}`);
        for (const [key, , opacity] of PARTS) {
          group.append("rect").attr("x", x(at)).attr("width", Math.max(0, x(at + call[key]) - x(at)))
            .attr("y", y + number * bar).attr("height", bar - 2).attr("rx", 1.5)
            .attr("fill", colorOf(slice.name)).attr("fill-opacity", opacity);
          at += call[key];
        }
        if (number) {
          group.append("rect").attr("x", x(call.start)).attr("width", Math.max(1, x(at) - x(call.start)))
            .attr("y", y + number * bar).attr("height", bar - 2).attr("fill", "none").attr("stroke", "var(--text)")
            .attr("stroke-width", 0.8);
        }
      }
    });
  });
  place.append(svg.node(), keys([...PARTS.slice(0, 4).map(([, words, opacity]) => [words, opacity]),
    ...(lines.length > 1 ? [["outlined: measured", 0]] : [])]));
}

const keys = (words) => element("div", { class: "keys" }, words.map(([text, opacity]) => element("span", {},
  element("span", { class: "chip", "aria-hidden": "true",
    style: `--c:var(--soft);opacity:${opacity || 1};${opacity ? "" : "background:none;border:1px solid var(--text)"}` }), text)));

function label(svg, name, y) {
  svg.append("text").attr("x", 0).attr("y", y).attr("tabindex", 0).attr("role", "button").attr("class", "title")
    .style("cursor", "pointer").text(name)
    .on("click", () => select("slice", name))
    .on("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select("slice", name); } });
}

function drawMemory(place) {
  const row = 34, left = 100, width = 660, height = row * plan.slices.length + 34;
  const most = d3.max(plan.slices, (slice) => Math.max(slice.memory_mb, slice.peak_memory_bytes / 1048576));
  const x = d3.scaleLinear([0, most], [left, width - 30]).nice();
  const svg = d3.create("svg").attr("class", "chart").attr("viewBox", `0 0 ${width} ${height}`)
    .attr("role", "group").attr("aria-label", "Memory of every function");
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 26})`)
    .call(d3.axisBottom(x).ticks(5).tickFormat((value) => `${count(value)} MB`));
  plan.slices.forEach((slice, index) => {
    const y = index * row + 6, used = slice.peak_memory_bytes / 1048576;
    label(svg, slice.name, y + 14);
    const words = `${fixed(used)} of ${count(slice.memory_mb)} MB, ${bytes(slice.weight_bytes)} of weights in the package`;
    const group = svg.append("g").attr("role", "img").attr("aria-label", `${slice.name}: ${words}`);
    group.append("title").text(words);
    const rect = (from, to, height_) => group.append("rect").attr("x", x(from)).attr("y", y)
      .attr("width", Math.max(0, x(to) - x(from))).attr("height", height_).attr("rx", 2);
    rect(0, slice.memory_mb, 20).attr("fill", colorOf(slice.name)).attr("fill-opacity", 0.14);
    rect(0, used, 20).attr("fill", colorOf(slice.name)).attr("fill-opacity", 0.85);
    group.append("line").attr("x1", x(slice.memory_mb)).attr("x2", x(slice.memory_mb)).attr("y1", y - 3).attr("y2", y + 23)
      .attr("stroke", "var(--text)").attr("stroke-width", 1.5);
    const inside = used / most > 0.62;
    group.append("text").attr("x", x(used) + (inside ? -6 : 6)).attr("y", y + 14.5).attr("class", "soft")
      .attr("text-anchor", inside ? "end" : "start").style("fill", inside ? "#fff" : null)
      .text(`${fixed(used)} of ${count(slice.memory_mb)} MB`);
  });
  place.append(svg.node());
}

function drawCost(place) {
  const total = plan.prediction.cost_per_million_usd;
  if (total === null) { place.append(element("p", { class: "hint" }, "No prediction was made.")); return; }
  const rows = plan.prediction.slices.map((found) => ({
    name: found.name, memory: sliceOf.get(found.name).memory_mb, billed: found.billed_ms, usd: found.cost_per_million_usd }));
  const rest = total - d3.sum(rows, (row) => row.usd);
  rows.push({ name: "coordinator", memory: plan.coordinator_memory_mb, billed: null, usd: rest });
  place.append(table([
    ["function", (row) => sliceLink(row.name)],
    ["memory", (row) => `${count(row.memory)} MB`, true],
    ["billed", (row) => (row.billed === null ? "" : ms(row.billed)), true],
    ["per million", (row) => usd(row.usd), true],
    ["share", (row) => percent(row.usd / total), true],
  ], rows, { caption: "Cost of every function", foot: ["together", "", "", usd(total), ""] }));
}

function drawFrontier(place) {
  const points = data.frontier ?? [];
  if (!points.length) return;
  document.getElementById("frontier-section").hidden = false;
  const own = { ms: plan.prediction.latency_ms, usd: plan.prediction.cost_per_million_usd, words: "this plan" };
  const every = own.ms === null ? points : [...points, own];
  const width = 660, height = 320;
  const pad = (values) => { const [a, b] = d3.extent(values); const more = (b - a || b || 1) * 0.08; return [a - more, b + more]; };
  const x = d3.scaleLinear(pad(every.map((each) => each.ms)), [64, width - 90]).nice();
  const y = d3.scaleLinear(pad(every.map((each) => each.usd)), [height - 40, 16]).nice();
  const svg = d3.create("svg").attr("class", "chart").attr("viewBox", `0 0 ${width} ${height}`).attr("role", "group")
    .attr("aria-label", "Plans by latency and cost");
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - 36})`)
    .call(d3.axisBottom(x).ticks(6).tickFormat((value) => `${count(value)} ms`));
  svg.append("g").attr("class", "axis").attr("transform", "translate(60,0)").call(d3.axisLeft(y).ticks(6).tickFormat(usd));
  svg.append("path").attr("fill", "none").attr("stroke", "var(--accent)").attr("stroke-width", 1.5)
    .attr("d", d3.line((each) => x(each.ms), (each) => y(each.usd))(points));
  for (const each of every) {
    const group = svg.append("g").attr("role", "img").attr("aria-label", `${each.words}: ${ms(each.ms)}, ${usd(each.usd)} per million`);
    group.append("title").text(`${each.words}: ${ms(each.ms)}, ${usd(each.usd)} per million`);
    group.append("circle").attr("cx", x(each.ms)).attr("cy", y(each.usd)).attr("r", each === own ? 7 : 4.5)
      .attr("fill", each === own ? "none" : "var(--accent)").attr("stroke", each === own ? "var(--text)" : "none").attr("stroke-width", 2);
    group.append("text").attr("class", "soft").attr("x", x(each.ms) + 9).attr("y", y(each.usd) + (each === own ? 16 : -6)).text(each.words);
  }
  place.append(svg.node());
}
