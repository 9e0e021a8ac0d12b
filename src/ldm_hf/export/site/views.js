// Drawings: the environment, the action's probabilities, the context. Colours are those of style.css.

/** Draws on a canvas in units of its own; what a pen draws in a colour is a name of a colour in style.css. */
export class Pen {
  /** @param {HTMLCanvasElement} canvas @param {[number, number]} size width and height in the pen's units */
  constructor(canvas, [width, height]) {
    Object.assign(this, { canvas, width, height, at: canvas.getContext("2d") });
    canvas.style.aspectRatio = `${width} / ${height}`;
  }

  /** Clear the canvas, at the resolution of the screen. */
  clear() {
    const style = getComputedStyle(this.canvas), ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * ratio), height = Math.round(this.canvas.clientHeight * ratio);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.at.setTransform(width / this.width, 0, 0, height / this.height, 0, 0);
    this.at.clearRect(0, 0, this.width, this.height);
    this.colour = (name) => style.getPropertyValue(`--${name}`);
  }

  line(colour, width, points, dash = []) {
    this.#path(points);
    Object.assign(this.at, { strokeStyle: this.colour(colour), lineWidth: width, lineCap: "round", lineJoin: "round" });
    this.at.setLineDash(dash);
    this.at.stroke();
  }

  fill(colour, points) {
    this.#path(points);
    this.#filled(colour);
  }

  box(colour, x, y, width, height, corner = 0) {
    this.at.beginPath();
    this.at.roundRect(x, y, width, height, corner);
    this.#filled(colour);
  }

  disc(colour, x, y, radius) {
    this.at.beginPath();
    this.at.arc(x, y, radius, 0, 2 * Math.PI);
    this.#filled(colour);
  }

  arc(colour, width, x, y, radius, from, to) {
    this.at.beginPath();
    this.at.arc(x, y, radius, from, to, to < from);
    Object.assign(this.at, { strokeStyle: this.colour(colour), lineWidth: width });
    this.at.setLineDash([]);
    this.at.stroke();
  }

  text(colour, words, x, y, size = 14) {
    Object.assign(this.at, { fillStyle: this.colour(colour), font: `${size}px system-ui, sans-serif` });
    this.at.fillText(words, x, y);
  }

  /** Draw around a point, turned by an angle. */
  turned(x, y, angle, draw) {
    this.at.save();
    this.at.translate(x, y);
    this.at.rotate(angle);
    draw();
    this.at.restore();
  }

  /** Draw as if through glass. */
  faintly(strength, draw) {
    this.at.save();
    this.at.globalAlpha = strength;
    draw();
    this.at.restore();
  }

  #path(points) {
    this.at.beginPath();
    points.forEach((point, i) => (i ? this.at.lineTo(...point) : this.at.moveTo(...point)));
  }

  #filled(colour) {
    this.at.fillStyle = this.colour(colour);
    this.at.fill();
  }
}

/** The environment, and the reference's figure behind the model's. */
export function drawScene(pen, { env, ghost }, isGhostShown) {
  pen.clear();
  env.scenery(pen);
  if (ghost && isGhostShown) pen.faintly(0.35, () => ghost.env.figure(pen));
  env.figure(pen);
}

/** Bars of a discrete action, or the density of a continuous one. */
export class Probabilities {
  constructor(element, kind) {
    this.kind = kind;
    element.replaceChildren();
    if (kind.actions) {
      this.rows = kind.actions.map((name) => row(element, name));
      return;
    }
    const canvas = element.appendChild(document.createElement("canvas"));
    canvas.className = "density";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "How likely each action is; the most likely one is told below.");
    this.pen = new Pen(canvas, [600, 120]);
    this.text = element.appendChild(Object.assign(document.createElement("p"), { className: "quiet" }));
  }

  show(decision, action) {
    const [{ probabilities, first, bin }] = decision.slots;
    if (!this.kind.actions) return this.#density(probabilities, bin - first, decision.action[0], action[0]);
    this.rows.forEach(({ element, part, number }, i) => {
      element.classList.toggle("chosen", i === action);
      part.style.transform = `scaleX(${probabilities[i]})`;
      number.textContent = `${(probabilities[i] * 100).toFixed(0)} %`;
    });
  }

  #density(probabilities, chosen, value, taken) {
    const { pen } = this, top = Math.max(...probabilities), wide = pen.width / probabilities.length;
    pen.clear();
    pen.fill("figure", [[0, 100], ...Array.from(probabilities, (one, i) => [i * wide, 100 - (one / top) * 90]), [600, 100]]);
    pen.line("accent", 3, [[chosen * wide, 100], [chosen * wide, 4]]);
    const { low: [low], high: [high] } = this.kind.spaces.action;
    pen.text("quiet", String(low), 0, 118);
    pen.text("quiet", String(high), 582, 118);
    const own = value === taken ? "" : `; yours was ${taken.toFixed(2)}`;
    this.text.textContent = `From ${low} to ${high}, by the model's bins; most likely ${value.toFixed(2)}${own}.`;
  }
}

function row(parent, name) {
  const element = parent.appendChild(document.createElement("div"));
  element.className = "row";
  element.innerHTML = '<span></span><div class="track"><div class="part"></div></div><span>0 %</span>';
  const [label, track, number] = element.children;
  label.textContent = name;
  track.firstChild.style.transform = "scaleX(0)";
  return { element, part: track.firstChild, number };
}

/** The context: how much the newest transition attended to each, by whom it was acted, and where episodes end. */
export function drawContext(pen, { context, policy, decision }) {
  const { attention } = decision, wide = pen.width / policy.contextLength, top = Math.max(...attention.subarray(0, -1), 1e-9);
  pen.clear();
  context.forEach(({ isOwn, isEnd }, i) => {
    const tall = Math.min(attention[i] / top, 1) * 46;
    pen.box("figure", i * wide, 48 - tall, Math.max(wide - 1, 1), tall);
    pen.box(isOwn ? "accent" : "muted", i * wide, 52, Math.max(wide - 1, 1), 8);
    if (isEnd) pen.box("line", (i + 1) * wide - 1.5, 0, 2, 72);
  });
  pen.box("edge", 0, 64, pen.width, 2);
  pen.box("line", 0, 64, context.length * wide, 2);
}

/** The same in words. */
export function contextText({ context, policy }) {
  const ends = context.filter(({ isEnd }) => isEnd).length, own = context.filter(({ isOwn }) => isOwn).length;
  return `${context.length} of ${policy.contextLength} transitions. Upper bars: how much attention the newest one gives to each. ` +
    `Lower bars: who acted, in the second colour you (${own}). Upright lines: ends of episodes (${ends}). ` +
    `When it is full, the newer half is read again (so far: ${policy.rebuilds}).`;
}
