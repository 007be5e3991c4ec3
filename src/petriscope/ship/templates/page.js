// What the person at the page sees and does.

const about = JSON.parse(document.getElementById("about").textContent);
const by = (id) => document.getElementById(id);
const SHOWN = 60; // cards at a time
const SMALL = 160; // pixels; smaller images are shown as they are, in squares
const STEP = 200; // milliseconds that the page may not answer for, about
const MOST_AT_ONCE = 64; // images
const SHORT = 6; // labels whose table is open on a card
const MASK_SIDE = 480; // pixels of the longer side of a mask on a card
const NOTES = {
  frames: "more than one frame, of which the first is taken",
  transparent: "transparent pixels, which are shown on white",
  blank: "transparent pixels alone, so that nothing but white is left",
  color: "colors, which are turned into gray",
};

const items = []; // {name, file, error, found, notes}, in the order given
const waiting = [];
let compared = { count: 0, test: null }; // with val, of so many items
let [model, shown, running, stopped, left] = [null, SHOWN, false, false, []];
let addresses = [];

const pause = () => new Promise((resolve) => setTimeout(resolve));
const say = (sentence) => (by("status").textContent = sentence);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------------------------------------------------ what is wanted

const chosen = (id, list) => {
  const value = by(id)?.value ?? "";
  return value === "" ? null : { place: Number(value), ...list[Number(value)] };
};
const rate = () => chosen("rate", about.error_rates);
const coverage = () => chosen("coverage", about.coverages);

const wantsClaims = () => rate() !== null || coverage() !== null;

/** Whether what was guaranteed on val holds for these images. */
function standing() {
  if (!wantsClaims() || !compared.test?.withdrawn) return HOLDS;
  return by("anyway").checked ? UNCLAIMED : WITHDRAWN;
}

/** Compare the images with val, unless that was done. */
async function compareItems() {
  if (!wantsClaims() || !model?.likeness || compared.count === items.length) return;
  const found = items.filter((item) => item.found).map((item) => item.found);
  const before = by("status").textContent;
  say("Comparing with val ...");
  await pause();
  const of = found.length > MOST_COMPARED ? items.length : found.length;
  const some = drawnFrom([...found], Math.min(found.length, MOST_COMPARED), randomNumbers());
  const test = some.length ? compareWithVal(model.likeness, traitsOf(some, model.likeness), model.classes, of) : null;
  compared = { count: items.length, test };
  say(before);
}

/** With a capital letter, and an end. */
const sentenceOf = (text) => glued(text[0].toUpperCase() + text.slice(1).replace(/\.?$/, "."));

function tellClaims() {
  const [wanted, sets, now] = [rate(), coverage(), standing()];
  const claims = now === HOLDS ? [...(wanted?.notes ?? []), ...(sets?.notes ?? [])] : [];
  const { test } = compared;
  if (wantsClaims() && test) claims.unshift(...verdictOf(test, now === UNCLAIMED ? ANSWERED_ANYWAY : NOTHING_ANSWERED, about.words.remedy));
  if (wantsClaims() && now === HOLDS) claims.push(about.words.claim);
  if (wantsClaims() && test?.p && now === HOLDS) claims.push(`No difference to val was found. Compared: ${comparedInWords(test)}`);
  by("claims").className = now !== HOLDS || !test?.p ? "warn" : "gap";
  by("claims").replaceChildren(...claims.map((claim) => element("p", { textContent: sentenceOf(claim) })));
  by("claims").hidden = claims.length === 0;
  by("anyway").parentElement.hidden = now === HOLDS;
}

// --------------------------------------------------------------------------------------------------------------------- files

const isImage = (name) => about.suffixes.some((suffix) => name.toLowerCase().endsWith(suffix));
const isHidden = (path) => path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");

/** Files [{name, file}]; of those from folders, the images. */
function add(files, others = []) {
  waiting.push(...files);
  if (others.length) left.push(...others);
  if (!files.length) say(others.length ? `no images among ${whole(others.length)} files` : "no images were given");
  if (files.length) work();
}

function ofFolder(found) {
  const visible = found.filter(({ name }) => !isHidden(name)).sort((a, b) => (a.name < b.name ? -1 : 1));
  add(visible.filter(({ name }) => isImage(name)), visible.filter(({ name }) => !isImage(name)).map(({ name }) => name));
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return add([...transfer.files].map((file) => ({ name: file.name, file })));
  const folders = entries.filter((entry) => entry.isDirectory);
  const single = await Promise.all(entries.filter((entry) => entry.isFile).map(fileOf));
  const inside = (await Promise.all(folders.map(within))).flat();
  if (single.length) add(single);
  if (folders.length) ofFolder(inside);
}

const fileOf = async (entry) => ({
  name: entry.fullPath.replace(/^\//, ""),
  file: await new Promise((resolve, reject) => entry.file(resolve, reject)),
});

async function within(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found;
    for (const entry of some) found.push(...(entry.isDirectory ? await within(entry) : [await fileOf(entry)]));
  }
}

// ---------------------------------------------------------------------------------------------------------------------- work

async function work() {
  if (running || model === null) return;
  running = true;
  stopped = false;
  by("stop").hidden = by("progress").hidden = false;
  by("csv").disabled = true;
  const start = performance.now();
  let [done, each, shownAt] = [0, 1, 0];
  while (waiting.length && !stopped) {
    const began = performance.now();
    const some = waiting.splice(0, each);
    items.push(...(await predicted(some)));
    done += some.length;
    const now = performance.now();
    if (now - began < STEP) each = Math.min(2 * each, MOST_AT_ONCE);
    else if (now - began > 2 * STEP) each = Math.max(1, each >> 1);
    const seconds = Math.ceil((((now - start) / done) * waiting.length) / 1000);
    by("progress").value = done / (done + waiting.length);
    if (now - shownAt > 1000) {
      say(`${whole(done)} of ${images(done + waiting.length)}; ${whole(seconds)} s left`);
      if (!wantsClaims()) draw(); // otherwise, the images are compared with val first
      shownAt = now;
    }
    await pause();
  }
  const rest = waiting.splice(0).length;
  const took = ((performance.now() - start) / 1000).toFixed(1);
  say(`${images(done)} done in ${took} s${rest ? `; stopped, ${images(rest)} left out` : ""}`);
  by("stop").hidden = by("progress").hidden = true;
  by("csv").disabled = false;
  running = false;
  await judge();
}

/** Show the results anew, after what is guaranteed was checked. */
async function judge() {
  if (running) return tellClaims();
  await compareItems();
  draw();
}

/** Items of some files. What cannot be read gets an error. */
async function predicted(files) {
  const read = [];
  for (const { name, file } of files) { // one after another, since large images take much memory
    try {
      read.push({ name, file, image: await readImage(file, about.input) });
    } catch (error) {
      read.push({ name, file, error: `${name} cannot be read as an image: ${error.message}` });
    }
  }
  const good = read.filter(({ image }) => image);
  try {
    const found = good.length ? await model.run(good.map(({ image }) => image)) : [];
    good.forEach((item, i) => (item.found = found[i]));
  } catch (error) {
    good.forEach((item) => (item.error = `${item.name} cannot be predicted: ${error.message}`));
  }
  return read.map(({ image, ...item }) => ({ ...item, notes: image?.notes ?? [] }));
}

// ------------------------------------------------------------------------------------------------------------------- results

/** Items with what is said of them. */
function judged() {
  const [wanted, sets, now] = [rate(), coverage(), standing()];
  const said = {
    masks: () => null,
    labels: (found) => labelsOf(found, wanted, model, now),
    class: (found) => answerOf(found, wanted, sets, model, now),
  }[model.kind];
  return items.map((item) => ({ item, row: item.error ? null : said(item.found) }));
}

const UNSURE = about.kind === "labels" ? "labels left open" : "not sure";
const GROUPS = { all: "all images", unreadable: "cannot be read", outlier: "out of distribution", unsure: UNSURE, none: "no label" };

/** The groups that an image is shown in. */
function groupsOf({ item, row }) {
  if (item.error) return ["all", "unreadable"];
  if (row === null) return ["all"];
  if (model.kind === "labels") {
    const marks = [row.outlier && "outlier", row.abstains ? "unsure" : row.present.length === 0 && "none"].filter(Boolean);
    return ["all", ...marks, ...row.present.map((name) => `=${name}`)];
  }
  if (row.abstains) return row.outlier ? ["all", "unsure", "outlier"] : ["all", "unsure"];
  return ["all", `=${row.answer}`];
}

function draw() {
  if (by("claims")) tellClaims();
  by("results").hidden = items.length === 0;
  if (!items.length || model === null) return;
  const all = judged();
  const counts = new Map();
  all.forEach((each) => groupsOf(each).forEach((group) => counts.set(group, (counts.get(group) ?? 0) + 1)));
  const classes = model.classes.map((name) => `=${name}`).filter((group) => counts.has(group));
  const groups = [...Object.keys(GROUPS), ...classes].filter((group) => counts.has(group));
  const before = groups.includes(by("show").value) ? by("show").value : "all";
  by("show").replaceChildren(
    ...groups.map((group) => {
      const textContent = `${GROUPS[group] ?? group.slice(1)} (${whole(counts.get(group))})`;
      return element("option", { value: group, selected: group === before, textContent });
    }),
  );
  tellSummary(counts);
  tellNotes();
  drawCards(all, before);
}

function tellSummary(counts) {
  const of = (group) => counts.get(group) ?? 0;
  const unreadable = of("unreadable") ? `, ${whole(of("unreadable"))} of which cannot be read` : "";
  const answered = of("all") - of("unreadable") - of("unsure");
  const parts = {
    masks: "",
    labels: `: all labels of ${whole(answered)} answered, ${whole(of("unsure"))} with labels left open`,
    class: `: ${whole(answered)} answered, ${whole(of("unsure"))} not`,
  }[model.kind];
  by("summary").textContent = `${images(of("all"))}${unreadable}${parts}.`;
}

function tellNotes() {
  const said = Object.entries(NOTES).flatMap(([kind, words]) => {
    const having = items.filter((item) => item.notes.includes(kind));
    return having.length ? [`${images(having.length)} ${having.length === 1 ? "has" : "have"} ${words}, such as ${having[0].name}`] : [];
  });
  if (left.length) said.push(`${whole(left.length)} other file${left.length === 1 ? "" : "s"} left out, such as ${left[0]}`);
  by("notes").replaceChildren(...said.map((sentence) => element("li", { textContent: sentence })));
  by("notes").hidden = said.length === 0;
}

function drawCards(all, group) {
  const part = by("find").value.toLowerCase();
  const found = all.filter((each) => groupsOf(each).includes(group) && each.item.name.toLowerCase().includes(part));
  if (by("order").value === "urgent") {
    const urgency = new Map(found.map((each) => [each, urgencyOf(each.item, each.row)]));
    found.sort((a, b) => urgency.get(a)[0] - urgency.get(b)[0] || urgency.get(a)[1] - urgency.get(b)[1]);
  }
  addresses.forEach((address) => URL.revokeObjectURL(address));
  addresses = [];
  by("cards").replaceChildren(...found.slice(0, shown).map(cardOf));
  by("more").hidden = found.length <= shown;
  by("more").textContent = `Show ${whole(Math.min(SHOWN, found.length - shown))} more of ${whole(found.length)}`;
}

function cardOf({ item, row }) {
  const card = element("li", {}, pictureOf(item));
  const detail = (textContent, className = "detail") => card.append(element("span", { className, textContent }));
  if (item.error) {
    card.append(element("span", { className: "answer wrong", textContent: "cannot be read" }));
    detail(item.error.slice(item.error.indexOf(": ", item.name.length) + 2));
  } else if (row === null) {
    card.append(sharesOf(item.found));
    detail(glued(`mean confidence ${confidenceText(item.found.uncertainty)}`));
  } else if (model.kind === "labels") {
    const none = row.open.length === 0 && row.present.length === 0;
    card.append(element("span", { className: row.abstains ? "answer wrong" : "answer", textContent: none ? "no label" : row.answer }));
    if (row.open.length && row.open.length < model.classes.length) detail(`left open: ${row.open.join(", ")}`);
    const why = row.why.replace(`${model.words.withdrawn}; `, "").replace(model.words.withdrawn, "guarantee withdrawn");
    if (why) detail(glued(why));
    card.append(labelTable(item, row));
  } else {
    card.append(element("span", { className: row.abstains ? "answer wrong" : "answer", textContent: row.answer }));
    const confidence = glued(`confidence ${confidenceText(item.found.uncertainty)}`);
    const said = row.why.includes("confidence ") ? "" : ` ${confidence}`;
    detail(row.abstains ? `${model.classes[item.found.label]}?${said}` : confidence);
    const why = row.why.replace(`${model.words.withdrawn}; `, "").replace(model.words.withdrawn, "guarantee withdrawn");
    if (why) detail(glued(why));
    if (row.set !== undefined) detail(`set: ${row.members === model.classes.length ? "all classes" : row.set}`);
    card.append(probabilitiesOf(item));
  }
  detail(item.name, "id");
  return card;
}

/** With percent signs that stay with their numbers. */
const glued = (sentence) => sentence.replaceAll(" %", "\u00a0%");

function pictureOf(item) {
  const frame = element("div", { className: "image" });
  if (item.error) {
    frame.append(element("span", { textContent: "no image" }));
    return frame;
  }
  const address = URL.createObjectURL(item.file);
  addresses.push(address);
  const picture = element("img", { src: address, alt: "", loading: "lazy", decoding: "async" });
  picture.addEventListener("load", () => picture.classList.toggle("px", picture.naturalWidth < SMALL));
  frame.append(picture);
  if (item.found.mask) frame.append(maskOf(item, picture));
  return frame;
}

/** The mask in the colors of its classes, which is laid over the image in the image's proportions. */
function maskOf(item, picture) {
  const { height, width } = about.input;
  const pixels = new Uint8ClampedArray(4 * height * width);
  item.found.mask.forEach((k, i) => pixels.set([...about.colors[k], 255], 4 * i));
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  const canvas = element("canvas", { width, height });
  picture.addEventListener("load", () => {
    const factor = MASK_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight);
    canvas.width = Math.max(1, Math.round(picture.naturalWidth * factor));
    canvas.height = Math.max(1, Math.round(picture.naturalHeight * factor));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  });
  return canvas;
}

function sharesOf(found) {
  const order = [...found.shares.keys()].filter((k) => found.shares[k] > 0).sort((a, b) => found.shares[b] - found.shares[a]);
  return tableRows(order.slice(0, 8).map((k) => [model.classes[k], `${(100 * found.shares[k]).toFixed(1)} %`]));
}

function probabilitiesOf({ name, found }) {
  const details = element("details", {}, element("summary", { textContent: "probabilities", ariaLabel: `probabilities of ${name}` }));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const order = [...found.probabilities.keys()].sort((a, b) => found.probabilities[b] - found.probabilities[a]);
    const rows = order.slice(0, 12).map((k) => [model.classes[k], found.probabilities[k].toFixed(4)]);
    details.append(tableRows([...rows, ["outlier score", found.ood.toFixed(2)]]));
  });
  return details;
}

/** The decision on each label and its probability, the most probable first. */
function labelTable({ name, found }, row) {
  const summary = element("summary", { textContent: "each label", ariaLabel: `each label of ${name}` });
  const details = element("details", { open: model.classes.length <= SHORT }, summary);
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const order = [...found.probabilities.keys()].sort((a, b) => found.probabilities[b] - found.probabilities[a]);
    const rows = order.map((k) => [model.classes[k], row.answers[k], found.probabilities[k].toFixed(4)]);
    details.append(tableRows([...rows, ["outlier score", "", found.ood.toFixed(2)]]));
  });
  return details;
}

function tableRows(rows) {
  const body = element("tbody");
  for (const [name, ...values] of rows) {
    const cells = values.map((value) => element("td", { textContent: value }));
    body.append(element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells));
  }
  return element("table", {}, body);
}

function saveCsv() {
  const text = {
    masks: () => maskTableOf(items, model),
    labels: () => labelTableOf(items, rate(), model, standing()),
    class: () => tableOf(items, rate(), coverage(), model, standing()),
  }[model.kind]();
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: "predictions.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ----------------------------------------------------------------------------------------------------------------- self-test

async function test() {
  const verdicts = [];
  for (const { name, content, expected } of about.tests) {
    const file = new Blob([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))]);
    const [{ error, found }] = await predicted([{ name, file }]);
    verdicts.push({ name, error, right: !error && agrees(found, expected) });
    by("tested").textContent = `${verdicts.length} of ${about.tests.length} ...`;
  }
  const equal = verdicts.filter(({ right }) => right).length;
  const wrong = verdicts.find(({ right }) => !right);
  const first = wrong ? `; the first that is not: ${wrong.error ?? wrong.name}. Do not use this page in this browser` : "";
  by("tested").textContent = `${whole(equal)} of ${whole(verdicts.length)} equal${first}.`;
}

/** The same class, or the same labels; of masks, all pixels but a thousandth. */
function agrees(found, expected) {
  if (model.kind === "class") return found.label === expected;
  if (model.kind === "labels") return found.labels.every((label, k) => label === expected[k]);
  const shares = found.shares.map((share, k) => Math.abs(share - expected[k]));
  return Math.max(...shares) <= 0.001;
}

// -------------------------------------------------------------------------------------------------------------------- begin

function listen() {
  const drop = by("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault(); // or the browser would open the image
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") dropped(event.dataTransfer);
    });
  }
  const files = (event) => [...event.target.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
  by("files").addEventListener("change", (event) => add(files(event)));
  by("folder").addEventListener("change", (event) => ofFolder(files(event)));
  by("stop").addEventListener("click", () => (stopped = true));
  by("csv").addEventListener("click", saveCsv);
  by("clear").addEventListener("click", () => {
    items.length = left.length = 0;
    compared = { count: 0, test: null };
    shown = SHOWN;
    say("Ready.");
    draw();
    by("files").focus();
  });
  by("more").addEventListener("click", () => {
    const next = shown;
    shown += SHOWN;
    draw();
    by("cards").children[next]?.querySelector("summary")?.focus();
  });
  for (const id of ["rate", "coverage"]) by(id)?.addEventListener("change", judge);
  by("anyway")?.addEventListener("change", draw);
  for (const id of ["show", "order", "find"]) by(id).addEventListener("input", () => ((shown = SHOWN), draw()));
  by("cards").addEventListener("keydown", moveFocus);
  by("test")?.addEventListener("click", test);
}

function moveFocus(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (!(event.key in steps)) return;
  const stops = [...by("cards").querySelectorAll("summary")];
  const next = stops[stops.indexOf(document.activeElement) + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

async function begin() {
  listen();
  try {
    model = await loadModel(about);
  } catch (error) {
    say(`The model cannot be started in this browser: ${error.message}. A current Chrome, Edge, Firefox or Safari can.`);
    return;
  }
  say("Ready.");
  if (by("test")) by("test").disabled = false;
  if (new URLSearchParams(location.search).has("test") && about.tests.length) await test();
  if (waiting.length) work();
}

begin();
