// The page: controls and what they do, and the loop that plays.

import { ENVIRONMENTS } from "./environments.js";
import { Player } from "./player.js";
import { Model } from "./policy.js";
import { Pen, Probabilities, contextText, drawContext, drawScene } from "./views.js";

const KEYS = { " ": "play", ".": "step", n: "again", "[": "push-left", "]": "push-right" };
const SHOWN_EPISODES = 50;

const byId = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const about = fetch("page.json").then((answer) => answer.json());
const contextPen = new Pen(byId.context, [640, 72]);
const held = new Set();
const sessions = new Map();
let ort, model, kind, player, scene, probabilities;
let isPlaying = false, isBusy = false, tapped, last, due = 0, recent = [];

/** The visitor's action of this step, if there is one. */
function ownAction() {
  const own = tapped ?? [...held].at(-1);
  tapped = undefined;
  if (own !== undefined || !isYours()) return own;
  return kind.idle ?? last ?? kind.keys.ArrowLeft;
}

const isYours = () => document.querySelector("[name=actor]:checked").value === "you";
const isWaiting = () => kind.waits && isYours() && tapped === undefined && !held.size;

async function oneStep() {
  if (isBusy || !player) return;
  isBusy = true;
  const started = performance.now(), playing = player, wasOver = playing.isOver;
  try {
    const own = ownAction(), decision = await playing.step(own);
    last = own;
    if (playing === player) show(decision, performance.now() - started, wasOver);
  } catch (error) {
    play(false);
    report(error);
  } finally {
    isBusy = false;
  }
}

function show(decision, milliseconds, wasOver) {
  recent.push([performance.now(), milliseconds]);
  recent = recent.slice(-60);
  probabilities.show(decision, player.action);
  drawContext(contextPen, player);
  drawScene(scene, player, byId["show-ghost"].checked);
  tell();
  if (player.isOver) ended();
  else if (wasOver) byId.status.textContent = "";
}

function tell() {
  byId.total.textContent = number(player.total);
  byId.steps.textContent = player.steps;
  const { ghost } = player;
  byId.ghost.textContent = ghost ? `${number(ghost.total)}${ghost.isDone ? ", done" : ""}` : "none";
  const span = recent.length > 1 ? recent.at(-1)[0] - recent[0][0] : 0;
  byId.rate.textContent = span ? (((recent.length - 1) / span) * 1000).toFixed(0) : "0";
  const each = recent.map(([, time]) => time).sort((a, b) => a - b);
  byId.thinking.textContent = `${(each[each.length >> 1] ?? 0).toFixed(1)} ms`;
  byId["context-text"].textContent = contextText(player);
}

const number = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(2));

function ended() {
  const { total, steps, seed } = player.returns.at(-1), { ghost } = player, place = player.returns.length;
  byId.status.textContent = `Episode ${place} ended after ${steps} steps with a return of ${number(total)}.`;
  const beside = !ghost ? "none" : ghost.isDone ? number(ghost.total) : `${number(ghost.total)}, not at its end`;
  const row = byId.returns.insertRow(0);
  for (const value of [place, seed, steps, number(total), beside]) row.insertCell().textContent = value;
  if (byId.returns.rows.length > SHOWN_EPISODES) byId.returns.deleteRow(-1);
}

/** Plays at the environment's speed, as far as the machine can. */
function frame(now) {
  requestAnimationFrame(frame);
  if (!isPlaying || isBusy || isWaiting() || now < due) return;
  const interval = 1000 / (kind.rate * Number(byId.speed.value));
  due = Math.max(due + interval, now - interval);
  if (interval) return oneStep();
  flatOut();
}

/** As many steps as fit into a frame. */
async function flatOut() {
  const until = performance.now() + 12;
  while (isPlaying && performance.now() < until) await oneStep();
}

function play(wanted) {
  isPlaying = wanted && Boolean(model);
  byId.play.textContent = isPlaying ? "Pause" : "Play";
  due = performance.now();
  recent = [];
}

/** Begin again, with an empty context. */
async function restart() {
  const wanted = kind, seed = Math.max(0, Math.trunc(Number(byId.seed.value)) || 0);
  const reference = await referenceOf(wanted).catch(report), { results } = await about;
  if (wanted !== kind) return;
  last = undefined;
  player = new Player(model, kind, { seed, reference });
  player.areSwapped = byId.swap.checked;
  byId.returns.replaceChildren();
  byId.status.textContent = "";
  byId["ghost-line"].hidden = !reference;
  const measured = results[kind.id];
  byId.known.textContent = measured
    ? `In Python, over ${measured.episodes} episodes, the model's mean return was ${number(measured.mean_return)}, that of its reference ` +
      `${number(measured.deterministic_return)}.`
    : "";
  probabilities = new Probabilities(byId.probabilities, kind);
  contextPen.clear();
  drawScene(scene, player, byId["show-ghost"].checked);
  tell();
}

/** The session of an environment's reference, read once; undefined if it has none. */
async function referenceOf({ id }) {
  const { references } = await about;
  if (!references[id]) return undefined;
  if (!sessions.has(id)) {
    const answer = await fetch(references[id]);
    if (!answer.ok) throw new Error(`the reference cannot be read: HTTP ${answer.status}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    sessions.set(id, await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] }));
  }
  return sessions.get(id);
}

/** Show another environment; before there is a model, as it stands at its start. */
async function choose() {
  kind = ENVIRONMENTS.find(({ id }) => id === byId.environment.value);
  location.replace(`#${kind.id}`);
  byId.playing.textContent = kind.title;
  byId["push-left"].textContent = `← ${kind.push}`;
  byId["push-right"].textContent = `${kind.push} →`;
  scene = new Pen(byId.scene, kind.size);
  byId.scene.style.maxWidth = `max(16rem, calc(58vh * ${kind.size[0] / kind.size[1]}))`; // buttons stay in sight
  byId.actions.replaceChildren(...actionButtons());
  held.clear();
  play(false);
  if (model) return restart();
  const env = new kind();
  env.reset(0);
  drawScene(scene, { env }, false);
}

/** A button for each action: it acts while it is held, and a short press acts once. */
function actionButtons() {
  const named = kind.actions?.map((name, i) => [name, i]) ?? [["← left", kind.keys.ArrowLeft], ["right →", kind.keys.ArrowRight]];
  return named.map(([name, action]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name, disabled: !model });
    const release = () => (held.delete(action), button.classList.remove("held"));
    button.addEventListener("pointerdown", () => (hold(action), button.classList.add("held")));
    for (const event of ["pointerup", "pointerleave", "pointercancel"]) button.addEventListener(event, release);
    button.addEventListener("click", (event) => event.detail === 0 && hold(action, false)); // by the keyboard
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    return button;
  });
}

function hold(action, isHeld = true) {
  tapped = action;
  if (isHeld) held.add(action);
}

function push(direction) {
  if (!player || player.isOver) return;
  player.env.disturb(direction);
  player.observation = player.env.observe();
  drawScene(scene, player, byId["show-ghost"].checked);
}

function report(error) {
  byId.status.textContent = `This does not work here: ${error.message}`;
}

const isTyping = ({ target }) => target.closest?.("select, input[type=number], input[type=radio]");

function listen() {
  byId.environment.addEventListener("change", () => choose().then(() => play(true)));
  byId.seed.addEventListener("change", () => restart());
  byId.controls.addEventListener("submit", (event) => event.preventDefault());
  byId.play.addEventListener("click", () => play(!isPlaying));
  byId.step.addEventListener("click", () => (play(false), oneStep()));
  byId.again.addEventListener("click", () => restart());
  byId.swap.addEventListener("change", () => player && (player.areSwapped = byId.swap.checked));
  byId["show-ghost"].addEventListener("change", () => player && drawScene(scene, player, byId["show-ghost"].checked));
  for (const button of document.querySelectorAll("[data-push]"))
    button.addEventListener("click", () => push(Number(button.dataset.push)));
  addEventListener("resize", () => player && (drawScene(scene, player, byId["show-ghost"].checked), player.decision && drawContext(contextPen, player)));
  addEventListener("blur", () => held.clear());
  addEventListener("keyup", ({ key }) => held.delete(kind.keys[key]));
  addEventListener("keydown", (event) => {
    if (isTyping(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, target } = event, isButton = target.closest?.("button, input");
    if (key in kind.keys) event.repeat || hold(kind.keys[key]);
    else if (key in KEYS && !(key === " " && isButton)) byId[KEYS[key]].click();
    else return;
    event.preventDefault();
  });
}

/** Reads a file of the model and shows how far it is. */
async function read(name) {
  const answer = await fetch(`model/${name}`);
  if (!answer.ok) throw new Error(`${name} cannot be read: HTTP ${answer.status}`);
  const total = Number(answer.headers.get("content-length")), parts = [];
  let got = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    got += value.length;
    if (name === "step.onnx" && total) byId.progress.value = Math.min(got / total, 1);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load() {
  ort = await import("./ort/ort.js");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.proxy = true; // another thread thinks, so that the page never stands still
  ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", location.href).href };
  model = await Model.load(ort, "model/", read);
  await restart();
  byId.loading.hidden = true;
  for (const button of document.querySelectorAll("button")) button.disabled = false;
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}

const asked = decodeURIComponent(location.hash.slice(1));
if (ENVIRONMENTS.some(({ id }) => id === asked)) byId.environment.value = asked;
listen();
choose();
requestAnimationFrame(frame);
load().catch(report);
