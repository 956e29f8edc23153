// Something about the memory of each layer, as lines over the time of a conversation.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [100, 40]; // of the picture's view box

export class MemoryPicture {
  #points = []; // { seconds, shares } with shares: { layer: share }

  /** `picture` is the svg element; `caption` has the newest shares in words: what `tell(age, shares)` says of them. */
  constructor(picture, caption, tell) {
    this.picture = picture;
    this.caption = caption;
    this.tell = tell;
  }

  /** Forgets what was drawn. */
  clear() {
    this.#points = [];
    this.#draw();
  }

  /** `shares`: by layer, a number that is 1 for all; nothing is drawn where there is none. */
  add(seconds, shares) {
    if (Object.keys(shares).length === 0) return;
    if (this.#points.length && seconds <= this.#points.at(-1).seconds) this.#points.pop();
    this.#points.push({ seconds, shares });
    this.#draw();
  }

  #draw() {
    const newest = this.#points.at(-1)?.shares ?? {};
    const layers = Object.keys(newest);
    const first = this.#points[0]?.seconds ?? 0;
    const span = Math.max(1, (this.#points.at(-1)?.seconds ?? 0) - first);
    const most = Math.max(1e-9, ...this.#points.flatMap(({ shares }) => Object.values(shares)));
    const lines = layers.map((layer) => {
      const line = document.createElementNS(SVG, "polyline");
      const places = this.#points.map(({ seconds, shares }) => {
        const y = HEIGHT * (1 - (0.95 * (shares[layer] ?? 0)) / most);
        return `${(WIDTH * (seconds - first)) / span},${y}`;
      });
      if (places.length === 1) places.push(`${WIDTH},${places[0].split(",")[1]}`);
      line.setAttribute("points", places.join(" "));
      return line;
    });
    this.picture.replaceChildren(...lines);
    const shares = layers.map((layer) => `layer ${layer}: ${(100 * newest[layer]).toFixed(1)} %`).join(", ");
    const at = this.#points.at(-1)?.seconds ?? 0;
    const age = `${Math.floor(at / 60)}:${String(Math.floor(at % 60)).padStart(2, "0")}`;
    this.caption.textContent = this.tell(age, shares);
    this.picture.setAttribute("aria-label", this.caption.textContent);
  }
}
