// Starts the parts of the page; without this file it is a still page with all words and numbers on it.

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  });
}

function startCopying() {
  for (const block of document.querySelectorAll(".copy")) {
    const button = make("button", { type: "button" }, "Copy");
    button.addEventListener("click", () => {
      const code = block.querySelector("code");
      const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
      const mark = () => { getSelection().selectAllChildren(code); button.textContent = "Press Ctrl+C"; };
      // A page opened from a folder may be denied the clipboard; then the text is marked to be copied by hand.
      if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(done, mark); else mark();
    });
    block.append(button);
  }
}

document.documentElement.classList.add("js");
startTheme();
startCopying();
startTimeline();
startBatches();
startFlame();
