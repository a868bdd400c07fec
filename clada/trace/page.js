
// The page of a trace: shades the tokens of texts by one of their numbers, and draws the same as a figure. Text of the
// data is put in as text nodes alone, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");

// ---- colours ---------------------------------------------------------------------------------------------------

// The shades lie on a straight line in OKLab (Ottosson 2020), where equal steps look equally large. Lightness changes
// along it from one end to the other, so that nothing rests on telling hues apart. [L, a, b] of both ends.
const ENDS = {
  light: [[0.975, -0.003, -0.01], [0.67, -0.035, -0.145]],
  dark: [[0.27, -0.002, -0.018], [0.54, -0.015, -0.165]],
};
const YES = 0.75; // the shade of a yes; a no has the lightest

function rgb([L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  const bytes = linear.map((x) => {
    const y = Math.min(1, Math.max(0, x));
    return Math.round(255 * (y <= 0.0031308 ? 12.92 * y : 1.055 * y ** (1 / 2.4) - 0.055));
  });
  return "#" + bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const shade = (t, scheme) => rgb(ENDS[scheme][0].map((low, i) => low + t * (ENDS[scheme][1][i] - low)));
const scheme = () => (dark.matches && !printing ? "dark" : "light");
let printing = false;

// ---- numbers ---------------------------------------------------------------------------------------------------

const isMissing = (value) => value === null || value === undefined;

function said(value, unit) {
  if (isMissing(value)) return "missing";
  if (unit === "yes or no") return value ? "yes" : "no";
  if (unit === "%") return `${(100 * value).toFixed(1)}\u00a0%`;
  const number = Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) >= 100 ? 1 : 2);
  return [number, unit].filter(Boolean).join("\u00a0");
}

const named = (each) => (each.unit && each.unit !== "yes or no" ? `${each.label} (${each.unit})` : each.label);
const quantityOf = (text, name) => text.quantities.find((each) => each.name === name);
const names = [...new Set(data.texts.flatMap((text) => text.quantities.map((each) => each.name)))];
const firstOf = (name) => data.texts.map((text) => quantityOf(text, name)).find(Boolean);

// From where to where the shades go: from zero, or from near the smallest value where all are far from zero, to a round
// number that one value in twenty exceeds. A few high values would otherwise leave no difference between the others.
function rangeOf(name, texts) {
  const known = texts.flatMap((text) => quantityOf(text, name)?.values ?? []).filter((value) => !isMissing(value));
  const values = known.sort((one, other) => one - other);
  if (!values.length || firstOf(name).unit === "yes or no") return { low: 0, high: 1, least: 0, most: 1 };
  const quantile = (q) => values[Math.round(q * (values.length - 1))];
  const least = values[0], most = values[values.length - 1];
  let low = quantile(0.05), high = quantile(0.95);
  if (least >= 0 && low < 0.5 * high) low = 0;
  if (high <= low) high = low > 0 ? ((low = 0), most) : low + 1;
  const step = 10 ** Math.floor(Math.log10(high - low)) / 2;
  low = Math.floor(low / step + 1e-9) * step;
  high = Math.ceil(high / step - 1e-9) * step;
  return { low, high, least, most };
}

const placeOf = (value, range) => Math.min(1, Math.max(0, (value - range.low) / (range.high - range.low)));

// ---- texts -----------------------------------------------------------------------------------------------------

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

// A line feed is shown, and breaks the line; a token without any text is shown as a box.
function readable(token) {
  if (token === "") return [make("span", { class: "mark" }, "▫")];
  return token.split("\n").flatMap((part, i) => (i ? [make("span", { class: "mark" }, "↵"), "\n", part] : [part]));
}

const spoken = (token) => (token.trim() === "" ? (token === "" ? "no text" : "white space") : token.trim());

function labelOf(text, i) {
  const numbers = text.quantities.map((each) => `${each.label} ${said(each.values[i], each.unit)}`);
  return [spoken(text.tokens[i]), ...numbers].join(", ");
}

const LEADING = /^ *(?=\S)|^/;

// A text as an element; its tokens can be found by their number.
function paragraph(text) {
  const list = make("span", { role: "listbox", "aria-label": `The ${text.kind}s of ${text.title}`, "aria-orientation": "horizontal" });
  const tokens = text.tokens.map((token, i) => {
    const attributes = { class: "token", role: "option", tabindex: -1, "aria-selected": "false", "aria-label": labelOf(text, i) };
    if (token === "") attributes.title = "no text: a part of a character, or a special token";
    return make("span", attributes, ...readable(token.replace(LEADING, "")));
  });
  // A space that begins a token stands before its box, where a line can end without a trace of the next one's colour.
  tokens.forEach((token, i) => list.append(text.gaps[i] + text.tokens[i].match(LEADING)[0], token));
  const before = make("span", { class: "before" }, text.before);
  return { root: make("p", { class: "text", dir: "auto" }, before, list), tokens };
}

function paint(tokens, quantity, range, of) {
  tokens.forEach((token, i) => {
    const value = quantity?.values[i];
    token.classList.toggle("missing", isMissing(value));
    token.style.backgroundColor = isMissing(value) ? "" : shadeOf(value, quantity, range, of);
  });
}

const shadeOf = (value, quantity, range, of) =>
  shade(quantity.unit === "yes or no" ? (value ? YES : 0) : placeOf(value, range), of);

let views = []; // of the texts that are shown: {text, root, tokens}
let current = null; // the token that is looked at: {view, i}
let kept = null; // the one that stays beside it

const chosen = () => [at("first").value, at("second").value].filter((value) => value !== "").map(Number);

function show() {
  views = chosen().map((which) => ({ text: data.texts[which], ...paragraph(data.texts[which]) }));
  at("texts").classList.toggle("two", views.length === 2);
  at("texts").replaceChildren(
    ...views.map((view) => {
      view.about = make("p", { class: "about" });
      return make("section", {}, make("h2", { dir: "auto" }, view.text.title), view.about, view.root);
    }),
  );
  for (const view of views) view.tokens[0].tabIndex = 0;
  current = { view: views[0], i: 0 };
  kept = null;
  repaint();
}

function repaint() {
  const name = at("quantity").value;
  const range = rangeOf(name, views.map((view) => view.text));
  for (const view of views) {
    const quantity = quantityOf(view.text, name);
    paint(view.tokens, quantity, range, scheme());
    view.about.textContent = summary(view.text, quantity);
  }
  legend(name, range);
  details();
}

function summary(text, quantity) {
  const known = (quantity?.values ?? []).filter((value) => !isMissing(value));
  const count = `${text.tokens.length.toLocaleString("en")} ${text.kind}s`;
  if (!known.length) return `${count}; no ${firstOf(at("quantity").value).label}`;
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  const about = quantity.unit === "yes or no"
    ? `${quantity.label} ${(100 * mean).toFixed(1)} %`
    : `mean ${quantity.label} ${said(mean, quantity.unit)}`;
  return `${count}; ${about}${known.length < text.tokens.length ? `, ${text.tokens.length - known.length} missing` : ""}`;
}

// The marks of a legend: shades with what they stand for.
function legendOf(name, range, of) {
  const quantity = firstOf(name);
  const missing = views.some((view) => quantityOf(view.text, name)?.values.some(isMissing) ?? true);
  if (quantity.unit === "yes or no") {
    return { title: quantity.label, swatches: [["no", shade(0, of)], ["yes", shade(YES, of)]], missing };
  }
  const bound = (value) => String(+((quantity.unit === "%" ? 100 : 1) * value).toPrecision(4));
  const ends = [range.low, (range.low + range.high) / 2, range.high].map(bound);
  if (range.least < range.low) ends[0] += " or less";
  if (range.most > range.high) ends[2] += " or more";
  const stops = Array.from({ length: 11 }, (_, i) => shade(i / 10, of));
  return { title: named(quantity), stops, ends, missing };
}

function legend(name, range) {
  const { title, swatches, stops, ends, missing } = legendOf(name, range, scheme());
  const swatch = (label, colour) => {
    const box = make("i", { class: colour ? "" : "missing" });
    if (colour) box.style.backgroundColor = colour;
    return make("span", { class: "swatch" }, box, label);
  };
  const parts = [];
  if (stops) {
    const bar = make("i");
    bar.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
    parts.push(make("div", { class: "ramp" }, make("span", {}, title), bar, make("div", {}, ...ends.map((end) => make("span", {}, end)))));
  } else {
    parts.push(make("span", {}, title), ...swatches.map(([label, colour]) => swatch(label, colour)));
  }
  if (missing) parts.push(swatch("missing", null));
  at("legend").replaceChildren(...parts);
}

// ---- the chosen token ------------------------------------------------------------------------------------------

const alike = (one, other) =>
  one.tokens.length === other.tokens.length && one.tokens.every((token, i) => token === other.tokens[i]);

// The tokens whose numbers are told: the one that is looked at, the same one of the other text, the one that was kept.
function told() {
  const columns = [{ ...current, note: "" }];
  const other = views.find((view) => view !== current.view);
  if (other && alike(other.text, current.view.text)) columns.push({ view: other, i: current.i, note: "" });
  for (const column of columns) if (columns.length > 1) column.note = column.view.text.title;
  if (kept && !columns.some((column) => column.view === kept.view && column.i === kept.i)) {
    columns.push({ ...kept, note: `${kept.view.text.kind} ${kept.i + 1}, kept` });
  }
  return columns;
}

function details() {
  const columns = told();
  for (const token of document.querySelectorAll(".current, .other")) token.classList.remove("current", "other");
  columns.forEach(({ view, i }, k) => view.tokens[i].classList.add(k ? "other" : "current"));
  const heads = columns.map(({ view, i, note }) => {
    return make("th", { scope: "col" }, make("bdi", {}, spoken(view.text.tokens[i])), make("small", {}, note));
  });
  const rows = names
    .filter((name) => columns.some(({ view }) => quantityOf(view.text, name)))
    .map((name) => {
      const values = columns.map(({ view, i }) => {
        const quantity = quantityOf(view.text, name);
        return make("td", {}, quantity ? said(quantity.values[i], quantity.unit) : "missing");
      });
      const attributes = name === at("quantity").value ? { class: "shown" } : {};
      return make("tr", { ...attributes, "data-name": name }, make("th", { scope: "row" }, firstOf(name).label), ...values);
    });
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("td", {}, `${current.view.text.kind} ${current.i + 1}`), ...heads)), make("tbody", {}, ...rows));
  // Of every layer, what is shaded, or else what there is first.
  const { label } = firstOf(at("quantity").value);
  const strips = columns.flatMap((column) => {
    const { layers } = column.view.text;
    return layers.length ? [strip(layers.find((each) => each.label === label) ?? layers[0], column, columns.length > 1)] : [];
  });
  at("details").replaceChildren(make("div", { class: "strips" }, ...strips), table);
}

// What a full bar of a strip stands for.
const highest = new Map();
function mostOf(layers) {
  if (layers.unit === "%") return 1;
  if (!highest.has(layers)) highest.set(layers, layers.values.flat().reduce((high, value) => Math.max(high, value ?? 0), 1e-9));
  return highest.get(layers);
}

// What every layer has of a token: a bar for each.
function strip(layers, { view, i, note }, several) {
  const values = layers.values[i];
  const most = mostOf(layers);
  const bars = values.map((value, layer) => {
    const bar = make("i", { title: `layer ${layer}: ${said(value, layers.unit)}` });
    if (isMissing(value)) bar.className = "missing";
    else bar.style.height = `${(100 * value) / most}%`;
    return bar;
  });
  const read = values.map((value, layer) => `layer ${layer} ${said(value, layers.unit)}`).join(", ");
  const top = layers.unit === "%" ? "100\u00a0%" : said(most, layers.unit);
  const about = [layers.label, `0 to ${top}`, several ? note : ""];
  return make(
    "figure", { class: "strip" },
    make("figcaption", {}, about.filter(Boolean).join(", ")),
    make("div", { class: "bars", role: "img", "aria-label": `${layers.label} by layer: ${read}` }, ...bars),
    make("div", { class: "ends" }, make("span", {}, "layer 0"), make("span", {}, `layer ${values.length - 1}`)),
  );
}

function look(view, i) {
  current = { view, i };
  details();
}

function focusOn(view, i) {
  for (const token of view.root.querySelectorAll('[tabindex="0"]')) token.tabIndex = -1;
  view.tokens[i].tabIndex = 0;
  view.tokens[i].focus();
}

function keep(view, i) {
  if (kept) kept.view.tokens[kept.i].setAttribute("aria-selected", "false");
  kept = kept && kept.view === view && kept.i === i ? null : { view, i };
  if (kept) view.tokens[i].setAttribute("aria-selected", "true");
  details();
}

// The token of the next or the last line that is nearest to one.
function lineFrom(view, i, step) {
  const box = (k) => view.tokens[k].getClientRects()[0] ?? view.tokens[k].getBoundingClientRect();
  const from = box(i), middle = (from.left + from.right) / 2, away = (k) => Math.abs((box(k).left + box(k).right) / 2 - middle);
  let k = i + step;
  while (view.tokens[k] && Math.abs(box(k).top - from.top) < from.height / 2) k += step;
  if (!view.tokens[k]) return i;
  let best = k;
  for (const top = box(k).top; view.tokens[k] && Math.abs(box(k).top - top) < from.height / 2; k += step) {
    if (away(k) < away(best)) best = k;
  }
  return best;
}

function found(event) {
  const token = event.target.closest?.(".token");
  const view = token && views.find((each) => each.root.contains(token));
  return view ? { view, i: view.tokens.indexOf(token) } : null;
}

at("texts").addEventListener("keydown", (event) => {
  const place = found(event);
  if (!place || event.ctrlKey || event.metaKey || event.altKey) return;
  const { view, i } = place, last = view.tokens.length - 1;
  const ahead = getComputedStyle(view.root).direction === "rtl" ? -1 : 1;
  const to = {
    ArrowRight: () => i + ahead, ArrowLeft: () => i - ahead, Home: () => 0, End: () => last,
    ArrowDown: () => lineFrom(view, i, 1), ArrowUp: () => lineFrom(view, i, -1),
  }[event.key];
  if (to) focusOn(view, Math.min(last, Math.max(0, to())));
  else if (event.key === "Enter" || event.key === " ") keep(view, i);
  else if (event.key === "Escape" && kept) keep(kept.view, kept.i);
  else return;
  event.preventDefault();
});
at("texts").addEventListener("focusin", (event) => {
  const place = found(event);
  if (place) look(place.view, place.i);
});
at("texts").addEventListener("pointerover", (event) => {
  const place = found(event);
  if (place) look(place.view, place.i);
});
at("texts").addEventListener("click", (event) => {
  const place = found(event);
  if (!place) return;
  focusOn(place.view, place.i);
  keep(place.view, place.i);
});

// ---- saving ----------------------------------------------------------------------------------------------------

function save(content, type, ending) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: `trace.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// A row per token of the shown texts, with the columns of the data.
function table() {
  const texts = views.map((view) => view.text);
  const columns = names.filter((name) => texts.some((text) => quantityOf(text, name)));
  const layers = [...new Set(texts.flatMap((text) => text.layers.map((each) => each.name)))].map((name) => {
    const count = Math.max(...texts.map((text) => text.layers.find((each) => each.name === name)?.values[0].length ?? 0));
    return { name, count };
  });
  const header = ["text", "token_index", "token", ...columns];
  for (const { name, count } of layers) for (let k = 0; k < count; k++) header.push(`${name}_${String(k).padStart(2, "0")}`);
  const rows = texts.flatMap((text) =>
    text.tokens.map((token, i) => {
      const row = [text.title, i + 1, token, ...columns.map((name) => quantityOf(text, name)?.values[i])];
      for (const { name, count } of layers) {
        const values = text.layers.find((each) => each.name === name)?.values[i] ?? [];
        for (let k = 0; k < count; k++) row.push(values[k]);
      }
      return row;
    }),
  );
  // Strings stand in quotation marks, numbers do not: so the word NA is not what is missing.
  const cell = (value) => (typeof value === "string" ? `"${value.replaceAll('"', '""')}"` : isMissing(value) ? "" : value);
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

const WIDE = 760, EDGE = 20, SMALL = 13; // pixels of a figure
const INK = "#1b1b1f", SOFT = "#5b5b66", LINE = "#d9d9e0";

// Where the browser has put the characters of an element, line by line: boxes of the tokens, and the text of the lines,
// that of the prompt apart from the rest. Whole lines are drawn at once, so that letters join and scripts mix as they do
// on the page.
function linesOf(root, tokens) {
  const lines = [], range = document.createRange(), base = root.getBoundingClientRect();
  const lineAt = (box) => {
    let line = lines.find((each) => Math.abs(each.top - box.top) < box.height / 2);
    if (!line) lines.push((line = { top: box.top, bottom: box.bottom, parts: [], boxes: [] }));
    return line;
  };
  const widen = (part, { left, right }) => {
    part.left = Math.min(part.left, left);
    part.right = Math.max(part.right, right);
  };
  const placed = (box) => ({ top: box.top - base.top, bottom: box.bottom - base.top, left: box.left - base.left, right: box.right - base.left, height: box.height });
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const token = tokens.get(node.parentElement.closest(".token")), soft = node.parentElement.className === "before";
    range.selectNodeContents(node);
    const whole = range.getClientRects().length < 2 && !node.data.includes("\n");
    let k = 0;
    for (const part of whole ? [node.data] : node.data) {
      range.setStart(node, k);
      range.setEnd(node, (k += part.length));
      const box = range.getClientRects()[0];
      if (!box || part === "\n" || (!whole && part === " " && box.width === 0)) continue;
      const place = placed(box), line = lineAt(place);
      if (line.parts.at(-1)?.soft !== soft) line.parts.push({ soft, text: "", left: place.left, right: place.right });
      line.parts.at(-1).text += part;
      widen(line.parts.at(-1), place);
      if (token === undefined) continue;
      if (line.boxes.at(-1)?.token !== token) line.boxes.push({ token, left: place.left, right: place.right });
      widen(line.boxes.at(-1), place);
    }
  }
  return lines;
}

// The shown texts with their legend as marks: boxes {x, y, w, h, fill, stroke, hatch} and lines of text {x, y, text, ...}.
function figure() {
  const name = at("quantity").value, range = rangeOf(name, views.map((view) => view.text));
  const { title, swatches, stops, ends, missing } = legendOf(name, range, "light");
  const marks = [];
  let y = EDGE;
  const write = (text, x, size, more = {}) => marks.push({ text, x, y, size, fill: INK, ...more });
  const box = (x, w, fill, h = 12) => marks.push({ x, y, w, h, fill, stroke: LINE, hatch: fill === null });
  write(title, EDGE, SMALL, { y: y + 11 });
  y += 18;
  let x = EDGE;
  if (stops) {
    stops.forEach((colour, i) => marks.push({ x: EDGE + i * 24, y, w: 24.5, h: 12, fill: colour }));
    const anchors = ["start", "middle", "end"];
    ends.forEach((end, i) => write(end, EDGE + i * 132, SMALL, { y: y + 27, anchor: anchors[i] }));
    x += 300;
  }
  for (const [label, colour] of [...(swatches ?? []), ...(missing ? [["missing", null]] : [])]) {
    box(x, 24, colour);
    write(label, x + 30, SMALL, { y: y + 11 });
    x += 100;
  }
  y += stops ? 40 : 24;
  const font = getComputedStyle(document.documentElement).fontFamily;
  const pen = document.createElement("canvas").getContext("2d");
  for (const view of views) {
    y += 14;
    write(view.text.title, EDGE, SMALL, { y: y + 11, bold: true });
    y += 22;
    const { root, tokens } = paragraph(view.text);
    const stage = make("div", { class: "stage", "aria-hidden": "true" }, root);
    stage.style.width = `${WIDE - 2 * EDGE}px`;
    document.body.append(stage);
    const dir = getComputedStyle(root).direction;
    const lines = linesOf(root, new Map(tokens.map((token, i) => [token, i])));
    const height = root.getBoundingClientRect().height;
    stage.remove();
    pen.font = `17px ${font}`;
    const ascent = pen.measureText("x").fontBoundingBoxAscent, quantity = quantityOf(view.text, name);
    for (const line of lines) {
      for (const { token, left, right } of line.boxes) {
        const value = quantity?.values[token];
        const fill = isMissing(value) ? null : shadeOf(value, quantity, range, "light");
        const h = line.bottom - line.top + 4;
        marks.push({ x: EDGE + left, y: y + line.top - 2, w: right - left, h, fill, stroke: "#ffffff", hatch: fill === null });
      }
      for (const { text, soft, left, right } of line.parts) {
        const more = { y: y + line.top + ascent, dir, fill: soft ? SOFT : INK, width: right - left };
        write(text, EDGE + (dir === "rtl" ? right : left), 17, more);
      }
    }
    y += height;
  }
  return { marks, width: WIDE, height: Math.ceil(y + EDGE), font };
}

function drawn() {
  const { marks, width, height, font } = figure(), scale = 2;
  const canvas = make("canvas", { width: width * scale, height: height * scale });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, width, height);
  for (const mark of marks) {
    pen.fillStyle = mark.fill ?? "#ffffff";
    if (mark.text === undefined) {
      pen.fillRect(mark.x, mark.y, mark.w, mark.h);
      if (mark.hatch) hatch(pen, mark);
      if (mark.stroke) { pen.strokeStyle = mark.stroke; pen.lineWidth = 1; pen.strokeRect(mark.x, mark.y, mark.w, mark.h); }
    } else {
      pen.font = `${mark.bold ? "600 " : ""}${mark.size}px ${font}`;
      pen.direction = mark.dir ?? "ltr";
      pen.textAlign = { middle: "center" }[mark.anchor] ?? mark.anchor ?? "start";
      pen.fillText(mark.text, mark.x, mark.y);
    }
  }
  return canvas;
}

function hatch(pen, { x, y, w, h }) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, w, h);
  pen.clip();
  pen.beginPath();
  for (let d = -h; d < w; d += 6) { pen.moveTo(x + d, y + h); pen.lineTo(x + d + h, y); }
  pen.strokeStyle = "#cfcfd6";
  pen.lineWidth = 2;
  pen.stroke();
  pen.restore();
}

function vector() {
  const { marks, width, height, font } = figure();
  const space = "http://www.w3.org/2000/svg";
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, typeof value === "number" ? +value.toFixed(2) : value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": font });
  const pattern = svg("pattern", { id: "missing", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(svg("rect", { width: 2, height: 6, fill: "#cfcfd6" }));
  root.append(pattern, svg("rect", { width, height, fill: "#ffffff" }));
  for (const mark of marks) {
    if (mark.text === undefined) {
      const fill = mark.hatch ? "url(#missing)" : mark.fill;
      root.append(svg("rect", { x: mark.x, y: mark.y, width: mark.w, height: mark.h, fill, stroke: mark.stroke ?? "none" }));
    } else {
      const attributes = { x: mark.x, y: mark.y, "font-size": mark.size, fill: mark.fill, "text-anchor": mark.anchor ?? "start", "xml:space": "preserve" };
      if (mark.bold) attributes["font-weight"] = 600;
      if (mark.dir === "rtl") attributes.direction = "rtl";
      if (mark.width) Object.assign(attributes, { textLength: mark.width, lengthAdjust: "spacingAndGlyphs" });
      root.append(svg("text", attributes, mark.text));
    }
  }
  return new XMLSerializer().serializeToString(root);
}

at("csv").addEventListener("click", () => save(table(), "text/csv;charset=utf-8", "csv"));
at("svg").addEventListener("click", () => save(vector(), "image/svg+xml", "svg"));
at("png").addEventListener("click", () => drawn().toBlob((blob) => save(blob, "image/png", "png")));

// ---- begin -----------------------------------------------------------------------------------------------------

for (const name of names) at("quantity").append(make("option", { value: name }, named(firstOf(name))));
data.texts.forEach((text, i) => {
  at("first").append(make("option", { value: i }, text.title));
  at("second").append(make("option", { value: i }, text.title));
});
at("second").prepend(make("option", { value: "" }, "none"));
document.querySelector("h1").textContent = `What each ${data.texts[0].kind} costs`;
at("first").value = data.shown[0];
at("second").value = data.shown[1] ?? "";
for (const label of document.querySelectorAll(".of-texts")) label.hidden = data.texts.length < 2;
at("quantity").addEventListener("change", repaint);
for (const id of ["first", "second"]) at(id).addEventListener("change", show);
dark.addEventListener("change", repaint);
for (const [name, value] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(name, () => ((printing = value), repaint()));
}
show();
