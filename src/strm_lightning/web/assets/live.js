// The answer: a bar for each class, and predictions from the camera as fast as the server returns them.

const PAUSE_MS = 120;

function makeBars(list, answer) {
  const rows = new Map();
  let said = null;

  function show(labels, result) {
    for (const [label, row] of rows) {
      if (labels.includes(label)) continue;
      row.node.remove();
      rows.delete(label);
    }
    for (const label of labels) {
      if (!rows.has(label)) {
        const fill = make("span", { class: "fill" });
        const value = make("span", { class: "value" });
        const node = make("li", {}, make("span", { class: "label", title: label }, label),
          make("span", { class: "track", "aria-hidden": "true" }, fill), value);
        rows.set(label, { node, fill, value });
      }
      list.append(rows.get(label).node);
      const probability = result ? (result.probabilities[label] ?? 0) : 0;
      const row = rows.get(label);
      row.fill.style.width = `${(100 * probability).toFixed(1)}%`;
      row.value.textContent = result ? `${Math.round(100 * probability)} %` : "";
      row.node.classList.toggle("best", Boolean(result) && !result.rejected && result.best === label);
    }
    // A screen reader reads the answer aloud, so it changes only with the label.
    const text = !result ? "" : result.rejected ? "unknown" : result.label;
    if (text !== said) {
      said = text;
      answer.textContent = text;
    }
    answer.classList.toggle("rejected", Boolean(result && result.rejected));
  }

  return { show };
}

function makeLive(camera, settings, predict, show) {
  let running = false;

  async function loop() {
    while (running && camera.isOn()) {
      const started = performance.now();
      const frames = document.hidden ? null : await camera.latest(1000 * settings.seconds(), settings.frames);
      if (frames && settings.ready()) {
        const result = await predict(frames);
        if (running && result) show(result, Math.round(performance.now() - started));
      }
      await sleep(PAUSE_MS);
    }
    running = false;
  }

  return {
    start() {
      if (running) return;
      running = true;
      loop();
    },
    stop: () => { running = false; },
  };
}
