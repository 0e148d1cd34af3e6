// The export: it takes a minute or more, during which the page can be used. The button then stops it.

const STEP_MS = 1000;

function makeExport(button, line, needs, calls, done) {
  let running = false;

  function show(text) {
    line.hidden = !text;
    line.textContent = text;
  }

  async function poll() {
    const started = performance.now();
    while (running) {
      const found = await calls.step().catch(() => null);
      const passed = Math.round((performance.now() - started) / 1000);
      if (running && found && found.step) line.textContent = `Export: ${found.step} (${passed} s)`;
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
