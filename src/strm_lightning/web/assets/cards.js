// The cards of the classes: name, number of examples, pictures that play, and buttons.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function countOf(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// Pictures of examples by digest: {url, frames}. They are asked for once.
function makePictures(fetchPictures) {
  const known = new Map();
  return {
    get: (digest) => known.get(digest),
    async fetch(digests) {
      const missing = [...new Set(digests)].filter((digest) => !known.has(digest));
      for (let i = 0; i < missing.length; i += 24) {
        const found = await fetchPictures(missing.slice(i, i + 24));
        for (const [digest, picture] of Object.entries(found)) known.set(digest, picture);
      }
      return missing.length > 0;
    },
  };
}

function makeExample(label, clip, picture, actions) {
  const player = make("button", {
    type: "button",
    class: "player",
    "aria-label": `Play ${clip.name} of ${label}`,
    "aria-pressed": "false",
    title: clip.name,
  });
  if (picture && picture.url) {
    player.style.backgroundImage = `url("${picture.url}")`;
    player.style.setProperty("--frames", picture.frames);
  } else {
    player.append(picture ? "no picture" : "");
  }
  player.addEventListener("click", () => {
    const playing = player.getAttribute("aria-pressed") !== "true";
    player.setAttribute("aria-pressed", String(playing));
    player.setAttribute("aria-label", `${playing ? "Stop" : "Play"} ${clip.name} of ${label}`);
  });
  const remove = make(
    "button",
    { type: "button", class: "remove", "aria-label": `Remove ${clip.name} from ${label}`, title: "Remove",
      onclick: () => actions.removeExample(label, clip.name) },
    "×",
  );
  return make("li", { class: "example", "data-name": clip.name }, player, remove);
}

function makeCard(group, pictures, actions, limits) {
  const { label, clips } = group;
  const name = make("input", {
    class: "name", type: "text", value: label, maxlength: "60", "aria-label": `Name of ${label}`, autocomplete: "off",
    spellcheck: "false",
    onkeydown: (event) => event.key === "Enter" && event.target.blur(),
    onchange: (event) => actions.rename(label, event.target.value),
  });
  const chooser = make("input", {
    type: "file", multiple: true, hidden: true, accept: limits.suffixes.join(","), "aria-label": `Files of ${label}`,
    onchange: (event) => {
      const files = [...event.target.files];
      event.target.value = "";
      actions.addFiles(label, files);
    },
  });
  const record = make("button", { type: "button", class: "record", onclick: () => actions.record(label) },
    make("span", { class: "dot", "aria-hidden": "true" }), "Record");
  record.setAttribute("aria-label", `Record an example of ${label}`);
  const upload = make("button", { type: "button", onclick: () => chooser.click() }, "Upload");
  upload.setAttribute("aria-label", `Upload examples of ${label}`);
  const remove = make("button", { type: "button", class: "quiet", onclick: () => actions.removeClass(label) }, "Delete");
  remove.setAttribute("aria-label", `Delete ${label} and its examples`);
  const strip = make("ul", { class: "strip", "aria-label": `Examples of ${label}` },
    ...clips.map((clip) => makeExample(label, clip, pictures.get(clip.digest), actions)));
  const card = make("li", { class: "card", "data-label": label },
    make("div", { class: "head" }, name, make("span", { class: "count" }, countOf(clips.length, "example"))),
    clips.length ? strip : make("p", { class: "hint" }, "No examples yet: record, or drop videos here."),
    make("div", { class: "buttons" }, record, upload, chooser, remove));
  card.addEventListener("dragover", (event) => { event.preventDefault(); card.classList.add("over"); });
  card.addEventListener("dragleave", () => card.classList.remove("over"));
  card.addEventListener("drop", (event) => {
    event.preventDefault();
    card.classList.remove("over");
    actions.addFiles(label, [...event.dataTransfer.files]);
  });
  return card;
}

// Draw all cards again; the focus stays on the same control, and the players that play go on.
function drawCards(list, classes, pictures, actions, limits) {
  const active = document.activeElement;
  const focused = list.contains(active) ? active.getAttribute("aria-label") : null;
  const playing = [...list.querySelectorAll('.player[aria-pressed="true"]')].map((p) => p.getAttribute("aria-label"));
  const typed = focused && active.matches("input.name") ? active.value : null;
  list.replaceChildren(...classes.map((group) => makeCard(group, pictures, actions, limits)));
  const find = (label) => label && list.querySelector(`[aria-label="${CSS.escape(label)}"]`);
  for (const label of playing) find(label.replace(/^Stop /, "Play "))?.click(); // drawn again as not playing
  const again = find(focused);
  if (again && typed !== null) again.value = typed;
  again?.focus();
}
