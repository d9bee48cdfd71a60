// The flame graph, root on top: samples of the main process and of the workers, for the run or the selected stretch.

const FRAME = 22, NARROWEST = 0.0015;

function buildTree([process, columns]) {
  const frames = columns.name.map((name, place) => ({
    place, name, stage: page.stacks.stages[columns.stage[place]], ended: columns.ended[place],
    caller: columns.caller[place], callees: [], total: 0,
  }));
  for (const frame of frames) if (frame.caller >= 0) frames[frame.caller].callees.push(frame);
  return { process, frames };
}

/** Add up samples within a stretch of time; those that carry no time always count. */
function countSamples(tree, range) {
  const size = page.end_s / page.stacks.stretches;
  const low = range ? Math.floor(range[0] / size) : -1, high = range ? Math.floor(range[1] / size) : Infinity;
  for (const frame of tree.frames) {
    frame.total = 0;
    for (let i = 0; i < frame.ended.length; i += 2) {
      const stretch = frame.ended[i];
      if (stretch < 0 || (stretch >= low && stretch <= high)) frame.total += frame.ended[i + 1];
    }
    frame.self = frame.total;
  }
  // Callers stand before callees, so from the end each frame is whole before it is added to its caller.
  for (let place = tree.frames.length - 1; place > 0; place--) {
    const frame = tree.frames[place];
    tree.frames[frame.caller].total += frame.total;
  }
}

function startFlame() {
  const view = byId("flame-view"), search = byId("flame-search"), readout = byId("flame-readout");
  if (!view || !page.stacks) return;
  const trees = page.stacks.trees.map(buildTree).sort((a, b) => (a.process < b.process ? 1 : -1));
  let tree = trees[0], zoomed = tree.frames[0], focused = null, query = "";
  const titles = { worker: "Workers", main: "Main process" };

  const matches = (frame) => query !== "" && frame.name.toLowerCase().includes(query);
  const share = (frame) => (tree.frames[0].total ? frame.total / tree.frames[0].total : 0);
  const words = (frame) => {
    const name = frame.caller < 0 ? titles[tree.process] : frame.name;
    return `${name}: ${inPercent(share(frame))} of ${tree.frames[0].total.toLocaleString("en")} samples, ${page.names[frame.stage]}`;
  };

  function place(frame, left, width, depth, faded) {
    const box = make("div", { role: "treeitem", tabindex: frame === focused ? 0 : -1, "data-place": frame.place, "aria-label": words(frame) });
    box.style.cssText = `left:${left * 100}%;width:${width * 100}%;top:${depth * FRAME}px;--tone:var(--${frame.stage})`;
    if (width > 0.02) box.textContent = frame.caller < 0 ? titles[tree.process] : frame.name;
    if (matches(frame)) box.className = "hit";
    if (faded) box.classList.add("above");
    return box;
  }

  function draw() {
    const boxes = [], line = [];
    for (let above = tree.frames[zoomed.caller]; above; above = tree.frames[above.caller]) line.unshift(above);
    line.forEach((frame, depth) => boxes.push(place(frame, 0, 1, depth, true)));
    let deepest = line.length;
    const waiting = zoomed.total ? [[zoomed, 0, 1, line.length]] : [];
    while (waiting.length) {
      const [frame, left, width, depth] = waiting.pop();
      boxes.push(place(frame, left, width, depth, false));
      deepest = Math.max(deepest, depth);
      let at = left;
      for (const callee of [...frame.callees].sort((a, b) => b.total - a.total)) {
        const part = (callee.total / zoomed.total);
        if (part >= NARROWEST) waiting.push([callee, at, part, depth + 1]);
        at += part;
      }
    }
    view.replaceChildren(...boxes);
    if (!zoomed.total) view.textContent = "No sample in this stretch.";
    view.style.height = `${(deepest + 1) * FRAME}px`;
    view.classList.toggle("searching", query !== "");
    showFound();
  }

  function showFound() {
    let found = 0;
    // A frame below one that matches is counted already.
    const within = new Set();
    for (const frame of tree.frames) {
      if (within.has(frame.caller)) within.add(frame.place);
      else if (matches(frame)) { within.add(frame.place); found += frame.total; }
    }
    const total = tree.frames[0].total;
    byId("flame-found").textContent = query === "" ? "" : `${inPercent(total ? found / total : 0)} of samples match`;
  }

  const boxOf = (frame) => view.querySelector(`[data-place="${frame.place}"]`);
  function focus(frame) {
    if (!frame) return;
    focused = frame;
    if (!boxOf(frame)) draw();
    for (const box of view.querySelectorAll('[tabindex="0"]')) box.tabIndex = -1;
    const box = boxOf(frame);
    if (!box) return;
    box.tabIndex = 0;
    box.focus({ preventScroll: true });
    readout.textContent = words(frame);
  }
  function zoom(frame) {
    zoomed = frame;
    focused = frame;
    draw();
    focus(frame);
  }
  function show(chosen) {
    tree = chosen;
    countSamples(tree, page.stacks.timed ? selection.range : null);
    zoomed = focused = tree.frames[0];
    readout.textContent = "";
    for (const tab of byId("flame-tabs").children) tab.setAttribute("aria-pressed", tab.dataset.process === tree.process);
    drawLegend();
    draw();
  }
  function drawLegend() {
    const stages = [...new Set(tree.frames.map((frame) => frame.stage))];
    byId("flame-legend").replaceChildren(...stages.map((stage) => {
      const item = make("span", {}, page.names[stage]);
      const dot = make("i", { class: "dot" });
      dot.style.background = `var(--${stage})`;
      item.prepend(dot);
      return item;
    }));
  }
  function walk(frame, key) {
    const caller = tree.frames[frame.caller];
    if (key === "ArrowUp") return caller;
    const largest = (frames) => [...frames].filter((each) => boxOf(each)).sort((a, b) => b.total - a.total);
    if (key === "ArrowDown") return largest(frame.callees)[0];
    const beside = caller ? largest(caller.callees) : [frame];
    return beside[beside.indexOf(frame) + (key === "ArrowRight" ? 1 : -1)];
  }

  const frameOf = (event) => {
    const box = event.target.closest("[data-place]");
    return box ? tree.frames[Number(box.dataset.place)] : null;
  };
  view.addEventListener("click", (event) => { const frame = frameOf(event); if (frame) zoom(frame); });
  view.addEventListener("pointermove", (event) => {
    const frame = frameOf(event);
    if (frame) readout.textContent = words(frame);
  });
  view.addEventListener("focusin", (event) => { const frame = frameOf(event); if (frame) readout.textContent = words(frame); });
  view.addEventListener("keydown", (event) => {
    const frame = frameOf(event);
    if (!frame) return;
    if (event.key === "Enter" || event.key === " ") zoom(frame);
    else if (event.key === "Escape") zoom(tree.frames[0]);
    else if (event.key.startsWith("Arrow")) focus(walk(frame, event.key));
    else return;
    event.preventDefault();
  });
  search.addEventListener("input", () => { query = search.value.trim().toLowerCase(); draw(); });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    search.value = query = "";
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input") || event.ctrlKey || event.metaKey) return;
    search.focus();
    event.preventDefault();
  });
  for (const each of trees) {
    const tab = make("button", { type: "button", "data-process": each.process, "aria-pressed": "false" }, titles[each.process]);
    tab.addEventListener("click", () => show(each));
    byId("flame-tabs").append(tab, " ");
  }
  selection.listeners.push(() => { if (page.stacks.timed) show(tree); });
  show(tree);
}
