// Who fetched which batch: a lane a worker, a bar while a batch is made, a line until it is taken; above, who waited.

const ROW = 25, NAMES_WIDE = 74;

function startBatches() {
  const view = byId("batches-view"), readout = byId("batches-readout"), bars = page.bars;
  if (!view || !bars) return;
  const workers = [...new Set(bars.worker)].sort((a, b) => a - b);
  const lanes = new Map(workers.map((worker, place) => [worker, place + (page.steps ? 1 : 0)]));
  const rows = workers.length + (page.steps ? 1 : 0), height = rows * ROW + 26;
  let range = bars.focus.slice(), width = 0, batchAt = [];
  const x = (seconds) => NAMES_WIDE + ((seconds - range[0]) / (range[1] - range[0])) * (width - NAMES_WIDE - 6);
  const clip = (seconds) => Math.max(NAMES_WIDE, Math.min(width - 6, x(seconds)));

  function drawWaits(svg) {
    const { t, wait } = page.steps;
    shape(svg, "text", { x: NAMES_WIDE - 8, y: ROW - 8.5, "text-anchor": "end", class: "title" }, "the loop");
    let drawn = 0;
    for (let i = 0; i < t.length && drawn < 1500; i++) {
      const until = t[i] + (wait[i] || 0);
      if (until < range[0] || t[i] > range[1] || clip(until) - clip(t[i]) < 0.4) continue;
      shape(svg, "rect", { x: clip(t[i]), y: 3, width: clip(until) - clip(t[i]), height: ROW - 7, fill: "url(#batches-waiting)", class: "wait" });
      drawn++;
    }
  }

  function drawBar(svg, i) {
    const y = lanes.get(bars.worker[i]) * ROW + 4, left = clip(bars.start[i]), right = clip(bars.end[i]);
    const many = bars.count[i] > 1;
    const bar = shape(svg, "rect", {
      x: left, y, width: Math.max(right - left - 0.7, 0.7), height: ROW - 8, rx: 2, class: many ? "bar many" : "bar",
      fill: "var(--work)", opacity: many ? 0.45 : 1, "data-place": i,
    });
    batchAt[i] = bar;
    if (bars.taken[i] !== null && clip(bars.taken[i]) > right + 0.5) {
      shape(svg, "line", { x1: right, x2: clip(bars.taken[i]), y1: y + ROW / 2 - 4, y2: y + ROW / 2 - 4, stroke: "var(--handover)", "stroke-width": 2.5 });
    }
    if (!many && right - left > 34) {
      shape(svg, "text", { x: (left + right) / 2, y: y + 12.5, "text-anchor": "middle", style: "fill: #fff; pointer-events: none; font-size: 10.5px" }, bars.batch[i]);
    }
  }

  function draw(now) {
    width = now;
    const holder = make("div");
    const svg = shape(holder, "svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "application", "aria-label": "Batches by worker. Arrow keys move along time, plus and minus zoom." });
    hatching(svg, "batches-waiting", `var(--${page.bottleneck})`);
    for (const at of ticks(range[0], range[1], Math.max(3, Math.floor(width / 120)))) {
      shape(svg, "line", { x1: x(at), x2: x(at), y1: 0, y2: height - 22, stroke: "var(--line)" });
      shape(svg, "text", { x: x(at), y: height - 6, "text-anchor": "middle" }, moment(at, range[1] - range[0]));
    }
    for (const worker of workers) {
      shape(svg, "text", { x: NAMES_WIDE - 8, y: lanes.get(worker) * ROW + 16.5, "text-anchor": "end" }, `worker ${worker}`);
    }
    batchAt = [];
    if (page.steps) drawWaits(svg);
    for (let i = 0; i < bars.start.length; i++) {
      const until = Math.max(bars.end[i], bars.taken[i] || 0);
      if (until >= range[0] && bars.start[i] <= range[1]) drawBar(svg, i);
    }
    const focused = view.contains(document.activeElement);
    view.replaceChildren(svg);
    if (focused) svg.focus();
  }

  function look(low, high) {
    const least = 1e-3;
    range = [low, Math.max(high, low + least)];
    draw(width);
  }
  const slide = (part) => look(range[0] + (range[1] - range[0]) * part, range[1] + (range[1] - range[0]) * part);
  const zoom = (factor) => {
    const middle = (range[0] + range[1]) / 2, half = ((range[1] - range[0]) / 2) * factor;
    look(middle - half, middle + half);
  };
  const words = (i) => {
    const made = `worker ${bars.worker[i]}, ${inSeconds(bars.end[i] - bars.start[i])}`;
    if (bars.count[i] > 1) return `${bars.count[i]} batches from ${bars.batch[i]} on: worker ${bars.worker[i]}, ${inSeconds(bars.busy[i])} of work`;
    const kept = bars.taken[i] === null ? "" : `; ready ${inSeconds(Math.max(bars.taken[i] - bars.end[i], 0))} before it was taken`;
    return `batch ${bars.batch[i]}: ${made}${kept}`;
  };

  view.addEventListener("pointermove", (event) => {
    const place = event.target.dataset ? event.target.dataset.place : undefined;
    readout.textContent = place === undefined ? "" : words(Number(place));
  });
  view.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: () => slide(-0.25), ArrowRight: () => slide(0.25), "+": () => zoom(0.6), "-": () => zoom(1.6) }[event.key];
    if (!act) return;
    act();
    event.preventDefault();
  });
  byId("batches-earlier").addEventListener("click", () => slide(-0.6));
  byId("batches-later").addEventListener("click", () => slide(0.6));
  byId("batches-closer").addEventListener("click", () => zoom(0.5));
  byId("batches-wider").addEventListener("click", () => zoom(2));
  byId("batches-slowest").addEventListener("click", () => look(...bars.focus));
  selection.listeners.push((chosen) => { if (width) look(...(chosen || bars.focus)); });
  whenResized(view, draw);
}
