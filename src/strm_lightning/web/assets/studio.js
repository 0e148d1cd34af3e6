// The page: wires cards, camera and answer to the functions of the server.

const $ = (selector) => element.querySelector(selector);
const limits = props.limits;
const session = () => props.value.session;
const pictures = makePictures((digests) => ask("pictures", { digests }).then((found) => (found ? found.pictures : {})));
const bars = makeBars($(".bars"), $(".answer"));
let state = { classes: [], ready: false, greets: false };
let busy = false; // a recording or an upload is under way
let drawn = ""; // the classes that are on the page
let last = null; // the result that the bars show

async function ask(name, data = {}) {
  let found;
  try {
    found = await server[name]({ session: session(), ...data });
  } catch (error) {
    say(`The server does not answer (${error.message}): is strm demo still running?`, true);
    return null;
  }
  if (found.error) {
    say(found.error, true);
    return null;
  }
  if (found.state) await apply(found.state);
  return found;
}

function say(text, isError = false) {
  const message = $(".message");
  message.textContent = text;
  message.classList.toggle("error", isError);
  message.hidden = !text;
}

function progress(text, done, total) {
  const bar = $(".progress");
  bar.hidden = !text;
  $(".progress-text").textContent = text;
  $("progress").max = total || 1;
  if (done === null) $("progress").removeAttribute("value"); // a bar that moves without a count
  else $("progress").value = done || 0;
}

async function apply(next) {
  state = next;
  const digests = state.classes.flatMap((group) => group.clips.map((clip) => clip.digest));
  const described = JSON.stringify(state.classes);
  if (described !== drawn) {
    drawn = described;
    drawClasses();
    last = null;
    bars.show(labelsWithExamples(), null);
    $(".source").textContent = "No answer yet: turn on the camera, or choose a video file.";
  }
  $(".greeting").hidden = !state.greets;
  $(".fresh").hidden = state.greets;
  $(".need").hidden = state.ready;
  $(".said").hidden = !state.ready;
  showThreshold(state.threshold);
  if (await pictures.fetch(digests)) drawClasses();
}

function labelsWithExamples() {
  return state.classes.filter((group) => group.clips.length).map((group) => group.label);
}

function drawClasses() {
  drawCards($(".classes"), state.classes, pictures, actions, limits);
  setBusy(busy);
}

// Buttons that wait keep the focus, which a disabled button would lose.
function setBusy(value) {
  busy = value;
  element.querySelectorAll(".card button:not(.player), .busy-off").forEach((button) => {
    button.setAttribute("aria-disabled", String(busy));
  });
}

element.addEventListener("click", (event) => {
  if (event.target.closest('[aria-disabled="true"]')) event.stopPropagation();
}, true);

// Camera --------------------------------------------------------------------------------------------------------------

const camera = makeCamera($("video"), limits.short_side, () => {
  live.stop();
  if ($(".source").textContent.startsWith("live")) $(".source").textContent = "the last answer of the camera";
  $(".stage").classList.remove("on");
  $(".camera-off").hidden = true;
});

const seconds = () => Number($(".seconds").value);

const live = makeLive(
  camera,
  { seconds, frames: limits.frames, ready: () => state.ready && !busy },
  (frames) => ask("predict_frames", { frames }),
  (result, ms) => {
    show(result);
    $(".source").textContent = `live, ${(1000 / (ms + PAUSE_MS)).toFixed(1)} answers a second`;
  },
);

async function startCamera() {
  if (camera.isOn()) return true;
  say("");
  try {
    await camera.start();
  } catch (error) {
    say(error.message, true);
    return false;
  }
  $(".stage").classList.add("on");
  $(".camera-off").hidden = false;
  live.start();
  return true;
}

async function countdown() {
  const number = $(".countdown");
  for (let left = Number($(".delay").value); left > 0; left -= 1) {
    number.textContent = left;
    await sleep(1000);
  }
  number.textContent = "";
}

async function record(label) {
  if (busy || !(await startCamera())) return;
  setBusy(true);
  const card = element.querySelector(`.card[data-label="${CSS.escape(label)}"]`);
  card?.classList.add("recording");
  try {
    await countdown();
    const length = 1000 * seconds();
    const from = performance.now();
    $(".stage").style.setProperty("--length", `${length}ms`);
    $(".stage").classList.add("recording");
    say(`Recording ${label}: ${seconds()} seconds`);
    await sleep(length);
    $(".stage").classList.remove("recording");
    const frames = await camera.clip(from, from + length, limits.frames);
    if (!frames) throw new Error("The camera gave too few frames: record again.");
    say("");
    progress("Encoding the recording", null, 1);
    const found = await ask("add_recording", { label, frames, seconds: length / 1000 });
    if (found) say(`Added ${found.name} to ${label}.`);
  } catch (error) {
    say(error.message, true);
  } finally {
    $(".stage").classList.remove("recording");
    card?.classList.remove("recording");
    progress("");
    setBusy(false);
  }
}

// Examples ------------------------------------------------------------------------------------------------------------

function refusal(file, suffixes) {
  const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
  if (!suffixes.includes(suffix)) return `${file.name} is not accepted: give a file of ${suffixes.join(", ")}.`;
  if (file.size > limits.max_mb * 1e6) return `${file.name} is larger than ${limits.max_mb} MB, the limit of --max_mb.`;
  return null;
}

async function send(file) {
  try {
    return (await upload(file)).path;
  } catch (error) {
    throw new Error(`${file.name} was refused: it or all uploads together are above the limit.`);
  }
}

async function addFiles(label, files) {
  if (busy || !files.length) return;
  setBusy(true);
  const errors = [];
  let added = 0;
  say("");
  for (const [i, file] of files.entries()) {
    progress(`Encoding ${i + 1} of ${files.length}: ${file.name}`, i, files.length);
    try {
      const reason = refusal(file, limits.suffixes);
      if (reason) throw new Error(reason);
      const path = await send(file);
      const found = await server.add_file({ session: session(), label, path });
      if (found.error) throw new Error(found.error);
      await apply(found.state);
      added += 1;
    } catch (error) {
      errors.push(error.message);
    }
  }
  progress("");
  setBusy(false);
  say([added ? `Added ${countOf(added, "example")} to ${label}.` : "", ...errors].filter(Boolean).join(" "), errors.length > 0);
}

const actions = {
  record,
  addFiles,
  rename: async (label, name) => { if (!(await ask("rename_class", { label, name }))) drawClasses(); },
  removeClass: (label) => ask("remove_class", { label }),
  removeExample: (label, name) => ask("remove_example", { label, name }),
};

function download(url, name) {
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

async function save() {
  const found = await ask("save");
  if (!found) return;
  download(found.url, "actions.safetensors");
  say("Saved to actions.safetensors; strm classify --support actions.safetensors reads it too.");
}

async function load(file) {
  setBusy(true);
  say("");
  progress(`Loading ${file.name}`, null, 1);
  try {
    const reason = refusal(file, [".safetensors"]);
    if (reason) throw new Error(reason);
    if (await ask("load", { path: await send(file) })) say(`Loaded ${file.name}.`);
  } catch (error) {
    say(error.message, true);
  } finally {
    progress("");
    setBusy(false);
  }
}

// Answers -------------------------------------------------------------------------------------------------------------

function show(result) {
  last = result;
  bars.show(labelsWithExamples(), result);
}

// The slider decides about the shown result at once; a fitted threshold is of the logit, which only the server knows.
function decideAgain(threshold) {
  if (!last) return;
  const rejected = last.probabilities[last.best] < threshold;
  show({ ...last, rejected, label: rejected ? "unknown" : last.best });
}

function look() {
  const dark = document.body.classList.contains("dark");
  return { width: Math.max(300, $(".why-sentences").clientWidth), dark };
}

function explainWith(found, name) {
  if (!found) {
    $(".why").hidden = !$(".why-picture").src;
    return;
  }
  show(found);
  $(".source").textContent = name;
  $("#why-title").textContent = `Why: ${name}`;
  $(".why").hidden = false;
  $(".why-picture").src = found.picture;
  $(".why-picture").alt = found.sentences.join(" ");
  $(".why-sentences").replaceChildren(...found.sentences.map((line) => make("li", {}, line)));
}

async function explainLive() {
  if (!(await startCamera())) return;
  const frames = await camera.latest(1000 * seconds(), limits.frames);
  if (!frames) {
    say(`The camera has been on for less than ${seconds()} seconds: try again in a moment.`, true);
    return;
  }
  say("");
  progress("Explaining the last seconds", null, 1);
  $(".why").hidden = false; // look() measures it
  explainWith(await ask("explain_frames", { frames, ...look() }), "the last seconds of the camera");
  progress("");
}

async function recogniseFile(file) {
  setBusy(true);
  live.stop();
  say("");
  progress(`Encoding ${file.name}`, null, 1);
  try {
    const reason = refusal(file, limits.suffixes);
    if (reason) throw new Error(reason);
    const path = await send(file);
    $(".why").hidden = false; // look() measures it
    explainWith(await ask("explain_file", { path, ...look() }), file.name);
  } catch (error) {
    say(error.message, true);
  } finally {
    progress("");
    setBusy(false);
    if (camera.isOn()) $(".resume").hidden = false;
  }
}

function showThreshold(threshold) {
  const slider = $(".threshold");
  const fitted = threshold === "fit";
  if (!fitted) slider.value = threshold ?? 0;
  $(".threshold-text").textContent =
    fitted ? "fitted to the examples" : threshold ? `below ${Math.round(100 * threshold)} %` : "never";
  $(".fit").setAttribute("aria-pressed", String(fitted));
}

// Controls ------------------------------------------------------------------------------------------------------------

function chooseFile(button, input, use) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (file && !busy) use(file);
  });
}

$(".camera-on").addEventListener("click", startCamera);
$(".camera-off").addEventListener("click", () => camera.stop());
$(".resume").addEventListener("click", () => { $(".resume").hidden = true; live.start(); });
$(".explain").addEventListener("click", explainLive);
$(".add").addEventListener("click", () => ask("add_class"));
$(".save").addEventListener("click", save);
makeExport($(".export"), $(".export-line"), limits.export_needs, {
  run: () => { say(""); return ask("export"); },
  step: () => server.export_step({ session: session() }),
  stop: () => ask("stop_export"),
}, (found) => {
  download(found.url, "strm-export.zip");
  say(`Exported to strm-export.zip: ${found.parity}. Unpack it; python predict.py a.mp4 then needs no torch.`);
});
for (const button of element.querySelectorAll(".start")) button.addEventListener("click", () => ask("start_fresh"));
$(".threshold").addEventListener("input", (event) => {
  showThreshold(Number(event.target.value) || null);
  decideAgain(Number(event.target.value));
});
$(".threshold").addEventListener("change", (event) => ask("set_threshold", { threshold: Number(event.target.value) || null }));
$(".fit").addEventListener("click", (event) => {
  const fitted = event.target.getAttribute("aria-pressed") === "true";
  ask("set_threshold", { threshold: fitted ? Number($(".threshold").value) || null : "fit" });
});
chooseFile(".load", ".load-file", load);
chooseFile(".recognise", ".recognise-file", recogniseFile);
$(".recognise-file").accept = limits.suffixes.join(",");
window.addEventListener("pagehide", () => camera.stop());
setInterval(() => session() && server.touch({ session: session() }).catch(() => {}), 60000);
watch("value", () => ask("state"));
if (session()) ask("state");
