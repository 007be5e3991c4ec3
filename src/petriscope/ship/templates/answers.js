// Answers, abstentions and tables, in the words and numbers of `petriscope predict`.

const HOLDS = "holds", WITHDRAWN = "withdrawn", UNCLAIMED = "unclaimed";
const OUTLIER = "out of distribution: not like the images that the model was trained on";

const whole = (count) => count.toLocaleString("en-US");
const images = (count) => `${whole(count)} image${count === 1 ? "" : "s"}`;

/**
 * What is said of one image.
 *
 * @param found {probabilities, label, uncertainty, ood, answers, sets} of the image, see readOutputs.
 * @param rate what is wanted of errors, {place, max_error, threshold}; null: every image that is in distribution is answered.
 * @param coverage what is wanted of sets, {place, coverage}; null: there are none.
 * @param standing of what is guaranteed: HOLDS, WITHDRAWN (nothing is answered) or UNCLAIMED (images are answered all the same).
 */
function answerOf(found, rate, coverage, model, standing) {
  const reasons = standing === WITHDRAWN ? [model.words.withdrawn] : [];
  const outlier = !(found.ood <= 1);
  if (outlier) reasons.push(OUTLIER);
  if (rate !== null && rate.threshold === null) {
    reasons.push(`no confidence guarantees at most ${percent(rate.max_error)} % errors`);
  } else if (rate !== null && (found.uncertainty > rate.threshold || (found.answers[rate.place] < 0 && !outlier))) {
    reasons.push(`confidence ${confidenceText(found.uncertainty)} is below ${confidenceText(rate.threshold)}`);
  }
  const abstains = reasons.length > 0;
  if (standing === UNCLAIMED) reasons.push(model.words.unclaimed);
  const answer = abstains ? model.words.not_sure : model.classes[found.label];
  const row = { answer, abstains, outlier, why: reasons.join("; ") };
  if (coverage === null) return row;
  const members = setOf(found, coverage.place, model, standing);
  return { ...row, set: members.join("; ") || model.words.no_class, members: members.length };
}

/**
 * What is said of each label of one image.
 *
 * @param found {probabilities, labels, ood, answers} of the image, see readOutputs; `answers` of each error rate are in a row.
 * @param rate, standing as of answerOf.
 */
function labelsOf(found, rate, model, standing) {
  const outlier = !(found.ood <= 1);
  const reasons = { [WITHDRAWN]: [model.words.withdrawn], [UNCLAIMED]: [model.words.unclaimed] }[standing] ?? [];
  if (outlier) reasons.push(OUTLIER);
  const answers = model.classes.map((_, k) => {
    if (standing === WITHDRAWN || outlier) return model.words.not_sure;
    const answer = rate === null ? Number(found.labels[k]) : found.answers[rate.place * model.classes.length + k];
    return answer < 0 ? model.words.not_sure : ["absent", "present"][answer];
  });
  const [present, open] = ["present", model.words.not_sure].map((word) => model.classes.filter((_, k) => answers[k] === word));
  const answer = open.length && !present.length ? model.words.not_sure : present.join(", ") || "none";
  return { answer, abstains: open.length > 0, outlier, present, open, answers, why: reasons.join("; ") };
}

/** The classes in the prediction set, the most probable first. */
function setOf(found, place, { classes }, standing) {
  const members = [...classes.keys()].filter((k) => standing === WITHDRAWN || found.sets[place * classes.length + k]);
  return members.sort((a, b) => found.probabilities[b] - found.probabilities[a]).map((k) => classes[k]);
}

/** A share in percent with up to six digits. */
const percent = (share) => String(Number((100 * share).toPrecision(6)));

/** A confidence in percent, with enough digits to differ from 100 %. */
function confidenceText(uncertainty) {
  const digits = uncertainty <= 0 ? 1 : Math.max(1, Math.floor(-Math.log10(100 * uncertainty)) + 1);
  return `${fixed(100 * (1 - uncertainty), Math.min(digits, 12))} %`;
}

/** With so many digits; an exact half goes to the even neighbor, as in Python. */
function fixed(value, digits) {
  const text = value.toFixed(digits);
  const long = value.toFixed(digits + 40);
  if (!/50{39}$/.test(long)) return text;
  const below = long.slice(0, -40).replace(/\.$/, "");
  return Number(below.at(-1)) % 2 === 0 ? below : text;
}

/** A table as CSV: cells are text, numbers or null. */
function csvOf(columns, rows) {
  const lines = [columns, ...rows.map((row) => columns.map((name) => row[name] ?? null))];
  return lines.map((cells) => cells.map(cellOf).join(",") + "\n").join("");
}

function cellOf(cell) {
  if (cell === null || Number.isNaN(cell)) return "";
  const text = typeof cell === "number" ? floatText(cell) : guarded(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** A text that a spreadsheet would take for a formula gets an apostrophe in front. */
function guarded(text) {
  const formula = /^'*[=+\-@\t\r\n]/.test(text);
  return formula && !/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? `'${text}` : text;
}

/** A number as Python writes it. */
function floatText(value) {
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  const [digits, power] = value.toExponential().split("e");
  const exponent = Number(power);
  if (value !== 0 && (exponent < -4 || exponent >= 16)) {
    return `${digits}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return Number.isInteger(value) ? `${value}.0` : String(value);
}

/** The table of classified files: {name, error, found} each. */
function tableOf(items, rate, coverage, model, standing) {
  const probabilities = model.classes.map((name) => `p_${name}`);
  const answers = coverage === null ? ["answer", "why"] : ["answer", "why", "set"];
  const columns = ["image", "predicted", "confidence", "error", ...answers, ...probabilities];
  const rows = items.map(({ name, error, found }) => {
    if (error) return { image: name, error };
    const { answer, why, set } = answerOf(found, rate, coverage, model, standing);
    const row = { image: name, predicted: model.classes[found.label], confidence: found.probabilities[found.label], answer, why, set };
    probabilities.forEach((column, k) => (row[column] = found.probabilities[k]));
    return row;
  });
  return csvOf(columns, rows);
}

/** The table of files with labels: {name, error, found} each. */
function labelTableOf(items, rate, model, standing) {
  const columns = ["image", "labels", "open", "error", "why", ...model.classes.flatMap((name) => [`answer_${name}`, `p_${name}`])];
  const rows = items.map(({ name, error, found }) => {
    if (error) return { image: name, error };
    const { answer, open, answers, why } = labelsOf(found, rate, model, standing);
    const row = { image: name, labels: answer, open: open.join(", "), why };
    model.classes.forEach((each, k) => Object.assign(row, { [`answer_${each}`]: answers[k], [`p_${each}`]: found.probabilities[k] }));
    return row;
  });
  return csvOf(columns, rows);
}

/** The table of files with masks; the page writes no masks, so that column is empty. */
function maskTableOf(items, model) {
  const shares = model.classes.map((name) => `share_${name}`);
  const rows = items.map(({ name, error, found }) => {
    if (error) return { image: name, error };
    const row = { image: name, confidence: found.confidence };
    shares.forEach((column, k) => (row[column] = found.shares[k]));
    return row;
  });
  return csvOf(["image", "mask", "confidence", "error", ...shares], rows);
}

/** Files that cannot be read first, then outliers, other abstentions, and answers, the least certain first. */
function urgencyOf(item, row) {
  if (item.error) return [0, 0];
  const level = row === null ? 3 : row.outlier ? 1 : row.abstains ? 2 : 3;
  return [level, -item.found.uncertainty];
}
