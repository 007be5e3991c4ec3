// Are the images drawn like those of val? The two-sample test of petriscope.trust.two_sample, where it is explained; the sets that
// are drawn from val are others, because the random numbers are.

const FEWEST = 20; // images
const FEWEST_DRAWN = 15; // images of sets drawn from val, on average
const MOST_COMPARED = 1000; // images of a set that are compared
const DRAWS = 999; // sets drawn from val
const FALSE_ALARMS = 0.01;
const LEVEL = 0.005;
const FARTHEST = 100;
const MIX_STEPS = 100;
const UNSEEN = 1e-3;
const MEASURES = ["background color", "stain", "size of the objects", "sharpness"];

/** Random numbers in 0..1 that are the same each time (Marsaglia's xorshift, 2003). */
function randomNumbers(state = 2463534242) {
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** The first `count` of some values in random order; the values are put into another order. */
function drawnFrom(values, count, random) {
  for (let i = 0; i < count; i++) {
    const j = i + Math.floor(random() * (values.length - i));
    [values[i], values[j]] = [values[j], values[i]];
  }
  return values.slice(0, count);
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const countsOf = (labels, classes) => labels.reduce((counts, k) => (counts[k]++, counts), new Float64Array(classes));

/** What images of val are like, as the page carries it. */
function readLikeness(carried) {
  if (carried === null) return null;
  const numbers = (text) => new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const rows = (text, width) => {
    const values = numbers(text);
    return carried.target.map((_, i) => values.slice(i * width, (i + 1) * width));
  };
  const { target, predicted, group, center, project } = carried;
  return {
    target,
    predicted,
    group,
    center,
    project,
    points: rows(carried.points, carried.directions),
    appearance: rows(carried.appearance, carried.measures),
    ood: numbers(carried.ood),
    uncertainty: numbers(carried.uncertainty),
  };
}

/** What is compared of images, from the outputs of the model: {points, ood, uncertainty, predicted, appearance}, a row per image. */
function traitsOf(found, val) {
  const predicted = found.map((each) => each.plain_label);
  const appearance = found.map((each) => each.appearance);
  const clipped = (value) => Math.fround(Math.max(-FARTHEST, Math.min(FARTHEST, value)));
  if (val.center) {
    const away = (row) => val.center.map((center, k) => (Number.isNaN(row[k]) ? 0 : row[k] - center));
    const onto = (row) => val.project.map((column) => clipped(sum(column.map((weight, k) => weight * row[k]))));
    const nothing = found.map(() => 0);
    return { points: appearance.map((row) => onto(away(row))), ood: nothing, uncertainty: nothing, predicted, appearance };
  }
  const scored = val.ood.some((value) => value !== 0);
  return {
    points: found.map(({ points }) => Array.from(points, (value) => (Number.isNaN(value) ? FARTHEST : clipped(value)))),
    ood: found.map(({ ood }) => (scored ? ood : 0)),
    uncertainty: found.map((each) => each.plain_uncertainty),
    predicted,
    appearance,
  };
}

/**
 * Test whether images are drawn like those of val.
 *
 * @param val what images of val are like: traits of M images, and their `target` and `group` (null: they are independent).
 * @param fresh traits of N images, at most MOST_COMPARED.
 * @param classes K names.
 * @param of how many images they were drawn from.
 */
function compareWithVal(val, fresh, classes, of) {
  const n = fresh.predicted.length;
  const level = val.group ? FALSE_ALARMS : LEVEL;
  const result = { n, of, val: val.target.length, level, not_tested: null, p: null, withdrawn: false, differs: [], class_mix: [] };
  const untested = (why) => ({ ...result, level: LEVEL, not_tested: why });
  if (n < FEWEST) return untested(`${images(n)} ${n === 1 ? "is" : "are"} too few; ${FEWEST} are needed`);
  const random = randomNumbers();
  const cells = cellsOf(val, classes.length);
  const drawn = val.group ? drawGroups(val.group, n, random) : drawImages(val, cells, fresh, n, random);
  if (drawn === null) {
    return untested(
      `val has too few groups (${whole(Math.max(...val.group) + 1)}) to tell new groups from them with ` +
        `${percent(FALSE_ALARMS)} % false alarms`,
    );
  }
  if (!val.group && sum(drawn.map((rows) => rows.length)) / drawn.length < FEWEST_DRAWN) {
    return untested("val has too few images of the classes that these images seem to be of");
  }
  const ofNetwork = !val.center;
  const compared = {
    features: ofNetwork && val.points[0].length > 0,
    appearance: !ofNetwork,
    ood: val.ood.some((value) => value !== 0),
    uncertainty: ofNetwork,
  };
  const kept = [compared.features || compared.appearance, compared.ood, ofNetwork];
  const statistics = statisticsOf(val, fresh, drawn, cells).map((row) => row.filter((_, k) => kept[k]));
  const [p, ...each] = largest(statistics);
  const names = Object.keys(compared).filter((name) => compared[name]);
  const parts = Object.fromEntries(names.map((name, k) => [`p_${name}`, each[k]]));
  const mixed = val.group ? null : mixP(random, val.predicted, fresh.predicted, classes.length);
  const another = mixed !== null && mixed <= FALSE_ALARMS;
  return {
    ...result,
    ...parts,
    p,
    withdrawn: p <= level,
    differs: differencesOf(val, fresh, classes.length),
    p_class_mix: mixed,
    class_mix: another ? classShares(val.predicted, fresh.predicted, classes) : [],
  };
}

// --------------------------------------------------------------------------------------------------------------- drawn sets

/** The pairs of a class and a predicted class that occur in val, and the pair of each image. */
function cellsOf(val, classes) {
  const places = new Map();
  const [target, predicted] = [[], []];
  const ofImage = val.target.map((label, i) => {
    const key = label * classes + val.predicted[i];
    if (!places.has(key)) {
      places.set(key, target.length);
      target.push(label);
      predicted.push(val.predicted[i]);
    }
    return places.get(key);
  });
  return { classes, target, predicted, ofImage, all: countsOf(ofImage, target.length) };
}

/** The most likely shares of the true classes of a set, by expectation maximization. */
function mixOf({ classes, target, predicted }, amounts, counts) {
  const rows = new Float64Array(classes);
  target.forEach((label, pair) => (rows[label] += amounts[pair]));
  const present = Array.from(rows, (value) => value > 0);
  const there = sum(present.map(Number));
  const n = Math.max(sum(counts), 1);
  let shares = Float64Array.from(counts, (count, k) => (present[k] ? count / n + 0.1 / there : 0));
  const likely = new Float64Array(classes);
  for (let step = 0; step < MIX_STEPS; step++) {
    const total = sum(shares);
    const each = shares.map((share, k) => (present[k] ? share / total / (rows[k] + classes * UNSEEN) : 0));
    likely.fill(UNSEEN * sum(each));
    target.forEach((label, pair) => (likely[predicted[pair]] += each[label] * amounts[pair]));
    const ratio = counts.map((count, k) => count / Math.max(likely[k], 1e-12));
    const found = new Float64Array(classes).fill(UNSEEN * sum(ratio));
    target.forEach((label, pair) => (found[label] += amounts[pair] * ratio[predicted[pair]]));
    shares = each.map((value, k) => (value * found[k]) / n + (present[k] ? 1e-12 : 0));
  }
  const total = sum(shares);
  return shares.map((share) => share / total);
}

/** Sets of at most n images of val, rows each, in the shares of classes that the images seem to have; at most half of a class. */
function drawImages(val, cells, fresh, n, random) {
  const shares = mixOf(cells, cells.all, countsOf(fresh.predicted, cells.classes));
  const reach = [];
  shares.forEach((share, k) => reach.push(share + (reach[k - 1] ?? 0)));
  const rowsOf = Array.from({ length: cells.classes }, () => []);
  val.target.forEach((label, i) => rowsOf[label].push(i));
  return Array.from({ length: DRAWS }, () => {
    const counts = new Array(cells.classes).fill(0);
    for (let i = 0; i < n; i++) counts[placeIn(reach, random() * reach.at(-1), cells.classes - 1)]++;
    return counts.flatMap((count, k) => drawnFrom(rowsOf[k], Math.min(count, rowsOf[k].length >> 1), random));
  });
}

/** The first place whose value is larger. */
function placeIn(ascending, value, most) {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] > value) high = middle;
    else low = middle + 1;
  }
  return Math.min(low, most);
}

/** Each group of val, cut to n images; null if there are too few groups for one to stand out. */
function drawGroups(group, n, random) {
  const members = Array.from({ length: Math.max(...group) + 1 }, () => []);
  group.forEach((k, i) => members[k].push(i));
  if (members.length < 2 || members.length < Math.round(1 / FALSE_ALARMS) - 1) return null;
  return members.map((rows) => drawnFrom(rows, Math.min(rows.length, n), random));
}

// --------------------------------------------------------------------------------------------------------------- statistics

/** Statistics of features, scores and uncertainties: of the images first, then of each set drawn from val against the rest. */
function statisticsOf(val, fresh, drawn, cells) {
  const { classes } = cells;
  const [theirs, ours] = valuesOf(val, fresh);
  const width = ours[0].length;
  const every = Array.from({ length: classes }, () => new Float64Array(width));
  theirs.forEach((row, i) => row.forEach((value, d) => (every[val.target[i]][d] += value)));
  const sizes = countsOf(val.target, classes);
  const independent = !val.group;

  function statistic(rows, total, counts) {
    const amounts = Float64Array.from(cells.all);
    const [taken, count] = [new Map(), new Float64Array(classes)];
    for (const i of rows) {
      const label = val.target[i];
      amounts[cells.ofImage[i]]--;
      count[label]++;
      if (!taken.has(label)) taken.set(label, new Float64Array(width));
      const into = taken.get(label);
      theirs[i].forEach((value, d) => (into[d] += value));
    }
    const n = Math.max(sum(counts), 1);
    const apart = total.map((value) => value / n);
    let variance = 1 / n;
    mixOf(cells, amounts, counts).forEach((share, k) => {
      if (!sizes[k]) return;
      const left = Math.max(sizes[k] - count[k], 1);
      const gone = taken.get(k);
      for (let d = 0; d < width; d++) apart[d] -= (share * (every[k][d] - (gone ? gone[d] : 0))) / left;
      variance += (share * share) / left;
    });
    const squares = apart.map((value) => (value * value) / (independent ? variance : 1));
    return [sum(squares.slice(0, width - 2)), squares[width - 2], squares[width - 1]];
  }

  const totalOf = (rows, values) => rows.reduce((total, i) => total.map((value, d) => value + values[i][d]), new Float64Array(width));
  const first = statistic([], totalOf([...ours.keys()], ours), countsOf(fresh.predicted, classes));
  return [first, ...drawn.map((rows) => statistic(rows, totalOf(rows, theirs), countsOf(rows.map((i) => val.predicted[i]), classes)))];
}

/** The values that are compared of val and of the images, a row per image. */
function valuesOf(val, fresh) {
  const ranked = ["ood", "uncertainty"].map((name) => {
    const order = Float64Array.from(val[name]).sort();
    return [val, fresh].map((traits) => Array.from(traits[name], (value) => rankIn(order, value)));
  });
  return [val, fresh].map(({ points }, which) =>
    points.map((row, i) => Float64Array.of(...row, ranked[0][which][i], ranked[1][which][i])),
  );
}

/** The share of val that is smaller, counting equal values by half, minus 1/2. */
function rankIn(order, value) {
  if (Number.isNaN(value)) value = Infinity;
  const above = placeIn(order, value, order.length);
  let [low, high] = [0, above];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (order[middle] < value) low = middle + 1;
    else high = middle;
  }
  return Math.fround((low + above) / (2 * order.length) - 0.5);
}

/** The p-value of the first row, and that by each statistic. */
function largest(statistics) {
  const apart = statistics[0].map((_, k) => {
    const roots = statistics.map((row) => Math.cbrt(row[k]));
    const mean = sum(roots) / roots.length;
    const deviation = Math.sqrt(sum(roots.map((root) => (root - mean) ** 2)) / roots.length);
    return roots.map((root) => (root - mean) / Math.max(deviation, 1e-12));
  });
  const all = statistics.map((_, i) => Math.max(...apart.map((column) => column[i])));
  return [all, ...apart].map((column) => column.filter((value) => value >= column[0] - 1e-9).length / column.length);
}

/** The p-value of Pearson's chi-squared test of two mixes of predicted classes under permutation. */
function mixP(random, before, here, classes) {
  const counts = countsOf(here, classes);
  const urn = [...before, ...here];
  const expected = countsOf(urn, classes).map((count) => (count * here.length) / urn.length);
  const chi = (found) => sum(found.map((count, k) => (count - expected[k]) ** 2 / Math.max(expected[k], 1e-12)));
  const observed = chi(counts) - 1e-9;
  let extreme = 1;
  for (let i = 0; i < DRAWS; i++) extreme += chi(countsOf(drawnFrom(urn, here.length, random), classes)) >= observed ? 1 : 0;
  return extreme / (1 + DRAWS);
}

// ------------------------------------------------------------------------------------------------------- what differs most

/** The three predicted classes whose shares differ most. */
function classShares(before, here, classes) {
  const [val, now] = [before, here].map((labels) => countsOf(labels, classes.length).map((count) => count / labels.length));
  const order = [...classes.keys()].sort((a, b) => Math.abs(now[b] - val[b]) - Math.abs(now[a] - val[a]));
  return order.slice(0, 3).map((k) => ({ name: classes[k], val: val[k], here: now[k] }));
}

/** How the medians of the measures differ, the largest difference first, with val in the mix of classes of the images. */
function differencesOf(val, fresh, classes) {
  const [before, here] = [val, fresh].map(({ predicted }) => countsOf(predicted, classes));
  const shared = Array.from(before, (count, k) => count > 0 && here[k] > 0);
  const weights = val.predicted.map((k) => (shared[k] ? here[k] / before[k] : 0));
  const channels = fresh.appearance[0].length - MEASURES.length + 1;
  const columns = [[...Array(channels).keys()], [channels], [channels + 1], [channels + 2]];
  const out = [];
  MEASURES.forEach((measure, m) => {
    const pairs = columns[m].map((column) => {
      const known = [...val.target.keys()].filter((i) => Number.isFinite(val.appearance[i][column]) && weights[i] > 0);
      const ours = fresh.appearance.filter((row, i) => shared[fresh.predicted[i]] && Number.isFinite(row[column]));
      if (known.length < 2 || ours.length < FEWEST >> 1) return null;
      const theirs = known.map((i) => ({ value: val.appearance[i][column], weight: weights[i] }));
      const [low, middle, high] = quantilesOf(theirs, [0.25, 0.5, 0.75]);
      const median = medianOf(ours.map((row) => row[column]));
      const spread = Math.max((high - low) / 1.349, 1e-3 * Math.abs(middle), 1e-6);
      return { val: middle, here: median, deviations: (median - middle) / spread };
    });
    if (pairs.includes(null)) return;
    const farthest = pairs.reduce((most, each) => (Math.abs(each.deviations) > Math.abs(most.deviations) ? each : most));
    out.push({ measure, val: pairs.map((each) => each.val), here: pairs.map((each) => each.here), deviations: farthest.deviations });
  });
  return out.sort((a, b) => Math.abs(b.deviations) - Math.abs(a.deviations));
}

/** Quantiles of values that count with weights. */
function quantilesOf(values, shares) {
  values.sort((a, b) => a.value - b.value);
  let total = 0;
  const reach = values.map(({ weight }) => (total += weight));
  return shares.map((share) => values[Math.min(reach.findIndex((each) => each >= share * total), values.length - 1)].value);
}

function medianOf(values) {
  const order = Float64Array.from(values).sort();
  const half = order.length >> 1;
  return order.length % 2 ? order[half] : (order[half - 1] + order[half]) / 2;
}

// ----------------------------------------------------------------------------------------------------------- in sentences

const NOTHING_ANSWERED = "Nothing is answered";
const ANSWERED_ANYWAY =
  "Answers are given all the same, as requested; nothing is claimed about how many of them are wrong, or how often prediction sets " +
  "contain the true class";

/** What a test means for guarantees, the most important sentence first; empty if there is nothing to say. */
function verdictOf(test, then, remedy) {
  if (test.not_tested !== null) {
    return [
      "note: whether these images are like those the guarantees were fitted on was not tested: " +
        `${test.not_tested}. Each image is judged by its out-of-distribution score alone`,
    ];
  }
  if (test.withdrawn) {
    return [
      `GUARANTEES WITHDRAWN: these images are not like those the guarantees were fitted on: ${differencesInWords(test)}. ${then}`,
      `compared: ${comparedInWords(test)}`,
      `to close the gap with labeled images from there: ${remedy}`,
    ];
  }
  if (!test.class_mix.length) return [];
  const mix = test.class_mix.map(({ name, val, here }) => `${fixed(100 * here, 0)} % ${name} (${fixed(100 * val, 0)} % in val)`);
  return [
    `note: another mix of classes than val: ${mix.join(", ")}. This alone withdraws nothing; an error rate is guaranteed for the mix ` +
      "in val, and --prior says what another one is",
  ];
}

function differencesInWords(test) {
  const named = test.differs.filter(({ deviations }) => Math.abs(deviations) >= 0.5).slice(0, 3);
  if (named.length) return named.map(differenceInWords).join("; ");
  const seen = test.differs.map(({ measure }) => measure).join(", ");
  const significant = Object.entries(partsOf(test)).filter(([, p]) => p <= test.level);
  const what = seen ? `in nothing that is measured (${seen}) by much, but ` : "";
  return `they differ ${what}in ${significant.map(([name]) => name).join(" and ") || "several small ways"}`;
}

function differenceInWords({ measure, val, here, deviations }) {
  const reach = Math.abs(deviations);
  const apart = reach < 20 ? fixed(reach, 1) : "over 20";
  const more = here.length > 1 ? "" : deviations > 0 ? " more" : " less"; // a color is neither
  return `${measure} ${measured(here)} instead of ${measured(val)} (${apart} standard deviations${more})`;
}

const measured = (values) =>
  values.length > 1 || Math.abs(values[0]) >= 10 ? values.map((value) => fixed(value, 0)).join("/") : fixed(values[0], 2);

function comparedInWords(test) {
  const drawn = test.n === test.of ? images(test.n) : `${whole(test.n)} of ${images(test.of)}, drawn at random,`;
  const names = Object.keys(partsOf(test));
  const list = names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0];
  return (
    `${drawn} with ${whole(test.val)} of val in ${list}; p = ${fixed(test.p, 4)}, and p up to ` +
    `${Number(test.level.toPrecision(6))} withdraws guarantees`
  );
}

/** The p-value by what was compared. */
function partsOf(test) {
  const names = {
    p_features: "features", p_appearance: "appearance", p_ood: "out-of-distribution scores", p_uncertainty: "uncertainty",
  };
  return Object.fromEntries(Object.entries(names).flatMap(([key, name]) => (test[key] == null ? [] : [[name, test[key]]])));
}
