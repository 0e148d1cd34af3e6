// The export: it takes a minute or more, during which the page can be used. The button then stops it.

const STEP_MS = 1000;

function makeExport(button, line, needs, calls, done) {
  let running = false;

  const shown = line.appendChild(document.createElement("span"));
  const clock = line.appendChild(document.createElement("span"));
  clock.setAttribute("aria-hidden", "true"); // a screen reader reads each step aloud, not each second

  function show(text) {
    line.hidden = !text;
    if (shown.textContent !== text) shown.textContent = text;
    clock.textContent = "";
  }

  async function poll() {
    const started = performance.now();
    while (running) {
      const found = await calls.step().catch(() => null);
      const passed = Math.round((performance.now() - started) / 1000);
      if (running && found && found.step) {
        show(`Export: ${found.step}`);
        clock.textContent = ` (${passed} s)`;
      }
      await sleep(STEP_MS);
    }
  }

  async function start() {
    running = true;
    button.textContent = "Stop the export";
    show("Export: starting");
    poll();
    const found = await calls.run();
    running = false;
    button.textContent = "Export";
    show("");
    if (found) done(found);
  }

  if (needs) {
    button.disabled = true;
    show(needs);
  }
  button.addEventListener("click", () => (running ? calls.stop() : start()));
}
