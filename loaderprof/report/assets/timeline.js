// The run over time: one lane a quantity, one axis, a stretch to select by dragging or with the arrow keys.

const LANE = 60, GAP = 33, LEFT = 66, RIGHT = 10;

function laneData() {
  const { steps, host, ranks } = page;
  const lanes = [];
  for (const { rank, t, step, wait } of ranks) {
    lanes.push({ title: `Rank ${rank}, step time`, times: t, values: step, waits: wait, unit: inSeconds, together: true });
  }
  if (steps) {
    if (!ranks.length) lanes.push({ title: "Step time", times: steps.t, values: steps.step, waits: steps.wait, unit: inSeconds });
    if (steps.ready) lanes.push({ title: "Batches ready", times: steps.t, values: steps.ready, unit: digits, tone: "collate", whole: true });
  }
  if (host) {
    const percent = (value) => `${digits(value)} %`;
    if (host.cpu) lanes.push({ title: "CPU", times: host.t, values: host.cpu, unit: percent, tone: "host", least: 100 });
    for (const [name, values] of host.gpus) {
      lanes.push({ title: `GPU ${name}`, times: host.t, values, unit: percent, tone: "device", least: 100 });
    }
    const rate = (value) => `${digits(value / 1e6)} MB/s`;
    if (host.disk) lanes.push({ title: "Disk", times: host.t, values: host.disk, unit: rate, tone: "read", least: 1e6 });
  }
  // Ranks share a scale: a rank that is late has to look it.
  const together = Math.max(0, ...lanes.filter((lane) => lane.together).map(scaleTop));
  for (const lane of lanes) if (lane.together) lane.top = together;
  return lanes;
}

/** The top of a lane's scale: outliers above it are marked, so that they do not press all else flat. */
function scaleTop(lane) {
  const known = lane.values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!known.length) return 1;
  if (lane.whole) return Math.max(Math.ceil(known[known.length - 1]), 1);
  const usual = known[Math.floor(known.length * 0.985)] * 1.25;
  return Math.max(lane.least || 0, Math.min(known[known.length - 1] * 1.05, usual)) || 1;
}

function stepPath(times, values, x, y) {
  let path = "", pen = false;
  for (let i = 0; i < times.length; i++) {
    if (values[i] === null || times[i] === null) { pen = false; continue; }
    const at = x(times[i]).toFixed(1), to = y(values[i]).toFixed(1);
    path += pen ? `H${at}V${to}` : `M${at} ${to}`;
    pen = true;
  }
  return path;
}

function areaPath(times, values, x, y) {
  let path = `M${x(times[0] || 0).toFixed(1)} ${y(0).toFixed(1)}`;
  for (let i = 0; i < times.length; i++) {
    if (times[i] !== null) path += `H${x(times[i]).toFixed(1)}V${y(values[i] || 0).toFixed(1)}`;
  }
  return `${path}V${y(0).toFixed(1)}Z`;
}

function drawLane(drawing, lane, top, x, width) {
  const high = lane.top || scaleTop(lane);
  const y = (value) => top + LANE - (Math.min(value, high) / high) * LANE;
  shape(drawing, "line", { x1: LEFT, x2: width - RIGHT, y1: top + LANE, y2: top + LANE, stroke: "var(--line)" });
  const title = shape(drawing, "text", { x: LEFT, y: top - 9, class: "title" });
  title.textContent = lane.title.length > 40 ? `${lane.title.slice(0, 39)}…` : lane.title;
  if (lane.waits) shape(title, "tspan", { "font-weight": 400, fill: "var(--soft)", dx: 8 }, "hatched: waiting");
  shape(drawing, "text", { x: LEFT - 6, y: top + 9, "text-anchor": "end" }, lane.unit(high));
  shape(drawing, "text", { x: LEFT - 6, y: top + LANE, "text-anchor": "end" }, "0");
  if (lane.waits) {
    shape(drawing, "path", { d: areaPath(lane.times, lane.waits, x, y), fill: "url(#timeline-waiting)" });
    shape(drawing, "path", { d: stepPath(lane.times, lane.values, x, y), fill: "none", stroke: "var(--ink)", "stroke-width": 1 });
  } else {
    const tone = `var(--${lane.tone})`;
    shape(drawing, "path", { d: areaPath(lane.times, lane.values, x, y), fill: tone, opacity: 0.16 });
    shape(drawing, "path", { d: stepPath(lane.times, lane.values, x, y), fill: "none", stroke: tone, "stroke-width": 1.3 });
  }
  let marked = 0;
  for (let i = 0; i < lane.values.length && marked < 60; i++) {
    if (lane.values[i] <= high || lane.times[i] === null) continue;
    const at = x(lane.times[i]);
    const mark = shape(drawing, "path", { d: `M${at - 4} ${top + 6}L${at} ${top - 1}L${at + 4} ${top + 6}Z`, fill: "var(--straggler)", class: "outlier" });
    shape(mark, "title", {}, `${lane.unit(lane.values[i])} at ${moment(lane.times[i], page.end_s)}`);
    marked++;
  }
}

/** The last place whose time is not after a moment. */
function placeBefore(times, seconds) {
  let low = 0, high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= seconds) low = middle + 1; else high = middle;
  }
  return Math.max(low - 1, 0);
}

function selectionWords(range) {
  const span = `${moment(range[0], range[1] - range[0])} to ${moment(range[1], range[1] - range[0])}`;
  const steps = page.steps;
  if (!steps) return span;
  const low = steps.t.findIndex((time) => time >= range[0]);
  if (low < 0 || steps.t[low] > range[1]) return `${span}: no step begins here`;
  const high = placeBefore(steps.t, range[1]) + 1;
  const places = [...steps.place, steps.count];
  const count = places[high] - places[low];
  const lasted = steps.step_before[high] - steps.step_before[low];
  const waited = steps.wait_before[high] - steps.wait_before[low];
  const share = lasted > 0 ? `, waiting ${inPercent(waited / lasted)}` : "";
  return `${span}: ${count.toLocaleString("en")} ${count === 1 ? "step" : "steps"} of ${inSeconds(lasted / count)}${share}`;
}

function startTimeline() {
  const view = byId("timeline-view"), readout = byId("timeline-readout");
  const lanes = laneData();
  if (!view || !lanes.length || !(page.end_s > 0)) return;
  const end = page.end_s;
  let width = 0, shade = null, cursor = null, from = null;
  const x = (seconds) => LEFT + (seconds / end) * (width - LEFT - RIGHT);
  const seconds = (event) => {
    const at = event.clientX - view.getBoundingClientRect().left;
    return Math.max(0, Math.min(end, ((at - LEFT) / (width - LEFT - RIGHT)) * end));
  };

  const height = lanes.length * (LANE + GAP) + 22;
  function drawFrame(drawing) {
    for (const at of ticks(0, end, Math.max(3, Math.floor(width / 110)))) {
      shape(drawing, "text", { x: x(at), y: height - 6, "text-anchor": "middle" }, `${digits(at)} s`);
    }
    const epochs = page.steps ? page.steps.epochs : [];
    const labelled = epochs.length * 90 < width;
    epochs.forEach((at, place) => {
      shape(drawing, "line", { x1: x(at), x2: x(at), y1: 4, y2: height - 22, stroke: "var(--soft)", "stroke-dasharray": "2 4", class: "epoch" });
      if (labelled && place && x(at) > LEFT + 180) shape(drawing, "text", { x: x(at) + 4, y: 14 }, `epoch ${place + 1}`);
    });
  }

  function draw(now) {
    width = now;
    const drawing = make("div");
    const svg = shape(drawing, "svg", {
      viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "application",
      "aria-label": "Timeline. Arrow keys move the selection, with Shift they widen it, Escape clears it.",
    });
    hatching(svg, "timeline-waiting", `var(--${page.bottleneck})`);
    drawFrame(svg);
    lanes.forEach((lane, place) => drawLane(svg, lane, place * (LANE + GAP) + GAP - 4, x, width));
    shade = shape(svg, "g");
    cursor = shape(svg, "line", { y1: 4, y2: height - 22, stroke: "var(--soft)", visibility: "hidden" });
    svg.style.cursor = "crosshair";
    const focused = view.contains(document.activeElement);
    view.replaceChildren(svg);
    if (focused) svg.focus();
    showSelection();
  }

  function showSelection() {
    shade.replaceChildren();
    const range = selection.range;
    if (!range) { readout.textContent = ""; return; }
    const [low, high] = range.map(x);
    const veil = { y: 0, height: height - 20, fill: "var(--paper)", opacity: 0.62 };
    shape(shade, "rect", { x: LEFT, width: Math.max(low - LEFT, 0), ...veil });
    shape(shade, "rect", { x: high, width: Math.max(width - RIGHT - high, 0), ...veil });
    shape(shade, "rect", { x: low, width: Math.max(high - low, 1), y: 2, height: height - 24, fill: "none", stroke: "var(--ink)", class: "selected" });
    readout.textContent = selectionWords(range);
  }

  function hover(at) {
    cursor.setAttribute("x1", x(at));
    cursor.setAttribute("x2", x(at));
    cursor.setAttribute("visibility", "visible");
    const seen = lanes.map((lane) => {
      const value = lane.values[placeBefore(lane.times, at)];
      return value === null || value === undefined ? "" : `${lane.title} ${lane.unit(value)}`;
    });
    if (!selection.range) readout.textContent = `${moment(at, end)}: ${seen.filter(Boolean).join(", ")}`;
  }

  view.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = seconds(event);
    view.setPointerCapture(event.pointerId);
  });
  view.addEventListener("pointermove", (event) => {
    const at = seconds(event);
    if (from === null) { hover(at); return; }
    if (Math.abs(x(at) - x(from)) > 3) selection.set([Math.min(from, at), Math.max(from, at)]);
  });
  view.addEventListener("pointerup", (event) => {
    if (from !== null && Math.abs(x(seconds(event)) - x(from)) <= 3) selection.set(null);
    from = null;
  });
  view.addEventListener("pointercancel", () => { from = null; });
  view.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    if (!selection.range) readout.textContent = "";
  });
  view.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") selection.set(null);
    else if (way) selection.set(moved(selection.range, way * end * 0.02, event.shiftKey, end));
    else return;
    event.preventDefault();
  });
  selection.listeners.push(showSelection);
  whenResized(view, draw);
}

/** A stretch moved, or widened at its end, and kept within the run; a first one in the middle where there is none. */
function moved(range, by, widen, end) {
  if (!range) return [end * 0.45, end * 0.55];
  if (widen) return [range[0], Math.max(range[0] + end * 0.005, Math.min(end, range[1] + by))];
  const shift = Math.max(-range[0], Math.min(end - range[1], by));
  return [range[0] + shift, range[1] + shift];
}
