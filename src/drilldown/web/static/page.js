// The page to draw on: strokes become a picture, the picture goes to the server, and its answer is shown.
"use strict";

const SIDE = 280; // pixels of the picture that is sent
const PEN = 0.07; // width of a stroke, in sides of the paper
const STEP = 0.05; // that an arrow key moves the pen, in sides
const GAP = 60; // milliseconds between two pictures that are sent while one draws
const QUIET = 700; // milliseconds without a new answer, after which it is read aloud
const PATIENCE = 60_000; // milliseconds to wait for an answer
const LOOK = 4_000; // milliseconds between two looks at the server while nothing is drawn
const RETRY = 1_000; // milliseconds between two tries while it does not answer
const SILENCE = "The server does not answer. Your drawing stays, and the page keeps trying.";

const find = (id) => document.getElementById(id);
const [sheet, paper, hint, seen, problem] = ["sheet", "paper", "hint", "seen", "problem"].map(find);

let strokes = []; // each a list of points [x, y] from 0 to 1
let photo = null; // {name, body, image}: instead of strokes
let pen = { at: [0.5, 0.5], down: false, shown: false }; // that the keys move
let pointer = null; // id of the pointer that draws
let changes = 0; // of the picture
let sent = 0; // the change that was sent last
let sending = false;
let broken = false; // the server does not answer, or has no model that it trusts
let model = null; // that answered last
let most = Infinity; // bytes of a photo
let names = Array.from({ length: 10 }, (_, digit) => String(digit));

// Pictures

function trace(context, side) {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = PEN * side;
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(points[0][0] * side, points[0][1] * side);
    for (let i = 1; i < points.length - 1; i++) { // a smooth curve, through the middle between two points
      const [[x, y], [nextX, nextY]] = [points[i], points[i + 1]];
      context.quadraticCurveTo(x * side, y * side, ((x + nextX) / 2) * side, ((y + nextY) / 2) * side);
    }
    const [x, y] = points[points.length - 1];
    context.lineTo(x * side, y * side + (points.length === 1 ? 0.01 : 0)); // a point is a dot
    context.stroke();
  }
}

function render() {
  const side = (paper.width = paper.height = Math.round(paper.clientWidth * devicePixelRatio));
  const colors = getComputedStyle(paper);
  const context = paper.getContext("2d");
  if (photo?.image) {
    const { width, height } = photo.image;
    const scale = Math.min(side / width, side / height);
    context.drawImage(photo.image, (side - width * scale) / 2, (side - height * scale) / 2, width * scale, height * scale);
  }
  context.strokeStyle = colors.getPropertyValue("--ink");
  trace(context, side);
  if (pen.shown) {
    context.beginPath();
    context.arc(pen.at[0] * side, pen.at[1] * side, (PEN * side) / 2, 0, 2 * Math.PI);
    context.lineWidth = 2 * devicePixelRatio;
    context.strokeStyle = context.fillStyle = colors.getPropertyValue("--accent");
    context.stroke();
    if (pen.down) context.fill();
  }
  hint.hidden = !isBlank() && !(photo && !photo.image);
  hint.innerText = photo ? photo.name : "Draw a digit,\nor drop a photo of one";
  find("undo").disabled = !strokes.length;
  find("clear").disabled = isBlank();
}

const isBlank = () => !strokes.length && !photo;

function drawn() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // dark on light, whatever the page's colors are
  context.fillRect(0, 0, SIDE, SIDE);
  trace(context, SIDE);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function changed() {
  changes++;
  render();
  send();
}

function lift() { // whatever draws now
  pointer = null;
  pen.down = false;
}

function clear() {
  lift();
  strokes = [];
  photo = null;
  changed();
}

function undo() {
  if (!strokes.length) return;
  lift();
  strokes.pop();
  changed();
}

async function takePhoto(file) {
  if (file.size > most) {
    complain(`${file.name} has ${megabytes(file.size)}: at most ${megabytes(most)} are read.`);
    return;
  }
  try {
    const body = await file.arrayBuffer();
    const image = await createImageBitmap(file).catch(() => null); // the server reads more formats, as TIFF
    lift();
    strokes = [];
    photo = { name: file.name, body, image };
    changed();
  } catch {
    complain(`${file.name} cannot be read.`); // a folder
  }
}

// The server

async function ask(method, body) {
  const headers = body ? { "Content-Type": "application/octet-stream" } : {};
  const answer = await fetch("read", { method, headers, body, signal: AbortSignal.timeout(PATIENCE) });
  const found = await answer.json();
  return answer.ok ? { ...found, ...found.answers?.[0] } : { error: found.error, again: answer.status === 503 };
}

async function send() {
  if (sending) return;
  sending = true;
  while (sent !== changes) {
    const change = changes;
    let found = null;
    try {
      if (!isBlank()) found = await ask("POST", photo ? photo.body : await drawn());
    } catch {
      found = { error: SILENCE, again: true };
    }
    // While one draws, the answer to an earlier stroke is better than none.
    if (change === changes || (found && !isBlank())) show(found);
    if (found?.again) await pause(RETRY);
    else sent = change;
    await pause(GAP);
  }
  sending = false;
}

async function look() {
  if (!sending && !document.hidden) {
    const before = model;
    try {
      const found = await ask("GET");
      if (found.error) show(found);
      else introduce(found);
      if (!found.error && (broken || (before && before !== model))) { // what is shown may be another version's
        complain("");
        sent = -1;
        send();
      }
    } catch {
      complain(SILENCE, true);
    }
  }
  setTimeout(look, broken ? RETRY : LOOK);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
function percent(probability) {
  const shown = (100 * probability).toFixed(1);
  return shown === "100.0" ? "> 99.9 %" : shown === "0.0" ? "< 0.1 %" : `${shown} %`;
}


// Answers

function introduce(found) {
  const now = `${found.model.name} version ${found.model.version}`;
  if (model && now !== model) say(`Now ${now} answers.`);
  model = now;
  most = found.max_bytes ?? most;
  find("model").textContent = `${now} answers`;
  if (found.names && found.names.join() !== names.join()) {
    names = found.names;
    layBars();
  }
}

function complain(text, again = false) {
  broken = again;
  if (problem.textContent !== text) problem.textContent = text; // an alert is read aloud when it changes
  problem.hidden = !text;
}

function show(found) {
  if (!found || found.error) {
    complain(found?.error ?? "", found?.again);
    answer("empty", "?", found ? "No answer" : "Nothing is drawn yet", null, null);
    return;
  }
  complain("");
  introduce(found);
  if (found.refusal) {
    const text = found.refusal[0].toUpperCase() + found.refusal.slice(1);
    answer("refused", "–", text, found.probabilities, found.framed);
  } else if (found.unsure) {
    const second = `${found.second_name} (${percent(found.second_probability)})`;
    const words = `Unsure: ${found.name} (${percent(found.probability)}), or perhaps ${second}`;
    answer("unsure", found.name, words, found.probabilities, found.framed);
  } else {
    const words = `This is ${found.name} (${percent(found.probability)})`;
    answer("", found.name, words, found.probabilities, found.framed);
  }
}

function answer(kind, name, words, probabilities, framed) {
  find("answer").className = kind;
  find("digit").textContent = name;
  find("digit").classList.toggle("long", name.length > 1);
  if (find("words").textContent !== words) {
    find("words").textContent = words;
    say(words);
  }
  const first = probabilities && !["refused", "empty"].includes(kind) ? probabilities.indexOf(Math.max(...probabilities)) : -1;
  [...find("bars").children].forEach((row, digit) => {
    row.classList.toggle("first", digit === first);
    row.querySelector(".bar").style.setProperty("--share", probabilities?.[digit] ?? 0);
    row.querySelector(".value").textContent = probabilities ? percent(probabilities[digit]) : "–";
  });
  showSeen(framed);
}

function showSeen(framed) {
  const pixels = new ImageData(28, 28);
  pixels.data.fill(255);
  const values = framed ? Uint8Array.from(atob(framed), (character) => character.charCodeAt(0)) : new Uint8Array(784);
  values.forEach((value, place) => pixels.data.fill(value, 4 * place, 4 * place + 3));
  seen.getContext("2d").putImageData(pixels, 0, 0);
  seen.setAttribute("aria-label", framed ? "What the model saw, 28 by 28 pixels" : "What the model saw: nothing yet");
}

function layBars() {
  const span = (className, textContent) => Object.assign(document.createElement("span"), { className, textContent });
  const areDigits = names.every((name) => name.length === 1);
  find("bars").className = areDigits ? "digits" : "";
  find("title").textContent = `Probability of each ${areDigits ? "digit" : "class"}`;
  find("bars").replaceChildren(...names.map((name) => {
    const row = document.createElement("li");
    const track = span("track", "");
    track.append(span("bar", ""));
    row.append(span("name", name), track, span("value", "–"));
    return row;
  }));
}

let spoken = 0;
function say(text) { // once the answers have settled: a screen reader need not read each of them
  clearTimeout(spoken);
  spoken = setTimeout(() => { find("spoken").textContent = text; }, QUIET);
}

// Mouse, pen and finger

const place = (event) => {
  const box = paper.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};

paper.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  paper.setPointerCapture(pointer);
  photo = null;
  pen.shown = pen.down = false;
  strokes.push([place(event)]);
  changed();
});

paper.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const moves = event.getCoalescedEvents?.() ?? [];
  strokes[strokes.length - 1].push(...(moves.length ? moves : [event]).map(place));
  changed();
});

for (const end of ["pointerup", "pointercancel"]) {
  paper.addEventListener(end, (event) => {
    if (event.pointerId === pointer) pointer = null;
  });
}

// Keys

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

paper.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = MOVES[event.key];
  if (move) {
    pen.shown = true;
    pen.at = pen.at.map((value, axis) => Math.min(1, Math.max(0, value + STEP * move[axis])));
    if (pen.down) {
      strokes[strokes.length - 1].push(pen.at);
      changed();
    } else render();
  } else if (event.key === " ") {
    pen = { ...pen, down: !pen.down, shown: true };
    say(pen.down ? "Pen down" : "Pen up");
    if (pen.down) {
      photo = null;
      strokes.push([pen.at]);
      changed();
    } else render();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else return;
  event.preventDefault();
});

paper.addEventListener("blur", () => {
  pen.shown = pen.down = false;
  render();
});

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") {
    event.preventDefault();
    undo();
  }
});

find("undo").addEventListener("click", undo);
find("clear").addEventListener("click", () => {
  clear();
  paper.focus(); // the button is disabled now
});

// Photos

find("photo").addEventListener("change", (event) => {
  if (event.target.files[0]) takePhoto(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) takePhoto(file);
  else say("There is no picture to paste.");
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  sheet.classList.add("dropping");
});
document.addEventListener("dragleave", () => sheet.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  sheet.classList.remove("dropping");
  if (event.dataTransfer.files[0]) takePhoto(event.dataTransfer.files[0]);
});

// Start

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
new ResizeObserver(render).observe(paper);
layBars();
showSeen(null);
look();
